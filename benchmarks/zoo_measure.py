"""One model of the benchmark measured, in a process of its own so that a crash or a hang is one row."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from children import Death, results, short
from torch import Tensor, nn
from zoo import Case

import initlab

ATTENTION_SITES = ("q", "k", "v", "attn_z")
MLP_SITES = ("mlp_pre", "mlp_act")
BARE_SECONDS = 0.1  # of CPU time, over which the bare pass is repeated
TOLERANCE = 0.1  # of measured ÷ predicted, beside two standard errors


def rows(cases: Sequence[Case], *, seeds: int, jobs: int, seconds: int) -> Iterator[dict[str, Any]]:
    """Measure every case, each in a forked child, as they finish.

    Args:
        cases: what to measure.
        seeds: inits of each model; more than the first only where a closed form is given.
        jobs: children at a time.
        seconds: of CPU time for one case; six times as long on the clock.
    """

    def run(case: Case) -> dict[str, Any]:
        try:
            return measure(case, seeds)
        except Exception as error:  # of this file, or of a public result that changed
            return {**_told(case), "built": "yes", "reached": f"not measured: {short(error)}"}

    for case, row in results(cases, run, jobs=jobs, seconds=seconds):
        yield {**_told(case), "built": "yes", "reached": row.how} if isinstance(row, Death) else row


def _told(case: Case) -> dict[str, Any]:
    return {
        "group": case.group, "name": case.name, "plain": case.plain, "stream": case.stream,
        "attention": case.attention, "mlp": case.mlp, "why": case.why,
    }  # fmt: skip


def measure(case: Case, seeds: int) -> dict[str, Any]:
    """One row: what the case says of itself, and what initlab says of its model.

    Args:
        case: the model.
        seeds: inits to draw where there is a closed form.
    """
    row = _told(case)
    try:
        model = _drawn(case, 0)
    except Exception as error:
        return row | {"built": short(error)}
    row["built"] = "yes"
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    started = time.process_time()
    try:
        found = initlab.probe(model)
        failed = [finding for finding in found.findings if finding.status == "fail"]
    except Exception as error:
        return row | {"reached": short(error)}
    finally:
        hook.remove()
    row |= {"reached": "yes", "probe_s": time.process_time() - started, "bare_s": bare(model, calls)}
    row["times"] = row["probe_s"] / row["bare_s"]
    for severity in ("error", "warning"):
        row[f"{severity}s"] = " ".join(sorted({each.code for each in failed if each.severity == severity}))
    told = [f"{each.code}: {each.message}" for each in failed if each.severity in ("error", "warning")]
    row["messages"] = "; ".join(told)[:400]
    row |= seen(found, case) | closed_form(case, found, seeds) | redrawn(model)
    return row


def _drawn(case: Case, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return case.make().train(case.train)


def bare(model: nn.Module, calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> float:
    """CPU seconds of the model's own forward and backward on the largest of the batches that fits it."""
    calls = sorted(calls, key=lambda call: -sum(each.numel() for each in _tensors(call)))
    fitting = next((call for call in calls if _passed(model, *call)), None)
    if fitting is None:
        return float("nan")
    rounds, started = 0, time.process_time()
    while (spent := time.process_time() - started) < BARE_SECONDS:
        _passed(model, *fitting)
        rounds += 1
    model.zero_grad(set_to_none=True)
    return spent / rounds


def _passed(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        floats = [each for each in _tensors(model(*args, **kwargs)) if each.is_floating_point() and each.requires_grad]
        floats[0].float().square().mean().backward()
    except (IndexError, RuntimeError, ValueError, AssertionError):  # a batch that the probe tried, and took back
        return False
    return True


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)


def seen(found: initlab.Probe, case: Case) -> dict[str, Any]:
    """How far the probe saw: blocks, verified ones, inner sites, heads, roles."""
    notes = [str(note) for note in found.coverage.loc[found.coverage["site"] == "model", "note"]]
    stacks = [
        m for note in notes if (m := re.search(r"(\d+) blocks?, stream reproduced from its writes in (\d+)", note))
    ]
    blocks, verified = (sum(int(m[group]) for m in stacks) for group in (1, 2))
    activations = found.records[found.records["kind"] == "activation"]
    # one block that is called three times counts as three
    uses = activations.drop_duplicates(["site", "layer", "call"]).dropna(subset=["layer"])["site"].value_counts()
    again = blocks and uses.get("resid_post", 0) > blocks
    whole = min(1.0, uses.get("resid_post", 0) / max(case.attention, case.mlp, 1))
    wanted = dict.fromkeys(ATTENTION_SITES, case.attention) | dict.fromkeys(MLP_SITES, case.mlp)
    shares = {site: min(1.0, float(uses.get(site, 0)) / n) for site, n in wanted.items() if n}
    attending = min(case.attention, blocks) if again else case.attention
    weights = found.records[found.records["kind"] == "weight"]
    known = weights["role"].notna() & (weights["role"] != "other")
    return {
        "blocks": blocks,
        "verified": whole * verified / blocks if blocks else 0.0,
        "inner": float(np.mean(list(shares.values()))) if shares else np.nan,
        "lacking": " ".join(site for site, share in shares.items() if share < 1),
        "heads": min(1.0, found.heads["layer"].nunique() / attending) if attending else np.nan,
        "roles": float(known.mean()) if len(weights) else np.nan,
        "no_role": " ".join(dict.fromkeys(re.sub(r"\d+", "*", name) for name in weights.loc[~known, "module"]))[:300],
        "notes": "; ".join(note for note in notes if "stream reproduced" not in note)[:400],
    }


def closed_form(case: Case, found: initlab.Probe, seeds: int) -> dict[str, Any]:
    """For how many blocks the stream's variance is predicted, and how right the worst of them is, over the seeds."""
    rows = found.at("resid_post")
    given = rows["expected_var"].notna()
    share = float(given.sum()) / max(len(rows), case.attention, case.mlp, 1)
    row: dict[str, Any] = {"closed": share, "ratio": np.nan, "ratio_se": np.nan, "worst_at": "", "within": ""}
    if not given.any():
        return row
    parts = [_ratios(found)]
    for seed in range(1, seeds):
        parts.append(_ratios(initlab.probe(_drawn(case, seed), seed=seed, stats="light")))
    ratios = pd.concat(parts, axis=1)
    mean, se = ratios.mean(axis=1), ratios.std(axis=1) / ratios.notna().sum(axis=1) ** 0.5
    off = (mean - 1).abs().dropna()
    if not len(off):
        return row
    worst = off.idxmax()
    row |= {"ratio": mean[worst], "ratio_se": se[worst], "worst_at": str(worst)}
    row["within"] = "yes" if (off <= TOLERANCE + 2 * se.fillna(0)[off.index]).all() else "no"
    return row


def _ratios(found: initlab.Probe) -> pd.Series:
    rows = found.at("resid_post")
    return (rows["var"] / rows["expected_var"]).set_axis(rows["module"] + " " + rows["call"].astype(str))


def redrawn(model: nn.Module) -> dict[str, Any]:
    """Whether nanoGPT's recipe can be drawn into the model, and every parameter then fits it."""
    try:
        initlab.apply_recipe(model, "nanogpt")
        rows = initlab.describe_init(model).rows
    except Exception as error:
        return {"redrawn": short(error)}
    left = sum(row["n"] for row in rows if not row["role"])
    misfits = [name for row in rows if row["role"] for name in row["expected"].get("nanogpt", {}).get("misfits", ["?"])]
    if left or misfits:
        return {"redrawn": f"{left} parameters without a role, {len(misfits)} drawn otherwise"}
    return {"redrawn": "exact"}
