"""What a number means: rules with a limit, the limit's basis, and the line to change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from initlab.judge.rules.attention import ATTENTION_RULES
from initlab.judge.rules.base import SEVERITIES, Case, Finding, Rule, Severity, Status
from initlab.judge.rules.depth import DEPTH_RULES
from initlab.judge.rules.embedding import EMBEDDING_RULES
from initlab.judge.rules.formats import FORMAT_RULES
from initlab.judge.rules.fresh import before_training, only_inits, why_not_init
from initlab.judge.rules.gradient import GRADIENT_RULES
from initlab.judge.rules.hidden import HIDDEN_RULES
from initlab.judge.rules.logits import LOGIT_RULES
from initlab.judge.rules.numerics import NUMERIC_RULES
from initlab.judge.rules.scale import SCALING_RULES
from initlab.judge.rules.selecting import Choice, choose, find_rule
from initlab.judge.rules.stream import STREAM_RULES
from initlab.judge.rules.theory import THEORY_RULES
from initlab.judge.rules.weights import WEIGHT_RULES
from initlab.rundir import Run

__all__ = [
    "RULES",
    "SEVERITIES",
    "Finding",
    "Rule",
    "Severity",
    "Status",
    "chosen",
    "evaluate",
    "named",
    "worst",
]

RULES: tuple[Rule, ...] = (
    *WEIGHT_RULES,
    *DEPTH_RULES,
    *THEORY_RULES,
    *STREAM_RULES,
    *EMBEDDING_RULES,
    *HIDDEN_RULES,
    *ATTENTION_RULES,
    *LOGIT_RULES,
    *GRADIENT_RULES,
    *NUMERIC_RULES,
    *FORMAT_RULES,
    *SCALING_RULES,
)

# what training moves isn't judged by every rule: in a run over steps these see all of them, the others the first alone
_LATER: dict[str, tuple[Rule, ...]] = {
    "watch": (*NUMERIC_RULES, *FORMAT_RULES),
    "train": (*NUMERIC_RULES, *FORMAT_RULES),
    "scale": SCALING_RULES,
}

_ORDER = {"fail": 0, "not_applicable": 1, "pass": 2}


def evaluate(
    run: Run,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    limits: Mapping[str, float] | None = None,
) -> list[Finding]:
    """Every rule's verdict on every recipe: failures first, by severity, then by how far beyond the limit.

    A confirmation is judged by its inits alone: that its predictions are made before anything is trained is the point.

    Args:
        select, ignore: codes, prefixes of codes (`GRD`), or `ALL`; nothing selected is everything.
        limits: numbers by code (`EMB001`, its first limit) or code and name (`EMB001.error`).

    Raises:
        ConfigError: an unknown code, or a limit that is none.
    """
    choice = chosen(select, ignore, limits)
    run = before_training(run)
    inits, start = only_inits(run), _start(run)
    recipes = list(
        dict.fromkeys(str(r) for t in (run.tables.summary, run.tables.records) for r in t["recipe"].unique())
    )
    findings = []
    for rule in choice.rules:
        later = rule in _LATER.get(str(run.manifest.get("kind")), RULES)
        measured = rule.measure(inits if rule.about_init else run if later else start)
        judged = set()
        for keys, rows in measured.groupby(list(rule.by), observed=True) if len(measured) else ():
            case = Case(rule=rule, recipe=str(keys[0]), limits=choice.limits[rule.code])
            judged.add(case.recipe)
            findings.append(rule.judge(case, rows))
        for recipe in recipes:
            if recipe not in judged:
                case = Case(rule=rule, recipe=recipe, limits=choice.limits[rule.code])
                reason = why_not_init(run, recipe) if rule.about_init else ""
                findings.append(case.not_applicable(reason or f"Needs {rule.needs}"))
    return sorted(findings, key=lambda f: (_ORDER[f.status], SEVERITIES.index(f.severity), -f.effect))


def _start(run: Run) -> Run:
    """The run at its first step alone."""
    steps = run.tables.summary["step"]
    return Run(run.tables.at_step(int(steps.min())), run.manifest) if len(steps) else run


def chosen(select: Iterable[str] = (), ignore: Iterable[str] = (), limits: Mapping[str, float] | None = None) -> Choice:
    """The rules and limits that `evaluate` would use. Raises ConfigError as it does, before anything is measured."""
    return choose(RULES, select, ignore, limits)


def named(code: str) -> Rule:
    """The rule of a code or name. Raises ConfigError if there is none."""
    return find_rule(RULES, code)


def worst(findings: list[Finding]) -> Severity | None:
    """The highest severity that failed; None when nothing did."""
    failed = {finding.severity for finding in findings if finding.status == "fail"}
    return next((severity for severity in SEVERITIES if severity in failed), None)
