"""What every command shares: run.json, and predictions beside measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from initlab import __version__, environment, schema
from initlab.judge import theory
from initlab.results import json_ready, now
from initlab.schema import Tables


def annotate(
    tables: Tables, setting: theory.Setting, *, without: tuple[str, ...] = (), with_target: float = 1.0
) -> None:
    """Fill in `expected_*` in place, but for the sites named; gradients need a next token nearly everywhere."""
    prediction = theory.predict(setting, backward=with_target >= 0.9)
    for site in without:
        prediction = prediction.without(site)
    tables.records, tables.summary = theory.annotate(
        tables.records, tables.summary, prediction, with_target=with_target
    )


def new_manifest(
    kind: str,
    command: str,
    config: dict[str, Any],
    recipes: dict[str, Any],
    described: dict[str, Any],
    cells: list[str],
) -> dict[str, Any]:
    return json_ready(
        {
            "schema_version": schema.SCHEMA_VERSION,
            "initlab_version": __version__,
            "kind": kind,
            "command": command or f"initlab.{kind}(…)",
            "created": now(),
            "finished": None,
            "seconds": 0.0,
            "config": config,
            "recipes": recipes,
            "data": described,
            "environment": environment.describe(config["device"]),
            "git": environment.git(Path.cwd()),
            "cells": cells,
            "failed": {},
        }
    )
