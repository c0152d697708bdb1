"""Cross entropy of CUDA logits as they are: torch's makes several float32 tensors of their size for 16-bit ones."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 4096  # logits at a time


@triton.jit
def _forward(
    logits: tl.tensor,
    targets: tl.tensor,
    losses: tl.tensor,
    norms: tl.tensor,
    stride: tl.int64,
    V: tl.int32,
    BLOCK: tl.constexpr,
) -> None:
    """Of each row log Σ exp and, 0 without a target, the loss; NaN for a target outside the vocabulary."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    high = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(logits + column, mask=column < V, other=float("-inf")).to(tl.float32)
        above = tl.maximum(high, tl.max(x, 0))
        base = tl.where(above == float("-inf"), 0.0, above)
        total = total * tl.exp(high - base) + tl.exp(x - base)
        high = above
    norm = tl.log(tl.sum(total, 0)) + tl.where(high == float("-inf"), 0.0, high)
    target = tl.load(targets + row)
    known = (target >= 0) & (target < V)
    own = tl.load(logits + target, mask=known, other=0.0).to(tl.float32)
    loss = tl.where(known, norm - own, float("nan"))
    tl.store(losses + row, tl.where(target == -1, 0.0, loss))
    tl.store(norms + row, norm)


@triton.jit
def _backward(
    logits: tl.tensor,
    targets: tl.tensor,
    norms: tl.tensor,
    factor: tl.tensor,
    out: tl.tensor,
    stride: tl.int64,
    V: tl.int32,
    BLOCK: tl.constexpr,
) -> None:
    """(softmax - one hot) times the factor, 0 in rows without a target."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * stride + column, mask=column < V, other=0.0).to(tl.float32)
    target = tl.load(targets + row)
    share = tl.exp(x - tl.load(norms + row)) - tl.where(column == target, 1.0, 0.0)
    gradient = tl.where(target == -1, 0.0, share * tl.load(factor))
    tl.store(out + row * V + column, gradient.to(out.dtype.element_ty), mask=column < V)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        rows, V = logits.shape
        losses, norms = torch.empty(2, rows, dtype=torch.float32, device=logits.device).unbind(0)
        with torch.cuda.device_of(logits):
            _forward[(rows,)](logits, targets, losses, norms, logits.stride(0), V, BLOCK=_BLOCK)
        count = (targets != -1).sum()
        ctx.save_for_backward(logits, targets, norms, count)
        return losses.sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets, norms, count = ctx.saved_tensors
        rows, V = logits.shape
        out = torch.empty(rows, V, dtype=logits.dtype, device=logits.device)
        with torch.cuda.device_of(logits):
            _backward[(rows, -(-V // _BLOCK))](
                logits, targets, norms, gradient / count, out, logits.stride(0), V, BLOCK=_BLOCK
            )
        return out, None


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of (N, V) logits of a 16- or 32-bit dtype against (N,) int64 targets, -1 where there is none.

    Computed in float32, with nothing of the logits' size made but their gradient.
    """
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    loss: Tensor = _CrossEntropy.apply(logits, targets.contiguous())
    return loss
