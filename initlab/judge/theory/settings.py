"""What the theory needs to know of a model and of its text, and how a recipe answers that."""

from __future__ import annotations

from dataclasses import dataclass, replace

from initlab.judge.activations import Activation
from initlab.recipes import Recipe, Role
from initlab.recipes.tabulating import gpt_dims

Norm = tuple[float, float]  # mean squares of gain and bias


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockScales:
    """Mean squares of one block's weights, biases, and norms' gains and biases."""

    qkv: float
    attn_out: float
    mlp_in: float
    mlp_out: float
    query_key: float | None = None  # geometric mean over q and k, where they aren't as qkv
    mlp_gate: float | None = None  # of a gated MLP, act(gate x) * (in x)
    qkv_bias: float = 0.0
    attn_out_bias: float = 0.0
    mlp_in_bias: float = 0.0
    mlp_gate_bias: float = 0.0
    mlp_out_bias: float = 0.0
    ln_1: Norm = (1.0, 0.0)
    ln_2: Norm = (1.0, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A pre-norm decoder: sizes, mean squares of the weights, and the text's statistics.

    LayerNorm and RMSNorm differ by 1/n_embd, which is neglected. Rotary positions (`position` 0) rotate q and k, which
    leaves their products' variance as it is.
    """

    n_embd: int
    block_size: int  # T
    vocab_size: int
    token: float
    position: float  # 0 without a table
    unembed: float
    blocks: tuple[BlockScales, ...]
    ln_f: Norm = (1.0, 0.0)
    tied: bool = True
    activation: Activation = "gelu"
    dropout: float = 0.0  # probability in force, 0 in eval mode; on attention weights and what enters the stream
    eps: float = 1e-5  # of the norms; nanoGPT's and torch's default
    mlp_width: int | None = None  # None: 4 n_embd
    attn_width: int | None = None  # heads times head size; None: n_embd
    embed_scale: float = 1.0  # multiplies what the embeddings give
    residual_scale: float = 1.0  # multiplies what a branch writes
    score_scale: float = 1.0  # of the attention logits, beside 1/sqrt(head size)
    logit_scale: float = 1.0
    parallel: bool = False  # attention and MLP read the same stream
    sum_p2: float  # probability that two tokens of the text are the same
    repeat_rate: float  # probability that the next token is the current one
    same_target: float | None = None  # that two positions of a sequence are to predict the same token; None: sum_p2

    @property
    def hidden(self) -> int:
        """Width of the MLP's activation."""
        return 4 * self.n_embd if self.mlp_width is None else self.mlp_width

    @property
    def attended(self) -> int:
        """Width of what the heads give to the attention's output projection."""
        return self.n_embd if self.attn_width is None else self.attn_width


def from_recipe(
    recipe: Recipe,
    *,
    n_layer: int,
    n_embd: int,
    n_head: int,
    block_size: int,
    vocab_size: int,
    bias: bool = True,
    tied: bool = True,
    activation: Activation = "gelu",
    dropout: float = 0.0,
    sum_p2: float,
    repeat_rate: float,
    same_target: float | None = None,
) -> Setting:
    """The setting of a NanoGPT drawn from a recipe. `block_size`: tokens in the measured sequences."""
    sizes = {
        "n_layer": n_layer,
        "n_embd": n_embd,
        "n_head": n_head,
        "block_size": block_size,
        "vocab_size": vocab_size,
    }

    def square(role: Role, layer: int = 0, of: Role | None = None) -> float:
        dims = replace(gpt_dims(of or role, **sizes, tied=tied), layer=layer)
        value = recipe(role, dims)
        return float(value.mean) ** 2 + float(value.std) ** 2

    def biased(layer: int, of: Role) -> float:
        return square(Role.BIAS, layer, of) if bias else 0.0

    norm = (square(Role.NORM_GAIN), square(Role.NORM_BIAS) if bias else 0.0)
    token = square(Role.TOKEN_EMBED)
    return Setting(
        n_embd=n_embd,
        block_size=block_size,
        vocab_size=vocab_size,
        token=token,
        position=square(Role.POS_EMBED),
        unembed=token if tied else square(Role.UNEMBED),
        blocks=tuple(
            BlockScales(
                qkv=square(Role.ATTN_QKV, layer),
                attn_out=square(Role.ATTN_OUT, layer),
                mlp_in=square(Role.MLP_IN, layer),
                mlp_out=square(Role.MLP_OUT, layer),
                qkv_bias=biased(layer, Role.ATTN_QKV),
                attn_out_bias=biased(layer, Role.ATTN_OUT),
                mlp_in_bias=biased(layer, Role.MLP_IN),
                mlp_out_bias=biased(layer, Role.MLP_OUT),
                ln_1=norm,
                ln_2=norm,
            )
            for layer in range(n_layer)
        ),
        ln_f=norm,
        tied=tied,
        activation=activation,
        dropout=dropout,
        sum_p2=sum_p2,
        repeat_rate=repeat_rate,
        same_target=same_target,
    )
