"""Positions of a sequence, alone or in groups, and what attention does to means over them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Grid:
    """Positions of a sequence in groups that are treated alike: singly at first, then in groups that grow.

    A state is the mean square at each group's positions, (G,), and the mean product of two different positions of
    two groups, (G, G). With every position in a group of its own this is the exact T x T recursion.
    """

    size: Array  # positions in each group

    @classmethod
    def of(cls, T: int, window: int | None = None) -> Grid:
        """Choose about 100 groups: 32 single positions, then groups that grow by 6 % (error below 0.5 %).

        Args:
            T: positions.
            window: most that one sees; groups stay small beside it, and are 500 at the most.
        """
        largest = T if window is None else max(window / 8, T / 500, 1)
        edges = [0]
        while edges[-1] < T:
            edges.append(min(T, edges[-1] + round(min(largest, max(1, round(0.06 * (edges[-1] - 16)))))))
        return cls(np.diff(np.array(edges, float)))

    @classmethod
    def exact(cls, T: int) -> Grid:
        """Every position in a group of its own."""
        return cls(np.ones(T))

    @classmethod
    def alike(cls, T: int) -> Grid:
        """One group: every position sees the same."""
        return cls(np.array([float(T)]))

    @property
    def typical(self) -> Array:
        """The middle position of each group, the first being 1."""
        return np.asarray(np.cumsum(self.size) - self.size + (self.size + 1) / 2)

    def mean(self, values: Array) -> float:
        """Mean over positions."""
        return float(values @ self.size / self.size.sum())

    def mean_between(self, values: Array) -> float:
        """Mean over pairs of different positions."""
        pairs = np.outer(self.size, self.size) - np.diag(self.size)
        total = pairs.sum()
        return float((values * pairs).sum() / total) if total else math.nan


class View:
    """Which keys the queries of attention see: those of an interval that never moves back from query to query.

    Args:
        queries: positions that look.
        keys: positions that are looked at; None: the same.
        causal: up to their own position.
        window: most of them, None for no limit: the last ones, or without `causal` those around.
    """

    def __init__(self, queries: Grid, keys: Grid | None = None, *, causal: bool = True, window: int | None = None):
        own = keys is None
        keys = queries if keys is None else keys
        start, T = np.cumsum(keys.size) - keys.size, keys.size.sum()
        at = queries.typical
        stop, first = (at, np.zeros_like(at)) if causal else (np.full_like(at, T), np.zeros_like(at))
        if window is not None and window < T:
            stop = stop if causal else np.minimum(T, at + (window - 1) / 2)
            first = np.maximum(0.0, at - window if causal else at - (window + 1) / 2)
        self.sizes = queries.size, keys.size
        self.upto = np.clip(stop[:, None] - start, 0, keys.size)
        # most see from the first position on: nothing is left out before it
        self.before = np.clip(first[:, None] - start, 0, keys.size) if first.any() else None
        self.running = own and causal and self.before is None and len(at) == T

    @cached_property
    def seen(self) -> Array:
        """(Q, K): how many positions of each group of keys a typical query of a group sees."""
        return self.upto if self.before is None else self.upto - self.before

    @cached_property
    def keys(self) -> Array:
        """Positions that a typical query of each group sees."""
        return np.asarray(self.seen.sum(1))

    @cached_property
    def shared(self) -> Array:
        """(Q, Q): sum over the keys of the product of two queries' weights, where both look evenly at all they see."""
        return self._common_keys(np.ones(len(self.sizes[1]))) / np.outer(self.keys, self.keys)

    @cached_property
    def _back(self) -> float | Array:
        return self.sizes[0][:, None] / self.sizes[1]

    @cached_property
    def _seen_by(self) -> Array:
        return np.ascontiguousarray((self.seen * self._back).T)

    def over_keys(self, values: Array) -> Array:
        """Sum over the positions that each query sees: (Q,) of (K,), or (Q, Q) of (K, K) for pairs of queries."""
        if self.running:
            return _running(values)
        once = self.seen @ values
        return np.asarray(once if values.ndim == 1 else once @ self.seen.T)

    def over_queries(self, values: Array) -> Array:
        """Sum over the positions that see each key; shapes as in `over_keys`."""
        if self.running:
            return _running(values[::-1] if values.ndim == 1 else values[::-1, ::-1])[
                (slice(None, None, -1),) * values.ndim
            ]
        once = self._seen_by @ values
        return np.asarray(once if values.ndim == 1 else once @ self._seen_by.T)

    def _common_keys(self, values: Array) -> Array:
        """(Q, Q): sum over the keys that two queries both see."""
        upto = _running(values) if self.running else self.upto @ values
        first, last = _corners(len(upto))
        if self.before is None:
            return np.asarray(upto[first])
        return np.asarray(np.maximum(upto[first] - (self.before @ values)[last], 0))

    def _common_queries(self, values: Array) -> Array:
        """(K, K): sum over the queries that see two keys both."""
        reached = self.over_queries(values) if self.before is None else (self.upto * self._back).T @ values
        first, last = _corners(len(reached))
        if self.before is None:
            return np.asarray(reached[last])
        return np.asarray(np.maximum(reached[last] - ((self.before * self._back).T @ values)[first], 0))

    def attend(self, v: Array, between: Array, squares: Array, kept: float = 1.0) -> tuple[Array, Array]:
        """Average by attention: a query takes the values that it sees, unequally.

        Args:
            v: mean squares of the values, (K,).
            between: their mean products, (K, K).
            squares: (Q,), sum of the squared attention weights of a query; see `peakedness`.
            kept: share of the attention weights that dropout keeps.
        """
        keys = self.keys
        out = self.over_keys(between)
        # the same token on both sides counts with its mean square instead of the product of two
        own = v - np.diag(between)
        weights = np.outer(keys, keys)
        alone = self.over_keys(own) / keys * squares + (1 / kept - 1) * squares * self.over_keys(v) / keys
        mean_square = np.diag(out) / np.diag(weights) + alone
        out = out + self._common_keys(own)
        out /= weights
        return mean_square, out

    def attend_back(self, g: Array, between: Array, squares: Array, kept: float = 1.0) -> tuple[Array, Array]:
        """The transpose: gradients at the values, from those at what attention gave. Arguments as in `attend`."""
        keys = self.keys
        out = self.over_queries(between / np.outer(keys, keys))
        excess = g - np.diag(between)
        alone = self.over_queries((excess + (1 / kept - 1) * g) * squares / keys)
        mean_square = np.diag(out) + alone
        out = out + self._common_queries(excess / keys**2)
        return mean_square, out


def peakedness(scores: Array, keys: Array) -> Array:
    """Sum of the squared weights of a softmax over `keys` independent Gaussian scores of the given variance.

    e^s/n for many keys (E[e^2x]/E[e^x]^2), 1 for a single one.
    """
    peaked = np.exp(np.clip(scores, 0, 50))
    return np.asarray(peaked / (keys - 1 + peaked))


def _corners(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of every pair of groups the earlier and the later one."""
    index = np.arange(n)
    return np.minimum.outer(index, index), np.maximum.outer(index, index)


def _running(values: Array) -> Array:
    """Running sums along every axis. Adding row to row is ten times as fast as numpy's cumsum along the first axis."""
    if values.ndim == 1:
        return np.cumsum(values)
    out = np.cumsum(values, 1)
    for row in range(1, len(out)):
        out[row] += out[row - 1]
    return out
