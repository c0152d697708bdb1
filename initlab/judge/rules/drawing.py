"""Whether the init code did what it was meant to: what was never drawn, left out, or drawn over."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd

from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.drawn import draws_of, fault, in_parts, last_draws, patterns, said, writes_of
from initlab.judge.words import plural
from initlab.rundir import Run

NEEDS = "a model made while it is traced: initlab.probe(function), initlab.trace_init(function), file.py:function"
_WIDER = 2.0  # times as many parameters: a line that draws over others is a general one
_FEW = 3  # lines whose draws are lost, at the most, for one of them to be a special init
_FAR = 3.0  # times the std that the code draws for the class
_PLAIN = ("normal", "cut normal", "uniform", "constant")
_ALIKE = 0.01  # relative, of two stds


def measure_unset(run: Run) -> pd.DataFrame:
    """Per parameter and buffer: the share that nothing wrote, whether it is on meta, and what was lost before."""
    rows = writes_of(run)
    if rows.empty:
        return rows
    rows = rows[rows["state"] != "unheard"]
    if rows.empty:
        return pd.DataFrame()
    last = rows.drop_duplicates(["run_id", "parameter"], keep="last")
    old = rows[rows["replaced"] == 1].drop_duplicates(["run_id", "parameter"], keep="last")
    lost = {(row["run_id"], row["parameter"]): said(row) for _, row in old.iterrows()}
    keys = zip(last["run_id"], last["parameter"], strict=True)
    written = (last["distribution"] == "constant") & last["mean"].isna() & last["order"].notna()
    return last.assign(
        lost=[lost.get(key, "") for key in keys],
        written=[said(row) if nan else "" for (_, row), nan in zip(last.iterrows(), written, strict=True)],
    )


@rule(
    code="DRW001",
    question="Init",
    measures="share of each parameter and buffer that no line of the code wrote while the model was made",
    needs=NEEDS,
    limits={"most": 0.0},
    unit="share",
    limit="≤ {most}",
    basis="derived",
    why="torch.empty and to_empty give whatever the memory held: zeros on one machine, 1e30 or NaN on the next. What "
    "is made on the meta device loses its init when it gets memory.",
    advice="Write the parameter in the init code, after it has its memory.",
    false_alarms="Memory that a checkpoint fills afterwards; caches registered as buffers are only warned of.",
    source="karpathy/nanochat#686, mosaicml/llm-foundry#1745",
    since="0.1.0",
    measure=measure_unset,
)
def never_drawn(case: Case, rows: pd.DataFrame) -> Finding:
    """Name what is uninitialised, parameters before buffers."""
    meta = rows[rows["state"] == "meta"]
    unset = rows[(rows["unset"] > case.limits["most"]) & (rows["state"] != "meta")]
    bad = pd.concat([meta, unset])
    if bad.empty:
        return case.passed(f"All {len(rows)} parameters and buffers were written", measured=0.0)
    parameters = bad[bad["held"] == "parameter"]
    shown = parameters if len(parameters) else bad
    first = shown.iloc[0]
    if first["state"] == "meta":
        text, advice = "is still on the meta device: it has a shape and no weights", "call to_empty and then the init"
    elif first["written"]:
        text, advice = f"is written as NaN at {first['written']}", "write what was meant"
    elif first["unset"] < 1:
        text, advice = f"is uninitialised memory to {first['unset']:.0%}", "draw the whole tensor"
    elif first["lost"]:
        text = f"is uninitialised memory: what {first['lost']} drew was lost when the tensor was replaced (to_empty)"
        advice = "draw it again afterwards"
    else:
        text, advice = "is uninitialised memory: no line of the code writes it", "write it in the init code"
    names = patterns(shown)
    several = "" if len(shown) == 1 else f"; {plural(len(shown), 'tensor')} of {len(rows)} are uninitialised: {names}"
    return fault(
        case,
        f"{first['parameter']} {text}{several}",
        shown,
        severity="error" if len(parameters) else "warning",
        measured=float(shown["unset"].max()),
        advice=f"{advice}: {names}",
    )


def measure_left(run: Run) -> pd.DataFrame:
    """Per matrix: its last draw, whether the code made it or torch, and how many of its class the code drew."""
    written = writes_of(run)
    if written.empty:
        return written
    rows, again = last_draws(written), in_parts(written)
    rows = rows[(rows["ndim"] >= 2) & ~rows["distribution"].isin(["given"])]
    if rows.empty:
        return pd.DataFrame()
    parted = [pair in again for pair in zip(rows["run_id"].astype(str), rows["parameter"].astype(str), strict=True)]
    ours = ((rows["by"] == "code") | np.array(parted, bool)).astype(float)
    parts = [rows["run_id"].astype(str), rows["holder"].astype(str)]
    alike = ours.groupby(parts).transform("mean")
    return rows.assign(ours=ours, alike=alike, drawn=ours.groupby(parts[0]).transform("mean"))


@rule(
    code="DRW002",
    question="Init",
    measures="share of the matrices, and of those of the same class of module, that the code draws, where it leaves "
    "some at torch's default",
    needs=NEEDS,
    limits={"share": 0.5},
    unit="share of the matrices that the code draws",
    limit="none left where more than {share} are drawn",
    basis="heuristic",
    why="A condition on names or classes that misses a few matrices leaves them at torch's default, whose std is "
    "1/√(3·fan_in) for nn.Linear and 1 for nn.Embedding.",
    advice="Draw it with the others.",
    false_alarms="Matrices that are left at the default on purpose; of a class that the code never draws, only a note.",
    source="huggingface/transformers#43847",
    since="0.1.0",
    measure=measure_left,
)
def left_at_default(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge matrices that are left where most aren't."""
    left = rows[rows["ours"] == 0]
    share = float(rows["ours"].mean())
    if left.empty or share <= case.limits["share"]:
        text = "The code draws every matrix" if left.empty else "Most matrices are at torch's default"
        return case.passed(text, measured=share)
    others = rows[rows["ours"] == 1]
    usual = others[others["where"] == others["where"].mode().iloc[0]].iloc[0]
    like = left[left["alike"] > case.limits["share"]]
    repeated = like.groupby("pattern")["parameter"].transform("size") > 1
    # one matrix of about the others' scale, often the head, is left by choice as often as by mistake
    like = like[repeated | ~(like["std"] / usual["std"]).between(1 / _FAR, _FAR)]
    shown = like if len(like) else left
    first = shown.iloc[0]
    return fault(
        case,
        f"{first['parameter']} stays at torch's default, {first['text']}, as {str(first['where']).rpartition(' ')[0]} "
        f"makes it; {len(others)} of {len(rows)} matrices are drawn by the code: {said(usual)}; "
        f"left: {patterns(shown)}",
        shown,
        severity="warning" if len(like) else "info",
        measured=share,
        advice=f"draw {patterns(shown)} with the others, at {str(usual['where']).rpartition(' ')[0]}",
    )


def measure_overwritten(run: Run) -> pd.DataFrame:
    """Per parameter: its last draw, and an earlier one by a narrower line that it drew over."""
    rows = writes_of(run)
    draws = draws_of(rows)
    if draws.empty:
        return pd.DataFrame()
    whole = rows[(rows["held"] == "parameter") & (rows["share"] >= 1) & rows["order"].notna()]
    reach = whole.groupby("where")["parameter"].nunique()
    last = last_draws(rows)
    before = whole[whole["by"] == "code"].merge(
        last[["run_id", "parameter", "order", "where", "by"]],
        on=["run_id", "parameter"],
        suffixes=("", "_last"),
    )
    before = before[before["order"] < before["order_last"]]
    at_last = last.set_index(["run_id", "parameter"])
    found: dict[tuple[str, str], pd.Series] = {}
    for _, row in before.iterrows():
        end = at_last.loc[(row["run_id"], row["parameter"])]
        wider = end["by"] == "default" or reach[end["where"]] >= _WIDER * reach[row["where"]]
        plain = end["distribution"] in _PLAIN and (row["distribution"] not in _PLAIN or _number(row, end))
        if differ(row, end) and _meant(row) and (wider or plain):
            found[(row["run_id"], row["parameter"])] = row
    keys = [(row["run_id"], row["parameter"]) for _, row in last.iterrows()]
    grades = _grades(whole, found, at_last)
    return last.assign(
        old=[said(found[key]) if key in found else "" for key in keys],
        old_text=[str(found[key]["text"]) if key in found else "" for key in keys],
        old_kind=[str(found[key]["distribution"]) if key in found else "" for key in keys],
        **{
            f"old_{name}": [float(found[key][name]) if key in found else np.nan for key in keys]
            for name in ("mean", "std", "order")
        },
        special=[grades.get(key, np.nan) for key in keys],
        new=[said(row) for _, row in last.iterrows()],
        reach=[int(reach.get(where, 0)) for where in last["where"]],
    )


@rule(
    code="DRW003",
    question="Init",
    measures="parameters whose draw by one line of the code is drawn over by a line that draws twice as many, or by "
    "torch's default, with another distribution",
    needs=NEEDS,
    unit="parameters",
    limit="0 parameters",
    basis="reference-code",
    why="A blanket init that runs last undoes what was set apart before it: adaLN-Zero's zeros, Mamba's dt bias, the "
    "scale of the output projections, an identity.",
    advice="Draw the special ones after the general init, or let it leave them out.",
    false_alarms="A submodule's init that the whole model's replaces on purpose: a note where neither is special.",
    source="SWivid/F5-TTS#793, athms/mad-lab#3, HazyResearch/zoology#32",
    since="0.1.0",
    measure=measure_overwritten,
)
def special_init_overwritten(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge the draws that were lost; special ones before others."""
    bad = rows[rows["special"].notna()].sort_values(["special", "ndim"], ascending=False, kind="stable")
    if bad.empty:
        return case.passed(f"None of {len(rows)} parameters loses a draw of its own", measured=0.0)
    first = bad.iloc[0]
    shown = bad[bad["special"] > 0] if first["special"] else bad
    general = "" if first["by"] == "default" else f", a line that draws {first['reach']} parameters"
    return fault(
        case,
        f"{first['parameter']} was {first['old_text']}, set at {first['old']}, and is drawn over as {first['text']} at "
        f"{first['new']}{general}{in_all(shown)}",
        shown,
        severity="warning" if first["special"] else "info",
        advice=f"let {first['old'].partition(' ')[0]} run after {first['new'].partition(' ')[0]}, or leave "
        f"{patterns(shown)} out of the general init",
    )


def differ(row: pd.Series, other: pd.Series) -> bool:
    """Whether two writes leave different distributions."""
    kinds = {str(row["distribution"]), str(other["distribution"])}
    if len(kinds) > 1 and not kinds <= {"normal", "cut normal"}:
        return True
    return not all(
        math.isclose(row[key], other[key], rel_tol=_ALIKE, abs_tol=1e-12)
        for key in ("mean", "std")
        if pd.notna(row[key]) and pd.notna(other[key])
    )


def _meant(row: pd.Series) -> bool:
    """Whether a write says more than that there is a tensor: zeros and N(0, 1) often stand for what comes later."""
    if not row["made"]:
        return True
    if row["distribution"] == "constant":
        return pd.notna(row["mean"]) and row["mean"] not in (0.0, 1.0)
    return row["distribution"] not in ("normal", "uniform", "given", "empty")


def _number(row: pd.Series, end: pd.Series) -> bool:
    """Whether one number that is no placeholder gives way to another, as it does where a tensor gets new memory."""
    return bool(row["distribution"] == end["distribution"] == "constant" and row["made"])


def _apart(whole: pd.DataFrame, found: dict[tuple[str, str], pd.Series]) -> set[str]:
    """Lines that draw one kind of matrix alone, where few of them lose; many are a module's own init of all it has."""
    lines = {str(row["where"]) for row in found.values()}
    kinds = whole[whole["where"].isin(lines)].groupby("where")["pattern"].nunique()
    return {str(where) for where in kinds[kinds == 1].index} if len(lines) <= _FEW else set()


def _grades(
    whole: pd.DataFrame, found: dict[tuple[str, str], pd.Series], ends: pd.DataFrame
) -> dict[tuple[str, str], float]:
    """Grade each lost draw: 2 where it was set apart; 1 where one function drew it with such; else 0."""
    apart = _apart(whole, found)
    by_depth = _by_depth(whole, found, ends)
    grades = {key: 2.0 * (key in by_depth or _special(row, ends.loc[key], apart)) for key, row in found.items()}
    over = {key: function(str(ends.loc[key, "where"])) for key in found}
    units = {key: (key[0], function(str(row["where"])), over[key]) for key, row in found.items()}
    broken = {units[key] for key, grade in grades.items() if grade}
    return {key: grade or float(units[key] in broken) for key, grade in grades.items()}


def _by_depth(whole: pd.DataFrame, found: dict[tuple[str, str], pd.Series], ends: pd.DataFrame) -> set[tuple[str, str]]:
    """Lost draws that one function made by a root of the depth smaller than others, taken by fan_in or not."""
    depth = len({match[0] for name in whole["parameter"].unique() if (match := re.match(r"(.*?\.)?\d+\.", name))})
    groups: dict[tuple[str, str], list[tuple[tuple[str, str], float, float, float]]] = {}
    for key, row in found.items():
        if row["ndim"] == 2 and row["distribution"] in _PLAIN and row["std"] > 0:
            fan = float(str(row["shape"]).rpartition("×")[2])
            group = groups.setdefault((key[0], function(str(row["where"]))), [])
            group.append((key, row["std"], fan, ends.loc[key, "std"]))
    roots = [math.sqrt(count * depth) for count in (1, 2)]
    smaller = set()
    for drawn in groups.values() if depth > 1 else ():
        for power in (0.0, 0.5):
            _, most, fan, end = max(drawn, key=lambda each: each[1] * each[2] ** power)
            for key, std, own_fan, own_end in drawn:
                by_fan = (fan / own_fan) ** power
                lost, kept = most / std * by_fan, end / own_end * by_fan if own_end > 0 else math.nan
                # what is drawn over by as many times as little keeps its factor
                if any(_close(lost, root) and not _close(kept, root) for root in roots):
                    smaller.add(key)
    return smaller


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_ALIKE)


def function(where: str) -> str:
    """Name the function of `file:line function`, without the line.

    Args:
        where: of a write.
    """
    return re.sub(r":\d+ ", " ", where)


def _special(row: pd.Series, end: pd.Series, apart: set[str]) -> bool:
    """Whether a draw was set apart: constants, computed values, an identity; or scaled down beside what replaces it."""
    if end["by"] == "default" or row["distribution"] not in ("normal", "cut normal", "uniform"):
        return True
    if row["where"] in apart:
        return True
    return pd.notna(row["factor"]) or (row["std"] < end["std"] and row["distribution"] == end["distribution"])


def in_all(rows: pd.DataFrame) -> str:
    return f"; in all {patterns(rows)}" if len(rows) > 1 else ""
