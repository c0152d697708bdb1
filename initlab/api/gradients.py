"""What the caller's own context may switch off, and every measurement needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def with_gradients() -> Iterator[None]:
    """Follow gradients within a command, also one that is called under torch.no_grad or torch.inference_mode.

    Tensors that are made under inference_mode never have a gradient, so it has to end before a command makes its first.
    """
    torch = sys.modules.get("torch")
    if torch is None:  # then nothing was switched off, and `diff` of two folders needs none
        yield
        return
    with torch.inference_mode(False), torch.enable_grad():
        yield
