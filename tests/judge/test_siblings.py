"""What isn't as its siblings are: on entries written by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from initlab.judge.remedies import Change
from initlab.judge.siblings import odd_siblings
from initlab.recipes import Constant, Normal, Uniform


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


def test_elements_that_arent_finite_come_from_the_rest_the_siblings_or_a_recipe() -> None:
    few = matrices(n1={"bad": 3, "std": 0.07})
    (group,) = odd_siblings(few)
    assert group.text == "3 elements of h.1.fc are not finite"
    (change,) = group.changes
    assert (change.how, change.drawn, change.only_bad) == ("draw 3 elements", Normal(0.07), True)
    assert change.why == "3 elements of h.1.fc are not finite; its other elements have std 0.07"
    assert math.isnan(change.found) and (change.proposed, change.evidence) == (0.07, "siblings")
    # of a matrix most of which is lost the rest says little
    size = 256 * 64
    (most,) = odd_siblings(matrices(n1={"bad": size // 2, "std": 0.07}, n2={"bad": 1}))
    lost = most.changes[0]
    assert (lost.drawn, lost.only_bad) == (Normal(0.02), True)
    assert lost.why.endswith(f"{size // 2} elements of h.1.fc are not finite; its siblings have std 0.02")
    assert most.text == f"{size // 2} elements of h.1.fc are not finite; 1 element of h.2.fc is not finite"
    (kept,) = odd_siblings(matrices(n1={"bad": size // 2 - 1, "std": 0.07}))[0].changes
    assert kept.drawn == Normal(0.07)
    for kind in ("constant", "zero"):
        (gain_,) = odd_siblings([gain("ln_f", 2.0) | {"bad": 1, "kind": kind}])[0].changes
        assert gain_.drawn == Constant(2.0)
    gains = [gain(f"h.{n}.ln", 0.5) for n in range(3)]
    gains[1] |= {"bad": 64, "numel": 64}
    (lost_gain,) = changes(gains)
    assert (lost_gain.drawn, lost_gain.names) == (Constant(0.5), ("h.1.ln",))
    alone = [entry("lm_head", bad=size)]
    assert odd_siblings(alone) == []
    (found,) = changes(alone, (redrawn("lm_head"),))
    assert (found.recipe, found.proposed, found.how, found.only_bad) == ("nanogpt", 0.5, "draw, normal", True)
    assert (found.evidence, found.why) == (
        "recipe",
        f"{size} elements of lm_head are not finite; nanogpt draws std 0.5",
    )


def redrawn(*names: str) -> Change:
    return Change("unembed", "", names, 0.0, 0.5, "INI001", "", "draw, normal", recipe="nanogpt", evidence="recipe")


def test_what_is_no_draw_is_said_and_takes_its_scale_from_siblings_recipe_or_itself() -> None:
    texts = {
        "constant": "h.4.fc is 0.02 throughout; its siblings are drawn with std 0.02",
        "low rank": "h.4.fc is of a rank far below its size; its siblings are drawn with std 0.02",
        "zero": "h.4.fc is 0 throughout; its siblings are drawn with std 0.02",
    }
    for kind, text in texts.items():
        (group,) = odd_siblings(matrices(n4={"kind": kind, "mean": 0.02}))
        assert (group.text, group.changes[0].why, group.changes[0].how) == (text, text, "draw, normal")
    alone = entry("lm_head", 0.3, kind="low rank", rms=0.4, stack="")
    (own,) = changes([alone])
    assert (own.how, own.code, own.factor) == ("draw, normal", "", None)
    assert (own.drawn, own.why) == (Normal(0.4), "lm_head is of a rank far below its size; its own scale stays")
    (recipe,) = changes([alone], (redrawn("other", "lm_head"),))
    assert (recipe.how, recipe.code) == ("draw, normal", "")
    assert (recipe.recipe, recipe.found, recipe.proposed, recipe.only_bad) == ("nanogpt", 0.3, 0.5, False)
    assert recipe.why == "lm_head is of a rank far below its size; nanogpt draws std 0.5"
    assert changes([entry("lm_head", 0.0, kind="zero")], (redrawn("lm_head"),)) == []  # zero may be meant
    two = odd_siblings(matrices(n1={"kind": "zero"}, n3={"kind": "zero"}, n4={"kind": "low rank"}))
    assert [[change.names for change in group.changes] for group in two] == [[("h.1.fc", "h.3.fc")], [("h.4.fc",)]]
    assert two[0].changes[0].why == f"{texts['zero'].replace('4', '1')}; and 1 more so"
    for other in ({"role": "gate"}, {"role": "bias"}, {"shape": (64,)}, {"again": [copy("h.4.fc", "h.0.fc", None)]}):
        found = odd_siblings(matrices(n4={"kind": "constant", "mean": 0.02} | other))
        assert not any("throughout" in group.text for group in found)


def test_siblings_are_sound_where_half_of_them_are_and_uniform_where_most_are() -> None:
    uniform = {f"n{n}": {"kind": "uniform"} for n in (1, 2, 3)}
    (found,) = changes(matrices(6, n0={"kind": "low rank"}, **uniform))
    assert found.drawn == Uniform(0.02 * math.sqrt(3)) and found.how == "draw, uniform"
    del uniform["n3"]
    (found,) = changes(matrices(5, n0={"kind": "low rank"}, **uniform))
    assert found.drawn == Normal(0.02)  # two of four
    spread = {f"n{n}": {"std": 0.02 * (1 + n / 100)} for n in (1, 2, 3)}
    (found,) = changes(matrices(4, n0={"kind": "low rank"}, **spread))
    assert found.drawn == Normal(0.0204)
    for count, half in ((2, Normal(0.02)), (3, None)):  # of five and of six siblings three are sound, or too few
        odd = {f"n{n}": {"kind": "zero"} for n in range(1, count + 1)}
        group = next(
            g for g in odd_siblings(matrices(6, n0={"kind": "low rank", "rms": 0.5}, **odd)) if "rank" in g.text
        )
        assert group.changes[0].drawn == (half or Normal(0.5))


def test_copies_are_drawn_with_the_scale_they_have_by_kind_of_matrix() -> None:
    own = {"again": [copy("h.1.fc", "h.0.fc") | {"std": 0.03}], "kind": "uniform"}
    (group,) = odd_siblings(matrices(3, n1=own))
    (change,) = group.changes
    assert (change.drawn, change.found, change.how) == (Uniform(0.03 * math.sqrt(3)), 0.03, "draw, uniform")
    assert group.text == change.why == "the numbers of h.1.fc are those of h.0.fc"
    both = [
        *matrices(3, n1={"again": [copy("rows 0–31 of h.1.fc", "rows 32–63", (0, 0, 32))]}),
        *[entry(f"h.{n}.v", again=[copy(f"rows of h.{n}.v", "others", (0, 0, 32))] if n else []) for n in range(3)],
        entry("tok", stack="", again=[copy("tok", "h.0.fc")]),
        entry("bad", stack="", bad=1, again=[copy("bad", "h.0.fc")]),
        entry("frozen", stack="", trains=False, again=[copy("frozen", "h.0.fc")]),
    ]
    groups = [[name for change in group.changes for name in change.names] for group in odd_siblings(both)]
    assert groups == [["bad"], ["h.1.fc"], ["h.1.v", "h.2.v"], ["tok"]]
    experts = [entry(f"h.{n}.e", shape=(4, 8, 8), again=[copy("e", "o", (0, n, n + 1))]) for n in range(2)]
    experts.append(entry("h.0.fc", again=[copy("h.0.fc", "h.1.fc")]))
    assert len(odd_siblings(experts)) == 1  # of a stack of matrices they are matrices


def odd_row(which: str, rms: float = 0.2, part: bool = False) -> dict[str, Any]:
    return {"name": "", "which": which, "rows": (0, 1, 2), "rms": rms, "rest": 0.02, "part": part}


def test_rows_that_differ_in_the_siblings_too_are_meant() -> None:
    two = {f"n{n}": {"odd": [odd_row(f"row 1 of h.{n}.fc")]} for n in (1, 2)}
    assert changes(matrices(**two)) == []
    two["n4"] = {"odd": [odd_row("row 1 of h.4.fc") | {"rows": (0, 7, 8)}, odd_row("row 1 of h.4.fc")]}
    assert [change.rows for change in changes(matrices(**two))] == [(0, 7, 8)]
    del two["n4"]
    two["n2"]["odd"][0]["part"] = True
    (group,) = odd_siblings(matrices(**two))
    assert group.text == "row 1 of h.1.fc has std 0.2, the others 0.02; row 1 of h.2.fc has std 0.2, the others 0.02"
    (joined,) = group.changes
    assert (joined.names, joined.rows, joined.factor, joined.found) == (
        ("h.1.fc", "h.2.fc"),
        (0, 1, 2),
        pytest.approx(0.1),
        pytest.approx(0.2),
    )
    assert (joined.proposed, joined.how, joined.evidence) == (pytest.approx(0.02), "× 0.1", "siblings")
    assert changes(matrices(n1={"odd": [odd_row("row 1 of h.1.fc", 0.0)]})) == []  # of zeros no factor makes more
    (slip,) = changes(matrices(n1={"odd": [odd_row("rows", 2.02)]}))
    assert slip.factor == 0.01  # 1.9 % tell it from 1/100 no more than chance does
    (own,) = changes(matrices(n1={"odd": [odd_row("rows", 2.05)]}))
    assert own.factor == pytest.approx(0.02 / 2.05)


def test_what_rows_explain_is_not_multiplied_as_a_whole() -> None:
    odd = {"std": 0.1, "odd": [odd_row("row 1 of h.2.fc")]}
    assert [change.rows for change in changes(matrices(n2=odd))] == [(0, 1, 2)]
    assert [change.rows for change in changes(matrices(n2={"std": 0.1}))] == [None]


def test_what_is_off_in_one_block_is_one_group() -> None:
    def block(n: int, fc: float, proj: float, out: float) -> list[dict[str, Any]]:
        return [entry(f"h.{n}.{name}", std) for name, std in (("fc", fc), ("proj", proj), ("out", out))]

    usual = [one for n in range(5) for one in block(n, 0.02, 0.02, 0.02)]
    (group,) = odd_siblings([*usual, *block(5, 0.04, 0.08, 0.02)])
    assert [(change.names, change.how) for change in group.changes] == [
        (("h.5.fc",), "× 0.5"),
        (("h.5.proj",), "× 0.25"),
    ]
    assert group.text == (
        "h.5.fc has std 0.04, 0.02 in the other 5 blocks; h.5.proj has std 0.08, 0.02 in the other 5 blocks"
    )
    # beside an odd one of a block, less is enough; in another block it isn't
    (group,) = odd_siblings([*usual, *block(5, 0.04, 0.0226, 0.02)])
    assert [change.names for change in group.changes] == [("h.5.fc",), ("h.5.proj",)]
    assert odd_siblings([*usual, *block(5, 0.0226, 0.02, 0.02)]) == []
    # one factor for all that it explains: 1/3 within what chance makes of either
    (group,) = odd_siblings([*usual, *block(5, 0.0598, 0.0603, 0.0601)])
    assert [(change.names, change.how) for change in group.changes] == [(("h.5.fc", "h.5.proj", "h.5.out"), "× 0.333")]
    (group,) = odd_siblings([*usual, *block(5, 0.0350, 0.0352, 0.0351)])  # one factor is surer than three
    (one,) = group.changes
    assert one.factor == pytest.approx(0.02 / 0.0351, rel=1e-3) and len(one.names) == 3 and one.code == ""
    both = odd_siblings([*usual, *block(5, 0.04, 0.02, 0.02), *block(6, 0.02, 0.06, 0.02)])
    assert [[change.names for change in group.changes] for group in both] == [[("h.5.fc",)], [("h.6.proj",)]]


def test_only_matrices_of_blocks_that_are_drawn_have_a_scale_to_share() -> None:
    for changed in ({"layer": None}, {"role": "bias"}, {"kind": "constant"}, {"trains": False}, {"role": "other"}):
        found = changes(matrices(n2={"std": 0.2} | changed))
        assert not any(change.names == ("h.2.fc",) and change.factor for change in found), changed
    assert changes(matrices(n2={"std": 0.2, "shape": (64, 64)})) == []  # of another shape: no sibling
    with_zero = matrices(4, n0={"std": 0.0, "kind": "normal"}, n1={"bad": 1}, n2={"std": 0.2})
    assert not any(change.factor for change in changes(with_zero))  # two are left


@pytest.mark.parametrize(("numel", "named"), [(760, True), (700, False)])
def test_of_small_matrices_chance_is_larger(numel: int, named: bool) -> None:
    # log 1.5 is log 1.3 and five standard errors, of the std and of its siblings' mean, at 733 elements
    small = [each | {"numel": numel} for each in matrices(n2={"std": 0.0300})]
    assert bool(changes(small)) == named


def test_of_two_thirds_that_agree_and_an_even_trend() -> None:
    stds = [0.02, 0.0201, 0.0199, 0.02, 0.04, 0.06]
    found = changes([entry(f"h.{n}.fc", std) for n, std in enumerate(stds)])
    assert [(change.names[0], change.how) for change in found] == [("h.4.fc", "× 0.5"), ("h.5.fc", "× 0.333")]
    mean = math.sqrt(sum(std**2 for std in stds[:4]) / 4)
    (found,) = changes([entry(f"h.{n}.fc", std) for n, std in enumerate([*stds[:4], 0.047])])
    assert found.factor == pytest.approx(mean / 0.047)


def test_gains_and_biases_go_to_what_the_other_blocks_have() -> None:
    def norms(*values: float, name: str = "ln") -> list[dict[str, Any]]:
        return [gain(f"h.{n}.{name}", value) for n, value in enumerate(values)]

    (group,) = odd_siblings(norms(1.0, 1.0, 3.0, 1.0))
    (change,) = group.changes
    assert group.text == change.why == "h.2.ln is 3, those of the other blocks 1"
    assert (change.names, change.how, change.drawn) == (("h.2.ln",), "set to 1", Constant(1.0))
    assert (change.proposed, change.found) == (0.0, 0.0)
    assert changes(norms(1.0, 1.0, 1.009)) == [] != changes(norms(1.0, 1.0, 1.011))
    assert changes(norms(1.0, 3.0)) == []  # of two neither is odd
    assert changes(norms(1.0, 1.0, 3.0, 3.0)) == []  # nor where less than two thirds agree
    assert len(changes(norms(1.0, 1.0, 3.0))) == 1
    (bias,) = changes([each | {"role": "bias"} for each in norms(0.0, 0.0, 0.5)])
    assert bias.why == "h.2.ln is 0.5, those of the other blocks 0"
    tiny = [each | {"role": "bias"} for each in norms(0.0, 0.0, 1e-9)]
    assert changes(tiny) == []
    drawn = norms(1.0, 1.0, 1.0)
    drawn[1] |= {"kind": "normal", "std": 0.3, "mean": 0.98}
    (varied,) = changes(drawn)
    assert (varied.why, varied.found) == ("h.1.ln has mean 0.98, those of the other blocks 1", 0.3)
    # a family of its own that agrees is held against all of its role
    final = [*norms(1.0, 1.0, 1.0), *norms(1.0, 1.0, 1.0, name="ln_2"), gain("ln_f", 0.25)]
    assert [change.why for change in changes(final)] == ["ln_f is 0.25, those of 6 others 1"]
    two = [*norms(1.0, 1.0, 1.0, 1.0), *norms(2.0, 2.0, name="ln_2")]
    assert [change.why for change in changes(two)] == ["h.0.ln_2 is 2, those of 5 others 1; and 1 more so"]
    zeros = [each | {"kind": "zero", "std": 0.0} for each in matrices()]
    zeros[3] |= {"kind": "normal", "std": 0.02}
    assert changes(zeros) == []  # a matrix is set to no number
    for left in ({"bad": 1}, {"trains": False}, {"as_made": True}):
        own = norms(1.0, 1.0, 3.0, 1.0)
        own[2] |= left
        assert not any("those" in change.why for change in changes(own))


def test_groups_come_in_the_order_of_how_sure_they_are() -> None:
    found = [
        *matrices(8, n1={"bad": 1}, n2={"kind": "low rank"}, n4={"odd": [odd_row("row 1 of h.4.fc")]}, n5={"std": 0.2}),
        entry("tok", stack="", again=[copy("tok", "h.0.fc")]),
        *[gain(f"h.{n}.ln", 1.0 + (n == 6)) for n in range(8)],
    ]
    first = ["not finite", "of a rank far below", "the numbers of tok", "row 1 of", "h.5.fc has std", "h.6.ln is 2"]
    assert all(text in group.text for text, group in zip(first, odd_siblings(found), strict=True))


def test_what_is_made_alike_is_pooled() -> None:
    found = matrices(6, n1={"kind": "constant", "std": 0.03}, n2={"kind": "constant", "std": 0.04})
    (change,) = changes(found)
    assert change.names == ("h.1.fc", "h.2.fc")
    assert change.found == pytest.approx(math.sqrt((0.03**2 + 0.04**2) / 2))
    apart = matrices(6, n1={"kind": "constant"}, n2={"kind": "constant", "stack": "g"})
    assert [change.stack for change in changes(apart)] == ["h", "g"]
