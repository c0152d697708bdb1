"""From a table of a model's parameters, as they are or as a recipe draws them, and its wiring, to a setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from initlab import wiring as names
from initlab.judge.theory.settings import (
    MLP,
    Attention,
    Block,
    Branch,
    Linear,
    Norm,
    Setting,
    Stack,
    Term,
    TextStatistics,
    Update,
)
from initlab.recipes import Dims, Recipe, Role
from initlab.recipes.tabulating import gpt_dims

# of a NanoGPT's block, in the model's order
_IN_BLOCK = (
    ("ln_1", Role.NORM_GAIN),
    ("attn.c_attn", Role.ATTN_QKV),
    ("attn.c_proj", Role.ATTN_OUT),
    ("ln_2", Role.NORM_GAIN),
    ("mlp.c_fc", Role.MLP_IN),
    ("mlp.c_proj", Role.MLP_OUT),
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a pass showed of a model that its wiring doesn't say; what isn't here is not known.

    Attributes:
        positions: of each stack; empty: the text's block_size.
        var: variance by (site, layer), of the writes of branches without a body and of what a stack without terms
            begins with: `embed` of the first, `resid_pre` of its first block for another.
        alike: mean product of two positions over the mean square, by (site, layer), of the same writes.
        together: mean product of two different positions' embeddings, over their mean square, in the first stack.
        mean: of all their elements.
        scores: by layer, std of the attention logits within a row, where something is added to them.
    """

    positions: tuple[int, ...] = ()
    var: Mapping[tuple[str, int | None], float] = field(default_factory=dict)
    alike: Mapping[tuple[str, int | None], float] = field(default_factory=dict)
    together: float = math.nan
    mean: float = 0.0
    scores: Mapping[int, float] = field(default_factory=dict)


def setting_of(
    parameters: pd.DataFrame,
    wiring: names.Wiring | Sequence[names.Wiring],
    text: TextStatistics | None,
    recipe: Recipe | None = None,
    measured: Measured | None = None,
) -> Setting:
    """Build the setting of a model from its parameters.

    Args:
        parameters: a row each: `module` (dotted name), `role`, `layer` (NA outside the blocks), and `rms` or, for a
            recipe, `dims` (those of a bias are its matrix's); `mean` and `var` of what something is added to. The
            `weight` rows of one cell's records are such a table, but for `dims`. What isn't in it is unknown.
        wiring: of the model's stack, or of each in the order of the pass.
        text: that the model reads; None where it reads no tokens.
        recipe: what every parameter is drawn from, asked with its own role and dims; None, or of a parameter without
            a role: as found.
        measured: of a pass; None: nothing was.
    """
    wirings = [wiring] if isinstance(wiring, names.Wiring) else list(wiring)
    measured = measured or Measured()
    text = text or TextStatistics(block_size=0, sum_p2=math.nan, repeat_rate=math.nan)
    positions = measured.positions or [text.block_size] * len(wirings)
    widths = [each.n_embd for each in wirings]
    builder = _Builder(_Squares(parameters, recipe), measured, widths)
    stacks = [builder.stack(each, T, first=not i) for i, (each, T) in enumerate(zip(wirings, positions, strict=False))]
    return Setting(stacks=tuple(stacks), text=text)


def nanogpt_parameters(
    *,
    n_layer: int,
    n_embd: int,
    n_head: int,
    block_size: int,
    vocab_size: int,
    bias: bool = True,
    tied: bool = True,
) -> pd.DataFrame:
    """List the parameters of a NanoGPT, without building it, as `setting_of` takes them for a recipe.

    Args:
        n_layer: blocks.
        n_embd: width.
        n_head: heads.
        block_size: tokens; rows of the position table.
        vocab_size: rows of the token table.
        bias: of the linear layers and norms; the head never has one.
        tied: the head is the token embedding.
    """
    sizes = {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_head, "block_size": block_size}
    dims = {role: gpt_dims(role, **sizes, vocab_size=vocab_size, tied=tied) for role in Role}
    places: list[tuple[str, Role, int | None]] = [
        ("transformer.wte", Role.TOKEN_EMBED, None),
        ("transformer.wpe", Role.POS_EMBED, None),
        *((f"transformer.h.{i}.{name}", role, i) for i in range(n_layer) for name, role in _IN_BLOCK),
        ("transformer.ln_f", Role.NORM_GAIN, None),
    ]
    places += [] if tied else [("lm_head", Role.UNEMBED, None)]
    rows: list[tuple[str, Role, int | None, int, Dims]] = []
    for name, role, layer in places:
        own = replace(dims[role], layer=layer or 0)
        norm = role == Role.NORM_GAIN
        fan_out = own.fan_out * (3 if role == Role.ATTN_QKV else 1)
        rows.append((f"{name}.weight", role, layer, n_embd if norm else own.fan_in * fan_out, own))
        if bias and (norm or role in (Role.ATTN_QKV, Role.ATTN_OUT, Role.MLP_IN, Role.MLP_OUT)):
            rows.append((f"{name}.bias", Role.NORM_BIAS if norm else Role.BIAS, layer, fan_out, own))
    table = pd.DataFrame(rows, columns=["module", "role", "layer", "numel", "dims"]).astype({"layer": "Int64"})
    return table.assign(n_layer=n_layer, n_embd=n_embd)


class _Squares:
    """Mean squares of parameters by name."""

    def __init__(self, parameters: pd.DataFrame, recipe: Recipe | None):
        self.recipe = recipe
        columns = [name for name in ("role", "dims", "rms", "mean", "var") if name in parameters]
        rows = zip(*(parameters[name].tolist() for name in columns), strict=True)
        self.row: dict[str, dict[str, Any]] = {
            str(name): dict(zip(columns, row, strict=True))
            for name, row in zip(parameters["module"].tolist(), rows, strict=True)
        }
        self.kept: dict[tuple[str, str | None, float], float] = {}

    def of(self, name: str | None, part: str | None = None, offset: float = 0.0) -> float:
        """Of a parameter plus a number; NaN of one that isn't in the table.

        Args:
            name: dotted; None is no parameter, and gives 0.
            part: role of the part of a fused matrix that is asked for, where roles tell it apart.
            offset: added to it.
        """
        if name is None:
            return 0.0
        key = (name, part, offset)
        if key not in self.kept:
            self.kept[key] = self._of(name, part, offset) if name in self.row else math.nan
        return self.kept[key]

    def _of(self, name: str, part: str | None, offset: float) -> float:
        row = self.row[name]
        role, dims = row["role"], row.get("dims")
        recipe = self.recipe
        if recipe is not None and isinstance(dims, Dims) and isinstance(role, str) and _draws(recipe, Role(role), dims):
            known = part is not None and part in Role.__members__.values()
            drawn = recipe(Role(part if known and part else role), dims)
            return (offset + float(drawn.mean)) ** 2 + float(drawn.std) ** 2
        if offset:
            return float((offset + row["mean"]) ** 2 + row["var"])
        return float(row.get("rms", math.nan)) ** 2


def _draws(recipe: Recipe, role: Role, dims: Dims) -> bool:
    """Whether a recipe is asked: gates, LayerScale and what has no role stay as they are unless it knows them."""
    return role not in (Role.GATE, Role.OTHER) or recipe.knows(role, dims)


class _Builder:
    """Puts numbers in place of names."""

    def __init__(self, squares: _Squares, measured: Measured, widths: Sequence[int]):
        self.squares, self.measured, self.widths = squares, measured, widths
        self.written: set[str] = set()  # matrices that wrote to a stream

    def stack(self, wiring: names.Wiring, positions: int, *, first: bool) -> Stack:
        measured = self.measured
        begins = ("embed", None) if first else ("resid_pre", wiring.blocks[0].layer if wiring.blocks else None)
        together, var = measured.alike.get(begins, math.nan), measured.var.get(begins, math.nan)
        if first:
            together = measured.together
            norms = [branch.norm for block in wiring.blocks[:1] for branch in block.branches()]
            if norms and norms[0] is not None and norms[0].centred:  # takes off what all features have in common
                square = measured.mean**2
                together = (together * (var + square) - square) / var if var > 0 else together
        return Stack(
            positions=positions,
            n_embd=wiring.n_embd,
            terms=None if wiring.terms is None else tuple(self.term(term) for term in wiring.terms),
            begun=(var, together),
            embed_norm=self.norm(wiring.embed_norm),
            embed_scale=wiring.embed_scale,
            blocks=tuple(self.block(block, wiring.n_embd) for block in wiring.blocks),
            final_norm=self.norm(wiring.final_norm),
            head=None if wiring.head is None else self.linear(wiring.head, wiring.n_embd),
            tied=wiring.tied,
            logit_scale=wiring.logit_scale,
            logit_cap=wiring.logit_cap,
            dropout=wiring.dropout,
        )

    def term(self, term: names.Term) -> Term:
        square = term.square if term.weight is None and term.square is not None else self.squares.of(term.weight)
        sinusoid = term.kind == "position" and term.weight is None
        return Term(kind=term.kind, square=square, scale=term.scale, sinusoid=sinusoid)

    def norm(self, norm: names.Norm | None, sites: Mapping[str, str] | None = None) -> Norm | None:
        if norm is None:
            return None
        gain = 1.0 if norm.gain is None else self.squares.of(norm.gain, offset=norm.offset)
        return Norm(
            gain=gain * norm.scale**2,
            bias=self.squares.of(norm.bias),
            eps=norm.eps,
            centred=norm.centred,
            site="" if sites is None else sites.get(norm.module, ""),
        )

    def linear(self, linear: names.Linear, width: int, part: str | None = None) -> Linear:
        """A matrix that reads so many features; of one that reads others, as the last of a low-rank one, no more."""
        square = self.squares.of(linear.weight, part) if linear.square is None else linear.square
        square = square if linear.fan_in == width else math.nan
        bias = self.squares.of(linear.bias)
        return Linear(square=square, fan_in=linear.fan_in, fan_out=linear.fan_out, bias=bias)

    def writing(self, linear: names.Linear, width: int) -> Linear:
        """A matrix that writes; by its second use the stream is made of it, and isn't independent any more."""
        again = linear.weight in self.written
        self.written.add(linear.weight)
        matrix = self.linear(linear, width)
        return replace(matrix, square=math.nan) if again else matrix

    def block(self, block: names.Block, width: int) -> Block:
        sites = norm_sites(block)
        shown = [branch.site for branch in block.branches()]
        return Block(
            layer=block.layer,
            updates=tuple(
                Update(
                    branches=tuple(
                        self.branch(branch, block.layer, width, sites, seen=shown.count(branch.site) == 1)
                        for branch in update.branches
                    ),
                    keep=update.keep,
                    norm=self.norm(update.norm, sites),
                )
                for update in block.updates
            ),
        )

    def branch(self, branch: names.Branch, layer: int, width: int, sites: Mapping[str, str], *, seen: bool) -> Branch:
        gain = 1.0 if branch.gain is None else self.squares.of(branch.gain)
        body: Attention | MLP | None = None
        unlike = {self.norm(norm) for norm in (branch.norm, *branch.norms)}
        if len(unlike) > 1 or branch.conditioned:  # one norm for all is what the closed form knows
            body = None
        elif isinstance(branch.body, names.Attention):
            body = self.attention(branch.body, layer, width)
        elif branch.body is not None:
            body = self.mlp(branch.body, width)
        return Branch(
            site=branch.site,
            body=body,
            norm=self.norm(branch.norm, sites),
            post=self.norm(branch.post, sites),
            square=branch.scale**2 * gain,
            dropout=branch.dropout,
            written=self.measured.var.get((branch.site, layer), math.nan) if seen else math.nan,
            alike=self.measured.alike.get((branch.site, layer), math.nan),
            seen=seen,
        )

    def attention(self, body: names.Attention, layer: int, width: int) -> Attention:
        other = width if body.cross is None else self.widths[body.cross]
        given = body.value.fan_out * max(1, len(body.apart)) // body.n_kv_head * body.n_head
        return Attention(
            query=self.of_heads(body, 0, width),
            key=self.of_heads(body, 1, other),
            value=self.of_heads(body, 2, other),
            out=None if body.out is None else self.writing(body.out, given),
            n_head=body.n_head,
            n_kv_head=body.n_kv_head,
            head_size=body.head_size,
            score_scale=body.score_scale,
            query_scale=body.query_scale,
            key_scale=body.key_scale,
            query_norm=self.norm(body.query_norm),
            key_norm=self.norm(body.key_norm),
            head_square=1.0 if body.head_gain is None else self.squares.of(body.head_gain),
            out_norm=self.norm(body.out_norm),
            causal=body.causal,
            window=body.window,
            soft_cap=body.soft_cap,
            spread=self.measured.scores.get(layer, math.nan) ** 2 if body.bias else None,
            cross=body.cross,
            dropout=body.dropout,
        )

    def of_heads(self, body: names.Attention, place: int, width: int) -> Linear:
        """Queries', keys' or values' matrix; of heads with one each, what these are on average, side by side."""
        heads = body.apart or ((body.query, body.key, body.value),)
        found = [self.linear(head[place], width, ("attn_q", "attn_k", "attn_v")[place]) for head in heads]
        return Linear(
            square=sum(each.square for each in found) / len(found),
            fan_in=found[0].fan_in,
            fan_out=sum(each.fan_out for each in found),
            bias=sum(each.bias for each in found) / len(found),
        )

    def mlp(self, body: names.MLP, width: int) -> MLP:
        return MLP(
            up=self.linear(body.up, width),
            out=self.writing(body.out, body.up.fan_out),
            gate=None if body.gate is None else self.linear(body.gate, width),
            activation=body.activation,
            inner_norm=self.norm(body.inner_norm),
            dropout=body.dropout,
        )


def norm_sites(block: names.Block) -> dict[str, str]:
    """Tell which norm of a block is ln_1 and which ln_2, by the name of its module.

    Of up to two they are the first and the second; of more, those that the only attention and the only MLP read. Norms
    inside a branch don't count.
    """
    found: list[str] = []
    for update in block.updates:
        norms = [branch.norm for branch in update.branches] + [branch.post for branch in update.branches]
        found += [norm.module for norm in (*norms, update.norm) if norm is not None]
    found = list(dict.fromkeys(found))
    if len(found) <= 2:
        return dict(zip(found, ("ln_1", "ln_2"), strict=False))
    sites = {}
    for kind, site in ((names.Attention, "ln_1"), (names.MLP, "ln_2")):
        read = [branch.norm for branch in block.branches() if isinstance(branch.body, kind)]
        if len(read) == 1 and read[0] is not None:
            sites[read[0].module] = site
    return sites
