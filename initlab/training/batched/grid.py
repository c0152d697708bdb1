"""A grid's runs, those of one shape side by side, as many at a time as the memory holds.

On a GPU a small model leaves most of it idle, and the CPU that starts its kernels is what a step waits for. On a CPU
there is nothing to gain: there a process for each core is as fast, and one run in each.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from initlab.drawing.groups import adam_groups
from initlab.engines import Call, Failed, outcome
from initlab.engines.batched import together
from initlab.errors import InitlabError, RunError
from initlab.models.wired import wired
from initlab.recipes import Recipe
from initlab.schema import Tables
from initlab.training.batched.memory import fitting
from initlab.training.batched.runs import Runs
from initlab.training.protocol import TIMED_STEPS, TrainingCell, drawn, seconds_a_pass, tables_of, train_cell
from initlab.training.task import Task
from initlab.training.trainer import refuse_what_cannot_be_trained


def train_together(calls: Sequence[Call], shared: Mapping[str, Any]) -> Iterator[tuple[int, Tables | Failed]]:
    """Make calls of `train_cell`; yield (index, result) as chunks of them end.

    Runs that can't be trained side by side (a model that draws at random, that branches on values, that torch can't
    map) are made one by one, with a warning that says why.

    Args:
        calls: partial objects of `train_cell`.
        shared: its other arguments.

    Raises:
        RunError: a call raised it.
    """
    alike: dict[Hashable, list[int]] = {}
    for index, call in enumerate(calls):
        alike.setdefault(_shape(*_told(call), shared), []).append(index)
    for indices in alike.values():
        yield from _alike(calls, indices, shared)


def passes_together(calls: Sequence[Call], shared: Mapping[str, Any]) -> Iterator[tuple[int, float | Failed]]:
    """Make calls of `seconds_a_pass`: a run's share of a step of as many runs as the grid has of its recipe and size.

    Args:
        calls: partial objects of `seconds_a_pass`.
        shared: its other arguments.

    Raises:
        RunError: a call raised it.
    """
    short = {**shared, "grid": replace(shared["grid"], steps=TIMED_STEPS, warmups=(0,), eval_every=0, eval_batches=1)}
    for index, call in enumerate(calls):
        asked, recipe = _told(call)
        cells = [cell for cell in shared["grid"].runs() if _model(cell) == _model(asked)]
        few = [(replace(cell, warmup=0), recipe) for cell in cells]
        try:
            size = fitting(Batch(few[:1], short).runs)
            runs = Batch(few[:size], short).runs
            rows = runs.train()[0].rows
            yield index, runs.step_tokens / statistics.median(row["tokens_per_second"] for row in rows[1:-1])
        except RunError:
            raise
        except Exception:  # it is timed by itself, and fails by itself if it does
            yield index, outcome(call, shared)


class Batch:
    """Runs of one shape. Those of a recipe and seed start from one draw, as by themselves from equal ones.

    Args:
        pairs: each run, with its recipe as `train_cell` takes it.
        shared: the other arguments of `train_cell`.

    Raises:
        InitlabError: a model can't be drawn, or trained.
        Refused: they can't be trained side by side.
    """

    def __init__(self, pairs: Sequence[tuple[TrainingCell, Recipe | None]], shared: Mapping[str, Any]):
        started = time.perf_counter()
        self.grid, self.split = shared["grid"], shared["split"]
        self.cells = [cell for cell, _ in pairs]
        configs = [cell.training(self.grid) for cell in self.cells]
        found: dict[tuple[str, int], tuple[Task, list[dict[str, Any]]]] = {}
        for (cell, recipe), config in zip(pairs, configs, strict=True):
            if (cell.recipe, cell.seed) not in found:
                task, own, anatomy = drawn(cell, self.grid, recipe, shared.get("subject"))
                refuse_what_cannot_be_trained(task, self.split)
                decay = config.weight_decay
                groups = adam_groups(task.model, own, lr=config.lr, weight_decay=decay, anatomy=anatomy)
                found[cell.recipe, cell.seed] = task, groups
        each = [found[cell.recipe, cell.seed] for cell in self.cells]
        self.tasks = [task for task, _ in each]
        self.runs = Runs(self.tasks, [groups for _, groups in each], self.split, configs)
        self._drawing = time.perf_counter() - started

    def train(self) -> None:
        """Train the runs. Raises Refused where they can't be trained side by side."""
        self.trained = self.runs.train()

    def tables(self, place: int) -> Tables:
        """Measure a run's trained model; return the tables of the run, as `train_cell` does.

        Args:
            place: of the run.
        """
        started = time.perf_counter()
        self.runs.write(place)
        trained = self.trained[place]
        tables = tables_of(self.cells[place], self.grid, self.tasks[place], trained, self.split)
        spent = self._drawing / len(self.cells) + trained.seconds + time.perf_counter() - started
        tables.summary["seconds"] = round(spent, 3)
        return tables


def _alike(calls: Sequence[Call], waiting: list[int], shared: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
    """Make calls of one shape, in chunks."""
    pairs = {index: _told(calls[index]) for index in waiting}
    size = 0  # of a chunk; it isn't known yet
    while waiting:
        count = 1
        try:
            if len(waiting) > 1 and size != 1:
                size = size or fitting(Batch([pairs[waiting[0]]], shared).runs)
                count = _even(len(waiting), size)
            if count > 1:
                batch = _trained([pairs[index] for index in waiting[:count]], shared)
        except torch.cuda.OutOfMemoryError:
            size = max(1, count // 2)
            continue
        except RunError:
            raise
        except Exception as error:
            if not isinstance(error, InitlabError):  # of these each run fails by itself
                why = (str(error) or type(error).__name__).strip().splitlines()[0]
                which = f"{pairs[waiting[0]][0].run_id} and {len(waiting) - 1} more runs of its shape"
                warnings.warn(f"{which} are trained one by one: {why}", RuntimeWarning, stacklevel=2)
            size = 1
            continue
        here, waiting = waiting[:count], waiting[count:]
        if count == 1:
            yield here[0], outcome(calls[here[0]], shared)
            continue
        for place, index in enumerate(here):
            yield index, outcome(partial(batch.tables, place), {})
        del batch  # before the next one is made


def _trained(pairs: Sequence[tuple[TrainingCell, Recipe | None]], shared: Mapping[str, Any]) -> Batch:
    batch = Batch(pairs, shared)
    batch.train()
    return batch


def _even(left: int, most: int) -> int:
    """The size of the next chunk, where all are to be about as large."""
    return -(-left // -(-left // most))


def _told(call: Any) -> tuple[TrainingCell, Recipe | None]:
    """The cell and the recipe of a call, as `Execution` makes them."""
    return call.args[0], call.keywords["recipe"]


def _model(cell: TrainingCell) -> tuple[str, int, int]:
    """What runs of one model but for its draw have in common."""
    return cell.recipe, cell.n_layer, cell.n_embd


def _shape(cell: TrainingCell, recipe: Recipe | None, shared: Mapping[str, Any]) -> Hashable:
    """What is equal for models that differ in weights alone."""
    if recipe is None:  # what makes it says nothing of what it makes
        return _model(cell)
    return wired(cell.config(shared["grid"]), recipe)


together(train_cell, train_together)
together(seconds_a_pass, passes_together)
