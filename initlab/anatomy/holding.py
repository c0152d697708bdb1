"""What a model holds beside its modules and tensors: its config, and plain attributes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_CONFIG = re.compile(r"config|conf$|cfg|args|params|options", re.I)  # of an attribute, or of its value's class
_PLAIN = (bool, int, float, str)
_NO_CONFIG = (nn.Module, Tensor, type, *_PLAIN)
_OF_TEXT = ("text_config", "decoder", "llm_config", "language_config")  # where a config holds another for its text


def holders(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """List what says how the model was meant: (its name, values by name), the model's config first.

    A config is an attribute that holds values by name (a dict, a dataclass, a namespace, transformers' own) and is
    called one, as config, cfg, args and hparams are, or whose class is. Then come the model's own plain attributes, as
    `self`.

    Args:
        model: read, never called.
    """
    own = {name: value for name, value in vars(model).items() if not name.startswith("_")}
    for name in sorted(own, key=lambda each: each != "config"):
        value = own[name]
        if isinstance(value, _NO_CONFIG) or callable(value):
            continue
        values = values_of(value) if _CONFIG.search(name) or _CONFIG.search(type(value).__name__) else {}
        if not values:
            continue
        yield name, values
        for inner in _OF_TEXT:
            if held := values_of(values.get(inner)):
                yield f"{name}.{inner}", held
    plain = {name: value for name, value in own.items() if isinstance(value, _PLAIN)}
    yield "self", {name: value for name, value in plain.items() if name != "training"}


def values_of(value: Any) -> dict[str, Any]:
    """Read what a config holds by name; nothing where it is none.

    Args:
        value: a mapping, a dataclass, a namespace, or any other object.
    """
    if isinstance(value, Mapping):
        return {name: each for name, each in value.items() if isinstance(name, str)}
    if value is None or isinstance(value, bool | int | float | str | bytes | list | tuple | set):
        return {}
    try:
        own = dict(vars(value))
        if any(isinstance(each, _PLAIN) for each in own.values()):
            return own
        # `class Config: n_embd = 64` holds its values by its class
        held = {name: each for owner in type(value).__mro__[::-1] for name, each in vars(owner).items()}
        return {name: x for name, x in held.items() if isinstance(x, _PLAIN) and not name.startswith("_")} | own
    except TypeError:  # it has slots, or is no object of Python's
        names = getattr(type(value), "__slots__", ())
        return {name: getattr(value, name) for name in names if isinstance(name, str) and hasattr(value, name)}
