"""`probe` on models that nobody described: values, coverage, and nothing left behind."""

import math

import pytest
import torch
from measure_zoo import ZOO, D, T, V
from torch import nn

import initlab
from initlab.errors import ConfigError

pytestmark = pytest.mark.integration


def build(name):
    torch.manual_seed(0)
    return ZOO[name][0]()


def state(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [m.training for m in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        torch.get_rng_state(),
    )


def assert_same(before, after):
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name]), name
    for old, new in zip(before[1], after[1], strict=True):
        assert (old is None) == (new is None) and (old is None or torch.equal(old, new))
    assert before[2:4] == after[2:4]
    assert torch.equal(before[4], after[4])


@pytest.mark.parametrize("name", ZOO)
def test_no_configuration_and_no_trace(name):
    model = build(name)
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    model.eval()
    next(model.children()).train()
    model.register_forward_hook(lambda *_: None)
    before = state(model)
    probe = initlab.probe(model)
    assert_same(before, state(model))
    failed = {f.code: f"{f.severity} {f.message}" for f in probe.findings if f.status == "fail"}
    outputs = failed.pop("RES006", "info")  # none scales its outputs by depth
    assert outputs.startswith("info"), outputs
    assert failed.keys() <= {"WIR003", "WIR008"}, failed  # some have no final norm, and none has positions
    assert probe.summary["loss"].item() == pytest.approx(math.log(V), abs=0.5)
    assert not probe.at("resid_post").empty and not probe.at("resid_post", kind="grad").empty
    used = sum(p.grad is not None for p in model.parameters())
    assert len(probe.records[probe.records["kind"] == "weight_grad"]) == used
    assert "stream reproduced" in repr(probe)


def test_outputs_that_a_norm_follows_have_no_scale_to_judge():
    (finding,) = initlab.probe(build("sandwich norms")).judge(select=["RES006"])
    assert finding.status == "pass"


@pytest.mark.parametrize(
    "name", ["pre-norm, gated, grouped queries", "parallel", "residual multiplier", "sandwich norms"]
)
def test_values_are_those_of_the_tensors(name):
    model = build(name).double()
    ids = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(1))
    seen = {}

    def keep(key):
        def hook(module, args, output):
            output.retain_grad()
            seen[key] = output

        return hook

    block = model.layers[1]
    handles = [block.register_forward_hook(keep("resid_post"))]
    writers = {"attn_out": block.attn, "mlp_out": block.mlp}
    if name == "sandwich norms":
        writers = {"attn_out": block.norm_3, "mlp_out": block.norm_4}
    handles += [module.register_forward_hook(keep(site)) for site, module in writers.items()]
    logits = model(ids)
    loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    for handle in handles:
        handle.remove()
    probe = initlab.probe(model, ids)
    assert probe.summary["loss"].item() == pytest.approx(loss.item(), rel=1e-12)
    scale = 0.22 if name == "residual multiplier" else 1.0
    for site, tensor in seen.items():
        factor = 1.0 if site == "resid_post" else scale
        row = probe.at(site, layer=1)
        assert row["var"].item() == pytest.approx((tensor * factor).var(correction=0).item(), rel=1e-5)
        grad = probe.at(site, layer=1, kind="grad")
        assert grad["var"].item() == pytest.approx((tensor.grad / factor).var(correction=0).item(), rel=1e-5)


def test_every_use_of_a_shared_block_has_its_row():
    probe = initlab.probe(build("one block three times"))
    rows = probe.at("resid_post")
    assert rows["call"].tolist() == [0, 1, 2] and rows["var"].is_monotonic_increasing
    note = probe.coverage[(probe.coverage["site"] == "resid_post") & (probe.coverage["kind"] == "activation")]
    assert note["fired"].item() == 3 and note["note"].item() == "2 by further calls"


def test_experts_without_a_token_have_empty_rows_and_raise_no_alarm():
    model = build("experts")
    with torch.no_grad():
        for layer in model.layers:
            layer.mlp.router.weight.zero_()  # every token goes to expert 0
    probe = initlab.probe(model)
    idle = probe.records[
        probe.records["module"].str.contains(r"experts\.[12]\.") & (probe.records["kind"] == "activation")
    ]
    assert set(idle["site"]) == {"mlp_pre", "mlp_linear", "mlp_act", "module"} and (idle["numel"] == 0).all()
    assert not [f.message for f in probe.findings if f.code == "NUM001" and f.status == "fail"]


@pytest.mark.parametrize(
    ("model", "rows"),
    [
        (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), 3),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(2)),
            5,
        ),
    ],
)
def test_models_without_a_stream_have_module_statistics(model, rows):
    if any(isinstance(m, nn.LazyLinear) for m in model):
        model(torch.randn(2, 3, 32, 32))
    before = state(model)
    probe = initlab.probe(model)
    assert_same(before, state(model))
    assert len(probe.at("module")) == rows
    assert probe.summary["targets"].item() == "mean square of the output"
    assert "no residual stream found" in repr(probe)
    assert "output" in repr(probe)


def test_modules_that_return_nothing_or_no_tensor_are_passed_over():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.none, self.text, self.linear = nn.Identity(), nn.Identity(), nn.Linear(D, D)

        def forward(self, x):
            self.none(None)
            self.text("text")
            return self.linear(x), None

    probe = initlab.probe(Odd(), torch.randn(4, D))
    assert probe.at("module")["module"].tolist() == ["linear"]


def test_a_forward_that_needs_more_says_so():
    class Needs(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(D, D)

        def forward(self, x, *, temperature):
            return self.linear(x) * temperature

    line = r'initlab.probe\(model, batch=\{"x": torch.randn\(\(64, 32\)\), "temperature": ...\}\)$'
    with pytest.raises(ConfigError, match=rf"Needs\(x, \*, temperature\): nothing is known of temperature.*{line}"):
        initlab.probe(Needs())
    probe = initlab.probe(Needs(), {"x": torch.randn(2, D), "temperature": 2.0})
    assert probe.summary["loss"].item() > 0


def test_nan_weights_are_a_finding():
    model = build("parallel")
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    probe = initlab.probe(model)
    finding = next(f for f in probe.findings if f.code == "NUM001")
    assert finding.status == "fail" and "layers.1.mlp.down_proj.weight" in finding.message


def test_frozen_models_are_measured_forward_only():
    model = build("parallel").requires_grad_(False)
    probe = initlab.probe(model)
    assert set(probe.records["kind"]) == {"activation", "weight"}
    assert (probe.coverage[probe.coverage["kind"] == "grad"]["fired"] == 0).all()


def test_saved_and_loaded(tmp_path):
    probe = initlab.probe(build("encoder and decoder"))
    page = probe.report(tmp_path / "run")
    assert page.exists()
    assert repr(initlab.load(tmp_path / "run")) == repr(probe)
