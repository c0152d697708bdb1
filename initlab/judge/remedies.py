"""What remedies are made of: which role's weights, from which std to which, and why.

A remedy is a function of a finding and the model as described; it stands in the file of its rule, which names it. What
several rules share is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from initlab.judge.matching import TOLERANCE, unscaled
from initlab.judge.words import trimmed
from initlab.recipes import Role

if TYPE_CHECKING:
    from initlab.judge.rules import Finding  # whose modules import this one

GPT2_STD = 0.02 * math.sqrt(768)  # of the logits and of the hidden pre-activations of a fresh GPT-2 124M: 0.554


@dataclass(frozen=True, slots=True)
class Change:
    """What to do with some parameters of one role.

    `factor` multiplies them, which keeps the draw; without one they are drawn anew from the `recipe`. `how` says so.
    """

    role: str
    stack: str  # path of the container of their blocks, "" outside the blocks
    names: tuple[str, ...]
    found: float  # std, pooled
    proposed: float
    code: str  # of the finding that it answers
    why: str
    how: str
    factor: float | None = None
    recipe: str = ""


@dataclass(frozen=True, slots=True)
class Described:
    """A model as its weights describe it.

    Attributes:
        rows: of `drawing.describe`, compared at least with the reference.
        reference: id of the recipe that a role is drawn from where it must be drawn.
        summary: the probe's summary row.
    """

    rows: Sequence[dict[str, Any]]
    reference: str
    summary: dict[str, Any]

    def of(self, *roles: Role) -> list[dict[str, Any]]:
        """Pick rows.

        Args:
            roles: of any of these.
        """
        return [row for row in self.rows if row["role"] in roles]

    def wanted(self, row: dict[str, Any]) -> dict[str, Any]:
        """Look up what the reference draws; nothing where it has no answer.

        Args:
            row: one of `rows`.
        """
        found: dict[str, Any] = row["expected"].get(self.reference, {})
        return found


Remedy = Callable[["Finding", Described], list[Change]]


def scale_outputs(finding: Finding, model: Described) -> list[Change]:
    """Divide by √(2·n_layer) what isn't yet: two writes a block.

    Args:
        finding: to answer.
        model: whose output projections write to its stream.
    """
    changes = []
    for row, names in unscaled(model.rows):
        factor = 1 / math.sqrt(2 * row["n_layer"])
        why = (
            f"{row['n_layer']} blocks write twice each; 1/√(2·{row['n_layer']}) makes the sum independent of the depth"
        )
        changes += rescaled(row, names, factor, finding, why)
    return changes


def redraw_what_is_off(finding: Finding, model: Described) -> list[Change]:
    """Bring every role that doesn't fit the reference to it.

    Args:
        finding: to answer.
        model: compared with the reference.
    """
    changes = []
    for row in model.rows:
        wanted = model.wanted(row)
        if wanted.get("misfits"):
            why = f"{model.reference} draws {wanted['text']}"
            changes += _as_wanted(row, wanted, finding, why, model)
    return changes


def rescaled(row: dict[str, Any], names: list[str], factor: float, finding: Finding, why: str) -> list[Change]:
    """Multiply some parameters; no change where all of them are 0.

    Args:
        row: of their role.
        names: of the parameters.
        factor: of their std.
        finding: that it answers.
        why: in words.
    """
    std = _pooled(row["stds"][name] for name in names) if names else 0.0
    if std == 0:
        return []
    how = f"× {trimmed(factor)}"
    return [Change(row["role"], row["stack"], tuple(names), std, std * factor, finding.code, why, how, factor)]


def towards(row: dict[str, Any], std: float, finding: Finding, why: str, model: Described) -> list[Change]:
    """Bring a role to a std: by a factor where there is something to multiply, else by a draw.

    Args:
        row: of the role.
        std: that it gets.
        finding: that it answers.
        why: in words.
        model: whose reference says how to draw.
    """
    if row["std"] > 0 and math.isfinite(row["std"]):
        return rescaled(row, list(row["stds"]), std / row["std"], finding, why)
    if not model.wanted(row):
        return []
    return [drawn(row, list(row["stds"]), row["std"], finding, why, model)]


def _as_wanted(
    row: dict[str, Any], wanted: dict[str, Any], finding: Finding, why: str, model: Described
) -> list[Change]:
    names = wanted["misfits"]
    std = _pooled(row["stds"][name] for name in names)
    # alike but for their scale, in every parameter: multiplying keeps the draw
    uniform = row["distribution"] == "uniform"
    centred = abs(wanted["misfit_mean"]) <= TOLERANCE * std
    alike = wanted["kind"] in ("normal", "uniform") and uniform == (wanted["kind"] == "uniform") and centred
    scatter = max(row["stds"][name] for name in names) <= (1 + TOLERANCE) * min(row["stds"][name] for name in names)
    if alike and scatter and wanted["std"] > 0 and std > 0 and wanted["flat"]:
        return rescaled(row, names, wanted["std"] / std, finding, why)
    return [drawn(row, names, std, finding, why, model)]


def drawn(row: dict[str, Any], names: list[str], found: float, finding: Finding, why: str, model: Described) -> Change:
    """Draw some parameters as the reference does.

    Args:
        row: of their role.
        names: of the parameters.
        found: their std.
        finding: that it answers.
        why: in words.
        model: whose reference says how to draw.
    """
    wanted = model.wanted(row)
    constant = wanted["kind"] == "constant"
    how = f"set to {wanted['mean']:g}" if constant else f"draw, {wanted['kind']}"
    return Change(
        row["role"],
        row["stack"],
        tuple(names),
        found,
        wanted["std"],
        finding.code,
        why,
        how,
        recipe=model.reference,
    )


def _pooled(stds: Iterable[float]) -> float:
    values = list(stds)
    return math.sqrt(sum(std * std for std in values) / len(values))


def leave(finding: Finding, model: Described) -> list[Change]:
    """Propose nothing: no draw of its weights mends a model that is wired wrongly.

    Args:
        finding: of the rule.
        model: as described.
    """
    return []
