"""`initlab scale`."""

from __future__ import annotations

import argparse
from dataclasses import replace
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
from initlab.errors import ConfigError

if TYPE_CHECKING:
    from initlab.cli.common import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    scale = commands.add_parser(
        "scale",
        help="coord check and depth check: exponents over width and depth, before and after steps",
        description="Do activations and updates keep their scale as a model grows wider or deeper? Measures models of "
        "several sizes, before and after a few optimizer steps, and fits exponents.",
    )
    scale.add_argument(
        "subjects", nargs="+", metavar="RECIPE", help="id, file.py:recipe, or file.py:function of n_embd and n_layer"
    )
    add_model(scale)
    scale.add_argument("--widths", type=numbers, metavar="D,D,…", help="n_embd (64,128,256; with --depths alone: 64)")
    scale.add_argument("--depths", type=numbers, metavar="L,L,…", help="n_layer (4)")
    add_base(scale)
    scale.add_argument("--steps", type=int, default=3, metavar="N", help="of the optimizer, on one batch (3)")
    scale.add_argument("--seeds", type=int, default=3, metavar="N", help="draws of weights and text (3)")
    scale.add_argument("--lr", type=float, metavar="X", help="0.01 with several widths (large on purpose), else 0.001")
    scale.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw", help="(adamw)")
    scale.add_argument("--modules", metavar="GLOB", help="sites or modules to print, as in 'mlp*' (a selection)")
    scale.add_argument("--head-size", type=int, metavar="N", help="width of a head (64, or the next smaller divisor)")
    add_models(scale, block_size=64, batch_size=4)
    add_batch(scale, "for models that aren't NanoGPTs, a function of nothing")
    add_measuring(scale, fail_on="never")
    scale.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    add_engine(scale)
    scale.set_defaults(run=_scale, stats="light")


def _scale(options: argparse.Namespace) -> int:
    from initlab.api.scale import MODEL, scale

    set_threads(options)
    read_files(options.model, options.batch, *options.subjects)
    overrides(options)
    out = Path(options.out) if options.out else default_out("scale")
    options.folder = out
    default = MODEL
    if options.head_size is not None:
        if options.n_head is not None or options.model is not None:
            raise ConfigError("--head-size is of NanoGPTs of every width, and leaves no choice of --n-head and --model")
        default = replace(MODEL, n_embd=options.head_size, n_head=1)
    model = model_of(options, default)
    model = default if model is None and default is not MODEL else model
    with TerminalProgress(out, "scale", options) as progress:
        result = scale(
            options.subjects,
            model=model,
            roles=roles_of(options),
            widths=options.widths,
            depths=options.depths,
            base=base_of(options),
            steps=options.steps,
            seeds=options.seeds,
            lr=options.lr,
            optimizer=options.optimizer,
            batch=batch_given(options),
            text=text_of(options),
            stats=options.stats,
            dtype=options.dtype,
            run=run_of(options, progress),
        )
    result.modules = options.modules
    return show(result, options, out)
