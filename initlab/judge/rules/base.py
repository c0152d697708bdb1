"""Rule and Finding: what is checked, and what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from initlab.schema import Tables

Severity = Literal["error", "warning", "info"]
Status = Literal["fail", "pass", "not_applicable"]
Basis = Literal["derived", "paper", "reference-code", "heuristic"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One check. `name` is the bad pattern, as a noun; a code is never used again for another rule."""

    code: str
    name: str
    question: str  # column of the scoreboard: Depth, Embedding, Logits, Gradient, Numerics
    measures: str  # the formula, in words
    needs: str  # what a run must hold; otherwise the finding is `not_applicable` and says this
    limit: str
    basis: Basis
    why: str
    advice: str
    false_alarms: str
    source: str
    since: str
    check: Callable[[Tables, dict[str, Any]], list[Finding]]

    def failed(self, message: str, *, severity: Severity, **found: Any) -> Finding:
        """A finding that this rule was broken; `found` holds Finding's other fields."""
        return self._finding("fail", severity, message, found)

    def passed(self, message: str, **found: Any) -> Finding:
        """A finding that this rule was kept."""
        return self._finding("pass", "info", message, found)

    def not_applicable(self, message: str, **found: Any) -> Finding:
        """A finding that the run doesn't hold what this rule needs; the message says what would provide it."""
        return self._finding("not_applicable", "info", message, found)

    def _finding(self, status: Status, severity: Severity, message: str, found: dict[str, Any]) -> Finding:
        text = {"why": self.why, "advice": self.advice, "limit": self.limit} | found
        return Finding(
            code=self.code,
            name=self.name,
            question=self.question,
            status=status,
            severity=severity,
            message=message,
            basis=self.basis,
            source=self.source,
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
