"""`initlab trace-init`: what each line of the init code wrote."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from initlab.cli.common import FORMATS, print_for_programs
from initlab.errors import ConfigError
from initlab.judge import SEVERITIES, reaches

if TYPE_CHECKING:
    from initlab.cli.common import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    trace = commands.add_parser(
        "trace-init",
        help="show what each line of the init code wrote",
        description="Make a model and hear every write to its parameters: which line drew what, in which order, and "
        "what was skipped, lost or drawn over. `initlab probe file.py:factory` does the same and measures too.",
    )
    trace.add_argument("model", metavar="MODEL", help="file.py:factory or package.module:factory")
    trace.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of the factory, a Python literal or text: --arg n_layer=6 --arg act=relu (none)",
    )
    trace.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (0)")
    trace.add_argument(
        "--fail-on",
        choices=(*SEVERITIES, "never"),
        default="error",
        help="exit with 1 on findings of this severity or above (error)",
    )
    formats = [name for name in FORMATS if name != "markdown"]  # which is of a measured run
    trace.add_argument("--format", choices=formats, default="text", help="of stdout (text)")
    trace.set_defaults(run=_trace)


def _trace(options: argparse.Namespace) -> int:
    from initlab.api.trace_init import trace_init
    from initlab.drawing.loading import load_maker, parse_arguments
    from initlab.report.formats import json_ready

    if ":" not in options.model:
        raise ConfigError(f"{options.model} has no init code to trace; expected file.py:factory or package:factory")
    found = trace_init(load_maker(options.model), seed=options.seed, **parse_arguments(options.arg))
    if options.format == "json":
        shown = {
            "notes": found.notes,
            "findings": [finding.as_dict() for finding in found.findings],
            "writes": json.loads(found.writes.to_json(orient="records")),
        }
        print(json.dumps(json_ready(shown), ensure_ascii=False, indent=1))
    elif options.format == "text":
        print(found, end="")
    else:
        print_for_programs(found.document(), options)
    fails = None if options.fail_on == "never" else options.fail_on
    return int(any(each.status == "fail" and reaches(each.severity, fails) for each in found.findings))
