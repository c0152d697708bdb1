from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from initlab.measure import moments as module
from initlab.measure.moments import PRESETS, SAMPLE, Moments, Preset
from initlab.schema import FORMATS, RECORDS

# smallest normal and largest number, from the formats' own definitions
EDGES = {
    "fp16": (2.0**-14, 65504.0),
    "bf16": (2.0**-126, (2 - 2.0**-7) * 2.0**127),
    "e4m3": (2.0**-6, 448.0),
    "e5m2": (2.0**-14, 57344.0),
}
LIGHT = {"numel", "mean", "std", "var", "rms", "abs_max", "frac_nonfinite", "frac_minus_inf"}
FULL = LIGHT | {"abs_mean", "kurtosis", "frac_zero"} | {f"frac_{e}_{f}" for e in ("under", "over") for f in FORMATS}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
gpu = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))
PATHS = ["cpu", "device", pytest.param("cuda", marks=gpu), *(["interpreter"] if INTERPRETED else [])]


class Interpreted(Moments):
    """The kernels, on the CPU's tensors."""

    def add(self, x: Tensor) -> int:
        from initlab.measure import kernels

        if x.dtype not in kernels.READABLE:
            return super().add(x)
        self._runs = self._runs or kernels.Runs(self.preset == "full")
        self._values.append(module._Place(self._runs.add(x.detach()), x.numel()))
        return len(self._values) - 1


@contextmanager
def path(name: str) -> Iterator[None]:
    """The code for a device is plain torch, so it runs on the CPU's tensors too."""
    with pytest.MonkeyPatch.context() as patch:
        if name == "device":
            patch.setattr(module, "_on_cpu", module._on_device)
        yield


def measure(x: Tensor, where: str = "cpu", preset: Preset = "full") -> dict[str, float]:
    with path(where), np.errstate(all="ignore"):  # the interpreter computes with NumPy
        collected = (Interpreted if where == "interpreter" else Moments)(preset)
        assert collected.add(x.cuda() if where == "cuda" else x) == 0
        (row,) = collected.read()
    assert all(type(value) is float for value in row.values())
    return row


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def reference(x: Tensor) -> dict[str, float]:
    """Two passes in float64."""
    a = x.detach().double().flatten().numpy()
    unit = 2.0 ** math.frexp(float(np.abs(a).max()))[1] or 1.0
    a = a / unit
    mean, centred = a.mean(), a - a.mean()
    var = float((centred**2).mean())
    return {
        "numel": a.size,
        "mean": mean * unit,
        "var": var * unit * unit,
        "std": math.sqrt(var) * unit,
        "rms": math.sqrt((a * a).mean()) * unit,
        "abs_mean": np.abs(a).mean() * unit,
        "abs_max": np.abs(a).max() * unit,
        "kurtosis": float((centred**4).mean()) / var**2 - 3 if var else math.nan,
        "frac_zero": (a == 0).mean(),
        "frac_nonfinite": 0.0,
    }


def agrees(row: dict[str, float], x: Tensor, *, var: float = 2e-5, kurtosis: float = 1e-3) -> None:
    expected = reference(x)
    scale = expected["rms"]
    assert row["numel"] == expected["numel"]
    assert row["mean"] == pytest.approx(expected["mean"], rel=1e-6, abs=1e-6 * scale)
    assert row["var"] == pytest.approx(expected["var"], rel=var, abs=0)
    assert row["std"] == pytest.approx(expected["std"], rel=var, abs=0)
    assert row["rms"] == pytest.approx(expected["rms"], rel=var, abs=0)
    assert row["abs_max"] == expected["abs_max"]
    assert row["frac_nonfinite"] == 0
    if "kurtosis" in row:
        assert row["abs_mean"] == pytest.approx(expected["abs_mean"], rel=2e-6, abs=0)
        assert row["kurtosis"] == pytest.approx(expected["kurtosis"], rel=kurtosis, abs=kurtosis)


SHAPES: dict[str, Tensor] = {
    "matrix": normal(50, 70) * 0.02,
    "off by 3 std, below the switch to two passes": normal(4000) + 3,
    "off by 3.3 std, above it": normal(4000) + 3.3,
    "uniform in [0, 1]": uniform(4000),
    "half zeros": normal(4000).relu(),
    "skewed": -uniform(4000).log(),
    "heavy tails": normal(4000) ** 5,
    "one outlier": torch.cat([normal(4000) * 1e-3, torch.tensor([50.0])]),
    "scalar": torch.tensor(1.5),
    "two elements": torch.tensor([1.0, -3.0]),
    "every other column": normal(60, 80)[:, ::2],
    "transposed": normal(3, 40, 50).transpose(0, 2),
    "one of three parts": normal(4, 9, 96)[..., 32:64],
    "every third element": normal(9000)[::3],
    "expanded": normal(7, 1).expand(7, 600),
    "longer than a piece": normal((1 << 18) + 77) + 0.5,
}


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in SHAPES if name != "scalar"])
def test_statistics_are_those_of_two_passes_in_float64(name: str, dtype: torch.dtype, where: str) -> None:
    x = SHAPES[name].to(dtype)
    agrees(measure(x, where), x)


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize("name", ["every other column", "transposed", "expanded"])
def test_strided_input_is_read_where_it_lies(name: str, where: str) -> None:
    x = SHAPES[name]
    assert not x.is_contiguous()
    agrees(measure(x, where), x.contiguous())


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize("preset", PRESETS)
def test_both_presets_agree_and_light_has_fewer_columns(preset: Preset, where: str) -> None:
    x = SHAPES["matrix"]
    row = measure(x, where, preset)
    assert set(row) == (FULL if preset == "full" else LIGHT)
    assert set(row) <= set(RECORDS)
    assert row.items() <= measure(x, where).items()
    agrees(row, x)


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("scale", [1e-40, 1e-38, 1e-30, 1e-11, 2e-7, 1e-5, 1e5, 9e7, 2e8, 1e9, 1e20, 1e36])
def test_scale_changes_nothing_but_the_scale(scale: float, preset: Preset, where: str) -> None:
    x = normal(5000) * scale + scale / 2
    agrees(measure(x, where, preset), x)


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize("scale", [1e-150, 1e-60, 1e60, 1e150])
def test_float64_beyond_the_range_of_float32(scale: float, where: str) -> None:
    x = normal(1000).double() * scale
    agrees(measure(x, where), x)


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize("value", [1e200, 1.7e308])
def test_a_variance_beyond_float64_is_infinite_and_no_crash(value: float, where: str) -> None:
    row = measure(torch.tensor([value, -value, value, value / 2], dtype=torch.float64), where)
    assert row["var"] == row["rms"] == row["std"] == math.inf
    assert row["mean"] == pytest.approx(value * 0.375)
    assert row["frac_nonfinite"] == 0


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize("ratio", [10.0, 1e2, 1e4])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e10])
def test_a_mean_that_dwarfs_the_std_costs_no_digits(ratio: float, scale: float, where: str) -> None:
    x = (normal(5000) + ratio) * scale
    # one rounding of the mean in float32 shifts the variance by (2^-24 ratio)^2 and the fourth moment likewise
    agrees(measure(x, where), x, var=1e-4, kurtosis=5e-3)


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
@pytest.mark.parametrize("n", [1, 2, 1000])
def test_a_constant_has_no_variance_and_no_kurtosis(value: float, n: int, dtype: torch.dtype, where: str) -> None:
    row = measure(torch.full((n,), value, dtype=dtype), where)
    assert (row["mean"], row["var"], row["std"], row["rms"]) == (value, 0, 0, abs(value))
    assert (row["abs_mean"], row["abs_max"], row["frac_zero"]) == (abs(value), abs(value), float(value == 0))
    assert math.isnan(row["kurtosis"])


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize("value", [1e-30, 0.1, 1e37])
def test_a_constant_that_sums_inexactly_has_next_to_no_variance(value: float, where: str) -> None:
    row = measure(torch.full((1000,), value), where)
    assert row["std"] <= 1e-7 * value
    assert row["mean"] == pytest.approx(value, rel=1e-6)
    assert row["abs_mean"] == pytest.approx(value, rel=1e-6)


def test_a_large_tensor_is_summed_without_loss() -> None:
    """One float32 dot product over all of it is off by 0.1 % and more."""
    sign = (uniform(1 << 23) < 0.5).float() * 2 - 1
    x = sign * 0.1
    agrees(measure(x), x, var=1e-4)


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize("preset", PRESETS)
def test_an_empty_tensor_has_no_elements_and_nothing_else(preset: Preset, where: str) -> None:
    row = measure(torch.empty(0, 5), where, preset)
    assert row.pop("numel") == 0
    assert set(row) == (FULL if preset == "full" else LIGHT) - {"numel"}
    assert all(math.isnan(value) for value in row.values())


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("bad", "abs_max"),
    [
        ([math.nan], math.nan),
        ([math.inf], math.inf),
        ([-math.inf], math.inf),
        ([math.inf, -math.inf, math.inf], math.inf),
        ([math.nan, math.inf], math.nan),
        ([math.inf] * 500, math.inf),
    ],
)
def test_what_isnt_finite_is_counted_exactly(
    bad: list[float], abs_max: float, dtype: torch.dtype, preset: Preset, where: str
) -> None:
    x = torch.cat([torch.tensor(bad), normal(500 - len(bad))]).to(dtype)
    row = measure(x[torch.randperm(500, generator=torch.Generator().manual_seed(0))], where, preset)
    assert row["frac_nonfinite"] == pytest.approx(len(bad) / 500, rel=1e-12)
    assert row["frac_minus_inf"] == pytest.approx(bad.count(-math.inf) / 500, rel=1e-12)
    np.testing.assert_equal(row["abs_max"], abs_max)
    assert not any(math.isfinite(row[name]) for name in row.keys() & {"mean", "var", "std", "rms", "kurtosis"})


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("count", [0, 1, 700, 20_000])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_some_elements_of_a_tensor_are_as_if_alone(count: int, scale: float, preset: Preset) -> None:
    """On a device the others are read and left out; here on the CPU's tensors."""
    x = normal(4, 5000) * scale + scale
    where = torch.zeros(20_000, dtype=torch.bool)
    where[torch.randperm(20_000, generator=torch.Generator().manual_seed(1))[:count]] = True
    where = where.view(4, 5000)
    x = torch.where(where, x, -math.inf)
    if count == 700:
        x[where] = x[where].relu()
    cut, alone, left_out = Moments(preset), Moments(preset), Moments(preset)
    cut.add(x, where=where)
    alone.add(x[where])
    left_out._values.append(module._on_device_where(x.double(), where, preset))
    (expected,), (row,), (other,) = alone.read(), cut.read(), left_out.read()
    np.testing.assert_equal(row, expected)
    for name, value in other.items():
        # as in `agrees`; and shares of the CPU are sampled above 16384
        rounding = 1e-3 if name == "kurtosis" else 2e-2 if "frac" in name and count > SAMPLE else 1e-6 * scale
        assert value == pytest.approx(expected[name], rel=2e-5, abs=rounding, nan_ok=True), name


@pytest.mark.parametrize("where", PATHS)
def test_one_nan_among_many_elements_is_found(where: str) -> None:
    x = normal(400_000)
    x[123_456] = math.nan
    assert measure(x, where)["frac_nonfinite"] == pytest.approx(1 / 400_000, rel=1e-12)


@pytest.mark.parametrize("where", PATHS)
def test_fp16_squares_dont_overflow(where: str) -> None:
    x = (normal(3000) * 1e4).half()
    agrees(measure(x, where), x)


def counts(x: Tensor) -> dict[str, float]:
    a = np.abs(x.double().flatten().numpy())
    out = {"frac_zero": float((a == 0).mean())}
    for fmt, (low, high) in EDGES.items():
        out[f"frac_under_{fmt}"] = float(((a > 0) & (a < low)).mean())
        out[f"frac_over_{fmt}"] = float((a > high).mean())
    return out


def edge_values() -> Tensor:
    """Every edge of every format, its neighbours, zeros and the extremes."""
    edges = torch.tensor([edge for pair in EDGES.values() for edge in pair])
    around = [edges, torch.nextafter(edges, torch.tensor(0.0)), torch.nextafter(edges, torch.tensor(math.inf))]
    values = torch.cat([*around, torch.tensor([0.0, -0.0, 1e-45, 1e-40, 1.0, 3.4e38])])
    values = values[values.isfinite()]
    return torch.cat([values, -values])


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize(
    "x",
    [edge_values(), edge_values().double(), normal(SAMPLE).bfloat16() ** 9, normal(100, 100).half() * 1e-4],
    ids=["edges", "edges in float64", "bfloat16", "float16"],
)
def test_fractions_of_a_small_tensor_are_counts(x: Tensor, where: str) -> None:
    row = measure(x, where)
    for name, share in counts(x).items():
        assert row[name] == pytest.approx(share, abs=1e-12), name


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize("n", [SAMPLE + 1, 100_000, 1_000_000])
def test_fractions_of_a_large_tensor_are_within_five_standard_errors(n: int, where: str) -> None:
    x = 10 ** (uniform(n) * 20 - 10) * (uniform(n, seed=1) < 0.7)
    row = measure(x, where)
    for name, share in counts(x).items():
        assert row[name] == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / SAMPLE)), name
    assert 0.28 < row["frac_zero"] < 0.32


def test_the_sample_is_the_same_every_time_and_spends_no_random_numbers() -> None:
    x = normal(50_000).relu()
    before = torch.get_rng_state()
    first = measure(x)
    torch.manual_seed(1)
    module._sample_index.cache_clear()
    assert measure(x) == first
    torch.set_rng_state(before)
    measure(x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("where", PATHS)
def test_kurtosis_of_half_precision_isnt_summed_in_half_precision(where: str, dtype: torch.dtype) -> None:
    x = normal(200_000).to(dtype)
    row = measure(x, where)
    assert row["kurtosis"] == pytest.approx(0, abs=5 * math.sqrt(24 / 200_000))
    agrees(row, x)


def test_rows_come_back_in_the_order_they_were_given() -> None:
    collected = Moments("full")
    for place, where in enumerate(["cpu", "device", "device", "cpu", "device", "cpu"]):
        with path(where):
            assert collected.add(torch.full((place + 1, 2), float(place))) == place
    rows = collected.read()
    assert [row["numel"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert [row["mean"] for row in rows] == [0, 1, 2, 3, 4, 5]
    np.testing.assert_equal(collected.read(), rows)
    collected.add(torch.ones(3))
    assert [row["numel"] for row in collected.read()] == [2, 4, 6, 8, 10, 12, 3]


def test_nothing_given_nothing_read() -> None:
    assert Moments().read() == []


@pytest.mark.parametrize("where", PATHS)
def test_the_tensor_is_neither_changed_nor_kept_nor_differentiated(where: str) -> None:
    x = (normal(300, 100) * 1e9).requires_grad_()
    before = x.detach().clone()
    with path(where):
        collected = Moments()
        collected.add(x)
    assert torch.equal(x, before)
    for value in collected._values:
        assert not isinstance(value, Tensor) or (value.numel() == len(FULL) - 2 and not value.requires_grad)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("where", PATHS)
@pytest.mark.parametrize(
    "context",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),
        lambda: default_dtype(torch.bfloat16),
        torch.inference_mode,
    ],
    ids=["autocast", "default device", "default dtype", "inference mode"],
)
@pytest.mark.parametrize("n", [1000, 50_000])
def test_torchs_surroundings_change_no_number(n: int, context: Any, where: str) -> None:
    x = normal(n) + 0.5
    expected = measure(x, where)
    module._sample_index.cache_clear()
    with context():
        assert measure(x, where) == expected


def test_the_number_of_elements_is_exact_on_a_device() -> None:
    """float32 can't hold 2^24 + 1."""
    row = measure(torch.zeros(1).expand((1 << 24) + 1), "device", "light")
    assert row["numel"] == (1 << 24) + 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_gpu_gives_the_numbers_of_the_cpu(preset: Preset, dtype: torch.dtype) -> None:
    extremes = [normal(5000) * scale for scale in (1e-40, 1e-30, 1e-11, 1e9, 1e36)] if dtype == torch.float32 else []
    on_cpu, on_gpu = Moments(preset), Moments(preset)
    inputs = [x.to(dtype) for x in (*SHAPES.values(), *extremes, torch.empty(0), torch.tensor([math.nan, 1.0]))]
    for x in inputs:
        on_cpu.add(x)
        on_gpu.add(x.cuda())
    for x, cpu, gpu in zip(inputs, on_cpu.read(), on_gpu.read(), strict=True):
        for name in cpu:
            absolute = 1e-6 * cpu["rms"] if name == "mean" else 1e-3 if name == "kurtosis" else 0
            if name.startswith("frac_") and name != "frac_nonfinite" and x.numel() > SAMPLE:
                absolute = 5 * math.sqrt(gpu[name] * (1 - gpu[name]) / SAMPLE)  # the CPU's are of a sample
            assert gpu[name] == pytest.approx(cpu[name], rel=2e-4, abs=absolute, nan_ok=True), (name, tuple(x.shape))


@pytest.mark.parametrize("preset", PRESETS)
def test_sparse_tensors_count_with_their_zeros(preset: Preset) -> None:
    dense = torch.zeros(6, 4)
    dense[2] = torch.arange(1.0, 5.0)
    taken = Moments(preset)
    for x in (dense, dense.to_sparse(), dense.t().to_sparse()):
        taken.add(x)
    first, *others = taken.read()
    assert all(other == pytest.approx(first) for other in others)


@pytest.mark.parametrize("preset", PRESETS)
def test_complex_numbers_count_as_their_two_parts(preset: Preset) -> None:
    x = torch.complex(torch.arange(6.0), torch.arange(6.0) * 10)
    taken = Moments(preset)
    for value in (torch.cat([x.real, x.imag]), x, x.conj().conj()):
        taken.add(value)
    parts, *rows = taken.read()
    assert all(row == pytest.approx(parts) for row in rows)
    taken.add(x.conj())
    assert taken.read()[-1]["mean"] == pytest.approx(float((x.real.sum() - x.imag.sum()) / 12))
