"""Tensors in whatever a forward takes and returns."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# A score this far below its row's largest is masked: masks are -1e4, the largest negative number or -infinity, while
# what is learned or drawn and differs by a hundred has a probability of 0 already.
MASKED = 9000.0


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in any nesting of mappings, tuples, lists and dataclasses, depth first."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):  # a ModelOutput is one
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from tensors(getattr(value, each.name, None))


def floats(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point ones of `tensors`."""
    return (tensor for tensor in tensors(value) if tensor.is_floating_point())


def heads_first(scores: Tensor) -> Tensor:
    """Bring scores of an attention that stand as (B, T, nh, T), as DeepSeek writes them, to (B, nh, T, T).

    Args:
        scores: keys last; what stands otherwise is left as it is.
    """
    turned = scores.dim() == 4 and scores.shape[1] == scores.shape[3] != scores.shape[2]
    return scores.transpose(1, 2) if turned else scores


def hidden(scores: Tensor) -> Tensor:
    """Tell which scores of an attention are masked.

    Args:
        scores: (…, S), what a softmax over the keys is given.
    """
    highest = scores.amax(-1, keepdim=True)
    return (scores == -math.inf) | ((scores <= highest - MASKED) & (highest < math.inf))


def changed(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Put what a function gives of it in place of every tensor of a value; containers keep their kind.

    Args:
        value: any nesting, as `tensors` takes it.
        function: of each tensor.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, MutableMapping):
        other = copy.copy(value)  # forwards read a ModelOutput by attribute and by number
        for key, item in value.items():
            other[key] = changed(item, function)
        return other
    if isinstance(value, tuple | list):
        items = [changed(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def moved(value: Any, device: torch.device) -> Any:
    """Move every tensor of a value to the device; containers keep their kind."""
    return changed(value, lambda tensor: tensor.to(device))


def gradient_node(tensor: Tensor) -> Any:
    """Get what gave a tensor, in the graph of its gradient; None without one.

    Args:
        tensor: any.
    """
    try:
        return tensor.grad_fn
    except RuntimeError:  # a view made without gradients, of what was changed since
        return None


def nearest(tensor: Tensor, known: Callable[[Any, int], T | None]) -> list[T]:
    """List what is known of the tensors that one was computed from, by the graph of its gradient.

    Args:
        tensor: where to begin.
        known: what is known of the n-th output of a node; where it is something the walk ends.
    """
    found: dict[T, None] = {}
    left, seen = [(gradient_node(tensor), tensor.output_nr)], set()
    while left:
        each = left.pop()
        if each[0] is None or each in seen:
            continue
        seen.add(each)
        what = known(*each)
        if what is None:
            left += each[0].next_functions
        else:
            found[what] = None
    return list(found)
