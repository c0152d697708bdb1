"""The operations of a model that autocast decides about, mapped over runs as without a map.

`torch.func.vmap` maps every operation by a rule of torch's. It takes some apart first, into steps that autocast doesn't
know: in torch 2.13 the cross entropy of bfloat16 logits then is bfloat16, and on a GPU a norm's input isn't widened.
It also copies the weights of `linear` for each row of the batch, and makes attention on the CPU a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Folding(TorchFunctionMode):
    """Inside it, and inside a `vmap`, they are made with the runs' dimension in the batch's place."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        folded = _FOLDED.get(func)
        found = None if folded is None else folded(*args, **kwargs)
        return func(*args, **kwargs) if found is None else found


class _Mapped(torch.autograd.Function):
    """A function of tensors whose first dimension is the runs'; only ever called inside a vmap."""

    @staticmethod
    def forward(func: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        raise AssertionError("called outside of a vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: what the function does is recorded by itself."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, func: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, int]:
        runs = info.batch_size
        placed = [
            tensor.expand(runs, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(tensors, in_dims[1:], strict=True)
        ]
        return func(*placed), 0


def _mapped(func: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    found: Tensor = _Mapped.apply(func, *tensors)
    return found


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if not is_batchedtensor(weight) or input.dim() < 2:
        return None

    def product(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        rows = x.flatten(1, -2)  # (R, rows, in)
        found = torch.bmm(rows, w.mT) if b is None else torch.baddbmm(b[:, None], rows, w.mT)
        return found.unflatten(1, x.shape[1:-1])

    return _mapped(product, input, weight, *(() if bias is None else (bias,)))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    whole = query.dim() == key.dim() == value.dim() == 4 and query.shape[0] == key.shape[0] == value.shape[0]
    if not (whole and is_batchedtensor(query)) or dropout_p:
        return None
    mask = attn_mask
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.dim()) + mask.shape).expand(query.shape[0], -1, -1, -1)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        flat = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), None if mask is None else mask.flatten(0, 1)
        found = F.scaled_dot_product_attention(*flat, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa)
        return found.unflatten(0, q.shape[:2])

    return _mapped(attend, query, key, value, *(() if mask is None else (mask,)))


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | None:
    plain = weight is None and size_average is None and reduce is None and reduction == "mean" and not label_smoothing
    if not (plain and is_batchedtensor(input) and input.dim() == 2 and target.dim() == 1):
        return None

    def mean(logits: Tensor, targets: Tensor) -> Tensor:
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=ignore_index, reduction="none")
        return losses.view(targets.shape).sum(1) / (targets != ignore_index).sum(1)

    return _mapped(mean, input, target)


def _norm(input: Tensor, shape: Sequence[int], eps: float | None, affine: Sequence[Tensor | None], func: Any) -> Any:
    if not is_batchedtensor(input):
        return None
    own = {} if eps is None else {"eps": eps}

    def norm(x: Tensor, *affine: Tensor) -> Tensor:
        whole: Tensor = func(x, shape, **own)
        places = [each.view(len(each), *(1,) * (x.dim() - each.dim()), *each.shape[1:]) for each in affine]
        found = whole * places[0] if places else whole
        return (found + places[1] if len(places) > 1 else found).to(whole.dtype)

    return _mapped(norm, input, *(each for each in affine if each is not None))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    if weight is None and bias is not None:
        return None
    found: Tensor | None = _norm(input, normalized_shape, eps, (weight, bias), F.layer_norm)
    return found


def _rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor | None:
    found: Tensor | None = _norm(input, normalized_shape, eps, (weight,), F.rms_norm)
    return found


_FOLDED: dict[Any, Callable[..., Tensor | None]] = {
    F.linear: _linear,
    F.scaled_dot_product_attention: _attention,
    F.cross_entropy: _cross_entropy,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
}
