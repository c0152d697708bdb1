"""What a model's own init code says it does."""

from __future__ import annotations

import functools
import inspect
import re

from torch import nn

_DEPTH_CODE = re.compile(r"^[^#\n]*(std|init)[^#\n]*sqrt\([^#\n]*\b(n_layers?|num_hidden_layers|num_layers)\b", re.M)


def depth_code(model: nn.Module) -> str:
    """Find the model's own init code that divides by a root of its depth, as `GPT2PreTrainedModel._init_weights`."""
    owners = dict.fromkeys(owner for module in model.modules() for owner in type(module).__mro__)
    for owner in owners:
        if owner is not object and not owner.__module__.startswith("torch.") and (method := _depth_method(owner)):
            return f"{owner.__name__}.{method}"
    return ""


@functools.cache
def _depth_method(owner: type) -> str:
    for name in ("_init_weights", "init_weights", "reset_parameters", "__init__"):
        try:
            source = inspect.getsource(owner.__dict__[name])
        except (KeyError, OSError, TypeError):  # not defined here, or typed into a prompt
            continue
        if _DEPTH_CODE.search(source):
            return name
    return ""
