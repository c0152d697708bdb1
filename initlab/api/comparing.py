"""Recipes measured side by side: `compare`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from initlab import __version__, rundir
from initlab.api.manifests import annotate, new_manifest
from initlab.errors import ConfigError, InitlabError, ProbeError
from initlab.judge import theory
from initlab.recipes import Recipe, registry
from initlab.recipes.base import Rule
from initlab.recipes.tabulating import evaluate
from initlab.results import Comparison, now
from initlab.rundir import Run, RunDir
from initlab.schema import Tables

if TYPE_CHECKING:
    from initlab.measure.sweeping import Cell, SweepConfig


class Progress(Protocol):
    """Told how a comparison advances; the command line draws it."""

    def start(self, work: float, cells: int, seconds: float) -> None:
        """Before the first cell: all work, in any unit, the number of cells, and an estimate of the seconds."""

    def advance(self, work: float, text: str) -> None:
        """After each cell."""


def compare(
    recipes: Sequence[str | Recipe | Rule],
    *,
    depths: Sequence[int] = (4, 8, 16),
    widths: Sequence[int] = (384,),
    seeds: int = 3,
    n_head: int | None = None,
    block_size: int = 256,
    batch_size: int = 4,
    vocab_size: int | None = None,
    bias: bool = True,
    activation: str = "gelu",
    tie_weights: bool = True,
    data: str | Path = "docstrings",
    tokenizer: str | None = None,
    stats: str = "full",
    dtype: str = "float32",
    device: str = "auto",
    out: str | Path | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> Comparison:
    """Measure init recipes side by side on NanoGPT, over depths, widths and seeds.

    Every recipe sees the same draw (one standard normal per parameter name and seed) and the same text.

    Args:
        recipes: ids, `file.py:name`, Recipe objects, or functions `(role, dims) -> distribution`; the first is the
            baseline of the report.
        depths, widths: n_layer and n_embd to sweep.
        seeds: draws of weights and text.
        n_head: default: heads of 64, or of the next smaller divisor of n_embd.
        vocab_size: default: the tokenizer's.
        data, tokenizer: see `initlab.corpus.load_corpus`.
        device: `auto` is CUDA where there is a GPU, else the CPU.
        out: folder for tables and run.json, written as each cell finishes; the same call with the same folder
            resumes. None keeps everything in memory.
        progress: told about every cell.
        command: kept in the manifest; for the command line.

    Raises:
        RecipeError, ConfigError, DataError: an argument can't be used; nothing was measured.
        RunError: `out` can't be written or holds another run.
        ProbeError: every cell failed. A single failing cell is recorded in the manifest and the rest goes on.
    """
    import torch

    from initlab.corpus import load_corpus
    from initlab.measure.sweeping import SweepConfig, matmul_rate, measure_cell
    from initlab.models.loading import choose_device

    started = time.perf_counter()
    if isinstance(recipes, str) or not isinstance(recipes, Sequence):
        raise ConfigError(f"recipes is {recipes!r}; expected a list, as in ['nanogpt', 'xavier']")
    for name, value in (("depths", depths), ("widths", widths)):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(f"{name} is {value!r}; expected a list, as in [4, 8, 16]")
    entries = {entry.id: entry for entry in map(registry.get, recipes)}
    corpus = load_corpus(data, tokenizer, vocab_size)
    sweep = SweepConfig(
        recipes=tuple(entry.id for entry in map(registry.get, recipes)),
        depths=tuple(depths),
        widths=tuple(widths),
        seeds=seeds,
        n_head=n_head,
        block_size=block_size,
        batch_size=batch_size,
        vocab_size=corpus.vocab_size,
        bias=bias,
        activation=activation,
        tie_weights=tie_weights,
        preset=stats,  # type: ignore[arg-type]  # SweepConfig refuses others
        dtype=dtype,
        device=choose_device(device),
    )
    described = corpus.describe()
    corpus.batch(batch_size, block_size, 0)  # a text that is too short is refused before anything is written
    evaluated = {id: evaluate(entry, sweep.sizes(), bias=bias, tied=tie_weights) for id, entry in entries.items()}
    config = sweep.as_dict() | {key: described[key] for key in ("label", "tokenizer", "sha256")}
    config["versions"] = f"initlab {__version__}, torch {torch.__version__}"  # a table of two compares nothing
    cells = sweep.cells()
    manifest = new_manifest("compare", command, config, evaluated, described, [cell.run_id for cell in cells])
    folder = RunDir.open(out, manifest) if out is not None else None
    kept = rundir.load(folder.path).tables if folder else Tables()
    done = set(kept.summary["run_id"])
    todo = [cell for cell in cells if cell.run_id not in done]
    if progress is not None:
        work = sum(cell.flops(sweep) for cell in todo)
        rate = matmul_rate(sweep.device, max(sweep.widths), batch_size * block_size) if todo else 1.0
        progress.start(work, len(todo), _estimate(work, rate, todo))
    parts, failed = [kept], {}
    for cell in todo:
        try:
            tables = measure_cell(cell, sweep, entries[cell.recipe], corpus)
        except (InitlabError, torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            failed[cell.run_id] = f"{type(error).__name__}: {error}"
            if folder:
                folder.fail(cell.run_id, failed[cell.run_id])
        else:
            annotate(tables, _setting(cell, sweep, entries[cell.recipe], described, tables))
            parts.append(tables)
            if folder:
                folder.append(tables)
        if progress is not None:
            progress.advance(cell.flops(sweep), cell.run_id)
    if failed and len(failed) == len(cells):
        raise ProbeError(f"every one of {len(cells)} cells failed; the first: {next(iter(failed.values()))}")
    seconds = time.perf_counter() - started
    if folder is not None:
        return Comparison(folder.finish(now(), seconds), folder.path)
    manifest.update(finished=now(), seconds=round(seconds, 1), failed=failed)
    return Comparison(Run(Tables.concat(parts), manifest))


def _setting(
    cell: Cell, sweep: SweepConfig, recipe: Recipe, described: dict[str, Any], tables: Tables
) -> theory.Setting:
    size = next(s for s in sweep.sizes() if (s["n_layer"], s["n_embd"]) == (cell.n_layer, cell.n_embd))
    return theory.from_recipe(
        recipe,
        **size,
        bias=sweep.bias,
        tied=sweep.tie_weights,
        activation=sweep.activation,
        sum_p2=described["sum_p2"],
        repeat_rate=float(tables.summary["repeat_rate"].iloc[0]),
    )


def _estimate(work: float, rate: float, cells: list[Cell]) -> float:
    """Seconds. A model and its statistics reach about a third of a bare matrix product's rate; drawing takes some 10 ns
    a weight (measured on two x86 cores)."""
    draws = sum(12 * cell.n_embd**2 * cell.n_layer for cell in cells)
    return 3 * work / rate + 1e-8 * draws
