"""`initlab compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from initlab.cli.common import (
    Progress,
    add_measuring,
    add_models,
    default_out,
    numbers,
    of_models,
    overrides,
    set_threads,
    show,
)

if TYPE_CHECKING:
    from initlab.cli.common import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    compare = commands.add_parser(
        "compare",
        help="measure init recipes side by side on NanoGPT, across depths",
        description="Measure init recipes side by side on NanoGPT, over depths, widths and seeds, on real text.",
    )
    compare.add_argument("recipes", nargs="+", metavar="RECIPE", help="id (see `initlab recipes`) or file.py:name")
    compare.add_argument("--depths", type=numbers, default=(4, 8, 16), metavar="L,L,…", help="n_layer (4,8,16)")
    compare.add_argument(
        "--n-embd", type=numbers, default=(384,), metavar="D,D,…", help="widths (384); heads of 64 unless --n-head"
    )
    compare.add_argument("--seeds", type=int, default=3, metavar="N", help="draws of weights and text (3)")
    add_models(compare, block_size=256, batch_size=4)
    add_measuring(compare, fail_on="never")
    compare.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    compare.add_argument("--jobs", type=int, default=1, metavar="N", help="models at a time, in a process each (1)")
    compare.add_argument(
        "--engine",
        default="auto",
        metavar="NAME",
        help="where to measure: here, processes or another's (auto)",
    )
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    from initlab.api.compare import compare

    set_threads(options)
    overrides(options)
    out = Path(options.out) if options.out else default_out("compare")
    options.folder = out
    with Progress(out, "compare") as progress:
        result = compare(
            options.recipes,
            depths=options.depths,
            widths=options.n_embd,
            seeds=options.seeds,
            stats=options.stats,
            jobs=options.jobs,
            engine=options.engine,
            out=out,
            progress=progress,
            **of_models(options),
        )
    return show(result, options, out)
