"""The table of a NanoGPT that nobody built is the one of the model itself."""

from dataclasses import replace

import numpy as np
import pytest

import initlab
from initlab.anatomy.roles import find_roles
from initlab.judge import theory
from initlab.judge.theory.parameters import norm_sites
from initlab.models.config import NanoGPTConfig
from initlab.models.wiring import nanogpt_wiring
from initlab.recipes import registry
from initlab.wiring import Update

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 128, "block_size": 32, "vocab_size": 96}
TEXT = theory.TextStatistics(block_size=32, sum_p2=0.05, repeat_rate=0.03)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_nanogpt_is_listed_as_it_is_built(bias, tied):
    model = initlab.NanoGPT(initlab.NanoGPTConfig(**SIZES, bias=bias, tie_weights=tied))
    table = theory.nanogpt_parameters(**SIZES, bias=bias, tied=tied)
    table["layer"] = table["layer"].astype(object).where(table["layer"].notna(), None)
    listed = {row.module: (row.role, row.layer, row.numel, row.dims) for row in table.itertuples()}
    numel = {name: parameter.numel() for name, parameter in model.named_parameters()}
    built = {p.name: (p.role, p.layer, numel[p.name], p.dims) for p in find_roles(model).parameters}
    assert listed == built and list(listed) == list(built)


@pytest.mark.parametrize("recipe", ["nanogpt", "xavier", "torch-default"])
def test_as_found_and_as_drawn_are_one_setting(recipe):
    """Where what was found is exactly what the recipe says, nothing else may differ."""
    table = theory.nanogpt_parameters(**SIZES)
    entry = registry.get(recipe)
    drawn = [entry(row.role, row.dims) for row in table.itertuples()]
    table["rms"] = [(value.mean**2 + value.std**2) ** 0.5 for value in drawn]
    wiring = nanogpt_wiring(NanoGPTConfig(**SIZES))
    settings = [theory.setting_of(table, wiring, TEXT, source) for source in (None, entry)]
    found, declared = (theory.predict(setting) for setting in settings)
    assert list(found.var.values()) == pytest.approx(list(declared.var.values()), rel=1e-12)
    assert list(found.grad.values()) == pytest.approx(list(declared.grad.values()), rel=1e-12)


def test_every_weight_is_found_by_its_name():
    """Of a fused matrix in parts, and norms to whose gains something is added; what isn't in the table is unknown."""
    table = theory.nanogpt_parameters(**SIZES, bias=False)
    rms = {"transformer.wte.weight": 0.5, "transformer.h.1.attn.c_attn.weight": 0.3, "transformer.ln_f.weight": 0.0}
    table["rms"] = table["module"].map(rms).fillna(0.1)
    table["mean"], table["var"] = 0.0, 0.0
    table.loc[table["module"] == "transformer.ln_f.weight", ["mean", "var"]] = 0.5, 0.04
    table = table[table["module"] != "transformer.h.1.mlp.c_fc.weight"]
    wiring = nanogpt_wiring(NanoGPTConfig(n_layer=2, n_head=2, n_embd=128, vocab_size=96, bias=False))
    wiring = replace(wiring, final_norm=replace(wiring.final_norm, offset=1.0, scale=2.0))
    (stack,) = theory.setting_of(table, wiring, TEXT).stacks
    assert stack.head.square == stack.terms[0].square == pytest.approx(0.25)
    assert stack.final_norm.gain == pytest.approx((1.5**2 + 0.04) * 4)
    attention, mlp = (update.branches[0].body for update in stack.blocks[1].updates)
    assert attention.query.square == attention.value.square == pytest.approx(0.09)
    assert attention.query.bias == 0 and np.isnan(mlp.up.square)
    found = theory.predict(theory.setting_of(table, wiring, TEXT), strict=True)
    assert ("mlp_pre", 0) in found.var and ("mlp_pre", 1) not in found.var and ("resid_post", 1) not in found.var
    assert ("resid_mid", 1) in found.var and ("final_norm", None) in found.var


def test_a_matrix_that_reads_something_else_than_the_stream_is_not_followed():
    """As the last of a low-rank pair does: what comes between isn't known."""
    table = theory.nanogpt_parameters(**SIZES, bias=False).assign(rms=0.05)
    wiring = nanogpt_wiring(NanoGPTConfig(n_layer=1, n_head=2, n_embd=128, vocab_size=96, bias=False))
    attention, mlp = (update.branches[0] for update in wiring.blocks[0].updates)
    for name, gone in (("query", {"q"}), ("value", {"v", "attn_z", "attn_out", "resid_mid", "resid_post"})):
        narrow = replace(attention.body, **{name: replace(getattr(attention.body, name), fan_in=32)})
        updates = tuple(Update(branches=(branch,)) for branch in (replace(attention, body=narrow), mlp))
        changed = replace(wiring, blocks=(replace(wiring.blocks[0], updates=updates),))
        found = {site for site, _ in theory.predict(theory.setting_of(table, changed, TEXT), strict=True).var}
        assert not gone & found and {"k", "mlp_pre", "mlp_out", "final_norm"} <= found


def test_what_is_written_by_one_matrix_twice_is_not_independent():
    table = theory.nanogpt_parameters(**SIZES, bias=False).assign(rms=0.05)
    wiring = nanogpt_wiring(NanoGPTConfig(n_layer=2, n_head=2, n_embd=128, vocab_size=96, bias=False))
    first, second = wiring.blocks
    shared = replace(wiring, blocks=(first, replace(second, updates=(second.updates[0], first.updates[1]))))
    found = theory.predict(theory.setting_of(table, shared, TEXT), strict=True)
    assert ("resid_mid", 1) in found.var and ("mlp_act", 1) in found.var
    assert ("mlp_out", 1) not in found.var and ("resid_post", 1) not in found.var


def test_norms_of_a_block_are_told_apart_by_their_modules():
    (block,) = nanogpt_wiring(NanoGPTConfig(n_layer=1, n_head=2, n_embd=128, vocab_size=96)).blocks
    attention, mlp = block.branches()
    name = "transformer.h.0"
    assert norm_sites(block) == {f"{name}.ln_1": "ln_1", f"{name}.ln_2": "ln_2"}
    both = replace(block, updates=(Update(branches=(attention, replace(mlp, norm=attention.norm))),))
    assert norm_sites(both) == {f"{name}.ln_1": "ln_1"}
    behind = [replace(branch, post=replace(branch.norm, module=f"{branch.module}.post")) for branch in (attention, mlp)]
    sandwich = replace(block, updates=tuple(Update(branches=(branch,)) for branch in behind))
    assert norm_sites(sandwich) == {f"{name}.ln_1": "ln_1", f"{name}.ln_2": "ln_2"}
    after = [Update(branches=(replace(branch, norm=None),), norm=branch.norm) for branch in (attention, mlp)]
    assert norm_sites(replace(block, updates=tuple(after))) == {f"{name}.ln_1": "ln_1", f"{name}.ln_2": "ln_2"}
