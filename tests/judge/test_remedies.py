"""What remedies are made of: on rows written by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from initlab.judge.remedies import (
    Change,
    Described,
    as_wanted,
    drawn,
    leave,
    make_constant,
    plain,
    redraw_what_is_off,
    rescaled,
    scale_outputs,
    towards,
)
from initlab.judge.rules import Finding
from initlab.recipes import Constant, Role

FINDING = Finding(
    code="RES001", name="", question="", status="fail", severity="error", recipe="", message="", site="h.0.w h.1.w"
)


def row(std: float = 0.05, goal: float = 0.02, **changes: Any) -> dict[str, Any]:
    """Two matrices of a role of 4 blocks, both off a recipe."""
    names = ["h.0.w", "h.1.w"]
    wanted = {"std": goal, "mean": 0.0, "kind": "normal", "text": f"{goal:g}", "flat": True, "misfits": names}
    wanted |= {"misfit_std": std, "misfit_mean": 0.0} | changes.pop("wanted", {})
    made = {"role": "mlp_in", "stack": "h", "n_layer": 4, "n": 2, "numel": 200_000, "std": std}
    made |= {"stds": dict.fromkeys(names, std), "distribution": "normal", "matches": [], "expected": {"r": wanted}}
    return made | changes


def model(*rows: dict[str, Any], **given: Any) -> Described:
    return Described(rows, "r", {}, **given)


def counted(name: str, **changes: Any) -> dict[str, Any]:
    known = {"name": name, "role": "norm_gain", "stack": "h", "kind": "normal", "mean": 0.0, "std": 0.3, "trains": True}
    return known | changes


def fitted(own: dict[str, Any], *names: str, **given: Any) -> list[Change]:
    return as_wanted(own, names or ("h.0.w", "h.1.w"), FINDING, "so it is", model(own, **given))


def test_a_factor_multiplies_what_there_is() -> None:
    own = row(0.05, stds={"h.0.w": 0.03, "h.1.w": 0.04})
    (change,) = rescaled(own, ["h.0.w", "h.1.w"], 0.25, FINDING, "why")
    std = math.sqrt((0.03**2 + 0.04**2) / 2)
    assert change == Change(
        "mlp_in", "h", ("h.0.w", "h.1.w"), pytest.approx(std), pytest.approx(std / 4), "RES001", "why", "× 0.25", 0.25
    )
    assert rescaled(own, [], 0.25, FINDING, "") == []
    assert rescaled(row(0.0), ["h.0.w"], 2.0, FINDING, "") == []


def test_a_draw_is_of_the_recipe_and_a_constant_is_set() -> None:
    own = row(0.05)
    found = drawn(own, ["h.1.w"], 0.3, FINDING, "why", model(own))
    assert found == Change("mlp_in", "h", ("h.1.w",), 0.3, 0.02, "RES001", "why", "draw, normal", recipe="r")
    gain = row(0.3, 0.0, wanted={"kind": "constant", "mean": 1.0})
    assert drawn(gain, [], 0.3, FINDING, "", model(gain)).how == "set to 1"


def test_towards_a_std_by_a_factor_or_where_there_is_nothing_by_a_draw() -> None:
    own = row(0.05)
    (change,) = towards(own, 0.01, FINDING, "why", model(own))
    assert change.why == "why"
    assert (change.factor, change.proposed, change.names) == (
        pytest.approx(0.2),
        pytest.approx(0.01),
        ("h.0.w", "h.1.w"),
    )
    for std in (0.0, math.inf, math.nan):
        nothing = row(std)
        (change,) = towards(nothing, 0.01, FINDING, "why", model(nothing))
        assert (change.factor, change.recipe, change.proposed) == (None, "r", 0.02)
        assert change.names == ("h.0.w", "h.1.w") and (change.found == std or math.isnan(std))
        assert change.why == "why"
        assert towards(nothing | {"expected": {}}, 0.01, FINDING, "", model(nothing)) == []


@pytest.mark.parametrize(
    ("factor", "slack", "others", "found"),
    [
        (3.01, 0.01, (), 3.0),
        (1 / 3.01, 0.01, (), 1 / 3),
        (3.04, 0.01, (), 3.04),
        (12.1, 0.01, (), 12.0),
        (13.0, 0.01, (), 13.0),
        (1.001, 0.01, (), 1.001),
        (1.42, 0.01, (), math.sqrt(2)),
        (0.705, 0.01, (), 1 / math.sqrt(2)),
        (2.83, 0.01, (math.sqrt(8),), math.sqrt(8)),
        (2.83, 0.01, (), 2.83),
        (0.353, 0.01, (math.sqrt(8),), 1 / math.sqrt(8)),
        (2.99, 0.01, (2.98,), 2.98),  # what is likely comes first
        (3.14, 0.5, (), 3.0),  # never further than the tolerance of a std
        (3.16, 0.5, (), 3.16),
    ],
)
def test_a_plain_number_is_one_that_chance_doesnt_tell_from_the_factor(
    factor: float, slack: float, others: tuple[float, ...], found: float
) -> None:
    assert plain(factor, slack, *others) == found


def test_a_draw_of_another_scale_is_multiplied() -> None:
    (change,) = fitted(row(0.05))
    assert (change.factor, change.names, change.why) == (pytest.approx(0.4), ("h.0.w", "h.1.w"), "so it is")
    assert (change.found, change.proposed) == (pytest.approx(0.05), pytest.approx(0.02))
    (tenth,) = fitted(row(0.2005))
    assert tenth.factor == 0.1  # no chance tells it from
    (depth,) = fitted(row(0.02 * math.sqrt(8) * 1.001))
    assert depth.factor == pytest.approx(1 / math.sqrt(8), abs=1e-15)
    (one,) = fitted(row(0.05), "h.1.w")
    assert one.names == ("h.1.w",)


def test_parameters_that_are_off_by_other_factors_are_changes_of_their_own() -> None:
    apart = row(0.05, stds={"h.0.w": 0.05, "h.1.w": 0.1})
    assert [(c.names, c.factor) for c in fitted(apart)] == [(("h.0.w",), pytest.approx(0.4)), (("h.1.w",), 0.2)]
    near = row(0.05, stds={"h.0.w": 0.05, "h.1.w": 0.0548})
    (together,) = fitted(near)
    assert together.factor == pytest.approx(0.02 / math.sqrt((0.05**2 + 0.0548**2) / 2))
    far = row(0.05, stds={"h.0.w": 0.05, "h.1.w": 0.0555})
    assert len(fitted(far)) == 2  # a tenth, of matrices that are large
    assert len(fitted(far | {"numel": 1000})) == 1


def test_of_a_recipe_that_asks_for_the_block_each_goes_to_its_own() -> None:
    each = {"each": {"h.0.w": 0.02, "h.1.w": 0.01}, "flat": False}
    own = row(0.05, stds={"h.0.w": 0.05, "h.1.w": 0.025}, wanted=each)
    (same,) = fitted(own)
    assert same.factor == pytest.approx(0.4)
    own["stds"]["h.1.w"] = 0.05
    assert [c.factor for c in fitted(own)] == [pytest.approx(0.4), 0.2]
    flat = row(0.05, stds={"h.0.w": 0.05, "h.1.w": 0.051}, wanted={"each": {"h.0.w": 0.02, "h.1.w": 0.02}})
    (pooled,) = fitted(flat)
    assert pooled.factor == pytest.approx(0.02 / math.sqrt((0.05**2 + 0.051**2) / 2))
    flat["expected"]["r"]["flat"] = False
    assert fitted(flat)[0].factor == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("changes", "entry"),
    [
        ({"stds": {"h.0.w": 0.0, "h.1.w": 0.05}}, {}),
        ({"stds": {"h.0.w": math.nan, "h.1.w": 0.05}}, {}),
        ({"distribution": "orthogonal"}, {}),
        ({"wanted": {"kind": "orthogonal"}}, {}),
        ({"stds": {"h.0.w": 0.0201, "h.1.w": 0.05}}, {}),  # its scale is right: what is off is something else
        ({}, {"kind": "constant"}),
        ({}, {"kind": "low rank"}),
        ({}, {"mean": 0.0026}),
        ({}, {"mean": -0.0026}),
        ({"wanted": {"misfit_mean": 0.0026}}, None),
    ],
)
def test_what_is_no_centred_draw_of_the_kind_is_drawn_anew(
    changes: dict[str, Any], entry: dict[str, Any] | None
) -> None:
    own = row(0.05, **changes)
    known = [] if entry is None else [counted("h.0.w") | entry]
    (change,) = fitted(own, "h.0.w", counted=known)
    assert (change.factor, change.recipe, change.names, change.how) == (
        None,
        "r",
        ("h.0.w",),
        f"draw, {own['expected']['r']['kind']}",
    )
    std = own["stds"]["h.0.w"]
    assert change.found == pytest.approx(std, nan_ok=True)
    (sound,) = fitted(row(0.05), "h.0.w", counted=[counted("h.0.w", mean=0.0024)])
    assert sound.factor == pytest.approx(0.4)


def test_drawn_and_scaled_parameters_of_a_role_are_two_changes() -> None:
    own = row(0.05)
    found = fitted(own, counted=[counted("h.0.w", kind="constant"), counted("h.1.w", kind="uniform")])
    assert [(c.names, c.factor is None) for c in found] == [(("h.1.w",), False), (("h.0.w",), True)]


def test_another_distribution_is_drawn_only_where_it_was_declared() -> None:
    uniform = row(0.05, distribution="uniform")
    assert fitted(uniform)[0].factor == pytest.approx(0.4)
    assert fitted(uniform, strict=True)[0].factor is None
    assert fitted(row(0.05), strict=True)[0].factor == pytest.approx(0.4)


def test_of_small_matrices_the_mean_scatters() -> None:
    small = row(0.05, numel=2 * 400)  # four standard errors of a mean are a fifth of the std
    assert fitted(small, "h.0.w", counted=[counted("h.0.w", mean=0.0099)])[0].factor is not None
    assert fitted(small, "h.0.w", counted=[counted("h.0.w", mean=0.0101)])[0].factor is None


def test_what_is_off_is_brought_to_the_reference_and_the_rest_left() -> None:
    fits = row(0.02, wanted={"misfits": []}, role="attn_q")
    unknown = row(0.3, role="gate") | {"expected": {}}
    (change,) = redraw_what_is_off(FINDING, model(fits, unknown, row(0.05)))
    assert (change.role, change.why) == ("mlp_in", "r draws 0.02")
    two = row(0.05), row(0.05, role="attn_q")
    assert [change.role for change in redraw_what_is_off(FINDING, model(*two))] == ["mlp_in", "attn_q"]
    part = row(0.05, wanted={"misfits": ["h.1.w"]})
    assert [c.names for c in redraw_what_is_off(FINDING, model(part))] == [("h.1.w",)]


def test_outputs_that_arent_scaled_by_depth_are() -> None:
    inner = row(0.02, wanted={"misfits": []}, role="attn_q")
    out = row(0.02, role="mlp_out")
    (change,) = scale_outputs(FINDING, model(inner, out))
    assert (change.role, change.factor) == ("mlp_out", pytest.approx(1 / math.sqrt(8)))
    assert change.why == "4 blocks write twice each; 1/√(2·4) makes the sum independent of the depth"
    assert leave(FINDING, model(inner, out)) == []


def test_a_finding_that_names_parameters_sets_them_to_what_the_code_says() -> None:
    entries = [
        counted("h.0.w"),
        counted("h.1.w", std=0.4),
        counted("h.2.w"),  # not named
        counted("h.3.w"),
    ]
    wanted = {"h.0.w": -1.0, "h.1.w": -1.0, "h.2.w": 1.0}
    (change,) = make_constant(FINDING, model(counted=entries), wanted, lambda value: f"made of {value}")
    assert (change.names, change.drawn, change.how) == (("h.0.w", "h.1.w"), Constant(-1.0), "set to -1")
    assert (change.proposed, change.found) == (1.0, pytest.approx(math.sqrt((0.09 + 0.16) / 2)))
    assert (change.why, change.evidence, change.code) == ("made of -1.0", "init code", "RES001")
    assert (change.role, change.stack) == ("norm_gain", "h")
    frozen = [entries[0], entries[1] | {"trains": False}]
    assert [c.names for c in make_constant(FINDING, model(counted=frozen), wanted, str)] == [("h.0.w",)]
    apart = [entries[0], entries[1] | {"stack": "g"}]
    assert len(make_constant(FINDING, model(counted=apart), wanted, str)) == 2
    assert len(make_constant(FINDING, model(counted=entries), {"h.0.w": 1.0, "h.1.w": 0.0}, str)) == 2


def test_a_model_is_asked_by_role_by_row_and_for_what_trains() -> None:
    one, other = row(0.05), row(0.05, role="attn_q")
    described = model(one, other, counted=[counted("h.1.w", trains=False), counted("h.0.w")])
    assert described.of(Role.MLP_IN, Role.ATTN_K) == [one]
    assert described.wanted(one)["std"] == 0.02 and described.wanted(one | {"expected": {}}) == {}
    assert not described.trains(one)
    assert model(one, counted=[counted("h.1.w"), counted("h.2.w", trains=False)]).trains(one)
