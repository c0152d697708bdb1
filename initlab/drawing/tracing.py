"""What the code that made a model did to each of its parameters and buffers."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy.unwrapping import bare
from initlab.drawing.hearing import Hearing, Memory, Write
from initlab.errors import ProbeError

_TRACED: weakref.WeakKeyDictionary[nn.Module, list[dict[str, Any]]] = weakref.WeakKeyDictionary()
_LEFT: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, int], Tensor]] = weakref.WeakKeyDictionary()
_VERSIONS = "version"  # of the tensor when it was traced; the row's key in memory alone


@dataclass(frozen=True, slots=True)
class Traced:
    """A model that was made while its init was heard.

    Attributes:
        model: as the function returned it.
        rows: of the table `writes`, without run_id.
        notes: what couldn't be seen.
    """

    model: nn.Module
    rows: list[dict[str, Any]]
    notes: list[str]


def trace(factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Traced:
    """Make a model, and hear every write to its parameters and buffers; what is drawn is what a plain call draws.

    Parameters that nothing wrote are left NaN; other memory of the kind is 0 afterwards.

    Args:
        factory: returns a module.
        args: of it.
        kwargs: of it, by name.

    Raises:
        ProbeError: it raised, which is chained, or returned no module.
    """
    name = getattr(factory, "__qualname__", type(factory).__name__)
    hearing = Hearing(sys._getframe())
    try:
        with hearing.on():
            made = factory(*args, **kwargs)
    except (Exception, SystemExit) as error:
        raise ProbeError(f"{name} raised {type(error).__name__}: {error}") from error
    finally:
        hearing.stop = None  # the frame holds this very object, and the model: neither would go with its last reference
    if not isinstance(made, nn.Module):
        raise ProbeError(f"{name} returned {type(made).__name__}; expected a torch.nn.Module")
    model, notes = bare(made)
    left: dict[tuple[str, int], Tensor] = {}
    rows = list(_rows(model, hearing, left))
    _settle(model, hearing)
    notes = [*notes, *_notes(rows, hearing)]
    _TRACED[model], _LEFT[model] = rows, left
    return Traced(made, [_shown(row) for row in rows], notes)


def writes_of(model: nn.Module) -> list[dict[str, Any]]:
    """Give the rows of a model that was traced; without those of what was written since.

    Args:
        model: as it was made, without wrappers.
    """
    found = _TRACED.get(model, [])
    tensors = [*model.named_parameters(), *model.named_buffers()] if found else []
    now = {name: _version(tensor) for name, tensor in tensors}
    return [_shown(row) for row in found if now.get(row["parameter"]) == row[_VERSIONS]]


def left_by(model: nn.Module) -> dict[tuple[str, int], Tensor]:
    """Give what writes left that were overwritten and that no distribution says, by parameter and `order`.

    Args:
        model: as it was made, without wrappers.
    """
    return _LEFT.get(model, {})


def _version(tensor: Tensor) -> int:
    return 0 if nn.parameter.is_lazy(tensor) or tensor.is_inference() else tensor._version


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != _VERSIONS}


def _rows(model: nn.Module, hearing: Hearing, left: dict[tuple[str, int], Tensor]) -> Iterator[dict[str, Any]]:
    """A row for each write to each parameter and buffer, or one for what was never written; fills `left`."""
    names: dict[int, list[tuple[str, nn.Module, str, Tensor, str]]] = {}
    for path, module in model.named_modules():
        for held, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
            for name, tensor in tensors.items():
                if tensor is not None and not nn.parameter.is_lazy(tensor):
                    whole = f"{path}.{name}" if path else name
                    names.setdefault(id(tensor), []).append((whole, module, name, tensor, held))
    untied = _untied(names, hearing)
    drawn: dict[tuple[int, ...], str] = {}
    for places in names.values():
        first, module, _, tensor, held = places[0]
        memory = hearing.memory_of(tensor)
        own = [] if memory is None else [write for each in memory.line() for write in each.writes]
        lost = _lost(places, memory, hearing)
        state = "meta" if tensor.is_meta else "set" if memory is not None else "unheard"
        # a copy has the very writes of what it was copied from
        orders = tuple(sorted(write.order for write in own))
        copied = drawn.setdefault(orders, first) if orders and memory is not None and held == "parameter" else first
        common = {
            "parameter": first,
            "held": held,
            "shape": "×".join(map(str, tensor.shape)),
            "ndim": tensor.dim(),
            "holder": type(module).__name__,
            "tied": ", ".join(other for other, *_ in places[1:]),
            "untied": untied.get(id(tensor), ""),
            "copied": "" if copied == first else copied,
            "state": state,
            "unset": _unset(tensor, memory),
            _VERSIONS: _version(tensor),
        }
        writes = sorted([(write, 0) for write in own] + [(write, 1) for write in lost], key=lambda each: each[0].order)
        anew = max((place for place, (write, _) in enumerate(writes) if write.anew), default=0)
        writes = writes[anew:]
        if not writes:
            yield common
        left |= {(first, write.order): write.left for write, _ in writes if write.left is not None}
        for write, replaced in writes:
            yield common | _described(write, tensor, memory) | {"replaced": replaced}


def _described(write: Write, tensor: Tensor, memory: Memory | None) -> dict[str, Any]:
    value = write.value
    return {
        "order": write.order,
        "operation": write.operation,
        "arguments": write.arguments,
        "distribution": value.kind,
        "text": value.text,
        "mean": float(value.mean),
        "std": float(value.std),
        "factor": float(write.factor),
        "share": float(write.share),
        "where": write.where,
        "by": "default" if write.default else "code",
        "made": int(write.made),
    }


def _lost(places: list[Any], memory: Memory | None, hearing: Hearing) -> list[Write]:
    """Writes to what these names had before."""
    kept = set() if memory is None else {id(each) for each in memory.line()}
    before = [held.memory for _, module, name, *_ in places for held in hearing.held_by(module, name)]
    found = {id(write): write for each in before for one in each.line() if id(one) not in kept for write in one.writes}
    return list(found.values())


def _untied(names: dict[int, list[Any]], hearing: Hearing) -> dict[int, str]:
    """By tensor: the first name of another one that was the same tensor before."""
    shared: dict[int, list[tuple[int, str]]] = {}
    for key, places in names.items():
        for whole, module, name, _, held in places:
            for each in hearing.held_by(module, name) if held == "parameter" else []:
                shared.setdefault(id(each.memory), []).append((key, whole))
    found: dict[int, str] = {}
    for members in shared.values():
        (first, name), *others = members
        for key, _ in others:
            if key != first:
                found.setdefault(key, name)
    return found


def _unset(tensor: Tensor, memory: Memory | None) -> float:
    """The share that nothing wrote, or that was written as NaN."""
    if memory is None or tensor.is_meta or not tensor.numel():
        return 0.0
    if not memory.bare and not (memory.value.kind == "constant" and math.isnan(memory.value.mean)):
        return 0.0
    if not tensor.is_floating_point() or tensor.dtype.itemsize == 1:  # can't be NaN, or not made so
        return float(memory.value.kind == "empty")
    with torch.no_grad():
        return float(tensor.detach().isnan().float().mean())


def _settle(model: nn.Module, hearing: Hearing) -> None:
    """Zero for what fresh memory usually holds, where it isn't a parameter's: a cache, a mask that is written later."""
    own = {tensor.untyped_storage()._cdata for tensor in model.parameters() if hearing.memory_of(tensor) is not None}
    for storage, memory in hearing.bare():
        if storage._cdata in own or memory.dtype is None or storage.device.type == "meta":
            continue
        with torch.no_grad():
            whole = torch.empty(0, dtype=memory.dtype, device=storage.device).set_(storage)
            whole[whole.isnan()] = 0


def _notes(rows: list[dict[str, Any]], hearing: Hearing) -> list[str]:
    unheard = [row["parameter"] for row in rows if row["state"] == "unheard" and row["held"] == "parameter"]
    notes = []
    if unheard:
        more = f" and {len(unheard) - 1} more" if len(unheard) > 1 else ""
        notes.append(
            f"no write to {unheard[0]}{more} was seen: made before the call, on another thread, or loaded from a file"
        )
    if hearing.problems:
        notes.append(f"{len(hearing.problems)} operations couldn't be followed, the first {hearing.problems[0]}")
    return notes
