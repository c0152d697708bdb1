"""A planned run, cell by cell: resumes, reports progress, keeps what is finished, and records what fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab import rundir
from initlab.engines import Failed, choose
from initlab.errors import ProbeError, RunError
from initlab.options import Progress
from initlab.report.waiting import heard
from initlab.results import now
from initlab.rundir import Run, RunDir
from initlab.schema import Tables

if TYPE_CHECKING:
    from initlab.measure.sweep import Cell

_BLOCK = 0.03  # seconds that a block takes to be looked at, at any width
_FIRST = 1.0  # seconds more that the first pass of a process takes

# each cell with its tables, or with the text of what went wrong
Results = Generator["tuple[Cell, Tables | str]", None, None]


class BySteps:
    """Progress by steps, for a loop that tells it by recipes."""

    def __init__(self, inner: Progress):
        self.inner = inner
        self.done = 0.0  # of this recipe

    def start(self, work: float, cells: int, seconds: float) -> None:
        self.inner.start(work, cells, seconds)

    def at(self, step: int, text: str) -> None:
        self.inner.advance(step - self.done, text)
        self.done = float(step)

    def advance(self, work: float, text: str) -> None:
        self.inner.advance(work - self.done, text)
        self.done = 0.0


def run_cells(
    cells: Sequence[Cell],
    manifest: dict[str, Any],
    results: Callable[[Sequence[Cell]], Results],
    *,
    work: Callable[[Cell], float],
    seconds: Callable[[Sequence[Cell]], float],
    out: str | Path | None,
    progress: Progress | bool | None,
    started: float,
) -> tuple[Run, Path | None]:
    """Measure every cell that isn't in `out` yet.

    Args:
        cells: of the whole run, those that are done among them.
        manifest: of the whole run; another run in the folder is refused.
        results: measures the cells it is given, in any order; see `measuring`.
        work: of one cell, in any unit.
        seconds: an estimate for several cells.
        out: the run's folder; None keeps everything in memory.
        progress: told about every cell; None: the bar of the call that is under way, where there is one.
        started: time.perf_counter() at the start of the command.

    Raises:
        RunError: `out` can't be written or holds another run, or `results` raised it.
        ProbeError: every cell failed. A single failing cell is recorded in the manifest and the rest goes on.
    """
    folder = RunDir.open(out, manifest) if out is not None else None
    parts: dict[str, Tables] = {}
    failed: dict[str, str] = {}
    try:
        kept = rundir.load(folder.path).tables if folder else Tables()
        done = set(kept.summary["run_id"])
        todo = [cell for cell in cells if cell.run_id not in done]
        told = heard(progress)
        if told is not None:
            told.start(sum(map(work, todo)), len(todo), seconds(todo))
        with closing(results(todo)) as arriving:  # closed also where a full disk or Ctrl-C ends the loop
            for cell, found in arriving:
                if isinstance(found, str):
                    failed[cell.run_id] = found
                    if folder:
                        folder.restore_if_deleted([kept, *parts.values()])
                        folder.fail(cell.run_id, found)
                else:
                    if folder:
                        folder.restore_if_deleted([kept, *parts.values()])
                        folder.append(found)
                    parts[cell.run_id] = found
                if told is not None:
                    told.advance(work(cell), cell.run_id)
        if failed and len(failed) == len(cells):
            raise ProbeError(f"every one of {len(cells)} cells failed; the first: {next(iter(failed.values()))}")
        spent = time.perf_counter() - started
        if folder is not None:
            folder.restore_if_deleted([kept, *parts.values()])
            return folder.finish(now(), spent), folder.path
    except BaseException as error:
        if folder:
            folder.close()
            if isinstance(error, KeyboardInterrupt):
                error.add_note(f"what was finished is kept in {folder.path}; the same call resumes")
        raise
    manifest.update(finished=now(), seconds=round(spent, 1), failed=failed)
    in_order = [parts[cell.run_id] for cell in cells if cell.run_id in parts]  # several jobs end in any order
    return Run(Tables.concat(in_order), manifest), None


@contextmanager
def measuring(
    measure: Callable[[Cell], Tables],
    *,
    engine: str,
    jobs: int | None,
    device: str,
    cells: int,
    address: str | None = None,
) -> Iterator[Callable[[Sequence[Cell]], Results]]:
    """Let an engine measure cells, as `run_cells` takes them; it is closed at the end.

    Args:
        measure: of a cell; it is sent once to each place where cells are measured, with what it refers to.
        engine: name, see `initlab.engines.choose`.
        jobs: cells at a time; None: 1, or as many as machines elsewhere have room for.
        device: where the models are.
        cells: how many there are.
        address: of a cluster, where the engine needs one.

    Raises:
        ConfigError: no such engine, or jobs that it can't make.
        RunError: the engine left a call out, or gave what is no result.
    """
    made, jobs = choose(engine, jobs, device, cells, address, usual=1)
    with made({"measure": measure}, jobs) as started:

        def results(cells: Sequence[Cell]) -> Results:
            waited = set(range(len(cells)))
            for index, found in started.run([partial(_measured, cell) for cell in cells]):
                if index not in waited or not isinstance(found, Failed | Tables):
                    raise RunError(
                        f"engine {type(started).__name__} gave {type(found).__name__} for call {index!r}; expected "
                        f"one result for each of {len(cells)} calls"
                    )
                waited.remove(index)
                yield cells[index], found.text if isinstance(found, Failed) else found
            if waited:
                raise RunError(
                    f"engine {type(started).__name__} gave no result for {len(waited)} of {len(cells)} calls"
                )

        yield results


def _measured(cell: Cell, measure: Callable[[Cell], Tables]) -> Tables:
    return measure(cell)


def in_turn(measure: Callable[[Cell], Tables]) -> Callable[[Sequence[Cell]], Results]:
    """Measure cells one after another in this process, as `run_cells` takes them.

    Args:
        measure: of a cell.
    """

    def results(cells: Sequence[Cell]) -> Results:
        with measuring(measure, engine="here", jobs=1, device="", cells=len(cells)) as here:
            yield from here(cells)

    return results


def estimate(work: float, rate: float, cells: Sequence[Cell]) -> float:
    """Estimate the seconds that models take to be measured.

    A model and its statistics reach two thirds of a bare matrix product's rate, beside what each block costs at any
    width and what a process's first pass does; drawing takes some 10 ns a weight. On an x86 core 10.7 s were said of
    9.4 taken at width 384, 32.5 of 27.9 at 768 with 50,304 tokens, 2.7 of 1.6 at 192.

    Args:
        work: FLOP of all cells.
        rate: of a bare matrix product, FLOP/s.
        cells: to be measured.
    """
    draws = sum(12 * cell.n_embd**2 * cell.n_layer for cell in cells)
    fixed = sum(_BLOCK * cell.n_layer for cell in cells) + _FIRST * bool(cells)
    return 1.5 * work / rate + fixed + 1e-8 * draws
