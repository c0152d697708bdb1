"""A setting in, everything that the theory expects of the model out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from initlab.errors import ConfigError
from initlab.judge import activations
from initlab.judge.theory.backward import gradients
from initlab.judge.theory.forward import Site, Trace, follow
from initlab.judge.theory.losses import first_loss
from initlab.judge.theory.positions import Array, Grid
from initlab.judge.theory.settings import Setting, Stack


@dataclass(frozen=True, slots=True)
class Prediction:
    """Expected variances by (site, layer), and the scalars of the summary table."""

    var: dict[Site, float]
    own_logit: float  # mean logit of the token just read, 0 for an untied head
    logit_std: float
    loss: float  # nats
    token_cosine: float  # mean cosine between the last residual streams of two positions
    # variance of the gradient of the sum of the tokens' losses: over N^2 for a mean over N; empty without targets
    grad: dict[Site, float] = field(default_factory=dict)
    score_std: tuple[float, ...] = ()  # per block, of the attention logits within a row; NaN where that isn't known
    entropy_frac: tuple[float, ...] = ()  # per block, mean of the attention entropy / ln(keys)
    steep_from: int | None = None  # first block whose softmax is so far from uniform that what follows is a rough guess

    @property
    def steep(self) -> bool:
        """Whether a softmax is so far from uniform that what follows from attention is a rough guess: STEEP."""
        return self.steep_from is not None

    @property
    def growth(self) -> float:
        """Variance of the stream after the last block ÷ that of the embedding."""
        return _ratio(self.var, *self._ends()[::-1])

    @property
    def gradient_ratio(self) -> float:
        """Variance of the gradient at the embedding ÷ that after the last block."""
        return _ratio(self.grad, *self._ends())

    def _ends(self) -> tuple[Site, Site]:
        return ("embed", None), ("resid_post", len(self.score_std) - 1)


def _ratio(values: dict[Site, float], over: Site, under: Site) -> float:
    """NaN where one of them isn't known, as of an encoder's stack beside the decoder's."""
    return values.get(over, math.nan) / values[under] if values.get(under, 0.0) > 0 else math.nan


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # weights beyond floats give NaN: no expectation
def predict(
    setting: Setting,
    *,
    exact: bool = False,
    ids: NDArray[np.int64] | None = None,
    targets: NDArray[np.int64] | None = None,
    backward: bool = True,
    strict: bool = False,
) -> Prediction:
    """Follow the covariance between positions through the blocks and back; what it implies for logits and first loss.

    Exact as n_embd -> infinity but for three things: which tokens repeat is averaged over (unless `ids` says), a
    causal softmax favours keys independently of their values, and late positions are grouped (unless `exact`).

    Args:
        setting: of the model and its text.
        exact: every position in a group of its own: O(n_layer T^2) time, and 8 n_layer T^2 bytes for the way back.
        ids: (T,), the tokens of one sequence instead of the text's `sum_p2`; needs `exact`.
        targets: (T,), what the positions of `ids` are to predict.
        backward: gradients too.
        strict: nothing of what a steep attention gives to the stream, and no gradients where there is one; else a rough
            guess.

    Raises:
        ConfigError: ids without `exact` or targets, or not of the setting's block_size.
    """
    text = setting.text
    T = setting.stacks[-1].positions
    if ids is not None and (not exact or targets is None or ids.shape != (T,) or targets.shape != (T,)):
        raise ConfigError(f"ids need exact=True, targets, and the setting's block_size: both of shape ({T},)")
    grids = [_grid(stack, exact=exact) for stack in setting.stacks]
    same: float | Array = text.sum_p2
    same_target: float | Array = text.sum_p2 if text.same_target is None else text.same_target
    if ids is not None and targets is not None:
        same, same_target = _equal(ids, text.sum_p2), _equal(targets, text.sum_p2)
    trace = follow(setting, grids, same, backward=backward, strict=strict)
    read = trace
    if strict and trace.steep:
        # behind the final norm the logits hardly hang on how large the stream is: a rough guess of that is enough
        read = follow(setting, grids, same, backward=False)
    own_logit, logit_std, loss = _logits(setting, read)
    trace.var.update({site: value for site, value in read.var.items() if site[0] == "logits"})
    last = trace.stacks[-1]
    q, o = last.last.q, last.last.o
    backward = backward and not (strict and trace.steep)
    layers = {block.layer: grid for stack, grid in zip(setting.stacks, grids, strict=True) for block in stack.blocks}
    scores = {layer: trace.scores.get(layer, np.full(len(grid.size), np.nan)) for layer, grid in layers.items()}
    return Prediction(
        var={site: value for site, value in trace.var.items() if not math.isnan(value)} if strict else trace.var,
        own_logit=own_logit,
        logit_std=logit_std,
        loss=loss,
        token_cosine=last.grid.mean_between(o / np.sqrt(np.outer(q, q))) if not (q <= 0).any() else math.nan,
        grad=gradients(setting, trace, own_logit, same, same_target) if backward else {},
        score_std=tuple(grid.mean(np.sqrt(np.maximum(scores[layer], 0))) for layer, grid in layers.items()),
        entropy_frac=tuple(
            _entropy(grid, scores[layer], trace.keys.get(layer, grid.size)) for layer, grid in layers.items()
        ),
        steep_from=min(trace.steep, default=None),
    )


def _grid(stack: Stack, *, exact: bool) -> Grid:
    if exact:
        return Grid.exact(stack.positions)
    return Grid.of(stack.positions, stack.window) if stack.ordered else Grid.alike(stack.positions)


def _equal(ids: NDArray[np.int64], otherwise: float) -> Array:
    """1 where two positions hold the same token; the diagonal, which is of no pair, as in an average text."""
    same = (ids[:, None] == ids[None, :]).astype(float)
    np.fill_diagonal(same, otherwise)
    return same


def _logits(setting: Setting, trace: Trace) -> tuple[float, float, float]:
    """Mean logit of the token just read, std of all logits, first loss. Adds the logits to the trace."""
    last = trace.stacks[-1]
    stack, head, V = last.stack, last.stack.head, setting.vocab_size
    if head is None:
        return math.nan, math.nan, math.nan
    scale = stack.logit_scale
    spread = scale**2 * (head.forward * last.grid.mean(last.final.q) + head.bias)
    own_logit = 0.0
    if stack.tied:  # gains are of one sign, as inits have them
        own_logit = scale * head.forward * last.grid.mean(last.own * np.sqrt(last.final_back))
    if stack.logit_cap is not None and math.isfinite(spread):
        each = spread / stack.logit_cap**2
        square, _ = activations.moments("tanh", *[np.array([each])] * 3)
        spread = stack.logit_cap**2 * float(square[0])
        own_logit = stack.logit_cap * math.tanh(own_logit / stack.logit_cap)
    trace.var["logits", None] = spread + own_logit**2 * (V - 1) / V**2
    loss = math.nan
    if math.isfinite(spread) and math.isfinite(own_logit):
        loss = first_loss(vocab_size=V, spread=spread, own_logit=own_logit, repeat_rate=setting.text.repeat_rate)
    return own_logit, math.sqrt(trace.var["logits", None]), loss


def _entropy(grid: Grid, scores: Array, keys: Array) -> float:
    """Mean of entropy / ln(keys) over the rows that see two keys or more; NaN where the scores' variance is above 1.

    A softmax of n Gaussian scores of variance s is s (n - 1) / 2n nats below ln n, to first order in s.
    """
    rows = keys >= 2
    if not rows.any() or not (scores[rows] <= 1).all():
        return math.nan
    n, s, size = keys[rows], scores[rows], grid.size[rows]
    fraction = 1 - s * (n - 1) / (2 * n * np.log(n))
    return float(fraction @ size / size.sum())
