"""`initlab compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from initlab.cli.common import (
    TerminalProgress,
    add_base,
    add_engine,
    add_measuring,
    add_model,
    add_models,
    base_of,
    default_out,
    model_of,
    numbers,
    overrides,
    roles_of,
    run_of,
    set_threads,
    show,
    text_of,
)
from initlab.cli.given import add_batch, batch_given, read_files

if TYPE_CHECKING:
    from initlab.cli.common import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    compare = commands.add_parser(
        "compare",
        help="measure inits side by side on one model, across depths",
        description="Measure inits of NanoGPT, or of a model of yours, side by side, over depths, widths and seeds, on "
        "real text.",
    )
    compare.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE",
        help="id (see `initlab recipes`), file.py:recipe, or file.py:function of n_layer and n_embd that makes a model "
        "with an init of its own",
    )
    add_model(compare)
    compare.add_argument("--depths", type=numbers, metavar="L,L,…", help="n_layer (4,8,16)")
    compare.add_argument(
        "--n-embd", "--widths", type=numbers, metavar="D,D,…", help="widths (384); heads of 64 unless --n-head"
    )
    add_base(compare)
    compare.add_argument("--seeds", type=int, default=3, metavar="N", help="draws of weights and text (3)")
    add_models(compare, block_size=256, batch_size=4)
    add_batch(compare, "for models that aren't NanoGPTs, a function of nothing")
    add_measuring(compare, fail_on="never")
    compare.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    add_engine(compare)
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    from initlab.api.compare import DEPTHS, MODEL, compare
    from initlab.models.config import NanoGPTConfig

    set_threads(options)
    read_files(options.model, options.batch, *options.recipes)
    overrides(options)
    out = Path(options.out) if options.out else default_out("compare")
    options.folder = out
    model = model_of(options, MODEL)
    usual = DEPTHS if isinstance(model, NanoGPTConfig) and options.model is None else None
    with TerminalProgress(out, "compare", options) as progress:
        result = compare(
            options.recipes,
            model=model,
            roles=roles_of(options),
            depths=options.depths or usual,
            widths=options.n_embd,
            base=base_of(options),
            seeds=options.seeds,
            batch=batch_given(options),
            text=text_of(options),
            stats=options.stats,
            dtype=options.dtype,
            run=run_of(options, progress),
        )
    return show(result, options, out)
