"""Options that `confirm` and `transfer` share: how their runs are trained."""

from __future__ import annotations

import argparse
from typing import Any

from initlab.cli.common import add_dtype, add_engine, add_models, add_saving, add_text


def add_training(parser: argparse.ArgumentParser, *, block_size: str, batch_size: str) -> None:
    """Declare the options of a grid of runs.

    Args:
        parser: of the command.
        block_size: its default, for the help.
        batch_size: likewise.
    """
    parser.add_argument("--thorough", action="store_true", help="a grid for a GPU: larger models, trained longer")
    parser.add_argument("--schedule", choices=("cosine", "constant"), default="cosine", help="after warmup (cosine)")
    parser.add_argument("--weight-decay", type=float, default=0.1, metavar="X", help="of AdamW, on matrices (0.1)")
    parser.add_argument("--grad-clip", type=float, default=1.0, metavar="X", help="largest gradient norm; 0: any (1)")
    add_models(parser, block_size=block_size, batch_size=batch_size)
    add_text(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    add_dtype(parser, default=None, otherwise="float32; --thorough on a GPU: bfloat16")
    add_engine(parser, "runs", "the cores; on a GPU: 1")
    add_saving(parser, fail_on="never")


def training_of(options: argparse.Namespace) -> dict[str, Any]:
    """Read them, as the commands of Python take them."""
    names = ("schedule", "weight_decay", "grad_clip", "dtype", "thorough", "seeds", "steps", "lrs")
    return {name: getattr(options, name) for name in names}
