"""Moments of parts make those of the whole."""

import math

import numpy as np
import pytest
import torch
from measure_zoo import ZOO, T, V

from initlab import schema
from initlab.anatomy.inputs import of_batch
from initlab.measure.merging import THIRD, merged
from initlab.measure.probe import Identity, measure_inputs
from initlab.measure.statistics import Statistic
from initlab.schema import RECORDS

IDENTITY = Identity(run_id="a", recipe="as-found", seed=0)
RNG = np.random.default_rng(0)
TAKEN = [name for name, column in RECORDS.items() if column.taken or name in ("std", "rms")]


class Given(torch.nn.Module):
    """A block of which every activation is what it is given."""

    def __init__(self):
        super().__init__()
        self.same = torch.nn.Linear(4, 4)
        torch.nn.init.eye_(self.same.weight)
        torch.nn.init.zeros_(self.same.bias)

    def forward(self, x):
        return self.same(x)


def measured(x, preset="full", statistics=(THIRD,)):
    model = Given().to(x.dtype)
    return measure_inputs(model, of_batch(model, (x,)), IDENTITY, preset=preset, statistics=statistics)


def of_output(tables):
    return tables.records.query("kind == 'activation'").iloc[-1]


@pytest.mark.parametrize(
    "parts",
    [
        [RNG.normal(0, 1, (3, 5, 4)), RNG.normal(0, 1, (2, 5, 4))],
        [RNG.normal(1, 2, (1, 5, 4)), RNG.exponential(3, (2, 5, 4)), -RNG.exponential(1, (2, 5, 4))],
        [RNG.normal(1e4, 1, (2, 5, 4)), RNG.normal(1e4, 1, (2, 5, 4))],  # a mean that dominates
        [np.zeros((2, 5, 4)), RNG.normal(0, 1e-12, (1, 5, 4))],
        [RNG.normal(0, 1e9, (2, 5, 4)), np.ones((2, 5, 4))],
    ],
)
@pytest.mark.parametrize("preset", ["light", "full"])
def test_moments_of_parts_are_those_of_the_whole(parts, preset):
    parts = [torch.tensor(part) for part in parts]
    also = (THIRD,) if preset == "full" else ()
    found = merged([measured(part, preset, also) for part in parts], [0] * len(parts))
    expected = measured(torch.cat(parts), preset, ())
    found, expected = of_output(found), of_output(expected)
    for name in TAKEN:
        scale = abs(expected["abs_max"]) if name == "mean" else 0.0
        assert found[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-14 * scale, nan_ok=True), name
    assert THIRD.name not in found


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_part_that_is_not_finite_shows_in_the_whole(bad):
    x = torch.ones(2, 5, 4)
    x[0, 0, 0] = bad
    row = of_output(merged([measured(torch.randn(2, 5, 4)), measured(x)], [0, 0]))
    assert not math.isfinite(row["mean"]) and not math.isfinite(row["var"])
    assert not math.isfinite(row["abs_max"])
    assert row["frac_nonfinite"] > 0


def test_a_statistic_of_ones_own_is_not_merged_and_that_is_said():
    own = Statistic(name="p99", function=lambda x: x.abs().quantile(0.99), of=("activation", "weight"))
    found = merged([measured(torch.randn(2, 5, 4), statistics=(own, THIRD)) for _ in range(2)], [0, 0])
    assert found.records.query("kind == 'activation'")["p99"].isna().all()
    assert found.records.query("kind == 'weight'")["p99"].notna().all()
    assert "not merged over the processes, and NaN: p99" in set(found.coverage["note"])


def variances(tables, module):
    rows = tables.records[(tables.records["module"] == module) & (tables.records["kind"] == "activation")]
    return rows["var"].tolist()


def test_what_only_one_part_reached_is_there():
    torch.manual_seed(0)
    model = ZOO["experts"][0]()
    ids = torch.randint(V, (2, T))
    parts = [measure_inputs(model, of_batch(model, each), IDENTITY, statistics=(THIRD,)) for each in (ids[:1], ids[1:])]
    whole = merged(parts, [T - 1, T - 1])
    first = parts[0]
    left = first.records["module"].unique()[3]
    first.records = first.records[first.records["module"] != left]
    found = merged(parts, [T - 1, T - 1])
    assert set(found.records["module"]) == set(whole.records["module"])
    assert variances(found, left) == pytest.approx(variances(parts[1], left))
    for name, frame in found.items():
        schema.cast(name, frame)
