"""A grid's runs on workers."""

import pickle

import numpy as np
import pytest

from initlab.corpus import load_corpus
from initlab.errors import ProbeError
from initlab.recipes import Normal, Recipe
from initlab.training import data
from initlab.training.execution import Execution, Source
from initlab.training.protocol import GridConfig, train_cell

SIZES = {"widths": (16,), "n_head": 2, "block_size": 8, "batch_size": 2, "eval_batches": 2, "seeds": 1, "steps": 3}


def own(std=0.05, id="own"):
    return Recipe(id=id, family="user", summary="", source="here", rule=lambda role, dims: Normal(std))


def grid_of(*recipes, depths=(2,)):
    return GridConfig(recipes=recipes, depths=depths, lrs=(1e-3,), warmups=(0,), **SIZES)


@pytest.fixture(scope="module")
def text():
    return data.split(load_corpus())


def test_a_worker_trains_what_this_process_would_also_from_a_users_lambda(text):
    recipe = own(np.float32(0.05))  # neither the function nor numpy's number is sent
    grid = grid_of("own")
    (run,) = grid.runs()
    here = train_cell(run, grid, recipe, text)
    with Execution(grid, {"own": recipe}, Source(text, "docstrings", None, None), jobs=2) as execution:
        assert 0 < execution.seconds([run]) < 60
        ((cell, found),) = execution.results([run])
    assert cell == run
    assert not isinstance(found, str), found
    assert found.training["loss"].equals(here.training["loss"])
    assert found.records.equals(here.records)


def test_a_cell_that_fails_is_said_and_the_others_go_on(text, monkeypatch):
    monkeypatch.setattr(data.Split, "unigram_loss", property(lambda self: 1 / 0))
    grid = grid_of("own")
    with Execution(grid, {"own": own()}, Source(text, "docstrings", None, None), jobs=1) as execution:
        assert [found for _, found in execution.results(grid.runs())] == ["ZeroDivisionError: division by zero"]
    broken = Source(data.split(load_corpus("uniform", vocab_size=300)), "uniform", None, 300)
    with Execution(grid, {"own": own()}, broken, jobs=1) as execution, pytest.raises(ProbeError, match="vocabulary"):
        execution.seconds(grid.runs())  # the models know 256 ids


def test_the_time_of_depths_between_lies_on_a_line(text, monkeypatch):
    from initlab.training import execution as module

    monkeypatch.setattr(module, "seconds_a_pass", lambda cell, grid, recipe, split: 0.1 * cell.n_layer)
    grid = grid_of("own", depths=(1, 2, 5))
    with Execution(grid, {"own": own()}, Source(text, "docstrings", None, None), jobs=1) as execution:
        passes = grid.runs()[0].passes(grid)
        assert execution.seconds(grid.runs()) == pytest.approx(8 * (0.1 * passes + module._MEASURING))
        assert execution.seconds([]) == 0
        # a depth that doesn't fit the memory doesn't keep the others from being trained
        monkeypatch.setattr(module, "seconds_a_pass", lambda cell, grid, recipe, split: 1 / (5 - cell.n_layer))
        assert execution.seconds(grid.runs()) == pytest.approx(3 * passes / 4 + 8 * module._MEASURING)
        monkeypatch.setattr(module, "seconds_a_pass", lambda cell, grid, recipe, split: 0.1)
        execution.jobs = 2
        assert execution.seconds(grid.runs()[:1]) == pytest.approx(0.1 * passes + module._MEASURING)


def test_a_split_travels_in_memory_and_is_mapped_again_from_disk(text, tmp_path):
    arrived = pickle.loads(pickle.dumps(Source(text, "no such file", None, None)))
    np.testing.assert_array_equal(arrived.val.tokens, text.val.tokens)
    ids = np.arange(4000, dtype="<u2") % 50
    ids.tofile(tmp_path / "train.bin")
    ids[:1000].tofile(tmp_path / "val.bin")
    mapped = data.load_split(tmp_path, None, 64)
    sent = pickle.dumps(Source(mapped, tmp_path, None, 64))
    assert len(sent) < 1000  # the place, not the tokens
    again = pickle.loads(sent)
    assert isinstance(again.train.tokens, np.memmap) and again.vocab_size == 64
    np.testing.assert_array_equal(again.val.tokens, ids[:1000])
