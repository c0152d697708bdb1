"""`initlab.fix` gives each parameter the draw back that a blanket init drew over."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import initlab

pytestmark = pytest.mark.integration

WIDTH, DEPTH, WORDS = 64, 4, 96
QUICK: dict[str, Any] = {"text": initlab.Text("uniform", batch_size=4, block_size=32)}


class Mixer(nn.Module):
    """A causal short convolution between two gates, and its own init."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.filter = nn.Conv1d(WIDTH, WIDTH, 4, groups=WIDTH)
        self.write = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.normal_(self.read.weight, std=0.05)
        nn.init.orthogonal_(self.filter.weight.data.squeeze(1))
        nn.init.normal_(self.write.weight, std=0.05 / math.sqrt(2 * DEPTH))
        with torch.no_grad():
            self.filter.bias.copy_(torch.linspace(0.1, 1.0, WIDTH).log())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b, c = self.read(x).chunk(3, -1)
        return self.write(c * self.filter(F.pad((a * b).transpose(1, 2), (3, 0))).transpose(1, 2))


class Attention(nn.Module):
    """Two heads and one of keys and values, and its own init."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wo = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.wk, self.wv = nn.Linear(WIDTH, WIDTH // 2, bias=False), nn.Linear(WIDTH, WIDTH // 2, bias=False)
        for each in (self.wq, self.wk, self.wv):
            nn.init.normal_(each.weight, std=0.05)
        nn.init.normal_(self.wo.weight, std=0.05 / math.sqrt(2 * DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (-1, WIDTH // 2)).transpose(1, 2) for f in (self.wq, self.wk, self.wv))
        k, v = k.expand_as(q), v.expand_as(q)
        return self.wo(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A mixer or attention, and an MLP."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.norm_1, self.norm_2, self.mixer = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), mixer
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)
        nn.init.normal_(self.up.weight, std=0.05)
        nn.init.normal_(self.down.weight, std=0.05 / math.sqrt(2 * DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mixer(self.norm_1(x))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class Hybrid(nn.Module):
    """Mixers and attention by turns; a blanket init runs after those of the modules, or doesn't."""

    def __init__(self, *, blanket: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block(Mixer() if at % 2 == 0 else Attention()) for at in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        nn.init.normal_(self.embed.weight, std=0.05)
        nn.init.normal_(self.head.weight, std=0.05)
        if blanket:
            self.blocks.apply(self.draw)

    @staticmethod
    def draw(module: nn.Module) -> None:
        """Draw every matrix alike."""
        if isinstance(module, nn.Linear | nn.Conv1d):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def hybrid(*, blanket: bool) -> Hybrid:
    torch.manual_seed(0)
    return Hybrid(blanket=blanket)


def test_each_parameter_gets_its_own_draw_back_and_no_check_fails_that_did_not() -> None:
    meant = dict(hybrid(blanket=False).named_parameters())
    proposal = initlab.fix(lambda: hybrid(blanket=True), batch=torch.randint(WORDS, (4, 32)))
    before = {name: value.detach().clone() for name, value in proposal.model.named_parameters()}
    assert "DRW003" in {finding.code for finding in proposal.problems}
    assert not proposal.left
    proposal.apply()
    for name, value in proposal.model.named_parameters():
        if "mixer" in name or "up" in name or "down" in name:
            wanted = meant[name].detach()
            assert math.isclose(value.detach().std(), wanted.std(), rel_tol=6 / math.sqrt(2 * value.numel())), name
        else:
            assert torch.equal(value, before[name]), name
    # what no distribution says comes back as it was, to the bit
    bias = proposal.model.get_parameter("blocks.0.mixer.filter.bias")
    torch.testing.assert_close(bias.detach(), torch.linspace(0.1, 1.0, WIDTH).log(), rtol=0, atol=0)
    after = initlab.probe(proposal.model, batch=torch.randint(WORDS, (4, 32)))
    assert not [f.code for f in after.findings if f.status == "fail" and f.severity != "info"]


def test_the_proposal_names_both_lines_and_what_was_lost() -> None:
    proposal = initlab.fix(lambda: hybrid(blanket=True), batch=torch.randint(WORDS, (4, 32)))
    rows = {row["role"]: row for row in proposal.rows}
    assert {row["evidence"] for row in rows.values()} == {"init code"}
    assert rows["mlp_out"]["code"] == "DRW003"
    assert "test_fix_lost.py" in rows["mlp_out"]["why"] and "normal(0, 0.01768)" in rows["mlp_out"]["why"]
    assert math.isclose(rows["mlp_out"]["proposed"], 0.05 / math.sqrt(2 * DEPTH), rel_tol=0.03)


class Modulated(nn.Module):
    """A block that its condition scales, shifts and gates: adaLN-Zero (Peebles and Xie, arXiv:2212.09748)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.modulate = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.modulate(F.silu(condition))[:, None].chunk(3, -1)
        return x + gate * self.down(F.gelu(self.up(self.norm(x) * (1 + scale) + shift)))


class Denoiser(nn.Module):
    """Blocks whose gates begin at 0, and are drawn over."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.when = nn.Linear(8, WIDTH), nn.Linear(16, WIDTH)
        self.blocks = nn.ModuleList(Modulated() for _ in range(DEPTH))
        self.write = nn.Linear(WIDTH, 8)
        for block in self.blocks:
            nn.init.zeros_(block.modulate.weight)
            nn.init.zeros_(block.modulate.bias)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor, when: torch.Tensor) -> torch.Tensor:
        x, condition = self.read(x), self.when(when)
        for block in self.blocks:
            x = block(x, condition)
        return self.write(x)


def test_gates_that_begin_at_zero_do_so_again_though_that_shuts_the_branches() -> None:
    batch = (torch.randn(4, 16, 8), torch.randn(4, 16))
    proposal = initlab.fix(Denoiser, batch)
    before = {name: value.detach().clone() for name, value in proposal.model.named_parameters()}
    proposal.apply()
    changed = {name for name, value in proposal.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {f"blocks.{block}.modulate.weight" for block in range(DEPTH)}
    assert not any(bool(proposal.model.get_parameter(name).any()) for name in changed)
