"""The smallest change of an init that answers a finding: which role's weights, from which std to which, and why.

Torch-free: reads findings, the summary row of a probe, and the rows of `models.describing`. A remedy is a function in
REMEDIES, keyed by the code of the rule; a finding without one gets the roles that are off the reference recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from initlab.judge.inits import TOLERANCE, unscaled
from initlab.judge.rules import Finding
from initlab.recipes import Role
from initlab.recipes.base import OUTPUTS

GPT2_EMBEDDING = 0.02
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
class Case:
    """One look at a model.

    Attributes:
        rows: `models.describing.describe`, compared at least with the reference.
        reference: id of the recipe that a role is drawn from where it must be drawn.
        summary: the probe's summary row.
    """

    rows: Sequence[dict[str, Any]]
    reference: str
    summary: dict[str, Any]

    def of(self, *roles: Role) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["role"] in roles]

    def wanted(self, row: dict[str, Any]) -> dict[str, Any]:
        """What the reference draws for the row; nothing where it has no answer."""
        found: dict[str, Any] = row["expected"].get(self.reference, {})
        return found


Remedy = Callable[[Finding, Case], list[Change]]


def propose(findings: Iterable[Finding], case: Case) -> list[Change]:
    """One change per role and stack, the first that answers a finding; empty where no init is at fault."""
    changes: dict[tuple[str, str], Change] = {}
    for finding in findings:
        for change in REMEDIES.get(finding.code, redraw_what_is_off)(finding, case):
            changes.setdefault((change.role, change.stack), change)
    return list(changes.values())


def scale_outputs(finding: Finding, case: Case) -> list[Change]:
    """Divide by √(2·n_layer) what isn't yet: two writes a block."""
    changes = []
    for row, names in unscaled(case.rows):
        factor = 1 / math.sqrt(2 * row["n_layer"])
        why = (
            f"{row['n_layer']} blocks write twice each; 1/√(2·{row['n_layer']}) makes the sum independent of the depth"
        )
        changes += _rescaled(row, names, factor, finding, why)
    return changes


def match_embeddings(finding: Finding, case: Case) -> list[Change]:
    """Give position and token embedding one std: move whichever is farther from the reference."""
    tokens, positions = case.of(Role.TOKEN_EMBED), case.of(Role.POS_EMBED)
    if not tokens or not positions:
        return []
    token = max(tokens, key=lambda row: row["numel"])

    def off(row: dict[str, Any]) -> float:
        wanted = case.wanted(row).get("std", 0.0)
        return abs(math.log(row["std"] / wanted)) if row["std"] > 0 and wanted > 0 else math.inf

    changes: list[Change] = []
    for position in positions:
        if off(token) > off(position):
            why = f"the position embedding's std, {position['std']:.3g}"
            return _towards(token, position["std"], finding, why, case)
        why = f"the token embedding's std, {token['std']:.3g}: what is read weighs as much as where"
        changes += _towards(position, token["std"], finding, why, case)
    return changes


def calm_head(finding: Finding, case: Case) -> list[Change]:
    """Smaller logits: an untied head shrinks; a tied one too, or the blocks get to outweigh the embedding."""
    std, own = float(case.summary["logit_std"]), float(case.summary["own_logit"])
    tied = not case.of(Role.UNEMBED)
    heads = case.of(Role.TOKEN_EMBED if tied else Role.UNEMBED)
    trapped = tied and own > 2 * std  # by the token just read, which a tied head sees in the stream
    changes: list[Change] = []
    for row in heads:
        wanted = case.wanted(row).get("std", 0.0)
        if 0 < wanted < row["std"] * (1 - TOLERANCE):
            why = f"logits of std {std:.3g}; {case.reference}'s head has {wanted:.3g}"
            changes += _towards(row, wanted, finding, why, case)
    if trapped and not changes:
        for row in case.of(*OUTPUTS):
            wanted = case.wanted(row).get("std", 0.0)
            if row["std"] < wanted * (1 - TOLERANCE):
                why = f"blocks that write so little leave the token just read a logit of {own:.3g} in the tied head"
                changes += _towards(row, wanted, finding, why, case)
    for row in heads if not changes else []:
        if trapped and row["std"] > GPT2_EMBEDDING:
            why = f"n_embd·σ²/√variance is the logit of the token just read, {own:.3g}; GPT-2's σ is {GPT2_EMBEDDING}"
            changes += _towards(row, GPT2_EMBEDDING, finding, why, case)
        elif not trapped and std > GPT2_STD:
            why = f"logits of std {std:.3g} cost about std²/2 nats; GPT-2's have {GPT2_STD:.2f}"
            changes += _rescaled(row, list(row["stds"]), GPT2_STD / std, finding, why)
    return changes


def widen_hidden(finding: Finding, case: Case) -> list[Change]:
    """The blocks' matrices at 0.02·√(768/n_embd) where GPT-2 has 0.02; output projections keep their ratio to them."""
    changes = []
    for row in case.of(Role.ATTN_QKV, Role.MLP_IN, Role.MLP_GATE, *OUTPUTS):
        inputs = [each for each in case.of(Role.MLP_IN) if each["stack"] == row["stack"]]
        if inputs and inputs[0]["std"] > 0:
            wanted = GPT2_STD / math.sqrt(row["n_embd"])
            why = f"n_embd·σ² = {GPT2_STD**2:.2f}, as in GPT-2 at 768: at n_embd {row['n_embd']} that is {wanted:.3g}"
            changes += _rescaled(row, list(row["stds"]), wanted / inputs[0]["std"], finding, why)
    return changes


def redraw_what_is_off(finding: Finding, case: Case) -> list[Change]:
    """Bring every role that doesn't fit the reference to it."""
    changes = []
    for row in case.rows:
        wanted = case.wanted(row) if row["role"] else {}
        if wanted.get("misfits"):
            why = f"{case.reference} draws {wanted['text']}"
            changes += _as_wanted(row, wanted, finding, why, case)
    return changes


def redraw_non_finite(finding: Finding, case: Case) -> list[Change]:
    """Draw parameters that hold NaN or infinity anew; where none does, look for what is off."""
    changes = []
    for row in case.rows:
        names = [name for name, std in row.get("stds", {}).items() if not math.isfinite(std)]
        wanted = case.wanted(row) if names else {}
        if wanted:
            changes.append(_drawn(row, names, math.nan, finding, "holds NaN or infinity", case))
    return changes or redraw_what_is_off(finding, case)


def redraw_zeros(finding: Finding, case: Case) -> list[Change]:
    """Only weights that are 0 where the reference has others can shut a gradient off."""
    changes = []
    for row in case.rows:
        wanted = case.wanted(row) if row["role"] else {}
        zero = [name for name, std in row.get("stds", {}).items() if std == 0]
        if zero and row.get("mean") == 0 and (wanted.get("std") or wanted.get("mean")):
            changes.append(_drawn(row, zero, 0.0, finding, "0 lets no gradient through", case))
    return changes


REMEDIES: dict[str, Remedy] = {
    "RES001": scale_outputs,
    "EMB001": match_embeddings,
    "LOG001": calm_head,
    "INI001": redraw_what_is_off,
    "NUM001": redraw_non_finite,
    "GRD001": redraw_zeros,
    "INI002": scale_outputs,  # depth scaling lost, by the model's own code
    "ACT001": widen_hidden,  # hidden std too small for the width
}


def _rescaled(row: dict[str, Any], names: list[str], factor: float, finding: Finding, why: str) -> list[Change]:
    if not names:
        return []
    std = _pooled(row["stds"][name] for name in names)
    how = f"× {factor:.3g}"
    return [Change(row["role"], row["stack"], tuple(names), std, std * factor, finding.code, why, how, factor)]


def _towards(row: dict[str, Any], std: float, finding: Finding, why: str, case: Case) -> list[Change]:
    """To a std: by a factor where there is something to multiply, else by a draw."""
    if row["std"] > 0 and math.isfinite(row["std"]):
        return _rescaled(row, list(row["stds"]), std / row["std"], finding, why)
    if not case.wanted(row):
        return []
    return [_drawn(row, list(row["stds"]), row["std"], finding, why, case)]


def _as_wanted(row: dict[str, Any], wanted: dict[str, Any], finding: Finding, why: str, case: Case) -> list[Change]:
    names = wanted["misfits"]
    std = _pooled(row["stds"][name] for name in names)
    # alike but for their scale, in every parameter: multiplying keeps the draw
    uniform = row["distribution"] == "uniform"
    centred = abs(wanted["misfit_mean"]) <= TOLERANCE * std
    alike = wanted["kind"] in ("normal", "uniform") and uniform == (wanted["kind"] == "uniform") and centred
    scatter = max(row["stds"][name] for name in names) <= (1 + TOLERANCE) * min(row["stds"][name] for name in names)
    if alike and scatter and wanted["std"] > 0 and std > 0 and wanted["flat"]:
        return _rescaled(row, names, wanted["std"] / std, finding, why)
    return [_drawn(row, names, std, finding, why, case)]


def _drawn(row: dict[str, Any], names: list[str], found: float, finding: Finding, why: str, case: Case) -> Change:
    wanted = case.wanted(row)
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
        recipe=case.reference,
    )


def _pooled(stds: Iterable[float]) -> float:
    values = list(stds)
    return math.sqrt(sum(std * std for std in values) / len(values))
