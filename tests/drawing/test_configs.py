"""Models of Hugging Face configs, at any depth."""

from __future__ import annotations

import re

import pytest

import initlab
from initlab.drawing.configs import blocks_of, is_config, model_of_config
from initlab.errors import ConfigError

pytestmark = pytest.mark.integration

transformers = pytest.importorskip("transformers")
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 256, "n_positions": 32}
QWEN = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}


def configs():
    """One that lists what each block is, and one whose sizes have names of its own."""
    qwen = transformers.Qwen2Config(**QWEN, intermediate_size=48, vocab_size=256)
    return [transformers.GPT2Config(**GPT2, bos_token_id=0, eos_token_id=0), qwen]


@pytest.mark.parametrize("config", configs(), ids=lambda config: config.model_type)
@pytest.mark.parametrize("n_layer", [1, 2, 3])
def test_a_configs_model_has_the_depth_that_is_asked_for(config, n_layer):
    assert is_config(config) and is_config(type(config)) and blocks_of(config) == 2
    model = model_of_config(config, n_layer)
    assert "CausalLM" in type(model).__name__ or "LMHead" in type(model).__name__
    assert model.config.num_hidden_layers == n_layer and config.num_hidden_layers == 2
    assert model.config.hidden_size == 32 and model.config.vocab_size == 256
    blocks = {found[1] for name, _ in model.named_parameters() if (found := re.search(r"\.(\d+)\.", name))}
    assert len(blocks) == n_layer


def test_recipes_are_compared_on_a_config():
    found = initlab.compare(["nanogpt", "xavier"], model=configs()[0], depths=[1, 2], seeds=1, stats="light")
    assert found.run.manifest["failed"] == {} and len(found.summary) == 4
    assert found.run.manifest["config"]["model"] == "GPT2LMHeadModel"
    with pytest.raises(ConfigError, match="widths was given, but GPT2Config takes no n_embd"):
        initlab.compare(["nanogpt"], model=configs()[0], widths=[64])
