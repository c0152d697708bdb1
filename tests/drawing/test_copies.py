"""Draws that stand in a model twice, and matrices of one direction."""

import pytest
import torch
from torch import Tensor, nn

from initlab.anatomy import look
from initlab.drawing.copies import copies_in, likest, repeated, repeats, sketch
from initlab.drawing.spectrum import stable_rank


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_copy_is_found_in_another_scale_and_shape() -> None:
    first = normal(64, 64)
    same_seed = normal(32, 256)  # of another shape, which begins alike
    drawn = [sketch(each) for each in (first, normal(64, 64, seed=1), 3 * first + 0.5, same_seed)]
    assert all(each is not None for each in drawn)
    (one, _), (_, apart), (like, value), (also, nearly) = likest([each for each in drawn if each is not None])
    assert one == -1 and abs(apart) < 0.35
    assert like == also == 0 and value > 0.99 and nearly > 0.99


def test_many_independent_matrices_stay_below_the_limit() -> None:
    sketches = [sketch(each) for each in normal(1500, 32, 32)]
    assert max(value for _, value in likest([each for each in sketches if each is not None])) < 0.5


@pytest.mark.parametrize(
    "matrix",
    [torch.eye(64), torch.zeros(64, 64), torch.ones(64, 64), normal(64, 64).sign(), torch.full((64, 64), torch.nan)],
    ids=["identity", "zeros", "constant", "signs", "nan"],
)
def test_what_is_no_random_draw_is_like_nothing(matrix: Tensor) -> None:
    assert sketch(matrix) is None
    assert repeated(matrix)[1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equal_shards_and_heads_are_found(dtype: torch.dtype) -> None:
    whole = normal(128, 64).to(dtype)
    assert repeated(whole) == repeated(whole.T) == (1, 0.0, "")
    blocks, share, which = repeated(whole[:32].repeat(4, 1))
    assert (blocks, share) == (4, 0.75) and which.startswith("32 to ")
    heads = whole.clone()
    heads[96:112] = heads[16:32]
    assert repeated(heads) == (1, 0.125, "96 to 111 are 16 to 31")
    assert repeated(torch.cat([whole, whole], 1).T)[0] == 2


def test_ranges_of_rows_that_repeat_others_are_listed() -> None:
    whole = normal(128, 64)
    assert repeats(whole) == []
    whole[96:112] = whole[16:32]
    whole[5] = whole[2]
    assert repeats(whole) == [(5, 6, 2), (96, 112, 16)]
    assert repeats(normal(32, 64).repeat(4, 1)) == [(32, 128, 0)]


def test_copies_are_found_whole_in_rows_and_in_columns() -> None:
    torch.manual_seed(0)
    first, second, third, other = (nn.Linear(64, 64, bias=False) for _ in range(4))
    with torch.no_grad():
        second.weight.copy_(2 * first.weight)
        third.weight[:, 32:] = third.weight[:, :32]
    found = copies_in(look.of(nn.Sequential(first, second, third, other)))
    assert {name: [(each["like"], each["rows"]) for each in own] for name, own in found.items()} == {
        "1.weight": [("0.weight", None)],
        "2.weight": [("columns 0–31", (1, 32, 64))],
    }


def test_zero_rows_and_stacked_identities_are_no_copies() -> None:
    half = normal(128, 64)
    half[::2] = 0
    assert repeated(half)[1] == 0
    assert repeated(torch.eye(64).repeat(3, 1))[1] == 0


@pytest.mark.parametrize("shape", [(64, 64), (16, 300), (1000, 700)])
def test_independent_entries_have_the_rank_of_their_size(shape: tuple[int, int]) -> None:
    for draw in (nn.init.normal_, nn.init.xavier_uniform_, nn.init.trunc_normal_):
        rank, usual = stable_rank(draw(torch.empty(shape)))
        assert 0.95 < rank / usual < 2.2  # few steps of the iteration: from above


@pytest.mark.parametrize(
    ("matrix", "low"),
    [
        (normal(64, 1) * normal(1, 96, seed=1), True),
        (torch.rand(128, 128, generator=torch.Generator().manual_seed(0)), True),
        (nn.init.orthogonal_(torch.empty(64, 96)), False),
        (torch.eye(64), False),
        (nn.init.sparse_(torch.empty(64, 64), 0.9), False),
    ],
    ids=["product", "mean", "orthogonal", "identity", "sparse"],
)
def test_one_direction_is_told_from_several(matrix: Tensor, low: bool) -> None:
    rank, usual = stable_rank(matrix)
    assert (4 * rank < usual) == low
    assert stable_rank(1e-30 * matrix)[0] == pytest.approx(rank, rel=1e-3)


def test_zeros_have_no_rank() -> None:
    assert stable_rank(torch.zeros(8, 8))[0] != stable_rank(torch.zeros(8, 8))[0]
