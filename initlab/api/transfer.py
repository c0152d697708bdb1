"""Whether the best learning rate of a small model holds for a larger one: `transfer`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from initlab import __version__
from initlab.api.manifest import new_manifest
from initlab.api.run import Results, in_turn, run_cells
from initlab.api.side_by_side import SideBySide
from initlab.engines import choose
from initlab.errors import ProbeError
from initlab.models.config import NanoGPTConfig, refuse_other_models
from initlab.options import RunOptions, Text, checked
from initlab.recipes import Base, Recipe, registry
from initlab.recipes.base import Rule
from initlab.results.trained import Transfer

if TYPE_CHECKING:
    from initlab.measure.sweep import Cell


def transfer(
    recipes: str | Recipe | Rule | Sequence[str | Recipe | Rule],
    *,
    model: NanoGPTConfig | None = None,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    lrs: Sequence[float] | None = None,
    base: Base | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    warmup: int | None = None,
    schedule: str = "cosine",
    weight_decay: float = 0.1,
    grad_clip: float = 1.0,
    text: Text = Text(),
    dtype: str | None = None,
    thorough: bool = False,
    run: RunOptions = RunOptions(),
) -> Transfer:
    """Train recipes at several widths or depths and rates, and say whether the best rate of the smallest holds.

    The widths are trained at the smallest depth, and the depths at the smallest width. Runs are paired: at a seed, all
    sizes read the same batches, and all are evaluated on the same windows. The rate is the one that a user sets;
    recipes with an optimizer part multiply it by role and size, relative to a base.

    Args:
        recipes: one or several; the first is the baseline.
        model: options of the NanoGPTs; sizes are `widths` and `depths`, and heads keep their size. Default: those of
            `GRIDS["quick"]` of `initlab.training.transfer`, with thorough of `GRIDS["thorough"]`.
        widths: n_embd to sweep.
        depths: n_layer to sweep.
        lrs: peak learning rates of AdamW, three or more; an octave apart by default.
        base: depth and width at which recipes' multipliers are 1. Default: the smallest of the grid.
        seeds: draws of weights and order of the data; intervals need at least 2, or three sizes.
        steps: of the optimizer, in each run.
        warmup: steps of linear warmup. Default: a fifth of the steps.
        schedule: `cosine` to a tenth of the rate, or `constant`, after the warmup.
        weight_decay: of matrices.
        grad_clip: largest 2-norm of the gradient; 0 = never clipped.
        text: nine tenths are trained on, the rest is evaluated on.
        dtype: of the forward pass; default float32, with thorough on a GPU bfloat16.
        thorough: wider models, trained longer, for a GPU.
        run: device, jobs and engine, folder and progress; the same call with the same folder goes on.

    Returns:
        Transfer: `.transfers`, a row per recipe and axis with drift, verdict and cost; `.optima`, the best rates.

    Raises:
        RecipeError, ConfigError, DataError: an argument can't be used; nothing was trained.
        RunError: `run.out` can't be written or holds another run, or the engine can't start.
        ProbeError: every cell failed. A single failing one is recorded in the manifest and the rest goes on.
    """
    import torch

    from initlab.drawing.loading import choose_device
    from initlab.drawing.subject import Subject, check_list
    from initlab.training.data import load_split
    from initlab.training.execution import Execution
    from initlab.training.protocol import TrainingCell
    from initlab.training.transfer import GRIDS, TransferConfig

    started = time.perf_counter()
    text, run = checked("text", text, Text), checked("run", run, RunOptions)
    refuse_other_models(model, "transfer trains")
    for name, value in (("widths", widths), ("depths", depths), ("lrs", lrs)):
        if value is not None:
            check_list(name, value)
    chosen = choose_device(run.device)
    if dtype is None:
        dtype = "bfloat16" if thorough and chosen.startswith("cuda") else "float32"
    preset = GRIDS["thorough" if thorough else "quick"]
    model = preset["model"] if model is None else model
    if widths is None:
        widths = (model.n_embd,) if depths is not None and len(depths) > 1 else preset["widths"]
    depths = (model.n_layer,) if depths is None else depths
    steps = preset["steps"] if steps is None else steps
    split = load_split(text.data, text.tokenizer, model.vocab_size)
    sizes = {"vocab_size": split.vocab_size, "block_size": text.block_size or model.block_size}
    grid_of: dict[str, Any] = {
        "model": replace(model, **sizes),
        "depths": tuple(depths),
        "widths": tuple(widths),
        "lrs": tuple(sorted(lrs or preset["lrs"])),
        "warmups": (steps // 5 if warmup is None else warmup,),
        "seeds": preset["seeds"] if seeds is None else seeds,
        "steps": steps,
        "batch_size": text.batch_size or preset["batch_size"],
        "schedule": schedule,
        "weight_decay": weight_decay,
        "grad_clip": grad_clip,
        "dtype": dtype,
        "device": chosen,
    }
    grid = TransferConfig(recipes=tuple(registry.several(recipes)), **grid_of)
    entries = registry.several(recipes, base or Base(n_layer=min(grid.depths), n_embd=min(grid.widths)))
    split.check(grid.config(min(grid.depths), min(grid.widths)).block_size)
    probes, runs = grid.cells(), grid.runs()
    made, jobs = choose(run.engine, run.jobs, chosen, len(runs))
    described = split.describe()
    subject = Subject({**entries}, None, grid.model, grid.depths, grid.widths)
    side = SideBySide(subject, text, rows=grid.batch_size, corpus=split.train, described=described)
    config = grid.as_dict() | {key: described[key] for key in ("label", "tokenizer", "sha256")}
    config["versions"] = f"initlab {__version__}, torch {torch.__version__}"
    manifest = new_manifest(
        "transfer", config, side.evaluated(grid), described, [cell.run_id for cell in (*probes, *runs)]
    )
    manifest["environment"]["jobs"] = jobs
    with Execution(grid, entries, split, made, jobs) as execution:

        def results(cells: Sequence[Cell]) -> Results:
            yield from in_turn(partial(side.measure, grid))(
                [cell for cell in cells if not isinstance(cell, TrainingCell)]
            )
            yield from execution.results([cell for cell in cells if isinstance(cell, TrainingCell)])

        found, path = run_cells(
            [*probes, *runs],
            manifest,
            results,
            work=lambda cell: cell.flops(grid) * (cell.passes(grid) if isinstance(cell, TrainingCell) else 4),
            seconds=lambda cells: execution.seconds([cell for cell in cells if isinstance(cell, TrainingCell)]),
            out=run.out,
            progress=run.progress,
            started=started,
        )
    if found.tables.runs.empty:
        failed = found.manifest["failed"]
        raise ProbeError(f"every one of {len(runs)} runs failed; the first: {failed[runs[0].run_id]}")
    return Transfer(found, path)
