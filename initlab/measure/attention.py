"""Attention logits and entropy per head, from q and k on a sample of query rows.

Computing them from the outside leaves the model's fused attention alone; sampling bounds the cost at ROWS x T scores
per head and sequence, instead of T x T.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

ROWS = 32  # query rows a sequence, evenly spaced; all of them when T <= 33
SEQUENCES = 8  # sequences of the batch that are looked at


def query_rows(T: int) -> Tensor:
    """Positions of the sampled queries: from 1 (position 0 sees one key, its entropy is 0 by definition) to T-1."""
    return torch.linspace(1, T - 1, min(ROWS, T - 1), dtype=torch.float64, device="cpu").round().long()


@dataclass(frozen=True, slots=True)
class Attention:
    """What the heads of one block attend to, on R sampled query rows of B sequences; heads before positions.

    Attributes:
        q: (B, nh, R, hs), of the sampled rows alone.
        k, v: (B, nh, T, hs).
        scores: (B, nh, R, T), before the softmax, also where a row can't look.
        pattern: (B, nh, R, T), the probabilities.
        visible: (R, T), where a row can look.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scores: Tensor
    pattern: Tensor
    visible: Tensor


@lru_cache(maxsize=8)
def _keys_seen(T: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sampled queries (R,), which keys each sees (R, T), and where those are among all R·T.

    Kept, since each block asks for the same, and what is found out on a GPU has to be waited for.
    """
    rows = query_rows(T)
    visible = torch.arange(T, device="cpu") <= rows[:, None]
    return rows.to(device), visible.to(device), visible.flatten().nonzero().flatten().to(device)


def head_statistics(
    qkv: Tensor, n_head: int, also: Callable[[Attention], None] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention of one block, as its softmax sees it with scale 1/sqrt(head size) and no dropout.

    Args:
        qkv: (B, T, 3C), the output of a fused c_attn, T >= 2.
        n_head: nh, heads in it.
        also: takes further statistics of the same attention.

    Returns:
        per head: (3, nh) mean entropy in nats, mean of entropy / ln(visible keys), mean over rows of the std of
        the visible logits; and the visible logits and their probabilities, flattened.
    """
    qkv = qkv.detach()[:SEQUENCES]
    B, T, C3 = qkv.shape
    hs = C3 // 3 // n_head
    rows, visible, places = _keys_seen(T, qkv.device)
    q, k, v = qkv.split(C3 // 3, dim=2)
    q = q[:, rows].float().view(B, -1, n_head, hs).transpose(1, 2)  # (B, nh, R, hs)
    k = k.float().view(B, T, n_head, hs).transpose(1, 2)  # (B, nh, T, hs)
    with torch.autocast(qkv.device.type, enabled=False):  # a fused kernel accumulates in float32 under autocast too
        scores = q @ k.transpose(2, 3) / math.sqrt(hs)  # (B, nh, R, T)
    pattern = scores.masked_fill(~visible, -math.inf).softmax(-1)
    entropy = torch.special.entr(pattern).sum(-1)  # (B, nh, R); entr(0) = 0
    seen = visible.sum(-1)  # (R,)
    kept = scores.masked_fill(~visible, 0)
    mean = kept.sum(-1) / seen
    var = ((scores - mean[..., None]).square() * visible).sum(-1) / seen
    per_head = torch.stack([entropy, entropy / seen.log(), var.sqrt()]).mean(dim=(1, 3))  # (3, nh)
    if also is not None:
        v = v.float().view(B, T, n_head, hs).transpose(1, 2)
        also(Attention(q, k, v, scores, pattern, visible))
    return per_head, *(x.flatten(2).index_select(2, places).flatten() for x in (scores, pattern))
