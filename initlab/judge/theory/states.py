"""What is known of a tensor of a pass: its mean square, how alike its positions are; and what layers do to that."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from initlab.judge.theory.positions import Array, Grid
from initlab.judge.theory.settings import Linear, Norm, Stack


@dataclass(frozen=True, slots=True)
class State:
    """A tensor, by groups of positions. NaN where nothing is known; what doesn't depend on it goes on."""

    q: Array  # (G,), mean square at a position
    o: Array  # (G, G), mean product of two different positions
    mean: Array | None = None  # (G,), over the features; None where it is 0, as of what a matrix gives

    def var(self, grid: Grid) -> float:
        """Variance over every element."""
        return grid.mean(self.q) - (0.0 if self.mean is None else grid.mean(self.mean) ** 2)

    def times(self, square: float, kept: float = 1.0) -> State:
        """Multiplied with independent numbers of that mean square, behind a dropout that keeps this share.

        Dropout keeps the mean and divides the mean square by what it keeps; two positions are masked independently.
        """
        mean = None if self.mean is None else self.mean * math.sqrt(square)
        return State(self.q * square / kept, self.o * square, mean)

    def plus(self, other: State) -> State:
        """The sum with one that is independent of it."""
        if self.mean is None or other.mean is None:
            mean = self.mean if other.mean is None else other.mean
        else:
            mean = self.mean + other.mean
        return State(self.q + other.q, self.o + other.o, mean)

    def through(self, matrix: Linear) -> State:
        """What a matrix gives."""
        return State(matrix.forward * self.q + matrix.bias, matrix.forward * self.o + matrix.bias)


def normalised(x: State, norm: Norm | None) -> tuple[State, Array | float]:
    """What a norm gives, and what the mean square of its gradient is multiplied with on the way back."""
    if norm is None:
        return x, 1.0
    q, o, mean = x.q, x.o, x.mean
    if mean is not None and norm.centred:
        q, o, mean = q - mean**2, o - np.outer(mean, mean), None
    back = norm.gain / (q + norm.eps)
    root = np.sqrt(back)
    # whatever came in
    out = np.where(np.isnan(q), norm.gain, norm.gain * q / (q + norm.eps)) + norm.bias
    return State(out, o * root[:, None] * root + norm.bias, None if mean is None else mean * root), back


def embedding(stack: Stack, grid: Grid, same: float | Array) -> tuple[State, Array | float]:
    """What the first block reads, and what its norm multiplies squares with.

    Args:
        stack: that it begins.
        grid: its positions.
        same: probability that two positions hold the same token.
    """
    G = len(grid.size)
    if stack.terms is None:
        square, together = stack.begun
        return State(np.full(G, square), np.full((G, G), square * together)), 1.0
    q, o, mean = np.zeros(G), np.zeros((G, G)), None
    for term in stack.terms:
        square = term.square * term.scale**2
        if term.sinusoid:
            other = _sinusoid(grid, stack.n_embd, square)
            q, o, mean = q + other.q, o + other.o, other.mean
            continue
        q = q + square
        if term.kind != "position":  # rows of a table are independent
            o = o + square * (same if term.kind == "token" else 1.0)
    x, back = normalised(State(q, o, mean).times(stack.embed_scale**2), stack.embed_norm)
    return x.times(1.0, 1 - stack.dropout), back


def _sinusoid(grid: Grid, d: int, square: float) -> State:
    """Positions as sines and cosines of frequencies from 1 to 1/10000; neighbours are much alike."""
    at = grid.typical - 1
    frequencies = 10000.0 ** (-np.arange(0, d, 2) / d)
    angles = at[:, None] * frequencies
    sines, cosines = np.sin(angles), np.cos(angles)
    o = square * (cosines @ cosines.T + sines @ sines.T) / len(frequencies)
    if len(at) > 1:  # the product of two different positions of one group stands for all that a query compares
        np.fill_diagonal(o, (o.sum(1) - np.diag(o)) / (len(at) - 1))
    mean = math.sqrt(2 * square) * (sines + cosines).mean(1) / 2
    return State(np.full(len(at), square), o, mean)
