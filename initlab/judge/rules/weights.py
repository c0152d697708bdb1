"""Whether the weights were drawn as they were meant to be."""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pandas as pd

from initlab import wiring
from initlab.judge.remedies import Change, Described, redraw_what_is_off, scale_outputs, towards
from initlab.judge.rows import Rows, largest, middle
from initlab.judge.rules.base import RULES, Case, Finding, rule
from initlab.judge.rules.counting import CELL, MATRICES, blocks, family, recorded, rows_of, seeds, table_of
from initlab.judge.rules.trends import off_trend
from initlab.judge.words import listed, trimmed
from initlab.recipes.base import OUTPUTS
from initlab.rundir import Run

_ODD = 1.3  # times its siblings' std
_INNER = ("attn_qkv", "attn_q", "attn_k", "attn_v", "mlp_in", "mlp_gate")  # what no recipe scales by depth


def measure_not_applied(run: Run) -> Rows:
    """Std found ÷ std that the declared recipe draws, and that ratio's standard error, per parameter."""
    rows = recorded(run, "weight")
    rows = rows[~np.isnan(rows["expected_var"])]
    expected, found = np.sqrt(rows["expected_var"]), rows["std"]
    ratio = np.where(expected > 0, found / expected, np.where(found > 0, math.inf, 1.0))
    # The std of n normal draws scatters by 1/√(2n); constants (gains, zero biases) have none to scatter.
    return rows.assign(expected=expected, ratio=ratio, error=1 / np.sqrt(2 * rows["numel"]))


@rule(
    code="INI001",
    question="Init",
    measures="std of every parameter ÷ the std that the declared recipe draws for its role",
    needs="a declared recipe: --recipe NAME",
    limits={"slack": 0.05},
    unit="× declared std",
    limit="ratio within {slack} of 1, and 5 standard errors of the sample",
    basis="derived",
    why="Inits are lost silently: a condition on a parameter's name that never matches, a later module's default, a "
    "tie in the wrong order. Hugging Face shipped GPT-2 without its depth scaling in this way.",
    advice="Draw the named parameter as the recipe says.",
    false_alarms="Models that were trained for so few steps that their loss is still near ln V, and embeddings with a "
    "row of zeros for padding.",
    source="huggingface/transformers#47458",
    since="0.1.0",
    remedy=redraw_what_is_off,
    measure=measure_not_applied,
)
def init_not_applied(case: Case, rows: Rows) -> Finding:
    """Judge the parameter farthest from what it should have been drawn from."""
    limit = case.limits["slack"] + 5 * rows["error"]
    off = np.abs(np.log(np.where(rows["ratio"] > 0, rows["ratio"], 1e-300))) / limit
    bad, worst = rows[off > 1], rows[largest(off)]
    common = {"measured": float(worst["ratio"])}
    count = len(set(rows["module"]))
    if bad.empty:
        return case.passed(f"All {count} parameters have the std that {case.recipe} draws", **common)
    roles = list(dict.fromkeys(bad["role"]))
    return case.failed(
        f"{worst['module']} has std {trimmed(worst['std'])}, {case.recipe} draws {trimmed(worst['expected'])}; "
        f"{len(set(bad['module']))} of {count} parameters are off ({', '.join(roles)})",
        severity="error",
        site=str(worst["site"]),
        effect=float(min(np.nanmax(off), 1e6)),
        advice=f"draw {worst['module']} as the recipe says (initlab.apply_recipe(model, {case.recipe!r})), or name the "
        "recipe that was meant",
        **blocks(bad["layer"]),
        **seeds(off > 1, rows["seed"]),
        **common,
    )


def measure_unscaled_code(run: Run) -> pd.DataFrame:
    """Per output role of a model whose own code scales by depth: how far it is scaled, as an exponent of 2·n_layer.

    0 is unscaled, 0.5 is 1/√(2·n_layer), against the median std of the matrices that no recipe scales by depth.
    """
    code = str((run.manifest.get("init") or {}).get("depth_code") or "")
    if not code or (rows := rows_of(run, "weight")).empty:
        return pd.DataFrame()
    rows = rows[(rows["n_layer"] > 1) & (rows["std"] > 0) & np.isfinite(rows["std"])]
    inner = rows[rows["role"].isin(_INNER)].groupby("run_id", observed=True)["std"].median()
    found = rows[rows["role"].isin(OUTPUTS)].groupby([*CELL, "role"], observed=True)["std"].median().reset_index()
    found["inner"] = found["run_id"].map(inner).astype(float)
    found = found[found["inner"].notna()]
    exponent = -np.log(found["std"] / found["inner"]) / np.log(2.0 * found["n_layer"])
    known, total = (run.manifest.get("init") or {}).get("coverage") or (0, 0)
    outputs = rows[rows["role"].isin(OUTPUTS)]["module"].astype(str)
    lost = _lost(run, set(outputs))
    return found.assign(exponent=exponent, code=code, lost=lost, whole=float(known == total))


def _lost(run: Run, names: set[str]) -> str:
    """Which line draws over which, where the trace shows that these parameters' own draws were lost."""
    from initlab.judge.rules.drawing import measure_overwritten  # rules are listed in the order of their import

    rows = measure_overwritten(run)
    rows = rows[(rows["special"] > 0) & rows["parameter"].isin(names)] if len(rows) else rows
    if rows.empty:
        return ""
    first = rows.iloc[0]
    old, new = (str(first[name]).partition(" ")[0] for name in ("old", "new"))
    return f"let {old} run after {new}, which draws over what it drew (DRW003), or leave those out there"


@rule(
    code="INI002",
    question="Init",
    measures="-ln(std of the output projections / std of the other matrices) / ln(2·n_layer), of the branch that is "
    "scaled most, in a model whose own init code divides by a root of its depth",
    needs="a probed model whose init code scales by depth, with two blocks or more",
    limits={"exponent": 0.25},
    unit="exponent of 2·n_layer",
    limit="≥ {exponent}: half way between unscaled (0) and 1/√(2·n_layer) (0.5)",
    basis="reference-code",
    why="The code says what was meant, the weights say what happened. transformers 5.14 drew GPT-2 without the depth "
    "scaling of its own code; every model trained from it started with a residual stream that grows with depth.",
    advice="Find out why the scaling isn't reached, or draw the projections again.",
    false_alarms="Code that scales under a condition which this config doesn't meet. The code is looked for by a "
    "pattern in the source of the model's own classes: std, init and a root of n_layer in one line. One that names "
    "modules of the model, and no output projection among them, is about others, as a head or a connector.",
    source="huggingface/transformers#47458",
    since="0.1.0",
    remedy=scale_outputs,
    roles=OUTPUTS,
    measure=measure_unscaled_code,
)
def depth_scaling_lost(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge the branch that is scaled most: some codes scale attention's projection alone."""
    best = rows.loc[rows["exponent"].idxmax()]
    code, exponent, n_layer = str(best["code"]), float(best["exponent"]) + 0.0, int(best["n_layer"])
    roles = " and ".join(sorted(dict.fromkeys(rows["role"].astype(str))))
    if exponent >= case.limits["exponent"]:
        return case.passed(f"The output projections are depth-scaled, as {code} says", measured=exponent)
    wanted = float(best["inner"]) / math.sqrt(2 * n_layer)
    return case.failed(
        f"The output projections ({roles}) aren't depth-scaled, though {code} says so: std {trimmed(best['std'])}, "
        f"where {trimmed(best['inner'])}/√(2·{n_layer}) = {trimmed(wanted)} was meant",
        severity="error",
        site=str(best["role"]),
        measured=exponent,
        effect=case.limits["exponent"] - exponent,
        advice=str(best["lost"])
        or f"find out why {code} doesn't reach the projections (a name that never matches, a later init), or draw them "
        # a recipe draws whole models: of one with parameters of no known role only some
        f"again: initlab.{'apply_recipe(model, ' + repr('nanogpt') + ')' if best['whole'] else 'fix(model)'}",
        **seeds(rows["exponent"] < case.limits["exponent"], rows["seed"]),
    )


def measure_siblings(run: Run) -> Rows:
    """Per matrix inside the blocks: ln(std / trend of the same matrix in the other blocks), and its standard error."""
    rows = recorded(run, "weight")
    rows = rows[rows.among("role", MATRICES) & ~np.isnan(rows["layer"])]
    keys = [*CELL, "family", "numel", "layer"]
    rows = rows.assign(family=family(rows["module"]))
    means = rows.grouped(keys, square=("var", "mean"), module=("module", "first"))
    layers, stds = means["layer"], np.sqrt(means["square"])
    siblings = means.groups("run_id", "family", "numel")
    off, typical = np.zeros(len(means)), np.zeros(len(means))
    for at in siblings:
        three, numel = len(at) == 3, int(means["numel"][at[0]])
        off[at] = _odd_of_three(stds[at], numel) if three else off_trend(layers[at], stds[at])
        typical[at] = middle(stds[at])
    found = means.assign(std=stds, off=off, typical=typical, error=1 / np.sqrt(2.0 * means["numel"]))
    return found[[place for at in siblings for place in at]]


def _odd_of_three(stds: np.ndarray, numel: int) -> np.ndarray:
    """ln(std / that of the other two), of the one of three that is farthest from the middle; 0 of the others.

    A trend can't be fitted to two: only where they are alike within 5 standard errors does the third stand out.
    """
    out = np.zeros(3)
    if not (np.isfinite(stds).all() and (stds > 0).sum() >= 2):
        return out
    with np.errstate(divide="ignore"):
        off = np.log(stds) - np.log(np.median(stds))
    odd = int(np.abs(off).argmax())
    if np.abs(np.delete(off, odd)).max() <= 5 / np.sqrt(numel):
        out[odd] = off[odd]
    return out


def match_siblings(finding: Finding, model: Described) -> list[Change]:
    """Bring the odd matrix to the median std of the same matrix in the other blocks."""
    changes: list[Change] = []
    why = "the same matrix of the other blocks has it"
    for row in model.rows:
        families: dict[str, list[float]] = {}
        for name, std in row.get("stds", {}).items():
            families.setdefault(wiring.family(name), []).append(std)
        for name, std in row.get("stds", {}).items():
            usual = median(families[wiring.family(name)])
            if usual > 0 and not usual / _ODD <= std <= usual * _ODD:
                changes += towards(row | {"std": std, "stds": {name: std}}, usual, finding, why, model)
    return changes


@rule(
    code="INI003",
    question="Init",
    measures="std of a matrix ÷ a power law of the block's number, fitted robustly to the same matrix of all blocks",
    needs="weights of three blocks or more whose roles are known",
    limits={"factor": _ODD},
    unit="× its siblings",
    limit="within ×{factor} and 5 standard errors of the sample",
    basis="heuristic",
    why="One matrix at its framework's default, or scaled twice, among siblings that follow a recipe is a slip: a "
    "block added later, a name that one condition misses.",
    advice="Draw the matrix as in the other blocks.",
    false_alarms="Blocks of two kinds in irregular order, or in turn where there are three. Inits that follow the "
    "block's number by a power law (Mitchell's 1/√(l+1)) fit the trend; two kinds of blocks in turn leave no single "
    "one standing out.",
    source="1.3 is above every layer-indexed init in the catalogue, below the smallest slip that is known to matter "
    "(√2, one missing branch in √(2·n_layer))",
    since="0.1.0",
    remedy=match_siblings,
    measure=measure_siblings,
)
def odd_matrix_out(case: Case, rows: Rows) -> Finding:
    """Judge the matrix farthest from its siblings' trend."""
    limit = math.log(case.limits["factor"]) + 5 * rows["error"]
    odd = np.abs(rows["off"]) > limit
    bad = rows[odd]
    if bad.empty:
        return case.passed(f"Each of {len(set(rows['family']))} kinds of matrices is drawn alike in all blocks")
    worst = bad[largest(np.abs(bad["off"]))]
    factor = math.exp(float(worst["off"]))
    return case.failed(
        f"{worst['module']} has std {trimmed(worst['std'])}, {trimmed(factor, 2)}× what its siblings in the other "
        f"blocks suggest (typically {trimmed(worst['typical'])}); {len(bad)} of {len(rows)} matrices stand out",
        severity="warning",
        measured=factor,
        effect=min(abs(float(worst["off"])), 1e6),
        advice=f"draw {worst['module']} as in the other blocks; check what sets it apart in the init code",
        **blocks(bad["layer"]),
        **seeds(odd, rows["seed"]),
    )


def measure_off_recipe(run: Run) -> Rows:
    """Sentences on what doesn't fit the known recipe that the model's weights fit best, and what that changes.

    `found` and `meant` are by consequence, from the closed form: of the weights, and of that recipe in their place.
    """
    init = run.manifest.get("init") or {}
    if not init.get("closest"):
        return Rows({})
    found = Rows({"recipe": list(dict.fromkeys(table_of(run, "summary")["recipe"]))})
    found = found.assign(closest=init["closest"], misfits=" · ".join(init["mismatches"]))
    implied = init.get("implied") or {}
    both = {key: implied.get(key) or {} for key in ("found", "meant")}
    # without a loss, as of a head over classes, logits of this std cost std²/2 nats, whatever is asked
    for values in both.values():
        if "loss" not in values and "logit_std" in values:
            values["loss"] = values["logit_std"] ** 2 / 2
    names = (*_CONSEQUENCES, "own_logit", "logit_std")
    columns = {f"{side}_{name}": values.get(name, math.nan) for side, values in both.items() for name in names}
    return found.assign(compared=init.get("compared", ""), **columns)


# the rule that has calibrated from where on it costs something, its limit, and the words
_CONSEQUENCES = {
    "loss": ("LOG001", "warning", "the first loss is {} nats above ln V, not {}"),
    "score_std": ("ATT002", "std", "attention logits have std {}, not {}"),
    "growth": ("RES006", "unpublished", "the stream's variance grows {}× from embedding to end, not {}×"),
}
_MOVED = 1.5  # times what the recipe's is, or its inverse: worth a word
_LEAST = {"loss": 0.1, "score_std": 0.1}  # below it, both are nothing


@rule(
    code="INI004",
    question="Init",
    measures="roles that aren't drawn as in the known recipe that fits the most roles",
    needs="a probed model without a declared recipe, most of whose roles fit a known one",
    unit="misfits",
    limit="0 misfits; a warning where the closed form's first loss, attention logits or growth of the stream pass the "
    "limits of LOG001, ATT002 and RES006 by them, and wouldn't as the recipe draws",
    basis="reference-code",
    why="A model that follows a recipe in all roles but one usually meant to follow it in that one too.",
    advice="Compare with `initlab.describe_init(model)`; if the difference is meant, ignore this note.",
    false_alarms="Differences that are meant: only a note where they cost nothing by the closed form, since many "
    "models differ from a named recipe on purpose. A position table of 0 is a note: in 3 pairs of 300 steps at 4 × 64, "
    "rate 1e-3, the loss was 0.02 nats lower with it.",
    source="initlab.describe_init; limits: LOG001, ATT002, RES006",
    since="0.1.0",
    measure=measure_off_recipe,
)
def role_off_recipe(case: Case, rows: Rows) -> Finding:
    """Say what doesn't fit, in the words of `describe_init`, and what follows from it."""
    row = rows[0]
    closest, text = str(row["closest"]), str(row["misfits"])
    count = len(text.split(" · ")) if text else 0
    if not count:
        few, _, all_ = str(row["compared"]).partition(" of ") if "compared" in rows else ("", "", "")
        what = "Every role is" if few == all_ else f"{few} of {all_} parameters were compared and are"
        return case.passed(f"{what} drawn as {closest} draws it", measured=0.0)
    said, costs = [], 0.0
    rules = RULES.items()
    own, std = (float(row.get(f"found_{name}", math.nan)) for name in ("own_logit", "logit_std"))
    for name, (code, which, words) in _CONSEQUENCES.items():
        limit = rules[code].limits[which]
        if name == "loss" and own > 2 * std:  # as that rule judges what a tied head says of the token just read
            limit = rules[code].limits["own_token"]
        found, meant = float(row.get(f"found_{name}", math.nan)), float(row.get(f"meant_{name}", math.nan))
        if math.isnan(found) or math.isnan(meant) or max(found, meant) < _LEAST.get(name, 0.0):
            continue
        if found > limit >= meant:
            costs = max(costs, math.log(found / limit))
        if not 1 / _MOVED < found / meant < _MOVED if meant > 0 and found > 0 else found > limit:
            said.append(words.format(trimmed(found, 2), trimmed(meant, 2)))
    consequence = f"; so {listed(said)}, by the closed form" if said else ""
    changed = {"advice": f"draw as {closest} does what differs from it, or {_MEANT}"} if costs else {}
    return case.failed(
        text[0].upper() + text[1:] + consequence,
        severity="warning" if costs else "info",
        measured=float(count),
        effect=costs or float(count),
        seeds_failing=1,
        seeds_total=1,
        **changed,
    )


_MEANT = "ignore this where the difference is meant: initlab.describe_init(model) compares role by role"
