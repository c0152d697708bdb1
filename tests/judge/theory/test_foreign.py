"""Models that aren't nanoGPT's, measured as they are and expected by a wiring in their own names."""

import math

import pandas as pd
import pytest
import torch
from torch import nn

import initlab
from initlab.judge import theory
from initlab.wiring import MLP, Attention, Block, Branch, Linear, Norm, Term, Update, Wiring

D, HEADS, V, T, LAYERS = 128, 4, 256, 32, 3


class Encoder(nn.Module):
    """Post-norm blocks of torch's own, which look both ways and hold q, k and v in one matrix."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
        options = {"dropout": 0.0, "batch_first": True, "activation": "gelu"}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(D, HEADS, 4 * D, **options) for _ in range(LAYERS))
        self.head = nn.Linear(D, V)

    def forward(self, idx):
        x = self.tokens(idx) + self.positions.weight[: idx.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def block(layer):
    name = f"layers.{layer}"

    def linear(module, fan_in, fan_out):
        return Linear(weight=f"{name}.{module}.weight", bias=f"{name}.{module}.bias", fan_in=fan_in, fan_out=fan_out)

    def part(number):
        packed = f"{name}.self_attn.in_proj"
        return Linear(
            weight=f"{packed}_weight", bias=f"{packed}_bias", fan_in=D, fan_out=D, start=number * D, fused=3 * D
        )

    def norm(module):
        return Norm(module=f"{name}.{module}", gain=f"{name}.{module}.weight", bias=f"{name}.{module}.bias", eps=1e-5)

    attention = Attention(
        query=part(0),
        key=part(1),
        value=part(2),
        out=linear("self_attn.out_proj", D, D),
        n_head=HEADS,
        n_kv_head=HEADS,
        head_size=D // HEADS,
        score_scale=(D // HEADS) ** -0.5,
        causal=False,
    )
    mlp = MLP(up=linear("linear1", D, 4 * D), out=linear("linear2", 4 * D, D))
    return Block(
        layer=layer,
        updates=(
            Update(branches=(Branch(site="attn_out", body=attention),), norm=norm("norm1")),
            Update(branches=(Branch(site="mlp_out", body=mlp),), norm=norm("norm2")),
        ),
    )


WIRING = Wiring(
    n_embd=D,
    blocks=tuple(map(block, range(LAYERS))),
    terms=(Term(kind="token", weight="tokens.weight"), Term(kind="position", weight="positions.weight")),
    head=Linear(weight="head.weight", bias="head.bias", fan_in=D, fan_out=V),
)


def test_an_encoder_of_torchs_own_layers_does_as_its_weights_imply():
    parts, losses = [], []
    for seed in range(4):
        torch.manual_seed(seed)
        ids = torch.randint(V, (16, T + 1))
        run = initlab.probe(Encoder(), (ids[:, :-1], ids[:, 1:].contiguous()), stats="light").run
        run.tables.records["expected_var"] = math.nan
        theory.expect(run.tables, [WIRING], {"sum_p2": 1 / V}, ids[:, 1:].numpy())
        records = run.tables.records[run.tables.records["expected_var"].notna()]
        parts.append(records.assign(ratio=records["var"] / records["expected_var"]))
        losses.append((run.tables.summary["loss"] - run.tables.summary["expected_loss"]).item())
    ratio = pd.concat(parts).groupby(["kind", "site"], observed=True)["ratio"].mean()
    sites = {"embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "logits"}
    for kind in ("activation", "grad"):
        assert set(ratio[kind].index) >= sites
        for site, value in ratio[kind][sorted(sites)].items():
            # what attention writes averages 32 values, and scatters with what one draw makes positions share
            assert value == pytest.approx(1, rel=0.1 if site == "attn_out" else 0.03), (kind, site)
    assert sum(losses) / len(losses) == pytest.approx(0, abs=0.03)
