"""Which rules judge a run, and by which limits: what a user may override."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from initlab.errors import ConfigError
from initlab.judge.rules.base import RULES, Rule
from initlab.options import real, shown

EVERY = "ALL"  # as a code: every rule


@dataclass(frozen=True, slots=True)
class Choice:
    """Rules in force and their limits.

    Attributes:
        rules: those that are selected and not ignored, in the catalogue's order.
        limits: code -> name -> value, complete, overridden or not.
        overrides: what the user gave, JSON-ready and empty where that was nothing; run.json stores it.
    """

    rules: tuple[Rule, ...]
    limits: dict[str, dict[str, float]]
    overrides: dict[str, Any]


def chosen(select: Iterable[str] = (), ignore: Iterable[str] = (), limits: Mapping[str, float] | None = None) -> Choice:
    """Resolve which rules and limits are in force, before anything is measured.

    Args:
        select: codes, prefixes of codes (`GRD`), or `ALL`; nothing selected is everything.
        ignore: the same, of rules to leave out.
        limits: numbers by code (`EMB001`, its first limit) or code and name (`EMB001.error`).

    Raises:
        ConfigError: a code that no rule has, a rule or name without limit, or a limit that is no number.
    """
    select, ignore = _codes("select", select), _codes("ignore", ignore)
    if not isinstance(limits, Mapping | None):
        raise ConfigError(f"limits is {shown(limits)}; expected numbers by code, as in {{'EMB001': 0.05}}")
    limits = dict(limits or {})
    for code in (*select, *ignore):
        if not any(_meant(rule, code) for rule in RULES):
            raise ConfigError(f"no rule has the code {code!r}; `initlab rules` lists them")
    rules = tuple(
        rule
        for rule in RULES
        if (not select or any(_meant(rule, code) for code in select)) and not any(_meant(rule, code) for code in ignore)
    )
    values = {rule.code: dict(rule.limits) for rule in RULES}
    for key, value in limits.items():
        code, name = _limit(key, value)
        values[code][name] = limits[key] = float(value)
    given = {"select": [] if EVERY in select else select, "ignore": ignore, "limits": limits}
    return Choice(rules, values, {key: value for key, value in given.items() if value})


def parse_limits(texts: Iterable[str]) -> dict[str, float]:
    """Read `CODE=x` and `CODE.name=x` as a dict.

    Args:
        texts: as they are written on the command line.

    Raises:
        ConfigError: no equals sign, or no number after it.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            found[key.strip()] = float(value)
        except ValueError:
            example = "expected CODE=number, such as EMB001=0.05"
            what = f"{value!r} is no number" if equals else "it has no ="
            raise ConfigError(f"limit {text!r} can't be used: {what}; {example}") from None
    return found


def named(code: str) -> Rule:
    """Find a rule.

    Args:
        code: or name of it, in capitals or not.

    Raises:
        ConfigError: there is none; the message has the nearest codes.
    """
    for rule in RULES:
        if code.upper() == rule.code or code.lower() == rule.name:
            return rule
    family = [rule.code for rule in RULES if rule.code.startswith(code[:3].upper())]
    hint = f"; there are {', '.join(family)}" if family else "; `initlab rules` lists them"
    raise ConfigError(f"no rule has the code {code!r}{hint}")


def judged_by() -> str:
    """Say by which limits and which code findings are made, in a sentence for a file of results.

    Returns:
        `Judged by limits `…`, rules `…`.`: the first 12 digits of the SHA-256 of every rule's limits, and of the source
        of the rules. Results with other limits than now are of another initlab; tests/benchmarks holds them to it.
    """
    limits = json.dumps({rule.code: dict(rule.limits) for rule in RULES}, sort_keys=True).encode()
    source = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    digits = [hashlib.sha256(data).hexdigest()[:12] for data in (limits, source)]
    return f"Judged by limits `{digits[0]}`, rules `{digits[1]}`."


def _codes(name: str, codes: Iterable[str]) -> list[str]:
    """Codes in capitals; one string may hold several, with commas between. Raises ConfigError where there are none."""
    given = [codes] if isinstance(codes, str) else list(codes) if isinstance(codes, Iterable) else [codes]
    wrong = [each for each in given if not isinstance(each, str)]
    if wrong:
        raise ConfigError(f"{name} holds {shown(wrong[0])}; expected codes of rules, or their beginnings, such as GRD")
    return [part.strip().upper() for text in given for part in text.split(",") if part.strip()]


def _meant(rule: Rule, code: str) -> bool:
    return code == EVERY or rule.code.startswith(code)


def _limit(key: Any, value: Any) -> tuple[str, str]:
    if not isinstance(key, str):
        raise ConfigError(f"limits holds {shown(key)}; expected the code of a rule, such as EMB001")
    code, _, name = key.partition(".")
    rule = named(code)
    if not rule.limits:
        raise ConfigError(f"{rule.code} ({rule.name}) has no limit to change; leave it out with ignore")
    name = name or next(iter(rule.limits))
    if name not in rule.limits:
        raise ConfigError(f"{rule.code} has no limit named {name!r}; it has {', '.join(rule.limits)}")
    if not real(value) or math.isnan(value):
        raise ConfigError(f"the limit of {rule.code} is {value!r}; expected a number")
    return rule.code, name
