"""Roles by the caller's own word, in every command that draws recipes into a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import initlab
from initlab.cli import main
from initlab.errors import ConfigError, InitlabError

pytestmark = pytest.mark.integration

ROLES: dict[str, str | None] = {"blocks.*.keep": "mlp_in", "blocks.*.give": "mlp_out"}


class Mixer(nn.Module):
    """A gated running mean, which no role is known of by name or by what it computes."""

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n_embd)
        self.keep = nn.Parameter(torch.randn(2 * n_embd, n_embd) * 0.02)
        self.give = nn.Parameter(torch.randn(n_embd, n_embd) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (self.norm(x) @ self.keep.T).chunk(2, -1)
        mean = a.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return x + (mean * b.sigmoid()) @ self.give.T


class Mixing(nn.Module):
    def __init__(self, n_layer: int = 2, n_embd: int = 16) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(256, n_embd), nn.Linear(n_embd, 256, bias=False)
        self.blocks = nn.ModuleList(Mixer(n_embd) for _ in range(n_layer))
        self.last = nn.LayerNorm(n_embd)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.embed(idx)
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x))


def make(n_layer: int, n_embd: int) -> nn.Module:
    return Mixing(n_layer, n_embd)


TEXT = initlab.Text(block_size=16, batch_size=2)
# here: a worker can't import this file by its name
HERE = initlab.RunOptions(jobs=1)
TRAINED: dict[str, Any] = {"steps": 4, "seeds": 2, "lrs": [1e-3, 2e-3, 4e-3], "text": TEXT, "run": HERE}


def test_compare_draws_by_them() -> None:
    with pytest.raises(InitlabError, match=r"blocks\.0\.keep|roles="):
        initlab.compare(["nanogpt"], model=make, depths=[2], widths=[16], seeds=1, text=TEXT)
    found = initlab.compare(["nanogpt", make], model=make, roles=ROLES, depths=[2, 8], widths=[16], seeds=1, text=TEXT)
    records = found.run.tables.records
    drawn = records[(records["recipe"] == "nanogpt") & (records["kind"] == "weight") & (records["role"] == "mlp_out")]
    assert drawn.groupby("n_layer")["std"].mean().to_dict() == pytest.approx({2: 0.01, 8: 0.005}, rel=0.1)
    assert found.run.manifest["config"]["roles"] == ROLES


def test_scale_and_transfer_multiply_rates_by_them() -> None:
    result = initlab.scale("mup", model=make, roles=ROLES, widths=[16, 64], depths=[2], steps=1, seeds=1, text=TEXT)
    weights = result.records[(result.records["kind"] == "weight") & (result.records["role"] == "mlp_in")]
    assert set(weights["n_embd"]) == {16, 64}
    for each in initlab.adam_groups(Mixing(2, 512), "mup", lr=1.0, roles=ROLES):
        assert each["lr_multiplier"] == (0.5 if any(p.shape == (1024, 512) for p in each["params"]) else 1.0)
    moved = initlab.transfer("mup", model=make, roles=ROLES, widths=[16, 32], depths=[2], **TRAINED)
    assert not moved.run.tables.runs.empty and "left_out" not in moved.run.manifest["config"]


def test_confirm_and_train_take_them() -> None:
    found = initlab.confirm(["nanogpt", "mup"], model=make, roles=ROLES, depths=[2], n_embd=16, warmups=[0], **TRAINED)
    assert "left_out" not in found.run.manifest["config"]
    run = initlab.train("nanogpt", model=make, roles=ROLES, n_layer=2, n_embd=16, text=TEXT, steps=3).run
    assert "mlp_out" in set(run.tables.records["role"])


def test_roles_without_a_model_are_refused() -> None:
    for call in (initlab.compare, initlab.scale):
        with pytest.raises(ConfigError, match="roles= is of the model that recipes are drawn into"):
            call("nanogpt", roles=ROLES, text=TEXT)


def test_the_command_line_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["compare", "nanogpt", "--model", f"{__file__}:make", "--depths", "2", "--widths", "16", "--seeds", "1"]
    given += ["--block-size", "16", "--batch-size", "2"]
    assert main([*given, "--roles", "blocks.*.keep=mlp_in,blocks.*.give=mlp_out"]) == 0
    assert main([*given, "--roles", "blocks.*.keep"]) == 2
    assert "'blocks.*.keep' has no role; expected NAME=ROLE" in capsys.readouterr().err
