"""Statistics of a CUDA tensor by one reading of it, in its own dtype: nothing of its size is made.

A first kernel reads. Each of its programs takes a run of elements and sums powers of their distance from the mean of
the run's beginning, in units of its size, so that float32 neither cancels nor leaves its range; what it keeps, in
float64, are count, mean and central moments of the run, and counts. A second kernel merges the runs of every tensor
when they are read, by the formulas of Chan et al. (1983), in an order that is always the same.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

READABLE = (torch.float32, torch.bfloat16, torch.float16)

_LANES = 512  # vectors of 16 bytes that a program reads at a time: 4 for each of its 128 threads
_PROGRAMS = 4  # for each multiprocessor
_LONGEST = 64  # times that a program reads; of more elements there are more programs
_ROWS = 1 << 16  # runs that a buffer holds
_WIDTH = {False: 5, True: 16}  # numbers that are kept of a run, by whether all statistics are wanted
_FOUND = {False: 5, True: 16}  # and of a tensor
_MERGED = 128  # runs at a time

_compiled: dict[tuple[Any, ...], Any] = {}  # by all that Triton compiles for: device, dtype, alignment, constants
_shortcut = True  # whether these can be launched as they are


# Numbers in the kernels are the bits of a float32, and literals: Triton compares the globals at every launch.


@triton.jit
def _bits(x: tl.tensor) -> tl.tensor:
    """Of |x|: integers in the order of the numbers, infinity after them and NaN last."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _unit(high: tl.tensor) -> tl.tensor:
    """One over the power of two at or below the largest number, given as bits; 1 where that isn't a number, or is 0."""
    exponent = high >> 23
    exponent = tl.where(high == 0, 127, tl.minimum(tl.maximum(exponent, 1), 253))
    exponent = tl.where(high >= 0x7F800000, 127, exponent)
    return ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _tile(
    x: tl.tensor,
    n: tl.tensor,
    cols: tl.tensor,
    stride: tl.tensor,
    tile: tl.tensor,
    V: tl.constexpr,
    LANES: tl.constexpr,
    STRIDED: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """Elements of one tile, as float32, and which of them are there; the others are 0."""
    lane = tl.arange(0, LANES)
    first = tile * LANES
    if STRIDED:
        # only numbers of lanes are divided lane by lane, in 32 bits
        column = (first % cols).to(tl.int32) + lane
        row = column // cols
        start = ((first // cols + row) * stride + (column - row * cols)) * V
    else:
        start = (first + lane) * V
    place = start[:, None] + tl.arange(0, V)[None, :]
    there = (first + lane)[:, None] * V + tl.arange(0, V)[None, :] < n
    values = tl.load(x + place, mask=there, other=0.0) if MASKED else tl.load(x + place)
    return values.to(tl.float32), there


@triton.jit
def _sums(
    x: tl.tensor,
    there: tl.tensor,
    unit: tl.tensor,
    pivot: tl.tensor,
    kept: tl.tensor,
    FULL: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """Add a tile to the sums of a run, lane by lane."""
    INFINITY: tl.constexpr = 0x7F800000
    UNDER_BF16: tl.constexpr = 0x00800000  # 2^-126
    UNDER_FP16: tl.constexpr = 0x38800000  # 2^-14, also e5m2's
    UNDER_E4M3: tl.constexpr = 0x3C800000  # 2^-6
    high, s1, s2, s3, s4, total, zero, bf16, fp16, e4m3 = kept
    bits = _bits(x)
    high = tl.maximum(high, tl.max(bits, 1))
    scaled = x * unit
    y = scaled - pivot
    if MASKED:
        y = tl.where(there, y, 0.0)
    y2 = y * y
    s1 += tl.sum(y, 1)
    s2 += tl.sum(y2, 1)
    if FULL:
        s3 += tl.sum(y2 * y, 1)
        s4 += tl.sum(y2 * y2, 1)
        total += tl.sum(tl.abs(scaled), 1)
        if MASKED:
            bits = tl.where(there, bits, INFINITY)
        zero += tl.sum((bits == 0).to(tl.int32), 1)
        bf16 += tl.sum((bits < UNDER_BF16).to(tl.int32), 1)
        fp16 += tl.sum((bits < UNDER_FP16).to(tl.int32), 1)
        e4m3 += tl.sum((bits < UNDER_E4M3).to(tl.int32), 1)
    return high, s1, s2, s3, s4, total, zero, bf16, fp16, e4m3


@triton.jit
def _run(
    x: tl.tensor,
    n: tl.tensor,
    cols: tl.tensor,
    stride: tl.tensor,
    first: tl.tensor,
    whole: tl.tensor,
    rest: tl.tensor,
    unit: tl.tensor,
    pivot: tl.tensor,
    V: tl.constexpr,
    LANES: tl.constexpr,
    STRIDED: tl.constexpr,
    FULL: tl.constexpr,
) -> tl.tensor:
    """Sums over `whole` tiles from the `first` on, and over the incomplete one after them if there is a `rest`."""
    s = tl.zeros((LANES,), tl.float32)
    i = tl.zeros((LANES,), tl.int32)
    kept = (i, s, s, s, s, s, i, i, i, i)
    for tile in range(0, whole):
        values, there = _tile(x, n, cols, stride, first + tile, V, LANES, STRIDED, False)
        kept = _sums(values, there, unit, pivot, kept, FULL, False)
    if rest:
        values, there = _tile(x, n, cols, stride, first + whole, V, LANES, STRIDED, True)
        kept = _sums(values, there, unit, pivot, kept, FULL, True)
    high, s1, s2, s3, s4, total, zero, bf16, fp16, e4m3 = kept
    return (
        tl.max(high, 0),
        tl.sum(s1, 0),
        tl.sum(s2, 0),
        tl.sum(s3, 0),
        tl.sum(s4, 0),
        tl.sum(total, 0),
        tl.sum(zero, 0),
        tl.sum(bf16, 0),
        tl.sum(fp16, 0),
        tl.sum(e4m3, 0),
    )


@triton.jit(do_not_specialize=["row", "n", "cols", "stride", "tiles"])
def _read(
    x: tl.tensor,
    out: tl.tensor,
    row: tl.int64,
    n: tl.int64,
    cols: tl.int32,
    stride: tl.int64,
    tiles: tl.int32,
    V: tl.constexpr,
    LANES: tl.constexpr,
    STRIDED: tl.constexpr,
    FULL: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    """Write what is kept of the runs of a tensor, `tiles` tiles each, into the rows of `out` from `row` on.

    A tile is LANES vectors of V elements; `cols` and `stride` of a strided tensor's rows are in vectors.
    """
    INFINITY: tl.constexpr = 0x7F800000
    OVER_E4M3: tl.constexpr = 0x43E00000  # 448
    OVER_E5M2: tl.constexpr = 0x47600000  # 57344
    OVER_FP16: tl.constexpr = 0x477FE000  # 65504
    OVER_BF16: tl.constexpr = 0x7F7F0000  # (2 - 2^-7) 2^127
    HEADROOM: tl.constexpr = 20  # powers of two by which a run may outgrow its beginning; fourth powers stay in float32
    size: tl.constexpr = LANES * V
    run = tl.program_id(0).to(tl.int64)
    first = run * tiles
    whole = tl.maximum(tl.minimum(n // size - first, tiles), 0).to(tl.int32)
    rest = (whole < tiles) & ((first + whole) * size < n)
    # the beginning gives the unit and the distance's origin
    values, _ = _tile(x, n, cols, stride, first, V, LANES, STRIDED, True)
    low = tl.max(tl.max(_bits(values), 1), 0)
    unit = _unit(low)
    begun = tl.minimum(n - first * size, size).to(tl.float64)
    pivot = (tl.sum(tl.sum(values * unit, 1), 0).to(tl.float64) / begun).to(tl.float32)
    high, s1, s2, s3, s4, total, zero, bf16, fp16, e4m3 = _run(
        x, n, cols, stride, first, whole, rest, unit, pivot, V, LANES, STRIDED, FULL
    )
    outgrown = ((high >> 23) > (low >> 23) + HEADROOM) | ((low == 0) & (high > 0))
    if outgrown & (high < INFINITY):
        before = unit.to(tl.float64)
        unit = _unit(high)
        pivot = (pivot.to(tl.float64) * (unit.to(tl.float64) / before)).to(tl.float32)
        high, s1, s2, s3, s4, total, zero, bf16, fp16, e4m3 = _run(
            x, n, cols, stride, first, whole, rest, unit, pivot, V, LANES, STRIDED, FULL
        )
    bad = tl.zeros((LANES,), tl.int32)
    below = tl.zeros((LANES,), tl.int32)
    over_e4m3 = tl.zeros((LANES,), tl.int32)
    over_e5m2 = tl.zeros((LANES,), tl.int32)
    over_fp16 = tl.zeros((LANES,), tl.int32)
    over_bf16 = tl.zeros((LANES,), tl.int32)
    # numbers as large as that are rare, and read again to be counted
    if high > (OVER_E4M3 if FULL else INFINITY - 1):
        for tile in range(0, whole + rest.to(tl.int32)):
            values, _ = _tile(x, n, cols, stride, first + tile, V, LANES, STRIDED, True)
            bits = _bits(values)
            bad += tl.sum((bits >= INFINITY).to(tl.int32), 1)
            below += tl.sum(((bits == INFINITY) & (values < 0)).to(tl.int32), 1)
            if FULL:
                bits = tl.where(bits > INFINITY, 0, bits)
                over_e4m3 += tl.sum((bits > OVER_E4M3).to(tl.int32), 1)
                over_e5m2 += tl.sum((bits > OVER_E5M2).to(tl.int32), 1)
                over_fp16 += tl.sum((bits > OVER_FP16).to(tl.int32), 1)
                over_bf16 += tl.sum((bits > OVER_BF16).to(tl.int32), 1)
    count = tl.minimum(n - first * size, tiles * size).to(tl.float64)
    scale = 1.0 / unit.to(tl.float64)
    m1 = s1.to(tl.float64) / count
    m2 = s2.to(tl.float64)
    square = m2 - count * m1 * m1
    out += (row + run) * WIDTH
    tl.store(out, (pivot.to(tl.float64) + m1) * scale)
    tl.store(out + 1, tl.where(square < 0, 0.0, square) * scale * scale)
    tl.store(out + 2, high.to(tl.float64))
    tl.store(out + 3, tl.sum(bad, 0).to(tl.float64))
    tl.store(out + 4, tl.sum(below, 0).to(tl.float64))
    if FULL:
        m3 = s3.to(tl.float64)
        cube = m3 - 3 * m1 * m2 + 2 * count * m1 * m1 * m1
        fourth = s4.to(tl.float64) - 4 * m1 * m3 + 6 * m1 * m1 * m2 - 3 * count * m1 * m1 * m1 * m1
        tl.store(out + 5, cube * scale * scale * scale)
        tl.store(out + 6, tl.where(fourth < 0, 0.0, fourth) * scale * scale * scale * scale)
        tl.store(out + 7, total.to(tl.float64) * scale)
        tl.store(out + 8, zero.to(tl.float64))
        tl.store(out + 9, (fp16 - zero).to(tl.float64))
        tl.store(out + 10, tl.sum(over_fp16, 0).to(tl.float64))
        tl.store(out + 11, (bf16 - zero).to(tl.float64))
        tl.store(out + 12, tl.sum(over_bf16, 0).to(tl.float64))
        tl.store(out + 13, (e4m3 - zero).to(tl.float64))
        tl.store(out + 14, tl.sum(over_e4m3, 0).to(tl.float64))
        tl.store(out + 15, tl.sum(over_e5m2, 0).to(tl.float64))


@triton.jit
def _sum_of(column: tl.tensor, count: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> tl.tensor:
    kept = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)
        kept += tl.load(column + place * WIDTH, mask=place < count, other=0.0)
    return tl.sum(kept, 0)


@triton.jit
def _merge(
    runs: tl.tensor,
    table: tl.tensor,
    out: tl.tensor,
    FULL: tl.constexpr,
    WIDTH: tl.constexpr,
    FOUND: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Statistics of each tensor from its runs; `table` says where they begin, how many, n, and elements of a run."""
    table += tl.program_id(0) * 4
    out += tl.program_id(0) * FOUND
    first = tl.load(table)
    count = tl.load(table + 1).to(tl.int32)
    n = tl.load(table + 2)
    share = tl.load(table + 3)
    runs += first * WIDTH
    weighted = tl.zeros((BLOCK,), tl.float64)
    high = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)
        there = place < count
        k = tl.minimum(n - place * share, share).to(tl.float64)
        weighted += tl.where(there, k * tl.load(runs + place * WIDTH, mask=there, other=0.0), 0.0)
        high = tl.maximum(high, tl.load(runs + place * WIDTH + 2, mask=there, other=0.0))
    total = n.to(tl.float64)
    mean = tl.sum(weighted, 0) / total
    second = tl.zeros((BLOCK,), tl.float64)
    fourth = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)
        there = place < count
        k = tl.minimum(n - place * share, share).to(tl.float64)
        d = tl.load(runs + place * WIDTH, mask=there, other=0.0) - mean
        m2 = tl.load(runs + place * WIDTH + 1, mask=there, other=0.0)
        second += tl.where(there, m2 + k * d * d, 0.0)
        if FULL:
            m3 = tl.load(runs + place * WIDTH + 5, mask=there, other=0.0)
            m4 = tl.load(runs + place * WIDTH + 6, mask=there, other=0.0)
            fourth += tl.where(there, m4 + 4 * d * m3 + 6 * d * d * m2 + k * d * d * d * d, 0.0)
    var = tl.sum(second, 0) / total
    tl.store(out, mean)
    tl.store(out + 1, var)
    tl.store(out + 2, tl.max(high, 0).to(tl.int32).to(tl.float32, bitcast=True).to(tl.float64))
    tl.store(out + 3, _sum_of(runs + 3, count, WIDTH, BLOCK) / total)
    tl.store(out + 4, _sum_of(runs + 4, count, WIDTH, BLOCK) / total)
    if FULL:
        tl.store(out + 5, _sum_of(runs + 7, count, WIDTH, BLOCK) / total)
        tl.store(out + 6, tl.where(var > 0, tl.sum(fourth, 0) / total / (var * var) - 3, float("nan")))
        for column in tl.static_range(8, 15):
            tl.store(out + column - 1, _sum_of(runs + column, count, WIDTH, BLOCK) / total)
        tl.store(out + 14, _sum_of(runs + 9, count, WIDTH, BLOCK) / total)
        tl.store(out + 15, _sum_of(runs + 15, count, WIDTH, BLOCK) / total)


class Runs:
    """Collects tensors; `read` gives their statistics. Nothing is waited for before, and no tensor is kept.

    Tensors may lie on several devices and be used on several streams; what was added on other streams than the current
    one is waited for by `read`.
    """

    def __init__(self, full: bool):
        self._full = full
        self._width = _WIDTH[full]
        self._buffers: list[Tensor] = []
        self._filling: dict[tuple[torch.device, Any], tuple[int, int]] = {}  # number of the buffer, rows used
        self._tables: list[list[tuple[int, int, int, int]]] = []  # of each buffer; see _merge
        self._places: list[tuple[int, int] | None] = []  # buffer and row of its table; None: empty

    def add(self, x: Tensor) -> int:
        """Take the statistics of a strided tensor of a dtype of READABLE; returns its place in `read`."""
        self._places.append(self._launch(x) if x.numel() else None)
        return len(self._places) - 1

    def _launch(self, x: Tensor) -> tuple[int, int]:
        vector = 16 // x.element_size()
        x, n, cols, stride = _rows(x, vector)
        device = x.device
        tiles = -(-n // (_LANES * vector))
        longest = min(_LONGEST, -(-tiles // (_PROGRAMS * _multiprocessors(device))))
        count = -(-tiles // longest)
        number, row = self._room(device, count)
        table = self._tables[number]
        table.append((row, count, n, longest * _LANES * vector))
        strided, full = stride > 0, self._full
        given = (x, self._buffers[number], row, n, cols, stride, longest, vector, _LANES, strided, full, self._width)
        key = (device, x.dtype, strided, x.data_ptr() % 16, full)
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            _start(key, count, given)
        else:  # a kernel runs on the current device, whichever its tensors are on
            with torch.cuda.device(device):
                _start(key, count, given)
        return number, len(table) - 1

    def _room(self, device: torch.device, count: int) -> tuple[int, int]:
        """A buffer with as many rows left, and the first of them; memory is a stream's own until that is waited for."""
        key = (device, _stream(device))
        number, used = self._filling.get(key, (-1, 0))
        if number < 0 or used + count > len(self._buffers[number]):
            rows = max(_ROWS, count)
            self._buffers.append(torch.empty(rows, self._width, dtype=torch.float64, device=device))
            self._tables.append([])
            number, used = len(self._buffers) - 1, 0
        self._filling[key] = (number, used + count)
        return number, used

    def read(self) -> list[list[float]]:
        """Per tensor, in the order they were added: mean, var, abs_max, shares that aren't finite and that are
        -infinity; with all statistics abs_mean, kurtosis, share of zeros, and per format the shares under and over it.
        NaN for an empty tensor.
        """
        for device, stream in self._filling:
            if stream != _stream(device):
                torch.cuda.synchronize(device)
        width = _FOUND[self._full]
        merged: dict[torch.device, list[tuple[int, Tensor]]] = {}
        for number, (buffer, table) in enumerate(zip(self._buffers, self._tables, strict=True)):
            device = buffer.device
            out = torch.empty(len(table), width, dtype=torch.float64, device=device)
            rows = torch.tensor(table, dtype=torch.int64, device="cpu").to(device)
            with torch.cuda.device_of(buffer):
                _merge[(len(table),)](buffer, rows, out, FULL=self._full, WIDTH=self._width, FOUND=width, BLOCK=_MERGED)
            merged.setdefault(device, []).append((number, out))
        found: dict[int, list[list[float]]] = {}
        for pairs in merged.values():
            values = iter(torch.cat([out for _, out in pairs]).cpu().tolist())
            found |= {number: [next(values) for _ in range(len(out))] for number, out in pairs}
        return [[math.nan] * width if place is None else found[place[0]][place[1]] for place in self._places]


def _rows(x: Tensor, vector: int) -> tuple[Tensor, int, int, int]:
    """A tensor as equal rows: itself or a copy, its elements, and the rows' length and stride in vectors.

    The stride is 0 where the rows are one. Neither the order of the dimensions matters to any statistic, nor an
    expanded dimension.
    """
    if not x.is_contiguous():
        groups: list[list[int]] = []
        dims = zip(x.stride(), x.shape, strict=True)
        for stride, size in sorted((stride, size) for stride, size in dims if size > 1 and stride > 0):
            if groups and stride == groups[-1][0] * groups[-1][1]:
                groups[-1][1] *= size
            else:
                groups.append([stride, size])
        n = math.prod(size for _, size in groups)
        if not groups or (groups[0][0] == 1 and len(groups) == 1):
            return x, n, 1, 0
        if groups[0][0] == 1 and len(groups) == 2:
            cols, stride = groups[0][1], groups[1][0]
            if cols % vector == stride % vector == x.data_ptr() % 16 == 0 and cols < 1 << 30:
                return x, n, cols // vector, stride // vector
        x = x.contiguous()
    return x, x.numel(), 1, 0


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _stream(device: torch.device) -> Any:
    return triton.runtime.driver.active.get_current_stream(device.index) if device.type == "cuda" else 0


def _start(key: tuple[Any, ...], count: int, given: tuple[Any, ...]) -> None:
    """Launch `_read`; what Triton finds out of the arguments at each launch takes it longer than the launch itself."""
    compiled = _compiled.get(key)
    if compiled is not None:
        compiled[(count, 1, 1)](*given)
        return
    compiled = _read[(count,)](*given)
    if _shortcut:
        _compiled[key] = compiled


@lru_cache
def usable(device: torch.device) -> bool:
    """Whether the kernels can be compiled for a device and run there; found out by doing it, the first time."""
    global _shortcut
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    for _shortcut in (True, False):
        try:
            runs = Runs(full=False)
            for value in (1.0, 2.0):
                runs.add(torch.full((1,), value, dtype=torch.float32, device=device))
            if [row[0] for row in runs.read()] == [1, 2]:
                return True
        except Exception:  # no compiler, a GPU that Triton doesn't know, or another Triton: torch's own kernels do
            pass
        _compiled.clear()
    return False
