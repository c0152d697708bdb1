"""How what the blocks write depends on how many blocks there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from initlab.judge.matching import REFERENCES, best_recipes, narrowed, unscaled
from initlab.judge.remedies import scale_outputs
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import in_block, normed_writes, table_of
from initlab.judge.words import listed, trimmed
from initlab.recipes import Role
from initlab.recipes.base import OUTPUTS, VECTORS
from initlab.rundir import Run

# what each branch writes, and what enters its last projection
BRANCHES = {"attn_out": "attn_z", "mlp_out": "mlp_act"}


def depth_exponents(records: pd.DataFrame) -> pd.DataFrame:
    """Exponent of branch-write variance over n_layer: var ∝ n_layer^slope.

    One row per recipe, width and branch (attn_out, mlp_out) that was measured at two depths or more and writes
    something: slope, its standard error, n points; a point is the mean over the blocks of one cell at step 0. Least
    squares on logs, seed by seed: the slope is the mean over seeds and its error their scatter (NaN for one seed).
    `gain` and `gain_stderr` are the same of the write per mean square of what enters the branch's last projection:
    it leaves out that positions grow more alike with depth, so that attention averages less away. Where that isn't on
    record, it is by the projection's own weights, unless the write itself falls faster (a multiplier in the forward).
    """
    rows = []
    for (recipe, n_embd, site), group in writes(records).groupby(["recipe", "n_embd", "site"], observed=True):
        group = group[(group["var"] > 0) & (group["var"] < math.inf)]  # zero projections, or an overflow
        if group["n_layer"].nunique() < 2:
            continue
        slope, stderr = _slope(group, "var")
        gain, gain_stderr = _gain(group)
        rows.append((recipe, n_embd, site, slope, stderr, len(group), gain, gain_stderr))
    columns = ["recipe", "n_embd", "site", "slope", "stderr", "n", "gain", "gain_stderr"]
    return pd.DataFrame(rows, columns=columns)


def writes(records: pd.DataFrame) -> pd.DataFrame:
    """Mean over the blocks, at step 0, of what each branch writes (var) and of that per input (gain).

    Columns recipe, n_embd, site, n_layer, seed, var, gain, by_weights: gain is what the branch's projection makes of
    inputs of mean square 1, since those it had aren't on record. It is var where its weights aren't known either.
    """
    rows = records[(records["kind"] == "activation") & (records["step"] == 0)]
    keys = ["recipe", "n_embd", "site", "n_layer", "seed"]
    found = rows[rows["site"].isin([*BRANCHES, *BRANCHES.values()])]
    found = found.assign(square=found["rms"] ** 2).groupby(keys, observed=True)[["var", "square"]].mean().reset_index()
    out = found[found["site"].isin(BRANCHES)].copy()
    inputs = found[["recipe", "n_embd", "site", "n_layer", "seed", "square"]]
    out["source"] = out["site"].map(BRANCHES).astype(str)
    merged = out.merge(
        inputs.rename(columns={"site": "source", "square": "entering"}).astype({"source": str}),
        on=["recipe", "n_embd", "source", "n_layer", "seed"],
        how="left",
    )
    weights = records[(records["kind"] == "weight") & (records["step"] == 0) & records["role"].isin(list(BRANCHES))]
    per_unit = weights["rms"] ** 2 * weights["numel"] / weights["n_embd"].where(weights["n_embd"] > 0)  # times fan_in
    projected = weights.assign(site=weights["role"], projected=per_unit).astype({"site": str, "recipe": str})
    projected = projected.groupby(keys, observed=True)["projected"].mean().reset_index()
    merged = merged.astype({"site": str, "recipe": str}).merge(projected, on=keys, how="left")
    known = merged["entering"] > 0
    merged["by_weights"] = ~known & (merged["projected"] > 0)
    gain = (merged["var"] / merged["entering"]).where(known, merged["var"])
    merged["gain"] = gain.where(~merged["by_weights"], merged["projected"])
    return merged[[*keys, "var", "gain", "by_weights"]]


def _gain(group: pd.DataFrame) -> tuple[float, float]:
    gain = _slope(group, "gain")
    return min(gain, _slope(group, "var")) if group["by_weights"].any() else gain


def _slope(group: pd.DataFrame, column: str) -> tuple[float, float]:
    slopes = [
        float(np.polyfit(np.log(rows["n_layer"].to_numpy(float)), np.log(rows[column].to_numpy(float)), 1)[0])
        for _, rows in group.groupby("seed")
        if rows["n_layer"].nunique() > 1
    ]
    if not slopes:  # no seed has two depths, as in an interrupted sweep
        x, y = np.log(group["n_layer"].to_numpy(float)), np.log(group[column].to_numpy(float))
        return float(np.polyfit(x, y, 1)[0]), math.nan
    error = float(np.std(slopes, ddof=1) / math.sqrt(len(slopes))) if len(slopes) > 1 else math.nan
    return float(np.mean(slopes)), error


def measure_unscaled(run: Run) -> pd.DataFrame:
    """`writes`, with the embedding's variance and the projections' std at each size, and the branches' fits."""
    normed, rows = set(normed_writes(run)["recipe"]), table_of(run, "records")
    rows = rows[~rows.among("recipe", normed)]
    if len(set(zip(rows["n_layer"].tolist(), rows["n_embd"].tolist(), strict=True))) < 2:  # no exponent of one depth
        return pd.DataFrame()
    records = run.tables.records
    records = records[~records["recipe"].isin(normed)]
    found = writes(records)
    sizes = ["recipe", "n_embd", "n_layer"]
    embed = records[(records["site"] == "embed") & (records["kind"] == "activation")]
    start = embed.groupby(["recipe", "n_embd"], observed=True)["var"].mean().rename("embed").reset_index()
    projections = records[(records["kind"] == "weight") & records["role"].isin(list(BRANCHES))]
    drawn = projections.groupby([*sizes, "role"], observed=True).agg(
        drawn=("std", "mean"), parameter=("module", "first")
    )
    fits = depth_exponents(records)[["recipe", "n_embd", "site", "gain", "gain_stderr"]]
    fits = fits.rename(columns={"gain": "slope", "gain_stderr": "stderr"})
    text = {"recipe": str, "site": str}
    out = found.astype(text).merge(start.astype({"recipe": str}), on=["recipe", "n_embd"], how="left")
    out = out.merge(
        drawn.reset_index().rename(columns={"role": "site"}).astype(text),
        on=["recipe", "n_embd", "n_layer", "site"],
        how="left",
    )
    out["several"] = found["n_embd"].nunique() > 1
    return out.merge(fits.astype(text), on=["recipe", "n_embd", "site"], how="left")


@rule(
    code="RES001",
    question="Depth",
    measures="slope of ln(mean over blocks of var(write) / mean square entering its projection) on ln(n_layer), of "
    "attention and of MLP",
    needs="two depths or more (--depths 4,8,16), and branches without a norm behind them",
    limits={"exponent": -0.5, "share": 1.0, "vanishing": -2.5},
    unit="exponent of n_layer",
    limit="exponent ≤ {exponent}, or writes that sum to at most {share}× the embedding's variance; ≥ {vanishing}",
    basis="derived",
    why="Each block adds variance to the residual stream. With 1/√(2·n_layer) on both output projections the sum over "
    "the blocks is the same at every depth (exponent -1); without it the stream, and the gradient on the way back, "
    "grow with every block (exponent 0). -0.5 is half way. Measured per input, since what attention hands to its "
    "projection also grows with the correlation between positions; where that isn't on record, by the weights. "
    "Published models go down to -2 (1/n_layer in std: GPT-NeoX's wang_init, CompleteP's multiplier); below it a "
    "factor is there twice.",
    advice="Divide the std of both output projections, attention's and the MLP's, by √(2·n_layer).",
    false_alarms="Models that scale the branch in the forward pass (LayerScale, ReZero, residual multipliers) write "
    "scaled values anyway and pass. Unscaled models train: the measured cost with warmup is 0.004, 0.044 and 0.085 "
    "nats at 6, 24 and 48 layers of width 128, hence a warning.",
    source="Radford et al. 2019, section 2.3; nanoGPT model.py@3adf61e lines 143-145",
    since="0.1.0",
    by=("recipe", "n_embd"),
    evidence="depth",
    remedy=scale_outputs,
    roles=OUTPUTS,
    measure=measure_unscaled,
)
def unscaled_branch_writes(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge one recipe at one width."""
    where = f" at n_embd {int(rows['n_embd'].iloc[0])}" if rows["several"].iloc[0] else ""
    if rows["n_layer"].nunique() < 2:
        return case.not_applicable(f"Needs {case.rule.needs}")
    fits = rows.drop_duplicates("site").set_index("site").dropna(subset="slope")
    if fits.empty:
        return case.passed(f"The branches write nothing{where}, so nothing grows with depth")
    limit, most = case.limits["exponent"], case.limits["share"]
    worst = str(fits["slope"].idxmax())
    slope, stderr = float(fits.loc[worst, "slope"]), float(fits.loc[worst, "stderr"])
    deepest = int(rows["n_layer"].max())
    at_depth = rows[rows["n_layer"] == deepest]
    total = at_depth.groupby("site")["var"].mean() * deepest
    unscaled = [str(site) for site in fits.index if fits.loc[site, "slope"] > limit]
    share = float(total[unscaled].sum()) / float(rows["embed"].iloc[0]) if unscaled else 0.0
    common: dict[str, Any] = {"measured": slope, "uncertainty": stderr, "site": worst}
    names = {"attn_out": "attention", "mlp_out": "MLP"}
    text = " and ".join(
        f"{names[str(site)]} ∝ n_layer^{round(fits.loc[site, 'slope'], 2) + 0.0:+.2f}" for site in fits.index
    )
    text = f"Per input, blocks write{where}: {text}"
    # a sum of writes below the embedding's own variance leaves the stream's scale to the embedding
    if share <= most:
        if unscaled:
            common["unit"] = f"{case.rule.unit}; the writes stay at {trimmed(share, 2)}× the embedding"
        if (least := _vanishing(fits, case.limits["vanishing"])) is not None:
            return _twice(case, rows, least, text)
        return case.passed(text, **common)
    failing = rows[rows["site"].isin(unscaled)]
    by_seed = [
        max(_gain(own[own["site"] == site])[0] for site in unscaled) > limit
        for _, own in failing.groupby("seed")
        if own["n_layer"].nunique() > 1
    ]
    return case.failed(
        f"{text} (∝ n_layer^-1 when scaled). At {deepest} layers the unscaled writes sum to {trimmed(share)}× the "
        f"embedding's variance; twice the depth makes that {trimmed(2 ** (1 + slope), 2)} times as much",
        severity="warning",
        seeds_failing=sum(by_seed),
        seeds_total=len(by_seed),
        effect=math.log(share / most),
        advice=_advice(rows, unscaled, slope),
        **common,
    )


def _vanishing(fits: pd.DataFrame, limit: float) -> pd.Series | None:
    """The branch whose writes fall fastest, where that is beyond the limit by two standard errors."""
    beyond = fits[fits["slope"] + 2 * fits["stderr"].fillna(0.0) < limit]
    return None if beyond.empty else beyond.loc[beyond["slope"].idxmin()]


def _twice(case: Case, rows: pd.DataFrame, least: pd.Series, text: str) -> Finding:
    """A note: with warmup, branches that start at zero train as well as scaled ones."""
    site, slope = str(least.name), float(least["slope"])
    each = [own for _, own in rows[rows["site"] == site].groupby("seed") if own["n_layer"].nunique() > 1]
    seeds = [_gain(own)[0] < case.limits["vanishing"] for own in each]
    return case.failed(
        f"{text}: a write that vanishes with depth, by 1/√n_layer more than once",
        severity="info",
        seeds_failing=sum(seeds),
        seeds_total=len(seeds),
        effect=case.limits["vanishing"] - slope,
        measured=slope,
        uncertainty=float(least["stderr"]),
        site=site,
        advice="divide the branch by the depth once: in the std of its output projection, or in the forward",
    )


def _advice(rows: pd.DataFrame, unscaled: list[str], gain: float) -> str:
    nameless = {"attn_out": "attention's output projection", "mlp_out": "the MLP's output projection"}
    named = rows.dropna(subset="parameter").groupby("site")["parameter"].first().map(in_block)
    n_layer = int(rows["n_layer"].max())
    stds = rows.groupby(["site", "n_layer"])["drawn"].mean()
    drawn = {site: own for site in unscaled if len(own := stds[site].dropna()) and (own > 0).all()}
    which = " and ".join(named.get(site, nameless[site]) for site in unscaled)
    goes = {site: _power(own) for site, own in drawn.items() if own.index.nunique() > 1}
    if goes and max(goes.values()) <= -0.4:  # nearly the -0.5 that they should have
        return f"the std of {which} falls with depth as it should: look for a factor in the forward, or a norm left out"
    if goes and max(map(abs, goes.values())) > 0.25:
        return f"make the std of {which} fall as 1/√n_layer; now it goes as {_powers(goes)}"
    if not goes and abs(gain) > 0.5:
        return f"make the std of {which} fall as 1/√n_layer; its writes' variance goes as n_layer^{gain:+.2f}"
    deepest = [float(own[n_layer]) for own in drawn.values() if n_layer in own.index]
    texts = [f"{trimmed(std)} → {trimmed(std / math.sqrt(2 * n_layer), 2)}" for std in deepest]
    values = f": at {n_layer} layers {', '.join(dict.fromkeys(texts))}" if texts else ""
    rest = f"; it goes as {_powers(goes)}, so the rest of the growth isn't of the weights" if abs(gain) > 0.5 else ""
    return f"divide the std of {which} by √(2·n_layer){values}{rest}"


def _power(stds: pd.Series) -> float:
    """Exponent of n_layer, of std by depth."""
    return float(np.polyfit(np.log(stds.index.to_numpy(float)), np.log(stds.to_numpy(float)), 1)[0])


def _powers(goes: dict[str, float]) -> str:
    return " and ".join(dict.fromkeys(f"n_layer^{round(each, 2) + 0.0:+.2f}" for each in goes.values()))


def unscaled_outputs(rows: Sequence[dict[str, Any]], growth: float) -> Finding | None:
    """Judge RES001 on a single depth: output projections as wide as the others', in a stream that the blocks dominate.

    RES001 fits an exponent over depths: variance of the writes ∝ n_layer^-1 when scaled, ^0 when not, and fails above
    half way, -0.5. On one model the same half way is a squared ratio of std, output to input, of 1/√(2·n_layer),
    between 1 and 1/(2·n_layer). As in RES001, writes that sum to less than the embedding's own variance are no matter,
    unless the model's own code says that they are scaled.

    A warning; a note (`info`) on a model without learned positions that is nearest to a published recipe which draws
    its outputs so (Llama and its like are published with outputs at 0.02, GPT-2 and its like with scaled ones; what
    doesn't fit the recipe elsewhere says nothing of the outputs), and on one whose other matrices don't all fit a
    recipe that scales, as T5: nothing then says that scaled outputs were meant.

    Args:
        rows: of `drawing.describe`, compared with `matching.REFERENCES`.
        growth: what the blocks add to the stream's variance, in units of the embedding's; NaN where there is no stream.
    """
    found = [row for row, names in unscaled(rows) if names]
    code = found[0]["depth_code"] if found else ""
    if not found or not (code or growth > 1):
        return None
    roles, n_layer = " and ".join(dict.fromkeys(row["role"] for row in found)), found[0]["n_layer"]
    called = listed(list(dict.fromkeys(in_block(name) for row, names in unscaled(rows) for name in names)))
    stds = ", ".join(dict.fromkeys(f"{trimmed(row['std_max'], 2)}" for row in found))
    published = "" if code or any(row["role"] == Role.POS_EMBED for row in rows) else _published(rows)
    meant = code or (not published and _scaling_meant(rows))
    verb = "aren't" if " and " in roles else "isn't"
    message = f"{roles} (std {stds}) {verb} depth-scaled at {n_layer} layers"
    message += f", though {code} says so" if code else ""
    if not math.isnan(growth):
        message += f", as {published} draws them" if published else ""
        message += f"; the blocks add {trimmed(growth)}× the embedding's variance to the stream"
    case = Case(rule=unscaled_branch_writes, recipe="", limits=unscaled_branch_writes.limits)
    return case.failed(
        message,
        severity="warning" if meant else "info",
        site=found[0]["role"],
        measured=growth,
        unit="× the embedding's variance",
        limit=f"std² of outputs ≤ that of inputs / √(2·{n_layer}), or an added variance ≤ the embedding's",
        effect=math.log(growth) if growth > 0 else 0.0,
        advice=f"divide the std of {called} by √(2·{n_layer})"
        + ("" if meant else ", as recipe='megatron' does, if your depth calls for it"),
    )


def _published(rows: Sequence[dict[str, Any]]) -> str:
    """The recipe nearest to the model, where it draws the unscaled outputs as they are, but for single ones."""
    for recipe in best_recipes(narrowed(rows))[0]:
        fits = []
        for row, names in unscaled(rows):
            off = set(row["expected"].get(recipe, {"misfits": names})["misfits"])
            fits.append(not names or 3 * len(off & set(names)) <= len(names))
        if all(fits):
            return recipe
    return ""


def _scaling_meant(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether all matrices but the outputs fit one recipe that scales these by depth; single ones may be odd."""
    matrices = [row for row in rows if row["expected"] and row["role"] not in VECTORS]
    inputs = [row for row in matrices if row["role"] not in OUTPUTS]

    def fits(row: dict[str, Any], recipe: str) -> bool:
        return 3 * len(row["expected"].get(recipe, {"misfits": row["stds"]})["misfits"]) <= len(row["stds"])

    return any(
        all(fits(row, recipe) for row in inputs)
        and any("layer" in row["expected"][recipe]["text"] for row in matrices if recipe in row["expected"])
        for recipe in REFERENCES
    )
