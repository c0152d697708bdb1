"""The residual stream of models that nobody described, found and proved."""

from functools import partial

import pytest
import torch
from measure_zoo import (
    ATTN_MLP,
    ZOO,
    Added,
    Balanced,
    D,
    Functional,
    Language,
    LayerScaled,
    Multiplied,
    Pre,
    SplitBranch,
    T,
    V,
)
from torch import nn

from initlab.anatomy.look import of
from initlab.anatomy.stream import find_stacks
from initlab.anatomy.trace import traced


def ids():
    return torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0))


def stacks_of(model, *args):
    args = args or (ids(),)
    return find_stacks(model, traced(model, lambda: model(*args)))


@pytest.mark.parametrize("name", ZOO)
def test_every_block_is_proved(name):
    torch.manual_seed(0)
    build, expected = ZOO[name]
    stacks = stacks_of(build())
    assert [stack.name for stack in stacks] == list(expected)
    for stack in stacks:
        assert stack.verified == 1, [block.note for block in stack.blocks]
        for block in stack.blocks:
            assert len(block.writes) == len(expected[stack.name])
            assert block.note == ""


@pytest.mark.parametrize("name", ZOO)
def test_the_decomposition_reproduces_the_block_from_its_parts(name):
    """Independently of how it was found: add up hooked tensors and compare with the block's output."""
    torch.manual_seed(0)
    model = ZOO[name][0]().eval()
    stacks = stacks_of(model)
    seen = {}

    def keep(path, module, args, kwargs, output):
        seen.setdefault(path, (next(iter([*args, *kwargs.values()]), None), output))

    for path, module in model.named_modules():
        module.register_forward_hook(partial(keep, path), with_kwargs=True)
    with torch.no_grad():
        model(ids())
    for stack in stacks:
        for block in stack.blocks:
            given, output = seen[block.name]
            output = (
                output["hidden_states"]
                if isinstance(output, dict)
                else output[0]
                if isinstance(output, tuple)
                else output
            )
            total = given
            for write in block.writes:
                part = seen[write.inner][1]
                if name == "post-norm":
                    continue
                total = total + write.scale * part.view_as(total)
            if name == "post-norm":
                first, second = (seen[write.inner][1] for write in block.writes)
                layer = model.get_submodule(block.name)
                total = layer.norm_2(layer.norm_1(given + first) + second)
            torch.testing.assert_close(total, output)


@pytest.mark.parametrize("name", ZOO)
def test_sites_are_named(name):
    torch.manual_seed(0)
    build, expected = ZOO[name]
    model = build()
    sites = of(model, lambda: model(ids())).sites
    wanted = [kinds for stack, kinds in expected.items() for _ in stacks_by_name(model)[stack].blocks]
    for layer, kinds in enumerate(wanted):
        found = [tap.site for tap in sites.taps if tap.layer == layer and tap.site.endswith("_out")]
        assert tuple(found) == kinds
    assert sites.n_embd == D


def stacks_by_name(model):
    return {stack.name: stack for stack in stacks_of(model)}


def test_a_residual_multiplier_is_found():
    torch.manual_seed(0)
    (stack,) = stacks_of(Language(Multiplied))
    for block in stack.blocks:
        assert [write.scale for write in block.writes] == pytest.approx([0.22, 0.22], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_scaled_skip_is_found(dtype):
    torch.manual_seed(0)
    model = Language(Balanced).to(dtype)
    (stack,) = stacks_of(model)
    assert stack.verified == 1
    rel = max(8 * torch.finfo(dtype).eps, 1e-9)
    for block in stack.blocks:
        assert block.skips == pytest.approx([0.5**0.5] * 2, rel=rel)
        assert [write.scale for write in block.writes] == pytest.approx([0.5**0.5] * 2, rel=2 * rel)
    sites = of(model, lambda: model(ids())).sites
    assert "writes scaled by 0.70" in sites.notes[0] and "skip scaled by 0.70" in sites.notes[0]


def test_a_scale_per_channel_is_found_and_given_as_its_effect_on_the_rms():
    torch.manual_seed(0)
    model = Language(LayerScaled)
    (stack,) = stacks_of(model)
    assert stack.verified == 1
    for block, layer in zip(stack.blocks, model.layers, strict=True):
        assert all(write.per_channel for write in block.writes)
        scales = [layer.scale_1.square().mean().sqrt().item(), layer.scale_2.square().mean().sqrt().item()]
        assert [write.scale for write in block.writes] == pytest.approx(scales, rel=0.1)
    sites = of(model, lambda: model(ids())).sites
    assert "(rms of one scale per channel)" in sites.notes[0]


def test_a_norm_in_a_class_name_doesnt_hide_a_write():
    torch.manual_seed(0)
    (stack,) = stacks_of(Language(Added))
    assert stack.verified == 1
    writes = [[write.inner.split(".", 2)[2] for write in block.writes] for block in stack.blocks]
    assert writes == [["attn.o_proj", "output.dense"]] * 3


def test_what_is_handed_on_isnt_a_sum():
    """With an input that is normal already, x - norm(x) is next to nothing, and would make a sum of any output."""
    torch.manual_seed(0)
    model = Language(Added)
    model.embed = nn.Sequential(model.embed, nn.LayerNorm(D))
    for layer in model.layers:
        layer.norm_1 = nn.LayerNorm(D)
    (stack,) = stacks_of(model)
    assert [write.scale for block in stack.blocks for write in block.writes] == [1.0] * 6


def test_a_branch_that_adds_up_its_own_parts_is_not_the_stream():
    torch.manual_seed(0)
    (stack,) = stacks_of(Language(SplitBranch))
    assert stack.verified == 1
    assert [write.module.split(".", 2)[2] for write in stack.blocks[0].writes] == ["attn", "mlp"]


def test_final_norm_is_the_one_that_reads_the_last_block():
    torch.manual_seed(0)
    (stack,) = stacks_of(Language(ZOO["parallel"][0]().layers[0].__class__))
    assert stack.final_norm == "norm"


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_torchs_own_encoder(norm_first, mode):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, 2, 64, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    getattr(model, mode)()
    (stack,) = stacks_of(model, torch.randn(2, T, D))
    assert stack.verified == 1
    assert [write.inner.split(".")[-1] for write in stack.blocks[0].writes] == ["self_attn", "linear2"]
    assert all(module.training == (mode == "train") for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    (stack,) = stacks_of(ZOO["pre-norm, gated, grouped queries"][0]().to(dtype))
    assert stack.verified == 1
    assert {write.scale for block in stack.blocks for write in block.writes} == {1.0}


def test_what_cant_be_explained_is_said_not_guessed():
    torch.manual_seed(0)
    model = Language(Functional)
    assert stacks_of(model) == []
    sites = of(model, lambda: model(ids())).sites
    assert sites.notes[0].startswith("no residual stream found")
    assert {tap.site for tap in sites.taps} == {"module"}


def test_a_stack_with_one_block_that_cant_be_explained_says_which():
    torch.manual_seed(0)
    model = ZOO["pre-norm, gated, grouped queries"][0]()
    model.layers[1] = Functional()
    (stack,) = stacks_of(model)
    assert [block.verified for block in stack.blocks] == [True, False, True]
    sites = of(model, lambda: model(ids())).sites
    assert any(note.startswith("layers.1: the block's output isn't its input plus") for note in sites.notes)


def test_zero_projections_are_seen_to_write():
    torch.manual_seed(0)
    model = ZOO["pre-norm, gated, grouped queries"][0]()
    with torch.no_grad():
        for layer in model.layers:
            layer.attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    (stack,) = stacks_of(model)
    assert stack.verified == 1
    assert [write.inner.split(".")[-1] for block in stack.blocks for write in block.writes] == [
        "o_proj",
        "down_proj",
    ] * 3


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)),
        nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))),
    ],
)
def test_a_model_without_a_stream_has_none(model):
    assert stacks_of(model, torch.randn(4, 8)) == []


def test_dropout_doesnt_hide_the_stream_and_random_state_is_left_to_the_caller():
    torch.manual_seed(0)
    model = ZOO["parallel"][0]()
    for layer in model.layers:
        layer.attn.o_proj = nn.Sequential(layer.attn.o_proj, nn.Dropout(0.5))
    model.train()
    (stack,) = stacks_of(model)
    assert stack.verified == 1 and model.training


def test_hooks_are_gone_also_after_a_failure():
    model = ZOO["parallel"][0]()
    with pytest.raises(IndexError):
        traced(model, lambda: model(torch.full((1, 4), V)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.training


def test_nothing_is_wired_to_names():
    """The same structure under names that say nothing; only the kind of a write is read from its name."""
    torch.manual_seed(0)

    class A(nn.Module):
        def __init__(self):
            super().__init__()
            self.aa, self.bb, self.cc = nn.LayerNorm(D), nn.Linear(D, 3 * D), nn.Linear(3 * D, D)
            self.dd, self.ee = nn.LayerNorm(D), nn.Linear(D, D)

        def forward(self, x):
            x = x + self.cc(self.bb(self.aa(x)).relu())
            return x + self.ee(self.dd(x))

    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.xx = nn.ModuleList([A(), A()])

        def forward(self, x):
            for block in self.xx:
                x = block(x)
            return x

    model = M()
    (stack,) = stacks_of(model, torch.randn(2, 5, D))
    assert [w.inner for w in stack.blocks[1].writes] == ["xx.1.cc", "xx.1.ee"]
    sites = of(model, lambda: model(torch.randn(2, 5, D))).sites
    assert tuple(tap.site for tap in sites.taps if tap.layer == 0 and tap.site.endswith("_out")) == ATTN_MLP


def test_the_width_is_the_streams_whatever_norms_a_block_holds():
    class Narrow(Pre):
        """Norms of queries, as Qwen3's, come first among the parameters."""

        def __init__(self):
            super().__init__()
            last = self._modules.copy()
            self._modules.clear()
            self.q_norm = nn.LayerNorm(8)
            self._modules.update(last)

    torch.manual_seed(0)
    model = Language(Narrow)
    assert of(model, lambda: model(ids())).sites.n_embd == D
