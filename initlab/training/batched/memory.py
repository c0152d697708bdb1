"""How many runs fit the memory of a device."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from initlab.training.batched.runs import Runs

_SHARE = 0.8  # of what is free: kernels have room of their own, and what is freed comes in pieces
# In weights: those trained and the model's own; gradients twice, as they come and in AdamW's order; the moments; and
# two of an update
_WEIGHTS = 8


def free(device: torch.device) -> int:
    """Tell how many bytes can be had on a device; on one that doesn't say, 2 GiB.

    Args:
        device: any.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type == "cpu" and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 * 2**30


def bytes_a_run(one: Runs) -> int:
    """Measure what a run needs while it is trained: what its backward pass keeps, its weights and AdamW's state.

    Args:
        one: a single run.
    """
    kept: dict[int, int] = {}
    largest = 0

    def keep(x: Tensor) -> Tensor:
        nonlocal largest
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        largest = max(largest, storage.nbytes())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), one.autocast():
        losses = one.stack.losses(*one.batch(0))
    del losses  # until here it kept them, so that no storage is another's again
    weights = sum(part.weights.nbytes for part in one.stack.parts)
    return sum(kept.values()) + 2 * largest + _WEIGHTS * weights


def fitting(one: Runs) -> int:
    """Say how many runs like this one can be trained side by side, 1 at least.

    Args:
        one: a single run.
    """
    return max(1, int(_SHARE * free(one.device) / bytes_a_run(one)))
