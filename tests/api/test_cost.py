"""What a probe costs, in passes and in readings of a weight: counts, since times depend on what else a machine does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import initlab
from initlab.anatomy.inputs import of_ids
from initlab.judge.rules import evaluate, faults
from initlab.measure.batches import FEW
from initlab.measure.probe import look
from initlab.rundir import Run

pytestmark = pytest.mark.integration

B, T, C, V = 4, 160, 16, 23


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.up, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (2, -1)).transpose(1, 2) for each in self.qkv(self.ln_1(x)).chunk(3, -1))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(z.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(T, C)
        self.h = nn.ModuleList([Block() for _ in range(2)])
        self.ln_f, self.head = nn.LayerNorm(C), nn.Linear(C, V)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        SEEN.append(idx.numel())
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        for block in self.h:
            x = block(x)
        logits = self.head(self.ln_f(x))
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss


SEEN: list[int] = []  # tokens of each pass; not the model's, which a probe leaves as it was


class Reading(TorchDispatchMode):
    """Counts the kernels that read all of a tensor and give something of their own."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.at, self.numel = tensor.data_ptr(), tensor.numel()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = all(each.alias_info is None for each in func._schema.returns)
        if own and any(isinstance(x, Tensor) and x.data_ptr() == self.at and x.numel() == self.numel for x in args):
            self.count[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    idx, targets = torch.randint(V, (2, B, T)).unbind(0)
    return idx, targets


def test_a_probe_runs_a_few_tokens_then_one_sequence_then_all(batch):
    SEEN.clear()
    initlab.probe(Model(), batch)
    assert SEEN[:3] == [FEW, T, B * T]
    assert SEEN[3:] == [2 * FEW] * 4  # of changed tokens


def test_light_makes_no_passes_over_changed_tokens_and_says_so(batch):
    SEEN.clear()
    probed = initlab.probe(Model(), batch, stats="light")
    assert SEEN == [FEW, T, B * T]
    behaviour = [each for each in probed.findings if each.code.startswith("BEH")]
    assert {each.status for each in behaviour} == {"not_applicable"}
    assert all("with stats='full'" in each.message for each in behaviour)
    assert probed.coverage["note"].str.contains("rules BEH").any()


def test_where_the_few_tokens_say_nothing_a_sequence_is_tried(batch):
    idx, targets = batch
    targets[:, :FEW] = -1  # of a loss over them nothing is finite
    SEEN.clear()
    probed = initlab.probe(Model(), (idx, targets))
    assert SEEN[:4] == [FEW, T, T, B * T]
    assert probed.summary["targets"].item() == initlab.probe(Model(), batch).summary["targets"].item()


@pytest.mark.parametrize(("stats", "most"), [("light", 22), ("full", 24)])
def test_a_weight_is_read_a_few_times_in_all(batch, stats, most):
    model = Model()
    with Reading(model.h[1].up.weight) as reading:
        assert initlab.probe(model, batch, stats=stats).findings
    assert 5 < sum(reading.count.values()) <= most, reading.count


def test_the_look_reads_a_weight_in_its_pass_and_for_its_size(batch):
    model = Model()
    with Reading(model.h[1].up.weight) as reading:
        look(model, of_ids(model, *batch))
    assert 0 < sum(reading.count.values()) <= 2, reading.count


def test_rules_share_what_they_read_of_the_wiring(batch, monkeypatch):
    run, read = initlab.probe(Model(), batch).run, []
    inside = faults.inside
    monkeypatch.setattr(faults, "inside", lambda rows: read.append(1) or inside(rows))
    evaluate(Run(run.tables, run.manifest))
    assert len(read) == 1
