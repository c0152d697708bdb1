"""What a run says in words and numbers: shared by the page, the terminal and the figures' descriptions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from initlab.judge import SEVERITIES
from initlab.judge.outcomes import run_measures
from initlab.judge.rules import Finding, Rule
from initlab.judge.rules.depth import BRANCHES, depth_exponents
from initlab.judge.rules.fresh import before_training
from initlab.judge.words import listed as listed
from initlab.judge.words import number as number
from initlab.judge.words import plural as plural
from initlab.judge.words import signed as signed
from initlab.judge.words import trimmed as trimmed
from initlab.rundir import Run

GLYPHS = {"error": "✗", "warning": "!", "info": "i", "pass": "✓", "not_applicable": "–"}
QUESTIONS = ("Width", "Updates", "Init", "Depth", "Embedding", "Attention", "Logits", "Gradient", "Numerics")
STEPPED_QUESTIONS = ("Width", "Updates")


def recipes_of(run: Run) -> list[str]:
    """Recipe ids in the order they were given, then any that the tables hold besides; the first is the baseline."""
    planned = [str(recipe) for recipe in run.manifest["config"].get("recipes", [])]
    seen = [str(recipe) for recipe in run.tables.summary["recipe"].dropna().unique()]
    return list(dict.fromkeys([*planned, *seen]))


@dataclass(frozen=True)
class View:
    """The part of a run that figures show: one step, one width, every depth."""

    recipes: list[str]
    depths: list[int]
    n_embd: int
    records: pd.DataFrame
    heads: pd.DataFrame
    summary: pd.DataFrame

    @property
    def n_layer(self) -> int:
        """The deepest model."""
        return max(self.depths, default=0)

    def rows(self, kind: str, sites: Iterable[str], n_layer: int | None = None) -> pd.DataFrame:
        """Records of a kind at some sites, of one depth or of all."""
        table = self.records
        keep = (table["kind"] == kind) & table["site"].isin(list(sites))
        if n_layer is not None:
            keep &= table["n_layer"] == n_layer
        return table[keep]


def view(run: Run) -> View:
    """Pick the first step, before training, and of the widths that were measured at the most depths the largest."""
    run = before_training(run)
    summary = run.tables.summary
    depths_at = summary.groupby("n_embd")["n_layer"].nunique()
    width = int(depths_at.index[depths_at == depths_at.max()].max()) if len(summary) else 0
    step = int(summary["step"].min()) if len(summary) else 0
    parts = {}
    for name in ("records", "heads", "summary"):
        frame = getattr(run.tables, name)
        parts[name] = frame[(frame["n_embd"] == width) & (frame["step"] == step)]
    depths = sorted(int(depth) for depth in parts["summary"]["n_layer"].unique())
    present = set(parts["summary"]["recipe"])
    return View([recipe for recipe in recipes_of(run) if recipe in present], depths, width, **parts)


def exponents(shown: View) -> pd.DataFrame:
    """Depth exponents of the branch writes; a model with a write that isn't finite takes no part in the fit."""
    writes = shown.rows("activation", BRANCHES)
    broken = writes.loc[~np.isfinite(writes["var"]), "run_id"]
    return depth_exponents(writes[~writes["run_id"].isin(broken)])


def exponent_text(slope: float, stderr: float) -> str:
    """`L^-1.00 ± 0.02`."""
    error = f" ± {stderr:.2f}" if math.isfinite(stderr) else ""
    return f"L^{round(slope, 2) + 0.0:.2f}{error}"


@dataclass(frozen=True, slots=True)
class Overview:
    """The row of one recipe: what its deepest model does, and the exponents over all depths."""

    recipe: str
    embed_var: float | None
    last_var: float | None
    slopes: dict[str, tuple[float, float]]  # site -> slope, standard error
    grad_ratio: float | None  # variance of the gradient at the embedding / after the last block
    excess_loss: float | None
    checks: str
    status: str


def overview(run: Run, findings: Sequence[Finding]) -> list[Overview]:
    """One row per recipe, baseline first."""
    shown = view(run)
    fits = exponents(shown)
    rows = []
    for recipe in recipes_of(run):
        own = shown.summary[shown.summary["recipe"] == recipe]
        deepest = int(own["n_layer"].max()) if len(own) else 0
        own = own[own["n_layer"] == deepest]
        slopes = {
            str(fit.site): (float(fit.slope), float(fit.stderr))
            for fit in fits[fits["recipe"] == recipe].itertuples(index=False)
        }
        first, last = _ends(shown, recipe, deepest, "activation")
        grad_first, grad_last = _ends(shown, recipe, deepest, "grad")
        status, checks = tally(findings, recipe)
        rows.append(
            Overview(
                recipe=recipe,
                embed_var=first,
                last_var=last,
                slopes=slopes,
                grad_ratio=grad_first / grad_last if grad_first is not None and grad_last else None,
                excess_loss=middle(own["loss"] - own["ln_vocab"]),
                checks=checks,
                status=status,
            )
        )
    return rows


def _ends(shown: View, recipe: str, n_layer: int, kind: str) -> tuple[float | None, float | None]:
    rows = shown.rows(kind, ["embed", "resid_post"], n_layer)
    rows = rows[rows["recipe"] == recipe]
    last = rows[(rows["site"] == "resid_post") & (rows["layer"] == n_layer - 1)]
    return middle(rows.loc[rows["site"] == "embed", "var"]), middle(last["var"])


def middle(values: pd.Series) -> float | None:
    """Median over seeds; NaN as soon as one seed is NaN, None without rows."""
    return float(np.median(values.to_numpy(float))) if len(values) else None


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


def progress(run: Run) -> tuple[int, int]:
    """Cells that are in the tables, cells that were planned."""
    done = set(run.tables.summary["run_id"])
    return len(done), len(done | set(run.manifest.get("cells", [])))


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
    after = f", after {plural(step, 'step')} of training: checks of an init don't apply" if step else ""
    if run.manifest.get("kind") == "watch":
        after = f"; as an init at step {steps_of(run)[0]}, for finite values at every watched step"
    return _verdict_of_one(subject, recipe, findings, checks).removesuffix(".") + f"{after}."


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


def count_sentence(run: Run, findings: Sequence[Finding]) -> str:
    """`Found 1 error, 1 warning in 1 of 3 recipes; 26 checks passed, 2 not applicable.`"""
    failed = failing(findings)
    passed = sum(finding.status == "pass" for finding in findings)
    skipped = sum(finding.status == "not_applicable" for finding in findings)
    tail = f"{plural(passed, 'check')} passed, {skipped} not applicable"
    if not failed:
        return f"Nothing failed; {tail}."
    counts = [(s, sum(f.severity == s for f in failed)) for s in SEVERITIES]
    named = ", ".join(plural(n, s) if s != "info" else plural(n, "note") for s, n in counts if n)
    total = len(recipes_of(run))
    place = f" in {len({f.recipe for f in failed})} of {total} recipes" if total > 1 else ""
    return f"Found {named}{place}; {tail}."


def shortfall(run: Run) -> list[str]:
    """Sentences about what is missing or failed, cells and tensors; empty for a complete run."""
    (done, planned), failed = progress(run), run.manifest.get("failed", {})
    notes = []
    if run.manifest.get("kind") == "watch":
        if not run.manifest.get("finished"):
            notes.append(f"The watch is still open, or was killed: recorded up to step {steps_of(run)[-1]}.")
    elif done < planned or not run.manifest.get("finished"):
        notes.append(f"Incomplete: {_amount(run, done, planned)}; the same command with the same -o resumes.")
    alike: dict[str, list[str]] = {}
    for cell, error in failed.items():
        alike.setdefault(str(error), []).append(cell)
    for error, cells in alike.items():
        verb = "measured" if any(map(_is_probe, cells)) or run.manifest.get("kind") != "confirm" else "trained"
        notes.append(f"{'Cell' if len(cells) == 1 else 'Cells'} {listed(cells)} could not be {verb}: {error}")
    coverage = run.tables.coverage
    unseen = coverage[(coverage["fired"] < coverage["expected"]) & (coverage["site"] != "module")]
    sums = unseen.groupby(["kind", "site", "note"], observed=True)[["fired", "expected"]].sum().reset_index()
    rows = [f"{row.kind} {row.site} {row.fired} of {row.expected} ({row.note})" for row in sums.itertuples()]
    return notes + ([f"Not everything was seen: {listed(rows, 3)}."] if rows else [])


def _amount(run: Run, done: int, planned: int) -> str:
    if run.manifest.get("kind") != "confirm":
        return f"{done} of {planned} cells"
    trained = run.tables.runs["run_id"].nunique()
    probes = sum(_is_probe(cell) for cell in run.manifest["cells"])
    return f"{done - trained} of {probes} models probed, {trained} of {planned - probes} runs trained"


def _is_probe(cell: str) -> bool:
    """Whether a cell's id ends with its seed; that of a training run goes on with its rate and warmup."""
    return re.search(r"-s\d+$", cell) is not None


def facts(run: Run) -> list[tuple[str, str]]:
    """(label, value) of what was run: model, data, seeds, device, version, commit, date."""
    config, summary = run.manifest["config"], run.tables.summary
    # 0 stands for what a model doesn't have: a vocabulary, a residual stream
    vocab = sorted(int(size) for size in summary["vocab_size"].dropna().unique() if size)
    data, git = run.manifest.get("data") or {}, run.manifest.get("git")
    depths = sorted(int(depth) for depth in summary["n_layer"].unique()) or config.get("depths", [])
    widths = sorted(int(width) for width in summary["n_embd"].unique()) or config.get("widths", [])
    depths, widths = ([size for size in sizes if size] for sizes in (depths, widths))
    seeds = config.get("seeds", int(summary["seed"].nunique()))
    found: list[tuple[str, Any]] = [
        ("model", config.get("model")),
        ("n_layer", ", ".join(map(str, depths))),
        ("n_embd", ", ".join(map(str, widths))),
        ("vocabulary", ", ".join(map(str, vocab))),
        ("batch", "×".join(str(config[key]) for key in ("batch_size", "block_size") if config.get(key))),
        ("seeds", seeds if isinstance(seeds, int) else len(seeds)),
        ("data", data.get("label") or config.get("data")),
        ("tokenizer", data.get("tokenizer") or config.get("tokenizer")),
        ("mode", config.get("mode")),
        ("steps", config.get("step") or config.get("steps") or _steps_text(run)),
        ("optimizer", _optimizer(config)),
        ("dtype", config.get("dtype")),
        ("device", config.get("device")),
        ("commit", git and f"{git['commit']}{' + changes' if git.get('dirty') else ''}"),
        ("judged by", judging(run)),
        ("date", str(run.manifest.get("created") or "").replace("T", " ").removesuffix("Z")),
    ]
    return [(label, str(value)) for label, value in found if value not in (None, "")]


def steps_of(run: Run) -> list[int]:
    """Steps in the tables, in order; [0] for a run without any."""
    return sorted(int(step) for step in run.tables.summary["step"].unique()) or [0]


def _steps_text(run: Run) -> str | None:
    """`0 to 300, every 100`, of a watch."""
    every, steps = run.manifest["config"].get("every"), steps_of(run)
    return f"{steps[0]} to {steps[-1]}, every {every}" if every else None


def _optimizer(config: dict[str, Any]) -> str | None:
    if "lrs" in config:
        rates = ", ".join(f"{lr:g}" for lr in config["lrs"])
        warm = ", ".join(str(steps) if steps else "none" for steps in config.get("warmups", []))
        return f"AdamW, lr {rates}" + (f", warmup {warm}" if warm else "")
    known = {"adamw": "AdamW", "sgd": "SGD"}
    name = config.get("optimizer")
    return f"{known[name]}, lr {config['lr']:g}" if name in known else name


def judging(run: Run) -> str:
    """What the user overrode: `only GRD, without RES006, EMB001=0.05`; empty for the rules as they are."""
    given = run.manifest.get("judging") or {}
    parts = [f"only {', '.join(given['select'])}"] if given.get("select") else []
    parts += [f"without {', '.join(given['ignore'])}"] if given.get("ignore") else []
    return ", ".join(parts + [f"{code}={value:g}" for code, value in given.get("limits", {}).items()])


def model_notes(run: Run) -> list[str]:
    """What the probe found out about the model itself: its stacks, what could not be verified, what was unwrapped."""
    coverage = run.tables.coverage
    return list(dict.fromkeys(coverage.loc[coverage["site"] == "model", "note"]))
