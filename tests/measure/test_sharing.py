"""One module in several blocks: each block's writes are its own."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import initlab

pytestmark = pytest.mark.integration


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x):
        return self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), is_causal=True))


class FFN(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.w2 = nn.Linear(32, 64, bias=False), nn.Linear(64, 32, bias=False)

    def forward(self, x):
        return self.w2(torch.relu(self.w1(x)))


class Block(nn.Module):
    def __init__(self, attn, ffn):
        super().__init__()
        self.attn, self.ffn, self.n1, self.n2 = attn, ffn, nn.LayerNorm(32), nn.LayerNorm(32)

    def forward(self, x):
        x = x + self.attn(self.n1(x))
        return x + self.ffn(self.n2(x))


class Model(nn.Module):
    def __init__(self, shared):
        super().__init__()
        attn, ffn = Attention(), FFN()
        self.embed = nn.Embedding(64, 32)
        self.layers = nn.ModuleList(
            Block(attn if "attn" in shared else Attention(), ffn if "ffn" in shared else FFN()) for _ in range(3)
        )
        self.head = nn.Linear(32, 64, bias=False)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def unshared(model):
    """The same numbers, in modules of each block's own."""
    model = copy.deepcopy(model)
    for layer in model.layers:
        layer.attn, layer.ffn = copy.deepcopy(layer.attn), copy.deepcopy(layer.ffn)
    return model


def stream(probed):
    rows = probed.records
    rows = rows[rows["kind"].isin(["activation", "grad"]) & ~rows["site"].isin(["module", "logits"])]
    return rows.set_index(["site", "kind", "layer", "call"])["var"].sort_index()


@pytest.mark.parametrize("shared", [["ffn"], ["attn"], ["attn", "ffn"]])
def test_a_shared_module_is_measured_in_each_block(shared):
    torch.manual_seed(0)
    model = Model(shared)
    ids = torch.randint(64, (2, 16))
    found, own = initlab.probe(model, ids), initlab.probe(unshared(model), ids)
    assert set(stream(found).index) == set(stream(own).index)
    assert {site for site, *_ in stream(found).index} >= {"embed", "attn_out", "resid_mid", "mlp_out", "resid_post"}
    torch.testing.assert_close(torch.tensor(stream(found).values), torch.tensor(stream(own).values))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_shared_module_can_be_watched_compared_and_fixed():
    torch.manual_seed(0)
    model, ids = Model(["attn", "ffn"]), torch.randint(64, (2, 16))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with initlab.watch(model, every=1) as watched:
        for _ in range(2):
            F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
            watched.step()
    rows = watched.result.at("mlp_out")
    assert set(rows["layer"]) == {0, 1, 2} and set(rows["call"]) == {0}
    initlab.fix(model, ids)
    text = initlab.Text("uniform", block_size=16, batch_size=2)
    assert len(initlab.compare(["nanogpt"], model=model, seeds=1, text=text).at("attn_out")) == 3
