"""Every operation of torch while a model is made, kept by the memory that it wrote."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode

from initlab.drawing.frames import Place, arguments, place
from initlab.drawing.values import EMPTY, GIVEN, Value, constant, result, scale

# writes to an unknown part of what they are given
_PARTLY = (
    "index_put",
    "_index_put_impl",
    "masked_fill",
    "masked_scatter",
    "scatter",
    "index_fill",
    "index_copy",
    "put",
)
_REPLACING = ("set_", "resize_")  # give a tensor other memory, and write none
_COPIES = ("clone", "_to_copy", "contiguous")


@dataclass(slots=True)
class Write:
    """One thing that was done to a piece of memory.

    Attributes:
        order: among all that were heard.
        operation, arguments: as the code has it; the function by which it writes, where there is one.
        value: of what was written; of a scaling, what is left then.
        factor: what every element was multiplied with, NaN where the write isn't that alone.
        share: of the memory, NaN where that isn't known.
        where: `file:line function`.
        default, anew: see `Place`.
        made: the memory was made with it (`torch.zeros`), not overwritten.
        left: what it left, where that was overwritten and no distribution says it: an orthogonal matrix, what was
            computed.
    """

    order: int
    operation: str
    arguments: str
    value: Value
    factor: float
    share: float
    where: str
    default: bool
    anew: bool
    made: bool
    left: Tensor | None = None


@dataclass(slots=True, eq=False)
class Memory:
    """What was done to one storage.

    Attributes:
        value: what it holds as a whole.
        parent: what it was copied from.
        writes: in order.
        bare: a part of it may never have been written.
        dtype: of the numbers in it, where they were made NaN for that.
    """

    value: Value
    parent: Memory | None = None
    writes: list[Write] = field(default_factory=list)
    bare: bool = False
    dtype: torch.dtype | None = None

    def line(self) -> Iterator[Memory]:
        """This and what it was copied from."""
        memory: Memory | None = self
        while memory is not None:
            yield memory
            memory = memory.parent


@dataclass(slots=True)
class Held:
    """A parameter or buffer as a module got it."""

    memory: Memory
    order: int
    where: str


class Hearing(TorchDispatchMode):
    """Hears what one thread does. Memory that nobody wrote is filled with NaN, so that it can be told afterwards."""

    def __init__(self, stop: FrameType):
        super().__init__()
        self.stop: FrameType | None = stop
        self.memories: dict[StorageWeakRef, Memory] = {}  # weak, so that an address isn't used again meanwhile
        self.held: dict[int, tuple[weakref.ref[nn.Module], dict[str, list[Held]]]] = {}
        self.problems: list[str] = []
        self._own: set[int] = set()  # memories that modules hold
        self._orders = itertools.count()
        self._thread = threading.get_ident()
        self._named: FrameType | None = None
        self._by_name: dict[int, Write] = {}  # of the call that is going on, by memory

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Hear until the end of the block, whatever happens in it."""
        with contextlib.ExitStack() as stack:
            for register in (
                hooks.register_module_parameter_registration_hook,
                hooks.register_module_buffer_registration_hook,
            ):
                stack.callback(register(self._registered).remove)
            stack.callback(self._forget_call)
            stack.enter_context(self)
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what was asked for, and keep what that wrote."""
        kwargs = kwargs or {}
        told = _told(func)
        if told.writes:
            self._keep_what_goes(told, args, kwargs)
        out = func(*args, **kwargs)
        if told.writes or told.fresh:
            try:
                self._keep(told, args, kwargs, out)
            except Exception as error:  # of tensors without memory, or of a kind of their own
                self.problems.append(f"{told.name}: {type(error).__name__}: {error}")
        return out

    def _keep_what_goes(self, told: _Told, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Keep what a module holds and no distribution says, before it is overwritten."""
        for tensor in _written(told, args, kwargs):
            memory = self.memory_of(tensor)
            if memory is None or memory.value.drawn or id(memory) not in self._own or tensor.is_meta:
                continue
            last = max((write for each in memory.line() for write in each.writes), key=lambda w: w.order, default=None)
            if last is not None and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes():
                last.left = tensor.detach().clone()

    def memory_of(self, tensor: Tensor) -> Memory | None:
        """Find what is known of a tensor's memory; None where it was made unheard.

        Args:
            tensor: any.
        """
        try:
            return self.memories.get(StorageWeakRef(tensor.untyped_storage()))
        except (NotImplementedError, RuntimeError, ValueError):  # a kind of tensor that has none, or a lazy one
            return None

    def bare(self) -> Iterator[tuple[torch.UntypedStorage, Memory]]:
        """Go through the memory still there of which a part may never have been written."""
        for reference, memory in self.memories.items():
            if memory.bare and not reference.expired():
                yield torch.UntypedStorage._new_with_weak_ptr(reference.cdata), memory

    def _keep(self, told: _Told, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        targets = _written(told, args, kwargs)
        fresh = [] if targets or not told.fresh else [tensor for tensor in _tensors(out) if tensor.layout is _STRIDED]
        if not targets and not fresh:
            return
        found = place(sys._getframe(2), self.stop)
        everything = [*args, *(value for name, value in kwargs.items() if name not in _SETTINGS)]
        numbers = [self._number(value) for value in everything]
        for tensor in targets:
            self._write(tensor, told.name, everything, numbers, found)
        for tensor in fresh:
            self._birth(tensor, told.name, everything, numbers, found)

    def _birth(self, tensor: Tensor, name: str, given: list[Any], numbers: list[float | None], found: Place) -> None:
        sources = [memory for each in given for one in _tensors(each) if (memory := self.memory_of(one))]
        values = [memory.value for memory in sources]
        if name == "lift_fresh":  # numbers from Python, or an array
            single = tensor.numel() == 1 and not tensor.is_meta and not tensor.is_complex()
            value = constant(float(tensor.item())) if single else GIVEN
        else:
            value = result(name, numbers, values)
        memory = Memory(value, sources[0] if name in _COPIES and sources else None)
        self.memories[StorageWeakRef(tensor.untyped_storage())] = memory
        if value is EMPTY:
            memory.bare = memory.parent is None or memory.parent.bare
            if memory.parent is None and not tensor.is_meta and _can_be_nan(tensor):
                tensor.fill_(math.nan)
                memory.dtype = tensor.dtype
        elif memory.parent is None:
            write = Write(
                next(self._orders),
                name,
                _text(numbers),
                value,
                math.nan,
                1.0,
                found.where,
                found.default,
                found.anew,
                True,
            )
            memory.writes.append(write)
        else:
            memory.bare = memory.parent.bare

    def _write(self, tensor: Tensor, name: str, given: list[Any], numbers: list[float | None], found: Place) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        memory = self.memories.get(reference)
        if memory is None:
            memory = self.memories[reference] = Memory(GIVEN)
        share = tensor.numel() * tensor.element_size() / max(storage.nbytes(), 1)
        if tensor.numel() == 0:
            return
        whole = share >= 1 and name not in _PARTLY
        values = [
            source.value if (source := self.memory_of(one)) else GIVEN
            for each in given
            for one in _tensors(each)
            if self._number(one) is None
        ]
        factor = scale(name, numbers)
        value = result(name, numbers, values)
        write = Write(
            next(self._orders),
            name + "_",
            _text(numbers),
            value,
            math.nan if factor is None else factor,
            min(share, 1.0) if name not in _PARTLY else math.nan,
            found.where,
            found.default,
            found.anew,
            False,
        )
        self._append(memory, write, found.named, whole)
        if whole:
            memory.value = memory.writes[-1].value
            memory.bare = memory.bare and value.kind == "empty"

    def _append(self, memory: Memory, write: Write, named: FrameType | None, whole: bool) -> None:
        """Add a write; what one function does to one tensor is one, of the function's name."""
        if named is None:
            memory.writes.append(write)
            return
        if named is not self._named:
            self._named, self._by_name = named, {}
        before = self._by_name.get(id(memory))
        raw = write.operation
        if before is None:
            write.operation, write.arguments = named.f_code.co_name, arguments(named)
            self._by_name[id(memory)] = write
            memory.writes.append(write)
        else:
            if whole:
                before.value = write.value
            before.factor *= write.factor
            before.share = max(before.share, write.share)
        last = memory.writes[-1]
        mean, std = (named.f_locals.get(name) for name in ("mean", "std"))
        if "trunc" in last.operation and isinstance(mean, int | float) and isinstance(std, int | float):
            last.value = Value("cut normal", float(mean), float(std))  # by rejection, which leaves no other sign
        elif last.value.kind == "computed" and last.operation.endswith("_") and raw != last.operation:
            last.value = Value(last.operation.rstrip("_"))

    def _registered(self, module: nn.Module, name: str, tensor: Tensor | None) -> None:
        """A module gets a parameter or buffer, its first of this name or another one."""
        memory = None if tensor is None or threading.get_ident() != self._thread else self.memory_of(tensor)
        if memory is None:
            return
        known = self.held.get(id(module))
        if known is None or known[0]() is not module:
            known = self.held[id(module)] = (weakref.ref(module), {})
        where = place(sys._getframe(1), self.stop).where
        self._own.add(id(memory))
        known[1].setdefault(name, []).append(Held(memory, next(self._orders), where))

    def held_by(self, module: nn.Module, name: str) -> list[Held]:
        """List what a module held under a name, in order.

        Args:
            module: of the model.
            name: of a parameter or buffer, in it.
        """
        known = self.held.get(id(module))
        return known[1].get(name, []) if known is not None and known[0]() is module else []

    def _number(self, value: Any) -> float | None:
        """A number, also as a tensor of one."""
        if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
            return None
        if isinstance(value, Tensor):
            if value.dim() or value.is_complex():
                return None
            if value.is_meta:
                known = self.memory_of(value)
                return known.value.mean if known and known.value.kind == "constant" else None
            return float(value.item())
        return float(value)

    def _forget_call(self) -> None:
        self._named, self._by_name = None, {}


_STRIDED = torch.strided
_SETTINGS = frozenset(
    ("dtype", "layout", "device", "pin_memory", "memory_format", "generator", "out", "non_blocking", "alpha")
)


@dataclass(frozen=True, slots=True)
class _Told:
    """What an operation's schema says: its name, which arguments it writes, and whether it makes new memory."""

    name: str
    writes: tuple[int | str, ...]
    fresh: bool


@functools.cache
def _told(func: Any) -> _Told:
    schema = func._schema
    writes = tuple(
        each.name if each.kwarg_only else place
        for place, each in enumerate(schema.arguments)
        if each.alias_info is not None and each.alias_info.is_write
    )
    name = str(schema.name).rpartition("::")[2]
    if name in _REPLACING:
        return _Told(name, (), False)
    fresh = any(each.alias_info is None for each in schema.returns) or name == "lift_fresh"
    return _Told(name[:-1] if name.endswith("_") else name, writes, fresh)


def _written(told: _Told, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes."""
    given = [kwargs.get(key) if isinstance(key, str) else _at(args, key) for key in told.writes]
    return [tensor for each in given for tensor in _tensors(each)]


def _at(args: Sequence[Any], index: int) -> Any:
    return args[index] if index < len(args) else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _can_be_nan(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.is_floating_point() and tensor.dtype.itemsize > 1


def _text(numbers: Sequence[float | None]) -> str:
    return ", ".join(f"{number:.6g}" for number in numbers if number is not None)
