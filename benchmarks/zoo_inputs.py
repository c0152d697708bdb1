"""Models of pictures, of two stacks, of other inputs than tokens, and models that are no transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import HEADS, LAYERS, MLP, Attention, Block, Case, D, RMSNorm, T, V, init

SIZE, PATCH = 32, 8
PATCHES = (SIZE // PATCH) ** 2


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, D, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.randn(1, 1, D) * 0.06)
        self.pos_embed = nn.Parameter(torch.randn(1, PATCHES + 1, D) * 0.06)
        self.blocks = nn.ModuleList([Block(causal=False) for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, 10)
        self.apply(init)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class DiTBlock(nn.Module):
    """Norms without gain, shifted, scaled and gated by the condition; the modulation starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(D, elementwise_affine=False) for _ in range(2))
        self.attn, self.mlp = Attention(causal=False), MLP()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(D, 6 * D))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(6, -1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """A diffusion transformer: noisy latents, times, classes."""

    def __init__(self, zero: bool = True):
        super().__init__()
        self.x_embedder = nn.Conv2d(4, D, 2, 2)
        self.register_buffer("pos_embed", sinusoids(64)[None])
        self.t_embedder = nn.Sequential(nn.Linear(64, D), nn.SiLU(), nn.Linear(D, D))
        self.y_embedder = nn.Embedding(11, D)
        self.blocks = nn.ModuleList([DiTBlock() for _ in range(LAYERS)])
        self.norm_final = nn.LayerNorm(D, elementwise_affine=False)
        self.adaLN_final, self.linear_final = nn.Sequential(nn.SiLU(), nn.Linear(D, 2 * D)), nn.Linear(D, 16)
        self.apply(init)
        zeroed = [*(block.adaLN_modulation[1] for block in self.blocks), self.adaLN_final[1], self.linear_final]
        for layer in zeroed if zero else ():
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.x_embedder(x).flatten(2).transpose(1, 2)
        x = x + self.pos_embed[:, : x.shape[1]]
        speeds = torch.exp(-math.log(10000) * torch.arange(32) / 32)
        angles = t[:, None].float() * speeds
        c = self.t_embedder(torch.cat([angles.cos(), angles.sin()], -1)) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.adaLN_final(c)[:, None].chunk(2, -1)
        return self.linear_final(self.norm_final(x) * (1 + scale) + shift)


def sinusoids(length: int) -> Tensor:
    """Fixed positions, (length, D)."""
    angles = torch.arange(length)[:, None] * torch.exp(-math.log(10000) * torch.arange(D // 2) / (D // 2))
    return torch.cat([angles.sin(), angles.cos()], -1)


class Cross(nn.Module):
    """A decoder's block: own tokens, the encoder's, MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_norm = nn.ModuleList([RMSNorm() for _ in range(3)])
        self.self_attn, self.cross_attn, self.ff = Attention(relative=True), Attention(causal=False), MLP(F.relu, False)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm[0](x))
        x = x + self.cross_attn(self.layer_norm[1](x), memory)
        return x + self.ff(self.layer_norm[2](x))


class T5Like(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(V, D)
        self.encoder = nn.ModuleList(
            [Block(causal=False, relative=True, norm=RMSNorm, mlp=partial(MLP, F.relu, False)) for _ in range(LAYERS)]
        )
        self.decoder = nn.ModuleList([Cross() for _ in range(LAYERS)])
        self.encoder_norm, self.decoder_norm = RMSNorm(), RMSNorm()
        self.lm_head = nn.Linear(D, V, bias=False)
        self.apply(init)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        memory, x = self.shared(src), self.shared(tgt)
        for block in self.encoder:
            memory = block(memory)
        memory = self.encoder_norm(memory)
        for block in self.decoder:
            x = block(x, memory)
        return self.lm_head(self.decoder_norm(x))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(V, D), kind(D, D, 2, batch_first=True), nn.Linear(D, V)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(ids))[0])


class Series(nn.Module):
    """A forecaster: (B, T, 7) in, one value out."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(7, D, batch_first=True), nn.Linear(D, 1)

    def forward(self, series: Tensor) -> Tensor:
        return self.out(self.gru(series)[0][:, -1])


class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(D, D, 3, padding=1, bias=False), nn.Conv2d(D, D, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(D), nn.BatchNorm2d(D)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Pictures(nn.Module):
    """Convolutions: a stem, blocks, a mean, a head."""

    def __init__(self, block: Callable[[], nn.Module]):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, D, 4, 4), nn.Sequential(*[block() for _ in range(LAYERS)])
        self.head = nn.Linear(D, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(D, D, 7, padding=3, groups=D), nn.LayerNorm(D)
        self.pwconv1, self.pwconv2 = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        self.gamma = nn.Parameter(torch.full((D,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(h)))).permute(0, 3, 1, 2)


class Mixer(nn.Module):
    """MLPs over patches, then over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.token_mix = nn.Sequential(nn.Linear(PATCHES, 64), nn.GELU(), nn.Linear(64, PATCHES))
        self.channel_mix = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))


class MLPMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.layers = nn.Conv2d(3, D, PATCH, PATCH), nn.ModuleList([Mixer() for _ in range(LAYERS)])
        self.head = nn.Linear(D, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class Graph(nn.Module):
    """Convolutions over a graph: node features and an adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(16, D), nn.Linear(D, 7)
        self.layers = nn.ModuleList([nn.Linear(D, D) for _ in range(LAYERS)])

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        x = self.inp(x)
        for layer in self.layers:
            x = F.relu(layer(adj @ x))
        return self.out(x)


class Recommender(nn.Module):
    """Two ids a row."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(100, D), nn.Embedding(50, D)
        self.mlp = nn.Sequential(nn.Linear(2 * D, D), nn.ReLU(), nn.Linear(D, 1))

    def forward(self, user_ids: Tensor, item_ids: Tensor) -> Tensor:
        return self.mlp(torch.cat([self.users(user_ids), self.items(item_ids)], -1))


class Captioner(nn.Module):
    """A picture and the words so far."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.embed = ViT(), nn.Embedding(V, D)
        self.vision.head = nn.Identity()
        self.blocks, self.head = nn.ModuleList([Block() for _ in range(LAYERS)]), nn.Linear(D, V)
        self.apply(init)

    def forward(self, image: Tensor, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids) + self.vision(image)[:, None]
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class MLPRegressor(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, D), nn.Tanh(), nn.Linear(D, D), nn.Tanh(), nn.Linear(D, 1))


class GatedScan(nn.Module):
    """A state-space block in small: a decaying sum over time, gated."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.in_proj, self.out_proj = RMSNorm(), nn.Linear(D, 2 * D), nn.Linear(D, D)
        self.A_log = nn.Parameter(torch.zeros(D))

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.in_proj(self.norm(x)).chunk(2, -1)
        decay = torch.exp(-torch.exp(self.A_log))
        states, state = [], torch.zeros_like(value[:, 0])
        for step in value.unbind(1):
            state = decay * state + (1 - decay) * step
            states.append(state)
        return x + self.out_proj(torch.stack(states, 1) * F.silu(gate))


class StateSpace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.max_seq_len = nn.Embedding(V, D), T
        self.layers, self.head = nn.ModuleList([GatedScan() for _ in range(LAYERS)]), nn.Linear(D, V)
        self.apply(init)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def torch_cases() -> list[Case]:
    """torch's own transformers, with both places of the norm."""
    sizes = {"d_model": D, "nhead": HEADS, "dim_feedforward": 4 * D, "batch_first": True}

    def encoder(**more: object) -> nn.Module:
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(**sizes, **more), LAYERS, enable_nested_tensor=False)

    def decoder(**more: object) -> nn.Module:
        return nn.TransformerDecoder(nn.TransformerDecoderLayer(**sizes, **more), LAYERS)

    def both(**more: object) -> nn.Module:
        return nn.Transformer(num_encoder_layers=LAYERS, num_decoder_layers=LAYERS, **sizes, **more)

    cases = []
    for first in (False, True):
        word = "pre-norm" if first else "post-norm"
        for name, make, blocks in (
            ("TransformerEncoder", encoder, LAYERS),
            ("TransformerDecoder", decoder, LAYERS),
            ("Transformer", both, 2 * LAYERS),
        ):
            made = partial(make, norm_first=first)
            cases.append(Case("torch", f"nn.{name}, {word}", made, attention=blocks, mlp=blocks))
    gelu = partial(encoder, norm_first=True, activation="gelu")
    cases.append(Case("torch", "nn.TransformerEncoder, pre-norm, gelu", gelu))
    layer = partial(nn.TransformerEncoderLayer, **sizes)
    cases.append(Case("torch", "nn.TransformerEncoderLayer", layer, 1, 1, why="one layer alone"))
    return cases


by_hand = partial(Case, "by-hand")
odd = partial(Case, "odd", attention=0, mlp=0, stream=False, plain=False)
CASES = [
    by_hand("ViT", ViT),
    by_hand("DiT, adaLN-Zero", DiT, why="modulated by a condition"),
    by_hand("DiT, modulation drawn", partial(DiT, False), why="modulated by a condition"),
    by_hand("T5-like", T5Like, attention=2 * LAYERS, mlp=2 * LAYERS),
    *torch_cases(),
    odd("LSTM", partial(Recurrent, nn.LSTM), why="recurrent"),
    odd("GRU", partial(Recurrent, nn.GRU), why="recurrent"),
    odd("GRU of a series", Series, why="recurrent"),
    odd("state space", StateSpace, stream=True, why="a scan over time"),
    odd("ResNet", partial(Pictures, Bottleneck), why="convolutions"),
    odd("ConvNeXt", partial(Pictures, ConvNeXt), stream=True, mlp=LAYERS, why="convolutions"),
    odd("MLP-Mixer", MLPMixer, stream=True, mlp=LAYERS, why="no attention"),
    odd("MLP", MLPRegressor, why="no blocks"),
    odd("graph (x, adj)", Graph, why="two inputs"),
    odd("recommender (users, items)", Recommender, why="two inputs"),
    odd("captioner (image, ids)", Captioner, attention=LAYERS, mlp=LAYERS, stream=True, why="two inputs, two stacks"),
]
