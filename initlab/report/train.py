"""What the page says of training: prediction beside outcome, effects, regret, rankings, and the runs themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from initlab.judge import outcomes as judged
from initlab.judge.slopes import AXES
from initlab.judge.words import listed, number, plural, signed, trimmed
from initlab.report import transfer
from initlab.report.values import Table, TableCell
from initlab.report.verdict import GLYPHS, status_of
from initlab.report.view import recipes_of
from initlab.rundir import Run

KINDS = ("confirm", "train", "transfer")
_MOST_NAMED = 4  # separated comparisons, in the line of a folded table
_MOST_RUNS = 60  # rows of the table of runs; the CSV file has them all


@dataclass(frozen=True, slots=True)
class Trained:
    """Everything that the section «What training says» shows."""

    sentence: str
    scope: list[tuple[str, str]]
    outcomes: list[dict[str, Any]]
    outcome_scope: str
    tables: list[Table]
    broken: list[str]
    definitions: dict[str, dict[str, str]]
    limits: str


def trained(run: Run, graded: pd.DataFrame) -> Trained | None:
    """Make the section's content; None for a run that trained nothing.

    Args:
        run: of any kind.
        graded: prediction beside outcome of a confirmation, see `initlab.judge.outcomes.outcomes`.
    """
    if run.manifest.get("kind") not in KINDS:
        return None
    runs = judged.run_measures(run)
    graded = graded if len(runs) else graded.iloc[:0]
    tables = [*_effects(run), _regrets(run), _rankings(run)] if len(graded) else []
    if run.manifest["kind"] == "transfer":
        tables += [transfer.table(run, axis) for axis in AXES if len(runs) and runs[axis].nunique() > 1]
    tables.append(_runs(run, runs))
    return Trained(
        sentence=_sentence(graded, runs),
        scope=_scope(run, runs),
        outcomes=[_outcome(row) for row in _by_recipe(run, graded)] if len(graded) else [],
        outcome_scope=judged.OUTCOME_SCOPE,
        tables=[table for table in tables if table.rows],
        broken=_broken(run, runs),
        definitions=_definitions(str(run.manifest["kind"])),
        limits=_limits(runs),
    )


def _by_recipe(run: Run, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows in the order of the recipes, shallow before deep."""
    place = {recipe: at for at, recipe in enumerate(recipes_of(run))}
    keys = [name for name in ("n_layer", "warmup", "lr", "seed") if name in frame]
    ordered = frame.assign(order=frame["recipe"].astype(str).map(place)).sort_values(["order", *keys])
    return [{str(key): value for key, value in row.items()} for row in ordered.to_dict("records")]


def _sentence(graded: pd.DataFrame, runs: pd.DataFrame) -> str:
    """`Training agrees with 5 of 8 predictions; 1 missed, 2 undecided.`"""
    if not len(runs):
        return "No training run has finished."
    lost = int(runs["diverged"].sum())
    gone = f" {lost} of {plural(len(runs), 'run')} diverged." if lost else ""
    if graded.empty:
        learned = int(runs["escaped"].sum())
        verb = "learns" if learned == 1 else "learn"
        return f"{learned} of {plural(len(runs), 'run')} {verb} more than how often tokens come.{gone}"
    counts = graded["grade"].value_counts()
    words = {"missed": "missed", "false alarm": "false alarm", "undecided": "undecided"}
    parts = [f"{counts[grade]} {_several(word, counts[grade])}" for grade, word in words.items() if counts.get(grade)]
    rest = f"; {', '.join(parts)}" if parts else ""
    if not runs["escaped"].any():
        return f"No run of any recipe learned more than how often tokens come: too short to tell inits apart.{gone}"
    return f"Training agrees with {counts.get('agreed', 0)} of {plural(len(graded), 'prediction')}{rest}.{gone}"


def _several(word: str, count: int) -> str:
    return f"{word}s" if word == "false alarm" and count > 1 else word


def _outcome(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "said": look(str(row["predicted"])), "graded": look(str(row["grade"]))}


def look(word: str) -> tuple[str, str]:
    """Class of the page, and glyph, that go with a word."""
    return status_of(word), GLYPHS[status_of(word)]


def _scope(run: Run, runs: pd.DataFrame) -> list[tuple[str, str]]:
    environment, seconds = run.manifest.get("environment") or {}, float(runs["seconds"].sum())
    machine = [str(environment[key]) for key in ("device", "platform") if environment.get(key)]
    trained_cells = {str(cell) for cell in run.manifest.get("cells", []) if cell not in _probes(run)}
    found = [
        ("training runs", f"{len(runs)} of {max(len(runs), len(trained_cells))}"),
        ("seeds", str(runs["seed"].nunique())),
        ("tokens per run", _count(runs["tokens"].max()) if len(runs) else ""),
        ("tokens in all", _count(runs["tokens"].sum())),
        ("machine", ", ".join(machine)),
        ("training time", f"{_duration(seconds)}, all runs together"),
        ("duration", _duration(float(run.manifest["seconds"])) if run.manifest.get("seconds") else ""),
    ]
    return [(label, value) for label, value in found if value]


def _probes(run: Run) -> set[str]:
    """Cells that were measured before any update only."""
    summary = run.tables.summary
    stepped = set(summary.loc[summary["step"] > 0, "run_id"]) | set(run.tables.runs["run_id"])
    return {str(cell) for cell in summary["run_id"].unique()} - {str(cell) for cell in stepped}


def _listed(values: pd.Series) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values.unique()))


def _count(value: float) -> str:
    """`15 thousand`, `1.2 million`: tokens are many."""
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= size:
            return f"{trimmed(value / size)} {word}"
    return f"{value:.0f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _span(value: float, low: float, high: float) -> str:
    """`+0.120 (+0.080 to +0.160)`; the value alone of one seed."""
    return signed(value, 3) + (f" ({signed(low, 3)} to {signed(high, 3)})" if np.isfinite([low, high]).all() else "")


def _effects(run: Run) -> list[Table]:
    found = judged.effects(run)
    heads = (
        "recipe",
        "blocks",
        "warmup",
        "difference, nats (interval)",
        "p",
        "p, Holm",
        "seeds",
        "verdict",
        "seeds needed",
    )
    tables = []
    for question, meaning in judged.QUESTIONS.items():
        own, gains = found[found["question"] == question], question == "warmup"
        rows = []
        for row in _by_recipe(run, own):
            cells = [
                str(row["n_layer"]),
                str(row["warmup"]),
                _span(row["difference"], row["low"], row["high"]),
                *(number(row[name]) if math.isfinite(row[name]) else "" for name in ("p", "p_holm")),
                str(row["seeds"]),
            ]
            status = status_of(row["verdict"])
            verdict = TableCell(row["verdict"], status, glyph=GLYPHS[status])
            rows.append([TableCell(str(row["recipe"])), *map(TableCell, cells), verdict, TableCell(_needed(row))])
        sure = [row for row in _by_recipe(run, own) if row["verdict"] != "not separated"]
        versus = f" Baseline: {own['versus'].iloc[0]}." if len(own) and question != "warmup" else ""
        words = [f"{row['recipe']} {row['verdict']}{' with it' * gains} ({_at(row)})" for row in sure]
        named = f": {listed(words, _MOST_NAMED)}" if words else ""
        summary = f"{plural(len(rows), 'comparison')}, {len(sure)} separated{named}"
        tables.append(Table(heads, rows, _TITLES[question], f"{_capital(meaning)}.{versus}", summary))
    return tables


_TITLES = {
    "recipe": "Is another init better? Mean over the rates",
    "best rate": "Is another init better? Each at its best rate",
    "warmup": "What is warmup worth?",
}


def _at(row: dict[str, Any]) -> str:
    warmup = "" if row["question"] == "warmup" else f", warmup {row['warmup']}"
    return f"{plural(int(row['n_layer']), 'block')}{warmup}"


def _needed(row: dict[str, Any]) -> str:
    seeds = row["seeds_needed"]
    return "" if math.isnan(seeds) else "> 100" if math.isinf(seeds) else f"{seeds:.0f}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _regrets(run: Run) -> Table:
    heads = ("recipe", "blocks", "warmup", "regret, nats (interval)", "sensitivity", "best rate", "loss there")
    rows = []
    for row in _by_recipe(run, judged.regrets(run)):
        known = math.isfinite(row["regret"])
        cells = [
            str(row["n_layer"]),
            str(row["warmup"]),
            _span(row["regret"], row["low"], row["high"]).replace("+", "") if known else "–",
            f"{row['sensitivity']:.3f}" if known else "–",
            f"{row['best_lr']:g}" if known else "–",
            f"{row['best_loss']:.3f}" if known else "–",
            *(f"{row[name]} of {row['runs']}" if row[name] else "0" for name in ("diverged", "stuck")),
        ]
        rows.append([TableCell(str(row["recipe"])), *map(TableCell, cells)])
    note = (
        f"Regret: {judged.DEFINITIONS['regret']}. Sensitivity: {judged.DEFINITIONS['sensitivity']}. "
        "So read sensitivity beside «stuck», never alone."
    )
    return Table((*heads, "diverged", "stuck"), rows, "Regret and sensitivity", note, plural(len(rows), "row"))


def _rankings(run: Run) -> Table:
    found = judged.rankings(run)
    depths = sorted(int(depth) for depth in found["depth"].unique())
    meanings = {metric.name: metric.meaning for metric in judged.METRICS}
    columns = _RANKS if found["behind"].notna().any() else _RANKS[:1]
    means = found.groupby("metric")["spearman"].mean().sort_values(ascending=False)
    rows = []
    for metric in means.index:
        own = found[found["metric"] == metric]
        at = {int(row["depth"]): row for row in own.to_dict("records")}
        cells = [_rank(at[depth], *names) if depth in at else "–" for names in columns for depth in depths]
        rows.append([TableCell(str(metric), note=meanings.get(str(metric), "")), *map(TableCell, cells)])
    held = " held out" if len(depths) > 1 else ""
    heads = [f"{plural(depth, 'block')}{held}" for depth in depths]
    heads += [f"behind, {plural(depth, 'block')}" for depth in depths if len(columns) > 1]
    count = int(found["recipes"].max()) if len(found) else 0
    behind = f" {judged.BEHIND_DEFINITION}." if len(columns) > 1 else ""
    note = (
        f"{judged.compared_text(found)} {judged.RANKING_DEFINITION}.{behind} Here: {plural(count, 'recipe')}.".strip()
    )
    title = "Which probe metrics rank recipes?"
    return Table(("metric", *heads), rows, title, note.replace("`", ""), plural(len(rows), "metric"))


_RANKS = (("spearman", "low", "high"), ("behind", "behind_low", "behind_high"))


def _rank(row: dict[str, Any], value: str, low: str, high: str) -> str:
    if not math.isfinite(row[value]):
        return "–"
    return signed(row[value]) + (f" ({signed(row[low])} to {signed(row[high])})" if math.isfinite(row[low]) else "")


def _runs(run: Run, runs: pd.DataFrame) -> Table:
    pace = run.tables.training.groupby("run_id", observed=True)[["tokens_per_second", "mfu"]].median()
    speed = {str(run_id): row for run_id, row in pace.iterrows()}
    shows_mfu = bool(pace["mfu"].notna().any())  # of known GPUs
    several = runs["n_embd"].nunique() > 1
    heads = [
        "blocks",
        *(["width"] if several else []),
        "rate",
        "warmup",
        "seed",
        "steps",
        "parameters",
        "first loss",
        "last loss",
        "learned",
    ]
    heads += ["overshoot", "spikes", "gradient peak", "tokens/s", *(["MFU"] if shows_mfu else []), "seconds"]
    rows = []
    for row in _by_recipe(run, runs)[:_MOST_RUNS]:
        tokens, mfu = speed.get(str(row["run_id"]), (math.nan, math.nan))
        cells = [
            str(row["n_layer"]),
            *([str(row["n_embd"])] if several else []),
            f"{row['lr']:.4g}",
            str(row["warmup"]),
            str(row["seed"]),
            f"{row['steps_done']} of {row['steps']}" if row["steps_done"] < row["steps"] else str(row["steps"]),
            _count(row["n_params"]),
            f"{row['first_loss']:.3f}",
            "diverged" if row["diverged"] else f"{row['val_loss']:.3f}",
            "–" if row["diverged"] else ("yes" if row["escaped"] else "stuck"),
            "–" if math.isnan(row["overshoot"]) else f"{row['overshoot']:.2f}",
            str(row["spikes"]),
            "–" if math.isnan(row["grad_norm_peak"]) else f"×{number(row['grad_norm_peak'])}",
            "–" if math.isnan(tokens) else _count(tokens),
            *(["–" if math.isnan(mfu) else f"{mfu:.0%}"] if shows_mfu else []),
            number(row["seconds"]),
        ]
        rows.append([TableCell(str(row["recipe"])), *map(TableCell, cells)])
    more = f" The first {len(rows)} of {len(runs)}; all are in runs.csv." if len(runs) > len(rows) else ""
    note = f"Losses are of the validation batches, nats. What the columns mean is defined below.{more}"
    return Table(("recipe", *heads), rows, "Every training run", note, plural(len(runs), "run"))


def _broken(run: Run, runs: pd.DataFrame) -> list[str]:
    """Runs that diverged, by what they have in common, and those that failed."""
    lost = []
    for row, group in runs.groupby(["recipe", "n_layer", "warmup", "lr"], observed=True):
        own = group[group["diverged"]]
        if len(own):
            recipe, n_layer, warmup, lr = row
            first = int(own["steps_done"].min())
            at = f"{recipe}, {plural(int(n_layer), 'block')}, rate {lr:g}, warmup {int(warmup)}"
            lost.append(f"{at}: {len(own)} of {plural(len(group), 'seed')} diverged, the first after {first} steps.")
    failed = run.manifest.get("failed") or {}
    return lost + [f"{cell} failed: {error}." for cell, error in failed.items()]


def _definitions(kind: str) -> dict[str, dict[str, str]]:
    found = {"Measures of a run": dict(judged.DEFINITIONS)}
    if kind == "transfer":
        found["Transfer"] = dict(judged.TRANSFER_DEFINITIONS)
    if kind == "confirm":
        found["What training did"] = dict(judged.OUTCOME_DEFINITIONS)
        found["Grades of a prediction"] = dict(judged.GRADE_DEFINITIONS)
        found["Comparisons"] = {**judged.QUESTIONS, "interval, p and verdict": judged.EFFECT_DEFINITION}
    return found


def _limits(runs: pd.DataFrame) -> str:
    """How far the training that was done reaches."""
    if not len(runs):
        return "Training: no run has finished."
    width, steps = _listed(runs["n_embd"]), _listed(runs["steps"])
    return (
        f"Training beyond {steps} steps, another width than {width} or more than {int(runs['n_layer'].max())} blocks: "
        "a difference seen here may shrink or grow there."
    )
