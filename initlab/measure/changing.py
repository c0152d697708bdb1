"""Short batches of what a probe was given, and the same with other tokens in their places."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, MutableMapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy.arguments import DECODED, POSITIONAL, TARGETS, parameters
from initlab.anatomy.inputs import Inputs
from initlab.anatomy.tensors import changed

ROWS = 2
LENGTHS = (16, 64)  # tokens of a sequence, the second for models that read chunks


def short(inputs: Inputs) -> Iterator[Inputs]:
    """Yield calls with two sequences, the shortest first; what isn't tokens is the first sequence's in both.

    Args:
        inputs: of a model that reads tokens.
    """
    assert inputs.ids is not None
    B, T = inputs.ids.shape
    for length in dict.fromkeys((*(each for each in LENGTHS if each < T), T)):
        if length == T or B != T:  # else (B, T) can't be told from (T, T)

            def cut(tensor: Tensor, length: int = length) -> Tensor:
                return _cut(tensor, B, T, length)

            args, kwargs = changed((inputs.args, inputs.kwargs), cut)
            kept = (inputs.ids, inputs.targets, inputs.own_labels)
            ids, targets, labels = (each if each is None else cut(each) for each in kept)
            yield replace(inputs, args=args, kwargs=kwargs, ids=ids, targets=targets, own_labels=labels)


def _cut(tensor: Tensor, B: int, T: int, length: int) -> Tensor:
    if tensor.shape[:2] == (B, T):
        flat = tensor.flatten(0, 1)
        if len(flat) >= ROWS * length:
            return flat[: ROWS * length].unflatten(0, (ROWS, length))
        first = tensor[:1, :length]
        return torch.cat([first, first.flip(1)])
    for dim, size in enumerate(tensor.shape):
        if dim == 0 and size == B:
            tensor = tensor[:1].expand(ROWS, *tensor.shape[1:])
        elif size == T:
            tensor = tensor.narrow(dim, 0, length)
    return tensor


def holders(model: nn.Module, inputs: Inputs) -> list[str]:
    """Name the arguments that hold the ids: of an encoder-decoder whose two halves are given the same, the decoder's.

    Args:
        model: whose forward is called.
        inputs: of which the ids are looked for, in any nesting.
    """
    assert inputs.ids is not None
    ids, found = inputs.ids, []

    def look(name: str, tensor: Tensor) -> Tensor:
        if name not in TARGETS and tensor.shape == ids.shape and bool((tensor == ids).all()):
            found.append(name)
        return tensor

    _named(model, inputs, look)
    return [name for name in found if DECODED.search(name)] or found


def with_ids(model: nn.Module, inputs: Inputs, ids: Tensor, names: Collection[str]) -> Inputs:
    """Put other ids in the place of those that some arguments hold.

    Args:
        model: whose forward is called.
        inputs: are left as they are.
        ids: in the shape of those that are there.
        names: of the arguments, see `holders`.
    """

    def swap(name: str, tensor: Tensor) -> Tensor:
        return ids.to(tensor.dtype) if name in names and tensor.shape == ids.shape else tensor

    args, kwargs = _named(model, inputs, swap)
    return replace(inputs, args=args, kwargs=kwargs, ids=ids)


def by_name(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Get what a call gives to each argument that its forward names, by place or by name.

    Args:
        model: whose forward is called.
        inputs: of the call.
    """
    return {**dict(zip(_places(model), inputs.args, strict=False)), **inputs.kwargs}


def with_argument(model: nn.Module, inputs: Inputs, name: str, value: Any) -> Inputs:
    """Give an argument another value, or one at all.

    Args:
        model: whose forward is called.
        inputs: are left as they are.
        name: of the argument.
        value: in its place.
    """
    names = _places(model)
    args = list(inputs.args)
    if name in names[: len(args)]:
        args[names.index(name)] = value
        return replace(inputs, args=tuple(args))
    return replace(inputs, kwargs={**inputs.kwargs, name: value})


def _places(model: nn.Module) -> list[str]:
    """The arguments that may be given by place, in order."""
    return [name for name, parameter in parameters(model).items() if parameter.kind in POSITIONAL]


def _named(
    model: nn.Module, inputs: Inputs, function: Callable[[str, Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with what a function gives of the name and the value of each tensor; in a list the list's name."""
    names = _places(model)
    names += [f"argument {place}" for place in range(len(names), len(inputs.args))]
    args = tuple(_each(name, value, function) for name, value in zip(names, inputs.args, strict=False))
    return args, {name: _each(name, value, function) for name, value in inputs.kwargs.items()}


def _each(name: str, value: Any, function: Callable[[str, Tensor], Tensor]) -> Any:
    if not isinstance(value, MutableMapping):
        return changed(value, lambda tensor: function(name, tensor))
    other = copy.copy(value)
    for key, item in value.items():
        other[key] = _each(str(key), item, function)
    return other
