"""The settings of a run: the schedule, and what each preset brings."""

from __future__ import annotations

import math

import pytest
import torch

from initlab.models.config import PRESETS
from initlab.training.config import SETTINGS, learning_rate, settings_of


def nanogpt_lr(it: int, learning_rate: float, warmup_iters: int, lr_decay_iters: int, min_lr: float) -> float:
    """get_lr of karpathy/nanoGPT's train.py at 3adf61e."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coeff * (learning_rate - min_lr)


@pytest.mark.parametrize("warmup", [0, 100])
def test_the_schedule_is_nanogpts(warmup: int) -> None:
    for step in (0, 1, 50, 99, 100, 101, 1000, 1999, 2000, 2001):
        ours = learning_rate(step, lr=1e-3, warmup=warmup, steps=2000, min_lr=0.1)
        assert ours == pytest.approx(nanogpt_lr(step, 1e-3, warmup, 2000, 1e-4), rel=1e-12)
    assert learning_rate(1999, lr=1e-3, warmup=warmup, steps=2000, min_lr=0.1, schedule="constant") == 1e-3


def test_presets_bring_nanogpts_settings() -> None:
    laptop = settings_of("shakespeare-cpu", "cpu", {})
    assert (laptop.steps, laptop.lr, laptop.warmup, laptop.batch_size, laptop.betas) == (
        2000,
        1e-3,
        100,
        12,
        (0.9, 0.99),
    )
    assert (laptop.eval_every, laptop.eval_batches, laptop.min_lr, laptop.weight_decay) == (250, 20, 0.1, 0.1)
    assert (laptop.dtype, laptop.compile) == ("float32", False)
    small = settings_of("shakespeare", "cpu", {"lr": 3e-4, "steps": None})
    assert (small.steps, small.lr, small.batch_size, small.eval_batches) == (5000, 3e-4, 64, 200)
    large = settings_of("gpt2", "cpu", {})
    assert (large.batch_size * large.grad_accum * PRESETS["gpt2"].block_size, large.warmup) == (491_520, 2000)
    assert (large.lr, large.lr_at(large.steps), large.betas) == (6e-4, pytest.approx(6e-5), (0.9, 0.95))
    assert set(SETTINGS) == set(PRESETS)


def test_a_short_run_is_not_all_warmup() -> None:
    short = settings_of("shakespeare-cpu", "cpu", {"steps": 40})
    assert (short.warmup, short.lr_at(2)) == (2, 1e-3)
    assert settings_of("shakespeare-cpu", "cpu", {"steps": 4000}).warmup == 100
    assert settings_of("shakespeare-cpu", "cpu", {"steps": 40, "warmup": 7}).warmup == 7


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_that_emulates_bfloat16_trains_in_float16(monkeypatch: pytest.MonkeyPatch, native: bool, dtype: str):
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert settings_of("shakespeare", "cuda", {}).dtype == dtype
    assert settings_of("shakespeare", "cpu", {}).dtype == "float32"
