"""Two inits as one run of two recipes, so that one page shows them beside each other and what differs above."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from initlab.environment import COMMAND
from initlab.judge.cache import kept
from initlab.judge.differences import Compared, compared, one_recipe
from initlab.judge.differences.verdicts import COLUMNS
from initlab.rundir import Run
from initlab.schema import Tables


def beside(found: Compared, a: Run, b: Run, names: tuple[str, str], changes: Sequence[str] = ()) -> Run:
    """Make one run of two.

    Args:
        found: what differs between them.
        a: of one recipe.
        b: likewise.
        names: what the page calls them; two different ones.
        changes: sentences about what was changed in between.
    """
    renamed = [_renamed(run.tables, name) for run, name in ((a, names[0]), (b, names[1]))]
    tables = Tables.concat(renamed)
    cells = list(dict.fromkeys(tables.summary["run_id"].astype(str)))
    manifest = a.manifest | {"kind": "compare", "recipes": {}, "cells": cells, "failed": {}}
    manifest["command"] = COMMAND.get() or manifest.get("command", "")
    manifest["config"] = a.manifest["config"] | {"recipes": list(names)}
    # which recipe the weights fit, and what doesn't, is of one model
    manifest["init"] = {key: value for key, value in (a.manifest.get("init") or {}).items() if key == "depth_code"}
    manifest["changes"] = list(changes)
    rows: list[dict[str, Any]] = found.findings.to_dict("records")
    manifest["beside"] = {
        "names": list(names),
        "called": list(found.names),
        "findings": rows,
        "notes": found.notes,
        "data": b.manifest.get("data") or {},
    }
    return Run(tables, manifest)


@kept
def again(run: Run) -> Compared | None:
    """What differs between the two of such a run; None of any other run.

    Args:
        run: as `beside` makes it, also from its folder.
    """
    kept_of = run.manifest.get("beside")
    if not kept_of:
        return None
    names = kept_of["names"]
    a, b = (one_recipe(run, name, "the run") for name in names)
    b = Run(b.tables, b.manifest | {"data": kept_of["data"]})
    found = compared(a, b, [], [], tuple(kept_of["called"]))
    rows = pd.DataFrame(kept_of["findings"], columns=list(COLUMNS))
    return dataclasses.replace(found, findings=rows, notes=kept_of["notes"])


def recalled(run: Run, names: Mapping[str, str]) -> Run:
    """The same run, with other names for recipes that aren't any: of a model as it was given.

    Args:
        run: of any kind.
        names: old -> new.
    """
    if not names:
        return run
    tables = run.tables.giving(recipe=lambda column: column.replace(dict(names)))
    config = dict(run.manifest["config"])
    config["recipes"] = [names.get(str(recipe), recipe) for recipe in config.get("recipes", [])]
    return Run(tables, run.manifest | {"config": config})


def _renamed(tables: Tables, name: str) -> Tables:
    """The tables under another recipe's name; run ids get it too, so that the two are told apart."""
    ids = list(dict.fromkeys(tables.summary["run_id"].astype(str)))
    new = {old: name if len(ids) == 1 else f"{name}-{number}" for number, old in enumerate(ids)}
    return tables.giving(recipe=name, run_id=lambda column: column.map(new))
