"""One look at a model: every block has one number, for activations and for parameters."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from measure_zoo import ZOO, T, V
from torch import nn

import initlab
from initlab.anatomy.look import of
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig

pytestmark = pytest.mark.integration

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 64, "d_model": 32}
T5_SMALL = SMALL | {"num_heads": 2, "d_kv": 16, "d_ff": 64}
ENCODER_DECODERS = {
    "T5ForConditionalGeneration": SMALL
    | {"num_layers": 3, "num_decoder_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 64},
    "MT5ForConditionalGeneration": SMALL
    | {"num_layers": 2, "num_decoder_layers": 3, "num_heads": 2, "d_kv": 16, "d_ff": 64},
    "BartForConditionalGeneration": SMALL
    | {"encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    | {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64},
    "PegasusForConditionalGeneration": SMALL
    | {"encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    | {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64},
    "M2M100ForConditionalGeneration": SMALL
    | {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    | {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64}
    | {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0},  # else a block may be skipped
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    return kind(kind.config_class(**ENCODER_DECODERS[name]))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_every_row_of_an_encoder_decoder_has_its_blocks_number(name: str) -> None:
    model = build(name)
    found = initlab.probe(model)
    blocks: dict[int, set[str]] = {}
    stream = found.records.query("kind == 'activation' and site == 'resid_post'")
    numbered = dict(zip(stream["module"], stream["layer"], strict=True))
    assert sorted(numbered.values()) == list(range(len(numbered)))
    assert len(numbered) == int(found.summary["n_layer"].iloc[0]) >= 4
    for row in found.records.itertuples():
        inside = [layer for block, layer in numbered.items() if f"{row.module}.".startswith(f"{block}.")]
        if inside and row.site != "embed":
            assert row.layer == inside[0], (row.kind, row.site, row.module)
            blocks.setdefault(int(row.layer), set()).add(str(row.kind))
    assert all({"activation", "grad", "weight", "weight_grad"} <= kinds for kinds in blocks.values())
    last = found.at("mlp_out", -1, kind="weight")
    assert len(last) and set(last["layer"]) == {len(numbered) - 1}


def test_a_scaled_decoder_matrix_is_found_in_the_block_that_the_stream_names() -> None:
    config = transformers.T5Config(**T5_SMALL, num_layers=4, num_decoder_layers=4)
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.decoder.block[3].layer[2].DenseReluDense.wo.weight.mul_(30)
    found = initlab.probe(model)
    weights = found.records.query("kind == 'weight' and module == 'decoder.block.3.layer.2.DenseReluDense.wo.weight'")
    assert weights["layer"].tolist() == [7]  # after four of the encoder and three of the decoder
    failed = [f for f in found.findings if f.status == "fail" and f.layer_first is not None]
    assert {(f.layer_first, f.layer_last) for f in failed} == {(7, 7)}


@pytest.mark.parametrize("kind", ZOO)
def test_parameters_are_numbered_like_the_stream_of_any_model(kind: str) -> None:
    model = ZOO[kind][0]()
    ids = torch.randint(V, (2, T))
    anatomy = of(model, lambda: model(ids))
    layers = {tap.module: tap.layer for tap in anatomy.sites.taps if tap.site == "resid_post"}
    assert layers == {anatomy.blocks[layer]: layer for layer in layers.values()}
    for parameter in anatomy.parameters:
        inside = [layer for block, layer in layers.items() if parameter.name.startswith(f"{block}.")]
        assert parameter.layer == (inside[0] if inside else parameter.layer)


def test_what_has_no_stream_keeps_the_numbers_of_its_structure() -> None:
    model = build("T5ForConditionalGeneration")
    anatomy = of(model)  # nothing is run
    assert [*anatomy.blocks] == [*(f"encoder.block.{i}" for i in range(3)), *(f"decoder.block.{i}" for i in range(2))]
    assert anatomy.sites.n_layer == 0 and not anatomy.stacks
    assert {p.layer for p in anatomy.parameters if p.name.startswith("decoder.block.1.")} == {4}
    assert {p.dims.layer for p in anatomy.parameters if p.name.startswith("decoder.block.1.")} == {1}  # as recipes ask


@pytest.mark.parametrize("model", ["nanogpt", "t5"])
def test_a_probe_looks_once(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = NanoGPT(NanoGPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=256))
    probed = made if model == "nanogpt" else build("T5ForConditionalGeneration")
    counts: dict[str, int] = {}
    looks = {"roles": "find_roles", "containers": "find_containers", "sites": "find_sites", "stream": "find_stacks"}
    for module, name in looks.items():
        real = getattr(importlib.import_module(f"initlab.anatomy.{module}"), name)

        def counted(*given, name=name, real=real):  # type: ignore[no-untyped-def]
            counts[name] = counts.get(name, 0) + 1
            return real(*given)

        for loaded in [
            m for n, m in sys.modules.items() if n.startswith("initlab.") and getattr(m, name, None) is real
        ]:
            monkeypatch.setattr(loaded, name, counted)
    initlab.probe(probed).findings  # noqa: B018  # judging looks at tables alone
    assert counts == {"find_roles": 1, "find_containers": 1, "find_stacks" if model == "t5" else "find_sites": 1}
