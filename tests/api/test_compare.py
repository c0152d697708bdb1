"""`initlab.compare` of models that aren't NanoGPT: recipes drawn into them, and models with inits of their own."""

import functools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import initlab
from initlab import cli
from initlab.errors import ConfigError, ProbeError, RecipeError, RunError
from initlab.measure.statistics import STATISTICS
from initlab.recipes import Normal

pytestmark = pytest.mark.integration

LIGHT = {"stats": "light", "seeds": 2}
SMALL = LIGHT | {"depths": [1, 2], "widths": [32]}


class Stage(nn.Module):
    """A pre-norm block with names of its own."""

    def __init__(self, width, scale):
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.widen, self.narrow = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        with torch.no_grad():
            for matrix in (self.out, self.narrow):
                matrix.weight.mul_(scale)

    def forward(self, h):
        n = self.before(h)
        q, k, v = (part(n).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        h = h + self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return h + self.narrow(nn.functional.silu(self.widen(self.after(h))))


class Storyteller(nn.Module):
    """A decoder that declares its longest sequence, and nothing else."""

    def __init__(self, n_layer, n_embd, scale=1.0):
        super().__init__()
        self.config = SimpleNamespace(block_size=16)
        self.words, self.positions = nn.Embedding(300, n_embd), nn.Embedding(16, n_embd)
        self.stages = nn.ModuleList(Stage(n_embd, scale) for _ in range(n_layer))
        self.last, self.head = nn.LayerNorm(n_embd), nn.Linear(n_embd, 300, bias=False)

    def forward(self, ids):
        h = self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for stage in self.stages:
            h = stage(h)
        return self.head(self.last(h))


def old(n_layer, n_embd):
    return Storyteller(n_layer, n_embd)


def new(n_layer, n_embd):
    return Storyteller(n_layer, n_embd, scale=(2 * n_layer) ** -0.5)


def shallow(role, dims):
    """Everything a tenth."""
    return Normal(0.1)


@pytest.fixture(scope="module")
def drawn():
    return initlab.compare(["nanogpt", shallow], model=old, **SMALL)


def test_recipes_are_drawn_into_a_model_of_ones_own(drawn):
    assert drawn.run.manifest["failed"] == {} and len(drawn.summary) == 2 * 2 * 2
    weights = drawn.records[(drawn.records["kind"] == "weight") & (drawn.records["module"] == "stages.0.narrow.weight")]
    std = weights.groupby(["recipe", "n_layer"], observed=True)["std"].mean()
    assert std["nanogpt", 2] == pytest.approx(0.02 / 2, rel=0.05)
    assert std["shallow", 2] == pytest.approx(0.1, rel=0.05)
    declared = weights.set_index("recipe").loc["nanogpt", "expected_var"].to_numpy()
    np.testing.assert_allclose(np.sort(declared)[::2], [0.02**2 / 4, 0.02**2 / 2], rtol=1e-5)
    assert (drawn.at("resid_post", layer=-1)["var"] > 0).all()
    embed = drawn.at("embed").pivot_table(index=["n_layer", "seed"], columns="recipe", values="var", observed=True)
    np.testing.assert_allclose(embed["shallow"] / embed["nanogpt"], 25, rtol=1e-4)  # the same draw, the same text


def test_the_page_and_the_terminal_name_the_model(drawn, tmp_path):
    config = drawn.run.manifest["config"]
    assert (config["model"], config["batch_size"], config["block_size"]) == ("Storyteller", 64, 16)
    (source,) = config["sources"]
    assert "test_compare.old " in source
    assert "initlab 0.1.0 compare · Storyteller · n_layer 1, 2, n_embd 32 · vocabulary 300" in repr(drawn).replace(
        "\n", " "
    )
    rows = drawn.run.manifest["recipes"]["nanogpt"]["rows"]
    assert {row["n_layer"] for row in rows} == {1, 2} and {row["n_embd"] for row in rows} == {32}
    page = drawn.report(tmp_path / "run").read_text(encoding="utf-8")
    assert "Storyteller" in page and "0.02 / sqrt(2 * n_layer)" in page
    assert drawn.at("resid_post")["expected_var"].notna().any()  # as its operations show it to be wired


def test_models_are_compared_with_inits_of_their_own():
    found = initlab.compare([old, new], **SMALL | {"depths": [1, 4]})
    assert found.run.manifest["config"]["recipes"] == ["old", "new"] and found.run.manifest["recipes"] == {}
    narrow = found.records[found.records["module"].eq("stages.0.narrow.weight") & found.records["kind"].eq("weight")]
    var = narrow.groupby(["recipe", "n_layer"], observed=True)["var"].mean()
    assert (var["old"] / var["new"]).to_dict() == pytest.approx({1: 2, 4: 8})  # the same numbers drawn
    torch.manual_seed(1)
    own = Storyteller(4, 32)
    rows = found.records[(found.records["kind"] == "weight") & (found.records["recipe"] == "old")]
    row = rows[(rows["module"] == "words.weight") & (rows["seed"] == 1) & (rows["n_layer"] == 4)]
    assert row["var"].item() == pytest.approx(own.words.weight.var(correction=0).item(), rel=1e-6)


def test_recipes_and_models_stand_side_by_side():
    found = initlab.compare(["nanogpt", shallow, new], model=old, **SMALL)
    assert list(found.summary["recipe"].unique()) == ["nanogpt", "shallow", "new"]
    assert len(found.run.manifest["config"]["sources"]) == 2

    def tall(n_layer, n_embd):
        return initlab.NanoGPTConfig(n_layer=n_layer, n_embd=n_embd, n_head=4, block_size=16, vocab_size=256)

    beside = initlab.compare(["nanogpt", tall], **SMALL)  # two of one architecture need no model=
    assert beside.summary.groupby("recipe", observed=True)["block_size"].max().to_dict() == {"nanogpt": 256, "tall": 16}


def test_a_module_is_copied_at_its_own_size():
    model = Storyteller(3, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = initlab.compare("nanogpt", model=model, **LIGHT)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.run.manifest["cells"] == ["nanogpt-L3-d32-s0", "nanogpt-L3-d32-s1"]
    with pytest.raises(ConfigError, match="depths was given, but Storyteller takes no n_layer; leave depths out"):
        initlab.compare("nanogpt", model=model, depths=[2])


def test_a_function_is_called_with_what_it_takes():
    def deep(n_layer):
        return Storyteller(n_layer, 32)

    found = initlab.compare("nanogpt", model=deep, depths=[1, 2], seeds=1, stats="light")
    assert found.run.manifest["cells"] == ["nanogpt-L1-d32-s0", "nanogpt-L2-d32-s0"]
    found = initlab.compare(lambda: Storyteller(2, 32), seeds=1, stats="light")
    assert found.run.manifest["cells"] == ["lambda-L2-d32-s0"]


def test_a_function_may_return_a_config_and_a_config_is_measured_at_its_own_size():
    config = initlab.NanoGPTConfig(n_layer=2, n_embd=32, n_head=2, block_size=16)

    def made(n_layer, n_embd):
        return initlab.NanoGPTConfig(n_layer=n_layer, n_embd=n_embd, n_head=2, block_size=16)

    whole = initlab.compare("nanogpt", model=config, **LIGHT)
    same = initlab.compare("nanogpt", model=made, depths=[2], widths=[32], **LIGHT)
    assert whole.records["var"].equals(same.records["var"]) and whole.records["expected_var"].equals(
        same.records["expected_var"]
    )
    assert whole.run.manifest["config"] == same.run.manifest["config"]
    wide = initlab.compare("nanogpt", model=made, depths=[2], widths=[32, 64], **LIGHT)
    assert wide.run.manifest["config"]["n_head"] == 2
    resized = initlab.compare("nanogpt", model=config, widths=[32, 64], **LIGHT)
    assert resized.run.manifest["config"]["n_head"] == [2, 4]  # heads keep their size


def test_another_function_is_another_run(tmp_path):
    run = initlab.RunOptions(out=tmp_path / "run")
    initlab.compare("nanogpt", model=old, run=run, **SMALL)
    assert initlab.compare("nanogpt", model=old, run=run, **SMALL).run.complete
    with pytest.raises(RunError, match=r"holds another run .*sources"):
        initlab.compare("nanogpt", model=new, run=run, **SMALL)


def scaled(scale):
    def telling(n_layer):
        return Storyteller(n_layer, 32, scale)

    return telling


def test_a_value_that_a_function_holds_is_part_of_the_run(tmp_path):
    options = LIGHT | {"depths": [1, 2], "run": initlab.RunOptions(out=tmp_path)}
    initlab.compare(scaled(0.5), **options)
    initlab.compare(scaled(0.5), **options)
    with pytest.raises(RunError, match="sources"):
        initlab.compare(scaled(0.1), **options)


def with_vocabulary(words, n_layer):
    return nn.Sequential(nn.Embedding(words, 32), *(nn.Linear(32, 32) for _ in range(n_layer)))


def test_what_a_partial_function_holds_is_part_of_the_run(tmp_path):
    options = LIGHT | {"depths": [1, 2], "run": initlab.RunOptions(out=tmp_path)}
    initlab.compare(functools.partial(with_vocabulary, 300), **options)
    with pytest.raises(RunError, match="sources"):
        initlab.compare(functools.partial(with_vocabulary, 400), **options)


def test_another_batch_or_module_is_another_run(tmp_path):
    ids = torch.arange(32).view(2, 16)
    for folder, given, message in (("batch", {"batch": ids + 1}, "batch"), ("module", {"batch": ids}, "sources")):
        options = LIGHT | {"run": initlab.RunOptions(out=tmp_path / folder)}
        model = Storyteller(1, 32)
        initlab.compare("nanogpt", model=model, batch=ids, **options)
        initlab.compare("nanogpt", model=Storyteller(1, 32), batch=ids, **options)
        model.last.eps = 1e-5 if folder == "batch" else 0.1
        with pytest.raises(RunError, match=message):
            initlab.compare("nanogpt", model=model, **given, **options)


def test_an_iterator_is_read_once_for_every_model():
    batches = iter([torch.arange(32).view(2, 16), torch.zeros(2, 16, dtype=torch.long)])
    found = initlab.compare(old, batch=batches, depths=[2, 3], widths=[32], seeds=1, stats="light")
    once = initlab.compare(old, batch=torch.arange(32).view(2, 16), depths=[2, 3], widths=[32], seeds=1, stats="light")
    assert found.records["var"].equals(once.records["var"])


def test_an_init_may_draw_from_numpy():
    def drawn_by_numpy(n_layer):
        model = Storyteller(n_layer, 32)
        model.words.weight.data = torch.from_numpy(np.random.randn(300, 32)).float()  # noqa: NPY002
        return model

    before = np.random.get_state()[1].copy()  # noqa: NPY002
    once, again = (initlab.compare(drawn_by_numpy, depths=[1], seeds=1, stats="light") for _ in range(2))
    assert once.records["var"].equals(again.records["var"])
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_a_model_that_is_kept_by_its_function_is_refused_untouched():
    kept = old(1, 32)
    before = kept.words.weight.clone()
    with pytest.raises(ProbeError, match="returned the same model twice"):
        initlab.compare("nanogpt", model=lambda n_layer: kept, depths=[1], **LIGHT)
    assert torch.equal(kept.words.weight, before)


def test_a_batch_of_ones_own_is_read_at_every_seed():
    ids = torch.arange(24).reshape(2, 12)
    found = initlab.compare("nanogpt", model=old, batch=ids, **SMALL)
    assert set(found.summary["block_size"]) == {12}
    with pytest.raises(ConfigError, match="batch= is for models of functions"):
        initlab.compare("nanogpt", batch=ids)


class Odd(Storyteller):
    def __init__(self, n_layer, n_embd):
        super().__init__(n_layer, n_embd)
        self.secret = nn.Parameter(torch.zeros(n_layer, 3, 5))


def undeclared(n_layer, n_embd):
    model = Storyteller(n_layer, n_embd)
    del model.config
    model.positions = nn.Linear(1, n_embd)
    return model


@pytest.mark.parametrize(
    ("given", "model", "error", "message"),
    [
        ("nanogpt", lambda n_layer, n_embd: 1 / 0, ProbeError, r"lambda\(n_layer=1, n_embd=32\) raised ZeroDivision"),
        ("nanogpt", lambda n_layer, n_embd: [1], ProbeError, "returned list; expected a torch.nn.Module"),
        (
            "nanogpt",
            lambda n_layer, n_embd: Storyteller(1, n_embd),
            ProbeError,
            "at n_layer 1 and .* does it use n_lay",
        ),
        ("nanogpt", lambda n_layer, n_embd: nn.Linear(10**7, 10**7), ProbeError, "needs more memory than there is"),
        ("nanogpt", lambda n_layer, n_embd, extra: 3, ProbeError, "missing 1 required positional argument: 'extra'"),
        ("nanogpt", lambda role, dims: 3, ConfigError, "can't make models of a size; expected n_embd and n_layer"),
        ("nanogpt", Odd, RecipeError, "Odd: what secret is for isn't known"),
        (undeclared, None, ProbeError, r"Storyteller raised .*pass batch=.*torch.randint\(0, 300, \(4, 64\)\)"),
        ([old, new], old, ConfigError, "no recipe: old and new make models with an init of their own"),
        ([old, old], None, ConfigError, "'old' was given more than once"),
        (["nanogpt", "nanogpt"], old, ConfigError, "'nanogpt' was given more than once"),
        ([nn.Linear(2, 2)], None, ConfigError, "a Linear was given among recipes: it has one size and one draw"),
        (
            "nanogpt",
            3,
            ConfigError,
            "model is 3; expected a NanoGPTConfig, a function of n_layer and n_embd, or a torch",
        ),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_written(given, model, error, message, tmp_path):
    with pytest.raises(error, match=message):
        initlab.compare(given, model=model, run=initlab.RunOptions(out=tmp_path / "run"), **SMALL)
    assert not (tmp_path / "run").exists()


def llama(n_layer, n_embd):
    transformers = pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": n_layer, "hidden_size": n_embd, "intermediate_size": 2 * n_embd}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, vocab_size=300, max_position_embeddings=64)
    return transformers.LlamaForCausalLM(config)


def test_a_hugging_face_model_is_expected_from_its_weights():
    found = initlab.compare(["nanogpt", "hf-llama"], model=llama, depths=[2, 4], widths=[128], **LIGHT)
    rows = found.at("resid_post")
    np.testing.assert_allclose(rows["var"], rows["expected_var"], rtol=0.15)
    assert found.summary["expected_loss"].notna().all()
    assert found.run.manifest["config"]["model"] == "LlamaForCausalLM"
    scaled = initlab.scale("nanogpt", model=llama, widths=[64, 128], depths=[2], steps=1, seeds=2)
    at_init = scaled.slopes[(scaled.slopes["step"] == 0) & (scaled.slopes["site"] == "logits")]
    assert at_init["slope"].item() == pytest.approx(at_init["expected"].item(), abs=0.2)


def test_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from test_compare import Storyteller, new, old\n\n\ndef flat(role, dims):\n"
        "    from initlab.recipes import Normal\n    return Normal(0.02)\n"
    )
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])
    small = ["--depths", "1,2", "--n-embd", "32", "--seeds", "1", "--stats", "light", "--no-report"]
    assert cli.main(["compare", "nanogpt", "mine.py:flat", "--model", "mine.py:old", *small, "-o", "a"]) == 0
    assert "Storyteller" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "a" / "run.json").read_text())
    assert manifest["config"]["recipes"] == ["nanogpt", "mine.py:flat"]
    assert manifest["command"].startswith("initlab compare nanogpt mine.py:flat --model mine.py:old")
    assert cli.main(["compare", "mine.py:old", "mine.py:new", *small, "-o", "b"]) == 0
    assert json.loads((tmp_path / "b" / "run.json").read_text())["config"]["recipes"] == ["old", "new"]
    capsys.readouterr()
    for arguments, message in (
        (["nanogpt", "--model", "mine.py:none"], "has nothing of that name"),
        (["nanogpt", "--model", "gpt5"], "unknown model 'gpt5'; expected a preset"),
        (["mine.py:old", "--no-bias"], "no recipe: old makes models with an init of their own"),
        (["mine.py:old", "mine.py:old"], "more than once"),
    ):
        assert cli.main(["compare", *arguments, *small, "-o", "c"]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_preset_is_a_model_too(tmp_path, capsys):
    arguments = ["--model", "shakespeare-cpu", "--seeds", "1", "--stats", "light", "--no-report", "--no-bias"]
    assert cli.main(["compare", "nanogpt", *arguments, "-o", str(tmp_path / "a")]) == 0
    config = json.loads((tmp_path / "a" / "run.json").read_text())["config"]
    assert (config["depths"], config["widths"], config["n_head"], config["bias"]) == ([4], [128], 4, False)


def test_a_recipe_beside_a_function_needs_to_know_its_model(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"nanogpt is a recipe, and beside it .* \(Storyteller\); say with model="):
        initlab.compare(["nanogpt", old], **SMALL, run=initlab.RunOptions(out=out))
    assert not out.exists()
    both = initlab.compare(["nanogpt", new], model=old, **SMALL)
    assert both.run.manifest["failed"] == {} and set(both.summary["recipe"]) == {"nanogpt", "new"}


def test_what_is_neither_a_recipe_nor_makes_models_is_refused_in_one_sentence():
    with pytest.raises(ConfigError, match=r"Stage\(width, scale\) is a class of models; give a function of n_layer"):
        initlab.compare([Stage], **SMALL)

    def needs(width, heads):
        return torch.empty(width, heads)

    with pytest.raises(RecipeError, match=r"recipe needs failed .* one that makes models takes n_layer, n_embd"):
        initlab.compare([needs], **SMALL)


def test_scaled_and_unscaled_inits_of_ones_own_are_told_apart_and_the_line_named():
    def quiet(make):
        def made(n_layer, n_embd):
            model = make(n_layer, n_embd)
            with torch.no_grad():
                for table in (model.words, model.positions):
                    table.weight.mul_(0.02)
            return model

        made.__name__ = make.__name__
        return made

    found = initlab.compare([quiet(old), quiet(new)], depths=[2, 4, 8], widths=[64], seeds=2)
    verdicts = {f.recipe: f for f in found.findings if f.code == "RES001"}
    assert (verdicts["new"].status, verdicts["old"].status) == ("pass", "fail")
    assert verdicts["old"].measured == pytest.approx(0, abs=0.05)
    assert verdicts["old"].advice.startswith(
        "divide the std of out.weight and narrow.weight by √(2·n_layer): at 8 layers"
    )


def test_a_file_of_two_models_may_also_hold_a_statistic(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "import initlab\n"
        "from initlab.models.config import NanoGPTConfig\n"
        "def made(n_layer, n_embd):\n"
        "    return NanoGPTConfig(n_layer=n_layer, n_embd=n_embd, n_head=2, block_size=8, vocab_size=256)\n"
        "def also(n_layer, n_embd):\n"
        "    return made(n_layer, n_embd)\n"
        "@initlab.statistic('mine_of_two')\n"
        "def mine_of_two(x):\n"
        "    return x.abs().max()\n"
    )
    with STATISTICS.temporary():
        found = initlab.compare([f"{file}:made", f"{file}:also"], depths=[1], widths=[32], seeds=1)
        assert "mine_of_two" in STATISTICS
    assert found.run.manifest["failed"] == {} and len(found.summary) == 2


def test_another_wiring_in_the_same_folder_is_another_run(tmp_path):
    config = initlab.NanoGPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=32)
    options = {"depths": [1], "seeds": 1, "run": initlab.RunOptions(out=tmp_path / "run")}
    initlab.compare(["nanogpt"], model=config, **options)
    other = replace(config, norm_placement="post", residual_multiplier=0.5)
    with pytest.raises(initlab.errors.RunError, match="norm_placement"):
        initlab.compare(["nanogpt"], model=other, **options)
    shown = repr(initlab.compare(["nanogpt"], model=other, depths=[1], seeds=1))
    assert "norm_placement=post, residual_multiplier=0.5" in " ".join(shown.split())
