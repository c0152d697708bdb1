"""A confirmation in a screenful: what training did by depth, whether the probe had said so, what is separated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from initlab.judge.outcomes import ESCAPE_MARGIN, FAMILY, WORSE, effects, regrets, run_measures
from initlab.judge.words import listed, plural, signed
from initlab.report.facts import progress
from initlab.report.values import Brief, Table, TableCell
from initlab.report.verdict import GLYPHS, status_of
from initlab.report.view import recipes_of
from initlab.rundir import Run

_DID = {
    "diverges": ("diverges", "diverge"),
    "stuck": ("is stuck", "are stuck"),
    "trains worse": ("trains worse", "train worse"),
}
_MOST_UNSEPARATED = 4  # that are named; effects.csv has them all


def brief(run: Run, graded: pd.DataFrame) -> Brief:
    """Make regret by depth, prediction beside outcome, and the differences that are separated.

    Args:
        run: of kind `confirm`.
        graded: its prediction beside outcome, see `initlab.judge.outcomes.outcomes`.
    """
    lost, found = regrets(run), effects(run)
    blocks: list[Table | str] = [_regret_table(run, int(n_layer), own) for n_layer, own in lost.groupby("n_layer")]
    if len(graded):
        blocks.append(_outcome_table(graded))
    blocks += filter(None, (_separated(found), _gains(found), unseparated_sentence(found)))
    return Brief(blocks, closing=_closing(found) if len(lost) else "", explained=False)


def verdict(run: Run, graded: pd.DataFrame) -> str:
    """One sentence: which recipes don't train well, and whether the probe had said so."""
    done, planned = progress(run)
    before = "" if done == planned else f"So far, {done} of {planned} cells: "
    trained = graded[graded["outcome"] != "not trained"]
    if trained.empty:
        return f"{before}No recipe is trained at every rate, so that there is nothing to confirm."
    depths = trained["n_layer"].nunique()
    parts = [_did(trained[trained["outcome"] == outcome], outcome, depths) for outcome in _DID]
    if (trained["outcome"] == "trains").all():
        names = list(trained["recipe"].unique())
        parts = [f"{listed(names)} {'trains' if len(names) == 1 else 'train'}"]
    decided = trained[trained["grade"] != "undecided"]
    said = []
    if len(decided):
        agreed = int((decided["grade"] == "agreed").sum())
        said.append(f"the probe agrees with training in {agreed} of {plural(len(decided), 'case')}")
    for grade, words in (("missed", "missed"), ("false alarm", "gave a false alarm on")):
        own = decided[decided["grade"] == grade]
        said += [f"{words} {_places(own, depths)}"] if len(own) else []
    unclear = trained[trained["grade"] == "undecided"]
    parts.append(listed(said, len(said)))
    lost = unlearned(run)
    if lost:
        at = f"at {listed([str(each) for each in lost], 6)} layers"
        parts.append(f"no recipe learned more than token frequencies {at}: more steps or other rates would tell")
    unclear = unclear[~unclear["n_layer"].isin(lost)]
    parts.append(f"undecided: {_places(unclear, depths)}" if len(unclear) else "")
    sentence = "; ".join(filter(None, parts))
    if sentence.startswith(("the ", "no ", "undecided:")) and not before:  # a recipe's name stays as it is
        sentence = f"{sentence[0].upper()}{sentence[1:]}"
    return f"{before}{sentence}."


def unlearned(run: Run) -> list[int]:
    """Depths at which no run of any recipe escaped the unigram plateau."""
    escaped = run_measures(run).groupby("n_layer")["escaped"].any()
    return [int(n_layer) for n_layer in escaped.index[~escaped.to_numpy(bool)]]


def unseparated_sentence(found: pd.DataFrame) -> str:
    """The comparisons without a verdict, and how many seeds each would take; empty without any."""
    pairs = [row for row in found.to_dict("records") if row["question"] != "best rate"]
    single = [row for row in pairs if row["seeds"] < 2]
    if len(single) == len(pairs):
        return "With one seed nothing can be separated; differences are in effects.csv." if pairs else ""
    unclear = [row for row in pairs if row["verdict"] == "not separated" and row["seeds"] > 1]
    # those that a few seeds more would settle are of most use
    unclear.sort(key=lambda row: row["seeds_needed"])
    told = [
        f"{_asked(row)} {signed(row['difference'], 3)} ({seeds_text(row['seeds_needed'])})"
        for row in unclear[:_MOST_UNSEPARATED]
    ]
    more = len(unclear) - len(told)
    told += [f"{more} more in effects.csv"] if more else []
    return f"Not separated (seeds that it would take): {'; '.join(told)}." if told else ""


def seeds_text(seeds: float) -> str:
    """`5 seeds`, `> 100 seeds`."""
    return "> 100 seeds" if math.isinf(seeds) else plural(int(seeds), "seed")


def rate_text(best: float, swept: Iterable[float]) -> str:
    """A best rate; ≤ or ≥ where it is at the end of the swept ones, so that the best may lie beyond."""
    rates = sorted(set(swept))
    if not math.isfinite(best):
        return "–"
    end = "" if len(rates) < 2 else "≤" if best == rates[0] else "≥" if best == rates[-1] else ""
    return f"{end}{best:g}"


def _title(run: Run, n_layer: int) -> str:
    """`4 layers: 54 runs (3 rates, 2 warmups, 3 seeds)`."""
    runs = run.tables.runs[run.tables.runs["n_layer"] == n_layer]
    axes = (("rate", "lr"), ("warmup", "warmup"), ("seed", "seed"))
    grid = ", ".join(plural(runs[column].nunique(), noun) for noun, column in axes)
    return f"{plural(n_layer, 'layer')}: {plural(len(runs), 'run')} ({grid})"


def _regret_table(run: Run, n_layer: int, own: pd.DataFrame) -> Table:
    """Of one depth; of several warmups the shortest and the longest."""
    warmups = sorted({int(each) for each in own["warmup"]})
    shown = list(dict.fromkeys([warmups[0], warmups[-1]]))
    heads = [f"regret,\n{_warmup_text(each)}" for each in shown]
    table = Table(("recipe", *heads, "best rate\nand loss", "runs\nstuck", "\ndiverged"), title=_title(run, n_layer))
    recipes = recipes_of(run)
    runs = run.tables.runs
    for recipe in [each for each in recipes if each in set(own["recipe"])]:
        rows = {int(row["warmup"]): row for row in own[own["recipe"] == recipe].to_dict("records")}
        name = TableCell(recipe, note="(baseline)" if recipe == recipes[0] and len(recipes) > 1 else "")
        best = "–"
        if (last := rows.get(shown[-1])) and last["seeds"]:
            swept = runs.loc[(runs["n_layer"] == last["n_layer"]) & (runs["warmup"] == shown[-1]), "lr"]
            best = f"{rate_text(last['best_lr'], swept)}: {last['best_loss']:.3f}"
        counts = [str(sum(row[word] for row in rows.values())) for word in ("stuck", "diverged")]
        table.add(name, *(_regret(rows.get(each)) for each in shown), best, *counts)
    return table


def _regret(row: Mapping[Any, Any] | None) -> str:
    if row is None or not row["seeds"]:
        return "–"
    half = (row["high"] - row["low"]) / 2
    return f"{row['regret']:.2f}" + (f" ±{half:.2f}" if math.isfinite(half) else "")


def _outcome_table(graded: pd.DataFrame) -> Table:
    heads = ("recipe", "layers", "the probe said", "training", "grade")
    table = Table(heads, words=frozenset({0, 2, 3, 4}), whole=True)
    previous = None
    for row in graded.to_dict("records"):
        status = status_of(row["predicted"])
        said = TableCell(row["predicted"], status, row["codes"], GLYPHS[status])
        layers = "" if row["n_layer"] == previous else str(row["n_layer"])
        table.add(row["recipe"], layers, said, row["outcome"], TableCell(row["grade"], status_of(row["grade"])))
        previous = row["n_layer"]
    return table


def _separated(found: pd.DataFrame) -> Table | None:
    """Recipes that differ from the baseline, over the rates or at the best one; None where none does."""
    best = {_key(row): row for row in _rows(found, "best rate")}
    pairs = [(row, best.get(_key(row))) for row in _rows(found, "recipe")]
    pairs = [pair for pair in pairs if any(row and row["verdict"] != "not separated" for row in pair)]
    if not pairs:
        return None
    table = Table((f"loss − {pairs[0][0]['versus']}'s, nats", "layers", "warmup", "mean over rates", "best rates"))
    for pair in pairs:
        table.add(
            pair[0]["recipe"],
            str(pair[0]["n_layer"]),
            str(pair[0]["warmup"]),
            *(_difference(row) if row else "–" for row in pair),
        )
    return table


def _gains(found: pd.DataFrame) -> Table | None:
    """Recipes by depth, at the longest warmup; None where warmup wasn't compared with none."""
    rows = _rows(found, "warmup")
    if not rows:
        return None
    warmup = max(row["warmup"] for row in rows)
    gains = {(row["recipe"], row["n_layer"]): row for row in rows if row["warmup"] == warmup}
    depths = sorted({n_layer for _, n_layer in gains})
    heads = [plural(n_layer, "layer") for n_layer in depths]
    table = Table((f"what {warmup} steps\nof warmup gain, nats", *heads))
    for recipe in dict.fromkeys(recipe for recipe, _ in gains):
        cells = [gains.get((recipe, n_layer)) for n_layer in depths]
        table.add(recipe, *("–" if row is None else _bracketed(row) for row in cells))
    return table


def _bracketed(row: Mapping[Any, Any]) -> str:
    text = f"{signed(row['difference'], 3)}{_half(row)}"
    return f"({text})" if row["verdict"] == "not separated" else f"{text} "


def _difference(row: Mapping[Any, Any]) -> str:
    """`+0.619 ±0.213 worse`; n.s. is not separated, which has an interval around 0."""
    word = "n.s." if row["verdict"] == "not separated" else row["verdict"]
    return f"{signed(row['difference'], 3)}{_half(row)} {word}"


def _half(row: Mapping[Any, Any]) -> str:
    half = (row["high"] - row["low"]) / 2
    return f" ±{half:.3f}" if math.isfinite(half) else ""


def _closing(found: pd.DataFrame) -> str:
    """What the words and the intervals mean, as short as it can be said."""
    text = (
        "regret: mean over the rates of min(loss, ln V) − the best of any recipe at any rate, ± 95 % over seeds; a run "
        "that diverged counts as ln V; best rate and loss: with the longest warmup, ≤ ≥ at an end "
        "of the swept rates; stuck: not "
        f"{ESCAPE_MARGIN:g} nats below the loss of token frequencies; trains worse: regret {WORSE:g} or more above "
        "another's and separated from it (Holm over all pairs of a depth), of the runs with warmup where there are any"
    )
    families = len(found.loc[found["seeds"] > 1, list(FAMILY)].drop_duplicates())
    if families:
        text += (
            "; differences are paired over seeds, ± at Holm's level among the recipes of one depth and warmup "
            f"({plural(families, 'such group')}, each with a 5 % chance of a false verdict); n.s. and ( ): not "
            "separated from 0"
        )
    return f"{text}."


def _did(own: pd.DataFrame, outcome: str, depths: int) -> str:
    """`a is stuck at 4 and 16 layers`, `a and b are stuck at every depth`."""
    if own.empty:
        return ""
    one, several = _DID[outcome]
    found: dict[str, list[str]] = {}
    for recipe, rows in own.groupby("recipe", sort=False):
        found.setdefault(_layers(rows, depths), []).append(str(recipe))
    told = [f"{listed(names)} {one if len(names) == 1 else several} {at}" for at, names in found.items()]
    return ", ".join(told)


def _places(own: pd.DataFrame, depths: int) -> str:
    """`a at 4 and 16 layers and b at 16 layers`: every recipe with its depths."""
    told = [f"{recipe} {_layers(rows, depths)}" for recipe, rows in own.groupby("recipe", sort=False)]
    return listed(told, 4)


def _layers(rows: pd.DataFrame, depths: int) -> str:
    if len(rows) == depths > 1:
        return "at every depth"
    return f"at {listed([str(each) for each in rows['n_layer']], 6)} layers"


def _warmup_text(warmup: int) -> str:
    return f"warmup {warmup}" if warmup else "no warmup"


def _asked(row: Mapping[Any, Any]) -> str:
    if row["question"] == "warmup":
        return f"warmup {row['warmup']} for {row['recipe']} at {row['n_layer']} layers"
    return f"{row['recipe']} at {row['n_layer']} layers, {_warmup_text(row['warmup'])}"


def _key(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    return row["recipe"], row["n_layer"], row["warmup"]


def _rows(found: pd.DataFrame, question: str) -> list[dict[Any, Any]]:
    return found[found["question"] == question].to_dict("records")
