"""What a number means: rules with a limit, the limit's basis, and the line to change."""

from __future__ import annotations

from collections.abc import Sequence

from initlab.judge.rules.base import SEVERITIES, Finding, Rule, Severity, Status
from initlab.judge.rules.depth import DEPTH_RULES
from initlab.judge.rules.embedding import EMBEDDING_RULES
from initlab.judge.rules.gradient import GRADIENT_RULES
from initlab.judge.rules.logits import LOGIT_RULES
from initlab.judge.rules.numerics import NUMERIC_RULES
from initlab.judge.rules.scaling import SCALING_RULES
from initlab.judge.rules.theory import THEORY_RULES
from initlab.rundir import Run
from initlab.schema import Tables

__all__ = ["RULES", "SEVERITIES", "Finding", "Rule", "Severity", "Status", "evaluate", "ordered", "worst"]

RULES: tuple[Rule, ...] = (
    *THEORY_RULES,
    *DEPTH_RULES,
    *EMBEDDING_RULES,
    *LOGIT_RULES,
    *GRADIENT_RULES,
    *NUMERIC_RULES,
    *SCALING_RULES,
)

_ORDER = {"fail": 0, "not_applicable": 1, "pass": 2}


def evaluate(run: Run, rules: Sequence[Rule] = RULES) -> list[Finding]:
    """Every rule's verdict on every recipe: failures first, by severity, then by how far beyond the limit."""
    findings = []
    start = _first_step(run.tables) if run.manifest.get("kind") == "watch" else run.tables
    for rule in rules:
        # training moves what the others judge: of a watched run they are given its first step alone
        found = rule.check(run.tables if rule in NUMERIC_RULES else start, run.manifest)
        unjudged = [
            recipe for recipe in run.tables.summary["recipe"].unique() if recipe not in {f.recipe for f in found}
        ]
        findings += found + [rule.not_applicable(f"Needs {rule.needs}", recipe=str(recipe)) for recipe in unjudged]
    return ordered(findings)


def ordered(findings: list[Finding]) -> list[Finding]:
    """Failures first, by severity, then by how far beyond the limit."""
    return sorted(findings, key=lambda f: (_ORDER[f.status], SEVERITIES.index(f.severity), -f.effect))


def _first_step(tables: Tables) -> Tables:
    step = tables.summary["step"].min()
    kept = tables.summary.loc[tables.summary["step"] == step, "run_id"]
    return Tables(**{name: frame[frame["run_id"].isin(kept)] for name, frame in tables.items()})


def worst(findings: list[Finding]) -> Severity | None:
    """The highest severity that failed; None when nothing did."""
    failed = {finding.severity for finding in findings if finding.status == "fail"}
    return next((severity for severity in SEVERITIES if severity in failed), None)
