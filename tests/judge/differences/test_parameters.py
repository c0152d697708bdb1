"""What differs between two parameters, in numbers and in words."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from initlab.judge.differences.pairing import Held, Pair, _fused, pairs
from initlab.judge.differences.parameters import COLUMNS, distribution, log_of, parameters
from initlab.judge.differences.roles import roles, stretched


def held(name: str = "w", role: str = "mlp_in", **given: Any) -> Held:
    """One draw of a normal matrix of 10,000 numbers, whose std is known to 0.7 %."""
    moments = {"mean": 0.0, "kurtosis": 0.0, "abs_max": 0.08, "frac_nonfinite": 0.0, "frac_zero": 0.0}
    moments |= {key: given.pop(key) for key in list(given) if key in moments}
    known = {"layer": 0, "numel": 10_000, "draws": 1, "std": 0.02, "structure": {}, "fused": ()} | given
    return Held(name, role, moments=moments, **known)


def row(a: Held | None, b: Held | None) -> dict[str, Any]:
    (found,) = parameters([Pair(a, b, "name")]).to_dict("records")
    return {str(key): value for key, value in found.items()}


def what(a: Held, b: Held) -> str:
    return str(row(a, b)["what"])


def other(**given: Any) -> Held:
    """Another draw: its largest number is another."""
    return held(**({"abs_max": 0.081} | given))


def test_a_row_holds_both_sides() -> None:
    found = row(held("a", layer=3), other(name="b", std=0.03, numel=10_000, mean=0.001, kurtosis=-1.2))
    assert list(found) == list(COLUMNS)
    assert (found["role"], found["layer"], found["name_a"], found["name_b"], found["matched"]) == (
        *("mlp_in", 3, "a", "b", "name"),
    )
    assert (found["std_a"], found["std_b"], found["mean_a"], found["mean_b"]) == (0.02, 0.03, 0.0, 0.001)
    assert (found["distribution_a"], found["distribution_b"]) == ("normal", "uniform")
    assert (found["numel_a"], found["shape_a"], found["ratio"]) == (10_000, "10000", pytest.approx(1.5))
    assert (found["identical"], found["differs"], found["what"]) == (False, True, "std, distribution")
    assert found["detail"] == "normal → uniform"
    # four times √(1/2n + 1/2n) of a normal
    assert found["chance"] == pytest.approx(math.expm1(4 / math.sqrt(10_000)))


@pytest.mark.parametrize("side", [0, 1])
def test_what_only_one_model_has_is_a_row(side: int) -> None:
    only = held("new", "gate", layer=None)
    found = row(*((only, None) if side == 0 else (None, only)))
    mine, theirs = ("a", "b") if side == 0 else ("b", "a")
    assert (found["what"], found["differs"], found["identical"], found["detail"]) == (
        *(f"only in {'AB'[side]}", True, False, ""),
    )
    assert (found["role"], found[f"name_{mine}"], found[f"name_{theirs}"]) == ("gate", "new", "")
    assert found["layer"] is pd.NA or pd.isna(found["layer"])
    assert (found[f"shape_{theirs}"], found[f"distribution_{theirs}"]) == ("", "")
    assert math.isnan(found[f"std_{theirs}"]) and math.isnan(found[f"mean_{theirs}"])
    assert math.isnan(found["ratio"]) and math.isnan(found["chance"]) and pd.isna(found[f"numel_{theirs}"])


@pytest.mark.parametrize("by", [1.045, 1.035])
def test_a_std_differs_beyond_four_standard_errors_either_way(by: float) -> None:
    # exp(4 / 100) is 1.041
    expected = "std" if by > 1.041 else ""
    assert what(held(), other(std=0.02 * by)) == what(held(), other(std=0.02 / by)) == expected
    # of four draws on both sides half of that
    assert what(held(draws=4), other(std=0.0205, draws=4)) == "std" and what(held(), other(std=0.0205)) == ""


def test_tails_of_either_side_widen_the_error_and_short_ones_dont() -> None:
    assert what(held(), other(std=0.021)) == "std"
    for tails in ({"a": 10.0}, {"b": 10.0}):
        a, b = held(kurtosis=tails.get("a", 0.0)), other(std=0.021, kurtosis=tails.get("b", 0.0))
        assert row(a, b)["chance"] == pytest.approx(math.expm1(4 * math.sqrt(12 / 40_000 * 2)))
    light = row(held(kurtosis=math.nan), other(kurtosis=math.nan))
    assert (
        light["chance"] == row(held(kurtosis=-1.2), other(kurtosis=-1.2))["chance"] == pytest.approx(math.expm1(0.04))
    )


def test_a_std_of_zero_has_no_error_and_an_infinite_ratio() -> None:
    flat = held(std=0.0, mean=0.5, abs_max=0.5)
    assert row(flat, other())["ratio"] == math.inf
    assert row(flat, held(std=0.0, mean=0.4, abs_max=0.4))["ratio"] == 1.0
    assert row(flat, flat)["chance"] == 0.0
    assert row(other(), flat)["ratio"] == 0.0


def test_a_mean_differs_beyond_four_errors_of_both() -> None:
    # each mean is known to 0.02 / 100, the difference to √2 of it
    for mean in (0.00115, -0.00115):
        assert what(held(), other(mean=mean)) == what(held(mean=mean), other()) == "mean"
        assert row(held(), other(mean=mean))["detail"] == f"mean 0 → {mean:g}"
    assert what(held(), other(mean=0.00111)) == ""
    assert what(held(mean=0.5), other(mean=0.5)) == ""
    assert what(held(draws=4), other(draws=4, mean=0.0006)) == "mean" and what(held(), other(mean=0.0006)) == ""
    one, same = (held(std=0.0, mean=mean, abs_max=mean) for mean in (1.0, 1.000009))
    assert what(one, same) == ""  # of constants in another dtype
    assert what(one, held(std=0.0, mean=1.00002, abs_max=1.0)) == "mean"


def test_what_isnt_finite_is_said_of_the_side_that_isnt() -> None:
    bad = held(frac_nonfinite=0.1)
    assert row(held(), bad)["detail"] == "not finite in B" and row(bad, held())["detail"] == "not finite in A"
    assert what(bad, held(std=math.nan)) == ""  # both: nothing more is known
    assert row(bad, bad)["distribution_a"] == "not finite"
    assert what(held(), held(std=math.inf)) == "not finite"


def test_roles_and_shapes_that_differ_are_said() -> None:
    two = held(structure={"rows": 100, "columns": 100}), other(role="mlp_gate", numel=200)
    found = row(*two)
    assert (found["what"], found["detail"]) == ("role, shape", "role mlp_in → mlp_gate; shape 100×100 → 200")
    assert (found["shape_a"], found["shape_b"]) == ("100×100", "200")
    assert row(held(structure={"rows": 50, "columns": 100}), other())["shape_a"] == "10000"  # a stack of matrices


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"std": 0.02 * (1 + 9e-6)}, True),
        ({"std": 0.02 * (1 + 1.1e-5)}, False),
        ({"mean": 1.9e-7}, True),
        ({"mean": 2.1e-7}, False),
        ({"abs_max": 0.0800003}, False),
        ({"numel": 9999}, False),
        ({"draws": 2}, False),
        ({"abs_max": math.nan}, False),
    ],
)
def test_the_same_numbers_have_the_same_statistics(changes: dict[str, Any], same: bool) -> None:
    assert row(held(), held(**changes))["identical"] == same
    large = held(mean=5.0), held(mean=5.0, std=0.02 + 4e-5)  # beside a large mean
    assert row(*large)["identical"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"std": 1e-7, "mean": 1.0}, "constant 1"),
        ({"std": 1e-6, "mean": -1.0}, "constant -1"),
        ({"std": 1.1e-6, "mean": -1.0, "kurtosis": 0.0}, "normal"),
        ({"std": 0.0}, "constant 0"),
        ({"numel": 267}, "normal"),
        ({"numel": 266}, ""),  # a normal and a uniform draw are no longer told apart
        ({"numel": 134, "draws": 2}, "normal"),
        # a tenth, and four errors of 0.049
        ({"kurtosis": 0.29}, "normal"),
        ({"kurtosis": 0.30}, "heavy tails"),
        ({"kurtosis": -0.29}, "normal"),
        ({"kurtosis": -0.30}, "cut normal"),
        ({"kurtosis": -0.90}, "cut normal"),
        ({"kurtosis": -0.91}, "uniform"),
        ({"kurtosis": -1.49}, "uniform"),
        ({"kurtosis": -1.50}, "cut normal"),
    ],
)
def test_a_distribution_is_named_where_its_kurtosis_tells(given: dict[str, Any], named: str) -> None:
    assert distribution(held(**given)) == named


def test_distributions_that_are_told_apart_are_said() -> None:
    flat = held(std=0.0, mean=1.0, abs_max=1.0)
    assert row(flat, other(kurtosis=math.nan))["detail"].endswith("constant 1 → drawn")
    assert row(other(), flat)["detail"].endswith("normal → constant 1")
    assert what(held(kurtosis=0.29), other(kurtosis=0.31)) == ""  # two sides of one border
    # a tenth, and four errors of both
    assert what(held(kurtosis=0.28), other(kurtosis=0.65)) == "" != what(held(kurtosis=0.28), other(kurtosis=0.66))
    assert what(held(kurtosis=-1.2), other(kurtosis=math.nan)) == ""


def fused(q: float, k: float, std: float, **given: Any) -> Held:
    parts = (("attn_q", 10_000, 0.0, q), ("attn_k", 10_000, 0.0, k))
    return other(role="attn_qkv", numel=20_000, std=std, fused=parts, **given)


def test_parts_that_move_otherwise_than_the_whole_are_said_instead_of_it() -> None:
    moved = row(fused(0.02, 0.02, 0.02, abs_max=0.09), fused(0.04, 0.02, 0.0316, kurtosis=1.0))
    assert (moved["what"], moved["detail"]) == ("rows attn_q", "its attn_q rows: std 0.02 → 0.04")
    back = row(fused(0.04, 0.02, 0.0316, abs_max=0.09), fused(0.02, 0.02, 0.02))
    assert back["detail"] == "its attn_q rows: std 0.04 → 0.02"
    assert what(fused(0.02, 0.02, 0.02, abs_max=0.09), fused(0.03, 0.03, 0.03)) == "std"  # all alike
    both = row(fused(0.02, 0.02, 0.02, abs_max=0.09), fused(0.04, 0.01, 0.0292))
    assert both["what"] == "rows attn_q, rows attn_k"
    zero = row(fused(0.0, 0.02, 0.0141, abs_max=0.09), fused(0.0, 0.04, 0.0283))
    assert zero["what"] == "rows attn_k"
    assert zero["detail"] == "its attn_k rows: std 0.02 → 0.04"
    still = row(fused(0.0, 0.02, 0.0141, abs_max=0.09), fused(0.02, 0.02, 0.02))
    assert still["detail"] == "its attn_q rows: std 0 → 0.02"
    # three quarters of an error beside the whole's is chance
    assert what(fused(0.02, 0.02, 0.02, abs_max=0.09), fused(0.0211, 0.02, 0.0206)) == "std"
    names = fused(0.02, 0.02, 0.02), other(numel=20_000, role="attn_qkv", std=0.03, fused=(("attn_v", 9, 0.0, 9.0),))
    assert what(*names) == "std"


STRUCTURE: dict[str, Any] = {"rows": 100, "columns": 100, "stable_rank": 25.0, "shared": 1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"row_which": "2 to 3 are 0 to 1"}, "rows 2 to 3 are 0 to 1 in {} alone"),
        ({"column_which": "2 is 0"}, "columns 2 is 0 in {} alone"),
        ({"like": "h.0.w", "likeness": 0.9}, "a copy of h.0.w in {} alone"),
        ({"odd": "row 3"}, "row 3 of another scale in {} alone"),
    ],
)
def test_what_repeats_or_is_odd_in_one_of_them_is_said(changes: dict[str, Any], said: str) -> None:
    one, two = held(structure=STRUCTURE), held(structure=STRUCTURE | changes)
    assert row(one, two)["detail"] == said.format("B") and row(two, one)["detail"] == said.format("A")
    assert row(two, two)["detail"] == ""


def test_a_tie_and_a_rank_that_differ_are_said() -> None:
    def said(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
        return str(row(held(structure=STRUCTURE | mine), held(structure=STRUCTURE | theirs))["detail"])

    assert (
        said({}, {"shared": 4}) == "in 1 block → in 4" and said({"shared": 2}, {"shared": None}) == "in 2 blocks → in 1"
    )
    assert said({}, {"stable_rank": 100.0}) == "stable rank 25 → 100"
    assert said({"stable_rank": 100.0}, {}) == "stable rank 100 → 25"
    assert said({}, {"stable_rank": 25 * 1.59}) == "" != said({}, {"stable_rank": 25 * 1.61})
    for unknown in (None, math.nan, 0.0):
        assert said({}, {"stable_rank": unknown}) == said({"stable_rank": unknown}, {}) == ""
    for small in ({"rows": 31}, {"columns": 31}):
        assert "rank" not in said(small, {"stable_rank": 100.0}) + said({}, small | {"stable_rank": 100.0})
    assert "rank" in said({"rows": 32}, {"stable_rank": 100.0})
    assert what(held(structure=STRUCTURE), held(structure={})) == what(held(), held(structure=STRUCTURE)) == ""
    assert said({}, {"like": "h.0.w", "likeness": 0.89}) == said({}, {"like": "h.0.w", "likeness": None}) == ""


def test_logarithms_of_what_has_none() -> None:
    assert (log_of(0.0), log_of(math.inf), log_of(math.e)) == (-math.inf, math.inf, 1.0)


def test_parts_of_a_fused_matrix_are_pooled_over_its_draws() -> None:
    found = _fused(["attn_q 4 0.5 0.3; attn_k 8 0 0.2", "attn_q 4 0.1 0.4; attn_k 8 0 0.2"])
    pooled = math.sqrt((0.3**2 + 0.2**2 + 0.4**2 + 0.2**2) / 2)
    assert found == (
        ("attn_q", 4, pytest.approx(0.3), pytest.approx(pooled)),
        ("attn_k", 8, 0.0, pytest.approx(0.2)),
    )
    assert _fused(["attn_q 4 0 1", ""]) == (("attn_q", 4, 0.0, 1.0),)
    assert _fused(["attn_q 4 0 1", "attn_q 4 0 1; attn_k 4 0 1"]) == _fused([""]) == _fused([]) == ()


def test_a_part_is_a_parameter_of_its_role() -> None:
    (query, _) = fused(0.02, 0.04, 0.03, layer=2, draws=3).parts
    assert (query.name, query.role, query.layer, query.numel, query.draws, query.std, query.whole) == (
        *("w[attn_q]", "attn_q", 2, 10_000, 3, 0.02, "w"),
    )
    assert query.moments["mean"] == query.moments["frac_nonfinite"] == 0.0
    assert math.isnan(query.moments["kurtosis"]) and math.isnan(query.moments["abs_max"]) and query.structure == {}
    assert distribution(query) == ""


def test_a_key_that_one_side_has_more_often_matches_nothing() -> None:
    a = [held("a1", "bias"), held("a2", "bias")]
    b = [held("b1", "bias"), held("b2", "bias"), held("b3", "bias")]
    assert all(pair.a is None or pair.b is None for pair in pairs(a, b))
    found = pairs(a, b[:2])
    assert [(pair.a.name, pair.b.name, pair.how) for pair in found if pair.a and pair.b] == [
        ("a1", "b1", "role and block"),
        ("a2", "b2", "role and block"),
    ]
    # a fused matrix stays whole where the other side has only some of its parts
    whole = fused(0.02, 0.02, 0.02)
    left = pairs([whole], [held("q", "attn_q")])
    assert [pair.a.name for pair in left if pair.a] == ["w"]


def test_parameters_of_a_role_that_change_alike_are_a_row() -> None:
    pairs_ = [
        Pair(held(f"a{n}", layer=n), other(name=f"b{n}", layer=n, std=std)) for n, std in enumerate((0.04, 0.01, 0.02))
    ]
    rows = parameters([*pairs_, Pair(held("g", "gate"), None), Pair(held("k", std=0.0), other(name="k"))])
    found = roles(rows)
    assert list(found["role"]) == ["mlp_in", "mlp_in", "gate", "mlp_in"]
    assert list(found["what"]) == ["std", "", "only in A", "std, distribution"]
    assert list(found["differs"]) == [True, False, True, True]
    assert list(found["n"]) == [2, 1, 1, 1] and list(found["of"]) == [4, 4, 1, 4]
    assert list(found["names"]) == [["b0", "b1"], ["b2"], ["g"], ["k"]]
    first = found.iloc[0]
    assert first["ratio"] == pytest.approx(1.0)  # the geometric mean of 2 and 1/2
    assert (first["std_a"], first["std_a_max"], first["std_b"], first["std_b_max"]) == (0.02, 0.02, 0.01, 0.04)
    assert found.iloc[3]["ratio"] == math.inf and found.iloc[3]["details"] == ["constant 0 → normal"]
    alike = roles(parameters([Pair(held(mean=0.0), other(mean=0.5)), Pair(held(mean=0.0), other(mean=0.5))]))
    assert alike.iloc[0]["details"] == ["mean 0 → 0.5"]


@pytest.mark.parametrize(
    ("size", "factor", "law"),
    [
        ((16, 64), 0.5, "goes as 1/√n_layer"),
        ((4, 256), 0.5, "goes as 1/√n_embd"),
        ((4, 256), 0.25, "goes as 1/n_embd"),
        ((16, 256), 0.25, "goes as 1/n_embd"),  # and as 1/√(n_layer·n_embd): the first that fits
        ((16, 128), 1 / math.sqrt(8), "goes as 1/√(n_layer·n_embd)"),
        ((1, 64), 2.0, "goes as 1/√n_layer"),
        ((16, 64), 0.55, None),
        ((4, 64), 0.5, None),
    ],
)
def test_a_std_that_follows_a_law_over_sizes_is_said_to(size: tuple[int, int], factor: float, law: str | None) -> None:
    found = stretched([held()], [held(std=0.02 * factor)], (4, 64), size).iloc[0]
    assert (found["what"], found["details"]) == ("std", [law] if law else [])
    assert found["ratio"] == pytest.approx(factor)


def test_of_other_sizes_roles_are_pooled_and_distributions_compared() -> None:
    a = [held("a0", std=0.03), held("a1", std=0.04), held("g", "gate")]
    b = [held("b0", std=0.02, kurtosis=-1.2), held("b1", std=0.06), held("n", "bias"), held("b2", std=0.03)]
    found = stretched(a, b, (2, 64), (3, 64)).set_index("role")
    assert list(found.index) == ["mlp_in", "gate", "bias"]
    own = found.loc["mlp_in"]
    assert own["ratio"] == pytest.approx(
        math.sqrt((0.02**2 + 0.06**2 + 0.03**2) / 3) / math.sqrt((0.03**2 + 0.04**2) / 2)
    )
    assert own["what"] == "std, distribution" and own["details"] == ["normal → normal or uniform"]
    assert (own["std_a"], own["std_a_max"], own["std_b"], own["std_b_max"]) == (0.03, 0.04, 0.02, 0.06)
    assert (own["n"], own["of"], own["names"], own["differs"]) == (3, 3, ["b0", "b1", "b2"], True)
    assert (found.loc["gate", "what"], found.loc["gate", "names"], found.loc["gate", "n"]) == ("only in A", ["g"], 1)
    assert (found.loc["bias", "what"], found.loc["bias", "names"]) == ("only in B", ["n"])
    assert math.isnan(found.loc["bias", "std_a"])
    unknown = stretched([held(kurtosis=math.nan)], [held(kurtosis=-1.2)], (2, 64), (3, 64)).iloc[0]
    assert (unknown["what"], unknown["details"], unknown["differs"]) == ("", [], False)
    zero = held(std=0.0)
    assert stretched([zero], [zero], (2, 64), (3, 64)).iloc[0]["ratio"] == 1.0
    assert stretched([zero], [held()], (2, 64), (3, 64)).iloc[0]["ratio"] == math.inf
    assert stretched([held()], [zero], (2, 64), (3, 64)).iloc[0]["ratio"] == 0.0
    # four errors of both: 4 √(1/2n + 1/2n)
    for by, differs in ((1.0416, True), (1.0400, False)):
        assert stretched([held()], [held(std=0.02 * by)], (2, 64), (3, 64)).iloc[0]["differs"] == differs
    four = [held(std=0.02 * by, draws=4) for by in (1, 1.0210)]
    assert stretched(four[:1], four[1:], (2, 64), (3, 64)).iloc[0]["differs"]
