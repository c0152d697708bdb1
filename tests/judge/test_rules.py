"""Every rule with a minimal failing and a minimal passing frame."""

import math

import pytest

from initlab import schema
from initlab.judge.rules import RULES, evaluate, worst
from initlab.judge.rules.depth import depth_exponents
from initlab.rundir import Run
from initlab.schema import Tables

KEYS = {"run_id": "r", "recipe": "r", "seed": 0, "step": 0, "n_layer": 4, "n_embd": 64}
RECORD = {**KEYS, "position": 0, "call": 0, "n_tokens": 64, "numel": 100, "frac_nonfinite": 0.0, "module": "m"}
C_ATTN = "transformer.h.0.attn.c_attn.weight"
SUMMARY = {**KEYS, "n_head": 1, "block_size": 64, "vocab_size": 256, "n_params": 1, "n_tokens": 64}


def run_of(records=(), summary=()):
    tables = Tables(
        records=schema.table("records", [RECORD | row for row in records]),
        summary=schema.table("summary", [SUMMARY | row for row in summary]),
    )
    return Run(tables, {"data": {"sum_p2": 0.05}, "cells": []})


def stream(slope, write=1e-3, embed=1e-3, depths=(4, 16)):
    """Records of a sweep whose MLPs write write·(L/4)^slope each."""
    rows = []
    for L in depths:
        rows.append({"n_layer": L, "site": "embed", "kind": "activation", "var": embed})
        rows.append({"n_layer": L, "site": "mlp_out", "kind": "weight", "role": "mlp_out", "std": 0.02, "var": 4e-4})
        for site in ("attn_out", "mlp_out"):
            value = {"n_layer": L, "site": site, "kind": "activation", "var": write * (L / 4) ** slope}
            rows += [value | {"layer": layer} for layer in range(L)]
    return rows


def summary(**row):
    return [{"token_position_ratio": 1.0, "loss": 5.55, "ln_vocab": math.log(256), "expected_loss": 5.55} | row]


def gradient(zero_module="", shut=False, ran=True):
    modules = [C_ATTN, "transformer.h.0.attn.c_proj.weight"]
    rows = [
        {
            "kind": "weight_grad",
            "site": "attn_qkv",
            "role": "attn_qkv",
            "layer": 0,
            "module": m,
            "abs_max": 0.0 if m == zero_module else 1.0,
        }
        for m in modules
    ]
    projection = {"kind": "weight", "site": "attn_out", "role": "attn_out", "layer": 0, "module": modules[1]}
    outputs = [{"kind": "activation", "site": "q", "layer": 0, "module": m.removesuffix(".weight")} for m in modules]
    return [*rows, projection | {"abs_max": 0.0 if shut else 0.1}, *(outputs if ran else [])]


def weights(std=0.02, expected=0.02, numel=10_000):
    row = {"kind": "weight", "site": "mlp_in", "role": "mlp_in", "layer": 1, "module": "h.1.c_fc.weight"}
    return [row | {"std": std, "var": std**2, "expected_var": expected**2, "numel": numel}]


def level(ratio, loss=5.55):
    rows = [
        {"kind": "activation", "site": site, "layer": layer, "var": 0.01 * ratio, "expected_var": 0.01}
        for site, layer in (("embed", None), ("resid_post", 0), ("resid_post", 3))
    ]
    return run_of(rows, summary(loss=loss))


# code -> (frames that fail, with their severity), (frames that pass), (frames where it can't say)
CASES = {
    "RES001": (
        [(run_of(stream(0.0)), "warning"), (run_of(stream(-0.3)), "warning")],
        [
            run_of(stream(-1.0)),
            run_of(stream(0.0, write=1e-6)),  # unscaled, but the embedding stays the larger part
            run_of(stream(0.0, write=0.0)),  # zero projections
        ],
        [run_of(stream(0.0, depths=(4,)))],
    ),
    "EMB001": (
        [
            (run_of(summary=summary(token_position_ratio=0.001)), "error"),
            (run_of(summary=summary(token_position_ratio=0.05)), "warning"),
            (run_of(summary=summary(token_position_ratio=0.0)), "error"),
        ],
        [run_of(summary=summary()), run_of(summary=summary(token_position_ratio=4.0))],
        [run_of(summary=summary(token_position_ratio=math.nan))],
    ),
    "LOG001": (
        [
            (run_of(summary=summary(loss=6.3, own_logit=5.4, logit_std=0.7)), "warning"),
            (run_of(summary=summary(loss=12.0, own_logit=0.0, logit_std=3.6)), "error"),
        ],
        [run_of(summary=summary()), run_of(summary=summary(loss=5.9))],
        [run_of(summary=summary(loss=math.nan))],
    ),
    "LOG002": (
        [(run_of(summary=summary(expected_loss=6.5, logit_std=0.4)), "warning")],
        [run_of(summary=summary(logit_std=0.4)), run_of(summary=summary(expected_loss=5.4, logit_std=0.4))],
        [
            run_of(summary=summary(expected_loss=math.nan)),
            run_of(summary=summary(loss=3.0)),  # a trained model
        ],
    ),
    "GRD001": (
        [
            (run_of(gradient(C_ATTN)), "error"),
            (run_of(gradient(C_ATTN, ran=False)), "warning"),  # an expert that wasn't chosen
            # one of two zeros isn't explained by the projection
            (run_of([*gradient(C_ATTN, shut=True), *gradient("transformer.h.0.attn.c_proj.weight")[1:2]]), "error"),
        ],
        [run_of(gradient()), run_of(gradient(shut=True)), run_of(gradient(C_ATTN, shut=True))],
        [run_of(stream(0.0))],
    ),
    "INI001": (
        [
            (run_of(weights(std=0.0071)), "error"),
            (run_of(weights(std=0.02, expected=0.0)), "error"),  # a bias that should be 0
            (run_of(weights(std=0.0)), "error"),
        ],
        [run_of(weights()), run_of(weights(0.0205)), run_of(weights(0.0, 0.0)), run_of(weights(0.024, numel=64))],
        [run_of(weights(expected=math.nan))],
    ),
    "RES002": (
        [(level(3.0), "warning"), (level(0.3), "warning"), (level(0.0), "warning")],
        [level(1.0), level(1.5), level(0.7)],
        [level(30.0, loss=3.0), run_of([row | {"expected_var": math.nan} for row in stream(0.0)], summary())],
    ),
    "NUM001": (
        [(run_of([{"kind": "activation", "site": "mlp_pre", "layer": 3, "frac_nonfinite": 0.01}]), "error")],
        [run_of([{"kind": "activation", "site": "mlp_pre", "layer": 3}])],
        [],
    ),
}


def verdicts(run, code):
    return [finding for finding in evaluate(run) if finding.code == code]


def test_every_rule_has_cases_and_a_text():
    assert {rule.code for rule in RULES} == set(CASES)
    assert len({rule.code for rule in RULES}) == len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        for text in ("measures", "needs", "limit", "why", "advice", "false_alarms", "source", "since"):
            assert getattr(rule, text), (rule.code, text)


@pytest.mark.parametrize("code", CASES)
def test_fails(code):
    for run, severity in CASES[code][0]:
        (finding,) = verdicts(run, code)
        assert (finding.status, finding.severity) == ("fail", severity), finding.message
        assert finding.advice and finding.message and finding.seeds_failing == finding.seeds_total == 1


@pytest.mark.parametrize("code", CASES)
def test_passes(code):
    for run in CASES[code][1]:
        (finding,) = verdicts(run, code)
        assert finding.status == "pass", finding.message


@pytest.mark.parametrize("code", CASES)
def test_not_applicable(code):
    for run in CASES[code][2]:
        (finding,) = verdicts(run, code)
        assert finding.status == "not_applicable"
        assert finding.message


def test_exponent_is_the_mean_over_seeds_and_its_error_their_scatter():
    rows = [row | {"seed": 0} for row in stream(-1.0, depths=(4, 8, 16))]
    rows += [row | {"seed": 1} for row in stream(-0.8, depths=(4, 8, 16))]
    fitted = depth_exponents(run_of(rows).tables.records).set_index("site")
    assert fitted["slope"].tolist() == pytest.approx([-0.9, -0.9])
    assert fitted["stderr"].tolist() == pytest.approx([0.1, 0.1])
    one = depth_exponents(run_of(stream(-1.0)).tables.records)
    assert one["slope"].tolist() == pytest.approx([-1, -1]) and one["stderr"].isna().all()


def test_one_unscaled_branch_is_enough_and_is_named():
    rows = [row for row in stream(-1.0) if row["site"] != "attn_out"]
    rows += [row for row in stream(0.0) if row["site"] == "attn_out"]
    rows += [
        {"n_layer": L, "site": "attn_out", "kind": "weight", "role": "attn_out", "std": 0.02, "var": 4e-4}
        for L in (4, 16)
    ]
    (finding,) = verdicts(run_of(rows), "RES001")
    assert finding.status == "fail" and finding.site == "attn_out"
    assert "attn.c_proj.weight" in finding.advice and "mlp.c_proj.weight" not in finding.advice


def test_growing_writes_get_other_advice_and_factors():
    (finding,) = verdicts(run_of(stream(2.0)), "RES001")
    assert "makes that 8 times as much" in finding.message
    assert "fall as 1/√n_layer; now it goes as n_layer^+1.00" in finding.advice


def test_advice_names_the_std_to_draw():
    (finding,) = verdicts(run_of(stream(0.0)), "RES001")
    assert "0.02 → 0.00354" in finding.advice and "mlp.c_proj.weight" in finding.advice


def test_widths_are_judged_apart():
    wide = [row | {"n_embd": 128} for row in stream(-1.0)]
    findings = verdicts(run_of([*stream(0.0), *wide]), "RES001")
    assert sorted((f.status, f.message.partition(" at n_embd ")[2].partition(":")[0]) for f in findings) == [
        ("fail", "64"),
        ("pass", "128"),
    ]


def test_order_and_worst():
    run = run_of(stream(0.0), summary(token_position_ratio=0.001, loss=6.3, own_logit=5.0, logit_std=0.5))
    findings = evaluate(run)
    statuses = [finding.status for finding in findings]
    assert statuses == sorted(statuses, key=["fail", "not_applicable", "pass"].index)
    failed = [finding.severity for finding in findings if finding.status == "fail"]
    assert failed[0] == "error" and failed == sorted(failed)
    assert worst(findings) == "error"
    assert worst([]) is None


def test_first_non_finite_is_the_one_computed_first():
    run = run_of(
        [
            {"kind": "grad", "site": "embed", "position": 0, "module": "late", "frac_nonfinite": 1.0},
            {"kind": "activation", "site": "mlp_out", "position": 9, "module": "second", "frac_nonfinite": 1.0},
            {"kind": "activation", "site": "mlp_pre", "position": 7, "module": "first", "frac_nonfinite": 0.1},
        ]
    )
    (finding,) = verdicts(run, "NUM001")
    assert finding.message.startswith("3 tensors hold NaN or infinity, first first (activation at mlp_pre")


def test_an_empty_run_is_judged_without_error():
    assert evaluate(run_of()) == []


def test_every_rule_says_something_of_every_recipe():
    run = run_of(summary=summary(recipe="a") + summary(recipe="b"))
    found = {(finding.code, finding.recipe) for finding in evaluate(run)}
    assert found == {(rule.code, recipe) for rule in RULES for recipe in ("a", "b")}
    unjudged = next(f for f in evaluate(run) if f.code == "RES001" and f.recipe == "a")
    assert unjudged.status == "not_applicable" and unjudged.message == "Needs two depths or more: --depths 4,8,16"
