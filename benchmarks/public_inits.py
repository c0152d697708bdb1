"""Reports of an init that never ran, ran over another or drew at another scale, for `public_reports.py`.

What must be said of each was written before its model was measured, but after what is said of models with the same
faults was known. muP's factors (microsoft/mup#71, EleutherAI/gpt-neox#956) aren't among them: they take several
widths, and so `initlab.scale`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from public_models import LAYERS, Block, D, Decoder, Encoder, Report
from torch import Tensor, nn
from torch.nn import functional as F


def drawn(name: str, std: float, config: dict[str, Any] | None = None) -> nn.Module:
    """The decoder with one matrix at another std."""
    model = Decoder(config=config)
    nn.init.normal_(model.get_parameter(name), 0, std)
    return model


def by_fan_in(everywhere: bool) -> nn.Module:
    """1/√fan_in, the depth's factor on the outputs alone or on every matrix of the blocks."""
    model = Decoder()
    for name, parameter in model.layers.named_parameters():
        if parameter.dim() > 1:
            depth = math.sqrt(2 * LAYERS) if everywhere or "out" in name or "down" in name else 1.0
            nn.init.normal_(parameter, 0, parameter.shape[1] ** -0.5 / depth)
    return model


def at_defaults() -> nn.Module:
    """The config's init was skipped: torch's own draws stay."""
    model = Decoder(config={"initializer_range": 0.02})
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.reset_parameters()
    return model


class Mixing(Decoder):
    """The first block's output is taken away again by a learned share, which `to_empty` leaves unwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.backout_lambda = nn.Parameter(torch.full((1,), 0.2))

    def logits(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        first = x = self.layers[0](x)
        for layer in self.layers[1:]:
            x = layer(x)
        out: Tensor = self.head(self.norm(x - self.backout_lambda * first))
        return out


def materialised(written: bool) -> nn.Module:
    """Made on the meta device, its memory then taken as it is, and everything but the share drawn."""
    with torch.device("meta"):
        model = Mixing()
    model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            nn.init.ones_(parameter)
        elif parameter.dim() > 1:
            output = name.endswith(("out.weight", "down.weight"))
            nn.init.normal_(parameter, 0, 0.02 / math.sqrt(2 * LAYERS) if output else 0.02)
        elif "lambda" not in name:
            nn.init.zeros_(parameter)
    model.waves = torch.zeros(model.waves.shape)
    if written:
        nn.init.constant_(model.backout_lambda, 0.2)
    return model


class Gain(nn.Module):
    """An RMS norm whose gain is memory as it is found, unless filled."""

    def __init__(self, filled: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(D))
        if filled:
            nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (D,), self.weight)


class GainBlock(Block):
    """With such norms."""

    def __init__(self, filled: bool):
        super().__init__()
        self.norm1, self.norm2 = Gain(filled), Gain(filled)  # type: ignore[assignment]


class Modulated(Block):
    """adaLN: the first position's stream sets the shift, the scale and the gate of each branch."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(D, 6 * D)
        self.close()

    def close(self) -> None:
        """Start as the identity."""
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor) -> Tensor:
        a, b, g, a2, b2, g2 = self.modulation(F.silu(x[:, :1])).chunk(6, -1)
        x = x + g * self.attention(self.norm1(x) * (1 + b) + a)
        return x + g2 * self.feed(self.norm2(x) * (1 + b2) + a2)


def modulated(closed_last: bool) -> nn.Module:
    """The decoder draws every matrix after its blocks were closed."""
    model = Decoder(make=Modulated)
    for layer in model.layers if closed_last else ():
        layer.close()
    return model


class Stepping(nn.Module):
    """A decay per channel, of a step size between 0.001 and 0.1 at the start, in place of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False)
        self.dt_proj = nn.Linear(D, D)
        self.start()

    def start(self) -> None:
        """Draw the step sizes, by the inverse of softplus."""
        steps = torch.exp(torch.rand(D) * math.log(100) + math.log(0.001))
        with torch.no_grad():
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))
        nn.init.uniform_(self.dt_proj.weight, -(D**-0.5), D**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        step, read = F.softplus(self.dt_proj(x)), self.value(x)
        state, states = torch.zeros_like(read[:, 0]), []
        for each in range(x.shape[1]):
            state = torch.exp(-step[:, each]) * state + step[:, each] * read[:, each]
            states.append(state)
        out: Tensor = self.out(torch.stack(states, 1))
        return out


class SteppingBlock(Block):
    """With such a mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Stepping()  # type: ignore[assignment]


def stepping(started_last: bool) -> nn.Module:
    """The decoder draws every matrix, and zeroes every bias, after the step sizes were drawn."""
    model = Decoder(make=SteppingBlock)
    for layer in model.layers if started_last else ():
        layer.attention.start()
    return model


def norm_after(first: bool) -> nn.Module:
    """torch's encoder at its own draw, 18 layers deep, with the norms before or after the sums."""
    torch.manual_seed(0)
    model = Encoder()
    layer = nn.TransformerEncoderLayer(D, 4, 4 * D, 0.0, batch_first=True, norm_first=first)
    model.encoder = nn.TransformerEncoder(layer, 18, nn.LayerNorm(D), enable_nested_tensor=False)
    for parameter in model.encoder.layers.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    return model


_RANGE = {"initializer_range": 0.02}
_UNWRITTEN = r"never|not written|unwritten|uninitiali|to_empty|no line|nothing"
_OVERWRITTEN = r"twice|overwr|written again|drawn again|drawn over|later|zeros"
INITS = [
    Report(
        "lmsdss/LayerNorm-Scaling#6",
        "table at std 0.6",
        partial(drawn, "words.weight", 0.6, _RANGE),
        partial(Decoder, config=_RANGE),
        r"std 0\.(6|59)",
        r"words",
    ),
    Report(
        "karpathy/nanochat#686",
        "scalar left by to_empty",
        partial(materialised, False),
        partial(materialised, True),
        _UNWRITTEN,
        r"backout_lambda",
    ),
    Report(
        "mosaicml/llm-foundry#1745",
        "norm gains never filled",
        partial(Decoder, make=partial(GainBlock, False)),
        partial(Decoder, make=partial(GainBlock, True)),
        _UNWRITTEN,
        r"norm[12]",
    ),
    Report(
        "SWivid/F5-TTS#793",
        "adaLN-Zero overwritten",
        partial(modulated, False),
        partial(modulated, True),
        _OVERWRITTEN,
        r"modulation",
    ),
    Report(
        "facebookresearch/lingua#39",
        "depth factor on all",
        partial(by_fan_in, True),
        partial(by_fan_in, False),
        r"not only|output projections alone|every matrix",
        r"layers|inner",
    ),
    Report(
        "pytorch/pytorch#55270",
        "deep post-norm",
        partial(norm_after, False),
        partial(norm_after, True),
        r"post-norm|norm_first|after the sum|vanish|warmup",
        r"encoder|layers|block|resid",
        first="partly",
    ),
    Report(
        "huggingface/transformers#43847",
        "the config's init skipped",
        at_defaults,
        partial(Decoder, config=_RANGE),
        r"initializer_range|torch's default",
        r"layers",
    ),
    Report(
        "athms/mad-lab#3",
        "step sizes overwritten",
        partial(stepping, False),
        partial(stepping, True),
        _OVERWRITTEN,
        r"dt_proj",
    ),
    Report(
        "huggingface/transformers#26441",
        "head at std 1",
        partial(drawn, "head.weight", 1.0),
        Decoder,
        r"std 1\b|std (0\.99|1\.0)|smaller std",
        r"head",
    ),
    Report(
        "huggingface/transformers#19341",
        "positions at std 1",
        partial(drawn, "places.weight", 1.0, _RANGE),
        partial(Decoder, config=_RANGE),
        r"std (1\b|0\.99|1\.0)|position embedding",
        r"places",
    ),
    Report(
        "pytorch/vision#5804",
        "head of zeros, as meant",
        partial(drawn, "head.weight", 0.0),
        Decoder,
        "",
        "",
        first="quiet",
    ),
]
