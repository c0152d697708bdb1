"""What a number means: rules with a limit, the limit's basis, and the line to change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np

from initlab.errors import ConfigError
from initlab.judge import SEVERITIES, Severity
from initlab.judge.rules.base import RULES, Case, Finding, Rule, Status, rule
from initlab.judge.rules.counting import parts
from initlab.judge.rules.drawn import with_lines
from initlab.judge.rules.fresh import before_training, only_inits, why_not_init
from initlab.judge.rules.selecting import chosen, named
from initlab.rundir import Run

__all__ = [
    "RULES",
    "Case",
    "Finding",
    "Rule",
    "Status",
    "chosen",
    "evaluate",
    "named",
    "rule",
    "worst",
]

# what training moves isn't judged by every rule: of these a rule sees the first step alone, unless it says otherwise
_OVER_STEPS = ("watch", "train", "scale")

_ORDER = {"fail": 0, "not_applicable": 1, "pass": 2}


def evaluate(
    run: Run,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    limits: Mapping[str, float] | None = None,
) -> list[Finding]:
    """Judge every recipe by every rule: failures first, by severity, then by how far beyond the limit.

    A confirmation is judged by its inits alone: that its predictions are made before anything is trained is the point.

    Args:
        run: tables and manifest.
        select: codes, prefixes of codes (`GRD`), or `ALL`; nothing selected is everything.
        ignore: the same, of rules to leave out.
        limits: numbers by code (`EMB001`, its first limit) or code and name (`EMB001.error`).

    Raises:
        ConfigError: an unknown code, or a limit that is none.
    """
    choice = chosen(select, ignore, limits)
    run, kind = before_training(run), run.manifest.get("kind")
    inits, start = only_inits(run), _start(run) if kind in _OVER_STEPS else run
    recipes = list(
        dict.fromkeys(str(r) for t in (run.tables.summary, run.tables.records) for r in t["recipe"].unique())
    )
    findings: list[Finding] = []
    for each in choice.rules:
        later = kind not in _OVER_STEPS or kind in each.later
        case = partial(Case, rule=each, limits=choice.limits[each.code])
        try:
            with np.errstate(all="ignore"):  # as pandas does it: 0 divided by 0 is NaN
                measured = each.measure(inits if each.about_init else run if later else start)
                found = [each.judge(case(recipe=str(keys[0])), rows) for keys, rows in parts(measured, each.by)]
        except Exception as error:
            raise ConfigError(
                f"rule {each.code} ({each.name}) raised {type(error).__name__}: {error}; --ignore {each.code} leaves "
                "it out"
            ) from error
        if wrong := [one for one in found if not isinstance(one, Finding) or one.severity not in SEVERITIES]:
            raise ConfigError(
                f"rule {each.code} ({each.name}) returned {wrong[0]!r:.80}; expected case.passed(…), "
                f"case.not_applicable(…), or case.failed(…) with a severity of {', '.join(SEVERITIES)}"
            )
        findings += found
        for recipe in recipes:
            if all(one.recipe != recipe for one in found):
                reason = why_not_init(run, recipe) if each.about_init else ""
                findings.append(case(recipe=recipe).not_applicable(reason or f"Needs {each.needs}"))
    of_forwards = ("Wiring", "Behaviour")  # of which no line of the init is the cause
    drawn = {each.code: each.roles for each in choice.rules if each.question not in of_forwards}
    findings = with_lines(run, findings, drawn)
    return sorted(findings, key=lambda f: (_ORDER[f.status], SEVERITIES.index(f.severity), -f.effect))


def _start(run: Run) -> Run:
    """The run at its first step alone."""
    steps = run.tables.summary["step"]
    return Run(run.tables.at_step(int(steps.min())), run.manifest) if len(steps) else run


def worst(findings: list[Finding]) -> Severity | None:
    """Find the highest severity that failed.

    Args:
        findings: of any status.

    Returns:
        None when nothing failed.
    """
    failed = {finding.severity for finding in findings if finding.status == "fail"}
    return next((severity for severity in SEVERITIES if severity in failed), None)


# in the catalogue's order, whichever of its modules is imported first
RULES.load()
