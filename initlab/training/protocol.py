"""The grid that confirms what a probe predicts: every recipe trained at several depths, rates, warmups and seeds.

Runs are paired by construction. At a seed, every recipe starts from the same draw of each parameter, reads the same
batches in the same order at any rate and warmup, and all runs are evaluated on the same windows. So what differs
between two runs is the recipe, the rate or the warmup, and a difference over seeds has no noise of the data in it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from initlab import schema
from initlab.anatomy.look import Anatomy
from initlab.drawing.subject import Subject, check_axis, seeded
from initlab.errors import ConfigError
from initlab.measure.probe import Identity, measure_inputs
from initlab.measure.sweep import DTYPES, Cell, SweepConfig, fill_sizes
from initlab.models.config import NanoGPTConfig
from initlab.options import checked_count, checked_number, real, shown, whole
from initlab.recipes import Recipe
from initlab.schema import Tables
from initlab.training.config import Schedule, TrainConfig
from initlab.training.data import Split
from initlab.training.task import Task, task_of
from initlab.training.telling import TrainResult
from initlab.training.trainer import train

# What of a trained model is kept: the stream and what is written to it, as in the profile of a probe.
SITES = ("embed", "attn_out", "mlp_out", "resid_post", "final_norm", "logits")
KINDS = ("activation", "grad")
TIMED_STEPS = 5

# quick: 4 recipes in about 10 minutes on 2 cores, where recipes that fail to train and rates that are too high show.
# thorough: the depths at which a scaled residual branch can be told from an unscaled one, for a GPU.
GRIDS: dict[str, dict[str, Any]] = {
    "quick": {
        "model": NanoGPTConfig(n_embd=64, n_head=4, block_size=64),
        "depths": (4, 16),
        "lrs": (1e-3, 3e-3, 1e-2),
        "warmups": (0, 40),
        "seeds": 3,
        "steps": 150,
        "batch_size": 8,
    },
    "thorough": {
        "model": NanoGPTConfig(n_embd=128, n_head=4, block_size=128),
        "depths": (6, 24, 48),
        "lrs": (1e-3, 3e-3, 1e-2),
        "warmups": (0, 50),
        "seeds": 3,
        "steps": 300,
        "batch_size": 16,
    },
}


@dataclass(frozen=True, kw_only=True, slots=True)
class GridConfig(SweepConfig):
    """What is trained. The models are those of a sweep of one width; every one is trained at each rate and warmup.

    Args:
        block_size: tokens in a window, of models that aren't NanoGPTs of a config.
        lrs: peak learning rates of AdamW.
        warmups: steps of linear warmup; 0 = none.
        steps: optimizer steps of every run, of batch_size sequences each.
        schedule, min_lr, betas, weight_decay, grad_clip, eval_every, eval_batches: see `TrainConfig`.

    Raises:
        ConfigError: sizes or settings that can't be used, or contradict each other.
    """

    block_size: int | None = None
    lrs: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    warmups: tuple[int, ...] = (0,)
    steps: int = 150
    schedule: Schedule = "cosine"
    min_lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    eval_every: int = 0
    eval_batches: int = 16

    def __post_init__(self) -> None:
        for lr in self.lrs:
            if not real(lr) or not 0 < lr < math.inf:
                raise ConfigError(f"lrs holds {shown(lr)}; expected learning rates above 0, such as 1e-3")
        for warmup in self.warmups:
            if not whole(warmup) or warmup < 0:
                raise ConfigError(f"warmups holds {shown(warmup)}; expected steps: whole numbers from 0 on")
        object.__setattr__(self, "lrs", tuple(float(lr) for lr in self.lrs))
        object.__setattr__(self, "warmups", tuple(int(warmup) for warmup in self.warmups))
        for name, low in (("steps", 1), ("eval_every", 0)):
            object.__setattr__(self, name, checked_count(name, getattr(self, name), low))
        for name in ("weight_decay", "grad_clip"):
            object.__setattr__(self, name, checked_number(name, getattr(self, name)))
        check_axis("lrs", [f"{lr:g}" for lr in self.lrs])  # as they are named in a run's id
        check_axis("warmups", self.warmups)
        SweepConfig.__post_init__(self)
        if self.steps <= max(self.warmups):
            raise ConfigError(
                f"warmups holds {max(self.warmups)} for runs of {self.steps} steps; expected fewer, or the peak rate "
                "is never trained at"
            )
        self.runs()[0].training(self)

    def runs(self) -> list[TrainingCell]:
        """List the runs: shallow models first, then seed by seed, recipes side by side, so that a part compares."""
        return [
            TrainingCell(recipe, n_layer, n_embd, seed, lr, warmup)
            for n_embd in self.widths
            for n_layer in sorted(self.depths)
            for seed in range(self.seeds)
            for warmup in self.warmups
            for lr in self.lrs
            for recipe in self.recipes
        ]


@dataclass(frozen=True, slots=True)
class TrainingCell(Cell):
    """One training run of a grid."""

    lr: float
    warmup: int

    @property
    def run_id(self) -> str:
        return f"{self.recipe}-L{self.n_layer}-d{self.n_embd}-s{self.seed}-lr{self.lr:g}-w{self.warmup}"

    def training(self, grid: GridConfig) -> TrainConfig:
        """Say how the model is trained. Raises ConfigError on settings that can't be used.

        Args:
            grid: of the run.
        """
        return TrainConfig(
            steps=grid.steps,
            lr=self.lr,
            warmup=self.warmup,
            schedule=grid.schedule,
            min_lr=grid.min_lr,
            batch_size=grid.batch_size,
            betas=grid.betas,
            weight_decay=grid.weight_decay,
            grad_clip=grid.grad_clip,
            eval_every=grid.eval_every,
            eval_batches=grid.eval_batches,
            dtype=grid.dtype,
            seed=self.seed,
            device=grid.device,
        )

    def passes(self, grid: GridConfig) -> float:
        """Count the forward and backward passes over one batch that the run is worth; an evaluation is forward alone.

        Args:
            grid: of the run.
        """
        evaluations = 2 + (grid.steps // grid.eval_every if grid.eval_every else 0)
        return grid.steps + evaluations * grid.eval_batches / 3


def grid_values(name: str, **given: Any) -> dict[str, Any]:
    """Take a grid of GRIDS with what is given in place of its own; None is not given.

    A warmup is a share of a run: with other steps alone, the grid's own warmups keep their shares.

    Args:
        name: of GRIDS.
        given: fields of GridConfig.
    """
    preset = dict(GRIDS[name])
    steps = given.get("steps")
    if whole(steps) and steps > 0:
        shares = [warmup / preset["steps"] for warmup in preset["warmups"]]
        preset["warmups"] = tuple(dict.fromkeys(round(share * steps) for share in shares))
    found = {key: value for key, value in given.items() if value is not None}
    preset |= {key: tuple(value) if isinstance(value, Sequence) else value for key, value in found.items()}
    return preset | {"widths": (preset["model"].n_embd,)}


def train_cell(
    cell: TrainingCell, grid: GridConfig, recipe: Recipe | None, split: Split, subject: Subject | None = None
) -> Tables:
    """Draw a model, train it and measure it once.

    Args:
        cell: the run.
        grid: it is of.
        recipe: whose weights are drawn; None: what `subject` holds by the cell's name.
        split: the text.
        subject: what makes the models that aren't NanoGPTs of the grid's config.

    Returns:
        training (a row a step), runs (one row), summary (one row) and records: the model after the last step, on the
        first evaluation batch; of one that diverged, NaN.
    """
    started = time.perf_counter()
    task, trained = _trained(cell, grid, cell.training(grid), recipe, split, subject)
    tables = tables_of(cell, grid, task, trained, split)
    tables.summary["seconds"] = round(time.perf_counter() - started, 3)
    return tables


def tables_of(cell: TrainingCell, grid: GridConfig, task: Task, trained: TrainResult, split: Split) -> Tables:
    """Measure a model that was trained; return the tables of the run, without the seconds that all of it took.

    Args:
        cell: the run.
        grid: it is of.
        task: of the model.
        trained: what came of it.
        split: the text.
    """
    tables = _trained_model(task, cell, grid, split, trained.steps_done)
    tables.training = schema.table("training", [{"run_id": cell.run_id, **row} for row in trained.rows])
    tables.runs = schema.table("runs", [run_row(cell, cell.training(grid), task, trained, split)])
    return tables


def run_row(cell: Cell, config: TrainConfig, task: Task, trained: TrainResult, split: Split) -> dict[str, Any]:
    """Make a row of the table `runs`.

    Args:
        cell: the run.
        config: how it was trained.
        task: of its model.
        trained: what came of it.
        split: the text.
    """
    return {
        "run_id": cell.run_id,
        "recipe": cell.recipe,
        "seed": cell.seed,
        "n_layer": cell.n_layer,
        "n_embd": cell.n_embd,
        "lr": float(config.lr),
        "warmup": config.warmup,
        "steps": config.steps,
        "steps_done": trained.steps_done,
        "tokens": trained.tokens,
        "n_params": sum(p.numel() for p in task.model.parameters()),
        "ln_vocab": math.log(task.vocab_size),
        "unigram_loss": split.unigram_loss,
        "first_loss": trained.first_loss,
        "val_loss": trained.val_loss,
        "seconds": round(trained.seconds, 3),
    }


def drawn(
    cell: Cell, grid: GridConfig, recipe: Recipe | None, subject: Subject | None
) -> tuple[Task, Recipe | None, Anatomy | None]:
    """Draw the model of a cell; return what it is trained to do, its recipe, and what was seen of it.

    Args:
        cell: the run; of one recipe, size and seed all have the same model.
        grid: it is of.
        recipe: as `train_cell` takes it.
        subject: as `train_cell` takes it.
    """
    subject = Subject({}, None, grid.model) if subject is None else subject
    if recipe is not None:
        subject = replace(subject, items={**subject.items, cell.recipe: recipe})
    with seeded(cell.seed, grid.device):  # of a function's own init
        model, anatomy = subject.drawn(cell.recipe, cell.n_layer, cell.n_embd, cell.seed, grid.device)
    return task_of(model, grid.block_size), subject.recipes.get(cell.recipe), anatomy


def _trained(
    cell: TrainingCell,
    grid: GridConfig,
    config: TrainConfig,
    recipe: Recipe | None,
    split: Split,
    subject: Subject | None,
) -> tuple[Task, TrainResult]:
    """Draw the model of a cell and train it."""
    task, own, anatomy = drawn(cell, grid, recipe, subject)
    return task, train(task.model, split, config, task=task, recipe=own, anatomy=anatomy)


def _trained_model(task: Task, cell: TrainingCell, grid: GridConfig, split: Split, step: int) -> Tables:
    inputs = task.inputs(*split.evaluation(1, grid.batch_size, task.block_size)[0])
    identity = Identity(run_id=cell.run_id, recipe=cell.recipe, seed=cell.seed, step=step)
    found = measure_inputs(task.model, inputs, identity, preset="light", autocast=DTYPES[grid.dtype])
    fill_sizes(found, cell)
    # a run that ended before its first update is the fresh model, which has been measured already
    kept = found.records["site"].isin(SITES) & found.records["kind"].isin(KINDS) & (step > 0)
    return Tables(records=found.records[kept], summary=found.summary)


def seconds_a_pass(
    cell: TrainingCell, grid: GridConfig, recipe: Recipe | None, split: Split, subject: Subject | None = None
) -> float:
    """Time a step of the run, here and now: the median of a few.

    Args:
        cell: the run.
        grid: its settings.
        recipe: as `train_cell` takes it.
        split: what it reads.
        subject: as `train_cell` takes it.
    """
    config = replace(cell.training(grid), steps=TIMED_STEPS, warmup=0, eval_every=0, eval_batches=1)
    task, trained = _trained(cell, grid, config, recipe, split, subject)
    rates = [row["tokens_per_second"] for row in trained.rows]
    known = [rate for rate in rates if rate is not None and math.isfinite(rate)]
    return grid.batch_size * task.block_size / statistics.median(known) if known else trained.seconds / TIMED_STEPS
