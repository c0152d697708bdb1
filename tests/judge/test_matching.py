"""Verdicts on rows written by hand: which recipe fits, what doesn't, and how it is said."""

from __future__ import annotations

import math
from typing import Any

import pytest

from initlab.errors import RecipeError
from initlab.judge.matching import (
    CONFIG,
    best_recipes,
    coverage,
    mismatches,
    narrowed,
    outputs_as_drawn,
    reference_of,
    same_draws,
    unscaled,
)

SCALED = 0.02 / math.sqrt(8)


def wanted(std: float, found: float, misfits: list[str], **changes: Any) -> dict[str, Any]:
    kind = {"std": std, "mean": 0.0, "kind": "normal", "text": f"{std:g}", "misfits": misfits}
    return kind | {"misfit_std": found, "misfit_mean": 0.0} | changes


def row(role: str, std: float, drawn: dict[str, float], stack: str = "h", n: int = 2, **changes: Any) -> dict[str, Any]:
    """A row whose parameters all have one std; a recipe misfits where it draws another."""
    names = [f"{stack}.{at}.{role}" for at in range(n)]
    expected = {id: wanted(each, std, [] if each == std else names) for id, each in drawn.items()}
    made = {"role": role, "stack": stack, "n": n, "n_layer": 4, "numel": 1000, "std": std, "expected": expected}
    made |= {"stds": dict.fromkeys(names, std), "odd": [], "depth_code": ""}
    made |= {"matches": [id for id, each in expected.items() if not each["misfits"]]}
    return made | changes


def scaled_by_depth(id: str, made: dict[str, Any]) -> dict[str, Any]:
    """The row, with the recipe's std as a formula of the depth."""
    made["expected"][id]["text"] = "0.02 / sqrt(2 * n_layer)"
    return made


def test_of_recipes_the_one_that_fits_most_weight_matrices_is_best() -> None:
    rows = [
        row("mlp_in", 0.02, {"a": 0.02, "b": 0.02, "c": 0.1}),
        row("attn_q", 0.02, {"a": 0.02, "b": 0.1, "c": 0.1}),
        row("bias", 0.0, {"a": 0.5, "b": 0.0, "c": 0.0}),
        row("norm_gain", 0.0, {"a": 0.5, "b": 0.0, "c": 0.0}),
        row("other", 0.7, {}),  # nothing is expected of it
    ]
    assert best_recipes(rows) == (["a"], 2)  # b fits as many rows, and fewer matrices
    assert best_recipes(rows[:1]) == (["a", "b"], 0)
    assert best_recipes([rows[0], rows[2]]) == (["b"], 0)  # as many matrices, and a vector more


def test_half_of_the_weight_matrices_are_not_enough() -> None:
    rows = [row("mlp_in", 0.02, {"a": 0.02}), row("attn_q", 0.02, {"a": 0.1}), row("bias", 0.0, {"a": 0.0})]
    assert best_recipes(rows) == ([], 3)
    assert best_recipes([*rows, row("mlp_out", 0.02, {"a": 0.02})]) == (["a"], 1)
    assert best_recipes([]) == ([], 0)
    assert best_recipes([row("bias", 0.0, {"a": 0.0})]) == ([], 1)  # of vectors alone nothing is concluded


def test_of_recipes_that_fit_as_many_roles_fewer_wrong_parameters_decide() -> None:
    fits = [row(role, 0.02, {"a": 0.02, "b": 0.02}) for role in ("mlp_in", "attn_q")]
    off = row("attn_out", 0.02, {"a": 0.1, "b": 0.1}, n=3)
    off["expected"]["b"]["misfits"] = ["h.0.attn_out"]
    assert best_recipes([*fits, off]) == (["b"], 1)
    without = row("attn_out", 0.02, {"a": 0.1})  # b says nothing of it
    assert best_recipes([*fits, without]) == (["b"], 1)


def test_of_recipes_within_the_tolerance_the_likelier_stds_decide() -> None:
    def near(numel: int, std: float = 0.02, other: float = 0.0204) -> list[dict[str, Any]]:
        made = [row(role, std, {"a": 0.02, "b": other}, numel=numel) for role in ("mlp_in", "attn_q")]
        for each in made:
            each["matches"] = ["a", "b"]
            each["expected"]["a"]["misfits"] = each["expected"]["b"]["misfits"] = []
        return made

    # (log 1.02)² · 2 rows ÷ (1 / 2 numel + 0.003²) is 16 at numel 12,350
    assert best_recipes(near(11_000))[0] == ["a", "b"]
    assert best_recipes(near(14_000))[0] == ["a"]
    assert best_recipes(near(14_000, std=0.0204, other=0.0204))[0] == ["b"]
    # without what a std is off beside sampling it would tell these apart: log(1.005)² · 2 rows ÷ 0.003² is 5.5
    assert best_recipes(near(10**9, other=0.0201))[0] == ["a", "b"]
    zero = near(10**6, std=0.0, other=0.0)  # of zeros there is no ratio
    assert best_recipes(zero)[0] == ["a", "b"]
    assert best_recipes([*near(10**6, other=0.0), *zero])[0] == ["a", "b"]  # nor of a std that should be zero


def test_coverage_names_every_parameter_that_nothing_is_expected_of() -> None:
    rows = [row("mlp_in", 0.02, {"a": 0.02}, n=3), row("gate", 1.0, {}, n=2), row("other", 1.0, {}, "", n=1)]
    assert coverage(rows) == (3, 6, ["h.0.gate", "h.1.gate", ".0.other"])


def test_recipes_that_draw_alike_are_one_group() -> None:
    rows = [row("mlp_in", 0.02, dict.fromkeys("abcde", 0.02)), row("attn_q", 0.02, dict.fromkeys("abcd", 0.02))]
    rows[0]["expected"]["b"]["kind"] = "uniform"
    rows[0]["expected"]["c"]["mean"] = 0.1
    assert same_draws(rows, ["d", "b", "a", "c", "e"]) == [["d", "a"], ["b"], ["c"], ["e"]]
    rows[1]["expected"]["d"]["std"] = 0.03
    assert same_draws([*rows, row("gate", 1.0, {})], ["a", "d"]) == [["a"], ["d"]]


def test_what_fits_no_recipe_is_said_with_what_would() -> None:
    off = [row(role, 0.03, {"a": 0.02}) for role in ("attn_q", "attn_k", "attn_v")]
    fits = [row("mlp_in", 0.02, {"a": 0.02}), row("bias", 0.0, {"a": 0.0})]
    assert mismatches(off) == ["no known recipe: the weights are trained, or drawn another way"]
    assert mismatches([*off, *fits]) == [
        "no known recipe: the weights are trained, or drawn another way; only mlp_in would fit one"
    ]
    assert mismatches([row("gate", 1.0, {})]) == ["no known recipe: nothing to compare"]
    more = [row(role, 0.02, {"a": 0.02}, stack) for role, stack in (("mlp_out", "h"), ("mlp_in", "g"))]
    three = [*off, row("wo", 0.03, {"a": 0.02}), row("wi", 0.03, {"a": 0.02}), *fits, *more]
    assert mismatches(three)[0].endswith("; only mlp_in and mlp_out would fit one")
    third = [*three, row("attn_out", 0.02, {"a": 0.02}), *off]
    assert mismatches(third)[0].endswith("; only mlp_in, mlp_out and attn_out would fit one")


def test_rows_of_a_matrix_that_differ_are_said_also_where_no_recipe_fits() -> None:
    def odd(which: str, name: str, part: bool = False) -> dict[str, Any]:
        return {"which": which, "name": name, "part": part, "rms": 0.1234, "rest": 0.01234}

    rows = [row(role, 0.03, {"a": 0.02}) for role in ("attn_q", "mlp_in")]
    rows[0]["odd"] = [odd(f"row {at} of m", "m") for at in range(3)] + [odd("the attn_q rows of m", "m", part=True)]
    said = [f"row {at} of m has std 0.12, the others 0.012" for at in range(3)]
    assert mismatches(rows)[1:] == said  # a part of a fused matrix that no recipe expects otherwise isn't odd
    rows[0]["stds"]["m"] = 0.03
    assert mismatches(rows)[1:] == [*said, "the attn_q rows of m have std 0.12, the others 0.012"]
    rows[1]["odd"] = [odd("rows 5–7 of n", "n")]
    assert mismatches(rows)[5:] == ["1 more matrix holds such rows"]
    rows[1]["odd"] = [odd("rows 5–7 of n", "n"), odd("rows 8–9 of n", "n")]
    assert mismatches(rows)[5:] == ["2 more matrices hold such rows"]


def test_a_part_that_the_recipe_explains_is_not_said() -> None:
    fits = [row(role, 0.02, {"a": 0.02}) for role in ("mlp_in", "attn_qkv")]
    fits[1]["odd"] = [{"which": "the q rows of m", "name": "h.0.attn_qkv", "part": True, "rms": 0.1, "rest": 0.02}]
    assert mismatches(fits) == []
    fits[1]["odd"][0]["part"] = False
    assert mismatches(fits) == ["the q rows of m have std 0.1, the others 0.02"]
    fits[1]["odd"][0]["part"] = True
    fits[1]["expected"]["a"]["misfits"] = ["h.0.attn_qkv"]
    assert mismatches(fits, ["a"])[1:] == ["the q rows of m have std 0.1, the others 0.02"]


def test_a_recipe_that_was_meant_is_held_against_the_rows() -> None:
    rows = [
        row("mlp_in", 0.02, {"a": 0.02, "b": 0.02}),
        row("attn_q", 0.03, {"a": 0.02, "b": 0.03}),
        row("mlp_out", 0.03, {"a": 0.02, "b": 0.02}),
    ]
    assert mismatches(rows, ["a"]) == ["everything else is a, but attn_q and mlp_out have std 0.03, not 0.02"]
    assert mismatches(rows, ["a", "b"]) == ["everything else is b, but mlp_out has std 0.03, not 0.02"]
    assert mismatches(rows) == mismatches(rows, ["b"])
    assert mismatches([row("mlp_in", 0.02, {"a": 0.02, "b": 0.03})], ["b", "a"]) == []
    assert mismatches(rows[1:], ["a"]) == ["a: attn_q and mlp_out have std 0.03, not 0.02"]
    assert mismatches([*rows[1:], row("bias", 0.0, {"b": 0.0})], ["a"])[0].startswith("everything else is a, but")
    assert mismatches(rows, []) == []
    with pytest.raises(RecipeError, match=r"^recipe 'c' is not among those that the model was compared with$"):
        mismatches(rows, ["a", "c"])
    three = [*rows, row("mlp_gate", 0.03, {"a": 0.02})]
    assert mismatches(three, ["a"])[0].startswith("everything else is a, but attn_q, mlp_out and mlp_gate have")


def test_a_misfit_is_named_by_its_place() -> None:
    rows = [row("mlp_in", 0.02, {"a": 0.02}), row("attn_q", 0.02, {"a": 0.02}, n=3), row("wte", 0.02, {"a": 0.02}, "")]
    rows[1]["expected"]["a"] = wanted(0.02, 0.03, ["h.2.attn_q", "h.1.attn_q"])
    assert mismatches(rows, ["a"]) == [
        "everything else is a, but attn_q in 2 of 3 parameters (h.2.attn_q) has std 0.03, not 0.02"
    ]
    rows.append(row("mlp_in", 0.03, {"a": 0.02}, "decoder"))
    rows[2]["expected"]["a"] = wanted(0.02, 0.03, [".0.wte", ".1.wte"])
    del rows[1]
    assert mismatches(rows, ["a"]) == [
        "everything else is a, but wte of outside the blocks and mlp_in of decoder have std 0.03, not 0.02"
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"misfit_std": 0.0, "misfit_mean": 1.0}, "the value 1, not 0.02"),
        ({"misfit_std": 1e-6, "misfit_mean": 1.0}, "the value 1, not 0.02"),
        ({"misfit_std": 2e-6, "misfit_mean": 1.0}, "std 2.0e-6 and mean 1, not 0.02"),
        ({"misfit_std": 0.0, "misfit_mean": 0.0}, "the value 0, not 0.02"),
        ({"misfit_mean": -0.012345}, "std 0.05 and mean -0.012, not 0.02"),
        ({"misfit_mean": 0.01}, "std 0.05, not 0.02"),
        ({"misfit_std": 0.012345}, "std 0.012, not 0.02"),
        ({"misfit_std": 1.0}, "std 1, not 0.02"),
        ({"kind": "constant", "mean": 1.0, "text": "1"}, "std 0.05, not 1"),
        ({"kind": "uniform"}, "std 0.05, not 0.02 (uniform, 0.02)"),
        ({"text": "0.1 / sqrt(2 * n_layer)"}, "std 0.05, not 0.1/sqrt(2*n_layer) = 0.02"),
        ({"kind": "uniform", "text": "a / b"}, "std 0.05, not 0.02 (uniform, a/b)"),
        ({"std": 0.012345}, "std 0.05, not 0.02 = 0.012"),
    ],
)
def test_found_and_wanted_are_said_in_few_digits(changes: dict[str, Any], said: str) -> None:
    rows = [row("mlp_in", 0.02, {"a": 0.02}), row("attn_q", 0.05, {"a": 0.02})]
    rows[1]["expected"]["a"] |= changes
    assert mismatches(rows, ["a"]) == [f"everything else is a, but attn_q has {said}"]


@pytest.mark.parametrize(
    ("role", "found", "code", "said"),
    [
        ("attn_out", 0.02, "", ": not depth-scaled"),
        ("mlp_out", 0.02, "Net.init", ": not depth-scaled, though Net.init says so"),
        ("attn_out", 0.0209, "", ": not depth-scaled"),
        ("attn_out", 0.0211, "", ""),  # nor what it would be without depth scaling
        ("mlp_in", 0.02, "", ""),
    ],
)
def test_a_std_that_lacks_only_the_depth_scaling_is_said_to(role: str, found: float, code: str, said: str) -> None:
    plain = "nanogpt-no-depth-scale"
    rows = [row("attn_q", 0.02, {"nanogpt": 0.02, plain: 0.02})]
    rows += [scaled_by_depth("nanogpt", row(role, found, {"nanogpt": SCALED, plain: 0.02}, depth_code=code))]
    end = f"has std {0.02 if found < 0.0205 else 0.021}, not 0.02/sqrt(2*n_layer) = 0.0071{said}"
    assert mismatches(rows, ["nanogpt"]) == [f"everything else is nanogpt (GPT-2's init), but {role} {end}"]


def test_without_depth_scaling_only_code_that_scales_makes_it_a_misfit() -> None:
    plain = "nanogpt-no-depth-scale"
    drawn = {"nanogpt": 0.02, plain: 0.02}
    rows = [row("attn_q", 0.02, drawn), scaled_by_depth("nanogpt", row("mlp_out", 0.02, drawn | {"nanogpt": SCALED}))]
    assert mismatches(rows) == []
    rows[0]["depth_code"] = "Net.init"
    assert "mlp_out has std 0.02" in mismatches(rows)[0]
    for each in rows:
        del each["expected"]["nanogpt"]
        each["matches"] = [plain]
    assert mismatches(rows) == []  # the code may say so: nothing was compared with nanogpt
    llama = [
        row(role, 0.02, {"hf-llama": 0.02, "nanogpt": 0.1}, depth_code="Net.init") for role in ("attn_q", "mlp_out")
    ]
    assert mismatches(llama) == []  # it scales something else, and fits a recipe


def test_the_reference_is_the_first_of_those_that_models_are_trained_from() -> None:
    rows = [row(role, 0.02, {"xavier": 0.02, "hf-llama": 0.02, "nanogpt": 0.02}) for role in ("attn_q", "mlp_in")]
    assert reference_of(rows) == "nanogpt"
    for each in rows:
        del each["expected"]["nanogpt"]
    assert reference_of(rows, closest="xavier") == "hf-llama"
    for each in rows:
        each["expected"]["hf-llama"]["misfits"], each["matches"] = list(each["stds"]), ["xavier"]
    assert reference_of(rows, closest="xavier") == "xavier"
    assert reference_of(rows) == "nanogpt"
    rows[1]["expected"][CONFIG] = wanted(0.03, 0.02, list(rows[1]["stds"]))
    assert reference_of(rows) == CONFIG  # also where it doesn't fit
    assert [list(each["expected"]) for each in narrowed([*rows, row("gate", 1.0, {})])] == [
        ["hf-llama"],
        ["hf-llama", CONFIG],
    ]
    config = [row(role, 0.02, {CONFIG: 0.02, "hf-llama": 0.1}) for role in ("attn_q", "mlp_in")]
    assert reference_of(config) == CONFIG


def outputs(std: float, drawn: dict[str, float] | None = None, **changes: Any) -> list[dict[str, Any]]:
    """A model of 4 layers whose inner std is 0.02, and that writes with another."""
    drawn = {"a": 0.02} if drawn is None else drawn
    inner = [row(role, 0.02, dict.fromkeys(drawn, 0.02)) for role in ("attn_q", "mlp_in")]
    return [*inner, row("mlp_out", std, drawn, **changes)]


def test_outputs_nearer_to_the_inputs_than_to_the_depth_scale_are_unscaled() -> None:
    between = 0.02 / 8**0.25  # the geometric mean of 0.02 and 0.02 / √8
    assert [names for _, names in unscaled(outputs(1.01 * between))] == [["h.0.mlp_out", "h.1.mlp_out"]]
    assert [names for _, names in unscaled(outputs(0.99 * between))] == [[]]
    one = outputs(SCALED)
    one[-1]["stds"]["h.1.mlp_out"] = 0.02
    assert [(each["role"], names) for each, names in unscaled(one)] == [("mlp_out", ["h.1.mlp_out"])]
    assert unscaled(outputs(0.02, n_layer=1)) == []  # nothing to scale by
    assert len(unscaled(outputs(0.02, n_layer=2))) == 1
    assert unscaled(outputs(0.02, stack="other")) == []  # no inputs beside it
    assert unscaled(outputs(0.02)[:2]) == []


def test_a_block_that_is_drawn_otherwise_does_not_move_what_the_outputs_are_held_against() -> None:
    rows = outputs(SCALED, stds={"h.0.mlp_out": SCALED, "h.1.mlp_out": 0.02})
    rows[0] |= {"stds": {"h.0.attn_q": 0.02, "h.1.attn_q": 0.02, "h.2.attn_q": 0.2}, "std": 0.12}
    assert [names for _, names in unscaled(rows)] == [["h.1.mlp_out"]]
    rows[1] |= {"stds": {}, "std": 0.05}  # the widest of the inputs counts, of a row without single stds its own
    assert [names for _, names in unscaled(rows)] == [[]]
    rows[1]["std"] = 0.001
    assert [names for _, names in unscaled(rows)] == [["h.1.mlp_out"]]


def test_what_fits_a_recipe_that_scales_by_block_is_not_unscaled() -> None:
    rows = outputs(0.02)
    rows[-1]["expected"]["a"]["text"] = "0.02 / sqrt(layer + 1)"
    assert unscaled(rows) == []
    rows[-1]["matches"] = []
    assert len(unscaled(rows)) == 1
    alone = outputs(0.02, {"a": 0.02, "b": 0.02})
    alone[-1]["expected"]["b"]["text"] = "0.02 / sqrt(layer + 1)"
    alone[0]["matches"] = alone[1]["matches"] = ["a"]  # the model as a whole isn't b's
    assert len(unscaled(alone)) == 1


def test_outputs_that_are_drawn_as_a_reference_draws_them_are_said_to_be() -> None:
    rows = outputs(0.02, {"hf-llama": 0.02})
    names = ["h.0.mlp_out", "h.1.mlp_out"]
    assert outputs_as_drawn(rows) == {"names": names, "stds": [0.02, 0.02], "like": "hf-llama", "so": True}
    meant = scaled_by_depth("nanogpt", outputs(0.02, {"nanogpt": SCALED})[-1])
    scaled = [*outputs(0.02, {"nanogpt": 0.02})[:2], meant]
    assert outputs_as_drawn(scaled) == {"names": names, "stds": [0.02, 0.02], "like": "nanogpt", "so": False}
    assert outputs_as_drawn(outputs(SCALED)) == {"names": [], "stds": [], "like": "", "so": False}
    assert outputs_as_drawn(outputs(0.02)) == {"names": names, "stds": [0.02, 0.02], "like": "", "so": False}


def test_outputs_of_a_std_that_the_config_names_are_its() -> None:
    rows = outputs(0.02)
    for declared, like in (([0.5, 0.0205], CONFIG), ([0.0215], ""), ([0.0195], CONFIG), ([0.0189], ""), ([], "")):
        found = outputs_as_drawn(rows, declared)
        assert (found["like"], found["so"]) == (like, bool(like)), declared
    rows[-1]["stds"]["h.1.mlp_out"] = 0.03
    assert outputs_as_drawn(rows, [0.02])["like"] == ""  # not all of them
    assert outputs_as_drawn(rows, [0.02, 0.03])["like"] == CONFIG
    assert outputs_as_drawn(outputs(SCALED), [SCALED])["like"] == ""
    fitting = outputs(0.02, {"hf-llama": 0.02, CONFIG: 0.02})
    assert outputs_as_drawn(fitting, [0.02])["like"] == "hf-llama"


def test_single_wide_outputs_are_odd_and_a_third_may_be_off() -> None:
    half = outputs(SCALED, {"hf-llama": 0.02})
    half[-1]["stds"]["h.1.mlp_out"] = 0.02
    assert outputs_as_drawn(half)["names"] == []
    three = outputs(0.02, {"hf-llama": 0.02}, n=3)
    three[-1]["expected"]["hf-llama"]["misfits"] = ["h.0.mlp_out"]
    assert outputs_as_drawn(three)["so"] is True
    three[-1]["expected"]["hf-llama"]["misfits"] = ["h.0.mlp_out", "h.1.mlp_out"]
    assert outputs_as_drawn(three)["so"] is False
