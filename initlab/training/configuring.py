"""How a model is trained: the settings of one run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch

from initlab.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Schedule = Literal["cosine", "constant"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a model is trained. The defaults of AdamW, clipping and decay are nanoGPT's train.py.

    Args:
        steps: optimizer updates.
        lr: peak learning rate.
        warmup: steps of linear warmup; 0 = none.
        schedule: `cosine` down to min_lr at `steps`, or `constant` after the warmup.
        min_lr: where the cosine ends, as a fraction of lr.
        batch_size: sequences in a micro-batch.
        grad_accum: micro-batches in an update, over all processes together.
        grad_clip: largest 2-norm of the gradient; 0 = never clipped.
        eval_every: steps between evaluations; 0 = before the first and after the last step only.
        eval_batches: batches of batch_size sequences in an evaluation.
        log_every: steps between rows.
        dtype: `float32`, or `bfloat16` or `float16` for autocast (float16 with a gradient scaler).
        compile: torch.compile the model.
        seed: of the batches and of dropout; the weights are the caller's.
        device: where the model is moved.

    Raises:
        ConfigError: a value can't be used.
    """

    steps: int
    lr: float
    warmup: int = 0
    schedule: Schedule = "cosine"
    min_lr: float = 0.1
    batch_size: int = 12
    grad_accum: int = 1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    eval_every: int = 0
    eval_batches: int = 20
    log_every: int = 1
    dtype: str = "float32"
    compile: bool = False
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 1, "grad_accum": 1, "eval_batches": 1, "log_every": 1}
        for name, low in (least | {"warmup": 0, "eval_every": 0, "seed": 0}).items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ConfigError(f"{name} is {value!r}; expected a whole number from {low} on")
        for name, most in (("lr", math.inf), ("min_lr", 1.0), ("weight_decay", math.inf), ("grad_clip", math.inf)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
                raise ConfigError(f"{name} is {value!r}; expected a number from 0{'' if most == math.inf else ' to 1'}")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"lr is {self.lr!r}; expected a learning rate above 0, such as 1e-3")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas is {self.betas!r}; expected two numbers of at least 0 and below 1")
        if self.schedule not in get_args(Schedule):
            raise ConfigError(f"unknown schedule {self.schedule!r}; known: {', '.join(get_args(Schedule))}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")

    def lr_at(self, step: int) -> float:
        """The learning rate of the update that follows `step` updates."""
        return learning_rate(
            step, lr=self.lr, warmup=self.warmup, steps=self.steps, min_lr=self.min_lr, schedule=self.schedule
        )

    def as_dict(self) -> dict[str, Any]:
        """The config as plain values."""
        return asdict(self) | {"betas": list(self.betas)}


def learning_rate(
    step: int, *, lr: float, warmup: int, steps: int, min_lr: float, schedule: Schedule = "cosine"
) -> float:
    """nanoGPT's get_lr, with lr_decay_iters = steps: linear warmup, then half a cosine down, or level.

    Args:
        step: updates done before.
        lr: the peak.
        warmup: steps of linear warmup; 0 = none.
        min_lr: where the cosine ends, as a fraction of lr.
    """
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return lr
    if step >= steps:
        return lr * min_lr
    progress = (step - warmup) / (steps - warmup)
    return lr * min_lr + 0.5 * (1.0 + math.cos(math.pi * progress)) * (lr - lr * min_lr)
