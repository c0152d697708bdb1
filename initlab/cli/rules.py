"""`initlab rules`: the checks, listed or explained."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from initlab.cli.common import use_color

if TYPE_CHECKING:
    from initlab.cli.common import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    rules = commands.add_parser(
        "rules",
        help="list the checks, or explain one",
        description="List the checks, or explain one: what it measures and why, its limit and where that comes from.",
    )
    rules.add_argument("code", nargs="?", metavar="CODE", help="code or name of a rule, such as RES001")
    rules.add_argument("--format", choices=("text", "json"), default="text", help="of stdout (text)")
    rules.set_defaults(run=_rules)


def _rules(options: argparse.Namespace) -> int:
    from initlab.judge.rules import RULES, named
    from initlab.report import rules

    shown = list(RULES) if options.code is None else [named(options.code)]
    if options.format == "json":
        described = [rules.as_dict(rule) for rule in shown]
        print(json.dumps(described if options.code is None else described[0], ensure_ascii=False, indent=1))
    elif options.code is None:
        print(rules.list_text(shown, color=use_color()), end="")
    else:
        print(rules.rule_text(shown[0], color=use_color()), end="")
    return 0
