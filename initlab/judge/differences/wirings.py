"""Differences between how two models are wired, in words that don't depend on the names of their modules."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from initlab.rundir import Run

# columns of the table `wiring` that hold names: only whether there is one is compared
_PRESENT = {
    "norm": "norm before the branch",
    "post_norm": "norm of what the branch gives",
    "sum_norm": "norm after the sum",
    "gain": "gain of the branch",
    "qk_norm": "norm of queries and keys",
}
_VALUES = {
    "kind": "branch",
    "keep": "what multiplies the stream",
    "scale": "what multiplies the branch",
    "activation": "activation",
    "gated": "gated",
    "causal": "causal",
    "window": "window",
    "score_scale": "scale of the scores",
    "head_size": "head size",
    "n_head": "heads",
    "n_kv_head": "heads of keys and values",
    "rotary": "rotary positions",
    "bias": "bias of the scores",
    "soft_cap": "cap of the scores",
    "crossed": "not cut into heads",
}
_OF_STACK = {
    "terms": "summands of the embedding",
    "tied": "token table is the head",
    "logit_scale": "scale of the logits",
    "logit_cap": "cap of the logits",
    "aim": "trained on",
}
_OF_STACK_PRESENT = {"embed_norm": "norm of the embedding", "final_norm": "final norm", "head": "head"}
_FLAGS = ("gated", "causal", "rotary", "bias", "tied")
COLUMNS = ("where", "what", "a", "b", "layers")


def wirings(a: Run, b: Run) -> pd.DataFrame:
    """Make a row for each thing that differs, the blocks where it does together.

    Columns: where (`attention`, `MLP`, `model`), what, a, b (in words), layers (list of blocks; empty of the model).
    Empty where a run says nothing of its wiring.

    Args:
        a: of one recipe and one size.
        b: likewise.
    """
    tables = [_branches(run) for run in (a, b)]
    found: dict[tuple[str, ...], list[int]] = {}
    if not len(tables[0]) or not len(tables[1]):
        return pd.DataFrame(columns=list(COLUMNS))
    for stack in sorted({key[0] for key in tables[0]} & {key[0] for key in tables[1]}):
        first, other = (next(row for key, row in table.items() if key[0] == stack) for table in tables)
        for where, what, old, new in _of(first, other, _OF_STACK, _OF_STACK_PRESENT):
            found.setdefault((where or "model", what, old, new), [])
    if _depths(tables[0]) == _depths(tables[1]):
        for key in [*tables[0], *(key for key in tables[1] if key not in tables[0])]:
            mine, theirs = (table.get(key) for table in tables)
            if mine is None or theirs is None:
                there = [_site(row) if row is not None else "none" for row in (mine, theirs)]
                found.setdefault(("block", "branch", *there), []).append(key[1])
                continue
            for _, what, old, new in _of(mine, theirs, _VALUES, _PRESENT):
                found.setdefault((_site(mine), what, old, new), []).append(key[1])
    return pd.DataFrame([(*key, layers) for key, layers in found.items()], columns=list(COLUMNS))


def _branches(run: Run) -> dict[tuple[int, int, int], dict[str, Any]]:
    rows = run.tables.wiring
    first = rows[rows["run_id"] == rows["run_id"].iloc[0]] if len(rows) else rows
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    for row in first.to_dict("records"):
        layer, update = (-1 if pd.isna(row[name]) else int(row[name]) for name in ("layer", "update"))
        key = (int(row["stack"]), layer, update)
        while key in found:  # several branches in one sum
            key = (key[0], key[1], key[2] + 1000)
        found[key] = {str(name): value for name, value in row.items()}
    return found


def _depths(table: dict[tuple[int, int, int], Any]) -> list[int]:
    return sorted({layer for _, layer, _ in table})


def _site(row: dict[str, Any] | None) -> str:
    site = "" if row is None else str(row["site"])
    return {"attn_out": "attention", "mlp_out": "MLP"}.get(site, site or "block")


def _of(
    a: dict[str, Any], b: dict[str, Any], values: dict[str, str], present: dict[str, str]
) -> list[tuple[str, str, str, str]]:
    found = []
    for name, what in values.items():
        old, new = (_word(name, row.get(name)) for row in (a, b))
        if old != new:
            found.append(("", what, old, new))
    for name, what in present.items():
        old, new = ("yes" if _word(name, row.get(name)) != "none" else "no" for row in (a, b))
        if old != new:
            found.append(("", what, old, new))
    return found


def _word(name: str, value: Any) -> str:
    if value is None or value is pd.NA or value == "" or (isinstance(value, float) and math.isnan(value)):
        return "none"
    if name in _FLAGS:
        return "yes" if value else "no"
    return value if isinstance(value, str) else f"{float(value):.4g}"
