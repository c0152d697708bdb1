"""What a forward that nobody described is given: by names, annotations and the first layers."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from initlab.anatomy.arguments import Maker, kind_of
from initlab.anatomy.inputs import ways
from initlab.errors import ConfigError
from initlab.measure.batches import inputs_for
from initlab.options import Text

IDS = torch.randint(50, (2, 6), generator=torch.Generator().manual_seed(0))


def kinds(forward, *, reads_ids):
    wanted = list(inspect.signature(forward).parameters.values())
    return [kind_of(each, reads_ids=reads_ids, first=place == 0) for place, each in enumerate(wanted)]


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda x: 0, ["ids"]),
        (lambda src, tgt: 0, ["ids", "ids"]),
        (lambda src, tgt, src_mask, tgt_mask: 0, ["ids", "ids", "mask", "mask"]),
        (lambda input_ids, attention_mask, token_type_ids: 0, ["ids", "padding", "segments"]),
        (lambda input_ids, decoder_input_ids: 0, ["ids", "ids"]),
        (lambda image, text: 0, ["images", "ids"]),
        (lambda tgt, memory: 0, ["ids", "vectors"]),
        (lambda tokens, start_pos: 0, ["ids", "offset"]),
        (lambda idx, targets: 0, ["ids", "targets"]),
        (lambda x, lengths: 0, ["ids", "sizes"]),
        (lambda x, oracle: 0, ["ids", ""]),
    ],
)
def test_arguments_of_a_model_of_tokens(forward, expected):
    assert kinds(forward, reads_ids=True) == expected


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda x, t, y: 0, ["vectors", "time", "classes"]),
        (lambda left, right: 0, ["vectors", "vectors"]),
        (lambda x, adj: 0, ["vectors", "adjacency"]),
        (lambda x, edge_index, batch: 0, ["vectors", "edges", "members"]),
        (lambda sample, timestep: 0, ["vectors", "time"]),
        (lambda x, temperature: 0, ["vectors", ""]),
        (lambda pixel_values: 0, ["images"]),
    ],
)
def test_arguments_of_a_model_of_vectors(forward, expected):
    assert kinds(forward, reads_ids=False) == expected


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("Int[Tensor, 'b t']", "ids"),
        ("Union[str, List[str], Int[torch.Tensor, 'batch pos']]", "ids"),
        ("torch.LongTensor", "ids"),
        ("Float[Tensor, 'b t d']", "vectors"),
        (torch.LongTensor, "ids"),
        (int, "offset"),
        ("int", "offset"),
    ],
)
def test_annotations_say_what_names_dont(annotation, expected):
    parameter = inspect.Parameter("given", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)
    assert kind_of(parameter, reads_ids=True, first=False) == expected


class Both(nn.Module):
    """Tables of two sizes and a mask for each side."""

    def __init__(self):
        super().__init__()
        self.src_embed, self.tgt_embed, self.generator = nn.Embedding(20, 8), nn.Embedding(50, 8), nn.Linear(8, 50)

    def forward(self, src, tgt, src_mask, tgt_mask):
        return self.generator(self.tgt_embed(tgt))


def test_each_side_has_ids_of_its_own_table_and_the_logits_are_the_decoders():
    made = next(ways(Both(), IDS, IDS))
    src, tgt, src_mask, tgt_mask = made.args
    assert src.tolist() == (IDS % 20).tolist() and tgt.tolist() == IDS.tolist()
    assert src_mask.all() and tgt_mask.tolist() == torch.ones(6, 6).tril().bool().tolist()
    assert made.ids is tgt and made.targets.tolist() == IDS.tolist()
    assert made.notes == (
        "made here: src (2, 6) int64, tgt (2, 6) int64, src_mask (6, 6) bool, all True, "
        "tgt_mask (6, 6) bool, True on and below the diagonal",
    )


class Diffusion(nn.Module):
    def __init__(self):
        super().__init__()
        self.t_embedder, self.x_embedder = nn.Linear(16, 8), nn.Conv2d(4, 8, 2, 2)
        self.y_embedder, self.input_size, self.num_classes = nn.Embedding(11, 8), 16, 10

    def forward(self, x, t, y):
        return x


def test_latents_steps_and_classes():
    x, t, y = next(ways(Diffusion(), None)).args
    assert x.shape == (4, 4, 16, 16) and t.shape == (4,) and y.shape == (4,) and int(y.max()) < 10


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.image_proj, self.audio_proj = nn.Linear(20, 8), nn.Linear(12, 8)

    def forward(self, audio, sound_and_image):
        return audio


def test_several_vectors_take_the_layer_of_their_name_else_their_number():
    shapes = [[tuple(value.shape) for value in made.args] for made in ways(Named(), None)]
    assert shapes[0] == [(64, 12), (64, 20)]


class Needs(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.cfg = nn.Embedding(50, 8), SimpleNamespace(n_ctx=12)

    def forward(self, x, oracle, *, mask):
        return x


def test_what_cant_be_made_is_asked_for_by_name():
    line = 'initlab.probe(model, batch={"x": torch.randint(0, 50, (4, 12)), "oracle": ..., "mask": '
    with pytest.raises(ConfigError, match=r"made for Needs\(x, oracle, \*, mask\): nothing is known of oracle;") as e:
        next(ways(Needs(), IDS, IDS))
    assert line in str(e.value)


class Transcribes(nn.Module):
    """Reads so many frames that two convolutions leave as many as there are positions, and writes tokens."""

    main_input_name = "input_features"

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=True, vocab_size=30)
        self.conv1, self.conv2 = nn.Conv1d(5, 8, 3, padding=1), nn.Conv1d(8, 8, 3, stride=2, padding=1)
        self.embed_positions, self.embed_tokens = nn.Embedding(20, 8), nn.Embedding(30, 8)

    def forward(self, input_features=None, attention_mask=None, decoder_input_ids=None, labels=None):
        x = self.conv2(self.conv1(input_features)).mT + self.embed_positions.weight
        y = self.embed_tokens(decoder_input_ids) + x.mean(1, keepdim=True)
        return y @ self.embed_tokens.weight.T


def test_what_a_decoder_writes_of_another_input_is_made_with_it():
    made, described = inputs_for(Transcribes(), None, text=Text("uniform"), seed=0)
    assert made.kwargs["decoder_input_ids"] is made.ids and "labels" not in made.kwargs
    assert made.args[0].shape[1:] == (5, 40) and len(made.args) == 1
    assert described["vocab_size"] == 30 and made.targets.max() < 30


def test_arguments_by_keyword_are_given_so():
    class Keyword(Both):
        def forward(self, src, *, tgt):
            return tgt

    made = next(ways(Keyword(), IDS, IDS))
    assert list(made.kwargs) == ["tgt"] and len(made.args) == 1
    assert [each.keyword for each in Maker(Keyword(), IDS, IDS, 0).arguments()] == [False, True]
