"""A model's attributes, before a pass of our own, so that they can be put back.

A forward may count, cache, register a buffer, take a hook off or replace a module. All of that is in the modules'
`__dict__`, and in the lists, dicts and sets that they hold.
"""

from __future__ import annotations

import operator
import random
import types
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from initlab.anatomy.writes import Guard

_DEEPEST = 8  # containers inside one another, from a module on
_LARGEST = 10_000  # longer ones (a vocabulary, a data set) are kept, but not looked into
# what can't change, by far the most of what there is
_VALUES = (int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device, torch.Size)
_CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType)
_PLAIN = frozenset((*_VALUES, *_CODE))


class Snapshot:
    """What a model holds: tensors, modules, hooks, and plain attributes as far as lists, dicts, sets and deques lead.

    Objects of other kinds are kept, and their own attributes only where their class is of a package that the model's
    modules are of: a cache or a config of the model's own, not somebody's logger.

    Args:
        model: any module; what is shared is noted once.

    Attributes:
        guard: must hear of the operations of the pass, see `initlab.anatomy.writes`.
    """

    def __init__(self, model: nn.Module):
        self.guard = Guard()
        self._model = model
        self._seen: set[int] = set()
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._others: list[tuple[Any, tuple[Any, ...]]] = []
        self._states: list[tuple[Callable[[Any], object], Any]] = []
        self._packages = {_package(module) for module in model.modules()} - {"torch"}
        self._follow(model)

    def restore(self) -> None:
        """Put everything back; warn where weights were written to by code that no one could hear."""
        for held, before in self._dicts:
            if len(held) != len(before) or (before and not _same(held, before)):
                kind: Any = OrderedDict if isinstance(held, OrderedDict) else dict
                kind.clear(held)
                kind.update(held, before)
        for other, items in self._others:
            if len(other) != len(items) or not all(map(operator.is_, other, items)):
                other.clear()
                (other.update if isinstance(other, set) else other.extend)(items)
        unheard = {id(tensor) for tensor in self.guard.restore()}
        for put_back, state in self._states:
            put_back(state)
        if unheard:
            names = [name for name, tensor in self._model.state_dict(keep_vars=True).items() if id(tensor) in unheard]
            warnings.warn(
                f"{', '.join(names[:3]) or 'a tensor'} of {type(self._model).__name__} was written to in a pass by "
                "compiled or scripted code, and isn't as before; load the weights again",
                stacklevel=2,
            )

    def _follow(self, model: nn.Module) -> None:
        seen, empty = self._seen, (dict, OrderedDict)
        waiting: deque[tuple[Any, int]] = deque([(model, 0)])
        while waiting:
            value, depth = waiting.popleft()
            inside = self._note(value)
            if len(inside) > _LARGEST:
                continue
            depth = 1 if isinstance(value, nn.Module) else depth + 1
            for item in inside:
                kind = type(item)
                if kind in _PLAIN or id(item) in seen or depth > _DEEPEST:
                    continue
                seen.add(id(item))
                if kind in empty and not item:  # of each module a dozen: hooks of every sort
                    self._dicts.append((item, {}))
                else:
                    waiting.append((item, depth))

    def _note(self, value: Any) -> Collection[Any]:
        """Keep one value; give what to follow from it."""
        inside: Collection[Any] = ()
        if isinstance(value, dict):
            self._dicts.append((value, dict(value)))
            inside = value.values()
        elif isinstance(value, Tensor):
            self.guard.hold(value)
            if value.is_leaf:  # others' hooks are part of the graph
                inside = (vars(value), value._backward_hooks, value._post_accumulate_grad_hooks)
        elif isinstance(value, nn.Module):
            for buffer in value._buffers.values():
                if buffer is not None and id(buffer) not in self._seen:  # mostly small; scripts write into them too
                    self._seen.add(id(buffer))
                    self.guard.hold(buffer, copy=True)
            inside = (vars(value),)
        elif isinstance(value, list | set | deque):
            self._others.append((value, tuple(value)))
            inside = value
        elif isinstance(value, tuple):
            inside = value
        elif isinstance(value, torch.Generator):
            self._states.append((value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self._states.append((value.setstate, value.getstate()))
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            self._states.append((lambda state: setattr(bits, "state", state), bits.state))
        elif isinstance(value, np.random.RandomState):
            self._states.append((value.set_state, value.get_state()))
        elif _is_own(value, self._packages):
            inside = (vars(value),)
        return inside


def _same(held: dict[Any, Any], before: dict[Any, Any]) -> bool:
    """By identity: a value may be a tensor, or refuse to be compared."""
    return all(map(operator.is_, held, before)) and all(map(operator.is_, held.values(), before.values()))


def _is_own(value: object, packages: set[str]) -> bool:
    if isinstance(value, torch.optim.Optimizer):  # of a model that learns as it runs
        return True
    return _package(value) in packages and hasattr(value, "__dict__") and not isinstance(value, type)


def _package(value: object) -> str:
    return str(type(value).__module__).partition(".")[0]
