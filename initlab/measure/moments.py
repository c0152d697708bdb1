"""Statistics of one tensor in as few passes as the hardware allows.

On the CPU a sum, a dot product and aminmax are an order of magnitude cheaper than torch.var and friends, which are
not vectorised over a flat tensor; on CUDA one kernel of our own reads it once (see `initlab.measure.kernels`), and
where there is no Triton, and on other devices, torch's do. Nothing is kept of the tensor. On a device nothing is read
back before `read`, so that a whole probe synchronises once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from initlab.schema import FORMATS, RECORDS

Preset = Literal["light", "full"]
PRESETS: tuple[Preset, ...] = ("light", "full")

# Fractions come from at most this many elements (standard error of a share p: sqrt(p(1-p)/16384), at most 0.004), but
# where our own kernel counts: there they are of all.
SAMPLE = 16384

_PIECE = 1 << 18  # elements: 1 MiB of float32, which stays in an L2 cache

_DTYPES = dict(zip(FORMATS, (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2), strict=True))
_EDGES = [(torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max) for dtype in _DTYPES.values()]
# numel is the first of `light`; std and rms follow from mean and var
_LIGHT = tuple(name for name, column in RECORDS.items() if column.taken == "light")
_FULL = tuple(name for name, column in RECORDS.items() if column.taken == "full")


@dataclass(frozen=True, slots=True)
class _Place:
    """Of a tensor among those that the kernels read."""

    place: int
    numel: int


class Moments:
    """Collects statistics tensor by tensor; `read` gives them back in the same order.

    Statistics of a tensor that holds NaN or infinity are themselves non-finite; `frac_nonfinite` says how much of it.
    """

    def __init__(self, preset: Preset = "full"):
        self.preset = preset
        self._values: list[Tensor | list[float] | _Place] = []
        self._runs: Any = None  # kernels.Runs, once there is a tensor for it

    def add(self, x: Tensor, *, where: Tensor | None = None) -> int:
        """Take the statistics of a tensor; returns its place in `read`.

        Args:
            x: of any shape and floating dtype. Sparse tensors count with their zeros; a complex number counts as two,
                its real and its imaginary part.
            where: of x's shape, which elements there are; None: all. On a device the others are read too, since to cut
                them out would have to be waited for.
        """
        x = x.detach()
        if where is not None and x.device.type == "cpu":
            x, where = x[where], None
        if where is not None:
            self._values.append(_on_device_where(x.double(), where, self.preset))
            return len(self._values) - 1
        x = x if x.layout == torch.strided else x.to_dense()
        x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
        # a subclass may hold its numbers elsewhere than at its address
        own = x.device.type == "cuda" and type(x) is Tensor
        if own and (kernels := compiled_kernels(x.device)) and x.dtype in kernels.READABLE:
            self._runs = self._runs or kernels.Runs(self.preset == "full")
            self._values.append(_Place(self._runs.add(x), x.numel()))
            return len(self._values) - 1
        x = x.reshape(-1)
        # Squares of fp16 overflow from 256 on, and bf16 reductions are slower than the cast.
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        self._values.append(_on_cpu(x, self.preset) if x.device.type == "cpu" else _on_device(x, self.preset))
        return len(self._values) - 1

    def read(self) -> list[dict[str, float]]:
        """The statistics of every tensor, as columns of `records`. The only synchronisation."""
        names = _LIGHT + (_FULL if self.preset == "full" else ())
        on_device = [value for value in self._values if isinstance(value, Tensor)]
        fetched = iter(torch.stack(on_device).cpu().tolist() if on_device else [])
        runs = self._runs.read() if self._runs else []
        out = []
        for value in self._values:
            if isinstance(value, _Place):
                found = [float(value.numel), *runs[value.place]]
            else:
                found = next(fetched) if isinstance(value, Tensor) else value
            row = dict(zip(names, found, strict=True))
            row["std"] = math.sqrt(row["var"]) if row["var"] >= 0 else math.nan
            row["rms"] = math.sqrt(row["var"] + row["mean"] * row["mean"]) if row["var"] >= 0 else math.nan
            out.append(row)
        return out


@lru_cache
def compiled_kernels(device: torch.device) -> ModuleType | None:
    """`initlab.measure.kernels` for a device on which they run."""
    try:
        from initlab.measure import kernels
    except ImportError:  # no Triton
        return None
    return kernels if kernels.usable(device) else None


def _on_cpu(x: Tensor, preset: Preset) -> list[float]:
    n = x.numel()
    if n == 0:
        return [0.0] + [math.nan] * (len(_LIGHT) - 1 + (len(_FULL) if preset == "full" else 0))
    abs_max, total, squares = _sums(x)
    bad, below = (0.0, 0.0) if math.isfinite(abs_max) else (float(share.sum()) / n for share in _infinite(x))
    # Outside this range fourth powers leave float32; a power of two scales without rounding.
    exponent = math.frexp(abs_max)[1] if 0 < abs_max < math.inf and not 1e-6 < abs_max < 1e8 else 0
    limit = _exponent_limit(x.dtype)
    unit = 2.0 ** max(-limit, min(limit, exponent))
    y = x
    if exponent:
        y = x * (1 / unit)
        _, total, squares = _sums(y)
    mean, square = total / n, squares / n
    var = square - mean * mean
    # E[x^2] - E[x]^2 loses digits when the mean dominates; the fourth moment loses them first.
    centred = var == var and var * 10 <= mean * mean
    if centred:
        y = y.double()
        mean = float(y.mean())
        y = y - mean
        var = float(torch.dot(y, y)) / n
    values = [float(n), mean * unit, max(var, 0.0) * unit * unit if var == var else var, abs_max, bad, below]
    if preset == "light":
        return values
    shift = 0.0 if centred else mean
    absolute, third, fourth = (total / n for total in _higher_sums(y))
    central = fourth - 4 * shift * third + 6 * shift**2 * (var + shift**2) - 3 * shift**4
    kurtosis = central / var**2 - 3 if var > 0 else math.nan
    absolute = float(x.abs().sum(dtype=torch.float64)) / n if centred else absolute * unit
    return [*values, absolute, kurtosis, *_fractions_on_cpu(x, abs_max)]


def _sums(x: Tensor) -> tuple[float, float, float]:
    """Largest |x|, sums of x and of x^2, in pieces: what is read thrice comes from memory once.

    A dot product of all of a large tensor would also lose a percent of it in float32.
    """
    lows, highs, total, squares = [], [], 0.0, 0.0
    for piece in x.split(_PIECE):
        low, high = torch.aminmax(piece)
        lows.append(low.item())
        highs.append(high.item())
        total += piece.sum().item()
        squares += torch.dot(piece, piece).item()
    known = all(low == low for low in lows)  # of a piece with NaN both ends are
    return max(-min(lows), max(highs)) if known else math.nan, total, squares


@lru_cache
def _exponent_limit(dtype: torch.dtype) -> int:
    """Up to here a power of two and its inverse are normal numbers."""
    return 1 - math.frexp(torch.finfo(dtype).smallest_normal)[1]


def _higher_sums(y: Tensor) -> tuple[float, float, float]:
    """Sums of |y|, y^3 and y^4, in pieces that stay in cache: fresh pages for a temporary cost more than the sums."""
    absolute = third = fourth = 0.0
    scratch = torch.empty(min(_PIECE, y.numel()), dtype=y.dtype, device=y.device)
    for piece in y.split(_PIECE):
        work = scratch[: piece.numel()]
        absolute += float(torch.abs(piece, out=work).sum())
        torch.mul(piece, piece, out=work)
        third += float(torch.dot(piece, work))
        fourth += float(torch.dot(work, work))
    return absolute, third, fourth


def _on_device(x: Tensor, preset: Preset) -> Tensor:
    n = x.numel()
    width = len(_LIGHT) + (len(_FULL) if preset == "full" else 0)
    if n == 0:
        return torch.tensor([0.0] + [math.nan] * (width - 1), dtype=torch.float64, device=x.device)
    abs_max = torch.linalg.vector_norm(x, math.inf)
    # As on the CPU, but always: whether it is needed can't be asked without a synchronisation.
    limit = _exponent_limit(x.dtype)
    unit = torch.exp2(torch.frexp(abs_max).exponent.clamp(-limit, limit).to(x.dtype))
    y = x / unit
    var, mean = torch.var_mean(y, correction=0)
    count = torch.full_like(unit, n, dtype=torch.float64)
    bad = [share.sum().double() / n for share in _infinite(x)]
    scale = unit.double()
    values = [count, mean.double() * scale, var.double() * scale * scale, abs_max.double(), *bad]
    if preset == "light":
        return torch.stack(values)
    z = (y - mean) * torch.rsqrt(var)  # standardised, so the fourth power neither over- nor underflows
    kurtosis = (z * z).square().mean().double() - 3
    return torch.cat([torch.stack([*values, y.abs().mean().double() * scale, kurtosis]), _fractions_on_device(x)])


def _on_device_where(x: Tensor, where: Tensor, preset: Preset) -> Tensor:
    """As `_on_device`, of some elements of a float64 tensor; with fractions of all of them."""
    count = where.sum().double()

    def mean_of(values: Tensor) -> Tensor:
        return torch.where(where, values, 0.0).sum() / count

    mean = mean_of(x)
    centred = x - mean
    var = mean_of(centred.square())
    size = torch.where(where, x, 0.0).abs()
    values = [count, mean, var, torch.where(count > 0, size.amax(), math.nan)]
    values += [mean_of(share.double()) for share in _infinite(x)]
    if preset == "light":
        return torch.stack(values)
    values += [mean_of(size), mean_of((centred * torch.rsqrt(var)) ** 4) - 3, mean_of((x == 0).double())]
    for low, high in _EDGES:
        values += [mean_of(((size > 0) & (size < low)).double()), mean_of((size > high).double())]
    return torch.stack(values)


def _infinite(x: Tensor) -> tuple[Tensor, Tensor]:
    """Where a tensor isn't finite, and where it is -infinity."""
    return ~torch.isfinite(x), x == -math.inf


def _fractions_on_cpu(x: Tensor, abs_max: float) -> list[float]:
    """Share of exact zeros, then for each number format the shares below its normal range and above its largest."""
    sample = (x if x.numel() <= SAMPLE else torch.take(x, _sample_index(x.numel(), x.device))).abs().numpy()
    n = sample.size
    zeros = int(np.count_nonzero(sample == 0))
    below = {low: (int(np.count_nonzero(sample < low)) - zeros) / n for low in {low for low, _ in _EDGES}}
    out = [zeros / n]
    for low, high in _EDGES:
        # nothing is above where the largest isn't; NaN isn't above either, and its largest says nothing
        out += [below[low], 0.0 if abs_max <= high else int(np.count_nonzero(sample > high)) / n]
    return out


def _fractions_on_device(x: Tensor) -> Tensor:
    sample = (x if x.numel() <= SAMPLE else torch.take(x, _sample_index(x.numel(), x.device))).abs()
    zero = (sample == 0).double().mean()
    edges = [
        (sample < low).double().mean() - zero if under else (sample > high).double().mean()
        for low, high in _EDGES
        for under in (True, False)
    ]
    return torch.stack([zero, *edges])


@lru_cache(maxsize=64)
def _sample_index(n: int, device: torch.device) -> Tensor:
    drawn = torch.randint(n, (SAMPLE,), generator=torch.Generator("cpu").manual_seed(n), device="cpu")
    return drawn.sort().values.to(device)  # read in order, which is several times faster
