"""The recipes of `train`: each is drawn, measured, trained and measured again."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab import schema
from initlab.api.metrics_file import MetricsFile, run_folder
from initlab.api.run import BySteps
from initlab.api.side_by_side import SideBySide
from initlab.errors import RunError
from initlab.schema import RESIDUAL_SITES, Tables

if TYPE_CHECKING:
    from torch import nn
    from torch.amp import GradScaler

    from initlab.anatomy.look import Anatomy
    from initlab.measure.sweep import Cell, SweepConfig
    from initlab.training.config import TrainConfig
    from initlab.training.data import Split
    from initlab.training.distributed import World
    from initlab.training.task import Task
    from initlab.training.telling import StepWatch, TrainResult

PASSES = 1.5  # seconds of a step over those of its matrix products alone, at the rate of a bare one


class Job:
    """What is the same for every recipe, and the training of one.

    Args:
        side: the models, and what they are measured on.
        sweep: their one size.
        config: how they are trained.
        split: the text.
        world: the processes that train them together.
        watch_every: steps from one that is watched to the next; 0: never.
        checkpoint_every: steps from one checkpoint to the next; 0: none in between.
    """

    def __init__(
        self,
        side: SideBySide,
        sweep: SweepConfig,
        config: TrainConfig,
        split: Split,
        world: World,
        *,
        watch_every: int,
        checkpoint_every: int,
    ):
        self.side, self.subject, self.sweep = side, side.subject, sweep
        self.config = config
        self.split = split
        self.world = world
        self.watch_every = watch_every
        self.checkpoint_every = checkpoint_every
        self.block_size = side.text.block_size or 0

    def cells(self) -> list[Cell]:
        """List the runs, one for each recipe."""
        from initlab.measure.sweep import Cell

        return [Cell(id, self.sweep.depths[0], self.sweep.widths[0], self.config.seed) for id in self.sweep.recipes]

    def as_dict(self) -> dict[str, Any]:
        """Gather the part of run.json that makes two runs the same; `checkpoint_every` doesn't."""
        sweep, side = self.sweep, self.side
        found: dict[str, Any] = {
            "recipes": list(sweep.recipes),
            "depths": list(sweep.depths),
            "widths": list(sweep.widths),
            "seeds": 1,
        }
        if self.subject.config is not None:
            sizes = asdict(sweep.config(sweep.depths[0], sweep.widths[0]))
            found |= {name: value for name, value in sizes.items() if name not in ("n_layer", "n_embd")}
        if self.subject.makers:
            found |= {name: side.as_dict(sweep)[name] for name in ("model", "sources")}
            found |= {"block_size": self.block_size}
        return {**found, "optimizer": "adamw", **self.config.as_dict(), "watch_every": self.watch_every}

    def seconds(self) -> float:
        """Estimate how long one recipe takes."""
        from initlab.measure.sweep import DTYPES, matmul_rate
        from initlab.training.speed import flops_per_token

        config, place = self.config, (self.sweep.depths[0], self.sweep.widths[0])
        rows, T = config.batch_size, self.block_size
        rate = matmul_rate(config.device, place[1] or 64, rows * T, DTYPES[config.dtype]) * self.world.size
        evaluations = 2 + (config.steps // config.eval_every if config.eval_every else 0)
        passes = config.steps * config.grad_accum + evaluations * config.eval_batches / 3  # forward passes alone
        counts = [6.0 * count for count in self.side.seen.counts.values()]
        counts += [flops_per_token(self.sweep.config(*place))] if self.subject.config is not None else []
        return PASSES * max(counts) * passes * rows * T / rate

    def follow(self) -> None:
        """Train what the first process trains, until it has said that it was all."""
        while (order := self.world.told()) is not None:
            id, checkpoint = order
            self.run(*self.drawn(id), id, checkpoint)

    def train(self, cell: Cell, out: Path | None, told: BySteps | None) -> Tables:
        """Measure, train and measure one recipe; return tables of all of it.

        Args:
            cell: the run.
            out: the folder of all runs; None: nothing is written.
            told: of each row.

        Raises:
            RunError: a file can't be written; another error, where several processes train.
        """
        try:
            return self._train(cell, out, told)
        except Exception as error:
            if self.world.size > 1 and not isinstance(error, RunError):
                # the others are in the middle of a step: they can't go on to the next recipe, and end with this one
                text = f"{cell.run_id} failed in the first of {self.world.size} processes"
                raise RunError(f"{text}: {type(error).__name__}: {error}") from error
            raise

    def _train(self, cell: Cell, out: Path | None, told: BySteps | None) -> Tables:
        from initlab.training.protocol import run_row

        task, anatomy = self.drawn(cell.recipe)
        before = self.measure(task, cell, 0)
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
        trained = self.run(task, anatomy, cell.recipe, checkpoint, on_row, folder)
        rows = [{"run_id": cell.run_id, **row} for row in trained.rows]
        row = run_row(cell, self.config, task, trained, self.split)
        tables = Tables(training=schema.table("training", rows), runs=schema.table("runs", [row]))
        after = self.measure(task, cell, trained.steps_done) if trained.steps_done else Tables()
        return Tables.concat([before, Tables(records=after.records, summary=after.summary), tables])

    def drawn(self, id: str) -> tuple[Task, Anatomy | None]:
        """Draw the model of a recipe; return what it is trained to do, and what was seen of it.

        Args:
            id: of the recipe.
        """
        from initlab.drawing.subject import seeded
        from initlab.training.task import task_of

        seed, device = self.config.seed, self.config.device
        with seeded(seed, device):  # of a function's own init
            model, anatomy = self.subject.drawn(id, self.sweep.depths[0], self.sweep.widths[0], seed, device)
        return task_of(model, self.block_size), anatomy

    def run(
        self,
        task: Task,
        anatomy: Anatomy | None,
        id: str,
        checkpoint: Path | None,
        on_row: Callable[[dict[str, Any]], None] | None = None,
        folder: Path | None = None,
    ) -> TrainResult:
        """Train a model that was drawn.

        Args:
            task: of the model.
            anatomy: of it.
            id: of the recipe.
            checkpoint: file to go on from and to write.
            on_row: told of each row.
            folder: of the run, for what a watch records.
        """
        from initlab.training import trainer

        def watched(model: nn.Module, scaler: GradScaler, start_step: int) -> StepWatch:
            from initlab.api.watch import watch

            place = None if folder is None else folder / "watch"
            if place is not None and not start_step:
                shutil.rmtree(place, ignore_errors=True)  # of a run that was killed before its first checkpoint
            return watch(
                model, every=self.watch_every, out=place, start_step=start_step, stats="light", loss_scale=scaler
            )

        return trainer.train(
            task.model,
            self.split,
            self.config,
            task=task,
            recipe=self.subject.recipes.get(id),
            anatomy=anatomy,
            on_row=on_row,
            checkpoint=checkpoint,
            checkpoint_every=self.checkpoint_every,
            watcher=watched if self.watch_every else None,
        )

    def measure(self, task: Task, cell: Cell, step: int) -> Tables:
        """Measure the init with all that is cheap to measure, of a trained model the residual stream alone.

        Args:
            task: of the model.
            cell: the run.
            step: updates that were made.
        """
        from initlab.measure.probe import Identity, look, measure_inputs
        from initlab.measure.sweep import DTYPES, fill_sizes

        inputs = task.inputs(*self.split.batch(self.side.rows, task.block_size, self.config.seed, 0))
        identity = Identity(run_id=cell.run_id, recipe=cell.recipe, seed=cell.seed, step=step)
        options: dict[str, Any] = {"preset": "light", "autocast": DTYPES[self.config.dtype]}
        anatomy = look(task.model, inputs, said_roles=self.side.said(cell.recipe))
        recipe = None if step else self.subject.recipes.get(cell.recipe)
        tables = measure_inputs(task.model, inputs, identity, recipe=recipe, anatomy=anatomy, **options)
        if step:
            records = tables.records
            stream = records["site"].isin(RESIDUAL_SITES) & records["kind"].isin(["activation", "grad"])
            tables.records = records[stream].reset_index(drop=True)
        else:
            self.side.expect(cell.recipe, anatomy, tables, inputs, self.side.described)
        fill_sizes(tables, cell)
        return tables
