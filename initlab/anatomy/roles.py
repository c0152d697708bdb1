"""Which role each parameter plays: what a recipe needs to know of a model.

Read from what can't lie first: what the caller says, what really ran (wirings), the module's type, its shape against
the width of the residual stream, its place in a repeated block, and the matrices beside it. Names settle what is left
open. A parameter that nothing settles is `other`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import nn

from initlab.anatomy import asking, stacks
from initlab.anatomy.containers import Container, nearest
from initlab.anatomy.deciding import Decided
from initlab.anatomy.parameters import Parameter, Roles
from initlab.anatomy.saying import Said, by_word
from initlab.anatomy.wired import Spot, Wired, read
from initlab.recipes import Dims, Role
from initlab.wiring import Wiring


def find_roles(model: nn.Module, wirings: Sequence[Wiring] = (), roles: Said | None = None) -> Roles:
    """Find the roles of any model's parameters; `other` where none is known.

    Args:
        model: left as it was.
        wirings: of its stacks, from what really ran; over names and shapes.
        roles: by the caller's word, see `initlab.anatomy.saying`; over all else.

    Raises:
        RecipeError: `roles` names what isn't there.
    """
    named = dict(model.named_parameters())
    wired = read(wirings, named)
    decided = Decided(model, wired, by_word(roles or {}, named))
    placer = _Placer(decided, wired)
    blocks = dict.fromkeys(block for stack in decided.blocks for block in stack.blocks)
    return Roles(tuple(placer.place(name) for name in named), tuple(blocks))


class _Placer:
    """Sizes and blocks of parameters whose role is decided."""

    def __init__(self, decided: Decided, wired: Wired) -> None:
        self.decided, self.wired = decided, wired
        model = decided.model
        n_head = stacks.config_value(model, stacks.N_HEAD) or stacks.attribute(model, stacks.N_HEAD)
        self.n_head = n_head or next((spot.n_head for spot in wired.spots.values()), 1)
        tables = [n for n, r in decided.roles.items() if r == Role.POS_EMBED and not decided.home[n]]
        tables = [name for name in tables if not re.search(r"segment|token_type", name)]
        declared = stacks.config_value(model, stacks.BLOCK_SIZE)
        self.block_size = decided.named[tables[0]].shape[-2] if tables else declared or 0
        self.levels = {stack.path: _levels(stack, decided) for stack in decided.blocks}

    def place(self, name: str) -> Parameter:
        decided = self.decided
        role, parameter = decided.roles.get(name, Role.OTHER), decided.named[name]
        home = decided.home[name]
        owner = decided.owner(name) if role == Role.BIAS else name
        dims = self._dims(name, parameter.shape[-1] if parameter.dim() else 1)
        fan_in, fan_out = self._fans(owner, dims.n_embd)
        if owner in self.wired.parts and owner in decided.named:
            sizes = [(rows, each, into, out) for rows, each, into, out in self.wired.parts[owner]]
        else:
            sizes = [(rows, each, fan_in, out) for rows, each, out in decided.sizes(owner, dims.n_head)]
        divided = sum(size for size, *_ in sizes)
        fan_out = sizes[0][3] if sizes else fan_out
        parts = tuple(
            (size, each if role == Role.ATTN_QKV else role, replace(dims, fan_in=into, fan_out=out))
            for size, each, into, out in sizes
        )
        if len({(each, part) for _, each, part in parts}) == 1:  # all alike: no need to tell them apart
            parts = ()
        module = decided.modules[name.rpartition(".")[0]]
        offset = 0.0
        if role == Role.NORM_GAIN:
            offset = self.wired.offsets[name] if name in self.wired.offsets else _asked_offset(module)
        return Parameter(
            name=name,
            role=role,
            layer=home.index(name) if home else None,
            dims=replace(dims, fan_in=fan_in, fan_out=fan_out),
            stack=home.path if home else "",
            parts=parts,
            axis=next((i for i, size in enumerate(parameter.shape) if size == divided), 0) if parts else 0,
            offset=offset,
            padding_row=decided.tables[name].padding_idx if name in decided.tables else None,
            kept=name in decided.kept,
        )

    def _dims(self, name: str, width: int) -> Dims:
        decided = self.decided
        home, spot = decided.home[name], self.wired.spots.get(name)
        stack = home or nearest(name, decided.stacks)
        if spot is None:
            levels = self.levels.get(stack.path, []) if stack else []
            layer = levels[home.index(name) or 0] if home and levels else 0
            n_embd = decided.width.get(stack.path, 0) if stack and (home or not decided.n_embd) else decided.n_embd
            spot = Spot(layer, max(levels, default=-1) + 1, n_embd or width, self.n_head)
        return Dims(
            n_layer=spot.n_layer,
            n_embd=spot.n_embd,
            n_head=spot.n_head,
            block_size=self.block_size,
            vocab_size=decided.vocab_size,
            fan_in=0,
            fan_out=0,
            layer=spot.layer or 0,
            tied=decided.tied,
        )

    def _fans(self, name: str, n_embd: int) -> tuple[int, int]:
        decided, wired = self.decided, self.wired
        parameter, role = decided.named.get(name), decided.roles.get(name)
        if parameter is None or parameter.dim() < 2:
            return n_embd, n_embd
        rest = parameter.numel() // parameter.shape[-1]
        if role in (Role.TOKEN_EMBED, Role.POS_EMBED):
            return rest, parameter.shape[-1]
        if role == wired.roles.get(name) and name in wired.fans:
            return wired.fans[name]
        if role == Role.UNEMBED:  # one that is a parameter of its own may stand the other way round
            turned = parameter.shape[-1] == decided.vocab_size != n_embd == rest
            return (rest, parameter.shape[-1]) if turned else (parameter.shape[-1], rest)
        if name in decided.matrix:
            return decided.matrix[name].fan_in, decided.matrix[name].fan_out
        fans = stacks.linear_fans(decided.modules[name.rpartition(".")[0]]) if name.endswith("weight") else None
        return fans or (parameter.shape[-1], parameter.shape[-2])


def _asked_offset(module: nn.Module) -> float:
    return asking.gain_offset(module) if asking.kind(module) == "norm" else 0.0


def _levels(stack: Container, decided: Decided) -> list[int]:
    """The layer of each block of a container: its number, or that of a pair where a block is one branch alone."""
    held: list[set[Role]] = [set() for _ in stack.blocks]
    for name, role in decided.roles.items():
        if role in (Role.ATTN_OUT, Role.MLP_OUT) and decided.home[name] is stack:
            held[stack.index(name) or 0].add(role)
    single = len({tuple(roles) for roles in held}) == 2 and all(len(roles) == 1 for roles in held)
    if not single:
        return list(range(len(stack.blocks)))
    layer, levels = 0, [0]
    for before, now in pairwise(held):
        layer += before == {Role.MLP_OUT} and now == {Role.ATTN_OUT} and len(levels) > held.index({Role.ATTN_OUT})
        levels.append(layer)
    return levels
