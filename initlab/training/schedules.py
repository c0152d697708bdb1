"""The learning rate of each step."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "constant"]


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
