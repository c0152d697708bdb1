"""What wirings say of a model's parameters: their roles, their blocks, and the parts of fused matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from initlab.recipes import Role
from initlab.wiring import MLP, Attention, Block, Branch, Linear, Norm, Wiring


@dataclass(frozen=True, slots=True)
class Spot:
    """The stack and block of a parameter."""

    layer: int | None  # counted in its stack
    n_layer: int
    n_embd: int
    n_head: int


@dataclass(slots=True)
class Wired:
    """What is known by name of the parameter; of one in several places, from the first."""

    roles: dict[str, Role] = field(default_factory=dict)
    fans: dict[str, tuple[int, int]] = field(default_factory=dict)
    parts: dict[str, tuple[tuple[int, Role, int, int], ...]] = field(default_factory=dict)  # rows, role, in, out
    owners: dict[str, str] = field(default_factory=dict)  # of a bias: its matrix
    spots: dict[str, Spot] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)  # of a gain
    tied: bool = False


def read(wirings: Sequence[Wiring], named: Mapping[str, Tensor]) -> Wired:
    """Collect what wirings say.

    Args:
        wirings: of the model's stacks.
        named: the model's parameters; what isn't among them is passed over.
    """
    out = Wired()
    for wiring in wirings:
        outside = Spot(None, len(wiring.blocks), wiring.n_embd, _heads(wiring))
        for term in wiring.terms or ():
            role = Role.TOKEN_EMBED if term.kind == "token" else Role.POS_EMBED
            _set(out, term.weight, role, outside, named)
        for norm in (wiring.embed_norm, wiring.final_norm):
            _norm(out, norm, outside, named)
        if wiring.head is not None:
            _linear(out, Role.UNEMBED, wiring.head, outside, named)
        out.tied |= wiring.tied
        for layer, block in enumerate(wiring.blocks):
            _block(out, block, Spot(layer, outside.n_layer, wiring.n_embd, outside.n_head), named)
    return out


def _heads(wiring: Wiring) -> int:
    bodies = [branch.body for branch in wiring.branches()]
    return next((body.n_head for body in bodies if isinstance(body, Attention)), 1)


def _block(out: Wired, block: Block, spot: Spot, named: Mapping[str, Tensor]) -> None:
    for update in block.updates:
        _norm(out, update.norm, spot, named)
        for branch in update.branches:
            for norm in _norms(branch):
                _norm(out, norm, spot, named)
            _set(out, branch.gain, Role.GATE, spot, named)
            if isinstance(branch.body, Attention):
                _attention(out, branch.body, spot, named)
            elif isinstance(branch.body, MLP):
                _mlp(out, branch.body, spot, named)


def _norms(branch: Branch) -> Iterator[Norm | None]:
    yield from (branch.norm, *branch.norms, branch.post)
    if isinstance(branch.body, Attention):
        yield from (branch.body.query_norm, branch.body.key_norm, branch.body.out_norm)
    elif isinstance(branch.body, MLP):
        yield branch.body.inner_norm


def _attention(out: Wired, body: Attention, spot: Spot, named: Mapping[str, Tensor]) -> None:
    held: dict[str, list[tuple[Role, Linear]]] = {}
    for linears in body.apart or ((body.query, body.key, body.value),):
        for role, linear in zip((Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V), linears, strict=True):
            held.setdefault(linear.weight, []).append((role, linear))
    for name, parts in held.items():
        if len(parts) == 1:
            _linear(out, parts[0][0], parts[0][1], spot, named)
            continue
        new = name not in out.roles
        _linear(out, Role.ATTN_QKV, min(parts, key=lambda part: part[1].start)[1], spot, named)
        pieces = [(piece, role, linear) for role, linear in parts for piece in linear.places]
        pieces.sort(key=lambda each: each[0])
        ends = [piece[1] for piece, _, _ in pieces]
        tiled = [piece[0] for piece, _, _ in pieces] == [0, *ends[:-1]] and parts[0][1].fused in (0, ends[-1])
        if new and tiled and name in named:
            out.parts[name] = tuple(
                (end - first, role, linear.fan_in, linear.fan_out) for (first, end), role, linear in pieces
            )
    _set(out, body.head_gain, Role.GATE, spot, named)
    if body.out is not None:
        _linear(out, Role.ATTN_OUT, body.out, spot, named)


def _mlp(out: Wired, body: MLP, spot: Spot, named: Mapping[str, Tensor]) -> None:
    # one matrix that is both stays `mlp_in`: which half is the gate shows in no weight
    _linear(out, Role.MLP_IN, body.up, spot, named)
    if body.gate is not None:
        _linear(out, Role.MLP_GATE, body.gate, spot, named)
    _linear(out, Role.MLP_OUT, body.out, spot, named)


def _norm(out: Wired, norm: Norm | None, spot: Spot, named: Mapping[str, Tensor]) -> None:
    if norm is not None:
        if norm.gain and norm.gain in named and norm.gain not in out.roles:
            out.offsets[norm.gain] = norm.offset
        _set(out, norm.gain, Role.NORM_GAIN, spot, named)
        _set(out, norm.bias, Role.NORM_BIAS, spot, named)


def _linear(out: Wired, role: Role, linear: Linear, spot: Spot, named: Mapping[str, Tensor]) -> None:
    if linear.weight in named and linear.weight not in out.roles:
        out.fans[linear.weight] = (linear.fan_in, linear.fan_out)
    _set(out, linear.weight, role, spot, named)
    if linear.bias and linear.bias in named and linear.bias not in out.roles:
        out.owners[linear.bias] = linear.weight
    _set(out, linear.bias, Role.BIAS, spot, named)


def _set(out: Wired, name: str | None, role: Role, spot: Spot, named: Mapping[str, Tensor]) -> None:
    if name and name in named and name not in out.roles:
        out.roles[name] = role
        out.spots[name] = spot
