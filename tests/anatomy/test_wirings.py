"""How models of transformers are wired: read from their operations, and right beside measurement."""

import dataclasses

import pandas as pd
import pytest
import torch

import initlab
from initlab.measure.batches import inputs_for
from initlab.measure.probe import look
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
from initlab.wiring import MLP, Attention

pytestmark = pytest.mark.integration

transformers = pytest.importorskip("transformers")

GPT2 = {"n_layer": 2, "n_embd": 256, "n_head": 4, "vocab_size": 512, "n_positions": 128, "bos_token_id": 0}
GPT2 |= {"eos_token_id": 0}
LLAMA = {
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 128,
}


def build(name, **changes):
    base = GPT2 if name == "GPT2" else LLAMA
    config = getattr(transformers, f"{name}Config")(**(base | changes))
    model_class = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    return getattr(transformers, model_class)(config)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("GPT2", {}),
        ("GPT2", {"n_inner": 300, "activation_function": "relu", "tie_word_embeddings": False}),
        ("Llama", {}),
        ("Llama", {"tie_word_embeddings": True, "initializer_range": 0.04}),
        ("Llama", {"head_dim": 32}),
        ("Mistral", {"sliding_window": None}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 64}),
        ("Granite", {"residual_multiplier": 0.5, "embedding_multiplier": 3.0}),
    ],
    ids=[
        "gpt2",
        "gpt2-untied-relu",
        "llama",
        "llama-tied",
        "llama-small-heads",
        "mistral",
        "qwen2",
        "qwen3",
        "granite",
    ],
)
def test_predictions_of_foreign_models_hold(name, changes):
    parts = []
    for seed in range(4):
        torch.manual_seed(seed)
        probe = initlab.probe(
            build(name, **changes).eval(), text=initlab.Text("uniform", batch_size=2), seed=seed, stats="light"
        )
        records = probe.records[probe.records["expected_var"].notna()]
        parts.append(records.assign(layer=records["layer"].astype(float).fillna(-1)))
    records = pd.concat(parts)
    ratio = records.assign(ratio=records["var"] / records["expected_var"])
    ratio = ratio.groupby(["kind", "site", "layer"], observed=True)["ratio"].mean()
    sites = {"embed", "resid_pre", "ln_1", "v", "attn_z", "attn_out", "resid_mid", "ln_2", "mlp_pre", "mlp_act"}
    sites |= {"mlp_out", "resid_post", "final_norm", "logits"}
    for kind in ("activation", "grad"):
        assert set(ratio[kind].index.get_level_values("site")) >= sites
    for site, tolerance in {"embed": 0.03, "resid_mid": 0.08, "resid_post": 0.08, "mlp_out": 0.12}.items():
        assert ratio["activation", site].to_numpy() == pytest.approx(1, rel=tolerance), site
    assert ratio["activation", "attn_out"].to_numpy() == pytest.approx(1, rel=0.25)  # one draw scatters by 10 %
    assert ratio["activation", "logits"].to_numpy() == pytest.approx(1, rel=0.03)
    inner = {"ln_1", "v", "attn_z"}  # their gradients hang on what few positions have in common
    grad = ratio["grad"].drop(inner, level="site", errors="ignore")
    assert grad.to_numpy() == pytest.approx(1, rel=0.2)


def test_dropout_leaves_the_stream_and_hides_the_writes():
    torch.manual_seed(0)
    probe = initlab.probe(build("GPT2").train(), text=initlab.Text("uniform", batch_size=4), stats="light")
    stream = probe.at("resid_post")
    assert (stream["var"] / stream["expected_var"]).to_numpy() == pytest.approx(1, rel=0.1)
    assert probe.at("mlp_out")["expected_var"].isna().all()
    assert probe.at("attn_out", kind="grad")["expected_var"].isna().all()


def test_a_trained_model_is_not_compared_with_an_init():
    model = build("Llama")
    with torch.no_grad():
        model.model.norm.weight[0] = 1.1
    assert initlab.probe(model, text=initlab.Text("uniform"), stats="light").records["expected_var"].isna().all()


def wiring_of(model):
    (wiring,) = look(model, inputs_for(model, None, text=initlab.Text("uniform"), seed=0)[0]).wirings
    return wiring


def attentions(model):
    bodies = [branch.body for block in wiring_of(model).blocks for branch in block.branches()]
    return [body for body in bodies if isinstance(body, Attention)]


def mlps(model):
    bodies = [branch.body for block in wiring_of(model).blocks for branch in block.branches()]
    return [body for body in bodies if isinstance(body, MLP)]


def test_what_a_config_changes_is_seen_in_the_operations():
    size = 256 // 4
    scales = [body.score_scale for body in attentions(build("GPT2", scale_attn_by_inverse_layer_idx=True))]
    assert scales == pytest.approx([size**-0.5, size**-0.5 / 2])
    assert {body.score_scale for body in attentions(build("GPT2", scale_attn_weights=False))} == {1.0}
    assert {body.activation for body in mlps(build("GPT2", activation_function="tanh"))} == {"tanh"}
    assert {body.activation for body in mlps(build("Llama", hidden_act="mish"))} == {"mish"}
    assert {body.window for body in attentions(build("Mistral", sliding_window=32))} == {32}
    gemma = wiring_of(build("Gemma", head_dim=64))
    assert gemma.final_norm.offset == 1 and gemma.embed_scale == pytest.approx(16)


def test_dropout_in_force_is_that_of_the_mode():
    model = build("GPT2", resid_pdrop=0.2, attn_pdrop=0.3, embd_pdrop=0.4).train()
    found = wiring_of(model)
    assert found.dropout == 0.4
    assert {branch.dropout for block in found.blocks for branch in block.branches()} == {0.2}
    assert {body.dropout for body in attentions(model)} == {0.3}
    assert wiring_of(model.eval()).dropout == 0


@pytest.mark.parametrize(("name", "tied"), [("GPT2", True), ("GPT2", False), ("Qwen2", False), ("Llama", True)])
def test_a_wiring_is_in_the_names_of_the_models_own_parameters(name, tied):
    model = build(name, tie_word_embeddings=tied)
    found = wiring_of(model)
    assert found.tied is tied
    assert named(found) == {each for each, _ in model.named_parameters()}
    modules = {each for each, _ in model.named_modules()}
    assert {branch.module for block in found.blocks for branch in block.branches()} <= modules


def named(part):
    """Names of parameters anywhere in a wiring."""
    if isinstance(part, tuple):
        return {name for each in part for name in named(each)}
    if not dataclasses.is_dataclass(part):
        return set()
    own = {getattr(part, field, None) for field in ("weight", "bias", "gain")}
    inner = [getattr(part, field.name) for field in dataclasses.fields(part)]
    return {name for name in own if isinstance(name, str)} | {name for each in inner for name in named(each)}


def test_nanogpt_and_its_dropout():
    config = NanoGPTConfig(n_layer=1, n_head=1, n_embd=32, block_size=8, vocab_size=16, dropout=0.1, activation="relu")
    for model, dropout in ((NanoGPT(config), 0.1), (NanoGPT(config).eval(), 0.0)):
        found = wiring_of(model)
        attention, mlp = found.blocks[0].branches()
        assert {found.dropout, attention.dropout, attention.body.dropout, mlp.dropout} == {dropout}
        assert mlp.body.activation == "relu"
        assert named(found) == {name for name, _ in model.named_parameters()}


def test_nanogpt_read_from_its_operations_is_nanogpt_known_by_heart():
    """Inside another model it is traced; the two must say the same."""
    torch.manual_seed(0)
    model = NanoGPT(NanoGPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=64, bias=True)).eval()
    known = wiring_of(model)
    copy = torch.nn.Sequential()
    copy.model = model  # no NanoGPT itself
    copy.forward = model.forward
    found = named(wiring_of(copy))
    assert found == {f"model.{name}" for name in named(known)}


def test_a_scaled_table_of_positions_is_a_table():
    class Positions(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(16, 32)

        def forward(self, x):
            return self.table(torch.arange(x.shape[1])) * 32**-0.5

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = torch.nn.Embedding(64, 32), Positions()
            self.blocks = torch.nn.ModuleList(
                torch.nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True) for _ in range(2)
            )
            self.head = torch.nn.Linear(32, 64)

        def forward(self, ids):
            x = self.tokens(ids)
            x = x + self.positions(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    terms = {term.kind: term for term in wiring_of(Model().eval()).terms}
    assert terms["position"].weight == "positions.table.weight"
    assert terms["position"].scale == pytest.approx(32**-0.5)
