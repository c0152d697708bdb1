"""Recipes trained: `train`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab import __version__
from initlab.api.gradients import with_gradients
from initlab.api.job import Job
from initlab.api.manifest import new_manifest
from initlab.api.reading import split_for, text_of
from initlab.api.run import BySteps, in_turn, run_cells
from initlab.api.side_by_side import SideBySide
from initlab.errors import ConfigError
from initlab.models.config import PRESETS
from initlab.options import RunOptions, Text, checked, checked_choice, checked_count, with_fields
from initlab.report.waiting import drawn, heard
from initlab.results import Training
from initlab.rundir import Run
from initlab.schema import Tables

if TYPE_CHECKING:
    from initlab.drawing.subject import Model

MEASURED_TOKENS = 4096  # of the batch that the model is measured on, before and after


@with_fields
@drawn
@with_gradients()
def train(
    recipes: Any,
    *,
    preset: str = "shakespeare-cpu",
    model: Model | None = None,
    roles: Mapping[str, str | None] | None = None,
    n_layer: int | None = None,
    n_embd: int | None = None,
    text: Text = Text(),
    seed: int = 0,
    watch_every: int = 0,
    checkpoint_every: int | None = None,
    run: RunOptions = RunOptions(),
    **settings: Any,
) -> Training:
    """Train models drawn from init recipes, one after another, on the same batches.

    Each model is measured before its first and after its last step. Started by torchrun, the processes train each
    model together, and the first of them measures, writes and is told of progress; the others return a Training
    without tables. A run over several machines needs `run.out` on a disk that all of them see. Models that aren't
    NanoGPTs are trained in one process, and compiled only where that is asked for.

    Args:
        recipes: one or several recipes, or functions that make models with an init of their own; the first is the
            baseline.
        preset: `shakespeare-cpu`, `shakespeare` or `gpt2`: sizes and training settings of nanoGPT.
        model: what recipes are drawn into, as `confirm` takes it, instead of the preset's; a NanoGPTConfig without a
            vocab_size has the text's.
        roles: what parameters of `model` are for, by pattern of their names, where that isn't found or found wrongly,
            as `apply_recipe` takes it.
        n_layer: of a function's models; default the preset's, or a config's or module's own.
        n_embd: likewise.
        text: the last tenth is for evaluation; a folder with nanoGPT's train.bin and val.bin is used as it is. Its
            batch_size is that of a micro-batch, default the preset's.
        seed: of weights, batches and dropout.
        watch_every: steps from one that is recorded by `watch` to the next, into runs/<run>/watch; 0: never.
        checkpoint_every: steps from one checkpoint to the next, runs/<run>/ckpt.pt; default: with every evaluation.
        run: device, folder and progress, told about steps as they are made. The folder holds tables, run.json, and per
            recipe runs/<run>/ with metrics.csv, which grows as the run does; the same call resumes, to the same losses.
        settings: instead of the preset's: steps, lr, warmup, schedule, min_lr, grad_accum, betas, weight_decay,
            grad_clip, eval_every, eval_batches, log_every, dtype, compile; see
            `initlab.training.config.TrainConfig`. None is the preset's; fewer steps alone keep its share of warmup.

    Returns:
        Training: `.runs` (a row per recipe), `.curves` (a row per logged step). A run whose loss stops being finite
        ends there, and is in the tables as diverged.

    Raises:
        RecipeError, ConfigError, DataError: an argument can't be used; nothing was trained.
        RunError: `run.out` can't be written (what was, is kept and readable) or holds another run.
        ProbeError: every recipe failed, as with too little memory, or with a checkpoint that can't be used. A single
            one is recorded in the manifest and the rest goes on.
    """
    import torch

    from initlab.drawing.loading import choose_device
    from initlab.drawing.subject import subject_of
    from initlab.measure.sweep import SweepConfig
    from initlab.training import distributed
    from initlab.training.config import settings_of

    started = time.perf_counter()
    text, run = text_of(text), checked("run", run, RunOptions)
    if run.jobs not in (None, 1) or run.engine not in ("auto", "here"):
        raise ConfigError("train makes one run after another, here; confirm takes jobs and an engine")
    watch_every = checked_count("watch_every", watch_every, 0, "a whole number of steps, 0 for never,")
    if checkpoint_every is not None:
        checkpoint_every = checked_count("checkpoint_every", checkpoint_every, 0, "a whole number of steps")
    device, out = choose_device(run.device), run.out
    checked_choice("preset", preset, PRESETS)
    usual = PRESETS[preset]
    given = [None if size is None else (size,) for size in (n_layer, n_embd)]
    default = replace(usual, vocab_size=None)
    subject = subject_of(recipes, model, (given[0], given[1]), default, ((usual.n_layer,), (usual.n_embd,)))
    if subject.makers and settings.get("compile") is None:
        settings |= {"compile": False}
    planned = settings_of(preset, device, {**settings, "batch_size": text.batch_size, "seed": seed})
    if out is None and watch_every:
        raise ConfigError("watch_every needs a folder to record into: run=initlab.RunOptions(out=…)")
    split, block_size = split_for(subject, text, usual.block_size)
    with distributed.joined(device) as (world, place):
        if world.size > 1 and subject.makers:
            raise ConfigError(
                f"{subject.makers[0].name} makes models that aren't NanoGPTs of a config, which train trains in one "
                f"process; it was started in {world.size}: leave torchrun out"
            )
        rows = max(1, min(planned.batch_size, MEASURED_TOKENS // block_size))
        described = split.describe()
        read = Text(text.data, text.tokenizer, rows, block_size)
        side = SideBySide(subject, read, corpus=split.train, described=described, roles=roles)
        sweep = SweepConfig(
            recipes=tuple(subject.items),
            model=subject.config,
            depths=subject.depths,
            widths=subject.widths,
            seeds=1,
            device=place,
        )
        side.survey(sweep, trained=True)
        if model is None:
            side.refuse_other_architectures()
        job = Job(
            side,
            replace(sweep, recipes=tuple(subject.items)),
            replace(planned, device=place),
            split,
            world,
            watch_every=watch_every,
            checkpoint_every=planned.eval_every if checkpoint_every is None else checkpoint_every,
        )
        kept = job.as_dict() | side.left_out | {"trained_as": preset, "device": device}
        kept |= {key: described.get(key) for key in ("label", "tokenizer", "sha256", "sha256_val")}
        kept["versions"] = f"initlab {__version__}, torch {torch.__version__}"
        cells = job.cells()
        evaluated = side.evaluated(job.sweep)
        manifest = new_manifest("train", kept, evaluated, described, [cell.run_id for cell in cells])
        if not world.first:
            job.follow()
            return Training(Run(Tables(), manifest))
        progress = heard(run.progress)
        told = None if progress is None else BySteps(progress)
        found, path = run_cells(
            cells,
            manifest,
            in_turn(lambda cell: job.train(cell, None if out is None else Path(out), told)),
            work=lambda cell: float(planned.steps),
            seconds=lambda todo: len(todo) * job.seconds() if todo else 0.0,
            out=out,
            progress=told or False,
            started=started,
        )
        world.told(None)
    return Training(found, path)
