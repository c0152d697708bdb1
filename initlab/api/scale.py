"""Coord check and depth check: `scale`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from initlab import __version__
from initlab.api.gradients import with_gradients
from initlab.api.manifest import new_manifest
from initlab.api.reading import text_of
from initlab.api.run import estimate, measuring, run_cells
from initlab.api.side_by_side import SideBySide
from initlab.errors import ConfigError
from initlab.models.config import NanoGPTConfig
from initlab.options import RunOptions, Text, checked, with_fields
from initlab.report.waiting import drawn
from initlab.results import Scaling
from initlab.schema import Tables

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from initlab.anatomy.inputs import Inputs
    from initlab.anatomy.look import Anatomy
    from initlab.drawing.subject import Model
    from initlab.measure.sweep import Cell
    from initlab.recipes import Base

MODEL = NanoGPTConfig(n_layer=4, n_embd=64, n_head=1, block_size=64)
DEPTHS, WIDTHS = (4,), (64, 128, 256)
WIDTH_LR = 1e-2  # large on purpose, after mup's README: a coord check then tells the parametrisations apart
DEPTH_LR = 1e-3  # of CompleteP's depth checks
# Seconds a block and step for tables and small kernels. A guess: 16 s were estimated for a run of 12 s on an idle core.
_OVERHEAD = 0.012


@with_fields
@drawn
@with_gradients()
def scale(
    recipes: Any,
    *,
    model: Model | None = None,
    roles: Mapping[str, str | None] | None = None,
    widths: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    base: Base | None = None,
    steps: int = 3,
    seeds: int = 3,
    lr: float | None = None,
    optimizer: str | Callable[[nn.Module], Optimizer] = "adamw",
    batch: Any = None,
    text: Text = Text(),
    stats: str = "light",
    dtype: str = "float32",
    run: RunOptions = RunOptions(),
) -> Scaling:
    """Fit how activations go with width, and updates with depth, before and after a few optimizer steps.

    Answers: does a learning rate found on a small model hold for a wider or deeper one? mup's coord check, and
    CompleteP's depth check, as fitted exponents with intervals.

    Each model is made for the check, measured, and trained by an optimizer of its own; nothing of the caller's is
    stepped. The widths are measured at the smallest depth, and the depths at the smallest width. Every size sees the
    same text at a seed, and recipes the same draw; a model is trained on the batch that it is measured on.

    Args:
        recipes: one or several recipes, or functions that make models of their own, as `compare` takes them.
        model: what recipes are drawn into, as `compare` takes it, but for a torch.nn.Module, which has one size.
            Default: NanoGPT with heads of 64 and sequences of 64 tokens.
        roles: what parameters of `model` are for, by pattern of their names, where that isn't found or found wrongly,
            as `apply_recipe` takes it.
        widths: n_embd; two or more of these or of the depths. Default: 64, 128, 256, with several depths 64 alone.
        depths: n_layer. Default: a config's own, else 4.
        base: depth and width at which multipliers of recipes such as `mup` are 1. Default: the smallest model's.
        steps: of the optimizer, on one batch.
        seeds: draws of weights and text; with 3 or more the intervals are useful.
        lr: default 0.01 where several widths are given (rather large, as mup advises), else 0.001.
        optimizer: `adamw` (betas 0.9 and 0.95, eps 1e-12, no weight decay; a recipe's optimizer part multiplies),
            `sgd`, or a function from a fresh model to a torch optimizer of its own, such as mup's with a learning rate
            per group; then neither `lr` nor a recipe's optimizer part is used.
        batch: for models of functions, as `probe` takes it; default: text, ids or Gaussian inputs as they declare.
        text: what is read, as by `compare`.
        stats: `light`, or `full` for mean |x| and more.
        dtype: `bfloat16` or `float16` run the forward pass under autocast.
        run: device, folder and progress; several jobs as by `compare`.

    Returns:
        Scaling; `.slopes` is a row per recipe, axis, site and step. Exponents are of variance: half of one is the
        slope of mup's l1 = mean |x|.

    Raises:
        RecipeError, ConfigError, DataError: an argument can't be used; nothing was measured.
        ProbeError: a function's model can't be made or has the same parameters at every size; or every cell failed.
        RunError: `run.out` can't be written or holds another run.
    """
    import torch
    from torch import nn

    from initlab.drawing.loading import choose_device
    from initlab.drawing.makers import source_of
    from initlab.drawing.subject import check_list, subject_of
    from initlab.measure import steps as stepping
    from initlab.measure.sweep import matmul_rate

    started = time.perf_counter()
    text, run = text_of(text), checked("run", run, RunOptions)
    if isinstance(model, nn.Module):
        raise ConfigError(f"a {type(model).__name__} has one size; give a function of n_embd and n_layer that makes it")
    depths = None if depths is None else check_list("depths", depths)
    usual = WIDTHS[:1] if depths is not None and len(depths) > 1 else WIDTHS
    widths = usual if widths is None and isinstance(model, NanoGPTConfig) else widths
    subject = subject_of(recipes, model, (depths, widths), MODEL, (DEPTHS, usual))
    side = SideBySide(subject, text, batch=batch, roles=roles)
    subject.relative_to(base)
    own = optimizer if callable(optimizer) else None
    lr = (WIDTH_LR if len(subject.widths) > 1 else DEPTH_LR) if lr is None else lr
    config = stepping.ScaleConfig(
        recipes=tuple(subject.items),
        model=subject.config,
        depths=subject.depths,
        widths=subject.widths,
        seeds=seeds,
        steps=steps,
        lr=lr,
        optimizer=getattr(own, "__name__", "own") if own else str(optimizer),
        batch_size=side.rows,
        preset=stats,  # type: ignore[arg-type]  # SweepConfig refuses others
        dtype=dtype,
        device=choose_device(run.device),
    )
    made_by = stepping.own_optimizer(config.optimizer if own is None else "adamw", lr)
    if config.optimizer == "sgd" and (rated := [r.id for r in subject.recipes.values() if r.optimizer is not None]):
        raise ConfigError(f"{rated[0]} has rates for Adam, which SGD can't take; take adamw, or leave it out")
    side.survey(config)
    config = replace(config, recipes=tuple(subject.items))

    def measure(cell: Cell) -> Tables:
        read: list[tuple[Inputs, dict[str, Any]]] = []
        anatomies: list[Anatomy] = []
        before: list[Anatomy | None] = []  # where roles had to be looked for

        def make(cell: Cell) -> nn.Module:
            model, seen = subject.drawn(cell.recipe, cell.n_layer, cell.n_embd, cell.seed, config.device)
            before.append(seen)
            return model

        def stepped(model: nn.Module) -> Optimizer:
            if own is not None:
                return own(model)
            return made_by(model, recipe=subject.recipes.get(cell.recipe), anatomy=before[0])

        def inputs(model: nn.Module, seed: int) -> Inputs:
            read.append(side.inputs(cell.recipe, model, seed))
            return read[0][0]

        options: dict[str, Any] = {"looked": anatomies.append, "said_roles": side.said(cell.recipe)}
        tables = stepping.measure_steps(cell, config, make, inputs, stepped, **options)
        first = tables.at_step(0)
        ((made, described),) = read
        side.expect(cell.recipe, anatomies[0], first, made, described)
        rest = [tables.at_step(step) for step in tables.summary["step"] if step]
        return Tables.concat([first, *(Tables(part.records, part.heads, part.summary) for part in rest)])

    def work(cell: Cell) -> float:
        passes = 1 + 3 * config.steps  # each step is a pass, its measurement another, and a forward for the change
        return passes * side.work(cell, config)

    def seconds(todo: Sequence[Cell]) -> float:
        rate = matmul_rate(config.device, max(config.widths), side.tokens) if todo else 1.0
        fixed = sum(_OVERHEAD * cell.n_layer * (config.steps + 1) for cell in todo)
        return estimate(sum(map(work, todo)), rate, todo) + fixed

    kept = side.as_dict(config) | side.left_out | {"versions": f"initlab {__version__}, torch {torch.__version__}"}
    kept |= {"sources": [*kept.get("sources", []), source_of(own)]} if own else {}
    cells = config.cells()
    manifest = new_manifest("scale", kept, side.evaluated(config), side.described, [cell.run_id for cell in cells])
    options: dict[str, Any] = {"engine": run.engine, "jobs": run.jobs, "address": run.address}
    with measuring(measure, **options, device=config.device, cells=len(cells)) as results:
        found, path = run_cells(
            cells,
            manifest,
            results,
            work=work,
            seconds=seconds,
            out=run.out,
            progress=run.progress,
            started=started,
        )
    return Scaling(found, path)
