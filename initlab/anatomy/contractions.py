"""An einsum of three tensors or more, as the products of two that it stands for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from initlab.anatomy.graph import Op, Trace, Value


def parted(trace: Trace, op: Op) -> Op:
    """Put the products that an einsum stands for in its place.

    Args:
        trace: the operation is its last.
        op: gave nothing yet.

    Returns:
        the last product, or the einsum itself where it can't be split.
    """
    equation = next((x for x in op.args if isinstance(x, str)), "")
    steps = products(equation, [each.data for each in op.inputs])
    if steps is None:
        return op
    trace.ops.pop()
    values, made = list(op.inputs), list[Op]()
    for first, second, written in steps:
        if made:  # what the one before gave, a tensor that the pass doesn't show
            value = Value(len(trace.values), _shape(*made[-1].args), True, made[-1], "op")
            value.before = 1 << value.index
            trace.values.append(value)
            made[-1].gave(value, True)
            values.append(value)
        pair = [values[first], values[second]]
        made.append(Op(op.name, op.function, pair, (written, *pair), {}, op.within, training=op.training, whole=op))
    trace.ops += made
    op.outputs = made[-1].outputs
    return made[-1]


def _shape(equation: str, *given: Value) -> tuple[int, ...]:
    names, out = equation.replace("...", ".").split("->")
    sizes: dict[str, tuple[int, ...]] = {}
    for text, value in zip(names.split(","), given, strict=True):
        rest = len(value.shape) - len(text.replace(".", ""))  # dimensions behind the dots
        place = 0
        for letter in text:
            count = rest if letter == "." else 1
            found = value.shape[place : place + count]
            sizes[letter] = max(sizes.get(letter, ()), found, key=math.prod)
            place += count
    return tuple(size for letter in out for size in sizes[letter])


def products(equation: str, data: Sequence[bool]) -> list[tuple[int, int, str]] | None:
    """Split an einsum into einsums of two operands each, in the order in which a model would write them out.

    What inputs had a part in goes first, where an index can be summed over: softmax(q k) v before its projection.

    Args:
        equation: as `torch.einsum` takes it, with an arrow.
        data: of each operand, whether an input had a part in it.

    Returns:
        of each product (first operand, second, equation); operands count from 0, results on from there. None where the
        equation can't be split: no arrow, or as many operands as it names aren't given.
    """
    given, arrow, out = equation.replace(" ", "").replace("...", ".").partition("->")
    letters = dict(enumerate(given.split(",")))
    if not arrow or len(letters) != len(data):
        return None
    made = dict(enumerate(data))
    steps: list[tuple[int, int, str]] = []
    while len(letters) > 1:
        first, second = min(combinations(letters, 2), key=lambda pair: _rank(pair, letters, made, out))
        kept = _kept((first, second), letters, out) if len(letters) > 2 else out
        written = f"{letters.pop(first)},{letters.pop(second)}->{kept}"
        steps.append((first, second, written.replace(".", "...")))
        number = len(data) + len(steps) - 1
        letters[number], made[number] = kept, made[first] or made[second]
    return steps


def _kept(pair: tuple[int, int], letters: dict[int, str], out: str) -> str:
    """The indices of a product: those that the result or another operand has."""
    others = out + "".join(text for place, text in letters.items() if place not in pair)
    return "".join(x for x in dict.fromkeys(letters[pair[0]] + letters[pair[1]]) if x in others)


def _rank(pair: tuple[int, int], letters: dict[int, str], made: dict[int, bool], out: str) -> tuple[int, int]:
    both = set(letters[pair[0]]) & set(letters[pair[1]])
    summed = both - set(_kept(pair, letters, out))
    if not summed:
        return 3, max(pair)
    return 2 - sum(made[place] for place in pair), max(pair)
