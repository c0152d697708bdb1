"""Which role each parameter plays: what a recipe needs to know of a model.

Reads nanoGPT's parameter names, so NanoGPT and any copy of nanoGPT's model.py are understood. A parameter that
matches nothing is reported, never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor, nn

from initlab.errors import RecipeError
from initlab.recipes import Dims, Role

_PATTERNS: tuple[tuple[str, Role], ...] = (
    (r"transformer\.wte\.weight", Role.TOKEN_EMBED),
    (r"transformer\.wpe\.weight", Role.POS_EMBED),
    (r"lm_head\.weight", Role.UNEMBED),
    (r"transformer\.(?:h\.\d+\.ln_[12]|ln_f)\.weight", Role.NORM_GAIN),
    (r"transformer\.(?:h\.\d+\.ln_[12]|ln_f)\.bias", Role.NORM_BIAS),
    (r"transformer\.h\.\d+\.attn\.c_attn\.weight", Role.ATTN_QKV),
    (r"transformer\.h\.\d+\.attn\.c_proj\.weight", Role.ATTN_OUT),
    (r"transformer\.h\.\d+\.mlp\.c_fc\.weight", Role.MLP_IN),
    (r"transformer\.h\.\d+\.mlp\.c_proj\.weight", Role.MLP_OUT),
    (r"transformer\.h\.\d+\.(?:attn|mlp)\.c_(?:attn|proj|fc)\.bias", Role.BIAS),
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter's place in the model."""

    name: str
    role: Role
    layer: int | None  # 0-based block, None outside the blocks
    dims: Dims


def assign_roles(model: nn.Module) -> list[Parameter]:
    """The role of every parameter, tied ones once, in the model's own order.

    Raises:
        RecipeError: a parameter has a name that nanoGPT's layout doesn't know, or the layout's sizes are missing.
    """
    named = dict(model.named_parameters())
    roles = {name: _role(name) for name in named}
    unknown = [name for name, role in roles.items() if role is None]
    if unknown or "transformer.wte.weight" not in named or "transformer.wpe.weight" not in named:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise RecipeError(
            f"{type(model).__name__} isn't laid out as nanoGPT's GPT: "
            + (f"no role is known for {shown}" if unknown else "transformer.wte and transformer.wpe not found")
            + "; expected parameters such as transformer.h.0.attn.c_attn.weight"
        )
    vocab_size, n_embd = named["transformer.wte.weight"].shape
    layers = [layer for name in named if (layer := _layer(name)) is not None]
    # head counts leave no trace in the parameters' shapes
    n_head = int(getattr(getattr(model, "config", None), "n_head", 1))
    out = []
    for name, parameter in named.items():
        role = roles[name]
        assert role is not None
        owner = name.removesuffix("bias") + "weight" if name.endswith(".bias") else name
        fan_in, fan_out = _fans(roles.get(owner), named.get(owner, parameter), n_embd)
        dims = Dims(
            n_layer=max(layers, default=-1) + 1,
            n_embd=n_embd,
            n_head=n_head,
            block_size=named["transformer.wpe.weight"].shape[0],
            vocab_size=vocab_size,
            fan_in=fan_in,
            fan_out=fan_out,
            layer=_layer(name) or 0,
            tied="lm_head.weight" not in named,
        )
        out.append(Parameter(name, role, _layer(name), dims))
    return out


def _fans(role: Role | None, weight: Tensor, n_embd: int) -> tuple[int, int]:
    """By role, not by shape: Linear stores (out, in), Hugging Face's Conv1D under the same names (in, out)."""
    other = weight.numel() // n_embd
    match role:
        case Role.TOKEN_EMBED | Role.POS_EMBED | Role.ATTN_OUT | Role.MLP_OUT:
            return other, n_embd
        case Role.ATTN_QKV:
            return n_embd, other // 3  # q, k and v are three matrices in one
        case Role.MLP_IN | Role.UNEMBED:
            return n_embd, other
        case _:
            return n_embd, n_embd


def _role(name: str) -> Role | None:
    return next((role for pattern, role in _PATTERNS if re.fullmatch(pattern, name)), None)


def _layer(name: str) -> int | None:
    found = re.match(r"transformer\.h\.(\d+)\.", name)
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Roles:
    """SHIM"""

    assigned: list[Parameter]
    unassigned: list[str]


def find_roles(model: nn.Module) -> Roles:
    """SHIM"""
    try:
        return Roles(assign_roles(model), [])
    except RecipeError:
        return Roles([], [name for name, _ in model.named_parameters()])
