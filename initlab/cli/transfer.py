"""`initlab transfer`: does the best learning rate of a small model hold for a large one?"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from initlab.cli.common import (
    TerminalProgress,
    add_base,
    add_model,
    base_of,
    default_out,
    model_of,
    nanogpt_options,
    numbers,
    overrides,
    rates,
    roles_of,
    run_of,
    show,
    text_of,
)
from initlab.cli.given import read_files
from initlab.cli.training import add_training, training_of

if TYPE_CHECKING:
    from initlab.cli.common import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    transfer = commands.add_parser(
        "transfer",
        help="train recipes over widths or depths and rates: does the best rate hold?",
        description="Train small models of several widths or depths at several learning rates, and say for each recipe "
        "whether the best rate of the smallest holds for the largest, how it drifts, and what that costs.",
        epilog="Two recipes take about 15 minutes on 2 cores. The time is measured and said before training starts.",
    )
    transfer.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE",
        help="id (see `initlab recipes`), file.py:recipe, or file.py:function of n_layer and n_embd that makes a model",
    )
    add_model(transfer)
    transfer.add_argument(
        "--widths", type=numbers, metavar="D,D,…", help="n_embd (64,128,256; thorough: 128 to 1024; with depths: one)"
    )
    transfer.add_argument("--depths", type=numbers, metavar="L,L,…", help="n_layer (2; thorough: 4)")
    transfer.add_argument("--lrs", type=rates, metavar="X,X,…", help="peak rates (2^-12 to 2^-5; thorough: 2^-13)")
    add_base(transfer)
    transfer.add_argument("--seeds", type=int, metavar="N", help="draws of weights and order of the text (3)")
    transfer.add_argument("--steps", type=int, metavar="N", help="of the optimizer (200; thorough: 1000)")
    transfer.add_argument("--warmup", type=int, metavar="N", help="steps (a fifth of them)")
    add_training(transfer, block_size="64; thorough: 256", batch_size="8; thorough: 32")
    transfer.set_defaults(run=_transfer)


def _transfer(options: argparse.Namespace) -> int:
    from initlab.api.transfer import transfer
    from initlab.training.transfer import GRIDS

    # must be set before torch is loaded, for what is measured in this process; see cli.common.set_threads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    read_files(options.model, *options.recipes)
    overrides(options)
    out = Path(options.out) if options.out else default_out("transfer")
    options.folder = out
    grid = GRIDS["thorough" if options.thorough else "quick"]
    if options.model is None:
        changes = nanogpt_options(options)
        model = replace(grid["model"], **changes) if changes else None
    else:
        model = model_of(options, grid["model"])
    with TerminalProgress(out, "transfer", options, "train") as progress:
        result = transfer(
            options.recipes,
            model=model,
            roles=roles_of(options),
            widths=options.widths,
            depths=options.depths,
            base=base_of(options),
            warmup=options.warmup,
            text=text_of(options),
            run=run_of(options, progress),
            **training_of(options),
        )
    return show(result, options, out)
