"""Attention of any form: a product of two tensors, made into weights of a third.

Where `initlab.anatomy.attending` follows how scores become weights step by step, here only what multiplies what is
read. Between the two products may stand a softmax or another function of each score, sinks, a mixture of heads, a
difference of several patterns: enough to say where q, k, v and z are, not what they imply.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from initlab.anatomy.graph import Op, Value
from initlab.anatomy.operations import words
from initlab.anatomy.walking import UNARY, copies, copies_of, projected

SCORING = "scaled_dot_product_attention"


PRODUCTS = words("matmul einsum baddbmm cdist tensordot inner")


# a function of each score or of a row of them; a sign or a power alone is none
_WEIGHTING = (UNARY | words("softmax log_softmax")) - words("neg abs sqrt rsqrt reciprocal square pow rdiv rsub sign")


_MASKING = words("masked_fill where")


@dataclass(slots=True)
class Weighed:
    """One pattern of an attention: weights that were computed from q and k and multiply v.

    Attributes:
        product: of q and k.
        mixing: of the weights and v.
        query: as it enters the product.
        key: as it enters it.
        value: v, as it enters the other.
        score: the operation that is given the scores, before they become weights.
        scores: what it is given, of a column for each key.
        weights: what is multiplied with v, before dropout, and the operation that is given it; None where they aren't
            a row for each row of the scores.
        z: what the output matrix is given; None without one.
    """

    product: Op
    mixing: Op
    query: Value
    key: Value
    value: Value
    score: Op
    scores: Value
    weights: tuple[Op, Value] | None
    z: Value | None = None


def find_weighed(core: Value, base: Value) -> list[Weighed]:
    """Find the attention nearest to what is added to a stream, at most one matrix away from it.

    Args:
        core: the tensor that is added.
        base: the stream's state before.
    """
    found: list[Weighed] = []
    left: list[tuple[Value, Value | None]] = [(core, None)]  # (tensor, what the last matrix on the way was given)
    seen = {core}
    while left:
        value, z = left.pop(0)
        out = projected(value)
        if out is not None:
            if z is None and out.source not in seen:
                seen.add(out.source)
                left.append((out.source, out.source))
            continue
        op = value.op
        if op is None or not value.mixes(base):
            continue
        patterns = list(_patterns(op, base))
        if patterns:
            found += [replace(each, z=z) for each in patterns]
            continue
        for given in op.inputs:
            if given.data and given.floating and given not in seen:
                seen.add(given)
                left.append((given, z))
    return found


def _pair(op: Op, base: Value) -> tuple[Value, Value] | None:
    """The two tensors of a product; None of one with a parameter, or of an operation that is none."""
    if op.name not in PRODUCTS:
        return None
    given = [each for each in op.inputs if each.data and each.floating and each.mixed]
    return (given[-2], given[-1]) if len(given) >= 2 and any(each.mixes(base) for each in given[-2:]) else None


def _patterns(mixing: Op, base: Value) -> Iterator[Weighed]:
    """What multiplies v, where an operation is that product."""
    pair = _pair(mixing, base)
    if mixing.name == SCORING:
        query, key, value = (mixing.argument(place, name) for place, name in enumerate(("query", "key", "value")))
        yield Weighed(mixing, mixing, query, key, value, mixing, query, None)
    if pair is None:
        return
    for weights, value in (pair, pair[::-1]):
        for product in _products_behind(weights, base):
            made = product.outputs[0]
            score = None if value.after(made) else _score(weights, made)
            if score is None:
                continue
            op, scores = score
            turned = _turned(op, scores, weights, mixing)
            query, key = _ordered(product, base, turned ^ _transposed(scores, product))
            given = _undropped(weights, mixing)
            rows = given if given[1].shape == scores.shape and not turned else None
            yield Weighed(product, mixing, query, key, value, op, scores, rows)


def _products_behind(weights: Value, base: Value) -> list[Op]:
    """The nearest products of two tensors that weights were computed from."""
    found: dict[Op, None] = {}
    left, seen = [weights], {weights}
    while left:
        op = left.pop().op
        if op is None or projected(op.outputs[0]) is not None:
            continue
        if _pair(op, base) is not None:
            found[op] = None
            continue
        for given in op.inputs:
            if given.data and given.floating and given not in seen:
                seen.add(given)
                left.append(given)
    return list(found)


def _score(weights: Value, made: Value) -> tuple[Op, Value] | None:
    """Where scores become weights: the operation, and what it is given."""
    value, last = weights, None
    while value is not made:
        op = value.op
        given = _towards(value, made)
        if op is None or given is None:
            break
        if op.name in _WEIGHTING or (last is not None and op.name in UNARY):
            last = op, given
        elif last is not None and not (copies(op) or op.name in _MASKING):
            break
        if op.name == "softmax":
            break
        value = given
    if last is None:
        return None
    op, scores = last
    before = scores.op
    if before is not None and before.name == "cat":  # sinks: columns that no key has
        kept = _towards(scores, made)
        if kept is not None and kept.shape[:-1] == scores.shape[:-1]:
            return before, kept
    return op, scores


def _towards(value: Value, made: Value) -> Value | None:
    """The input of what gave a tensor that leads back to another; the largest of several."""
    if value.op is None:
        return None
    given = [each for each in value.op.inputs if each.floating and each.after(made)]
    return max(given, key=lambda each: each.numel, default=None)


def _turned(score: Op, scores: Value, weights: Value, mixing: Op) -> bool:
    """Whether keys are in the last dimension but one of the scores."""
    if score.name == "softmax":
        dim = score.argument(1, "dim", -1)
        return dim in (-2, len(scores.shape) - 2)
    return mixing.name == "matmul" and mixing.inputs[-1] is weights


def _transposed(scores: Value, product: Op) -> bool:
    turned, value = False, scores
    while value.op is not None and value.op is not product:
        op = value.op
        turned ^= op.name in ("mT", "T", "transpose", "swapaxes", "adjoint")
        given = _towards(value, product.outputs[0])
        if given is None:
            break
        value = given
    return turned


def _ordered(product: Op, base: Value, turned: bool) -> tuple[Value, Value]:
    """q and k of a product: q is the one that gives its rows."""
    pair = _pair(product, base)
    assert pair is not None
    equation = next((x for x in product.args if isinstance(x, str)), "").replace(" ", "")
    if product.name == "einsum" and "->" in equation:
        given, out = equation.split("->")
        turned = (out[-1] if turned else out[-2]) not in given.split(",")[0]
    return (pair[1], pair[0]) if turned else pair


def _undropped(weights: Value, mixing: Op) -> tuple[Op, Value]:
    """Weights as dropout is given them, and the operation that is given them."""
    for each in copies_of(weights):
        if each.op is not None and each.op.name.endswith("dropout"):
            return each.op, each.op.inputs[0]
    return mixing, weights
