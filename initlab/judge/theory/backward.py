"""The backward recursion: the covariance of the gradient between positions, from the loss to the embedding.

Paths: through the values and the MLP in full, through q and k to leading order, as if different positions were
independent but for what all of them share. That is enough for the stream, whose gradient hardly comes that way, but
not for q and k themselves, which get no prediction: their gradients feed on what little else positions have in common.

Neglected: the 1/n_embd share that a norm takes away; widths too small for the positions' covariance to be its mean.

What counts most beside the weights is how often two positions are to predict the same token: `Setting.same_target`. In
a sequence of text that is more often than two tokens of the whole text are equal. With the text's own number the
gradient at the embedding is predicted 5 % too low for GPT-2's init and 16 % without depth scaling, with the batch's own
0 and 8 %, with the tokens position by position 0 and 7 % (n_embd 384, 12 layers, 256 tokens, 30 seeds; a single draw
scatters by 15 and 25 %: benchmarks/gradient_on_text.md). On uniform ids it is 2 and 7 % (benchmarks/theory_accuracy.md:
128 tokens): what is left grows with how alike positions are.
"""

from __future__ import annotations

import math

import numpy as np

from initlab.judge.theory.forward import AttentionTrace, MLPTrace, Trace, normalised
from initlab.judge.theory.positions import Array, Grid
from initlab.judge.theory.settings import BlockScales, Setting

Site = tuple[str, int | None]


def gradients(
    setting: Setting, grid: Grid, trace: Trace, own_logit: float, same: float | Array, same_target: float | Array
) -> dict[Site, float]:
    """Follow the mean square of d(sum of the positions' losses)/dx by site; over N^2 for a mean loss of N tokens.

    Args:
        setting: of the model.
        grid: groups of positions.
        trace: of `follow` with `backward`.
        own_logit: mean logit of the token just read.
        same: probability that two positions hold the same token.
        same_target: that they are to predict the same one.
    """
    d, scale, kept = setting.n_embd, setting.residual_scale**2, 1 - setting.dropout
    at_logits, between = _at_logits(setting, grid, trace, own_logit, same, same_target)
    grad: dict[Site, float] = {("logits", None): at_logits / setting.vocab_size}
    weight = setting.logit_scale**2 * setting.unembed
    g, h = np.full(len(trace.q), weight * at_logits), weight * between
    grad["final_norm", None] = grid.mean(g)
    back = setting.ln_f[0] / (trace.q + setting.eps)
    g, h = back * g, np.sqrt(np.outer(back, back)) * h
    for layer in reversed(range(len(setting.blocks))):
        block = setting.blocks[layer]
        grad["resid_post", layer] = grad["mlp_out", layer] = grid.mean(g)
        inner = d * block.mlp_out * scale
        more, more_between = _through_mlp(setting, grid, trace.mlps[layer], layer, inner, g / kept, h, grad)
        if not setting.parallel:
            g, h = g + more, h + more_between
            grad["resid_mid", layer] = grid.mean(g)
        grad["attn_out", layer] = grid.mean(g)
        more_too, between_too = _through_attention(
            setting, grid, block, trace.attentions[layer], layer, d * block.attn_out * scale, g, h, grad
        )
        g, h = g + more_too, h + between_too
        if setting.parallel:
            g, h = g + more, h + more_between
        grad["resid_pre", layer] = grid.mean(g)
    grad["embed", None] = grid.mean(g)
    return grad


def _at_logits(
    setting: Setting, grid: Grid, trace: Trace, own_logit: float, same: float | Array, same_target: float | Array
) -> tuple[float, Array]:
    """E |p - onehot(target)|^2 at a position, and the mean product of two positions.

    p is near 1/V but for the token just read, whose logit a tied head lifts. With p = 1/V exactly the two are
    1 - 1/V and P(same target) - 1/V: the targets make the gradient's correlation between positions.
    """
    V, r = setting.vocab_size, setting.repeat_rate
    m, c = normalised(trace.q, trace.o, setting.ln_f, setting.eps)
    spread = setting.n_embd * setting.unembed * setting.logit_scale**2
    variance = min(spread * grid.mean(m), 50.0)
    peaked = math.exp(variance) / (1 + (math.exp(variance) - 1) / V)  # 1/V-th of it is E of a p^2, 1 at the most
    shared = np.exp(np.minimum(spread * c, 50.0))
    shared = shared / (1 + (shared - 1) / V)
    p = 1 / (1 + (V - 1) * math.exp(min(variance / 2 - own_logit, 700.0)))  # of the token just read
    q = (1 - p) / (V - 1)  # of any other
    at_logits = 1 - 2 * (r * p + (1 - r) * q) + p * p + (V - 1) * q * q * peaked
    hit = same * p + (1 - np.asarray(same)) * q  # what one position gives the other's target
    together = same * (p * p + (V - 1) * q * q * shared)
    apart = (1 - np.asarray(same)) * (2 * p * q + (V - 2) * q * q * shared)
    return at_logits, same_target - 2 * hit + together + apart


def _through_mlp(
    setting: Setting, grid: Grid, back: MLPTrace, layer: int, weight: float, g: Array, h: Array, grad: dict[Site, float]
) -> tuple[Array, Array]:
    """What an MLP adds to the gradient of the stream it reads."""
    grad["mlp_act", layer] = grid.mean(weight * g)
    total, total_between = np.zeros_like(g), np.zeros_like(h)
    for way in back.ways:
        total += way.weight * way.factor
        total_between += way.weight * way.factor_between
    if len(back.ways) == 1:
        grad["mlp_pre", layer] = grid.mean(weight * g * back.ways[0].factor)
    total *= setting.hidden * weight * g
    grad["ln_2", layer] = grid.mean(total)
    total_between *= setting.hidden * weight * h
    return _through_norm(total, total_between, back.scale)


def _through_attention(
    setting: Setting,
    grid: Grid,
    block: BlockScales,
    back: AttentionTrace,
    layer: int,
    weight: float,
    g: Array,
    h: Array,
    grad: dict[Site, float],
) -> tuple[Array, Array]:
    """What attention adds to the gradient of the stream it reads: through its values, its queries and its keys."""
    kept, keys, squares = 1 - setting.dropout, grid.keys, back.squares
    z, z_between = weight * g / kept, weight * h
    grad["attn_z", layer] = grid.mean(z)
    v, v_between = grid.attend_back(z, z_between, squares, kept)
    # A score's gradient is p_ij (g_i v_j - their mean over j): it knows only what the values don't share, and sums
    # to 0 over the keys, so that q feels only what the keys don't share.
    index = np.arange(len(z))
    unshared = setting.score_scale**2 * grid.over_keys(back.own_value * back.own_key) / keys * (1 - squares)
    query = z * unshared * squares
    query_between = z_between * np.sqrt(np.outer(unshared, unshared)) / keys[np.maximum.outer(index, index)]
    key = grid.attend_back(z * back.query * (1 - squares), z_between * back.query_between, squares)[0]
    key = setting.score_scale**2 * key * back.own_value
    grad["v", layer] = grid.mean(v)
    near = block.qkv if block.query_key is None else block.query_key
    total = setting.attended * (block.qkv * v + near * (query + key))
    total_between = setting.attended * (block.qkv * v_between + near * query_between)
    grad["ln_1", layer] = grid.mean(total)
    return _through_norm(total, total_between, back.scale)


def _through_norm(g: Array, h: Array, scale: Array) -> tuple[Array, Array]:
    root = np.sqrt(scale)
    return scale * g, h * root[:, None] * root
