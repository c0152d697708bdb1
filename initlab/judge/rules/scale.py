"""How activations go with width, and updates with depth, after a few optimizer steps."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import called, table_of
from initlab.judge.slopes import FLAT, along, diverged, slopes, verdict
from initlab.judge.words import plural, trimmed
from initlab.recipes.base import OUTPUTS
from initlab.rundir import Run

_BY_DESIGN = ("attn_logits", "attn_pattern")  # no activation of their own: products of two, and shares
# the embedding's own scale, and the head's: 1/n_embd of their variance is by design (small inits; muP's logits)
_ENDS = ("embed", "resid_pre", "resid_mid", "resid_post", "logits")
_COHERENT = 0.5  # half way from 0 to 1, the exponent of changes that add up independently


def measure_width(run: Run) -> pd.DataFrame:
    """Slope of ln var on ln n_embd per site and step, of all seeds and of each; models whose loss ended as no number.

    Of recipes that were measured at two widths or more, at init and after a step or more.
    """
    return _measured(run, "n_embd", "activation")


@rule(
    code="SCL001",
    question="Width",
    measures="slope of ln var on ln n_embd of every activation after each step, with its 95 % interval over seeds "
    "(half of it is the slope of mup's l1)",
    needs="two widths or more and a step or more: initlab scale --widths 64,128,256 --steps 3",
    limits={"exponent": FLAT, "logits": 2.0},
    unit="exponent of n_embd",
    limit="exponent of variance ≤ {exponent}, at every step, by its interval; ≥ -{exponent} after the last, of logits "
    "≥ -{logits} - {exponent}",
    basis="reference-code",
    why="A step of one learning rate moves a wide model further than a narrow one: AdamW moves every weight by about "
    "the rate, and the sum over n_embd inputs of changes that go the same way grows with n_embd. Where curves are flat "
    "in width at every step, a rate found on a small model holds for a large one; where they grow, it doesn't. Where "
    "what is computed inside the blocks vanishes with width, a factor of the parametrisation was applied twice.",
    advice="Make the learning rate of hidden matrices fall as 1/n_embd and their std as 1/√n_embd (muP), once.",
    false_alarms="Every recipe here is of standard parametrisation and grows: that is no fault of a model whose rate "
    "was tuned at its own width, hence a warning. Attention logits are left out; embedding, stream and logits may "
    "shrink, as 1/n_embd in small inits and in muP, logits as 1/n_embd² where muP's factor meets a head of std "
    "1/√n_embd: only faster are they found to vanish. A rate that falls too fast is seen only where it shows in these.",
    source="microsoft/mup README, coord check: curves stay horizontal; the tolerance of 0.1 in l1 is a heuristic",
    since="0.1.0",
    about_init=False,
    evidence="coord",
    later=("scale",),
    measure=measure_width,
)
def width_dependent_activation(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge whether any site grows with width after any step, or one inside the blocks still vanishes at the end."""
    flat = case.limits["exponent"]
    broken = _broken(case, rows, "n_embd")
    if broken is not None:
        return broken
    fits = _fits(rows)
    if fits.empty:
        return case.not_applicable("No site has finite, non-zero activations at two widths after a step")
    verdicts = pd.Series([verdict(*pair, flat) for pair in zip(fits["low"], fits["high"], strict=True)], fits.index)
    growing = fits[verdicts == "grows"]
    unclear = fits[(verdicts == "not separated") & (fits["slope"] > flat)]
    if len(growing):
        return _wide(case, rows, fits, growing)
    if len(vanishing := _vanishing(fits, verdicts, -case.limits["logits"] - flat)):
        return _narrow(case, rows, fits, vanishing)
    if len(unclear):
        worst = unclear.loc[unclear["slope"].idxmax()]
        return case.not_applicable(
            f"Too few seeds to tell whether {_name(worst)} grows with width: ∝ {_power(worst)} after "
            f"{plural(int(worst['step']), 'step')}; needs more --seeds or --widths"
        )
    worst = fits.loc[fits["slope"].idxmax()]
    after = plural(int(worst["step"]), "step")
    text = f"No site grows with width after any step; steepest: {_name(worst)} ∝ {_power(worst)} after {after}"
    return case.passed(text, **_numbers(worst))


def _wide(case: Case, rows: pd.DataFrame, fits: pd.DataFrame, growing: pd.DataFrame) -> Finding:
    flat = case.limits["exponent"]
    worst = growing.loc[growing["low"].idxmax()]
    many, all_sites = (len(frame[["site", "module"]].drop_duplicates()) for frame in (growing, fits))
    start = _same(rows[(rows["what"] == "fit") & (rows["step"] == 0)], worst)
    at_init = f" (at init {_power(start.iloc[0])})" if len(start) else ""
    text = (
        f"After {plural(int(worst['step']), 'step')}{_rate(worst)} the variance of {_name(worst)} goes as "
        f"{_power(worst)}{at_init}; {many} of {all_sites} sites grow with width"
    )
    found = _numbers(worst) | _seeds(rows, worst, flat)
    return case.failed(
        text, severity="warning", effect=float(worst["low"]) - flat, advice=_width_advice(worst), **found
    )


def _vanishing(fits: pd.DataFrame, verdicts: pd.Series, steep: float) -> pd.DataFrame:
    """What shrinks with width after the last step, and isn't of the embedding's scale or of the head's.

    Logits count where they fall faster than one factor of 1/n_embd makes them: one that is there twice leaves the
    blocks as they are, and n_embd⁻³ of the logits' variance (n_embd · 1 · (1/n_embd²)²).
    """
    last = fits[fits["step"] == fits["step"].max()]
    shrinks = verdicts[last.index] == "shrinks"
    nameless = last["site"] == "module"
    modules = last[nameless]
    # of sites without a name, those up to the first that doesn't shrink follow the embedding; the last is the head
    follows = (~shrinks[modules.index]).cumsum() == 0
    ends = modules.index[follows].union(modules.index[-1:])
    inside = shrinks & ~last["site"].isin(_ENDS) & ~last.index.isin(ends)
    return last[inside | ((last["site"] == "logits") & (last["high"] < steep))]


def _narrow(case: Case, rows: pd.DataFrame, fits: pd.DataFrame, vanishing: pd.DataFrame) -> Finding:
    flat = case.limits["exponent"]
    worst = vanishing.loc[vanishing["high"].idxmin()]
    all_sites = len(fits[["site", "module"]].drop_duplicates())
    start = _same(rows[(rows["what"] == "fit") & (rows["step"] == 0)], worst)
    at_init = f" (at init {_power(start.iloc[0])})" if len(start) else ""
    text = (
        f"After {plural(int(worst['step']), 'step')}{_rate(worst)} the variance of {_name(worst)} still goes as "
        f"{_power(worst)}{at_init}: it vanishes with width, as {len(vanishing)} of {all_sites} sites do"
    )
    each = _same(rows[(rows["what"] == "seed") & (rows["step"] == worst["step"])], worst)
    found = _numbers(worst) | {"seeds_failing": int((each["slope"] < -flat).sum())}
    head = worst["site"] == "logits"
    advice = (
        f"let {'the logits fall as 1/n_embd' if head else 'the std of hidden matrices fall as 1/√n_embd (1/√fan_in)'}, "
        "and no faster: a factor of the parametrisation, such as muP's, is in the weights and in the forward, "
        "or was applied twice"
    )
    return case.failed(text, severity="warning", effect=-flat - float(worst["high"]), advice=advice, **found)


def measure_depth(run: Run) -> pd.DataFrame:
    """Slope of ln var of every site's change since init on ln n_layer, step by step, of all seeds and of each.

    Of recipes that were measured at two depths or more, at init and after a step or more; their models whose loss ended
    as no number; and what the output projections are called.
    """
    found = _measured(run, "n_layer", "change")
    return (
        found.assign(outputs=called(run, found, "the output projections", *OUTPUTS, by="recipe"))
        if len(found)
        else found
    )


@rule(
    code="SCL002",
    question="Updates",
    measures="slope of ln var(x_L(t) − x_L(0)) on ln n_layer of the last residual stream after the last step, on the "
    "batch of step 0, with its 95 % interval over seeds",
    needs="two depths or more and a step or more: initlab scale --depths 2,4,8,16 --steps 3",
    limits={"exponent": _COHERENT},
    unit="exponent of n_layer",
    limit="exponent ≤ {exponent}, and ≥ -{exponent}, by its interval",
    basis="derived",
    why="A depth-scaled init makes the stream's variance the same at every depth, but not the updates: AdamW moves the "
    "output projections by the learning rate whatever their std, so the changes of n_layer blocks add up, to n_layer "
    "in variance if they are independent and to n_layer² if they agree. 0.5 is half way to the first. A change that "
    "vanishes with depth was divided twice: a deep model then learns slower at every rate that a shallow one found.",
    advice="Multiply what both branches add to the stream by 1/n_layer (CompleteP) or 1/√n_layer.",
    false_alarms="Standard parametrisation grows (exponent 0.8 to 1.7 for nanogpt): a rate tuned at the depth in "
    "use makes up for it, hence a warning. Tells 1/√n_layer from none, not from 1/n_layer.",
    source="Dey et al. 2025 (CompleteP, arXiv 2505.01618), depth coord check; EleutherAI/nanoGPT-mup "
    "completep_examples",
    since="0.1.0",
    about_init=False,
    evidence="coord-depth",
    later=("scale",),
    measure=measure_depth,
)
def depth_dependent_update(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge whether what the steps change grows with depth, or vanishes."""
    limit = case.limits["exponent"]
    broken = _broken(case, rows, "n_layer")
    if broken is not None:
        return broken
    fits = _fits(rows)
    stream = fits[fits["site"] == "resid_post"]
    fits = stream if len(stream) else fits
    if fits.empty:
        return case.not_applicable("The output's change is zero or not finite at all depths but one; try another --lr")
    last = fits.loc[fits["step"].idxmax()]
    found = _numbers(last)
    text = (
        f"After {plural(int(last['step']), 'step')}{_rate(last)} the change of {_name(last)} since init has a "
        f"variance ∝ {_power(last)}"
    )
    if last["high"] < -limit:
        each = _same(rows[(rows["what"] == "seed") & (rows["step"] == last["step"])], last)
        found["seeds_failing"] = int((each["slope"] < -limit).sum())
        advice = (
            "divide by the depth once: either what both branches add to the stream, or the learning rate of "
            f"{rows['outputs'].iloc[0]}"
        )
        text += ": it vanishes with depth"
        return case.failed(text, severity="warning", effect=-limit - float(last["high"]), advice=advice, **found)
    if last["slope"] <= limit:
        return case.passed(text, **found)
    if not last["low"] > limit:
        return case.not_applicable(
            f"Too few seeds to tell: {text[0].lower()}{text[1:]}; needs more --seeds or --depths", **found
        )
    shallow, deep = int(last["smallest"]), int(last["largest"])
    advice = (
        "multiply what both branches add to the stream by 1/n_layer (CompleteP) or 1/√n_layer, or divide the "
        f"learning rate of {rows['outputs'].iloc[0]} by n_layer: at {deep} layers 1/{deep / shallow:g} of that "
        f"at {shallow}"
    )
    found |= _seeds(rows, last, limit)
    return case.failed(text, severity="warning", effect=float(last["low"]) - limit, advice=advice, **found)


def _of_the_head(records: pd.DataFrame) -> pd.Series:
    """What a head gives before it is multiplied (muP), capped or masked: what counts are the logits."""
    if not (records["site"] == "logits").any():
        return pd.Series(False, records.index)
    numbered = records["position"].where(records["layer"].notna())
    last = numbered.groupby([records["run_id"], records["step"]], observed=True).transform("max")
    return (records["site"] == "module") & records["layer"].isna() & (records["position"] > last)


def _measured(run: Run, axis: str, kind: str) -> pd.DataFrame:
    """Rows of four kinds, by `what`: `fit` (of all seeds), `seed` (of one), `lost` (a size whose loss isn't finite),
    `sizes` (one per recipe, so that one without a fit is judged too). All have the smallest and the largest size, and
    the optimizer with its rate.
    """
    config = run.manifest.get("config", {})
    parts = []
    if not (table_of(run, "records")["step"] > 0).any():
        return pd.DataFrame()
    for recipe, own in run.tables.records.groupby("recipe", observed=True):
        if own[axis].nunique() < 2 or own["step"].min() != 0 or not (own["step"] > 0).any():
            continue
        rows = own[(own["kind"] == kind) & ~own["site"].isin(_BY_DESIGN) & ~_of_the_head(own)]
        summary = run.tables.summary[run.tables.summary["recipe"] == recipe]
        parts += [
            part.assign(
                recipe=str(recipe),
                smallest=own[axis].min(),
                largest=own[axis].max(),
                optimizer=config.get("optimizer"),
                lr=config.get("lr"),
            )
            for part in (
                pd.DataFrame({"what": ["sizes"]}),
                _sloped(rows, axis).assign(what="fit"),
                *(_sloped(of_seed, axis).assign(what="seed", seed=seed) for seed, of_seed in rows.groupby("seed")),
                diverged(along(summary, axis)).rename(columns={"seeds": "lost"}).assign(what="lost"),
            )
            if len(part)
        ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _sloped(records: pd.DataFrame, axis: str) -> pd.DataFrame:
    found = slopes(records)
    return found[(found["axis"] == axis) & found["slope"].notna()].drop(columns=["recipe", "verdict"])


def _fits(rows: pd.DataFrame) -> pd.DataFrame:
    """The slopes after steps; a frame with their columns where there are none."""
    if "slope" not in rows:
        return pd.DataFrame(columns=["site", "module", "step", "slope", "low", "high"])
    return rows[(rows["what"] == "fit") & (rows["step"] > 0)]


def _broken(case: Case, rows: pd.DataFrame, axis: str) -> Finding | None:
    """The finding where losses stopped being finite: nothing is fitted then that could be compared."""
    lost = rows[rows["what"] == "lost"]
    if lost.empty:
        return None
    first = lost.sort_values(axis).iloc[0]
    size, step, count, of = (int(first[key]) for key in (axis, "step", "lost", "of"))
    when = f"after {plural(step, 'step')}{_rate(first)}" if step else "before any step"
    where = f"The loss isn't finite at {axis} {size} {when} ({count} of {plural(of, 'seed')})"
    if size == int(first["smallest"]):
        return case.not_applicable(f"{where}, the smallest size; try a smaller --lr")
    text = f"{where}; smaller models train"
    return case.failed(text, severity="warning", effect=math.inf, site="logits", seeds_failing=count, seeds_total=of)


def _numbers(fit: pd.Series) -> dict[str, Any]:
    error = float(fit["stderr"])
    return {
        "measured": float(fit["slope"]),
        "uncertainty": error if math.isfinite(error) else None,
        "site": _name(fit),
        "seeds_total": int(fit["seeds"]),
    }


def _same(rows: pd.DataFrame, fit: pd.Series) -> pd.DataFrame:
    return rows[(rows["site"] == fit["site"]) & (rows["module"] == fit["module"])]


def _seeds(rows: pd.DataFrame, fit: pd.Series, limit: float) -> dict[str, int]:
    each = _same(rows[(rows["what"] == "seed") & (rows["step"] == fit["step"])], fit)
    return {"seeds_failing": int((each["slope"] > limit).sum())}


def _width_advice(fit: pd.Series) -> str:
    small, large, lr = int(fit["smallest"]), int(fit["largest"]), fit["lr"]
    if fit["optimizer"] == "adamw" and isinstance(lr, float):
        rate = f"at n_embd {large}, {trimmed(lr)} → {trimmed(lr * small / large)} to act as at {small}"
        return (
            f"With AdamW, make the learning rate of hidden matrices fall as 1/n_embd ({rate}) and their std as "
            "1/√n_embd (muP); a rate tuned at one width holds at that width alone"
        )
    return (
        "Use a parametrisation whose rates transfer (muP: std of hidden matrices ∝ 1/√n_embd, and their AdamW rate "
        "∝ 1/n_embd); a rate tuned at one width holds at that width alone"
    )


def _rate(row: pd.Series) -> str:
    if row["optimizer"] not in ("adamw", "sgd"):
        return ""
    return f" of {'AdamW' if row['optimizer'] == 'adamw' else 'SGD'} at lr {row['lr']:g}"


def _name(fit: pd.Series) -> str:
    return str(fit["module"] or fit["site"])


def _power(fit: pd.Series) -> str:
    interval = f" [{fit['low']:.2f}, {fit['high']:.2f}]" if math.isfinite(fit["low"]) else ""
    return f"{fit['axis']}^{round(fit['slope'], 2) + 0.0:+.2f}{interval}"
