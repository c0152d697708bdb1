"""What the init code did twice, or to more than was meant: scalings, ties, rows, copies."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd

from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.drawing import NEEDS, differ, function, in_all
from initlab.judge.rules.drawn import draws_of, fault, in_parts, last_draws, patterns, said, writes_of
from initlab.judge.words import trimmed
from initlab.rundir import Run

_ALIKE = 0.01  # relative, of two factors
_ROWS = 3.0  # times the std of the rest of a matrix
_TOGETHER = ("normal", "cut normal", "uniform")


def measure_scaled(run: Run) -> pd.DataFrame:
    """Per matrix: its scalings after the last draw, and why they count twice."""
    rows = writes_of(run)
    if rows.empty:
        return rows
    last = last_draws(rows)
    last = last[(last["ndim"] >= 2) & (last["held"] == "parameter")]
    if last.empty:
        return pd.DataFrame()
    scalings = rows[(rows["replaced"] == 0) & rows["factor"].notna() & (rows["share"] >= 1)]
    scalings = scalings[~scalings["factor"].abs().between(1 - _ALIKE, 1 + _ALIKE)]
    by_name = dict(list(scalings.groupby(["run_id", "parameter"], observed=True)))
    ours = last[(last["by"] == "code") & last["distribution"].isin(_TOGETHER) & (last["std"] > 0)]
    usual = ours["std"].round(12).mode()
    twice = []
    for _, row in last.iterrows():
        own = by_name.get((row["run_id"], row["parameter"]), scalings.iloc[:0])
        own = own[own["order"] > row["order"]]
        twice.append(_twice(row, own, float(usual.iloc[0]) if len(usual) else math.nan))
    return last.assign(twice=twice)


def _twice(row: pd.Series, scalings: pd.DataFrame, usual: float) -> str:
    factors = list(scalings["factor"])
    for place, factor in enumerate(factors):
        for other in range(place):
            if math.isclose(factor, factors[other], rel_tol=_ALIKE):
                first, again = (_at(scalings, at) for at in (other, place))
                return f"is multiplied with {trimmed(factor)} by {first} and again by {again}"
    drawn = row["std"] / usual if row["by"] == "code" and usual > 0 and row["distribution"] in _TOGETHER else math.nan
    for place, factor in enumerate(factors):
        if factor < 1 and math.isclose(drawn, factor, rel_tol=_ALIKE):
            return (
                f"is drawn with the factor {trimmed(factor)} in its std at {said(row)}, and multiplied with it again "
                f"by {_at(scalings, place)}"
            )
    return ""


def _at(scalings: pd.DataFrame, place: int) -> str:
    return str(scalings.iloc[place]["where"])


@rule(
    code="DRW004",
    question="Init",
    measures="matrices that are multiplied twice with one factor after their draw, or drawn with it and multiplied",
    needs=NEEDS,
    unit="matrices",
    limit="0 matrices",
    basis="derived",
    why="A depth factor in the std of the draw and again in a loop over the output projections, or a loop that meets a "
    "tied or shared tensor by both of its names, makes branches √(2·n_layer) times too small.",
    advice="Scale it once.",
    false_alarms="Two different reasons for the same factor.",
    source="derived from the order of the writes",
    since="0.1.0",
    measure=measure_scaled,
)
def scaled_twice(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge the matrices with a factor that counts twice."""
    bad = rows[rows["twice"] != ""]
    if bad.empty:
        return case.passed(f"None of {len(rows)} matrices is scaled twice", measured=0.0)
    first = bad.iloc[0]
    return fault(
        case,
        f"{first['parameter']} {first['twice']}{in_all(bad)}",
        bad,
        advice=f"take one of the two factors of {patterns(bad)} away",
    )


def measure_tied(run: Run) -> pd.DataFrame:
    """Per matrix: the name that it was tied to while the model was made, and different draws of a tied one."""
    rows = writes_of(run)
    if rows.empty:
        return rows
    rows = rows[(rows["held"] == "parameter") & (rows["ndim"] >= 2) & (rows["state"] != "unheard")]
    if rows.empty:
        return pd.DataFrame()
    last = rows.drop_duplicates(["run_id", "parameter"], keep="last")
    ours = draws_of(rows)
    ours = ours[(ours["by"] == "code") & (ours["tied"] != "") & (ours["made"] == 0)]
    both = {}
    for key, group in ours.groupby(["run_id", "parameter"], observed=True):
        end = group.iloc[-1]
        # by one function, as it comes to either module; else one init ran over another
        same = group.iloc[:-1][group["where"].iloc[:-1].map(function) == function(end["where"])]
        others = [row for _, row in same.iterrows() if differ(row, end)]
        if others:
            both[key] = f"is drawn at {said(others[-1])} and again, otherwise, at {said(end)}"
    keys = zip(last["run_id"], last["parameter"], strict=True)
    return last.assign(both=[both.get(key, "") for key in keys])


@rule(
    code="DRW005",
    question="Init",
    measures="matrices that were one tensor while the model was made and aren't in the end, and tied ones that one "
    "function of the code draws twice, by both of their names, with different distributions",
    needs=NEEDS,
    unit="matrices",
    limit="0 matrices",
    basis="derived",
    why="to_empty gives each name memory of its own, and a new nn.Parameter under one name leaves the other behind. "
    "Drawn by both names, a tied matrix has the distribution of whichever came last.",
    advice="Tie after the last step that replaces parameters, and draw a tied matrix once.",
    false_alarms="A tie that is undone on purpose.",
    source="allenai/OLMo-core#686, huggingface/transformers#43429",
    since="0.1.0",
    measure=measure_tied,
)
def tie_broken(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge ties that were lost before ties that were drawn twice."""
    lost, both = rows[rows["untied"].fillna("") != ""], rows[rows["both"] != ""]
    if lost.empty and both.empty:
        return case.passed(f"None of {len(rows)} matrices loses a tie, or is drawn by two names", measured=0.0)
    if len(lost):
        first = lost.iloc[0]
        at = f", drawn at {said(first)}" if pd.notna(first["order"]) else ""
        text = f"{first['parameter']} was one tensor with {first['untied']} and has one of its own in the end{at}"
        advice = f"tie {first['parameter']} and {first['untied']} again, as the last step"
    else:
        first = both.iloc[0]
        text = f"{first['parameter']} = {first['tied']} {first['both']}"
        advice = f"draw {first['parameter']} once, and leave {first['tied']} out"
    shown = lost if len(lost) else both
    return fault(
        case,
        text,
        shown,
        advice=advice,
    )


def measure_rows(run: Run) -> pd.DataFrame:
    """Per write of a part of a matrix after its last draw: std ÷ std of the rest."""
    rows = writes_of(run)
    if rows.empty:
        return rows
    last = last_draws(rows)
    last = last[(last["ndim"] >= 2) & last["distribution"].isin(_TOGETHER) & (last["std"] > 0)]
    if last.empty:
        return pd.DataFrame()
    parts = rows[(rows["replaced"] == 0) & rows["factor"].isna() & (rows["share"] < 0.5)]
    parts = parts[parts["distribution"].isin(_TOGETHER) & (parts["std"] > 0)]
    again = in_parts(rows)  # of these nothing is left of the whole draw
    pairs = zip(parts["run_id"].astype(str), parts["parameter"].astype(str), strict=True)
    parts = parts[np.array([pair not in again for pair in pairs], bool)]
    ends = last[["run_id", "parameter", "order", "std", "text", "where"]]
    both = last.merge(parts, on=["run_id", "parameter"], how="left", suffixes=("", "_part"))
    both = both[both["order_part"].isna() | (both["order_part"] > both["order"])]
    found = both.assign(ratio=both["std_part"] / both["std"])
    return found if len(found) else ends.assign(recipe=last["recipe"], pattern=last["pattern"], ratio=np.nan)


@rule(
    code="DRW006",
    question="Init",
    measures="std with which less than half of a matrix is drawn after the whole ÷ std of the whole",
    needs=NEEDS,
    limits={"factor": _ROWS},
    unit="× the rest of the matrix",
    limit="within ×{factor}",
    basis="heuristic",
    why="Tokens that are added to a vocabulary, or a few rows that another line draws, at torch.randn's std of 1 "
    "in a table of 0.02: those tokens' embeddings and logits are fifty times the others'.",
    advice="Draw them with the std of the rest.",
    false_alarms="Parts of a fused matrix that are scaled apart on purpose, by more than the limit.",
    source="Open-dLLM#8",
    since="0.1.0",
    measure=measure_rows,
)
def rows_drawn_otherwise(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge the part farthest from its matrix."""
    off = np.log(rows["ratio"].astype(float)).abs()
    bad = rows[off > math.log(case.limits["factor"])]
    if bad.empty:
        return case.passed("No part of a matrix is drawn otherwise than the rest of it")
    worst = bad.loc[off[bad.index].idxmax()]
    part = worst.rename(lambda name: name.removesuffix("_part") if name.endswith("_part") else f"{name}_whole")
    part["by"] = "code"
    return fault(
        case,
        f"{worst['share_part']:.1%} of {worst['parameter']} is drawn as {worst['text_part']} at {said(part)}, "
        f"{trimmed(float(worst['ratio']), 2)}× the std of the rest, {worst['text']}, drawn at "
        f"{str(worst['where']).rpartition(' ')[0]}",
        bad,
        measured=float(worst["ratio"]),
        effect=float(off[bad.index].max()),
        advice=f"draw that part of {worst['parameter']} with std {trimmed(float(worst['std']))}",
    )


def measure_depth_on_all(run: Run) -> pd.DataFrame:
    """Per pattern of matrices in the blocks that one line draws with others outside: ln(std ratio · √(c·n_layer))."""
    last = last_draws(writes_of(run))
    if last.empty:
        return last
    last = last[(last["ndim"] == 2) & (last["by"] == "code") & last["distribution"].isin(_TOGETHER) & (last["std"] > 0)]
    if last.empty:
        return pd.DataFrame()
    shape = last["shape"].str.split("×")
    # what is scaled by fan_in is compared as if it had the other's
    last = last.assign(
        fan=shape.str[-1].astype(float),
        block=[match.group(2) if (match := re.match(r"^(.*?\.)?(\d+)\.", name)) else "" for name in last["parameter"]],
    )
    found = []
    for (run_id, where), group in last.groupby(["run_id", "where"], observed=True):
        outside, inside = group[group["block"] == ""], group[group["block"] != ""]
        depth = inside["block"].nunique()
        if outside.empty or depth < 2 or inside["pattern"].nunique() < 3:
            continue
        for by_fan in (0.0, 0.5):
            scaled = outside["std"] * outside["fan"] ** by_fan
            ratio = (inside["std"] * inside["fan"] ** by_fan) / scaled.iloc[0]
            for count in (1.0, 2.0):
                off = (ratio * math.sqrt(count * depth)).map(math.log).abs().max()
                found.append((run_id, where, off, count, depth, outside.iloc[0], inside))
    if not found:
        return pd.DataFrame()
    best = min(found, key=lambda each: each[2])
    inside = best[6]
    return inside.assign(off=best[2], count=best[3], depth=best[4], beside=best[5]["parameter"], n=len(inside))


@rule(
    code="DRW007",
    question="Init",
    measures="std of every matrix in the blocks ÷ std of one outside that the same line draws, as a factor of "
    "1/√n_layer or 1/√(2·n_layer), taken by fan_in or not",
    needs=NEEDS,
    limits={"close": _ALIKE},
    unit="|ln(factor)|",
    limit="> {close}",
    basis="reference-code",
    why="1/√(2·n_layer) is for the matrices that write into the residual stream. On queries, keys and what an MLP "
    "reads, it makes scores flat and activations small.",
    advice="Scale the output projections alone.",
    false_alarms="A std that is 1/√(2·n_layer) of another one's by chance, to a hundredth.",
    source="facebookresearch/lingua#39",
    since="0.1.0",
    measure=measure_depth_on_all,
)
def depth_factor_on_all(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge whether every matrix of the blocks has the factor."""
    first = rows.iloc[0]
    off = float(first["off"])
    if off > case.limits["close"]:
        return case.passed("Not every matrix of the blocks is scaled by depth", measured=off)
    root = "√n_layer" if first["count"] == 1 else "√(2·n_layer)"
    return fault(
        case,
        f"All {len(rows)} matrices of the blocks are drawn with 1/{root} of the scale of {first['beside']}, those that "
        f"read the stream too, at {said(first)}: {patterns(rows)}",
        rows,
        measured=off,
        effect=0.5 * math.log(float(first["count"]) * float(first["depth"])),
        advice=f"divide by {root} for the output projections alone, at {str(first['where']).rpartition(' ')[0]}",
    )


def measure_copies(run: Run) -> pd.DataFrame:
    """Per matrix that was drawn at random: the one that it is a copy of, if any."""
    last = last_draws(writes_of(run))
    return last[(last["ndim"] >= 2) & (last["std"] > 0)] if len(last) else pd.DataFrame()


@rule(
    code="DRW008",
    question="Init",
    measures="matrices with the very numbers of another one's draw, as copy.deepcopy leaves them",
    needs=NEEDS,
    unit="matrices",
    limit="0 matrices",
    basis="derived",
    why="Layers that are cloned from one and not drawn again begin identical. torch.nn.TransformerEncoder does this "
    "with the layer that it is given, and its documentation says to draw again.",
    advice="Draw each copy again.",
    false_alarms="Copies that are meant: a target network, weights that are shared at the start.",
    source="torch.nn.TransformerEncoder's documentation",
    since="0.1.0",
    measure=measure_copies,
)
def identical_copies(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge matrices that are copies of others."""
    bad = rows[rows["copied"].fillna("") != ""]
    if bad.empty:
        return case.passed(f"Each of {len(rows)} matrices has a draw of its own", measured=0.0)
    first = bad.iloc[0]
    return fault(
        case,
        f"{first['parameter']} is a copy of {first['copied']}, drawn once at {said(first)}{in_all(bad)}",
        bad,
        advice=f"draw {patterns(bad)} again after copying",
    )
