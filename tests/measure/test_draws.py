"""The table `draws` of small models that hold a draw twice, on purpose or by a slip."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import initlab
from initlab.judge.rules import Finding


class Block(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self, blocks: list[Block], **said: object) -> None:
        super().__init__()
        self.table, self.blocks, self.head = nn.Embedding(128, 64), nn.ModuleList(blocks), nn.Linear(64, 128)
        self.config = said

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


def failed(model: nn.Module) -> dict[str, Finding]:
    found = initlab.probe(model, stats="light").judge(select=["INI005", "INI006", "INI007"])
    return {each.code: each for each in found if each.status == "fail"}


def copied() -> Net:
    first = Block()
    return Net([copy.deepcopy(first) for _ in range(3)])


def seeded_alike() -> Net:
    model = Net([Block() for _ in range(3)])
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.manual_seed(0)
            nn.init.normal_(parameter, 0, 0.02)
    return model


def sharded() -> Net:
    model = Net([Block() for _ in range(3)])
    with torch.no_grad():
        for block in model.blocks:
            block.up.weight.copy_(block.up.weight[:64].repeat(4, 1))
    return model


def uncentred() -> Net:
    model = Net([Block() for _ in range(3)])
    for block in model.blocks:
        nn.init.uniform_(block.up.weight, 0, 0.1)
    return model


def one_in_all() -> Net:
    return Net([Block()] * 3)


def one_mlp() -> Net:
    model = Net([Block() for _ in range(3)])
    for block in model.blocks[1:]:
        block.up = model.blocks[0].up
    return model


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (copied, "INI005", "blocks.1.up.weight is the same draw as blocks.0.up.weight"),
        (seeded_alike, "INI005", "is the same draw as"),
        (
            sharded,
            "INI005",
            "blocks.0.up.weight is made of 4 identical blocks of 64 rows, copies of one draw, and 2 like it",
        ),
        (uncentred, "INI006", "blocks.0.up.weight has stable rank 1.3"),
        (one_in_all, "INI007", "3 blocks share one blocks.0.up: blocks.1.up is the same module"),
        (one_mlp, "INI007", "3 blocks share one blocks.0.up"),
    ],
)
def test_a_slip_is_named(make: Callable[[], Net], code: str, words: str) -> None:
    found = failed(make())
    assert set(found) == {code} and found[code].severity == "warning"
    assert words in found[code].message


def untouched() -> Net:
    return Net([Block() for _ in range(3)])


def identities() -> Net:
    model = untouched()
    for block in model.blocks:
        nn.init.eye_(block.up.weight)
        nn.init.zeros_(block.down.weight)
    return model


def frozen_twin() -> Net:
    model = untouched()
    model.blocks[2] = copy.deepcopy(model.blocks[1]).requires_grad_(False)
    return model


@pytest.mark.parametrize("make", [untouched, identities, frozen_twin])
def test_what_is_meant_draws_nothing(make: Callable[[], Net]) -> None:
    assert failed(make()) == {}


def test_sharing_that_the_model_declares_is_a_note() -> None:
    model = Net([Block()] * 3, cross_layer_sharing=True)
    assert failed(model)["INI007"].severity == "info"
    assert "config.cross_layer_sharing" in failed(model)["INI007"].message
    assert failed(Net([Block()] * 3, n_shared_experts=2, tie_weights=True))["INI007"].severity == "warning"


def test_experts_in_one_tensor_are_compared() -> None:
    model = untouched()
    torch.manual_seed(0)
    for block in model.blocks:
        block.w_up = nn.Parameter(torch.randn(1, 64, 128).repeat(4, 1, 1))
    rows = initlab.probe(model, stats="light").draws
    assert not rows["module"].str.contains("w_up").any() or "INI005" in failed(model)


def test_rows_that_are_drawn_larger_are_named() -> None:
    torch.manual_seed(0)
    model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=32, vocab_size=256))
    torch.nn.init.normal_(model.transformer.wte.weight[240:], 0, 1)
    found = {each.code: each for each in initlab.probe(model).judge(select=["INI006", "LOG001"])}
    for finding in found.values():
        assert (
            finding.status == "fail" and "ows 240–255 of transformer.wte.weight have std 1, the oth" in finding.message
        )
        assert "as the others, with std 0.02" in finding.advice
