"""Hugging Face configs as what models are made of; transformers is imported only where one was given."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

_LAYERS = "num_hidden_layers"


def is_config(value: Any) -> bool:
    """Tell whether something is a config of transformers', or a class of them.

    Args:
        value: any.
    """
    kind = value if isinstance(value, type) else type(value)
    return any(base.__name__ in ("PretrainedConfig", "PreTrainedConfig") for base in kind.__mro__)


def blocks_of(config: Any) -> int | None:
    """Count the blocks that a config asks for; None where it doesn't say.

    Args:
        config: of transformers.
    """
    found = getattr(config, _LAYERS, None)
    return found if isinstance(found, int) else None


def model_of_config(config: Any, n_layer: int | None = None) -> nn.Module:
    """Make the causal language model of a config, drawn by its own init.

    Args:
        config: of transformers; left as it is.
        n_layer: blocks, in place of its own; what it lists for each block is worked out anew.

    Raises:
        Exception: what transformers raises of a config that it has no such model for.
    """
    from transformers import AutoModelForCausalLM

    own = blocks_of(config)
    if n_layer is None or n_layer == own:
        made = copy.deepcopy(config)
    else:
        given = {
            name: value
            for name, value in config.to_diff_dict().items()
            if not (isinstance(value, list | tuple) and len(value) == own)
        }
        made = type(config)(**given | {config.attribute_map.get(_LAYERS, _LAYERS): n_layer})
    model: nn.Module = AutoModelForCausalLM.from_config(made)
    return model
