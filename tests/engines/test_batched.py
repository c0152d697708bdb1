"""Calls made together, where their function says how."""

from __future__ import annotations

from functools import partial

from initlab.engines import Failed, batched
from initlab.engines.batched import Batched, together


def square(value: int, plus: int) -> int:
    return value**2 + plus


def alone(value: int, plus: int) -> int:
    return 10 // value + plus


def test_calls_of_a_function_that_makes_many_are_made_at_once_and_others_one_by_one(monkeypatch):
    monkeypatch.setattr(batched, "_TOGETHER", {})
    given = []

    def squares(calls, shared):
        given.append(len(calls))
        for index in reversed(range(len(calls))):
            yield index, calls[index](**shared) if index else Failed("the first")

    together(square, squares)
    calls = [partial(square, 2), partial(alone, 0), partial(square, 3), lambda plus: plus, partial(alone, 5)]
    with Batched({"plus": 1}) as engine:
        found = list(engine.run(calls))
    assert given == [2]
    assert found[0][0] == 1 and isinstance(found[0][1], Failed) and "ZeroDivisionError" in found[0][1].text
    assert found[1:] == [(3, 1), (4, 3), (2, 10), (0, Failed("the first"))]
