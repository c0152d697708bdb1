"""`initlab train`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab.cli.common import (
    TerminalProgress,
    add_model,
    add_output,
    add_tokenizer,
    add_wiring,
    default_out,
    overrides,
    roles_of,
    run_of,
    set_threads,
    show,
    text_of,
)
from initlab.cli.given import read_files

if TYPE_CHECKING:
    from initlab.cli.common import Commands
    from initlab.models.config import NanoGPTConfig

_SIZES = ("n_layer", "n_head", "n_embd", "block_size", "dropout")
_SETTINGS = (
    *("steps", "lr", "warmup", "schedule", "min_lr", "grad_accum", "weight_decay", "grad_clip"),
    *("eval_every", "eval_batches", "log_every", "dtype", "compile"),
)


def add(commands: Commands) -> None:
    """Declare the command."""
    train = commands.add_parser(
        "train",
        help="train NanoGPT, or a model of yours, from init recipes, with nanoGPT's settings",
        description="Trains a NanoGPT, or a model of yours, from each recipe, on the same batches, with nanoGPT's "
        "settings, and measures it before the first and after the last step. Over several GPUs or CPU processes: "
        "torchrun --nproc-per-node N -m initlab train …; the same command with the same -o resumes.",
    )
    train.add_argument("recipes", nargs="+", metavar="RECIPE", help="id or file.py:name; the first is the baseline")
    add_model(train)
    train.add_argument(
        "--preset",
        choices=("shakespeare-cpu", "shakespeare", "gpt2"),
        default="shakespeare-cpu",
        help="sizes and settings, each of which can be changed (shakespeare-cpu: nanoGPT's for a laptop)",
    )
    train.add_argument(
        "--data",
        default="english",
        metavar="PATH",
        help="nanoGPT data folder (train.bin, val.bin), text file, folder of .txt and .md or of a dataset's "
        "save_to_disk, .bin, `uniform`, `docstrings` (Python's own), `english` (the default, shipped with initlab)",
    )
    add_tokenizer(train)
    train.add_argument("--vocab-size", type=int, metavar="V", help="the tokenizer's, unless --data needs it")
    add_wiring(train)
    for name, kind, what in (
        ("n-layer", int, "blocks"),
        ("n-head", int, "attention heads"),
        ("n-embd", int, "width of the residual stream"),
        ("block-size", int, "tokens in a sequence"),
        ("dropout", float, "probability"),
        ("steps", int, "optimizer updates"),
        ("lr", float, "peak learning rate"),
        ("warmup", int, "steps of linear warmup, 0 = none; fewer --steps than the preset's keep its share"),
        ("min-lr", float, "where the cosine ends, as a fraction of --lr"),
        ("batch-size", int, "sequences in a micro-batch"),
        ("grad-accum", int, "micro-batches in an update, over all processes"),
        ("weight-decay", float, "of matrices"),
        ("grad-clip", float, "largest 2-norm of the gradient, 0 = any"),
        ("eval-every", int, "steps between evaluations, 0 = first and last alone"),
        ("eval-batches", int, "batches in an evaluation"),
        ("log-every", int, "steps between rows of metrics.csv"),
    ):
        metavar = "X" if kind is float else "N"
        train.add_argument(f"--{name}", type=kind, metavar=metavar, help=f"{what} (the preset's)")
    train.add_argument("--schedule", choices=("cosine", "constant"), help="after the warmup (cosine)")
    train.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="autocast (CUDA: bfloat16; CPU: float32, none)"
    )
    train.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile (on CUDA alone)")
    train.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, batches and dropout (0)")
    train.add_argument("--device", default="auto", help="auto, cpu or cuda (auto)")
    train.add_argument("--watch-every", type=int, default=0, metavar="N", help="watch every N-th step (0: none)")
    train.add_argument(
        "--checkpoint-every", type=int, metavar="N", help="steps between checkpoints (with every evaluation)"
    )
    train.add_argument("--threads", type=int, metavar="N", help="of torch on the CPU (all cores)")
    train.add_argument("-o", "--out", metavar="DIR", help="output folder (initlab-runs/train-<time>)")
    train.add_argument("--no-report", action="store_true", help="tables only, no report.html and figures")
    add_output(train, fail_on="never")
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> int:
    from initlab.api.train import train
    from initlab.errors import ConfigError, DataError, RecipeError

    set_threads(options)
    first = os.environ.get("RANK", "0") == "0"  # torchrun's
    out = Path(options.out) if options.out else default_out("train")
    read_files(options.model, *options.recipes)
    try:
        overrides(options)
        with TerminalProgress(out, "train", options, "train") as progress:
            if first:
                options.folder = out
            result = train(
                options.recipes,
                preset=options.preset,
                model=_sizes(options) if options.model is None else _other(options),
                roles=roles_of(options),
                n_layer=None if options.model is None else options.n_layer,
                n_embd=None if options.model is None else options.n_embd,
                text=text_of(options),
                seed=options.seed,
                watch_every=options.watch_every,
                checkpoint_every=options.checkpoint_every,
                run=run_of(options, progress),
                **{name: getattr(options, name) for name in _SETTINGS},
            )
    except (ConfigError, DataError, RecipeError):
        if first:
            raise
        return 2  # each process was given the same; the first one says it
    return show(result, options, out) if first else 0


def _other(options: argparse.Namespace) -> Any:
    from initlab.drawing.loading import load_maker
    from initlab.errors import ConfigError
    from initlab.models.config import PRESETS

    for name in ("n_head", "dropout", "vocab_size", "wiring"):
        if getattr(options, name) is not None:
            raise ConfigError(f"{name} is an option of NanoGPTs; {options.model} has its own")
    if options.model in PRESETS:
        raise ConfigError(f"{options.model} is a preset: give it as --preset {options.model}")
    return load_maker(options.model)


def _sizes(options: argparse.Namespace) -> NanoGPTConfig:
    from dataclasses import replace

    from initlab.models.config import PRESETS, parse_wiring

    changes: dict[str, Any] = {name: getattr(options, name) for name in _SIZES}
    given = {name: value for name, value in changes.items() if value is not None} | parse_wiring(options.wiring or "")
    return replace(PRESETS[options.preset], vocab_size=options.vocab_size, **given)
