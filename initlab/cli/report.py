"""`initlab report`: needs no torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from initlab.cli.common import add_output, show
from initlab.errors import ConfigError

if TYPE_CHECKING:
    from initlab.cli.common import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    report = commands.add_parser(
        "report",
        help="render saved runs again; needs no torch",
        description="Judge and render saved runs again: terminal summary, report.html and figures. Needs no torch.",
    )
    report.add_argument("runs", nargs="+", metavar="DIR", help="folder of a run")
    report.add_argument("-o", "--out", metavar="DIR", help="write there instead of into the run's own folder")
    add_output(report, fail_on="never")
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from initlab.results import load

    if options.out and len(options.runs) > 1:
        raise ConfigError(f"-o takes one run at a time; {len(options.runs)} were given")
    codes = []
    for name in options.runs:
        result = load(name)
        options.no_report = False
        codes.append(show(result, options, Path(options.out or name)))
    return max(codes)
