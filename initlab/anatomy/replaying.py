"""Which elements of a tensor became a part of it, and what they were multiplied with, by doing again what was done."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from initlab.anatomy.graph import Value
from initlab.anatomy.operations import words
from initlab.anatomy.walking import PARTING, copies, factor

_ARRANGING = words("cat concat stack flip roll view_as_real view_as_complex conj")


class OtherError(Exception):
    """Something else was done than arranging, multiplying, and adding up what a rotation mixes."""


def multiplied(value: Value, source: Value) -> float | None:
    """Tell the one number that all elements of a value were multiplied with since a source gave them.

    They may be cut, put together, rotated by tables, which count as 1, and multiplied with numbers.

    Args:
        value: what became of them, or of a part of them.
        source: the tensor that they are all of.

    Returns:
        None where they were multiplied with different numbers, or something else was done to them.
    """

    def same(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(one == other, one, math.nan)

    found = Again(source, torch.ones((), dtype=torch.float64), same, numbers=True).of(value)
    if found is None or not found.numel():
        return None
    first = found.flatten()[0]
    return float(first) if bool((found == first).all()) else None


def features(value: Value, source: Value) -> tuple[tuple[int, int], ...]:
    """Tell which features of a source a value is made of: (first, one past the last) of those that stand together.

    Args:
        value: what became of them.
        source: the tensor that they are all of, features last.

    Returns:
        nothing where something else was done to them than `multiplied` knows.
    """
    size = source.shape[-1]
    there = torch.zeros(size + 1, dtype=torch.bool)
    for either in (torch.minimum, torch.maximum):  # of the two that a rotation mixes
        again = Again(source, torch.arange(float(size)), either, numbers=False)
        found = again.of(value)
        if found is None:
            return ()
        there[found.flatten().long()] = True
        if not again.mixed:
            break
    edges = torch.nonzero(there[1:] != there[:-1]).flatten() + 1
    ends = ([0] if there[0] else []) + [int(edge) for edge in edges]
    return tuple(zip(ends[::2], ends[1::2], strict=True))


class Again:
    """Does again what was done to a source, whose elements are others.

    Args:
        source: the tensor.
        elements: in place of its own; expanded to its shape.
        added: what stands for a sum of two.
        numbers: multiply with numbers where that was done.
    """

    def __init__(self, source: Value, elements: Tensor, added: Callable[[Tensor, Tensor], Tensor], *, numbers: bool):
        self._known = {source: elements.expand(source.shape)}
        self._added, self._numbers = added, numbers
        self.mixed = False  # something was added up

    def of(self, value: Value) -> Tensor | None:
        """What a value would be; None where something else was done."""
        try:
            with torch.no_grad():
                found = self._done(value)
        except (OtherError, RuntimeError, TypeError, ValueError, IndexError):  # as torch raises of such arguments
            return None
        return torch.view_as_real(found) if found.is_complex() else found

    def _done(self, value: Value) -> Tensor:
        if value in self._known:
            return self._known[value]
        op = value.op
        if op is None:
            raise OtherError
        data = [each for each in op.inputs if each.data and each.floating]
        if copies(op) or op.name in PARTING or op.name in _ARRANGING:
            given: Any = op.function(*self._held(op.args), **self._held(op.kwargs))
            found: Tensor = given if isinstance(given, Tensor) else given[value.output]
        elif op.name in ("mul", "div", "neg") and len(data) == 1:
            times = factor(op)
            number = 1.0 if op.name == "neg" or times is None or times.vector is not None else times.number
            found = self._done(data[0]) * number if self._numbers and number != 1 else self._done(data[0])
        elif op.name in ("add", "sub") and len(data) == 2 and "alpha" not in op.kwargs:
            self.mixed = True
            found = self._added(self._done(data[0]), self._done(data[1]))
        else:
            raise OtherError
        self._known[value] = found.expand(value.shape)
        return self._known[value]

    def _held(self, given: Any) -> Any:
        """Arguments of an operation, with tensors for Values. Raises OtherError where one isn't known."""
        if isinstance(given, Value):
            if not given.data or not given.floating:
                raise OtherError
            return self._done(given)
        if isinstance(given, tuple):
            return tuple(self._held(each) for each in given)
        if isinstance(given, dict):
            return {key: self._held(each) for key, each in given.items()}
        return given
