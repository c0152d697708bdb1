"""Checkpoints of other people's trainers, loaded into a model."""

import json
import pickle

import pytest
import torch
from torch import nn

from initlab.drawing.weights import load_weights
from initlab.errors import CheckpointError


class Net(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.register_buffer("scale", torch.ones(1))
        if tied:
            self.head.weight = self.embed.weight


class Wrapping(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = Net()


def filled(value, model=None):
    model = Net() if model is None else model
    return {name: torch.full_like(tensor, value) for name, tensor in model.state_dict().items()}


def loaded(path, model):
    load_weights(model, path)
    return {float(value.unique()) for value in model.state_dict().values()}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"module." + name: value for name, value in state.items()}},
        lambda state: {"model_state_dict": {"_orig_mod." + name: value for name, value in state.items()}},
        lambda state: {"module": {"model": {name.replace(".", "._orig_mod."): v for name, v in state.items()}}},
    ],
)
def test_a_state_dict_is_found_wherever_trainers_keep_it(tmp_path, wrapped):
    torch.save(wrapped(filled(2.0)), tmp_path / "w.pt")
    assert loaded(tmp_path / "w.pt", Net()) == {2.0}
    assert loaded(tmp_path / "w.pt", nn.DataParallel(Net())) == {2.0}


def test_a_module_named_module_keeps_its_name(tmp_path):
    torch.save(filled(2.0, Wrapping()), tmp_path / "w.bin")
    assert loaded(tmp_path / "w.bin", Wrapping()) == {2.0}


def test_safetensors_hold_a_tied_matrix_once(tmp_path):
    from safetensors.torch import save_file, save_model

    save_file(filled(3.0), tmp_path / "plain.safetensors")
    assert loaded(tmp_path / "plain.safetensors", Net()) == {3.0}
    source = Net(tied=True)
    source.load_state_dict(filled(4.0))
    save_model(source, str(tmp_path / "tied.safetensors"))
    assert loaded(tmp_path / "tied.safetensors", Net(tied=True)) == {4.0}
    with pytest.raises(CheckpointError, match=r"doesn't fit this Net: it lacks (embed|head)\.weight$"):
        load_weights(Net(), tmp_path / "tied.safetensors")


def sharded(folder, **files):
    """As Hugging Face's libraries write large models."""
    from safetensors.torch import save_file

    for file, state in files.items():
        save_file(state, folder / f"{file}.safetensors")
    places = {name: f"{file}.safetensors" for file, state in files.items() for name in state}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def test_safetensors_in_several_files(tmp_path):
    state = filled(5.0)
    head = {"head.weight": state.pop("head.weight")}
    index = sharded(tmp_path, one=state, two=head)
    assert loaded(index, Net()) == {5.0}
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*two\.safetensors"):
        load_weights(Net(), index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "can't be read as an index"),
        ("[]", "can't be read as an index"),
        ('{"weight_map": {"head.weight": "../one.safetensors"}}', "expected files beside it"),
        ('{"weight_map": {"other": "one.safetensors"}}', r"its files lack other; save the model again"),
        ('{"weight_map": {"embed.weight": "one.safetensors"}}', "its files also hold head.weight, scale"),
    ],
)
def test_an_index_that_cannot_be_used_is_one_error(tmp_path, content, message):
    index = sharded(tmp_path, one=filled(5.0))
    index.write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(Net(), index)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is None


def test_safetensors_missing_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(CheckpointError, match=r"pip install 'initlab\[hf\]'"):
        load_weights(Net(), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("scale"), "it lacks scale"),
        (lambda s: s.update({f"more.{n}": torch.ones(1) for n in range(7)}), r"no more.0, .* more.4 and 2 more$"),
        (lambda s: s.update({"head.weight": torch.ones(7, 5)}), r"head.weight is \(7, 5\), \(7, 4\) in the model"),
        (lambda s: s.update({"scale": torch.ones(1, dtype=torch.int8)}), "scale is of torch.int8, torch.float32 in"),
        (lambda s: s.update({"epoch": 3}), "epoch among its weights is no tensor"),
    ],
)
def test_weights_of_another_model_are_one_error_and_change_nothing(tmp_path, change, message):
    state = filled(2.0)
    change(state)
    torch.save(state, tmp_path / "w.pt")
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(model, tmp_path / "w.pt")
    assert caught.value.__cause__ is None and "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_two_values_of_one_parameter_are_refused(tmp_path):
    state = filled(float("nan"))
    torch.save(state, tmp_path / "same.pt")
    load_weights(Net(tied=True), tmp_path / "same.pt")
    torch.save(state | {"head.weight": torch.ones(7, 4)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"embed.weight and head.weight differ, and are one parameter"):
        load_weights(Net(tied=True), tmp_path / "other.pt")


class _Hostile:
    def __reduce__(self):
        return pytest.fail, ("the file was executed",)


def test_damaged_and_hostile_files_are_one_error(tmp_path):
    torch.save(filled(2.0), tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:700])
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 99)
    (tmp_path / "hostile.pt").write_bytes(pickle.dumps({"state_dict": _Hostile()}))
    torch.save({"state_dict": _Hostile()}, tmp_path / "hostile.ckpt")
    itself = {}
    itself["model"] = itself
    torch.save(itself, tmp_path / "itself.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    (tmp_path / "w.txt").write_text("")
    for name, message in {
        "cut.pt": "can't be read as a torch checkpoint",
        "junk.safetensors": "can't be read as safetensors",
        "hostile.pt": "can't be read as a torch checkpoint",
        "hostile.ckpt": "could run code when loaded",
        "itself.pt": "holds a dict of model without weights",
        "list.pt": "holds a list without weights",
        "w.txt": "is no checkpoint by its name",
        "none.pt": "no checkpoint at",
        "none.safetensors": "no checkpoint at",
    }.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            load_weights(Net(), tmp_path / name)
        assert caught.value.__context__ is None or caught.value.__suppress_context__
        assert "\n" not in str(caught.value)
