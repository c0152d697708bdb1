"""The table of a NanoGPT that nobody built is the one of the model itself."""

import pytest

import initlab
from initlab.anatomy.roles import find_roles
from initlab.judge import theory
from initlab.recipes import registry

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
    built = {p.name: (p.role, p.layer, numel[p.name], p.dims) for p in find_roles(model).assigned}
    assert listed == built and list(listed) == list(built)


@pytest.mark.parametrize("recipe", ["nanogpt", "xavier", "torch-default"])
def test_as_found_and_as_drawn_are_one_setting(recipe):
    """Where what was found is exactly what the recipe says, nothing else may differ."""
    table = theory.nanogpt_parameters(**SIZES)
    entry = registry.get(recipe)
    drawn = [entry(row.role, row.dims) for row in table.itertuples()]
    table["rms"] = [(value.mean**2 + value.std**2) ** 0.5 for value in drawn]
    settings = [theory.setting_of(table, theory.Wiring(), TEXT, source) for source in (None, entry)]
    found, declared = (theory.predict(setting) for setting in settings)
    assert list(found.var.values()) == pytest.approx(list(declared.var.values()), rel=1e-12)
    assert list(found.grad.values()) == pytest.approx(list(declared.grad.values()), rel=1e-12)
