"""The table `wiring`, and that the rules which read it say nothing of sound models and name what is planted."""

from __future__ import annotations

import math
import types
from collections.abc import Callable

import pytest
import torch
from cells import as_before
from torch import Tensor, nn

import initlab
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
from tests.helpers.measure_zoo import ZOO, Block, D, Language, Post, Pre, Sandwich

pytestmark = pytest.mark.integration

# pre-norm toys whose head reads the stream itself, without a norm
BARE = ("one block three times", "encoder and decoder")


def verdicts(model: nn.Module) -> dict[str, initlab.results.Finding]:
    """What the rules about wiring have against a model, notes on positions aside: few toys have any."""
    found = initlab.probe(model.eval()).judge(select=["WIR"], ignore=["WIR008"])
    return {each.code: each for each in found if each.status == "fail"}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ZOO)
def test_nothing_is_said_of_sound_models(name: str) -> None:
    assert set(verdicts(ZOO[name][0]())) == ({"WIR003"} if name in BARE else set())


def hugging(name: str, auto: str = "AutoModelForCausalLM", **more: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
        sizes |= {"vocab_size": 64, "max_position_embeddings": 32, "pad_token_id": 0}
        config = transformers.AutoConfig.for_model(name, **sizes | {"bos_token_id": 1, "eos_token_id": 2} | more)
        return getattr(transformers, auto).from_config(config)

    return make


HUGGING = {
    "gpt2": hugging("gpt2"),
    "llama": hugging("llama"),
    "qwen3": hugging("qwen3", num_key_value_heads=2, head_dim=8),
    "gemma2": hugging("gemma2", num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8),
    "bert": hugging("bert", "AutoModelForMaskedLM"),
    "vit": hugging("vit", "AutoModelForImageClassification", image_size=16, patch_size=4),
    "t5": hugging("t5", "AutoModelForSeq2SeqLM", d_model=32, d_ff=64, d_kv=8, num_layers=4, num_heads=4),
    "mixtral": hugging("mixtral", num_key_value_heads=2, num_local_experts=4),
    "mamba": hugging("mamba"),
    "albert": hugging("albert", "AutoModelForMaskedLM", embedding_size=16),
    "falcon": hugging("falcon"),
    "gpt_neox": hugging("gpt_neox"),
    "bloom": hugging("bloom", n_layer=4, n_head=4),
    "opt": hugging("opt", ffn_dim=64, word_embed_proj_dim=32),
    "modernbert": hugging("modernbert", "AutoModelForMaskedLM"),
    "llama4": hugging("llama4_text", num_key_value_heads=2, head_dim=8, num_local_experts=2, intermediate_size_mlp=64),
}


@pytest.mark.parametrize("name", HUGGING)
def test_nothing_is_said_of_models_of_transformers(name: str) -> None:
    model = HUGGING[name]()
    found = initlab.probe(model.eval()).judge(select=["WIR"])
    assert [(each.code, each.message) for each in found if each.status == "fail"] == []


def test_a_row_says_what_a_branch_is() -> None:
    rows = initlab.probe(Language(Pre)).wiring
    assert rows[["layer", "site", "kind"]].to_numpy().tolist() == [
        [layer, *each] for layer in range(3) for each in (("attn_out", "attention"), ("mlp_out", "mlp"))
    ]
    attention, mlp = (rows.iloc[place] for place in (2, 3))
    assert (attention["module"], attention["norm"]) == ("layers.1.attn", "layers.1.norm_1")
    assert (attention["n_head"], attention["n_kv_head"], attention["head_size"]) == (4, 2, 8)
    assert attention["score_scale"] == pytest.approx(8**-0.5)
    assert (attention["causal"], attention["rotary"], attention["query"]) == (1, 0, "layers.1.attn.q_proj.weight")
    assert (mlp["activation"], mlp["gated"], mlp["keep"], mlp["scale"]) == ("silu", 1, 1.0, 1.0)
    assert set(rows["terms"]) == {"token"}
    assert set(rows["final_norm"]) == {"norm"} and set(rows["head"]) == {"head.weight"}


def test_every_kind_of_run_has_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    probe = initlab.probe(Language(Pre))
    assert len(initlab.load(probe.save(tmp_path)).wiring) == 6
    as_before(tmp_path)
    (tmp_path / "wiring.csv").unlink()  # as a run of before has none
    old = initlab.load(tmp_path)
    assert old.wiring.empty
    assert {each.status for each in old.judge(select=["WIR"])} == {"not_applicable"}
    compared = initlab.compare([lambda: Language(Pre)], seeds=2, stats="light")
    assert compared.wiring.groupby("run_id", observed=True).size().tolist() == [6, 6]


def nanogpt() -> NanoGPT:
    return NanoGPT(NanoGPTConfig(n_layer=4, n_head=2, n_embd=32, block_size=16, vocab_size=64))


def test_nanogpt_is_sound_and_read_anew_once_it_was_changed() -> None:
    model = nanogpt()
    assert verdicts(model) == {}
    model.transformer.h[2].ln_2 = nn.Identity()
    assert "no norm before transformer.h.2.mlp" in verdicts(model)["WIR001"].message


class Replacing(Pre):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return self.mlp(self.norm_2(x))


def test_a_missing_sum_is_an_error_with_its_block() -> None:
    model = Language(Pre)
    model.layers[1] = Replacing()
    finding = verdicts(model)["WIR002"]
    assert (finding.severity, finding.layer_first, finding.layer_last) == ("error", 1, 1)
    assert "layers.1.mlp" in finding.message and "x = x + layers.1.mlp(…)" in finding.advice


def test_sums_that_are_missing_in_every_block_are_seen() -> None:
    finding = verdicts(Language(Replacing))["WIR002"]
    assert (finding.severity, finding.layer_first, finding.layer_last) == ("warning", 0, 2)


class ReplacingSandwich(Sandwich):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm_3(self.attn(self.norm_1(x)))
        return self.norm_4(self.mlp(self.norm_2(x)))


class ReplacingPost(Post):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_1(x + self.attn(x))
        return self.norm_2(self.mlp(x))


@pytest.mark.parametrize(("sound", "broken"), [(Sandwich, ReplacingSandwich), (Post, ReplacingPost)])
def test_a_missing_sum_is_seen_through_the_norm_behind_it(sound: type[Block], broken: type[Block]) -> None:
    model = Language(sound)
    model.layers[1] = broken()
    found = verdicts(model)
    assert set(found) == {"WIR002"}
    assert (found["WIR002"].severity, found["WIR002"].layer_first, found["WIR002"].layer_last) == ("error", 1, 1)


class Never(Pre):
    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm_2(self.attn(self.norm_1(x))))


class NeverPost(Pre):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm_2(self.mlp(self.norm_1(self.attn(x))))


class MLPAlone(Pre):
    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class NeverInParallel(Pre):
    def forward(self, x: Tensor) -> Tensor:
        h = self.norm_1(x)
        return self.attn(h) + self.mlp(h)


@pytest.mark.parametrize(
    ("block", "named"),
    [
        (Never, "attn and layers.N.mlp"),
        (NeverPost, "attn and layers.N.mlp"),
        (MLPAlone, "attn"),
        (NeverInParallel, "attn and layers.N.mlp"),
    ],
)
def test_blocks_that_add_nothing_to_a_stream_are_still_blocks(block: type[Block], named: str) -> None:
    finding = verdicts(Language(block))["WIR002"]
    assert (finding.severity, finding.layer_first, finding.layer_last) == ("warning", 0, 2)
    assert f"What layers.N.{named} gives isn't added" in finding.message


def test_a_list_of_mlps_is_no_stack_of_blocks_without_residuals() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D), nn.GELU(), nn.Linear(D, D)) for _ in "abc"))
    found = initlab.probe(model, batch=torch.randn(4, 12, D)).judge(select=["WIR002"])
    assert [each.status for each in found] == ["not_applicable"]


class Conditioned(Block):
    """Scaled, shifted and gated by a condition, as in a diffusion transformer; the gates are shut at first."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(D, 6 * D)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(c)[:, None].chunk(6, -1)
        x = x + gate * self.attn(self.norm_1(x) * (1 + scale) + shift)
        return x + gate_2 * self.mlp(self.norm_2(x) * (1 + scale_2) + shift_2)


class ConditionedReplacing(Conditioned):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(c)[:, None].chunk(6, -1)
        x = x + gate * self.attn(self.norm_1(x) * (1 + scale) + shift)
        return gate_2 * self.mlp(self.norm_2(x) * (1 + scale_2) + shift_2)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classes, self.stem = nn.Embedding(4, D), nn.Linear(8, D)
        self.blocks = nn.ModuleList([Conditioned() for _ in range(3)])
        self.norm, self.final, self.head = nn.LayerNorm(D), nn.Linear(D, 2 * D), nn.Linear(D, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, c = self.stem(x), self.classes(y)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final(c)[:, None].chunk(2, -1)
        return self.head(self.norm(x) * (1 + scale) + shift)


def denoiser_verdicts(model: nn.Module) -> dict[str, initlab.results.Finding]:
    batch = {"x": torch.randn(4, 16, 8), "y": torch.randint(0, 4, (4,))}
    found = initlab.probe(model.eval(), batch=batch).judge(select=["WIR"])
    return {each.code: each for each in found if each.status == "fail"}


def test_branches_that_a_condition_scales_are_judged() -> None:
    model = Denoiser()
    assert denoiser_verdicts(model) == {}
    model.blocks[1] = ConditionedReplacing()
    assert set(denoiser_verdicts(model)) == {"WIR002"}


def test_a_final_norm_that_a_condition_shifts_is_missed_where_it_is_missing() -> None:
    model = Denoiser()
    model.norm = nn.Identity()
    assert set(denoiser_verdicts(model)) == {"WIR003"}


class Doubling(Pre):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + x + self.mlp(self.norm_2(x))


def test_a_stream_that_is_added_twice_in_one_block_is_twice_as_large() -> None:
    model = Language(Pre)
    model.layers[1] = Doubling()
    found = verdicts(model)
    assert list(found) == ["WIR001"] and found["WIR001"].layer_first == 1
    assert "where layers.1.mlp is added, the stream is multiplied with 2" in found["WIR001"].message


def test_a_missing_norm_is_named_with_what_the_others_have() -> None:
    model = Language(Pre)
    model.layers[1].norm_2 = nn.Identity()  # type: ignore[assignment]
    found = verdicts(model)
    assert list(found) == ["WIR001"]
    assert found["WIR001"].message == (
        "layers.1: no norm before layers.1.mlp; the other 2 blocks have one (layers.N.norm_2)"
    )


def test_a_missing_mask_is_an_error_where_others_have_one() -> None:
    model = Language(Pre)
    attention = model.layers[1].attn  # type: ignore[union-attr]
    plain = type(attention).forward
    attention.forward = types.MethodType(lambda self, x: plain(self, x, x), attention)
    assert verdicts(model)["WIR005"].severity == "error"


def test_one_frozen_block_is_odd_and_a_frozen_prefix_is_not() -> None:
    model = Language(Pre)
    model.layers[1].requires_grad_(False)
    assert verdicts(model)["WIR004"].message.startswith("No parameter of block 1 (layers.1) is trained")
    model.layers[0].requires_grad_(False)
    assert "WIR004" not in verdicts(model)


class Turning(nn.Module):
    """One attention with rotary tables made in the pass, of these angles."""

    def __init__(self, angle: float) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.angle = angle

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (each.view(B, T, 4, 8).transpose(1, 2) for each in self.qkv(self.norm(x)).split(32, -1))
        angles = self.angle * torch.arange(T)[:, None] * 100.0 ** (-torch.arange(8) % 4 / 4)
        q, k = (u * angles.cos() + torch.cat([-u[..., 4:], u[..., :4]], -1) * angles.sin() for u in (q, k))
        y = ((q @ k.mT / math.sqrt(8)).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).reshape(B, T, 32))


@pytest.mark.parametrize(("angle", "rotary"), [(1.0, 1), (0.0, 0)])
def test_a_rotation_by_nothing_is_none(angle: float, rotary: int) -> None:
    model = Language(lambda: Turning(angle))
    found = initlab.probe(model.eval())
    assert set(found.wiring["rotary"]) == {rotary}
    (finding,) = found.judge(select=["WIR008"])
    assert finding.status == ("pass" if rotary else "fail")
