"""Probed values against a forward and backward pass written out by hand, and what a probe must not change."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import initlab
from initlab.anatomy.sites import find_sites
from initlab.errors import ProbeError, SiteError
from initlab.measure.probe import Identity, measure
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig

B, T, C, NH, V = 3, 20, 32, 4, 61
IDENTITY = Identity(run_id="cell", recipe="as-found", seed=0)


@pytest.fixture
def model():
    torch.manual_seed(1)
    model = NanoGPT(NanoGPTConfig(n_layer=2, n_head=NH, n_embd=C, block_size=T, vocab_size=V)).double()
    with torch.no_grad():  # biases and gains that matter
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    return torch.randint(V, (2, B, T), generator=generator).unbind(0)


def by_hand(model, idx, targets):
    """Every activation and its gradient, in float64, without a module call: {(site, layer): tensor}."""
    p = dict(model.named_parameters())
    seen = {}

    def keep(site, layer, x):
        x.retain_grad()
        seen[site, layer] = x
        return x

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        return centred * scale * p[f"{name}.weight"] + p[f"{name}.bias"]

    x = keep("embed", None, p["transformer.wte.weight"][idx] + p["transformer.wpe.weight"][:T])
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    for layer in range(2):
        at = f"transformer.h.{layer}"
        seen["resid_pre", layer] = x
        h = keep("ln_1", layer, norm(f"{at}.ln_1", x))
        weight, bias = p[f"{at}.attn.c_attn.weight"], p[f"{at}.attn.c_attn.bias"]
        q, k, v = (
            keep(site, layer, h @ weight[i * C : (i + 1) * C].T + bias[i * C : (i + 1) * C])
            for i, site in enumerate("qkv")
        )
        qh, kh, vh = (t.view(B, T, NH, C // NH).transpose(1, 2) for t in (q, k, v))
        scores = qh @ kh.transpose(2, 3) / math.sqrt(C // NH)
        pattern = scores.masked_fill(future, -math.inf).softmax(-1)
        seen["attn_logits", layer] = scores[..., 1:, :][~future[1:].expand(B, NH, T - 1, T)]
        seen["attn_pattern", layer] = pattern[..., 1:, :][~future[1:].expand(B, NH, T - 1, T)]
        seen["heads", layer] = pattern
        z = keep("attn_z", layer, (pattern @ vh).transpose(1, 2).reshape(B, T, C))
        write = keep("attn_out", layer, z @ p[f"{at}.attn.c_proj.weight"].T + p[f"{at}.attn.c_proj.bias"])
        x = keep("resid_mid", layer, x + write)
        h = keep("ln_2", layer, norm(f"{at}.ln_2", x))
        h = keep("mlp_pre", layer, h @ p[f"{at}.mlp.c_fc.weight"].T + p[f"{at}.mlp.c_fc.bias"])
        h = keep("mlp_act", layer, h * 0.5 * (1 + torch.erf(h / math.sqrt(2))))
        write = keep("mlp_out", layer, h @ p[f"{at}.mlp.c_proj.weight"].T + p[f"{at}.mlp.c_proj.bias"])
        x = keep("resid_post", layer, x + write)
    x = keep("final_norm", None, norm("transformer.ln_f", x))
    logits = keep("logits", None, x @ p["transformer.wte.weight"].T)
    loss = -logits.log_softmax(-1).gather(2, targets[..., None]).mean()
    loss.backward()
    return seen, loss


def test_records_equal_a_float64_pass_written_by_hand(model, batch):
    tables = measure(model, *batch, IDENTITY)
    seen, loss = by_hand(model, *batch)
    records = tables.records
    assert tables.summary["loss"].item() == pytest.approx(loss.item(), rel=1e-12)
    checked = 0
    for (site, layer), x in seen.items():
        if site == "heads":
            continue
        sampled = site in ("attn_logits", "attn_pattern")  # forward only
        for kind in ("activation",) if sampled else ("activation", "grad"):
            value = x if kind == "activation" else x.grad
            at = records["layer"].isna() if layer is None else records["layer"] == layer
            row = records[(records["site"] == site) & (records["kind"] == kind) & at]
            value = value.detach().numpy().ravel()
            assert len(row) == 1, (site, layer, kind)
            got, mean = row.iloc[0], value.mean()
            # attention statistics are computed in float32, whatever the model's dtype
            rel = 1e-5 if sampled else 1e-9
            assert got["var"] == pytest.approx(value.var(), rel=rel), (site, layer, kind)
            assert got["mean"] == pytest.approx(mean, rel=rel, abs=rel * value.std())
            assert got["rms"] == pytest.approx(np.sqrt((value**2).mean()), rel=rel)
            assert got["abs_max"] == pytest.approx(np.abs(value).max(), rel=rel)
            assert got["abs_mean"] == pytest.approx(np.abs(value).mean(), rel=rel)
            kurtosis = ((value - mean) ** 4).mean() / value.var() ** 2 - 3
            assert got["kurtosis"] == pytest.approx(kurtosis, rel=1e-4, abs=1e-6)
            assert got["numel"] == value.size
            checked += 1
    assert checked == 2 * (13 + 2) * 2 - 2 * 2 + 2 * 3
    for name, p in model.named_parameters():
        for kind, value in (("weight", p), ("weight_grad", p.grad)):
            row = records[(records["module"] == name) & (records["kind"] == kind)]
            assert row["var"].item() == pytest.approx(value.detach().var(correction=0).item(), rel=1e-9, abs=1e-20)


def test_heads_equal_the_full_pattern(model, batch):
    tables = measure(model, *batch, IDENTITY)
    seen, _ = by_hand(model, *batch)
    visible = torch.arange(2, T + 1)
    for layer in range(2):
        pattern = seen["heads", layer][:, :, 1:].detach()
        entropy = torch.special.entr(pattern).sum(-1)
        rows = tables.heads[tables.heads["layer"] == layer].sort_values("head")
        np.testing.assert_allclose(rows["entropy"], entropy.mean((0, 2)), rtol=1e-5)
        np.testing.assert_allclose(rows["entropy_frac"], (entropy / visible.log()).mean((0, 2)), rtol=1e-5)


def test_summary_scalars(model, batch):
    idx, targets = batch
    row = measure(model, idx, targets, IDENTITY).summary.iloc[0]
    logits, loss = model(idx, targets)
    x = model.transformer.wte(idx)
    assert row["loss"] == pytest.approx(loss.item())
    assert row["ln_vocab"] == pytest.approx(math.log(V))
    assert row["logit_std"] == pytest.approx(logits.std(correction=0).item())
    assert row["own_logit"] == pytest.approx(logits.gather(2, idx[..., None]).mean().item(), rel=1e-5)
    position = model.transformer.wpe.weight[:T]
    assert row["token_position_ratio"] == pytest.approx((x.square().mean() / position.square().mean()).item(), rel=1e-5)
    assert row["repeat_rate"] == pytest.approx((idx == targets).double().mean().item())
    assert row["n_tokens"] == B * T


def test_residual_stream_adds_up(batch):
    torch.manual_seed(0)
    model = NanoGPT(NanoGPTConfig(n_layer=3, n_head=NH, n_embd=C, block_size=T, vocab_size=V))
    seen = {}
    for name in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"):
        seen[name] = []
    from initlab.measure.recorder import Recorder

    take = Recorder.take

    def keep(self, tap, value):
        if tap.site in seen:
            seen[tap.site].append((value[0] if isinstance(value, tuple) else value).detach().clone())
        take(self, tap, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "take", keep)
        measure(model, *batch, IDENTITY)
    assert len(seen["resid_post"]) == 3
    for pre, attn, mid, mlp, post in zip(*seen.values(), strict=True):
        torch.testing.assert_close(mid, pre + attn)
        torch.testing.assert_close(post, pre + attn + mlp)


def count(module, args, output):
    module.counter += 1


def state(model):
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "modes": {name: m.training for name, m in model.named_modules()},
        "hooks": sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
        ),
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "rng": torch.get_rng_state(),
    }


def assert_same_state(before, after):
    assert before["modes"] == after["modes"]
    assert before["hooks"] == after["hooks"]
    assert before["requires_grad"] == after["requires_grad"]
    assert torch.equal(before["rng"], after["rng"])
    for name, value in before["weights"].items():
        assert torch.equal(value, after["weights"][name]), name
    for name, grad in before["grads"].items():
        other = after["grads"][name]
        assert (grad is None) == (other is None)
        assert grad is None or torch.equal(grad, other), name


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("with_grads", [False, True])
def test_model_is_left_as_found(batch, mode, with_grads):
    model = NanoGPT(NanoGPTConfig(n_layer=2, n_head=NH, n_embd=C, block_size=T, vocab_size=V, dropout=0.3))
    getattr(model, mode)()
    model.register_buffer("counter", torch.zeros(1))
    model.register_forward_hook(count)  # as batch norm does in train mode
    if with_grads:
        model(*batch)[1].backward()
    model.transformer.h[0].attn.eval()  # a mode that isn't the same everywhere
    before = state(model)
    tables = measure(model, *batch, IDENTITY)
    assert_same_state(before, state(model))
    assert tables.summary["mode"].item() == mode


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_model_that_breaks_is_left_as_found(batch, place):
    model = NanoGPT(NanoGPTConfig(n_layer=2, n_head=NH, n_embd=C, block_size=T, vocab_size=V, dropout=0.1))

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise RuntimeError("boom in backward")

    def breaks(module, args, output):
        if place == "forward":
            raise ValueError("boom in forward")
        return Broken.apply(output)

    model.transformer.h[1].mlp.register_forward_hook(breaks)
    before = state(model)
    with pytest.raises(ProbeError, match=f"boom in {place}") as caught:
        measure(model, *batch, IDENTITY)
    assert caught.value.__cause__ is not None
    assert_same_state(before, state(model))


def test_no_grad_caller_still_gets_gradients(model, batch):
    with torch.no_grad():
        tables = measure(model, *batch, IDENTITY)
    assert (tables.records["kind"] == "grad").any()


def test_dropout_draws_the_same_masks_every_time(batch):
    model = NanoGPT(NanoGPTConfig(n_layer=1, n_head=NH, n_embd=C, block_size=T, vocab_size=V, dropout=0.5))
    first, second = (measure(model, *batch, IDENTITY) for _ in range(2))
    np.testing.assert_array_equal(first.records["var"], second.records["var"])
    other = measure(model, *batch, Identity(run_id="cell", recipe="as-found", seed=1))
    assert not np.array_equal(first.records["var"], other.records["var"])


def test_light_agrees_with_full_and_leaves_the_rest_empty(model, batch):
    full, light = (measure(model, *batch, IDENTITY, preset=preset) for preset in ("full", "light"))
    keys = ["site", "layer", "kind", "module", "call"]
    merged = light.records.merge(full.records, on=keys, suffixes=("", "_full"))
    assert len(merged) == len(light.records)
    for column in ("mean", "var", "rms", "abs_max"):
        np.testing.assert_allclose(merged[column], merged[f"{column}_full"], rtol=1e-12)
    assert light.records["kurtosis"].isna().all()
    assert light.heads.empty
    skipped = light.coverage[light.coverage["site"] == "attn_logits"]
    assert skipped["note"].item() == "skipped by preset light"


def test_coverage_counts_what_fired(model, batch):
    coverage = measure(model, *batch, IDENTITY).coverage
    assert (coverage["expected"] == coverage["fired"]).all()
    assert coverage[(coverage["site"] == "resid_mid") & (coverage["kind"] == "grad")]["fired"].item() == 2


def test_frozen_model_is_measured_forward_only_and_says_so(model, batch):
    model.requires_grad_(False)
    tables = measure(model, *batch, IDENTITY)
    assert set(tables.records["kind"]) == {"activation", "weight"}
    grads = tables.coverage[tables.coverage["kind"] == "grad"]
    assert (grads["fired"] == 0).all() and (grads["note"] == "no gradient reached it").all()


def test_bf16_autocast_is_close_to_float32(batch):
    torch.manual_seed(0)
    model = NanoGPT(NanoGPTConfig(n_layer=2, n_head=NH, n_embd=C, block_size=T, vocab_size=V))
    exact = measure(model, *batch, IDENTITY)
    cast = measure(model, *batch, IDENTITY, autocast=torch.bfloat16)
    at = (exact.records["kind"] == "activation") & ~exact.records["site"].isin(["attn_logits"])
    np.testing.assert_allclose(cast.records[at]["var"], exact.records[at]["var"], rtol=0.05)
    assert "bfloat16" in set(cast.records["dtype"])


def test_nan_weights_are_reported_not_raised(batch):
    model = NanoGPT(NanoGPTConfig(n_layer=2, n_head=NH, n_embd=C, block_size=T, vocab_size=V))
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = math.nan
    records = measure(model, *batch, IDENTITY).records
    bad = records[(records["site"] == "mlp_pre") & (records["layer"] == 1) & (records["kind"] == "activation")]
    assert bad["frac_nonfinite"].item() == pytest.approx(1 / (4 * C))
    good = records[(records["site"] == "resid_pre") & (records["kind"] == "activation")]
    assert (good["frac_nonfinite"] == 0).all()


class Karpathy(nn.Module):
    """nanoGPT's layout in classes of its own: what a user's copy of model.py looks like from outside."""

    def __init__(self):
        super().__init__()
        ours = NanoGPT(NanoGPTConfig(n_layer=2, n_head=NH, n_embd=C, block_size=T, vocab_size=V))
        self.transformer, self.lm_head = ours.transformer, ours.lm_head

    def forward(self, idx, targets=None):
        x = self.transformer.wte(idx) + self.transformer.wpe(torch.arange(idx.shape[1]))
        x = self.transformer.drop(x)
        for block in self.transformer.h:
            x = block(x)
        return (self.lm_head(self.transformer.ln_f(x)),)


def test_any_model_of_nanogpts_layout_is_understood(batch):
    probe = initlab.probe(Karpathy(), batch)
    assert probe.at("resid_post")["layer"].tolist() == [0, 1]
    assert probe.summary["loss"].item() == pytest.approx(math.log(V), abs=0.3)


def test_what_is_missing_of_nanogpts_layout_is_named():
    model = nn.Sequential(nn.Embedding(V, C), nn.ModuleList([nn.Linear(C, C)]))
    with pytest.raises(SiteError, match=r"looked for a ModuleList transformer\.h; found 1 \(1 × Linear\)"):
        find_sites(model)
    broken = Karpathy()
    del broken.transformer["wpe"]
    with pytest.raises(SiteError, match="no module transformer"):
        find_sites(broken)


def test_an_output_without_all_logits_is_said(batch):
    class Half(Karpathy):
        def forward(self, idx, targets=None):
            return super().forward(idx)[0][:, -1:]

    tables = measure(Half(), *batch, IDENTITY)
    assert tables.summary["targets"].item() == "mean square of the output"
    assert tables.coverage["note"].str.contains("no logits (B, T, V) in what the model returned", regex=False).any()


def test_gradient_scales_with_one_over_tokens(model, batch):
    idx, targets = batch
    once = measure(model, idx, targets, IDENTITY).records
    twice = measure(model, torch.cat([idx, idx]), torch.cat([targets, targets]), IDENTITY).records
    at = (once["kind"] == "grad") & (once["site"] == "resid_post")
    np.testing.assert_allclose(twice[at]["rms"] * 2, once[at]["rms"], rtol=1e-9)
    loss = F.cross_entropy(model(idx, targets)[0].flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(measure(model, idx, targets, IDENTITY).summary["loss"].item())
