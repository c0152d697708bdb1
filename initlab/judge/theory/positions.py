"""Positions of a sequence, alone or in groups, and what causal attention does to means over them."""

from __future__ import annotations

import math
from dataclasses import dataclass

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

    @classmethod
    def exact(cls, T: int) -> Grid:
        """Every position in a group of its own."""
        return cls(np.ones(T), np.tri(T))

    @property
    def single(self) -> bool:
        """Whether every position is by itself, so that sums over what is seen are running sums."""
        return len(self.size) == self.size.sum()

    @property
    def keys(self) -> Array:
        """Positions that a typical position of each group sees."""
        return np.asarray(self.seen.sum(1))

    def mean(self, values: Array) -> float:
        """Mean over positions."""
        return float(values @ self.size / self.size.sum())

    def mean_between(self, values: Array) -> float:
        """Mean over pairs of different positions."""
        pairs = np.outer(self.size, self.size) - np.diag(self.size)
        total = pairs.sum()
        return float((values * pairs).sum() / total) if total else math.nan

    def over_keys(self, values: Array) -> Array:
        """Sum over the positions that each query sees: (G,) of (G,), or (G, G) of (G, G) for pairs of queries."""
        if self.single:
            return _running(values)
        once = self.seen @ values
        return np.asarray(once if values.ndim == 1 else once @ self.seen.T)

    def over_queries(self, values: Array) -> Array:
        """Sum over the positions that see each key; shapes as in `over_keys`."""
        if self.single:
            return _running(values[::-1] if values.ndim == 1 else values[::-1, ::-1])[
                (slice(None, None, -1),) * values.ndim
            ]
        seen_by = (self.seen * (self.size[:, None] / self.size)).T
        once = seen_by @ values
        return np.asarray(once if values.ndim == 1 else once @ seen_by.T)

    def attend(self, v: Array, between: Array, squares: Array, kept: float = 1.0) -> tuple[Array, Array]:
        """Average by causal attention: position i takes the i values up to its own, unequally.

        Args:
            v: mean squares of the values, (G,).
            between: their mean products, (G, G).
            squares: (G,), sum of the squared attention weights of a query; see `peakedness`.
            kept: share of the attention weights that dropout keeps.
        """
        keys = self.keys
        out = self.over_keys(between)
        # the same token on both sides counts with its mean square instead of the product of two
        excess = self.over_keys(v - np.diag(between))
        index = np.arange(len(v))
        weights = np.outer(keys, keys)
        alone = excess / keys * squares + (1 / kept - 1) * squares * self.over_keys(v) / keys
        mean_square = np.diag(out) / np.diag(weights) + alone
        out = out + excess[np.minimum.outer(index, index)]
        out /= weights
        return mean_square, out

    def attend_back(self, g: Array, between: Array, squares: Array, kept: float = 1.0) -> tuple[Array, Array]:
        """The transpose: gradients at the values, from those at what attention gave. Arguments as in `attend`."""
        keys = self.keys
        out = self.over_queries(between / np.outer(keys, keys))
        excess = g - np.diag(between)
        index = np.arange(len(g))
        alone = self.over_queries((excess + (1 / kept - 1) * g) * squares / keys)
        mean_square = np.diag(out) + alone
        out = out + self.over_queries(excess / keys**2)[np.maximum.outer(index, index)]
        return mean_square, out


def peakedness(scores: Array, keys: Array) -> Array:
    """Sum of the squared weights of a softmax over `keys` independent Gaussian scores of the given variance.

    e^s/n for many keys (E[e^2x]/E[e^x]^2), 1 for a single one.
    """
    peaked = np.exp(np.clip(scores, 0, 50))
    return np.asarray(peaked / (keys - 1 + peaked))


def _running(values: Array) -> Array:
    """Running sums along every axis. Adding row to row is ten times as fast as numpy's cumsum along the first axis."""
    if values.ndim == 1:
        return np.cumsum(values)
    out = np.cumsum(values, 1)
    for row in range(1, len(out)):
        out[row] += out[row - 1]
    return out
