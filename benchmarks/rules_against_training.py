"""What training says of the rules and of the probe's metrics: the calibration of heuristic limits.

Reads runs of `initlab confirm` (by default the committed ones), and writes rules_against_training.md: of every rule,
at how many recipes and depths it raised a warning or an error and what training did there; of every metric of the
probe, how well it ranks the recipes by regret on a depth that its sign wasn't learnt on, and how far behind the number
of errors and warnings that is. Beside the grades stand those that the same runs give with the limits that were in force
before they were made.

    python benchmarks/rules_against_training.py                 # the reports of this repository; half a minute
    python benchmarks/rules_against_training.py initlab-runs/a initlab-runs/b
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pandas as pd

import initlab
from initlab.judge.outcomes import PROBE, compared_text, outcomes, rankings
from initlab.judge.rules import evaluate
from initlab.judge.rules.selecting import judged_by
from initlab.results import Confirmation
from initlab.rundir import Run

HERE = Path(__file__)
REPORTS = HERE.parents[1] / "reports"
DEFAULT = [REPORTS / "nanogpt-claims" / "training", REPORTS / "recipes-trained"]
# limits that were moved after these runs, as they were before: their grades are of the data they were moved on
BEFORE = {"ACT001.warning": 0.04}
BAD = ("diverges", "stuck", "trains worse")


def by_rule(result: Confirmation) -> pd.DataFrame:
    """A row per rule that fired, and one for all: cells by what training did there."""
    cells = result.outcomes
    counts: dict[str, Counter[str]] = {}
    for row in cells.itertuples():
        kind = "worse" if row.outcome in BAD else "as well as the best" if row.outcome == "trains" else "undecided"
        for code in row.codes.split() or ["none"]:
            counts.setdefault(code, Counter())[kind] += 1
    rows = [{"rule": code, **found} for code, found in sorted(counts.items())]
    columns = ["rule", "worse", "as well as the best", "undecided"]
    return pd.DataFrame(rows, columns=columns).fillna(0).astype(dict.fromkeys(columns[1:], int))


def table(frame: pd.DataFrame) -> str:
    """A frame as Markdown."""
    text = [[f"{value:.2f}" if isinstance(value, float) else str(value) for value in row] for row in frame.to_numpy()]
    lines = [list(frame.columns), ["---"] * len(frame.columns), *text]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def graded(run: Run) -> str:
    """Grades and the probe's rank correlation by depth, in words."""
    found = outcomes(run, evaluate(run, **run.manifest.get("judging", {})))
    grades = ", ".join(f"{count} {grade}" for grade, count in sorted(Counter(found["grade"]).items()))
    ranked = rankings(run)
    own = ranked[ranked["metric"] == PROBE]
    at = ", ".join(f"{rho:.2f} at {depth} blocks" for rho, depth in zip(own["spearman"], own["depth"], strict=True))
    return f"{grades}; Spearman of the number of {PROBE} with regret {at}"


def section(path: Path) -> str:
    """One run in words and two tables."""
    result = initlab.load(path)
    assert isinstance(result, Confirmation), f"{path} holds no run of `initlab confirm`"
    config, runs = result.run.manifest["config"], result.runs
    depths = ", ".join(map(str, config["depths"]))
    before = Run(result.run.tables, {**result.run.manifest, "judging": {"limits": BEFORE}})
    moved = ", ".join(f"{name} {value:g}" for name, value in BEFORE.items())
    ranked = result.rankings.drop(columns=[c for c in ("sign",) if c in result.rankings])
    name = f"{path.parent.name}/{path.name}"
    return (
        f"## {name}\n\n{len(runs)} runs: {runs['recipe'].nunique()} recipes, {depths} blocks of "
        f"{runs['n_embd'].iloc[0]}, {runs['lr'].nunique()} rates, {runs['warmup'].nunique()} warmups, "
        f"{runs['seed'].nunique()} seeds, {runs['steps'].iloc[0]} steps.\n\n"
        f"With the limits of now, one of which was moved on these runs: {graded(result.run)}. With the limits as they "
        f"were before ({moved}): {graded(before)}.\n\n"
        f"Recipes and depths at which a rule raised a warning or an error, by training's outcome:\n\n"
        f"{table(by_rule(result))}\n\n"
        f"Spearman's correlation of a metric with regret over the recipes of a depth, the sign learnt on the other "
        f"depths (so negative: it misleads there), 95 % interval; behind: that of the number of {PROBE} minus the "
        f"metric's, with a paired bootstrap's 95 % interval. {compared_text(result.rankings)}\n\n{table(ranked)}\n"
    )


def main() -> None:
    paths = [Path(name) for name in sys.argv[1:]] or [path for path in DEFAULT if path.exists()]
    text = "# Rules and metrics against training\n\nMade by `python benchmarks/rules_against_training.py`. "
    text += f"{judged_by()}\n\n"
    text += "\n".join(section(path) for path in paths)
    if len(sys.argv) == 1:
        HERE.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
