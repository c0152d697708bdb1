"""Listening to one pass of a model, and writing down what it does."""

from __future__ import annotations

import math
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from initlab.anatomy.contractions import parted
from initlab.anatomy.graph import MIXING, Op, Place, Seen, Trace, Value, Where
from initlab.anatomy.operations import Counts, Listening, operation_name, words
from initlab.anatomy.tensors import MASKED, floats, gradient_node, heads_first, hidden, nearest, tensors
from initlab.anatomy.walking import weight_of

# what is asked of a tensor, and gives none
_ASKED = words(
    "shape size dim ndim ndimension dtype device layout numel nelement is_nested requires_grad grad_fn is_cuda is_cpu "
    "is_meta is_sparse is_quantized is_leaf is_floating_point is_complex is_signed is_contiguous stride "
    "storage_offset element_size itemsize nbytes item tolist numpy data_ptr untyped_storage storage get_device grad "
    "names len bool int retain_grad register_hook _version _base is_mps is_mkldnn is_xla is_inference "
    "result_type hash repr str format contains is_tensor output_nr"
)


_FEW = 64  # elements of a tensor that may stand for a number, as a mask of sequences that keeps all


_SMALL = 1 << 16  # elements of a parameter or buffer whose root mean square is taken: gains, gates, position tables


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
        self._grads: dict[tuple[Any, int], Value] = {}  # by the node of its gradient's graph, and which of its outputs
        self._changed: dict[int, Value] = {}  # by storage's first view: the value of its last change
        self._named: dict[int, tuple[Literal["parameter", "buffer"], str]] = {}
        for name, buffer in model.named_buffers():
            self._named[id(buffer)] = ("buffer", name)
        for name, parameter in model.named_parameters():
            self._named[id(parameter)] = ("parameter", name)
        self._counts = Counts()
        self._calls: Counter[str] = Counter()
        self._norms: list[tuple[Value, Tensor]] = []
        self._rows: dict[Value, Tensor] = {}
        self._sized: set[Value] = set()
        self._masks: list[tuple[Op, Tensor, tuple[int, int]]] = []

    def heard(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = operation_name(func)
        if name in _ASKED:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():  # what is asked here is nobody's business
            inputs: list[Value] = []
            template = self._swapped(args, inputs), self._swapped(kwargs, inputs)
            self._counts.count(name)
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
        op.training = bool(op.within) and self._modes.get(op.module, False)
        self.trace.ops.append(op)
        if changed:
            given = [args[0]]
        if name == "einsum" and len(inputs) > 2:
            op = parted(self.trace, op)
        for place, tensor in enumerate(given):
            entry = self._values.get(id(tensor))
            if entry is not None and entry[0]() is tensor and entry[2] == _version(tensor):  # x.to(x.dtype)
                continue
            value = self._produced(op, tensor, place)
            if entry is not None and any(tensor is each for each in args):  # in place
                self._changed[id(tensor._base if tensor._is_view() else tensor)] = value
        if isinstance(kwargs.get("out"), Tensor):
            self._produced(op, kwargs["out"], 0)
        if name in ("add", "sub", "mul") or name in MIXING:
            self._look_at_made(name, inputs, args, kwargs)
        self._look_at_mask(op, args, kwargs, given)
        if name == "embedding" and len(inputs) == 2:
            ids = next(t for t in tensors((args, kwargs)) if not t.is_floating_point())
            value = self.value(ids)
            # of zeros_like(ids), segments, the ids are the input, and nothing of them is there
            value.constant = value.kind != "input" and ids.numel() > 0 and bool((ids == ids.flatten()[0]).all())

    def _look_at_made(self, name: str, inputs: list[Value], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the size of what is made in the pass, though of no input: rotary tables, sinusoids, computed weights."""
        for value, tensor in zip(inputs, tensors((args, kwargs)), strict=False):
            added = name in ("add", "sub") and not (value.data or value.learned) and value.floating
            if added and value.shape[-1:] > (1,) and value not in self._rows and _readable(tensor):
                self._rows[value] = _unevenness(tensor)
            if name == "mul" and not (value.data or tensor.requires_grad) and value.floating and value.numel > 1:
                value.table = tensor.detach()
            made = value.op is not None and not value.data and value.floating and value not in self._sized
            if not made or not _readable(tensor):
                continue
            small = name in ("add", "mul", "baddbmm") and 1 < value.numel <= _SMALL
            held = weight_of(value) if name in MIXING and value.learned and len(value.shape) >= 2 else None
            if small or (held is not None and held[1] is not None):
                self._sized.add(value)
                self._norms.append((value, _size(tensor)))

    def _within(self, name: str) -> tuple[tuple[str, int], ...]:
        return tuple([(module, counts[name] - 1) for module, counts in self._counts.entered])

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
            value = entry[1]
            if value.op is not None and value.flowing == 1 << value.index and tensor.requires_grad:
                value.flowing = value.before  # of an autograd.Function, whose own operations run without gradients
            if entry[2] == version:
                return value
            change = self._changed.get(id(tensor._base if tensor._is_view() else tensor))
            if change is None or change is entry[1]:
                return entry[1]
            # changed through another view of its storage
            op = Op("changed", None, [entry[1], change], (entry[1], change), {}, self._within("changed"))
            self.trace.ops.append(op)
            return self._produced(op, tensor, 0)
        kind, name = self._named.get(id(tensor), ("constant", ""))
        made_of = [] if name else self._made_of(tensor)
        if made_of:  # below Python, as a scripted function or an autograd function of a user's own
            op = Op("opaque", None, made_of, (), {}, self._within("opaque"))
            self.trace.ops.append(op)
            return self._produced(op, tensor, 0)
        value = self._note(tensor, None, kind, name)
        if kind == "parameter":
            value.learned = True
        elif kind == "constant" and tensor.is_leaf and tensor.requires_grad:
            self.trace.strangers.append(tensor)
        value.number = _number(tensor, value)
        if value.number is None and value.floating and tensor.numel() <= _SMALL and _readable(tensor):
            self._norms.append((value, _size(tensor)))
        return value

    def _made_of(self, tensor: Tensor) -> list[Value]:
        """The nearest tensors seen before that a tensor was computed from, by the graph of its gradient."""

        def known(node: Any, place: int) -> Value | None:
            parameter = getattr(node, "variable", None)
            return self._grads.get((node, place)) if parameter is None else self.value(parameter)

        return sorted(nearest(tensor, known), key=lambda value: value.index)

    def _produced(self, op: Op, tensor: Tensor, place: int) -> Value:
        value = self._note(tensor, op, "op", "")
        value.output = place
        op.gave(value, tensor.requires_grad)
        if not value.data:
            value.number = _number(tensor, value)
        elif value.floating and tensor.numel() > 1 and not tensor._is_view() and _readable(tensor):
            self._norms.append((value, _size(tensor)))
        return value

    def _note(self, tensor: Tensor, op: Op | None, kind: Any, name: str) -> Value:
        floating = tensor.is_floating_point() or tensor.is_complex()
        value = Value(len(self.trace.values), tuple(tensor.shape), floating, op, kind, name)
        value.before = value.flowing = 1 << value.index
        self.trace.values.append(value)
        self._values[id(tensor)] = weakref.ref(tensor), value, _version(tensor)
        if (node := gradient_node(tensor)) is not None:
            self._grads[node, tensor.output_nr] = value
        return value

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
            scores = kwargs.get("input", args[0] if args else None)
            scores = heads_first((scores if isinstance(scores, Tensor) else given[0]).detach())
            one = scores.reshape(-1, *scores.shape[-2:])[:1]  # the first head's stands for all
            self._masks.append((op, _counts(~hidden(one)), (scores.shape[-2], scores.shape[-1])))

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
            if not self._counts.entered:
                for tensor in tensors((args, kwargs)):
                    if not name or self.known(tensor) is None:
                        value = self._note(tensor, None, "input", "")
                        value.data = True
            self._put(name, "in", (*args, *kwargs.values()))
            self._counts.enter(name)

    def _leave(self, name: str, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        with torch._C.DisableTorchFunction():
            self._counts.leave(name)
            given = [value for tensor in tensors((args, kwargs)) if (value := self.known(tensor))]
            for place, tensor in enumerate(tensors(output)):
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
        for value, number in _read(self._norms):
            value.rms = number / math.sqrt(max(1, value.numel))
        for op, counts, (rows, keys) in self._masks:
            op.seen = _as_seen(counts.tolist(), rows, keys)
        for value, number in _read(self._rows.items()):
            value.uneven = number
        self._norms, self._masks, self._rows, self._values, self._grads = [], [], {}, {}, {}


def _read(numbers: Iterable[tuple[Value, Tensor]]) -> Iterator[tuple[Value, float]]:
    """Read single numbers from their devices, those of a device and dtype together."""
    alike: dict[tuple[torch.device, torch.dtype], list[tuple[Value, Tensor]]] = {}
    for value, number in numbers:
        alike.setdefault((number.device, number.dtype), []).append((value, number))
    for group in alike.values():
        read = torch.stack([number for _, number in group]).tolist()
        yield from zip([value for value, _ in group], read, strict=True)


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
    return torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32 if tensor.element_size() < 4 else None)


def _unevenness(tensor: Tensor) -> Tensor:
    """How much those elements of a last row differ that mask nothing, of the head where they differ most."""
    row = tensor.detach()[..., -1, :] if tensor.dim() > 1 else tensor.detach()
    masks = row <= -MASKED
    most = row.masked_fill(masks, -math.inf).amax(-1) - row.masked_fill(masks, math.inf).amin(-1)
    return most.amax()


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
