"""Recipes trained: `train`."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab import __version__, schema
from initlab.api.manifest import new_manifest
from initlab.api.metrics_file import MetricsFile, run_folder
from initlab.api.run import BySteps, in_turn, run_cells
from initlab.errors import ConfigError, RunError
from initlab.judge import theory
from initlab.models.config import PRESETS, NanoGPTConfig, refuse_other_models
from initlab.models.wired import wired
from initlab.options import RunOptions, Text, checked
from initlab.recipes import Recipe, registry
from initlab.recipes.base import Rule
from initlab.recipes.tabulating import evaluate
from initlab.results import Training
from initlab.rundir import Run
from initlab.schema import RESIDUAL_SITES, Tables

if TYPE_CHECKING:
    from torch import nn

    from initlab.measure.sweep import Cell
    from initlab.models.nanogpt import NanoGPT
    from initlab.training.config import TrainConfig
    from initlab.training.data import Split
    from initlab.training.distributed import World
    from initlab.training.telling import LossScale, StepWatch, TrainResult

MEASURED_TOKENS = 4096  # of the batch that the model is measured on, before and after
PASSES = 1.5  # seconds of a step over those of its matrix products alone, at the rate of a bare one


def train(
    recipes: str | Recipe | Rule | Sequence[str | Recipe | Rule],
    *,
    preset: str = "shakespeare-cpu",
    model: NanoGPTConfig | None = None,
    text: Text = Text(),
    seed: int = 0,
    watch_every: int = 0,
    checkpoint_every: int | None = None,
    run: RunOptions = RunOptions(),
    **settings: Any,
) -> Training:
    """Train NanoGPTs drawn from init recipes, one after another, on the same batches.

    Each model is measured before its first and after its last step. Started by torchrun, the processes train each
    model together, and the first of them measures, writes and is told of progress; the others return a Training
    without tables. A run over several machines needs `run.out` on a disk that all of them see.

    Args:
        recipes: one or several; the first is the baseline.
        preset: `shakespeare-cpu`, `shakespeare` or `gpt2`: sizes and training settings of nanoGPT.
        model: sizes and options instead of the preset's; without a vocab_size the text's.
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
    from initlab.training import distributed
    from initlab.training.config import settings_of
    from initlab.training.data import load_split

    started = time.perf_counter()
    text, run = checked("text", text, Text), checked("run", run, RunOptions)
    refuse_other_models(model, "train trains")
    if run.jobs not in (None, 1) or run.engine not in ("auto", "here"):
        raise ConfigError("train makes one run after another, here; confirm takes jobs and an engine")
    entries = registry.several(recipes)
    for name, value in (("watch_every", watch_every), ("checkpoint_every", checkpoint_every or 0)):
        if type(value) is not int or value < 0:
            raise ConfigError(f"{name} is {value!r}; expected a whole number of steps, or 0 for never")
    if "batch_size" in settings:
        raise ConfigError("batch_size is the text's: text=initlab.Text(batch_size=…)")
    device, out = choose_device(run.device), run.out
    planned = settings_of(preset, device, {**settings, "batch_size": text.batch_size, "seed": seed})
    split = load_split(text.data, text.tokenizer, None if model is None else model.vocab_size)
    sizes = replace(PRESETS[preset] if model is None else model, vocab_size=split.vocab_size)
    sizes = replace(sizes, block_size=text.block_size or sizes.block_size)
    split.check(sizes.block_size)
    if out is None and watch_every:
        raise ConfigError("watch_every needs a folder to record into: run=initlab.RunOptions(out=…)")
    with distributed.joined(device) as (world, place):
        job = _Job(
            entries,
            sizes,
            replace(planned, device=place),
            split,
            world,
            watch_every=watch_every,
            checkpoint_every=planned.eval_every if checkpoint_every is None else checkpoint_every,
        )
        size = job.size
        evaluated = {
            id: evaluate(entry, [size], bias=own.bias, tied=own.tie_weights)
            for id, entry in entries.items()
            for own in [wired(sizes, entry)]
        }
        kept = job.as_dict() | {"trained_as": preset, "device": device}
        kept |= {key: job.described.get(key) for key in ("label", "tokenizer", "sha256", "sha256_val")}
        kept["versions"] = f"initlab {__version__}, torch {torch.__version__}"
        cells = job.cells()
        manifest = new_manifest("train", kept, evaluated, job.described, [cell.run_id for cell in cells])
        if not world.first:
            job.follow()
            return Training(Run(Tables(), manifest))
        told = BySteps(run.progress) if run.progress is not None else None
        found, path = run_cells(
            cells,
            manifest,
            in_turn(lambda cell: job.train(cell, None if out is None else Path(out), told)),
            work=lambda cell: float(planned.steps),
            seconds=lambda todo: len(todo) * job.seconds() if todo else 0.0,
            out=out,
            progress=told,
            started=started,
        )
        world.told(None)
    return Training(found, path)


class _Job:
    """What is the same for every recipe, and the training of one."""

    def __init__(
        self,
        entries: dict[str, Recipe],
        sizes: NanoGPTConfig,
        config: TrainConfig,
        split: Split,
        world: World,
        *,
        watch_every: int,
        checkpoint_every: int,
    ):
        self.entries = entries
        self.sizes = sizes
        self.config = config
        self.split = split
        self.world = world
        self.watch_every = watch_every
        self.checkpoint_every = checkpoint_every
        self.described = split.describe()
        names = ("n_layer", "n_embd", "n_head", "block_size", "vocab_size")
        self.size: dict[str, int] = {name: getattr(sizes, name) for name in names}

    def cells(self) -> list[Cell]:
        from initlab.measure.sweep import Cell

        return [Cell(id, self.sizes.n_layer, self.sizes.n_embd, self.config.seed) for id in self.entries]

    def as_dict(self) -> dict[str, Any]:
        """The part of run.json that makes two runs the same; `checkpoint_every` doesn't."""
        sizes = asdict(self.sizes)
        return {
            "recipes": list(self.entries),
            "depths": [sizes.pop("n_layer")],
            "widths": [sizes.pop("n_embd")],
            "seeds": 1,
            **sizes,
            "optimizer": "adamw",
            **self.config.as_dict(),
            "watch_every": self.watch_every,
        }

    def seconds(self) -> float:
        """An estimate for one recipe."""
        from initlab.measure.sweep import DTYPES, matmul_rate
        from initlab.training.speed import flops_per_token

        c, config = self.sizes, self.config
        rows = config.batch_size
        rate = matmul_rate(config.device, c.n_embd, rows * c.block_size, DTYPES[config.dtype]) * self.world.size
        evaluations = 2 + (config.steps // config.eval_every if config.eval_every else 0)
        passes = config.steps * config.grad_accum + evaluations * config.eval_batches / 3  # forward passes alone
        return PASSES * flops_per_token(c) * passes * rows * c.block_size / rate

    def follow(self) -> None:
        """What the first process trains, until it has said that it was all."""
        while (order := self.world.told()) is not None:
            id, checkpoint = order
            self.run(self.drawn(id), id, checkpoint)

    def train(self, cell: Cell, out: Path | None, told: BySteps | None) -> Tables:
        """Measure, train and measure one recipe; tables of all of it."""
        try:
            return self._train(cell, out, told)
        except Exception as error:
            if self.world.size > 1 and not isinstance(error, RunError):
                # the others are in the middle of a step: they can't go on to the next recipe, and end with this one
                text = f"{cell.run_id} failed in the first of {self.world.size} processes"
                raise RunError(f"{text}: {type(error).__name__}: {error}") from error
            raise

    def _train(self, cell: Cell, out: Path | None, told: BySteps | None) -> Tables:
        model = self.drawn(cell.recipe)
        before = self.measure(model, cell, 0)
        folder = None if out is None else run_folder(out, cell.run_id)
        metrics = MetricsFile(folder / "metrics.csv") if folder else None

        def on_row(row: dict[str, Any]) -> None:
            if metrics is not None:
                metrics.append(row)
            if told is not None:
                loss = row["loss"] if math.isfinite(row["loss"]) else row["val_loss"]
                told.at(row["step"], f"{cell.recipe}, step {row['step']} of {self.config.steps}, loss {loss:.3f}")

        checkpoint = folder / "ckpt.pt" if folder else None
        self.world.told((cell.recipe, checkpoint))
        trained = self.run(model, cell.recipe, checkpoint, on_row, folder)
        rows = [{"run_id": cell.run_id, **row} for row in trained.rows]
        row = {
            "run_id": cell.run_id,
            "recipe": cell.recipe,
            "seed": cell.seed,
            "n_layer": cell.n_layer,
            "n_embd": cell.n_embd,
            "lr": self.config.lr,
            "warmup": self.config.warmup,
            "steps": self.config.steps,
            "steps_done": trained.steps_done,
            "tokens": trained.tokens,
            "n_params": model.num_params(),
            "ln_vocab": math.log(self.split.vocab_size),
            "unigram_loss": self.described["unigram_loss"],
            "first_loss": trained.first_loss,
            "val_loss": trained.val_loss,
            "seconds": trained.seconds,
        }
        tables = Tables(training=schema.table("training", rows), runs=schema.table("runs", [row]))
        after = self.measure(model, cell, trained.steps_done) if trained.steps_done else Tables()
        return Tables.concat([before, Tables(records=after.records, summary=after.summary), tables])

    def drawn(self, id: str) -> NanoGPT:
        from initlab.drawing.apply import apply_recipe
        from initlab.models.nanogpt import empty_model

        model = empty_model(wired(self.sizes, self.entries[id]), self.config.device)
        apply_recipe(model, self.entries[id], self.config.seed)
        return model

    def run(
        self,
        model: NanoGPT,
        id: str,
        checkpoint: Path | None,
        on_row: Callable[[dict[str, Any]], None] | None = None,
        folder: Path | None = None,
    ) -> TrainResult:
        from initlab.training import trainer

        def watched(model: nn.Module, scale: LossScale, start_step: int) -> StepWatch:
            from initlab.api.watch import watch

            place = None if folder is None else folder / "watch"
            if place is not None and not start_step:
                shutil.rmtree(place, ignore_errors=True)  # of a run that was killed before its first checkpoint
            return watch(
                model, every=self.watch_every, out=place, start_step=start_step, stats="light", loss_scale=scale
            )

        return trainer.train(
            model,
            self.split,
            self.config,
            recipe=self.entries[id],
            on_row=on_row,
            checkpoint=checkpoint,
            checkpoint_every=self.checkpoint_every,
            watcher=watched if self.watch_every else None,
        )

    def measure(self, model: NanoGPT, cell: Cell, step: int) -> Tables:
        """The init with all that is cheap to measure; the trained model's residual stream alone."""
        from initlab.anatomy.inputs import of_ids
        from initlab.measure.probe import Identity, look, measure
        from initlab.measure.sweep import DTYPES

        T = self.sizes.block_size
        rows = max(1, min(self.config.batch_size, MEASURED_TOKENS // T))
        idx, targets = self.split.batch(rows, T, self.config.seed, 0)
        identity = Identity(run_id=cell.run_id, recipe=cell.recipe, seed=cell.seed, step=step)
        entry = self.entries[cell.recipe]
        options: dict[str, Any] = {"preset": "light", "autocast": DTYPES[self.config.dtype]}
        anatomy = look(model, of_ids(model, idx, targets))
        tables = measure(model, idx, targets, identity, recipe=None if step else entry, anatomy=anatomy, **options)
        if step:
            records = tables.records
            stream = records["site"].isin(RESIDUAL_SITES) & records["kind"].isin(["activation", "grad"])
            tables.records = records[stream].reset_index(drop=True)
        else:
            theory.expect(tables, anatomy.wirings, self.described, targets.numpy(), recipe=entry, dims=anatomy.dims)
        return tables
