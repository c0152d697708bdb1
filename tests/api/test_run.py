"""Cells on an engine."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

import initlab
from initlab.engines import ENGINES, Engine, engine, outcome
from initlab.errors import ConfigError
from initlab.recipes import Normal

pytestmark = pytest.mark.integration

MODEL = initlab.NanoGPTConfig(n_embd=32, n_head=1, block_size=16)
SMALL = {"model": MODEL, "depths": (1, 2), "seeds": 2, "text": initlab.Text(batch_size=2)}


def same(one: initlab.Comparison, other: initlab.Comparison) -> bool:
    """To the last digit, but for the time that it took."""
    keys = ["recipe", "n_layer", "seed"]
    for name in ("records", "heads", "summary"):
        tables = []
        for found in (one, other):
            table = getattr(found, name).drop(columns="seconds", errors="ignore")
            table = table.astype({key: str for key in table.columns if table[key].dtype == "category"})
            tables.append(table.sort_values(keys, kind="stable", ignore_index=True))
        pd.testing.assert_frame_equal(*tables, check_exact=True)
    return str(one) == str(other)


def test_processes_measure_what_this_process_measures_also_of_a_users_recipes(tmp_path: Path) -> None:
    (tmp_path / "beside_mine.py").write_text("def std(dims): return 0.5 / dims.fan_in ** 0.5\n")
    text = "import beside_mine\nfrom initlab.recipes import Normal\n"
    (tmp_path / "mine.py").write_text(text + "def own(role, dims): return Normal(beside_mine.std(dims))\n")
    factor = 0.3

    def closure(role, dims):  # type: ignore[no-untyped-def]
        return Normal(factor)

    recipes = ["nanogpt", f"{tmp_path / 'mine.py'}:own", closure]
    here = initlab.compare(recipes, **SMALL)
    apart = initlab.compare(recipes, **SMALL, run=initlab.RunOptions(jobs=2))
    del sys.modules["beside_mine"]
    assert apart.run.manifest["failed"] == {}
    assert same(here, apart)


def test_the_order_in_which_cells_arrive_changes_nothing_that_is_said() -> None:
    here = initlab.compare(["nanogpt", "zero-out"], **SMALL)
    made = []
    with ENGINES.temporary():

        @engine("backwards")
        class Backwards(Engine):
            def run(self, calls):  # type: ignore[no-untyped-def]
                for index in reversed(range(len(calls))):
                    made.append(index)
                    yield index, outcome(calls[index], self.shared)

        backwards = initlab.compare(["nanogpt", "zero-out"], **SMALL, run=initlab.RunOptions(engine="backwards"))
    assert made == sorted(made, reverse=True) and len(made) > 2
    assert same(here, backwards)
    assert backwards.summary["run_id"].tolist() == here.summary["run_id"].tolist()


def test_an_engine_that_cannot_be_had_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for given in ({"engine": "ray2"}, {"jobs": 0}, {"engine": "here", "jobs": 2}):
        with pytest.raises(ConfigError):
            initlab.compare(["nanogpt"], **SMALL, run=initlab.RunOptions(**given, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
