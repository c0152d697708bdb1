"""Parameters that get no gradient because this batch, or this loss, doesn't ask for what they are in.

A speech tower without speech, cross-attention without an encoder's states, and a pooler whose output is returned
beside the logits are neither dead nor forgotten: nothing that the forward was given, or was judged by, goes there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy.arguments import TARGETS, parameters
from initlab.anatomy.inputs import Inputs
from initlab.anatomy.names import starred
from initlab.anatomy.restoring import untouched
from initlab.anatomy.sizes import vocabulary
from initlab.anatomy.tensors import floats
from initlab.measure.changing import by_name
from initlab.measure.losses import take_loss

# arguments that no module of their own reads: how to run, what to hide, and what was computed before
_HOW = re.compile(
    r"^(attention|head|decoder|key_padding|src_key_padding|padding|cross_attn_head|decoder_attention)_?mask$|^mask$|"
    r"head_mask$|position|past|cache|^use_|^output_|^return_|^logits_to_keep|embeds$|labels?$|token_type"
)


def unasked(
    model: nn.Module, dead: Collection[str], inputs: Inputs, run: Callable[[Callable[..., Any]], Any], seed: int
) -> set[str]:
    """Find the parameters without a gradient that another argument, or another output, would give one.

    A part that no argument was given for is a module with others inside, or what stands beside one in its block (a norm
    alone may have been forgotten). None of its kind ran (its name with other block numbers), and the forward has an
    optional argument that the batch leaves out and that isn't only how to run. What only another output reads stands
    outside the blocks, or is told as dead: a block's own output may be returned, too.

    Args:
        model: is left as it was.
        dead: names of the parameters that get no gradient, whatever is moved.
        inputs: on the model's device.
        run: makes one pass with what it is given in the model's place, and gives the output.
        seed: of the pass.

    Raises:
        Exception: whatever the pass raises.
    """
    ran: set[str] = set()
    handles = [
        module.register_forward_pre_hook(partial(_note, ran, name)) for name, module in model.named_modules() if name
    ]
    try:
        with untouched(model, seed):
            output = run(model)
            elsewhere = _elsewhere(model, dead, output, inputs)
            del output
    finally:
        for handle in handles:
            handle.remove()
    if not left_out(model, inputs):
        return elsewhere
    kinds = {starred(name) for name in ran}
    whole = {name for name, module in model.named_modules() if name and any(True for _ in module.children())}
    parts = {name: part for name in dead if (part := _part(name, ran)) and starred(part) not in kinds}
    beside = {part.rpartition(".")[0] for part in parts.values() if part in whole} - {""}  # such a part's own norm
    return elsewhere | {name for name, part in parts.items() if part in whole or part.rpartition(".")[0] in beside}


def left_out(model: nn.Module, inputs: Inputs) -> list[str]:
    """Name the optional arguments that a call leaves out, but for those that only say how to run.

    Args:
        model: whose forward is called.
        inputs: of the call.
    """
    given = by_name(model, inputs)
    return [
        name
        for name, parameter in parameters(model).items()
        if name not in given and name not in TARGETS and parameter.default is None and not _HOW.search(name)
    ]


def _note(ran: set[str], name: str, *_: Any) -> None:
    ran.add(name)


def _part(parameter: str, ran: set[str]) -> str:
    """The outermost module around a parameter that didn't run, of those that others which ran stand beside."""
    parts = parameter.split(".")[:-1]
    for deep in range(1, len(parts) + 1):
        name = ".".join(parts[:deep])
        inside = any(each.startswith(f"{name}.") for each in ran)  # a list of modules is never called itself
        if name not in ran and not inside:
            return name
    return ""


def _elsewhere(model: nn.Module, dead: Collection[str], output: Any, inputs: Inputs) -> set[str]:
    """Those outside any block that get a gradient from what is returned beside what the loss is taken from."""
    judged = take_loss(output, inputs, vocabulary(model))
    aim = judged.loss if judged.logits is None else judged.logits
    others = [tensor for tensor in floats(output) if tensor is not aim and tensor.requires_grad]
    outside = {name: p for name, p in model.named_parameters() if name in dead and p.requires_grad}
    outside = {name: p for name, p in outside.items() if "*" not in starred(name)}
    if not others or not outside:
        return set()
    total: Tensor = torch.stack([(each * torch.randn_like(each)).sum() for each in others]).sum()
    gradients = torch.autograd.grad(total, list(outside.values()), allow_unused=True)
    return {
        name for name, gradient in zip(outside, gradients, strict=True) if gradient is not None and gradient.abs().any()
    }
