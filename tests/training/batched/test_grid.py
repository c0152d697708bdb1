"""A grid on the engine that trains runs of one shape together."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn

import initlab
from initlab.corpus import load_corpus
from initlab.engines import ENGINES
from initlab.engines.batched import Batched
from initlab.engines.here import Here
from initlab.models.config import NanoGPTConfig
from initlab.recipes import registry
from initlab.training import data
from initlab.training.batched import grid as module
from initlab.training.batched import memory
from initlab.training.batched.runs import Runs
from initlab.training.execution import Execution
from initlab.training.protocol import GridConfig

pytestmark = pytest.mark.integration

MODEL = NanoGPTConfig(n_embd=16, n_head=2, block_size=8, vocab_size=256)
SIZES = {"model": MODEL, "depths": (1,), "widths": (16,), "batch_size": 2, "eval_batches": 2, "seeds": 2, "steps": 4}
RECIPES = ("nanogpt", "zero-out", "rezero")  # two of one wiring, and one of another
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def grid_of(*recipes: str, **changes) -> GridConfig:
    return GridConfig(**{"recipes": recipes, "lrs": (1e-3, 1e30), "warmups": (0, 2)} | SIZES | changes)


@pytest.fixture(scope="module")
def text() -> data.Split:
    return data.split(load_corpus())


def made(grid: GridConfig, text: data.Split, engine=Batched) -> dict[str, initlab.schema.Tables]:
    recipes = {name: registry.get(name) for name in grid.recipes}
    with Execution(grid, recipes, text, engine) as execution:
        found = {cell.run_id: tables for cell, tables in execution.results(grid.runs())}
    assert all(not isinstance(tables, str) for tables in found.values()), found
    return found


def same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, tables in expected.items():
        for table in ("training", "runs", "summary", "records"):
            ours, theirs = getattr(found[name], table), getattr(tables, table)
            timed = [column for column in ("seconds", "tokens_per_second", "mfu") if column in ours]
            drops = ours.drop(columns=timed), theirs.drop(columns=timed)
            if table == "records":  # what a gradient of almost nothing is, is rounding
                kept = [each[each["kind"] == "activation"].reset_index(drop=True) for each in drops]
                drops = kept[0], kept[1]
            pd.testing.assert_frame_equal(*drops, check_exact=False, **TOLERANCE)


def sizes_of_chunks(monkeypatch) -> list[int]:
    """Sizes of the chunks that are trained from now on."""
    chunks: list[int] = []
    train = Runs.train
    monkeypatch.setattr(Runs, "train", lambda self: (chunks.append(len(self.configs)), train(self))[1])
    return chunks


@pytest.fixture(scope="module")
def by_itself(text):
    return made(grid_of(*RECIPES), text, Here)


def test_a_grids_runs_are_those_of_an_engine_that_makes_one_at_a_time(text, by_itself, monkeypatch):
    chunks = sizes_of_chunks(monkeypatch)
    found = made(grid_of(*RECIPES), text)
    assert chunks == [16, 8]  # a wiring each
    same(found, by_itself)
    losses = pd.concat([tables.runs for tables in found.values()])
    assert losses["val_loss"].isna().any() and losses["val_loss"].notna().any()
    spent = pd.concat([tables.training for tables in found.values()])["tokens_per_second"]
    assert (spent.dropna() > 0).all() and spent.notna().any()


@pytest.mark.parametrize(("runs_that_fit", "chunks"), [(5.5, [4, 4]), (3.5, [3, 3, 2]), (0.5, [])])
def test_chunks_fit_the_memory_and_change_nothing(text, by_itself, monkeypatch, runs_that_fit, chunks):
    grid = grid_of("nanogpt")
    one = memory.bytes_a_run(
        module.Batch([(grid.runs()[0], registry.get("nanogpt"))], {"grid": grid, "split": text}).runs
    )
    monkeypatch.setattr(memory, "free", lambda device: int(runs_that_fit * one / 0.8))
    trained = sizes_of_chunks(monkeypatch)
    found = made(grid, text)
    assert trained == chunks
    same(found, {name: by_itself[name] for name in found})


def test_a_run_that_needs_more_memory_is_counted_so(text):
    def needed(**changes) -> int:
        grid = grid_of("nanogpt", **changes)
        return memory.bytes_a_run(module.Batch([(grid.runs()[-1], registry.get("nanogpt"))], shared(grid)).runs)

    def shared(grid):
        return {"grid": grid, "split": text}

    assert needed(batch_size=32) > 2 * needed(batch_size=2)
    assert needed(depths=(8,)) > 2 * needed(depths=(2,))
    assert memory.free(torch.device("cpu")) > 2**20


def test_where_memory_runs_out_chunks_are_halved(text, by_itself, monkeypatch):
    grid = grid_of("nanogpt")
    trained = sizes_of_chunks(monkeypatch)
    train = Runs.train

    def full(self):
        if len(self.configs) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return train(self)

    monkeypatch.setattr(Runs, "train", full)
    found = made(grid, text)
    assert trained == [4, 4]
    same(found, {name: by_itself[name] for name in found})


def test_where_not_even_two_fit_runs_are_made_one_by_one(text, by_itself, monkeypatch):
    def full(self):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Runs, "train", full)
    grid = grid_of("nanogpt", lrs=(1e-3,))
    found = made(grid, text)
    same(found, {name: by_itself[name] for name in found})


def test_the_seconds_of_a_pass_are_a_runs_share(text, monkeypatch):
    chunks = sizes_of_chunks(monkeypatch)
    grid = grid_of("nanogpt", "zero-out", depths=(1, 2))
    recipes = {name: registry.get(name) for name in grid.recipes}
    with Execution(grid, recipes, text, Batched) as execution:
        assert 0 < execution.seconds(grid.runs()) < 60
    assert chunks == [8, 8]  # of the recipe, at the smallest and at the largest size


class Branching(nn.Module):
    """A language model whose forward asks for a value."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.wte, self.head = nn.Embedding(256, n_embd), nn.Linear(n_embd, 256)

    def forward(self, idx):
        x = self.wte(idx)
        return self.head(x * 2 if float(x.detach().mean()) > 1e9 else x)


def branching(n_embd: int) -> nn.Module:
    return Branching(n_embd)


def plain(n_layer: int, n_embd: int) -> nn.Module:
    return nn.Sequential(nn.Embedding(256, n_embd), nn.LayerNorm(n_embd), nn.Linear(n_embd, 256))


def confirmed(recipes, engine, **changes):
    given = {"model": MODEL, "depths": [1], "lrs": [1e-3, 1e-2], "warmups": [0], "seeds": 2, "steps": 2}
    given |= {"text": initlab.Text(batch_size=2, block_size=8)} | changes
    return initlab.confirm(recipes, **given, run=initlab.RunOptions(device="cpu", engine=engine)).run.tables


def test_a_model_that_cannot_be_mapped_is_trained_one_by_one_and_told_of():
    own = {"model": None, "depths": None, "n_embd": 8}
    with pytest.warns(RuntimeWarning, match=r"branching-L0-d8-s0-lr0.001-w0 and 3 more runs of its shape are .* one: "):
        found = confirmed([branching], "batched", **own)
    expected = confirmed([branching], "here", **own)
    assert found.training["loss"].equals(expected.training["loss"])


def test_dropout_is_trained_one_by_one():
    with pytest.warns(RuntimeWarning, match="one by one: dropout draws other numbers"):
        found = confirmed(["nanogpt"], "batched", model=replace(MODEL, dropout=0.1))
    expected = confirmed(["nanogpt"], "here", model=replace(MODEL, dropout=0.1))
    assert found.training["loss"].equals(expected.training["loss"])


def test_a_function_of_ones_own_is_mapped(monkeypatch):
    chunks = sizes_of_chunks(monkeypatch)
    own = {"model": None, "depths": [1], "n_embd": 8}
    found, expected = (confirmed([plain], engine, **own) for engine in ("batched", "here"))
    assert chunks == [4]
    pd.testing.assert_series_equal(found.training["loss"], expected.training["loss"], rtol=1e-5)


def test_a_grid_that_was_killed_goes_on_where_it_was(tmp_path, monkeypatch):
    given = {"model": MODEL, "depths": [1], "lrs": [1e-3, 1e-2], "warmups": [0], "seeds": 2, "steps": 3}
    given |= {"text": initlab.Text(batch_size=2)}
    options = initlab.RunOptions(device="cpu", engine="batched", out=tmp_path / "run")
    whole = initlab.confirm(RECIPES[:2], **given, run=replace(options, out=None)).run.tables
    tables = module.Batch.tables

    def killed(self, place):
        if self.cells[place].recipe == "nanogpt" and self.cells[place].lr == 1e-2:
            raise KeyboardInterrupt
        return tables(self, place)

    monkeypatch.setattr(module.Batch, "tables", killed)
    with pytest.raises(KeyboardInterrupt):
        initlab.confirm(RECIPES[:2], **given, run=options)
    kept = initlab.load(tmp_path / "run").run.tables.runs
    assert 0 < len(kept) < len(whole.runs)
    monkeypatch.setattr(module.Batch, "tables", tables)
    again = initlab.confirm(RECIPES[:2], **given, run=options).run.tables
    losses = [each.training.sort_values(["run_id", "step"]).reset_index(drop=True) for each in (again, whole)]
    assert len(losses[0]) == len(losses[1]) == 8 * 4
    pd.testing.assert_frame_equal(*(each[["run_id", "step", "lr", "loss", "val_loss"]] for each in losses), rtol=1e-5)


def test_a_run_that_fails_does_not_take_the_others_along(text, monkeypatch):
    tables = module.Batch.tables
    monkeypatch.setattr(module.Batch, "tables", lambda self, place: 1 / 0 if place == 1 else tables(self, place))
    grid = grid_of("nanogpt", lrs=(1e-3,))
    with Execution(grid, {"nanogpt": registry.get("nanogpt")}, text, Batched) as execution:
        found = [tables for _, tables in execution.results(grid.runs())]
    assert [isinstance(each, str) for each in found] == [False, True, False, False]
    broken = data.split(load_corpus("uniform", vocab_size=300))
    with warnings.catch_warnings(), Execution(grid, {"nanogpt": registry.get("nanogpt")}, broken, Batched) as execution:
        warnings.simplefilter("error")  # what is wrong with each of them is said by each
        found = [text for _, text in execution.results(grid.runs())]
    assert all("vocabulary" in each for each in found) and len(found) == 4


def test_the_engine_is_found_by_name():
    assert ENGINES.get("batched") is Batched
    assert math.isfinite(confirmed(["nanogpt"], "batched").runs["val_loss"].sum())
