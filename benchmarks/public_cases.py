"""The reports that `public_reports.py` measures: what was wrong in each, and what must be said of it."""

from __future__ import annotations

from functools import partial

import torch
from public_models import (
    Adapted,
    Block,
    D,
    Decoder,
    Encoder,
    EncoderOnly,
    Experts,
    FeedForward,
    Labelled,
    Report,
    Shifted,
)
from torch import nn


def positions_zero() -> nn.Module:
    """The position table is zeros."""
    model = Decoder()
    nn.init.zeros_(model.places.weight)
    return model


def tie_lost() -> nn.Module:
    """The config says tied, the storage was made anew."""
    model = Decoder(config={"tie_word_embeddings": True}, tied=True)
    model.head.weight = nn.Parameter(0.02 * torch.randn(model.head.weight.shape))
    return model


def shared_feed() -> nn.Module:
    """One feed-forward in every block."""
    model = Decoder()
    for layer in model.layers:
        layer.feed = model.layers[0].feed
    return model


def added_rows() -> nn.Module:
    """The vocabulary's last rows at torch's std 1."""
    model = Decoder()
    nn.init.normal_(model.words.weight[240:])
    return model


def shards() -> nn.Module:
    """Every rank drew the same quarter."""
    model = Decoder()
    with torch.no_grad():
        for parameter in model.layers.parameters():
            if parameter.dim() == 2:
                parameter.copy_(parameter[: len(parameter) // 4].repeat(4, 1))
    return model


def sinusoids(times: float) -> nn.Module:
    """A table at d^-0.5 beside sinusoids."""
    model = Decoder(positions="fixed", times=times)
    nn.init.normal_(model.words.weight, 0, D**-0.5)
    return model


def steep(scale: float | None) -> nn.Module:
    """Queries and keys of unit variance."""
    model = Decoder(make=partial(Block, scale=scale))
    for layer in model.layers:
        for each in (layer.attention.query, layer.attention.key):
            nn.init.normal_(each.weight, 0, 0.09)
    return model


def mixture(alike: bool) -> nn.Module:
    """Experts, drawn one by one or all as the first."""
    model = Decoder(make=partial(Block, feed=Experts))
    for layer in model.layers if alike else ():
        for expert in layer.feed.experts:
            expert.load_state_dict(layer.feed.experts[0].state_dict())
    return model


def adapted(drawn: bool) -> nn.Module:
    """Low-rank adapters on the values."""
    model = Decoder()
    for layer in model.layers:
        layer.attention.value = Adapted()
        nn.init.normal_(layer.attention.value.base.weight, 0, 0.02)
        if drawn:
            nn.init.kaiming_uniform_(layer.attention.value.lora_A, 5**0.5)
    return model


class Projected(Decoder):
    """The head is a parameter of its own."""

    def __init__(self, empty: bool):
        super().__init__()
        self.head = nn.Identity()
        self.text_projection = nn.Parameter(torch.empty(D, 256))
        if not empty:
            nn.init.normal_(self.text_projection, 0, 0.02)

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return super().logits(ids) @ self.text_projection


def blocks(**more: object) -> partial[nn.Module]:
    """A decoder of blocks of a kind."""
    return partial(Decoder, make=partial(Block, **more))


FED = partial(FeedForward, nn.Identity())
_PLAIN = Decoder
REPORTS = [
    Report(
        "karpathy/minGPT#62",
        "positions start at 0",
        positions_zero,
        _PLAIN,
        r"places|pos_embed",
        r"places|embed",
        first="partly",
    ),
    Report(
        "facebookresearch/fairseq#122",
        "token drowned by sinusoids",
        partial(sinusoids, 1.0),
        partial(sinusoids, D**0.5),
        r"position embedding|√n_embd",
        r"words|embed",
    ),
    Report(
        "allenai/OLMo-core#686",
        "tie lost",
        tie_lost,
        partial(Decoder, config={"tie_word_embeddings": True}, tied=True),
        r"two parameters|tie",
        r"head|words",
    ),
    Report(
        "pytorch/pytorch#86274",
        "all layers are one draw",
        partial(Encoder, fresh=False),
        Encoder,
        r"same draw|copies|identical",
        r"layers",
    ),
    Report(
        "FareedKhan-dev/train-llm-from-scratch#3",
        "scores by 1/√n_embd",
        partial(steep, D**-0.5),
        partial(steep, None),
        r"width|n_embd|head_size",
        r"attention",
    ),
    Report(
        "PAIR-code/tiny-transformers#71",
        "scores not divided",
        partial(steep, 1.0),
        partial(steep, None),
        r"head_size",
        r"attention",
    ),
    Report(
        "habla-liaa/encodecmae#3", "one FFN in all blocks", shared_feed, _PLAIN, r"shar|one module|held by", r"feed"
    ),
    Report(
        "pengzhangzhi/Open-dLLM#8",
        "added rows at std 1",
        added_rows,
        _PLAIN,
        r"rows 240",
        r"words",
    ),
    Report(
        "allenai/OLMo-core#307", "every shard the same draw", shards, _PLAIN, r"identical|same draw|repeat", r"layers"
    ),
    Report(
        "kyegomez/BitNet#32",
        "x = x + x",
        blocks(way="x = x + x"),
        _PLAIN,
        r"added|residual|replace",
        r"layers",
        first="missed",
    ),
    Report(
        "huggingface/transformers#404",
        "labels not shifted",
        Labelled,
        Shifted,
        r"token that is read|shift",
        r"label|loss",
        "labels",
    ),
    Report(
        "huggingface/transformers#27517",
        "targets are the ids",
        _PLAIN,
        _PLAIN,
        r"token that is read|shift",
        r"target|loss",
        "same",
        "next",
    ),
    Report("d2l-ai/d2l-en#1564", "no activation", blocks(feed=FED), _PLAIN, r"nonlinearity|activation", r"feed"),
    Report(
        "guocheng2025/Transformer-Encoder#1",
        "positions never added",
        partial(EncoderOnly, positions="unused", make=partial(Block, causal=False)),
        partial(EncoderOnly, make=partial(Block, causal=False)),
        r"positions? apart|add a position",  # at first any "position", which attention without a mask has too
        r"places|embed|position",
    ),
    Report(
        "laekov/fastmoe#4",
        "experts identical",
        partial(mixture, True),
        partial(mixture, False),
        r"same draw|identical|expert by itself",
        r"experts",
    ),
    Report(
        "circle-hit/SAPT#11",
        "LoRA A and B both 0",
        partial(adapted, False),
        partial(adapted, True),
        r"zero|\b0\b",
        r"lora",
    ),
    Report(
        "openai/CLIP#15",
        "torch.empty never filled",
        partial(Projected, True),
        partial(Projected, False),
        r"never|nothing|no line|not written|uninitiali",
        r"text_projection",
    ),
    Report(
        "jsbaan/transformer-from-scratch#6",
        "heads reshaped without a transpose",
        blocks(mixed=True),
        _PLAIN,
        r"reshape|earlier positions",
        r"logits|attention|layers",
    ),
    Report(
        "pytorch/pytorch#61165",
        "norm on the skip",
        blocks(way="normed skip"),
        _PLAIN,
        r"norm.*(skip|stream|sum|add)|isn't added|replace",
        r"layers|norm[12]",
        first="missed",
    ),
    Report(
        "IBM/TabFormer#14",
        "batch_first forgotten",
        partial(Encoder, batch_first=False),
        Encoder,
        r"batch_first|over the batch|first axis",
        r"logits|layers|batch",
        first="partly",
    ),
    Report(
        "huggingface/pytorch-image-models#2605",
        "LayerScale's init ignored",
        blocks(way="scale ignored"),
        blocks(way="scaled"),
        r"init_values|declare|1e-05",
        r"gamma|scale",
        first="missed",
    ),
]
