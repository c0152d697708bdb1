"""From a table of a model's parameters, as they are or as a recipe draws them, to a setting."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd

from initlab.judge.theory.settings import BlockScales, Norm, Setting, TextStatistics, Wiring
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


def setting_of(parameters: pd.DataFrame, wiring: Wiring, text: TextStatistics, recipe: Recipe | None = None) -> Setting:
    """Build the setting of a pre-norm decoder from its parameters.

    Weights are found by their roles, biases beside them by name; of a block's norms the first is before attention.

    Args:
        parameters: a row each, in the model's order: `role`, `layer` (NA outside the blocks), `module` (dotted name),
            `numel`, the model's `n_layer` and `n_embd`; and `rms` or, for a recipe, `dims` (those of a bias are its
            matrix's). The `weight` rows of one cell's records are such a table, but for `dims`.
        wiring: what weights don't show.
        text: of the sequences that the model reads.
        recipe: what every parameter is drawn from, asked with its own role and dims; None: they are as found.
    """
    n_layer, d = int(parameters["n_layer"].iloc[0]), int(parameters["n_embd"].iloc[0])
    found = _Squares(parameters, recipe)
    tied = found.none(Role.UNEMBED)
    token = found.square(Role.TOKEN_EMBED)
    return Setting(
        **vars(wiring),
        **vars(text),
        n_embd=d,
        vocab_size=found.numel(Role.TOKEN_EMBED) // d,
        token=token,
        position=0.0 if found.none(Role.POS_EMBED) else found.square(Role.POS_EMBED),
        unembed=token if tied else found.square(Role.UNEMBED),
        blocks=tuple(_block(found, layer) for layer in range(n_layer)),
        ln_f=found.norm(None, -1),
        tied=tied,
        mlp_width=found.numel(Role.MLP_OUT, 0) // d if n_layer else None,
        attn_width=found.numel(Role.ATTN_OUT, 0) // d if n_layer else None,
    )


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
    """Mean squares by role and block (None outside the blocks), and by name."""

    def __init__(self, parameters: pd.DataFrame, recipe: Recipe | None):
        known = parameters[parameters["role"].notna()]
        roles = [Role(role) for role in known["role"]]
        layers = [None if pd.isna(layer) else int(layer) for layer in known["layer"]]
        if recipe is None:
            squares = [float(rms) ** 2 for rms in known["rms"]]
        else:
            drawn = [recipe(role, dims) for role, dims in zip(roles, known["dims"], strict=True)]
            squares = [float(value.mean) ** 2 + float(value.std) ** 2 for value in drawn]
        self.rows: dict[tuple[Role, int | None], list[tuple[str, float, int]]] = {}
        self.by_name = dict(zip(map(str, known["module"]), squares, strict=True))
        for role, layer, (name, square), numel in zip(roles, layers, self.by_name.items(), known["numel"], strict=True):
            self.rows.setdefault((role, layer), []).append((name, square, int(numel)))

    def none(self, role: Role, layer: int | None = None) -> bool:
        return (role, layer) not in self.rows

    def square(self, role: Role, layer: int | None = None, ending: str = "") -> float:
        """Of the first weight whose name ends so, without `.weight`."""
        rows = self.rows[role, layer]
        return next((value for name, value, _ in rows if name.removesuffix(".weight").endswith(ending)), rows[0][1])

    def bias(self, role: Role, layer: int | None) -> float:
        """Of the bias beside a role's last weight: v's, of three."""
        return self.by_name.get(self.rows[role, layer][-1][0].removesuffix("weight") + "bias", 0.0)

    def numel(self, role: Role, layer: int | None = None) -> int:
        return self.rows[role, layer][0][2]

    def norm(self, layer: int | None, place: int) -> Norm:
        """The first (0) or last (-1) norm of a block; gain 1 where it has no weight."""
        rows = self.rows.get((Role.NORM_GAIN, layer))
        if not rows:
            return 1.0, 0.0
        name, gain, _ = rows[place]
        return gain, self.by_name.get(name.removesuffix("weight") + "bias", 0.0)


def _block(found: _Squares, layer: int) -> BlockScales:
    gated = not found.none(Role.MLP_GATE, layer)
    query, key = (found.square(Role.ATTN_QKV, layer, ending) for ending in ("q_proj", "k_proj"))
    return BlockScales(
        qkv=found.square(Role.ATTN_QKV, layer, "v_proj"),
        query_key=math.sqrt(query * key),
        attn_out=found.square(Role.ATTN_OUT, layer),
        mlp_in=found.square(Role.MLP_IN, layer),
        mlp_gate=found.square(Role.MLP_GATE, layer) if gated else None,
        mlp_out=found.square(Role.MLP_OUT, layer),
        qkv_bias=found.bias(Role.ATTN_QKV, layer),
        attn_out_bias=found.bias(Role.ATTN_OUT, layer),
        mlp_in_bias=found.bias(Role.MLP_IN, layer),
        mlp_gate_bias=found.bias(Role.MLP_GATE, layer) if gated else 0.0,
        mlp_out_bias=found.bias(Role.MLP_OUT, layer),
        ln_1=found.norm(layer, 0),
        ln_2=found.norm(layer, -1),
    )
