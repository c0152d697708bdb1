"""Heads, and tensors of operations, against attention written out in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from attentions import (
    NH,
    B,
    Cross,
    Explicit,
    Flex,
    Grouped,
    Lowest,
    Model,
    Padded,
    Rotary,
    Steep,
    T,
    Torchs,
    V,
    Weightless,
)
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

import initlab
from initlab.anatomy.inputs import of_ids
from initlab.anatomy.look import of
from initlab.anatomy.operations import Operation
from initlab.anatomy.sites import HeadTap, SiteMap, Tap
from initlab.errors import ProbeError
from initlab.measure.attention import (
    SEQUENCES,
    call_statistics,
    head_statistics,
    query_rows,
    softmax_statistics,
)
from initlab.measure.probe import Identity, measure_inputs
from initlab.measure.recorder import recording, together
from initlab.measure.statistics import STATISTICS, choose
from initlab.measure.watch import steps

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")

SDPA = Operation("scaled_dot_product_attention", 0)
FLEX = Operation("flex_attention", 0)
SOFTMAX = Operation("softmax", 0)
PRODUCTS = {
    "query": Operation("matmul", 0, 0),
    "key": Operation("matmul", 0, 1),
    "value": Operation("matmul", 1, 1),
}
TORCHS = {
    "query": Operation("baddbmm", 0, 1),  # after the mask
    "key": Operation("baddbmm", 0, 2),
    "value": Operation("matmul", 0, 1),
}
SCALED = 0.5  # 1 / sqrt(head size): torch scales queries, not scores
KINDS = {
    Rotary: SDPA,
    Grouped: SDPA,
    Flex: FLEX,
    Padded: SDPA,
    Cross: SDPA,
    Explicit: SOFTMAX,
    Lowest: SOFTMAX,
    Steep: SOFTMAX,
    Torchs: SOFTMAX,
    Weightless: SDPA,
}


def ids(batch: int = B) -> torch.Tensor:
    return torch.randint(V, (batch, T), generator=torch.Generator().manual_seed(1))


def model_of(kind: type[nn.Module]) -> Model:
    torch.manual_seed(0)
    return Model(kind()).requires_grad_(kind is not Flex)  # on a CPU flex_attention has no gradient


def sites_of(kind: type[nn.Module]) -> SiteMap:
    operation = KINDS[kind]
    inner = "block.attn.inner" if issubclass(kind, Torchs) else "block.attn"
    if operation is not SOFTMAX:
        taps = [Tap(site, inner, "op", 0, operation=replace(operation, argument=n)) for n, site in enumerate("qkv")]
        head = HeadTap(0, inner, operation)
    else:
        names = {"q": "query", "k": "key", "v": "value"}
        products = TORCHS if kind is Torchs else PRODUCTS
        taps = [Tap(site, inner, "op", 0, operation=products[name]) for site, name in names.items()]
        head = HeadTap(0, inner, SOFTMAX, **products)
    return SiteMap(taps=tuple(taps), n_layer=1, n_embd=16, heads=(head,))


def measured(model: nn.Module, sites: SiteMap, idx: torch.Tensor, **options):
    anatomy = replace(of(model), sites=sites)
    identity = Identity(run_id="run", recipe="as-found", seed=0)
    return measure_inputs(model, of_ids(model, idx, idx), identity, anatomy=anatomy, **options)


def by_hand(found: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(nh, 3) entropy, its share and std of logits, row by row; and the visible logits and their probabilities."""
    scores = found["scores"][:SEQUENCES]
    visible = np.broadcast_to(found["visible"], scores.shape)
    stats, logits, pattern = [], [], []
    for head in range(scores.shape[1]):
        rows = []
        for b in range(len(scores)):
            for i in query_rows(scores.shape[2]).tolist():
                row = scores[b, head, i][visible[b, head, i]]
                if len(row) < 2:
                    continue
                p = np.exp(row - row.max())
                p /= p.sum()
                entropy = -sum(x * math.log(x) for x in p if x > 0)
                rows.append((entropy, entropy / math.log(len(row)), row.std()))
                logits.append(row)
                pattern.append(p)
        stats.append(np.mean(rows, 0))
    return np.array(stats), np.concatenate(logits), np.concatenate(pattern)


def row_of(tables, site: str, kind: str = "activation"):
    rows = tables.records[(tables.records["site"] == site) & (tables.records["kind"] == kind)]
    assert len(rows) == 1, (site, kind, len(rows))
    return rows.iloc[0]


@pytest.mark.parametrize("kind", KINDS)
def test_heads_and_sites_are_those_of_attention_written_out(kind):
    model, idx = model_of(kind), ids()
    tables = measured(model, sites_of(kind), idx)
    found = model.reference(idx)
    stats, logits, pattern = by_hand(found)
    heads = tables.heads
    assert heads["head"].tolist() == list(range(NH)) and (heads["layer"] == 0).all()
    assert (heads["n_rows"] == 32 * B).all() and heads["module"].str.startswith("block.attn").all()
    np.testing.assert_allclose(heads[["entropy", "entropy_frac", "logit_std"]], stats, rtol=2e-5, atol=1e-8)
    for site, values in (("attn_logits", logits), ("attn_pattern", pattern), *((name, found[name]) for name in "qkv")):
        row = row_of(tables, site)
        scale = SCALED if kind is Torchs and site == "q" else 1.0
        assert row["numel"] == values.size, site
        assert row["rms"] == pytest.approx(scale * np.sqrt((values**2).mean()), rel=1e-5), site
        assert row["mean"] == pytest.approx(scale * values.mean(), rel=1e-4, abs=1e-6 * values.std()), site
        assert row["frac_nonfinite"] == 0
    assert tables.summary["n_head"].item() == NH
    cover = tables.coverage.set_index(["kind", "site"]).loc[("activation", "attn_logits")]
    assert cover["expected"] == cover["fired"] == 1


@pytest.mark.parametrize("kind", [kind for kind, operation in KINDS.items() if operation is SDPA])
def test_gradients_of_operations_are_those_of_the_tensors(kind):
    model, idx = model_of(kind), ids()
    tables = measured(model, sites_of(kind), idx)
    kept = []
    original = nn.functional.scaled_dot_product_attention

    def watched(*parts, **options):
        kept.extend(parts[:3])
        for x in kept:
            x.retain_grad()
        return original(*parts, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "scaled_dot_product_attention", watched)
        logits = model(idx)
    nn.functional.cross_entropy(logits.flatten(0, 1), idx.flatten()).backward()
    for name, x in zip("qkv", kept, strict=True):
        row = row_of(tables, name, "grad")
        assert row["rms"] == pytest.approx(x.grad.square().mean().sqrt().item(), rel=1e-5)


def test_a_causal_mask_gives_the_numbers_of_is_causal():
    """Whatever shows that a key is out of sight."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 20, 8).unbind(0)
    causal = torch.ones(20, 20, dtype=torch.bool).tril()
    fused = torch.cat([x.transpose(1, 2).flatten(2) for x in (q, k, v)], -1)
    expected = head_statistics(fused, 4)
    scores = (q @ k.transpose(2, 3) / math.sqrt(8)).masked_fill(~causal, -1e9)
    flat = scores.flatten(0, 1)
    ways = [
        call_statistics((q, k, v), {"is_causal": True}),
        call_statistics((q, k, v, causal), {}),
        call_statistics((q, k, v), {"attn_mask": torch.zeros(2, 1, 20, 20).masked_fill(~causal, -math.inf)}),
        call_statistics(tuple(x.flatten(0, 1) for x in (q, k, v)), {"is_causal": True}, n_head=4),
        call_statistics((*(x.flatten(0, 1) for x in (q, k, v)), causal.expand(8, 20, 20)), {}, n_head=4),
        softmax_statistics(scores, scores.softmax(-1)),
        softmax_statistics(scores.transpose(2, 3), scores.softmax(-1).transpose(2, 3), dim=2),
        softmax_statistics(flat, flat.softmax(-1), n_head=4),
    ]
    for found in ways:
        torch.testing.assert_close(found.per_head, expected[0])
        for values, wanted in zip((found.logits, found.pattern), expected[1:], strict=True):
            torch.testing.assert_close(values if found.where is None else values[found.where], wanted)


def test_heads_of_modules_of_their_own_are_numbered_through_the_block():
    """Of three dimensions each, (B, T, T)."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.key, self.query, self.value = (nn.Linear(16, 4, bias=False) for _ in range(3))
            self.register_buffer("tril", torch.tril(torch.ones(T, T)))

        def forward(self, x):
            wei = self.query(x) @ self.key(x).transpose(-2, -1) * 4**-0.5
            wei = torch.softmax(wei.masked_fill(self.tril == 0, -math.inf), dim=-1)
            return wei @ self.value(x)

    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(Head() for _ in range(4))

        def forward(self, x):
            return torch.cat([head(x) for head in self.heads], -1)

    model, idx = model_of(Several), ids()
    places = [f"block.attn.heads.{number}" for number in range(4)]
    head_taps = tuple(HeadTap(0, place, SOFTMAX) for place in places)
    # the block itself counts the softmaxes of the modules inside it
    last = Tap("attn_pattern", "block", "op", 0, operation=Operation("softmax", 3))
    tables = measured(model, SiteMap((last,), 1, 16, heads=head_taps), idx)
    assert tables.heads["head"].tolist() == [0, 1, 2, 3] and tables.heads["module"].tolist() == places
    for row, head in zip(tables.heads.itertuples(), model.block.attn.heads, strict=True):
        x = model.wte(idx).detach().double()
        scores = x @ head.query.weight.double().T @ (x @ head.key.weight.double().T).transpose(1, 2) / 2
        found = {"scores": scores.detach().numpy()[:, None], "visible": head.tril.bool().numpy()}
        np.testing.assert_allclose([row.entropy, row.entropy_frac, row.logit_std], by_hand(found)[0][0], rtol=1e-5)
    whole = tables.records[tables.records["module"] == "block"].set_index("kind").loc["activation"]
    assert whole["numel"] == B * T * T and whole["mean"] == pytest.approx(1 / T)


def test_statistics_of_a_users_own_see_q_k_and_v_of_every_kind():
    seen = {}

    def own(attention):
        seen["attention"] = attention
        return torch.special.entr(attention.pattern).sum(-1).mean((0, 2))

    with STATISTICS.temporary():
        own = initlab.statistic("entropy_again", per="head")(own)
    for kind in KINDS:
        model, idx = model_of(kind), ids()
        heads = measured(model, sites_of(kind), idx, statistics=choose([own], "full")).heads
        np.testing.assert_allclose(heads["entropy_again"], heads["entropy"], rtol=1e-5)
        attention, found = seen["attention"], model.reference(idx)
        q = found["q"][:, :, query_rows(T)] * (SCALED if kind is Torchs else 1)
        for x, wanted in ((attention.q, q), (attention.k, found["k"]), (attention.v, found["v"])):
            np.testing.assert_allclose(x, wanted, rtol=1e-4, atol=1e-5, err_msg=kind.__name__)


@pytest.mark.parametrize("kind", [Rotary, Explicit, Torchs])
def test_nothing_is_left_behind_also_by_a_pass_that_raises(kind):
    model, idx = model_of(kind), ids()

    def state():
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        return hooks, [len(p._backward_hooks or ()) for p in model.parameters()], modes()

    before = state()
    measured(model, sites_of(kind), idx)
    assert state() == before

    def stop(*_):
        raise ValueError("enough")

    handle = model.block.register_forward_hook(stop)
    with pytest.raises(ProbeError, match="enough"):
        measured(model, sites_of(kind), idx)
    handle.remove()
    assert state() == before


def test_the_mode_goes_from_wherever_it_is_and_measures_nothing_of_ours():
    """A pass may be broken off inside a mode of the user's own, which stays."""
    model, idx = model_of(Explicit), ids()
    before = modes()
    with recording(model, sites_of(Explicit), "full") as recorder:
        device = torch.device("cpu")
        with device:
            model(idx)
            torch.zeros(2, 2).softmax(-1)  # of no module
            recorder.close()
            assert modes() == before + 1
            assert isinstance(_get_current_function_mode_stack()[-1], DeviceContext)
    assert modes() == before
    assert len(recorder.heads.seen) == 1 and {seen.call for seen in recorder.seen} == {0}


def test_attention_that_cannot_be_read_is_said_and_stops_nothing():
    class Nested(Rotary):
        def forward(self, x):
            q, k, v = self.parts(x)
            return self.joined(nn.functional.scaled_dot_product_attention(q, k, v, causal_lower_right(T, T)))

    model, idx = model_of(Nested), ids()
    sites = SiteMap((), 1, 16, heads=(HeadTap(0, "block.attn", SDPA),))
    tables = measured(model, sites, idx)
    cover = tables.coverage.set_index(["kind", "site"]).loc[("activation", "attn_logits")]
    assert cover["fired"] == 0 and "block.attn" in cover["note"] and tables.heads.empty


def test_embed_together():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 5, generator=generator) + 1
    pairs = [(x[:, s] * x[:, t]).mean() for s in range(7) for t in range(7) if s != t]
    assert together(x).item() == pytest.approx((torch.stack(pairs).mean() / x.square().mean()).item(), rel=1e-5)
    model, idx = model_of(Rotary), ids(batch=12)
    found = measured(model, SiteMap((Tap("embed", "block", "in"),), 1, 16), idx).summary
    assert found["embed_together"].item() == pytest.approx(together(model.wte(idx[:SEQUENCES])).item(), rel=1e-5)


def test_a_watch_hears_operations_too():
    model, idx = model_of(Explicit), ids()
    expected = measured(model, sites_of(Explicit), idx)
    sites = replace(of(model), sites=sites_of(Explicit))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "of", lambda *args, **kwargs: sites)
        recorder = steps.StepRecorder(model, 1)
        loss = nn.functional.cross_entropy(model(idx).flatten(0, 1), idx.flatten())
        assert modes() == 0
        loss.backward()
        tables = recorder.step(loss)
        recorder.close()
    for site in ("q", "k", "v", "attn_logits"):
        assert row_of(tables, site)["rms"] == row_of(expected, site)["rms"]
    assert row_of(tables, "v", "grad")["rms"] == pytest.approx(row_of(expected, "v", "grad")["rms"], rel=1e-6)


def modes():
    return torch._C._len_torch_function_stack()


def test_the_pass_is_the_models_own():
    model, idx = model_of(Explicit), ids()
    plain = measured(model, SiteMap((), 1, 16), idx)
    heard = measured(model, sites_of(Explicit), idx)
    assert plain.summary["loss"].item() == heard.summary["loss"].item()
    weights = [tables.records[tables.records["kind"] == "weight_grad"]["rms"].tolist() for tables in (plain, heard)]
    assert weights[0] == weights[1]


def test_checkpointed_blocks_are_counted_once_and_shared_ones_each_time():
    from torch.utils.checkpoint import checkpoint

    class Again(Rotary):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    idx = ids()
    expected = measured(model_of(Rotary), sites_of(Rotary), idx)
    KINDS[Again] = SDPA
    try:
        found = measured(model_of(Again), sites_of(Again), idx)
    finally:
        del KINDS[Again]
    for site in ("q", "k", "v", "attn_logits"):
        assert row_of(found, site)["rms"] == row_of(expected, site)["rms"]
    np.testing.assert_array_equal(found.heads["entropy"], expected.heads["entropy"])

    class Twice(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.wte, self.block, self.lm_head = inner.wte, inner.block, inner.lm_head

        def forward(self, idx):
            return self.lm_head(self.block(self.block(self.wte(idx))))

    twice = measured(Twice(model_of(Rotary)), sites_of(Rotary), idx)
    rows = twice.records[(twice.records["kind"] == "activation")]
    for site in ("q", "attn_logits"):
        assert rows.loc[rows["site"] == site, "call"].tolist() == [0, 1]
    np.testing.assert_array_equal(twice.heads["entropy"], expected.heads["entropy"])


def test_autocast_is_measured_as_the_tensors_are():
    model, idx = model_of(Explicit), ids()
    tables = measured(model, sites_of(Explicit), idx, autocast=torch.bfloat16)
    stats, *_ = by_hand(model.reference(idx))
    assert row_of(tables, "q")["dtype"] == "bfloat16"
    np.testing.assert_allclose(tables.heads[["entropy", "logit_std"]], stats[:, [0, 2]], rtol=0.02)


def test_in_place_sums_and_views_are_told_apart():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.SiLU()

        def forward(self, x):
            y = self.act(x)
            z = y.view(-1, 4).relu()
            y += z.view_as(y)
            y += 1
            return y * 2

    model, idx = model_of(Odd), ids()
    at = "block.attn"
    taps = (
        Tap("module", f"{at}.act", "out"),
        Tap("q", at, "op", 0, operation=Operation("relu", 0, 0)),
        Tap("k", at, "op", 0, operation=Operation("add", 0, 0)),
        Tap("v", at, "op", 0, operation=Operation("add", 0)),
        Tap("attn_z", at, "op", 0, operation=Operation("add", 1)),
        Tap("mlp_pre", at, "op", 0, operation=Operation("mul", 0, 0)),
    )
    tables = measured(model, SiteMap(taps, 1, 16), idx)
    x = model.wte(idx)
    y = nn.functional.silu(x).detach()
    expected = {"module": y, "q": y, "k": y, "v": y + y.relu(), "attn_z": y + y.relu() + 1, "mlp_pre": y + y.relu() + 1}
    for site, value in expected.items():
        assert row_of(tables, site)["rms"] == pytest.approx(value.square().mean().sqrt().item(), rel=1e-5), site
    # the view alone leads through the rectifier
    grads = {site: row_of(tables, site, "grad")["rms"] for site in expected}
    assert grads["attn_z"] == grads["v"] == grads["mlp_pre"]
    assert grads["q"] < grads["attn_z"] < grads["module"] and grads["k"] == grads["module"]


def test_hidden_keys_in_a_modules_output_are_no_fault():
    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores, self.v = nn.Identity(), nn.Linear(16, 16)

        def forward(self, x):
            scores = x @ x.transpose(1, 2)
            scores = self.scores(scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf))
            return scores.softmax(-1) @ self.v(x)

    model = model_of(Hooked)
    found = initlab.probe(model, ids())
    row = found.at("module").set_index("module").loc["block.attn.scores"]
    assert row["frac_minus_inf"] == row["frac_nonfinite"] == pytest.approx((T - 1) / (2 * T))
    assert not [finding for finding in found.findings if finding.code == "NUM001" and finding.status == "fail"]
    with torch.no_grad():
        model.block.attn.v.weight[0, 0] = -math.inf
    (finding,) = (f for f in initlab.probe(model, ids()).findings if f.code == "NUM001")
    assert finding.status == "fail"
