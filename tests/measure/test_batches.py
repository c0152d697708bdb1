"""Batches of every kind, from the caller's hands to what is on record."""

from types import SimpleNamespace

import pytest
import torch
from measure_zoo import D, Language, Pre, T, V
from torch import nn
from torch.nn import functional as F

import initlab
from initlab.errors import ConfigError, ProbeError

pytestmark = pytest.mark.integration


def ids(length=T):
    return torch.randint(V, (2, length), generator=torch.Generator().manual_seed(0))


def notes(probe):
    return list(probe.coverage.loc[probe.coverage["site"] == "model", "note"])


class Declares(nn.Module):
    """A position table of 48 rows where the config says 64; or one that nothing tells from others, of `hidden` rows."""

    def __init__(self, block_size=64, rows=48, hidden=0):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=V, block_size=block_size)
        self.embed, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        self.positions = nn.Embedding(rows, D) if not hidden else None
        self.other = nn.Embedding(hidden, D) if hidden else None

    def forward(self, tokens):
        table = self.other if self.positions is None else self.positions
        return self.head(self.embed(tokens) + table(torch.arange(tokens.shape[1])))


def test_a_made_batch_that_is_too_long_is_halved_and_said():
    probe = initlab.probe(Declares(hidden=11))
    assert probe.summary["block_size"].item() == 8
    (note,) = [note for note in notes(probe) if "IndexError" in note]
    assert note.startswith("the forward raised at 64 tokens (IndexError: index out of range")
    assert note.endswith("); measured at 8")
    assert not any("IndexError" in note for note in notes(initlab.probe(Declares(hidden=64))))


def test_a_length_that_a_table_shows_needs_no_second_try():
    probe = initlab.probe(Declares())
    assert probe.summary["block_size"].item() == 48
    assert not any("raised" in note for note in notes(probe))


def test_only_a_made_batch_is_halved():
    with pytest.raises(ProbeError, match="IndexError"):
        initlab.probe(Declares(), ids(64))


def test_where_no_length_works_the_first_error_is_raised_with_a_line_for_the_model():
    line = rf"initlab.probe\(model, batch=torch.randint\(0, {V}, \(4, 64\)\)\)$"
    with pytest.raises(ProbeError, match=rf"index out of range in self \(forward\(tokens\)\); .*{line}") as raised:
        initlab.probe(Declares(hidden=4))
    assert isinstance(raised.value.__cause__, IndexError)


def test_sparse_gradients_are_measured():
    torch.manual_seed(0)
    dense = Language(Pre)
    expected = initlab.probe(dense, ids()).records
    dense.embed.sparse = True
    found = initlab.probe(dense, ids()).records
    assert found["var"].tolist() == pytest.approx(expected["var"].tolist())


def test_a_loader_of_pairs_gives_the_first_to_the_forward():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    data = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.zeros(8).long())
    probe = initlab.probe(model, torch.utils.data.DataLoader(data, batch_size=4))
    assert "the forward takes 1 of the batch's 2 values: the last 1 weren't given to it" in notes(probe)


def test_targets_that_the_model_doesnt_know_are_refused():
    with pytest.raises(ConfigError, match=f"holds the id {V + 1}; the model knows ids below {V}"):
        initlab.probe(Language(Pre), (ids(), torch.full_like(ids(), V + 1)))


def built(name, **options):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if name.startswith("T5"):
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    config = getattr(transformers, name.partition("For")[0] + "Config")(vocab_size=V, **sizes, **options)
    return getattr(transformers, name)(config).eval()


MASKED = torch.where(torch.arange(T) % 3 == 0, ids(), -100)


@pytest.mark.parametrize(
    ("name", "batch", "targets"),
    [
        ("BertForMaskedLM", {"input_ids": ids(), "labels": MASKED}, "labels"),
        ("LlamaForCausalLM", {"input_ids": ids(), "labels": MASKED}, "next-token"),
        ("T5ForConditionalGeneration", {"input_ids": ids(), "labels": ids()}, "labels"),
        ("T5ForConditionalGeneration", {"input_ids": ids(), "labels": ids(5)}, "labels"),
        ("BertForTokenClassification", {"input_ids": ids(), "labels": ids() % 2}, "the model's own loss"),
        ("BertForSequenceClassification", {"input_ids": ids(), "labels": torch.tensor([0, 1])}, "the model's own loss"),
    ],
)
def test_hugging_face_labels_give_the_models_own_loss(name, batch, targets):
    model = built(name)
    probe = initlab.probe(model, batch)
    assert probe.summary["targets"].item() == targets
    with torch.no_grad():
        assert probe.summary["loss"].item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)


def test_a_batch_encoding_is_a_dict():
    model = built("LlamaForCausalLM")
    encoded = pytest.importorskip("transformers").BatchEncoding({"input_ids": ids()})
    loss = F.cross_entropy(model(ids()).logits[:, :-1].flatten(0, 1), ids()[:, 1:].flatten())
    assert initlab.probe(model, encoded).summary["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
