"""Rule and Finding: what is checked, and what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pandas as pd

from initlab.rundir import Run

Severity = Literal["error", "warning", "info"]
Status = Literal["fail", "pass", "not_applicable"]
Basis = Literal["derived", "paper", "reference-code", "heuristic"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One check. `name` is the bad pattern, as a noun; a code is never used again for another rule.

    `measure` turns a run into a frame of one or more rows per recipe; `judge` turns one recipe's rows into a finding.
    So a limit changes without measuring again. A recipe without rows is not applicable, for want of `needs`.
    """

    code: str
    name: str
    question: str  # column of the scoreboard: Init, Depth, Embedding, Attention, Logits, Gradient, Numerics
    measures: str  # the formula, in words
    needs: str  # what a run must hold, and which flag provides it
    limits: Mapping[str, float] = field(default_factory=dict)  # by name, in `unit`; the first is the main one
    unit: str
    limit: str  # the limits in words, with {name} for each
    basis: Basis
    why: str
    advice: str
    false_alarms: str
    source: str
    since: str
    about_init: bool = True  # trained models, and steps after the first, aren't judged by it
    by: tuple[str, ...] = ("recipe",)  # one finding for each of these
    measure: Callable[[Run], pd.DataFrame]
    judge: Callable[[Case, pd.DataFrame], Finding]

    def limit_text(self, limits: Mapping[str, float]) -> str:
        """The limits in words; numbers as short as they are exact."""
        return self.limit.format(**{name: f"{value:g}" for name, value in limits.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One recipe before one rule: the limits in force, and the ways to end."""

    rule: Rule
    recipe: str
    limits: Mapping[str, float]

    def failed(self, message: str, *, severity: Severity, **found: Any) -> Finding:
        """The rule was broken; `found` holds Finding's other fields."""
        return self._finding("fail", severity, message, found)

    def passed(self, message: str, **found: Any) -> Finding:
        """The rule was kept."""
        return self._finding("pass", "info", message, found)

    def not_applicable(self, message: str, **found: Any) -> Finding:
        """The run doesn't hold what the rule needs; the message says what would provide it."""
        return self._finding("not_applicable", "info", message, found)

    def _finding(self, status: Status, severity: Severity, message: str, found: dict[str, Any]) -> Finding:
        rule = self.rule
        text = {
            "why": rule.why,
            "advice": rule.advice,
            "limit": rule.limit_text(self.limits),
            "unit": rule.unit,
        } | found
        return Finding(
            code=rule.code,
            name=rule.name,
            question=rule.question,
            status=status,
            severity=severity,
            recipe=self.recipe,
            message=message,
            basis=rule.basis,
            source=rule.source,
            **text,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The verdict of one rule on one recipe (over its seeds, depths and widths)."""

    code: str
    name: str
    question: str
    status: Status
    severity: Severity  # of a failure; info for the others
    recipe: str
    message: str  # one sentence with numbers, whatever the status
    site: str = ""
    layer_first: int | None = None
    layer_last: int | None = None
    measured: float | None = None
    uncertainty: float | None = None  # one standard error of `measured`
    limit: str = ""
    unit: str = ""
    seeds_failing: int = 0
    seeds_total: int = 0
    effect: float = 0.0  # how far beyond the limit, for sorting: natural log of the ratio where there is one
    why: str = ""
    advice: str = ""  # names the line to change
    basis: Basis = "derived"
    source: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON-ready values."""
        return asdict(self)
