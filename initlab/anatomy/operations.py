"""Tensor operations of a pass, as the model's own Python code calls them: `torch.add`, `x @ y`, `F.softmax`.

A torch function mode sees each call with the very tensors that the code holds, above autograd, so that a gradient can
be asked of them. What runs below Python (a scripted module, a kernel of a user's own) is one opaque call or none.
"""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# one name for each operation, whatever Python calls it
_SAME = {
    "iadd": "add",
    "radd": "add",
    "isub": "sub",
    "subtract": "sub",
    "imul": "mul",
    "rmul": "mul",
    "multiply": "mul",
    "itruediv": "div",
    "truediv": "div",
    "divide": "div",
    "true_divide": "div",
    "rtruediv": "rdiv",
    "ipow": "pow",
    "rmatmul": "matmul",
    "imatmul": "matmul",
    "mm": "matmul",
    "bmm": "matmul",
    "special_softmax": "softmax",
    "concat": "cat",
    "concatenate": "cat",
    "clip": "clamp",
    "absolute": "abs",
    "negative": "neg",
}


def words(text: str) -> frozenset[str]:
    """Split a list of names."""
    return frozenset(text.split())


@lru_cache(maxsize=4096)
def operation_name(function: Any) -> str:
    """Name an operation: `add` for `torch.add`, `Tensor.add_`, `+` and `+=`; `T`, `data` for what a tensor is asked."""
    name = getattr(function, "__name__", type(function).__name__)
    if name in ("__get__", "__set__"):  # of a property: Tensor.T, Tensor.data
        return str(getattr(getattr(function, "__self__", None), "__name__", name))
    name = name.strip("_") if name.startswith("__") else name.rstrip("_")
    return _SAME.get(name, name)


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of an operation, told by where it is called.

    Attributes:
        name: see `operation_name`.
        ordinal: it is the n-th call of that name since its module was entered, from 0, counting those in modules
            inside.
        argument: the n-th floating-point tensor that it is given, lists of them opened; None: what it gives.
        output: of several tensors given the n-th.
    """

    name: str
    ordinal: int
    argument: int | None = None
    output: int = 0


class Listening(TorchFunctionMode):
    """A mode that hears of every operation; a subclass says in `heard` what it does."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation; functions of torch that are written in Python and hide attention's parts run in parts."""
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _opened(func)(*args, **kwargs)
        return self.heard(func, args, kwargs)

    def heard(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation and give its result."""
        raise NotImplementedError


@lru_cache(maxsize=8)
def _opened(function: types.FunctionType) -> Callable[..., Any]:
    """The same function, without the line that hands it to a mode whole."""
    scope = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


class Counts:
    """How often each operation was called since some modules were entered; what tells one call from another."""

    def __init__(self) -> None:
        self.entered: list[tuple[str, Counter[str]]] = []  # innermost last

    def count(self, name: str) -> None:
        """Note one call, in every module that is being run."""
        for _, counts in self.entered:
            counts[name] += 1

    def enter(self, name: str) -> None:
        """Begin to count in a module, by its dotted name."""
        self.entered.append((name, Counter()))

    def leave(self, name: str) -> None:
        """End it, and what was entered in it and never left, as a module whose error was caught."""
        while self.entered and self.entered.pop()[0] != name:
            pass

    @contextmanager
    def following(self, modules: Sequence[tuple[str, nn.Module]]) -> Iterator[None]:
        """Keep `entered` while a model runs; modules by dotted name."""
        handles = []

        try:
            for name, module in modules:
                handles.append(module.register_forward_pre_hook(lambda *_, n=name: self.enter(n), prepend=True))
                handles.append(module.register_forward_hook(lambda *_, n=name: self.leave(n)))
            yield
        finally:
            self.entered.clear()
            for handle in handles:
                handle.remove()
