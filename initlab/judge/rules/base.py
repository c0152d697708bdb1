"""Rule and Finding: what is checked, and what was found. A rule is one call of the decorator `rule`, in any file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec

import pandas as pd

from initlab.errors import ConfigError
from initlab.judge import Severity
from initlab.judge.remedies import Remedy
from initlab.recipes import Role
from initlab.registry import Registry
from initlab.rundir import Run

Status = Literal["fail", "pass", "not_applicable"]
Basis = Literal["derived", "paper", "reference-code", "heuristic"]
Judge = Callable[["Case", pd.DataFrame], "Finding"]
P = ParamSpec("P")

# in the catalogue's order; what else is in this folder comes after them
_FAMILIES = (
    "weights",
    "drawing",
    "redrawing",
    "draws",
    "declared",
    "scaling",
    "gains",
    "special",
    "wiring",
    "bodies",
    "behaviour",
    "depth",
    "theory",
    "stream",
    "embedding",
    "hidden",
    "routing",
    "attention",
    "logits",
    "gradient",
    "numerics",
    "formats",
    "scale",
)
_FOLDER = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One check, named by its judge: the bad pattern, as a noun. A code is never used again for another rule.

    `measure` turns a run into a frame of one or more rows per recipe; `judge` turns one recipe's rows into a finding.
    So a limit changes without measuring again. A recipe without rows is not applicable, for want of `needs`.
    """

    judge: Judge = field(kw_only=False)
    code: str
    question: str  # column of the scoreboard: Init, Depth, Embedding, Attention, Logits, Gradient, Numerics
    evidence: str = ""  # name of the figure that shows it
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
    later: tuple[str, ...] = ()  # kinds of runs over steps of which it sees every step, else the first alone
    by: tuple[str, ...] = ("recipe",)  # one finding for each of these
    roles: tuple[Role, ...] = ()  # whose scale it judges: `fix` brings them to a recipe before others
    remedy: Remedy | None = None  # what `fix` tries first; without one, to bring what is off a recipe to it
    measure: Callable[[Run], pd.DataFrame]

    @property
    def name(self) -> str:
        """`single-layer-spike` of the function `single_layer_spike`."""
        return self.judge.__name__.replace("_", "-")

    def limit_text(self, limits: Mapping[str, float]) -> str:
        """Write the limits in words; numbers as short as they are exact.

        Args:
            limits: in force, by name.
        """
        return self.limit.format(**{name: f"{value:g}" for name, value in limits.items()})


RULES: Registry[Rule] = Registry(
    "rule", tuple(f"{__package__}.{name}" for name in dict.fromkeys((*_FAMILIES, *_FOLDER)))
)


def _adding(make: Callable[Concatenate[Judge, P], Rule]) -> Callable[P, Callable[[Judge], Rule]]:
    """Make the decorator, with the fields of Rule as type checkers know them."""

    def rule(*args: P.args, **fields: P.kwargs) -> Callable[[Judge], Rule]:
        """Add a rule by decorating its judge, a function `(case, rows) -> finding`; takes Rule's other fields by name.

        ::

            def spread(run):  # a row or more per recipe
                rows = run.tables.records.query("kind == 'grad' and site == 'resid_post'")
                found = rows.groupby("recipe", observed=True)["var"].agg(lambda v: v.max() / v.min())
                return found.rename("ratio").reset_index()

            @initlab.rule(
                code="MY001", question="Gradient", measures="largest / smallest gradient variance", needs="gradients",
                limits={"most": 100.0}, unit="×", limit="≤ {most}", basis="heuristic", why="…", advice="…",
                false_alarms="none known", source="our own runs", since="1.0", measure=spread,
            )
            def gradient_too_spread(case, rows):
                ratio = float(rows["ratio"].iloc[0])
                text = f"Gradients differ {ratio:.3g}-fold between blocks"
                if ratio <= case.limits["most"]:
                    return case.passed(text, measured=ratio)
                return case.failed(text, severity="warning", measured=ratio)

        The function's name is the rule's. It is judged whenever a run is, `--select MY001` and `fix` know it, and
        `initlab.judge.rules.base.Rule` says what each field means.

        Raises:
            ConfigError: the code is taken, or isn't of capitals and a number.
        """

        def wrap(judge: Judge) -> Rule:
            made = make(judge, *args, **fields)
            if not re.fullmatch("[A-Z]+[0-9]+", made.code):
                raise ConfigError(f"a rule's code is {made.code!r}; expected capitals and a number, such as RES001")
            return RULES.add(made.code, made)

        return wrap

    return rule


rule = _adding(Rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One recipe before one rule: the limits in force, and the ways to end."""

    rule: Rule
    recipe: str
    limits: Mapping[str, float]

    def failed(self, message: str, *, severity: Severity, **found: Any) -> Finding:
        """Say that the rule was broken.

        Args:
            message: one sentence with numbers.
            severity: of the failure.
            found: Finding's other fields.
        """
        return self._finding("fail", severity, message, found)

    def passed(self, message: str, **found: Any) -> Finding:
        """Say that the rule was kept.

        Args:
            message: one sentence with numbers.
            found: Finding's other fields.
        """
        return self._finding("pass", "info", message, found)

    def not_applicable(self, message: str, **found: Any) -> Finding:
        """Say that the run doesn't hold what the rule needs.

        Args:
            message: what would provide it.
            found: Finding's other fields.
        """
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
    drawn_at: str = ""  # the lines that drew the parameters it is about, of a model that was traced

    def as_dict(self) -> dict[str, Any]:
        """Turn the finding into JSON-ready values."""
        return asdict(self)
