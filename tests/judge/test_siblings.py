"""What isn't as its siblings are: on entries written by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from initlab.judge.remedies import Change
from initlab.judge.siblings import odd_siblings


def entry(name: str, std: float = 0.02, **changes: Any) -> dict[str, Any]:
    """A matrix of the block that its name says."""
    layer = int(name.split(".")[1]) if name.startswith("h.") else None
    found = {
        "name": name,
        "role": "mlp_in",
        "stack": "h",
        "layer": layer,
        "shape": (256, 64),
        "numel": 256 * 64,
        "bad": 0,
        "mean": 0.0,
        "std": std,
        "rms": std,
        "kind": "normal",
        "trains": True,
        "as_made": False,
        "again": [],
        "odd": [],
        "offset": 0.0,
    }
    return found | changes


def matrices(count: int = 6, **odd: dict[str, Any]) -> list[dict[str, Any]]:
    """`h.N.fc` of some blocks, `n2={"std": 1}` otherwise in block 2."""
    return [entry(f"h.{n}.fc") | odd.get(f"n{n}", {}) for n in range(count)]


def copy(which: str, like: str, rows: tuple[int, int, int] | None = None) -> dict[str, Any]:
    return {"which": which, "like": like, "rows": rows, "std": 0.02}


def gain(name: str, value: float = 1.0) -> dict[str, Any]:
    return entry(name, 0.0, role="norm_gain", kind="constant", mean=value, rms=value, shape=(64,), numel=64)


def changes(entries: list[dict[str, Any]], wanted: tuple[Change, ...] = ()) -> list[Change]:
    return [change for group in odd_siblings(entries, wanted) for change in group.changes]


def test_a_matrix_is_multiplied_to_what_the_others_have() -> None:
    (found,) = changes(matrices(n2={"std": 0.0601}))
    assert (found.names, found.how) == (("h.2.fc",), "× 0.333")
    assert found.factor == pytest.approx(1 / 3, abs=1e-12)  # no chance tells 0.3328 from a third
    (found,) = changes(matrices(n2={"std": 0.0351}))
    assert found.factor == pytest.approx(0.02 / 0.0351)
    assert changes(matrices(n2={"std": 0.0245})) == []


def test_of_three_blocks_the_odd_one_is_known_and_of_two_neither() -> None:
    assert [change.names for change in changes(matrices(3, n0={"std": 0.2}))] == [("h.0.fc",)]
    assert changes(matrices(2, n0={"std": 0.2})) == []


def test_a_trend_over_the_blocks_is_none_of_them_odd() -> None:
    trend = [entry(f"h.{n}.fc", 0.02 / math.sqrt(n + 1)) for n in range(8)]
    assert changes(trend) == []
    trend[5] |= {"std": 0.1}
    (found,) = changes(trend)
    assert found.proposed == pytest.approx(0.02 / math.sqrt(6), rel=0.05)


def test_rows_of_a_matrix_are_multiplied_alone() -> None:
    odd = {"name": "h.2.fc", "which": "expert 1 of h.2.fc", "rows": (0, 1, 2), "rms": 0.2, "rest": 0.02, "part": False}
    (found,) = changes(matrices(n2={"std": 0.1, "odd": [odd]}))
    assert (found.rows, found.factor) == ((0, 1, 2), pytest.approx(0.1))


def test_what_is_no_draw_is_drawn_as_its_siblings() -> None:
    for kind in ("constant", "low rank", "zero"):
        (found,) = changes(matrices(n4={"kind": kind, "mean": 0.02 * (kind == "constant")}))
        assert (found.names, found.factor, found.drawn.std) == (("h.4.fc",), None, 0.02)  # type: ignore[union-attr]
    assert changes([each | {"kind": "zero", "std": 0.0} for each in matrices()]) == []
    for kind in ("low rank", "constant"):  # without a sibling or a recipe, their own scale is all there is
        found, *others = changes([each | {"kind": kind} for each in matrices()])
        assert not others
        assert found.drawn.std == pytest.approx(0.02)  # type: ignore[union-attr]


def test_copies_of_a_block_are_drawn_and_the_first_one_stays() -> None:
    again = {f"n{n}": {"again": [copy(f"h.{n}.fc", "h.0.fc")]} for n in (1, 2)}
    (found,) = changes(matrices(3, **again))
    assert (found.names, found.rows) == (("h.1.fc", "h.2.fc"), None)
    (found,) = changes(matrices(3, n1=again["n1"] | {"role": "other"}))  # a copy is one, whatever it is for
    assert found.names == ("h.1.fc",)


def test_rows_that_repeat_others_are_drawn_alone() -> None:
    heads = {"again": [copy("rows 32–63 of h.0.fc", "rows 0–31", (0, 32, 64))], "kind": "low rank"}
    (found,) = changes(matrices(4, n0=heads))
    assert (found.names, found.rows, found.drawn.std) == (("h.0.fc",), (0, 32, 64), 0.02)  # type: ignore[union-attr]


def test_elements_that_arent_finite_are_drawn_alone() -> None:
    (found,) = changes(matrices(n1={"bad": 3}))
    assert (found.only_bad, found.drawn.std) == (True, 0.02)  # type: ignore[union-attr]


def test_a_gain_goes_to_what_most_gains_are() -> None:
    gains = [gain(f"h.{n}.{norm}") for n in range(4) for norm in ("ln_1", "ln_2")]
    (found,) = changes([*gains, gain("ln_f", 20.0)])
    assert (found.names, found.how) == (("ln_f",), "set to 1")
    assert changes([*gains, gain("ln_f", 20.0) | {"as_made": True}]) == []
    assert changes([*gains, gain("ln_f", 20.0) | {"trains": False}]) == []
