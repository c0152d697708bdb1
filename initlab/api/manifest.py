"""What every command shares: run.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab import __version__, environment, schema
from initlab.report.formats import json_ready
from initlab.results import now

if TYPE_CHECKING:
    from torch import nn


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


def in_words(value: Any, model: nn.Module) -> Any:
    """Write a filter as run.json can hold it: names as they are, modules, classes and functions by their names.

    Args:
        value: `sites=` or `modules=` of a command.
        model: that it is about.
    """
    if isinstance(value, dict):
        return {str(key): in_words(item, model) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [in_words(item, model) for item in value]
    if isinstance(value, str):
        return str(value)
    names = {id(module): name for name, module in model.named_modules()}
    value = names.get(id(value), getattr(value, "pattern", getattr(value, "__name__", value)))
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)
    return value
