"""Whether one tensor is the sum of others: the arithmetic behind discovery, on samples of the tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAMPLE = 4096  # elements of each tensor; a linear relation among so many numbers isn't there by chance
CHANNELS = 64  # of them, so that each channel is seen in many rows and can be fitted by itself
MOST_TERMS = 3  # attention, a mixer and an MLP in parallel
LATEST = 16  # outputs that are tried as terms: enough for a block, and 696 combinations
FEWEST_ROWS = 8  # for a fit per channel: one number explains eight

Array = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Fit:
    """target = keep·base + the sum of scales[i]·outputs[terms[i]], to rounding.

    With `per_channel` the one scale is a vector; its effect on the output's rms is given.
    """

    terms: tuple[int, ...]
    scales: tuple[float, ...]
    keep: float = 1.0
    per_channel: bool = False


def sample(tensor: Tensor) -> Array:
    """Take the same elements of every tensor of one shape, (rows, channels); several rows of each channel."""
    flat = tensor.detach().reshape(-1, tensor.shape[-1] if tensor.dim() and tensor.numel() else 1)
    generator = torch.Generator().manual_seed(flat.numel())
    for dim, most in ((1, CHANNELS), (0, SAMPLE // min(CHANNELS, flat.shape[1]))):
        if flat.shape[dim] > most:
            index = torch.randperm(flat.shape[dim], generator=generator)[:most]
            flat = flat.index_select(dim, index.to(flat.device))
    return flat.double().cpu().numpy()


def fit_sum(target: Array, base: Array, outputs: list[Array], eps: float) -> Fit | None:
    """Solve target = base + up to three outputs, each times a number; None where no such sum reproduces the target.

    Args:
        target: sample of the stream, (rows, channels), see `sample`.
        base: of an earlier state of it.
        outputs: samples of what modules gave, of the same shape.
        eps: of the coarser dtype of target and base.
    """
    rest = (target - base).ravel()
    if not np.isfinite(rest).all():
        return None
    limit = min(_rounding(target, base, eps), 0.1 * _norm(rest))
    for terms, scales in _solutions(rest, [], outputs, limit):
        # a plain sum in low precision fits with a scale that is off by rounding
        plain = np.abs(scales - 1) < 8 * eps
        return Fit(terms, tuple(np.where(plain, 1.0, scales).tolist()))
    return None


def fit_scaled_sum(target: Array, base: Array, outputs: list[Array], eps: float, *, alone: bool) -> Fit | None:
    """Solve target = keep·base + up to three outputs, each times a number.

    Args:
        target: sample of the stream, (rows, channels), see `sample`.
        base: of an earlier state of it.
        outputs: samples of what modules gave, of the same shape.
        eps: of the coarser dtype of target and base.
        alone: also accept keep·base with no output.
    """
    if not (np.isfinite(target).all() and np.isfinite(base).all()) or not base.any():
        return None
    limit, size = _rounding(target, base, eps), _norm(target)
    for terms, scales in _solutions(target.ravel(), [base.ravel()], outputs, limit):
        written = target - scales[0] * base
        left = written - sum(scale * outputs[term] for term, scale in zip(terms, scales[1:], strict=True))
        # the base must be seen in the sum, or a branch that adds up its own parts would pass for the stream; and a
        # fit that explains less than most of what was written explains nothing
        if abs(scales[0]) * _norm(base) > 0.01 * size and _norm(left) < 0.1 * _norm(written):
            return Fit(terms, tuple(scales[1:].tolist()), float(scales[0]))
    keep = float(np.vdot(base, target) / np.vdot(base, base))
    one_rounding = eps * size
    return Fit((), (), keep) if alone and keep and _norm(target - keep * base) <= one_rounding else None


def fit_channels(target: Array, base: Array, outputs: list[Array], eps: float) -> Fit | None:
    """Solve target = base + output times one number for each channel, as a LayerScale that is no module."""
    rest = target - base
    if not np.isfinite(rest).all() or len(rest) < FEWEST_ROWS:
        return None
    limit = min(_rounding(target, base, eps), 0.1 * _norm(rest))
    for place in _usable(outputs):
        output = outputs[place]
        power = np.square(output).sum(0)
        scales = (rest * output).sum(0) / np.where(power > 0, power, 1)
        if _norm(rest - scales * output) <= limit:
            return Fit((place,), (_norm(scales * output) / _norm(output),), per_channel=True)
    return None


def _solutions(
    rest: Array, fixed: list[Array], outputs: list[Array], limit: float
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Combinations of outputs that, with the fixed columns, give `rest` to within `limit`, and all scales: the fewest
    terms and the latest outputs first. Combinations are screened by inner products, then solved exactly."""
    places = _usable(outputs)
    if not places or not rest.any():
        return
    matrix = np.stack([*fixed, *(outputs[place].ravel() for place in places)], axis=1)
    columns = matrix / np.linalg.norm(matrix, axis=0)
    gram, along = columns.T @ columns, columns.T @ rest
    total = float(rest @ rest)
    always = tuple(range(len(fixed)))
    for count in range(1, MOST_TERMS + 1):
        chosen = [always + some for some in combinations(range(len(fixed), matrix.shape[1]), count)]
        if not chosen:
            break
        index = np.array(chosen)
        # the ridge keeps outputs that equal each other solvable; screening in squares is good to about 1e-10
        inner = gram[index[:, :, None], index[:, None, :]] + 1e-13 * np.eye(index.shape[1])
        explained = (np.linalg.solve(inner, along[index][..., None])[..., 0] * along[index]).sum(1)
        for row in np.flatnonzero(total - explained <= 2 * limit**2 + 1e-9 * total):
            used = matrix[:, index[row]]
            scales, *_ = np.linalg.lstsq(used, rest, rcond=None)
            if _norm(rest - used @ scales) <= limit:
                yield tuple(places[i - len(fixed)] for i in index[row][len(fixed) :]), scales


def _usable(outputs: list[Array]) -> list[int]:
    """Places of the outputs that could be terms, latest first."""
    return [i for i, output in enumerate(outputs) if output.any() and np.isfinite(output).all()][: -LATEST - 1 : -1]


def _rounding(target: Array, base: Array, eps: float) -> float:
    """What rounding leaves of an exact sum, at most: one rounding changes a tensor's norm by a quarter of eps, a sum of
    scaled terms is rounded a few times, and wider would let a norm of the stream pass for the stream in bfloat16."""
    eps = max(eps, 1e-13)  # the arithmetic here is in float64 itself
    return eps * (_norm(target) + _norm(base))


def _norm(values: Array) -> float:
    return float(np.linalg.norm(values))
