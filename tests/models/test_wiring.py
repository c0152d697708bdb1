"""NanoGPT under every option: read from its operations it is wired as it is written down, and the closed form holds."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

import initlab
from initlab.anatomy import look
from initlab.errors import ConfigError
from initlab.models.config import WIRING, parse_wiring
from initlab.models.nanogpt import empty_model
from initlab.models.wiring import nanogpt_wiring
from initlab.report.facts import _NANOGPTS

SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 32, "vocab_size": 96}
OPTIONS = {
    "rmsnorm": {"norm": "rmsnorm"},
    "post": {"norm_placement": "post"},
    "sandwich": {"norm_placement": "sandwich", "norm": "rmsnorm"},
    "qk_norm": {"qk_norm": True},
    "rotary": {"positions": "rotary"},
    "no positions": {"positions": "none"},
    "grouped": {"n_kv_head": 2},
    "swiglu": {"activation": "swiglu"},
    "geglu": {"activation": "geglu", "bias": False},
    "reglu": {"activation": "reglu"},
    "multipliers": {
        "residual_multiplier": 0.25,
        "attention_multiplier": 1 / 16,
        "embedding_multiplier": 12.0,
        "logit_multiplier": 0.5,
    },
    "layer_scale": {"layer_scale": 0.1},
    "gate": {"gate": 0.3},
    "llama": {
        "norm": "rmsnorm",
        "positions": "rotary",
        "activation": "swiglu",
        "n_kv_head": 2,
        "tie_weights": False,
        "bias": False,
    },
    "gemma": {"norm": "rmsnorm", "norm_placement": "sandwich", "positions": "rotary", "activation": "geglu"}
    | {"embedding_multiplier": 8.0, "qk_norm": True, "bias": False},
}


def build(name, **sizes):
    torch.manual_seed(0)
    return initlab.NanoGPT(initlab.NanoGPTConfig(**SIZES | sizes | OPTIONS[name])).eval()


@pytest.mark.parametrize("name", OPTIONS)
def test_operations_show_what_is_written_down(name):
    model = build(name)
    ids = torch.randint(0, 96, (2, 32))
    (found,) = look.of(model, lambda: model(ids, ids)).wirings
    assert dataclasses.asdict(found) == dataclasses.asdict(nanogpt_wiring(model.config))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_closed_form_holds(name):
    found = initlab.probe(build(name, n_layer=3, n_embd=192, n_head=6, vocab_size=256, block_size=64))
    rows = found.records.query("kind == 'activation' and site in ['embed', 'resid_post', 'final_norm']")
    assert rows["expected_var"].notna().all()
    assert (rows["var"] / rows["expected_var"]).map(math.log).abs().max() < math.log(1.25)
    assert [f.code for f in found.findings if f.status == "fail" and f.severity == "error"] == []


def test_options_are_said_in_words():
    given = parse_wiring("norm=rmsnorm, positions=rotary,n_kv_head=2,qk_norm=true,residual_multiplier=0.5")
    assert given == {
        "norm": "rmsnorm",
        "positions": "rotary",
        "n_kv_head": 2,
        "qk_norm": True,
        "residual_multiplier": 0.5,
    }
    for text in ("depth=3", "qk_norm=perhaps", "n_kv_head=two", "gate=x"):
        with pytest.raises(ConfigError):
            parse_wiring(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"norm": "batchnorm"},
        {"norm_placement": "middle"},
        {"positions": "sinusoids"},
        {"n_kv_head": 3},
        {"n_kv_head": 0},
        {"residual_multiplier": math.nan},
        {"residual_multiplier": None},
        {"gate": "open"},
        {"gate": 10**400},
        {"qk_norm": "false"},
        {"attention_multiplier": 0.0},
        {"positions": "rotary", "n_embd": 12},
    ],
)
def test_bad_options_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"expected|odd"):
        initlab.NanoGPTConfig(**SIZES | wrong)


def test_heads_of_keys_keep_their_number_when_the_width_changes():
    config = initlab.NanoGPTConfig(**SIZES | {"n_kv_head": 2}).resized(n_embd=128)
    assert (config.n_head, config.n_kv_head) == (8, 2)


@pytest.mark.parametrize("name", OPTIONS)
def test_it_trains_and_its_checkpoint_is_read_again(name, tmp_path):
    model = build(name)
    ids = torch.randint(0, 96, (2, 32))
    optimizer = torch.optim.AdamW(model.decay_groups(0.1), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(ids, ids.roll(-1, 1))[1]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    args = dataclasses.asdict(model.config)
    torch.save({"model": model.state_dict(), "model_args": args}, tmp_path / "ckpt.pt")
    again = initlab.NanoGPT.from_checkpoint(tmp_path / "ckpt.pt").eval()
    torch.testing.assert_close(again(ids, ids)[0], model(ids, ids)[0])


def reference(model, ids):
    """Logits written out once more, from the papers, for the options `gemma` and `llama` and `post` among them."""
    c, w = model.config, dict(model.named_parameters())
    T, size = ids.shape[1], c.head_size

    def norm(x, name):
        if c.norm == "rmsnorm":
            return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]
        x = x - x.mean(-1, keepdim=True)
        y = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]
        return y + w[f"{name}.bias"] if c.bias else y

    def linear(x, name):
        y = x @ w[f"{name}.weight"].T
        return y + w[f"{name}.bias"] if c.bias else y

    def turned(x):  # as complex numbers
        angles = torch.arange(T)[:, None] / 10000 ** (torch.arange(size // 2) * 2 / size)
        z = torch.complex(x[..., : size // 2], x[..., size // 2 :]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([z.real, z.imag], -1)

    def attention(x, name):
        n_kv = c.n_kv_head or c.n_head
        y = linear(x, f"{name}.c_attn")
        out = []
        for head in range(c.n_head):
            of = head // (c.n_head // n_kv)
            starts = (head * size, (c.n_head + of) * size, (c.n_head + n_kv + of) * size)
            q, k, v = (y[..., start : start + size] for start in starts)
            if c.qk_norm:
                q, k = norm(q, f"{name}.q_norm"), norm(k, f"{name}.k_norm")
            if c.positions == "rotary":
                q, k = turned(q), turned(k)
            scale = 1 / math.sqrt(size) if c.attention_multiplier is None else c.attention_multiplier
            scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~torch.ones(T, T).tril().bool(), -math.inf)
            out.append(scores.softmax(-1) @ v)
        return linear(torch.cat(out, -1), f"{name}.c_proj")

    def mlp(x, name):
        if not c.gated:
            return linear(F.gelu(linear(x, f"{name}.c_fc")), f"{name}.c_proj")
        f = {"swiglu": F.silu, "geglu": F.gelu, "reglu": F.relu}[c.activation]
        return linear(f(linear(x, f"{name}.c_gate")) * linear(x, f"{name}.c_fc"), f"{name}.c_proj")

    x = w["transformer.wte.weight"][ids]
    x = x + w["transformer.wpe.weight"][:T] if c.positions == "learned" else x
    x = x * c.embedding_multiplier
    for layer in range(c.n_layer):
        block = f"transformer.h.{layer}"
        for number, (part, body) in enumerate((("attn", attention), ("mlp", mlp)), 1):
            ln = f"{block}.ln_{number}"
            y = body(x if c.norm_placement == "post" else norm(x, ln), f"{block}.{part}")
            y = norm(y, f"{ln}_out") if c.norm_placement == "sandwich" else y
            y = y * (1.0 if c.layer_scale is None else w[f"{block}.scale_{number}"])
            y = y * (1.0 if c.gate is None else w[f"{block}.gate_{number}"])
            x = x + c.residual_multiplier * y
            x = norm(x, ln) if c.norm_placement == "post" else x
    x = x if c.norm_placement == "post" else norm(x, "transformer.ln_f")
    return x @ (w["transformer.wte.weight"] if c.tie_weights else w["lm_head.weight"]).T * c.logit_multiplier


@pytest.mark.parametrize("name", OPTIONS)
def test_logits_are_those_of_a_model_written_out(name):
    model = build(name).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        ids = torch.randint(0, 96, (2, 32))
        torch.testing.assert_close(model(ids, ids)[0], reference(model, ids), rtol=1e-5, atol=1e-5)


def test_an_empty_model_has_the_starts_that_its_config_sets():
    config = initlab.NanoGPTConfig(**SIZES, layer_scale=0.1, gate=0.5)
    parameters = dict(empty_model(config, "cpu").named_parameters())
    assert parameters["transformer.h.1.scale_2"].tolist() == pytest.approx([0.1] * 64)
    assert parameters["transformer.h.0.gate_1"].item() == 0.5


def test_a_report_says_every_option_that_is_not_nanogpts():
    assert {name: getattr(initlab.NanoGPTConfig, name) for name in WIRING} == _NANOGPTS
