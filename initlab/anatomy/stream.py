"""Blocks of a model, and the residual stream through them: what stands in a list, and what a pass did with it.

A block's stream is verified when its output is its input plus what was found to be added, operation by operation. What
isn't so is reported as unverified; nothing is guessed from names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn

from initlab.anatomy.chains import Chain, Sum, Term, find_chains
from initlab.anatomy.graph import Place, Trace, Value
from initlab.anatomy.homes import Homes, around, common, prefixes
from initlab.anatomy.norming import normed
from initlab.anatomy.replacing import Replaced, inside_of, replaced_between
from initlab.anatomy.walking import copies_of, origin, settled
from initlab.wiring import Attention

UNLIKE = "the block's output isn't its input plus what its modules gave"


@dataclass(slots=True)
class Write:
    """What is added to the stream.

    Attributes:
        term: of the sum.
        module: dotted name of the outermost module inside the block that gave it; the block's own without one.
        inner: of the innermost.
    """

    term: Term
    module: str
    inner: str

    @property
    def scale(self) -> float:
        """What it is multiplied with; of numbers for each channel their root mean square."""
        return self.term.scale

    @property
    def per_channel(self) -> bool:
        """Whether each channel has a number of its own."""
        return self.term.vector is not None


@dataclass(slots=True)
class Block:
    """One block of a stack.

    Attributes:
        name: dotted name, or where no module is the block, what stands for it.
        sums: updates of the stream, in its first use.
        start: the stream that it is given; None where it wasn't used.
        end: the stream that it hands on.
        writes: what is added, in order.
        verified: the stream was followed from start to end.
        note: why not, or what else is to be said.
        uses: how often it is used in one pass.
        replaced: branches that aren't added, where they are all that the stream couldn't be followed through.
    """

    name: str
    sums: list[Sum] = field(default_factory=list)
    start: Value | None = None
    end: Value | None = None
    writes: list[Write] = field(default_factory=list)
    verified: bool = False
    note: str = ""
    uses: int = 1
    replaced: list[Replaced] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Features of the stream; 0 where it wasn't used with one."""
        return self.start.shape[-1] if self.start is not None and self.start.shape else 0

    @property
    def skips(self) -> list[float]:
        """What sums multiply the stream with, where that isn't 1."""
        return [each.keep for each in self.sums if each.keep != 1]


@dataclass(slots=True)
class Stack:
    """Blocks that hand a stream on to one another.

    Attributes:
        name: dotted name of the container that they are in.
        blocks: in order of the pass.
        last: what the last block hands on, after its last use.
        final: value of the norm that reads what the last block gives; None without one.
        final_norm: dotted name of its module.
    """

    name: str
    blocks: list[Block]
    last: Value | None = None
    final: Value | None = None
    final_norm: str = ""

    @property
    def verified(self) -> float:
        """Share of the blocks whose stream was followed."""
        return sum(block.verified for block in self.blocks) / len(self.blocks)


def find_stacks(model: nn.Module, trace: Trace, declared: Mapping[str, Sequence[str]] | None = None) -> list[Stack]:
    """Find every residual stack of a model, in the order of the pass.

    Args:
        model: any module.
        trace: of a pass of it.
        declared: name of a stack -> its blocks, where the caller knows them; kept even if nothing can be verified.
    """
    chains, homes = find_chains(trace), Homes(model)
    if declared is not None:
        members = {block for blocks in declared.values() for block in blocks}
        sums = [each for chain in chains for each in chain.sums]
        stacks = [_stack(trace, homes, name, members, sums, blocks) for name, blocks in declared.items()]
        for stack in stacks:
            _settle_norm(trace, stack)
        return stacks
    grouped: dict[str, list[Sum]] = defaultdict(list)
    loose: list[Chain] = []
    for chain in chains:
        home = homes.of(chain)
        if home is None:
            loose.append(chain)
        else:
            grouped[home] += chain.sums
    found = []
    for name, sums in grouped.items():
        inside, whole = set(homes.parts(name, sums)), homes.whole(name)
        stack = _stack(trace, homes, name, inside, sums, [] if inside.isdisjoint(whole) else whole)
        if any(block.verified or block.replaced for block in stack.blocks):
            found.append(stack)
    found += [one for chain in loose if (one := _loose(trace, homes, chain))]
    found += _without_sums(model, trace, found)
    for stack in found:
        _settle_norm(trace, stack)
    first = {id(stack): min((b.start.index for b in stack.blocks if b.start), default=0) for stack in found}
    return sorted(found, key=lambda stack: first[id(stack)])


def _without_sums(model: nn.Module, trace: Trace, found: Sequence[Stack]) -> Iterator[Stack]:
    """Lists of blocks with attention in each of which every branch replaces the stream: nothing is added anywhere."""
    known = {block.name for stack in found for block in stack.blocks}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2:
            continue
        if any(f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.") for other in known):
            continue
        blocks = [_block(trace, f"{name}.{place}".removeprefix("."), [[]]) for place in range(len(module))]
        bodies = [[each.read.body for each in block.replaced] for block in blocks]
        if all(any(isinstance(body, Attention) for body in some) for some in bodies):
            yield Stack(name, blocks, blocks[-1].end)


def _stack(
    trace: Trace, homes: Homes, name: str, members: Collection[str], sums: Sequence[Sum], whole: Sequence[str]
) -> Stack:
    """Put the updates into the blocks that their parameters are in."""
    owned: dict[str, list[list[Sum]]] = {path: [] for path in whole}  # one list for each time that it is come to
    last = ""
    for each in sums:
        # the sum's own place first: a module that blocks share has its parameters under the first one's name
        here = [p for p in around(each) if p in members]
        here = here or [p for n in homes.names(each) for p in prefixes(n) if p in members]
        path = here[0] if here else last
        if path:
            runs = owned.setdefault(path, [])
            if path != last or not runs:
                runs.append([])
            runs[-1].append(each)
            last = path
    several = sum(1 for runs in owned.values() if runs) > 1  # a list inside a branch is no list of blocks
    blocks = [_block(trace, path, mine, parts=several) for path, mine in owned.items()]
    order = {block.name: _first(trace, block) for block in blocks}
    blocks.sort(key=lambda block: order[block.name])
    end = next((block.end for block in reversed(blocks) if block.end is not None), None)
    if sums and any(block.uses > 1 for block in blocks):
        end = sums[-1].end
    return Stack(name, blocks, end)


def _first(trace: Trace, block: Block) -> int:
    if block.start is not None:
        return block.start.index
    given = trace.at.get(Place(block.name, "in"))
    return given.index if given is not None else len(trace.values)


def _block(trace: Trace, name: str, runs: list[list[Sum]], *, parts: bool = False) -> Block:
    """One block from its updates, compared with what went in and came out of it where it is a module that is called.

    Args:
        trace: of the pass.
        name: of the block.
        runs: its updates, in a list for each time that the stream comes to it.
        parts: what it is named after may be a part of it.
    """
    block = Block(name)
    sums = [each for run in runs for each in run]
    given, gave = trace.at.get(Place(name, "in")), trace.at.get(Place(name, "out"))
    if parts and sums and gave is not None and gave.index < sums[0].value.index:
        given = gave = None  # the module gives a branch, and the block is that and what follows
    if sums and given is None and gave is None:
        sums, block.uses = runs[0], len(runs)
    while Place(name, "in", block.uses) in trace.at:
        block.uses += 1
    if gave is not None:  # what it does when it is used again is no other block
        sums = [each for each in sums if each.value.index <= gave.index]
    block.sums = sums
    block.writes = [_write(name, term) for each in sums for term in each.terms]
    block.start, block.end = given, gave
    if not sums:
        called = given is not None and gave is not None
        block.note = UNLIKE if called else "not called with a tensor of the stream's shape, or returned none"
        _note_replaced(block, given, gave)
        return block
    followed = all(origin(a.end) is origin(b.base) for a, b in pairwise(sums))
    if gave is not None:
        _close(sums[-1], gave)
    block.start = given if given is not None and _reaches(sums[0].base, given) else sums[0].base
    # what is normalised before the next block reads it is handed on so
    late = gave is not None and _norms(sums[-1].end, gave)
    block.end = sums[-1].end if gave is None or late or not _is_state(gave, sums[-1]) else gave
    ends = gave is None or _is_state(gave, sums[-1])
    begins = given is None or block.start is given or not sums[0].base.after(given) or _norms(sums[0].base, given)
    block.verified = followed and ends and begins
    if not block.verified:
        block.note = UNLIKE
        _note_replaced(block, given, gave)
    return block


def _note_replaced(block: Block, given: Value | None, gave: Value | None) -> None:
    block.replaced = _replaced(block, given, gave)
    if block.replaced:
        block.start, block.end = given or block.start, gave or block.end
        names = ", ".join(each.module for each in block.replaced)
        block.note = f"{UNLIKE}: what {names} gives isn't added to it, and replaces it"


def _replaced(block: Block, given: Value | None, gave: Value | None) -> list[Replaced]:
    """Read how one state becomes the next where no sum leads there; empty where that isn't known of every gap."""
    sums = block.sums
    if sums:
        gaps = [(0, given, sums[0].base), *((n + 1, a.end, b.base) for n, (a, b) in enumerate(pairwise(sums)))]
        gaps.append((len(sums), sums[-1].end, sums[-1].end if gave is None or _is_state(gave, sums[-1]) else gave))
    else:
        gaps = [] if gave is None else [(0, given, gave)]
    found: list[Replaced] = []
    for place, before, after in gaps:
        if before is None or (place == 0 and _reaches(after, before)):
            continue
        between = replaced_between(block.name, place, before, after)
        if between is None:
            return []
        found += between
    return found


def _close(last: Sum, gave: Value) -> None:
    """The norm with which a block ends, where no update follows in which it would show."""
    if origin(gave) is origin(last.value) or last.after is not None:
        return
    if settled(gave) is origin(last.value):
        last.after = gave
        return
    found = normed(gave)
    if found is not None and origin(found.source) is origin(last.value):
        last.after = gave


def _is_state(value: Value, last: Sum) -> bool:
    return settled(value) in (settled(last.value), settled(last.end))


def _norms(state: Value, given: Value) -> bool:
    """Whether a state is the norm of another, as where blocks begin by normalising the stream (nGPT)."""
    found = normed(state)
    return found is not None and origin(found.source) is origin(given)


def _reaches(base: Value, given: Value) -> bool:
    return any(value is given or origin(value) is origin(given) for value in copies_of(base))


def _write(block: str, term: Term) -> Write:
    return Write(term, *inside_of(block, term.core.op))


def _loose(trace: Trace, homes: Homes, chain: Chain) -> Stack | None:
    """A stream whose blocks stand in no list: one module used again and again, or updates written out one by one."""
    if len(chain.sums) < 2:
        return None
    whole = common([common([name.rpartition(".")[0] for name in homes.names(each)]) for each in chain.sums])
    if whole and Place(whole, "in", 1) in trace.at:
        return Stack(whole, [_block(trace, whole, [chain.sums])], chain.end)
    blocks = []
    for number, each in enumerate(chain.sums):
        block = Block(f"update {number}", [each], each.base, each.end, verified=True)
        block.writes = [_write("", term) for term in each.terms]
        blocks.append(block)
    return Stack("", blocks, chain.end)


def _settle_norm(trace: Trace, stack: Stack) -> None:
    """Find the norm that reads what the last block hands on."""
    if stack.last is None:
        return
    end = origin(stack.last)
    for op in trace.ops:
        value = op.outputs[0] if op.outputs else None
        if value is None or value.index <= end.index or not value.after(end):
            continue
        found = normed(value)
        if found is None or origin(found.source) is not end:
            continue
        if stack.final is None or (found.norm.module == stack.final_norm == op.module):
            stack.final, stack.final_norm = value, found.norm.module
