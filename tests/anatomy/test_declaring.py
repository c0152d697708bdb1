"""What configs declare of an init, in the words that they use."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import initlab
from initlab.anatomy.declaring import declarations
from initlab.anatomy.look import of
from initlab.judge.rules import Finding


class Tower(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(nn.functional.layer_norm(x, (32,)))))


class Language(nn.Module):
    """A config in any form, blocks that hold it or one of their own, a head that is tied or not."""

    def __init__(self, config: Any, *, tie: bool = False, scale: float = 1.0, inner: Any = None, std: float = 0.02):
        super().__init__()
        self.config, self.scale = config, scale
        self.words = nn.Embedding(96, 32)
        self.blocks = nn.ModuleList(Tower(config if inner is None else inner) for _ in range(3))
        self.readout = nn.Linear(32, 96, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, 0, std)
        if tie:
            self.readout.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) * self.scale
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.readout(nn.functional.layer_norm(x, (32,)))
        return logits


def said(model: nn.Module) -> dict[str, tuple[float, str]]:
    anatomy = of(model)
    found = declarations(model, anatomy.parameters, anatomy.wirings)
    return {each.kind: (each.said, each.name) for each in found}


def failed(model: nn.Module) -> dict[str, Finding]:
    found = initlab.probe(model).judge(select=["INI008", "INI009"])
    return {each.code: each for each in found if each.status == "fail"}


@pytest.mark.parametrize(
    ("config", "kind", "value"),
    [
        ({"initializer_range": 0.02}, "std", 0.02),
        (SimpleNamespace(init_std=0.1), "std", 0.1),
        (SimpleNamespace(tie_word_embeddings=True), "tied", 1.0),
        ({"weight_tying": True}, "tied", 1.0),
        ({"share_input_output_embed": True}, "tied", 1.0),
        ({"untie_embeddings_and_output_weights": True}, "tied", 0.0),
        (SimpleNamespace(text_config=SimpleNamespace(tie_embeddings=False)), "tied", 0.0),
    ],
)
def test_a_declaration_is_read_in_the_words_that_configs_use(config: Any, kind: str, value: float) -> None:
    assert said(Language(config))[kind][0] == value


@pytest.mark.parametrize("config", [{}, {"vocab_size": 96, "dropout": 0.1}, {"tie_encoder_decoder": True}])
def test_other_keys_declare_nothing(config: Any) -> None:
    assert set(said(Language(config))) <= {"std"} and said(Language(config)).get("std", ("", ""))[1] == ""


def test_a_config_counts_for_the_part_that_holds_it() -> None:
    outer, inner = {"initializer_range": 0.02}, {"hidden_size": 32}
    assert "INI008" in failed(Language(outer, std=0.5))
    assert "INI008" not in failed(Language(outer, inner=inner, std=0.5))  # the blocks' own config says nothing


def test_a_std_that_the_weights_dont_have_is_named() -> None:
    torch.manual_seed(0)
    model = Language({"initializer_range": 0.02})
    assert failed(model) == {}
    nn.init.normal_(model.words.weight, 0, 0.6)
    text = failed(model)["INI008"].message
    assert "config.initializer_range is 0.02, but words.weight has std 0.6" in text
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.reset_parameters()
    assert "uniform" in failed(model)["INI008"].message


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Language({"tie_word_embeddings": True}), "readout.weight and words.weight are two parameters"),
        (Language({"tie_word_embeddings": False}, tie=True), "readout.weight and words.weight are one parameter"),
        (Language({"scale_embedding": True}), "multiplied with 5.66, but words.weight enters × 1"),
        (Language({"embedding_multiplier": 12.0}), "multiplied with 12, but words.weight enters × 1"),
    ],
)
def test_what_is_not_as_declared_is_named(model: nn.Module, words: str) -> None:
    found = failed(model)
    assert words in found["INI009"].message and found["INI009"].severity == "warning"


@pytest.mark.parametrize(
    "model",
    [
        Language({"tie_word_embeddings": True}, tie=True),
        Language({"tie_word_embeddings": False}),
        Language({"scale_embedding": True}, scale=32**0.5),
        Language({"scale_embedding": False}),
        Language({"embedding_multiplier": 12.0}, scale=12.0),
    ],
)
def test_what_is_as_declared_draws_nothing(model: nn.Module) -> None:
    assert failed(model) == {}


class LayerScale(nn.Module):
    def __init__(self, init_values: float, gain: float):
        super().__init__()
        self.init_values, self.gamma = init_values, nn.Parameter(torch.full((32,), gain))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Scaled(Tower):
    def __init__(self, gain: float):
        super().__init__({})
        self.scale = LayerScale(0.1, gain)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale(super().forward(x) - x)


def test_a_layer_scale_that_isnt_what_its_own_module_says_is_named() -> None:
    models = [Language({}), Language({})]
    for model, gain in zip(models, (1.0, 0.1), strict=True):
        model.blocks = nn.ModuleList(Scaled(gain) for _ in range(3))
    assert "blocks.0.scale.init_values" in failed(models[0])["INI009"].message
    assert failed(models[1]) == {}


class Said(Language):
    embed_scale: float

    def forward(self, ids: Tensor) -> Tensor:
        self.scale = self.embed_scale / 2
        return super().forward(ids)


class Unread(Language):
    """Inherits a forward that doesn't read what its instances hold."""


def test_a_plain_attribute_says_what_enters_only_where_the_forward_reads_it() -> None:
    read, unread = Said({}), Unread({}, scale=8.0)
    read.embed_scale, unread.embed_scale = 4.0, 1.0  # type: ignore[assignment]
    assert "multiplied with 4, but words.weight enters × 2" in failed(read)["INI009"].message
    assert failed(unread) == {}
