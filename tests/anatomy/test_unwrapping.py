"""Compiled, wrapped and unsupported models."""

import pytest
import torch
from measure_zoo import ZOO, T, V
from torch import nn

import initlab
from initlab.anatomy.unwrapping import eagerly, unwrap
from initlab.errors import ConfigError, ProbeError

pytestmark = pytest.mark.integration


def model():
    torch.manual_seed(0)
    return ZOO["parallel"][0]()


def ids():
    return torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0))


def test_a_compiled_model_is_measured_through_the_original():
    plain = model()
    expected = initlab.probe(plain, ids())
    compiled = torch.compile(plain, backend="eager")
    compiled(ids())  # hooks that are added from here on would hardly fire
    found = initlab.probe(compiled, ids())
    assert found.records["var"].tolist() == expected.records["var"].tolist()
    assert any("measured eagerly" in note for note in found.coverage["note"])


def test_a_model_compiled_in_place_is_too_and_stays_compiled():
    plain = model()
    expected = initlab.probe(plain, ids())
    for module in (plain, plain.layers[1]):
        module.compile(backend="eager")
    plain(ids())
    found = initlab.probe(plain, ids())
    assert found.records["var"].tolist() == expected.records["var"].tolist()
    assert "compiled in place: measured eagerly" in set(found.coverage["note"])
    assert plain._compiled_call_impl is not None and plain.layers[1]._compiled_call_impl is not None


def test_compilation_is_put_back_after_a_failure():
    plain = model()
    plain.compile(backend="eager")
    with pytest.raises(ZeroDivisionError), eagerly(plain):
        raise ZeroDivisionError
    assert plain._compiled_call_impl is not None


def test_data_parallel_is_taken_off():
    inside, notes = unwrap(nn.DataParallel(model()))
    assert type(inside).__name__ == "Language" and "DataParallel" in notes[0]


def test_distributed_data_parallel_is_taken_off(tmp_path):
    plain = model()
    expected = initlab.probe(plain, ids())
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(plain)
        wrapped(ids()).sum().backward()
        gradients = [parameter.grad.clone() for parameter in plain.parameters()]
        found = initlab.probe(wrapped, ids())
    finally:
        torch.distributed.destroy_process_group()
    assert found.records["var"].tolist() == expected.records["var"].tolist()
    assert found.records["module"].tolist() == expected.records["module"].tolist()  # without DDP's `module.`
    assert "wrapped in DistributedDataParallel" in found.coverage["note"].iloc[-2]
    assert all(torch.equal(p.grad, before) for p, before in zip(plain.parameters(), gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_weights_of_every_precision_in_either_mode(dtype, training):
    expected = initlab.probe(model().train(training), ids())
    found = initlab.probe(model().to(dtype).train(training), ids())
    assert set(found.records["dtype"]) == {str(dtype).removeprefix("torch.")}
    assert found.summary["mode"].item() == ("train" if training else "eval")
    both = found.records.merge(expected.records, on=["site", "module", "kind", "call"])
    forward = both[both["kind"].isin(["activation", "weight"])]
    assert len(both) == len(expected.records)
    assert forward["var_x"].to_numpy() == pytest.approx(forward["var_y"].to_numpy(), rel=0.05)
    assert "reproduced from its writes in 3" in repr(found)


class FullyShardedDataParallel(nn.Module):
    """In the place of torch's first one, which is told by its name."""

    def __init__(self, inner):
        super().__init__()
        self.module = inner


def test_shards_that_are_flattened_are_refused_with_a_sentence():
    with pytest.raises(
        ProbeError, match=r"Sequential is sharded \(FullyShardedDataParallel\); give it before it is sharded"
    ):
        initlab.probe(nn.Sequential(FullyShardedDataParallel(model())), ids())


def quantise(m):
    m.requires_grad_(False)
    m.head.weight = nn.Parameter(torch.ones(V, 1, dtype=torch.int8), requires_grad=False)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.to("meta"), "is on the meta device"),
        (lambda m: m.layers[0].to("meta"), "layers.0.norm_1.weight is on the meta device"),
        (quantise, r"head.weight is quantised \(torch.int8\)"),
    ],
)
def test_what_cant_be_measured_is_refused_with_a_sentence(spoil, message):
    spoiled = model()
    spoil(spoiled)
    with pytest.raises(ProbeError, match=message):
        initlab.probe(spoiled, ids())


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ProbeError, match="Identity has no parameters"):
        initlab.probe(nn.Identity(), torch.randn(2, 3))


@pytest.mark.parametrize("wrong", ["gpt2", None, nn.Linear])
def test_what_is_no_model_is_refused_with_a_sentence(wrong):
    with pytest.raises(ConfigError, match=r"^model is .*; expected a torch.nn.Module"):
        initlab.probe(wrong)


def test_a_lazy_model_is_refused_and_stays_lazy():
    lazy = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(5))
    with pytest.raises(ProbeError, match=r"1.weight has no shape yet.*run one batch through the model first"):
        initlab.probe(lazy, torch.randn(2, 3))
    assert lazy[1].has_uninitialized_params()


def checkpointed(use_reentrant):
    from torch.utils.checkpoint import checkpoint

    language = model()
    blocks = list(language.layers)

    def forward(input_ids):
        x = language.embed(input_ids)
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=use_reentrant)
        return language.head(language.norm(x))

    language.forward = forward
    return language


def test_checkpointed_blocks_are_counted_once():
    expected = initlab.probe(model(), ids()).records
    found = initlab.probe(checkpointed(use_reentrant=False), ids()).records
    assert not found.duplicated(["site", "module", "call", "kind"]).any()
    assert found["var"].tolist() == pytest.approx(expected["var"].tolist())


def test_reentrant_checkpoints_are_refused_with_what_to_do():
    with pytest.raises(ProbeError, match="checkpoint with use_reentrant=False to measure it"):
        initlab.probe(checkpointed(use_reentrant=True), ids())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("hide", "message"),
    [
        (
            lambda m: torch.ao.quantization.quantize_dynamic(m, {nn.Linear}),
            r": 0 is quantised \(DynamicQuantizedLinear\)",
        ),
        (torch.jit.script, "^RecursiveScriptModule is a script module of torch.jit; give the Python module"),
        (lambda m: torch.jit.trace(m, torch.zeros(2, 4)), "^TopLevelTracedModule is a script module"),
        (lambda m: nn.Sequential(m, torch.jit.script(nn.Linear(4, 4))), "^Sequential: 1 is a script module"),
    ],
)
def test_weights_that_torch_hides_are_refused_by_every_command(hide, message):
    model = hide(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    commands = (initlab.probe, initlab.fix, initlab.describe_init, lambda m: initlab.apply_recipe(m, "xavier"))
    for command in commands:
        with pytest.raises(ConfigError, match=message):
            command(model)
