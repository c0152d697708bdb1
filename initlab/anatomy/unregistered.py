"""Parameters that a pass uses and the model doesn't know: modules in a plain list, tensors that only require grad."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

_REGISTERED = ("_parameters", "_buffers", "_modules")
_DEEP = 4  # containers within containers


class Unregistered(NamedTuple):
    """What of a model's own attributes holds parameters that `model.parameters()` doesn't give.

    Attributes:
        place: `GPT.layers, a list of Block`; empty where no attribute of a registered module holds them.
        tensors: how many.
        elements: in all of them.
    """

    place: str
    tensors: int
    elements: int


def unregistered(model: nn.Module, used: Sequence[Tensor]) -> tuple[Unregistered, ...]:
    """Say where trainable tensors are that a pass used and that aren't among the model's parameters.

    Args:
        model: any.
        used: the leaves that require grad and were given to operations, each once.
    """
    left = {id(tensor): tensor for tensor in used}
    found = []
    for module in model.modules():
        for name, value in vars(module).items() if left else ():
            if name in _REGISTERED:
                continue
            own = {id(each): each for each in _held(value, _DEEP) if id(each) in left}
            if own:
                found.append(_said(f"{type(module).__name__}.{name}, {_kind(value)}", list(own.values())))
                left = {key: each for key, each in left.items() if key not in own}
    return (*found, _said("", list(left.values()))) if left else tuple(found)


def hidden_in(model: nn.Module) -> tuple[Unregistered, ...]:
    """Say which attributes of a model hold trainable tensors that `model.parameters()` doesn't give, used or not.

    Args:
        model: any.
    """
    known = {id(parameter) for parameter in model.parameters()}
    held = [each for module in model.modules() for each in _held(vars(module), _DEEP + 1)]
    left = {id(each): each for each in held if each.requires_grad and each.is_leaf and id(each) not in known}
    return unregistered(model, list(left.values()))


def _said(place: str, tensors: Sequence[Tensor]) -> Unregistered:
    return Unregistered(place, len(tensors), sum(tensor.numel() for tensor in tensors))


def _held(value: Any, deep: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif deep and isinstance(value, Mapping | list | tuple | set):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _held(each, deep - 1)


def _kind(value: Any) -> str:
    """A tensor, or the container and what most of its elements are."""
    if isinstance(value, nn.Module | Tensor):
        return f"a {type(value).__name__}"
    inside = Counter(type(each).__name__ for each in (value.values() if isinstance(value, Mapping) else value))
    return f"a {type(value).__name__} of {inside.most_common(1)[0][0]}"
