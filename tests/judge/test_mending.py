"""Which change answers which finding: on rows written by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from initlab.judge import lost
from initlab.judge.matching import best_recipes, outputs_as_drawn, reference_of, same_draws
from initlab.judge.mending import (
    from_config,
    from_init_code,
    from_nearest,
    from_one_factor,
    from_recipe,
    from_remedies,
    from_siblings,
    merged,
    stages,
    wired_wrongly,
)
from initlab.judge.remedies import Change, Described, as_wanted
from initlab.judge.rules import RULES, Finding
from initlab.judge.rules.depth import unscaled_outputs
from initlab.judge.siblings import Group

GPT2 = {
    "token_embed": 0.02,
    "pos_embed": 0.02,
    "attn_qkv": 0.02,
    "attn_out": 0.02 / math.sqrt(8),
    "mlp_in": 0.02,
    "mlp_out": 0.02 / math.sqrt(8),
}


def row(role: str, std: float, wanted: float | None = None, **changes: Any) -> dict[str, Any]:
    """A described role of 4 blocks, compared with nanogpt."""
    wanted = GPT2.get(role, 0.02) if wanted is None else wanted
    inside = role not in ("token_embed", "pos_embed", "unembed")
    names = [f"h.{layer}.{role}" for layer in range(4)] if inside else [role]
    fits = abs(std - wanted) <= 0.05 * wanted
    expected = {
        "std": wanted,
        "mean": 0.0,
        "kind": "normal",
        "text": "0.02 / sqrt(2 * n_layer)" if role.endswith("out") else "0.02",
        "flat": True,
        "misfits": [] if fits else names,
        "misfit_std": std,
        "misfit_mean": 0.0,
    }
    found = {
        "role": role,
        "stack": "h" if inside else "",
        "n_layer": 4,
        "n_embd": 64,
        "n": len(names),
        "numel": 100_000,
        "mean": 0.0,
        "std": std,
        "std_max": std,
        "stds": dict.fromkeys(names, std),
        "distribution": "normal",
        "matches": ["nanogpt"] if fits else [],
        "expected": {"nanogpt": expected},
        "depth_code": "",
    }
    return found | changes


def rows(**stds: float) -> list[dict[str, Any]]:
    return [row(role, std) for role, std in (GPT2 | stds).items()]


def finding(code: str) -> Finding:
    return Finding(code=code, name="", question="", status="fail", severity="error", recipe="", message="")


def case(found: list[dict[str, Any]], logit_std: float = 0.5, own_logit: float = 0.0) -> Described:
    return Described(found, "nanogpt", {"logit_std": logit_std, "own_logit": own_logit})


def propose(findings: list[Finding], found: Described) -> list[Change]:
    groups = from_remedies(findings, found) or from_nearest(findings, found)
    return [change for group in groups for change in group.changes]


def test_where_all_matrices_are_off_by_one_factor_one_of_no_role_goes_along() -> None:
    described = case(rows(**{role: std / 1000 for role, std in GPT2.items()}))
    entry = {"role": "other", "stack": "", "trains": True, "shape": (64, 64), "numel": 4096}
    counted = [entry | {"name": "mix", "std": 2.02e-5}, entry | {"name": "own", "std": 0.02}]
    known = {"mean": 0.0, "kind": "normal", "as_made": False, "trains": True, "shape": (64, 64), "numel": 4096}
    counted += [
        known | {"name": n, "role": r["role"], "std": s, "rms": s} for r in described.rows for n, s in r["stds"].items()
    ]
    (group,) = from_one_factor([finding("ACT001")], replace(described, counted=counted))
    assert [change.names for change in group.changes if change.role == "other"] == [("mix",)]
    assert group.changes[-1].factor == pytest.approx(1000)


def test_of_small_matrices_std_and_mean_scatter() -> None:
    stds = {"h.0.router": 2.02, "h.1.router": 1.75}
    own = row("router", 1.9, 0.02) | {"stds": stds, "n": 2, "numel": 512}
    own["expected"]["nanogpt"]["misfits"] = list(stds)
    counted = [{"name": n, "kind": "normal", "mean": 0.2, "std": s} for n, s in stds.items()]
    (change,) = as_wanted(own, list(stds), finding("INI008"), "", replace(case([own]), counted=counted))
    assert change.factor is not None and change.names == tuple(stds)


def test_a_factor_on_the_wrong_matrix_is_one_slip() -> None:
    scaled = 1 / math.sqrt(8)
    described = case(rows(mlp_in=0.02 * scaled, mlp_out=0.02))
    (group,) = from_nearest([finding("RES001")], described)
    assert {change.role: change.proposed for change in group.changes} == pytest.approx(
        {"mlp_in": 0.02, "mlp_out": 0.02 * scaled}
    )
    said = replace(finding("INI010"), measured=scaled, site="mlp_out")
    three = [*described.rows, row("mlp_gate", 0.02)]
    (group,) = from_remedies([said], replace(described, rows=three, reference="none"))
    assert {change.role: change.proposed for change in group.changes} == pytest.approx(
        {"mlp_in": 0.02, "mlp_out": 0.02 * scaled}
    )


def answered(code: str, found: Described) -> dict[str, float]:
    return {change.role: change.proposed for change in propose([finding(code)], found)}


def test_depth_scaling_touches_only_the_outputs_that_lack_it() -> None:
    scaled = 0.02 / math.sqrt(8)
    assert answered("RES001", case(rows())) == {}
    found = answered("RES001", case(rows(attn_out=0.02, mlp_out=0.02)))
    assert found == pytest.approx({"attn_out": scaled, "mlp_out": scaled})
    assert set(answered("RES001", case(rows(mlp_out=0.02)))) == {"mlp_out"}


def test_of_token_and_position_the_one_that_is_off_moves() -> None:
    assert answered("EMB001", case(rows(pos_embed=1.0))) == pytest.approx({"pos_embed": 0.02})
    assert answered("EMB001", case(rows(token_embed=1e-4))) == pytest.approx({"token_embed": 0.02})
    assert answered("EMB001", case([r for r in rows() if r["role"] != "pos_embed"])) == {}


def test_a_head_shrinks_to_the_references_or_to_gpt2s_logits() -> None:
    untied = [*rows(), row("unembed", 0.5)]
    assert answered("LOG001", case(untied, logit_std=4.0)) == pytest.approx({"unembed": 0.02})
    as_wanted = [*rows(), row("unembed", 0.125, wanted=0.125)]
    assert answered("LOG001", case(as_wanted, logit_std=1.0)) == pytest.approx({"unembed": 0.125 * 0.02 * 768**0.5})


def test_a_trapped_tied_head_is_freed_by_the_blocks_first() -> None:
    found = case(rows(attn_out=0.001, mlp_out=0.001), own_logit=10.0)
    assert answered("LOG001", found) == pytest.approx({"attn_out": GPT2["attn_out"], "mlp_out": GPT2["mlp_out"]})
    wide = [row("token_embed", 0.1, wanted=0.1), *(r for r in rows() if r["role"] != "token_embed")]
    assert answered("LOG001", case(wide, own_logit=10.0)) == pytest.approx({"token_embed": 0.02})


def test_hidden_matrices_are_widened_together() -> None:
    found = answered("ACT001", case(rows()))
    wide = 0.02 * math.sqrt(768 / 64)
    expected = {"attn_qkv": wide, "mlp_in": wide, "attn_out": wide / math.sqrt(8), "mlp_out": wide / math.sqrt(8)}
    assert found == pytest.approx(expected)


def test_a_finding_without_a_remedy_brings_what_is_off_to_the_reference() -> None:
    assert "XXX999" not in RULES
    assert answered("XXX999", case(rows(mlp_in=0.3))) == pytest.approx({"mlp_in": 0.02})
    assert answered("XXX999", case(rows())) == {}


def test_another_distribution_is_scaled_and_drawn_only_where_a_recipe_was_declared() -> None:
    uniform = [row("mlp_in", 0.02, wanted=0.2, distribution="uniform"), row("attn_qkv", 0.02, wanted=0.2)]
    found = {change.role: change for change in propose([finding("INI001")], case(uniform))}
    assert [found[role].factor for role in ("mlp_in", "attn_qkv")] == pytest.approx([10, 10])
    strict = replace(case(uniform), strict=True)
    found = {change.role: change for group in from_recipe([finding("INI001")], strict) for change in group.changes}
    assert (found["mlp_in"].factor, found["mlp_in"].recipe) == (None, "nanogpt")
    assert found["attn_qkv"].factor == pytest.approx(10)


def test_attention_is_calmed_by_its_queries_and_keys() -> None:
    for code in ("ATT001", "ATT002"):
        assert answered(code, case(rows(attn_qkv=0.5, mlp_in=0.5))) == pytest.approx({"attn_qkv": 0.02})


def test_matrices_that_are_off_alike_are_one_group() -> None:
    off = case(rows(token_embed=0.5, attn_out=0.02, mlp_out=0.02))
    groups = from_nearest([finding("LOG001"), finding("RES001")], off)
    assert [sorted(change.role for change in group.changes) for group in groups] == [
        ["token_embed"],
        ["attn_out", "mlp_out"],
    ]
    assert [group.changes[0].code for group in groups] == ["LOG001", "RES001"]


def test_a_stream_off_its_closed_form_changes_the_block_it_names_alone() -> None:
    off = case(rows(mlp_in=0.07, mlp_out=0.04))
    entry = {"kind": "normal", "mean": 0.0, "trains": True, "rms": 0.07, "std": 0.07, "as_made": False}
    counted = [
        entry | {"name": name, "layer": layer, "role": r["role"]}
        for r in off.rows
        for layer, name in enumerate(r["stds"])
    ]
    off = replace(off, counted=counted)
    astray = [replace(finding(code), layer_first=2) for code in ("RES002", "RES003")]
    changed = {name for group in from_nearest(astray, off) for change in group.changes for name in change.names}
    assert changed == {"h.2.mlp_in", "h.2.mlp_out"}
    others = {
        name for group in from_nearest([*astray, finding("LOG001")], off) for c in group.changes for name in c.names
    }
    assert len(others) == 8
    assert from_nearest([finding("RES002")], off) == []  # it names no block


def test_a_head_that_makes_usual_logits_isnt_what_is_too_large() -> None:
    usual = [*rows(), row("unembed", 0.05, wanted=0.02)]
    assert [c.role for c in propose([finding("LOG001")], case(usual, logit_std=4.0)) if c.evidence == "rule"] == []


def test_factors_on_the_same_parameters_are_one() -> None:
    outputs = case(rows(attn_out=0.04, mlp_out=0.04))
    twice = propose([finding("RES001")], outputs) + propose([finding("ACT001")], outputs)
    found = {change.role: change for change in merged(twice)}
    assert found["mlp_out"].factor == pytest.approx(0.02 * math.sqrt(768 / 64) / 0.02 / math.sqrt(8))
    assert (found["mlp_out"].code, found["mlp_in"].code) == ("RES001, ACT001", "ACT001")


def test_the_first_finding_decides_on_a_role() -> None:
    found = case(rows(pos_embed=1.0))
    changes = propose([finding("EMB001"), finding("INI001")], found)
    assert [(change.role, change.code) for change in changes] == [("pos_embed", "EMB001")]


@pytest.mark.parametrize(
    ("stds", "growth", "severity"),
    [
        ({}, 50.0, None),  # scaled
        ({"attn_out": 0.02, "mlp_out": 0.02}, 50.0, "warning"),
        ({"attn_out": 0.02, "mlp_out": 0.02}, 0.5, None),  # the embedding sets the stream's scale
        ({"attn_out": 0.02, "mlp_out": 0.02}, math.nan, None),
        ({"mlp_out": 0.0118}, 50.0, None),  # √2/√(2·4)·0.02·... below half way: (0.0118/0.02)² < 1/√8
        ({"mlp_out": 0.0120}, 50.0, "warning"),
    ],
)
def test_unscaled_outputs_on_one_model(stds: dict[str, float], growth: float, severity: str | None) -> None:
    found = unscaled_outputs(rows(**stds), growth)
    assert (found.severity if found else None) == severity


def test_unscaled_outputs_are_described_with_what_is_published_so() -> None:
    assert outputs_as_drawn(rows()) == {"names": [], "stds": [], "like": "nanogpt", "so": False}
    wide = rows(mlp_out=0.02)
    assert outputs_as_drawn(wide)["names"] == [f"h.{layer}.mlp_out" for layer in range(4)]
    own = rows(**dict.fromkeys(GPT2, 0.1))
    assert outputs_as_drawn(own)["like"] == ""
    assert outputs_as_drawn(own, [0.1])["like"] == "config" and outputs_as_drawn(own, [0.1])["so"]
    assert not outputs_as_drawn(wide)["so"]  # nanogpt scales them
    odd = [r | {"stds": r["stds"] | {"h.2.mlp_out": 0.04}} if r["role"] == "mlp_out" else r for r in rows()]
    assert outputs_as_drawn(odd)["names"] == []


def test_a_models_own_code_counts_whatever_the_growth() -> None:
    lost = [r | {"depth_code": "GPT._init"} for r in rows(attn_out=0.02, mlp_out=0.02)]
    found = unscaled_outputs(lost, 0.1)
    assert found is not None
    assert (found.severity, found.code) == ("warning", "RES001")
    assert "attn_out and mlp_out (std 0.02) aren't depth-scaled at 4 layers, though GPT._init says so" in found.message


def test_the_reference_is_one_that_models_are_trained_from() -> None:
    assert reference_of(rows()) == "nanogpt"
    unknown = [r | {"matches": ["torch-default"], "expected": {"torch-default": {}}} for r in rows()]
    assert reference_of(unknown) == "nanogpt"


def test_of_recipes_within_the_tolerance_the_likelier_stand_alone() -> None:
    def also(found: dict[str, Any], id: str, factor: float) -> dict[str, Any]:
        own = found["expected"]["nanogpt"]
        extra = {id: own | {"std": own["std"] * factor}}
        return found | {"matches": [*found["matches"], id], "expected": found["expected"] | extra}

    near = [also(also(r, "twin", 1.0), "cut", 0.9866) for r in rows()]
    assert best_recipes(near)[0] == ["nanogpt", "twin"]
    assert same_draws(near, ["nanogpt", "cut", "twin"]) == [["nanogpt", "twin"], ["cut"]]
    small = [r | {"numel": 500} for r in near]  # too few weights to tell 1.3 % by
    assert best_recipes(small)[0] == ["nanogpt", "twin", "cut"]


WIRED = "BEH001"  # a rule whose cause is no weight
SHUT = "GRD001"  # a rule of branches that are shut by zeros


def entries(found: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    """What a census has of the rows' parameters: draws that train."""
    known = {"kind": "normal", "mean": 0.0, "as_made": False, "trains": True, "shape": (64, 64), "numel": 4096}
    known |= {"bad": 0, "again": [], "odd": [], "layer": None}
    return [
        known | {"name": name, "role": r["role"], "stack": r["stack"], "std": std, "rms": std} | changes
        for r in found
        for name, std in r["stds"].items()
    ]


def roles(groups: list[Group]) -> list[list[str]]:
    return [[change.role for change in group.changes] for group in groups]


def test_in_a_model_that_is_wired_wrongly_only_the_weights_themselves_say_what_they_should_be() -> None:
    by_evidence = [from_init_code, from_siblings, from_recipe, from_config]
    assert stages([finding("RES001")]) == [*by_evidence, from_one_factor, from_remedies, from_nearest]
    assert stages([finding("RES001"), finding(WIRED)]) == by_evidence
    assert wired_wrongly([finding("RES001"), finding(WIRED), finding("XXX999")]) == [finding(WIRED)]


def test_what_the_init_code_lost_is_given_back_where_that_was_found() -> None:
    change = Change("mlp_in", "h", ("w",), 0.1, 0.02, "", "drawn over", "as drawn", orders=(3,))
    described = replace(case(rows()), restored=[change, replace(change, role="mlp_out", why="too")])
    (group,) = from_init_code([finding("RES001"), finding(lost.CODE)], described)
    assert (group.changes, group.text) == (tuple(described.restored), "drawn over")
    assert from_init_code([finding("RES001")], described) == []
    assert from_init_code([finding(lost.CODE)], case(rows())) == []


def test_siblings_say_more_than_a_recipe_and_it_says_what_they_dont() -> None:
    found = rows()
    counted = entries(found)
    for at, entry in enumerate(counted):
        entry["layer"] = at % 4 if entry["stack"] else None
    odd = next(entry for entry in counted if entry["name"] == "h.2.mlp_in")
    odd |= {"std": 0.06, "rms": 0.06}
    (group,) = from_siblings([finding("RES001")], replace(case(found), counted=counted))
    (change,) = group.changes
    assert (change.names, change.factor, change.code) == (("h.2.mlp_in",), pytest.approx(1 / 3), "RES001")
    assert group.text == change.why
    table = next(entry for entry in counted if entry["name"] == "token_embed")
    table |= {"kind": "low rank", "rms": 0.3}
    odd |= {"std": 0.02, "rms": 0.02}
    (alone,) = from_siblings([finding("RES001")], replace(case(found), counted=counted))
    assert (alone.changes[0].recipe, alone.changes[0].factor) == ("nanogpt", None)
    assert (alone.changes[0].how, alone.changes[0].proposed) == ("draw, normal", 0.02)
    (own,) = from_siblings([finding("RES001")], replace(case(found), counted=counted, reference="none"))
    assert own.changes[0].proposed == 0.3
    table |= {"kind": "normal", "bad": 4096}
    (lost_,) = from_siblings([finding("NUM001"), finding("INI001")], replace(case(found), counted=counted))
    assert (lost_.changes[0].recipe, lost_.changes[0].only_bad) == ("nanogpt", True)
    assert lost_.changes[0].code == "NUM001"
    wide = rows(token_embed=0.5)  # what isn't finite isn't multiplied, whatever the rest of it is
    (anew,) = from_siblings([finding("LOG001"), finding("INI008")], replace(case(wide), counted=counted))
    assert (anew.changes[0].how, anew.changes[0].recipe, anew.changes[0].proposed) == ("draw", "nanogpt", 0.02)
    table |= {"kind": "constant", "bad": 0, "mean": 0.5}
    (flat,) = from_siblings([finding("LOG001"), finding("INI008")], replace(case(found), counted=counted))
    assert (flat.changes[0].recipe, flat.changes[0].code) == ("nanogpt", "LOG001")
    table |= {"kind": "normal"}
    odd |= {"std": 0.06, "rms": 0.06}
    (slip,) = from_siblings([finding("LOG001"), finding("INI008")], replace(case(found), counted=counted))
    assert slip.changes[0].code == "INI008"  # what differs from siblings is about weights themselves


def test_a_recipe_that_most_roles_fit_is_what_the_others_lack() -> None:
    off = case(rows(mlp_in=0.3))
    (group,) = from_recipe([finding("RES001")], off)
    assert group.text == group.changes[0].why == "nanogpt, which the other roles fit, draws 0.02"
    assert (group.changes[0].evidence, group.changes[0].role) == ("recipe", "mlp_in")
    most = case(rows(mlp_in=0.3, attn_qkv=0.3, attn_out=0.3, token_embed=0.3))
    assert from_recipe([finding("RES001")], most) == []
    (strict, *_) = from_recipe([finding("RES001")], replace(most, strict=True))
    assert strict.text == "nanogpt was meant: draws 0.02"
    renamed = [
        r | {"expected": {"config": r["expected"]["nanogpt"]}, "matches": ["config"] * bool(r["matches"])}
        for r in off.rows
    ]
    own = replace(off, rows=renamed, reference="config")
    assert from_recipe([finding("RES001")], own)[0].text == "its own config or init code draws 0.02"


def test_a_config_that_some_matrix_fits_says_what_the_others_should_be() -> None:
    off = rows(mlp_in=0.3)
    for each in off:
        each["expected"]["config"] = each["expected"]["nanogpt"] | {"text": "initializer_range"}
    assert from_config([finding("RES001")], case(off)) == []  # nothing fits it
    off[0]["matches"].append("config")
    (group,) = from_config([finding("RES001")], case(off))
    assert (group.text, roles([group])) == ("its own config or init code draws initializer_range", [["mlp_in"]])
    assert from_config([finding("RES001")], replace(case(off), strict=True)) == []
    off[0]["matches"].remove("config")
    bias = row("bias", 0.0) | {"matches": ["config"]}
    assert from_config([finding("RES001")], case([*off, bias])) == []


def factors(described: Described) -> list[list[float | None]]:
    groups = from_one_factor([finding("ACT001")], described)
    return [[change.factor for change in group.changes] for group in groups]


def test_one_factor_is_of_all_matrices_and_large() -> None:
    def times(factor: float, **others: float) -> Described:
        return case(rows(**({role: std * factor for role, std in GPT2.items()} | others)))

    assert factors(times(10)) == [[pytest.approx(0.1)] * 6]
    (group,) = from_one_factor([finding("ACT001")], times(10))
    assert group.text == "every matrix is 10× nanogpt, which draws 0.02"
    assert factors(times(1 / 10)) == [[10.0] * 6]
    assert factors(times(2.9)) == []
    assert len(factors(times(3.1))) == 1
    assert factors(times(10, mlp_in=0.02 * 2.9)) == []  # one that is off less
    assert factors(times(10, mlp_in=0.02 / 10)) == []  # or the other way
    assert factors(times(10, mlp_in=0.02 * 10 * 1.45)) != [] == factors(times(10, mlp_in=0.02 * 10 * 1.55))
    unscaled = times(10, mlp_out=0.2, attn_out=0.2)  # the outputs lack their depth scaling besides
    assert sorted(factors(unscaled)[0])[0] == pytest.approx(0.1 / math.sqrt(8))  # type: ignore[type-var]
    assert factors(times(10, mlp_in=0.02 * 10 * math.sqrt(8))) == []  # what isn't an output has none
    two = times(10)
    assert factors(replace(two, rows=two.rows[:2])) == [] != factors(replace(two, rows=two.rows[:3]))
    bias = row("bias", 0.02)
    assert len(factors(replace(two, rows=[*two.rows, bias]))[0]) == 6
    unknown = row("mlp_gate", 0.02) | {"expected": {"other": {}}}
    assert len(factors(replace(two, rows=[*two.rows, unknown]))[0]) == 6


def test_what_is_of_no_role_goes_along_where_it_trains_and_has_the_same_std() -> None:
    described = case(rows(**{role: std * 10 for role, std in GPT2.items()}))
    other = {"role": "other", "kind": "normal", "stack": "", "name": "mix", "std": 0.2, "rms": 0.2}
    counted = entries(list(described.rows))

    def along(**changes: Any) -> list[Change]:
        own = counted[0] | other | changes
        (group,) = from_one_factor([finding("ACT001")], replace(described, counted=[*counted, own]))
        return [change for change in group.changes if change.role == "other"]

    (change,) = along()
    assert (change.names, change.stack, change.found, change.proposed) == (("mix",), "", 0.2, pytest.approx(0.02))
    assert change.why == "every matrix is 10× nanogpt, which draws 0.02; it has the std of those"
    # the tolerance and four standard errors: 0.05 + 4 / √(2 · 4096)
    assert along(std=0.2 * math.exp(0.094)) and not along(std=0.2 * math.exp(0.095))
    assert along(std=0.2 * math.exp(-0.094)) and not along(std=0.2 * math.exp(-0.095))
    for out in ({"trains": False}, {"shape": (64,)}, {"std": 0.0}, {"role": "gate"}):
        assert along(**out) == []


def meant(**changes: Any) -> bool:
    """Whether an mlp_in that is off is left, since something says it is meant."""
    off = rows(mlp_in=changes.pop("std", 0.3))
    given = {key: changes.pop(key) for key in ("declared", "strict", "reference") if key in changes}
    codes = changes.pop("codes", ("LOG001",))
    counted = entries(off)
    for entry in counted:
        if entry["role"] == "mlp_in":
            entry |= changes
    found = from_nearest([finding(code) for code in codes], replace(case(off), counted=counted, **given))
    return found == []


def test_what_is_so_on_purpose_is_left() -> None:
    assert not meant()
    assert meant(trains=False) and not meant(trains=False, strict=True)
    assert meant(role="gate")
    assert meant(declared=[0.3]) and meant(declared=[0.7, 0.29]) and not meant(declared=[0.28])
    assert not meant(declared=[0.3], strict=True)
    assert meant(rms=0.0) and not meant(rms=0.0, codes=("LOG001", SHUT))
    assert not meant(as_made=True)  # of matrices a constructor's draw is no purpose


def test_of_an_output_a_declared_number_is_that_before_the_scaling() -> None:
    off = rows(mlp_out=0.3)
    described = replace(case(off), counted=entries(off), declared=[0.3])
    assert roles(from_nearest([finding("LOG001")], described)) == [["mlp_out"]]


def test_vectors_that_their_module_makes_so_are_left() -> None:
    gains = row("norm_gain", 0.0, wanted=0.0)
    gains["expected"]["nanogpt"] |= {"kind": "constant", "mean": 1.0, "misfits": list(gains["stds"])}
    described = case([*rows(), gains])
    counted = entries(list(described.rows))
    for made in (True, False):
        for entry in counted:
            entry["as_made"] = made
        found = from_nearest([finding("LOG001")], replace(described, counted=counted))
        assert roles(found) == ([] if made else [["norm_gain"]])
    counted[-1]["trains"] = False
    assert from_nearest([finding("LOG001")], replace(described, counted=counted)) == []


def test_what_is_off_alike_is_one_group_and_vectors_are_their_own() -> None:
    bias = row("bias", 0.1, wanted=0.2)
    off = case([*rows(token_embed=0.1, pos_embed=0.1, attn_qkv=0.3), bias])
    assert roles(from_nearest([finding("LOG001")], off)) == [["token_embed", "pos_embed"], ["attn_qkv"], ["bias"]]
    undrawn = case([*rows(token_embed=0.1, attn_qkv=0.3, attn_out=0.5, mlp_in=0.7, mlp_out=0.9), bias])
    grouped = roles(from_nearest([finding("LOG001")], undrawn))
    # no matrix of the stack fits: one cause
    assert grouped == [["token_embed"], ["attn_qkv", "attn_out", "mlp_in", "mlp_out"], ["bias"]]


def test_a_factor_and_its_inverse_are_joined_in_one_stack_alone() -> None:
    swapped = case([*rows(mlp_in=0.02 * 3, attn_qkv=0.02 / 3, token_embed=0.1)])
    assert roles(from_nearest([finding("LOG001")], swapped)) == [["mlp_in", "attn_qkv"], ["token_embed"]] or roles(
        from_nearest([finding("LOG001")], swapped)
    ) == [["attn_qkv", "mlp_in"], ["token_embed"]]
    outside = case(rows(token_embed=0.02 * 3, pos_embed=0.02 / 3))
    assert roles(from_nearest([finding("LOG001")], outside)) == [["token_embed"], ["pos_embed"]]
    other = [r | {"stack": "g"} if r["role"] == "attn_qkv" else r for r in swapped.rows]
    assert len(from_nearest([finding("LOG001")], replace(swapped, rows=other))) == 3
    near = case(rows(mlp_in=0.02 * 3 * 1.14, attn_qkv=0.02 / 3))
    far = case(rows(mlp_in=0.02 * 3 * 1.17, attn_qkv=0.02 / 3))
    assert [len(from_nearest([finding("LOG001")], each)) for each in (near, far)] == [1, 2]


def test_the_nearest_recipe_is_one_that_models_are_trained_from() -> None:
    off = case(rows(mlp_in=0.3))
    assert from_nearest([finding("LOG001")], off)[0].text == "nanogpt, the nearest recipe, draws 0.02"
    unknown = [r | {"expected": {"torch-default": r["expected"]["nanogpt"]}} for r in off.rows]
    assert from_nearest([finding("LOG001")], replace(off, rows=unknown, reference="torch-default")) == []


def test_a_remedy_leaves_what_another_finding_has_changed_and_what_is_meant() -> None:
    wide = rows(attn_out=0.02, mlp_out=0.02)
    groups = from_remedies([finding("RES001"), finding("ACT001")], case(wide))
    assert roles(groups) == [["attn_out", "mlp_out"], ["attn_qkv", "mlp_in"]]
    assert groups[0].text.startswith("4 blocks write twice each")
    again = from_remedies([finding("RES001"), finding("ACT001"), finding("RES001"), finding("ACT001")], case(wide))
    assert again == groups
    frozen = replace(case(wide), counted=entries(wide, trains=False))
    assert from_remedies([finding("RES001")], frozen) == []
    assert from_remedies([finding(WIRED), finding("INI001"), finding("XXX999")], case(wide)) == []


def test_a_change_answers_the_finding_that_is_likeliest_about_it() -> None:
    off = case(rows(mlp_in=0.3))

    def answered_by(*findings: Finding) -> str:
        return from_recipe(list(findings), off)[0].changes[0].code

    named = replace(finding("INI008"), message="h.2.mlp_in is off")
    assert answered_by(finding("LOG001"), finding("ACT001"), named) == "INI008"
    assert answered_by(finding("LOG001"), finding("ACT001"), replace(named, message="another is")) == "ACT001"
    assert answered_by(finding("LOG001"), finding("XXX999")) == "LOG001"
    assert answered_by(finding("XXX999"), finding("LOG001")) == "XXX999"


def test_changes_of_the_same_parameters_are_merged_and_draws_are_not() -> None:
    one = Change("mlp_in", "h", ("a", "b"), 0.1, 0.05, "RES001", "first", "× 0.5", 0.5)
    two = replace(one, found=0.05, proposed=0.01, code="ACT001", why="then", how="× 0.2", factor=0.2)
    (both,) = merged([one, two])
    assert both == replace(
        one, proposed=0.01, code="RES001, ACT001", why="first; then", how="× 0.1", factor=pytest.approx(0.1)
    )
    for apart in ({"names": ("a",)}, {"stack": "g"}, {"role": "mlp_out"}, {"rows": (0, 0, 4)}, {"factor": None}):
        assert merged([one, replace(two, **apart)]) == [one, replace(two, **apart)]
    draw = replace(one, factor=None)
    assert merged([draw, draw, one]) == [draw, draw, one]
