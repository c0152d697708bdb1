"""A setting in, everything that the theory expects of the model out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from initlab.errors import ConfigError
from initlab.judge.theory.backward import Site, gradients
from initlab.judge.theory.forward import Trace, follow
from initlab.judge.theory.losses import first_loss
from initlab.judge.theory.positions import Array, Grid
from initlab.judge.theory.settings import Setting

# std of attention logits. Up to 1, as xavier's, the recursion is right within 5 %; at kaiming's 2 the attention's write
# is predicted at half, and the gradient's growth at twice of what is measured.
STEEP = 1.2


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
    score_std: tuple[float, ...] = ()  # per block, of the attention logits within a row
    entropy_frac: tuple[float, ...] = ()  # per block, mean of the attention entropy / ln(keys)

    @property
    def steep(self) -> bool:
        """Whether a softmax is so far from uniform that what follows from attention is a rough guess."""
        return max(self.score_std, default=0.0) > STEEP

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

    def without(self, site: str) -> Prediction:
        """The same without one site's variances."""
        var, grad = ({at: x for at, x in values.items() if at[0] != site} for values in (self.var, self.grad))
        return replace(self, var=var, grad=grad)


def _ratio(values: dict[Site, float], over: Site, under: Site) -> float:
    return values[over] / values[under] if values[under] > 0 else math.nan


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # weights beyond floats give NaN: no expectation
def predict(
    setting: Setting,
    *,
    exact: bool = False,
    ids: NDArray[np.int64] | None = None,
    targets: NDArray[np.int64] | None = None,
    backward: bool = True,
) -> Prediction:
    """Follow the covariance between positions through the blocks and back; what it implies for logits and first loss.

    Exact as n_embd -> infinity but for three things: which tokens repeat is averaged over (unless `ids` says), a
    softmax favours keys independently of the query, and late positions are grouped (unless `exact`).

    Args:
        setting: of the model and its text.
        exact: every position in a group of its own: O(n_layer T^2) time, and 8 n_layer T^2 bytes for the way back.
        ids: (T,), the tokens of one sequence instead of the text's `sum_p2`; needs `exact`.
        targets: (T,), what the positions of `ids` are to predict.
        backward: gradients too.

    Raises:
        ConfigError: ids without `exact` or targets, or not of the setting's block_size.
    """
    T = setting.block_size
    if ids is not None and (not exact or targets is None or ids.shape != (T,) or targets.shape != (T,)):
        raise ConfigError(f"ids need exact=True, targets, and the setting's block_size: both of shape ({T},)")
    grid = Grid.exact(T) if exact else Grid.of(T)
    same: float | Array = setting.sum_p2
    same_target: float | Array = setting.sum_p2 if setting.same_target is None else setting.same_target
    if ids is not None and targets is not None:
        same, same_target = _equal(ids, setting.sum_p2), _equal(targets, setting.sum_p2)
    trace = follow(setting, grid, same, backward=backward)
    own_logit, logit_std, loss = _logits(setting, grid, trace)
    q, o = trace.q, trace.o
    keys = grid.keys
    return Prediction(
        var=trace.var,
        own_logit=own_logit,
        logit_std=logit_std,
        loss=loss,
        token_cosine=grid.mean_between(o / np.sqrt(np.outer(q, q))) if (q > 0).all() else math.nan,
        grad=gradients(setting, grid, trace, own_logit, same, same_target) if backward else {},
        score_std=tuple(grid.mean(np.sqrt(np.maximum(scores, 0))) for scores in trace.score_var),
        entropy_frac=tuple(_entropy(grid, scores, keys) for scores in trace.score_var),
    )


def _equal(ids: NDArray[np.int64], otherwise: float) -> Array:
    """1 where two positions hold the same token; the diagonal, which is of no pair, as in an average text."""
    same = (ids[:, None] == ids[None, :]).astype(float)
    np.fill_diagonal(same, otherwise)
    return same


def _logits(setting: Setting, grid: Grid, trace: Trace) -> tuple[float, float, float]:
    """Mean logit of the token just read, std of all logits, first loss. Adds final_norm and logits to the trace."""
    d, V, scale = setting.n_embd, setting.vocab_size, setting.logit_scale
    gain, bias = setting.ln_f
    squares = grid.mean(gain * trace.q / (trace.q + setting.eps) + bias)
    trace.var["final_norm", None] = squares
    spread = scale**2 * d * setting.unembed * squares
    own_logit = 0.0
    if setting.tied:  # gains are of one sign, as inits have them
        inverse = grid.mean(1 / np.sqrt(trace.q + setting.eps))
        own_logit = scale * setting.embed_scale * math.sqrt(gain) * d * setting.token * inverse
    trace.var["logits", None] = spread + own_logit**2 * (V - 1) / V**2
    loss = math.nan
    if math.isfinite(spread) and math.isfinite(own_logit):
        loss = first_loss(vocab_size=V, spread=spread, own_logit=own_logit, repeat_rate=setting.repeat_rate)
    return own_logit, math.sqrt(trace.var["logits", None]), loss


def _entropy(grid: Grid, scores: Array, keys: Array) -> float:
    """Mean of entropy / ln(keys) over the rows that see two keys or more; NaN where the scores' variance is above 1.

    A softmax of n Gaussian scores of variance s is s (n - 1) / 2n nats below ln n, to first order in s.
    """
    rows = keys >= 2
    if not rows.any() or (scores[rows] > 1).any():
        return math.nan
    n, s, size = keys[rows], scores[rows], grid.size[rows]
    fraction = 1 - s * (n - 1) / (2 * n * np.log(n))
    return float(fraction @ size / size.sum())
