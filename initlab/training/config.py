"""How a model is trained: the settings of one run, nanoGPT's own for each preset, and the rate of each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch

from initlab.errors import ConfigError
from initlab.measure.sweep import DTYPES
from initlab.models.config import PRESETS
from initlab.options import (
    checked_choice,
    checked_count,
    checked_flag,
    checked_number,
    checked_seed,
    real,
    shown,
    whole,
)

Schedule = Literal["cosine", "constant"]

# nanoGPT at 3adf61e, config/train_shakespeare_char.py; its min_lr is a tenth of its learning rate, as everywhere there
_SHAKESPEARE: dict[str, Any] = {
    "steps": 5000,
    "lr": 1e-3,
    "warmup": 100,
    "batch_size": 64,
    "betas": (0.9, 0.99),
    "eval_every": 250,
    "eval_batches": 200,
    "log_every": 10,
}
SETTINGS: dict[str, dict[str, Any]] = {
    # README, "I only have a macbook"
    "shakespeare-cpu": _SHAKESPEARE | {"steps": 2000, "batch_size": 12, "eval_batches": 20, "log_every": 1},
    "shakespeare": _SHAKESPEARE,
    # train.py under config/train_gpt2.py: half a million tokens an update
    "gpt2": {
        "steps": 600_000,
        "lr": 6e-4,
        "warmup": 2000,
        "batch_size": 12,
        "grad_accum": 40,
        "eval_every": 1000,
        "eval_batches": 200,
        "log_every": 10,
    },
}
assert SETTINGS.keys() == PRESETS.keys()


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
        betas, weight_decay: of AdamW; matrices alone decay.
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
            object.__setattr__(self, name, checked_count(name, getattr(self, name), low))
        checked_seed(self.seed)
        for name, most in (("lr", math.inf), ("min_lr", 1.0), ("weight_decay", math.inf), ("grad_clip", math.inf)):
            object.__setattr__(self, name, checked_number(name, getattr(self, name), most))
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"lr is {self.lr!r}; expected a learning rate above 0, such as 1e-3")
        betas = self.betas
        numbers = isinstance(betas, Sequence) and all(real(beta) and 0 <= beta < 1 for beta in betas)
        if not numbers or len(betas) != 2:
            raise ConfigError(f"betas is {shown(betas)}; expected two numbers of at least 0 and below 1")
        object.__setattr__(self, "betas", (float(betas[0]), float(betas[1])))
        checked_choice("schedule", self.schedule, get_args(Schedule))
        checked_choice("dtype", self.dtype, DTYPES)
        checked_flag("compile", self.compile)

    def lr_at(self, step: int) -> float:
        """Compute the learning rate of the update that follows `step` updates."""
        return learning_rate(
            step, lr=self.lr, warmup=self.warmup, steps=self.steps, min_lr=self.min_lr, schedule=self.schedule
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the config as plain values."""
        return asdict(self) | {"betas": list(self.betas)}


def learning_rate(
    step: int, *, lr: float, warmup: int, steps: int, min_lr: float, schedule: Schedule = "cosine"
) -> float:
    """Compute a step's rate by nanoGPT's get_lr with lr_decay_iters = steps.

    Linear warmup, then half a cosine down, or level.

    Args:
        step: updates done before.
        lr: the peak.
        warmup: steps of linear warmup; 0 = none.
        steps: of the run; where the cosine ends.
        min_lr: what it ends at, as a fraction of lr.
        schedule: `cosine`, or `constant` after the warmup.
    """
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return lr
    if step >= steps:
        return lr * min_lr
    progress = (step - warmup) / (steps - warmup)
    return lr * min_lr + 0.5 * (1.0 + math.cos(math.pi * progress)) * (lr - lr * min_lr)


def settings_of(preset: str, device: str, changes: dict[str, Any]) -> TrainConfig:
    """Take a preset's settings with some of them changed.

    A run shorter than the preset's warms up for the same share of it, unless warmup is given.

    On CUDA the forward pass runs in bfloat16, or float16 where the GPU has none, and compiled; else in float32, eager.

    Args:
        preset: of SETTINGS.
        device: where the model is trained.
        changes: settings by name; those that are None aren't changed.

    Raises:
        ConfigError: an unknown preset or setting, or a value that can't be used.
    """
    checked_choice("preset", preset, SETTINGS)
    known = {field.name for field in fields(TrainConfig)} - {"device"}
    if unknown := sorted(changes.keys() - known):
        raise ConfigError(f"unknown training setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
    given = {name: value for name, value in changes.items() if value is not None}
    own = dict(SETTINGS[preset])
    steps = given.get("steps")
    if whole(steps) and 0 < steps < own["steps"]:
        own["warmup"] = round(own["warmup"] * steps / own["steps"])
    config = TrainConfig(**{"device": device} | _of_device(device) | own | given)
    if config.warmup >= config.steps:
        raise ConfigError(
            f"warmup is {config.warmup} for a run of {config.steps} steps; expected fewer, or the peak rate is never "
            "trained at"
        )
    return config


def _of_device(device: str) -> dict[str, Any]:
    if not device.startswith("cuda"):
        return {}
    # an older GPU (V100, T4) emulates it, many times slower than its float16, and torch counts that too by default
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return {"dtype": "bfloat16" if native else "float16", "compile": True}
