"""Where a model repeats itself: lists, dictionaries and rows of attributes that hold blocks of one kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from initlab.anatomy.asking import some_norm

_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
_PART = re.compile(r"attention|attn|mlp|expert|feed_?forward|ffn", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Container:
    """A list of repeated blocks, by its structure alone."""

    path: str
    blocks: tuple[str, ...]  # paths, in order; a block used twice stands here twice
    whole: bool  # its blocks hold norms: layers or stages, not the experts or heads of one layer

    def index(self, name: str) -> int | None:
        """Which block the parameter or module of this name is in."""
        prefix = f"{self.path}." if self.path else ""
        if not name.startswith(prefix):
            return None
        step, dot, _ = name[len(prefix) :].partition(".")
        return self._places.get(prefix + step) if dot else None

    @cached_property
    def _places(self) -> dict[str, int]:
        return {block: len(self.blocks) - 1 - i for i, block in enumerate(reversed(self.blocks))}


def find_containers(model: nn.Module) -> list[Container]:
    """Find every container of repeated blocks, outer ones first."""
    found: list[Container] = []
    for path, module in model.named_modules():
        around = [outer for outer in found if outer.index(path + ".") is not None]
        names = _blocks(module, nested=bool(around), listed=any(path in outer.blocks for outer in around))
        if names:
            paths = tuple(f"{path}.{name}" if path else name for name in names)
            first = module.get_submodule(names[0])
            label = f"{path.rpartition('.')[2]} {type(first).__name__}"
            part = _PART.search(label) and not re.search("block|layer", label, re.IGNORECASE)
            whole = not part and any(some_norm(list(module.get_submodule(name).modules())) for name in names)
            found.append(Container(path, paths, whole))
    wrapped = {id(each) for each in found if _wraps(each, found)}
    return [each for each in found if id(each) not in wrapped]


def _blocks(module: nn.Module, *, nested: bool, listed: bool) -> list[str]:
    """Names of a module's children that are blocks; none where it holds the parts of one."""
    # not named_children: that leaves out a block that is used again
    children = [(name, child) for name, child in module._modules.items() if child is not None and _is_block(child)]
    if not children:
        return []
    kind, count = Counter(type(child) for _, child in children).most_common(1)[0]
    if isinstance(module, nn.Sequential):
        # an embedding and a head may stand in the same Sequential as the blocks
        return [name for name, child in children if type(child) is kind]
    alike = len(children) > 1 and len({_shapes(child) for _, child in children}) == 1
    if isinstance(module, nn.ModuleList):
        parts = (listed and not alike) or (nested and count < len(children))  # of one block, as in T5
        return [] if parts else [name for name, _ in children]
    if issubclass(kind, _LISTS) or count < len(children):
        return []
    if isinstance(module, nn.ModuleDict):
        numbered = all(name.isdigit() for name, _ in children)
        return [name for name, _ in children] if numbered or alike else []
    # as plain attributes: whole blocks of one class and one shape, beside each other
    inner = any(isinstance(each, nn.ModuleList) for _, child in children for each in child.modules())
    if nested or not alike or inner or _PART.search(kind.__name__):
        return []
    return [name for name, _ in children] if some_norm(list(children[0][1].modules())) else []


def _is_block(module: nn.Module) -> bool:
    return next(module.children(), None) is not None and any(p.dim() > 1 for p in module.parameters())


def _shapes(module: nn.Module) -> Hashable:
    return tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters())


def _wraps(outer: Container, found: list[Container]) -> bool:
    """It holds one block, and that holds the blocks: a model in an nn.Sequential."""
    inside = [each for each in found if each is not outer and outer.index(each.path + ".") is not None]
    return len(outer.blocks) == 1 and any(each.whole and len(each.blocks) > 1 for each in inside)


def home(name: str, stacks: list[Container]) -> Container | None:
    """Find the container whose layers a parameter is in: of nested ones the innermost whole blocks', not experts'."""
    around = [stack for stack in stacks if stack.index(name) is not None]
    whole = [stack for stack in around if stack.whole]
    return whole[-1] if whole else around[0] if around else None


def nearest(name: str, stacks: list[Container]) -> Container | None:
    """Find the container that a parameter outside them all belongs to: the closest relative, of several the longest."""

    def closeness(stack: Container) -> tuple[int, int]:
        common = 0
        for ours, theirs in zip(name.split("."), stack.path.split("."), strict=False):
            if ours != theirs:
                break
            common += 1
        return common, len(stack.blocks)

    own = [stack for stack in stacks if home(stack.blocks[0] + ".", stacks) is stack]
    return max(own, key=closeness, default=None)
