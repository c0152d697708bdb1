"""What run.json says of a probe: what was measured, and what the weights look like beside known recipes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from initlab.judge import matching
from initlab.recipes import Role
from initlab.schema import Tables
from initlab.wiring import MLP, Wiring

if TYPE_CHECKING:
    from torch import nn

    from initlab.anatomy.inputs import Inputs
    from initlab.anatomy.look import Anatomy


def config_of(tables: Tables, anatomy: Anatomy, inputs: Inputs) -> dict[str, Any]:
    """Say what makes two probes the same, of the model and of its batch.

    Args:
        tables: of the probe.
        anatomy: of the model.
        inputs: that were read, whole.
    """
    cell = tables.summary.iloc[0]
    roles = {parameter.role for parameter in anatomy.parameters}
    return {
        "model": type(anatomy.model).__name__,
        "recipes": [str(cell["recipe"])],
        "depths": [int(cell["n_layer"])],
        "widths": [int(cell["n_embd"])],
        "seeds": 1,
        "seed": int(cell["seed"]),
        "n_head": int(cell["n_head"]),
        "block_size": int(cell["block_size"]),
        "batch_size": inputs.ids.shape[0] if inputs.ids is not None else inputs.n_tokens,
        "vocab_size": int(cell["vocab_size"]),
        "bias": Role.BIAS in roles,
        "tie_weights": Role.UNEMBED not in roles,
        "activation": _activation(anatomy.wirings),
        "mode": str(cell["mode"]),
        "step": int(cell["step"]),
        "device": str(next(anatomy.model.parameters()).device),
        "fingerprint": _fingerprint(tables),
    }


def init_facts(anatomy: Anatomy, *, declared: bool) -> dict[str, Any]:
    """Say what the weights look like against the known recipes and the model's own code, for the rules about init.

    With a declared recipe the weights are judged by that one alone.

    Args:
        anatomy: of the model.
        declared: whether a recipe is.
    """
    from initlab.drawing.declared import declared_stds
    from initlab.drawing.describe import describe

    rows = describe(anatomy)
    best, _ = matching.best_recipes(rows)
    compared = bool(best) and not declared
    known, total, _ = matching.coverage(rows)
    return {
        "coverage": [known, total],
        "closest": best[0] if compared else "",
        "mismatches": matching.mismatches(rows) if compared else [],
        "compared": "{} of {}".format(*matching.coverage(rows)[:2]),
        "depth_code": next((row["depth_code"] for row in rows), ""),
        "outputs": matching.outputs_as_drawn(rows, declared_stds(anatomy.model)),
    }


def dtype_of(model: nn.Module, autocast: str) -> str:
    """Name the dtype of a model's weights, and that of its forward pass where it is another.

    Args:
        model: unwrapped.
        autocast: as `probe` takes `dtype`.
    """
    own = str(next(model.parameters()).dtype).removeprefix("torch.")
    return own if autocast == "float32" else f"{own}, autocast {autocast}"


def filter_text(value: Any, model: nn.Module) -> Any:
    """Write a filter as run.json can hold it: names as they are, modules, classes and functions by their names.

    Args:
        value: of `sites` or `modules`.
        model: that it is about.
    """
    if isinstance(value, dict):
        return {str(key): filter_text(item, model) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [filter_text(item, model) for item in value]
    if isinstance(value, str):
        return str(value)
    names = {id(module): name for name, module in model.named_modules()}
    value = names.get(id(value), getattr(value, "pattern", getattr(value, "__name__", value)))
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)
    return value


def _activation(wirings: Sequence[Wiring]) -> str | None:
    """Name the activation of the first MLP whose own is known."""
    bodies = [branch.body for wiring in wirings for branch in wiring.branches()]
    found = next((body.activation for body in bodies if isinstance(body, MLP)), None)
    return found if found is None or isinstance(found, str) else getattr(found, "__name__", repr(found))


def _fingerprint(tables: Tables) -> str:
    """Of everything measured, so that another model's or batch's tables aren't taken for these."""
    values = tables.records[["mean", "var", "abs_max"]].to_numpy(dtype=float)
    return hashlib.sha256(values.round(12).tobytes()).hexdigest()[:16]
