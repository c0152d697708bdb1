"""The smallest change of an init that answers a finding: which role's weights, from which std to which, and why.

Torch-free: reads findings, the summary row of a probe, and the rows of `models.describing`. A remedy is a function in
REMEDIES, keyed by the code of the rule; findings without one get the roles that are off the reference recipe.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from initlab.judge.matching import TOLERANCE, unscaled
from initlab.judge.rules import Finding
from initlab.judge.words import trimmed
from initlab.recipes import Role
from initlab.recipes.base import OUTPUTS

GPT2_EMBEDDING = 0.02
ODD = 1.3  # times its siblings' std, as INI003 has it
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


def propose(findings: Sequence[Finding], case: Case) -> list[Change]:
    """One change per role and stack, the first that answers a finding; empty where no init is at fault.

    A finding without a remedy of its own is often what another one leads to, so it is answered where no other is.
    """
    changes: dict[tuple[str, str], Change] = {}
    for finding in findings:
        if finding.code in REMEDIES:
            for change in REMEDIES[finding.code](finding, case):
                changes.setdefault((change.role, change.stack), change)
    for finding in findings if not changes else ():
        if finding.code not in REMEDIES:
            for change in redraw_what_is_off(finding, case):
                changes.setdefault((change.role, change.stack), change)
    return list(changes.values())


def merged(changes: Iterable[Change]) -> list[Change]:
    """One change for each role whose same parameters are multiplied more than once; the others as they are."""
    found: dict[tuple[Any, ...], Change] = {}
    for place, change in enumerate(changes):
        key = (change.role, change.stack, change.names, change.factor is None and place)
        if (old := found.get(key)) and old.factor is not None and change.factor is not None:
            factor = old.factor * change.factor
            change = replace(
                old,
                proposed=change.proposed,
                code=f"{old.code}, {change.code}",
                why=f"{old.why}; {change.why}",
                how=f"× {trimmed(factor)}",
                factor=factor,
            )
        found[key] = change
    return list(found.values())


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
            why = f"the position embedding's std, {trimmed(position['std'])}"
            return _towards(token, position["std"], finding, why, case)
        why = f"the token embedding's std, {trimmed(token['std'])}: what is read weighs as much as where"
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
            why = f"logits of std {trimmed(std)}; {case.reference}'s head has {trimmed(wanted)}"
            changes += _towards(row, wanted, finding, why, case)
    if trapped and not changes:
        for row in case.of(*OUTPUTS):
            wanted = case.wanted(row).get("std", 0.0)
            if row["std"] < wanted * (1 - TOLERANCE):
                why = (
                    f"blocks that write so little leave the token just read a logit of {trimmed(own)} in the tied head"
                )
                changes += _towards(row, wanted, finding, why, case)
    for row in heads if not changes else []:
        if trapped and row["std"] > GPT2_EMBEDDING:
            why = f"n_embd·σ²/√variance is the logit of the token just read, {trimmed(own)}; "
            why += f"GPT-2's σ is {GPT2_EMBEDDING}"
            changes += _towards(row, GPT2_EMBEDDING, finding, why, case)
        elif not trapped and std > GPT2_STD:
            why = f"logits of std {trimmed(std)} cost about std²/2 nats; GPT-2's have {GPT2_STD:.2f}"
            changes += _rescaled(row, list(row["stds"]), GPT2_STD / std, finding, why)
    return changes


def widen_hidden(finding: Finding, case: Case) -> list[Change]:
    """The blocks' matrices at 0.02·√(768/n_embd) where GPT-2 has 0.02; output projections keep their ratio to them."""
    changes = []
    for row in case.of(*_HIDDEN):
        inputs = [each for each in case.of(Role.MLP_IN) if each["stack"] == row["stack"]]
        if inputs and inputs[0]["std"] > 0:
            wanted = GPT2_STD / math.sqrt(row["n_embd"])
            why = f"n_embd·σ² = {GPT2_STD**2:.2f}, as in GPT-2 at 768: "
            why += f"at n_embd {row['n_embd']} that is {trimmed(wanted)}"
            changes += _rescaled(row, list(row["stds"]), wanted / inputs[0]["std"], finding, why)
    return changes


def calm_attention(finding: Finding, case: Case) -> list[Change]:
    """Queries and keys as the reference draws them, where that is less; fused, the values shrink with them."""
    changes: list[Change] = []
    for row in case.of(Role.ATTN_QKV):
        wanted = case.wanted(row).get("std", 0.0)
        if 0 < wanted < row["std"] * (1 - TOLERANCE):
            why = f"attention logits grow with the square of it; {case.reference} has {trimmed(wanted)}"
            changes += _rescaled(row, list(row["stds"]), wanted / row["std"], finding, why)
    return changes


def match_siblings(finding: Finding, case: Case) -> list[Change]:
    """The odd matrix at the median std of the same matrix in the other blocks."""
    changes: list[Change] = []
    for row in case.rows:
        families: dict[str, list[float]] = {}
        for name, std in row.get("stds", {}).items():
            families.setdefault(_family(name), []).append(std)
        for name, std in row.get("stds", {}).items():
            usual = median(families[_family(name)])
            if usual > 0 and not usual / ODD <= std <= usual * ODD:
                changes += _towards(row | {"std": std, "stds": {name: std}}, usual, finding, _SIBLINGS, case)
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


def toward_the_reference(findings: Sequence[Finding], case: Case) -> tuple[list[Change], list[Change]]:
    """Every role that is off the reference brought to it: those that a finding is about, and the others.

    A change carries the code of the first finding that is about its role; the others that of the first finding.
    """
    about, rest = [], []
    for change in redraw_what_is_off(findings[0], case):
        own = next((f for f in findings if change.role in ABOUT.get(f.code, ())), None)
        if own is not None:
            about.append(replace(change, code=own.code))
        else:
            rest.append(change)
    return about, rest


_SIBLINGS = "the same matrix of the other blocks has it"
_HIDDEN = (Role.ATTN_QKV, Role.MLP_IN, Role.MLP_GATE, *OUTPUTS)
# the roles whose scale a rule judges
ABOUT: dict[str, tuple[Role, ...]] = {
    "RES001": OUTPUTS,
    "INI002": OUTPUTS,
    "EMB001": (Role.TOKEN_EMBED, Role.POS_EMBED),
    "LOG001": (Role.TOKEN_EMBED, Role.UNEMBED),
    "ATT001": (Role.ATTN_QKV,),
    "ATT002": (Role.ATTN_QKV,),
    "ACT001": _HIDDEN,
}
REMEDIES: dict[str, Remedy] = {
    "RES001": scale_outputs,
    "EMB001": match_embeddings,
    "LOG001": calm_head,
    "INI001": redraw_what_is_off,
    "NUM001": redraw_non_finite,
    "GRD001": redraw_zeros,
    "INI002": scale_outputs,  # depth scaling lost, by the model's own code
    "ACT001": widen_hidden,  # hidden std too small for the width
    "ATT001": calm_attention,
    "ATT002": calm_attention,
    "INI003": match_siblings,
}


def _rescaled(row: dict[str, Any], names: list[str], factor: float, finding: Finding, why: str) -> list[Change]:
    std = _pooled(row["stds"][name] for name in names) if names else 0.0
    if std == 0:
        return []
    how = f"× {trimmed(factor)}"
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


def _family(name: str) -> str:
    """`h.*.mlp.weight` of `h.3.mlp.weight`: the same parameter of every block."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def _pooled(stds: Iterable[float]) -> float:
    values = list(stds)
    return math.sqrt(sum(std * std for std in values) / len(values))
