"""The setting of a model as it was found, from the mean squares of its weights."""

from __future__ import annotations

import pandas as pd

from initlab.judge.theory.settings import BlockScales, Setting
from initlab.recipes import Role


def from_weights(
    weights: pd.DataFrame,
    *,
    context: int,
    activation: str = "gelu",
    dropout: float = 0.0,
    sum_p2: float,
    repeat_rate: float,
) -> Setting:
    """The setting of a model as it was found: mean squares from the `weight` rows of its records (one cell).

    `context`: tokens in the measured sequences.
    """
    by_name = dict(zip(weights["module"], weights["rms"] ** 2, strict=True))
    by_role = {role: rows.set_index("layer")["rms"] ** 2 for role, rows in weights.groupby("role", observed=True)}

    def of(role: Role, layer: int) -> float:
        return float(by_role[role].loc[layer])

    def found(ending: str, default: float = 0.0) -> float:
        return next((float(v) for module, v in by_name.items() if module.endswith(ending)), default)

    def bias(layer: int, name: str) -> float:
        return found(f".{layer}.{name}.bias")

    def norm(name: str) -> tuple[float, float]:
        return found(f"{name}.weight", 1.0), found(f"{name}.bias")

    n_layer, d = int(weights["n_layer"].iloc[0]), int(weights["n_embd"].iloc[0])
    tied = Role.UNEMBED not in by_role
    token = float(by_role[Role.TOKEN_EMBED].iloc[0])
    return Setting(
        n_embd=d,
        block_size=context,
        vocab_size=int(weights.loc[weights["role"] == Role.TOKEN_EMBED, "numel"].iloc[0]) // d,
        token=token,
        position=float(by_role[Role.POS_EMBED].iloc[0]),
        unembed=token if tied else float(by_role[Role.UNEMBED].iloc[0]),
        blocks=tuple(
            BlockScales(
                qkv=of(Role.ATTN_QKV, layer),
                attn_out=of(Role.ATTN_OUT, layer),
                mlp_in=of(Role.MLP_IN, layer),
                mlp_out=of(Role.MLP_OUT, layer),
                qkv_bias=bias(layer, "attn.c_attn"),
                attn_out_bias=bias(layer, "attn.c_proj"),
                mlp_in_bias=bias(layer, "mlp.c_fc"),
                mlp_out_bias=bias(layer, "mlp.c_proj"),
                ln_1=norm(f".{layer}.ln_1"),
                ln_2=norm(f".{layer}.ln_2"),
            )
            for layer in range(n_layer)
        ),
        ln_f=norm("ln_f"),
        tied=tied,
        activation=activation,
        dropout=dropout,
        sum_p2=sum_p2,
        repeat_rate=repeat_rate,
    )
