"""A user's model gets in at the first try, on a batch that is made for it and on the ids that the docs promise."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from tutorials import TUTORIALS, FlattensLogits, LossAlone, T, V

import initlab

pytestmark = pytest.mark.integration


def ids(length=T):
    return torch.randint(V, (3, length), generator=torch.Generator().manual_seed(0))


def notes(probe):
    return list(probe.coverage.loc[probe.coverage["site"] == "model", "note"])


def build(kind):
    torch.manual_seed(0)
    return kind()


@pytest.mark.parametrize("kind", TUTORIALS)
def test_every_tutorial_is_measured_at_its_own_length(kind):
    probe = initlab.probe(build(kind))
    summary = probe.summary.iloc[0]
    assert (summary["block_size"], summary["vocab_size"], summary["targets"]) == (T, V, "next-token")
    assert summary["loss"] == pytest.approx(math.log(V), abs=0.5)
    assert not any("raised" in note for note in notes(probe))
    assert not probe.at("logits").empty and not probe.at("resid_post").empty


def reference(model, idx, targets):
    """Cross entropy of the logits of every position, whatever the model's own loss is."""
    with torch.no_grad():
        output = model(idx) if isinstance(model, FlattensLogits | LossAlone) else model(idx, targets)
    logits = output[0] if isinstance(output, tuple) else output
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()


@pytest.mark.parametrize("kind", TUTORIALS)
def test_ids_alone_are_read_with_targets_that_are_all_tokens(kind):
    model = build(kind)
    probe = initlab.probe(model, ids())
    loss = reference(model, ids()[:, :-1], ids()[:, 1:])
    assert probe.summary["loss"].item() == pytest.approx(loss, rel=1e-5)
    said = f"sequences of {T - 1} tokens: the last one is a target alone"
    assert (said in notes(probe)) == (kind is not LossAlone)
    assert probe.summary["block_size"].item() == (T if kind is LossAlone else T - 1)


@pytest.mark.parametrize("kind", TUTORIALS)
def test_ids_and_targets_are_read_as_they_are(kind):
    model = build(kind)
    probe = initlab.probe(model, (ids(), ids().flip(1)))
    assert probe.summary["loss"].item() == pytest.approx(reference(model, ids(), ids().flip(1)), rel=1e-5)
    assert probe.summary["block_size"].item() == T


def test_a_caller_that_marks_what_has_no_target_is_measured_on_a_forward_that_knows_no_such_mark():
    model = build(FlattensLogits)
    targets = ids().clone()
    targets[:, ::2] = -1
    with torch.no_grad():
        loss = F.cross_entropy(model(ids())[0].flatten(0, 1), targets.flatten(), ignore_index=-1).item()
    assert initlab.probe(model, (ids(), targets)).summary["loss"].item() == pytest.approx(loss, rel=1e-5)


class Recurrent(nn.Module):
    """Packs what it reads, and returns what its layers return."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(6, 8, 2, batch_first=True)

    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.full((len(x),), x.shape[1]), batch_first=True)
        return self.rnn(packed)


@pytest.mark.parametrize("kind", [lambda: nn.LSTM(5, 8), lambda: nn.GRU(5, 8, batch_first=True), Recurrent])
def test_recurrent_models_are_measured(kind):
    probe = initlab.probe(build(kind))
    assert probe.summary["targets"].item() == "mean square of the output"
    assert any(note.startswith("made here: ") for note in notes(probe))


class Words(nn.Module):
    """A recurrent language model with a vocabulary of its own size."""

    def __init__(self, size=V):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(size, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, size)

    def forward(self, x, state=None):
        x, state = self.rnn(self.embed(x), state)
        return self.head(x), state


@pytest.mark.parametrize("size", [V, 1])
def test_a_vocabulary_of_one_is_a_vocabulary(size):
    probe = initlab.probe(build(lambda: Words(size)), text=initlab.Text(data="uniform"))
    assert probe.summary["vocab_size"].item() == size
    assert probe.summary["loss"].item() == pytest.approx(math.log(size), abs=0.5)


class Padded(nn.Module):
    """Needs a mask of the form (B, T)."""

    def __init__(self):
        super().__init__()
        self.embed, self.attn, self.head = nn.Embedding(V, 8), nn.Linear(8, 8), nn.Linear(8, V)
        self.max_len = T

    def forward(self, tokens, mask):
        B, length = mask.shape
        assert (B, length) == tokens.shape
        x = self.embed(tokens)
        scores = (self.attn(x) @ x.transpose(1, 2)).masked_fill(mask[:, None, :] == 0, -torch.inf)
        return self.head(scores.softmax(-1) @ x)


def test_a_mask_is_made_in_the_form_that_the_forward_takes():
    probe = initlab.probe(build(Padded))
    assert math.isfinite(probe.summary["loss"].item())
    assert f"made here: tokens (42, {T}) int64, mask (42, {T}) int64" in notes(probe)


class Seconds(nn.Module):
    """Its only table is of time steps, under a name that says nothing."""

    def __init__(self):
        super().__init__()
        self.into, self.te, self.out = nn.Conv2d(3, 8, 3), nn.Embedding(100, 8), nn.Conv2d(8, 3, 3)

    def forward(self, x, timestep):
        return self.out(self.into(x) + self.te(timestep)[:, :, None, None])


def test_a_table_of_something_else_is_no_vocabulary():
    probe = initlab.probe(build(Seconds))
    assert "made here: x (4, 3, 32, 32) float32, timestep (4,) int64" in notes(probe)
