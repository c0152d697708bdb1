"""What `confirm` and `transfer` share: a grid's models measured at init, then trained, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from initlab import __version__
from initlab.api.manifest import new_manifest
from initlab.api.run import Results, in_turn, run_cells
from initlab.api.side_by_side import SideBySide
from initlab.engines import choose
from initlab.errors import ProbeError
from initlab.rundir import Run

if TYPE_CHECKING:
    from initlab.drawing.subject import Subject
    from initlab.measure.sweep import Cell
    from initlab.options import RunOptions, Text
    from initlab.recipes import Base
    from initlab.training.data import Split
    from initlab.training.protocol import GridConfig


def trained_grid(
    kind: str,
    grid: GridConfig,
    subject: Subject,
    split: Split,
    text: Text,
    run: RunOptions,
    *,
    base: Base | None,
    roles: Mapping[str, str | None] | None,
    given: bool,
    started: float,
) -> tuple[Run, Path | None]:
    """Measure and train every cell of a grid that isn't in `run.out` yet.

    Args:
        kind: of the run.
        grid: what is measured and trained.
        subject: recipes, with what they are drawn into.
        split: the text, in two parts.
        text: as it was given.
        run: device, jobs and engine, folder and progress.
        base: of recipes that are relative to one; None: the smallest model's.
        roles: see `SideBySide`.
        given: a model was, so that recipes and functions may be of different architectures.
        started: time.perf_counter() at the start of the command.

    Raises:
        RecipeError, ConfigError, DataError: something can't be trained; nothing was.
        RunError: `run.out` can't be written or holds another run, or the engine can't start.
        ProbeError: no run could be trained.
    """
    import torch

    from initlab.training.execution import Execution
    from initlab.training.protocol import TrainingCell

    described = split.describe()
    read = replace(text, batch_size=grid.batch_size, block_size=grid.block_size)
    side = SideBySide(subject, read, corpus=split.train, described=described, roles=roles)
    subject.relative_to(base)
    side.survey(grid, trained=True)
    if not given:
        side.refuse_other_architectures()
    grid = replace(grid, recipes=tuple(subject.items))
    probes, runs = grid.cells(), grid.runs()
    made, jobs = choose(run.engine, run.jobs, grid.device, len(runs), run.address)
    config = side.as_dict(grid) | side.left_out
    config["versions"] = f"initlab {__version__}, torch {torch.__version__}"  # a table of two compares nothing
    ids = [cell.run_id for cell in (*probes, *runs)]
    manifest = new_manifest(kind, config, side.evaluated(grid), described, ids)
    with Execution(grid, subject.items, split, made, jobs, subject) as execution:
        manifest["environment"]["jobs"] = execution.jobs

        def results(cells: Sequence[Cell]) -> Results:
            yield from in_turn(partial(side.measure, grid))(
                [cell for cell in cells if not isinstance(cell, TrainingCell)]
            )
            yield from execution.results([cell for cell in cells if isinstance(cell, TrainingCell)])

        found, path = run_cells(
            [*probes, *runs],
            manifest,
            results,
            work=lambda cell: side.work(cell, grid) * (cell.passes(grid) if isinstance(cell, TrainingCell) else 4),
            seconds=lambda cells: execution.seconds([cell for cell in cells if isinstance(cell, TrainingCell)]),
            out=run.out,
            progress=run.progress,
            started=started,
        )
    if found.tables.runs.empty:
        failed = found.manifest["failed"]
        raise ProbeError(f"every one of {len(runs)} runs failed; the first: {failed[runs[0].run_id]}")
    return found, path
