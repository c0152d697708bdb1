"""Batches made for models that nobody described."""

from collections import UserDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from initlab.anatomy import inputs
from initlab.anatomy.inputs import Inputs
from initlab.anatomy.tensors import tensors
from initlab.errors import ConfigError
from initlab.measure.losses import take_loss


class Takes(nn.Module):
    """Records how it was called."""

    def __init__(self, config=None):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        if config:
            self.config = SimpleNamespace(**config)


class NanoLike(Takes):
    def forward(self, idx, targets=None):
        return idx, targets


class HuggingFaceLike(Takes):
    def forward(self, input_ids=None, attention_mask=None, decoder_input_ids=None, labels=None, use_cache=None):
        return input_ids, decoder_input_ids, labels, use_cache


class Plain(Takes):
    def forward(self, whatever):
        return whatever


IDS = torch.arange(12).view(2, 6)
NEXT = torch.tensor([[1, 2, 3, 4, 5, -1], [7, 8, 9, 10, 11, -1]])


def test_next_tokens():
    assert inputs.next_tokens(IDS).tolist() == NEXT.tolist()


def test_ids_are_given_as_the_forward_takes_them():
    made = inputs.of_ids(NanoLike(), IDS, NEXT)
    assert made.call(NanoLike()) == (IDS, NEXT)
    model = HuggingFaceLike()
    given, decoder, labels, use_cache = inputs.of_ids(model, IDS, NEXT).call(model)
    assert given is IDS and decoder is None and labels is None and use_cache is False
    both = HuggingFaceLike({"is_encoder_decoder": True})
    assert inputs.of_ids(both, IDS, NEXT).call(both)[1] is IDS
    assert inputs.of_ids(Plain(), IDS, NEXT).call(Plain()) is IDS


@pytest.mark.parametrize(
    "batch",
    [
        IDS,
        (IDS, NEXT),
        [IDS.int(), NEXT],
        {"input_ids": IDS},
        {"input_ids": IDS, "attention_mask": torch.ones(2, 6), "labels": IDS},
        UserDict(input_ids=IDS, labels=IDS),  # as Hugging Face's BatchEncoding
        (IDS,),
        [{"input_ids": IDS}, {"input_ids": IDS + 1}],
        torch.utils.data.DataLoader([{"input_ids": row} for row in IDS], batch_size=2),
        torch.utils.data.DataLoader(IDS, batch_size=2),
    ],
)
def test_callers_ids_in_any_nesting(batch):
    made = inputs.of_batch(HuggingFaceLike(), batch)
    assert made.ids.tolist() == IDS.tolist()
    assert made.targets.tolist() == NEXT.tolist()
    assert "labels" not in made.kwargs
    assert made.n_tokens == 12


def test_ignored_labels_have_no_target():
    labels = IDS.clone()
    labels[:, :3] = -100
    made = inputs.of_batch(HuggingFaceLike(), {"input_ids": IDS, "labels": labels})
    assert made.targets.tolist() == [[-1, -1, 3, 4, 5, -1], [-1, -1, 9, 10, 11, -1]]


@pytest.mark.parametrize("batch", [torch.randn(4, 8), (torch.randn(4, 8), torch.randn(4, 8)), {"x": torch.randn(4, 8)}])
def test_other_batches_are_the_forwards_arguments(batch):
    made = inputs.of_batch(NanoLike(), batch)
    assert made.ids is None and made.targets is None
    assert len(made.args) + len(made.kwargs) == (2 if isinstance(batch, tuple) else 1)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("text", "batch is str; expected token ids"),
        (3, "batch is int; expected token ids"),
        ({}, "is a dict with keys"),
        ({1: IDS}, "is a dict with keys"),
        ((), "is a tuple without a tensor"),
        (("a", None), "is a tuple without a tensor"),
        (iter(()), "empty loader"),
        (torch.zeros(0, 4, dtype=torch.long), "at least one element"),
        (torch.zeros(4, dtype=torch.long), r"is \(4,\) torch.int64; expected token ids"),
        ((IDS, NEXT[:1]), r"ids are \(2, 6\) and targets \(1, 6\)"),
    ],
)
def test_what_is_no_batch_is_refused(batch, message):
    with pytest.raises(ConfigError, match=message):
        inputs.of_batch(Plain(), batch)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(7, 3)), (64, 7)),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), (4, 3, 32, 32)),
        (nn.Sequential(nn.Conv1d(5, 4, 3)), (4, 5, 256)),
        (nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 8, batch_first=True), 1), (4, 64, 16)),
        (nn.MultiheadAttention(16, 2), (4, 64, 16)),
    ],
)
def test_vectors_have_the_shape_of_the_first_layer(model, shape):
    made = next(inputs.ways(model, None))
    assert made.args[0].shape == shape
    assert torch.equal(made.args[0], next(inputs.ways(model, None)).args[0])
    assert made.args[0].dtype == next(model.parameters()).dtype


def test_an_encoder_and_decoder_gets_both():
    made = next(inputs.ways(nn.Transformer(16, 2, 1, 1, 8, batch_first=True), None))
    assert len(made.args) == 2


def test_a_declared_image_size_is_used():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.config = SimpleNamespace(image_size=17)
    assert next(inputs.ways(model, None)).args[0].shape[-1] == 17
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.default_cfg = {"input_size": (3, 19, 19)}
    assert next(inputs.ways(model, None)).args[0].shape[-1] == 19


def test_a_model_that_says_nothing_gets_its_signature_back():
    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.zeros(3))

        def forward(self, left, right):
            return left

    with pytest.raises(ConfigError, match=r"no batch can be made for Silent\(left, right\).*pass batch="):
        next(inputs.ways(Silent(), None))


def test_everything_moves_to_the_device():
    nested = Inputs(args=(IDS, [IDS]), kwargs={"mask": {"a": (IDS,)}}, ids=IDS, targets=NEXT).to(torch.device("meta"))
    assert {tensor.device.type for tensor in tensors((nested.args, nested.kwargs, nested.ids, nested.targets))} == {
        "meta"
    }


class ForMaskedLM(HuggingFaceLike):
    pass


class ForTokenClassification(HuggingFaceLike):
    pass


class EncoderDecoder(HuggingFaceLike):
    def __init__(self):
        super().__init__({"is_encoder_decoder": True})

    def prepare_decoder_input_ids_from_labels(self, labels):
        return torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], 1)


@pytest.mark.parametrize("kind", [ForMaskedLM, ForTokenClassification, EncoderDecoder])
def test_labels_at_their_own_positions_arent_shifted(kind):
    labels = IDS.clone()
    labels[0, 1:] = -100
    made = inputs.of_batch(kind(), {"input_ids": IDS, "labels": labels})
    assert made.targets.tolist() == [[0, -1, -1, -1, -1, -1], IDS[1].tolist()]
    assert made.kwargs["labels"] is labels and made.aim == "labels"
    assert take_loss(torch.zeros(2, 6, 50), made, 50).targets == "labels"


def test_an_encoder_decoder_is_judged_at_the_decoders_positions():
    made = inputs.of_batch(EncoderDecoder(), {"input_ids": IDS, "labels": IDS[:, 3:]})
    assert made.ids.tolist() == [[0, 3, 4], [0, 9, 10]] and made.targets.tolist() == IDS[:, 3:].tolist()
    own = inputs.of_batch(EncoderDecoder(), {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]})
    assert own.ids.tolist() == IDS[:, :4].tolist() and own.targets[:, -1].tolist() == [-1, -1]


def test_a_classifiers_labels_reach_its_own_loss():
    labels = torch.tensor([0, 1])
    for model, batch in [(HuggingFaceLike(), {"input_ids": IDS}), (Plain(), {"pixel_values": torch.randn(2, 3, 4, 4)})]:
        made = inputs.of_batch(model, batch | {"labels": labels})
        assert made.kwargs["labels"] is labels and made.targets is None


def test_labels_of_another_length_or_none_that_counts_are_refused():
    with pytest.raises(ConfigError, match=r"ids are \(2, 6\) and labels \(2, 5\); expected the same shape"):
        inputs.of_batch(HuggingFaceLike(), {"input_ids": IDS, "labels": IDS[:, 1:]})
    with pytest.raises(ConfigError, match=r"no position of the batch, .* has a target"):
        inputs.of_batch(HuggingFaceLike(), {"input_ids": IDS, "labels": torch.full_like(IDS, -100)})


@pytest.mark.parametrize("second", [torch.tensor([0, 1]), None])
def test_what_the_forward_cant_take_is_left_out_and_said(second):
    image = torch.randn(2, 3)
    made = inputs.of_batch(Plain(), iter([[image, second]]))
    assert made.args == (image,) and made.notes == (
        "the forward takes 1 of the batch's 2 values: the last 1 weren't given to it",
    )
    ids = inputs.of_batch(Plain(), (IDS, torch.tensor([0, 1])))
    assert ids.ids.tolist() == IDS.tolist() and ids.notes == made.notes
    assert len(inputs.of_batch(NanoLike(), (image, image)).args) == 2
    assert len(inputs.of_batch(nn.Sequential(nn.Linear(3, 3)), (image, image)).args) == 1


class Masks(Takes):
    def forward(self, x, attention_mask=None):
        return x, attention_mask


def test_labels_that_the_forward_isnt_given_are_kept_for_the_loss():
    image, labels = torch.randn(2, 3), torch.tensor([0, 1], dtype=torch.int32)
    for model in (Plain(), Masks()):
        made = inputs.of_batch(model, [image, labels])
        assert made.args == (image,) and made.labels.tolist() == [0, 1] and made.labels.dtype == torch.int64
    assert inputs.of_batch(Plain(), (IDS, labels)).labels.tolist() == [0, 1]
    assert inputs.of_batch(Masks(), (image, torch.ones(2, 3))).labels is None
    assert inputs.of_batch(Plain(), (image, None)).labels is None


def test_a_scalar_counts_as_one():
    assert Inputs(args=(torch.tensor(0.5), torch.randn(2, 3))).n_tokens == 1


class Source(Takes):
    def forward(self, src, tgt):
        return src, tgt


class Supervised(Takes):
    def forward(self, x, y):
        return x, y


def test_two_ids_for_a_forward_that_needs_two_are_its_arguments():
    made = inputs.of_batch(Source(), (IDS, IDS + 1))
    assert made.args[0] is IDS and made.args[1].tolist() == (IDS + 1).tolist()
    assert made.ids.tolist() == (IDS + 1).tolist()
    assert made.targets.tolist() == inputs.next_tokens(IDS + 1).tolist()
    assert inputs.of_batch(Source(), (IDS, IDS[:, :3])).ids.shape == (2, 3)


def test_needed_targets_are_targets():
    made = inputs.of_batch(Supervised(), (IDS, NEXT))
    assert made.targets is not None and made.targets.tolist() == NEXT.tolist()
    x, y = inputs.of_batch(Supervised(), IDS).args
    assert (x.tolist(), y.tolist()) == (IDS[:, :-1].tolist(), IDS[:, 1:].tolist())


def test_ids_alone_for_a_forward_that_needs_two_stand_for_both():
    made = inputs.of_batch(Source(), IDS)
    assert [each.tolist() for each in made.args] == [IDS.tolist()] * 2
    assert made.notes == ("made here: src (2, 6) int64, tgt (2, 6) int64",)


def test_targets_in_a_dict_are_targets_and_a_decoders_ids_are_what_is_predicted():
    made = inputs.of_batch(NanoLike(), {"idx": IDS, "targets": IDS + 1})
    assert made.ids is IDS and made.targets.tolist() == (IDS + 1).tolist() and "targets" in made.kwargs
    made = inputs.of_batch(Source(), {"src": IDS, "tgt": IDS + 1})
    assert made.ids.tolist() == (IDS + 1).tolist()
    assert inputs.of_batch(Plain(), {"whatever": IDS}).ids is IDS
