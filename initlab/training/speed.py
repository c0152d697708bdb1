"""How fast a run is, against what its GPUs could do, and what lets them do it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from initlab.models.config import NanoGPTConfig

# Dense bf16 FLOP/s with fp32 accumulation, by what torch.cuda.get_device_name holds as a word; the first that fits
# counts. NVIDIA's data sheets, without sparsity.
BF16_PEAKS: dict[str, float] = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX A6000": 155e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def flops_per_token(c: NanoGPTConfig) -> float:
    """Count the operations of a forward and backward pass per token, as nanoGPT's estimate_mfu: 6N + 12 L H Q T.

    N counts what multiplies a token: no position embeddings, and one matrix of tokens, whether tied or not; Q is the
    head size. See appendix B of PaLM (arXiv:2204.02311).

    Args:
        c: the model's sizes.
    """
    norms = (2 * c.n_layer + 1) * c.n_embd * (1 + c.bias)
    biases = 9 * c.n_layer * c.n_embd if c.bias else 0
    weights = 12 * c.n_layer * c.n_embd**2 + (c.vocab_size or 0) * c.n_embd
    return 6.0 * (weights + norms + biases) + 12.0 * c.n_layer * c.n_embd * c.block_size


def peak_flops(device: torch.device) -> float:
    """Look up the bf16 FLOP/s of a GPU in its data sheet; NaN for other devices and unknown GPUs.

    Args:
        device: where a model is trained.
    """
    if device.type != "cuda":
        return math.nan
    return named_peak(torch.cuda.get_device_name(device))


def named_peak(name: str) -> float:
    """Look up `peak_flops` of a GPU by name.

    Args:
        name: that torch gives it.
    """
    return next((peak for part, peak in BF16_PEAKS.items() if re.search(rf"\b{part}\b", name)), math.nan)


@contextmanager
def tf32_allowed(device: torch.device) -> Iterator[None]:
    """Let products of float32 use TF32 on a GPU, as nanoGPT's train.py does (at 3adf61e).

    The caller's setting is restored afterwards; one that was made by the newer `fp32_precision` stands, since torch
    refuses to mix the two, and whoever made it has chosen.

    Args:
        device: where a model is trained.
    """
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    try:
        before = [backend.allow_tf32 for backend in backends] if device.type == "cuda" else []
    except RuntimeError:
        before = []
    try:
        for backend, _ in zip(backends, before, strict=False):
            backend.allow_tf32 = True
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=False):
            backend.allow_tf32 = allowed
