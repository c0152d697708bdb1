"""What a pass of our own leaves behind: nothing."""

import random
import threading

import numpy as np
import pytest
import torch
from measure_zoo import ZOO, T, V
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import initlab
from initlab.anatomy.restoring import copied, random_state_kept
from initlab.errors import ProbeError
from initlab.measure.watch.steps import StepRecorder


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.mix(self.norm(x))


class Drawing(nn.Module):
    """Writes into its input, and draws from all three random states."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        x -= 1
        x = x * (1 + torch.rand(()) + random.random() + np.random.rand())  # noqa: NPY002
        for layer in self.layers:
            x = layer(x)
        return x


def embedded(tables):
    return tables.records.query("site == 'embed' and kind == 'activation'")["mean"].item()


def test_a_probe_leaves_the_batch_and_every_random_state():
    probe = initlab.probe  # now: importing rich, which it brings in, draws a random number
    model, x = Drawing(), torch.ones(2, 3, 8)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = probe(model, (x,))
    assert torch.equal(x, torch.ones(2, 3, 8))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])  # noqa: NPY002
    assert embedded(first) == 0  # (1 - 1) times something: one pass has written into what was measured
    random.random(), np.random.rand()  # noqa: NPY002
    x = torch.full((2, 3, 8), 2.0)
    assert embedded(probe(model, (x,))) == embedded(probe(model, (x,))) > 0


def test_generators_of_devices_that_the_model_is_not_on_are_left_alone(monkeypatch):
    """Those of a GPU that is up, and the seed that torch keeps for one that isn't yet."""
    seeded = []
    for kind in ("cuda", "mps", "xpu"):
        for name in ("manual_seed", "manual_seed_all"):
            if hasattr(getattr(torch, kind), name):
                monkeypatch.setattr(f"torch.{kind}.{name}", seeded.append)
    torch.manual_seed(torch.initial_seed())
    assert seeded  # as torch.manual_seed does
    seeded.clear()
    model = ZOO["parallel"][0]()
    initlab.probe(model, torch.zeros(2, T, dtype=torch.long))
    recorder = StepRecorder(model, 1)
    model(torch.zeros(2, T, dtype=torch.long)).sum().backward()
    recorder.step()
    recorder.close()
    assert not seeded


def test_only_the_generators_of_the_models_own_gpu_are_seeded(monkeypatch):
    generators = [torch.Generator(), torch.Generator()]  # in the place of two GPUs'
    before = [each.get_state() for each in generators]
    monkeypatch.setattr("torch.cuda.default_generators", generators)
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda index: generators[index].get_state())
    monkeypatch.setattr("torch.cuda.set_rng_state", lambda state, index: generators[index].set_state(state))
    monkeypatch.setattr("torch.random.torch.get_device_module", lambda kind=None: torch.cuda)
    with random_state_kept(torch.device("cuda", 1), 7):
        assert generators[1].initial_seed() == 7
        assert torch.equal(generators[0].get_state(), before[0])
    assert all(torch.equal(each.get_state(), state) for each, state in zip(generators, before, strict=True))


def test_a_leading_relu_in_place_is_measured_on_the_batch_as_given():
    model, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)), -torch.ones(2, 4)
    initlab.probe(model, (x,))
    assert (x == -1).all()


def test_a_shuffling_loader_leaves_the_random_state():
    model = ZOO["pre-norm, gated, grouped queries"][0]()
    loader = DataLoader(TensorDataset(torch.randint(V, (8, T))), batch_size=2, shuffle=True)
    before = torch.get_rng_state()
    initlab.probe(model, loader)
    assert torch.equal(before, torch.get_rng_state())


def test_the_first_watched_step_leaves_the_loops_arguments():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), *[Block() for _ in range(2)])
    x, seen = torch.randn(2, 3, 8), []

    def write(module, args):
        args[0].sub_(1)

    model[0].register_forward_pre_hook(write)
    model[1].register_forward_hook(lambda m, a, o: seen.append(a[0].detach().clone()))
    expected = x - 1
    recorder = StepRecorder(model, 1)
    model(x).sum().backward()
    recorder.close()
    assert len(seen) == 2
    assert all(torch.equal(each, expected) for each in (*seen, x))


class Cached(nn.Module):
    """Appends to a cache that the caller hands in."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x, cache=None):
        if cache is not None:
            cache.kept.append(x)
        for layer in self.layers:
            x = layer(x)
        return x


class Cache:
    def __init__(self):
        self.kept = []


def test_a_cache_is_filled_once():
    model, cache = Cached(), Cache()
    recorder = StepRecorder(model, 1)
    model(torch.randn(2, 3, 8), cache=cache).sum().backward()
    tables = recorder.step()
    recorder.close()
    assert len(cache.kept) == 1
    assert tables.summary["n_layer"].item() == 2


def test_what_cannot_be_copied_is_said():
    model, cache = Cached(), Cache()
    cache.lock = threading.Lock()
    recorder = StepRecorder(model, 1)
    model(torch.randn(2, 3, 8), cache=cache).sum().backward()
    tables = recorder.step()
    recorder.close()
    assert len(cache.kept) == 1
    assert tables.coverage["note"].str.contains("the loop's arguments can't be copied").any()
    assert set(tables.records["kind"]) == {"activation", "grad", "weight", "weight_grad", "update"}
    with pytest.raises(ProbeError, match="the batch can't be copied"):
        initlab.probe(model, {"x": torch.randn(2, 3, 8), "cache": cache})


def test_copies_keep_what_is_shared_and_what_needs_gradients():
    leaf = torch.ones(2, requires_grad=True)
    (first, second), kwargs = copied(((leaf, leaf * 2), {"again": leaf}))
    assert first is kwargs["again"] is not leaf
    assert first.is_leaf and first.requires_grad
    assert second.requires_grad


class Masked(Cached):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.full((8,), 2.0))
        self.register_buffer("shared", torch.zeros(1).expand(4))
        self.register_buffer("unknown", torch.full((1,), torch.nan).expand(4))

    def forward(self, x):
        return super().forward(x) * self.mask


def test_a_buffer_that_did_not_change_is_not_written():
    model, x = Masked(), torch.randn(2, 3, 8)
    loss = model(x).sum()
    initlab.probe(model, (x,))
    loss.backward()  # fails if the saved mask was written to
    assert model.layers[0].mix.weight.grad is not None
