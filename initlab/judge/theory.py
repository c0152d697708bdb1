"""Closed-form expectations for a pre-norm GPT at init: what each site's variance should be.

The recursion follows the covariance of the residual stream between positions: q, its mean square at a position, and
o, the mean product of the streams at two different positions. Exact as n_embd -> infinity but for three things: which
tokens repeat is averaged over, a softmax favours keys independently of the query, and late positions are grouped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from initlab.judge import activations
from initlab.recipes import Recipe, Role
from initlab.recipes.tabulating import gpt_dims

Array = NDArray[np.float64]

LN_EPS = 1e-5  # nanoGPT's and torch's default


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockScales:
    """Mean squares of one block's weights, biases, and norms' gains and biases."""

    qkv: float
    attn_out: float
    mlp_in: float
    mlp_out: float
    qkv_bias: float = 0.0
    attn_out_bias: float = 0.0
    mlp_in_bias: float = 0.0
    mlp_out_bias: float = 0.0
    ln_1: tuple[float, float] = (1.0, 0.0)  # gain, bias
    ln_2: tuple[float, float] = (1.0, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What the theory needs to know: sizes, mean squares of the weights, and the text's statistics."""

    n_embd: int
    block_size: int  # T
    vocab_size: int
    token: float
    position: float
    unembed: float
    blocks: tuple[BlockScales, ...]
    ln_f: tuple[float, float] = (1.0, 0.0)
    tied: bool = True
    activation: str = "gelu"
    dropout: float = 0.0  # probability in force, 0 in eval mode; on attention weights and what enters the stream
    sum_p2: float  # probability that two tokens of the text are the same
    repeat_rate: float  # probability that the next token is the current one


@dataclass(frozen=True, slots=True)
class Prediction:
    """Expected variances by (site, layer), and the scalars of the summary table."""

    var: dict[tuple[str, int | None], float]
    own_logit: float  # mean logit of the token just read, 0 for an untied head
    logit_std: float
    loss: float  # nats
    token_cosine: float  # mean cosine between the last residual streams of two positions


def from_recipe(
    recipe: Recipe,
    *,
    n_layer: int,
    n_embd: int,
    n_head: int,
    block_size: int,
    vocab_size: int,
    bias: bool = True,
    tied: bool = True,
    activation: str = "gelu",
    dropout: float = 0.0,
    sum_p2: float,
    repeat_rate: float,
) -> Setting:
    """The setting of a NanoGPT drawn from a recipe. `block_size`: tokens in the measured sequences."""
    sizes = {
        "n_layer": n_layer,
        "n_embd": n_embd,
        "n_head": n_head,
        "block_size": block_size,
        "vocab_size": vocab_size,
    }

    def square(role: Role, layer: int = 0, of: Role | None = None) -> float:
        dims = replace(gpt_dims(of or role, **sizes, tied=tied), layer=layer)
        value = recipe(role, dims)
        return value.mean**2 + value.std**2

    def biased(layer: int, of: Role) -> float:
        return square(Role.BIAS, layer, of) if bias else 0.0

    norm = (square(Role.NORM_GAIN), square(Role.NORM_BIAS) if bias else 0.0)
    token = square(Role.TOKEN_EMBED)
    return Setting(
        n_embd=n_embd,
        block_size=block_size,
        vocab_size=vocab_size,
        token=token,
        position=square(Role.POS_EMBED),
        unembed=token if tied else square(Role.UNEMBED),
        blocks=tuple(
            BlockScales(
                qkv=square(Role.ATTN_QKV, layer),
                attn_out=square(Role.ATTN_OUT, layer),
                mlp_in=square(Role.MLP_IN, layer),
                mlp_out=square(Role.MLP_OUT, layer),
                qkv_bias=biased(layer, Role.ATTN_QKV),
                attn_out_bias=biased(layer, Role.ATTN_OUT),
                mlp_in_bias=biased(layer, Role.MLP_IN),
                mlp_out_bias=biased(layer, Role.MLP_OUT),
                ln_1=norm,
                ln_2=norm,
            )
            for layer in range(n_layer)
        ),
        ln_f=norm,
        tied=tied,
        activation=activation,
        dropout=dropout,
        sum_p2=sum_p2,
        repeat_rate=repeat_rate,
    )


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


def predict(setting: Setting) -> Prediction:
    """Follow the covariance between positions through the blocks; what it implies for logits and first loss."""
    d, T = setting.n_embd, setting.block_size
    grid = Grid.of(T)
    # dropout keeps the mean and divides the mean square by what it keeps; two positions are masked independently
    kept = 1 - setting.dropout
    q = np.full(len(grid.size), (setting.token + setting.position) / kept)
    o = np.full((len(q), len(q)), setting.token * setting.sum_p2)
    var: dict[tuple[str, int | None], float] = {("embed", None): grid.mean(q)}
    for layer, block in enumerate(setting.blocks):
        var["resid_pre", layer] = grid.mean(q)
        m, c = _normalised(q, o, block.ln_1)
        var["ln_1", layer] = grid.mean(m)
        v, v_between = d * block.qkv * m + block.qkv_bias, d * block.qkv * c + block.qkv_bias
        for site in ("q", "k", "v"):
            var[site, layer] = grid.mean(v)
        var["attn_logits", layer] = grid.mean(v) ** 2
        scores = v * (v - np.diag(v_between))  # variance within a row; what the keys share, the softmax ignores
        z, z_between = grid.attend(v, v_between, scores, kept)
        var["attn_z", layer] = grid.mean(z)
        write = (d * block.attn_out * z + block.attn_out_bias) / kept
        var["attn_out", layer] = grid.mean(write)
        q = q + write
        o = o + d * block.attn_out * z_between + block.attn_out_bias
        var["resid_mid", layer] = grid.mean(q)
        m, c = _normalised(q, o, block.ln_2)
        var["ln_2", layer] = grid.mean(m)
        s, k = d * block.mlp_in * m + block.mlp_in_bias, d * block.mlp_in * c + block.mlp_in_bias
        square = activations.gamma(setting.activation, s, s, s)
        between = activations.gamma(setting.activation, s[:, None], s[None, :], k)
        average = grid.mean(activations.mean(setting.activation, s))
        var["mlp_pre", layer] = grid.mean(s)
        var["mlp_act", layer] = grid.mean(square) - average**2
        write = (4 * d * block.mlp_out * square + block.mlp_out_bias) / kept
        var["mlp_out", layer] = grid.mean(write)
        q = q + write
        o = o + 4 * d * block.mlp_out * between + block.mlp_out_bias
        var["resid_post", layer] = grid.mean(q)
    m, c = _normalised(q, o, setting.ln_f)
    var["final_norm", None] = grid.mean(m)
    spread_of_logits = d * setting.unembed * grid.mean(m)
    gain = math.sqrt(setting.ln_f[0])  # of one sign, as inits have it
    own_logit = gain * d * setting.token * grid.mean(1 / np.sqrt(q + LN_EPS)) if setting.tied else 0.0
    V = setting.vocab_size
    var["logits", None] = spread_of_logits + own_logit**2 * (V - 1) / V**2
    return Prediction(
        var=var,
        own_logit=own_logit,
        logit_std=math.sqrt(var["logits", None]),
        loss=first_loss(vocab_size=V, spread=spread_of_logits, own_logit=own_logit, repeat_rate=setting.repeat_rate),
        token_cosine=grid.mean_between(o / np.sqrt(np.outer(q, q))) if (q > 0).all() else math.nan,
    )


def _normalised(q: Array, o: Array, norm: tuple[float, float]) -> tuple[Array, Array]:
    """Mean squares and mean products behind a LayerNorm with mean squares of gain and bias as given."""
    gain, bias = norm
    return gain * q / (q + LN_EPS) + bias, gain * o / np.sqrt(np.outer(q + LN_EPS, q + LN_EPS)) + bias


@dataclass(frozen=True, slots=True)
class Grid:
    """Positions of a sequence in groups that are treated alike: singly at first, then in groups that grow.

    A state is the mean square at each group's positions, (G,), and the mean product of two different positions of
    two groups, (G, G). With every position in a group of its own this is the exact T x T recursion.
    """

    size: Array  # positions in each group
    seen: Array  # (G, G): how many positions of each group a typical position of a group sees, itself included

    @classmethod
    def of(cls, T: int) -> Grid:
        """At most about 100 groups: 32 single positions, then groups that grow by 6 % (error below 0.5 %)."""
        edges = [0]
        while edges[-1] < T:
            edges.append(min(T, edges[-1] + max(1, round(0.06 * (edges[-1] - 16)))))
        start, stop = np.array(edges[:-1], float), np.array(edges[1:], float)
        size = stop - start
        typical = start + (size + 1) / 2  # keys that the middle position of a group sees
        return cls(size, np.clip(typical[:, None] - start[None, :], 0, size[None, :]))

    def mean(self, values: Array) -> float:
        """Mean over positions."""
        return float(values @ self.size / self.size.sum())

    def mean_between(self, values: Array) -> float:
        """Mean over pairs of different positions."""
        pairs = np.outer(self.size, self.size) - np.diag(self.size)
        total = pairs.sum()
        return float((values * pairs).sum() / total) if total else math.nan

    def attend(self, v: Array, between: Array, scores: Array, kept: float = 1.0) -> tuple[Array, Array]:
        """Causal attention on Gaussian scores: position i averages the i values up to its own, unequally.

        Args:
            v, between: mean squares and mean products of the values.
            scores: (G,), variance of the attention logits within a row.
            kept: share of the attention weights that dropout keeps.
        """
        keys = self.seen.sum(1)
        shared = self.seen @ between @ self.seen.T / np.outer(keys, keys)
        # the same token on both sides counts with its mean square instead of the product of two
        excess = self.seen @ (v - np.diag(between))
        lower = np.minimum.outer(np.arange(len(v)), np.arange(len(v)))
        both = excess[lower] / np.outer(keys, keys)
        # Sum of squared softmax weights over n keys: e^s/n for many keys (E[e^2x]/E[e^x]^2), 1 for a single one.
        peaked = np.exp(np.clip(scores, 0, 50))
        squares = peaked / (keys - 1 + peaked)
        dropped = (1 / kept - 1) * squares * (self.seen @ v) / keys
        return np.diag(shared) + excess / keys * squares + dropped, shared + both


def first_loss(*, vocab_size: int, spread: float, own_logit: float, repeat_rate: float) -> float:
    """Expected cross entropy, in nats, of independent Gaussian logits of which the token just read has its own mean.

    Exact for any spread, by E ln S = integral of (e^-t - E e^-tS) dt/t with t = e^-u: E e^-tS is the product over the
    tokens of E exp(-e^(x-u)).

    Args:
        spread: variance of the logits around their means.
        own_logit: mean logit of the token just read; d·σ²/√q for a tied head, 0 for an untied one.
        repeat_rate: probability that the target is that token.
    """
    std = math.sqrt(spread)
    step = min(0.1 * std, 0.2) or 1.0
    x = np.arange(-8 * std, 8 * std + step, step)
    weight = np.exp(-0.5 * (x / std) ** 2) if std else np.ones(1)
    x = x if std else np.zeros(1)
    weight /= weight.sum()
    low = min(-8 * std, own_logit - 8 * std) - 5  # below it both terms are 0, above the other end too
    high = max(8 * std, own_logit + 8 * std) + math.log(vocab_size) + 40
    u = np.linspace(low, high, max(400, int((high - low) / 0.1)))

    def alive(mean: float) -> Array:
        """E exp(-e^(x - u)) over the logits x of one token."""
        return np.asarray(np.exp(-np.exp(np.minimum(mean + x[None, :] - u[:, None], 50))) @ weight)

    others = (vocab_size - 1) * np.log(np.maximum(alive(0.0), 1e-300))
    gone = np.exp(-np.exp(np.minimum(-u, 50))) - np.exp(others) * alive(own_logit)
    return float(np.trapezoid(gone, u)) - repeat_rate * own_logit


def annotate(records: pd.DataFrame, summary: pd.DataFrame, prediction: Prediction) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of one cell with `expected_*` filled in; rows that the theory doesn't cover keep what they have."""
    records, summary = records.copy(), summary.copy()
    layers = [None if pd.isna(layer) else int(layer) for layer in records["layer"]]
    expected = pd.Series(
        [prediction.var.get((site, layer), math.nan) for site, layer in zip(records["site"], layers, strict=True)],
        index=records.index,
    )
    forward = records["kind"] == "activation"
    records.loc[forward, "expected_var"] = expected[forward]
    summary["expected_loss"] = prediction.loss
    summary["expected_logit_std"] = prediction.logit_std
    summary["expected_own_logit"] = prediction.own_logit
    summary["expected_token_cosine"] = prediction.token_cosine
    return records, summary
