"""Faults from public bug reports, each planted in a small model of our own beside the same model as it was mended.

A report is reproduced by what it describes, not by its code: the sentence beside each says what was wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

D, HEADS, LAYERS, WORDS, T = 128, 4, 4, 256, 64


@dataclass(frozen=True)
class Report:
    """One report, and what of a warning or an error counts as naming its cause and its place.

    Attributes:
        source: owner/repository#number.
        fault: in a few words.
        broken: makes the model as reported.
        mended: makes the model as it was mended.
        cause: regular expression, of a finding's message or advice; empty for a control, a model that is as it
            should be though someone took it for broken: `quiet` where it draws no warning or error, else `alarm`.
        place: the same, of its message, advice or site.
        batch: what the broken model is measured on, a Batch's name; see `batch`.
        mended_batch: the mended one, if on another.
        first: the grade at its first measurement, where it is another than `caught`; kept when that changes.
    """

    source: str
    fault: str
    broken: Callable[[], nn.Module]
    mended: Callable[[], nn.Module]
    cause: str
    place: str
    batch: str = "next"
    mended_batch: str = ""
    first: str = "caught"

    @property
    def url(self) -> str:
        """Of the report; GitHub sends a pull request's number on."""
        return "https://github.com/{}/issues/{}".format(*self.source.split("#"))


def batch(name: str) -> Any:
    """Make the batch of a name: random ids with the `next` as targets, the `same`, `labels` by keyword, or `none`."""
    ids = torch.randint(0, WORDS, (8, T + 1), generator=torch.Generator().manual_seed(1))
    read, after = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    return {"next": (read, after), "same": (read, read), "none": None, "labels": {"input_ids": read, "labels": read}}[
        name
    ]


class Attention(nn.Module):
    def __init__(self, *, causal: bool = True, scale: float | None = None, mixed: bool = False):
        super().__init__()
        self.causal, self.scale, self.mixed = causal, scale, mixed
        self.query, self.key, self.value, self.out = (nn.Linear(D, D, bias=False) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        if self.mixed:
            return x.reshape(len(x), HEADS, x.shape[1], -1)
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(each(x)) for each in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor] = F.gelu):
        super().__init__()
        self.up, self.down, self.act = nn.Linear(D, 4 * D), nn.Linear(4 * D, D), act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.act(self.up(x)))
        return out


class Experts(nn.Module):
    """A mixture that weighs all its experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(D, 4, bias=False)
        self.experts = nn.ModuleList(FeedForward() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        return torch.stack([expert(x) for expert in self.experts], -1).mul(weights[..., None, :]).sum(-1)


class Adapted(nn.Module):
    """A linear map with a low-rank one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(D, D, bias=False)
        self.lora_A, self.lora_B = nn.Parameter(torch.zeros(8, D)), nn.Parameter(torch.zeros(D, 8))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + x @ self.lora_A.T @ self.lora_B.T
        return out


class LayerScale(nn.Module):
    def __init__(self, init_values: float, *, ignored: bool):
        super().__init__()
        self.init_values = init_values
        self.gamma = nn.Parameter(torch.ones(D) if ignored else init_values * torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm; `way` is how the sums are taken."""

    def __init__(self, way: str = "", feed: Callable[[], nn.Module] = FeedForward, **attention: Any):
        super().__init__()
        self.way = way
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attention, self.feed = Attention(**attention), feed()
        layer_scale = way in ("scaled", "scale ignored")
        made = partial(LayerScale, 1e-5, ignored=way == "scale ignored") if layer_scale else nn.Identity
        self.scale1, self.scale2 = made(), made()

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "x = x + x":
            x = self.attention(self.norm1(x))
            x = x + x
            x = self.feed(self.norm2(x))
            return x + x
        if self.way == "normed skip":
            x = self.norm1(x)
            x = x + self.attention(x)
            x = self.norm2(x)
            return x + self.feed(x)
        x = x + self.scale1(self.attention(self.norm1(x)))
        return x + self.scale2(self.feed(self.norm2(x)))


class Decoder(nn.Module):
    """nanoGPT's layout and init, in other names.

    Args:
        config: kept as it is.
        tied: the head is the table.
        positions: `learned`, `fixed` (sinusoids), or neither; `unused` is made and not added.
        times: what the table's rows are multiplied with.
        make: each block.
    """

    def __init__(
        self,
        *,
        config: dict[str, Any] | None = None,
        tied: bool = False,
        positions: str = "learned",
        times: float = 1.0,
        make: Callable[[], nn.Module] = Block,
    ):
        super().__init__()
        self.config, self.positions, self.times = config or {}, positions, times
        self.words = nn.Embedding(WORDS, D)
        if positions in ("learned", "unused"):
            self.places = nn.Embedding(T, D)
        angles = torch.arange(T)[:, None] / 10000 ** (torch.arange(0, D, 2) / D)
        self.register_buffer("waves", torch.cat([angles.sin(), angles.cos()], 1))
        self.layers = nn.ModuleList(make() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, WORDS, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 and "lora" not in name:
                output = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, 0, 0.02 / math.sqrt(2 * LAYERS) if output else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if tied:
            self.head.weight = self.words.weight

    def logits(self, ids: Tensor) -> Tensor:
        x = self.words(ids) * self.times
        if self.positions == "learned":
            x = x + self.places(torch.arange(ids.shape[1]))
        elif self.positions == "fixed":
            x = x + self.waves[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(self.norm(x))
        return out

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(ids)


class Labelled(Decoder):
    """Takes its own loss, of labels that are the ids."""

    shift = 0

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        logits = self.logits(input_ids)
        if labels is None:
            return {"logits": logits}
        read, asked = logits[:, : logits.shape[1] - self.shift], labels[:, self.shift :]
        return {"loss": F.cross_entropy(read.flatten(0, 1), asked.flatten()), "logits": logits}


class Shifted(Labelled):
    shift = 1


class EncoderOnly(Decoder):
    """Without a mask, by its own make of blocks, and by its name."""


class Encoder(nn.Module):
    """torch's own encoder, causal, with its layers as torch makes them or drawn anew."""

    def __init__(self, *, batch_first: bool = True, fresh: bool = True):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, D), nn.Embedding(T, D)
        layer = nn.TransformerEncoderLayer(D, HEADS, 4 * D, 0.0, "gelu", batch_first=batch_first, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(D), enable_nested_tensor=False)
        self.head = nn.Linear(D, WORDS, bias=False)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, 0, 0.02)
        for parameter in self.encoder.layers.parameters() if fresh else ():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        length = x.shape[1] if self.encoder.layers[0].self_attn.batch_first else x.shape[0]
        out: Tensor = self.head(self.encoder(x, nn.Transformer.generate_square_subsequent_mask(length)))
        return out
