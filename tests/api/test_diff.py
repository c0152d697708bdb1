"""`diff`: modules, functions, runs, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from decoders import Decoder
from torch import nn

import initlab
from initlab.errors import ConfigError, RunError

pytestmark = pytest.mark.integration

QUICK = {"text": initlab.Text(data="uniform", batch_size=2, block_size=16)}
LIGHT = QUICK | {"stats": "light"}


def model(seed: int = 0, recipe: str = "nanogpt", **sizes: int) -> initlab.NanoGPT:
    known = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 16, "vocab_size": 48} | sizes
    made = initlab.NanoGPT(initlab.NanoGPTConfig(**known))
    initlab.apply_recipe(made, recipe, seed=seed)
    return made


def test_two_draws_of_one_init_differ_in_nothing() -> None:
    found = initlab.diff(model(0), model(1), **QUICK)
    assert not found.parameters["differs"].any()
    assert not found.sites["differs"].any()
    assert not found.roles["differs"].any()
    assert not found.wiring.shape[0]
    assert found._compared.basis.kind == "one draw"


def test_another_recipe_differs_by_role_and_site() -> None:
    found = initlab.diff(model(), model(recipe="torch-default"), **QUICK)
    changed = found.roles[found.roles["differs"]].set_index("role")
    assert {"mlp_out", "attn_out", "attn_qkv", "bias"} <= set(changed.index)
    assert "norm_gain" not in changed.index
    assert "normal → uniform" in changed.loc["mlp_out", "details"][0]
    assert "normal → uniform" in repr(found)
    assert found.differs


def test_a_planted_fault_is_named_and_nothing_else() -> None:
    faulty = model()
    with torch.no_grad():
        faulty.transformer.h[1].mlp.c_proj.weight.mul_(3)
        faulty.transformer.h[0].attn.c_attn.weight[:64].mul_(2)
    found = initlab.diff(model(), faulty, **QUICK)
    rows = found.parameters[found.parameters["differs"]].set_index("name_b")["what"]
    assert rows.to_dict() == {
        "transformer.h.1.mlp.c_proj.weight": "std",
        "transformer.h.0.attn.c_attn.weight": "rows attn_q",
    }
    far = found.sites[found.sites["differs"] & (found.sites["kind"] == "activation")]
    assert (far["layer"] < 2).all()
    assert {("mlp_out", 1), ("q", 0)} <= set(zip(far["site"], far["layer"], strict=True))


class Fused(nn.Module):
    def __init__(self, block: nn.Module):
        super().__init__()
        width = block.wq.weight.shape[1]
        self.heads = block.heads
        self.norm_a, self.norm_b = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.o = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        hidden = block.w1.weight.shape[0]
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in self.qkv(self.norm_a(x)).chunk(3, -1))
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(z.transpose(1, 2).flatten(2))
        h = self.norm_b(x)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


class Port(nn.Module):
    def __init__(self, source: Decoder):
        super().__init__()
        vocab, width = source.tok_embeddings.weight.shape
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(Fused(block) for block in source.layers)
        self.last, self.head = nn.RMSNorm(width), nn.Linear(width, vocab, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x))


def drawn(made: nn.Module, seed: int, std: float = 0.02) -> nn.Module:
    torch.manual_seed(seed)
    for weight in made.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=std)
    return made


def test_a_port_under_other_names_is_matched_by_role_and_by_parts() -> None:
    source = drawn(Decoder(2, 64), 0)
    port = drawn(Port(source), 1)
    found = initlab.diff(source, port, **QUICK)
    matched = found.parameters["matched"].value_counts().to_dict()
    assert matched == {"role and block": 15, "part of a fused matrix": 6}
    assert not found.parameters["differs"].any()
    assert any("parts of fused matrices" in note for note in found.notes)
    with torch.no_grad():
        port.blocks[1].qkv.weight[64:128].mul_(1.5)
    rows = initlab.diff(source, port, **QUICK).parameters
    assert list(rows.loc[rows["differs"], "name_a"]) == ["layers.1.wk.weight"]


def test_the_same_weights_on_the_same_batch_leave_nothing_to_chance() -> None:
    one, other = model(), model()
    found = initlab.diff(one, other, **LIGHT)
    assert found.verdict.startswith("Nothing differs: ")
    other.transformer.h[1].mlp.register_forward_hook(lambda *given: given[-1] * 1.2)  # 44 % of the variance
    found = initlab.diff(one, other, **LIGHT)
    assert found._compared.basis.kind == "same weights"
    far = found.sites[found.sites["differs"] & (found.sites["kind"] == "activation")]
    assert set(far["layer"].dropna()) == {1}


def test_functions_are_drawn_at_several_seeds_on_one_batch() -> None:
    drawn_with = []

    def make(recipe: str) -> initlab.NanoGPT:
        drawn_with.append(torch.initial_seed())
        return model(torch.initial_seed(), recipe)

    def before() -> nn.Module:
        return make("nanogpt")

    def after() -> nn.Module:
        return make("nanogpt-no-depth-scale")

    found = initlab.diff(before, after, seeds=3, **LIGHT)
    assert drawn_with == [0, 1, 2] * 2
    assert found.names == ("before", "after")
    assert found._compared.basis.kind == "draws"
    changed = found.roles[found.roles["differs"]]
    assert set(changed["role"]) == {"attn_out", "mlp_out"}
    assert changed["ratio"].between(1.9, 2.1).all()  # √(2·2 blocks)
    assert "3 draws" in found._compared.basis.words


def test_models_that_read_other_lengths_read_the_shorter() -> None:
    found = initlab.diff(model(), model(1, block_size=8), stats="light", text=initlab.Text(data="uniform"))
    assert set(found.a.summary["block_size"]) == set(found.b.summary["block_size"]) == {8}
    rows = found.parameters
    assert list(rows.loc[rows["differs"], "role"]) == ["pos_embed"]  # of another shape


def test_models_of_other_sizes_are_compared_by_role() -> None:
    found = initlab.diff(model(), model(1, n_layer=4), **LIGHT)
    changed = found.roles[found.roles["differs"]].set_index("role")
    assert set(changed.index) == {"attn_out", "mlp_out"}
    assert changed.loc["mlp_out", "details"] == ["goes as 1/√n_layer"]
    assert any("compared by role" in note for note in found.notes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    initlab.probe(model(), **QUICK).save(folder / "a")
    initlab.probe(model(recipe="torch-default"), **QUICK).save(folder / "b")
    options = initlab.RunOptions(out=folder / "c")
    recipes = ["nanogpt", "torch-default"]
    initlab.compare(recipes, depths=[2], widths=[64], seeds=2, stats="light", run=options, **QUICK)
    return folder


def test_runs_and_results_are_compared_as_saved(saved: Path) -> None:
    of_folders = initlab.diff(saved / "a", saved / "b")
    of_results = initlab.diff(initlab.load(saved / "a"), initlab.load(saved / "b"))
    assert of_folders.verdict == of_results.verdict
    two = initlab.load(saved / "c")
    found = initlab.diff(two.only("nanogpt"), two.only("torch-default"))
    named = initlab.diff(f"{saved / 'c'}:nanogpt", f"{saved / 'c'}:torch-default")
    assert found.verdict == named.verdict
    assert found._compared.basis.kind == "draws"
    mixed = initlab.diff(saved / "a", model(), **QUICK)
    assert not mixed.parameters["differs"].any()


def test_its_report_can_be_made_again_from_its_folder(saved: Path, tmp_path: Path) -> None:
    found = initlab.diff(saved / "a", saved / "b")
    page = found.report(tmp_path / "page")
    assert found.verdict in page.read_text()
    loaded = initlab.load(tmp_path / "page")
    assert loaded.document().changed is not None
    assert loaded.document().changed.verdict == found.verdict


def test_rules_are_chosen_as_for_a_result(saved: Path) -> None:
    every = initlab.diff(saved / "a", saved / "b").findings
    assert {"EMB001"} <= set(every["code"])
    assert "EMB001" not in set(initlab.diff(saved / "a", saved / "b", ignore=["EMB"]).findings["code"])


def test_what_cant_be_compared_is_refused_in_a_sentence(saved: Path, tmp_path: Path) -> None:
    one = model()
    with pytest.raises(ConfigError, match=r"same run .*: nothing can differ"):
        initlab.diff(saved / "a", saved / "a")
    with pytest.raises(ConfigError, match="same NanoGPT: nothing can differ"):
        initlab.diff(one, one)
    with pytest.raises(ConfigError, match="holds 2 recipes"):
        initlab.diff(saved / "a", saved / "c")
    with pytest.raises(RunError, match=r"run.json not found"):
        initlab.diff(saved / "a", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="drawn already"):
        initlab.diff(one, saved / "a", seeds=3)
    with pytest.raises(ConfigError, match="seeds is 0"):
        initlab.diff(one, model(), seeds=0)
    with pytest.raises(ConfigError, match="b is 5; expected a run"):
        initlab.diff(one, 5)
    with pytest.raises(ConfigError, match="no option 'sede'; did you mean seed"):
        initlab.diff(one, model(), sede=1)
    with pytest.raises(ConfigError, match="no rule has the code"):
        initlab.diff(one, model(), select=["XYZ"])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    with pytest.raises(RunError, match="can't be read"):
        initlab.diff(saved / "a", tmp_path / "bad")
