"""The confirming grid: what is trained, how runs are paired, and what a run leaves."""

import math

import numpy as np
import pytest

from initlab.corpus import load_corpus
from initlab.errors import ConfigError
from initlab.models.config import NanoGPTConfig
from initlab.recipes import Constant, Normal, Recipe, Role, registry
from initlab.training import data, protocol
from initlab.training.protocol import GRIDS, GridConfig, TrainingCell, seconds_a_pass, train_cell

MODEL = NanoGPTConfig(n_embd=16, n_head=2, block_size=8, vocab_size=256)
TINY = {"model": MODEL, "depths": (1,), "widths": (16,), "batch_size": 2, "eval_batches": 2}


def tiny(**changes):
    return GridConfig(
        **{"recipes": ("nanogpt", "zero-out"), "lrs": (1e-3, 1e-2), "warmups": (0, 2), "seeds": 2, "steps": 3}
        | TINY
        | changes
    )


@pytest.fixture(scope="module")
def text():
    return data.split(load_corpus())


def trained(text, recipe="nanogpt", grid=None, **cell):
    grid = grid or tiny()
    entry = recipe if isinstance(recipe, Recipe) else registry.get(recipe)
    where = {"n_layer": 1, "n_embd": 16, "seed": 0, "lr": 1e-2, "warmup": 0} | cell
    return train_cell(TrainingCell(entry.id, **where), grid, entry, text)


def test_runs_come_so_that_a_part_still_compares():
    runs = tiny(depths=(2, 1), seeds=2).runs()
    assert len(runs) == len({cell.run_id for cell in runs}) == 2 * 2 * 2 * 2 * 2
    assert [cell.recipe for cell in runs[:4]] == ["nanogpt", "zero-out"] * 2
    assert [cell.n_layer for cell in runs] == sorted(cell.n_layer for cell in runs)
    first_depth = [cell.seed for cell in runs if cell.n_layer == 1]
    assert first_depth == sorted(first_depth)
    assert runs[0].run_id == "nanogpt-L1-d16-s0-lr0.001-w0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lrs": ()}, "lrs is empty"),
        ({"warmups": ()}, "warmups is empty"),
        ({"recipes": ()}, "recipes is empty"),
        ({"lrs": (1e-3, 0.001)}, "lrs has '0.001' more than once"),
        ({"lrs": (1e-3, 1.0000001e-3)}, "lrs has '0.001' more than once"),  # the run's id couldn't tell them apart
        ({"warmups": (2, 2)}, "warmups has 2 more than once"),
        ({"lrs": ("fast",)}, "lrs holds 'fast'; expected learning rates above 0"),
        ({"lrs": (0.0,)}, "lrs holds 0.0"),
        ({"lrs": (math.nan,)}, "lrs holds nan"),
        ({"lrs": (math.inf,)}, "lrs holds inf"),
        ({"lrs": (True,)}, "lrs holds True"),
        ({"warmups": (0.5,)}, "warmups holds 0.5; expected steps"),
        ({"warmups": (-1,)}, "warmups holds -1"),
        ({"warmups": (0, 3)}, "warmups holds 3 for runs of 3 steps; expected fewer"),
        ({"steps": 0}, "steps is 0; expected a whole number from 1 on"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"seeds": 0}, "seeds is 0"),
        ({"schedule": "linear"}, "unknown schedule 'linear'"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
    ],
)
def test_a_grid_that_cannot_be_trained_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


@pytest.mark.parametrize("name", GRIDS)
def test_the_grids_that_are_shipped_can_be_trained(name):
    grid = GridConfig(recipes=("nanogpt",), **protocol.grid_values(name))
    assert 0 in grid.warmups and len(grid.warmups) > 1 and grid.seeds >= 3


def test_a_warmup_that_is_not_given_is_a_share_of_the_steps():
    quick = GRIDS["quick"]
    assert protocol.grid_values("quick", lrs=None, depths=[2]) == quick | {"depths": (2,), "widths": (64,)}
    assert protocol.grid_values("quick", steps=15)["warmups"] == (0, 4)
    assert protocol.grid_values("thorough", steps=600)["warmups"] == (0, 100)
    assert protocol.grid_values("quick", steps=1)["warmups"] == (0,)
    assert protocol.grid_values("quick", steps=1, warmups=(3,))["warmups"] == (3,)
    with pytest.raises(ConfigError, match="steps is -5"):
        GridConfig(recipes=("nanogpt",), **protocol.grid_values("quick", steps=-5, warmups=(0,)))


def test_a_run_leaves_a_row_a_step_a_run_a_summary_and_the_stream(text):
    tables = trained(text, seed=1, warmup=2)
    (run,) = tables.runs.to_dict("records")
    assert run["run_id"] == "nanogpt-L1-d16-s1-lr0.01-w2"
    assert (run["steps"], run["steps_done"], run["tokens"], run["warmup"], run["lr"]) == (3, 3, 3 * 2 * 8, 2, 0.01)
    assert run["unigram_loss"] < run["ln_vocab"] == pytest.approx(math.log(256))
    assert abs(run["first_loss"] - run["ln_vocab"]) < 0.2
    assert math.isfinite(run["val_loss"]) and run["val_loss"] < run["first_loss"]
    assert tables.training["step"].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(tables.training["lr"][:3], [0.01 / 3, 0.02 / 3, 0.01])  # the warmup reaches the peak
    assert tables.training["val_loss"].notna().tolist() == [True, False, False, True]
    assert tables.summary["step"].tolist() == [3] and tables.summary["run_id"].tolist() == [run["run_id"]]
    assert tables.records["step"].unique().tolist() == [3]
    found = set(zip(tables.records["site"], tables.records["kind"], strict=True))
    assert found == {(site, kind) for site in protocol.SITES for kind in protocol.KINDS}
    assert len(tables.records) == len(found)  # a row each: nothing is there twice
    assert len(tables.heads) == len(tables.coverage) == 0


def test_the_model_that_is_measured_is_the_trained_one(text):
    short, long = (trained(text, grid=tiny(steps=steps, warmups=(0,))) for steps in (1, 30))
    assert float(long.summary["loss"].iloc[0]) < float(short.summary["loss"].iloc[0]) - 0.1


def test_runs_are_paired(text, monkeypatch):
    drawn = []
    batch = data.Split.batch

    def spied(self, batch_size, block_size, seed, step):
        found = batch(self, batch_size, block_size, seed, step)
        drawn.append((seed, step, found[0].tolist()))
        return found

    monkeypatch.setattr(data.Split, "batch", spied)
    base = trained(text)
    first = list(drawn)
    others = [
        trained(text, **changes) for changes in ({"lr": 1e-3}, {"warmup": 2}, {"recipe": "nanogpt-no-depth-scale"})
    ]
    assert drawn == first * 4  # the same text in the same order
    for other in others[:2]:  # the same model: only the updates differ
        assert other.runs["first_loss"].item() == base.runs["first_loss"].item()
        assert other.training["loss"][0] == base.training["loss"][0]
        assert other.training["loss"][2] != base.training["loss"][2]
    drawn.clear()
    trained(text, seed=1)
    assert [entry[2] for entry in drawn] != [entry[2] for entry in first]


def test_the_same_run_twice_is_the_same_to_the_bit(text):
    one, two = trained(text), trained(text)
    assert one.training["loss"].equals(two.training["loss"])
    assert one.records.equals(two.records)


def test_a_rate_that_diverges_is_recorded_as_that(text):
    tables = trained(text, lr=1e30)
    (run,) = tables.runs.to_dict("records")
    assert run["steps_done"] < run["steps"] == 3 and math.isnan(run["val_loss"])
    assert math.isfinite(run["first_loss"])
    assert tables.summary["step"].tolist() == [run["steps_done"]]
    assert len(tables.records)


def test_a_model_that_is_not_finite_at_init_is_recorded_as_that(text):
    def huge(role: Role, dims):
        return Constant(1.0) if role is Role.NORM_GAIN else Normal(1e30)

    tables = trained(text, Recipe(id="huge", family="user", summary="", source="here", rule=huge))
    (run,) = tables.runs.to_dict("records")
    assert run["steps_done"] == 0 and math.isnan(run["val_loss"])
    assert tables.summary["step"].tolist() == [0] and tables.summary["loss"].isna().all()
    assert tables.records.empty  # the probe of the fresh model has them


def test_the_seconds_of_a_pass_are_measured(text):
    cell = TrainingCell("nanogpt", 1, 16, 0, 1e-3, 2)
    seconds = seconds_a_pass(cell, tiny(steps=1000), registry.get("nanogpt"), text)
    assert 1e-5 < seconds < 1
