"""Blocks of a model, and the residual stream through them: what stands in a list, and what a pass did with it.

A block's stream is verified when its output is its input plus what was found to be added, operation by operation. What
isn't so is reported as unverified; nothing is guessed from names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn

from initlab.anatomy.attending import Read
from initlab.anatomy.chains import Chain, Sum, Term, find_chains
from initlab.anatomy.reading import read_body
from initlab.anatomy.trace import Op, Place, Trace, Value
from initlab.anatomy.walking import copies_of, factor, normed, origin, parameter_of, settled, unscaled

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


@dataclass(frozen=True, slots=True)
class Replaced:
    """An attention or MLP of the stream whose result is handed on without the stream being added to it.

    Attributes:
        place: how many sums of the block come before it.
        read: what it computes.
        module: dotted name of the outermost module inside the block that gave it; the block's own without one.
    """

    place: int
    read: Read
    module: str


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
    chains = find_chains(trace)
    if declared is not None:
        members = {block: name for name, blocks in declared.items() for block in blocks}
        homes = {name: [each for chain in chains for each in chain.sums] for name in declared}
        stacks = [_stack(trace, name, members, sums, list(declared[name])) for name, sums in homes.items()]
        for stack in stacks:
            _settle_norm(trace, stack)
        return stacks
    members = _members(model)
    grouped: dict[str, list[Sum]] = defaultdict(list)
    loose: list[Chain] = []
    for chain in chains:
        home = _home(model, chain, members)
        if home is None:
            loose.append(chain)
        else:
            grouped[home] += chain.sums
    found = []
    for name, sums in grouped.items():
        inside = dict.fromkeys(_parts(model, name, sums, members), name)
        whole = [path for path, around in members.items() if around == name and _is_block(model.get_submodule(path))]
        stack = _stack(trace, name, inside, sums, whole if set(whole) & set(inside) else [])
        if any(block.verified or block.replaced for block in stack.blocks):
            found.append(stack)
    found += [one for chain in loose if (one := _loose(trace, chain, model))]
    for stack in found:
        _settle_norm(trace, stack)
    first = {id(stack): min((b.start.index for b in stack.blocks if b.start), default=0) for stack in found}
    return sorted(found, key=lambda stack: first[id(stack)])


def _members(model: nn.Module) -> dict[str, str]:
    """What could be a block, by dotted name -> what holds it: members of lists, and children of one class."""
    found: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        children = [
            (f"{name}.{key}" if name else key, child) for key, child in module._modules.items() if child is not None
        ]
        if isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            found |= {path: name for path, child in children if any(True for _ in child.parameters())}
            continue
        classes: dict[type, list[str]] = defaultdict(list)
        for path, child in children:
            if _is_block(child) and not isinstance(child, nn.ModuleList | nn.ModuleDict):
                classes[type(child)].append(path)
        found |= {path: name for paths in classes.values() if len(paths) > 1 for path in paths}
    return found


def _is_block(module: nn.Module) -> bool:
    """Blocks hold two modules or more with weights of their own (norm, projection)."""
    return sum(1 for part in module.modules() if any(True for _ in part.parameters(recurse=False))) >= 2


def _prefixes(name: str) -> Iterator[str]:
    """a, a.b, a.b.c of a.b.c."""
    steps = name.split(".")
    for count in range(1, len(steps) + 1):
        yield ".".join(steps[:count])


def used(term: Term, base: Value) -> list[str]:
    """Names of the parameters with which a branch computes what it adds from the stream.

    Args:
        term: what is added.
        base: the stream that it is computed from.
    """
    names: dict[str, None] = {}
    seen: set[Value] = set()
    left = [term.value]
    while left:
        value = left.pop()
        if value in seen or value is base or value.op is None or not value.mixes(base):
            continue
        seen.add(value)
        for given in value.op.inputs:
            if given.data:
                left.append(given)
            elif known := parameter_of(given):
                names[known[0]] = None
    return list(names)


def _around(each: Sum) -> Iterator[str]:
    """Names of the modules that a sum is made in, and of what these are in, outermost first."""
    op = each.terms[0].op
    for module, _ in () if op is None else op.within:
        yield from _prefixes(module)


def _home(model: nn.Module, chain: Chain, members: Mapping[str, str]) -> str | None:
    """The container that a stream's blocks are in: the outermost with several of them."""
    places: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for each in chain.sums:
        here = {path for term in each.terms for name in used(term, each.base) for path in _prefixes(name)}
        around = set(_around(each))
        held = {members[path] for path in around & members.keys()}
        here = around | {path for path in here if members.get(path) not in held}
        for path in here & members.keys():
            places[members[path]][path] += 1
    several = {name: inside for name, inside in places.items() if len(inside) > 1 or _is_list(model, name)}
    if not several:
        return None
    most = max(sum(inside.values()) for inside in several.values())
    return min((n for n, inside in several.items() if sum(inside.values()) == most), key=lambda n: (n.count("."), n))


def _is_list(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name), nn.ModuleList | nn.Sequential)


def _parts(model: nn.Module, name: str, sums: Sequence[Sum], members: Mapping[str, str]) -> list[str]:
    """The blocks of a container; where its members hold several blocks each (stages), those."""
    outer = [path for path, around in members.items() if around == name]
    inner: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for each in sums:
        here = {path for term in each.terms for n in used(term, each.base) for path in _prefixes(n)}
        member = next((path for path in outer if path in here), None)
        for path in here & members.keys():
            if member and path.startswith(f"{member}.") and members[path].startswith(member):
                inner[member][path] += 1
    lists = {m: {p: n for p, n in inside.items() if n >= 2} for m, inside in inner.items()}
    if lists and all(len(inside) >= 2 for inside in lists.values()) and len(lists) == len(inner):
        return [path for inside in lists.values() for path in inside]
    return outer


def _stack(trace: Trace, name: str, members: Mapping[str, str], sums: Sequence[Sum], whole: Sequence[str]) -> Stack:
    """Put the updates into the blocks that their parameters are in."""
    owned: dict[str, list[Sum]] = {path: [] for path in whole}
    last = ""
    for each in sums:
        # the sum's own place first: a module that blocks share has its parameters under the first one's name
        here = [p for p in _around(each) if p in members]
        here = here or [p for t in each.terms for n in used(t, each.base) for p in _prefixes(n) if p in members]
        path = here[0] if here else last
        if path:
            owned.setdefault(path, []).append(each)
            last = path
    blocks = [_block(trace, path, mine) for path, mine in owned.items()]
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


def _block(trace: Trace, name: str, sums: list[Sum]) -> Block:
    """One block from its updates, compared with what went in and came out of it where it is a module that is called."""
    block = Block(name)
    given, gave = trace.at.get(Place(name, "in")), trace.at.get(Place(name, "out"))
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
        return block
    followed = all(origin(a.end) is origin(b.base) for a, b in pairwise(sums))
    if gave is not None:
        _close(sums[-1], gave)
    block.start = given if given is not None and _reaches(sums[0].base, given) else sums[0].base
    block.end = sums[-1].end if gave is None or not _is_state(gave, sums[-1]) else gave
    ends = gave is None or _is_state(gave, sums[-1])
    begins = given is None or block.start is given or not sums[0].base.after(given)
    block.verified = followed and ends and begins
    if not block.verified:
        block.replaced = _replaced(block, given, gave)
        if block.replaced:
            block.start, block.end = given or block.start, gave or block.end
        names = ", ".join(each.module for each in block.replaced)
        block.note = f"{UNLIKE}: what {names} gives isn't added to it, and replaces it" if names else UNLIKE
    return block


def _bare(value: Value) -> Value:
    """What a value is a multiple of, by numbers and by vectors (LayerScale)."""
    value = unscaled(value)[0]
    while (times := factor(value.op)) is not None:
        value = unscaled(times.value)[0]
    return value


def _replaced(block: Block, given: Value | None, gave: Value | None) -> list[Replaced]:
    """Read how one state becomes the next where no sum leads there; empty where that isn't known of every gap."""
    sums = block.sums
    gaps = [(0, given, sums[0].base), *((n + 1, a.end, b.base) for n, (a, b) in enumerate(pairwise(sums)))]
    gaps.append((len(sums), sums[-1].end, sums[-1].end if gave is None or _is_state(gave, sums[-1]) else gave))
    found: list[Replaced] = []
    for place, before, after in gaps:
        if before is None or origin(before) is origin(after) or (place == 0 and _reaches(after, before)):
            continue
        core = _bare(after)
        read = read_body(core, before)
        if read.body is None or read.source is not origin(before):
            return []
        found.append(Replaced(place, read, _inside(block.name, core.op)[0]))
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


def _reaches(base: Value, given: Value) -> bool:
    return any(value is given or origin(value) is origin(given) for value in copies_of(base))


def _write(block: str, term: Term) -> Write:
    return Write(term, *_inside(block, term.core.op))


def _inside(block: str, op: Op | None) -> tuple[str, str]:
    """The outermost and the innermost module inside a block that an operation is in; the block's own without one."""
    around = [module for module, _ in op.within] if op is not None else []
    inside = [module for module in around if module.startswith(f"{block}.") or not block]
    return (inside[0], inside[-1]) if inside else (block, block)


def _loose(trace: Trace, chain: Chain, model: nn.Module) -> Stack | None:
    """A stream whose blocks stand in no list: one module used again and again, or updates written out one by one."""
    if len(chain.sums) < 2:
        return None
    homes = []
    for each in chain.sums:
        modules = [name.rpartition(".")[0] for term in each.terms for name in used(term, each.base)]
        homes.append(_common(modules))
    whole = _common(homes)
    if whole and Place(whole, "in", 1) in trace.at:
        return Stack(whole, [_block(trace, whole, chain.sums)], chain.end)
    blocks = []
    for number, each in enumerate(chain.sums):
        block = Block(f"update {number}", [each], each.base, each.end, verified=True)
        block.writes = [_write("", term) for term in each.terms]
        blocks.append(block)
    return Stack("", blocks, chain.end)


def _common(names: Sequence[str]) -> str:
    """The longest dotted name that all are in, or are."""
    if not names:
        return ""
    steps = [name.split(".") for name in names]
    kept = []
    for places in zip(*steps, strict=False):
        if len(set(places)) > 1:
            break
        kept.append(places[0])
    return ".".join(kept)


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
