"""What the rules share: picking rows, counting seeds, naming blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from initlab.judge.cache import kept
from initlab.judge.rows import Array, Row, Rows
from initlab.judge.words import listed, unlike
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


@kept
def table_of(run: Run, name: str) -> Rows:
    """A table of a run, by its name."""
    return Rows.of(getattr(run.tables, name))


@kept
def recorded(run: Run, kind: str, *sites: str) -> Rows:
    """`rows_of`, as arrays."""
    rows = recorded(run, kind) if sites else table_of(run, "records")
    return rows[rows.among("site", sites) if sites else rows["kind"] == kind]


@kept
def heads_of(run: Run) -> Rows:
    """Pick the heads; where a bias may be added to the scores, entropy_frac and logit_std are of what the input makes.

    A bias of positions (ALiBi's, T5's) is meant, and no matrix drawn otherwise would change it. Where one is known and
    the batch is of a single sequence, they are NaN: what is shared can't be told.
    """
    rows, wiring = table_of(run, "heads"), table_of(run, "wiring")
    known = wiring[wiring["bias"] == 1]
    biased = set(zip(known["run_id"], known["layer"], strict=True))
    meant = np.array([place in biased for place in zip(rows["run_id"], rows["layer"], strict=True)], dtype=bool)
    own = {name: rows[f"{name}_by_input"] for name in ("entropy_frac", "logit_std")}
    return rows.assign(**{name: np.where(np.isnan(x) & ~meant, rows[name], x) for name, x in own.items()})


def normed_writes(run: Run) -> Rows:
    """Pick the branches, of table `wiring`, with a norm behind them: it takes the scale of what they write away.

    Args:
        run: of any kind.
    """
    wiring = table_of(run, "wiring")
    return wiring[wiring["post_norm"].astype(bool) | wiring["sum_norm"].astype(bool)]


def parts(frame: pd.DataFrame | Rows, by: Sequence[str]) -> Iterator[tuple[Any, pd.DataFrame | Rows]]:
    """Yield the keys and the rows of every group, in the order of their keys.

    A probe is of one recipe, so that all rows are one group: that is seen at once, where to group costs as much as to
    judge.
    """
    if frame.empty:
        return
    if isinstance(frame, Rows):
        for own in frame.parts(*by, sort=True):
            yield tuple(own[0][column] for column in by), own
        return
    keys = [frame[column].unique() for column in by]
    if all(len(values) == 1 and not pd.isna(values[0]) for values in keys):
        yield tuple(values[0] for values in keys), frame
    else:
        yield from frame.groupby(list(by), observed=True, sort=True)


def large_rows(rows: Rows, factor: float = LARGE) -> Array:
    """Tell which tables have rows that are drawn much larger than the others.

    Args:
        rows: of the table `draws`.
        factor: times the others.
    """
    return np.asarray(rows["odd_rms"] > factor * rows["odd_rest"])


def large_text(row: Row) -> str:
    """Say which rows are: `rows 240–255 of tok.weight have std 0.99, the others 0.02`.

    Args:
        row: of the table `draws`.
    """
    return unlike(row["odd"], row["odd_rms"], row["odd_rest"], 2)


def family(modules: Iterable[Any]) -> Array:
    """`h.*.mlp.c_fc` of `h.3.mlp.c_fc`: the same module of every block."""
    return np.array([_family(str(name)) for name in modules], dtype=object)


@lru_cache(4096)
def _family(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def in_block(parameter: str) -> str:
    """Name a parameter as a block does: `mlp.c_fc.weight` of `h.3.mlp.c_fc.weight`."""
    return re.sub(r"^(.*?\.)?\d+\.", "", parameter)


def called(run: Run, cells: pd.DataFrame | Rows, otherwise: str, *roles: str, by: str = "run_id") -> list[str]:
    """How the model of each cell names its weights of some roles: `attn.c_proj.weight and mlp.c_proj.weight`.

    `otherwise` where it has none on record; `by` is what tells one model from another.
    """
    found = _names(run, by, *roles)
    return [found.get(str(model), otherwise) for model in cells[by]]


@kept
def _names(run: Run, by: str, *roles: str) -> dict[str, str]:
    rows = recorded(run, "weight", *roles)
    names: dict[str, dict[str, None]] = {}
    for model, name in zip(rows[by], rows["module"], strict=True):
        names.setdefault(str(model), {})[in_block(str(name))] = None
    return {model: listed(list(own)) for model, own in names.items()}


def seeds(bad: Iterable[Any], seed: Iterable[Any]) -> dict[str, int]:
    """How many seeds have a bad row, of how many; a verdict that only their mean fails counts as one."""
    found: dict[Any, bool] = {}
    for each, wrong in zip(seed, bad, strict=True):
        found[each] = found.get(each, False) or (wrong is not pd.NA and bool(wrong))
    return {"seeds_failing": max(sum(found.values()), 1), "seeds_total": len(found)}


def blocks(layers: Iterable[Any]) -> dict[str, int | None]:
    """First and last block among rows; None where they are outside the blocks."""
    known = [int(layer) for layer in layers if not pd.isna(layer)]
    return {"layer_first": min(known, default=None), "layer_last": max(known, default=None)}


def size(row: Any, frame: pd.DataFrame | Rows) -> str:
    """` at 12 layers, n_embd 384`: what tells the cell of a row from the frame's others; empty where all are alike."""
    parts = []
    if len(set(frame["n_layer"])) > 1:
        parts.append(f"{int(row['n_layer'])} layers")
    if len(set(frame["n_embd"])) > 1:
        parts.append(f"n_embd {int(row['n_embd'])}")
    return f" at {', '.join(parts)}" if parts else ""
