"""Tensors that a pass may write into, copied just before it does.

Copying every weight before a pass would cost as much memory as the model. But the calls by which Python code writes
into a tensor say so by their names, and a torch function mode hears each of them before it runs, under no_grad and
through `.data` or a view as well. So what isn't written to isn't copied.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.overrides import TorchFunctionMode

from initlab.anatomy.tensors import tensors

# what a call may write into: its first argument, every one, every one if it renormalises rows, or its `out` alone
_FIRST, _ALL, _ROWS, _NONE = "first", "all", "rows", "none"
_HIDDEN = {
    "batch_norm": _ALL,  # running statistics, whether they are buffers or not
    "native_batch_norm": _ALL,
    "instance_norm": _ALL,
    "embedding": _ROWS,
    "embedding_bag": _ROWS,
    "numpy": _FIRST,  # these hand out the memory itself, and what is done with it isn't heard
    "__array__": _FIRST,
    "__dlpack__": _FIRST,
    "untyped_storage": _FIRST,
    "storage": _FIRST,
    "requires_grad_": _NONE,
    "__int__": _NONE,
    "__index__": _NONE,
    "__invert__": _NONE,
}


@lru_cache(maxsize=4096)
def _written(func: Any) -> str:
    name = getattr(func, "__name__", "")
    if name in _HIDDEN:
        return _HIDDEN[name]
    if name.startswith("__"):  # `+=` is __iadd__
        return _FIRST if name == "__setitem__" or name.startswith("__i") else _NONE
    return _FIRST if name.endswith("_") else _NONE


@dataclass(slots=True)
class _Held:
    tensor: Tensor
    alias: Tensor  # of the same memory, also when the tensor is given other memory
    count: _unsafe_preserve_version_counter | None  # of writes; made in inference mode it has none
    requires_grad: bool
    is_leaf: bool
    grad: Tensor | None
    hooks: tuple[Any, Any]


@dataclass(slots=True)
class _Copy:
    memory: Tensor  # all bytes of a storage
    before: Tensor


class Guard:
    """Holds tensors, copies those that are about to be written to, and puts back what they held.

    A mode that hears of every operation calls `about_to` before each; `listening` is one that does nothing else.
    """

    def __init__(self) -> None:
        self._held: list[_Held] = []
        self._at: dict[int, Tensor] = {}  # an alias by the address of their storage; made for the first write
        self._copies: dict[int, _Copy] = {}

    @property
    def copied(self) -> int:
        """Count the storages that were copied."""
        return len(self._copies)

    def hold(self, tensor: Tensor, *, copy: bool = False) -> None:
        """Note a tensor's memory, flags and `.grad`.

        Args:
            tensor: any; one without memory of its own to point at (sparse, fake) is left alone.
            copy: copy it now, whether it will be written to or not.
        """
        with suppress(RuntimeError, NotImplementedError), torch._C.DisableTorchFunctionSubclass():
            tensor.data_ptr()
            is_leaf, alias = tensor.is_leaf, tensor.detach()
            held = _Held(
                tensor,
                alias,
                None if tensor.is_inference() else _unsafe_preserve_version_counter(alias),
                tensor.requires_grad,
                is_leaf,
                tensor.grad if is_leaf else None,
                (tensor._backward_hooks, tensor._post_accumulate_grad_hooks) if is_leaf else (None, None),
            )
            self._held.append(held)
            if copy:
                address = tensor.untyped_storage().data_ptr()
                if address and address not in self._copies:
                    self._copies[address] = _copy_of(alias)

    def hide_gradients(self) -> None:
        """Take every `.grad` away until `restore`: a backward pass inside a forward would add to it."""
        for held in self._held:
            if held.grad is not None:
                held.tensor.grad = None

    def about_to(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Copy what a call may write into, if it is held and not copied yet.

        Args:
            func: as a torch function mode is given it.
            args: its arguments.
            kwargs: those by name.
        """
        written = _written(func)
        if written is not _NONE and (written is not _ROWS or kwargs.get("max_norm") is not None):
            first = args[:1] if written is _FIRST and args else (*args, *kwargs.values())
            self._copy(tensors(first))
        elif kwargs:
            if kwargs.get("out") is not None:
                self._copy(tensors(kwargs["out"]))
            if kwargs.get("inplace"):
                self._copy(tensors(args[:1]))

    def listening(self) -> TorchFunctionMode:
        """Give a mode that calls `about_to` before each operation, and changes nothing."""
        return _Listening(self)

    def restore(self) -> list[Tensor]:
        """Put back memory, values, flags and `.grad`; give the tensors that were written to unheard."""
        unheard = []
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            for copy in self._copies.values():
                storage, length = copy.memory.untyped_storage(), copy.before.numel()
                if storage.nbytes() < length:  # the pass has let go of it
                    storage.resize_(length)
                # memory may be mapped from a file that can't be written
                if not torch.equal(copy.memory, copy.before):
                    copy.memory.copy_(copy.before)
            for held in self._held:
                count = held.count
                if count is not None and held.alias._version != count.prev_versions[0]:
                    if _there(held.tensor) != _there(held.alias) or _address(held.alias) in self._copies:
                        # a graph of the caller's that has saved the tensor looks at it before it goes back
                        count.__exit__()
                    else:
                        unheard.append(held.tensor)
                _put_back(held)
        return unheard

    def _copy(self, written: Iterable[Tensor]) -> None:
        if not self._at:
            for held in self._held:
                self._at[_address(held.alias)] = held.alias
        for tensor in written:
            address = _address(tensor)
            if address and address in self._at and address not in self._copies:
                self._copies[address] = _copy_of(self._at[address])


class _Listening(TorchFunctionMode):
    def __init__(self, guard: Guard):
        super().__init__()
        self._about_to = guard.about_to

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._about_to(func, args, kwargs)
        return func(*args, **kwargs)


def _address(tensor: Tensor) -> int:
    """Of the tensor's storage, 0 without one; a view has that of its base."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _copy_of(alias: Tensor) -> _Copy:
    """The whole storage, byte by byte: it is right for views, for memory that repeats, and for NaN."""
    storage = alias.untyped_storage()
    with torch.no_grad():
        memory = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        return _Copy(memory, memory.clone())


def _there(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _put_back(held: _Held) -> None:
    tensor, alias = held.tensor, held.alias
    if _there(tensor) != _there(alias):
        tensor.data = alias
    if held.is_leaf and not tensor.is_leaf:  # a tensor that needs gradients was written into it
        with suppress(RuntimeError):  # of a view: its base is what was written to
            tensor.detach_()
    if held.is_leaf and tensor.is_leaf:
        if tensor.requires_grad != held.requires_grad:
            tensor.requires_grad_(held.requires_grad)
        if tensor.grad is not held.grad:
            tensor.grad = held.grad
        if tensor._backward_hooks is not held.hooks[0]:
            tensor._backward_hooks = held.hooks[0]
        if tensor._post_accumulate_grad_hooks is not held.hooks[1]:
            tensor._post_accumulate_grad_hooks = held.hooks[1]
