"""What a change made worse: on a probe's tables, one number of them changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from synthetic import synthetic_run

from initlab.judge.rules import Finding
from initlab.judge.worsening import worse
from initlab.rundir import Run
from initlab.schema import Tables

PROBE = synthetic_run(("nanogpt",), (2,), seeds=1)
Edit = Callable[[pd.DataFrame], None]


def changed(table: str = "records", edit: Edit = lambda frame: None) -> Run:
    """The probe, with an edit of one of its tables."""
    frame = getattr(PROBE.tables, table).copy()
    edit(frame)
    return Run(Tables(**{**dict(PROBE.tables.items()), table: frame}), PROBE.manifest)


def put(column: str, value: float, where: str = "kind == 'activation' and site == 'mlp_act' and layer == 1") -> Edit:
    def edit(frame: pd.DataFrame) -> None:
        rows = frame.query(where).index
        assert len(rows)
        frame.loc[rows, column] = value

    return edit


def finding(code: str, status: Any = "fail", severity: Any = "warning") -> Finding:
    return Finding(
        code=code, name="", question="", status=status, severity=severity, recipe="", message=f"{code} is so."
    )


def after_records(column: str, value: float, again: float = 0.0, **place: str) -> list[str]:
    """What is said of a record whose share goes from 0 to a value, and to another with another seed."""
    old, new, other = (changed(edit=put(column, each, **place)) for each in (0.0, value, again))
    return worse(old, new, other, [], [])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (("pass", "warning"), ("fail", "warning"), ["ACT001 fails then: ACT001 is so."]),
        (("pass", "error"), ("fail", "error"), ["ACT001 fails then: ACT001 is so."]),
        (("fail", "info"), ("fail", "warning"), ["ACT001 fails then: ACT001 is so."]),
        (("fail", "warning"), ("fail", "error"), ["ACT001 is an error then: ACT001 is so."]),
        (("fail", "warning"), ("fail", "warning"), []),
        (("fail", "error"), ("fail", "warning"), []),
        (("fail", "error"), ("pass", "error"), []),
        (("pass", "warning"), ("fail", "info"), []),
        (("not_applicable", "warning"), ("fail", "error"), []),
        (("pass", "warning"), ("not_applicable", "warning"), []),
        (("fail", "info"), ("not_applicable", "info"), []),
        (
            ("fail", "warning"),
            ("not_applicable", "warning"),
            ["ACT001 no longer applies, so that nothing tells whether it is cleared"],
        ),
    ],
)
def test_a_check_is_worse_when_it_fails_harder(old: tuple[str, str], new: tuple[str, str], said: list[str]) -> None:
    others = [finding("RES001"), finding("LOG001", "pass")]
    before, after = [*others, finding("ACT001", *old)], [*others, finding("ACT001", *new)]
    assert worse(PROBE, PROBE, PROBE, before, after) == said
    assert worse(PROBE, PROBE, PROBE, [*before, finding("GRD001")], after) == said  # gone: nothing is said


def test_what_a_cleared_error_hid_is_no_worse() -> None:
    before = [finding("GRD001", severity="error"), finding("ACT001", "pass"), finding("RES001", "pass")]
    after = [finding("GRD001", "pass"), finding("ACT001"), finding("RES001", severity="error")]
    assert worse(PROBE, PROBE, PROBE, before, after) == ["RES001 fails then: RES001 is so."]
    still = [finding("GRD001", severity="error"), *after[1:]]
    assert worse(PROBE, PROBE, PROBE, before, still) == [
        "ACT001 fails then: ACT001 is so.",
        "RES001 fails then: RES001 is so.",
    ]
    passed = [finding("GRD001", "pass", "error"), *before[1:]]  # an error that wasn't there hid nothing
    assert len(worse(PROBE, PROBE, PROBE, passed, after)) == 2
    warned = [finding("GRD001"), *before[1:]]
    assert len(worse(PROBE, PROBE, PROBE, warned, after)) == 2


def test_beside_what_isnt_finite_no_number_says_anything() -> None:
    broken = changed(edit=put("frac_nonfinite", 0.1))
    full = changed(edit=put("frac_zero", 1.0))
    assert worse(PROBE, full, PROBE, [], []) != []
    assert worse(broken, full, PROBE, [], []) == []
    before, after = [finding("ACT001", "pass"), finding("RES001", "pass")], [finding("ACT001"), finding("RES001")]
    assert worse(broken, full, PROBE, before, after) == []  # warnings were hidden by it
    assert worse(PROBE, PROBE, PROBE, before, after) != []


@pytest.mark.parametrize(
    ("column", "slack"),
    [("frac_nonfinite", 0.0), ("frac_over_fp16", 0.001), ("frac_over_bf16", 0.0), ("frac_zero", 0.05)],
)
def test_a_share_is_worse_beyond_what_chance_makes(column: str, slack: float) -> None:
    text = f"{column} of transformer.h.1 (activation at mlp_act) rises by {{}}, of 1 records"
    value = slack + 1e-4
    assert after_records(column, value) == [text.format(f"{value:.2g}")]
    assert after_records(column, slack) == []
    assert after_records(column, 0.3, 0.09) == ([text.format("0.3")] if slack < 0.03 else [])
    assert after_records(column, 0.3, 0.1001) == []
    assert after_records(column, 0.4, 0.1) == [text.format("0.4")]
    old = changed(edit=put(column, 0.5)) if column != "frac_nonfinite" else PROBE
    assert worse(old, PROBE, PROBE, [], []) == []


def test_the_share_that_rises_most_is_named_and_others_counted() -> None:
    def edit(frame: pd.DataFrame) -> None:
        put("frac_zero", 0.2)(frame)
        put("frac_zero", 0.6, "kind == 'activation' and site == 'mlp_pre' and layer == 0")(frame)

    assert worse(PROBE, changed(edit=edit), PROBE, [], []) == [
        "frac_zero of transformer.h.0 (activation at mlp_pre) rises by 0.6, of 2 records"
    ]


def test_zeros_of_a_gradient_and_what_is_true_of_weights_say_nothing() -> None:
    gradient = "kind == 'grad' and site == 'mlp_act' and layer == 1"
    assert after_records("frac_zero", 0.9, where=gradient) == []
    assert after_records("frac_over_fp16", 0.9, where=gradient) != []
    assert after_records("frac_zero", 0.9, where="kind == 'weight' and site == 'mlp_in'") == []
    assert after_records("frac_zero", 0.9, where="kind == 'weight_grad' and site == 'mlp_in' and layer == 0") != []


def test_a_record_that_is_only_in_one_of_the_runs_says_nothing() -> None:
    act = "kind == 'activation' and site == 'mlp_act' and layer == 1"
    zeros = changed(edit=put("frac_zero", 0.9))
    less = Run(Tables(**{**dict(PROBE.tables.items()), "records": PROBE.tables.records.query(f"not ({act})")}), {})
    assert worse(less, zeros, PROBE, [], []) == []
    assert worse(PROBE, less, PROBE, [], []) == []
    assert len(worse(PROBE, zeros, less, [], [])) == 1  # another seed without it tells no scatter


def test_records_of_one_module_are_held_against_each_other_in_their_order() -> None:
    records = pd.concat([PROBE.tables.records.query("kind == 'activation' and site == 'mlp_act'")] * 2)
    records = records.reset_index(drop=True)

    def of(*shares: float) -> Run:
        frame = records.assign(layer=0, frac_zero=list(shares))
        return Run(Tables(**{**dict(PROBE.tables.items()), "records": frame}), PROBE.manifest)

    assert len(records) == 4
    assert worse(of(0.0, 0.5, 0.0, 0.5), of(0.0, 0.5, 0.0, 0.5), PROBE, [], []) == []
    assert len(worse(of(0.0, 0.5, 0.0, 0.5), of(0.5, 0.0, 0.0, 0.5), PROBE, [], [])) == 1
    fewer = Run(Tables(**{**dict(PROBE.tables.items()), "records": of(0.0, 0.9, 0.0, 0.5).tables.records[:3]}), {})
    assert len(worse(of(0.0, 0.5, 0.0, 0.5), fewer, PROBE, [], [])) == 1


def test_of_many_kinds_of_number_three_are_said() -> None:
    def edit(frame: pd.DataFrame) -> None:
        for column in ("frac_over_fp16", "frac_over_bf16", "frac_zero", "frac_nonfinite"):
            put(column, 0.5)(frame)

    said = worse(PROBE, changed(edit=edit), PROBE, [], [])
    assert [each.split()[0] for each in said] == ["frac_nonfinite", "frac_over_fp16", "frac_over_bf16"]


def test_numbers_that_a_light_probe_doesnt_take_say_nothing() -> None:
    light = changed(edit=put("frac_zero", math.nan, "kind != ''"))
    assert worse(light, changed(edit=put("frac_zero", 0.5)), light, [], []) == []
    worst = changed(edit=put("frac_nonfinite", 0.5))
    assert [each.split()[0] for each in worse(light, worst, light, [], [])] == ["frac_nonfinite"]


def of_summary(**values: float) -> Run:
    return changed("summary", lambda frame: frame.__setitem__(list(values), list(values.values())))


@pytest.mark.parametrize(
    ("column", "old", "new", "other", "said"),
    [
        ("loss", 5.0, 5.36, 5.0, "loss rises from 5 to 5.36"),
        ("loss", 5.0, 5.34, 5.0, ""),
        ("loss", 5.0, 5.6, 4.9, ""),  # three times the scatter of seeds, and the slack
        ("loss", 5.0, 5.7, 4.9, "loss rises from 5 to 5.7"),
        ("loss", 5.0, 5.36, math.nan, "loss rises from 5 to 5.36"),
        ("loss", 5.0, 4.0, 5.0, ""),
        ("loss", 5.0, math.nan, 5.0, ""),
        ("dead_frac", 0.1, 0.1234, 0.1, "dead_frac rises from 0.1 to 0.123"),
        ("dead_frac", 0.1, 0.119, 0.1, ""),
        ("token_position_ratio", 1.0, 2.01, 1.0, "token ÷ position goes from 1 to 2"),
        ("token_position_ratio", 1.0, 1.99, 1.0, ""),
        ("token_position_ratio", 1.0, 0.4975, 1.0, "token ÷ position goes from 1 to 0.5"),
        ("token_position_ratio", 1.0, 0.503, 1.0, ""),
        ("token_position_ratio", 0.1, 1.0, 0.1, ""),  # towards each other
        ("token_position_ratio", 2.0, 9.0, 2.3, "token ÷ position goes from 2 to 9"),
        ("token_position_ratio", 2.0, 9.0, 3.0, ""),
        ("token_position_ratio", 2.0, 9.0, 1.4, ""),
        ("token_position_ratio", 1.0, 0.0, 1.0, ""),
        ("token_position_ratio", 0.0, 9.0, 1.0, ""),
        ("token_position_ratio", 1.0, 9.0, math.nan, ""),
    ],
)
def test_a_start_is_worse_beyond_what_another_seed_makes(
    column: str, old: float, new: float, other: float, said: str
) -> None:
    runs = [of_summary(**{column: value}) for value in (old, new, other)]
    assert worse(*runs, [], []) == ([said] if said else [])
    cleared = [finding("GRD001", severity="error")], [finding("GRD001", "pass", "error")]
    assert worse(*runs, *cleared) == []  # a branch that was shut: the sound part may start otherwise


@pytest.mark.parametrize(
    ("old", "new", "other", "said"),
    [
        (0.9, 0.79, 0.9, "attention of block 1 narrows by 11% of uniform"),
        (0.9, 0.81, 0.9, ""),  # still wide
        (0.7, 0.61, 0.7, ""),
        (0.7, 0.59, 0.7, "attention of block 1 narrows by 11% of uniform"),
        (0.7, 0.4, 0.75, "attention of block 1 narrows by 15% of uniform"),
        (0.7, 0.4, 0.65, "attention of block 1 narrows by 15% of uniform"),
        (0.7, 0.4, 0.77, ""),
        (0.4, 0.7, 0.4, ""),
        (0.7, 0.4, math.nan, "attention of block 1 narrows by 30% of uniform"),
        (math.nan, 0.4, 0.4, ""),
    ],
)
def test_a_head_is_worse_where_it_narrows(old: float, new: float, other: float, said: str) -> None:
    runs = [changed("heads", put("entropy_frac", each, "layer == 1")) for each in (old, new, other)]
    assert worse(*runs, [], []) == ([said] if said else [])


def test_the_mean_over_the_heads_of_a_block_counts_and_the_worst_block_is_named() -> None:
    one = changed("heads", put("entropy_frac", 0.5, "layer == 1 and head == 0"))
    assert worse(PROBE, one, PROBE, [], []) == []

    def edit(frame: pd.DataFrame) -> None:
        put("entropy_frac", 0.6, "layer == 1")(frame)
        put("entropy_frac", 0.2, "layer == 0")(frame)

    (said,) = worse(PROBE, changed("heads", edit), PROBE, [], [])
    assert said.startswith("attention of block 0 narrows by ")


def test_all_kinds_of_worse_are_said_in_one_order() -> None:
    tables = dict(PROBE.tables.items())
    tables["records"] = changed(edit=put("frac_zero", 0.9)).tables.records
    tables["heads"] = changed("heads", put("entropy_frac", 0.2, "layer == 0")).tables.heads
    tables["summary"] = of_summary(loss=20.0).tables.summary
    said = worse(PROBE, Run(Tables(**tables), {}), PROBE, [finding("ACT001", "pass")], [finding("ACT001")])
    assert [each.split()[0] for each in said] == ["ACT001", "frac_zero", "attention", "loss"]
