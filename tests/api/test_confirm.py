"""`initlab.confirm`, used as a user would."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from torch import nn

import initlab
from initlab import rundir
from initlab.errors import ConfigError, DataError, ProbeError, RecipeError, RunError
from initlab.recipes import Normal, Recipe, Role, registry
from initlab.training import execution

pytestmark = pytest.mark.integration

MODEL = initlab.NanoGPTConfig(n_layer=1, n_embd=16, n_head=2, block_size=8)
TINY = {"model": MODEL, "text": initlab.Text(batch_size=2), "steps": 3}
SMALL = TINY | {"lrs": (1e-3, 1e-2), "warmups": (0, 2), "seeds": 2}


def confirm(recipes, *, jobs=1, out=None, progress=None, **options):
    return initlab.confirm(recipes, run=initlab.RunOptions(jobs=jobs, out=out, progress=progress), **options)


class Counting:
    """Notes the cells that are measured or trained; raises at a given one."""

    def __init__(self, stop=None, error=KeyboardInterrupt):
        self.cells, self.stop, self.error = [], stop, error

    def start(self, work, cells, seconds):
        self.work, self.planned, self.seconds = work, cells, seconds

    def advance(self, work, text):
        self.work -= work
        self.cells.append(text)
        if len(self.cells) == self.stop:
            raise self.error


@pytest.fixture(scope="module")
def confirmation():
    return confirm(["nanogpt", "zero-out"], **SMALL)


def test_every_cell_is_measured_and_every_run_trained(confirmation):
    run = confirmation.run
    assert run.complete and run.manifest["failed"] == {} and run.manifest["kind"] == "confirm"
    assert len(run.tables.runs) == 2 * 2 * 2 * 2
    at_init = run.tables.summary[run.tables.summary["step"] == 0]
    assert sorted(at_init["run_id"]) == [f"{r}-L1-d16-s{s}" for r in ("nanogpt", "zero-out") for s in (0, 1)]
    assert at_init["expected_loss"].notna().all()
    trained = run.tables.summary[run.tables.summary["step"] > 0]
    assert set(trained["run_id"]) == set(run.tables.runs["run_id"]) == set(run.tables.training["run_id"])
    assert set(confirmation.records["step"]) == {0, 3}
    assert {f.recipe for f in confirmation.findings} == {"nanogpt", "zero-out"}


def test_the_manifest_holds_the_whole_grid_and_the_data(confirmation):
    config = confirmation.run.manifest["config"]
    expected = {"recipes": ["nanogpt", "zero-out"], "depths": [1], "widths": [16], "lrs": [0.001, 0.01]}
    expected |= {"warmups": [0, 2], "seeds": 2, "steps": 3, "schedule": "cosine", "grad_clip": 1.0, "batch_size": 2}
    assert {key: config[key] for key in expected} == expected
    assert {"n_tokens", "n_tokens_val", "unigram_loss", "sum_p2"} <= set(confirmation.run.manifest["data"])
    assert confirmation.run.manifest["environment"]["jobs"] == 1


def test_the_findings_are_those_of_compare(confirmation):
    # on the same models and text; what a trained model looks like is not judged
    compared = initlab.compare(["nanogpt", "zero-out"], model=MODEL, seeds=2, text=TINY["text"])
    keys = [(f.code, f.recipe, f.status) for f in compared.findings]
    assert sorted(keys) == sorted((f.code, f.recipe, f.status) for f in confirmation.findings)


def test_a_run_that_was_interrupted_goes_on_where_it_was(confirmation, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt) as interrupt:
        confirm(["nanogpt", "zero-out"], **SMALL, out=out, progress=Counting(stop=7))
    assert interrupt.value.__notes__ == [f"what was finished is kept in {out}; the same call resumes"]
    assert len(rundir.load(out).tables.runs) == 7 - 4  # readable, four of them measured at init
    rest = Counting()
    resumed = confirm(["nanogpt", "zero-out"], **SMALL, out=out, progress=rest)
    assert rest.planned == len(rest.cells) == 20 - 7
    assert rest.work == pytest.approx(0, abs=1)
    assert rest.seconds > 0
    columns = [column for column in resumed.run.tables.runs if column != "seconds"]
    whole = confirmation.run.tables.runs[columns].astype({"run_id": str, "recipe": str})
    pd.testing.assert_frame_equal(resumed.run.tables.runs[columns].astype({"run_id": str, "recipe": str}), whole)
    nothing = Counting()
    loaded = confirm(["nanogpt", "zero-out"], **SMALL, out=out, progress=nothing)
    assert nothing.planned == 0 and nothing.seconds == 0 and len(loaded.run.tables.runs) == 16
    assert isinstance(initlab.load(out), initlab.Confirmation)


def test_another_grid_in_the_same_folder_is_refused(tmp_path):
    confirm(["nanogpt"], **TINY, lrs=(1e-3,), warmups=(0,), seeds=1, out=tmp_path / "run")
    with pytest.raises(RunError, match=r"holds another run \(lrs: \[0.001\] there, \[0.003\] now\)"):
        confirm(["nanogpt"], **TINY, lrs=(3e-3,), warmups=(0,), seeds=1, out=tmp_path / "run")


def failing(at):
    """train_cell, but for the runs whose id contains a text."""
    train_cell = execution.train_cell

    def train_or_fail(cell, grid, recipe, split):
        if at in cell.run_id:
            raise MemoryError("out of memory")
        return train_cell(cell, grid, recipe, split)

    return train_or_fail


def test_a_run_that_fails_is_recorded_and_tried_again(tmp_path, monkeypatch):
    grid = TINY | {"lrs": (1e-3, 1e-2), "warmups": (0,), "seeds": 1}
    with monkeypatch.context() as patch:
        patch.setattr(execution, "train_cell", failing("nanogpt-L1-d16-s0-lr0.01"))
        found = confirm(["nanogpt", "zero-out"], **grid, out=tmp_path / "run")
    assert found.run.manifest["failed"] == {"nanogpt-L1-d16-s0-lr0.01-w0": "MemoryError: out of memory"}
    assert len(found.run.tables.runs) == 3 and not found.run.complete
    again = confirm(["nanogpt", "zero-out"], **grid, out=tmp_path / "run")
    assert again.run.manifest["failed"] == {} and again.run.complete
    assert json.loads((tmp_path / "run" / "run.json").read_text())["failed"] == {}


def test_when_nothing_can_be_trained_it_is_an_error(monkeypatch):
    monkeypatch.setattr(execution, "train_cell", failing("nanogpt"))
    with pytest.raises(ProbeError, match=r"every one of 2 runs failed; the first: MemoryError: out of memory"):
        confirm(["nanogpt"], **TINY, lrs=(1e-3, 1e-2), warmups=(0,), seeds=1)


def test_a_full_disk_ends_the_run_and_keeps_what_was_finished(tmp_path, monkeypatch):
    append, calls = rundir.RunDir.append, []

    def full(self, tables):
        calls.append(tables)
        if len(calls) == 4:
            raise RunError("could not write records.csv: No space left on device")
        append(self, tables)

    grid = TINY | {"lrs": (1e-3, 1e-2), "warmups": (0,), "seeds": 2}
    with monkeypatch.context() as patch, pytest.raises(RunError, match="No space left"):
        patch.setattr(rundir.RunDir, "append", full)
        confirm(["nanogpt"], **grid, out=tmp_path / "run")
    assert len(rundir.load(tmp_path / "run").tables.runs) == 1
    assert confirm(["nanogpt"], **grid, out=tmp_path / "run").run.complete


def test_a_rate_that_diverges_does_not_stop_the_sweep():
    found = confirm(["nanogpt"], **TINY, lrs=(1e30, 1e-3), warmups=(0,), seeds=1)
    runs = found.run.tables.runs.set_index("lr")
    assert np.isnan(runs.loc[1e30, "val_loss"]) and np.isfinite(runs.loc[1e-3, "val_loss"])
    assert found.run.manifest["failed"] == {}
    assert found.run.tables.at_step(0).summary["loss"].notna().all()


def small_everywhere(role: Role, dims):
    """Everything a hundredth."""
    return Normal(0.01)


def test_recipes_are_taken_from_a_comparison(tmp_path):
    compared = initlab.compare(
        ["nanogpt", small_everywhere], model=replace(MODEL, bias=False), seeds=1, text=TINY["text"]
    )
    grid = {"depths": (1,), "text": TINY["text"], "steps": 3, "lrs": (1e-3,), "warmups": (0,), "seeds": 1}
    found = confirm(compared, **grid)
    assert found.run.manifest["config"]["recipes"] == ["nanogpt", "small_everywhere"]
    assert found.run.manifest["config"]["bias"] is False
    assert found.run.manifest["config"]["widths"] == [64]
    assert len(found.run.tables.runs) == 2
    compared.save(tmp_path / "run")
    with pytest.raises(RecipeError, match=r"'small_everywhere' of the comparison was a function.*pass the recipes"):
        confirm(initlab.load(tmp_path / "run"), **grid)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"recipes": 3}, RecipeError, "recipe is 3; expected an id"),
        (
            {"model": nn.Linear(2, 2)},
            ConfigError,
            "Linear has no table of tokens; expected a causal language model",
        ),
        ({"recipes": []}, ConfigError, "recipes is empty"),
        ({"recipes": ["nanogpt", "nanogpt"]}, ConfigError, "recipe 'nanogpt' was given more than once"),
        ({"recipes": ["nanogtp"]}, RecipeError, "did you mean nanogpt"),
        ({"lrs": 1e-3}, ConfigError, r"lrs is 0.001; expected a list, as in \[0.001, 0.003, 0.01\]"),
        ({"lrs": ()}, ConfigError, "lrs is empty"),
        ({"lrs": ("a",)}, ConfigError, "lrs holds 'a'"),
        ({"warmups": (3,)}, ConfigError, "warmups holds 3 for runs of 3 steps"),
        ({"warmups": 5}, ConfigError, "warmups is 5; expected a list"),
        ({"steps": -1}, ConfigError, "steps is -1; expected a whole number from 1 on"),
        ({"depths": 4}, ConfigError, "depths is 4; expected a list"),
        ({"model": replace(MODEL, block_size=10**7)}, DataError, "need at least 10000001"),
        ({"text": initlab.Text("no-such-file.txt")}, DataError, "no data at no-such-file.txt"),
        ({"run": initlab.RunOptions(device="tpu")}, ConfigError, "unknown device 'tpu'"),
        ({"schedule": "step"}, ConfigError, "unknown schedule 'step'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(changes, error, message, tmp_path):
    given = TINY | {"recipes": ["nanogpt"], "run": initlab.RunOptions(out=tmp_path / "run")} | changes
    with pytest.raises(error, match=message):
        initlab.confirm(**given)
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_has_no_answer_is_refused_before_anything_is_written(tmp_path):
    deep = Recipe(id="deep", family="user", summary="", source="here", rule=lambda role, dims: None)
    with pytest.raises(RecipeError, match="recipe deep returned None"):
        confirm([deep], **TINY, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_workers_train_what_this_process_trains(tmp_path):
    grid = TINY | {"lrs": (1e-3,), "warmups": (0,), "seeds": 2, "out": tmp_path / "run"}
    apart = confirm([small_everywhere], **grid | {"jobs": 2})
    assert apart.run.manifest["environment"]["jobs"] == 2
    here = confirm([small_everywhere], **grid | {"out": None})
    losses = [f.run.tables.training.sort_values(["run_id", "step"])["loss"].to_numpy() for f in (apart, here)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    # the same folder, with another number of jobs: nothing is left to do
    assert confirm([small_everywhere], **grid).run.tables.runs.equals(apart.run.tables.runs)


@pytest.mark.slow
def test_a_minute_of_training_tells_torchs_default_from_nanogpt():
    found = confirm(
        ["nanogpt", "torch-default"], depths=(4,), lrs=(3e-3,), warmups=(20,), seeds=3, steps=150, jobs=None
    )
    losses = found.run.tables.runs.pivot_table(index="seed", columns="recipe", values="val_loss", observed=True)
    gaps = losses["torch-default"] - losses["nanogpt"]
    # 3.35 (the unigram plateau) and 2.5 in facts measured before this protocol
    assert (gaps > 0.4).all()
    assert gaps.mean() > 5 * gaps.std()
    unigram = found.run.tables.runs["unigram_loss"].iloc[0]
    assert (losses["nanogpt"] < unigram - 0.3).all() and (losses["torch-default"] > unigram - 0.3).all()
    assert registry.get("torch-default").id in found.run.manifest["recipes"]
