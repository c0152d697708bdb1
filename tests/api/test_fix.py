"""`initlab.fix`, from a broken init to a mended one."""

from __future__ import annotations

import importlib
import json
import math
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import initlab
from initlab import cli
from initlab.errors import ConfigError, ProbeError, RecipeError
from initlab.recipes import Constant, Dims, Distribution, Normal, Role

pytestmark = pytest.mark.integration

SIZES = {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 256, "block_size": 64}
QUICK: dict[str, Any] = {"text": initlab.Text("uniform", batch_size=4)}


def nanogpt(recipe: str = "nanogpt", **changes: Any) -> initlab.NanoGPT:
    model = initlab.NanoGPT(initlab.NanoGPTConfig(**(SIZES | changes)))
    initlab.apply_recipe(model, recipe)
    return model


def foreign(kind: str, **changes: Any) -> nn.Module:
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = importlib.import_module("transformers")
        torch.manual_seed(0)
        sizes = {"vocab_size": 256, "num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4}
        heads = {"GPT2": "GPT2LMHeadModel", "Bert": "BertForMaskedLM"}
        config = getattr(transformers, f"{kind}Config")(**(sizes | {"bos_token_id": 1, "eos_token_id": 2} | changes))
        model = getattr(transformers, heads.get(kind, f"{kind}ForCausalLM"))(config)
    assert isinstance(model, nn.Module)
    return model


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def failing(found: initlab.Probe) -> set[str]:
    return {f.code for f in found.findings if f.status == "fail" and f.severity != "info"}


def unscale(model: nn.Module, where: str = "") -> nn.Module:
    """What transformers 5.14 did to GPT-2."""
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight") and where in name:
            nn.init.normal_(parameter, 0.0, 0.02)
    return model


def test_gpt2_with_its_scaling_undone_gets_exactly_that_back() -> None:
    model = unscale(foreign("GPT2"))
    before = weights(model)
    proposal = initlab.fix(model, **QUICK)
    assert [(row["role"], row["n"], row["code"]) for row in proposal.rows] == [
        ("attn_out", 4, "INI002"),
        ("mlp_out", 4, "INI002"),
    ]
    for row in proposal.rows:
        assert row["found"] == pytest.approx(0.02, rel=0.02)
        assert row["proposed"] == pytest.approx(row["found"] / math.sqrt(8), rel=1e-9)
    assert proposal.left == []
    assert "though GPT2PreTrainedModel._init_weights says so" in proposal.problems[0].message
    proposal.apply()
    for name, value in weights(model).items():
        if name.endswith("c_proj.weight"):
            torch.testing.assert_close(value, before[name] / math.sqrt(8), rtol=1e-6, atol=0)
        else:
            assert torch.equal(value, before[name]), name
    assert initlab.describe_init(model).mismatches == []
    assert initlab.fix(model, **QUICK).changes == []


def test_only_the_block_that_was_drawn_otherwise_is_changed() -> None:
    proposal = initlab.fix(unscale(foreign("GPT2"), ".h.2."), **QUICK)
    assert {name for row in proposal.rows for name in row["names"]} == {
        "transformer.h.2.attn.c_proj.weight",
        "transformer.h.2.mlp.c_proj.weight",
    }


def test_torchs_defaults_need_their_positions_alone_and_what_that_uncovers_is_said() -> None:
    proposal = initlab.fix(nanogpt("torch-default"), **QUICK)
    assert failing(proposal.before) == {"EMB001"}
    assert [(row["role"], row["code"]) for row in proposal.rows] == [("pos_embed", "EMB001")]
    assert proposal.rows[0]["proposed"] == pytest.approx(1 / math.sqrt(3 * 128), rel=0.02)
    assert proposal.left == []
    assert proposal.after is not None
    assert not failing(proposal.after)
    assert [note.code for note in proposal.notes] == ["RES001"]
    assert "note: attn_out (std 0.051) isn't depth-scaled at 4 layers" in repr(proposal)


def wide(role: Role, dims: Dims) -> Distribution:
    """Every matrix at 0.5."""
    if role in (Role.NORM_GAIN, Role.NORM_BIAS, Role.BIAS):
        return Constant(float(role == Role.NORM_GAIN))
    return Normal(0.5)


def test_matrices_that_are_all_off_by_one_factor_are_brought_to_the_recipe_together() -> None:
    model = nanogpt()
    initlab.apply_recipe(model, wide)
    proposal = initlab.fix(model, **QUICK)
    assert {row["role"]: row["proposed"] for row in proposal.rows} == pytest.approx(
        {"token_embed": 0.02, "pos_embed": 0.02, "attn_qkv": 0.02, "mlp_in": 0.02}
        | dict.fromkeys(("attn_out", "mlp_out"), 0.02 / math.sqrt(8))
    )
    assert "every matrix is 25× nanogpt" in proposal.rows[0]["why"]
    assert proposal.left == []


def test_two_findings_on_one_role_are_answered_by_one_factor() -> None:
    model = nanogpt("nanogpt-no-depth-scale", n_embd=64)
    proposal = initlab.fix(model, limits={"ACT001.warning": 0.04}, **QUICK)
    rows = {row["role"]: row for row in proposal.rows}
    assert {role: row["code"] for role, row in rows.items()} == {
        "attn_qkv": "ACT001",
        "mlp_in": "ACT001",
        "attn_out": "ACT001, RES001",
        "mlp_out": "ACT001, RES001",
    }
    expected = 0.02 * math.sqrt(768 / 64) / math.sqrt(8)
    assert rows["mlp_out"]["proposed"] == pytest.approx(expected, rel=0.03)
    assert proposal.left == []
    proposal.apply()
    assert model.transformer.h[2].mlp.c_proj.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert not failing(initlab.probe(model, **QUICK))


def test_only_the_findings_that_are_counted_are_cleared() -> None:
    model = nanogpt("nanogpt-no-depth-scale", n_embd=64)
    assert {row["code"] for row in initlab.fix(model, **QUICK).rows} == {"RES001"}
    assert initlab.fix(model, ignore=["RES001"], **QUICK).rows == []
    with pytest.raises(ConfigError, match="no rule has the code 'RES999'"):
        initlab.fix(model, select=["RES999"], **QUICK)


def test_weights_of_zero_are_not_said_to_be_scaled() -> None:
    proposal = initlab.fix(nanogpt("zero-out", n_embd=64), limits={"ACT001.warning": 0.04}, **QUICK)
    assert {row["role"] for row in proposal.rows} == {"attn_qkv", "mlp_in"}


def test_an_odd_matrix_alone_is_brought_to_its_siblings() -> None:
    model = nanogpt("xavier", n_layer=6)
    for block in model.transformer.h:  # like no recipe: what is off any isn't what is odd
        block.attn.c_proj.weight.data.mul_(0.3)
        block.mlp.c_proj.weight.data.mul_(0.3)
    model.transformer.h[2].mlp.c_fc.weight.data.mul_(4)
    proposal = initlab.fix(model, **QUICK)
    assert [(row["names"], row["code"], row["how"]) for row in proposal.rows] == [
        (["transformer.h.2.mlp.c_fc.weight"], "INI003", "× 0.25")
    ]
    assert proposal.left == []


def test_a_tied_head_of_unit_variance_is_mended() -> None:
    """nanoGPT at 7c828855: the head got the embedding's N(0, 1)."""
    model = nanogpt("torch-default")
    nn.init.normal_(model.transformer.wte.weight)
    proposal = initlab.fix(model, **QUICK)
    assert proposal.before.summary["loss"].iloc[0] > 50
    assert proposal.rows[0]["role"] == "token_embed"
    assert {row["role"] for row in proposal.rows} >= {"token_embed", "pos_embed"}  # what the first hid shows next
    proposal.apply()
    assert not failing(initlab.probe(model, **QUICK))
    assert initlab.probe(model, **QUICK).summary["loss"].iloc[0] == pytest.approx(math.log(256), abs=0.3)


def test_zero_projections_behind_a_tied_head_are_meant_and_the_head_is_spoken_of() -> None:
    proposal = initlab.fix(nanogpt("zero-out", n_layer=2, n_embd=512, n_head=8), **QUICK)
    assert proposal.rows == proposal.left == []
    (noted,) = [each for each in proposal.before.findings if (each.code, each.status) == ("LOG001", "fail")]
    assert noted.severity == "info" and "untie lm_head from transformer.wte.weight" in noted.advice


def test_a_large_untied_head_shrinks() -> None:
    model = nanogpt(tie_weights=False)
    nn.init.normal_(model.lm_head.weight, std=0.5)
    proposal = initlab.fix(model, **QUICK)
    assert [(row["role"], row["code"]) for row in proposal.rows] == [("unembed", "LOG001")]
    assert proposal.rows[0]["proposed"] == pytest.approx(0.02)


def test_a_declared_recipe_is_restored_role_by_role() -> None:
    model = nanogpt()
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight.mul_(3)
        model.transformer.h[3].ln_2.weight.fill_(0.5)
    unsaid = initlab.fix(model, **QUICK).problems  # nobody said what was meant: the matrix is odd among its siblings
    assert [(finding.code, finding.severity) for finding in unsaid] == [("INI003", "warning")]
    proposal = initlab.fix(model, recipe="nanogpt", **QUICK)
    assert failing(proposal.before) >= {"INI001"}
    found = {row["role"]: (row["names"], row["how"]) for row in proposal.rows}
    assert found["mlp_in"][0] == ["transformer.h.1.mlp.c_fc.weight"]
    assert [row["proposed"] for row in proposal.rows if row["role"] == "mlp_in"] == [pytest.approx(0.02, rel=0.01)]
    assert found["norm_gain"] == (["transformer.h.3.ln_2.weight"], "set to 1")
    proposal.apply()
    torch.testing.assert_close(weights(model), weights(nanogpt()), rtol=0.02, atol=1e-7)
    assert proposal.left == []


def test_a_recipe_of_ones_own_is_what_is_drawn() -> None:
    def mine(role: Role, dims: Dims) -> Distribution:
        return initlab_nanogpt(role, dims) if role != Role.ATTN_OUT else Normal(0.004)

    initlab_nanogpt = importlib.import_module("initlab.recipes.registry").get("nanogpt")
    model = nanogpt()
    nn.init.zeros_(model.transformer.h[0].attn.c_proj.weight)
    proposal = initlab.fix(model, recipe=mine, apply=True, **QUICK)
    assert proposal.applied
    assert model.transformer.h[0].attn.c_proj.weight.std().item() == pytest.approx(0.004, rel=0.05)


@pytest.mark.parametrize(
    "make",
    [
        nanogpt,
        lambda: foreign("GPT2"),
        lambda: foreign("Llama", intermediate_size=320, num_key_value_heads=2),
        lambda: foreign("Bert", intermediate_size=512),
    ],
)
def test_a_healthy_model_is_left_alone(make: Callable[[], nn.Module]) -> None:
    model = make()
    before = weights(model)
    proposal = initlab.fix(model, apply=True, **QUICK)
    assert (proposal.problems, proposal.rows, proposal.left, proposal.after) == ([], [], [], None)
    assert not proposal.applied
    assert "no weight to change" in repr(proposal)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    with pytest.raises(ConfigError, match="there is nothing to change in"):
        proposal.apply()


def test_a_llama_without_depth_scaling_is_as_published_and_said_so() -> None:
    proposal = initlab.fix(foreign("Llama", intermediate_size=320), **QUICK)
    assert [note.severity for note in proposal.notes] == ["info"]
    assert "aren't depth-scaled at 4 layers, as hf-llama draws them" in repr(proposal).replace("\n    ", " ")
    scaled = initlab.fix(foreign("Llama", intermediate_size=320), recipe="megatron", **QUICK)
    assert {row["role"] for row in scaled.rows} == {"attn_out", "mlp_out"}


def test_a_proposal_leaves_no_trace() -> None:
    model = nanogpt("torch-default")
    model.transformer.h[0].mlp.c_fc.weight.grad = torch.ones(512, 128)
    hooked: list[int] = []
    model.lm_head.register_forward_hook(lambda *_: hooked.append(1))
    before, state, mode = weights(model), torch.get_rng_state(), model.training
    pointers = [p.data_ptr() for p in model.parameters()]
    assert initlab.fix(model, **QUICK).rows
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert model.training is mode
    gradient = model.transformer.h[0].mlp.c_fc.weight.grad
    assert gradient is not None
    assert torch.equal(gradient, torch.ones(512, 128))
    assert len(model.lm_head._forward_hooks) == 1


def test_applying_changes_what_was_shown_and_only_once() -> None:
    model = nanogpt("nanogpt-no-depth-scale")
    before = weights(model)
    proposal = initlab.fix(model, **QUICK)
    proposal.apply()
    assert "changed" in repr(proposal).splitlines()
    shown = {name for row in proposal.rows for name in row["names"]}
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed == shown
    for row in proposal.rows:
        stds = torch.stack([dict(model.named_parameters())[name].std() for name in row["names"]])
        assert stds.square().mean().sqrt().item() == pytest.approx(row["proposed"], rel=1e-3)
    with pytest.raises(ConfigError, match="was applied to NanoGPT already"):
        proposal.apply()


def test_a_trained_model_is_refused() -> None:
    model = nanogpt("nanogpt-no-depth-scale")
    model.iter_num = 5
    with pytest.raises(RecipeError, match=r"NanoGPT was trained \(5 steps\): fix changes inits"):
        initlab.fix(model, **QUICK)
    model.iter_num = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = torch.arange(64).repeat(4, 1)
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(ids[:, :-1], ids[:, 1:])[1]
        loss.backward()
        optimizer.step()
    before = weights(model)
    with pytest.raises(RecipeError, match=r"was trained \(its loss is \d\.\d\d, ln V 5\.55\)"):
        initlab.fix(model, (ids[:, :-1], ids[:, 1:]), apply=True)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


class Detached(initlab.NanoGPT):
    """Its last block is cut off from the loss."""

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        self.transformer.h[1].mlp.register_forward_hook(lambda module, args, out: out.detach())
        return super().forward(idx, targets)


def test_what_no_init_can_clear_is_said() -> None:
    model = Detached(initlab.NanoGPTConfig(**SIZES))
    proposal = initlab.fix(model, **QUICK)
    assert [finding.code for finding in proposal.left] == ["GRD001"]
    assert proposal.rows == []
    text = " ".join(repr(proposal).split())
    assert "No change of the init that was tried clears that." in text
    assert "GRD001: check that transformer.h.1.ln_2.weight is used in the forward pass and not detached" in text


def test_a_gain_of_zero_that_shuts_a_branch_off_is_set_to_one() -> None:
    model = nanogpt()
    nn.init.zeros_(model.transformer.h[1].ln_2.weight)
    nn.init.zeros_(model.transformer.ln_f.weight)
    proposal = initlab.fix(model, **QUICK)
    assert "GRD001" in failing(proposal.before)
    assert {row["how"] for row in proposal.rows} == {"set to 1"}
    assert {name for row in proposal.rows for name in row["names"]} >= {"transformer.ln_f.weight"}
    assert "GRD001" not in {finding.code for finding in proposal.left}


class Twice(nn.Module):
    """A GPT-2 of another layout."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nanogpt()
        self.config = self.inner.config

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        logits = self.inner(idx, idx)[0]
        assert isinstance(logits, torch.Tensor)
        return logits


def test_weights_that_are_no_numbers_are_drawn_anew() -> None:
    model = Twice()
    with torch.no_grad():
        model.inner.transformer.h[2].mlp.c_fc.weight[0, 0] = math.nan
    proposal = initlab.fix(model, **QUICK)
    assert [(row["role"], row["names"], row["code"]) for row in proposal.rows] == [
        ("mlp_in", ["inner.transformer.h.2.mlp.c_fc.weight"], "NUM001")
    ]
    assert proposal.left == []
    assert "not finite" in repr(proposal)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.h.0.attn.c_attn.weight", "ln_f.weight"])
def test_a_model_that_is_nowhere_finite_is_judged_and_mended(name: str, value: float) -> None:
    model = nanogpt()
    for each, parameter in model.named_parameters():
        if each.endswith(name):
            nn.init.constant_(parameter, value)
    proposal = initlab.fix(model, **QUICK)
    assert failing(proposal.before) & {"NUM001", "LOG001"}
    assert not {finding.code for finding in proposal.left} & {"NUM001"}


def test_a_compiled_model_is_mended_through_its_original() -> None:
    model = nanogpt("torch-default")
    initlab.fix(torch.compile(model, backend="eager"), apply=True, **QUICK)  # type: ignore[arg-type]
    assert not failing(initlab.probe(model, **QUICK))


def test_a_function_is_called_and_the_model_that_it_made_is_mended() -> None:
    def make() -> nn.Module:
        model = nanogpt()
        model.transformer.h[1].mlp.c_fc.weight.data.mul_(8)
        return model

    proposal = initlab.fix(make, apply=True, **QUICK)
    assert isinstance(proposal.model, initlab.NanoGPT)
    assert not failing(initlab.probe(proposal.model, **QUICK))
    with pytest.raises(ProbeError, match=r"expected a torch\.nn\.Module"):
        initlab.fix(lambda: None)  # type: ignore[arg-type, return-value]


def test_a_change_that_raises_half_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nanogpt("nanogpt-no-depth-scale")
    proposal = initlab.fix(model, **QUICK)
    assert len(proposal.changes) == 2
    before, done = weights(model), list[str]()

    def rescale(target: nn.Module, names: tuple[str, ...], *more: Any) -> None:
        target.get_parameter(names[0]).data.zero_()
        done.append(names[0])
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("initlab.drawing.edits.rescale", rescale)
    monkeypatch.setattr("initlab.drawing.edits.redraw", rescale)
    with pytest.raises(KeyboardInterrupt):
        proposal.apply()
    assert len(done) == 2 and not proposal.applied
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_model_that_cant_be_copied_is_refused_with_the_reason() -> None:
    model = nanogpt("torch-default")
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"NanoGPT can't be copied \(TypeError: .*copy.deepcopy"):
        initlab.fix(model, **QUICK)


def test_the_text_is_as_wide_as_the_terminal_or_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    proposal = initlab.fix(nanogpt("torch-default"), **QUICK)
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, repr(proposal).splitlines())) <= 60
    monkeypatch.setenv("COLUMNS", "200")
    text = repr(proposal)
    assert 80 < max(map(len, text.splitlines())) <= 100
    for part in ("as found", "EMB001", "std found", "std proposed", "Afterwards, measured on a copy: every check"):
        assert part in text


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(
        "import initlab\n\n\ndef make():\n"
        f"    model = initlab.NanoGPT(initlab.NanoGPTConfig(**{SIZES}))\n"
        "    initlab.apply_recipe(model, 'torch-default')\n    return model\n"
    )
    return f"{tmp_path / 'mine.py'}:make"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_shows_and_saves(factory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "weights.pt"
    code, out, err = run(capsys, "fix", factory, "--data", "uniform", "--save", str(target))
    assert code == 0
    assert "pos_embed" in out
    assert out.splitlines()[-1] == f"weights  {target}"
    assert err == "initlab: measuring NanoGPT and changed copies of it\n"
    model = initlab.NanoGPT(initlab.NanoGPTConfig(**SIZES))
    model.load_state_dict(torch.load(target, weights_only=True))
    assert not failing(initlab.probe(model, **QUICK))
    code, _, err = run(capsys, "fix", factory, "--save", str(target))
    assert code == 2
    assert "it exists already" in err


def test_the_command_speaks_json_and_fails_on_what_stays(
    factory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "fix", factory, "--data", "uniform", "--format", "json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert code == 0
    assert found["changes"][0]["role"] == "pos_embed"
    assert found["left"] == []
    code, out, _ = run(capsys, "fix", factory, "--data", "uniform", "--format", "jsonl")
    assert code == 0  # of what stays; said is what there was
    assert {each["code"] for each in found["problems"]} <= {json.loads(line)["code"] for line in out.splitlines()}
    # a declared recipe that itself drowns the tokens
    arguments = ["fix", factory, "--recipe", "torch-default", "--data", "uniform"]
    code, out, _ = run(capsys, *arguments)
    assert code == 1
    assert "No change of the init that was tried clears that." in out
    assert run(capsys, *arguments, "--fail-on", "never")[0] == 0
    code, _, err = run(capsys, "fix", factory, "--save", str(tmp_path / "none" / "w.pt"))
    assert code == 2
    assert "there is no folder" in err
