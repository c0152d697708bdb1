"""Passes that a loop didn't ask for: what they are given, what they leave behind, and who may look at them.

The caller's random state, buffers and arguments are as before afterwards, and the hooks of a watch that is under way
tell such a pass from the loop's own.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from initlab.anatomy.tensors import tensors

_depth = 0


def depth() -> int:
    """Count the asides that run: 0 in the caller's own passes. What was attached at one depth sees that one alone."""
    return _depth


@contextmanager
def random_state_kept(of: nn.Module | Tensor | torch.device, seed: int | None = None) -> Iterator[None]:
    """Restore torch's, Python's and NumPy's random state afterwards; with a seed, seed them first.

    Args:
        of: what is worked with; torch has a state on each of its devices.
        seed: of all of them; None: they go on from where they are.
    """
    if isinstance(of, torch.device):
        places = [of]
    else:
        places = [p.device for p in ([of] if isinstance(of, Tensor) else of.parameters())]
    devices = sorted({place.index or 0 for place in places if place.type == "cuda"})
    # models that draw from NumPy's global state are why it is kept
    own, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        try:
            if seed is not None:
                torch.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
        finally:
            random.setstate(own)
            np.random.set_state(numpys)  # noqa: NPY002


@contextmanager
def untouched(model: nn.Module, seed: int) -> Iterator[None]:
    """Restore buffers and random state afterwards, and seed the latter: dropout draws the same masks every time.

    Weights, gradients and mode need no care: a probe doesn't write them. (Gradients are taken with
    torch.autograd.grad, which leaves `.grad` alone.)
    """
    global _depth
    # Some models write into a buffer, others put a new tensor in its place.
    buffers = [
        (module._buffers, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with random_state_kept(model, seed), torch.enable_grad():
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1
            with torch.no_grad():
                for registered, name, buffer, before in buffers:
                    # writing the same values again would fail a backward pass that has saved the buffer
                    if not _same(buffer, before):
                        buffer.copy_(before)
                    registered[name] = buffer


def _same(a: Tensor, b: Tensor) -> bool:
    if a.is_meta or torch.equal(a, b):
        return True
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def copied(call: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copy the arguments of a call, for a pass of our own: it may write into a tensor, or fill a cache.

    What is one object stays one.

    Raises:
        Exception: whatever copy.deepcopy raises of an object that can't be copied.
    """
    memo: dict[int, Any] = {}
    for tensor in tensors(call):
        if id(tensor) not in memo:
            own = tensor.detach().clone().requires_grad_(tensor.requires_grad) if tensor.is_leaf else tensor.clone()
            memo[id(tensor)] = own
    return copy.deepcopy(call, memo)
