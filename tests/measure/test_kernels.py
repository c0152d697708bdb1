"""The kernels for CUDA, run by Triton's interpreter where there is no GPU; on a GPU the same tests run as `cuda`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from initlab.measure import moments

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(INTERPRETED, reason="it starts the others")
def test_every_test_of_the_kernels_passes_where_triton_is_emulated() -> None:
    """Triton decides at its import, once a process."""
    pytest.importorskip("triton")
    quick = "interpreter and not 1000000 and not among_many and not longer and not 200_000"
    tests = [str(HERE / name) for name in ("test_moments.py", "test_entropies.py", "test_kernels.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", quick, *tests]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


@pytest.mark.skipif(not INTERPRETED, reason="without the interpreter it needs CUDA")
def test_interpreter_many_runs_are_merged_whatever_their_sizes() -> None:
    from initlab.measure.kernels import Runs

    x = torch.cat([torch.randn(3000, generator=torch.Generator().manual_seed(i)) * 10.0**i + i for i in range(-6, 6)])
    x = torch.cat([torch.zeros(5000), x])  # a run that begins with nothing, and grows
    whole = Runs(full=True)
    whole.add(x)
    expected = moments.Moments()
    expected.add(x.double())
    (row,), (wanted,) = whole.read(), expected.read()
    names = ("mean", "var", "abs_max", "frac_nonfinite", "frac_minus_inf", "abs_mean", "kurtosis")
    for value, name in zip(row, names, strict=False):
        assert value == pytest.approx(wanted[name], rel=1e-5), name
    assert row[7] == float((x == 0).double().mean())


@pytest.mark.skipif(not INTERPRETED, reason="without the interpreter it needs CUDA")
@pytest.mark.parametrize(
    ("view", "copied"),
    [
        (lambda x: x, False),
        (lambda x: x[..., 64:128], False),
        (lambda x: x.transpose(0, 1), False),
        (lambda x: x[:, :1].expand(-1, 50, -1), False),
        (lambda x: x[0, 0, 0].expand(9, 9), False),
        (lambda x: x[..., 3:67], True),
        (lambda x: x[..., ::2], True),
    ],
    ids=["whole", "a third", "transposed", "expanded", "expanded number", "not aligned", "every other"],
)
def test_interpreter_views_are_read_where_they_lie_if_their_rows_are_aligned(view: object, copied: bool) -> None:
    from initlab.measure.kernels import _rows

    x = torch.zeros(6, 5, 192)
    given = view(x)  # type: ignore[operator]
    assert (_rows(given, 4)[0].data_ptr() != given.data_ptr()) == copied


def test_without_triton_torch_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "initlab.measure.kernels", None)
    moments.compiled_kernels.cache_clear()
    try:
        assert moments.compiled_kernels(torch.device("cuda", 0)) is None
    finally:
        moments.compiled_kernels.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_reading_waits_once_and_nothing_is_made_of_the_tensors_size() -> None:
    taken = moments.Moments("full")
    x = torch.randn(1 << 24, device="cuda", dtype=torch.bfloat16)
    taken.add(x)  # its buffer, and what is compiled
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        torch.cuda.set_sync_debug_mode("error")
        taken.add(x)
        taken.add(x.view(1024, -1).t())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() == before
    first, *others = taken.read()
    assert all(other == first for other in others)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_tensor_used_on_another_stream_is_waited_for() -> None:
    taken, stream = moments.Moments("light"), torch.cuda.Stream()
    x = torch.ones(1 << 24, device="cuda")
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        y = x * 2
        taken.add(y)
    assert taken.read()[0]["mean"] == 2
