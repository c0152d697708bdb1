"""Which role each parameter plays: what a recipe needs to know of a model.

Read from what can't lie first: the module's type, its shape against the width of the residual stream, its place in
a repeated block, and the matrices beside it. Names settle what is left open, and give two roles by convention: a
segment table (BERT's token_type_embeddings) and a table of relative positions are `pos_embed`, LayerScale's gammas
are `norm_gain`. A parameter that nothing settles is reported, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from initlab.anatomy import branches, stacks
from initlab.anatomy.stacks import Matrix
from initlab.errors import RecipeError
from initlab.recipes import Dims, Role

_ROUTER = re.compile(r"router|gat(e|ing)|(^|_)wg(_|$)")
_GATED = re.compile(r"gate_(up_)?proj|up")  # an MLP's, not a router's
_POSITION = re.compile(r"pos(ition)?s?(_|$|emb)|wpe|position|rel(ative)?_|segment|token_type")
_TOKEN = re.compile(r"wte|tok|word|embed_tokens|embed_in|shared|vocab")
_HEAD = re.compile(r"(^|_)(lm_|mlm_|cls_)?head(_|$)|unembed|embed_out|output|decoder|classifier|score|logits")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter's place in the model."""

    name: str
    role: Role
    layer: int | None  # 0-based block, None outside the blocks
    dims: Dims
    stack: str = ""  # path of the container of its block
    # of a fused matrix whose parts differ in size (grouped-query attention): (rows of fan_out, dims), in order
    parts: tuple[tuple[int, Dims], ...] = ()
    axis: int = 0  # the dimension that `parts` divide
    offset: float = 0.0  # the module adds this to the parameter when it uses it (Gemma's norms: 1)
    padding_row: int | None = None  # of an embedding: the row that is zero and gets no gradient


@dataclass(frozen=True, slots=True)
class Roles:
    """Parameters whose role is known, in the model's own order, and the names of the others.

    `layer` counts in each container by itself, as recipes do; `initlab.anatomy.look` numbers over all of them.
    """

    assigned: list[Parameter]
    unassigned: list[str]
    blocks: tuple[str, ...] = ()  # that hold parameters, of all containers, in the model's own order


def check_assigned(model: nn.Module, assigned: Sequence[Parameter], unassigned: Sequence[str]) -> None:
    """Refuse a model that a recipe can't draw whole.

    Args:
        model: named in the error.
        assigned: its parameters whose role is known.
        unassigned: names of the others.

    Raises:
        RecipeError: a parameter has no role, or the model has no parameters.
    """
    if assigned and not unassigned:
        return
    shown = ", ".join(unassigned[:5]) + (f" and {len(unassigned) - 5} more" if len(unassigned) > 5 else "")
    problem = f"no role is known for {shown}" if unassigned else "transformer.wte and transformer.wpe not found"
    if unassigned and not any(name.startswith("transformer.wte") for name, _ in model.named_parameters()):
        raise RecipeError(
            f"{type(model).__name__} has parameters that no recipe covers: {problem}; expected embeddings, norms, "
            "attention and MLP matrices of repeated blocks, and a head"
        )
    raise RecipeError(
        f"{type(model).__name__} isn't laid out as nanoGPT's GPT: {problem}; "
        "expected parameters such as transformer.h.0.attn.c_attn.weight"
    )


def find_roles(model: nn.Module) -> Roles:
    """Find the roles of any model's parameters, as far as they are known."""
    return _Finder(model).roles()


class _Finder:
    """One look at one model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.named = dict(model.named_parameters())
        self.stacks = stacks.find_containers(model)
        self.home = {name: stacks.home(name, self.stacks) for name in self.named}
        self.vocab_size = stacks.config_value(model, stacks.VOCAB_SIZE) or 0
        n_head = stacks.config_value(model, stacks.N_HEAD) or stacks.attribute(model, stacks.N_HEAD)
        self.n_head = n_head or 1
        self.roles_of: dict[str, Role] = {}
        self.matrix: dict[str, Matrix] = {}
        self.outputs: dict[str, int] = {}  # of a fused matrix: the width that the matrix after it reads
        self.alone: dict[str, bool] = {}  # it is the only matrix of its group that reads the stream
        self.experts: dict[str, int] = {}  # path of their container: how many
        self.tables: dict[str, nn.Embedding] = {}
        self.width: dict[str, int] = {}  # path of a stack: its stream's

    def roles(self) -> Roles:
        self._embeddings()
        token = next((name for name, role in self.roles_of.items() if role == Role.TOKEN_EMBED), None)
        self.n_embd = self.named[token].shape[-1] if token else None
        if token and not self.vocab_size:
            self.vocab_size = self.named[token].shape[0]
        homes = {id(stack) for stack in self.home.values()}
        for stack in self.stacks:
            if id(stack) not in homes:  # the experts of a layer, the layers of a stage
                continue
            found = [m for m in stacks.matrices(self.model, stack) if self.home[m.name] is stack]
            self.width[stack.path] = stacks.stream_width(self.model, stack, found, self.n_embd)
            self._blocks(found, self.width[stack.path])
        for name, parameter in self.named.items():
            if name not in self.roles_of:
                role = self._vector(name, parameter) or self._outside(name, parameter)
                if role:
                    self.roles_of[name] = role
        for name in self.named:  # last: a bias is known by its matrix
            if name not in self.roles_of and self._is_bias(name):
                self.roles_of[name] = Role.BIAS
        self.tied = token is not None and any(
            not isinstance(module, nn.Embedding) and stacks.stored_weight(module) is self.named[token]
            for module in self.modules.values()
        )
        tables = [n for n, r in self.roles_of.items() if r == Role.POS_EMBED and not self.home[n]]
        tables = [name for name in tables if not re.search(r"segment|token_type", name)]
        declared = stacks.config_value(self.model, stacks.BLOCK_SIZE)
        self.block_size = self.named[tables[0]].shape[-2] if tables else declared or 0
        assigned = [self._place(name) for name in self.named if name in self.roles_of]
        unassigned = [name for name in self.named if name not in self.roles_of]
        blocks = dict.fromkeys(block for stack in self.stacks if id(stack) in homes for block in stack.blocks)
        return Roles(assigned, unassigned, tuple(blocks))

    def _embeddings(self) -> None:
        """Token tables are asked for, tied to a head, of the vocabulary's size, or named so; position tables named."""
        getter = getattr(self.model, "get_input_embeddings", None)
        try:
            asked = getter() if getter else None
        except Exception:  # Hugging Face raises where a model has none
            asked = None
        # by identity: a tied table may stand under its head's name
        names = {id(parameter): name for name, parameter in self.named.items()}
        paths = {}
        for path, module in self.modules.items():
            if not isinstance(module, nn.Embedding):
                continue
            if (name := names.get(id(stacks.stored_weight(module)))) and name not in paths:
                paths[name] = path
                self.tables[name] = module
        linears = [m for m in self.modules.values() if stacks.linear_fans(m)]
        heads = {id(stacks.stored_weight(m)) for m in linears}
        outs = {fans[1] for m in linears if (fans := stacks.linear_fans(m))}
        for name, path in paths.items():
            label = self._label(path)
            rows = self.named[name].shape[0]
            known = self.modules[path] is asked or id(self.named[name]) in heads
            if any(stack.index(name) is not None for stack in self.stacks):
                # a table inside a block is no vocabulary: T5's relative positions
                if _POSITION.search(label):
                    self.roles_of[name] = Role.POS_EMBED
            elif known or (rows == self.vocab_size and not _POSITION.search(label)):
                self.roles_of[name] = Role.TOKEN_EMBED
            elif _POSITION.search(label):
                self.roles_of[name] = Role.POS_EMBED
            elif _TOKEN.search(label) or rows in outs or len(paths) == 1:
                self.roles_of[name] = Role.TOKEN_EMBED
        table = None if asked is None else stacks.stored_weight(asked)
        if table is not None:
            # the one that the model itself calls its input; others (per-layer tables) are of other widths
            width = table.shape[-1]
            for name in [n for n, r in self.roles_of.items() if r == Role.TOKEN_EMBED]:
                if self.named[name].shape[-1] != width:
                    del self.roles_of[name]

    def _blocks(self, found: list[Matrix], width: int) -> None:
        self._find_experts(found)
        for group in stacks.units(found, branches.ATTENTION):
            routers = [m for m in group if self._is_router(m, width)]
            self._note(routers, dict.fromkeys((m.name for m in routers), Role.ROUTER), group)
            group = [branches.turned(m, width) for m in group if m not in routers]
            for branch, part in branches.branches(group, width):
                roles = branches.roles(branch, part, width)
                self._note(part, roles, part)

    def _note(self, group: list[Matrix], roles: dict[str, Role], whole: list[Matrix]) -> None:
        self.roles_of |= roles
        read = [m for m in whole if roles.get(m.name) in (Role.ATTN_OUT, Role.MLP_OUT)]
        readers = [m for m in whole if roles.get(m.name) in (Role.ATTN_QKV, Role.MLP_IN)]
        for matrix in group:
            self.matrix[matrix.name] = matrix
            self.alone[matrix.name] = len(readers) == 1
            if read and len({m.fan_in for m in read}) == 1:
                self.outputs[matrix.name] = read[0].fan_in

    def _find_experts(self, found: list[Matrix]) -> None:
        """Containers of experts: lists of equal sub-modules inside a block, tensors of 3 dimensions, or so named."""
        for stack in self.stacks:
            if any(outer.index(stack.path + ".") is not None for outer in self.stacks) and not stack.whole:
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

    def _vector(self, name: str, parameter: Tensor) -> Role | None:
        path, _, own = name.rpartition(".")
        module = self.modules[path]
        label = path.rpartition(".")[2].lower()
        leaf = next(module.children(), None) is None
        named_norm = leaf and all(p.dim() == 1 for p in module.parameters()) and re.search(r"norm|(^|_)ln(_|$)", label)
        if stacks.is_norm(module) or named_norm:
            return Role.NORM_BIAS if re.search(r"bias|beta|shift|^b(_?\d)?$", own) else Role.NORM_GAIN
        scale = re.search(r"layer_?scale", type(module).__name__.lower() + " " + own.lower())
        if scale and parameter.squeeze().dim() == 1:
            return Role.NORM_GAIN
        return None

    def _outside(self, name: str, parameter: Tensor) -> Role | None:
        """The head and bare position tables, which stand outside the blocks."""
        if self.home[name] is not None:
            return None
        path, _, own = name.rpartition(".")
        module = self.modules[path]
        if parameter.dim() >= 2 and own != "weight" and _POSITION.search(own.lower()):
            return Role.POS_EMBED if parameter.shape[-1] in {self.n_embd, *self.width.values()} else None
        fans = stacks.linear_fans(module) if own == "weight" else None
        if fans and fans[0] in {self.n_embd, *self.width.values()} and (self.n_embd or self.width):
            named = _HEAD.search(self._label(path)) and fans[1] != fans[0]
            return Role.UNEMBED if named or fans[1] == self.vocab_size else None
        return None

    def _is_bias(self, name: str) -> bool:
        path, _, own = name.rpartition(".")
        if not re.search(r"(^|_)bias($|_[kv]$)", own):
            return False
        owner = self._owner(name)
        if owner != name:
            return owner in self.roles_of
        # a bias without a matrix of its own: of a tied head, or of several matrices (nn.MultiheadAttention)
        shared = stacks.stored_weight(self.modules[path])
        inside = [f"{path}.{each}" if path else each for each, _ in self.modules[path].named_parameters(recurse=False)]
        return (
            any(each in self.roles_of for each in inside)
            or any(shared is self.named[each] for each in self.roles_of)
            or self.named[name].numel() == self.vocab_size
        )

    def _owner(self, name: str) -> str:
        """The matrix that a bias belongs to; the name itself where there is none."""
        path, _, own = name.rpartition(".")
        prefix = f"{path}." if path else ""
        for weight in (own.replace("bias", "weight"), own.removesuffix("_bias")):
            if own.endswith("bias") and prefix + weight in self.named:
                return prefix + weight
        return name

    def _label(self, path: str) -> str:
        """The last part of a path that isn't an index."""
        return next((step.lower() for step in reversed(path.split(".")) if not step.isdigit()), "")

    def _place(self, name: str) -> Parameter:
        role, parameter = self.roles_of[name], self.named[name]
        home = self.home[name]
        stack = home or stacks.nearest(name, self.stacks)
        layer = home.index(name) if home else None
        path = name.rpartition(".")[0]
        owner = self._owner(name) if role == Role.BIAS else name
        n_embd = self.width.get(stack.path, 0) if stack and (home or not self.n_embd) else self.n_embd
        dims = Dims(
            n_layer=len(stack.blocks) if stack else 0,
            n_embd=n_embd or parameter.shape[-1],
            n_head=self.n_head,
            block_size=self.block_size,
            vocab_size=self.vocab_size,
            fan_in=0,
            fan_out=0,
            layer=layer or 0,
            tied=self.tied,
        )
        sizes = self._sizes(owner)
        fan_in, fan_out = self._fans(owner, dims.n_embd)
        parts = tuple((size, replace(dims, fan_in=fan_in, fan_out=whole)) for size, whole in sizes)
        if len({part.fan_out for _, part in parts}) == 1:  # all alike: no need to tell them apart
            fan_out, parts = parts[0][1].fan_out, ()
        elif parts:
            fan_out = parts[0][1].fan_out
        divided = sum(size for size, _ in sizes)
        module = self.modules[path]
        return Parameter(
            name=name,
            role=role,
            layer=layer,
            dims=replace(dims, fan_in=fan_in, fan_out=fan_out),
            stack=home.path if home else "",
            parts=parts,
            axis=next((i for i, size in enumerate(parameter.shape) if size == divided), 0) if parts else 0,
            offset=stacks.gain_offset(module) if role == Role.NORM_GAIN and stacks.is_norm(module) else 0.0,
            padding_row=self.tables[name].padding_idx if name in self.tables else None,
        )

    def _fans(self, name: str, n_embd: int) -> tuple[int, int]:
        parameter = self.named[name]
        match self.roles_of.get(name):
            case Role.TOKEN_EMBED | Role.POS_EMBED:
                return parameter.numel() // parameter.shape[-1], parameter.shape[-1]
            case Role.UNEMBED:
                return parameter.shape[-1], parameter.numel() // parameter.shape[-1]
            case _ if name in self.matrix:
                return self.matrix[name].fan_in, self.matrix[name].fan_out
            case _:
                return n_embd, n_embd

    def _sizes(self, name: str) -> list[tuple[int, int]]:
        """Of a fused matrix: (rows, fan_out) of each part in order; nothing for one that isn't fused."""
        matrix, inner, role = self.matrix.get(name), self.outputs.get(name), self.roles_of.get(name)
        home = self.home.get(name)
        if matrix is None or inner is None or home is None or matrix.fan_in != self.width[home.path]:
            return []
        out = matrix.fan_out
        if role != Role.ATTN_QKV:
            return [(inner, inner)] * 2 if role == Role.MLP_IN and out == 2 * inner else []
        if out <= inner or (not self.alone[name] and out % inner):
            return []
        if out % inner == 0 and (out // inner == 3 or not self.alone[name]):
            return [(inner, inner)] * (out // inner)
        shared = (out - inner) // 2  # keys and values are shared between heads
        groups = shared * self.n_head // inner if re.search(r"query_key_value|^wqkv$", matrix.label) else 1
        if groups and inner % groups == 0 and shared % groups == 0:  # Falcon: the queries of a group, its key, value
            return [(inner // groups, inner), (shared // groups, shared), (shared // groups, shared)] * groups
        return [(inner, inner), (shared, shared), (shared, shared)]


def _beside(name: str, place: str) -> bool:
    return name.startswith(place.rpartition(".")[0] + ".")
