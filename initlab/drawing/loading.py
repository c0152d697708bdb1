"""From what a user names to a model on a device."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from initlab.corpus import load_corpus
from initlab.drawing.apply import apply_recipe
from initlab.errors import ConfigError
from initlab.models.config import PRESETS
from initlab.models.nanogpt import NanoGPT
from initlab.recipes import registry
from initlab.registry import import_file


def load_model(
    name: str,
    sizes: dict[str, int],
    *,
    recipe: str | None = None,
    seed: int = 0,
    data: str = "docstrings",
    tokenizer: str | None = None,
) -> tuple[nn.Module, str | None]:
    """Load a preset drawn from a recipe, a nanoGPT checkpoint, or what `file.py:factory` or `package:factory` makes.

    Args:
        name: one of these.
        sizes: n_layer, n_embd, n_head of a preset, instead of its own.
        recipe: what a preset is drawn from; default nanogpt.
        seed: of a preset's draw.
        data: the text that will be read; a preset's vocabulary grows to hold it.
        tokenizer: of that text.

    Returns:
        the model, and the id of the recipe that it was drawn from here, None for other models.

    Raises:
        ConfigError: unknown name, a factory that fails, or sizes for a model that has its own.
        CheckpointError, RecipeError, DataError: as their loaders say.
    """
    if name in PRESETS:
        drawn = registry.get(recipe or "nanogpt")
        needed = 0 if data == "uniform" else load_corpus(data, tokenizer).vocab_size
        changes: dict[str, Any] = {**sizes, "vocab_size": max(needed, PRESETS[name].vocab_size or 0)}
        config = replace(PRESETS[name], **changes)
        model = NanoGPT(config)
        apply_recipe(model, drawn, seed)
        return model, drawn.id
    if sizes:
        raise ConfigError(f"{next(iter(sizes))} was given, but only presets can be resized; {name} has its own sizes")
    if ":" in name:
        return _from_factory(name), None
    if name.endswith(".py"):
        raise ConfigError(f"{name} is a Python file; name the function that makes the model, as in {name}:make")
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
        return _imported(name)
    if name.endswith((".pt", ".pth", ".ckpt")):
        return NanoGPT.from_checkpoint(name)
    raise ConfigError(
        f"unknown model {name!r}; expected a preset ({', '.join(PRESETS)}), file.py:function, package.module:function "
        "or a checkpoint ckpt.pt"
    )


def _from_factory(name: str) -> nn.Module:
    found = _imported(name)
    try:
        model = found if isinstance(found, nn.Module) else found()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"model {name!r} can't be made: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name} returned {type(model).__name__}; expected a torch.nn.Module")
    return model


def _imported(name: str) -> Any:
    location, _, attribute = name.rpartition(":")
    if location.endswith(".py") and not Path(location).is_file():
        raise ConfigError(
            f"model {name!r}: there is no file {location}; expected file.py:factory, with a path from here"
        )
    try:
        module = import_file(Path(location)) if location.endswith(".py") else _package(location)
        return getattr(module, attribute)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"model {name!r} can't be made: {type(error).__name__}: {error}") from error


def _package(name: str) -> ModuleType:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)  # as when a script is run from here
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)
