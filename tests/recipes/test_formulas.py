"""Formulas are arithmetic, and nothing else that Python can do."""

from __future__ import annotations

import math

import pytest

from initlab.errors import RecipeError
from initlab.recipes import Dims

DIMS = Dims(n_layer=12, n_embd=768, n_head=12, block_size=1024, vocab_size=50257, fan_in=768, fan_out=3072, layer=3)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.02", 0.02),
        (" 0.02 / sqrt(2 * n_layer) ", 0.02 / math.sqrt(24)),
        ("-n_layer + +3", -9),
        ("1 / (sqrt(n_embd) * (9 * n_layer) ** 0.25)", 1 / (math.sqrt(768) * 108**0.25)),
        ("0.1 if n_layer <= 18 else 1e-5 if n_layer <= 24 else 1e-6", 0.1),
        ("1 if 1 < n_layer < 5 else 2", 2),
        ("max(1, min(fan_in, fan_out)) // 7 % 5", 768 // 7 % 5),
        ("log(n_embd) - n_layer", math.log(768) - 12),
        ("2 ** -64", 2.0**-64),
        ("1 if tied else 0", 1),
    ],
)
def test_arithmetic_is_evaluated(text: str, value: float) -> None:
    formula = DIMS(text)
    assert float(formula) == value
    assert formula.text == text


@pytest.mark.parametrize(
    "text",
    [
        "().__class__.__base__.__subclasses__()",
        "[c for c in ().__class__.__base__.__subclasses__()][0]",
        "__import__('os').system('true')",
        "sqrt.__self__",
        "n_layer.bit_length()",
        "(lambda: 1)()",
        "f'{n_layer}'",
        "'a' * 9",
        "[1][0]",
        "{1: 2}[1]",
        "(x := 3)",
        "max(*[1, 2])",
        "min(1, 2, key=abs)",
        "open('x')",
        "True",
        "None",
        "1j",
        "1 and 2",
        "not 1",
        "~1",
        "1 << 40",
        "9 ** 9 ** 9",
        "(9 ** 64) ** 64",
        "n_embd ** 65",
        "(-8) ** 0.5",
        "1 / 0",
        "sqrt(-1)",
        "sqrt(1, 2)",
        "0.02 / depth",
        "1 +",
        "x = 1",
        "",
        "-" * 900 + "1",
        "(" * 300 + "1" + ")" * 300,
        "1" * 1001,
        "1+" * 5000 + "1",
    ],
)
def test_anything_else_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(RecipeError, match="can't be evaluated: "):
        DIMS(text)


@pytest.mark.parametrize("text", [None, 5, ["1"], b"1"])
def test_what_is_no_text_is_refused(text: object) -> None:
    with pytest.raises(RecipeError, match="can't be evaluated: "):
        DIMS(text)  # type: ignore[arg-type]
