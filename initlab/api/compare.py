"""Recipes measured side by side: `compare`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab import __version__
from initlab.api.manifest import new_manifest
from initlab.api.run import Progress, estimate, in_turn, run_cells
from initlab.errors import ConfigError
from initlab.judge import theory
from initlab.recipes import Recipe, registry
from initlab.recipes.base import Rule
from initlab.recipes.tabulating import evaluate
from initlab.results import Comparison
from initlab.schema import Tables

if TYPE_CHECKING:
    from initlab.corpus import Corpus
    from initlab.measure.sweep import Cell, SweepConfig


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
    from initlab.drawing.loading import choose_device
    from initlab.measure.sweep import SweepConfig, matmul_rate

    started = time.perf_counter()
    refuse_no_recipes(recipes)
    for name, value in (("depths", depths), ("widths", widths)):
        refuse_no_list(name, value)
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

    def measure(cell: Cell) -> Tables:
        return measured(cell, sweep, entries[cell.recipe], corpus, described)

    def seconds(todo: Sequence[Cell]) -> float:
        rate = matmul_rate(sweep.device, max(sweep.widths), batch_size * block_size) if todo else 1.0
        return estimate(sum(cell.flops(sweep) for cell in todo), rate, todo)

    run, path = run_cells(
        cells,
        manifest,
        in_turn(measure),
        work=lambda cell: cell.flops(sweep),
        seconds=seconds,
        out=out,
        progress=progress,
        started=started,
    )
    comparison = Comparison(run, path)
    comparison.recipes = entries
    return comparison


def refuse_no_recipes(recipes: Any) -> None:
    """Raises ConfigError for anything but a list."""
    if isinstance(recipes, str) or not isinstance(recipes, Sequence):
        raise ConfigError(f"recipes is {recipes!r}; expected a list, as in ['nanogpt', 'xavier']")


def refuse_no_list(name: str, value: Any, example: str = "[4, 8, 16]") -> None:
    """Raises ConfigError for one number, or a text, where a list of numbers belongs."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ConfigError(f"{name} is {value!r}; expected a list, as in {example}")


def measured(cell: Cell, sweep: SweepConfig, recipe: Recipe, corpus: Corpus, described: dict[str, Any]) -> Tables:
    """One cell, with what the closed form predicts beside it."""
    from initlab.measure.sweep import measure_cell

    tables = measure_cell(cell, sweep, recipe, corpus)
    expect_cell(tables, cell, sweep, recipe, corpus, described)
    return tables


def expect_cell(
    tables: Tables, cell: Cell, sweep: SweepConfig, recipe: Recipe, corpus: Corpus, described: dict[str, Any]
) -> None:
    """Fill in what the closed form expects of a cell, from its recipe and sizes and the batch it was measured with."""
    size = next(s for s in sweep.sizes() if (s["n_layer"], s["n_embd"]) == (cell.n_layer, cell.n_embd))
    parameters = theory.nanogpt_parameters(**size, bias=sweep.bias, tied=sweep.tie_weights)
    dims = dict(zip(parameters["module"], parameters["dims"], strict=True))
    _, targets = corpus.batch(sweep.batch_size, sweep.block_size, cell.seed)
    wiring = theory.Wiring(activation=sweep.activation)
    theory.expect(tables, wiring, described, targets.numpy(), recipe=recipe, dims=dims)
