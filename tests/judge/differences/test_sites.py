"""By how much a site differs, and what of that may be chance: on rows written by hand."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from initlab.judge.differences.sites import COLUMNS, LEVEL, sites
from initlab.rundir import Run
from initlab.schema import Tables


def run_of(*draws: dict[tuple[Any, ...], float], width: int = 128, mode: str = "eval", tokens: int = 64) -> Run:
    """A run of a draw for each mapping of (kind, site, layer) to a variance."""
    records, summary = [], []
    for seed, values in enumerate(draws):
        keys = {"run_id": f"r{seed}", "recipe": "r", "seed": seed, "step": 0, "n_layer": 2, "n_embd": width}
        summary.append(keys | {"n_tokens": tokens, "mode": mode})
        for position, ((kind, site, layer, *module), var) in enumerate(values.items()):
            place = {"kind": kind, "site": site, "layer": layer, "module": module[0] if module else f"m.{layer}"}
            records.append(keys | place | {"position": position, "var": var})
    rows = pd.DataFrame(records).astype({"layer": "Int64"})
    return Run(Tables(records=rows, summary=pd.DataFrame(summary)), {})


def compared(a: Run, b: Run, blocks: bool = True, same: bool = False) -> tuple[list[dict[Any, Any]], Any]:
    frame, basis = sites(a, b, blocks=blocks, same=same)
    assert list(frame.columns) == list(COLUMNS)
    return frame.to_dict("records"), basis


OUT = ("activation", "mlp_out", 0)


@pytest.mark.parametrize(("mode", "factor"), [("eval", 1.01), ("train", 1.1)])
def test_the_same_weights_on_the_same_batch_differ_by_rounding(mode: str, factor: float) -> None:
    one = run_of({OUT: 1.0}, mode=mode)
    (row,), basis = compared(one, run_of({OUT: factor * 1.001}, mode=mode), same=True)
    assert (row["chance"], row["differs"], row["ratio"]) == (factor, True, pytest.approx(factor * 1.001))
    assert not compared(one, run_of({OUT: factor * 0.999}, mode=mode), same=True)[0][0]["differs"]
    assert basis.kind == "same weights"
    assert basis.words == (
        f"both hold the same weights and read the same batch: beyond ×{factor:g} it is the forward's doing"
    )


def test_one_draw_each_is_held_against_three_errors_of_both() -> None:
    usual, few = math.exp(3 * math.sqrt(2) * 0.1), math.exp(3 * math.sqrt(2) * 0.25)
    places = {OUT: usual, ("activation", "attn_out", 0): few, ("activation", "q", 0): usual, ("grad", "q", 0): few}
    places |= {("grad", "attn_out", 0): usual, ("grad", "ln_1", 1): few, ("activation", "attn_logits", 1): few}
    places |= {("activation", "embed", None): usual}
    above = {place: chance * 1.001 for place, chance in places.items()}
    below = {place: chance * 0.999 for place, chance in places.items()}
    one = run_of(dict.fromkeys(places, 1.0))
    rows, basis = compared(one, run_of(above))
    assert [row["chance"] for row in rows] == pytest.approx(list(places.values()))
    assert all(row["differs"] for row in rows)
    assert (rows[0]["draws_a"], rows[0]["draws_b"], rows[0]["var_a"]) == (1, 1, 1.0)
    assert rows[0]["var_b"] == pytest.approx(usual * 1.001)
    for sign in (1, -1):
        within = run_of({place: value**sign for place, value in below.items()})
        assert not any(row["differs"] for row in compared(one, within)[0])
        assert all(row["differs"] for row in compared(one, run_of({p: v**sign for p, v in above.items()}))[0])
    assert (basis.kind, basis.words) == (
        "one draw",
        "one draw each: ratios within ×1.5, or ×2.9 where attention decides, may be chance (as NanoGPTs scatter over "
        "draws)",
    )


@pytest.mark.parametrize(("width", "scatter"), [(64, 0.25), (63, 2 / math.sqrt(63)), (16, 0.5), (1, 2.0)])
def test_narrow_models_scatter_more_where_attention_decides(width: int, scatter: float) -> None:
    place = ("activation", "attn_out", 0)
    (row,), _ = compared(run_of({place: 1.0}, width=width), run_of({place: 1.0}, width=width))
    assert row["chance"] == pytest.approx(math.exp(3 * math.sqrt(2) * max(scatter, 0.25)))


def test_draws_are_pooled_over_the_blocks_and_half_of_their_freedom_counts() -> None:
    logs = {0: ([0.0, 0.2, 0.1], [0.5, 0.7, 0.6]), 1: ([0.3, 0.3, 0.6], [0.1, 0.4, 0.4])}

    def run(side: int) -> Run:
        draws = [
            {("activation", "mlp_out", layer): math.exp(both[side][n]) for layer, both in logs.items()}
            for n in range(3)
        ]
        return run_of(*draws)

    rows, basis = compared(run(0), run(1))
    squares = sum(sum((x - sum(own) / 3) ** 2 for x in own) for both in logs.values() for own in both)
    # two blocks of 2 + 2 degrees of freedom: half of 8, and no less than a block's own
    quantile = stats.t.ppf(1 - LEVEL / 2, 4)
    error = math.sqrt(squares / 8) * math.sqrt(2 / 3)
    assert [row["chance"] for row in rows] == pytest.approx([math.exp(quantile * error)] * 2)
    assert rows[0]["ratio"] == pytest.approx(math.exp(0.5)) and rows[0]["var_a"] == pytest.approx(math.exp(0.1))
    assert (rows[0]["draws_a"], rows[0]["draws_b"]) == (3, 3)
    assert (basis.kind, basis.words) == ("draws", "held against the scatter between 3 draws (p below 0.0001)")
    one = run_of({("activation", "mlp_out", layer): 1.0 for layer in (0, 1)})
    single, basis = compared(one, run(1))
    own = sum((x - sum(values) / 3) ** 2 for _, values in logs.values() for x in values)
    # two blocks of 0 + 2: half of 4
    expected = math.exp(stats.t.ppf(1 - LEVEL / 2, 2) * math.sqrt(own / 4) * math.sqrt(1 + 1 / 3))
    assert single[0]["chance"] == pytest.approx(expected)
    assert "between 1 and 3 draws" in basis.words
    two = run_of({OUT: 1.0}, {OUT: math.exp(0.2)})  # a single block keeps all of its freedom
    (alone,), _ = compared(two, two)
    assert alone["chance"] == pytest.approx(math.exp(stats.t.ppf(1 - LEVEL / 2, 2) * math.sqrt(2 * 0.02 / 2)))


def test_a_site_whose_draws_are_the_same_is_held_against_the_usual_scatter() -> None:
    a = [{OUT: 1.0, ("activation", "embed", None): math.exp(x)} for x in (0.0, 1e-5)]
    rows, basis = compared(run_of(*a), run_of(*a))
    assert basis.kind == "draws"
    by_site = {row["site"]: row["chance"] for row in rows}
    assert by_site["mlp_out"] == pytest.approx(math.exp(3 * 0.1))  # two draws on each side
    assert by_site["embed"] == 1.05  # however little draws scatter


def test_gradients_of_a_mean_loss_are_compared_per_token() -> None:
    grad = ("grad", "mlp_out", 0)
    a, b = run_of({OUT: 2.0, grad: 1.0}, tokens=10), run_of({OUT: 2.0, grad: 0.25}, tokens=20)
    activation, gradient = compared(a, b)[0]
    assert (activation["ratio"], gradient["ratio"]) == (pytest.approx(1.0), pytest.approx(1.0))
    assert (activation["var_a"], gradient["var_a"], gradient["var_b"]) == (
        *(pytest.approx(2.0), pytest.approx(100.0), pytest.approx(100.0)),
    )
    same = compared(run_of({grad: 1.0}, tokens=10), run_of({grad: 0.25}, tokens=10))[0][0]
    assert (same["ratio"], same["var_a"]) == (pytest.approx(0.25), 1.0)


def test_blocks_are_left_out_where_there_are_other_numbers_of_them() -> None:
    places = {("activation", "embed", None): 1.0, OUT: 1.0, ("weight", "mlp_out", 0): 1.0}
    assert [row["site"] for row in compared(run_of(places), run_of(places))[0]] == ["embed", "mlp_out"]
    (outside,) = compared(run_of(places), run_of(places), blocks=False)[0]
    assert outside["site"] == "embed" and pd.isna(outside["layer"])
    assert compared(run_of(places), run_of({("activation", "logits", None): 1.0}))[0] == []


def test_modules_that_were_asked_for_are_told_apart_by_name_and_others_arent() -> None:
    a = {("activation", "module", 0, "h.0.a"): 1.0, ("activation", "module", 0, "h.0.b"): 2.0, (*OUT, "x"): 1.0}
    b = {("activation", "module", 0, "h.0.b"): 2.0, (*OUT, "y"): 1.0}
    rows = compared(run_of(a), run_of(b))[0]
    assert [(row["site"], row["module"], row["ratio"]) for row in rows] == [
        ("module", "h.0.b", 1.0),
        ("mlp_out", "", 1.0),
    ]
    assert rows[0]["layer"] == 0


def test_several_calls_of_a_draw_are_one_number() -> None:
    twice = {(*OUT, "x"): 1.0, (*OUT, "y"): 3.0}
    (row,) = compared(run_of(twice), run_of({OUT: 4.0}))[0]
    assert (row["var_a"], row["draws_a"], row["ratio"]) == (pytest.approx(2.0), 1, pytest.approx(2.0))


@pytest.mark.parametrize(
    ("one", "other", "differs"),
    [
        (0.0, 1.0, True),
        (0.0, 0.0, False),
        (math.nan, 1.0, True),
        (math.inf, 1.0, True),
        (math.nan, math.inf, False),
        (math.nan, 0.0, True),
        (1e-300, 1e300, True),
    ],
)
def test_zeros_and_what_isnt_finite_differ_from_numbers_alone(one: float, other: float, differs: bool) -> None:
    for pair in ((one, other), (other, one)):
        (row,) = compared(*(run_of({OUT: value}) for value in pair))[0]
        assert row["differs"] == differs and not (differs and row["ratio"] == 1.0)
