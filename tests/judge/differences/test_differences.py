"""What differs between two inits, on frames: matching, chance, structure, sites, findings, wiring."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic import synthetic_run

from initlab.errors import ConfigError
from initlab.judge.differences import Compared, compared, init_of, one_recipe
from initlab.judge.differences.pairing import PART, ROLE, Held, held, pairs
from initlab.judge.differences.parameters import distribution, parameters
from initlab.judge.differences.roles import stretched
from initlab.judge.differences.sites import LEAST, sites
from initlab.judge.differences.verdicts import findings
from initlab.judge.rules.base import Finding
from initlab.rundir import Run
from initlab.schema import Tables, table


def parameter(name: str = "w", role: str = "mlp_in", **given: Any) -> Held:
    """Normal draws of std 0.02, a 64×64 matrix of block 0, unless said otherwise."""
    moments = {"mean": 0.0, "kurtosis": 0.0, "abs_max": 0.08, "frac_nonfinite": 0.0, "frac_zero": 0.0}
    moments |= {key: given.pop(key) for key in list(given) if key in moments}
    known = {"layer": 0, "numel": 4096, "draws": 1, "std": 0.02, "structure": {}, "fused": ()} | given
    return Held(name, role, moments=moments, **known)


def changed(a: Held, b: Held) -> str:
    row = parameters(pairs([a], [b])).iloc[0]
    assert row["differs"] == bool(row["what"])
    return str(row["what"])


def run_of(recipe: str = "nanogpt", seeds: int = 1, **sizes: Any) -> Run:
    return one_recipe(synthetic_run((recipe,), seeds=seeds, **({"depths": (4,), "widths": (64,)} | sizes)), None, "it")


def both(a: Run, b: Run) -> Compared:
    return compared(a, b, [], [], ("a", "b"))


def scaled(run: Run, factor: float, *, site: str, layer: int | None = None, kind: str = "activation") -> Run:
    records = run.tables.records.copy()
    rows = (records["site"] == site) & (records["kind"] == kind)
    rows &= True if layer is None else records["layer"] == layer
    records.loc[rows, "var"] *= factor
    records.loc[rows, "std"] *= math.sqrt(factor)
    return Run(Tables(**dict(run.tables.items()) | {"records": records}), run.manifest)


# the four standard errors of two draws of 4096 are 6.3 %
@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"std": 0.0205, "abs_max": 0.081}, ""),
        ({"std": 0.0214, "abs_max": 0.081}, "std"),
        ({"std": 0.0214, "numel": 64, "abs_max": 0.07}, "shape"),
        ({"std": 0.0205, "abs_max": 0.081, "draws": 100}, ""),
        ({"mean": 0.004, "abs_max": 0.081}, "mean"),
        ({"mean": 0.001, "abs_max": 0.081}, ""),
        ({"kurtosis": -1.2, "abs_max": 0.035}, "distribution"),
        ({"kurtosis": -0.2, "abs_max": 0.07}, ""),
        ({"kurtosis": math.nan, "abs_max": 0.035}, ""),
        ({"std": 0.0, "abs_max": 0.0}, "std, distribution"),
        ({"std": math.nan, "frac_nonfinite": 0.1}, "not finite"),
        ({"role": "mlp_gate"}, "role"),
    ],
)
def test_a_parameter_differs_beyond_four_standard_errors(given: dict[str, Any], what: str) -> None:
    assert changed(parameter(), parameter(**given)) == what


def test_heavy_tails_widen_what_may_be_chance() -> None:
    assert changed(parameter(kurtosis=20.0), parameter(kurtosis=20.0, std=0.023, abs_max=0.3)) == ""


def test_constants_are_told_apart_by_their_value() -> None:
    one, other = (parameter(role="norm_gain", std=0.0, mean=value, abs_max=value) for value in (1.0, 0.5))
    assert changed(one, other) == "mean"
    assert changed(one, one) == ""


def test_the_very_same_numbers_are_known_as_such() -> None:
    row = parameters(pairs([parameter()], [parameter()])).iloc[0]
    assert row["identical"]
    assert not parameters(pairs([parameter()], [parameter(std=0.0201)])).iloc[0]["identical"]


def test_distributions_are_named_by_their_kurtosis() -> None:
    named = [distribution(parameter(kurtosis=value)) for value in (0.0, -1.2, -0.65, 5.0, math.nan)]
    assert named == ["normal", "uniform", "cut normal", "heavy tails", ""]
    assert distribution(parameter(kurtosis=-1.0, numel=64)) == ""
    assert distribution(parameter(std=0.0, mean=1.0)) == "constant 1"


def test_names_are_matched_before_roles_and_sizes_before_order() -> None:
    a = [parameter("h.up", "mlp_in"), parameter("h.ln", "bias", numel=8), parameter("h.fc", "bias", numel=32)]
    b = [parameter("l.w1", "mlp_in"), parameter("l.b1", "bias", numel=32), parameter("l.b2", "bias", numel=8)]
    found = {pair.a.name: (pair.b.name, pair.how) for pair in pairs(a, b) if pair.a and pair.b}
    assert found == {"h.up": ("l.w1", ROLE), "h.ln": ("l.b2", ROLE), "h.fc": ("l.b1", ROLE)}
    assert {pair.how for pair in pairs(a, a)} == {"name"}


def test_a_parameter_of_another_block_is_no_match() -> None:
    found = pairs([parameter("a", layer=0)], [parameter("b", layer=1)])
    assert [(pair.a is None, pair.b is None) for pair in found] == [(False, True), (True, False)]
    assert list(parameters(found)["what"]) == ["only in A", "only in B"]


def test_a_fused_matrix_is_matched_by_its_parts() -> None:
    names = ("attn_q", "attn_k", "attn_v")
    fused = parameter("qkv", "attn_qkv", numel=3 * 4096, fused=tuple((name, 4096, 0.0, 0.02) for name in names))
    apart = [parameter(name, name, std=0.04 if name == "attn_k" else 0.02) for name in names]
    rows = parameters(pairs([fused], apart))
    assert list(rows["matched"]) == [PART] * 3
    assert list(rows["name_a"]) == [f"qkv[{name}]" for name in names]
    assert list(rows["what"]) == ["", "std", ""]
    assert list(parameters(pairs(apart, [fused]))["what"]) == ["", "std", ""]


def test_rows_of_a_fused_matrix_that_move_by_themselves_are_named() -> None:
    def fused(query: float, std: float) -> Held:
        parts = (("attn_q", 4096, 0.0, query), ("attn_k", 4096, 0.0, 0.02), ("attn_v", 4096, 0.0, 0.02))
        return parameter("qkv", "attn_qkv", numel=3 * 4096, std=std, fused=parts, abs_max=query * 4)

    assert changed(fused(0.02, 0.02), fused(0.04, 0.0283)) == "rows attn_q"
    assert changed(fused(0.02, 0.02), fused(0.0201, 0.0201)) == ""


@pytest.mark.parametrize(
    ("structure", "what"),
    [
        ({"row_which": "32 to 63 are 0 to 31"}, "row copies"),
        ({"like": "h.0.w", "likeness": 0.99}, "copy"),
        ({"like": "h.0.w", "likeness": 0.6}, ""),
        ({"odd": "rows 5 to 7"}, "odd rows"),
        ({"shared": 4}, "tie"),
        ({"stable_rank": 64.0}, "rank"),
        ({"stable_rank": 18.0}, ""),
        ({"stable_rank": math.nan}, ""),
    ],
)
def test_what_no_moment_shows_is_compared_too(structure: dict[str, Any], what: str) -> None:
    usual = {"rows": 64, "columns": 64, "stable_rank": 16.0, "shared": 1}
    assert changed(parameter(structure=usual), parameter(structure=usual | structure)) == what


def test_of_other_sizes_a_role_is_compared_and_the_law_named() -> None:
    depth = stretched([parameter(std=0.0071)], [parameter(std=0.00355)], (4, 64), (16, 64)).iloc[0]
    assert (depth["what"], depth["details"]) == ("std", ["goes as 1/√n_layer"])
    width = stretched([parameter(std=0.125)], [parameter(std=0.0625)], (4, 64), (4, 256)).iloc[0]
    assert width["details"] == ["goes as 1/√n_embd"]
    assert not stretched([parameter()], [parameter(std=0.0201)], (4, 64), (16, 64)).iloc[0]["differs"]
    only = stretched([parameter(role="bias")], [parameter()], (4, 64), (16, 64))
    assert list(only["what"]) == ["only in A", "only in B"]


def test_an_init_against_itself_differs_in_nothing() -> None:
    found = both(run_of(), run_of())
    assert not found.differs
    assert found.verdict.startswith("Nothing differs: ")
    assert found.basis.kind == "same weights"


def test_one_draw_each_is_held_against_a_stated_scatter() -> None:
    a, b = run_of(), run_of()
    weights = b.tables.records["kind"] == "weight"
    b.tables.records.loc[weights, ["std", "abs_max"]] *= 1.001  # another draw
    assert both(a, b).basis.kind == "one draw"
    assert "×1.5" in both(a, b).basis.words
    assert not both(a, scaled(b, 1.4, site="resid_post")).sites["differs"].any()
    far = both(a, scaled(b, 2.0, site="resid_post", layer=2)).sites
    assert far.loc[far["differs"], ["site", "layer"]].to_numpy().tolist() == [["resid_post", 2]]
    attention = both(a, scaled(b, 2.0, site="attn_out")).sites
    assert not attention["differs"].any()


def test_several_draws_tell_what_is_chance() -> None:
    a = run_of(seeds=3)
    found, basis = sites(a, scaled(a, 1.6, site="mlp_out"), blocks=True, same=False)
    assert basis.kind == "draws"
    assert set(found.loc[found["differs"], "site"]) == {"mlp_out"}
    assert (found["chance"] >= LEAST).all()
    rng = np.random.default_rng(0)
    noisy = a.tables.records.copy()
    noisy["var"] *= np.exp(rng.normal(0, 0.3, len(noisy)))  # draws that scatter so much tell less
    loud = Run(Tables(**dict(a.tables.items()) | {"records": noisy}), a.manifest)
    wide, _ = sites(loud, scaled(loud, 1.6, site="mlp_out"), blocks=True, same=False)
    assert not wide["differs"].any()


def test_draws_that_are_the_same_count_once() -> None:
    one = run_of()
    second = {
        name: frame.assign(seed=1, run_id="second") if "seed" in frame else frame for name, frame in one.tables.items()
    }
    twice = Run(Tables.concat([one.tables, Tables(**second)]), one.manifest)
    assert {each.draws for each in held(twice)} == {1}
    _, basis = sites(twice, scaled(twice, 1.2, site="mlp_out"), blocks=True, same=False)
    assert basis.kind == "one draw"


def test_zeros_and_what_isnt_finite_differ_from_numbers() -> None:
    a = run_of()
    for factor in (0.0, math.inf, math.nan):
        found, _ = sites(a, scaled(a, factor, site="mlp_out", layer=1), blocks=True, same=False)
        assert found.loc[found["differs"], ["site", "layer"]].to_numpy().tolist() == [["mlp_out", 1]]
        again, _ = sites(*[scaled(a, factor, site="mlp_out", layer=1)] * 2, blocks=True, same=False)
        assert not again["differs"].any()


def test_gradients_of_other_batches_are_compared_per_token() -> None:
    a, b = run_of(), run_of()
    b.tables.summary["n_tokens"] *= 4
    b = scaled(b, 1 / 16, site="resid_post", kind="grad")
    found, _ = sites(a, b, blocks=True, same=False)
    row = found[(found["site"] == "resid_post") & (found["kind"] == "grad")]
    np.testing.assert_allclose(row["ratio"], 1.0, rtol=0.3)
    assert any("different batches (n_tokens 1024 and 4096)" in note for note in both(a, b).notes)


def finding(code: str, status: str, severity: str = "info") -> Finding:
    known = {"name": code.lower(), "question": "Init", "recipe": "r", "message": f"{code} {status}"}
    return Finding(code=code, status=status, severity=severity, advice="do", **known)  # type: ignore[arg-type]


def test_findings_are_new_gone_worse_better_or_unchanged() -> None:
    a = [finding("A1", "pass"), finding("B1", "fail", "error"), finding("C1", "fail"), finding("D1", "fail", "error")]
    a += [finding("E1", "fail", "warning"), finding("F1", "pass"), finding("G1", "fail")]
    b = [finding("A1", "fail", "error"), finding("B1", "pass"), finding("C1", "fail", "warning")]
    b += [finding("D1", "fail"), finding("E1", "fail", "warning"), finding("F1", "pass")]
    b += [finding("G1", "not_applicable")]
    rows = findings(a, b).set_index("code")
    states = {"A1": "new", "C1": "worse", "D1": "better", "B1": "gone", "E1": "unchanged"}
    states |= {"G1": "not judged in B"}
    assert rows["state"].to_dict() == states
    assert rows.loc["G1", "note"] == "not judged in B: G1 not_applicable"
    assert (rows.loc["B1", "severity_a"], rows.loc["B1", "severity_b"]) == ("error", "")


def wired(score: float, tied: int, norm: str) -> Run:
    run = run_of()
    first = run.tables.summary.iloc[0]
    keys = {"run_id": str(first["run_id"]), "recipe": "nanogpt", "seed": 0, "n_layer": 4, "n_embd": 64, "stack": 0}
    rows = [
        keys
        | {"layer": layer, "update": 0, "site": "attn_out", "kind": "attention", "module": f"h.{layer}"}
        | {"score_scale": score, "tied": tied, "norm": norm, "block": f"h.{layer}", "keep": 1.0, "scale": 1.0}
        for layer in range(4)
    ]
    return Run(Tables(**dict(run.tables.items()) | {"wiring": table("wiring", rows)}), run.manifest)  # type: ignore[arg-type]


def test_wiring_is_compared_without_the_names_of_modules() -> None:
    assert not len(both(wired(0.25, 1, "ln_1"), wired(0.25, 1, "norm1")).wiring)
    rows = both(wired(0.25, 1, "ln_1"), wired(1.0, 0, "")).wiring
    said = {(row.where, row.what): (row.a, row.b, row.layers) for row in rows.itertuples()}
    assert said == {
        ("model", "token table is the head"): ("yes", "no", []),
        ("attention", "scale of the scores"): ("0.25", "1", [0, 1, 2, 3]),
        ("attention", "norm before the branch"): ("yes", "no", [0, 1, 2, 3]),
    }
    assert not len(both(run_of(), wired(1.0, 0, "")).wiring)  # a run that says nothing of it


def test_the_largest_common_size_is_compared_and_other_sizes_by_role() -> None:
    found = both(run_of(depths=(4, 8)), run_of(depths=(2, 4)))
    assert "compared at 4 blocks of 64" in found.notes[0]
    apart = both(run_of(depths=(4,)), run_of(depths=(8,)))
    assert apart.notes[0].startswith("other sizes (blocks × width: A 4×64, B 8×64): compared by role")
    assert apart.parameters.empty
    assert set(apart.sites["site"]) == {"embed", "final_norm", "logits"}


def test_one_recipe_is_taken_of_several() -> None:
    run = synthetic_run(depths=(4,), seeds=1)
    assert set(one_recipe(run, "nanogpt", "it").tables.records["recipe"]) == {"nanogpt"}
    with pytest.raises(ConfigError, match=r"it holds 3 recipes .*; name one, as in it:nanogpt"):
        one_recipe(run, None, "it")
    with pytest.raises(ConfigError, match="no recipe 'gpt9'; it holds nanogpt"):
        one_recipe(run, "gpt9", "it")


def test_of_a_run_over_steps_the_first_is_taken() -> None:
    run = run_of()
    assert init_of(run, "A") == (run, [])
    later = {
        name: pd.concat([frame, frame.assign(step=100)]) if "step" in frame else frame
        for name, frame in run.tables.items()
    }
    taken, notes = init_of(Run(Tables(**later), run.manifest | {"kind": "watch"}), "A")
    assert notes == ["of A, a run over steps, step 0 is taken"]
    assert set(taken.tables.records["step"]) == {0}


def test_names_with_brackets_keep_their_order() -> None:
    fused = parameter("h.0[x].qkv", "qkv", fused=tuple((role, 4096, 0.0, 0.02) for role in ("attn_q", "attn_k")))
    apart = [parameter("q[1]", "attn_q"), parameter("k[1]", "attn_k")]
    found = pairs([parameter("first[0]"), fused], [*apart, parameter("first[0]"), parameter("new[2]", "other")])
    assert [pair.a.name if pair.a else None for pair in found] == [
        "first[0]",
        "h.0[x].qkv[attn_q]",
        "h.0[x].qkv[attn_k]",
        None,
    ]
