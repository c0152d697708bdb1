"""The forward recursion: the covariance of the residual stream between positions, from block to block."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from initlab.judge import activations
from initlab.judge.theory.positions import Array, Grid, peakedness
from initlab.judge.theory.settings import BlockScales, Norm, Setting


@dataclass(frozen=True, slots=True)
class AttentionTrace:
    """What the backward pass needs of one attention. Vectors are (G,), matrices (G, G) of two different positions."""

    scale: Array  # gain^2 / mean square of what enters the norm
    query: Array  # mean square of q
    query_between: Array
    own_value: Array  # mean square of v and of k that the other positions don't share
    own_key: Array
    squares: Array  # sum of squared attention weights


@dataclass(frozen=True, slots=True)
class Way:
    """One matrix that leads into an MLP: its mean square, and what its gradient is multiplied with on the way back."""

    weight: float
    factor: Array  # E f'^2, or of a gated MLP E f^2 and E (f' up)^2
    factor_between: Array


@dataclass(frozen=True, slots=True)
class MLPTrace:
    """What the backward pass needs of one MLP."""

    scale: Array
    ways: tuple[Way, ...]


@dataclass(slots=True)
class Trace:
    """A forward pass: variances by (site, layer), the last state, and what the backward pass needs."""

    var: dict[tuple[str, int | None], float]
    q: Array
    o: Array
    attentions: list[AttentionTrace] = field(default_factory=list)
    mlps: list[MLPTrace] = field(default_factory=list)
    score_var: list[Array] = field(default_factory=list)  # per block, of the attention logits within a row


def follow(setting: Setting, grid: Grid, same: float | Array, *, backward: bool = True) -> Trace:
    """Follow the state through the blocks.

    Args:
        setting: of the model.
        grid: groups of positions.
        same: probability that two positions hold the same token, a number or one for each pair, (G, G).
        backward: keep what `backward` needs: one (G, G) matrix in float32 for the MLP and one for q, of each block.
    """
    # dropout keeps the mean and divides the mean square by what it keeps; two positions are masked independently
    kept = 1 - setting.dropout
    scale = setting.embed_scale**2
    q = np.full(len(grid.size), scale * (setting.token + setting.position) / kept)
    o = scale * setting.token * same * np.ones((len(q), len(q)))
    trace = Trace({("embed", None): grid.mean(q)}, q, o)
    for layer, block in enumerate(setting.blocks):
        trace.var["resid_pre", layer] = grid.mean(q)
        write, write_between, attention = _attention(setting, grid, block, layer, q, o, trace)
        if setting.parallel:
            other, other_between, mlp = _mlp(setting, grid, block, layer, q, o, trace)
            q, o = q + write + other, o + write_between + other_between
        else:
            q, o = q + write, o + write_between
            trace.var["resid_mid", layer] = grid.mean(q)
            write, write_between, mlp = _mlp(setting, grid, block, layer, q, o, trace)
            q, o = q + write, o + write_between
        trace.var["resid_post", layer] = grid.mean(q)
        if backward:
            trace.attentions.append(attention)
            trace.mlps.append(mlp)
    trace.q, trace.o = q, o
    return trace


def normalised(q: Array, o: Array, norm: Norm, eps: float) -> tuple[Array, Array]:
    """Mean squares and mean products behind a norm with mean squares of gain and bias as given."""
    gain, bias = norm
    root = np.sqrt(gain / (q + eps))
    return gain * q / (q + eps) + bias, o * root[:, None] * root + bias


def _attention(
    setting: Setting, grid: Grid, block: BlockScales, layer: int, q: Array, o: Array, trace: Trace
) -> tuple[Array, Array, AttentionTrace]:
    d, kept, var = setting.n_embd, 1 - setting.dropout, trace.var
    m, c = normalised(q, o, block.ln_1, setting.eps)
    var["ln_1", layer] = grid.mean(m)
    v, v_between = d * block.qkv * m + block.qkv_bias, d * block.qkv * c + block.qkv_bias
    own_value = v - np.diag(v_between)
    if block.query_key is None:
        k, k_between, own_key = v, v_between, own_value
    else:
        k, k_between = d * block.query_key * m + block.qkv_bias, d * block.query_key * c + block.qkv_bias
        own_key = k - np.diag(k_between)
    for site, values in (("q", k), ("k", k), ("v", v)):
        var[site, layer] = grid.mean(values)
    var["attn_logits", layer] = setting.score_scale**2 * grid.mean(k) ** 2
    scores = setting.score_scale**2 * k * own_key  # within a row; what the keys share, the softmax ignores
    trace.score_var.append(scores)
    squares = peakedness(scores, grid.keys)
    z, z_between = grid.attend(v, v_between, squares, kept)
    var["attn_z", layer] = grid.mean(z)
    weight = setting.attended * block.attn_out
    scale = setting.residual_scale**2
    write = scale * (weight * z + block.attn_out_bias) / kept
    var["attn_out", layer] = grid.mean(write)
    z_between *= scale * weight
    z_between += scale * block.attn_out_bias
    back = AttentionTrace(
        block.ln_1[0] / (q + setting.eps), k, k_between.astype(np.float32), own_value, own_key, squares
    )
    return write, z_between, back


def _mlp(
    setting: Setting, grid: Grid, block: BlockScales, layer: int, q: Array, o: Array, trace: Trace
) -> tuple[Array, Array, MLPTrace]:
    d, f, var = setting.n_embd, setting.activation, trace.var
    m, c = normalised(q, o, block.ln_2, setting.eps)
    var["ln_2", layer] = grid.mean(m)
    up, up_between = d * block.mlp_in * m + block.mlp_in_bias, d * block.mlp_in * c + block.mlp_in_bias
    var["mlp_pre", layer] = grid.mean(up)
    s, k = up, up_between
    if block.mlp_gate is not None:
        s = d * block.mlp_gate * m + block.mlp_gate_bias
        k = d * block.mlp_gate * c + block.mlp_gate_bias
    square, slope = activations.moments(f, s, s, s)
    between, slope_between = activations.moments(f, s[:, None], s[None, :], k)
    mean = 0.0
    if block.mlp_gate is None:
        ways: tuple[Way, ...] = (Way(block.mlp_in, slope, slope_between.astype(np.float32)),)
        mean = grid.mean(activations.mean(f, s))
    else:  # what comes up is independent of the gate, and has mean 0
        ways = (
            Way(block.mlp_in, square, between.astype(np.float32)),
            Way(block.mlp_gate, slope * up, (slope_between * up_between).astype(np.float32)),
        )
        square, between = square * up, between * up_between
    var["mlp_act", layer] = grid.mean(square) - mean**2
    weight, scale = setting.hidden * block.mlp_out, setting.residual_scale**2
    write = scale * (weight * square + block.mlp_out_bias) / (1 - setting.dropout)
    var["mlp_out", layer] = grid.mean(write)
    between *= scale * weight
    between += scale * block.mlp_out_bias
    return write, between, MLPTrace(block.ln_2[0] / (q + setting.eps), ways)
