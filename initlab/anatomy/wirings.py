"""From stacks and the operations of their branches to `initlab.wiring.Wiring`, and to the tensors behind each site."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from initlab.anatomy.attending import Read, dropout
from initlab.anatomy.chains import Sum, Term
from initlab.anatomy.ends import embedding, with_head
from initlab.anatomy.functions import rounded
from initlab.anatomy.graph import Trace, Value
from initlab.anatomy.norming import normed
from initlab.anatomy.reading import read_body
from initlab.anatomy.replacing import is_mixture
from initlab.anatomy.stream import Block, Stack, Write
from initlab.anatomy.walking import (
    copies,
    factor,
    origin,
    parameter_of,
    settled,
    shifted,
    unscaled,
)
from initlab.wiring import MLP, Attention, Branch, Norm, Update, Wiring
from initlab.wiring import Block as Wired

_CONDITIONED = "what it reads or adds is multiplied with something that the input had a part in"


@dataclass(slots=True)
class Branching:
    """A branch as it was read: its part of the wiring, and the tensors that it shows."""

    branch: Branch
    read: Read
    write: Write


@dataclass(slots=True)
class Reading:
    """One stack as it was read.

    Attributes:
        wiring: None where something on the stream's own way isn't understood, so that nothing follows from it.
        seen: as much of it as was read, whether the rest is understood or not; None where the stack has no stream.
        branches: of each block, in order.
        head: value of the logits, None without a head.
    """

    wiring: Wiring | None
    seen: Wiring | None = None
    branches: list[list[Branching]] = field(default_factory=list)
    head: Value | None = None


def read_stacks(trace: Trace, stacks: Sequence[Stack]) -> list[Reading]:
    """Read every stack of a model.

    Args:
        trace: of the pass.
        stacks: in its order.
    """
    readings: list[Reading] = []
    first = 0
    inside = {block.name for stack in stacks for block in stack.blocks}
    for stack in stacks:
        readings.append(_read_stack(trace, stack, stacks[: len(readings)], first, inside))
        first += len(stack.blocks)
    return readings


def _read_stack(trace: Trace, stack: Stack, before: Sequence[Stack], first: int, inside: Collection[str]) -> Reading:
    unknown: list[tuple[str, str]] = []
    branches: list[list[Branching]] = []
    wired: list[Wired] = []
    whole = all(block.verified and block.uses == 1 for block in stack.blocks)
    for number, block in enumerate(stack.blocks):
        writes = iter(block.writes)
        read = [[_branch(term, each, next(writes), before) for term in each.terms] for each in block.sums]
        mine = [one for some in read for one in some]
        for one, site in zip(mine, write_sites(mine, block.name), strict=True):
            one.branch = replace(one.branch, site=site)
        updates = []
        for each, some in zip(block.sums, read, strict=True):
            by, norm, other = _after(each)
            _give_bias(some, each)
            if other:
                unknown.append((block.name, f"the stream itself goes through {other}"))
                whole = False
            passed = tuple(replace(one.branch, scale=rounded(one.branch.scale * by)) for one in some)
            updates.append(Update(branches=passed, keep=rounded(each.keep * by), norm=norm))
        unknown += [(one.branch.module, one.read.why) for one in mine if one.read.why]
        unknown += [(one.branch.module, _CONDITIONED) for one in mine if one.branch.conditioned and not one.read.why]
        branches.append(mine)
        note = "" if block.verified else block.note
        wired.append(
            Wired(layer=first + number, updates=_with_replaced(updates, block, before), name=block.name, note=note)
        )
    for earlier, later in pairwise(stack.blocks):
        if earlier.end is not None and later.start is not None and not _handed_on(earlier.end, later.start):
            unknown.append((later.name, f"it begins with something else than what {earlier.name} hands on"))
            whole = False
    start = next((block.start for block in stack.blocks if block.start is not None), None)
    if start is None:
        return Reading(None, branches=branches)
    terms, embed_norm, embed_scale, drop = embedding(start)
    wiring = Wiring(
        n_embd=start.shape[-1],
        blocks=tuple(wired),
        terms=terms,
        embed_norm=embed_norm,
        embed_scale=rounded(embed_scale),
        dropout=drop,
        unknown=tuple(_sentences(unknown)),
    )
    wiring, head = with_head(trace, stack, inside, wiring)
    return Reading(wiring if whole else None, wiring, branches, head if whole else None)


def _handed_on(end: Value, start: Value) -> bool:
    """Whether a block begins with what another ends with: nothing was mixed into it on the way, as by a long skip."""
    return start.after(origin(end)) and not start.mixes(origin(end))


def _with_replaced(updates: Sequence[Update], block: Block, before: Sequence[Stack]) -> tuple[Update, ...]:
    """The updates of a block, and among them the branches that replace the stream: of these nothing is kept."""
    out: list[Update] = []
    for place in range(len(updates) + 1):
        for each in block.replaced:
            if each.place == place:
                body, site = each.read.body, "mlp_out"
                if isinstance(body, Attention):
                    site = "attn_out" if each.read.other is None else "cross_attn_out"
                    cross = None if each.read.other is None else _crossed(each.read.other, before)
                    body = body if cross is None else replace(body, cross=cross, causal=False)
                branch = Branch(
                    site=site,
                    body=body,
                    experts=_experts(each.read),
                    norm=each.read.norm,
                    post=each.post,
                    module=each.module,
                    conditioned=each.read.conditioned,
                )
                out.append(Update(branches=(branch,), keep=0.0))
        out += updates[place : place + 1]
    return tuple(out)


def _sentences(unknown: Sequence[tuple[str, str]]) -> Iterator[str]:
    """One for each reason, which names a module and how many others it is said of."""
    named: dict[str, dict[str, None]] = {}
    for name, why in unknown:
        named.setdefault(re.sub(r"\.\d+", ".*", why), {})[f"{name}: {why}"] = None
    for sentences in named.values():
        more = f" (and {len(sentences) - 1} more like it)" if len(sentences) > 1 else ""
        yield next(iter(sentences)) + more


def _branch(term: Term, each: Sum, write: Write, before: Sequence[Stack]) -> Branching:
    post = normed(term.core)
    core = term.core
    if post is not None:
        core = post.source
        core = unscaled(core)[0]
    read = read_body(core, each.base)
    if read.body is not None and read.source is not origin(each.base):
        read.body, read.why = None, "it reads another state than the one before the sum"
    if read.body is not None and read.other is not None:
        number = _crossed(read.other, before)
        if number is None or not isinstance(read.body, Attention):
            read.body, read.why = None, "its keys are made of something else than a stack's last state"
        else:
            read.body = replace(read.body, cross=number, causal=False)
    gain = parameter_of(term.vector)
    mixed = is_mixture(read) and read.source is origin(each.base)
    branch = Branch(
        site="",
        body=read.body,
        experts=_experts(read),
        norm=read.norm if read.body is not None or mixed else None,
        norms=read.norms if read.body is not None else (),
        post=None if post is None else post.norm,
        scale=rounded(term.scale / term.vector.rms if term.vector is not None and term.vector.rms else term.scale),
        gain=gain[0] if gain else None,
        dropout=_dropout(term),
        module=write.module,
        conditioned=term.gated or read.conditioned,
        # in a part that is recomputed in the backward pass nothing has a gradient, the sum included
        detached=term.value.after(each.base) and each.value.flows(each.base) and not term.value.flows(each.base),
        turned=read.turned,
    )
    if term.vector is not None and gain is None:
        branch = replace(branch, scale=rounded(term.scale))
    return Branching(branch, read, write)


def _experts(read: Read) -> tuple[MLP | None, ...]:
    """The MLPs of a mixture."""
    return tuple(x.body if isinstance(x.body, MLP) else None for x in read.experts) if is_mixture(read) else ()


def write_sites(branches: Sequence[Branching], block: str) -> list[str]:
    """Name what is added to a stream: attn_out, cross_attn_out, mlp_out or mixer_out.

    Which branch adds is known, and mostly what it computes. What isn't understood is named after its module, and of two
    such the first is attention.

    Args:
        branches: of one block, in order.
        block: its dotted name.
    """
    kinds = []
    names = [one.write.inner.removeprefix(block).lower() for one in branches]
    for one, name in zip(branches, names, strict=True):
        body = one.branch.body
        if isinstance(body, Attention):
            kinds.append("attn_out" if body.cross is None else "cross_attn_out")
        elif isinstance(body, MLP) or one.read.experts or "mlp_pre" in one.read.values:
            kinds.append("mlp_out")
        elif one.read.score is not None or one.read.heads:
            kinds.append("attn_out" if one.read.other is None else "cross_attn_out")
        elif re.search(r"mixer|mamba|ssm|rnn|conv", name):
            kinds.append("mixer_out")
        elif re.search(r"att|mha", name):
            kinds.append("attn_out")
        else:
            kinds.append(
                "mlp_out" if re.search(r"mlp|ffn|feed_?forward|experts|moe|dense|fc\d|linear\d|wo$", name) else ""
            )
    if len(kinds) == 2 and sorted(kinds) in (["", ""], ["", "attn_out"], ["", "mlp_out"]):
        kinds = ["attn_out", "mlp_out"]
    kinds = [kind or "mixer_out" for kind in kinds]
    plain = [re.sub(r"\d", "", name) for name in names]  # self_attn.1 is another self_attn.0, and no cross-attention
    return [
        "cross_attn_out" if kind == "attn_out" and _again(kinds, plain, i) and branches[i].branch.body is None else kind
        for i, kind in enumerate(kinds)
    ]


def _again(kinds: Sequence[str], plain: Sequence[str], place: int) -> bool:
    return "attn_out" in kinds[:place] and plain[place] not in plain[:place]


def _dropout(term: Term) -> float:
    """In force between what gives a branch and the sum."""
    value = term.value
    while value.op is not None:
        if (p := dropout(value.op)) > 0:
            return p
        times = factor(value.op)
        if copies(value.op):
            value = value.op.inputs[0]
        elif times is not None and times.vector is None:
            value = times.value
        else:
            break
    return 0.0


def _after(each: Sum) -> tuple[float, Norm | None, str]:
    """What is done to the stream after a sum: (a number, a norm, something else)."""
    if each.after is None or origin(each.after) is origin(each.value):
        return 1.0, None, ""
    found = normed(each.after)
    if found is not None and origin(found.source) is origin(each.value):
        return 1.0, found.norm, ""
    value, scale = settled(each.after), 1.0
    while value is not origin(each.value):
        op = value.op
        times = factor(op)
        if times is None or times.vector is not None:
            return 1.0, None, f"{op.name} in {op.module or 'the model itself'}" if op else "something unseen"
        value, scale = settled(times.value), scale * times.number
    return scale, None, ""


def _give_bias(branches: Sequence[Branching], each: Sum) -> None:
    """A bias that is added after the sum, as in x + f(x) @ W + b, is the last matrix's."""
    value = each.after
    while value is not None and origin(value) is not origin(each.value):
        added = shifted(origin(value).op)
        if added is None:
            return
        known, body = parameter_of(added[1]), branches[-1].branch.body
        if known is not None and body is not None and body.out is not None and body.out.bias is None:
            whole = replace(body, out=replace(body.out, bias=known[0]))
            branches[-1].branch = replace(branches[-1].branch, body=whole)
        value = added[0]


def _crossed(source: Value, before: Sequence[Stack]) -> int | None:
    """Number of the stack whose last state, normalised or not, a tensor is."""
    for number, stack in enumerate(before):
        ends = [stack.final, stack.last]
        if any(end is not None and origin(end) is origin(source) for end in ends):
            return number
    return None
