"""Names of modules, in sentences."""

from __future__ import annotations

import pytest

from initlab.anatomy.names import nearest, starred


def test_the_names_most_like_the_wanted_one_are_said() -> None:
    named = ["", "transformer", "transformer.h", "transformer.h.0", "transformer.h.0.attn", "lm_head"]
    assert nearest("transformer.h.0.atn", named) == (
        "its modules are named like transformer.h.0.attn, transformer.h.0, transformer.h, transformer"
    )
    assert nearest("lm-head", named) == "its modules are named like lm_head"
    assert nearest("zzz", named) == (
        "its modules are named like transformer, transformer.h, transformer.h.0, transformer.h.0.attn"
    )
    assert nearest(5, ["5"]) == "its modules are named like 5"
    assert nearest("x", [""]) == nearest("x", []) == "it has no modules inside"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h.3.mlp", "h.*.mlp"),
        ("12", "*"),
        ("h.3", "h.*"),
        ("3.mlp.4", "*.mlp.*"),
        ("ln_1.weight", "ln_1.weight"),
        ("h3.2b.w", "h3.2b.w"),
        ("h.0.1.w", "h.*.*.w"),
    ],
)
def test_numbers_between_dots_are_stars(name: str, found: str) -> None:
    assert starred(name) == found
