"""How a NanoGPT is wired: read off its layout, without running it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from initlab.anatomy.roles import Parameter
from initlab.anatomy.sites import activation_name, dropout_in_force
from initlab.models.config import NanoGPTConfig
from initlab.models.wiring import nanogpt_wiring
from initlab.wiring import Wiring


def nanogpt(model: nn.Module, parameters: Mapping[str, Parameter]) -> Wiring | None:
    """Tell how a model of nanoGPT's layout is wired; None where its activation isn't known.

    Args:
        model: laid out as `initlab.anatomy.sites.find_sites` expects it.
        parameters: those whose role is known, by name.
    """
    activation = activation_name(model)
    if activation is None:
        return None
    shape = {name: p.shape for name, p in model.named_parameters() if name in parameters}
    vocab_size, n_embd = shape["transformer.wte.weight"]
    first: Any = model.get_submodule("transformer.h.0.attn")
    config = NanoGPTConfig(
        n_layer=len(model.get_submodule("transformer.h")),  # type: ignore[arg-type]
        n_head=first.n_head,
        n_embd=n_embd,
        vocab_size=vocab_size,
        bias="transformer.h.0.ln_1.bias" in parameters,
        tie_weights="lm_head.weight" not in parameters,
    )
    return nanogpt_wiring(
        config,
        activation=activation,
        dropout=dropout_in_force(model),
        hidden=shape["transformer.h.0.mlp.c_fc.weight"].numel() // n_embd,
    )
