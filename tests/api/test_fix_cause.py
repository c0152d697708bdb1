"""`initlab.fix` mends the cause of a finding, alone: models by hand with one fault each."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import initlab

pytestmark = pytest.mark.integration

QUICK: dict[str, Any] = {"text": initlab.Text("uniform", batch_size=4, block_size=32)}


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, width: int, value: float = 1.0):
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * F.rms_norm(x, x.shape[-1:])


class Block(nn.Module):
    """Causal attention and a gated MLP, each behind a norm."""

    def __init__(self, width: int, heads: int, norm: float, scaled: bool):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = Norm(width, norm), Norm(width, norm)
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up, self.down = (
            nn.Linear(width, 2 * width, bias=False),
            nn.Linear(width, 2 * width, bias=False),
            nn.Linear(2 * width, width, bias=False),
        )
        self.scale_1 = nn.Parameter(torch.zeros(width)) if scaled else None
        self.scale_2 = nn.Parameter(torch.zeros(width)) if scaled else None

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (each(x).view(batch, length, self.heads, -1).transpose(1, 2) for each in (self.wq, self.wk, self.wv))
        half = q.shape[-1] // 2
        angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        q, k = (
            torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)
            for a, b in ((each[..., :half], each[..., half:]) for each in (q, k))
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(batch, length, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mix(self.norm_1(x))
        x = x + (y if self.scale_1 is None else self.scale_1 * y)
        z = self.norm_2(x)
        z = self.down(F.silu(self.gate(z)) * self.up(z))
        return x + (z if self.scale_2 is None else self.scale_2 * z)


class Llama(nn.Module):
    """RoPE, RMSNorm, SwiGLU; everything at 0.02."""

    def __init__(self, n_layer: int = 6, width: int = 128, norm: float = 1.0, *, scaled: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(256, width)
        self.layers = nn.ModuleList(Block(width, 4, norm, scaled) for _ in range(n_layer))
        self.norm, self.output = Norm(width, norm), nn.Linear(width, 256, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0.0, 0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


class Sinusoid(Llama):
    """Llama with a fixed table of positions that is added."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__(4)
        angle = torch.arange(64)[:, None] / 10000 ** (torch.arange(64) / 64)
        table = torch.cat([angle.sin(), angle.cos()], -1)
        if frozen:
            self.positions = nn.Embedding.from_pretrained(table, freeze=True)
        else:
            self.register_buffer("table", table)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        at = torch.arange(ids.shape[1])
        x = self.tokens(ids) + (self.positions(at) if hasattr(self, "positions") else self.table[at])
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def mended(model: nn.Module, fault: Callable[[Any], None]) -> tuple[initlab.api.fix.Proposal, set[str]]:
    """The proposal for a model with a fault, applied; and the names of all parameters that aren't as before the fault
    to within the sampling error of a std."""
    sound = state(model)
    with torch.no_grad():
        fault(model)
    broken = state(model)
    proposal = initlab.fix(model, apply=True, **QUICK)
    after = state(model)
    faulty = {name for name in sound if not torch.equal(sound[name], broken[name])}
    touched = {name for name in sound if not torch.equal(after[name].nan_to_num(), broken[name].nan_to_num())}
    assert touched <= faulty, "nothing else is touched"
    return proposal, {n for n in sound if not torch.allclose(after[n], sound[n], rtol=0.01, atol=1e-6)}


def test_one_odd_matrix_in_a_llama_is_all_that_changes() -> None:
    proposal, off = mended(Llama(), lambda m: m.layers[2].up.weight.mul_(4))
    assert [(row["names"], row["how"], row["code"]) for row in proposal.rows] == [
        (["layers.2.up.weight"], "× 0.25", "INI003")
    ]
    assert not off
    assert "in the other 5 blocks" in proposal.rows[0]["why"]


@pytest.mark.parametrize("factor", [5.0, 30.0])
def test_a_block_drawn_larger_gets_its_former_weights_back(factor: float) -> None:
    def enlarge(model: Any) -> None:
        for parameter in model.layers[3].parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)

    proposal, off = mended(Llama(), enlarge)
    assert not off
    assert {row["evidence"] for row in proposal.rows} == {"siblings"}
    assert proposal.left == []


def test_the_report_shows_the_model_beside_its_changed_copy(tmp_path: Path) -> None:
    model = Llama(4, 64)
    model.layers[2].up.weight.data.mul_(4)
    page = initlab.fix(model, **QUICK).report(tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert page.name == "report.html"
    assert "changed: mlp_in of 1 parameter (layers.2.up.weight) × 0.25, std 0.0793 → 0.0198; INI003" in text
    assert "as found (init); changed passes" in text
    assert [str(r) for r in initlab.load(tmp_path / "out").summary["recipe"]] == ["as found", "changed"]


def test_rows_of_one_head_are_brought_back_and_the_other_rows_stay() -> None:
    def enlarge(model: Any) -> None:
        model.layers[1].wq.weight[32:64] *= 50
        model.layers[1].wk.weight[32:64] *= 50

    proposal, off = mended(Llama(), enlarge)
    assert not off
    assert [row["part"] for row in proposal.rows] == [{"axis": 0, "first": 32, "end": 64}] * 2


def test_a_final_gain_of_20_is_set_to_the_others_and_the_head_stays() -> None:
    proposal, off = mended(Llama(), lambda m: m.norm.weight.fill_(20))
    assert not off
    assert [(row["role"], row["how"], row["code"]) for row in proposal.rows] == [("norm_gain", "set to 1", "INI004")]


def test_numbers_that_arent_finite_are_drawn_and_the_finite_ones_beside_them_stay() -> None:
    model = Llama()
    before = state(model)["layers.1.down.weight"]
    model.layers[1].down.weight.data[3, 5] = math.nan
    proposal = initlab.fix(model, apply=True, **QUICK)
    after = state(model)["layers.1.down.weight"]
    assert [(row["how"], row["code"]) for row in proposal.rows] == [("draw 1 element", "NUM001")]
    assert (after != before).nonzero().tolist() == [[3, 5]]
    assert 0 < abs(float(after[3, 5])) < 0.2


def test_zeros_that_let_nothing_learn_are_drawn() -> None:
    def shut(model: Any) -> None:
        for layer in model.layers:
            layer.gate.weight.zero_()
            layer.up.weight.zero_()

    proposal, _ = mended(Llama(4), shut)
    assert {(row["role"], row["code"]) for row in proposal.rows} == {("mlp_gate", "GRD001"), ("mlp_in", "GRD001")}
    assert proposal.left == []


def test_a_gain_that_no_other_role_explains_goes_to_the_recipe() -> None:
    def lower(model: Any) -> None:
        for each in model.modules():
            if isinstance(each, Norm):
                each.weight.fill_(0.1)

    proposal, off = mended(Llama(), lower)
    assert not off
    assert {row["role"] for row in proposal.rows} == {"norm_gain"}


@pytest.mark.parametrize("frozen", [True, False])
def test_fixed_positions_are_a_matter_of_the_forward_pass(frozen: bool) -> None:
    model = Sinusoid(frozen=frozen)
    before = state(model)
    proposal = initlab.fix(model, apply=True, **QUICK)
    assert proposal.rows == []
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    if "EMB001" in {finding.code for finding in proposal.left}:
        assert "every check passes" not in repr(proposal)


@pytest.mark.parametrize("sizes", [(3, 128), (6, 256), (6, 128), (12, 96)])
def test_unscaled_outputs_are_seen_whatever_other_recipe_has_a_number_like_theirs(sizes: tuple[int, int]) -> None:
    n_layer, width = sizes
    config = initlab.NanoGPTConfig(n_layer=n_layer, n_embd=width, n_head=4, block_size=64, vocab_size=256)
    model = initlab.NanoGPT(config)
    initlab.apply_recipe(model, "nanogpt-no-depth-scale")
    proposal = initlab.fix(model, **QUICK)
    assert {row["role"] for row in proposal.rows} == {"attn_out", "mlp_out"}
    assert proposal.left == []


def zero_branches(model: Llama) -> Llama:
    for layer in model.layers:
        nn.init.zeros_(layer.wo.weight)
        nn.init.zeros_(layer.down.weight)
    return model


def drawn_again(model: nn.TransformerEncoder) -> nn.TransformerEncoder:
    """With layers that aren't copies of one draw, as torch's documentation asks."""
    for layer in model.layers:
        nn.init.xavier_uniform_(layer.self_attn.in_proj_weight)
        for linear in (layer.self_attn.out_proj, layer.linear1, layer.linear2):
            linear.reset_parameters()
    return model


@pytest.mark.parametrize(
    "make",
    [
        Llama,
        lambda: zero_branches(Llama()),
        lambda: Llama(scaled=True),
        lambda: Llama(norm=2.0),
        lambda: Llama(24, 64),
        lambda: drawn_again(nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 4)),
    ],
    ids=["plain", "zero branches", "layer scale 0", "gains of 2 by the class", "deep", "torch"],
)
def test_what_is_meant_or_harmless_is_left(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    before = state(model)
    proposal = initlab.fix(model, apply=True, **QUICK)
    assert proposal.rows == []
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())


class NoSkip(Block):
    """Its MLP's result replaces the stream."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mix(self.norm_1(x))
        z = self.norm_2(x)
        return self.down(F.silu(self.gate(z)) * self.up(z))


def test_a_missing_residual_is_said_and_no_weight_changed() -> None:
    model = Llama()
    block = NoSkip(128, 4, 1.0, scaled=False)
    block.load_state_dict(model.layers[2].state_dict())
    model.layers[2] = block
    before = state(model)
    proposal = initlab.fix(model, apply=True, **QUICK)
    assert proposal.rows == []
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert any("x = x + " in line for line in proposal.wiring)
    assert "No weight is at fault and none is changed" in " ".join(repr(proposal).split())
