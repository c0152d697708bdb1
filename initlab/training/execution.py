"""The runs of a grid on workers: what is sent to them, how long it will take, what comes back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from initlab.drawing.apply import portable
from initlab.errors import ProbeError
from initlab.measure.sweep import Cell
from initlab.models.nanogpt import NanoGPT
from initlab.recipes import Recipe
from initlab.schema import Tables
from initlab.training.data import Split, load_split
from initlab.training.protocol import GridConfig, TrainingCell, seconds_a_pass, train_cell
from initlab.training.workers import Failed, Here, Workers

_MEASURING = 0.03  # seconds a block, to measure a trained model: found 0.02 to 0.05 on an x86 core, T = 32 to 64


@dataclass(frozen=True, slots=True)
class Source:
    """A Split and where it was loaded from.

    It unpickles as a Split: tokens in memory travel, those on disk are mapped again where they arrive.
    """

    split: Split
    data: str | Path
    tokenizer: str | None
    vocab_size: int | None

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.split.train.tokens, self.split.val.tokens)
        if any(isinstance(tokens, np.memmap) for tokens in parts):
            return load_split, (self.data, self.tokenizer, self.vocab_size)
        return _itself, (self.split,)


def _itself(split: Split) -> Split:
    return split


class Execution:
    """Makes a grid's runs, in `jobs` processes at a time, or one after another in this one. A context manager."""

    def __init__(self, grid: GridConfig, recipes: Mapping[str, Recipe], source: Source, jobs: int):
        self.grid = grid
        self.recipes = recipes
        self.jobs = jobs
        self._pool: Here | Workers
        if jobs == 1:
            self._pool = Here({"grid": grid, "split": source.split})
        else:
            self._pool = Workers(jobs, {"grid": grid, "split": source})
        self._drawn: dict[tuple[str, int], Recipe] = {}

    def __enter__(self) -> Execution:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.__exit__()

    def results(self, cells: Sequence[TrainingCell]) -> Iterator[tuple[Cell, Tables | str]]:
        """Each run as it ends, with its tables or the text of what went wrong.

        Raises:
            RunError: no worker process can be started.
        """
        for index, found in self._pool.run([partial(train_cell, cell, recipe=self._data(cell)) for cell in cells]):
            yield cells[index], found.text if isinstance(found, Failed) else found

    def seconds(self, cells: Sequence[TrainingCell]) -> float:
        """How long the runs will take: a few steps of the shallowest and of the deepest are timed.

        A step's time is a straight line over depth: each block costs the same, also where starting its kernels takes
        longer than running them.

        Raises:
            ProbeError: neither of the two can be trained.
            RunError: no worker process can be started.
        """
        if not cells:
            return 0.0
        ends = {cell.n_layer: cell for cell in (min(cells, key=_depth), max(cells, key=_depth))}
        timed: dict[int, float] = {}
        calls = [partial(seconds_a_pass, cell, recipe=self._data(cell)) for cell in ends.values()]
        failed: list[str] = []
        for index, found in self._pool.run(calls):
            if isinstance(found, Failed):
                failed.append(found.text)
            else:
                timed[list(ends)[index]] = found
        if not timed:
            raise ProbeError(f"neither the shallowest nor the deepest model can be trained: {failed[0]}")
        depths = sorted(timed)
        total = sum(
            cell.passes(self.grid) * float(np.interp(cell.n_layer, depths, [timed[depth] for depth in depths]))
            + _MEASURING * cell.n_layer
            for cell in cells
        )
        return total / min(self.jobs, len(cells))

    def _data(self, cell: Cell) -> Recipe:
        """The recipe as data for models of this depth: a user's own function can't be sent to another process."""
        key = (cell.recipe, cell.n_layer)
        if key not in self._drawn:
            with torch.device("meta"):
                model = NanoGPT(cell.config(self.grid))
            self._drawn[key] = portable(self.recipes[cell.recipe], model)
        return self._drawn[key]


def _depth(cell: Cell) -> int:
    return cell.n_layer
