"""Parameters that stand in several blocks of a model at once."""

from __future__ import annotations

import re

from torch import nn

from initlab.anatomy.holding import holders
from initlab.wiring import family

_SAYS_SO = re.compile(
    r"(^|_)(shar(e|ed|ing)|tied?|tying|cross_layer|recurren(t|ce)|loops?|universal|hidden_groups)(_|$)"
)
_OF_ELSE = re.compile(r"embed|word|head|vocab|expert|weights$")  # a head tied to its table; experts that all tokens use


def shared(model: nn.Module) -> dict[str, list[str]]:
    """Find parameters that several blocks hold: names after the first, by the first.

    Blocks are told by the one number in which the names differ; a head that is tied to a table isn't one of them.

    Args:
        model: left as it was.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {own[0]: own[1:] for own in names.values() if len(own) > 1 and len({family(name) for name in own}) == 1}


def sharing_said(model: nn.Module) -> str:
    """Name what in the model says that blocks share their weights, as `config.share_layers`; empty where nothing does.

    Args:
        model: whose config, attributes and list of tied weights are read.
    """
    tied = getattr(model, "_tied_weights_keys", None) or {}
    keys = [*tied, *(tied.values() if isinstance(tied, dict) else ())]
    if any(re.search(r"\\d|\.\d+\.|\*", str(key)) for key in keys):  # a pattern over blocks
        return "_tied_weights_keys"
    for holder, values in holders(model):
        for name, value in values.items():
            counts = isinstance(value, int | str | list | tuple) and value not in (False, 0, "", "none", None, [], ())
            if counts and _SAYS_SO.search(name.lower()) and not _OF_ELSE.search(name.lower()):
                return f"{holder}.{name}"
    return ""
