"""Mixtures of experts in several spellings: their routers' loads, and faults planted into them, are seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initlab
from tests.helpers.measure_zoo import Attention, D, Language, Norm

pytestmark = pytest.mark.integration

E = 4


class Mixture(nn.Module):
    """What all have: a router, a nonlinearity, and numbers that are added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.act = nn.Linear(D, E, bias=False), F.gelu
        self.register_buffer("favour", torch.zeros(E))

    def scores(self, h: Tensor) -> Tensor:
        return self.router(h) + self.favour


class Stacked(Mixture):
    """Every expert sees every token; a token's two best are weighed, the others are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w_in, self.w_out = nn.Parameter(torch.randn(E, D, 64) / 8), nn.Parameter(torch.randn(E, 64, D) / 8)

    def forward(self, x: Tensor) -> Tensor:
        best, chosen = self.scores(x).topk(2, -1)
        weights = x.new_zeros(*x.shape[:-1], E).scatter(-1, chosen, best.softmax(-1))
        u = self.act(torch.einsum("btd,edf->btef", x, self.w_in))
        return torch.einsum("bted,bte->btd", torch.einsum("btef,efd->bted", u, self.w_out), weights)


class Switch(Mixture):
    """A list of modules, one expert for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.ModuleList([nn.Linear(D, 64), nn.Linear(64, D)]) for _ in range(E))

    def forward(self, x: Tensor) -> Tensor:
        h = x.reshape(-1, D)
        best, chosen = self.scores(h).softmax(-1).max(-1)
        out = torch.zeros_like(h)
        for number, (up, down) in enumerate(self.experts):
            mine = chosen == number
            out[mine] = down(self.act(up(h[mine]))) * best[mine, None]
        return out.view_as(x)


class Shared(Switch):
    """Sigmoid scores with a bias for the choice alone, and an expert for all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.ModuleList([nn.Linear(D, 64), nn.Linear(64, D)])

    def forward(self, x: Tensor) -> Tensor:
        h = x.reshape(-1, D)
        scores = self.router(h).sigmoid()
        chosen = torch.topk(scores + self.favour, 2, sorted=False)[1]
        out = torch.zeros_like(h)
        for number, (up, down) in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            weight = scores[token, chosen[token, place], None]
            out = out.index_add(0, token, down(self.act(up(h[token]))) * weight)
        up, down = self.shared
        return (out + down(self.act(up(h)))).view_as(x)


class Sorted(Stacked):
    """The choice is the head of a sorted list, and each token fetches its experts' weights."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(0, 1)
        shares = self.scores(h).softmax(-1)
        chosen = torch.argsort(shares, dim=-1, descending=True)[:, :2]
        out = torch.zeros_like(h)
        for mine in chosen.unbind(-1):
            u = self.act(torch.bmm(h[:, None], self.w_in[mine]))
            out = out + torch.bmm(u, self.w_out[mine])[:, 0] * shares.gather(1, mine[:, None])
        return out.view_as(x)


class Block(nn.Module):
    def __init__(self, mixture: type[Mixture]) -> None:
        super().__init__()
        self.norm_1, self.attn, self.norm_2, self.moe = Norm(), Attention(), Norm(), mixture()
        self.adds = True

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x * self.adds + self.moe(self.norm_2(x)) if self.adds else self.moe(self.norm_2(x))


STYLES = (Stacked, Switch, Shared, Sorted)


@pytest.fixture(params=STYLES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return Language(lambda: Block(request.param)).eval()


def verdicts(model: nn.Module) -> dict[str, str]:
    found = initlab.probe(model).judge(select=["WIR", "ACT003"], ignore=["WIR008"])
    return {each.code: each.message for each in found if each.status == "fail"}


def test_a_sound_mixture_is_read_and_nothing_is_said(model: nn.Module) -> None:
    probe = initlab.probe(model)
    tables = probe.run.tables
    mixed = tables.wiring[tables.wiring["site"] == "mlp_out"]
    assert set(mixed["kind"]) == {"experts"} and set(mixed["activation"]) == {"gelu"}
    assert (mixed["norm"] != "").all()
    assert len(tables.routing) == len(mixed) and (tables.routing["experts"] == E).all()
    assert verdicts(model) == {}


FAULTS: dict[str, tuple[str, Callable[[Block], None]]] = {
    "added no more": ("WIR002", lambda block: setattr(block, "adds", False)),
    "linear": ("WIR006", lambda block: setattr(block.moe, "act", lambda x: x)),
    "favours two": ("ACT003", lambda block: block.moe.favour.copy_(torch.tensor([20.0, 10.0, 0.0, 0.0]))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(model: nn.Module, fault: str) -> None:
    code, plant = FAULTS[fault]
    for module in model.modules():
        if isinstance(module, Block):
            plant(module)
    found = verdicts(model)
    assert "moe" in found[code], found


def test_loads_are_those_of_the_pass(model: nn.Module) -> None:
    """The counts add up, and a router that scores all alike is one whose choice is always the same."""
    rows = initlab.probe(model).run.tables.routing
    assert (rows["most"] * rows["experts"] >= rows["chosen"] * 0.999).all()
    assert rows["evenness_by_chance"].between(0, 1).all()
    for module in model.modules():
        if isinstance(module, Mixture):
            nn.init.zeros_(module.router.weight)
    rows = initlab.probe(model).run.tables.routing
    assert (rows["most"] == 1).all() and (rows["never"] == rows["experts"] - rows["chosen"]).all()
