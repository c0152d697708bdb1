"""Inits measured side by side: `compare`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from initlab import __version__
from initlab.api.manifest import new_manifest
from initlab.api.run import estimate, measuring, run_cells
from initlab.api.side_by_side import SideBySide
from initlab.judge import theory
from initlab.models.config import NanoGPTConfig
from initlab.options import RunOptions, Text, checked
from initlab.recipes import Recipe
from initlab.results import Comparison
from initlab.schema import Tables

if TYPE_CHECKING:
    from initlab.corpus import Corpus
    from initlab.drawing.subject import Model
    from initlab.measure.sweep import Cell, SweepConfig

MODEL = NanoGPTConfig(n_embd=384, n_head=6, block_size=256)
DEPTHS, WIDTHS = (4, 8, 16), (384,)


def compare(
    recipes: Any,
    *,
    model: Model | None = None,
    depths: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    seeds: int = 3,
    batch: Any = None,
    text: Text = Text(),
    stats: str = "full",
    dtype: str = "float32",
    run: RunOptions = RunOptions(),
) -> Comparison:
    """Measure inits of one model side by side, over depths, widths and seeds.

    Every recipe sees the same draw (one standard normal per parameter name and seed) and the same text.

    Args:
        recipes: one or several of: ids, `file.py:name`, Recipe objects, or functions `(role, dims) -> distribution`,
            drawn into `model`; or functions with a parameter n_layer or n_embd (or with none), which make models that
            are measured as they come, after torch.manual_seed(seed). The first is the baseline of the report.
        model: what recipes are drawn into, by the roles of its parameters: a NanoGPTConfig; a function of n_layer and
            n_embd that returns a torch.nn.Module (or a NanoGPTConfig), called with those of the two that it takes; or
            a torch.nn.Module, which is copied. Default: NanoGPT with heads of 64, sequences of 256 tokens, and the
            text's vocabulary.
        depths, widths: n_layer and n_embd to sweep. Default: a config's and a module's own; else 4, 8, 16 and 384. A
            module, or a function that doesn't take them, has its own alone.
        seeds: draws of weights and text.
        batch: for models that aren't NanoGPTs of a config, as `probe` takes it, at every seed. Default: made of the
            text.
        text: what is read; 4 sequences unless it says otherwise, of a NanoGPT's block_size; by another model, what
            `probe` makes for it.
        stats: `full`, or `light` for mean, var, rms and abs_max alone, without attention heads.
        dtype: `bfloat16` or `float16` run the forward pass under autocast.
        run: device, folder and progress; with several jobs, in processes with one thread each, sums may be rounded
            otherwise. Default: one job, in this process with torch's own threads.

    Raises:
        RecipeError, ConfigError, DataError: an argument can't be used; nothing was measured.
        RunError: `run.out` can't be written or holds another run.
        ProbeError: a function can't make a model, or makes the same at two sizes; or every cell failed. A single
            failing cell is recorded in the manifest and the rest goes on.
    """
    import torch

    from initlab.drawing.loading import choose_device
    from initlab.drawing.subject import subject_of
    from initlab.measure.sweep import SweepConfig, matmul_rate

    started = time.perf_counter()
    text, run = checked("text", text, Text), checked("run", run, RunOptions)
    subject = subject_of(recipes, model, (depths, widths), MODEL, (DEPTHS, WIDTHS))
    side = SideBySide(subject, text, batch=batch)
    sweep = SweepConfig(
        recipes=tuple(subject.items),
        model=subject.config,
        depths=subject.depths,
        widths=subject.widths,
        seeds=seeds,
        batch_size=side.rows,
        preset=stats,  # type: ignore[arg-type]  # SweepConfig refuses others
        dtype=dtype,
        device=choose_device(run.device),
    )
    side.survey(sweep)
    config = side.as_dict(sweep) | {"versions": f"initlab {__version__}, torch {torch.__version__}"}
    cells = sweep.cells()
    manifest = new_manifest("compare", config, side.evaluated(sweep), side.described, [cell.run_id for cell in cells])

    def measure(cell: Cell) -> Tables:
        if subject.sized(cell.recipe) is not None:
            return measured_as_made(cell, sweep, side)
        assert side.corpus is not None
        return measured(cell, sweep, subject.recipes[cell.recipe], side.corpus, side.described)

    def seconds(todo: Sequence[Cell]) -> float:
        rate = matmul_rate(sweep.device, max(sweep.widths) or 64, side.tokens) if todo else 1.0
        return estimate(sum(side.work(cell, sweep) for cell in todo), rate, todo)

    options: dict[str, Any] = {"engine": run.engine, "jobs": run.jobs or 1, "device": sweep.device, "cells": len(cells)}
    with measuring(measure, **options) as results:
        found, path = run_cells(
            cells,
            manifest,
            results,
            work=lambda cell: side.work(cell, sweep),
            seconds=seconds,
            out=run.out,
            progress=run.progress,
            started=started,
        )
    comparison = Comparison(found, path)
    comparison.recipes = subject.recipes
    return comparison


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
    from initlab.measure.sweep import SIZES

    config = cell.config(sweep)
    size = {name: getattr(config, name) for name in SIZES}
    parameters = theory.nanogpt_parameters(**size, bias=config.bias, tied=config.tie_weights)
    dims = dict(zip(parameters["module"], parameters["dims"], strict=True))
    _, targets = corpus.batch(sweep.batch_size, config.block_size, cell.seed)
    wiring = theory.Wiring(activation=config.activation, dropout=config.dropout)
    theory.expect(tables, wiring, described, targets.numpy(), recipe=recipe, dims=dims)


def measured_as_made(cell: Cell, sweep: SweepConfig, side: SideBySide) -> Tables:
    """Measure one cell that isn't a NanoGPT of a config, in the mode it is made in."""
    from initlab.drawing.subject import seeded
    from initlab.measure.probe import Identity, look, measure_inputs
    from initlab.measure.sweep import DTYPES

    started = time.perf_counter()
    options: dict[str, Any] = {"preset": sweep.preset, "recipe": side.subject.recipes.get(cell.recipe)}
    identity = Identity(run_id=cell.run_id, recipe=cell.recipe, seed=cell.seed)
    autocast = DTYPES[sweep.dtype]
    with seeded(cell.seed, sweep.device):
        model = side.subject.make(cell.recipe, cell.n_layer, cell.n_embd, cell.seed, sweep.device)
        inputs, described = side.inputs(cell.recipe, model, cell.seed)
        anatomy = look(model, inputs, seed=cell.seed, autocast=autocast)
        tables = measure_inputs(model, inputs, identity, anatomy=anatomy, autocast=autocast, **options)
        side.expect(anatomy, tables, inputs, described)
    for frame in (tables.records, tables.summary, tables.heads):  # a model without a stream has no size of its own
        for name, size in (("n_layer", cell.n_layer), ("n_embd", cell.n_embd)):
            frame[name] = frame[name].mask(frame[name] == 0, size)
    tables.summary["seconds"] = round(time.perf_counter() - started, 3)
    return tables
