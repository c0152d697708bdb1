"""What a small module computes, found by asking a copy of it: a norm by any name, a scale, a gain stored less one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

# torch's own hold no gain of a channel, or are known by their class
_PLAIN = (nn.Linear, nn.Embedding, nn.PReLU, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList)


def is_norm(module: nn.Module) -> bool:
    """Tell LayerNorm, RMSNorm, and whatever else calls itself a norm and holds nothing but its own gain and bias."""
    return "norm" in type(module).__name__.lower() and _alone(module)


def kind(module: nn.Module) -> Literal["norm", "scale", ""]:
    """Tell what a module with nothing but vectors of its own does: normalise, multiply, or neither.

    A class that calls itself a norm is believed. Of others it is what a copy answers: the same for four times the
    input, or four times as much.

    Args:
        module: left as it was.
    """
    if is_norm(module):
        return "norm"
    if not module._parameters or isinstance(module, _PLAIN):  # most modules: seen at once
        return ""
    vectors = [p for p in module.parameters(recurse=False) if p.squeeze().dim() == 1]
    if not vectors or len(vectors) > 2 or len(vectors) != sum(1 for _ in module.parameters()) or vectors[0].is_meta:
        return ""
    once, more, turned = (_answer(module, 1.0, factor) for factor in (1.0, 4.0, -1.0))
    if once is None or more is None or turned is None or not bool(once.any()):
        return ""
    if torch.allclose(once, more, rtol=0.02, atol=1e-3):
        return "" if torch.equal(once, turned) else "norm"
    return "scale" if torch.allclose(4 * once, more) and torch.allclose(once, -turned) else ""


def gain_offset(norm: nn.Module) -> float:
    """Find what the norm adds to its stored gain: 1 for Gemma's, which store the gain less one; 0 for most.

    Found by asking: with all parameters at zero, an ordinary norm returns zeros.

    Args:
        norm: left as it was.
    """
    if isinstance(norm, _NormBase):  # torch's own batch norms add nothing
        return 0.0
    out = _answer(norm, 0.0, 1.0)
    return 1.0 if out is not None and bool(out.any()) else 0.0


def _alone(module: nn.Module) -> bool:
    return all(next(child.parameters(), None) is None for child in module.children())


def _answer(module: nn.Module, value: float, factor: float) -> Tensor | None:
    """Its answer to a ramp times a factor with all its parameters at one value; None where it takes something else.

    Asked of a shallow copy with parameters and buffers of its own, in eval mode: asking changes nothing of the model.
    Its forward is the class's: one that was put on the instance is bound to the model's own module.
    """
    parameters = dict(module.named_parameters(recurse=False))
    weight: Tensor | None = next((p for p in parameters.values() if p.squeeze().dim() == 1), None)
    if weight is None or weight.is_meta:
        return None
    twin: Any = copy.copy(module)
    twin.__dict__["_parameters"] = {name: torch.full_like(p, value) for name, p in parameters.items()}
    twin.__dict__["_buffers"] = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    twin.training = False
    ramp = torch.linspace(-1, 1, weight.numel(), dtype=weight.dtype, device=weight.device) * factor
    try:
        with torch.no_grad():
            out = type(module).forward(twin, ramp[None])
    except Exception:  # a norm that takes other arguments, or other shapes
        return None
    return out if isinstance(out, Tensor) else None


def some_norm(modules: Sequence[nn.Module]) -> bool:
    """Tell whether one of the modules normalises.

    Args:
        modules: in any order.
    """
    return any(kind(module) == "norm" for module in modules)
