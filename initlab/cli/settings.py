"""What a project says in its pyproject.toml, under [tool.initlab]: defaults of options, which the command line wins
over."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any

from initlab.errors import ConfigError
from initlab.judge import SEVERITIES

_FILE = "pyproject.toml"
_KNOWN = ("select", "ignore", "limits", "fail-on", "baseline", "sites")


def apply_settings(options: argparse.Namespace, folder: Path) -> None:
    """Fill in what the command line left open, of the commands that judge.

    `fail-on` is for the commands that fail by themselves, probe and fix: others measure bad inits on purpose. `sites`
    are the blocks that `initlab probe --blocks` names, of the models of functions.

    Args:
        options: as they were parsed; changed.
        folder: from which on upwards the nearest pyproject.toml with the table is looked for.

    Raises:
        ConfigError: the file can't be read, or holds what isn't known.
    """
    if not hasattr(options, "select"):
        return
    path, given = _nearest(folder)
    if path is None:
        return
    given = {key.replace("_", "-"): value for key, value in given.items()}
    unknown = sorted(given.keys() - set(_KNOWN))
    if unknown:
        raise ConfigError(f"{path}, [tool.initlab]: unknown {', '.join(unknown)}; known: {', '.join(_KNOWN)}")
    options.select = options.select or _texts(path, given, "select")
    options.ignore = options.ignore or _texts(path, given, "ignore")
    options.limit = [*_limits(path, given), *options.limit]  # the last of a code counts
    severity = given.get("fail-on")
    if severity is not None:
        if severity not in (*SEVERITIES, "never"):
            raise ConfigError(
                f"{path}, [tool.initlab]: fail-on is {severity!r}; expected {', '.join(SEVERITIES)} or never"
            )
        if options.fail_on is None and options.fails_by_itself:
            options.fail_on = severity
    if given.get("baseline") is not None and getattr(options, "baseline", "") is None:
        options.baseline = str(path.parent / str(given["baseline"]))
    preset = ":" not in str(getattr(options, "model", ""))  # whose blocks are known
    if getattr(options, "blocks", "") is None and not preset:
        options.blocks = _texts(path, given, "sites") or None


def _nearest(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    for each in (folder, *folder.parents):
        path = each / _FILE
        if not path.is_file():
            continue
        try:
            tools = tomllib.loads(path.read_text(encoding="utf-8")).get("tool")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} can't be read: {error}") from None
        table = tools.get("initlab") if isinstance(tools, dict) else None
        if isinstance(table, dict):
            return path, table
    return None, {}


def _texts(path: Path, given: dict[str, Any], name: str) -> list[str]:
    value = given.get(name, [])
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise ConfigError(f"{path}, [tool.initlab]: {name} is {value!r}; expected a list of texts")
    return values


def _limits(path: Path, given: dict[str, Any]) -> list[str]:
    """As `--limit` takes them; a code with several limits may be a table of its own."""
    value = given.get("limits", {})
    if not isinstance(value, dict):
        raise ConfigError(f"{path}, [tool.initlab]: limits is {value!r}; expected a table such as {{ EMB001 = 0.05 }}")
    flat: dict[str, Any] = {}
    for code, limit in value.items():
        flat |= {f"{code}.{name}": each for name, each in limit.items()} if isinstance(limit, dict) else {code: limit}
    return [f"{code}={limit}" for code, limit in flat.items()]
