"""`initlab confirm`: training runs that confirm, or refute, what the probe says."""

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
    confirm = commands.add_parser(
        "confirm",
        help="train init recipes over depths, rates and warmups, and grade what the probe said",
        description="Train small NanoGPTs, or models of yours, from each recipe, over depths, learning rates, warmups "
        "and seeds, paired by draw and data, and set what training did beside what the probe says of the same models "
        "at init.",
        epilog="Four recipes take about 10 minutes on 2 cores. The time is measured and said before training starts.",
    )
    confirm.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE",
        help="id (see `initlab recipes`), file.py:recipe, or file.py:function of n_layer and n_embd that makes a model "
        "with an init of its own",
    )
    add_model(confirm)
    confirm.add_argument("--depths", type=numbers, metavar="L,L,…", help="n_layer (4,16; thorough: 6,24,48)")
    confirm.add_argument("--lrs", type=rates, metavar="X,X,…", help="peak learning rates (1e-3,3e-3,1e-2)")
    confirm.add_argument("--warmups", type=numbers, metavar="N,N,…", help="steps of warmup (0,40; thorough: 0,50)")
    confirm.add_argument("--seeds", type=int, metavar="N", help="draws of weights and order of the text (3)")
    confirm.add_argument("--steps", type=int, metavar="N", help="of the optimizer, in each run (150; thorough: 300)")
    confirm.add_argument("--n-embd", type=int, metavar="D", help="width (64; thorough: 128)")
    add_base(confirm)
    confirm.add_argument(
        "--eval-every", type=int, default=0, metavar="N", help="steps between evaluations (before and after)"
    )
    add_training(confirm, block_size="64; thorough: 128", batch_size="8; thorough: 16")
    confirm.set_defaults(run=_confirm)


def _confirm(options: argparse.Namespace) -> int:
    from initlab.api.confirm import confirm
    from initlab.training.protocol import GRIDS

    # must be set before torch is loaded, for what is measured in this process; see cli.common.set_threads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    read_files(options.model, *options.recipes)
    overrides(options)
    out = Path(options.out) if options.out else default_out("confirm")
    options.folder = out
    grid = GRIDS["thorough" if options.thorough else "quick"]
    if options.model is None:
        model = grid["model"].resized(n_embd=options.n_embd) if options.n_head is None else grid["model"]
        sizes = nanogpt_options(options) | ({} if options.n_embd is None else {"n_embd": options.n_embd})
        model, usual = replace(model, **sizes), grid["depths"]
    else:
        model, usual = model_of(options, grid["model"]), None
    with TerminalProgress(out, "confirm", options, "measure or train") as progress:
        result = confirm(
            options.recipes,
            model=model,
            roles=roles_of(options),
            depths=options.depths or usual,
            n_embd=None if options.model is None else options.n_embd,
            base=base_of(options),
            warmups=options.warmups,
            eval_every=options.eval_every,
            text=text_of(options),
            run=run_of(options, progress),
            **training_of(options),
        )
    return show(result, options, out)
