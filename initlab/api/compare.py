"""Inits measured side by side: `compare`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from initlab import __version__
from initlab.api.gradients import with_gradients
from initlab.api.manifest import new_manifest
from initlab.api.reading import text_of
from initlab.api.run import estimate, measuring, run_cells
from initlab.api.side_by_side import SideBySide
from initlab.models.config import NanoGPTConfig
from initlab.options import RunOptions, Text, checked, with_fields
from initlab.report.waiting import drawn
from initlab.results import Comparison

if TYPE_CHECKING:
    from initlab.drawing.subject import Model
    from initlab.measure.sweep import Cell
    from initlab.recipes import Base

MODEL = NanoGPTConfig(n_embd=384, n_head=6, block_size=256)
DEPTHS, WIDTHS = (4, 8, 16), (384,)


@with_fields
@drawn
@with_gradients()
def compare(
    recipes: Any,
    *,
    model: Model | None = None,
    roles: Mapping[str, str | None] | None = None,
    depths: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    base: Base | None = None,
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
        roles: what parameters of `model` are for, by pattern of their names, where that isn't found or found wrongly,
            as `apply_recipe` takes it.
        depths: n_layer to sweep. Default: a config's and a module's own; else 4, 8, 16. A module, or a function that
            doesn't take it, has its own alone.
        widths: n_embd to sweep, likewise; else 384.
        base: depth and width at which multipliers of recipes such as `mup` are 1. Default: the smallest model's.
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
    text, run = text_of(text), checked("run", run, RunOptions)
    subject = subject_of(recipes, model, (depths, widths), MODEL, (DEPTHS, WIDTHS))
    side = SideBySide(subject, text, batch=batch, roles=roles)
    subject.relative_to(base)
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
    sweep = replace(sweep, recipes=tuple(subject.items))
    if model is None:
        side.refuse_other_architectures()
    config = side.as_dict(sweep) | side.left_out | {"versions": f"initlab {__version__}, torch {torch.__version__}"}
    cells = sweep.cells()
    manifest = new_manifest("compare", config, side.evaluated(sweep), side.described, [cell.run_id for cell in cells])

    def seconds(todo: Sequence[Cell]) -> float:
        rate = matmul_rate(sweep.device, max(sweep.widths) or 64, side.tokens) if todo else 1.0
        return estimate(sum(side.work(cell, sweep) for cell in todo), rate, todo)

    options: dict[str, Any] = {"engine": run.engine, "jobs": run.jobs, "address": run.address}
    with measuring(partial(side.measure, sweep), **options, device=sweep.device, cells=len(cells)) as results:
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
