"""How each preset is trained: nanoGPT's own hyperparameters, at 3adf61e."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from initlab.errors import ConfigError
from initlab.models.nanogpt import PRESETS
from initlab.training.trainer import TrainConfig

# config/train_shakespeare_char.py; its min_lr is a tenth of its learning rate, as everywhere in nanoGPT
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


def settings_of(preset: str, device: str, changes: dict[str, Any]) -> TrainConfig:
    """A preset's settings with some of them changed; those that are None aren't.

    A run shorter than the preset's warms up for the same share of it, unless warmup is given.

    On CUDA the forward pass runs in bfloat16, or float16 where the GPU has none, and compiled; else in float32, eager.

    Raises:
        ConfigError: an unknown preset or setting, or a value that can't be used.
    """
    if preset not in SETTINGS:
        raise ConfigError(f"unknown preset {preset!r}; known: {', '.join(SETTINGS)}")
    known = {field.name for field in fields(TrainConfig)} - {"device"}
    if unknown := sorted(changes.keys() - known):
        raise ConfigError(f"unknown training setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
    given = {name: value for name, value in changes.items() if value is not None}
    own = dict(SETTINGS[preset])
    steps = given.get("steps")
    if type(steps) is int and 0 < steps < own["steps"]:
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
    return {"dtype": "bfloat16" if torch.cuda.is_bf16_supported() else "float16", "compile": True}
