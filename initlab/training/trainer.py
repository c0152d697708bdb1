"""One training run: nanoGPT's loop, of any causal language model, over several processes, resumed to the bit."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from initlab.anatomy.look import Anatomy
from initlab.anatomy.restoring import random_state_kept
from initlab.drawing.groups import adam_groups
from initlab.errors import ConfigError
from initlab.measure.sweep import DTYPES
from initlab.recipes import Recipe
from initlab.training import checkpoints, distributed
from initlab.training.config import TrainConfig
from initlab.training.data import Split
from initlab.training.speed import peak_flops, tf32_allowed
from initlab.training.task import Task, task_of
from initlab.training.telling import StepWatch, TrainingRow, TrainResult

# Settings that change how a run is computed, but not which run it is.
_NOT_THE_RUN = ("device", "compile")


def train(
    model: nn.Module,
    split: Split,
    config: TrainConfig,
    *,
    task: Task | None = None,
    recipe: Recipe | None = None,
    anatomy: Anatomy | None = None,
    on_row: Callable[[TrainingRow], None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 0,
    watcher: Callable[[nn.Module, torch.amp.GradScaler, int], StepWatch] | None = None,
) -> TrainResult:
    """Train a model in place, in the current process group if one was joined.

    The batch of step k is a function of (config.seed, k), and so is dropout's random state (and of the rank), so a
    run needs no stored random state to go on exactly. The whole step's batch is drawn by every process and each takes
    its rows: the losses are those of one process, but for rounding and for dropout.

    A loss that isn't finite, or a gradient norm that isn't (under float16 the scaler skips such an update instead),
    ends the run before the update. On the CPU every step is looked at; on a GPU the steps since the last row are
    looked at together, so the weights may have been updated up to log_every times more.

    Args:
        model: a causal language model, unwrapped, on any device, moved to config.device; its mode is kept.
        split: windows are drawn from it.
        config: how the model is trained.
        task: how the model is called, and on windows of how many tokens; None: found out here.
        recipe: whose optimizer part multiplies the rate, decay and eps of each parameter; None: one for all.
        anatomy: of the model, where it was looked at before, for the recipe.
        on_row: called by the first process with each row as it comes; those of the runs that are resumed come first.
        checkpoint: file to go on from if it is there; written in between and after the last update.
        checkpoint_every: updates from one to the next; 0: none in between.
        watcher: makes a watch of (the model as the loop calls it, the scale of its loss, updates done before); its
            `step(loss)` is called after each update.

    Raises:
        ConfigError: vocabulary or batch don't fit, the model is no causal language model, or all of it is frozen.
        ProbeError: the model's forward raises (chained).
        DataError: the text is too short, or holds ids outside the vocabulary.
        CheckpointError: the checkpoint can't be read, or is of another run.
        RunError: the checkpoint can't be written; the one before is kept.
    """
    task = task_of(model) if task is None else task
    refuse_what_cannot_be_trained(task, split)
    mode = model.training
    groups = adam_groups(model, recipe, lr=config.lr, weight_decay=config.weight_decay, anatomy=anatomy)
    run = _Run(task, groups, split, config, on_row)
    try:
        with tf32_allowed(run.device):
            return run.go(checkpoint, checkpoint_every, watcher)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(mode)


def refuse_what_cannot_be_trained(task: Task, split: Split) -> None:
    """Refuse a text that a model can't be trained on, and a model that can't be trained.

    Args:
        task: of the model.
        split: the text.

    Raises:
        ConfigError: the vocabulary doesn't fit, or all of the model is frozen.
        DataError: the text is too short.
    """
    if split.vocab_size > task.vocab_size:
        raise ConfigError(
            f"the data's vocabulary is {split.vocab_size} and the model's {task.vocab_size}; build the model "
            "with a vocab_size of at least the data's"
        )
    if not any(parameter.requires_grad for parameter in task.model.parameters()):
        raise ConfigError(f"every parameter of {type(task.model).__name__} is frozen; expected one that is trained")
    split.check(task.block_size)


class _Run:
    """A run in progress."""

    def __init__(
        self,
        task: Task,
        groups: list[dict[str, Any]],
        split: Split,
        config: TrainConfig,
        on_row: Callable[[TrainingRow], None] | None,
    ):
        self.world = distributed.current()
        self.micros, self.micro_rows = self.world.share(config.batch_size, config.grad_accum)
        self.device = torch.device(config.device)
        self.task = task
        self.model = model = task.model.to(self.device)
        self.split = split
        self.config = config
        self.on_row = on_row
        self.optimizer = torch.optim.AdamW(
            groups,
            betas=config.betas,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.dtype == "float16")
        # Compiled inside DDP, as nanoGPT has it. Evaluations go past DDP: its processes see different batches then.
        self.compiled: nn.Module = torch.compile(model) if config.compile else model  # type: ignore[assignment]
        self.wrapped = self.compiled
        if self.world.size > 1:
            gpus = [self.device.index] if self.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(self.compiled, device_ids=gpus)
        self.step_tokens = config.batch_size * config.grad_accum * task.block_size
        self.peak_share = task.flops / (peak_flops(self.device) * self.world.size)
        self.evaluated = split.evaluation(config.eval_batches, config.batch_size, task.block_size)
        self.rows: list[TrainingRow] = []
        self.best = math.inf
        self.unseen: list[Tensor] = []  # (loss, gradient norm) of the steps since the last look, on the device
        self.timed: tuple[float, int] | None = None  # when the last row came, and its step

    def seeding(self, *place: int) -> contextlib.AbstractContextManager[None]:
        """Dropout's random state is a function of the run and of a place in it; the caller's is untouched."""
        if not self.task.draws:
            return contextlib.nullcontext()
        seed = int(np.random.SeedSequence((self.config.seed, *place, self.world.rank)).generate_state(1)[0])
        return random_state_kept(self.device, seed)

    def go(
        self,
        checkpoint: Path | None,
        checkpoint_every: int,
        watcher: Callable[[nn.Module, torch.amp.GradScaler, int], StepWatch] | None,
    ) -> TrainResult:
        steps = self.config.steps
        started = time.perf_counter()
        first = 0
        if checkpoint is not None and checkpoints.there(checkpoint):
            state = checkpoints.restore(checkpoint, self.task, self.optimizer, self.scaler, self.identity())
            first, self.best = state.iter_num, state.best_val_loss
            started -= state.seconds
            for row in state.rows:
                self.keep(row)
        done = first
        self.model.train()
        with contextlib.ExitStack() as stack:
            watch = watcher(self.wrapped, self.scaler, first) if watcher else None
            if watch is not None:
                stack.enter_context(watch)
            for step in range(first, steps):
                saves = bool(checkpoint and checkpoint_every and (step + 1) % checkpoint_every == 0)
                bad = self.update(step, watch, look=saves)
                done = step + 1 if bad is None else bad
                if bad is not None:
                    break
                if saves and checkpoint and done < steps:
                    self.save(checkpoint, done, time.perf_counter() - started)
        val_loss = math.nan
        if done == steps:
            if first < steps:
                self.keep(self.row(steps, val_loss=self.evaluate()))
                if checkpoint is not None:
                    self.save(checkpoint, steps, time.perf_counter() - started)
            val_loss = self.rows[-1]["val_loss"]
        return TrainResult(
            rows=self.rows,
            first_loss=self.rows[0]["val_loss"],
            val_loss=val_loss if math.isfinite(val_loss) else math.nan,
            steps_done=done,
            tokens=done * self.step_tokens,
            seconds=time.perf_counter() - started,
        )

    def update(self, step: int, watch: StepWatch | None, *, look: bool) -> int | None:
        """One update; the step of a loss or gradient that isn't finite, where one was seen, else None."""
        evaluates = step == 0 or (self.config.eval_every > 0 and step % self.config.eval_every == 0)
        val_loss = self.evaluate() if evaluates else math.nan
        lr = self.config.lr_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_multiplier", 1.0)  # none in what an earlier initlab saved
        loss = self.backward(step)
        self.unseen.append(torch.stack([loss, self.clip()]))
        if (logs := evaluates or step % self.config.log_every == 0) or look or self.device.type == "cpu":
            # a GPU is waited for here alone
            seen = self.world.mean(torch.stack(self.unseen)).tolist()
            self.unseen.clear()
            finite = [math.isfinite(a) and (math.isfinite(b) or self.scaler.is_enabled()) for a, b in seen]
            bad = None if all(finite) else step - len(seen) + 1 + finite.index(False)
            if logs or bad is not None:
                at = step if bad is None else bad
                batch_loss, norm = seen[at - step - 1]
                self.keep(
                    self.row(
                        at,
                        lr=self.config.lr_at(at),
                        loss=batch_loss,
                        grad_norm=norm,
                        val_loss=val_loss if at == step else math.nan,
                        tokens_per_second=self.speed(step),
                    )
                )
            if bad is not None:
                return bad
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if watch is not None:
            watch.step(loss)
        self.optimizer.zero_grad(set_to_none=True)
        return None

    def backward(self, step: int) -> Tensor:
        """Gradients of the batch of a step; its mean loss over this process' rows, a scalar on the device."""
        config = self.config
        rows = config.batch_size * config.grad_accum
        idx, targets = self.split.batch(rows, self.task.block_size, config.seed, step)
        with self.seeding(step):
            return self.micro_batches(idx, targets)

    def micro_batches(self, idx: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), device=self.device)
        for micro in range(self.micros):
            start = (self.world.rank * self.micros + micro) * self.micro_rows
            mine = slice(start, start + self.micro_rows)
            # gradients are averaged over the processes with the last micro-batch only
            waits = isinstance(self.wrapped, DistributedDataParallel) and micro < self.micros - 1
            with self.wrapped.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
                with self.autocast():
                    loss = self.task.loss(self.wrapped, self.there(idx[mine]), self.there(targets[mine])) / self.micros
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def clip(self) -> Tensor:
        """Clip the gradients; their 2-norm before that, a scalar on the device."""
        self.scaler.unscale_(self.optimizer)
        if self.config.grad_clip:
            return nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        return nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss over the evaluation batches, nats; each process takes a share of them."""
        with self.untimed(), self.seeding():
            self.model.eval()
            total = torch.zeros((), device=self.device)
            for idx, targets in self.evaluated[self.world.rank :: self.world.size]:
                with self.autocast():
                    total += self.task.judged(self.compiled, self.there(idx), self.there(targets))
            self.model.train()
            loss = float(self.world.mean(total)) * self.world.size / len(self.evaluated)
        self.best = min(self.best, loss)
        return loss

    def autocast(self) -> torch.autocast:
        dtype = DTYPES[self.config.dtype]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def there(self, ids: Tensor) -> Tensor:
        """Send a batch to the device; it is on its way while the CPU goes on."""
        return ids if self.device.type == "cpu" else ids.pin_memory().to(self.device, non_blocking=True)

    def speed(self, step: int) -> float:
        """Tokens per second since the row before; NaN for the first row of a run, and of one that was resumed."""
        now = time.perf_counter()
        before, self.timed = self.timed, (now, step)
        if before is None or step == before[1]:
            return math.nan
        return (step - before[1]) * self.step_tokens / (now - before[0])

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """Rows say how fast training is: evaluations and checkpoints don't count."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        started = time.perf_counter()
        yield
        if self.timed is not None:
            self.timed = (self.timed[0] + time.perf_counter() - started, self.timed[1])

    def row(self, step: int, tokens_per_second: float = math.nan, **measured: float) -> TrainingRow:
        """Make a row of the table `training`; what wasn't measured is NaN."""
        unmeasured = dict.fromkeys(("lr", "loss", "val_loss", "grad_norm"), math.nan)
        return (
            {"step": step, "tokens": step * self.step_tokens}
            | unmeasured
            | measured
            | {"tokens_per_second": tokens_per_second, "mfu": tokens_per_second * self.peak_share}
        )

    def keep(self, row: TrainingRow) -> None:
        self.rows.append(row)
        if self.on_row is not None and self.world.first:
            self.on_row(row)

    def identity(self) -> dict[str, Any]:
        """Gather what makes two runs the same, in nanoGPT's place for it: the settings, and the data."""
        named = ("tokenizer", "vocab_size", "n_tokens", "sha256", "sha256_val", "val_share")
        settings = {key: value for key, value in self.config.as_dict().items() if key not in _NOT_THE_RUN}
        return settings | {f"data {name}": self.split.described.get(name) for name in named}

    def save(self, checkpoint: Path, done: int, seconds: float) -> None:
        if self.world.first:
            state = checkpoints.State(done, self.best, self.rows, seconds)
            with self.untimed():
                named = self.identity() | {"dataset": self.split.described["label"]}
                checkpoints.save(checkpoint, self.task, self.optimizer, self.scaler, state, named)
