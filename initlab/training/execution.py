"""The runs of a grid on an engine: what is sent there, how long it will take, what comes back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from initlab.drawing.apply import portable
from initlab.drawing.subject import Maker, Subject
from initlab.engines import Failed, Making
from initlab.errors import ProbeError
from initlab.measure.sweep import Cell
from initlab.models.nanogpt import NanoGPT
from initlab.models.wired import wired
from initlab.recipes import Recipe
from initlab.schema import Tables
from initlab.training.batched import grid as _batched  # noqa: F401  # says how runs are made together
from initlab.training.data import Split
from initlab.training.protocol import GridConfig, TrainingCell, seconds_a_pass, train_cell

_MEASURING = 0.03  # seconds a block, to measure a trained model: found 0.02 to 0.05 on an x86 core, T = 32 to 64


class Execution:
    """Makes a grid's runs on an engine. A context manager: leaving it ends them.

    Args:
        grid: what is trained.
        recipes: by id; in place of one, what makes models with an init of their own.
        split: the text.
        engine: where the runs are made.
        jobs: runs at a time.
        subject: what makes the models that aren't NanoGPTs of the grid's config.
    """

    def __init__(
        self,
        grid: GridConfig,
        recipes: Mapping[str, Recipe | Maker],
        split: Split,
        engine: Making,
        jobs: int = 1,
        subject: Subject | None = None,
    ):
        self.grid = grid
        self.recipes = recipes
        self._others = subject is not None and subject.base is not None
        shared = {} if subject is None or not subject.makers else {"subject": subject}
        self._engine = engine({"grid": grid, "split": split} | shared, jobs)
        self.jobs = self._engine.jobs
        self._drawn: dict[tuple[str, int, int], Recipe] = {}

    def __enter__(self) -> Execution:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def results(self, cells: Sequence[TrainingCell]) -> Iterator[tuple[Cell, Tables | str]]:
        """Yield each run as it ends, with its tables or the text of what went wrong.

        Args:
            cells: the runs.

        Raises:
            RunError: the engine can't start.
        """
        for index, found in self._engine.run([partial(train_cell, cell, recipe=self._data(cell)) for cell in cells]):
            yield cells[index], found.text if isinstance(found, Failed) else found

    def seconds(self, cells: Sequence[TrainingCell]) -> float:
        """Estimate how long the runs will take: a few steps of the smallest and of the largest are timed.

        A step's time is a straight line over depth: each block costs the same, also where starting its kernels takes
        longer than running them. Over width it is one over the weights.

        Args:
            cells: the runs.

        Raises:
            ProbeError: neither of the two can be trained.
            RunError: the engine can't start.
        """
        if not cells:
            return 0.0
        ends = {_size(cell): cell for cell in (min(cells, key=_size), max(cells, key=_size))}
        timed: dict[int, float] = {}
        calls = [partial(seconds_a_pass, cell, recipe=self._data(cell)) for cell in ends.values()]
        failed: list[str] = []
        for index, found in self._engine.run(calls):
            if isinstance(found, Failed):
                failed.append(found.text)
            else:
                timed[list(ends)[index]] = found
        if not timed:
            raise ProbeError(f"neither the smallest nor the largest model can be trained: {failed[0]}")
        sizes = sorted(timed)
        total = sum(
            cell.passes(self.grid) * float(np.interp(_size(cell), sizes, [timed[size] for size in sizes]))
            + _MEASURING * cell.n_layer
            for cell in cells
        )
        return total / min(self.jobs, len(cells))

    def _data(self, cell: Cell) -> Recipe | None:
        """Turn the recipe into data for NanoGPTs of this size: a user's file can't be imported everywhere."""
        key, recipe = (cell.recipe, cell.n_layer, cell.n_embd), self.recipes[cell.recipe]
        if isinstance(recipe, Maker) or self._others:
            return None  # `subject` holds it
        if key not in self._drawn:
            with torch.device("meta"):
                model = NanoGPT(wired(cell.config(self.grid), recipe))
            self._drawn[key] = portable(recipe, model)
        return self._drawn[key]


def _size(cell: Cell) -> int:
    return cell.n_layer * max(cell.n_embd, 1) ** 2
