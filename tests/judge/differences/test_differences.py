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
from initlab.judge.differences.sites import LEAST, in_order, sites
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


def edited(run: Run, **tables: Any) -> Run:
    return Run(Tables(**dict(run.tables.items()) | tables), run.manifest)


def weights(run: Run, change: Any) -> Run:
    """The run, with its rows of weights changed."""
    records = run.tables.records
    own = records["kind"] == "weight"
    return edited(run, records=pd.concat([records[~own], change(records[own].copy())], ignore_index=True))


def test_how_parameters_were_matched_is_said_where_names_didnt_do() -> None:
    a = run_of(depths=(1,))
    renamed = weights(a, lambda rows: rows.assign(module=rows["module"].str.replace("transformer.h", "layers")))
    notes = both(a, renamed).notes
    assert notes[0] == (
        "7 parameters matched by role, block and size, as transformer.h.0.attn.c_attn.weight with "
        "layers.0.attn.c_attn.weight; 2 by name"
    )
    assert notes[1] == "every parameter holds the very same numbers in A and B"
    assert both(a, a).notes == ["every parameter holds the very same numbers in A and B"]
    every = both(a, weights(a, lambda rows: rows.assign(module="m." + rows["module"]))).notes[0]
    assert every.startswith("9 parameters matched by role, block and size, as ") and "by name" not in every


def drawn(run: Run, **changes: Any) -> Run:
    """The run with a row of `draws` for its fused matrix."""
    name = "transformer.h.0.attn.c_attn.weight"
    keys = run.tables.summary.iloc[0][["run_id", "recipe", "seed", "n_layer", "n_embd"]].to_dict()
    row = {**keys, "module": name, "role": "attn_qkv", "rows": 96, "columns": 2, **changes}
    return edited(run, draws=table("draws", [row]))


def test_matrices_that_are_stored_transposed_are_counted() -> None:
    a = run_of(depths=(1,))  # of 192 numbers
    notes = both(drawn(a), drawn(a, rows=2, columns=96)).notes
    assert notes[0] == "1 of the matrices are stored transposed: 96×2 in A"
    assert not any("transposed" in note for note in both(drawn(a), drawn(a)).notes)


def test_parts_of_fused_matrices_that_were_matched_are_said() -> None:
    a = run_of(depths=(1,))
    parts = "; ".join(f"attn_{part} 64 0 0.02" for part in "qkv")
    fused = drawn(a, parts=parts)
    name = "transformer.h.0.attn.c_attn.weight"
    rows = a.tables.records
    whole = rows[(rows["kind"] == "weight") & (rows["module"] == name)]
    assert list(whole["numel"]) == [192]
    split = [whole.assign(module=f"{part}.weight", role=f"attn_{part}", numel=64) for part in "qkv"]
    apart = edited(a, records=pd.concat([rows.drop(whole.index), *split], ignore_index=True))
    assert both(fused, apart).notes[0] == f"3 parts of fused matrices matched, as {name}[attn_q] with q.weight"


@pytest.mark.parametrize(
    ("changes", "data", "said"),
    [
        ({"n_tokens": 64}, {}, "n_tokens 1024 and 64"),
        ({"block_size": 16}, {}, "block_size 256 and 16"),
        ({"targets": "random"}, {}, "targets next-token and random"),
        ({}, {"label": "mine"}, "label Python 3.11.7 standard library docstrings and mine"),
        ({}, {"tokenizer": "gpt2"}, "tokenizer bytes and gpt2"),
        ({}, {"sha256": "0"}, "other tokens"),
        ({"seed": 7}, {}, "another seed"),
        ({"seed": 7, "n_tokens": 64}, {}, "n_tokens 1024 and 64"),
        ({"n_tokens": 64}, {"sha256": "0"}, "n_tokens 1024 and 64, other tokens"),
    ],
)
def test_batches_that_may_differ_are_said(changes: dict[str, Any], data: dict[str, Any], said: str) -> None:
    a = run_of(depths=(1,))
    b = edited(a, summary=a.tables.summary.assign(**changes))
    b = Run(b.tables, b.manifest | {"data": b.manifest["data"] | data})
    text = f"A and B may have read different batches ({said}), which moves activations and gradients"
    found = both(a, b)
    assert text in found.notes and found.basis.kind == "one draw"  # though they hold the same weights
    unknown = Run(a.tables, {key: value for key, value in a.manifest.items() if key != "data"})
    assert both(unknown, unknown).basis.kind == "same weights"


def test_another_mode_and_what_light_didnt_take_are_said() -> None:
    a = run_of(depths=(1,))
    evaluated = edited(a, summary=a.tables.summary.assign(mode="eval"))
    assert "A was measured in train mode, B in eval mode" in both(a, evaluated).notes
    light = weights(a, lambda rows: rows.assign(kurtosis=math.nan))
    said = "measured with stats=light: distributions aren't compared"
    assert both(a, light).notes[-1] == f"B was {said}" and both(light, a).notes[-1] == f"A was {said}"
    assert both(light, light).notes[-1] == f"A and B were {said}"
    assert not any("light" in note for note in both(a, a).notes)
    constant = weights(a, lambda rows: rows.assign(kurtosis=math.nan, std=0.0))
    assert not any("light" in note for note in both(constant, constant).notes)  # of constants there is none
    one = weights(a, lambda rows: rows.assign(kurtosis=[0.0] + [math.nan] * (len(rows) - 1)))
    assert not any("light" in note for note in both(one, one).notes)


def test_the_size_that_is_compared_is_of_both_depth_and_width() -> None:
    a = run_of(depths=(1, 2), widths=(64, 128))
    found = both(a, run_of(depths=(1,), widths=(64, 128)))
    assert found.notes[0] == "compared at 1 block of 128, the largest size of both; findings are of all sizes"
    assert set(found.parameters["numel_a"]) == {int(n) for n in held_sizes(a, 1, 128)}
    assert found.sites["layer"].max() == 0
    apart = both(run_of(depths=(2,)), run_of(depths=(2,), widths=(128,)))
    assert apart.notes[0].startswith("other sizes (blocks × width: A 2×64, B 2×128)")
    assert apart.sites["layer"].isna().all()  # other widths: no block is held against another
    several = both(run_of(depths=(1, 2)), run_of(depths=(4, 8)))
    assert "A 1×64 and 2×64, B 4×64 and 8×64" in several.notes[0]
    laws = {law for details in several.roles["details"] for law in details if law.startswith("goes")}
    assert laws == set() and set(several.roles["role"]) >= {"mlp_out", "token_embed"}
    assert len(several.roles.query("role == 'mlp_out'")["names"].iloc[0]) == 8  # the deepest of each


def held_sizes(run: Run, n_layer: int, n_embd: int) -> set[int]:
    rows = run.tables.records.query(f"kind == 'weight' and n_layer == {n_layer} and n_embd == {n_embd}")
    return set(rows["numel"])


def test_the_verdict_counts_what_differs() -> None:
    a, b = run_of(), run_of()
    same = both(a, b)
    sites_, count = len(same.sites), same.roles["role"].nunique()
    assert same.verdict == f"Nothing differs: {count} roles, {sites_} sites, and the same findings."
    other_draw = weights(b, lambda rows: rows.assign(abs_max=rows["abs_max"] * 1.001))
    chance = both(a, other_draw)
    assert chance.verdict == f"Nothing differs beyond chance: {count} roles, {sites_} sites, and the same findings."
    assert not chance.differs
    wide = weights(b, lambda rows: rows.assign(std=rows["std"].where(rows["role"] != "mlp_out", rows["std"] * 2)))
    wide = weights(wide, lambda rows: rows.assign(var=rows["std"] ** 2))
    one = both(a, wide)
    assert one.verdict == f"1 of {count} roles differs; 0 of {sites_} sites beyond chance; the same findings."
    assert one.counts["parameters"] == 4 and one.differs
    found = [finding("A1", "pass"), finding("B1", "fail")], [finding("A1", "fail"), finding("B1", "pass")]
    both_ = compared(a, scaled(b, 9.0, site="logits"), *found, ("a", "b"))
    assert both_.verdict == f"0 of {count} roles differ; 1 of {sites_} sites beyond chance; findings: 1 new, 1 gone."
    wiring = both(wired(0.25, 1, "n"), wired(0.5, 1, "n"))
    assert "; 1 difference of wiring; the same findings." in wiring.verdict
    quiet = compared(a, b, [finding("A1", "fail")], [finding("A1", "not_applicable")], ("a", "b"))
    assert not quiet.differs


def test_what_is_said_besides_comes_first() -> None:
    found = compared(run_of(), run_of(), [], [], ("x", "y"), ["besides"])
    assert found.notes[0] == "besides" and found.names == ("x", "y")


def test_sites_are_in_the_order_of_a_forward_pass() -> None:
    rows = [("grad", "embed", None), ("activation", "logits", None), ("activation", "mlp_out", 1)]
    rows += [("activation", "attn_out", 1), ("activation", "own", 1), ("activation", "mlp_out", 0)]
    rows += [("activation", "embed", None), ("activation", "final_norm", None), ("activation", "other", 1)]
    frame = pd.DataFrame(rows, columns=["kind", "site", "layer"]).astype({"layer": "Int64"})
    found = in_order(frame)
    assert list(found.columns) == ["kind", "site", "layer"]
    assert list(zip(found["kind"], found["site"], strict=True)) == [
        *[("activation", site) for site in ("embed", "mlp_out", "attn_out", "mlp_out", "own", "other")],
        *[("activation", "final_norm"), ("activation", "logits"), ("grad", "embed")],
    ]
    outside = frame[frame["layer"].isna() & (frame["kind"] == "activation")]
    assert list(in_order(outside)["site"]) == ["embed", "final_norm", "logits"]
    assert in_order(frame[:0]).empty


def test_findings_have_what_both_sides_said() -> None:
    a = [finding("W1", "fail", "info"), finding("U1", "fail", "info"), finding("G1", "fail", "warning")]
    a += [finding("G2", "fail", "error")]
    b = [finding("W1", "fail", "warning"), finding("U1", "fail", "info"), finding("N1", "fail", "info")]
    b += [finding("N2", "fail", "error"), finding("G1", "pass"), finding("G2", "pass")]
    rows = findings(a, b)
    assert list(rows.columns) == [
        *("code", "name", "state", "severity_a", "severity_b", "message_a", "message_b", "advice", "note"),
    ]
    assert list(zip(rows["code"], rows["state"], strict=True)) == [
        *(("N2", "new"), ("N1", "new"), ("W1", "worse"), ("G2", "gone"), ("G1", "gone"), ("U1", "unchanged")),
    ]
    worse = rows.iloc[2].to_dict()
    assert worse == {
        **{"code": "W1", "name": "w1", "state": "worse", "severity_a": "info", "severity_b": "warning"},
        **{"message_a": "W1 fail", "message_b": "W1 fail", "advice": "do", "note": ""},
    }
    new = rows.iloc[0]
    assert (new["severity_a"], new["severity_b"], new["message_a"], new["note"]) == ("", "error", "", "not judged in A")
    gone = rows.iloc[3]
    assert (gone["severity_a"], gone["severity_b"], gone["message_b"], gone["note"]) == ("error", "", "G2 pass", "")
    (lost,) = findings(a[:1], []).to_dict("records")
    assert (lost["state"], lost["note"]) == ("not judged in B", "not judged in B")
    (unjudged,) = findings([finding("N1", "not_applicable")], b[2:3]).to_dict("records")
    assert (unjudged["state"], unjudged["note"]) == ("new", "not judged in A: N1 not_applicable")


def test_of_a_rule_that_judged_several_times_the_gravest_counts() -> None:
    several = [finding("A1", "pass", "error"), finding("A1", "fail", "info"), finding("A1", "fail", "warning")]
    (row,) = findings([], several).to_dict("records")
    assert (row["state"], row["severity_b"]) == ("new", "warning")
    judged = [finding("A1", "not_applicable", "error"), finding("A1", "pass", "info")]
    (row,) = findings(several, judged).to_dict("records")
    assert (row["state"], row["message_b"]) == ("gone", "A1 pass")


def test_a_run_that_begins_later_is_no_init() -> None:
    run = run_of()
    later = edited(run, **{n: f.assign(step=200) for n, f in run.tables.items() if "step" in f})
    taken, notes = init_of(Run(later.tables, run.manifest | {"kind": "watch"}), "B")
    assert notes == ["of B, a run over steps, step 200 is taken; it is no init"]
    assert taken.manifest["kind"] == "watch" and len(taken.tables.records) == len(run.tables.records)
