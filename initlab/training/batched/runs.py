"""The trainer's loop for several runs at once: what each of them sees, gets and leaves is what it would by itself."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from initlab.anatomy.restoring import random_state_kept
from initlab.measure.sweep import DTYPES
from initlab.training.batched.stack import Refused, Stack
from initlab.training.config import TrainConfig
from initlab.training.data import Split
from initlab.training.speed import peak_flops, tf32_allowed
from initlab.training.task import Task
from initlab.training.telling import TrainingRow, TrainResult

_LOOK = 25  # steps from one look at which runs are left to the next: each waits for the GPU
# of torch.amp.GradScaler
_SCALE, _GROWTH, _BACKOFF, _INTERVAL = 2.0**16, 2.0, 0.5, 2000
# By how much a run's first loss and gradient norm may differ from what its model gives by itself, as a share: what
# rounding does to them in another order of sums, with room. They differ by more where the forward isn't a function of
# weights and tokens alone.
_APART = {"float32": 1e-2, "bfloat16": 5e-2, "float16": 5e-2}


class Runs:
    """Runs that differ in weights, recipe's optimizer, rate, warmup and seed of the data, and in nothing else.

    Args:
        tasks: of each run; a model may be of several.
        groups: of each run, as `adam_groups` makes them.
        split: the text.
        configs: of each run, equal but for lr, warmup and seed.

    Raises:
        Refused: they can't be trained side by side.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        groups: Sequence[list[dict[str, Any]]],
        split: Split,
        configs: Sequence[TrainConfig],
    ):
        self.config = configs[0]
        self.configs = configs
        self.task = tasks[0]
        if self.task.way is None and self.task.draws:
            raise Refused("dropout draws other numbers for runs side by side than for each by itself")
        self.tasks = tasks
        self.modes = [task.model.training for task in tasks]
        self.split = split
        self.device = torch.device(self.config.device)
        self.stack = Stack(tasks, groups)
        self.scaled = self.config.dtype == "float16"
        self.seeds = list(dict.fromkeys(config.seed for config in configs))
        self.which = self.there(torch.tensor([self.seeds.index(config.seed) for config in configs]))
        rates = [[config.lr_at(step) for config in configs] for step in range(self.config.steps)]
        self.rates = torch.tensor(rates, dtype=torch.float64)
        self.step_tokens = self.config.batch_size * self.task.block_size
        self.evaluated = [
            (self.there(idx), self.there(targets))
            for idx, targets in split.evaluation(self.config.eval_batches, self.config.batch_size, self.task.block_size)
        ]

    def train(self) -> list[TrainResult]:
        """Train all of them; return what came of each. Their models hold the trained weights once `write` was called.

        A run whose loss or gradient isn't finite, or under float16 whose loss isn't, stays as it is from then on.

        Raises:
            Refused: the model can't be mapped over runs, or gives something else when it is.
        """
        with tf32_allowed(self.device):
            return self._train()

    def _train(self) -> list[TrainResult]:
        started = time.perf_counter()
        config, device, R = self.config, self.device, len(self.configs)
        rates = self.there(self.rates)
        alive = torch.ones(R, dtype=torch.bool, device=device)
        made = torch.zeros(R, dtype=torch.float64, device=device)  # updates; a scaler may skip one
        scale = torch.full((R,), _SCALE if self.scaled else 1.0, device=device)
        grown = torch.zeros(R, dtype=torch.int64, device=device)
        seen: list[Tensor] = []  # (loss, gradient norm) of each step, on the device
        judged: dict[int, Tensor] = {}
        timed = aside = 0.0  # when the first step had come that far, and seconds in evaluations since
        with random_state_kept(self.device):
            own = self.by_themselves()
        for step in range(config.steps):
            if step == 0 or (config.eval_every and step % config.eval_every == 0):
                judged[step], spent = self.evaluate()
                aside += spent
            losses, gradients = self.backward(step, scale)
            norms = self.stack.norms(gradients)
            whole = norms.isfinite()
            alive = alive & losses.isfinite() & (whole | self.scaled)
            seen.append(torch.stack([losses, norms]))
            if step == 0:
                self.compare(own, seen[0])  # waits for the GPU
                timed, aside = time.perf_counter(), 0.0
            if config.grad_clip:
                factor = (config.grad_clip / (norms + 1e-6)).clamp(max=1.0)
                for gradient in gradients:
                    gradient.mul_(factor[:, None].to(gradient.dtype))
            moved = alive & whole
            made += moved
            self.stack.update(gradients, rates[step], moved, made.clamp(min=1), config.betas)
            if self.scaled:
                grown = torch.where(whole, grown + 1, 0)
                scale = torch.where(whole, torch.where(grown == _INTERVAL, scale * _GROWTH, scale), scale * _BACKOFF)
                grown = grown % _INTERVAL
            if step % _LOOK == 0 and not bool(alive.any()):
                break
        if bool(alive.any()):
            judged[config.steps], spent = self.evaluate()
            aside += spent
        table = torch.stack(seen).cpu().double().numpy()  # (steps, 2, R)
        losses_judged = {step: values.tolist() for step, values in judged.items()}
        share = (time.perf_counter() - started) / R
        spent = time.perf_counter() - timed - aside
        pace = self.step_tokens * (len(seen) - 1) * R / spent if spent else math.nan
        return [
            self.result(run, table[:, :, run], {step: each[run] for step, each in losses_judged.items()}, share, pace)
            for run in range(R)
        ]

    def write(self, run: int) -> None:
        """Put a run's weights into its model, and the model into the mode that it was made in.

        Args:
            run: its number.
        """
        self.stack.write(run)
        self.tasks[run].model.train(self.modes[run])

    def backward(self, step: int, scale: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Losses of the batches of a step, (R,), and the gradients of each."""
        idx, targets = self.batch(step)
        with self.autocast():
            losses = self.stack.losses(idx, targets)
        if losses.shape != scale.shape:
            raise Refused(f"their losses are of shape {tuple(losses.shape[1:])}; expected single numbers")
        gradients = self.stack.gradients((losses * scale).sum())
        if self.scaled:
            for gradient in gradients:
                gradient.div_(scale[:, None])
        return losses.detach(), gradients

    @torch.no_grad()
    def evaluate(self) -> tuple[Tensor, float]:
        """Mean loss of each run over the evaluation batches, (R,), and the seconds that it took."""
        self.wait()
        started = time.perf_counter()
        self.stack.template.eval()
        total = torch.zeros(len(self.configs), device=self.device)
        with self.autocast():
            for idx, targets in self.evaluated:
                total += self.stack.judged(idx, targets)
        self.stack.template.train()
        self.wait()
        return total / len(self.evaluated), time.perf_counter() - started

    def by_themselves(self) -> dict[int, tuple[float, float]]:
        """Loss and gradient norm of each model by itself on its first batch, by the number of a run of it.

        Leaves the models in training mode.
        """
        found: dict[int, tuple[float, float]] = {}
        kinds: dict[tuple[int, int], int] = {}
        for run, (task, config) in enumerate(zip(self.tasks, self.configs, strict=True)):
            if kinds.setdefault((id(task.model), config.seed), run) != run:
                continue
            idx, targets = self.split.batch(config.batch_size, task.block_size, config.seed, 0)
            task.model.train()
            with self.autocast():
                loss = task.loss(task.model, self.there(idx), self.there(targets))
            scale = _SCALE if self.scaled else 1.0
            trained = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(loss * scale, trained, allow_unused=True)
            norm = torch.nn.utils.get_total_norm([each / scale for each in gradients if each is not None])
            found[run] = float(loss.detach()), float(norm)
        return found

    def compare(self, own: dict[int, tuple[float, float]], seen: Tensor) -> None:
        """Raise Refused where a run's first loss or gradient isn't its model's own."""
        for run, pair in own.items():
            for name, by_itself, beside in zip(("loss", "gradient norm"), pair, seen[:, run].tolist(), strict=True):
                close = math.isclose(by_itself, beside, rel_tol=_APART[self.config.dtype], abs_tol=1e-9)
                if not close and (math.isfinite(by_itself) or math.isfinite(beside)):
                    raise Refused(f"side by side a model's first {name} is {beside:.6g}, by itself {by_itself:.6g}")

    def result(self, run: int, seen: np.ndarray, judged: dict[int, float], seconds: float, pace: float) -> TrainResult:
        """Gather what came of a run: its rows are the trainer's."""
        config = self.configs[run]
        good = np.isfinite(seen[:, 0]) & (np.isfinite(seen[:, 1]) | self.scaled)
        bad = None if good.all() else int(np.argmin(good))
        done = config.steps if bad is None else bad
        peak = self.task.flops / peak_flops(self.device)
        rows = []
        for step, (loss, norm) in enumerate(seen[: done + 1].tolist()):
            if step in judged or step == bad or step % config.log_every == 0:
                rate = pace if step else math.nan
                rows.append(
                    self.row(step, config.lr_at(step), loss, judged.get(step, math.nan), norm, rate, rate * peak)
                )
        val_loss = judged.get(done, math.nan) if bad is None else math.nan
        if bad is None:
            rows.append(self.row(done, math.nan, math.nan, val_loss, math.nan, math.nan, math.nan))
        return TrainResult(
            rows=rows,
            first_loss=judged[0],
            val_loss=val_loss if math.isfinite(val_loss) else math.nan,
            steps_done=done,
            tokens=done * self.step_tokens,
            seconds=seconds,
        )

    def row(self, step: int, *values: float) -> TrainingRow:
        names = ("lr", "loss", "val_loss", "grad_norm", "tokens_per_second", "mfu")
        return {"step": step, "tokens": step * self.step_tokens} | dict(zip(names, values, strict=True))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The windows that each run reads at a step, (R, B, T) each."""
        drawn = [self.split.batch(self.config.batch_size, self.task.block_size, seed, step) for seed in self.seeds]
        idx, targets = (self.there(torch.stack(each))[self.which] for each in zip(*drawn, strict=True))
        return idx, targets

    def autocast(self) -> torch.autocast:
        dtype = DTYPES[self.config.dtype]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def there(self, values: Tensor) -> Tensor:
        """Send to the device; it is on its way while the CPU goes on."""
        return values if self.device.type == "cpu" else values.pin_memory().to(self.device, non_blocking=True)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
