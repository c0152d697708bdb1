"""Models whose forward changes them: a probe leaves each as it was, bit for bit."""

import copy
import random
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from changing import MODELS, Drawing, Forced, Mix, drawn, facts

import initlab
from initlab.anatomy.restoring import untouched
from initlab.anatomy.snapshot import Snapshot
from initlab.errors import ProbeError
from initlab.measure.watch.steps import StepRecorder

pytestmark = pytest.mark.integration


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    model = MODELS[request.param]()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return model


X = torch.linspace(-1, 1, 48).view(2, 3, 8)


def test_a_probe_leaves_everything(model):
    probe, saved = initlab.probe, {name: value.clone() for name, value in model.state_dict().items()}
    before = facts(model), drawn()
    probe(model, (X,))
    assert facts(model) == before[0]
    assert drawn() == before[1]
    model.load_state_dict(saved, strict=True)


def test_a_pass_that_breaks_off_leaves_everything(model):
    before = facts(model), drawn()

    def stop(*given):
        raise KeyboardInterrupt

    for raised in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(raised), untouched(model, 0):
            model(X)
            raise raised
    assert facts(model) == before[0]
    with untouched(model, 0), pytest.raises(ProbeError), untouched(model, 1):
        model(X)
        raise ProbeError("inside another")
    assert facts(model) == before[0]
    assert drawn() == before[1]


def test_an_aside_of_a_watch_leaves_the_loops_step(model):
    """The step is what it would have been: the same loss and gradients, and the model as after one pass."""
    model.zero_grad()
    twin = copy.deepcopy(model)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = twin(X)
    expected.square().mean().backward()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    recorder = StepRecorder(model, 1)
    given = model(X)
    given.square().mean().backward()
    recorder.close()
    assert torch.equal(given, expected)
    for (name, ours), (other, theirs) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(ours, theirs)
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)
    assert list(model.state_dict()) == list(twin.state_dict())
    for attribute in ("calls", "lengths", "recent", "seen", "heard", "merged"):
        assert getattr(model, attribute, None) == getattr(twin, attribute, None)


@pytest.mark.parametrize("kind", ["forced normalisation", "alibi", "spectral norm", "batch norm", "merged by eval"])
def test_a_pending_backward_pass_goes_through(kind):
    """A probe between a loop's forward and its backward: the graph has saved weights that the probe's pass wrote to."""
    model = MODELS[kind]()
    loss = model(X).square().mean()
    initlab.probe(model, (X,))
    loss.backward()


def test_weights_are_copied_only_if_they_are_written_to():
    for model, copies in ((Mix(), 0), (Forced(), 1)):
        guard = Snapshot(model).guard
        with guard.listening():
            model(X)
        assert guard.copied == copies


def test_memory_that_a_pass_makes_longer_or_lets_go_of_holds_what_it_held():
    model = Mix()
    before = model.mix.weight.detach().clone()
    with untouched(model, 0):
        model.mix.weight.data.resize_(64, 64).zero_()
        model.mix.weight.data = torch.zeros(3)
    assert torch.equal(model.mix.weight, before)
    with untouched(model, 0):
        model.mix.weight.untyped_storage().resize_(0)
    assert torch.equal(model.mix.weight, before)


def test_what_scripted_code_writes_into_weights_is_said():
    model = Mix()
    unheard = torch._C.DisableTorchFunction()
    with pytest.warns(match=r"mix\.weight of Mix.*scripted"), untouched(model, 0), torch.no_grad(), unheard:
        model.mix.weight.mul_(2)


def test_what_is_not_the_models_own_is_kept_but_not_looked_into():
    model, other = Mix(), SimpleNamespace(count=0)
    model.other = other
    model.vocabulary = {str(number): [number] for number in range(20_000)}
    with untouched(model, 0):
        other.count += 1
        model.other = None
        model.vocabulary["7"].append(1)
        del model.vocabulary["8"]
    assert model.other is other and other.count == 1
    assert model.vocabulary["7"] == [7, 1]
    assert len(model.vocabulary) == 20_000


def test_a_model_that_holds_itself_is_followed_once():
    model = Mix()
    model.ring = [model]
    model.ring.append(model.ring)
    with untouched(model, 0):
        model.ring.clear()
    assert model.ring[0] is model and model.ring[1] is model.ring


def test_tensors_without_memory_of_their_own_are_no_obstacle():
    model = Mix()
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("nowhere", torch.empty(3, device="meta"))
    model.register_buffer("nothing", torch.empty(0))
    with torch.inference_mode():
        model.register_buffer("inferred", torch.ones(3))
    initlab.probe(model, (X,))
    assert set(model._buffers) == {"sparse", "nowhere", "nothing", "inferred"}


def test_threads_take_turns_with_the_random_state():
    models = Drawing(), Drawing()
    before, started, go = drawn(), threading.Event(), threading.Event()

    def first():
        with untouched(models[0], 0):
            started.set()
            go.wait(5)

    def second():
        started.wait(5)
        go.set()
        with untouched(models[1], 1):
            torch.rand(())

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn() == before


def test_the_first_probe_of_a_process_leaves_pythons_random_state():
    """Rich draws from it as it is imported."""
    code = "import random, torch\nmodel = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))\n"
    code += "before = random.getstate()\nimport initlab\nfound = initlab.probe(model, (torch.ones(2, 4),))\n"
    code += "repr(found), found.findings\nassert random.getstate() == before"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
