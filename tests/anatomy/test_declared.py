"""`sites=`: the caller names the blocks, and they are verified like those that are found."""

import re

import pytest
import torch
from measure_zoo import D, Functional, Language, Multiplied, Post, Pre, V
from torch import nn

import initlab
from initlab.errors import SiteError

pytestmark = pytest.mark.integration


class Loose(nn.Module):
    """Blocks that no list holds."""

    def __init__(self, block=Pre):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(V, D), nn.LayerNorm(D), nn.Linear(D, V)
        self.layer1, self.layer2 = block(), block()

    def forward(self, ids):
        return self.head(self.norm(self.layer2(self.layer1(self.embed(ids)))))


def build(*args):
    torch.manual_seed(0)
    return Loose(*args)


def notes(probe):
    return list(probe.coverage.loc[probe.coverage["site"] == "model", "note"])


def rows(probe, site):
    return list(probe.at(site)["module"])


def test_blocks_that_no_list_holds_are_found_without_a_word():
    probe = initlab.probe(build())
    assert "2 blocks, stream reproduced from its writes in 2" in notes(probe)[0]
    assert rows(probe, "resid_post") == ["layer1", "layer2"]


@pytest.mark.parametrize("sites", ["layer*", ["layer1", "layer2"], {"resid_post": "layer*"}])
def test_named_blocks_are_followed_as_if_they_had_been_found(sites):
    probe = initlab.probe(build(), sites=sites)
    assert notes(probe)[0] == "declared blocks: 2 blocks, stream reproduced from its writes in 2"
    assert rows(probe, "resid_post") == ["layer1", "layer2"]
    assert rows(probe, "attn_out") == ["layer1.attn.o_proj", "layer2.attn.o_proj"]
    assert rows(probe, "embed") == ["layer1"] and rows(probe, "final_norm") == ["norm"]
    assert probe.summary["n_embd"].item() == D and probe.summary["n_layer"].item() == 2


@pytest.mark.parametrize(
    "given",
    [
        lambda m: m.layers,
        lambda m: list(m.layers),
        lambda m: (f"layers.{n}" for n in range(3)),
        lambda m: {"resid_post": m.layers},
    ],
)
def test_modules_stand_for_their_names(given):
    torch.manual_seed(0)
    model = Language(Pre)
    told, named = initlab.probe(model, sites=given(model)), initlab.probe(model, sites="layers.*")
    assert len(model.layers) == 3 and rows(told, "resid_post") == rows(named, "resid_post")
    assert told.records["var"].tolist() == named.records["var"].tolist()
    kept = told.run.manifest["config"]["sites"]
    assert kept in ("layers", ["layers.0", "layers.1", "layers.2"], {"resid_post": "layers"})


def test_the_same_numbers_as_where_the_blocks_are_found():
    torch.manual_seed(0)
    model = Language(Pre)
    found, told = initlab.probe(model), initlab.probe(model, sites="layers.*")
    keys = ["site", "kind", "module", "layer", "call", "var"]
    assert found.records[keys].sort_values(keys).values.tolist() == told.records[keys].sort_values(keys).values.tolist()


def test_declared_writes_take_the_place_of_those_that_were_found():
    sites = {"resid_post": "layer*", "attn_out": "layer*.attn", "mlp_out": "layer*.mlp", "embed": "embed:out"}
    probe = initlab.probe(build(), sites=sites)
    assert rows(probe, "attn_out") == ["layer1.attn", "layer2.attn"]
    assert rows(probe, "embed") == ["embed"]
    assert notes(probe) == ["declared blocks: 2 blocks, stream reproduced from its writes in 2"]


def test_a_declared_write_leaves_the_others_that_were_found():
    told = initlab.probe(build(), sites={"resid_post": "layer*", "attn_out": "layer*.attn"})
    assert rows(told, "attn_out") == ["layer1.attn", "layer2.attn"]
    found = initlab.probe(build(), sites="layer*")
    assert rows(told, "mlp_out") == rows(found, "mlp_out") != []
    # the same write under another site's name is one write, not two
    named = initlab.probe(build(), sites={"resid_post": "layer*", "mixer_out": "layer*.attn"})
    assert rows(named, "mixer_out") == ["layer1.attn", "layer2.attn"]
    assert rows(named, "attn_out") == [] and rows(named, "mlp_out") == rows(found, "mlp_out")


def test_a_declared_write_that_isnt_one_is_said():
    probe = initlab.probe(build(), sites={"resid_post": "layer*", "attn_out": "layer*.attn.v_proj"})
    assert any("layer1.attn.v_proj is declared to write" in note and "layer1.mlp" in note for note in notes(probe))


def test_a_declared_write_has_the_scale_that_was_fitted():
    sites = {"resid_post": "layers.*", "attn_out": "layers.*.attn", "mlp_out": "layers.*.mlp"}
    torch.manual_seed(0)
    model = Language(Multiplied)
    found, told = initlab.probe(model), initlab.probe(model, sites=sites)
    assert told.at("mlp_out")["var"].tolist() == pytest.approx(found.at("mlp_out")["var"].tolist())


@pytest.mark.parametrize(("block", "verified"), [(Post, 2), (Functional, 0)])
def test_what_cant_be_verified_is_kept_and_said(block, verified):
    probe = initlab.probe(build(block), sites="layer*")
    assert f"reproduced from its writes in {verified}" in notes(probe)[0]
    assert len(rows(probe, "resid_post")) == 2
    assert any("isn't its input plus" in note for note in notes(probe)) is (verified == 0)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ("block*", r"resid_post: no module 'block\*' in Loose; its modules are named like"),
        (
            {"resid_post": "layer*", "attn_out": "layer*.attention"},
            r"no module 'layer\*.attention'.*layer1.attn",
        ),
        ({"resid_post": "layer*", "residual": "layer*"}, "unknown site 'residual'; known: embed"),
        ({"attn_out": "layer*.attn"}, "resid_post is missing"),
        ({"resid_post": "layer*", "mlp_out": "layer1.mlp"}, "mlp_out has 0 modules in block layer2 and 1 in all"),
        ([], "resid_post: no glob"),
        (5, r"^sites: resid_post holds 5; expected globs"),
        (re.compile("layer"), "resid_post holds re.compile"),
        (lambda: 0, "resid_post holds <function"),
        ({"resid_post": None}, "resid_post holds None"),
        (["layer1", 3], "resid_post holds 3"),
        ({1: "layer*", "x": "layer*"}, "unknown site 1"),
        (nn.Linear(2, 2), "the Linear given is no module inside Loose"),
    ],
)
def test_what_the_model_doesnt_have_is_a_clear_error(sites, message):
    model = build()
    with pytest.raises(SiteError, match=message):
        initlab.probe(model, sites=sites)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_no_trace():
    model = build().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    initlab.probe(model, sites="layer*")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state()) and model.training
