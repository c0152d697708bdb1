"""A grid's runs on an engine."""

import numpy as np
import pytest

from initlab.corpus import load_corpus
from initlab.engines.here import Here
from initlab.engines.processes import Processes
from initlab.errors import ProbeError
from initlab.models.config import NanoGPTConfig
from initlab.recipes import Normal, Recipe
from initlab.training import data
from initlab.training.execution import Execution
from initlab.training.protocol import GridConfig, train_cell

pytestmark = pytest.mark.integration

MODEL = NanoGPTConfig(n_embd=16, n_head=2, block_size=8, vocab_size=256)
SIZES = {"model": MODEL, "widths": (16,), "batch_size": 2, "eval_batches": 2, "seeds": 1, "steps": 3}


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
    with Execution(grid, {"own": recipe}, text, Processes, jobs=2) as execution:
        assert 0 < execution.seconds([run]) < 60
        ((cell, found),) = execution.results([run])
    assert cell == run
    assert not isinstance(found, str), found
    assert found.training["loss"].equals(here.training["loss"])
    assert found.records.equals(here.records)


def test_a_cell_that_fails_is_said_and_the_others_go_on(text, monkeypatch):
    monkeypatch.setattr(data.Split, "unigram_loss", property(lambda self: 1 / 0))
    grid = grid_of("own")
    with Execution(grid, {"own": own()}, text, Here) as execution:
        assert [found for _, found in execution.results(grid.runs())] == ["ZeroDivisionError: division by zero"]
    broken = data.split(load_corpus("uniform", vocab_size=300))
    with Execution(grid, {"own": own()}, broken, Here) as execution, pytest.raises(ProbeError, match="vocabulary"):
        execution.seconds(grid.runs())  # the models know 256 ids


def test_the_time_of_depths_between_lies_on_a_line(text, monkeypatch):
    from initlab.training import execution as module

    monkeypatch.setattr(module, "seconds_a_pass", lambda cell, grid, recipe, split: 0.1 * cell.n_layer)
    grid = grid_of("own", depths=(1, 2, 5))
    with Execution(grid, {"own": own()}, text, Here) as execution:
        passes = grid.runs()[0].passes(grid)
        assert execution.seconds(grid.runs()) == pytest.approx(8 * (0.1 * passes + module._MEASURING))
        assert execution.seconds([]) == 0
        # a depth that doesn't fit the memory doesn't keep the others from being trained
        monkeypatch.setattr(module, "seconds_a_pass", lambda cell, grid, recipe, split: 1 / (5 - cell.n_layer))
        assert execution.seconds(grid.runs()) == pytest.approx(3 * passes / 4 + 8 * module._MEASURING)
        monkeypatch.setattr(module, "seconds_a_pass", lambda cell, grid, recipe, split: 0.1)
        execution.jobs = 2
        assert execution.seconds(grid.runs()[:1]) == pytest.approx(0.1 * passes + module._MEASURING)
