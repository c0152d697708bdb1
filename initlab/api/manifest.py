"""What every command shares: run.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from initlab import __version__, environment, schema
from initlab.report.formats import json_ready
from initlab.results import now


def new_manifest(
    kind: str,
    config: dict[str, Any],
    recipes: dict[str, Any],
    described: dict[str, Any],
    cells: list[str],
) -> dict[str, Any]:
    """Begin a run's manifest; its command is the command line's, where one runs."""
    return json_ready(
        {
            "schema_version": schema.SCHEMA_VERSION,
            "initlab_version": __version__,
            "kind": kind,
            "command": environment.COMMAND.get() or f"initlab.{kind}(…)",
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
