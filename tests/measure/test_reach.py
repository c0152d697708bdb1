"""Parameters without a gradient: which wait behind a zero, and which are dead."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initlab
from initlab.anatomy.inputs import Inputs
from initlab.measure import probe
from initlab.measure.reach import reached

pytestmark = pytest.mark.integration

D, V, T = 16, 32, 8


class Block(nn.Module):
    """A branch whose last word is given by `close`: what it writes is made by this of what the MLP gives."""

    def __init__(self, close: Callable[[Block, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(D), nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        self.gate = nn.Parameter(torch.zeros(()))
        self.scale = nn.Parameter(torch.zeros(D))
        self.post = nn.LayerNorm(D)
        nn.init.zeros_(self.post.weight)
        self.close = functools.partial(close, self)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.close(self.down(F.gelu(self.up(self.norm(x)))))


class Small(nn.Module):
    def __init__(self, close: Callable[[Block, Tensor], Tensor], *, zero_head: bool = False) -> None:
        super().__init__()
        self.words = nn.Embedding(V, D)
        self.tower = nn.ModuleList(Block(close) for _ in range(3))
        self.last, self.head = nn.LayerNorm(D), nn.Linear(D, V, bias=False)
        if zero_head:
            nn.init.zeros_(self.head.weight)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.tower:
            x = block(x)
        return self.head(self.last(x))


def dropped(block: Block, y: Tensor) -> Tensor:
    return y * 0 if block.training and torch.rand(()) < 0.5 else y


# how a branch ends -> parameters of a block that have no business there
CLOSED = {
    "gate": (lambda block, y: y * block.gate, ("scale", "post")),
    "tanh gate": (lambda block, y: y * block.gate.tanh(), ("scale", "post")),
    "layer scale": (lambda block, y: y * block.scale, ("gate", "post")),
    "norm after": (lambda block, y: block.post(y), ("gate", "scale")),
    "gate in a gate": (lambda block, y: (y + block.post(y)) * block.gate * (1 + block.scale), ()),
    "dropped by chance": (dropped, ("gate", "scale", "post")),
}


def lacking(model: nn.Module) -> tuple[set[str], set[str]]:
    """Names without a gradient, and those of them that get one."""
    torch.manual_seed(0)
    ids = torch.randint(0, V, (4, T))
    records = initlab.probe(model, ids).records
    rows = records[(records["kind"] == "weight_grad") & (records["abs_max"] == 0)]
    assert rows["reached"].isin([0.0, 1.0]).all()
    assert records.loc[records.index.difference(rows.index), "reached"].isna().all()
    return set(rows["module"]), set(rows.loc[rows["reached"] == 1, "module"])


def unused(names: tuple[str, ...]) -> set[str]:
    return {f"tower.{i}.{n}{suffix}" for i in range(3) for n in names for suffix in ("", ".weight", ".bias")}


@pytest.mark.parametrize("kind", CLOSED)
@pytest.mark.parametrize("zero_head", [False, True])
def test_what_stands_behind_zeros_waits_and_what_is_unused_is_dead(kind: str, zero_head: bool) -> None:
    close, spare = CLOSED[kind]
    torch.manual_seed(1)
    model = Small(close, zero_head=zero_head)
    zero, waits = lacking(model)
    assert zero - waits == unused(spare) & {name for name, _ in model.named_parameters()}
    assert waits or not zero_head


def test_a_detached_branch_and_one_without_a_slope_are_dead() -> None:
    def close(block: Block, y: Tensor) -> Tensor:
        return (y.detach() + block.post(y) * 0.0) * block.gate

    torch.manual_seed(1)
    zero, waits = lacking(Small(close, zero_head=True))
    assert {"tower.0.up.weight", "tower.2.down.bias", "tower.1.norm.weight"} <= zero - waits
    assert "tower.1.gate" in waits


def test_a_product_of_two_zeros_stays_one() -> None:
    """Neither factor has a gradient, so no step of training opens it."""
    zero, waits = lacking(Small(lambda block, y: y * block.gate * block.scale))
    assert {"tower.0.gate", "tower.0.scale", "tower.0.up.weight"} <= zero - waits


@pytest.mark.parametrize("cut", [False, True])
def test_what_stands_behind_a_gate_of_1_plus_minus_1_waits(cut: bool) -> None:
    """LayerScale as libraries write it whose every gain is 1 + w: it is shut, and none of its numbers is 0."""
    model = Small(lambda block, y: (y.detach() if cut else y) * (1 + block.scale))
    for block in model.tower:
        nn.init.constant_(block.scale, -1.0)
        del block.gate, block.post
    zero, waits = lacking(model)
    assert "tower.1.up.weight" in zero and "tower.1.scale" not in zero
    assert waits == (set() if cut else zero)


def test_nothing_is_run_again_where_every_gradient_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "reached", lambda *_: pytest.fail("no parameter lacks a gradient"))
    model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=1, n_head=1, n_embd=D, block_size=T, vocab_size=V))
    assert initlab.probe(model).records["reached"].isna().all()


def test_a_model_that_takes_no_other_weights_is_not_known() -> None:
    class Stubborn(Small):
        def forward(self, ids: Tensor) -> Tensor:
            if self.head.weight is not first:
                raise ValueError("these aren't mine")
            return super().forward(ids)

    model = Stubborn(lambda block, y: y * block.gate * block.scale, zero_head=True)
    first = model.head.weight
    shown = initlab.probe(model, torch.randint(0, V, (4, T)))
    assert shown.records["reached"].isna().all()
    notes = " ".join(shown.coverage["note"])
    assert "whether parameters without a gradient wait behind a zero isn't known: ValueError: these aren't" in notes


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(1)
    model = Small(dropped, zero_head=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    ids = torch.randint(0, V, (4, T), generator=torch.Generator().manual_seed(0))
    given: list[Any] = []

    def run(call: Callable[..., Any]) -> Any:
        given.append(call)
        return call(ids)

    found = reached(model, ["words.weight", "tower.0.gate"], Inputs(args=(ids,), ids=ids), run, 0)
    assert found == {"words.weight"} and len(given) == 8  # in train mode chance has its say
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and all(p.grad is None for p in model.parameters())
    given.clear()
    assert reached(model.eval(), ["words.weight", "tower.0.gate"], Inputs(args=(ids,)), run, 0) == {"words.weight"}
    assert 2 <= len(given) <= 4


class Modulated(nn.Module):
    """A diffusion transformer in small: gates, shifts and scales come of a condition, all 0 at first, as is the end."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.condition = nn.Linear(4, D), nn.Embedding(10, D)
        self.norm = nn.LayerNorm(D, elementwise_affine=False)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(D, 4 * D), "down": nn.Linear(4 * D, D), "six": nn.Linear(D, 3 * D)})
            for _ in range(2)
        )
        self.end, self.last = nn.Linear(D, 2 * D), nn.Linear(D, 4)
        for module in (*(block["six"] for block in self.blocks), self.end, self.last):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x, c = self.patch(x), F.silu(self.condition(label))[:, None]
        for block in self.blocks:
            shift, scale, gate = block["six"](c).chunk(3, -1)
            x = x + gate * block["down"](F.gelu(block["up"](self.norm(x) * (1 + scale) + shift)))
        shift, scale = self.end(c).chunk(2, -1)
        return self.last(self.norm(x) * (1 + scale) + shift)


@pytest.mark.parametrize("cut", [False, True])
def test_a_diffusion_transformer_that_starts_at_zero_is_sound(cut: bool) -> None:
    torch.manual_seed(0)
    model = Modulated()
    if cut:
        model.blocks[1]["down"].register_forward_hook(lambda module, args, output: output.detach())
    batch = (torch.randn(4, T, 4), torch.randint(0, 10, (4,)))
    finding = next(f for f in initlab.probe(model, batch).findings if f.code == "GRD001")
    assert finding.status == ("fail" if cut else "pass")
    dead = "No gradient reaches blocks.1.up.weight, blocks.1.up.bias, blocks.1.down.weight and blocks.1.down.bias"
    assert not cut or (finding.message == dead and finding.severity != "info")


class PlusOne(nn.Module):
    """Gemma's norm."""

    def __init__(self, *_: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(D))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (D,)) * (1 + self.weight)


@pytest.mark.parametrize("cut", [False, True])
def test_a_gain_that_1_is_added_to_shuts_nothing(cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn, "LayerNorm", PlusOne)
    torch.manual_seed(0)
    model = Small(lambda block, y: y.detach() if cut and block is model.tower[1] else y)
    for block in model.tower:
        del block.gate, block.scale, block.post
    finding = next(f for f in initlab.probe(model, torch.randint(0, V, (4, T))).findings if f.code == "GRD001")
    assert (finding.status, finding.severity) == (("fail", "error") if cut else ("pass", "info"))
    assert not cut or "tower.1.norm.weight, tower.1.up.weight" in finding.message


@pytest.mark.parametrize("name", ["norm", "last"])
def test_a_plain_gain_of_0_is_named(name: str) -> None:
    torch.manual_seed(0)
    model = Small(lambda block, y: y)
    for block in model.tower:
        del block.gate, block.scale, block.post
    nn.init.zeros_((model.last if name == "last" else model.tower[1].norm).weight)
    finding = next(f for f in initlab.probe(model, torch.randint(0, V, (4, T))).findings if f.code == "GRD001")
    gain = "last.weight" if name == "last" else "tower.1.norm.weight"
    assert finding.severity == "error" and finding.message.startswith(f"{gain} is 0 throughout"), finding.message
