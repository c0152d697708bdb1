"""From what a recorder saw to rows of the tables."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

from initlab.anatomy.sites import SiteMap, Tap
from initlab.drawing.apply import expected
from initlab.measure.attention import ROWS
from initlab.measure.moments import Preset
from initlab.measure.recorder import Recorder
from initlab.recipes import Recipe, Role
from initlab.schema import RECORDS

_SCALING = {name: column for name, column in RECORDS.items() if column.degree}


def activation_rows(recorder: Recorder, values: list[dict[str, float]], shared: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per measured tensor and per gradient, in the order of the forward pass."""
    position: dict[Tap, int] = {}
    for seen in recorder.seen:
        if seen.kind == "activation":
            position.setdefault(seen.tap, len(position))
    alike = {place: float(value) for place, value in recorder.alike.items()}
    rows = [
        {
            **shared,
            **scaled(values[seen.slot], seen.tap.scale if seen.kind == "activation" else 1 / seen.tap.scale),
            "layer": seen.tap.layer,
            "position": position[seen.tap],
            "site": seen.tap.site,
            "kind": seen.kind,
            "module": seen.tap.module,
            "call": seen.call,
            "dtype": seen.dtype,
            "together": alike.get((seen.tap, seen.call), math.nan) if seen.kind == "activation" else math.nan,
        }
        for seen in recorder.seen
    ]
    return sorted(rows, key=lambda row: (row["kind"], row["position"]))


def scaled(row: dict[str, Any], scale: float) -> dict[str, Any]:
    """Statistics of a tensor times a number, but for the shares, which stay those of the tensor itself.

    What isn't initlab's own is left alone: it was taken of the product, see `initlab.measure.statistics`.
    """
    if scale == 1:
        return row
    powers = {name: row[name] * abs(scale) ** column.degree for name, column in _SCALING.items() if name in row}
    return {**row, **powers, "mean": row["mean"] * scale}


def weight_rows(
    weights: list[dict[str, Any]],
    values: list[dict[str, float]],
    shared: dict[str, Any],
    recipe: Recipe | None,
    *,
    first: int,
) -> list[dict[str, Any]]:
    """One row per parameter and per gradient; `first` is the position of the first."""
    position = {name: first + place for place, name in enumerate(dict.fromkeys(row["name"] for row in weights))}
    rows = []
    for row in weights:
        place = row["place"]
        declared = expected(place, recipe) if recipe and place and row["kind"] == "weight" else None
        rows.append(
            {
                **shared,
                **values[row["slot"]],
                "layer": place.layer if place else None,
                "position": position[row["name"]],
                "site": place.role.value if place else Role.OTHER.value,
                "kind": row["kind"],
                "role": place.role.value if place else Role.OTHER.value,
                "module": row["name"],
                "call": 0,
                "dtype": row["tensor_dtype"].removeprefix("torch."),
                "expected_var": declared[1] ** 2 if declared else math.nan,
                "reached": row.get("reached", math.nan),
            }
        )
    return rows


def head_rows(recorder: Recorder, keys: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per attention head."""
    seen = sorted(recorder.heads.seen, key=lambda heads: heads.number)
    if not seen:
        return []
    rows = []
    further = recorder.moments.read_heads()
    values = iter(torch.cat([heads.per_head for heads in seen], 1).T.cpu().tolist())
    before: Counter[int] = Counter()  # heads of a block's attentions so far
    for heads in seen:
        layer = heads.tap.layer
        for head in range(heads.per_head.shape[1]):
            entropy, fraction, logit_std, own_fraction, own_std = next(values)
            rows.append(
                {
                    **keys,
                    "layer": layer,
                    "head": before[layer],
                    "n_rows": heads.n_rows,
                    "entropy": entropy,
                    "entropy_frac": fraction,
                    "logit_std": logit_std,
                    "entropy_frac_by_input": own_fraction,
                    "logit_std_by_input": own_std,
                    "module": heads.tap.module,
                    **further.get((heads.number, head), {}),
                }
            )
            before[layer] += 1
    return rows


def n_head(sites: SiteMap, recorder: Recorder) -> int:
    """Heads of an attention, the most where layers differ; 0 where none was looked at."""
    return sites.n_head or max((heads.per_head.shape[1] for heads in recorder.heads.seen), default=0)


def scalars(recorder: Recorder) -> dict[str, float]:
    """Columns of the summary that the recorder took on the way."""
    found = {name: float(value) for name, value in recorder.scalars.items()}
    token, position = found.get("token", math.nan), found.get("position", math.nan)
    dead = [(largest <= 0).float().mean() for largest in recorder.dead.values()]
    return {
        "token_cosine": found.get("token_cosine", math.nan),
        "token_position_ratio": token / position if position else math.inf if token else math.nan,
        "embed_together": found.get("embed_together", math.nan),
        "dead_frac": float(torch.stack(dead).mean()) if dead else math.nan,
    }


def coverage_rows(
    run_id: str,
    sites: SiteMap,
    recorder: Recorder,
    weights: list[dict[str, Any]],
    preset: Preset,
    notes: list[str],
) -> list[dict[str, Any]]:
    """What should have been seen and what was, site by site; then what was found out about the model."""
    output = [seen.tap for seen in recorder.seen if seen.kind == "activation" and seen.tap.site == "logits"]
    taps = list(dict.fromkeys([*sites.taps, *output]))  # also logits that no module of their own gave
    expected = Counter(tap.site for tap in taps)
    fired = Counter((seen.kind, seen.tap.site) for seen in recorder.seen)
    again = Counter((seen.kind, seen.tap.site) for seen in recorder.seen if seen.call)
    rows = []

    def add(kind: str, site: str, wanted: int, note: str, short: str) -> None:
        seen = fired[kind, site]
        notes = [note, short if seen < wanted else "", f"{n} by further calls" if (n := again[kind, site]) else ""]
        rows.append(_coverage(run_id, kind, site, wanted, seen, "; ".join(filter(None, notes))))

    for kind, why in (
        ("activation", "not reached by the pass, or no floating-point tensor"),
        ("grad", "no gradient reached it"),
    ):
        reached = {seen.tap for seen in recorder.seen if seen.kind == kind}
        for site, count in expected.items():
            missed = [tap.module for tap in taps if tap.site == site and tap not in reached]
            add(kind, site, count, "", why + (f": {_some(missed)}" if len(missed) < count else ""))
    full = preset == "full"
    note = f"of {ROWS} query rows a sequence, forward only" if full else "skipped by preset light"
    read = {heads.number for heads in recorder.heads.seen}
    unread = [tap.module for number, tap in enumerate(sites.heads) if number not in read]
    reasons = [f"{name}: {recorder.heads.unread[name]}" for name in unread if name in recorder.heads.unread]
    short = "; ".join([f"not reached by the pass, or no attention: {_some(unread)}", *reasons[:1]])
    for site in ("attn_logits", "attn_pattern") if sites.heads else ():
        add("activation", site, len(sites.heads) if full else 0, note, short)
    found = Counter((row["kind"], row["place"].role.value if row["place"] else Role.OTHER.value) for row in weights)
    updated = any(kind == "update" for kind, _ in found)
    for role in sorted({role for _, role in found}):
        for kind in ("weight", "weight_grad", "update") if updated else ("weight", "weight_grad"):
            count, seen = found["weight", role], found[kind, role]
            short = "frozen, or replaced during the step" if kind == "update" else "frozen, or not used by the loss"
            note = "" if seen == count else short
            rows.append(_coverage(run_id, kind, role, count, seen, note))
    return rows + [_coverage(run_id, "activation", "model", 0, 0, note) for note in notes]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _coverage(run_id: str, kind: str, site: str, expected: int, fired: int, note: str) -> dict[str, Any]:
    return {"run_id": run_id, "kind": kind, "site": site, "expected": expected, "fired": fired, "note": note}
