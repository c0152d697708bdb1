"""How activations go with width, and updates with depth, after a few optimizer steps."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from initlab.judge.rules.base import Case, Finding, Rule
from initlab.judge.slopes import FLAT, along, diverged, slopes
from initlab.rundir import Run
from initlab.schema import Tables

_BY_DESIGN = ("attn_logits", "attn_pattern")  # no activation of their own: products of two, and shares
_COHERENT = 0.5  # half way from 0 to 1, the exponent of changes that add up independently


def measure_width(run: Run) -> pd.DataFrame:
    """The recipes that were measured at two widths or more, after a step or more; each with its part of the run."""
    return _stepped(run, "n_embd")


def judge_width(case: Case, rows: pd.DataFrame) -> Finding:
    """Whether any site grows with width after any step."""
    run, flat = rows["run"].iloc[0], case.limits["exponent"]
    records = run.tables.records
    own = records[~records["site"].isin(_BY_DESIGN)]
    broken = _broken(case, run, "n_embd")
    if broken is not None:
        return broken
    fits = _fits(own, "n_embd", "activation", flat)
    growing = fits[fits["verdict"] == "grows"]
    unclear = fits[(fits["verdict"] == "not separated") & (fits["slope"] > flat)]
    if fits.empty:
        return case.not_applicable("No site has finite, non-zero activations at two widths after a step")
    if len(growing):
        return _wide(case, own, fits, growing, run.manifest)
    if len(unclear):
        worst = unclear.loc[unclear["slope"].idxmax()]
        return case.not_applicable(
            f"Too few seeds to tell whether {_name(worst)} grows with width: ∝ {_power(worst)} after "
            f"{_steps(int(worst['step']))}; needs more --seeds or --widths"
        )
    worst = fits.loc[fits["slope"].idxmax()]
    after = _steps(int(worst["step"]))
    text = f"No site grows with width after any step; steepest: {_name(worst)} ∝ {_power(worst)} after {after}"
    return case.passed(text, **_numbers(worst))


def _wide(
    case: Case, own: pd.DataFrame, fits: pd.DataFrame, growing: pd.DataFrame, manifest: dict[str, Any]
) -> Finding:
    flat = case.limits["exponent"]
    worst = growing.loc[growing["low"].idxmax()]
    many, all_sites = (len(frame[["site", "module"]].drop_duplicates()) for frame in (growing, fits))
    start = _at(_fits(own, "n_embd", "activation", flat, first=0), worst, 0)
    text = (
        f"After {_steps(int(worst['step']))}{_rate(manifest)} the variance of {_name(worst)} goes as "
        f"{_power(worst)}{start}; {many} of {all_sites} sites grow with width"
    )
    found = _numbers(worst) | _seeds(own, "n_embd", worst, flat)
    return case.failed(
        text, severity="warning", effect=float(worst["low"]) - flat, advice=_width_advice(own, manifest), **found
    )


def measure_depth(run: Run) -> pd.DataFrame:
    """The recipes that were measured at two depths or more, after a step or more; each with its part of the run."""
    return _stepped(run, "n_layer")


def judge_depth(case: Case, rows: pd.DataFrame) -> Finding:
    """Whether what the steps change grows with depth."""
    run, limit = rows["run"].iloc[0], case.limits["exponent"]
    own = run.tables.records
    broken = _broken(case, run, "n_layer")
    if broken is not None:
        return broken
    fits = _fits(own, "n_layer", "change", limit)
    stream = fits[fits["site"] == "resid_post"]
    fits = stream if len(stream) else fits
    if fits.empty:
        return case.not_applicable("The output's change is zero or not finite at all depths but one; try another --lr")
    last = fits.loc[fits["step"].idxmax()]
    found = _numbers(last)
    text = (
        f"After {_steps(int(last['step']))}{_rate(run.manifest)} the change of {_name(last)} since init has a variance "
        f"∝ {_power(last)}"
    )
    if last["slope"] <= limit:
        return case.passed(text, **found)
    if not last["low"] > limit:
        return case.not_applicable(
            f"Too few seeds to tell: {text[0].lower()}{text[1:]}; needs more --seeds or --depths", **found
        )
    shallow, deep = int(own["n_layer"].min()), int(own["n_layer"].max())
    advice = (
        "multiply what both branches add to the stream by 1/n_layer (CompleteP) or 1/√n_layer, or divide the "
        f"learning rate of attn.c_proj and mlp.c_proj by n_layer: at {deep} layers 1/{deep / shallow:g} of that "
        f"at {shallow}"
    )
    found |= _seeds(own, "n_layer", last, limit)
    return case.failed(text, severity="warning", effect=float(last["low"]) - limit, advice=advice, **found)


def _stepped(run: Run, axis: str) -> pd.DataFrame:
    """A row for each recipe that has two sizes, and steps: its own part of the run."""
    found = []
    for recipe, own in run.tables.records.groupby("recipe", observed=True):
        if own[axis].nunique() > 1 and (own["step"] > 0).any() and own["step"].min() == 0:
            summary = run.tables.summary
            part = Run(Tables(records=own, summary=summary[summary["recipe"] == recipe]), run.manifest)
            found.append({"recipe": str(recipe), "run": part})
    return pd.DataFrame(found, columns=["recipe", "run"])


def _fits(records: pd.DataFrame, axis: str, kind: str, flat: float, *, first: int = 1) -> pd.DataFrame:
    found = slopes(records[(records["kind"] == kind) & (records["step"] >= first)], flat=flat)
    return found[(found["axis"] == axis) & found["slope"].notna()]


def _broken(case: Case, run: Run, axis: str) -> Finding | None:
    """The finding where losses stopped being finite: nothing is fitted then that could be compared."""
    own = along(run.tables.summary, axis)
    lost = diverged(own)
    if lost.empty:
        return None
    first = lost.sort_values(axis).iloc[0]
    size, step = int(first[axis]), int(first["step"])
    when = f"after {_steps(step)}{_rate(run.manifest)}" if step else "before any step"
    where = f"The loss isn't finite at {axis} {size} {when} ({first['seeds']} of {_counted(int(first['of']), 'seed')})"
    if size == int(own[axis].min()):
        return case.not_applicable(f"{where}, the smallest size; try a smaller --lr")
    seeds = {"seeds_failing": int(first["seeds"]), "seeds_total": int(first["of"])}
    text = f"{where}; smaller models train"
    return case.failed(text, severity="warning", effect=math.inf, site="logits", **seeds)


def _numbers(fit: pd.Series) -> dict[str, Any]:
    error = float(fit["stderr"])
    return {
        "measured": float(fit["slope"]),
        "uncertainty": error if math.isfinite(error) else None,
        "site": _name(fit),
        "seeds_total": int(fit["seeds"]),
    }


def _seeds(records: pd.DataFrame, axis: str, fit: pd.Series, limit: float) -> dict[str, int]:
    same = [records[key] == fit[key] for key in ("site", "kind", "step")]
    rows = records[same[0] & same[1] & same[2]]
    each = [slopes(own) for _, own in rows.groupby("seed")]
    each = [found[(found["axis"] == axis) & (found["module"] == fit["module"])] for found in each]
    return {"seeds_failing": sum(bool((found["slope"] > limit).any()) for found in each)}


def _at(fits: pd.DataFrame, like: pd.Series, step: int) -> str:
    same = fits[(fits["site"] == like["site"]) & (fits["module"] == like["module"]) & (fits["step"] == step)]
    return f" (at init {_power(same.iloc[0])})" if len(same) else ""


def _width_advice(records: pd.DataFrame, manifest: dict[str, Any]) -> str:
    small, large = int(records["n_embd"].min()), int(records["n_embd"].max())
    config = manifest.get("config", {})
    lr = config.get("lr")
    ratio = large / small
    if config.get("optimizer") == "adamw" and isinstance(lr, float):
        rate = f"at n_embd {large}, {lr:.3g} → {lr / ratio:.3g} to act as at {small}"
        return (
            f"With AdamW, make the learning rate of hidden matrices fall as 1/n_embd ({rate}) and their std as "
            "1/√n_embd (muP); a rate tuned at one width holds at that width alone"
        )
    return (
        "Use a parametrisation whose rates transfer (muP: std of hidden matrices ∝ 1/√n_embd, and their AdamW rate "
        "∝ 1/n_embd); a rate tuned at one width holds at that width alone"
    )


def _rate(manifest: dict[str, Any]) -> str:
    config = manifest.get("config", {})
    if config.get("optimizer") not in ("adamw", "sgd"):
        return ""
    return f" of {'AdamW' if config['optimizer'] == 'adamw' else 'SGD'} at lr {config.get('lr'):g}"


def _steps(count: int) -> str:
    return _counted(count, "step")


def _counted(count: int, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count} {noun}s"


def _name(fit: pd.Series) -> str:
    return str(fit["module"] or fit["site"])


def _power(fit: pd.Series) -> str:
    interval = f" [{fit['low']:.2f}, {fit['high']:.2f}]" if math.isfinite(fit["low"]) else ""
    return f"{fit['axis']}^{round(fit['slope'], 2) + 0.0:+.2f}{interval}"


WIDTH_DEPENDENT = Rule(
    code="SCL001",
    name="width-dependent-activation",
    question="Width",
    measures="slope of ln var on ln n_embd of every activation after each step, with its 95 % interval over seeds "
    "(half of it is the slope of mup's l1)",
    needs="two widths or more and a step or more: initlab scale --widths 64,128,256 --steps 3",
    limits={"exponent": FLAT},
    unit="exponent of n_embd",
    limit="exponent of variance ≤ {exponent}, at every step, by its interval",
    basis="reference-code",
    why="A step of one learning rate moves a wide model further than a narrow one: AdamW moves every weight by about "
    "the rate, and the sum over n_embd inputs of changes that go the same way grows with n_embd. Where curves are flat "
    "in width at every step, a rate found on a small model holds for a large one; where they grow, it doesn't.",
    advice="Make the learning rate of hidden matrices fall as 1/n_embd and their std as 1/√n_embd (muP).",
    false_alarms="Every recipe here is of standard parametrisation and grows: that is no fault of a model whose rate "
    "was tuned at its own width, hence a warning. Attention logits are left out.",
    source="microsoft/mup README, coord check: curves stay horizontal; the tolerance of 0.1 in l1 is a heuristic",
    since="0.2.0",
    about_init=False,
    measure=measure_width,
    judge=judge_width,
)
DEPTH_DEPENDENT = Rule(
    code="SCL002",
    name="depth-dependent-update",
    question="Updates",
    measures="slope of ln var(x_L(t) − x_L(0)) on ln n_layer of the last residual stream after the last step, on the "
    "batch of step 0, with its 95 % interval over seeds",
    needs="two depths or more and a step or more: initlab scale --depths 2,4,8,16 --steps 3",
    limits={"exponent": _COHERENT},
    unit="exponent of n_layer",
    limit="exponent ≤ {exponent}, by its interval",
    basis="derived",
    why="A depth-scaled init makes the stream's variance the same at every depth, but not the updates: AdamW moves the "
    "output projections by the learning rate whatever their std, so the changes of n_layer blocks add up, to n_layer "
    "in variance if they are independent and to n_layer² if they agree. 0.5 is half way to the first.",
    advice="Multiply what both branches add to the stream by 1/n_layer (CompleteP) or 1/√n_layer.",
    false_alarms="Standard parametrisation grows (exponent 0.8 to 1.7 for nanogpt): a rate tuned at the depth in "
    "use makes up for it, hence a warning. Tells 1/√n_layer from none, not from 1/n_layer.",
    source="Dey et al. 2025 (CompleteP, arXiv 2505.01618), depth coord check; EleutherAI/nanoGPT-mup "
    "completep_examples",
    since="0.2.0",
    about_init=False,
    measure=measure_depth,
    judge=judge_depth,
)
SCALING_RULES = (WIDTH_DEPENDENT, DEPTH_DEPENDENT)
