"""The benchmark of GPUs, at toy size on a CPU."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import gpu

pytestmark = pytest.mark.integration


def test_a_grid_side_by_side_stands_beside_one_run_after_another():
    alone, beside = gpu.grid_section(gpu.Setting("cpu", small=True, rounds=1))
    assert (alone["way"], beside["way"]) == ("one by one", "side by side")
    assert alone["runs"] == beside["runs"] == 8
    assert 0 < beside["training_seconds"] < beside["seconds"]
    assert 0 <= beside["loss_apart_10"] < 1e-4 and 0 <= beside["val_loss_apart"] < 1e-4
    assert beside["times_as_fast"] > 0 and "peak_gib" not in beside
