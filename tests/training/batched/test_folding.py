"""Operations mapped over runs, against each run's own."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap
from torch.nn import functional as F

from initlab.training.batched.folding import Folding

R, B, T, C = 3, 2, 4, 6


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


HEADS = (R, B, 2, T, 4)
TOKENS = torch.arange(R * 8).view(R, 8) % C
CASES = {
    "linear": (F.linear, (drawn(R, B, T, C), drawn(R, 5, C), drawn(R, 5)), (0, 0, 0)),
    "linear, one input": (F.linear, (drawn(B, T, C), drawn(R, 5, C)), (None, 0)),
    "linear, one weight": (F.linear, (drawn(R, B, T, C), drawn(5, C), drawn(5)), (0, None, None)),
    "linear, one row": (F.linear, (drawn(R, C), drawn(R, 5, C)), (0, 0)),
    "linear, runs elsewhere": (F.linear, (drawn(B, T, R, C), drawn(5, R, C)), (2, 1)),
    "attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3),
        (drawn(*HEADS), drawn(*HEADS) * 2, drawn(*HEADS) * 3),
        (0, 0, 0),
    ),
    "attention, grouped": (
        lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True),
        (drawn(*HEADS), drawn(R, B, 1, T, 4)),
        (0, 0),
    ),
    "attention, a mask": (
        lambda q, mask: F.scaled_dot_product_attention(q, q, q, attn_mask=mask),
        (drawn(*HEADS), torch.ones(T, T).tril().bool()),
        (0, None),
    ),
    "attention, a mask each": (
        lambda q, mask: F.scaled_dot_product_attention(q, q, q, attn_mask=mask),
        (drawn(*HEADS), drawn(R, B, 1, T, T)),
        (0, 0),
    ),
    "cross entropy": (lambda x, t: F.cross_entropy(x, t, ignore_index=2), (drawn(R, 8, C), TOKENS), (0, 0)),
    "cross entropy, one text": (F.cross_entropy, (drawn(R, 8, C), TOKENS[0]), (0, None)),
    "cross entropy, summed": (lambda x, t: F.cross_entropy(x, t, reduction="sum"), (drawn(R, 8, C), TOKENS), (0, 0)),
    "layer norm": (
        lambda x, w, b: F.layer_norm(x, (C,), w, b, 1e-3),
        (drawn(R, B, T, C), drawn(R, C), drawn(R, C) * 2),
        (0, 0, 0),
    ),
    "layer norm, bare": (lambda x: F.layer_norm(x, (T, C)), (drawn(R, B, T, C),), (0,)),
    "layer norm, a bias alone": (
        lambda x, b: F.layer_norm(x, (C,), None, b),
        (drawn(R, B, T, C), drawn(R, C)),
        (0, 0),
    ),
    "rms norm": (lambda x, w: F.rms_norm(x, (C,), w, 1e-3), (drawn(R, B, T, C), drawn(R, C)), (0, 0)),
    "rms norm, torch's eps": (lambda x: F.rms_norm(x, (C,)), (drawn(R, B, T, C),), (0,)),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operation_mapped_over_runs_is_that_of_each_run(name):
    func, given, dims = CASES[name]
    given = [x.clone().requires_grad_() if x.is_floating_point() else x for x in given]
    leaves = [x for x in given if x.requires_grad]
    with Folding():
        found = vmap(func, in_dims=dims)(*given)
    each = [x.unbind(dim) if dim is not None else [x] * R for x, dim in zip(given, dims, strict=True)]
    expected = torch.stack([func(*own) for own in zip(*each, strict=True)])
    torch.testing.assert_close(found, expected)
    weights = drawn(*expected.shape)
    gradients = [torch.autograd.grad((each * weights).sum(), leaves) for each in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_the_cross_entropy_of_logits_of_16_bits_is_wide():
    logits, targets = drawn(R, 8, C).bfloat16(), TOKENS
    with torch.autocast("cpu", dtype=torch.bfloat16), Folding():
        found = vmap(F.cross_entropy)(logits, targets)
    assert found.dtype == torch.float32
    expected = [F.cross_entropy(one.float(), own) for one, own in zip(logits, targets, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))


def test_outside_of_a_map_nothing_is_changed():
    x, weight = drawn(B, T, C), drawn(5, C)
    with Folding():
        assert F.linear(x, weight).equal(x @ weight.T)
