"""Tables of several processes or micro-batches, each of its own part of a batch, to those of the whole batch.

Moments are merged by their sums (Chan, Golub and LeVeque 1979; third and fourth ones as in Pébay 2008, SAND2008-6212),
means by what they are means of. What is neither, a statistic of a user's own, is NaN where it is of a tensor that
differs between the processes, and that is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from initlab import schema
from initlab.measure.attention import SEQUENCES
from initlab.measure.statistics import Statistic
from initlab.schema import HEADS, RECORDS, Tables

_CHUNK = 1 << 24  # elements at a time: 64 MiB of float32
_CACHED = 1 << 18  # and on a CPU, where what stays in its cache is read again three times as fast
_SHARES = [name for name in RECORDS if name.startswith("frac_")]
_PARTS = ("activation", "grad")  # of each process's own samples; weights and their gradients are whole everywhere

Row = dict[str, Any]


def _third(x: Tensor) -> Tensor:
    """E[(x - E[x])^3], which it takes to merge fourth moments"""
    flat = (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).reshape(-1)
    # float32 is enough: it is multiplied with how far a part's mean is from the others', and doubles take twice as long
    wide = flat if flat.dtype == torch.float64 else flat.float()
    pieces = wide.split(_CACHED if flat.device.type == "cpu" else _CHUNK)
    mean = torch.stack([piece.sum() for piece in pieces]).double().sum() / flat.numel()
    centred = (piece - mean.to(wide.dtype) for piece in pieces)
    return torch.stack([torch.dot(y * y, y) for y in centred]).double().sum() / flat.numel()


_OF_HEADS = tuple(name for name in HEADS if name.startswith(("entropy", "logit_std")))

THIRD = Statistic(name="third_of_part", function=_third, of=_PARTS, own=True)


def merged(parts: Sequence[Tables], counted: Sequence[int], of: tuple[str, str] = ("processes", "process")) -> Tables:
    """Merge the tables that were made of one model, each of its own part of a batch.

    Args:
        parts: by process or micro-batch, each with its share of the loss; with the column of `THIRD`, which is dropped,
            where there is to be a kurtosis.
        counted: targets of each part.
        of: what the parts are of, and one of these, for notes.
    """
    first = parts[0]
    total = sum(int(part.summary["n_tokens"].iloc[0]) for part in parts)
    own = [name for name in first.records if name not in RECORDS and name != THIRD.name]
    own_heads = [name for name in first.heads if name not in HEADS]
    shared = {"n_tokens": total} | dict.fromkeys(own, math.nan)
    records = [_record(rows, shared) for rows in _grouped([part.records for part in parts], _of_record)]
    heads = [
        _means(rows, [row["n_rows"] for row in rows], _OF_HEADS)
        | {"n_rows": sum(row["n_rows"] for row in rows)}
        | dict.fromkeys(own_heads, math.nan)
        for rows in _grouped([part.heads for part in parts], lambda row: (row["module"], row["layer"], row["head"]))
    ]
    coverage = [max(rows, key=lambda row: row["fired"]) for rows in _grouped([p.coverage for p in parts], _of_coverage)]
    notes = [f"not merged over the {of[0]}, and NaN: {', '.join(own + own_heads)}"] if own + own_heads else []
    notes += [f"attention heads are of the first {SEQUENCES} sequences of each {of[1]}"] if heads else []
    about = {"run_id": coverage[0]["run_id"], "kind": "activation", "site": "model", "expected": 0, "fired": 0}
    return Tables(
        records=schema.table("records", records, own),
        heads=schema.table("heads", heads, own_heads),
        summary=schema.table("summary", [_summary(parts, counted) | {"logit_std": _logit_std(records)}]),
        coverage=schema.table("coverage", [*coverage, *(about | {"note": note} for note in notes)]),
        wiring=first.wiring,
        routing=first.routing,
        draws=first.draws,
        declared=first.declared,
    )


def _rows(frame: pd.DataFrame) -> list[Row]:
    """Rows of plain values; what is missing is None, or NaN in a column of numbers."""
    rows: list[Any] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    numbers = [str(name) for name in frame if frame[name].dtype == "float64"]
    return [row | {name: math.nan for name in numbers if row[name] is None} for row in rows]


def _grouped(frames: Iterable[pd.DataFrame], key: Callable[[Row], Any]) -> list[list[Row]]:
    """The rows of all frames that are of one thing, in the order in which things are first met."""
    found: dict[Any, list[Row]] = {}
    for frame in frames:
        for row in _rows(frame):
            found.setdefault(key(row), []).append(row)
    return list(found.values())


def _of_record(row: Row) -> Any:
    return row["kind"], row["site"], row["module"], row["layer"], row["call"]


def _of_coverage(row: Row) -> Any:
    return row["kind"], row["site"], row["note"] if row["site"] == "model" else ""


def _mean(rows: Sequence[Row], weights: Sequence[float], name: str) -> float:
    """Weighted mean of a column; of the rows that have it, if one has."""
    known = [(row[name], weight) for row, weight in zip(rows, weights, strict=True) if row[name] == row[name]]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else math.nan


def _means(rows: Sequence[Row], weights: Sequence[float], names: Iterable[str]) -> Row:
    return rows[0] | {name: _mean(rows, weights, name) for name in names}


def _record(rows: list[Row], shared: Row) -> Row:
    """One tensor of which each row has a part."""
    if rows[0]["kind"] not in _PARTS:
        reached = max((row["reached"] for row in rows if row["reached"] == row["reached"]), default=math.nan)
        found = rows[0] | {"n_tokens": shared["n_tokens"], "reached": reached}
    else:
        filled = [row for row in rows if row["numel"]]
        found = (_moments(filled) if filled else rows[0]) | shared
    found.pop(THIRD.name, None)
    return found


def _moments(rows: list[Row]) -> Row:
    counts = [row["numel"] for row in rows]
    total = sum(counts)
    mean = sum(row["mean"] * n for row, n in zip(rows, counts, strict=True)) / total
    off = [row["mean"] - mean for row in rows]
    var = sum((row["var"] + d * d) * n for row, d, n in zip(rows, off, counts, strict=True)) / total
    largest = [row["abs_max"] for row in rows]
    moments = {
        "numel": total,
        "mean": mean,
        "var": var,
        "std": math.sqrt(var) if var >= 0 else math.nan,
        "rms": math.sqrt(var + mean * mean) if var >= 0 else math.nan,
        "abs_mean": sum(row["abs_mean"] * n for row, n in zip(rows, counts, strict=True)) / total,
        "abs_max": max(largest) if all(each == each for each in largest) else math.nan,
        "kurtosis": math.nan,
        # of the sum of squares over a sequence's positions, which the mean square is of
        "together": _mean(rows, [n * row["rms"] ** 2 for row, n in zip(rows, counts, strict=True)], "together"),
    }
    if var > 0 and THIRD.name in rows[0]:
        fourth = 0.0
        for row, d, n in zip(rows, off, counts, strict=True):
            own = (row["kurtosis"] + 3) * row["var"] ** 2 if row["var"] > 0 else row["var"]
            fourth += n * (own + 4 * d * row[THIRD.name] + 6 * d * d * row["var"] + d**4)
        moments["kurtosis"] = fourth / total / var**2 - 3
    return _means(rows, counts, _SHARES) | moments


def _summary(parts: Sequence[Tables], counted: Sequence[int]) -> Row:
    rows = [_rows(part.summary)[0] for part in parts]
    tokens = [row["n_tokens"] for row in rows]
    embedded = []
    for part in parts:
        embed = part.records[(part.records["site"] == "embed") & (part.records["kind"] == "activation")]
        embedded.append(float((embed["numel"] * embed["rms"] ** 2).sum()))
    found = _means(rows, tokens, ("own_logit", "token_cosine", "token_position_ratio"))
    return found | {
        "n_tokens": sum(tokens),
        "n_head": max(row["n_head"] for row in rows),
        "loss": sum(row["loss"] for row in rows),
        "repeat_rate": _mean(rows, counted, "repeat_rate"),
        "embed_together": _mean(rows, embedded, "embed_together"),
        "seconds": max(row["seconds"] for row in rows),
    }


def _logit_std(records: Sequence[Row]) -> float:
    return next((row["std"] for row in records if (row["site"], row["kind"]) == ("logits", "activation")), math.nan)
