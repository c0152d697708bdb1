"""`initlab scale`."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab.cli.common import Progress, add_measuring, add_models, default_out, numbers, of_models, set_threads, show

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
    scale.add_argument(
        "--widths", type=numbers, default=None, metavar="D,D,…", help="n_embd (64,128,256; with --depths alone: 64)"
    )
    scale.add_argument("--depths", type=numbers, default=None, metavar="L,L,…", help="n_layer (4)")
    scale.add_argument("--steps", type=int, default=3, metavar="N", help="of the optimizer, on one batch (3)")
    scale.add_argument("--seeds", type=int, default=3, metavar="N", help="draws of weights and text (3)")
    scale.add_argument("--lr", type=float, metavar="X", help="0.01 with several widths (large on purpose), else 0.001")
    scale.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw", help="(adamw)")
    scale.add_argument("--modules", metavar="GLOB", help="sites or modules to print, as in 'mlp*' (a selection)")
    scale.add_argument("--head-size", type=int, metavar="N", help="width of a head (64, or the next smaller divisor)")
    add_models(scale, block_size=64, batch_size=4)
    add_measuring(scale, fail_on="never")
    scale.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    scale.set_defaults(run=_scale, stats="light")


def _scale(options: argparse.Namespace) -> int:
    from initlab.api.scale import scale

    set_threads(options)
    out = Path(options.out) if options.out else default_out("scale")
    options.folder = out
    widths = options.widths or ((64,) if options.depths and len(options.depths) > 1 else (64, 128, 256))
    with Progress(out, "scale") as progress:
        result = scale(
            [_subject(name) for name in options.subjects],
            widths=widths,
            depths=options.depths or (4,),
            steps=options.steps,
            seeds=options.seeds,
            lr=options.lr,
            optimizer=options.optimizer,
            head_size=options.head_size,
            stats=options.stats,
            out=out,
            progress=progress,
            **of_models(options),
        )
    result.modules = options.modules
    return show(result, options, out)


def _subject(name: str) -> Any:
    """A function that makes models, where that is what file.py:name holds; else a recipe's name."""
    from initlab.recipes import registry

    if ".py:" not in name:
        return name
    rule = registry.get(name).rule
    return rule if {"n_embd", "n_layer"} & set(inspect.signature(rule).parameters) else name
