"""What each parameter of a model looks like by itself: how large, how drawn, and what in it is no draw at all."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy.look import Anatomy
from initlab.anatomy.parameters import Parameter
from initlab.anatomy.restoring import random_state_kept
from initlab.drawing.copies import copies_in
from initlab.drawing.uneven import odd_rows
from initlab.recipes import Role

_SAMPLE = 1 << 16  # elements that the kurtosis is taken from
_ROWS, _COLUMNS = 32, 2048  # of a matrix, whose rank is counted
_SINGULAR = 1e-4  # of the largest singular value: below it, there is nothing
_MATRICES = frozenset(Role) - {Role.NORM_GAIN, Role.NORM_BIAS, Role.BIAS, Role.GATE, Role.OTHER}


def census(anatomy: Anatomy) -> list[dict[str, Any]]:
    """Count what each parameter holds, in the model's order.

    Keys: name, role, stack, layer, shape, numel, bad (elements that aren't finite), mean, std and rms (of the finite
    ones, as the module uses them), kind (`normal`, `uniform`, or what is no draw: `zero`, `constant`, `low rank`; of
    vectors `constant` is usual; empty where unclear), trains, as_made (a vector that its own module sets to these very
    values in `reset_parameters`), again (what repeats an earlier draw, as `initlab.drawing.copies` has it), odd (rows
    that differ from the others, as `initlab.drawing.uneven` has them; experts too), offset.

    Args:
        anatomy: of the model.
    """
    parameters = dict(anatomy.model.named_parameters())
    made = _as_made(anatomy.model)
    again = copies_in(anatomy)
    return [
        _entry(place, parameters[place.name], made) | {"again": again.get(place.name, [])}
        for place in anatomy.parameters
    ]


def _entry(place: Parameter, parameter: Tensor, made: set[str]) -> dict[str, Any]:
    values = parameter.detach()
    padding = None
    if place.padding_row is not None and not bool(values[place.padding_row].any()):
        padding = place.padding_row % len(values)
    odd = odd_rows(values, place, padding) or _odd_experts(values, place)
    if padding is not None:
        values = torch.cat([values[:padding], values[padding + 1 :]])
    finite = values.isfinite()
    bad = values.numel() - int(finite.sum())
    kept = (values[finite] if bad else values.flatten()).double() + place.offset
    mean = float(kept.mean()) if len(kept) else math.nan
    std = float(kept.std(correction=0)) if len(kept) else math.nan
    return {
        "name": place.name,
        "role": place.role.value,
        "stack": place.stack,
        "layer": place.layer,
        "shape": tuple(parameter.shape),
        "numel": parameter.numel(),
        "bad": bad,
        "mean": mean,
        "std": std,
        "rms": math.hypot(mean, std),
        "kind": _kind(values, kept, mean, std, place.role in _MATRICES),
        "trains": parameter.requires_grad,
        "as_made": place.name in made,
        "odd": odd,
        "offset": place.offset,
    }


def _kind(values: Tensor, kept: Tensor, mean: float, std: float, matrix: bool) -> str:
    if not len(kept):
        return ""
    if std <= 1e-6 * abs(mean) or std == 0:
        return "constant" if mean else "zero"
    if len(kept) == values.numel() and matrix and _low_rank(values):
        return "low rank"
    sample = kept[:: max(1, len(kept) // _SAMPLE)] - mean
    kurtosis = float((sample / std).pow(4).mean())
    error = 0.1 + 4 * math.sqrt(24 / len(sample))
    normal, uniform = abs(kurtosis - 3) <= error, abs(kurtosis - 1.8) <= error
    return "" if normal == uniform else "normal" if normal else "uniform"


def _low_rank(values: Tensor) -> bool:
    """Some of its rows span half of what as many independent ones would, or less."""
    matrix = values.flatten(0, -2)[:: max(1, values.flatten(0, -2).shape[0] // _ROWS)][:_ROWS, :_COLUMNS].float()
    most = min(matrix.shape)
    if most < 8:
        return False
    singular = torch.linalg.svdvals(matrix.cpu())
    return 2 * int((singular > _SINGULAR * singular[0]).sum()) <= most


def _odd_experts(values: Tensor, place: Parameter) -> list[dict[str, Any]]:
    """Slices of a stack of matrices whose scale the others don't share."""
    if values.dim() != 3 or place.role not in _MATRICES or len(values) < 3 or not bool(values.isfinite().all()):
        return []
    rms = values.float().square().mean((1, 2)).sqrt()
    usual = float(rms.median())
    far = ((rms / usual).log().abs() > math.log(1.3)).nonzero().flatten().tolist() if usual > 0 else []
    if 2 * len(far) >= len(rms):
        return []
    rest = math.sqrt(float(rms.square()[[at for at in range(len(rms)) if at not in far]].mean()))
    return [
        {"name": place.name, "which": f"expert {at} of {place.name}", "rows": (0, at, at + 1), "rms": float(rms[at])}
        | {"rest": rest, "part": False}
        for at in far
    ]


def _as_made(model: nn.Module) -> set[str]:
    """Names of vectors that are what the `reset_parameters` of their own module makes of them, without a draw."""
    found = set()
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own or any(p.dim() > 1 or p.is_meta for p in own.values()) or len(list(module.children())):
            continue
        try:
            twin = copy.deepcopy(module)
            with torch.no_grad(), random_state_kept(module):
                for parameter in twin.parameters():
                    parameter.fill_(math.nan)
                twin.reset_parameters()
        except Exception:  # it has none, or one that wants something else
            continue
        made = dict(twin.named_parameters())
        found |= {
            f"{prefix}.{name}".removeprefix(".") for name, p in own.items() if torch.equal(made[name].detach(), p)
        }
    return found
