"""What the rules share: picking rows, counting seeds, naming blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from initlab.judge.cache import kept
from initlab.judge.words import listed, trimmed
from initlab.rundir import Run

CELL = ["recipe", "run_id", "seed", "n_layer", "n_embd"]
LARGE = 3.0  # times the other rows of a table; added words drawn at torch's std 1 among GPT-2's are 50 times
MATRICES = ("attn_qkv", "attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_gate", "mlp_out")  # inside the blocks


@kept
def rows_of(run: Run, kind: str, *sites: str) -> pd.DataFrame:
    """Records of a kind, at some sites or at all."""
    if sites:
        rows = rows_of(run, kind)
        return rows[rows["site"].isin(sites)]
    return run.tables.records[run.tables.records["kind"] == kind]


def normed_writes(run: Run) -> pd.DataFrame:
    """Pick the branches, of table `wiring`, with a norm behind them: it takes the scale of what they write away.

    Args:
        run: of any kind.
    """
    wiring = run.tables.wiring
    return wiring[(wiring["post_norm"].fillna("") != "") | (wiring["sum_norm"].fillna("") != "")]


def parts(frame: pd.DataFrame, by: Sequence[str], *, sort: bool = False) -> Iterator[tuple[Any, pd.DataFrame]]:
    """Yield the keys and the rows of every group, as groupby does.

    A probe is of one recipe, one cell and mostly one stack, so that all rows are one group: that is seen at once, where
    to group costs as much as to judge.
    """
    if frame.empty:
        return
    keys = [frame[column].unique() for column in by]
    if all(len(values) == 1 and not pd.isna(values[0]) for values in keys):
        yield tuple(values[0] for values in keys), frame
    else:
        yield from frame.groupby(list(by), observed=True, sort=sort)


def large_rows(rows: pd.DataFrame, factor: float = LARGE) -> pd.Series:
    """Tell which tables have rows that are drawn much larger than the others.

    Args:
        rows: of the table `draws`.
        factor: times the others.
    """
    large: pd.Series = rows["odd_rms"] > factor * rows["odd_rest"]
    return large


def large_text(row: pd.Series) -> str:
    """Say which rows are: `rows 240–255 of tok.weight have std 0.99, the others 0.02`.

    Args:
        row: of the table `draws`.
    """
    have = "has" if row["odd"].startswith("row ") else "have"
    return f"{row['odd']} {have} std {trimmed(row['odd_rms'], 2)}, the others {trimmed(row['odd_rest'], 2)}"


def family(modules: pd.Series) -> pd.Series:
    """`h.*.mlp.c_fc` of `h.3.mlp.c_fc`: the same module of every block."""
    named: pd.Series = modules.astype(str).str.replace(r"\.\d+(?=\.|$)", ".*", regex=True)
    return named


def in_block(parameter: str) -> str:
    """Name a parameter as a block does: `mlp.c_fc.weight` of `h.3.mlp.c_fc.weight`."""
    return re.sub(r"^(.*?\.)?\d+\.", "", parameter)


def called(run: Run, cells: pd.DataFrame, otherwise: str, *roles: str, by: str = "run_id") -> list[str]:
    """How the model of each cell names its weights of some roles: `attn.c_proj.weight and mlp.c_proj.weight`.

    `otherwise` where it has none on record; `by` is what tells one model from another.
    """
    rows = rows_of(run, "weight", *roles)
    names: dict[str, list[str]] = {}
    for model, name in zip(rows[by].astype(str), rows["module"].astype(str), strict=True):
        names.setdefault(model, []).append(in_block(name))
    found = {model: listed(list(dict.fromkeys(own))) for model, own in names.items()}
    return [found.get(model, otherwise) for model in cells[by].astype(str)]


def seeds(bad: pd.Series, seed: pd.Series) -> dict[str, int]:
    """How many seeds have a bad row, of how many; a verdict that only their mean fails counts as one."""
    failing = bad.groupby(seed).any()
    return {"seeds_failing": max(int(failing.sum()), 1), "seeds_total": len(failing)}


def blocks(layers: pd.Series) -> dict[str, int | None]:
    """First and last block among rows; None where they are outside the blocks."""
    known = layers.dropna()
    ends = (int(known.min()), int(known.max())) if len(known) else (None, None)
    return {"layer_first": ends[0], "layer_last": ends[1]}


def size(row: Any, frame: pd.DataFrame) -> str:
    """` at 12 layers, n_embd 384`: what tells the cell of a row from the frame's others; empty where all are alike."""
    parts = []
    if frame["n_layer"].nunique() > 1:
        parts.append(f"{int(row['n_layer'])} layers")
    if frame["n_embd"].nunique() > 1:
        parts.append(f"n_embd {int(row['n_embd'])}")
    return f" at {', '.join(parts)}" if parts else ""
