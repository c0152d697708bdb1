"""What a model's own init code says it does."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Collection

from torch import nn

_DEPTH_CODE = re.compile(r"^[^#\n]*(std|init)[^#\n]*sqrt\([^#\n]*\b(n_layers?|num_hidden_layers|num_layers)\b", re.M)


def depth_code(model: nn.Module, outputs: Collection[str] = ()) -> str:
    """Find the model's own init code that divides by a root of its depth, as `GPT2PreTrainedModel._init_weights`.

    Args:
        model: any module.
        outputs: names of the parameters that such a code is asked about. One that names modules of the model, and none
            of these, is about others, as a head.
    """
    mine = {_holder(name) for name in outputs}
    others = {_holder(name) for name, _ in model.named_parameters()} - mine
    owners = dict.fromkeys(owner for module in model.modules() for owner in type(module).__mro__)
    for owner in owners:
        if owner is object or owner.__module__.startswith("torch."):
            continue
        method, named = _depth_method(owner)
        if method and not (mine and named & others and not named & mine):
            return f"{owner.__name__}.{method}"
    return ""


def _holder(parameter: str) -> str:
    """`c_proj` of `h.0.attn.c_proj.weight`; what a block holds itself by its own name."""
    owner, _, name = parameter.rpartition(".")
    return owner.rpartition(".")[2] if name in ("weight", "bias") else name


@functools.cache
def _depth_method(owner: type) -> tuple[str, frozenset[str]]:
    """The method that scales by depth, empty without one, and the words in it."""
    for name in ("_init_weights", "init_weights", "reset_parameters", "__init__"):
        try:
            source = inspect.getsource(owner.__dict__[name])
        except (KeyError, OSError, TypeError):  # not defined here, or typed into a prompt
            continue
        if _DEPTH_CODE.search(source):
            return name, frozenset(re.findall(r"\w+", source))
    return "", frozenset()
