"""Which loss to take of what a model returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.nn import functional as F

from initlab.anatomy.inputs import Inputs
from initlab.anatomy.sizes import vocabulary
from initlab.anatomy.tensors import floats
from initlab.errors import ConfigError, ProbeError
from initlab.measure.moments import compiled_kernels

SQUARE = "mean square of the output"  # what is taken for want of a loss


@dataclass(frozen=True, slots=True)
class Judged:
    """A loss, what it was taken against, and the logits if there are any, (B, T, V)."""

    loss: Tensor
    targets: str
    logits: Tensor | None


def take_loss(output: Any, inputs: Inputs, vocab_size: int | None) -> Judged:
    """Cross entropy of logits if the output holds any, else the model's own loss, else the output's mean square.

    Logits are of a caller's class labels, or of token ids.

    Raises:
        ProbeError: the output holds no floating-point tensor.
    """
    found = list(floats(output))
    if inputs.labels is not None:
        classes = next((each for each in found if _classifies(each, inputs.labels)), None)
        if classes is not None:
            wide = classes if classes.dtype == torch.float64 else classes.float()
            return Judged(F.cross_entropy(wide, inputs.labels), "class labels", None)
    if inputs.ids is not None and inputs.targets is not None:
        logits = logits_in(output, inputs.ids, vocab_size)
        if logits is not None:
            del output, found  # and with them what the model's own loss keeps for its backward pass: as much again
            # Taken here and not from the model, so that it is the same quantity whatever a model calls its loss.
            return Judged(_cross_entropy(logits.flatten(0, 1), inputs.targets.flatten()), inputs.aim, logits)
    own = own_loss(found)
    if own is not None:
        return Judged(own, "the model's own loss", None)
    if not found:
        raise ProbeError(
            f"the model returned {type(output).__name__} without a floating-point tensor; nothing to measure"
        )
    return Judged(found[0].float().square().mean(), SQUARE, None)


def own_loss(output: Any) -> Tensor | None:
    """Find the loss in what a model returned: the first single number that has a gradient.

    Args:
        output: any nesting of tensors.
    """
    return next((each for each in floats(output) if each.dim() == 0 and each.requires_grad), None)


def loss_for(model: nn.Module, what: str) -> Callable[[object, Inputs], Tensor]:
    """Make a function that takes the loss of what a model returned for a call, of a model that is trained on one.

    Args:
        model: unwrapped.
        what: needs the loss, for the message.

    Raises:
        ConfigError: by the function: the output is neither logits of what the call has targets for, nor a loss.
    """
    known = vocabulary(model)

    def loss(output: object, inputs: Inputs) -> Tensor:
        judged = take_loss(output, inputs, known)
        if judged.targets == SQUARE:
            raise ConfigError(
                f"{what} needs a loss, and {type(model).__name__} returned none on this batch, nor logits of targets; "
                "give it a batch with targets, as (ids, targets), (images, labels) or a dict with labels"
            )
        return judged.loss

    return loss


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the targets that aren't -1, in float32 or wider."""
    # a map over models has no rule for a kernel of ours
    plain = type(logits) is Tensor and not is_batchedtensor(logits)
    if logits.is_cuda and plain and (kernels := compiled_kernels(logits.device)):
        from initlab.measure.entropies import cross_entropy

        if logits.dtype in kernels.READABLE:
            return cross_entropy(logits, targets)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, targets, ignore_index=-1)


def logits_in(output: Any, ids: Tensor | None, vocab_size: int | None) -> Tensor | None:
    """The logits that a model returned for token ids (B, T): (B, T, V), in any nesting, or flattened to (B*T, V).

    None if there are none.
    """
    if ids is None:
        return None
    found = [t for t in floats(output) if t.dim() and _spans(t, vocab_size)]
    whole = next((t for t in found if t.dim() == 3 and t.shape[:2] == ids.shape), None)
    if whole is not None:
        return whole
    # as a forward that takes targets flattens them for its loss
    flat = next((t for t in found if t.dim() == 2 and len(t) == ids.numel() and vocab_size is not None), None)
    return None if flat is None else flat.view(*ids.shape, -1)


def _classifies(tensor: Tensor, labels: Tensor) -> bool:
    """It may be the logits (N, classes, …) of labels (N, …)."""
    if tensor.dim() != labels.dim() + 1 or tensor.shape[:1] + tensor.shape[2:] != labels.shape or not labels.numel():
        return False
    kept = labels[labels != -100]  # what doesn't count, as torch marks it
    return bool(kept.numel()) and int(kept.min()) >= 0 and int(kept.max()) < tensor.shape[1]


def _spans(tensor: Tensor, vocab_size: int | None) -> bool:
    """Logits may be padded beyond the vocabulary; hidden states are narrower than it or of another width."""
    return vocab_size is None or vocab_size <= tensor.shape[-1] < vocab_size + 512
