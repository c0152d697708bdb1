"""The role of each parameter, decided: what was said of it, what ran, what its place and shape tell, what it is called.

A segment table (BERT's token_type_embeddings) and a table of relative positions are `pos_embed` by convention. What
nothing settles has no role: it is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from torch import Tensor, nn

from initlab.anatomy import asking, branches, labels, stacks, tables
from initlab.anatomy.containers import find_containers, home
from initlab.anatomy.stacks import Matrix
from initlab.anatomy.wired import Wired
from initlab.recipes import Role
from initlab.recipes.base import INNER, OUTPUTS, QKV

_ROUTER = re.compile(r"router|gat(e|ing)|(^|_)wg(_|$)")
_GATED = re.compile(r"gate_(up_)?proj|up")  # an MLP's, not a router's


class Decided:
    """One look at one model.

    Attributes:
        roles: by name of the parameter; without one, none is known.
        kept: names of those that are to stay as they are.
        matrix: what is known of the matrices inside blocks.
        outputs: of a matrix that reads the stream: the width that the matrix after it reads.
        alone: it is the only matrix of its branch that reads the stream.
        width: of the stream of each container, by its path.
        home: the container that each parameter is in.
    """

    def __init__(self, model: nn.Module, wired: Wired, said: Mapping[str, Role | None]) -> None:
        self.model, self.wired = model, wired
        self.modules = dict(model.named_modules())
        self.named: dict[str, Tensor] = dict(model.named_parameters())
        self.kept = {name for name, role in said.items() if role is None}
        # the caller's word goes over what ran, and that over what names and shapes suggest
        self.forced = wired.roles | {name: Role.OTHER if role is None else role for name, role in said.items()}
        self.stacks = find_containers(model)
        self.home = {name: home(name, self.stacks) for name in self.named}
        self.vocab_size = stacks.config_value(model, stacks.VOCAB_SIZE) or 0
        self.matrix: dict[str, Matrix] = {}
        self.outputs: dict[str, int] = {}
        self.alone: dict[str, bool] = {}
        self.experts: dict[str, int] = {}  # path of their container: how many
        self.width: dict[str, int] = {}
        self.roles, self.tables = tables.embeddings(model, self.named, self.stacks, self.vocab_size)
        self.roles |= {n: r for n, r in self.forced.items() if r in (Role.TOKEN_EMBED, Role.POS_EMBED)}
        self.roles = {name: role for name, role in self.roles.items() if self.forced.get(name, role) == role}
        if any(role == Role.TOKEN_EMBED for role in wired.roles.values()):  # then the stream's tables are known
            self.roles = {n: r for n, r in self.roles.items() if n in self.forced or r != Role.TOKEN_EMBED}
        token = next((name for name, role in self.roles.items() if role == Role.TOKEN_EMBED), None)
        self.n_embd = self.named[token].shape[-1] if token else None
        if token and not self.vocab_size:
            self.vocab_size = self.named[token].shape[0]
        self._decide()
        self.tied = wired.tied or (
            token is not None
            and any(
                not isinstance(module, nn.Embedding) and stacks.stored_weight(module) is self.named[token]
                for module in self.modules.values()
            )
        )

    def _decide(self) -> None:
        used = {id(stack) for stack in self.home.values()}
        self.blocks = [stack for stack in self.stacks if id(stack) in used]  # not experts, nor layers of a stage
        for stack in self.blocks:
            found = [m for m in stacks.matrices(self.model, stack) if self.home[m.name] is stack]
            self.width[stack.path] = stacks.stream_width(self.model, stack, found, self.n_embd)
            self._branches(found, self.width[stack.path])
        self.roles |= self.forced
        kind = cache(lambda path: asking.kind(self.modules[path]))
        for name, parameter in self.named.items():
            if name not in self.roles:
                role = self._vector(name, parameter, kind(name.rpartition(".")[0])) or self._outside(name, parameter)
                if role:
                    self.roles[name] = role
        for name in self.named:  # last: a bias is known by its matrix
            if name not in self.roles and self._is_bias(name):
                self.roles[name] = Role.BIAS
        self.roles = {name: role for name, role in self.roles.items() if role != Role.OTHER}

    def _branches(self, found: list[Matrix], width: int) -> None:
        found = [m for m in found if m.name in self.forced or not any(map(labels.ASIDE.search, m.labels))]
        self._find_experts(found)
        for group in stacks.units(found, branches.ATTENTION):
            routers = [m for m in group if self._is_router(m, width)]
            self._note(routers, dict.fromkeys((m.name for m in routers), Role.ROUTER))
            group = [branches.turned(m, width, self.forced.get(m.name)) for m in group if m not in routers]
            told = {m.name: self.forced[m.name] for m in group if m.name in self.forced}
            for branch, part in branches.branches(group, width):
                roles = branches.roles(branch, part, width)
                self._note(part, roles | {m.name: told[m.name] for m in part if m.name in told})
            self._note([m for m in group if m.name in told and m.name not in self.matrix], told)

    def _note(self, part: list[Matrix], roles: Mapping[str, Role]) -> None:
        self.roles |= {m.name: roles[m.name] for m in part if m.name in roles}
        read = [m for m in part if roles.get(m.name) in OUTPUTS]
        readers = [m for m in part if roles.get(m.name) in INNER and roles.get(m.name) != Role.MLP_GATE]
        for matrix in part:
            self.matrix[matrix.name] = matrix
            self.alone[matrix.name] = len(readers) == 1
            if read and len({m.fan_in for m in read}) == 1:
                self.outputs[matrix.name] = read[0].fan_in

    def _find_experts(self, found: list[Matrix]) -> None:
        """Containers of experts: lists of equal sub-modules inside a block, tensors of 3 dimensions, or so named."""
        for stack in self.stacks:
            inside = any(outer.index(stack.path + ".") is not None for outer in self.stacks)
            if inside and not stack.whole and len(stack.blocks) > 1:
                self.experts[stack.path] = len(stack.blocks)
        for matrix in found:
            if matrix.experts:
                self.experts[matrix.name.rpartition(".")[0]] = matrix.experts
            if "experts" in matrix.labels[:-1]:
                steps = matrix.name.split(".")
                self.experts.setdefault(".".join(steps[: steps.index("experts") + 1]), 0)

    def _is_router(self, matrix: Matrix, width: int) -> bool:
        """It reads the stream beside experts, and has one output per expert or is named so."""
        if any(matrix.name.startswith(place + ".") for place in self.experts):
            return False
        count = next((n for place, n in self.experts.items() if _beside(matrix.name, place)), None)
        named = any(_ROUTER.search(label) for label in matrix.labels[-2:]) and not _GATED.search(matrix.label)
        return count is not None and matrix.fan_in == width and (matrix.fan_out == count or named)

    def _vector(self, name: str, parameter: Tensor, kind: str) -> Role | None:
        path, _, own = name.rpartition(".")
        module, own = self.modules[path], own.lower()
        leaf = next(module.children(), None) is None
        named_norm = leaf and all(p.dim() == 1 for p in module.parameters()) and labels.NORM.search(labels.last(path))
        if kind == "norm" or (named_norm and kind != "scale"):
            return Role.NORM_BIAS if labels.NORM_BIAS.search(own) else Role.NORM_GAIN
        if labels.NORM.search(own) and (parameter.squeeze().dim() < 2 or "scale" in own):
            return Role.NORM_BIAS if labels.NORM_BIAS.search(own) else Role.NORM_GAIN
        if parameter.squeeze().dim() > 1 or labels.NORM_BIAS.search(own) or self.owner(name) != name:
            return None
        scale = kind == "scale" or labels.GATE.search(own) or "layerscale" in type(module).__name__.lower()
        return Role.GATE if scale else None

    def _outside(self, name: str, parameter: Tensor) -> Role | None:
        """The head and bare position tables, which stand outside the blocks."""
        if self.home[name] is not None:
            return None
        path, _, own = name.rpartition(".")
        widths = {self.n_embd, *self.width.values()} - {None}
        if parameter.dim() >= 2 and own != "weight" and labels.POSITION.search(own.lower()):
            return Role.POS_EMBED if parameter.shape[-1] in widths else None
        if parameter.dim() == 2 and own != "weight" and labels.HEAD.search(own.lower()):
            return Role.UNEMBED if widths & set(parameter.shape) and self.vocab_size in parameter.shape else None
        fans = stacks.linear_fans(self.modules[path]) if own == "weight" else None
        if fans and fans[0] in widths:
            named = labels.HEAD.search(labels.last(path)) and fans[1] != fans[0]
            return Role.UNEMBED if named or fans[1] == self.vocab_size else None
        return None

    def _is_bias(self, name: str) -> bool:
        path, _, own = name.rpartition(".")
        owner = self.owner(name)
        if owner != name:
            return owner in self.roles
        if not re.search(r"(^|_)bias($|_[kv]$)", own):
            return False
        # a bias without a matrix of its own: of a tied head, or of several matrices (nn.MultiheadAttention)
        shared = stacks.stored_weight(self.modules[path])
        inside = [f"{path}.{each}" if path else each for each, _ in self.modules[path].named_parameters(recurse=False)]
        return (
            any(each in self.roles and self.named[each].dim() > 1 for each in inside)
            or any(shared is self.named[each] for each in self.roles)
            or self.named[name].numel() == self.vocab_size
        )

    def owner(self, name: str) -> str:
        """The matrix that a bias belongs to; the name itself where there is none."""
        if name in self.wired.owners:
            return self.wired.owners[name]
        path, _, own = name.rpartition(".")
        prefix = f"{path}." if path else ""
        weights = []
        if own.endswith("bias"):
            weights = [own.replace("bias", "weight"), own.removesuffix("_bias")]
        elif found := re.match("(_?)b_", own):  # TransformerLens: b_Q beside W_Q
            weights = [f"{found[1]}{letter}{own[len(found[1]) + 1 :]}" for letter in "Ww"]
        return next((prefix + weight for weight in weights if prefix + weight in self.named), name)

    def sizes(self, name: str, n_head: int) -> list[tuple[int, Role, int]]:
        """Of a fused matrix: (rows, role, fan_out) of each part in order; nothing for one that isn't fused."""
        matrix, inner, role = self.matrix.get(name), self.outputs.get(name), self.roles.get(name)
        stack = self.home.get(name)
        if matrix is None or inner is None or stack is None or matrix.fan_in != self.width[stack.path]:
            return []
        out, label = matrix.fan_out, matrix.label
        if role != Role.ATTN_QKV:
            return [(inner, Role.MLP_IN, inner)] * 2 if role == Role.MLP_IN and out == 2 * inner else []
        order = labels.fused(label)
        if len(order) < 2:
            order = QKV if self.alone[name] and out > inner else ()
        if len(order) == 2:
            first = inner if order[0] == Role.ATTN_Q and out != 2 * inner else out // 2
            wide = [first, out - first]
        elif len(order) == 3 and out > inner:
            shared = (out - inner) // 2  # keys and values are shared between heads
            wide = [inner if each == Role.ATTN_Q else shared for each in order]
        else:
            return []
        if sum(wide) != out or min(wide) < 1:
            return []
        if any("CodeGen" in kind for kind in matrix.classes):  # laid out by the cores of a TPU
            return [(size, Role.ATTN_QKV, size) for size in wide]
        groups = 1
        if label == "query_key_value" or (label == "wqkv" and wide[0] != wide[1]) or _bigcode(matrix, wide):
            groups = wide[1] * n_head // inner  # a head's query, key, value; Falcon: the queries of a group
            if groups < 1 or any(size % groups for size in wide):
                return [(size, Role.ATTN_QKV, size) for size in wide]
        return [(size // groups, each, size) for each, size in zip(order, wide, strict=True)] * groups


def _bigcode(matrix: Matrix, wide: list[int]) -> bool:
    return len(set(wide)) == 1 and any("GPTBigCode" in kind for kind in matrix.classes)


def _beside(name: str, place: str) -> bool:
    return name.startswith(place.rpartition(".")[0] + ".")
