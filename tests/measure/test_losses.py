"""The loss taken of what a model returns."""

import math

import pytest
import torch
from torch.nn import functional as F

from initlab.anatomy.inputs import Inputs
from initlab.errors import ProbeError
from initlab.measure.losses import take_loss

IDS = torch.arange(12).view(2, 6)
NEXT = torch.tensor([[1, 2, 3, 4, 5, -1], [7, 8, 9, 10, 11, -1]])


def made():
    return Inputs(args=(IDS,), ids=IDS, targets=NEXT)


def test_loss_is_cross_entropy_of_logits_wherever_they_are():
    logits = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), NEXT[:, :-1].flatten())
    hidden = torch.randn(2, 6, 8)
    for output in (
        logits,
        (logits, None),
        {"loss": torch.zeros((), requires_grad=True), "logits": logits},
        (hidden, logits),
    ):
        judged = take_loss(output, made(), 50)
        assert judged.targets == "next-token" and judged.logits is logits
        torch.testing.assert_close(judged.loss, expected)


def test_the_models_own_loss_then_the_mean_square():
    own = torch.tensor(3.0, requires_grad=True)
    assert take_loss((torch.zeros(2, 3), own), Inputs(), None).loss is own
    judged = take_loss({"y": torch.full((2, 3), 2.0)}, Inputs(), None)
    assert (judged.loss.item(), judged.targets, judged.logits) == (4.0, "mean square of the output", None)
    with pytest.raises(ProbeError, match="returned NoneType without a floating-point tensor"):
        take_loss(None, Inputs(), None)


def test_float64_logits_keep_their_precision():
    logits = torch.randn(2, 6, 50, dtype=torch.float64)
    assert take_loss(logits, made(), 50).loss.dtype == torch.float64
    assert math.isfinite(take_loss(logits.half(), made(), 50).loss.item())


def test_a_callers_classes_are_what_logits_are_compared_with():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3, requires_grad=True), torch.tensor([0, 2, 1, 1, -100])
    judged = take_loss((logits, torch.randn(5, 8)), Inputs(labels=labels), None)
    assert judged.targets == "class labels" and judged.logits is None
    assert judged.loss.item() == pytest.approx(F.cross_entropy(logits, labels).item())
    map_ = torch.randn(2, 3, 4, 4)  # one for each pixel
    judged = take_loss(map_, Inputs(labels=torch.ones(2, 4, 4, dtype=torch.long)), None)
    assert judged.targets == "class labels"
    for other in (torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, 1]), torch.full((5,), -100)):
        assert take_loss(logits, Inputs(labels=other), None).targets == "mean square of the output"
