"""What a user brings to a command: a model of a factory, its weights, its batch."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import nn


def add_given(parser: argparse.ArgumentParser) -> None:
    """Options of one model and of its batch."""
    parser.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of the factory, a Python literal or text: --arg n_layer=6 --arg act=relu (none)",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="load them into the model first: .safetensors or the .safetensors.index.json of several, .pt, "
        ".pth, .bin, .ckpt (a state_dict, or a dict with one)",
    )
    parser.add_argument("--batch-size", type=int, metavar="B", help="sequences (about 1024 tokens)")
    parser.add_argument(
        "--block-size", type=int, metavar="T", help="tokens in a sequence (what the model declares, at most 1024)"
    )
    add_batch(parser, "a function of nothing or of the model")


def add_batch(parser: argparse.ArgumentParser, what: str) -> None:
    """What models read in place of text."""
    parser.add_argument(
        "--batch",
        metavar="FILE.py:NAME",
        help=f"in place of text: {what} that returns token ids, (ids, targets), a tuple of arguments, a dict of "
        "keyword arguments or a loader; or one of these",
    )


def model_given(options: argparse.Namespace, sizes: dict[str, int], recipe: str | None) -> tuple[nn.Module, str | None]:
    """Make the model, load its weights, and put it on its device.

    Args:
        options: as they were parsed.
        sizes: of a preset, instead of its own.
        recipe: what a preset is drawn from; None: nanogpt.

    Returns:
        the model, and the id of the recipe that it was drawn from here, None for other models and loaded weights.

    Raises:
        ConfigError, CheckpointError, RecipeError, DataError: it can't be made or loaded.
    """
    from initlab.drawing.loading import choose_device, load_model, parse_arguments
    from initlab.models.config import PRESETS

    if options.weights is not None and not Path(options.weights).is_file():
        raise CheckpointError(f"no checkpoint at {options.weights}; --weights takes a file")
    if options.block_size is not None and options.model in PRESETS:
        sizes = sizes | {"block_size": options.block_size}
    model, drawn = load_model(
        options.model,
        sizes,
        recipe=recipe,
        seed=options.seed,
        data=options.data,
        tokenizer=options.tokenizer,
        arguments=parse_arguments(options.arg),
    )
    if options.weights is not None:
        from initlab.drawing.weights import load_weights

        load_weights(model, Path(options.weights))
        drawn = None
    return model.to(choose_device(options.device)), drawn


def batch_given(options: argparse.Namespace, model: nn.Module | None = None) -> Any:
    """Make the batch; None where text is read.

    Args:
        options: as they were parsed.
        model: what reads it; None: several models do.

    Raises:
        ConfigError: it can't be made, or a size of text was given beside it.
    """
    if options.batch is None:
        return None
    for name in ("batch_size", "block_size"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is of text; --batch {options.batch} has a shape of its own")
    from initlab.drawing.loading import load_batch

    return load_batch(options.batch, model)


def read_files(*names: str | None) -> None:
    """Import the user's files among what a command was given, so that the rules they add can be selected.

    Args:
        names: `file.py:name`; what is none, or can't be imported, is left to whoever needs it.
    """
    from initlab.registry import import_file

    for name in names:
        location = Path((name or "").rpartition(":")[0])
        if location.suffix == ".py" and location.is_file():
            try:
                import_file(location)
            except (Exception, SystemExit):
                continue


def said(options: argparse.Namespace) -> dict[str, Any]:
    """What of these options run.json keeps, so that the same command resumes and another one is refused."""
    from initlab.drawing.loading import parse_arguments

    given = {"arguments": parse_arguments(options.arg), "weights": _hash(options.weights), "batch": options.batch}
    return {name: value for name, value in given.items() if value}


def _hash(weights: str | None) -> str | None:
    if weights is None:
        return None
    from initlab.drawing.weights import files_of

    hashed = hashlib.sha256()
    for part in files_of(Path(weights)):
        with part.open("rb") as file:
            hashlib.file_digest(file, lambda: hashed)
    return hashed.hexdigest()[:12]
