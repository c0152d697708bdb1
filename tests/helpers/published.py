"""The parts of the catalogue's larger schemes, written out by hand from their sources.

STDS: std of every weight of block 0 by (n_layer, n_embd), tied, in a vocabulary of 50304. WIRINGS: by the same, with
heads of 64 features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from initlab.recipes import Role

VOCAB = 50304
EMBEDDINGS = (Role.TOKEN_EMBED, Role.POS_EMBED)
QKV = (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V)
OUTPUTS = (Role.ATTN_OUT, Role.MLP_OUT)
MATRICES = (*QKV, *OUTPUTS, Role.MLP_IN)
CUT2, CUT3 = 0.879626, 0.986578  # std of a standard normal cut at ±2 and ±3: √(1 − 2c·φ(c)/erf(c/√2))


def glorot(d: int, qk: float = 1, v: float = 1, out: float = 1, mlp: float = 1, mlp_out: float | None = None) -> Any:
    """Factors on √(2/(fan_in + fan_out)): of a d × d matrix, and of a d × 4d one."""
    square, wide = 1 / math.sqrt(d), math.sqrt(2 / (5 * d))
    return {
        Role.ATTN_Q: qk * square,
        Role.ATTN_K: qk * square,
        Role.ATTN_V: v * square,
        Role.ATTN_OUT: out * square,
        Role.MLP_IN: mlp * wide,
        Role.MLP_OUT: (mlp if mlp_out is None else mlp_out) * wide,
    }


def fairseq(d: int, tokens: float = 1) -> Any:
    """Embeddings and head: 1/√d, and positions that a multiplier of √d leaves at that."""
    return {Role.TOKEN_EMBED: tokens / math.sqrt(d), Role.UNEMBED: 1 / math.sqrt(d), Role.POS_EMBED: 1 / d}


def torchscale(d: int, factor: float) -> Any:
    """q, k, v of Glorot with gain 1/√2, attention's output with gain 1, the MLP as torch draws it."""
    half = math.sqrt(0.5 / d)
    return (
        dict.fromkeys(QKV, half)
        | {Role.ATTN_V: half * factor, Role.ATTN_OUT: factor / math.sqrt(d)}
        | {Role.MLP_IN: factor / math.sqrt(3 * d), Role.MLP_OUT: factor / math.sqrt(12 * d)}
    )


def every(std: float) -> Any:
    return dict.fromkeys((*EMBEDDINGS, *MATRICES, Role.UNEMBED), std)


STDS: dict[str, Callable[[int, int], dict[Role, float]]] = {
    "deepnorm": lambda L, d: glorot(d, 1, *[(8 * L) ** -0.25] * 3) | fairseq(d),
    "deepnorm-torchscale": lambda L, d: torchscale(d, (8 * L) ** -0.25) | fairseq(d),
    "magneto": lambda L, d: glorot(d, 1, *[math.log(2 * L) ** 0.5] * 3) | fairseq(d),
    "admin": lambda L, d: glorot(d, 0.5**0.5, 0.5**0.5) | fairseq(d),
    "normformer": lambda L, d: torchscale(d, 1) | fairseq(d),
    "ds-init": lambda L, d: glorot(d) | fairseq(d),  # of the first block
    "layernorm-scaling": lambda L, d: every(0.02),
    "peri-ln": lambda L, d: every(0.02) | dict.fromkeys(OUTPUTS, 0.02 / math.sqrt(2 * L)),
    "spike-no-more": lambda L, d: (
        every(math.sqrt(0.4 / d))
        | dict.fromkeys(OUTPUTS, math.sqrt(0.2 / (L * d)))
        | {Role.POS_EMBED: math.sqrt(0.4) / d}
    ),
    "t-fixup": lambda L, d: glorot(d, 1, *[(9 * L) ** -0.25] * 3) | fairseq(d, (9 * L) ** -0.25),
    "t-fixup-encoder": lambda L, d: glorot(d, 1, *[0.67 * L**-0.25] * 3) | fairseq(d, (9 * L) ** -0.25),
    "fixup": lambda L, d: (
        glorot(d, (2 * L) ** (-1 / 6), (2 * L) ** (-1 / 6), 0, (2 * L) ** -0.5, mlp_out=0) | fairseq(d)
    ),
    "rezero": lambda L, d: (
        glorot(d, 0.5**0.5, 0.5**0.5)
        | {Role.TOKEN_EMBED: math.sqrt(2 / (VOCAB + d)), Role.UNEMBED: math.sqrt(2 / (VOCAB + d))}
        | {Role.POS_EMBED: math.sqrt(2 / (1024 + d))}
    ),
    "skipinit": lambda L, d: (
        every(math.sqrt(2 / d)) | dict.fromkeys(EMBEDDINGS, 0.5**0.5) | {Role.MLP_OUT: (2 * d) ** -0.5}
    ),
    "layerscale-cait": lambda L, d: every(0.02),
    "gemma": lambda L, d: every(0.01),
    "gemma-2": lambda L, d: every(0.01),
    "gemma-3": lambda L, d: every(0.01),
    "deepseek": lambda L, d: every(0.006),
    "olmo2": lambda L, d: every(CUT3 * 0.02),
    "qwen3": lambda L, d: every(0.02),
    "mamba": lambda L, d: (
        every(1 / math.sqrt(3 * d))
        | dict.fromkeys(EMBEDDINGS, 0.02)
        | {Role.ATTN_OUT: 1 / math.sqrt(6 * L * d), Role.MLP_OUT: 1 / math.sqrt(24 * L * d)}
    ),
    "cerebras-gpt": lambda L, d: (
        dict.fromkeys(MATRICES, CUT2 * 1.28 / math.sqrt(d))
        | dict.fromkeys(OUTPUTS, CUT2 * 1.28 / math.sqrt(2 * L * d))
        | dict.fromkeys((*EMBEDDINGS, Role.UNEMBED), CUT2 * 0.08)
    ),
    "nanochat": lambda L, d: (
        dict.fromkeys(QKV, 1 / math.sqrt(d))
        | {Role.MLP_IN: 0.4 / math.sqrt(d), Role.ATTN_OUT: 0.0, Role.MLP_OUT: 0.0}
        | {Role.TOKEN_EMBED: 0.8, Role.UNEMBED: 0.001}
    ),
    "modded-nanogpt": lambda L, d: (
        dict.fromkeys((Role.ATTN_Q, Role.ATTN_K, Role.ATTN_OUT, Role.MLP_IN), 0.5 / math.sqrt(d))
        | {Role.ATTN_V: 0.25 / math.sqrt(d), Role.MLP_OUT: 0.0, Role.TOKEN_EMBED: 0.005}
    ),
    "vit-timm": lambda L, d: every(0.02),
    "vit-jax": lambda L, d: glorot(d) | dict.fromkeys(EMBEDDINGS, 0.02) | {Role.UNEMBED: 0.0},
    "dit": lambda L, d: glorot(d, 0.5**0.5, 0.5**0.5) | dict.fromkeys(EMBEDDINGS, 0.02) | {Role.UNEMBED: 0.0},
}

_LLAMA = {"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu", "bias": False}
_SPEEDRUN = _LLAMA | {"activation": "relu2", "qk_norm": True, "embed_norm": True}


def _fairseq(d: int) -> dict[str, Any]:
    return {"embedding_multiplier": math.sqrt(d), "tie_weights": False}


def _post(skip: float, d: int) -> dict[str, Any]:
    return {"norm_placement": "post", "skip_multiplier": skip} | _fairseq(d)


def _gemma(d: int, **options: Any) -> dict[str, Any]:
    return _LLAMA | {"activation": "geglu", "embedding_multiplier": math.sqrt(d), "tie_weights": True} | options


WIRINGS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "deepnorm": lambda L, d: _post((2 * L) ** 0.25, d),
    "deepnorm-torchscale": lambda L, d: _post((2 * L) ** 0.25, d),
    "magneto": lambda L, d: {"inner_norm": "both"} | _fairseq(d),
    "admin": lambda L, d: _post(math.sqrt((2 * L + 1) / math.log(2 * L + 1) - 1), d),
    "normformer": lambda L, d: (
        {
            "norm_placement": "sandwich-attn",
            "inner_norm": "mlp",
            "head_scale": 1.0,
        }
        | _fairseq(d)
    ),
    "ds-init": lambda L, d: _post(1.0, d),
    "layernorm-scaling": lambda L, d: (
        _LLAMA | {"norm_multiplier": tuple((layer + 1) ** -0.5 for layer in range(L)), "tie_weights": False}
    ),
    "peri-ln": lambda L, d: _LLAMA | {"norm_placement": "sandwich", "embed_norm": True, "tie_weights": False},
    "spike-no-more": lambda L, d: {"embedding_multiplier": math.sqrt(d)},
    "t-fixup": lambda L, d: {"norm": "none"} | _fairseq(d),
    "t-fixup-encoder": lambda L, d: {"norm": "none"} | _fairseq(d),
    "fixup": lambda L, d: {"norm": "none", "gate": 1.0} | _fairseq(d),
    "rezero": lambda L, d: {"norm": "none", "gate": 0.0},
    "skipinit": lambda L, d: {"norm": "none", "gate": 0.0, "tie_weights": False},
    "layerscale-cait": lambda L, d: {"layer_scale": 0.1 if L < 20 else 1e-5 if L < 30 else 1e-6},
    "gemma": lambda L, d: _gemma(d),
    "gemma-2": lambda L, d: _gemma(d, norm_placement="sandwich", logit_cap=30.0),
    "gemma-3": lambda L, d: _gemma(d, norm_placement="sandwich", qk_norm=True),
    "olmo2": lambda L, d: _LLAMA | {"norm_placement": "out", "qk_norm": True, "tie_weights": False},
    "qwen3": lambda L, d: _LLAMA | {"qk_norm": True},
    "cerebras-gpt": lambda L, d: {
        "attention_multiplier": 1 / 64,
        "embedding_multiplier": 10.0,
        "logit_multiplier": 256 / d,
    },
    "nanochat": lambda L, d: _SPEEDRUN | {"attention_multiplier": 1.44 / 8, "logit_cap": 15.0, "tie_weights": False},
    "modded-nanogpt": lambda L, d: _SPEEDRUN | {"attention_multiplier": 0.1, "skip_multiplier": math.sqrt(1.1)},
    "dit": lambda L, d: {"layer_scale": 0.0, "tie_weights": False},
}
