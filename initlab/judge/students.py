"""Student's t of a mean over a few seeds: quantiles, intervals, p-values, seeds that would separate it from 0."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.05  # of a two-sided test; intervals cover 1 − LEVEL
MOST_SEEDS = 100  # beyond, more seeds are no plan


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean of paired differences (or of anything) over `n` seeds; `sd` is NaN of a single one."""

    n: int
    value: float
    sd: float

    @classmethod
    def of(cls, values: ArrayLike) -> Mean:
        """Of the values that are finite."""
        given = np.asarray(values, dtype=float)
        given = given[np.isfinite(given)]
        if not len(given):
            return cls(0, math.nan, math.nan)
        return cls(len(given), float(given.mean()), float(given.std(ddof=1)) if len(given) > 1 else math.nan)

    @property
    def p(self) -> float:
        """Two-sided p-value of the mean being 0; NaN of a single seed."""
        if self.n < 2:
            return math.nan
        if self.sd == 0:
            return 0.0 if self.value else 1.0
        from scipy.special import stdtr  # type: ignore[import-untyped]

        return float(2 * stdtr(self.n - 1, -abs(self.value) / self.sd * math.sqrt(self.n)))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Low and high of the interval that covers 1 − level; NaN of a single seed."""
        if self.n < 2:
            return math.nan, math.nan
        half = t_quantile(self.n - 1, level) * self.sd / math.sqrt(self.n)
        return self.value - half, self.value + half

    def seeds_needed(self, level: float = LEVEL) -> float:
        """The fewest seeds with which this mean and sd would be separated from 0; inf if more than MOST_SEEDS.

        Half of the repetitions with so many seeds would still miss it: it is where the interval's end touches 0.
        """
        if self.n < 2:
            return math.nan
        if self.sd == 0:
            return float(self.n) if self.value else math.inf
        counts = np.arange(2, MOST_SEEDS + 1)
        from scipy.special import stdtrit

        enough = abs(self.value) / self.sd * np.sqrt(counts) > stdtrit(counts - 1.0, 1 - level / 2)
        return float(counts[enough][0]) if enough.any() else math.inf


def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """Quantile 1 − level/2 of Student's t: what half an interval is, in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - level / 2))


def holm(p: ArrayLike, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Holm's step-down (Holm 1979): p-values adjusted for their number, and the level that each was held to.

    The k-th smallest of m is held to level/(m − k + 1) as long as all before were below theirs; from the first that
    wasn't on, the level stays, so that `p < level of its rank` and `adjusted p < level` are the same statement. A NaN
    is no test, and isn't counted.
    """
    given = np.asarray(p, dtype=float)
    adjusted, levels = np.full(len(given), math.nan), np.full(len(given), math.nan)
    tested = np.flatnonzero(~np.isnan(given))
    order = tested[np.argsort(given[tested], kind="stable")]
    highest, divisor, open_ = 0.0, len(order), True
    for place, index in enumerate(order):
        left = len(order) - place
        if open_:
            divisor = left
            open_ = bool(given[index] <= level / left)
        highest = max(highest, min(1.0, left * float(given[index])))
        adjusted[index], levels[index] = highest, level / divisor
    return adjusted, levels
