"""Golden numbers come from karpathy/nanoGPT model.py at 3adf61e, run on the same inputs."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from dataclasses import FrozenInstanceError, asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from initlab.errors import CheckpointError, ConfigError
from initlab.models.config import ACTIVATIONS, PRESETS, NanoGPTConfig, heads
from initlab.models.nanogpt import NanoGPT

TINY = NanoGPTConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=48, block_size=16)


def ids(vocab_size: int = TINY.vocab_size) -> tuple[torch.Tensor, torch.Tensor]:
    idx = (torch.arange(2 * 16) * 7 % vocab_size).view(2, 16)
    return idx, (idx * 5 + 3) % vocab_size


def build(config: NanoGPTConfig = TINY, seed: int = 0) -> NanoGPT:
    torch.manual_seed(seed)
    return NanoGPT(config)


def checkpoint(model: NanoGPT, prefix: str = "") -> dict[str, Any]:
    """The dict that nanoGPT's train.py saves."""
    args = asdict(model.config)
    del args["activation"], args["tie_weights"]
    return {
        "model": OrderedDict((prefix + name, value) for name, value in model.state_dict().items()),
        "optimizer": torch.optim.AdamW(model.decay_groups(0.1)).state_dict(),
        "model_args": args,
        "iter_num": 7,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char", "learning_rate": 1e-3},
    }


def test_weights_are_nanogpts_for_the_same_seed() -> None:
    state = build(seed=1337).state_dict()
    golden = {  # sum of |w|, first, last
        "transformer.wte.weight": (24.935460188300567, 0.023530689999461174, 0.007702890317887068),
        "transformer.wpe.weight": (8.381924517291282, -0.0037871829699724913, 0.0013574069598689675),
        "transformer.h.0.attn.c_attn.weight": (48.73200658046812, 0.016625916585326195, 0.022705400362610817),
        "transformer.h.1.attn.c_proj.weight": (8.227342977206945, -0.021002812311053276, -0.008775425143539906),
        "transformer.h.1.mlp.c_fc.weight": (65.35513668679914, -0.022835714742541313, 0.0016110573196783662),
        "transformer.h.1.mlp.c_proj.weight": (32.552161184821585, 0.001205225009471178, -0.008830673061311245),
    }
    for name, expected in golden.items():
        w = state[name].double().flatten()
        # Not to the bit: vectorised CPU kernels of the normal draw differ in the last digit.
        assert (w.abs().sum().item(), w[0].item(), w[-1].item()) == pytest.approx(expected, rel=1e-5), name


@pytest.mark.parametrize(
    ("bias", "loss", "last", "inner", "mean_square", "grad_norm"),
    [
        (
            True,
            4.4492518816259805,
            [1.3444515994195794, -1.4933709597403904, 1.3961172284993861],
            [1.874999316682658, -1.7714575227317255],
            1.667381083653644,
            0.5002959682901095,
        ),
        (
            False,
            4.029538735306242,
            [0.6539633615642797, -0.445070939045826, 0.16281128763182273],
            [1.1374714408241409, -0.8098381505746127],
            0.5826620238575929,
            1.1652070691418404,
        ),
    ],
)
def test_arithmetic_is_nanogpts(
    bias: bool, loss: float, last: list[float], inner: list[float], mean_square: float, grad_norm: float
) -> None:
    model = build(replace(TINY, bias=bias)).double()
    with torch.no_grad():  # from sines, so that no version of an RNG matters
        for i, p in enumerate(model.parameters()):
            wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * 0.7 + i).view_as(p)
            p.copy_(1 + 0.1 * wave if p.dim() == 1 else 0.3 * wave)
    idx, targets = ids()
    targets[0, :4] = -1  # left out of the loss
    logits, found = model(idx, targets)
    assert found.item() == pytest.approx(loss, rel=1e-9)
    assert logits[0, -1, :3].tolist() == pytest.approx(last, rel=1e-8)
    assert logits[1, 3, -2:].tolist() == pytest.approx(inner, rel=1e-8)
    assert logits.square().mean().item() == pytest.approx(mean_square, rel=1e-9)
    found.backward()
    grad = model.get_parameter("transformer.h.0.attn.c_attn.weight").grad
    assert grad is not None
    assert grad.norm().item() == pytest.approx(grad_norm, rel=1e-8)


def test_state_dict_keys_and_tied_name() -> None:
    keys = list(build(replace(TINY, n_layer=1)).state_dict())
    block = [f"{m}.{p}" for m in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj") for p in "wb"]
    names = [f"transformer.h.0.{b[:-1]}{'weight' if b[-1] == 'w' else 'bias'}" for b in block]
    outer = ["transformer.wte.weight", "transformer.wpe.weight"]
    assert keys == [*outer, *names, "transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight"]

    parameters = [name for name, _ in build().named_parameters()]
    assert parameters[0] == "transformer.wte.weight"
    assert "lm_head.weight" not in parameters


def test_init_scales() -> None:
    model = build(NanoGPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=64, vocab_size=200, tie_weights=False))
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert (p == (1 if name.endswith("weight") else 0)).all(), name
        else:
            std = 0.02 / math.sqrt(2 * 4) if name.endswith("c_proj.weight") else 0.02
            assert p.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * p.numel())), name
    assert not torch.equal(model.lm_head.weight, model.transformer.wte.weight)


def test_presets() -> None:
    assert build(PRESETS["shakespeare-cpu"]).num_params() == 804_096
    assert PRESETS["shakespeare"].dropout == 0.2
    with torch.device("meta"):
        model = NanoGPT(PRESETS["gpt2"])
    assert model.num_params() == 124_373_760
    assert model.num_params(non_embedding=True) == 124_373_760 - 1024 * 768
    untied = build(replace(TINY, tie_weights=False))
    assert untied.num_params(non_embedding=True) == build().num_params(non_embedding=True)


def test_config_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        TINY.n_layer = 3  # type: ignore[misc]


def test_heads_keep_their_size_at_another_width_or_have_the_next_smaller_that_divides_it() -> None:
    config = NanoGPTConfig(n_layer=2, n_embd=64, n_head=4)
    assert config.resized() == config and config.resized(n_layer=5) == replace(config, n_layer=5)
    assert [config.resized(n_embd=width).n_head for width in (32, 64, 256, 24, 36)] == [2, 4, 16, 2, 3]
    assert [heads(width) for width in (768, 1600, 384, 100, 32, 7)] == [12, 25, 6, 2, 1, 1]
    with pytest.raises(ConfigError, match="n_embd 97 has no divisor between 16 and 64 for a head size; give n_head"):
        heads(97)
    with pytest.raises(ConfigError, match=r"n_embd is 32\.0; expected a positive integer"):
        config.resized(n_embd=32.0)  # type: ignore[arg-type]


def test_a_vocabulary_that_nobody_gave_is_gpt2s() -> None:
    model = build(NanoGPTConfig(n_layer=1, n_embd=8, n_head=1, block_size=4))
    assert model.config.vocab_size == model.lm_head.out_features == 50304


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layer": 0}, r"n_layer is 0; expected a positive integer"),
        ({"vocab_size": -5}, r"vocab_size is -5"),
        ({"block_size": 16.0}, r"block_size is 16\.0"),
        ({"n_embd": 100, "n_head": 12}, r"n_embd 100 .* n_head 12; nearest that fit: n_head 10, or n_embd 96"),
        ({"n_embd": 4, "n_head": 12}, r"n_head 4, or n_embd 12"),
        ({"dropout": 1.0}, r"dropout is 1\.0"),
        ({"dropout": math.nan}, r"dropout is nan"),
        ({"activation": "swish"}, r"unknown activation 'swish'; expected one of gelu, gelu_tanh, relu, relu2, silu"),
    ],
)
def test_config_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


def test_without_targets_only_the_last_position() -> None:
    model = build()
    idx, targets = ids()
    everywhere, loss = model(idx, targets)
    last, none = model(idx)
    assert everywhere.shape == (2, 16, 48)
    assert loss.item() == pytest.approx(F.cross_entropy(everywhere.view(-1, 48), targets.view(-1)).item())
    assert none is None
    torch.testing.assert_close(last, everywhere[:, -1:])


def test_targets_may_be_a_slice() -> None:
    ids_and_next = torch.randint(48, (2, 17), generator=torch.Generator().manual_seed(0))
    assert build()(ids_and_next[:, :-1], ids_and_next[:, 1:])[1].isfinite()


def test_too_long_a_sequence() -> None:
    with pytest.raises(ConfigError, match=r"17 tokens .* block_size 16"):
        build()(torch.zeros(1, 17, dtype=torch.long))


def test_causal() -> None:
    model = build()
    idx, targets = ids()
    before = model(idx, targets)[0]
    idx[:, 9] = (idx[:, 9] + 1) % 48
    after = model(idx, targets)[0]
    torch.testing.assert_close(after[:, :9], before[:, :9])
    assert not torch.equal(after[:, 9:], before[:, 9:])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_enters_each_module_is_what_its_name_says(activation: str) -> None:
    reference = {
        "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
        "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "relu": lambda x: x.clamp(min=0),
        "relu2": lambda x: x.clamp(min=0) ** 2,
        "silu": lambda x: x / (1 + torch.exp(-x)),
    }[activation]
    model = build(replace(TINY, activation=activation))
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, x, y, name=name: seen.update({name: (x[0], y)}))
    model(*ids())

    h = "transformer.h.1."
    assert seen[h + "mlp.c_proj"][0] is seen[h + "mlp.gelu"][1]
    torch.testing.assert_close(seen[h + "mlp.gelu"][1], reference(seen[h + "mlp.c_fc"][1]), rtol=1e-5, atol=1e-7)
    stream = seen[h[:-1]][0]
    assert stream is seen["transformer.h.0"][1]
    assert stream is seen[h + "ln_1"][0]
    torch.testing.assert_close(seen[h + "ln_2"][0], stream + seen[h + "attn"][1])
    torch.testing.assert_close(seen[h[:-1]][1], seen[h + "ln_2"][0] + seen[h + "mlp"][1])
    assert seen["transformer.h.0"][0] is seen["transformer.drop"][1]


def test_dropout_only_in_training() -> None:
    model = build(replace(TINY, dropout=0.5))
    idx, targets = ids()
    assert model(idx, targets)[1] != model(idx, targets)[1]
    model.eval()
    assert model(idx, targets)[1] == model(idx, targets)[1]


def test_decay_groups() -> None:
    model = build()
    model.transformer.wpe.weight.requires_grad_(False)
    decay, rest = model.decay_groups(0.1)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in decay["params"]} == {2}
    assert {p.dim() for p in rest["params"]} == {1}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in itertools.chain(decay["params"], rest["params"])} == trained


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
def test_checkpoint_round_trip(tmp_path: Path, prefix: str, bias: bool) -> None:
    model = build(replace(TINY, bias=bias, dropout=0.1))
    saved = checkpoint(model, prefix)
    saved["model"][f"{prefix}transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16).tril()  # mask of old checkpoints
    torch.save(saved, tmp_path / "ckpt.pt")

    torch.manual_seed(3)
    state = torch.get_rng_state()
    loaded = NanoGPT.from_checkpoint(tmp_path / "ckpt.pt")
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.config == model.config
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert NanoGPT.from_checkpoint(str(tmp_path / "ckpt.pt"), dropout=0.0).config.dropout == 0
    with pytest.raises(ConfigError, match="dropout is 2"):
        NanoGPT.from_checkpoint(tmp_path / "ckpt.pt", dropout=2)


def test_checkpoint_tells_tied_from_untied(tmp_path: Path) -> None:
    untied = build(replace(TINY, tie_weights=False))
    torch.save(checkpoint(untied), tmp_path / "untied.pt")
    assert not NanoGPT.from_checkpoint(tmp_path / "untied.pt").config.tie_weights

    diverged = build()
    with torch.no_grad():
        diverged.lm_head.weight[3] = math.nan
    torch.save(checkpoint(diverged), tmp_path / "diverged.pt")
    assert NanoGPT.from_checkpoint(tmp_path / "diverged.pt").config.tie_weights

    saved = checkpoint(untied)
    saved["model_args"]["tie_weights"] = True
    torch.save(saved, tmp_path / "contradiction.pt")
    with pytest.raises(CheckpointError, match="say the head is tied, but"):
        NanoGPT.from_checkpoint(tmp_path / "contradiction.pt")


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1 / 0",)


def _drop(saved: dict[str, Any], *path: str) -> None:
    for key in path[:-1]:
        saved = saved[key]
    del saved[path[-1]]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: _drop(s, "model_args"), r"isn't a nanoGPT checkpoint: its keys are best_val_loss, .*2 more"),
        (lambda s: s.update(model=torch.ones(3)), r"isn't a nanoGPT checkpoint"),
        (lambda s: _drop(s, "model_args", "n_head"), r"model_args lack n_head and have unknown none"),
        (lambda s: s["model_args"].update(n_experts=1), r"model_args lack none and have unknown n_experts"),
        (lambda s: s["model_args"].update(n_head=3), r"describe no model .*n_embd 32 .* n_head 3"),
        (lambda s: s["model_args"].update(dropout="none"), r"describe no model"),
        (lambda s: _drop(s, "model", "transformer.h.1.ln_2.bias"), r"h\.1\.ln_2\.bias found none, expected \(32,\)"),
        (lambda s: _drop(s, "model", "lm_head.weight"), r"lm_head\.weight found none, expected \(48, 32\)"),
        (lambda s: s["model_args"].update(bias=False), r"attn\.c_attn\.bias found \(96,\), expected none; .*more"),
        (lambda s: s["model_args"].update(block_size=8), r"wpe\.weight found \(16, 32\), expected \(8, 32\)$"),
        (lambda s: s["model"].update({"lm_head.weight": 1}), r"lm_head\.weight found \('no tensor',\)"),
        (lambda s: s.update(config=Fraction(1, 2)), r"objects .*\(fractions\.Fraction\), which could run code"),
        (lambda s: s.update(config=RunsCode()), r"objects .*\((\S*\.)?eval\), which could run code"),
    ],
)
def test_checkpoint_refused(tmp_path: Path, damage: Any, message: str) -> None:
    saved = checkpoint(build())
    damage(saved)
    torch.save(saved, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match=message):
        NanoGPT.from_checkpoint(tmp_path / "ckpt.pt")


def test_checkpoint_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*ckpt\.pt"):
        NanoGPT.from_checkpoint(path)
    torch.save(checkpoint(build()), path)
    whole = path.read_bytes()
    for content in (b"", b"not a checkpoint", bytes(range(256)) * 8, whole[: len(whole) // 2], whole[100:]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="can't be read as a torch checkpoint"):
            NanoGPT.from_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds a list; expected a dict"):
        NanoGPT.from_checkpoint(path)


def test_bf16_autocast() -> None:
    model = build()
    idx, targets = ids()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, loss = model(idx, targets)
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert loss.item() == pytest.approx(model(idx, targets)[1].item(), abs=0.01)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what the compiler's own dependencies warn about isn't ours
def test_compiles_without_graph_breaks() -> None:
    model = build()
    idx, targets = ids()
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(idx, targets), model(idx, targets), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_cpu() -> None:
    model = build()
    idx, targets = ids()
    logits, loss = model(idx, targets)
    model.cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        low = model(idx.cuda(), targets.cuda())[1]
    on_gpu = model(idx.cuda(), targets.cuda())
    torch.testing.assert_close(on_gpu[0].cpu(), logits, rtol=1e-3, atol=1e-4)
    assert on_gpu[1].item() == pytest.approx(loss.item(), abs=1e-3)
    assert low.item() == pytest.approx(loss.item(), abs=0.02)
