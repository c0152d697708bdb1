"""Where the blocks of a stream stand: the list, or the children of one class, that its updates' parameters are in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from torch import nn

from initlab.anatomy.chains import Chain, Sum, Term
from initlab.anatomy.graph import Value
from initlab.anatomy.walking import weight_of


class Homes:
    """What could be a block of a model, and which of its updates belong where.

    Args:
        model: any module.

    Attributes:
        members: what could be a block, by dotted name -> what holds it: members of lists, and children of one class.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.members = _members(model)
        self._names: dict[Sum, list[str]] = {}

    def names(self, each: Sum) -> list[str]:
        """List the parameters with which an update's branches compute what they add.

        Args:
            each: an update of a stream.
        """
        if each not in self._names:
            self._names[each] = [name for term in each.terms for name in _used(term, each.base)]
        return self._names[each]

    def whole(self, name: str) -> list[str]:
        """List the members of a container that hold what a block holds.

        Args:
            name: of the container.
        """
        inside = (path for path, holder in self.members.items() if holder == name)
        return [path for path in inside if _is_block(self._model.get_submodule(path))]

    def of(self, chain: Chain) -> str | None:
        """Find the container that a stream's blocks are in: the outermost with several of them.

        Args:
            chain: updates of the stream.
        """
        members = self.members
        places: dict[str, set[str]] = defaultdict(set)
        updates: dict[str, int] = defaultdict(int)
        for each in chain.sums:
            made_in = set(around(each))
            held = {members[path] for path in made_in & members.keys()}
            here = made_in | {path for path in self._paths(each) if members.get(path) not in held}
            for path in here & members.keys():
                places[members[path]].add(path)
            for name in {members[path] for path in here & members.keys()}:
                updates[name] += 1  # once, however many members a branch has parameters in
        several = {name for name, inside in places.items() if len(inside) > 1 or self._is_list(name)}
        if not several:
            return None
        most = max(updates[name] for name in several)
        widest = [name for name in several if updates[name] == most]
        return min(widest, key=lambda name: (name.count("."), name))

    def parts(self, name: str, sums: Sequence[Sum]) -> list[str]:
        """List the blocks of a container; where its members hold several blocks each (stages), those.

        Args:
            name: of the container.
            sums: the updates in it.
        """
        members = self.members
        outer = [path for path, holder in members.items() if holder == name]
        inner: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for each in sums:
            here = self._paths(each)
            member = next((path for path in outer if path in here), None)
            for path in here & members.keys():
                if member and path.startswith(f"{member}.") and members[path].startswith(member):
                    inner[member][path] += 1
        lists = {m: {p: n for p, n in inside.items() if n >= 2} for m, inside in inner.items()}
        if lists and all(len(inside) >= 2 for inside in lists.values()) and len(lists) == len(inner):
            return [path for inside in lists.values() for path in inside]
        return outer

    def _paths(self, each: Sum) -> set[str]:
        """The names of its parameters, and of what these are in."""
        return {path for name in self.names(each) for path in prefixes(name)}

    def _is_list(self, name: str) -> bool:
        return isinstance(self._model.get_submodule(name), nn.ModuleList | nn.Sequential)


def _members(model: nn.Module) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        inside = [(key, child) for key, child in module._modules.items() if child is not None]
        children = [(f"{name}.{key}" if name else key, child) for key, child in inside]
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


def _used(term: Term, base: Value) -> list[str]:
    """Names of the parameters between a state of the stream and what is added to it."""
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
            elif known := weight_of(given):
                names[known[0]] = None
    return list(names)


def prefixes(name: str) -> Iterator[str]:
    """List a, a.b and a.b.c of a.b.c.

    Args:
        name: dotted.
    """
    steps = name.split(".")
    for count in range(1, len(steps) + 1):
        yield ".".join(steps[:count])


def around(each: Sum) -> Iterator[str]:
    """List the modules that a sum is made in, and what these are in, outermost first.

    Args:
        each: an update of a stream.
    """
    op = each.terms[0].op
    for module, _ in () if op is None else op.within:
        yield from prefixes(module)


def common(names: Sequence[str]) -> str:
    """Find the longest dotted name that all are in, or are.

    Args:
        names: dotted; none give the empty name.
    """
    if not names:
        return ""
    steps = [name.split(".") for name in names]
    kept = []
    for places in zip(*steps, strict=False):
        if len(set(places)) > 1:
            break
        kept.append(places[0])
    return ".".join(kept)
