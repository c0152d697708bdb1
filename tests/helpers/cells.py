"""Small made-up cells and a manifest, for tests of a run's folder."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from initlab import schema
from initlab.rundir import COMMITS
from initlab.schema import TABLES, Tables

CELLS = ["a", "b", "c"]


def manifest(**changes: Any) -> dict[str, Any]:
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "kind": "compare",
        "command": "initlab compare nanogpt → √2",
        "created": "2026-01-01T00:00:00Z",
        "finished": None,
        "seconds": 0.0,
        "config": {"recipes": ["nanogpt"], "depths": [2, 4], "seed": 0},
        "recipes": {"nanogpt": {"rows": [{"role": "wte", "std": 0.02 / math.sqrt(24)}]}},
        "cells": CELLS,
        "failed": {},
    } | changes


def cell(run_id: str, rows: int = 3, **values: Any) -> Tables:
    """One cell's tables: random float32 values, integers everywhere, and `values` in the records."""
    made = _cell(run_id, rows, tuple(values.items()))
    return Tables(**{name: frame.copy() for name, frame in made.items()})


@cache
def _cell(run_id: str, rows: int, values: tuple[tuple[str, Any], ...]) -> Tables:
    random = np.random.default_rng(sum(map(ord, run_id)))

    def row(name: str, layer: int | None) -> dict[str, object]:
        out: dict[str, object] = {}
        for column, spec in TABLES[name].items():
            if spec.dtype == "int64":
                out[column] = int(random.integers(1000))
            elif spec.dtype == "float64":
                out[column] = float(np.float32(random.standard_normal() * 10.0 ** random.integers(-30, 30)))
            else:
                out[column] = layer if spec.dtype == "Int64" else f"{column} {layer}"
        return out | {"run_id": run_id}

    records = [row("records", None if place == 0 else place) | dict(values) for place in range(rows)]
    made = {name: [row(name, 0)] for name in ("summary", "coverage", "draws", "declared", "runs")}
    made |= {name: [row(name, 0), row(name, 1)] for name in TABLES if name not in {"records", *made}}
    return Tables(**{name: schema.table(name, made.get(name, records)) for name in TABLES})


def as_before(folder: Path) -> None:
    """Take from a run what versions before checksums didn't write."""
    content = json.loads((folder / "run.json").read_text())
    del content["committed"], content["sum"]
    (folder / "run.json").write_text(json.dumps(content))
    (folder / COMMITS).unlink()
