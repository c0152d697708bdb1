"""Attention logits and entropy per head, on a sample of query rows.

Of q and k the scores are computed from the outside, which leaves the model's fused attention alone; sampling bounds the
cost at ROWS x S scores per head and sequence, instead of T x S. Of an attention that is written out, scores and pattern
are the model's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from initlab.anatomy.tensors import heads_first, hidden

ROWS = 32  # query rows a sequence, evenly spaced; all of them when T <= 33
SEQUENCES = 8  # sequences of the batch that are looked at

_OFF = 0.01  # from 1, of a sum of probabilities: rounding in 16 bits is allowed for


def query_rows(T: int) -> Tensor:
    """Positions of the sampled queries: from 1 (position 0 sees one key, its entropy is 0 by definition) to T-1.

    Args:
        T: queries, from 1 on; a single one is taken.
    """
    if T == 1:
        return torch.zeros(1, dtype=torch.int64, device="cpu")
    return torch.linspace(1, T - 1, min(ROWS, T - 1), dtype=torch.float64, device="cpu").round().long()


@dataclass(frozen=True, slots=True)
class Attention:
    """What the heads of one attention attend to, on R sampled query rows of B sequences; heads before positions.

    Attributes:
        q: (B, nh, R, hs), of the sampled rows alone; None where it isn't known.
        k, v: (B, nkv, S, hs), of as many heads as the model has for them; None where they aren't known.
        scores: (B, nh, R, S), before the softmax, also where a row can't look: there either as if it could, or masked.
        pattern: (B, nh, R, S), the probabilities.
        visible: where a row can look, of a shape that broadcasts to the pattern's. One that sees fewer than two keys is
            left out of what initlab says of heads, and has none here.
    """

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    scores: Tensor
    pattern: Tensor
    visible: Tensor


class Found(NamedTuple):
    """Of one attention: (3, nh) mean entropy in nats, mean of entropy / ln(visible keys) and mean over rows of the std
    of the visible logits; then logits and probabilities, and where in them (None: everywhere) a row can look.
    """

    per_head: Tensor
    logits: Tensor
    pattern: Tensor
    where: Tensor | None = None
    n_rows: int = 0  # query rows looked at, of all sequences


Taking = Callable[[Attention], None]


@lru_cache(maxsize=8)
def _keys_seen(T: int, S: int, causal: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sampled queries (R,), which keys each sees (R, S), and where those are among all R·S.

    Kept, since each block asks for the same, and what is found out on a GPU has to be waited for.
    """
    rows = query_rows(T)
    visible = torch.arange(S, device="cpu") <= rows[:, None]
    visible = visible if causal else torch.ones_like(visible)
    return rows.to(device), visible.to(device), visible.flatten().nonzero().flatten().to(device)


def head_statistics(qkv: Tensor, n_head: int, also: Taking | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention of one block, as its softmax sees it with scale 1/sqrt(head size) and no dropout.

    Args:
        qkv: (B, T, 3C), the output of a fused c_attn, T >= 2.
        n_head: nh, heads in it.
        also: takes further statistics of the same attention.

    Returns:
        per head, as in `Found`; and the visible logits and their probabilities, flattened.
    """
    qkv = qkv.detach()[:SEQUENCES]
    B, T, C3 = qkv.shape
    hs = C3 // 3 // n_head
    q, k, v = (part.view(B, T, n_head, hs).transpose(1, 2) for part in qkv.split(C3 // 3, dim=2))
    rows = _keys_seen(T, T, True, qkv.device)[0]
    return _alike(q[:, :, rows].float(), k, v, T, True, None, also)


def _alike(
    q: Tensor, k: Tensor, v: Tensor, T: int, causal: bool, scale: float | None, also: Taking | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention in which every sequence and head sees the same keys: q (B, nh, R, hs) of the sampled rows among T."""
    _, visible, places = _keys_seen(T, k.shape[2], causal, q.device)
    scores = _scores(q, k, scale)  # (B, nh, R, S)
    pattern = (scores.masked_fill(~visible, -math.inf) if causal else scores).softmax(-1)
    entropy = torch.special.entr(pattern).sum(-1)  # (B, nh, R); entr(0) = 0
    seen = visible.sum(-1)  # (R,)
    mean = scores.masked_fill(~visible, 0).sum(-1) / seen
    var = ((scores - mean[..., None]).square() * visible).sum(-1) / seen
    per_head = torch.stack([entropy, entropy / seen.log(), var.sqrt()]).mean(dim=(1, 3))  # (3, nh)
    if also is not None:
        also(Attention(q, k.float(), v.float(), scores, pattern, visible))
    logits, shares = (x.flatten(2).index_select(2, places).flatten() for x in (scores, pattern))
    return per_head, logits, shares


def _scores(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    """q · k times a scale (None: 1/sqrt(head size)), in float32; neighbouring heads may share their keys."""
    B, nh, R, hs = q.shape
    with torch.autocast(q.device.type, enabled=False):  # a fused kernel accumulates in float32 under autocast too
        grouped = q.reshape(B, k.shape[1], -1, hs) @ k.float().transpose(2, 3)
    grouped = grouped.reshape(len(grouped), nh, R, -1)
    return grouped / math.sqrt(hs) if scale is None else grouped * scale


def call_statistics(
    args: tuple[Any, ...], kwargs: dict[str, Any], n_head: int = 0, also: Taking | None = None
) -> Found | None:
    """Attention of a call of `scaled_dot_product_attention`, with its own mask and scale and without dropout.

    Args:
        args: of the call.
        kwargs: of the call.
        n_head: heads that queries of three dimensions hold, (B·nh, T, hs); 0: of one head.
        also: takes further statistics of the same attention.

    Returns:
        None where no row can see two keys, or the tensors aren't q and k of an attention.
    """
    q, k, v, mask, causal, scale = _of_call(*args, **kwargs)
    if q.is_nested or k.is_nested:
        return None
    T, S = q.shape[-2], k.shape[-2]
    if S < 2 or (causal and T < 2):
        return None
    lead = torch.broadcast_shapes(q.shape[:1], k.shape[:1]) + q.shape[1:-2]
    B = sequences_in(q, n_head)
    rows = _keys_seen(T, S, causal, q.device)[0]
    q, k, v = (apart(x.detach(), B) for x in (q, k, v))
    if q.shape[1] % k.shape[1] or (mask is not None and mask.dim() > len(lead) + 2):
        return None
    q = q[:, :, rows].float()
    if mask is None:
        return Found(*_alike(q, k, v, T, causal, scale, also), n_rows=q.shape[0] * q.shape[2])
    mask = torch.atleast_2d(mask.detach())
    mask = mask.index_select(-2, rows) if mask.shape[-2] > 1 else mask
    mask = apart(mask.expand(*lead, mask.shape[-2], S), B)
    scores = _scores(q, k, scale)
    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.float()
    return _masked(q, k, v, scores, also)


def _masked(q: Tensor, k: Tensor, v: Tensor, scores: Tensor, also: Taking | None) -> Found:
    found = _found(scores, scores.softmax(-1))
    if also is not None and found.where is not None:
        also(Attention(q, k.float(), v.float(), scores, found.pattern, found.where))
    return found


def flex_statistics(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor],
    block_mask: tuple[Any, ...],
    scale: float,
    *_: Any,
    also: Taking | None = None,
) -> Found | None:
    """Attention of a call of `flex_attention`, as torch's operator of that name is given it.

    Args:
        query: (B, nh, T, hs).
        key: (B, nkv, S, hs).
        value: of as many heads and positions.
        score_mod: changes scores by (score, sequence, head, query, key).
        block_mask: its last says by (sequence, head, query, key) what is visible.
        scale: of the scores.
        also: takes further statistics of the same attention.

    Returns:
        None where there aren't two keys.
    """
    T, S = query.shape[-2], key.shape[-2]
    if S < 2:
        return None
    rows = _keys_seen(T, S, False, query.device)[0]
    q, k, v = (x.detach()[:SEQUENCES] for x in (query, key, value))
    q = q[:, :, rows].float()
    scores = _scores(q, k, scale)
    sizes = (torch.arange(size, device=q.device) for size in (*q.shape[:2], S))
    b, h, j = (x.view(shape) for x, shape in zip(sizes, ((-1, 1, 1, 1), (-1, 1, 1), (-1,)), strict=True))
    scores = score_mod(scores, b, h, rows[:, None], j)
    return _masked(q, k, v, scores.masked_fill(~block_mask[-1](b, h, rows[:, None], j), -math.inf), also)


def _of_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool, float | None]:
    return query, key, value, attn_mask, is_causal, scale


def softmax_statistics(scores: Tensor, pattern: Tensor, dim: int = -1, n_head: int = 0) -> Found | None:
    """Attention that is written out, by its softmax.

    Args:
        scores: (B, nh, T, S), what the softmax is given: scaled, biased and masked.
        pattern: what it gives, of the same shape.
        dim: that of the keys.
        n_head: heads that tensors of three dimensions hold, (B·nh, T, S); 0: they are of one head.

    Returns:
        logits and pattern of the sampled rows, (B, nh, R, S); None where there aren't two keys.
    """
    B = sequences_in(scores, n_head)
    scores, pattern = (apart(heads_first(x.detach().movedim(dim, -1)), B) for x in (scores, pattern))
    if scores.shape[-1] < 2:
        return None
    return _found(*(sampled(x).float() for x in (scores, pattern)))


def weight_statistics(scores: Tensor, weights: Tensor) -> Found | None:
    """Attention of any form, by its scores and by what multiplies the values.

    Args:
        scores: (B, nh, T, S), masked before they become weights, if at all.
        weights: of the same shape.

    Returns:
        as `softmax_statistics`; of heads whose weights aren't probabilities in every row, entropies are NaN.
    """
    found = softmax_statistics(scores, weights)
    if found is None:
        return None
    off = ((found.pattern.sum(-1) - 1).abs() > _OFF) | (found.pattern < 0).any(-1)
    off &= found.where is None or found.where.any(-1)
    found.per_head[:2].masked_fill_(off.any(2).any(0), math.nan)
    return found


def sampled(x: Tensor) -> Tensor:
    """The sampled query rows of (B, nh, T, …)."""
    return x[:, :, _keys_seen(x.shape[2], 2, False, x.device)[0]]


def sequences_in(x: Tensor, n_head: int) -> int:
    """Count the sequences in a tensor of queries or scores.

    Args:
        x: (B, …, T, S), (B·nh, T, S) or (T, S).
        n_head: nh; 0: tensors of three dimensions are of one head.
    """
    if x.dim() == 3 and n_head and x.shape[0] % n_head == 0:
        return int(x.shape[0] // n_head)
    return int(x.shape[0]) if x.dim() > 2 else 1


def apart(x: Tensor, sequences: int) -> Tensor:
    """Bring a tensor of some heads to (B, nh, T, …), and cut it to the first SEQUENCES.

    Args:
        x: (B, …, T, hs), (B·nh, T, hs) or (T, hs).
        sequences: B.
    """
    if x.dim() > 3:
        return x[:SEQUENCES].flatten(1, -3)
    if x.dim() == 2:
        return x[None, None]
    each = max(1, x.shape[0] // sequences)
    return x[: SEQUENCES * each].unflatten(0, (-1, each))


def _found(scores: Tensor, pattern: Tensor) -> Found:
    """Statistics where rows differ in what they can look at, (B, nh, R, S) each.

    Which elements are visible isn't waited for: they are marked instead of cut out.
    """
    masked = hidden(scores)
    seen = (~masked).sum(-1)
    counted = seen >= 2
    entropy = torch.special.entr(pattern).sum(-1)
    kept = scores.masked_fill(masked, 0)
    mean = kept.sum(-1) / seen
    var = (kept - mean[..., None]).square().masked_fill(masked, 0).sum(-1) / seen
    each = torch.stack([entropy, entropy / seen.log(), var.sqrt()]).masked_fill(~counted, 0)  # (3, B, nh, R)
    per_head = each.sum((1, 3)) / counted.sum((0, 2))
    return Found(per_head, scores, pattern, ~masked & counted[..., None], scores.shape[0] * scores.shape[2])


def by_input(found: Found) -> Tensor:
    """Take off what the scores of all sequences have in common, as a bias of positions is, and measure what is left.

    Args:
        found: of an attention, (B, nh, R, S).

    Returns:
        (2, nh), of `per_head` the second and third; NaN for a batch of one sequence, and for what sees no two keys.
    """
    scores, B = found.logits, len(found.logits)
    if found.where is None or B < 2:
        return torch.full_like(found.per_head[:2], math.nan)
    masked = ~found.where
    times = found.where.sum(0)
    own = scores.masked_fill(masked, 0)
    # of n deviations from their mean the squares sum up to n - 1 variances
    own = (own - own.sum(0) / times) * (times / (times - 1).clamp(min=1)).sqrt()
    own = own.masked_fill(masked, -math.inf)
    return _found(own, own.softmax(-1).nan_to_num(0)).per_head[1:]


class WrittenOut:
    """Statistics of a user's own of an attention that is written out: q, k and v are met one after another.

    Args:
        also: takes them, when all that is expected was met.
        value: whether v is still to come when the softmax has run.
    """

    def __init__(self, also: Taking, value: bool):
        self._also = also
        self._value = value
        self._met: dict[str, Tensor] = {}
        self._softmax: tuple[Found, int] | None = None

    def meet(self, name: str, x: Tensor) -> None:
        """Remember `q` (…, T, hs), `k` transposed (…, hs, S) or `v` (…, S, hs)."""
        self._met[name] = x.detach()
        if name == "v" and self._softmax is not None:
            self.settle()

    def meet_softmax(self, found: Found, sequences: int) -> None:
        """Remember scores and pattern; of `sequences` in all."""
        self._softmax = found, sequences
        if not self._value:
            self.settle()

    def settle(self) -> None:
        """Take the statistics of what was met, and forget it."""
        met, self._met, softmax, self._softmax = self._met, {}, self._softmax, None
        if softmax is None:
            return
        found, sequences = softmax
        parts = {name: apart(x, sequences).float() for name, x in met.items()}
        q, k = parts.get("q"), parts.get("k")
        q, k = q if q is None else sampled(q), k if k is None else k.transpose(-1, -2)
        assert found.where is not None
        self._also(Attention(q, k, parts.get("v"), found.logits, found.pattern, found.where))
