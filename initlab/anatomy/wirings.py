"""From stacks and the operations of their branches to `initlab.wiring.Wiring`, and to the tensors behind each site."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from initlab.anatomy.attending import Read, dropout
from initlab.anatomy.chains import Sum, Term
from initlab.anatomy.functions import rounded
from initlab.anatomy.reading import read_body
from initlab.anatomy.stream import Block, Stack, Write
from initlab.anatomy.trace import Trace, Value
from initlab.anatomy.walking import (
    Projected,
    copies,
    factor,
    normed,
    origin,
    parameter_of,
    projected,
    settled,
    shifted,
    unscaled,
)
from initlab.wiring import MLP, Attention, Branch, Norm, Update, Wiring
from initlab.wiring import Block as Wired
from initlab.wiring import Term as Summand


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
        branches.append(mine)
        note = "" if block.verified else block.note
        wired.append(
            Wired(layer=first + number, updates=_with_replaced(updates, block, before), name=block.name, note=note)
        )
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
    wiring, head = _with_head(trace, stack, inside, wiring)
    return Reading(wiring if whole else None, wiring, branches, head if whole else None)


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
                branch = Branch(site=site, body=body, norm=each.read.norm, module=each.module)
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
    if read.body is not None and term.gated:
        read.body, read.why = None, "it is multiplied with something that the input had a part in"
    if read.body is not None and read.source is not origin(each.base):
        read.body, read.why = None, "it reads another state than the one before the sum"
    if read.body is not None and read.other is not None:
        number = _crossed(read.other, before)
        if number is None or not isinstance(read.body, Attention):
            read.body, read.why = None, "its keys are made of something else than a stack's last state"
        else:
            read.body = replace(read.body, cross=number, causal=False)
    gain = parameter_of(term.vector)
    branch = Branch(
        site="",
        body=read.body,
        norm=read.norm if read.body is not None else None,
        post=None if post is None else post.norm,
        scale=rounded(term.scale / term.vector.rms if term.vector is not None and term.vector.rms else term.scale),
        gain=gain[0] if gain else None,
        dropout=_dropout(term),
        module=write.module,
    )
    if term.vector is not None and gain is None:
        branch = replace(branch, scale=rounded(term.scale))
    return Branching(branch, read, write)


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
        elif isinstance(body, MLP) or one.read.experts:
            kinds.append("mlp_out")
        elif one.read.score is not None:
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


# where a stream begins


def embedding(start: Value) -> tuple[tuple[Summand, ...] | None, Norm | None, float, float]:
    """Read the sum that a stream begins with.

    Returns:
        its terms (None where it isn't such a sum), the norm of it, what it is multiplied with, the dropout in force.
    """
    norm, scale, drop, value = None, 1.0, 0.0, start
    while value.op is not None:
        op = value.op
        drop = drop or dropout(op)
        times = factor(op)
        if copies(op):
            value = op.inputs[0]
        elif times is not None and times.vector is None:
            scale, value = scale * times.number, times.value
        elif norm is None and (found := normed(value)) is not None:
            norm, value, scale = replace(found.norm, scale=found.norm.scale * scale), found.source, 1.0
        else:
            break
    terms: list[Summand] = []
    for part, by in _summands(value):
        term = _summand(part, by)
        if term is None:
            return None, norm, scale, drop
        terms.append(term)
    return (tuple(terms) if any(term.kind == "token" for term in terms) else None), norm, scale, drop


def _summands(value: Value) -> Iterator[tuple[Value, float]]:
    left = [(value, 1.0)]
    while left:
        value, scale = left.pop()
        op = value.op
        times = factor(op)
        if op is not None and op.name == "add" and sum(isinstance(each, Value) for each in op.args[:2]) == 2:
            left += [(each, scale) for each in reversed(op.args[:2])]
        elif op is not None and copies(op):
            left.append((op.inputs[0], scale))
        elif times is not None and times.vector is None:
            left.append((times.value, scale * times.number))
        else:
            yield value, scale


def _summand(value: Value, scale: float) -> Summand | None:
    op = value.op
    if (op is not None and op.name == "embedding") or (op is not None and op.name == "getitem" and len(op.inputs) == 2):
        table, ids = op.inputs if op.name == "getitem" else (op.argument(1, "weight"), op.argument(0, "input"))
        known = parameter_of(table)
        if known is None:
            return Summand(kind="position", weight=None, scale=scale, square=_square(value)) if not ids.data else None
        given = origin(ids).kind == "input"
        kind: Literal["token", "position", "constant"] = "token" if given else "position"
        if ids.constant:
            kind = "constant"
        return Summand(kind=kind, weight=known[0], scale=rounded(scale * known[1]))
    if value.data:
        return None
    known = parameter_of(value)
    if known is not None:
        many = len(value.shape) >= 2 and value.shape[-2] > 1
        return Summand(kind="position" if many else "constant", weight=known[0], scale=rounded(scale * known[1]))
    square = _square(value)
    return None if square is None else Summand(kind="position", weight=None, scale=scale, square=square)


def _square(value: Value) -> float | None:
    return value.rms**2 if math.isfinite(value.rms) else None


# what reads it last


def _with_head(trace: Trace, stack: Stack, inside: Collection[str], wiring: Wiring) -> tuple[Wiring, Value | None]:
    """Add the final norm and the head, where a matrix outside all blocks reads the last state; and give the logits."""
    if stack.final is not None and (found := normed(stack.final)) is not None:
        wiring = replace(wiring, final_norm=found.norm)
    end = stack.final if stack.final is not None else stack.last
    best: tuple[Projected, Value, float, float | None] | None = None
    for op in trace.ops:
        head = projected(op.outputs[0]) if op.outputs and end is not None else None
        if head is None or end is None or any(module in inside for module, _ in op.within):
            continue
        source, scale = _multiple(head.source, origin(end))
        if source is origin(end):
            value, logit_scale, cap = _onwards(trace, head.result, scale)
            if any(out.after(value) and not out.mixes(value) for out in trace.outputs):  # nothing comes behind it
                best = head, value, logit_scale, cap
    if best is None:
        return wiring, None
    head, logits, logit_scale, cap = best
    tokens = {term.weight for term in wiring.terms or () if term.kind == "token"}
    wiring = replace(
        wiring,
        head=head.linear,
        tied=head.linear.weight in tokens,
        logit_scale=rounded(logit_scale),
        logit_cap=cap,
    )
    return wiring, logits


def _multiple(value: Value, of: Value) -> tuple[Value, float]:
    """Walk back through numbers, until a tensor."""
    scale = 1.0
    while origin(value) is not of:
        inner = origin(value)
        times = factor(inner.op)
        if inner.op is not None and inner.op.name in ("getitem", "index_select", "select") and inner.op.inputs[0].data:
            value = inner.op.inputs[0]  # the last positions alone
            continue
        if times is None or times.vector is not None:
            break
        value, scale = times.value, scale * times.number
    return origin(value), scale


def _onwards(trace: Trace, value: Value, scale: float) -> tuple[Value, float, float | None]:
    """From what the head gives to the logits: through numbers and a soft cap."""
    before = None
    readers = trace.readers()
    for _ in range(16):
        nexts = [op for op in readers.get(value, []) if op.outputs and op.outputs[0].numel == value.numel]
        step = next((op for op in nexts if copies(op) or factor(op) is not None or op.name == "tanh"), None)
        if step is None:
            break
        times = factor(step)
        if step.name == "tanh":
            before, scale = scale, 1.0
        elif times is not None and times.vector is None:
            scale *= times.number
        value = step.outputs[0]
    return (value, scale, None) if before is None else (value, rounded(before * scale), rounded(scale))
