"""Who called: the line of the user's code that an operation of torch came from."""

from __future__ import annotations

import functools
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from torch import Tensor

import initlab

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_OWN = f"{Path(initlab.__file__).parent}{os.sep}"
_MODELS = f"{_OWN}models{os.sep}"  # initlab's own model is code like any other
_DRAWN = f"{_OWN}drawing{os.sep}apply.py"
_PYTHON = sysconfig.get_path("stdlib") + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_DEFAULTS = ("__init__", "reset_parameters", "_reset_parameters")  # of torch's modules, where their own init is drawn


@dataclass(frozen=True, slots=True)
class Place:
    """A line of code.

    Attributes:
        where: `file:line function`.
        default: the init is that of a module of torch's, which the line made or reset.
        named: the function by which the line writes (`trunc_normal_`), with its arguments; None where that is an
            operation of torch alone.
        anew: the line draws a recipe into a model (`apply_recipe`): what stood there is meant to go.
    """

    where: str
    default: bool
    named: FrameType | None
    anew: bool


def place(frame: FrameType | None, stop: FrameType | None) -> Place:
    """Find the innermost line outside torch, initlab, Python's own library and functions that write one tensor.

    Such functions end in `_`, as torch's `normal_` and those of other libraries do: who calls them decides.

    Args:
        frame: from which to look outwards.
        stop: the frame in which the user's code was called.
    """
    default, anew, named, last = False, False, None, None
    while frame is not None and frame is not stop:
        code = frame.f_code
        kind = _kind(code.co_filename, code.co_name)
        if kind == "init" or (kind == "code" and _writes(code.co_name) and _takes_tensor(frame)):
            named = frame
        elif kind == "code":
            return Place(_line(frame), default, named, anew)
        default = default or kind == "default"
        anew = anew or code.co_filename == _DRAWN
        last = frame if kind == "default" else last
        frame = frame.f_back
    return Place(_line(last) if last else "", default, named, anew)


def arguments(frame: FrameType) -> str:
    """Write the arguments of a function that are no tensors: `mean=0.0, std=0.02`.

    Args:
        frame: of a call of it.
    """
    code, held = frame.f_code, frame.f_locals
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return ", ".join(
        f"{name}={held[name]:.6g}" if isinstance(held[name], float) else f"{name}={held[name]!r}"
        for name in names
        if isinstance(held.get(name), int | float | str) and not isinstance(held[name], Tensor)
    )


@functools.cache
def _kind(file: str, name: str) -> Literal["init", "default", "skipped", "code"]:
    # not of the code itself: that of two files is equal where they say the same at the same line
    if file.startswith(_TORCH):
        if _writes(name) and file == torch.nn.init.__file__:
            return "init"
        if name == "load_state_dict":
            return "init"
        return "default" if name in _DEFAULTS else "skipped"
    if file.startswith(_OWN):
        return "code" if file.startswith(_MODELS) else "skipped"
    if file.startswith("<frozen") or file == "<string>":
        return "skipped"
    return "skipped" if file.startswith(_PYTHON) and not any(part in file for part in _INSTALLED) else "code"


def _writes(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") and not name.startswith("_")


def _takes_tensor(frame: FrameType) -> bool:
    code = frame.f_code
    return bool(code.co_argcount) and isinstance(frame.f_locals.get(code.co_varnames[0]), Tensor)


def _line(frame: FrameType) -> str:
    code = frame.f_code
    return _shown(code.co_filename, code.co_qualname, frame.f_lineno)


@functools.lru_cache(4096)
def _shown(file: str, name: str, line: int) -> str:
    path = Path(file)
    text = str(path)
    for part in _INSTALLED:
        text = text.rpartition(part)[2]
    if text == str(path) and path.is_absolute() and path.is_relative_to(Path.cwd()):
        text = str(path.relative_to(Path.cwd()))
    name = name.rpartition("<locals>.")[2]  # `FFN.__init__`: of several in a file, one
    return f"{text}:{line} {name.replace('<', '').replace('>', '')}"
