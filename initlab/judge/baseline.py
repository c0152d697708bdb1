"""Findings that another judgement had already: what is new since."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from initlab.errors import ConfigError
from initlab.judge import SEVERITIES
from initlab.judge.rules.base import Finding

_FILE = "findings.json"


def known_among(findings: Iterable[Finding], baseline: str | Path) -> list[Finding]:
    """Pick the failures that a baseline has too, for the same recipe and site, and at least as severe.

    Numbers may differ: they do from seed to seed.

    Args:
        findings: of any status.
        baseline: findings.json, what `--format json` printed, or the folder of a run with a report.

    Raises:
        ConfigError: it can't be read, or holds no findings.
    """
    before: dict[tuple[str, str, str], int] = {}
    for code, recipe, site, severity in map(_key, _failures(Path(baseline))):
        rank = SEVERITIES.index(severity)
        before[code, recipe, site] = min(rank, before.get((code, recipe, site), rank))
    failed = [each for each in findings if each.status == "fail"]
    keys = [((each.code, each.recipe, each.site), SEVERITIES.index(each.severity)) for each in failed]
    return [each for each, (key, rank) in zip(failed, keys, strict=True) if before.get(key, len(SEVERITIES)) <= rank]


def _failures(path: Path) -> list[dict[str, Any]]:
    file = path / _FILE if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["findings"]
        return [each for each in found if each["status"] == "fail"]
    except OSError as error:
        hint = "; `initlab report` writes it into a run's folder" if file.name == _FILE else ""
        raise ConfigError(f"baseline {file} can't be read: {error.strerror}{hint}") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"baseline {file} holds no findings; expected findings.json, or what --format json printed"
        ) from None


def _key(finding: dict[str, Any]) -> tuple[str, str, str, Any]:
    code, recipe, site, severity = (finding.get(name, "") for name in ("code", "recipe", "site", "severity"))
    if severity not in SEVERITIES:
        raise ConfigError(f"the baseline has a finding of severity {severity!r}; known: {', '.join(SEVERITIES)}")
    return str(code), str(recipe), str(site), severity
