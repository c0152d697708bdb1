"""Every class of transformers' lists of causal, masked and sequence-to-sequence models, small."""

from __future__ import annotations

import copy
from functools import cache, partial
from typing import Any

import torch
from tiny_transformers import LAYERS, TASKS, build
from torch import nn
from transformers import AutoConfig
from zoo import Case, D

# Blocks that aren't attention and MLP: what they are, and the least number of blocks with attention.
HYBRID = ("blocks of two kinds, with and without attention", 1)
SCAN = ("no attention: a state space or a recurrence", 0)
STREAMS = ("hyper-connections: several streams", LAYERS)
CONVOLVED = ("short convolutions on what is read or written", LAYERS)
APPROXIMATE = ("attention in chunks, by hashes or by landmarks", 1)
OTHER: dict[str, tuple[str, int]] = {
    **dict.fromkeys(
        ("bailing_hybrid", "bamba", "granitemoehybrid", "jamba", "kimi_linear", "lara_mini", "lfm2_moe", "lfm3",
         "minimax", "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text",
         "qwen3_next", "qwen4_exp", "qwen4_exp_text", "recurrent_gemma", "zamba", "zamba2"), HYBRID,
    ),
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"), SCAN),
    **dict.fromkeys(("deepseek_v4", "hy_v4"), STREAMS),
    **dict.fromkeys(("inkling_text", "inkling2_text", "inkling2_loop_text", "convbert"), CONVOLVED),
    **dict.fromkeys(
        ("mra", "yoso", "nystromformer", "reformer", "longformer", "led", "longt5", "pegasus_x"), APPROXIMATE,
    ),
    "falcon_h1": ("attention and a state space side by side", LAYERS),
    "fnet": ("Fourier transforms in place of attention", 0),
    "funnel": ("pools the sequence between blocks", LAYERS),
    "perceiver": ("a stream of latents that reads bytes", 1),
    "hrm_text": ("two stacks that run in a loop", 1),
    "gemma3n": ("several streams", LAYERS),
    "blt": ("three stacks over bytes and patches", LAYERS),
}  # fmt: skip


class NotBuilt(Exception):
    """No small model of the class runs forward and backward."""


@cache
def small(model_type: str, class_name: str) -> tuple[type[nn.Module], Any]:
    """The class and a config of it that runs."""
    row: dict[str, Any] = {}
    model = build(model_type, class_name, row, width=D)
    if row.get("runs") != "yes":
        raise NotBuilt(row["runs"] if row.get("built") == "yes" else row.get("built", "no variant was built"))
    return type(model), model.config


def make(model_type: str, class_name: str) -> nn.Module:
    """The model, drawn from torch's random state as it is now."""
    state = torch.get_rng_state()
    cls, config = small(model_type, class_name)
    torch.set_rng_state(state)
    return cls(copy.deepcopy(config))


def two_stacks(model_type: str) -> bool:
    """Whether the config says that it has an encoder and a decoder."""
    return bool(getattr(AutoConfig.for_model(model_type), "is_encoder_decoder", False))


def cases(task: str) -> list[Case]:
    """A row for every entry of one list."""
    found = []
    for model_type, name in TASKS[task][1].items():
        class_name = name if isinstance(name, str) else name[0]
        blocks = LAYERS
        if task != "causal" and two_stacks(model_type):
            blocks = 2 * LAYERS
        why, attention = OTHER.get(model_type, ("", blocks))
        mlp = LAYERS if model_type == "fnet" else 1 if why else blocks
        made = partial(make, model_type, class_name)
        found.append(
            Case(
                f"hf-{task}", model_type, made, attention, mlp, why not in (STREAMS[0], "several streams"), not why, why
            )
        )
    return found
