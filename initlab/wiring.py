"""How a model is wired, in the names of its own parameters: what the closed form must know beside the weights.

Read from the operations of a pass (`initlab.anatomy`), or written down for a model that nobody has built. No torch:
the half that judges reads it, and it can be stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Activation = str | Callable[[Array], Array]


def family(name: str) -> str:
    """Name a parameter without its numbers: `h.*.mlp.weight` of `h.3.mlp.weight`, the same one of every block.

    Args:
        name: dotted.
    """
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A normalisation over the last dimension.

    Attributes:
        module: dotted name of the module that normalises, the nearest one where it is no module of its own.
        gain: dotted name of the parameter that multiplies, None without one.
        bias: of the parameter that is added.
        offset: what is added to the stored gain (Gemma's norms: 1).
        eps: added to the mean square, or to the variance.
        centred: the mean is taken off first, as LayerNorm does and RMSNorm doesn't.
        scale: what the result is multiplied with beside the gain.
        size: features that are normalised together.
    """

    module: str
    gain: str | None = None
    bias: str | None = None
    offset: float = 0.0
    eps: float = 0.0
    centred: bool = True
    scale: float = 1.0
    size: int = 0


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A matrix, or the part of a fused one.

    Attributes:
        weight: dotted name of the parameter.
        bias: of the parameter that is added, None without one.
        fan_in: features that go in.
        fan_out: features that come out, of this part.
        start: first of the fused matrix's output features that are this part's.
        fused: output features of the whole parameter; `fan_out` where it isn't fused.
        pieces: of the fused matrix's output features those that are this part's, (first, one past the last); several
            where those of a head stand beside its other parts. Empty: they stand together.
        module: dotted name of the module that applies it, the nearest one where it is no module of its own.
        square: mean square of the matrix where it is computed from the parameter, as by weight norm; None where it is
            the parameter.
    """

    weight: str
    fan_in: int
    fan_out: int
    bias: str | None = None
    start: int = 0
    fused: int = 0
    pieces: tuple[tuple[int, int], ...] = ()
    module: str = ""
    square: float | None = None

    @property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Output features that are this part's, (first, one past the last)."""
        return self.pieces or ((self.start, self.start + self.fan_out),)


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention, from what its branch's norm gives to what its output projection gives.

    Attributes:
        query: matrix of the queries; of a low-rank one, the last.
        key: of the keys.
        value: of the values.
        out: of the output projection.
        n_head: heads of the queries.
        n_kv_head: heads of keys and values; fewer where queries share them.
        head_size: features of a head's query.
        score_scale: what q·k is multiplied with before the softmax; 1/sqrt(head_size) in most.
        query_scale: the part of it that the queries are multiplied with before they enter the product.
        key_scale: the keys' part.
        query_norm: between the query's matrix and the scores; its `size` is the head's or the whole width.
        key_norm: of the keys.
        head_gain: dotted name of a parameter with one number a head that multiplies what the head gives, before
            `out_norm`; None without one.
        out_norm: between what the heads give and `out`.
        causal: a position sees those up to its own; else all.
        window: most positions that one sees, None for no limit.
        soft_cap: c where scores are c·tanh(scores / c).
        bias: the scores get something added that differs from key to key (ALiBi, T5's relative positions).
        rotary: queries and keys are rotated by their position.
        cross: number, in the model, of the stack whose last state gives keys and values; None: its own stream does.
        dropout: probability in force on the attention weights.
        apart: query, key and value of each head, where every one has matrices of its own; the three above are then
            the first's.
        crossed: what isn't cut into heads, or put together, position by position: of queries, keys, values and output
            those, or `positions` alone where heads stand in their place.
    """

    query: Linear
    key: Linear
    value: Linear
    out: Linear | None
    n_head: int
    n_kv_head: int
    head_size: int
    score_scale: float
    query_scale: float = 1.0
    key_scale: float = 1.0
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    head_gain: str | None = None
    out_norm: Norm | None = None
    causal: bool = True
    window: int | None = None
    soft_cap: float | None = None
    bias: bool = False
    rotary: bool = False
    cross: int | None = None
    dropout: float = 0.0
    apart: tuple[tuple[Linear, Linear, Linear], ...] = ()
    crossed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MLP:
    """f(x up) out, or gated f(x gate)·(x up) out.

    Attributes:
        up: matrix that reads the stream; of a gated MLP the one that the activation isn't applied to.
        out: matrix that writes.
        gate: matrix whose output the activation is applied to; None for an MLP without a gate.
        activation: its name (see `initlab.judge.activations`), or the function itself; `identity` where there is none.
        inner_norm: between the activation and `out`.
        dropout: probability in force between the activation and `out`.
    """

    up: Linear
    out: Linear
    gate: Linear | None = None
    activation: Activation = "gelu"
    inner_norm: Norm | None = None
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Branch:
    """What reads the stream and is added to it.

    Attributes:
        site: attn_out, cross_attn_out, mlp_out or mixer_out: the site of what is added.
        body: what it computes; None where that isn't known.
        experts: the MLPs that it is a mixture of, one for each or one for all of a stack; None in place of one that
            isn't understood. `body` is None then.
        norm: of what it reads; None where it reads the stream itself.
        norms: more of them, of the same state, where queries, keys and values, or gate and up, read one each.
        post: norm of what the body gave, before it is added.
        scale: number that the result is multiplied with as it is added.
        gain: dotted name of a parameter with one number a channel (LayerScale) that multiplies it; None without one.
        dropout: probability in force on what is added.
        module: dotted name of the module that gives it.
        conditioned: what it reads or adds is scaled by tensors that something else than the stream made (adaLN): how
            it is put together is known, but not how large it is.
        detached: the gradient of what it adds doesn't flow back to the stream that it reads.
        turned: of attention, understood or not, what isn't as a rotation of queries and keys by their position has it:
            `queries` or `keys` where they alone are rotated, `values` where they are too, `uneven` where the cosine of
            two that are alike depends on more than their distance, `still` where it depends on no position.
    """

    site: str
    body: Attention | MLP | None
    experts: tuple[MLP | None, ...] = ()
    norm: Norm | None = None
    norms: tuple[Norm, ...] = ()
    post: Norm | None = None
    scale: float = 1.0
    gain: str | None = None
    dropout: float = 0.0
    module: str = ""
    conditioned: bool = False
    detached: bool = False
    turned: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Update:
    """stream <- norm(keep · stream + the sum of its branches), which all read the stream as it was before.

    Attributes:
        branches: what is added; two or more of them stand in parallel.
        keep: what the stream itself is multiplied with.
        norm: of the sum (post-norm blocks); None without one.
    """

    branches: tuple[Branch, ...]
    keep: float = 1.0
    norm: Norm | None = None


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block of a stack.

    Attributes:
        layer: its number in the model.
        name: dotted name, or what stands for it.
        updates: of the stream, in order.
        note: why the stream couldn't be followed through it; empty where it was.
    """

    layer: int
    updates: tuple[Update, ...]
    name: str = ""
    note: str = ""

    def branches(self) -> Iterator[Branch]:
        """Every branch, in order."""
        for update in self.updates:
            yield from update.branches


@dataclass(frozen=True, kw_only=True)
class Term:
    """A summand of the embedding.

    Attributes:
        kind: token (a row for each id), position (a row, or a fixed vector, for each position), constant (the same
            vector at every position, as of a segment table when there is one segment).
        weight: dotted name of the parameter; None for what isn't one, as a sinusoid.
        scale: what it is multiplied with.
        square: mean square of what isn't a parameter; of a parameter that of its rows is read from the weights.
    """

    kind: Literal["token", "position", "constant"]
    weight: str | None
    scale: float = 1.0
    square: float | None = None


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """One stack: a stream from where it begins to what reads it last.

    Attributes:
        n_embd: its width.
        blocks: in order.
        terms: of the embedding; None where it isn't known to be such a sum: the stream then begins with what is
            measured.
        embed_norm: of the embedding's sum.
        embed_scale: what the sum is multiplied with, before its norm.
        final_norm: between the last block and the head.
        head: the matrix of the logits; None where no head reads this stack.
        tied: the head is the token table.
        logit_scale: what the logits are multiplied with.
        logit_cap: c where the logits are c·tanh(logits / c).
        dropout: probability in force on the embedding.
        unknown: what wasn't understood, a sentence each.
    """

    n_embd: int
    blocks: tuple[Block, ...]
    terms: tuple[Term, ...] | None = None
    embed_norm: Norm | None = None
    embed_scale: float = 1.0
    final_norm: Norm | None = None
    head: Linear | None = None
    tied: bool = False
    logit_scale: float = 1.0
    logit_cap: float | None = None
    dropout: float = 0.0
    unknown: tuple[str, ...] = ()

    def branches(self) -> Iterator[Branch]:
        """Every branch of every block, in order."""
        for block in self.blocks:
            yield from block.branches()


def reads_another(wirings: Iterable[Wiring]) -> bool:
    """Whether one of a model's stacks attends to another's last state, as a decoder to what an encoder read.

    Args:
        wirings: of its stacks.
    """
    bodies = [branch.body for wiring in wirings for branch in wiring.branches()]
    return any(isinstance(body, Attention) and body.cross is not None for body in bodies)
