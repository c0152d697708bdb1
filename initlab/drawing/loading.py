"""From what a user names to a model on a device."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from initlab.anatomy.examples import raised_at
from initlab.corpus import load_corpus
from initlab.drawing.apply import apply_recipe
from initlab.drawing.subject import seeded
from initlab.drawing.tracing import trace
from initlab.drawing.weights import INDEX
from initlab.errors import ConfigError, ProbeError
from initlab.models.config import PRESETS
from initlab.models.nanogpt import NanoGPT
from initlab.models.wired import wired
from initlab.recipes import registry
from initlab.registry import import_file

_WORDS = {"true": True, "false": False, "none": None}  # what people write where Python wants a capital


def load_model(
    name: str,
    sizes: dict[str, int],
    *,
    recipe: str | None = None,
    seed: int = 0,
    data: str = "english",
    tokenizer: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, str | None]:
    """Load a preset drawn from a recipe, a nanoGPT checkpoint, or what `file.py:factory` or `package:factory` makes.

    Args:
        name: one of these.
        sizes: n_layer, n_embd, n_head, block_size of a preset, instead of its own.
        recipe: what a preset is drawn from; default nanogpt.
        seed: of a preset's draw, and of torch's random numbers while a factory is called.
        data: the text that will be read; a preset's vocabulary grows to hold it.
        tokenizer: of that text.
        arguments: of a factory, by name.

    Returns:
        the model, and the id of the recipe that it was drawn from here, None for other models.

    Raises:
        ConfigError: unknown name, a factory that fails or has no such arguments, or sizes for a model that has its own.
        CheckpointError, RecipeError, DataError: as their loaders say.
    """
    if arguments and ":" not in name:
        raise ConfigError(f"arguments ({', '.join(arguments)}) are of a factory, file.py:make; {name} takes none")
    if name in PRESETS:
        drawn = registry.get(recipe or "nanogpt")
        needed = 0 if data == "uniform" else load_corpus(data, tokenizer).vocab_size
        changes: dict[str, Any] = {**sizes, "vocab_size": max(needed, PRESETS[name].vocab_size or 0)}
        config = replace(PRESETS[name], **changes)
        model = NanoGPT(wired(config, drawn))
        apply_recipe(model, drawn, seed)
        return model, drawn.id
    if sizes:
        raise ConfigError(f"{next(iter(sizes))} was given, but only presets can be resized; {name} has its own sizes")
    if ":" in name:
        with seeded(seed, "cuda" if torch.cuda.is_available() else "cpu"):
            return _from_factory(name, arguments or {}), None
    if name.endswith(".py"):
        raise ConfigError(f"{name} is a Python file; name the function that makes the model, as in {name}:make")
    if name.endswith((".safetensors", INDEX)):
        raise ConfigError(f"{name} holds weights alone; name what makes the model: file.py:make --weights {name}")
    if Path(name).exists() or name.endswith((".pt", ".pth", ".ckpt")):
        return NanoGPT.from_checkpoint(name), None
    raise ConfigError(
        f"unknown model {name!r}; expected a preset ({', '.join(PRESETS)}), a checkpoint ckpt.pt, file.py:factory "
        "or package.module:factory"
    )


def choose_device(name: str) -> str:
    """`auto` is CUDA where there is a GPU, else the CPU.

    Raises:
        ConfigError: no such device here.
    """
    name = str(name)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ConfigError(f"unknown device {name!r}; expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} asked for, but torch sees no GPU; use cpu or auto")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r} asked for, but torch sees {torch.cuda.device_count()} GPUs")
    return name


def load_maker(name: str) -> Any:
    """Load what `file.py:name` or `package.module:name` is, uncalled, or a checkpoint's model.

    Raises:
        ConfigError: there is no such thing, or it can't be imported.
        CheckpointError: as its loader says.
    """
    if ":" in name:
        return _imported(name, "model")
    if name.endswith((".pt", ".pth", ".ckpt")):
        return NanoGPT.from_checkpoint(name)
    raise ConfigError(
        f"unknown model {name!r}; expected a preset ({', '.join(PRESETS)}), file.py:function, package.module:function "
        "or a checkpoint ckpt.pt"
    )


def load_batch(name: str, model: nn.Module | None) -> Any:
    """Load what `probe` takes as its batch: what `file.py:name` or `package.module:name` is, or what it returns.

    Args:
        name: of a tensor, tuple, dict or loader, or of a function of no parameter or of the model.
        model: given to a function that has a parameter; None where there are several models.

    Raises:
        ConfigError: there is no such thing, it can't be imported, raises, or needs other arguments.
    """
    if ":" not in name:
        raise ConfigError(f"batch {name!r}: expected file.py:function or package.module:function, which makes it")
    found = _imported(name, "batch")
    if not inspect.isroutine(found):
        return found
    needed = _needed(found)
    if len(needed) > 1 or (needed and model is None):
        takes = "no parameter" if model is None else "no parameter, or the model"
        raise ConfigError(f"batch {name!r} needs {', '.join(needed)}; expected a function of {takes}")
    try:
        return found(*([model] if needed else []))
    except (Exception, SystemExit) as error:
        raise ConfigError(f"batch {name!r} can't be made: {type(error).__name__}: {error}") from error


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Read `name=value` as keyword arguments: values are Python literals, true, false or none, else text.

    Args:
        texts: as they are written on the command line.

    Raises:
        ConfigError: no equals sign, no name before it, or a name twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise ConfigError(f"argument {text!r} can't be used; expected name=value, such as n_layer=6")
        if name in found:
            raise ConfigError(f"argument {name} was given more than once")
        try:
            found[name] = _WORDS[value.lower()] if value.lower() in _WORDS else ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found[name] = value
    return found


def _from_factory(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    found = _imported(name, "model")
    if isinstance(found, nn.Module):
        if arguments:
            raise ConfigError(f"{name} is a model, and takes no arguments ({', '.join(arguments)}); name its factory")
        return found
    if not callable(found):
        raise ConfigError(f"{name} is of type {type(found).__name__}; expected a function that makes a torch.nn.Module")
    _check_arguments(name, found, arguments)
    try:
        return trace(found, **arguments).model
    except ProbeError as error:
        cause = error.__cause__
        if cause is None:
            raise ConfigError(f"{name}: {error}") from None
        raise ConfigError(f"model {name!r} can't be made: {type(cause).__name__}{raised_at(cause)}: {cause}") from cause


def _check_arguments(name: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the factory doesn't have, and a factory that needs others."""
    parameters = _parameters(factory)
    if parameters is None:
        return  # of a C function, which will say it itself
    by_name = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes = f"it takes {', '.join(by_name)}" if by_name else "it takes none"
    for given in arguments:
        if given not in by_name and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            close = difflib.get_close_matches(given, by_name, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"{name} has no argument {given!r}; {hint}{takes}")
    lacking = [needed for needed in _needed(factory) if needed not in arguments]
    if lacking:
        raise ConfigError(f"{name} needs {', '.join(lacking)}: give --arg {lacking[0]}=…, or a factory that needs none")


def _needed(function: Callable[..., Any]) -> list[str]:
    """Parameters without a default."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in _parameters(function) or () if p.default is p.empty and p.kind not in variable]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def _imported(name: str, what: str) -> Any:
    location, _, attribute = name.rpartition(":")
    if location.endswith(".py") and not Path(location).is_file():
        example = "file.py:factory" if what == "model" else "file.py:function"
        raise ConfigError(f"{what} {name!r}: there is no file {location}; expected {example}, with a path from here")
    try:
        module = import_file(Path(location)) if location.endswith(".py") else _package(location)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{what} {name!r} can't be made: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        names = [each for each in vars(module) if not each.startswith("_")]
        close = difflib.get_close_matches(attribute, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"{what} {name!r} can't be made: {location} has nothing of that name{hint}")
    return getattr(module, attribute)


def _package(name: str) -> ModuleType:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)  # as when a script is run from here
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)
