"""Models of transformers whose closed form is known: recognised for sure, or not at all."""

import pandas as pd
import pytest
import torch

import initlab
from initlab.anatomy.families import architecture
from initlab.anatomy.look import of
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig

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
    ],
    ids=["gpt2", "gpt2-untied-relu", "llama", "llama-tied", "llama-small-heads", "mistral", "qwen2"],
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
    sites = {"embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "final_norm", "logits"}
    for kind in ("activation", "grad"):
        assert set(ratio[kind].index.get_level_values("site")) == sites
    for site, tolerance in {"embed": 0.03, "resid_mid": 0.08, "resid_post": 0.08, "mlp_out": 0.12}.items():
        assert ratio["activation", site].to_numpy() == pytest.approx(1, rel=tolerance), site
    assert ratio["activation", "attn_out"].to_numpy() == pytest.approx(1, rel=0.25)  # one draw scatters by 10 %
    assert ratio["activation", "logits"].to_numpy() == pytest.approx(1, rel=0.03)
    assert ratio["grad"].to_numpy() == pytest.approx(1, rel=0.2)


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


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("GPT2", {"scale_attn_by_inverse_layer_idx": True}),
        ("GPT2", {"scale_attn_weights": False}),
        ("GPT2", {"activation_function": "tanh"}),
        ("GPT2", {"resid_pdrop": 0.2}),
        ("Llama", {"hidden_act": "mish"}),
        ("Llama", {"attention_dropout": 0.1}),
        ("Mistral", {"sliding_window": 32}),
        ("Gemma", {"head_dim": 64}),
    ],
)
def test_what_is_not_known_for_sure_is_left_alone(name, changes):
    assert architecture(of(build(name, **changes).train()), 128) is None


def test_nanogpt_and_its_dropout():
    config = NanoGPTConfig(n_layer=1, n_head=1, n_embd=32, block_size=8, vocab_size=16, dropout=0.1, activation="relu")
    assert architecture(of(NanoGPT(config)), 8) == {"activation": "relu", "dropout": 0.1}
    assert architecture(of(NanoGPT(config).eval()), 8) == {"activation": "relu", "dropout": 0.0}
    assert architecture(of(torch.nn.Linear(2, 2)), 8) is None
