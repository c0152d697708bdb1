"""Attention, read from operations: softmax(scale · q kᵀ) v, fused or written out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from initlab.anatomy.functions import rounded
from initlab.anatomy.graph import Op, Value
from initlab.anatomy.heading import HeadSource, head_source, part_of
from initlab.anatomy.norming import normed
from initlab.anatomy.operations import words
from initlab.anatomy.turning import unlike_a_rotation
from initlab.anatomy.walking import copies, copies_of, factor, origin, shifted, unscaled
from initlab.anatomy.weighing import SCORING, Weighed
from initlab.wiring import MLP, Attention, Linear, Norm

if TYPE_CHECKING:
    from initlab.anatomy.experts import Routed

_MASKING = words("masked_fill where maximum add sub clamp")


@dataclass(slots=True)
class Read:
    """What was read of a branch.

    Attributes:
        body: None where it isn't understood; `why` then says what was met.
        norm: of what it reads.
        norms: others of the same state, where keys and values, or what a gate multiplies, read one of their own.
        source: what that norm, or the body itself, was given.
        values: tensors by site: ln (what the norm gives), attn_z, mlp_pre, mlp_linear, mlp_act.
        score: of an attention, the operation that takes its scores to its heads' weights.
        product: of an attention that is written out, the one that multiplies q with k.
        mixing: the one that multiplies the weights with v.
        weighed: of an attention that isn't understood, every pattern in it.
        experts: of a branch that isn't understood as a whole, each MLP that is a part of it, as it was read.
        routed: how tokens are given to them; None where no choice was found.
        heads: of heads that are computed one by one, each as it was read.
        turned: of an attention, what isn't rotated as queries and keys are by their position.
        conditioned: what it reads is scaled or shifted by tensors that no part of the stream made, as by adaLN.
        other: what keys and values are made of, where it isn't the branch's own stream.
    """

    body: Attention | MLP | None = None
    norm: Norm | None = None
    norms: tuple[Norm, ...] = ()
    source: Value | None = None
    values: dict[str, Value] = field(default_factory=dict)
    score: Op | None = None
    product: Op | None = None
    mixing: Op | None = None
    other: Value | None = None
    weighed: list[Weighed] = field(default_factory=list)
    experts: list[Read] = field(default_factory=list)
    routed: Routed | None = None
    heads: list[Read] = field(default_factory=list)
    conditioned: bool = False
    turned: tuple[str, ...] = ()
    why: str = ""


def met(value: Value) -> str:
    """Name what a walk came upon that it doesn't understand.

    Args:
        value: where it ended.
    """
    value = origin(value)
    return f"{value.op.name} in {value.op.module or 'the model itself'}" if value.op is not None else value.kind


def read_attention(h: Value, out: Linear | None, base: Value) -> Read | None:
    """Read softmax(scale · q kᵀ) v, fused or written out; None where it isn't one at all.

    Args:
        h: what the heads give.
        out: the matrix that is given it; None without one.
        base: the stream's state before the branch.
    """
    mixing = unscaled(h)[0].op
    if mixing is None:
        return None
    if mixing.name == SCORING:
        query, key, value = (mixing.argument(i, n) for i, n in enumerate(("query", "key", "value")))
        scale = mixing.argument(6, "scale")
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
        return _heads(mixing, mixing, None, out, (query, key, value), scale, None, base)
    if mixing.name not in ("matmul", "einsum", "baddbmm"):
        return None
    given = [each for each in mixing.inputs if each.data]
    for place, each in enumerate(given[:2]):
        score = _pattern(each).op
        if score is not None and score.name == "softmax" and len(given) == 2:
            value = given[1 - place]
            product, scale, cap = _scores(score.inputs[0])
            if product is None:  # a router's
                return None
            query, key = factors_of(product, score)
            return _heads(score, mixing, product, out, (query, key, value), scale, cap, base)
    return None


def _pattern(value: Value) -> Value:
    """What a softmax gave, from what is multiplied with the values; rows that see nothing may be hidden between."""
    value = unscaled(value)[0]
    op = value.op
    if op is not None and op.name in ("where", "masked_fill", "nan_to_num"):
        given = [_pattern(each) for each in op.inputs if each.floating and each.data]
        value = next((each for each in given if each.op is not None and each.op.name == "softmax"), value)
    return value


def _scores(value: Value) -> tuple[Op | None, float, float | None]:
    """From what a softmax is given back to q·kᵀ: (that product, its factor, the soft cap)."""
    scale, cap = 1.0, None
    while value.op is not None:
        op = value.op
        data = [each for each in op.inputs if each.data and each.floating]
        if op.name in ("matmul", "einsum", "baddbmm") and len(data) >= 2:
            if op.name == "baddbmm":
                alpha = op.kwargs.get("alpha", 1)
                scale *= float(alpha) if isinstance(alpha, int | float) else 1.0
            return op, scale * (cap or 1.0), cap
        times = factor(op)
        if copies(op):
            value = op.inputs[0]
        elif times is not None and times.vector is None:
            scale, value = scale * times.number, times.value
        elif op.name == "tanh" and cap is None:
            cap, scale, value = rounded(scale), 1.0, op.inputs[0]
        elif op.name in _MASKING and data:
            # a bias or a mask that depends on the input (padding) is no product of two tensors
            value = next((each for each in data if _is_product(each)), data[0])
        else:
            return None, scale, cap
    return None, scale, cap


def factors_of(product: Op, score: Op) -> tuple[Value, Value]:
    """Tell q from k in their product: q is the one whose rows are the rows that a softmax runs over.

    Args:
        product: of the two.
        score: the softmax of it.
    """
    first, second = [each for each in product.inputs if each.data][-2:]
    dim = score.argument(1, "dim", -1)
    turned = (isinstance(dim, int) and dim == len(score.inputs[0].shape) - 2) or dim == -2
    value = score.inputs[0]
    while value.op is not None and value.op is not product:  # (k @ q.mT).mT
        op = value.op
        turned ^= op.name in ("mT", "T", "transpose", "swapaxes", "adjoint") and op.outputs[0] is value
        value = next((each for each in op.inputs if each.data and each.floating and _is_product(each)), op.inputs[0])
    equation = next((x for x in product.args if isinstance(x, str)), "").replace(" ", "")
    if product.name == "einsum" and "->" in equation and "." not in equation:
        given, out = equation.split("->")
        rows = out[-1] if turned else out[-2]
        return (first, second) if rows in given.split(",")[0] else (second, first)
    return (second, first) if turned else (first, second)


def _is_product(value: Value) -> bool:
    return _scores(value)[0] is not None


def _heads(
    score: Op,
    mixing: Op,
    product: Op | None,
    out: Linear | None,
    tensors: tuple[Value, Value, Value],
    scale: float,
    cap: float | None,
    base: Value,
) -> Read:
    read = Read(score=score, mixing=mixing, product=product)
    query, key, _ = tensors
    sources = [head_source(each) for each in tensors]
    read.turned = _turned(mixing if product is None else product, (query, key), sources)
    if any(each is None for each in sources):
        place = next(i for i, each in enumerate(sources) if each is None)
        read.why = f"what {'qkv'[place]} is made of: {met(tensors[place])}"
        return read
    q, k, v = (each for each in sources if each is not None)
    size = query.shape[-1]
    if product is not None and key.shape[-1] != size and len(key.shape) >= 2:
        size = query.shape[-1] if key.shape[-2] == query.shape[-1] else size
    tokens = max(1, q.matrix.source.numel // max(1, q.matrix.source.shape[-1]))
    width = max(size, query.numel // tokens)  # what all heads' queries of a token have together
    heads = max(1, width // size)
    keys = min(k.matrix.linear.fan_out, width)
    if k.matrix.linear.weight == q.matrix.linear.weight:  # fused: what is left of it is shared by keys and values
        keys = (q.matrix.linear.fan_out - width) // 2 if q.matrix.linear.fan_out > width else width
    elif k.matrix.linear.weight == v.matrix.linear.weight and k.parted and v.parted:
        keys = min(k.matrix.linear.fan_out // 2, width)
    seen = score.seen
    training = mixing.training if score is not mixing else score.training
    linears = [part_of(each, count, place) for place, (each, count) in enumerate(((q, width), (k, keys), (v, keys)))]
    read.body = Attention(
        query=linears[0],
        key=linears[1],
        value=linears[2],
        out=out,
        n_head=heads,
        n_kv_head=max(1, keys // size),
        head_size=size,
        score_scale=rounded(scale * q.scale * k.scale),
        query_scale=rounded(q.scale),
        key_scale=rounded(k.scale),
        query_norm=q.norm,
        key_norm=k.norm,
        causal=bool(seen and seen.causal),
        window=seen.window if seen else None,
        soft_cap=cap,
        bias=bool(seen and seen.bias) or (product is not None and _biased(score.inputs[0], product)),
        rotary=q.rotated and k.rotated,
        dropout=_dropout_of_weights(score, mixing) if training or score is not mixing else 0.0,
    )
    given = [unconditioned(each.matrix.source, base) for each in (q, k, v)]
    reads = [normed_input(each, base) for each in given]
    read.conditioned = any(one is not each.matrix.source for one, each in zip(given, (q, k, v), strict=True))
    read.norm, read.source, result = reads[0]
    read.values["ln"] = result
    own = [source is reads[0][1] for _, source, _ in reads]
    norms = [norm for (norm, _, _), mine in zip(reads, own, strict=True) if mine]
    if None in norms and any(norms):
        read.body, read.why = None, "of queries, keys and values some are made of what a norm gives, and some aren't"
    read.norms = tuple(dict.fromkeys(norm for norm in norms if norm is not None and norm != read.norm))
    if not own[1]:
        read.other = reads[1][1]
    elif not own[2]:
        read.body, read.why = None, "values are made of another state than queries and keys"
    if abs(v.scale) != 1:
        read.body, read.why = None, f"its values are multiplied with {v.scale:g}"
    if read.body is not None and linears[0].weight == linears[1].weight and linears[0].start == linears[1].start:
        read.body, read.why = None, "queries and keys are of one matrix"
    if read.body is not None and seen is not None and not seen.causal and not seen.whole:
        read.body, read.why = None, "its mask is neither causal nor open"
    return read


def _turned(product: Op, entering: tuple[Value, Value], sources: Sequence[HeadSource | None]) -> tuple[str, ...]:
    """What of q, k and v isn't rotated as they are by their position: `Branch.turned`."""
    q, k, v = sources
    if q is None or k is None:
        return ()
    said = ["queries" if q.rotated else "keys"] if q.rotated != k.rotated else []
    if q.before is not None and k.before is not None:
        said.append(unlike_a_rotation(product, (entering[0], q.before), (entering[1], k.before)))
    return tuple(each for each in (*said, "values" if v is not None and v.rotated else "") if each)


def _biased(scores: Value, product: Op) -> bool:
    """Something else than a mask is added to the scores: learned as T5's relative positions, fixed as ALiBi's slopes,
    or computed from queries as Transformer-XL's."""
    if product.name == "baddbmm" and product.kwargs.get("beta", 1) != 0 and product.inputs[0].rms != 0:
        return True
    value = scores
    while value.op is not None and value.op is not product:
        op = value.op
        if op.name in ("add", "sub") and any(not each.data and (each.learned or each.uneven > 0) for each in op.inputs):
            return True
        data = [each for each in op.inputs if each.data and each.floating]
        if not data:
            return False
        value = next((each for each in data if _is_product(each)), data[0])
        if op.name == "add" and any(each is not value and each.mixed for each in data):
            return True
    return False


def _dropout_of_weights(score: Op, mixing: Op) -> float:
    if score is mixing:
        given = score.argument(4, "dropout_p", 0.0)
        return float(given) if isinstance(given, int | float) else 0.0
    return dropout_behind(mixing.inputs)


def dropout_behind(values: Sequence[Value]) -> float:
    """Tell the probability in force of the first dropout on the way back through copies.

    Args:
        values: where to begin.
    """
    for value in values:
        for each in copies_of(value):
            if each.op is not None and each.op.name == "dropout":
                return dropout(each.op)
    return 0.0


def dropout(op: Op) -> float:
    """Tell the probability in force of an operation that may be dropout.

    Args:
        op: any.
    """
    if not op.name.endswith("dropout") or not op.training:
        return 0.0
    p = op.argument(1, "p", 0.5)
    return float(p) if isinstance(p, int | float) else 0.0


def unconditioned(value: Value, base: Value) -> Value:
    """Take off what a condition multiplies a tensor of the stream with and adds to it, as adaLN's scale and shift.

    Args:
        value: the tensor.
        base: the stream's state; what multiplies and adds wasn't computed from it, nor is it a parameter.
    """
    while (op := origin(value).op) is not None and op.name in ("mul", "add") and len(op.inputs) == 2:
        if factor(op) is not None or shifted(op) is not None:
            break
        made = [each for each in op.inputs if each.after(base)]
        if len(made) != 1 or made[0].numel != op.outputs[0].numel or not all(each.data for each in op.inputs):
            break
        value = made[0]
    return value


def normed_input(value: Value, base: Value) -> tuple[Norm | None, Value, Value]:
    """Read what a matrix is given.

    Args:
        value: the tensor.
        base: the stream's state before the branch, which may be the result of a norm itself.

    Returns:
        the norm that gave it, if any; what that norm was given, or the tensor; the tensor.
    """
    found = None if origin(value) is origin(base) else normed(value)
    if found is None:
        return None, origin(value), value
    return found.norm, origin(found.source), value


def scored(read: Read) -> list[tuple[str, Op, Value]]:
    """List (site, operation, its input) of q, k and v.

    Args:
        read: of a branch.
    """
    score = read.score
    if read.weighed:
        parts = [
            part
            for each in read.weighed
            for part in (("q", each.product, each.query), ("k", each.product, each.key), ("v", each.mixing, each.value))
        ]
        return list({(site, value): (site, op, value) for site, op, value in parts}.values())
    if score is None:
        return []
    if score.name == SCORING:
        return [
            (s, score, score.argument(i, n)) for i, (s, n) in enumerate((("q", "query"), ("k", "key"), ("v", "value")))
        ]
    found: list[tuple[str, Op, Value]] = []
    if read.product is not None:
        query, key = factors_of(read.product, score)
        found += [("q", read.product, query), ("k", read.product, key)]
    if read.mixing is not None:
        pattern = score.outputs[0]
        value = next((v for v in read.mixing.inputs if v.data and not v.after(pattern)), None)
        if value is not None:
            found.append(("v", read.mixing, value))
    return found
