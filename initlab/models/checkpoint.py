"""What nanoGPT's train.py saved, read and checked before a model is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from initlab.errors import CheckpointError
from initlab.models import files
from initlab.models.config import NanoGPTConfig


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], int]:
    """Read a nanoGPT checkpoint; nothing in it is executed.

    Args:
        path: of the file.

    Returns:
        its model_args, weights under their plain names, and iterations trained.

    Raises:
        CheckpointError: the file is missing, unreadable, or not such a checkpoint.
    """
    checkpoint = files.read(path, "the ckpt.pt that nanoGPT's train.py writes", "`model` and `model_args`")
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}; expected a dict of `model`, `model_args`")
    args, weights = checkpoint.get("model_args"), checkpoint.get("model")
    if not isinstance(args, Mapping) or not isinstance(weights, Mapping):
        raise CheckpointError(
            f"{path} isn't a nanoGPT checkpoint: its keys are {_some(checkpoint)}; expected `model` (weights by name) "
            "and `model_args` (sizes), as train.py writes them"
        )
    lacking = {"n_layer", "n_head", "n_embd", "block_size", "vocab_size"} - set(args)
    unknown = set(args) - {field.name for field in fields(NanoGPTConfig)}
    if lacking or unknown:
        raise CheckpointError(
            f"{path}: model_args lack {_some(lacking)} and have unknown {_some(unknown)}; expected the fields of "
            "nanoGPT's GPTConfig, a fork's other options can't be loaded"
        )
    # The causal mask was a buffer named attn.bias before flash attention; attn.c_attn.bias is a parameter.
    plain = {str(key).removeprefix("_orig_mod."): value for key, value in weights.items()}
    trained = checkpoint.get("iter_num", 0)
    weights = {name: value for name, value in plain.items() if not name.endswith(".attn.bias")}
    return dict(args), weights, trained if isinstance(trained, int) else 0


def check_sizes(path: str | Path, found: Mapping[str, Tensor], n_layer: int) -> None:
    """Refuse a file that claims other blocks than it has weights of, before so many are made.

    Args:
        path: of the file, for the error.
        found: the weights by name.
        n_layer: that it claims.

    Raises:
        CheckpointError: they are another number.
    """
    blocks = {name.split(".")[2] for name in found if name.startswith("transformer.h.")}
    if len(blocks) != n_layer:
        raise CheckpointError(f"{path}: model_args say n_layer {n_layer}, and it holds weights of {len(blocks)} blocks")


def check_weights(path: str | Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, tied: bool) -> None:
    """Refuse weights that don't fit a model.

    Args:
        path: of the file, for the error.
        found: the weights by name.
        wanted: the model's own.
        tied: its head is the token embedding.

    Raises:
        CheckpointError: names or shapes differ, or a tied head and the embedding do.
    """
    have = {name: tuple(getattr(value, "shape", ["no tensor"])) for name, value in found.items()}
    want = {name: tuple(value.shape) for name, value in wanted.items()}
    wrong = [name for name in want | have if have.get(name) != want.get(name)]
    if wrong:
        shapes = [f"{name} found {have.get(name, 'none')}, expected {want.get(name, 'none')}" for name in wrong]
        raise CheckpointError(f"{path}: the weights don't fit model_args: {_some(shapes, '; ')}")
    if tied and not same(found["transformer.wte.weight"], found["lm_head.weight"]):
        raise CheckpointError(f"{path}: model_args say the head is tied, but lm_head and wte hold different weights")


def same(a: object, b: object) -> bool:
    """Tell whether two matrices are equal, NaN included: the tied head of a run that diverged is still tied.

    Args:
        a: one.
        b: the other.
    """
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return True  # one is missing: assume nanoGPT's default, and let check_weights name it
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _some(names: Iterable[object], separator: str = ", ", most: int = 3) -> str:
    words = sorted(map(str, names))
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return separator.join(words[:most]) + more if words else "none"
