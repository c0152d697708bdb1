"""An ordinary model with whole weights, of a sharded one."""

import pytest
import torch
from measure_zoo import ZOO, T, V
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import initlab
from initlab.anatomy.unsharding import fingerprints, fully_sharded, replicated, unsharded
from initlab.errors import ProbeError


@pytest.fixture
def alone(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def model():
    torch.manual_seed(0)
    made = ZOO["parallel"][0]()
    made.first = [made.layers[0]]  # a reference beside the tree
    return made


def sharded(made, **options):
    for layer in made.layers:
        fully_shard(layer, **options)
    return fully_shard(made, **options)


def ids():
    return torch.randint(V, (3, T), generator=torch.Generator().manual_seed(0))


def test_the_copy_is_the_model_before_it_was_sharded(alone):
    plain = model()
    calls = []
    made = model()
    made.layers[1].register_forward_pre_hook(lambda module, args: calls.append(module))
    made = sharded(made)
    assert fully_sharded(made) and not fully_sharded(plain)
    copied = unsharded(made)
    assert type(copied) is type(plain) and not fully_sharded(copied)
    assert all(type(a) is type(b) for a, b in zip(copied.modules(), plain.modules(), strict=True))
    assert fingerprints(copied) == fingerprints(plain)
    assert copied.first[0] is copied.layers[0] is not made.layers[0]
    assert torch.equal(copied(ids()), plain(ids()))
    assert calls == [copied.layers[1]]  # the caller's own hook alone


def test_a_probe_of_one_process_is_that_of_the_model_and_training_goes_on(alone):
    expected = initlab.probe(model(), ids())
    made = sharded(model())
    made(ids())  # the root's weights stay gathered after a forward pass alone
    found = initlab.probe(made, ids())
    assert found.records["var"].tolist() == expected.records["var"].tolist()
    assert any(note.startswith("fully_shard: measured a copy with whole weights") for note in found.coverage["note"])
    made(ids()).sum().backward()
    plain = model()
    plain(ids()).sum().backward()
    for own, other in zip(made.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad.full_tensor(), other.grad)


def test_shards_are_copied_in_their_own_precision(alone):
    made = sharded(model(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    made(ids())
    assert {p.dtype for p in unsharded(made).parameters()} == {torch.float32}


def test_tied_weights_stay_tied(alone):
    torch.manual_seed(0)
    made = ZOO["parallel"][0]()
    made.head.weight = made.embed.weight
    made = sharded(made)
    copied = unsharded(made)
    assert copied.head.weight is copied.embed.weight


def test_what_cannot_be_copied_is_said(alone):
    made = model()
    made.layers[0].stream = (line for line in "ab")
    with pytest.raises(ProbeError, match=r"layers.0 can't be copied, and a sharded model is measured on a copy"):
        initlab.probe(sharded(made), ids())


@pytest.mark.parametrize(
    "command",
    [initlab.describe_init, initlab.fix, lambda made: initlab.apply_recipe(made, "xavier")],
)
def test_what_needs_more_than_a_copy_refuses_shards(alone, command):
    with pytest.raises(ProbeError, match=r"is sharded \(DTensor\); give it before it is sharded, or initlab.probe"):
        command(sharded(model()))


def test_shards_of_tensor_parallelism_are_refused(alone):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_module

    made = distribute_module(model(), init_device_mesh("cpu", (1,)))
    with pytest.raises(ProbeError, match=r"is sharded \(DTensor\)"):
        initlab.probe(made, ids())


def test_shards_without_their_processes_are_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    made = sharded(model())
    torch.distributed.destroy_process_group()
    with pytest.raises(ProbeError, match="sharded, but there is no process group any more"):
        initlab.probe(made, ids())


def test_a_wrapper_is_found_through_compilation(alone):
    wrapped = nn.parallel.DistributedDataParallel(model())
    assert replicated(torch.compile(wrapped, backend="eager")) is wrapped
    assert replicated(model()) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.int32, torch.bool])
def test_a_fingerprint_tells_one_bit_and_the_order(dtype):
    x = torch.arange(6).reshape(2, 3).to(dtype)

    def of(tensor):
        module = nn.Module()
        module.register_buffer("x", tensor)
        return fingerprints(module)["x"]

    y = x.clone()
    y[1, 1] = 0
    turned = x.flip(0)
    assert of(x) == of(x.clone()) == of(x.T.contiguous().T)
    assert of(x) != of(y)
    assert of(x) != of(turned)
    assert of(x) != of(x.reshape(3, 2))


def test_parameter_groups_need_no_whole_weights(alone):
    found, expected = (initlab.adam_groups(made, "nanogpt", lr=1e-3) for made in (sharded(model()), model()))
    assert [len(group["params"]) for group in found] == [len(group["params"]) for group in expected]
