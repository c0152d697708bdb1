"""What the code that made a model did, heard by `trace`."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import initlab
from initlab.drawing.tracing import trace, writes_of
from initlab.errors import ConfigError, ProbeError
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
from initlab.schema import WRITES

pytestmark = pytest.mark.integration

SMALL = NanoGPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=64)


class Norm(nn.Module):
    def __init__(self, size: int, empty: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size) if empty else torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Block(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.norm, self.up, self.down = Norm(size), nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return out


class Tower(nn.Module):
    def __init__(self, size: int = 16, depth: int = 3, *, tied: bool = False):
        super().__init__()
        self.tok = nn.Embedding(32, size)
        self.blocks = nn.ModuleList(Block(size) for _ in range(depth))
        self.head = nn.Linear(size, 32, bias=False)
        if tied:
            self.head.weight = self.tok.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok(ids)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


def blanket(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, 0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def drawn(**options: Any) -> Tower:
    model = Tower(**options)
    blanket(model)
    return model


def of(factory: Callable[[], Any], name: str) -> pd.DataFrame:
    writes = initlab.trace_init(factory, seed=0).writes
    return writes[writes["parameter"] == name]


def failed(factory: Callable[[], Any]) -> dict[str, initlab.judge.rules.Finding]:  # type: ignore[name-defined]
    return {f.code: f for f in initlab.trace_init(factory, seed=0).findings if f.status == "fail"}


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)


@pytest.mark.parametrize("factory", [lambda: NanoGPT(SMALL), drawn, lambda: drawn(tied=True), encoder])
def test_nothing_is_drawn_otherwise_than_without(factory: Callable[[], nn.Module]) -> None:
    torch.manual_seed(3)
    plain, state = factory(), torch.get_rng_state()
    torch.manual_seed(3)
    traced = trace(factory).model
    assert torch.equal(state, torch.get_rng_state())
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), traced.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("kind", ["GPT2", "Llama", "Bert"])
def test_nor_are_those_of_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 64}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    cls = getattr(transformers, {"GPT2": "GPT2LMHeadModel", "Bert": "BertForMaskedLM"}.get(kind, f"{kind}ForCausalLM"))
    torch.manual_seed(3)
    plain = cls(config)
    torch.manual_seed(3)
    found = initlab.trace_init(cls, config)
    pairs = zip(plain.state_dict().values(), found.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert [f.message for f in found.findings if f.status == "fail"] == []


def test_a_draw_has_its_line_its_function_and_its_numbers() -> None:
    rows = of(drawn, "blocks.0.up.weight")
    assert list(rows["operation"]) == ["kaiming_uniform_", "normal_"] and list(rows["by"]) == ["default", "code"]
    last = rows.iloc[-1]
    line = blanket.__code__.co_firstlineno + 3
    assert last["where"].endswith(f"{Path(__file__).name}:{line} blanket")
    assert (last["text"], last["mean"], last["std"], last["share"]) == ("normal(0, 0.02)", 0.0, 0.02, 1.0)
    first = rows.iloc[0]
    assert first["where"].endswith(" Block.__init__") and first["text"] == "uniform(-0.25, 0.25)"
    assert list(rows.columns) == list(WRITES)


def assigned(model: nn.Linear) -> None:
    model.weight.data = torch.randn(4, 4) * 0.02


def made_anew(model: nn.Linear) -> None:
    model.weight = nn.Parameter(0.1 * (2 * torch.rand(4, 4) - 1))


def copied(model: nn.Linear) -> None:
    with torch.no_grad():
        model.weight.copy_(torch.full((4, 4), 0.5))


def loaded(model: nn.Linear) -> None:
    model.load_state_dict({"weight": torch.eye(4), "bias": torch.zeros(4)})


def from_numpy(model: nn.Linear) -> None:
    model.weight.data.copy_(torch.from_numpy(np.ones((4, 4))))


def scaled(model: nn.Linear) -> None:
    with torch.no_grad():
        nn.init.normal_(model.weight)
        model.weight *= 0.5
        model.weight.div_(torch.tensor(10.0))


def cut(model: nn.Linear) -> None:
    nn.init.trunc_normal_(model.weight, std=0.02, a=-0.04, b=0.04)


def by_quantiles(model: nn.Linear) -> None:
    with torch.no_grad():
        model.weight.uniform_(-0.9, 0.9).erfinv_().mul_(0.02 * math.sqrt(2)).clamp_(-0.04, 0.04)


def orthogonal(model: nn.Linear) -> None:
    nn.init.orthogonal_(model.weight)


@pytest.mark.parametrize(
    ("init", "operation", "text"),
    [
        (assigned, "mul", "normal(0, 0.02)"),
        (made_anew, "mul", "uniform(-0.1, 0.1)"),
        (copied, "copy_", "0.5"),
        (loaded, "load_state_dict", "computed"),
        (from_numpy, "copy_", "given"),
        (scaled, "div_", "normal(0, 0.05)"),
        (cut, "trunc_normal_", "cut normal(0, 0.02)"),
        (by_quantiles, "clamp_", "cut normal(0, 0.02)"),
        (orthogonal, "orthogonal_", "orthogonal"),
    ],
)
def test_every_way_to_write_is_heard(init: Callable[[nn.Linear], None], operation: str, text: str) -> None:
    def make() -> nn.Linear:
        model = nn.Linear(4, 4)
        init(model)
        return model

    last = of(make, "weight").iloc[-1]
    assert (last["operation"], last["text"]) == (operation, text)
    assert last["where"].endswith(f" {init.__name__}") and last["by"] == "code"


def test_a_scaling_keeps_its_factor_and_a_slice_its_share() -> None:
    def make() -> nn.Embedding:
        model = nn.Embedding(8, 4, padding_idx=0)
        with torch.no_grad():
            model.weight.mul_(0.5)
            model.weight[-2:].normal_(0.0, 3.0)
        return model

    rows = of(make, "weight")
    assert list(rows["share"]) == [1.0, 0.125, 1.0, 0.25]
    assert list(rows["factor"].dropna()) == [0.5]
    assert rows.iloc[-1]["text"] == "normal(0, 3)"


def test_a_function_that_writes_one_tensor_is_named_and_its_caller_decides() -> None:
    def lecun_(tensor: Tensor, gain: float) -> None:
        with torch.no_grad():
            tensor.normal_(0.0, gain / math.sqrt(tensor.shape[1]))

    def make() -> nn.Linear:
        model = nn.Linear(16, 4)
        lecun_(model.weight, 2.0)
        return model

    last = of(make, "weight").iloc[-1]
    assert (last["operation"], last["arguments"], last["std"]) == ("lecun_", "gain=2", 0.5)
    assert last["where"].endswith(" make")


def test_what_was_never_written_is_nan_and_named() -> None:
    def make() -> nn.Module:
        model = drawn()
        model.last = Norm(16, empty=True)
        return model

    found = initlab.trace_init(make)
    assert found.model.last.weight.isnan().all()
    (finding,) = [f for f in found.findings if f.status == "fail"]
    assert (finding.code, finding.severity) == ("DRW001", "error") and "last.weight" in finding.message


def test_memory_that_is_no_parameter_is_zero_afterwards() -> None:
    class Cached(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.register_buffer("cache", torch.empty(3, 4), persistent=False)
            self.plain = torch.empty(5)
            self.places = torch.empty(5, dtype=torch.long)

    found = initlab.trace_init(Cached)
    assert not found.model.cache.any() and not found.model.plain.any()
    (finding,) = [f for f in found.findings if f.status == "fail"]
    assert (finding.code, finding.severity) == ("DRW001", "warning")


def test_what_to_empty_lost_is_told_with_the_line_that_drew_it() -> None:
    def make() -> nn.Module:
        with torch.device("meta"):
            model = drawn(tied=True)
        model.to_empty(device="cpu")
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, 0.0, 0.02)
        return model

    found = failed(make)
    assert "blocks.0.norm.weight" in found["DRW001"].message and "was lost" in found["DRW001"].message
    assert "head.weight was one tensor with tok.weight" in found["DRW005"].message


def test_what_is_still_on_meta_is_told() -> None:
    def make() -> nn.Module:
        with torch.device("meta"):
            return drawn()

    assert "on the meta device" in failed(make)["DRW001"].message


def test_a_blanket_init_that_runs_last_is_told_and_one_that_runs_first_is_not() -> None:
    def make(last: bool) -> nn.Module:
        model = Tower()

        def set_apart() -> None:
            for block in model.blocks:
                nn.init.zeros_(block.down.weight)

        steps = [set_apart, lambda: blanket(model)]
        for step in steps if last else reversed(steps):
            step()
        return model

    finding = failed(lambda: make(True))["DRW003"]
    assert finding.severity == "warning" and "blocks.*.down.weight (3)" in finding.message
    assert "set_apart" in finding.message and "blanket" in finding.message
    assert failed(lambda: make(False)) == {}


def test_torch_defaults_over_an_explicit_init_are_told() -> None:
    def make() -> nn.Module:
        model = drawn()
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.reset_parameters()
        return model

    assert "torch's own init" in failed(make)["DRW003"].message


def test_matrices_that_the_init_misses_are_told() -> None:
    def make() -> nn.Module:
        model = Tower(depth=4)
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and not name.endswith("down"):
                nn.init.normal_(module.weight, 0.0, 0.02)
        return model

    finding = failed(make)["DRW002"]
    assert finding.severity == "warning" and "blocks.*.down.weight (4)" in finding.message
    assert failed(Tower) == {}  # nothing was drawn by the code: that is a choice


def test_a_factor_that_counts_twice_is_told() -> None:
    def make(std: float, times: int) -> nn.Module:
        model = drawn(depth=4)
        for block in model.blocks:
            nn.init.normal_(block.down.weight, 0.0, std)
            for _ in range(times):
                block.down.weight.data.mul_(1 / math.sqrt(8))
        return model

    assert "its std" in failed(lambda: make(0.02 / math.sqrt(8), 1))["DRW004"].message
    assert "and again" in failed(lambda: make(0.02, 2))["DRW004"].message
    assert failed(lambda: make(0.02, 1)) == failed(lambda: make(0.02 / math.sqrt(8), 0)) == {}


def test_a_tied_matrix_that_is_drawn_by_both_names_is_told() -> None:
    def make(std: float) -> nn.Module:
        model = Tower(tied=True)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, 0.0, std if isinstance(module, nn.Embedding) else 0.02)
        return model

    assert "tok.weight = head.weight" in failed(lambda: make(1.0))["DRW005"].message
    assert failed(lambda: make(0.02)) == {}


def test_rows_at_another_scale_are_told() -> None:
    def make(std: float) -> nn.Module:
        model = drawn()
        with torch.no_grad():
            model.tok.weight[-4:] = torch.randn(4, 16) * std
        return model

    assert "12.5% of tok.weight" in failed(lambda: make(1.0))["DRW006"].message
    assert failed(lambda: make(0.02)) == {}


def test_a_matrix_that_is_drawn_part_by_part_is_drawn() -> None:
    """As q, k and v of a fused matrix, or experts one by one: nothing of the first draw is left."""

    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(16, 48), nn.Linear(48, 16), nn.Linear(16, 16), nn.Linear(16, 16))
        for linear in (model[1], model[2], model[3]):
            nn.init.normal_(linear.weight, std=0.02)
        with torch.no_grad():
            for part in model[0].weight.chunk(3):
                part.normal_(std=0.02)
        return model

    assert not failed(make).keys() & {"DRW002", "DRW006"}


def test_a_depth_factor_on_every_matrix_is_told() -> None:
    def make(everywhere: bool) -> nn.Module:
        model = Tower(depth=4)
        model.gate = nn.Linear(16, 16)
        for block in model.blocks:
            block.gate = nn.Linear(16, 16)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                small = name.startswith("blocks") and (everywhere or "down" in name)
                nn.init.normal_(parameter, 0.0, parameter.shape[1] ** -0.5 / (math.sqrt(8) if small else 1))
        return model

    finding = failed(lambda: make(True))["DRW007"]
    assert finding.severity == "warning" and "√(2·n_layer)" in finding.message
    assert failed(lambda: make(False)) == {}


def test_layers_cloned_from_one_are_told() -> None:
    assert "is a copy of" in failed(encoder)["DRW008"].message
    assert failed(lambda: nn.Transformer(16, 2, 2, 2, 32, batch_first=True)) == {}


@pytest.mark.parametrize("error", [ValueError("no such size"), SystemExit(2), KeyboardInterrupt()])
def test_nothing_is_left_behind_by_a_factory_that_raises(error: BaseException) -> None:
    def make() -> nn.Module:
        Tower()
        raise error

    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ProbeError
    with pytest.raises(expected) as caught:
        initlab.trace_init(make)
    assert expected is KeyboardInterrupt or caught.value.__cause__ is error
    assert not _get_current_dispatch_mode_stack()
    assert not hooks._global_parameter_registration_hooks and not hooks._global_buffer_registration_hooks
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
def test_what_is_no_factory_gets_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="made already"):
        initlab.trace_init(Tower())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a function"):
        initlab.trace_init("model.py")  # type: ignore[arg-type]
    with pytest.raises(ProbeError, match=r"returned tuple; expected a torch\.nn\.Module"):
        initlab.trace_init(lambda: (Tower(), 1))
    with pytest.raises(ConfigError, match="script module"):
        initlab.trace_init(lambda: torch.jit.script(nn.Linear(2, 2)))


def test_what_was_out_of_sight_is_a_note() -> None:
    before = Tower()
    found = initlab.trace_init(lambda: before)
    assert "no write to tok.weight" in found.notes[0] and "not seen" in repr(found)
    assert [f for f in found.findings if f.status == "fail"] == []

    def elsewhere() -> nn.Module:
        made: list[nn.Module] = []
        thread = threading.Thread(target=lambda: made.append(Tower()))
        thread.start()
        thread.join()
        return made[0]

    assert "another thread" in initlab.trace_init(elsewhere).notes[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
def test_compiled_models_moved_ones_and_copies_are_traced() -> None:
    rows = of(lambda: torch.compile(drawn()), "blocks.1.down.weight")
    assert rows.iloc[-1]["text"] == "normal(0, 0.02)"
    assert of(lambda: drawn().to(torch.bfloat16), "tok.weight").iloc[-1]["text"] == "normal(0, 0.02)"
    assert of(lambda: copy.deepcopy(drawn()), "tok.weight").iloc[-1]["text"] == "normal(0, 0.02)"


def inferred() -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(2, 2)


def lazily() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 2))


def normed() -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))


def of_a_byte() -> nn.Module:
    model = nn.Linear(2, 2)
    model.scale = nn.Parameter(torch.zeros(2, dtype=torch.float8_e4m3fn), requires_grad=False)
    return model


@pytest.mark.parametrize("factory", [inferred, lazily, normed, of_a_byte])
def test_unusual_tensors_raise_nothing(factory: Callable[[], nn.Module]) -> None:
    found = initlab.trace_init(factory)
    assert writes_of(found.model) and failed(factory) == {} and repr(found)


def test_a_seed_is_of_the_draw_alone() -> None:
    state = torch.get_rng_state()
    a, b = (initlab.trace_init(Tower, seed=7).model for _ in range(2))
    assert torch.equal(a.tok.weight, b.tok.weight) and torch.equal(state, torch.get_rng_state())


def test_what_was_written_since_is_forgotten() -> None:
    model = trace(drawn).model
    assert {row["parameter"] for row in writes_of(model)} == {name for name, _ in model.named_parameters()}
    nn.init.ones_(model.head.weight)
    assert "head.weight" not in {row["parameter"] for row in writes_of(model)}
    assert writes_of(Tower()) == []


def test_a_probe_of_a_function_names_the_lines(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = drawn(depth=2)
        nn.init.normal_(model.head.weight, 0.0, 100.0)
        return model

    torch.manual_seed(0)
    found = initlab.probe(make, torch.randint(32, (2, 8)))
    loud = next(f for f in found.findings if f.code == "LOG001")
    assert loud.status == "fail" and "(make: normal_(mean=0, std=100))" in loud.drawn_at
    assert loud.drawn_at in " ".join(repr(found).split()) or "drawn at" in repr(found)
    page = found.report(tmp_path / "out")
    assert "drawn at" in page.read_text(encoding="utf-8")
    again = initlab.load(tmp_path / "out")
    pd.testing.assert_frame_equal(again.run.tables.writes, found.run.tables.writes, check_exact=False)
    assert [f.drawn_at for f in again.findings] == [f.drawn_at for f in found.findings]


def test_the_text_is_a_table_by_pattern() -> None:
    text = repr(initlab.trace_init(drawn))
    assert "blocks.*.down.weight" in text and "normal(0, 0.02)" in text and "Nothing was left out" in text


def test_what_a_recipe_draws_anew_on_purpose_is_where_the_init_begins():
    """A later line that draws over that is seen all the same."""

    def make(after=lambda model: None):
        model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=64))
        initlab.apply_recipe(model, "nanogpt")
        after(model)
        return model

    def over(model):
        for block in model.transformer.h:
            torch.nn.init.zeros_(block.attn.c_proj.weight)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.05)

    def codes(after):
        return {found.code for found in initlab.probe(lambda: make(after)).failures}

    assert "DRW003" not in codes(lambda model: None)
    assert "DRW003" in codes(over)
    rows = trace(make).rows
    assert {row["operation"] for row in rows if row["parameter"] == "transformer.wpe.weight"} == {"copy_"}
