"""What a caller's batch is made of: arrays, tensors without values, and the numbers that stand for no target."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from initlab.anatomy.arguments import TARGETS, parameters
from initlab.errors import ConfigError

IGNORED = -100  # as torch's cross_entropy marks what doesn't count, and Hugging Face's labels


def held(batch: Any) -> Any:
    """Turn numpy's arrays into tensors, in tuples, lists and dicts too.

    Args:
        batch: as it was given.

    Raises:
        ConfigError: an array holds no numbers, or a tensor no values.
    """
    if isinstance(batch, np.ndarray):
        if batch.dtype.kind not in "iufcb":
            raise ConfigError(f"batch holds an array of {batch.dtype}; expected numbers: token ids (B, T), or features")
        # a copy: torch warns of memory that may not be written, and has few operations on unsigned numbers
        return torch.from_numpy(np.array(batch, dtype=np.int64 if batch.dtype.kind in "iu" else batch.dtype))
    if isinstance(batch, Tensor):
        if batch.is_meta:
            raise ConfigError(f"batch holds a tensor {tuple(batch.shape)} on the meta device; expected one with values")
        return batch
    if isinstance(batch, dict):
        return {key: held(value) for key, value in batch.items()}
    if type(batch) in (tuple, list):
        return type(batch)(held(value) for value in batch)
    return batch


def refuse_sparse(**given: Tensor | None) -> None:
    """Refuse ids that aren't stored one by one. Raises ConfigError.

    Args:
        given: by what they are called.
    """
    for name, tensor in given.items():
        if tensor is not None and tensor.layout != torch.strided:
            raise ConfigError(f"{name} is sparse ({tensor.layout}); expected a dense tensor, as .to_dense() makes it")


def marked(targets: Tensor) -> Tensor:
    """Write -1 wherever there is no target.

    Args:
        targets: ids, and below 0 where there is none.

    Raises:
        ConfigError: two numbers stand for no target, of which a loss knows one, or another than -1 and IGNORED.
    """
    marks = targets[targets < 0].unique().tolist()
    if len(marks) > 1 or not set(marks) <= {-1, IGNORED}:
        raise ConfigError(
            f"targets hold {' and '.join(map(str, marks[-3:]))}; expected ids from 0 on, and one number, -1 or "
            f"{IGNORED}, where there is no target"
        )
    return targets.masked_fill(targets < 0, -1)


def marks_for(model: nn.Module, targets: Tensor) -> tuple[int, ...]:
    """List what may stand for no target in a model's own loss, the caller's word for it first.

    Args:
        model: whose forward may take them.
        targets: of one mark, or none.
    """
    own = int(targets.min())
    if own >= 0 or not set(TARGETS) & set(parameters(model)):
        return (own,)
    return own, -1 if own == IGNORED else IGNORED
