"""An einsum of three tensors is read as the two products that it stands for."""

import pytest
import torch
from torch import nn

import initlab
from initlab.anatomy.contractions import products
from initlab.measure.batches import inputs_for
from initlab.measure.probe import look

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("equation", "data", "expected"),
    [
        # softmax(q k), v, projection: the heads are mixed before they are projected
        (
            "bhqs,bhsk,hkd->bqd",
            (True, True, False),
            [(0, 1, "bhqs,bhsk->bhqk"), (2, 3, "hkd,bhqk->bqd")],
        ),
        ("hkd,bhqs,bhsk->bqd", (False, True, True), [(1, 2, "bhqs,bhsk->bhqk"), (0, 3, "hkd,bhqk->bqd")]),
        ("...a,ab,bc->...c", (True, False, False), [(0, 1, "...a,ab->...b"), (2, 3, "bc,...b->...c")]),
        ("ab,bc", (True, True), None),
    ],
)
def test_what_is_summed_over_goes_first(equation, data, expected):
    if expected is None:
        assert products(equation, data) is None
        return
    steps = products(equation, data)
    tensors = [
        torch.randn([{"a": 3, "b": 2, "c": 5}.get(x, 4) for x in text.replace("...", "q")])
        for text in equation.split("->")[0].split(",")
    ]
    whole = torch.einsum(equation, *tensors)
    for first, second, written in steps:
        tensors.append(torch.einsum(written, tensors[first], tensors[second]))
    assert [(a, b) for a, b, _ in steps] == [(a, b) for a, b, _ in expected]
    assert torch.allclose(tensors[-1], whole, atol=1e-4)


class Block(nn.Module):
    """No submodules; keys and values in one tensor, shared by pairs of heads."""

    def __init__(self, d, heads=4, shared=2):
        super().__init__()
        size = d // heads
        # small scores: those of equal tokens are equal, which the closed form of the weights leaves out
        self.q = nn.Parameter(torch.randn(d, heads, size) * 0.3 * d**-0.5)
        self.kv = nn.Parameter(torch.randn(2, d, shared, size) * d**-0.5)
        self.o = nn.Parameter(torch.randn(heads, size, d) * d**-0.5)
        self.up, self.down = (nn.Parameter(torch.randn(*s) * s[0] ** -0.5) for s in ((d, 4 * d), (4 * d, d)))

    def forward(self, x):
        y = x / x.square().mean(-1, keepdim=True).sqrt()
        q = torch.einsum("btd,dhk->bhtk", y, self.q)
        k, v = torch.einsum("btd,sdhk->sbhtk", y, self.kv)
        k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], 1) for each in (k, v))
        scores = torch.einsum("bhqk,bhsk->bhqs", q, k) / q.shape[-1] ** 0.5
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        x = x + torch.einsum("bhqs,bhsk,hkd->bqd", scores.masked_fill(mask, -torch.inf).softmax(-1), v, self.o)
        y = x / x.square().mean(-1, keepdim=True).sqrt()
        return x + (y @ self.up).relu() @ self.down


class Model(nn.Module):
    def __init__(self, d=96):
        super().__init__()
        self.tokens = nn.Embedding(64, d)
        self.blocks = nn.ModuleList(Block(d) for _ in range(3))

    def forward(self, ids):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return x @ self.tokens.weight.T


def test_attention_in_one_einsum_has_its_parts_and_its_closed_form():
    torch.manual_seed(0)
    model = Model()
    anatomy = look(model, inputs_for(model, None, text=initlab.Text("uniform"), seed=0)[0])
    body = anatomy.wirings[0].blocks[1].updates[0].branches[0].body
    assert (body.query.weight, body.out.weight) == ("blocks.1.q", "blocks.1.o")
    assert (body.n_head, body.n_kv_head, body.head_size) == (4, 2, 24)
    assert (body.key.start, body.key.fan_out, body.value.start, body.value.fan_out) == (0, 48, 48, 48)
    ratios = []
    for seed in range(4):
        torch.manual_seed(seed)
        probe = initlab.probe(Model(), text=initlab.Text("uniform", batch_size=4))
        assert {"q", "k", "v", "attn_logits"} <= set(probe.records["site"])
        written = probe.records.query("site == 'attn_out' and kind == 'activation'")
        ratios.append((written["var"] / written["expected_var"]).mean())
    assert sum(ratios) / 4 == pytest.approx(1, rel=0.15)  # attention's write scatters by 10 % over draws of this width
