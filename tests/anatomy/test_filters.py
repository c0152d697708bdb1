"""`modules=`: what is looked at, and what isn't."""

import functools
import re

import pytest
import torch
from measure_zoo import ZOO, Language, Pre
from torch import nn

import initlab
from initlab.anatomy.filters import chosen_modules
from initlab.anatomy.look import of
from initlab.errors import ConfigError
from initlab.recipes import Role

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def model():
    return initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=256))


FILTERS = {
    "glob": "*.mlp.c_proj",
    "regex": re.compile(r"mlp\.c_proj$"),
    "function": lambda name, module: name.endswith("mlp.c_proj") and isinstance(module, nn.Linear),
    "role": Role.MLP_OUT,
    "role by name": "mlp_out",
    "list": ["transformer.h.0.mlp.c_proj", re.compile(r"h\.1\.mlp\.c_proj$")],
}


@pytest.mark.parametrize("kind", FILTERS)
def test_every_kind_of_filter_takes_the_same_modules(model, kind):
    assert chosen_modules(of(model), FILTERS[kind]) == {f"transformer.h.{i}.mlp.c_proj" for i in range(2)}


@pytest.mark.parametrize("kind", FILTERS)
def test_only_what_was_chosen_is_on_record(model, kind):
    whole, part = initlab.probe(model), initlab.probe(model, modules=FILTERS[kind])
    names = set(part.records["module"].str.removesuffix(".weight").str.removesuffix(".bias"))
    assert names == {f"transformer.h.{i}.mlp.c_proj" for i in range(2)}
    keys = ["module", "site", "kind", "call"]
    both = whole.records.merge(part.records, on=keys, suffixes=("", "_part"))
    assert len(both) == len(part.records) > 0
    assert (both["var"] == both["var_part"]).all()
    assert both["expected_var"].equals(both["expected_var_part"])  # the closed form still knows every weight
    assert part.summary["loss"].item() == whole.summary["loss"].item()
    assert "activations looked at" in repr(part)


def test_filters_work_where_the_stream_is_found(model):
    torch.manual_seed(0)
    found = initlab.probe(Language(Pre), modules="layers.1.*")
    assert set(found.records["module"].str.startswith("layers.1.")) <= {True, False}
    assert set(found.records["layer"].dropna()) == {1}


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ("*.ffn", r"modules: '\*.ffn' takes no module of NanoGPT; its modules are named like"),
        (re.compile("ffn"), "takes no module of NanoGPT"),
        (lambda *_: False, "takes no module"),
        (Role.MLP_GATE, "NanoGPT has no parameter of role mlp_gate"),
        ([], "modules is empty"),
        (3, "modules holds 3; expected a glob"),
    ],
)
def test_a_filter_that_takes_nothing_is_a_clear_error(model, modules, message):
    with pytest.raises(ConfigError, match=message):
        initlab.probe(model, modules=modules)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_classes_and_modules_stand_for_names(model):
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert chosen_modules(of(model), nn.Linear) == linears
    block = model.transformer.h[1]
    assert chosen_modules(of(model), [block.mlp, block.attn]) == {"transformer.h.1.mlp", "transformer.h.1.attn"}
    assert chosen_modules(of(model), model.transformer.h) == {"transformer.h"}


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (lambda name: True, "raised TypeError at module '': .*expected a function"),
        (lambda name, module: 1 / 0, "raised ZeroDivisionError at module ''"),
        (re.compile(b"mlp"), "raised TypeError .* an expression that searches text"),
        (nn.Linear(2, 2), "the Linear given is no module of NanoGPT"),
        (int, "modules holds <class 'int'>; expected"),
        (b"mlp", "modules holds b'mlp'; expected"),
        ("transformer.h", r"nothing is measured at 'transformer.h' itself: .* use 'transformer.h.\*'"),
        ("", r"nothing is measured at 'the model as a whole' itself: .* use '\*'"),
    ],
)
def test_what_is_no_filter_or_leaves_nothing_is_a_clear_error(model, modules, message):
    with pytest.raises(ConfigError, match=message):
        initlab.probe(model, modules=modules)


def test_a_generator_is_read_once(model):
    names = ["transformer.h.0.mlp.c_proj"]
    once = initlab.probe(model, modules=(name for name in names))
    assert once.run.manifest["config"]["modules"] == names
    assert len(once.records) == len(initlab.probe(model, modules=names).records) > 0


def test_any_filter_can_be_saved(model, tmp_path):
    ends = functools.partial(lambda end, name, module: name.endswith(end), "c_proj")
    filters = [ends, nn.Linear, model.transformer.h[0].mlp]
    initlab.probe(model, modules=filters).save(tmp_path / "run")
    kept = initlab.load(tmp_path / "run").run.manifest["config"]["modules"]
    assert kept[0].startswith("functools.partial(") and kept[1:] == ["Linear", "transformer.h.0.mlp"]


def test_heads_are_those_of_the_chosen_modules(model):
    assert len(initlab.probe(model, modules="*.c_attn").heads) == 4
    only = initlab.probe(model, modules="*.1.attn.c_attn").heads
    assert only["layer"].tolist() == [1, 1] and only["head"].tolist() == [0, 1]


def test_a_filter_is_kept_in_the_manifest(model, tmp_path):
    config = initlab.probe(model, modules=["*.mlp", re.compile("attn"), Role.MLP_OUT]).run.manifest["config"]
    assert config["modules"] == ["*.mlp", "attn", "mlp_out"]
    initlab.probe(model, modules=FILTERS["function"]).save(tmp_path / "run")
    assert initlab.load(tmp_path / "run").run.manifest["config"]["modules"] == "<lambda>"


@pytest.mark.parametrize("name", ["encoder and decoder", "one block three times"])
def test_stacks_keep_their_numbers(name):
    torch.manual_seed(0)
    model = ZOO[name][0]()
    whole, part = initlab.probe(model), initlab.probe(model, modules="*.mlp*")
    rows = whole.records[whole.records["module"].isin(set(part.records["module"]))]
    keys = ["module", "site", "kind", "call", "layer", "var"]
    assert part.records[keys].to_csv() == rows[keys].reset_index(drop=True).to_csv()


def test_queries_are_found_in_a_fused_matrix_by_their_own_name_too(model):
    blocks = {f"transformer.h.{layer}.attn.c_attn" for layer in range(2)}
    assert chosen_modules(of(model), "attn_q") == chosen_modules(of(model), "attn_qkv") == blocks
