"""The setting of a model as it was found, from the mean squares of its weights."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from initlab.judge.activations import Activation
from initlab.judge.theory.settings import BlockScales, Norm, Setting
from initlab.recipes import Role


def from_weights(
    weights: pd.DataFrame,
    *,
    context: int,
    activation: Activation = "gelu",
    dropout: float = 0.0,
    sum_p2: float,
    repeat_rate: float,
    **architecture: Any,
) -> Setting:
    """The setting of a pre-norm decoder, from the `weight` rows of its records (one cell).

    Weights are found by their roles, biases beside them by name; of a block's norms the first is before attention.

    Args:
        context: tokens in the measured sequences.
        architecture: what weights don't show, as fields of Setting: `eps`, `score_scale`, `parallel` and so on.
    """
    n_layer, d = int(weights["n_layer"].iloc[0]), int(weights["n_embd"].iloc[0])
    found = _Found(weights)
    tied = found.none(Role.UNEMBED)
    token = found.square(Role.TOKEN_EMBED)
    return Setting(
        n_embd=d,
        block_size=context,
        vocab_size=found.numel(Role.TOKEN_EMBED) // d,
        token=token,
        position=0.0 if found.none(Role.POS_EMBED) else found.square(Role.POS_EMBED),
        unembed=token if tied else found.square(Role.UNEMBED),
        blocks=tuple(_block(found, layer) for layer in range(n_layer)),
        ln_f=found.norm(None, -1),
        tied=tied,
        activation=activation,
        dropout=dropout,
        mlp_width=found.numel(Role.MLP_OUT, 0) // d if n_layer else None,
        attn_width=found.numel(Role.ATTN_OUT, 0) // d if n_layer else None,
        sum_p2=sum_p2,
        repeat_rate=repeat_rate,
        **architecture,
    )


class _Found:
    """Mean squares by role and block (None outside the blocks), and by name."""

    def __init__(self, weights: pd.DataFrame):
        layers = [None if pd.isna(layer) else int(layer) for layer in weights["layer"]]
        columns = (weights["role"], layers, weights["module"], weights["rms"], weights["numel"])
        self.rows: dict[tuple[str, int | None], list[tuple[str, float, int]]] = {}
        self.by_name: dict[str, float] = {}
        for role, layer, name, rms, numel in zip(*columns, strict=True):
            self.rows.setdefault((str(role), layer), []).append((str(name), float(rms) ** 2, int(numel)))
            self.by_name[str(name)] = float(rms) ** 2

    def none(self, role: Role, layer: int | None = None) -> bool:
        return (role.value, layer) not in self.rows

    def square(self, role: Role, layer: int | None = None, ending: str = "") -> float:
        """Of the first weight whose name ends so, without `.weight`."""
        rows = self.rows[role.value, layer]
        return next((value for name, value, _ in rows if name.removesuffix(".weight").endswith(ending)), rows[0][1])

    def bias(self, role: Role, layer: int | None) -> float:
        """Of the bias beside a role's last weight: v's, of three."""
        return self.by_name.get(self.rows[role.value, layer][-1][0].removesuffix("weight") + "bias", 0.0)

    def numel(self, role: Role, layer: int | None = None) -> int:
        return self.rows[role.value, layer][0][2]

    def norm(self, layer: int | None, place: int) -> Norm:
        """The first (0) or last (-1) norm of a block; gain 1 where it has no weight."""
        rows = self.rows.get((Role.NORM_GAIN.value, layer))
        if not rows:
            return 1.0, 0.0
        name, gain, _ = rows[place]
        return gain, self.by_name.get(name.removesuffix("weight") + "bias", 0.0)


def _block(found: _Found, layer: int) -> BlockScales:
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
