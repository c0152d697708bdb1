"""run.json: what a run is. Read from a folder that anybody may have written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from initlab import schema
from initlab.errors import RunError
from initlab.rundir.files import write_whole

MANIFEST = "run.json"
COMMITTED = "committed"  # lines of commits.jsonl, None while the run goes on; no run of an earlier initlab has it
SUM = "sum"  # checksum of all other keys
_MOST_NAMED = 4  # differences, in an error


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _judging(value: Any) -> bool:
    parts = {"select": list, "ignore": list, "limits": dict}
    return isinstance(value, dict) and all(isinstance(value[key], parts.get(key, ())) for key in value)


def _recipes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(recipe, dict) and isinstance(recipe.get("rows", []), list) for recipe in value.values()
    )


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


_REQUIRED: dict[str, Callable[[Any], bool]] = {
    "config": _is(dict),
    "recipes": _recipes,
    "cells": _texts,
    "failed": _is(dict),
    "created": _is(str),
}
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "kind": _is(str),
    "command": _is(str),
    "initlab_version": _is(str),
    "finished": _is(str, type(None)),
    "seconds": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "data": _is(dict),
    "environment": _is(dict),
    "git": _is(dict, type(None)),
    "init": _is(dict),
    "metrics": _is(dict),
    "judging": _judging,
    COMMITTED: lambda value: value is None or (type(value) is int and value >= 0),
}
_CONFIG: dict[str, Callable[[Any], bool]] = {
    "recipes": _texts,
    "left_out": _is(dict),
    **dict.fromkeys(("depths", "widths", "lrs", "warmups"), _is(list)),
}


def read_manifest(path: Path) -> dict[str, Any]:
    """Read run.json of a folder.

    Args:
        path: of the folder.

    Raises:
        RunError: there is none, or it is damaged, or of a newer schema than this version knows.
    """
    source = path / MANIFEST
    manifest = _parsed(path)
    version = manifest.get("schema_version")
    if type(version) is not int or version < 1:
        raise RunError(
            f"{source} has schema version {version!s:.40}, which no initlab wrote; measure into a new folder"
        )
    if version > schema.SCHEMA_VERSION:
        raise RunError(
            f"{source} was written by a newer initlab (schema {version}), this one reads up to "
            f"{schema.SCHEMA_VERSION}: update initlab"
        )
    damaged = [key for key, fits in _REQUIRED.items() if not fits(manifest.get(key))]
    damaged += [key for key, fits in _OPTIONAL.items() if key in manifest and not fits(manifest[key])]
    if "config" not in damaged:
        config = manifest["config"]
        damaged += [f"config.{key}" for key, fits in _CONFIG.items() if key in config and not fits(config[key])]
    if damaged:
        raise RunError(
            f"{source} is damaged: {', '.join(damaged)} missing or of another type; measure into a new folder"
        )
    return manifest


def _parsed(path: Path) -> dict[str, Any]:
    source = path / MANIFEST
    try:
        manifest = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"no run in {path}: {MANIFEST} not found; give the folder that -o named") from None
    except RecursionError:
        raise RunError(f"{source} can't be read: its values are nested too deeply; no initlab wrote it") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{source} can't be read: {error}") from None
    return manifest if isinstance(manifest, dict) else {}


def unchanged(manifest: dict[str, Any]) -> bool:
    """Tell whether a manifest is as it was written; of an earlier initlab's that can't be told, and is taken so.

    Args:
        manifest: as it was read.
    """
    return SUM not in manifest or manifest[SUM] == _sum_of(manifest)


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write run.json of a folder. Raises RunError where it can't be.

    Args:
        path: of the folder.
        manifest: all of it; its checksum is added where it has commits.
    """
    if COMMITTED in manifest:
        manifest = manifest | {SUM: _sum_of(manifest)}
    write_whole(path / MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())


def _sum_of(manifest: dict[str, Any]) -> str:
    """Of what is read back: JSON has no tuples, and keys that are texts."""
    kept = json.loads(json.dumps({key: value for key, value in manifest.items() if key != SUM}))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def refuse_another_run(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compare two manifests by what makes runs the same.

    Args:
        path: of the folder.
        found: what is in it.
        wanted: what would be written.

    Raises:
        RunError: they are of two runs.
    """
    there, now = found.get("kind"), wanted.get("kind")
    if there != now:
        raise RunError(f"output folder {path} holds a run of `{there}`, not of `{now}`; choose another folder with -o")
    different = sorted(
        f"{key}: {found['config'].get(key)!r} there, {wanted['config'].get(key)!r} now"
        for key in wanted["config"].keys() | found["config"].keys()
        if found["config"].get(key) != wanted["config"].get(key)
    )
    if found["recipes"] != wanted["recipes"] and not different:
        different = ["the recipes' definitions changed"]
    if different:
        more = len(different) - _MOST_NAMED
        shown = different[:_MOST_NAMED] + ([f"{more} more"] if more > 0 else [])
        raise RunError(
            f"output folder {path} holds another run ({'; '.join(shown)}); "
            "choose another folder with -o, or repeat the same command to resume"
        )
