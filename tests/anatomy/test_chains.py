"""Sums that are no update of the stream, or that are one though they don't look like it."""

import pytest
import torch
from measure_zoo import Attention, Block, D, Gated, Language, Norm, T, V
from torch import nn

import initlab
from initlab.anatomy.stream import find_stacks
from initlab.anatomy.trace import traced


def ids():
    return torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0))


def stack_of(model):
    (stack,) = find_stacks(model, traced(model, lambda: model(ids())))
    assert stack.verified == 1, [block.note for block in stack.blocks]
    return stack


class Reinjected(nn.Module):
    """Each branch reads the stream and what was made of the embedding; the stream itself gets nothing of that."""

    def __init__(self):
        super().__init__()
        self.embed, self.inject = nn.Embedding(V, D), nn.Linear(D, D)
        self.norms = nn.ModuleList(Norm() for _ in range(6))
        self.layers = nn.ModuleList(Attention() if i % 2 == 0 else Gated() for i in range(6))
        self.head = nn.Linear(D, V)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        also = self.inject(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x + also))
        return self.head(x)


class Earlier(Block):
    """The branch reads a mixture of the stream and its first state, by two learned numbers."""

    first = None

    def __init__(self):
        super().__init__()
        self.by = nn.Parameter(torch.tensor([0.9, 0.2]))

    def forward(self, x):
        x = x + self.attn(self.norm_1(self.by[0] * x + self.by[1] * Earlier.first))
        return x + self.mlp(self.norm_2(x))


class Remembering(Language):
    def __init__(self):
        super().__init__(Earlier)

    def forward(self, input_ids):
        Earlier.first = self.embed(input_ids)
        x = Earlier.first
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


@pytest.mark.parametrize("model", [Reinjected, Remembering])
def test_what_a_branch_reads_alone_is_no_state(model):
    torch.manual_seed(0)
    model = model()
    stack = stack_of(model)
    sums = [each for block in stack.blocks for each in block.sums]
    assert len(sums) == 6 and all(len(each.terms) == 1 and each.keep == 1 for each in sums)
    probe = initlab.probe(model.eval(), ids())
    assert len(probe.at("q")) == len(probe.at("mlp_act")) == 3


class Towards(Block):
    """nGPT's: the stream is normalised, and moves towards what a branch gives by a learned rate a channel."""

    def __init__(self):
        super().__init__()
        self.norm_3, self.norm_4 = Norm(), Norm()
        self.rate = nn.Parameter(torch.full((D,), 0.1))

    def forward(self, x):
        x = self.norm_1(x)
        x = x + self.rate * (self.norm_3(self.attn(x)) - x)
        x = self.norm_2(x)
        return x + 0.2 * (self.norm_4(self.mlp(x)) - x)


def test_a_step_towards_a_branch_keeps_the_rest():
    torch.manual_seed(0)
    model = Language(Towards).eval()
    for block in stack_of(model).blocks:
        assert [each.keep for each in block.sums] == pytest.approx([0.9, 0.8])
        assert [write.scale for write in block.writes] == pytest.approx([0.1, 0.2])
    probe = initlab.probe(model, ids())
    assert probe.at("attn_out")["var"].tolist() == pytest.approx([0.01] * 3, rel=0.05)
    closed = probe.at("resid_post")
    assert closed["var"].tolist() == pytest.approx(closed["expected_var"].tolist(), rel=0.2)


class SideBySide(nn.Module):
    """Attentions in one list, MLPs in another, and padding set to zero after each pair."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        self.attentions = nn.ModuleList(Attention() for _ in range(3))
        self.mlps = nn.ModuleList(Gated() for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(6))

    def forward(self, input_ids):
        real = (input_ids != V).unsqueeze(-1)
        x = self.embed(input_ids) * real.to(self.embed.weight.dtype)
        for i in range(3):
            x = self.norms[2 * i](x + self.attentions[i](x))
            x = self.norms[2 * i + 1](x + self.mlps[i](x))
            x *= real.to(x.dtype)
        return self.head(x)


def test_blocks_of_lists_side_by_side_and_a_mask_on_the_stream():
    torch.manual_seed(0)
    model = SideBySide().eval()
    assert [block.name for block in stack_of(model).blocks] == [f"attentions.{i}" for i in range(3)]
    probe = initlab.probe(model, ids())
    for site in ("q", "k", "v", "attn_z", "mlp_pre", "mlp_act", "resid_post"):
        assert probe.at(site)["layer"].tolist() == [0, 1, 2], site
        assert probe.at(site)["expected_var"].notna().all(), site


class Again(nn.Module):
    """An attention and an MLP, each with its norm in a list of two, gone through three times."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        self.parts = nn.ModuleList(nn.ModuleList([Norm(), part]) for part in (Attention(), Gated()))

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for norm, part in [*self.parts] * 3:
            x = x + part(norm(x))
        return self.head(x)


def test_parts_used_again_are_seen_in_their_first_use():
    torch.manual_seed(0)
    model = Again().eval()
    assert [(block.name, block.uses, len(block.sums)) for block in stack_of(model).blocks] == [
        ("parts.0", 3, 1),
        ("parts.1", 3, 1),
    ]
    probe = initlab.probe(model, ids())
    x = model.embed(ids())
    mid = x + model.parts[0][1](model.parts[0][0](x))
    assert probe.at("resid_post", 0)["var"].item() == pytest.approx(mid.var(correction=0).item(), rel=1e-5)
    for site in ("q", "k", "v", "attn_z", "attn_out"):
        assert probe.at(site)["layer"].tolist() == [0], site
