from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from initlab.measure.attention import ROWS, SEQUENCES, head_statistics, query_rows


def random_qkv(B: int, T: int, C: int, *, scale: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(B, T, 3 * C, generator=torch.Generator().manual_seed(seed)) * scale


def full_attention(qkv: Tensor, n_head: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and softmax of every visible pair, (B, nh, T, T) in float64, NaN above the diagonal."""
    a = qkv.double().numpy()
    B, T, C3 = a.shape
    hs = C3 // 3 // n_head
    logits = np.full((B, n_head, T, T), np.nan)
    pattern = np.full((B, n_head, T, T), np.nan)
    for b in range(B):
        for head in range(n_head):
            q = a[b, :, head * hs : (head + 1) * hs]
            k = a[b, :, C3 // 3 + head * hs : C3 // 3 + (head + 1) * hs]
            for i in range(T):
                row = np.array([q[i] @ k[j] for j in range(i + 1)]) / math.sqrt(hs)
                weights = np.exp(row - row.max())
                logits[b, head, i, : i + 1] = row
                pattern[b, head, i, : i + 1] = weights / weights.sum()
    return logits, pattern


def expected(qkv: Tensor, n_head: int, rows: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What head_statistics promises, row by row."""
    logits, pattern = full_attention(qkv, n_head)
    B = qkv.shape[0]
    per_head = np.zeros((3, n_head))
    for head in range(n_head):
        found = []
        for b in range(B):
            for i in rows:
                p = pattern[b, head, i, : i + 1]
                entropy = -sum(x * math.log(x) for x in p if x > 0)
                found.append((entropy, entropy / math.log(i + 1), logits[b, head, i, : i + 1].std()))
        per_head[:, head] = np.mean(found, axis=0)
    kept, visible = logits[:, :, rows], pattern[:, :, rows]
    return per_head, kept[~np.isnan(kept)], visible[~np.isnan(visible)]


@pytest.mark.parametrize("n_head", [1, 3])
@pytest.mark.parametrize("T", [2, 3, 32, 33])
def test_short_sequences_are_the_full_softmax(T: int, n_head: int) -> None:
    qkv = random_qkv(2, T, 12)
    per_head, logits, pattern = head_statistics(qkv, n_head)
    stats, all_logits, all_patterns = expected(qkv, n_head, list(range(1, T)))
    np.testing.assert_allclose(per_head, stats, rtol=1e-5)
    np.testing.assert_allclose(logits, all_logits, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(pattern, all_patterns, rtol=1e-5)
    assert len(logits) == 2 * n_head * (T * (T + 1) // 2 - 1)


@pytest.mark.parametrize("T", [34, 48, 100])
def test_long_sequences_are_the_full_softmax_on_the_sampled_rows(T: int) -> None:
    qkv = random_qkv(1, T, 8, scale=2.0)
    rows = query_rows(T).tolist()
    per_head, logits, pattern = head_statistics(qkv, 2)
    stats, all_logits, all_patterns = expected(qkv, 2, rows)
    np.testing.assert_allclose(per_head, stats, rtol=1e-4)
    np.testing.assert_allclose(logits, all_logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pattern, all_patterns, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("T", [2, 3, 17, 33, 34, 35, 64, 100, 1024, 4097, 131_072])
def test_rows_are_distinct_and_reach_from_the_second_to_the_last(T: int) -> None:
    rows = query_rows(T)
    assert rows.dtype == torch.int64
    assert len(rows) == min(ROWS, T - 1)
    assert rows[0] == 1
    assert rows[-1] == T - 1
    steps = rows.diff()
    assert len(steps) == 0 or (steps.min() >= 1 and steps.max() - steps.min() <= 1)
    if T <= ROWS + 1:
        assert rows.tolist() == list(range(1, T))


def test_rows_are_exact_whatever_torchs_default_dtype() -> None:
    """bfloat16 would round 1023 to 1024, past the last key."""
    plain = query_rows(1024)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            odd = query_rows(1024)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(odd, plain)


@pytest.mark.parametrize("T", [2, 9, 33, 80])
def test_attention_that_sees_no_difference_is_uniform(T: int) -> None:
    qkv = random_qkv(2, T, 8)
    qkv[..., 8:16] = torch.arange(8.0)  # every key the same, so a row's logits are equal
    per_head, _, pattern = head_statistics(qkv, 2)
    rows = query_rows(T).double()
    assert per_head[0].tolist() == pytest.approx([(rows + 1).log().mean().item()] * 2, rel=1e-5)
    assert per_head[1].tolist() == pytest.approx([1.0] * 2, rel=1e-5)
    assert per_head[2].tolist() == pytest.approx([0.0] * 2, abs=1e-4)
    shares = torch.cat([torch.full((int(i) + 1,), 1 / (i + 1)) for i in rows])
    torch.testing.assert_close(pattern, shares.repeat(4).float(), rtol=1e-5, atol=0)


def test_zero_queries_are_uniform_to_the_digit() -> None:
    per_head, logits, _ = head_statistics(torch.zeros(1, 5, 12), 2)
    mean = sum(math.log(i + 1) for i in range(1, 5)) / 4
    assert per_head[0].tolist() == pytest.approx([mean] * 2, rel=1e-6)
    assert per_head[2].tolist() == [0, 0]
    assert (logits == 0).all()


@pytest.mark.parametrize("T", [2, 20, 50])
def test_attention_to_one_key_has_no_entropy(T: int) -> None:
    qkv = torch.zeros(1, T, 12)
    qkv[..., :4] = 100.0  # queries
    qkv[:, 0, 4:8] = 100.0  # the first key is like every query, the others are like none
    per_head, _, pattern = head_statistics(qkv, 2)
    assert per_head[0].tolist() == [0, 0]
    assert per_head[1].tolist() == [0, 0]
    assert set(pattern.tolist()) == {0.0, 1.0}
    assert per_head.isfinite().all()


def test_entropy_falls_as_logits_grow() -> None:
    entropies = [head_statistics(random_qkv(2, 24, 16, scale=scale), 2)[0][0] for scale in (0.1, 1, 3, 10, 100)]
    assert all((low < high).all() for high, low in itertools.pairwise(entropies))
    assert (entropies[-1] < 0.05).all()


def test_the_two_tokens_of_the_shortest_sequence() -> None:
    qkv = torch.tensor([[[9.0, 9, 0, 0, 0, 0], [1, 2, 3, 4, 0, 0]]])  # q, k, v of 2 numbers each, one head
    qkv[0, 0, 2:4] = torch.tensor([1.0, 1.0])
    first, second = 3 / math.sqrt(2), 11 / math.sqrt(2)  # q_1 · k_0 and q_1 · k_1
    p = 1 / (1 + math.exp(first - second))
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    per_head, logits, pattern = head_statistics(qkv, 1)
    assert per_head[:, 0].tolist() == pytest.approx([entropy, entropy / math.log(2), (second - first) / 2], rel=1e-5)
    assert logits.tolist() == pytest.approx([first, second])
    assert pattern.tolist() == pytest.approx([1 - p, p])


def test_the_pattern_is_that_of_torchs_fused_attention() -> None:
    B, T, C, nh = 2, 12, 16, 4
    qkv = random_qkv(B, T, C)
    q, k, _ = (part.view(B, T, nh, C // nh).transpose(1, 2) for part in qkv.split(C, dim=2))
    identity = torch.eye(T).expand(B, nh, T, T)
    whole = F.scaled_dot_product_attention(q, k, identity, is_causal=True)
    visible = torch.ones(T, T).tril().bool()
    visible[0] = False
    torch.testing.assert_close(head_statistics(qkv, nh)[2], whole[visible.expand_as(whole)], rtol=1e-4, atol=1e-6)


def test_heads_arent_mixed_up() -> None:
    qkv = random_qkv(1, 16, 8)
    qkv[..., 4:8] *= 50  # queries of the second head
    entropy = head_statistics(qkv, 2)[0][0]
    assert entropy[1] < 0.5 * entropy[0]
    alone = torch.cat([qkv[..., part * 8 : part * 8 + 4] for part in range(3)], dim=-1)
    torch.testing.assert_close(head_statistics(alone, 1)[0][:, 0], head_statistics(qkv, 2)[0][:, 0])


def test_sequences_beyond_the_limit_are_left_out() -> None:
    qkv = random_qkv(SEQUENCES + 3, 6, 4)
    for whole, cut in zip(head_statistics(qkv, 2), head_statistics(qkv[:SEQUENCES], 2), strict=True):
        assert torch.equal(whole, cut)


def test_values_play_no_part() -> None:
    qkv = random_qkv(2, 6, 4)
    changed = qkv.clone()
    changed[..., 8:] = math.nan
    for left, right in zip(head_statistics(qkv, 2), head_statistics(changed, 2), strict=True):
        assert torch.equal(left, right)


def test_later_keys_are_out_of_sight() -> None:
    qkv = random_qkv(1, 40, 4)
    changed = qkv.clone()
    changed[:, -1, 4:8] *= -50  # the last key: seen by the last row alone
    rows = query_rows(40)
    before, after = (head_statistics(x, 1)[2] for x in (qkv, changed))
    seen = int((rows[:-1] + 1).sum())
    assert torch.equal(before[:seen], after[:seen])
    assert not torch.allclose(before[seen:], after[seen:])


def test_strided_input_and_gradients_change_nothing() -> None:
    qkv = random_qkv(3, 7, 4)
    strided = qkv.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not strided.is_contiguous()
    for left, right in zip(head_statistics(qkv, 2), head_statistics(strided, 2), strict=True):
        torch.testing.assert_close(left, right)
        assert not right.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_autocast_are_measured_in_float32(dtype: torch.dtype) -> None:
    qkv = random_qkv(2, 20, 16, scale=3.0).to(dtype)
    plain = head_statistics(qkv.float(), 2)
    with torch.autocast("cpu", dtype=dtype):
        cast = head_statistics(qkv, 2)
    for left, right in zip(plain, cast, strict=True):
        assert right.dtype == torch.float32
        torch.testing.assert_close(left, right)


def test_logits_beyond_float16_arent_infinite_under_autocast() -> None:
    qkv = torch.full((1, 4, 12), 300.0, dtype=torch.float16)  # 2 * 300^2 is above 65504
    with torch.autocast("cpu", dtype=torch.float16):
        per_head, logits, _ = head_statistics(qkv, 2)
    assert logits.isfinite().all()
    assert per_head[1].tolist() == pytest.approx([1.0, 1.0], rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_isnt_finite_in_a_key_shows(value: float) -> None:
    qkv = random_qkv(1, 6, 4)
    qkv[0, 3, 4] = value
    per_head, logits, pattern = head_statistics(qkv, 1)
    assert not per_head.isfinite().any()
    assert not logits.isfinite().all()
    assert not pattern.isfinite().all()
