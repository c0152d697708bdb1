"""The loss of CUDA logits against torch's, in float64."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
gpu = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))
PATHS = [pytest.param("cuda", marks=gpu), *([pytest.param("cpu", id="interpreter")] if INTERPRETED else [])]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def both(logits: Tensor, targets: Tensor, device: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(loss, gradient) by the kernels, and by torch in float64."""
    from initlab.measure.entropies import cross_entropy

    x = logits.to(device).clone().requires_grad_()
    ours = cross_entropy(x, targets.to(device))
    (gradient,) = torch.autograd.grad(ours * 3, x)
    assert gradient.dtype == logits.dtype
    wide = logits.double().requires_grad_()
    loss = F.cross_entropy(wide, targets, ignore_index=-1)
    (expected,) = torch.autograd.grad(loss * 3, wide)
    return (ours.detach().cpu().double(), gradient.cpu().double()), (loss.detach(), expected)


def drawn(rows: int, V: int, dtype: torch.dtype, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * V)
    logits = (torch.randn(rows, V, generator=generator) * scale).to(dtype)
    return logits, torch.randint(-1, V, (rows,), generator=generator)


@pytest.mark.parametrize("device", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "V"), [(5, 2), (7, 50), (3, 4096), (4, 9001)])
def test_loss_and_gradient_are_torchs(rows: int, V: int, dtype: torch.dtype, device: str) -> None:
    logits, targets = drawn(rows, V, dtype)
    (loss, gradient), (expected, wanted) = both(logits, targets, device)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    # one rounding to the logits' own dtype, where the interpreter cuts bfloat16 off; a share near 1 less 1 keeps the
    # rounding of the share, which is as large as its exponent's
    unit = torch.finfo(dtype).eps / (1 if device == "cpu" else 2)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    rounding = 3 / rows * 2**-23 * float(logits.abs().max())
    torch.testing.assert_close(gradient, wanted, rtol=unit + 2e-6, atol=smallest + rounding)


@pytest.mark.parametrize("device", PATHS)
def test_large_and_padded_logits(device: str) -> None:
    logits, targets = drawn(6, 5000, torch.float32, scale=300.0)
    logits[:, :4500] = -float("inf")  # as of a vocabulary that is masked: a whole block of it
    (loss, gradient), (expected, wanted) = both(logits, 4500 + targets.clamp(0) % 500, device)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("device", PATHS)
def test_rows_may_lie_apart(device: str) -> None:
    logits, targets = drawn(6, 64, torch.bfloat16)
    apart = torch.zeros(6, 100, dtype=torch.bfloat16)
    apart[:, 3:67] = logits
    (loss, gradient), (expected, wanted) = both(apart[:, 3:67], targets, device)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(gradient, wanted, rtol=0.01, atol=1e-9)


@pytest.mark.parametrize("device", PATHS)
def test_no_target_and_a_target_outside_give_nan_as_the_mean_of_nothing(device: str) -> None:
    from initlab.measure.entropies import cross_entropy

    logits = torch.zeros(2, 8, device=device)
    for targets in ([-1, -1], [3, 8], [3, -2]):
        assert cross_entropy(logits, torch.tensor(targets, device=device)).isnan()
