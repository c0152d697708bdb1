"""Passes that a loop didn't ask for: what they are given, what they leave behind, and who may look at them.

The model, the random state and the arguments are as before afterwards, and the hooks of a watch that is under way tell
such a pass from the loop's own.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from initlab.anatomy.snapshot import Snapshot
from initlab.anatomy.tensors import tensors

_depth = 0
_one_at_a_time = threading.RLock()


def depth() -> int:
    """Count the asides that run: 0 in the caller's own passes. What was attached at one depth sees that one alone."""
    return _depth


@contextmanager
def random_state_kept(of: nn.Module | Tensor | torch.device, seed: int | None = None) -> Iterator[None]:
    """Restore torch's, Python's and NumPy's random state afterwards; with a seed, seed them first.

    These states are the process's: a thread waits here until another one's are restored.

    Args:
        of: what is worked with; torch has a state on each of its devices.
        seed: of all of them; None: they go on from where they are.
    """
    if isinstance(of, torch.device):
        places = [of]
    else:
        places = [p.device for p in ([of] if isinstance(of, Tensor) else of.parameters())]
    devices = sorted({_index(place) for place in places if place.type == "cuda"})
    others = {place.type for place in places} - {"cpu", "cuda", "meta"}  # one device each: mps, xpu
    modules = [torch.get_device_module(kind) for kind in sorted(others)]
    with _one_at_a_time:
        # models that draw from NumPy's global state are why it is kept
        own, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
        states = [module.get_rng_state() for module in modules]
        with torch.random.fork_rng(devices=devices):
            try:
                if seed is not None:
                    # torch.manual_seed would seed the other devices too, and those that aren't up yet once they are
                    for generator in (torch.default_generator, *(torch.cuda.default_generators[i] for i in devices)):
                        generator.manual_seed(seed)
                    for module in modules:
                        module.manual_seed(seed)
                    random.seed(seed)
                    np.random.seed(seed % 2**32)  # noqa: NPY002
                yield
            finally:
                random.setstate(own)
                np.random.set_state(numpys)  # noqa: NPY002
                for module, state in zip(modules, states, strict=True):
                    module.set_rng_state(state)


def _index(place: torch.device) -> int:
    return torch.cuda.current_device() if place.index is None else place.index


@contextmanager
def untouched(model: nn.Module, seed: int) -> Iterator[None]:
    """Restore the model and the random state afterwards, and seed the latter: dropout draws the same masks every time.

    Of the model: weights, also under no_grad or through `.data`; `.grad`; buffers, None and absent ones too; hooks,
    modes and submodules; plain attributes, as far as lists, dicts, sets, deques and objects of the model's own package
    lead; generators among them. What is restored is the same object, with the same count of writes, so that a graph
    of the caller's can still be gone back through.

    What isn't: globals and attributes of classes; NumPy arrays and objects of other packages that are changed in place;
    weights that scripted or compiled code, or another thread, writes to (the first two are warned of). A lazy module
    must have been initialised: a pass would draw its weights.

    Args:
        model: whose pass is run inside; unwrapped.
        seed: of torch's, Python's and NumPy's random state.
    """
    global _depth
    with random_state_kept(model, seed), torch.enable_grad():
        before = Snapshot(model)
        _depth += 1
        try:
            before.guard.hide_gradients()
            with before.guard.listening():
                yield
        finally:
            _depth -= 1
            before.restore()


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
