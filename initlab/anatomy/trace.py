"""What one pass of a model did: its tensors, the operations between them, and the modules around these.

No tensor is kept: a value remembers its shape, where it came from, its root mean square, and a number if it is one.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from initlab.anatomy.operations import Listening, Operation, operation_name, words
from initlab.anatomy.tensors import floats

Where = Literal["in", "out"]

# what is asked of a tensor, and gives none
_ASKED = words(
    "shape size dim ndim ndimension dtype device layout numel nelement is_nested requires_grad grad_fn is_cuda is_cpu "
    "is_meta is_sparse is_quantized is_leaf is_floating_point is_complex is_signed is_contiguous stride "
    "storage_offset element_size itemsize nbytes item tolist numpy data_ptr untyped_storage storage get_device grad "
    "names len bool int retain_grad register_hook _version _base is_mps is_mkldnn is_xla is_inference "
    "result_type hash repr str format contains is_tensor output_nr"
)
# after these a feature is a mixture of others: what a skip connection never passes
MIXING = words(
    "linear matmul addmm baddbmm addbmm einsum bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
    "convolution scaled_dot_product_attention lstm gru rnn_tanh rnn_relu fft rfft irfft ifft cumsum grouped_mm "
    "flex_attention opaque avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d embedding_bag tensordot inner "
    "outer multi_dot chain_matmul _grouped_mm"
)

_FEW = 64  # elements of a tensor that may stand for a number, as a mask of sequences that keeps all
_SMALL = 1 << 16  # elements of a parameter or buffer whose root mean square is taken: gains, gates, position tables


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor was seen: entering (`in`) or leaving (`out`) the call-th use of a module."""

    module: str
    where: Where
    call: int = 0


@dataclass(slots=True, eq=False, repr=False)
class Value:
    """A tensor of the pass.

    Attributes:
        index: its number, in the order of the pass.
        shape: of the tensor.
        floating: whether it holds floating-point or complex numbers.
        op: what gave it; None for a parameter, a buffer, an input, or a constant.
        kind: where it came from if `op` is None.
        name: dotted name of a parameter or buffer.
        output: its place among what `op` gave.
        before: bits of the values it was computed from, itself included.
        mixed: bits of those that it was computed from through a MIXING operation.
        number: the one that every element is, of a tensor that no input had a part in; None of learned ones but single
            elements, and of large ones.
        data: an input of the model had a part in it.
        learned: a parameter had a part in it.
        constant: of indices into a table: they are all the same.
        rms: root mean square; NaN where it wasn't taken.
    """

    index: int
    shape: tuple[int, ...]
    floating: bool
    op: Op | None = None
    kind: Literal["op", "parameter", "buffer", "input", "constant"] = "constant"
    name: str = ""
    output: int = 0
    before: int = 0
    mixed: int = 0
    number: float | None = None
    data: bool = False
    learned: bool = False
    constant: bool = False
    rms: float = math.nan

    def __repr__(self) -> str:
        return f"<{self.name or (self.op.name if self.op else self.kind)} {self.index}>"

    def after(self, other: Value) -> bool:
        """Whether it was computed from the other, or is the other."""
        return bool(self.before >> other.index & 1)

    def mixes(self, other: Value) -> bool:
        """Whether it was computed from the other through a MIXING operation."""
        return bool(self.mixed >> other.index & 1)

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(slots=True, eq=False, repr=False)
class Op:
    """One operation.

    Attributes:
        name: see `initlab.anatomy.operations.operation_name`.
        function: what was called.
        inputs: every tensor that it was given, in order, lists opened.
        args: positional arguments, with Values for tensors.
        kwargs: keyword arguments, likewise.
        within: the modules around it, outermost first: (dotted name, ordinal of this call of the operation in it).
        outputs: the tensors that it gave.
        training: whether the innermost module is in train mode.
        seen: of an attention: rows of what it sees, see `_visible`.
    """

    name: str
    function: Any
    inputs: list[Value]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    within: tuple[tuple[str, int], ...]
    outputs: list[Value] = field(default_factory=list)
    training: bool = False
    seen: Seen | None = None

    def __repr__(self) -> str:
        return f"<{self.name} in {self.module or 'the model'}>"

    @property
    def module(self) -> str:
        """Dotted name of the innermost module around it."""
        return self.within[-1][0] if self.within else ""

    def argument(self, place: int, name: str, otherwise: Any = None) -> Any:
        """Get an argument by position or name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, otherwise)

    def tap(self, owners: Collection[str], value: Value | None = None) -> tuple[str, Operation] | None:
        """Tell where to find one of its inputs again, or without one its output: (module, operation).

        Args:
            owners: modules by which a call may be told, as they are used once.
            value: the input.
        """
        around = [each for each in self.within if each[0] in owners]
        if not around:
            return None
        module, ordinal = around[-1]
        if value is None:
            return module, Operation(self.name, ordinal)
        given = [each for each in self.inputs if each.floating]
        place = next((i for i, each in enumerate(given) if each is value), None)
        return None if place is None else (module, Operation(self.name, ordinal, place))


@dataclass(frozen=True, slots=True)
class Seen:
    """What the rows of an attention see, and whether something that differs from key to key is added to its scores."""

    causal: bool
    whole: bool  # every row sees every key
    window: int | None
    bias: bool


class Trace:
    """Everything that one pass did, in order."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.ops: list[Op] = []
        self.places: dict[Value, list[Place]] = defaultdict(list)
        self.at: dict[Place, Value] = {}
        self.order: dict[str, int] = {}  # of the first use of each module
        self.outputs: list[Value] = []
        self.parameters: dict[str, Value] = {}

    def readers(self) -> dict[Value, list[Op]]:
        """List the operations that are given each value."""
        found: dict[Value, list[Op]] = defaultdict(list)
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                found[value].append(op)
        return found


def traced(model: nn.Module, forward: Callable[[], Any]) -> Trace:
    """Run a model once, in the mode that it is in, and note what it does.

    Args:
        model: any module.
        forward: runs it on a batch.
    """
    listener = _Listener(model)
    # with gradients, as in the pass that is measured: a forward may ask
    with _in_parts(), torch.enable_grad(), warnings.catch_warnings(action="ignore"), listener.following(model):
        with listener:
            output = forward()
        listener.trace.outputs = [value for tensor in floats(output) if (value := listener.known(tensor))]
    listener.settle()
    return listener.trace


class _Listener(Listening):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.trace = Trace()
        self._modes = {name: module.training for name, module in model.named_modules()}
        self._values: dict[int, tuple[weakref.ref[Tensor], Value, int]] = {}
        self._changed: dict[int, Value] = {}  # by storage's first view: the value of its last change
        self._named: dict[int, tuple[Literal["parameter", "buffer"], str]] = {}
        for name, buffer in model.named_buffers():
            self._named[id(buffer)] = ("buffer", name)
        for name, parameter in model.named_parameters():
            self._named[id(parameter)] = ("parameter", name)
        self._stack: list[tuple[str, Counter[str]]] = []
        self._calls: Counter[str] = Counter()
        self._norms: list[tuple[Value, Tensor]] = []
        self._sized: set[Value] = set()
        self._masks: list[tuple[Op, Tensor, tuple[int, int]]] = []

    # the pass

    def heard(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = operation_name(func)
        if name in _ASKED:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # what is asked here is nobody's business
            inputs: list[Value] = []
            template = self._swapped(args, inputs), self._swapped(kwargs, inputs)
            for _, counts in self._stack:
                counts[name] += 1
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            self._note_op(name, func, args, kwargs, inputs, template, result)
        return result

    def _note_op(
        self,
        name: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: list[Value],
        template: tuple[Any, Any],
        result: Any,
    ) -> None:
        given = [t for t in (result if isinstance(result, tuple | list) else [result]) if isinstance(t, Tensor)]
        changed = name == "setitem"
        if not given and not changed:
            return
        op = Op(name, func, inputs, template[0], template[1], self._within(name))
        op.training = bool(self._stack) and self._modes.get(self._stack[-1][0], False)
        self.trace.ops.append(op)
        if changed:
            given = [args[0]]
        for place, tensor in enumerate(given):
            if self._unchanged(tensor):  # x.to(x.dtype)
                continue
            value = self._produced(op, tensor, place)
            if any(tensor is each for each in args):  # in place
                self._changed[id(tensor._base if tensor._is_view() else tensor)] = value
        if isinstance(kwargs.get("out"), Tensor):
            self._produced(op, kwargs["out"], 0)
        if name in ("add", "mul", "baddbmm"):
            self._look_at_constants(inputs, args, kwargs)
        self._look_at_mask(op, args, kwargs, given)
        if name == "embedding" and len(inputs) == 2:
            ids = next(t for t in _tensors((args, kwargs)) if not t.is_floating_point())
            value = self.value(ids)
            value.constant = not value.data and ids.numel() > 0 and bool((ids == ids.flatten()[0]).all())

    def _look_at_constants(self, inputs: list[Value], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the size of what is made in the pass, though of no input: rotary tables, sinusoids."""
        for value, tensor in zip(inputs, _tensors((args, kwargs)), strict=False):
            made = value.op is not None and not value.data and value.floating and 1 < value.numel <= _SMALL
            if made and value not in self._sized and _readable(tensor):
                self._sized.add(value)
                self._norms.append((value, _size(tensor)))

    def _unchanged(self, tensor: Tensor) -> bool:
        entry = self._values.get(id(tensor))
        return entry is not None and entry[0]() is tensor and entry[2] == _version(tensor)

    def _within(self, name: str) -> tuple[tuple[str, int], ...]:
        return tuple((module, counts[name] - 1) for module, counts in self._stack)

    def _swapped(self, given: Any, inputs: list[Value]) -> Any:
        if isinstance(given, Tensor):
            value = self.value(given)
            inputs.append(value)
            return value
        if isinstance(given, tuple | list):
            return tuple(self._swapped(each, inputs) for each in given)
        if isinstance(given, dict):
            return {key: self._swapped(each, inputs) for key, each in given.items()}
        return given

    def known(self, tensor: Tensor) -> Value | None:
        """The value of a tensor that was seen before."""
        entry = self._values.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def value(self, tensor: Tensor) -> Value:
        """The value of a tensor; one that nothing seen has given is an origin."""
        entry = self._values.get(id(tensor))
        version = _version(tensor)
        if entry is not None and entry[0]() is tensor:
            if entry[2] == version:
                return entry[1]
            change = self._changed.get(id(tensor._base if tensor._is_view() else tensor))
            if change is None or change is entry[1]:
                return entry[1]
            # changed through another view of its storage
            op = Op("changed", None, [entry[1], change], (entry[1], change), {}, self._within("changed"))
            self.trace.ops.append(op)
            return self._produced(op, tensor, 0)
        kind, name = self._named.get(id(tensor), ("constant", ""))
        value = self._note(tensor, None, kind, name)
        if kind == "parameter":
            self.trace.parameters[name] = value
            value.learned = True
        value.number = _number(tensor, value)
        if value.number is None and value.floating and tensor.numel() <= _SMALL and _readable(tensor):
            self._norms.append((value, _size(tensor)))
        return value

    def _produced(self, op: Op, tensor: Tensor, place: int) -> Value:
        value = self._note(tensor, op, "op", "")
        value.output = place
        bits = mixed = 0
        for each in op.inputs:
            bits |= each.before
            mixed |= each.mixed
            value.data = value.data or each.data
            value.learned = value.learned or each.learned
        value.before |= bits
        value.mixed = mixed | bits if op.name in MIXING else mixed
        op.outputs.append(value)
        if not value.data:
            value.number = _number(tensor, value)
        elif value.floating and tensor.numel() > 1 and not tensor._is_view() and _readable(tensor):
            self._norms.append((value, _size(tensor)))
        return value

    def _note(self, tensor: Tensor, op: Op | None, kind: Any, name: str) -> Value:
        floating = tensor.is_floating_point() or tensor.is_complex()
        value = Value(len(self.trace.values), tuple(tensor.shape), floating, op, kind, name)
        value.before = 1 << value.index
        self.trace.values.append(value)
        self._values[id(tensor)] = weakref.ref(tensor), value, _version(tensor)
        return value

    # masks

    def _look_at_mask(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Tensor]) -> None:
        if op.name == "scaled_dot_product_attention":
            query, key = (op.argument(place, name) for place, name in ((0, "query"), (1, "key")))
            sizes = query.shape[-2], key.shape[-2]
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            if isinstance(mask, Tensor):
                self._masks.append((op, _visible(mask), sizes))
            else:
                causal = bool(op.argument(5, "is_causal", False))
                op.seen = Seen(causal=causal, whole=not causal or sizes[0] == 1, window=None, bias=False)
        elif op.name == "softmax" and given and given[0].dim() >= 3 and given[0].is_floating_point():
            pattern = given[0]
            self._masks.append((op, _counts(pattern > 0), (pattern.shape[-2], pattern.shape[-1])))

    # modules

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Hooks that tell which module an operation is in, and what goes in and out of it."""
        handles = []
        try:
            for name, module in model.named_modules():
                handles.append(module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True))
                handles.append(module.register_forward_hook(partial(self._leave, name), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with torch._C.DisableTorchFunction():
            self.trace.order.setdefault(name, len(self.trace.order))
            if not self._stack:
                for tensor in _tensors((args, kwargs)):
                    if not name or self.known(tensor) is None:
                        value = self._note(tensor, None, "input", "")
                        value.data = True
            self._put(name, "in", (*args, *kwargs.values()))
            self._stack.append((name, Counter()))

    def _leave(self, name: str, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        with torch._C.DisableTorchFunction():
            while self._stack and self._stack.pop()[0] != name:
                pass
            given = [value for tensor in _tensors((args, kwargs)) if (value := self.known(tensor))]
            for place, tensor in enumerate(_tensors(output)):
                if self.known(tensor) is None and id(tensor) not in self._named:  # below Python
                    op = Op("opaque", None, given, (), {}, (*self._within("opaque"), (name, 0)))
                    self.trace.ops.append(op)
                    self._produced(op, tensor, place)
            self._put(name, "out", output)
            self._calls[name] += 1

    def _put(self, name: str, where: Where, given: Any) -> None:
        tensor = next(floats(given), None)
        if tensor is not None:
            place = Place(name, where, self._calls[name])
            value = self.value(tensor)
            self.trace.places[value].append(place)
            self.trace.at[place] = value

    def settle(self) -> None:
        """Read what was left on the device."""
        if self._norms:
            norms = torch.stack([norm.cpu() for _, norm in self._norms]).tolist()
            for (value, _), norm in zip(self._norms, norms, strict=True):
                value.rms = norm / math.sqrt(max(1, value.numel))
        for op, counts, (rows, keys) in self._masks:
            op.seen = _as_seen(counts.tolist(), rows, keys)
        self._norms, self._masks, self._values = [], [], {}


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, dict):
        for each in given.values():
            yield from _tensors(each)
    elif isinstance(given, tuple | list):
        for each in given:
            yield from _tensors(each)


def _readable(tensor: Tensor) -> bool:
    """Its elements are real numbers that can be read: not complex, not of a meta device, not of a vmap."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return not (wrapped or tensor.is_meta or tensor.is_complex())


def _number(tensor: Tensor, value: Value) -> float | None:
    """The number that all elements are, where it is cheap to see and isn't one of many that are learned."""
    few = tensor.numel() == 1 or (0 < tensor.numel() <= _FEW and value.floating and not value.learned)
    if not few or not _readable(tensor):
        return None
    first = tensor.detach().flatten()[0]
    return float(first) if tensor.numel() == 1 or bool((tensor == first).all()) else None


def _size(tensor: Tensor) -> Tensor:
    """The 2-norm, summed up in float32 or wider."""
    return torch.linalg.vector_norm(
        tensor.detach(), dtype=torch.float32 if tensor.element_size() < 4 else None
    ).double()


def _version(tensor: Tensor) -> int:
    try:
        return tensor._version
    except RuntimeError:  # made in inference mode
        return 0


def _visible(mask: Tensor) -> Tensor:
    """Of a mask, boolean or added to the scores: see `_counts`."""
    if mask.dtype == torch.bool:
        return _counts(mask)
    masked = torch.finfo(mask.dtype).min / 4 if mask.dtype.is_floating_point else -1e4
    shown = mask > max(masked, -1e4)
    return _counts(shown, bias=(mask * shown).nan_to_num(0, 0, 0).abs().amax())


def _counts(shown: Tensor, bias: Tensor | None = None) -> Tensor:
    """Keys that the first row sees, all rows, the row that sees most; whether the last sees itself; a bias's size."""
    shown = shown.reshape(-1, *shown.shape[-2:])[:1].expand(1, -1, -1)[0]
    per_row = shown.sum(-1)
    numbers = [per_row[0], per_row.sum(), per_row.max(), shown[-1, -1]]
    size = torch.zeros((), device=shown.device) if bias is None else bias
    return torch.stack([*(n.double() for n in numbers), size.double()])


def _as_seen(counts: list[float], rows: int, keys: int) -> Seen:
    first, total, most, own, bias = counts
    whole = total in (rows * keys, keys)  # one row may stand for all
    causal = bool(not whole and rows == keys and first == 1 and own)
    window = int(most) if causal and most < keys and total == most * (most + 1) / 2 + (rows - most) * most else None
    plain = causal and (window is not None or total == rows * (rows + 1) / 2)
    return Seen(causal=plain, whole=whole, window=window, bias=bias > 0)


@contextmanager
def _in_parts() -> Iterator[None]:
    """Without nn.TransformerEncoderLayer's fused path, which calls none of its parts."""
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
