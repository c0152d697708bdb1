"""Words for what a model's forward takes: its signature, a line that probes it, what was made for it."""

from __future__ import annotations

import inspect
import re
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy.arguments import Argument, Maker, parameters
from initlab.anatomy.sizes import longest, vocabulary

_SHOWN = 6  # arguments of a signature
_OWN = re.escape(str(Path(__file__).parents[1]))
_LIBRARY = re.compile(rf"[\\/](site|dist)-packages[\\/]|^<|^{_OWN}[\\/]|[\\/]lib[\\/]python3[^\\/]*[\\/]")


def signature(model: nn.Module) -> str:
    """Show the arguments of a model's forward."""
    known = list(parameters(model).values())
    text = str(inspect.Signature(known[:_SHOWN]))
    return text if len(known) <= _SHOWN else f"{text.removesuffix(')')}, ...)"


def example(model: nn.Module) -> str:
    """Write a line that probes this model on a batch of the caller's, `...` for what has to be filled in."""
    size = vocabulary(model)
    ids = None if size is None else torch.zeros(4, min(64, longest(model)), dtype=torch.long)
    maker = Maker(model, ids, ids, 0)
    arguments = maker.arguments()
    call = next(maker.calls(), {}) if all(each.forms for each in arguments) else {}
    written = {each.name: _written(each, call.get(each.name), size, ids) for each in arguments}
    if not written:
        batch = "(...)"
    elif len(written) == 1 and not arguments[0].keyword:
        batch = next(iter(written.values()))
    else:
        batch = "{" + ", ".join(f'"{name}": {value}' for name, value in written.items()) + "}"
    return f"initlab.probe(model, batch={batch})"


def raised_at(error: BaseException) -> str:
    """Name the line of the caller's own code that raised, as in ` at mine.py:57`; empty where none did.

    Args:
        error: as it was caught.
    """
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not _LIBRARY.search(each.filename)]
    if not frames:
        return ""
    path = Path(frames[-1].filename)
    shown = path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path
    return f" at {shown}:{frames[-1].lineno}"


def _written(argument: Argument, value: Any, size: int | None, ids: Tensor | None) -> str:
    """A value as code that makes one like it."""
    if value is None and argument.kind == "ids" and ids is not None:
        value = ids
    elif value is None and argument.kind in ("vectors", "images") and argument.forms:
        value = argument.forms[0]()
    if not isinstance(value, Tensor):
        return "..." if value is None else repr(value)
    shape = tuple(value.shape)
    if value.dtype == torch.bool:
        return f"torch.ones({shape}, dtype=torch.bool)"
    if value.is_floating_point():
        return f"torch.randn({shape})"
    most = size if argument.kind in ("ids", "targets") else int(value.max()) + 1
    return f"torch.randint(0, {most}, {shape})"


def shown(call: dict[str, Any]) -> str:
    """Say what was made, by name of the argument."""
    said = []
    for name, value in call.items():
        if isinstance(value, Tensor):
            said.append(f"{name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}{_holds(value)}")
        else:
            said.append(f"{name} {value!r}")
    return ", ".join(said)


def _holds(value: Tensor) -> str:
    """What a mask lets through, in words."""
    if value.dtype != torch.bool:
        return ", -inf above the diagonal" if value.is_floating_point() and value.isneginf().any() else ""
    if value.all() or not value.any():
        return f", all {bool(value.all())}"
    return ", True on and below the diagonal"
