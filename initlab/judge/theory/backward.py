"""The backward recursion: the covariance of the gradient between positions, from the loss to the embedding.

Paths: through the values and the MLP in full, through q and k to leading order, as if different positions were
independent but for what all of them share. That is enough for the stream, whose gradient hardly comes that way, but
not for q and k themselves, which get no prediction: their gradients feed on what little else positions have in common.

Neglected: the 1/n_embd share that a norm takes away; widths too small for the positions' covariance to be its mean.

What counts most beside the weights is how often two positions are to predict the same token: `same_target`. In
a sequence of text that is more often than two tokens of the whole text are equal. With the text's own number the
gradient at the embedding is predicted 5 % too low for GPT-2's init and 16 % without depth scaling, with the batch's own
0 and 8 %, with the tokens position by position 0 and 7 % (n_embd 384, 12 layers, 256 tokens, 30 seeds; a single draw
scatters by 15 and 25 %: benchmarks/gradient_on_text.md). On uniform ids it is 2 and 7 % (benchmarks/theory_accuracy.md:
128 tokens): what is left grows with how alike positions are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from initlab.judge import activations
from initlab.judge.theory.forward import AttentionTrace, BranchTrace, MLPTrace, Site, StackTrace, Trace, UpdateTrace
from initlab.judge.theory.positions import Array
from initlab.judge.theory.settings import MLP, Attention, Linear, Setting


@dataclass(frozen=True, slots=True)
class Gradient:
    """Of a tensor, by groups of positions; NaN where it isn't known."""

    g: Array  # (G,), mean square at a position
    h: Array  # (G, G), mean product of two different positions

    def times(self, square: Array | float, kept: float = 1.0) -> Gradient:
        """Back through a factor of that mean square, one for all positions or one each; and through a dropout."""
        root = np.sqrt(square)
        both = root[:, None] * root if isinstance(root, np.ndarray) and root.ndim else root * root
        return Gradient(square * self.g / kept, both * self.h)

    def plus(self, other: Gradient) -> Gradient:
        """The sum of what comes two ways."""
        return Gradient(self.g + other.g, self.h + other.h)


@dataclass(slots=True)
class _Back:
    """What a way back gathers."""

    grad: dict[Site, float] = field(default_factory=dict)
    crossing: dict[int, Gradient] = field(default_factory=dict)  # of a stack's final state, from those that read it


def gradients(
    setting: Setting, trace: Trace, own_logit: float, same: float | Array, same_target: float | Array
) -> dict[Site, float]:
    """Follow the mean square of d(sum of the positions' losses)/dx by site; over N^2 for a mean loss of N tokens.

    Args:
        setting: of the model.
        trace: of `follow` with `backward`.
        own_logit: mean logit of the token just read.
        same: probability that two positions hold the same token.
        same_target: that they are to predict the same one.
    """
    last = trace.stacks[-1]
    head = last.stack.head
    if head is None or head.fan_out < 2:
        return {}
    at_logits, own, between = _at_logits(last, head, setting.text.repeat_rate, own_logit, same, same_target)
    found = _Back({("logits", None): at_logits / head.fan_out})
    weight = last.stack.logit_scale**2 * head.square
    start = Gradient(np.full(len(last.last.q), weight * own), weight * between)
    if last.stack.final_norm is not None:
        found.grad["final_norm", None] = last.grid.mean(start.g)
    found.crossing[len(trace.stacks) - 1] = start
    for number in reversed(range(len(trace.stacks))):
        if number in found.crossing:
            _through_stack(trace.stacks[number], found, found.crossing[number], embeds=not number)
    return {site: value for site, value in found.grad.items() if not math.isnan(value)}


def _at_logits(
    last: StackTrace, head: Linear, r: float, own_logit: float, same: float | Array, same_target: float | Array
) -> tuple[float, float, Array]:
    """E |p - onehot(target)|^2 at a position; what a soft cap leaves of it, and of the mean product of two positions.

    `r` is the probability that the target is the token just read.
    p is near 1/V but for the token just read, whose logit a tied head lifts. With p = 1/V exactly the two are
    1 - 1/V and P(same target) - 1/V: the targets make the gradient's correlation between positions.
    """
    V, slope = head.fan_out, 1.0
    slope_between: Array | float = 1.0
    spread = head.forward * last.stack.logit_scale**2
    variance, covariance = spread * last.grid.mean(last.final.q), spread * last.final.o
    if (cap := last.stack.logit_cap) is not None and math.isfinite(variance):
        each = np.array([variance / cap**2])
        square, slopes = activations.moments("tanh", each, each, each)
        slope_between = activations.moments("tanh", each, each, np.minimum(covariance / cap**2, each))[1]
        factor = cap**2 * float(square[0]) / variance if variance else 1.0
        variance, covariance, slope = variance * factor, covariance * factor, float(slopes[0])
    variance = min(variance, 50.0)
    peaked = math.exp(variance) / (1 + (math.exp(variance) - 1) / V)  # 1/V-th of it is E of a p^2, 1 at the most
    shared = np.exp(np.minimum(covariance, 50.0))
    shared = shared / (1 + (shared - 1) / V)
    p = 1 / (1 + (V - 1) * math.exp(min(variance / 2 - own_logit, 700.0)))  # of the token just read
    q = (1 - p) / (V - 1)  # of any other
    at_logits = 1 - 2 * (r * p + (1 - r) * q) + p * p + (V - 1) * q * q * peaked
    hit = same * p + (1 - np.asarray(same)) * q  # what one position gives the other's target
    together = same * (p * p + (V - 1) * q * q * shared)
    apart = (1 - np.asarray(same)) * (2 * p * q + (V - 2) * q * q * shared)
    return at_logits, slope * at_logits, slope_between * (same_target - 2 * hit + together + apart)


def _through_stack(stack: StackTrace, found: _Back, final: Gradient, *, embeds: bool) -> None:
    """From what reads a stack to its embedding."""
    grad, mean = found.grad, stack.grid.mean
    x = final.times(stack.final_back)
    for block, updates in stack.back():
        layer = block.layer
        grad["resid_post", layer] = mean(x.g)
        for place in reversed(range(len(updates))):
            x = _through_update(stack, updates[place], layer, x, found)
            if place == 1 and len(updates) == 2:
                # behind the first update's norm, if it has one; the site is before it
                middle = x.times(updates[0].back)
                grad["resid_mid", layer] = mean(middle.g)
        grad["resid_pre", layer] = mean(x.g)
    if embeds:
        grad["embed", None] = mean(x.g)


def _through_update(stack: StackTrace, traced: UpdateTrace, layer: int, x: Gradient, found: _Back) -> Gradient:
    """From a state of the stream to the one before."""
    norm = traced.update.norm
    if norm is not None and norm.site:
        found.grad[norm.site, layer] = stack.grid.mean(x.g)
    total = x.times(traced.back)
    before = total.times(traced.update.keep**2) if traced.update.keep != 1 else total
    for branch in traced.branches:
        before = before.plus(_through_branch(stack, branch, layer, total, found))
    return before


def _through_branch(stack: StackTrace, traced: BranchTrace, layer: int, x: Gradient, found: _Back) -> Gradient:
    """What a branch adds to the gradient of the stream it reads."""
    branch, mean = traced.branch, stack.grid.mean
    if branch.seen:
        found.grad[branch.site, layer] = mean(x.g)
    write = x.times(branch.square, 1 - branch.dropout)
    if branch.post is not None and branch.post.site:
        found.grad[branch.post.site, layer] = mean(write.g)
    write = write.times(traced.post_back)
    body = branch.body
    if isinstance(body, Attention) and isinstance(traced.body, AttentionTrace):
        inside = _through_attention(stack, body, traced.body, layer, write, found, seen=branch.seen)
    elif isinstance(body, MLP) and isinstance(traced.body, MLPTrace):
        inside = _through_mlp(stack, body, traced.body, layer, write, found, seen=branch.seen)
    else:
        return x.times(math.nan)
    if branch.norm is not None and branch.norm.site:
        place = (branch.norm.site, layer)  # branches in parallel may share it
        found.grad[place] = found.grad.get(place, 0.0) + mean(inside.g)
    return inside.times(traced.back)


def _through_mlp(
    stack: StackTrace, mlp: MLP, back: MLPTrace, layer: int, x: Gradient, found: _Back, *, seen: bool
) -> Gradient:
    """From what an MLP gives to what it reads."""
    act = x.times(mlp.out.backward)
    if seen:
        found.grad["mlp_act", layer] = stack.grid.mean(act.g)
    act = act.times(back.inner_back, 1 - mlp.dropout)
    total, total_between = np.zeros_like(act.g), np.zeros_like(act.h)
    for way in back.ways:
        total += way.matrix.backward * way.factor
        total_between += way.matrix.backward * way.factor_between
        if seen:
            found.grad[way.site, layer] = stack.grid.mean(act.g * way.factor)
    return Gradient(total * act.g, total_between * act.h)


def _through_attention(
    stack: StackTrace, attention: Attention, back: AttentionTrace, layer: int, x: Gradient, found: _Back, *, seen: bool
) -> Gradient:
    """From what attention gives to what it reads: through its values, its queries and its keys."""
    z = x if attention.out is None else x.times(attention.out.backward)
    seen = seen and attention.cross is None
    if seen:
        found.grad["attn_z", layer] = stack.grid.mean(z.g)
    z = z.times(back.out_back).times(attention.head_square)
    view, keys, squares, kept = back.view, back.view.keys, back.squares, 1 - attention.dropout
    v, v_between = view.attend_back(z.g, z.h, squares, kept)
    # A score's gradient is p_ij (g_i v_j - their mean over j): it knows only what the values don't share, and sums
    # to 0 over the keys, so that q feels only what the keys don't share.
    heads, size = attention.n_head, attention.head_size
    scale = attention.score_scale**2 * attention.value.fan_out / attention.n_kv_head
    flat = back.slope * (1 - squares)
    unshared = scale * view.over_keys(back.own_value * back.own_key) / keys * flat
    query = Gradient(z.g * unshared * squares, z.h * np.sqrt(np.outer(unshared, unshared)) * view.shared)
    query = query.times(back.query_back).times(heads * size * attention.query.square)
    key = view.attend_back(z.g * back.query * flat, z.h * back.query_between, squares)[0]
    key = scale * key * back.own_value * back.key_back
    group = heads / attention.n_kv_head  # queries that share a key and a value
    if seen:
        found.grad["v", layer] = stack.grid.mean(v) * group
    kv = Gradient(
        group * (attention.value.backward * v + attention.key.backward * key),
        group * attention.value.backward * v_between,
    )
    if attention.cross is None:
        return query.plus(kv)
    other = found.crossing.get(attention.cross)
    found.crossing[attention.cross] = kv if other is None else other.plus(kv)
    return query
