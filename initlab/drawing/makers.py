"""Functions of a user's that make models of a size: what they take, what they made, and where they come from."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import CellType
from typing import Any

import torch
from torch import nn

from initlab.anatomy.unwrapping import unwrap
from initlab.drawing import configs
from initlab.errors import ConfigError, InitlabError, ProbeError
from initlab.models.config import NanoGPTConfig
from initlab.models.nanogpt import NanoGPT
from initlab.recipes import Recipe

ModelFunction = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Maker:
    """A function of the user's that makes models, or copies of one model.

    Attributes:
        name: how it is shown.
        function: called by name with what it takes.
        takes: of n_layer and n_embd, those that it takes.
        source: its name and a hash of its source, so that a run isn't resumed with another one.
    """

    name: str
    function: ModelFunction
    takes: tuple[str, ...]
    source: str

    def __call__(self, n_layer: int, n_embd: int) -> nn.Module | NanoGPTConfig:
        """Make a model, or the config of one.

        Raises:
            ProbeError: the function raised (chained), or returned neither, nor a config of transformers.
        """
        sizes = {name: value for name, value in (("n_layer", n_layer), ("n_embd", n_embd)) if name in self.takes}
        shown = f"{self.name}({', '.join(f'{name}={value}' for name, value in sizes.items())})"
        try:
            made = self.function(**sizes)
            made = configs.model_of_config(made) if configs.is_config(made) else made
        except InitlabError:
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "t allocate memory" in str(error):
                raise ProbeError(f"{shown} needs more memory than there is; give smaller sizes") from error
            raise ProbeError(f"{shown} raised {type(error).__name__}: {error}") from error
        if not isinstance(made, nn.Module | NanoGPTConfig):
            raise ProbeError(f"{shown} returned {type(made).__name__}; expected a torch.nn.Module")
        return unwrap(made)[0] if isinstance(made, nn.Module) else made

    def module(self, n_layer: int, n_embd: int) -> nn.Module:
        """Make a model; of a config, with NanoGPT's own init. Raises ProbeError as a call does."""
        made = self(n_layer, n_embd)
        return NanoGPT(made) if isinstance(made, NanoGPTConfig) else made


def makes_models(item: Any) -> bool:
    """Whether a function makes models: it has a parameter n_layer or n_embd, or none at all; a recipe has two."""
    if isinstance(item, Recipe) or not callable(item):
        return False
    parameters = parameters_of(item)
    return bool({"n_layer", "n_embd"} & set(parameters)) or all(p.kind is p.VAR_KEYWORD for p in parameters.values())


def source_of(function: Callable[..., Any]) -> str:
    """Name a function, with a hash of its source where that is known."""
    inner, held = function, []
    while isinstance(inner, functools.partial):
        held += [inner.args, sorted(inner.keywords.items())]
        inner = inner.func
    held += [cell.cell_contents for cell in getattr(inner, "__closure__", None) or () if _filled(cell)]
    name = f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__name__)}"
    try:
        source = inspect.getsource(inner)
    except (OSError, TypeError):
        source = ""
    shown = source + "".join(steady(repr(value)) for value in held)
    return f"{name} {hashed(shown)}" if shown else name


def maker_of(name: str, function: ModelFunction) -> Maker:
    """Take a function for what makes models.

    Args:
        name: how it is shown.
        function: it.

    Raises:
        ConfigError: it needs other arguments than n_layer and n_embd.
    """
    parameters = parameters_of(function)
    whole = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    takes = tuple(axis for axis in ("n_layer", "n_embd") if axis in parameters or whole)
    if not takes and any(p.default is p.empty for p in parameters.values()):
        raise ConfigError(f"{name}({', '.join(parameters)}) can't make models of a size; expected n_embd and n_layer")
    return Maker(name, function, takes, source_of(function))


def maker_of_config(config: Any) -> Maker:
    """Take a config of transformers for what makes models, of any depth.

    Args:
        config: it.
    """
    name = type(config).__name__
    source = f"{name} {hashed(steady(repr(sorted(config.to_dict().items(), key=repr))))}"
    takes = ("n_layer",) if configs.blocks_of(config) else ()
    return Maker(name, functools.partial(configs.model_of_config, config), takes, source)


def name_of(function: ModelFunction) -> str:
    """Name a function as it is shown."""
    function = getattr(function, "func", function)  # of functools.partial
    return getattr(function, "__name__", type(function).__name__).strip("<>")


def parameters_of(function: ModelFunction) -> dict[str, inspect.Parameter]:
    """List a function's parameters by name; none where Python doesn't know them."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}


def _filled(cell: CellType) -> bool:
    """Whether a variable of an outer function has its value yet."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def steady(text: str) -> str:
    """Take out the places in memory, which are others in the next process."""
    return re.sub(r"0x[0-9a-f]+", "", text)


def hashed(text: str) -> str:
    """Shorten a text to what tells it from another."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
