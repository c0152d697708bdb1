"""The verdict: which recipes fail, at what, and how much of it a sentence says."""

from __future__ import annotations

import math
from collections.abc import Sequence

from initlab.judge import SEVERITIES
from initlab.judge.outcomes import run_measures
from initlab.judge.rules import Finding, Rule
from initlab.judge.words import listed, plural, trimmed
from initlab.report.facts import progress
from initlab.report.view import recipes_of, steps_of
from initlab.rundir import Run

GLYPHS = {"error": "✗", "warning": "!", "info": "i", "pass": "✓", "not_applicable": "–"}
QUESTIONS = (
    *("Width", "Updates", "Wiring", "Behaviour", "Init", "Depth", "Embedding", "Attention", "Logits", "Gradient"),
    "Numerics",
)
# of what a prediction, a grade or a comparison is called
_STATUS = {
    "healthy": "pass",
    "agreed": "pass",
    "better": "pass",
    "missed": "error",
    "worse": "error",
    "false alarm": "warning",
}
STEPPED_QUESTIONS = ("Width", "Updates")


def status_of(word: str) -> str:
    """Give a word of training its status; one that decides nothing is not applicable."""
    return _STATUS.get(word, word if word in GLYPHS else "not_applicable")


def failing(findings: Sequence[Finding]) -> list[Finding]:
    """Failures, worst first: error, warning, info; then by effect."""
    failed = [finding for finding in findings if finding.status == "fail"]
    return sorted(failed, key=lambda f: (SEVERITIES.index(f.severity), -f.effect, f.code))


def worst(findings: Sequence[Finding]) -> str:
    """error, warning, info, pass or not_applicable."""
    failed = failing(findings)
    if failed:
        return failed[0].severity
    return "pass" if any(finding.status == "pass" for finding in findings) else "not_applicable"


def tally(findings: Sequence[Finding], recipe: str) -> tuple[str, str]:
    """The worst status of a recipe, and `passed/applicable`."""
    own = [finding for finding in findings if finding.recipe == recipe]
    applicable = [finding for finding in own if finding.status != "not_applicable"]
    passed = sum(finding.status == "pass" for finding in applicable)
    return worst(own), f"{passed}/{len(applicable)}" if applicable else "none"


def where(finding: Finding) -> str:
    """`attn_out, blocks 3–11`; empty if the finding is about the whole model."""
    if finding.layer_first is None:
        return finding.site
    last = finding.layer_last if finding.layer_last is not None else finding.layer_first
    first = finding.layer_first
    blocks = f"block {first}" if first == last else f"blocks {first}–{last}"
    return f"{finding.site}, {blocks}" if finding.site else blocks


def measured(finding: Finding) -> str:
    """`-0.01 ± 0.02 exponent`; empty if nothing was measured."""
    if finding.measured is None:
        return ""
    error = finding.uncertainty
    if error is None or not math.isfinite(error) or error <= 0:
        text = trimmed(finding.measured)
    else:
        decimals = min(max(0, -math.floor(math.log10(error))), 6)
        text = f"{round(finding.measured, decimals) + 0.0:.{decimals}f} ± {error:.{decimals}f}"
    return f"{text} {finding.unit}".rstrip()


def verdict(run: Run, findings: Sequence[Finding]) -> str:
    """One sentence: is anything wrong, with which recipe, and what is fine."""
    if run.manifest.get("kind") == "trace":
        found = count_sentence(run, findings)
        return f"What the init code of {run.manifest['config']['model']} wrote: {found[:1].lower()}{found[1:]}"
    done, planned = progress(run)
    if not done:
        return "Nothing was measured."
    recipes = recipes_of(run)
    sentence = _verdict(recipes, findings)
    if run.manifest.get("kind") in ("probe", "watch") and len(recipes) == 1:
        sentence = _verdict_of_model(run, recipes[0], findings)
    if run.manifest.get("kind") == "train":
        sentence = f"{_training_lost(run)}{sentence}"
    return sentence if done == planned else f"So far, {done} of {planned} cells: {sentence}"


def _training_lost(run: Run) -> str:
    """Sentences for the runs that diverged, or learned nothing but how frequent tokens are."""
    runs = run_measures(run)
    lost = runs[~runs["escaped"] & ~runs["diverged"]]
    said = [
        f"{row.recipe} diverged after {plural(row.steps_done, 'step')} of {row.steps:,}. "
        for row in runs[runs["diverged"]].itertuples()
    ]
    if len(lost):
        said.append(f"{listed(list(lost['recipe'].astype(str)))} learned no more than how frequent tokens are. ")
    return "".join(said)


def _verdict(recipes: Sequence[str], findings: Sequence[Finding]) -> str:
    states = {recipe: tally(findings, recipe) for recipe in recipes}
    if all(state == "not_applicable" for state, _ in states.values()):
        return "Measured, not judged: no check applies to this run."
    errors = [recipe for recipe in recipes if states[recipe][0] == "error"]
    warned = [recipe for recipe in recipes if states[recipe][0] == "warning"]
    clean = [recipe for recipe in recipes if states[recipe][0] in ("pass", "info")]
    if len(recipes) == 1:
        return _verdict_of_one(recipes[0], recipes[0], findings, states[recipes[0]][1])
    unjudged = [recipe for recipe in recipes if states[recipe][0] == "not_applicable"]
    if len(clean) == len(recipes):
        return f"All {len(recipes)} recipes pass every error and warning check that applies to them."
    parts = []
    if errors:
        verb = "fails" if len(errors) == 1 else "fail"
        parts.append(f"{len(errors)} of {len(recipes)} recipes {verb}: {_blamed(errors, findings, 'error')}")
    if warned:
        verb = "draws warnings" if len(warned) == 1 else "draw warnings"
        count = f"{len(warned)} of {len(recipes)} recipes" if not errors else str(len(warned))
        parts.append(f"{count} {verb}: {_blamed(warned, findings, 'warning')}")
    if clean:
        parts.append(f"{listed(clean)} {'passes' if len(clean) == 1 else 'pass'}")
    if unjudged:
        parts.append(f"{listed(unjudged)} could not be judged")
    return "; ".join(parts) + "."


def _verdict_of_model(run: Run, recipe: str, findings: Sequence[Finding]) -> str:
    """A probe judges a model; a recipe is only what it is judged by."""
    model = run.manifest["config"].get("model")
    judged = f" (judged as {recipe})" if recipe in (run.manifest.get("recipes") or {}) else ""
    subject = f"{model}{judged}" if model else recipe
    state, checks = tally(findings, recipe)
    if state == "not_applicable":
        return f"{subject}: measured, not judged."
    step = run.manifest["config"].get("step")
    part = f"; {covered}" if (covered := coverage(run)) else ""
    after = f", after {plural(step, 'step')} of training: checks of an init don't apply" if step else ""
    if run.manifest.get("kind") == "watch":
        after = f"; as an init at step {steps_of(run)[0]}, for finite values at every watched step"
    return _verdict_of_one(subject, recipe, findings, checks).removesuffix(".") + f"{after}{part}."


def coverage(run: Run) -> str:
    """Say of how many of its parameters a model was judged by their roles; empty where of all.

    Args:
        run: of a probe.
    """
    known, total = (run.manifest.get("init") or {}).get("coverage") or (0, 0)
    return f"roles are known of {known} of {total} parameters" if known < total else ""


def _verdict_of_one(subject: str, recipe: str, findings: Sequence[Finding], checks: str) -> str:
    state = worst(findings)
    if state in ("pass", "info"):
        notes = sum(finding.severity == "info" for finding in failing(findings))
        but = f"; {plural(notes, 'note')}" if notes else ""
        return f"{subject} passes all checks that apply ({checks}{but})."
    count = sum(finding.severity == state for finding in failing(findings))
    what = plural(count, "check") if state == "error" else plural(count, "warning")
    verb = "fails" if state == "error" else "draws"
    return f"{subject} {verb} {what}: {_questions([recipe], findings, state)}."


def _blamed(recipes: Sequence[str], findings: Sequence[Finding], severity: str) -> str:
    """`a and b (Depth), c (Logits)`: recipes that fail alike are named together."""
    alike: dict[str, list[str]] = {}
    for recipe in recipes:
        alike.setdefault(_questions([recipe], findings, severity), []).append(recipe)
    return ", ".join(f"{listed(names)} ({questions})" for questions, names in alike.items())


def _questions(recipes: Sequence[str], findings: Sequence[Finding], severity: str) -> str:
    found = {f.question for f in failing(findings) if f.recipe in recipes and f.severity == severity}
    return ", ".join(question.lower() for question in questions(findings) if question in found)


def questions(findings: Sequence[Finding | Rule]) -> list[str]:
    """Columns of the scoreboard that any finding (or rule) answers, in a fixed order."""
    asked = list(dict.fromkeys(finding.question for finding in findings))
    # whether an init scales is asked by a command of its own; other runs have no column for it
    answered = {each.question for each in findings if getattr(each, "status", "") != "not_applicable"}
    asked = [question for question in asked if question in answered or question not in STEPPED_QUESTIONS]
    return [*(q for q in QUESTIONS if q in asked), *(q for q in asked if q not in QUESTIONS)]


def count_sentence(run: Run, findings: Sequence[Finding], known: int = 0) -> str:
    """`Found 1 error, 1 warning in 1 of 3 recipes; 26 checks passed, 2 not applicable.`"""
    failed = failing(findings)
    passed = sum(finding.status == "pass" for finding in findings)
    skipped = sum(finding.status == "not_applicable" for finding in findings)
    tail = f"{plural(passed, 'check')} passed, {skipped} not applicable"
    tail += f", {known} failed in the baseline too" if known else ""
    if not failed:
        return f"Nothing failed; {tail}."
    counts = [(s, sum(f.severity == s for f in failed)) for s in SEVERITIES]
    named = ", ".join(plural(n, s) if s != "info" else plural(n, "note") for s, n in counts if n)
    total = len(recipes_of(run))
    place = f" in {len({f.recipe for f in failed})} of {total} recipes" if total > 1 else ""
    return f"Found {named}{place}; {tail}."
