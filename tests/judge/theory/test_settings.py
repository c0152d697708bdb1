"""From names and a table of parameters to the numbers that the closed form takes, each of them another."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from initlab import wiring as names
from initlab.judge.theory.parameters import Measured, setting_of
from initlab.judge.theory.settings import (
    MLP,
    Attention,
    Branch,
    Linear,
    Norm,
    Stack,
    Term,
    TextStatistics,
    equal_pairs,
)
from initlab.recipes import Constant, Dims, Distribution, Normal, Recipe, Role

TEXT = TextStatistics(block_size=16, sum_p2=0.1, repeat_rate=0.2)
DIMS = Dims(n_layer=1, n_embd=8, n_head=2, block_size=16, vocab_size=10, fan_in=8, fan_out=8)
WEIGHTS = ("wte", "wpe", "q", "k", "v", "o", "up", "gate", "down", "head")
VECTORS = ("q.b", "up.b", "ln_1.w", "ln_1.b", "ln_2.w", "post.w", "sum.w", "f.w", "e.w", "qn.w", "inner.w", "ls", "hg")
SQUARE = {name: 0.01 * (place + 1) for place, name in enumerate((*WEIGHTS, *VECTORS))}


def table(**changes: dict[str, Any]) -> pd.DataFrame:
    """Every parameter has a mean square of its own; gains that something is added to a mean and a variance."""
    rows = [
        {"module": name, "role": "other", "layer": None, "rms": math.sqrt(square), "mean": 0.5, "var": square}
        | changes.get(name, {})
        for name, square in SQUARE.items()
    ]
    return pd.DataFrame(rows)


def linear(name: str, fan_in: int = 8, fan_out: int = 8, **more: Any) -> names.Linear:
    return names.Linear(weight=name, fan_in=fan_in, fan_out=fan_out, **more)


def norm(name: str, **more: Any) -> names.Norm:
    return names.Norm(module=name, gain=f"{name}.w", **more)


ATTENTION = names.Attention(
    query=linear("q", bias="q.b"),
    key=linear("k", fan_out=4),
    value=linear("v", fan_out=4),
    out=linear("o"),
    n_head=2,
    n_kv_head=1,
    head_size=4,
    score_scale=0.5,
    query_scale=0.25,
    key_scale=0.125,
    query_norm=norm("qn", eps=0.3),
    key_norm=norm("e"),
    out_norm=norm("inner"),
    head_gain="hg",
    causal=False,
    window=3,
    soft_cap=30.0,
    dropout=0.1,
)
FORWARD = names.MLP(
    up=linear("up", fan_out=16, bias="up.b"),
    gate=linear("gate", fan_out=16),
    out=linear("down", fan_in=16),
    activation="relu",
    inner_norm=norm("inner"),
    dropout=0.2,
)


def wired(
    attention: dict[str, Any] | None = None, mlp: dict[str, Any] | None = None, body: Any = ATTENTION, **more: Any
) -> names.Wiring:
    first = {"site": "attn_out", "body": body, "norm": norm("ln_1", bias="ln_1.b", eps=0.2), "scale": 3.0}
    second = {"site": "mlp_out", "body": FORWARD, "norm": norm("ln_2", offset=1.0, scale=2.0), "gain": "ls"}
    updates = (
        names.Update(branches=(names.Branch(**(first | {"dropout": 0.3} | (attention or {}))),), keep=0.5),
        names.Update(branches=(names.Branch(**(second | (mlp or {}))),), norm=norm("sum", centred=False)),
    )
    blocks = more.pop("blocks", (names.Block(layer=5, updates=updates),))
    return names.Wiring(n_embd=8, blocks=blocks, **more)


def stack_of(wiring: names.Wiring, measured: Measured | None = None, frame: pd.DataFrame | None = None) -> Stack:
    (found,) = setting_of(table() if frame is None else frame, wiring, TEXT, measured=measured).stacks
    return found


def branches(wiring: names.Wiring, measured: Measured | None = None) -> list[Branch]:
    return [b for update in stack_of(wiring, measured).blocks[0].updates for b in update.branches]


def test_every_number_of_a_branch_of_attention() -> None:
    (branch, _) = branches(wired())
    assert branch.body == Attention(
        query=Linear(square=pytest.approx(SQUARE["q"]), fan_in=8, fan_out=8, bias=pytest.approx(SQUARE["q.b"])),
        key=Linear(square=pytest.approx(SQUARE["k"]), fan_in=8, fan_out=4),
        value=Linear(square=pytest.approx(SQUARE["v"]), fan_in=8, fan_out=4),
        out=Linear(square=pytest.approx(SQUARE["o"]), fan_in=8, fan_out=8),
        **{"n_head": 2, "n_kv_head": 1, "head_size": 4, "score_scale": 0.5, "query_scale": 0.25, "key_scale": 0.125},
        query_norm=Norm(gain=pytest.approx(SQUARE["qn.w"]), eps=0.3),
        key_norm=Norm(gain=pytest.approx(SQUARE["e.w"])),
        head_square=pytest.approx(SQUARE["hg"]),
        out_norm=Norm(gain=pytest.approx(SQUARE["inner.w"])),
        **{"causal": False, "window": 3, "soft_cap": 30.0, "spread": None, "cross": None, "dropout": 0.1},
    )
    ln_1 = Norm(gain=pytest.approx(SQUARE["ln_1.w"]), bias=pytest.approx(SQUARE["ln_1.b"]), eps=0.2, site="ln_1")
    assert (branch.site, branch.norm, branch.post, branch.square, branch.dropout) == ("attn_out", ln_1, None, 9.0, 0.3)
    assert math.isnan(branch.written) and math.isnan(branch.alike) and branch.seen


def test_every_number_of_a_branch_of_an_mlp() -> None:
    (_, branch) = branches(wired(mlp={"post": norm("post"), "scale": 2.0}))
    assert branch.body == MLP(
        up=Linear(square=pytest.approx(SQUARE["up"]), fan_in=8, fan_out=16, bias=pytest.approx(SQUARE["up.b"])),
        gate=Linear(square=pytest.approx(SQUARE["gate"]), fan_in=8, fan_out=16),
        out=Linear(square=pytest.approx(SQUARE["down"]), fan_in=16, fan_out=8),
        activation="relu",
        inner_norm=Norm(gain=pytest.approx(SQUARE["inner.w"])),
        dropout=0.2,
    )
    gain = ((1 + 0.5) ** 2 + SQUARE["ln_2.w"]) * 4  # one is added to it, and twice it multiplies
    assert branch.norm == Norm(gain=pytest.approx(gain), site="ln_2")
    assert branch.post == Norm(gain=pytest.approx(SQUARE["post.w"]))
    assert branch.square == pytest.approx(4 * SQUARE["ls"])
    plain = branches(wired(mlp={"body": names.MLP(up=linear("up"), out=linear("down"))}))[1].body
    assert isinstance(plain, MLP) and plain.gate is None and plain.inner_norm is None and plain.up.bias == 0.0


def test_every_number_of_a_stack() -> None:
    terms = (
        names.Term(kind="token", weight="wte", scale=2.0),
        names.Term(kind="position", weight=None, square=0.5),
        names.Term(kind="position", weight="wpe", square=9.0),
        names.Term(kind="constant", weight=None, square=0.25, scale=3.0),
    )
    given = {"embed_norm": norm("e"), "final_norm": norm("f", centred=False), "head": linear("head", fan_out=10)}
    numbers: dict[str, Any] = {"embed_scale": 4.0, "tied": True, "logit_scale": 5.0, "logit_cap": 30.0, "dropout": 0.4}
    stack = stack_of(wired(terms=terms, **given, **numbers))
    assert stack.terms == (
        Term(kind="token", square=pytest.approx(SQUARE["wte"]), scale=2.0),
        Term(kind="position", square=0.5, sinusoid=True),
        Term(kind="position", square=pytest.approx(SQUARE["wpe"])),
        Term(kind="constant", square=0.25, scale=3.0),
    )
    assert (stack.positions, stack.n_embd) == (16, 8)
    assert {name: getattr(stack, name) for name in numbers} == numbers
    assert stack.embed_norm == Norm(gain=pytest.approx(SQUARE["e.w"]))
    assert stack.final_norm == Norm(gain=pytest.approx(SQUARE["f.w"]), centred=False)
    assert stack.head == Linear(square=pytest.approx(SQUARE["head"]), fan_in=8, fan_out=10)
    (block,) = stack.blocks
    assert (block.layer, [update.keep for update in block.updates]) == (5, [0.5, 1.0])
    assert [update.norm for update in block.updates] == [None, Norm(gain=pytest.approx(SQUARE["sum.w"]), centred=False)]
    bare = stack_of(wired())
    assert (bare.terms, bare.embed_norm, bare.final_norm, bare.head) == (None,) * 4
    assert all(math.isnan(each) for each in bare.begun)


def test_what_was_measured_stands_where_it_is_not_computed() -> None:
    place = ("attn_out", 5)
    measured = Measured(
        positions=(7,),
        var={("embed", None): 0.3, place: 0.7, ("resid_pre", 5): 9.0},
        alike={place: 0.1, ("resid_pre", 5): 0.9},
        together=0.2,
        scores={5: 3.0},
    )
    stack = stack_of(wired(), measured)
    assert (stack.positions, stack.begun) == (7, (0.3, 0.2))
    (branch, other) = branches(wired(attention={"body": None}), measured)
    assert (branch.body, branch.written, branch.alike) == (None, 0.7, 0.1) and math.isnan(other.written)
    biased = replace(ATTENTION, bias=True)
    found = branches(wired(body=biased), measured)[0].body
    assert isinstance(found, Attention) and found.spread == 9.0
    unknown = branches(wired(body=biased))[0].body
    assert isinstance(unknown, Attention) and unknown.spread is not None and math.isnan(unknown.spread)


def test_a_second_stack_begins_with_what_its_first_block_reads() -> None:
    measured = Measured(positions=(7, 3), var={("resid_pre", 5): 9.0}, alike={("resid_pre", 5): 0.9}, together=0.2)
    crossed = replace(ATTENTION, **{"cross": 0, "key": linear("k", 4), "value": linear("v", 4)})
    narrow = names.Wiring(n_embd=4, blocks=())
    first, second = setting_of(table(), [narrow, wired(body=crossed)], TEXT, measured=measured).stacks
    assert (first.positions, second.positions, second.begun) == (7, 3, (9.0, 0.9))
    assert math.isnan(first.begun[0]) and first.begun[1] == 0.2
    body = second.blocks[0].updates[0].branches[0].body
    assert isinstance(body, Attention) and body.cross == 0
    # keys and values read the other stack's width, queries their own
    assert body.key.square == pytest.approx(SQUARE["k"]) and body.query.square == pytest.approx(SQUARE["q"])
    empty = setting_of(table(), [narrow, names.Wiring(n_embd=4, blocks=())], TEXT, measured=measured).stacks[1]
    assert math.isnan(empty.begun[0])


def test_without_a_text_nothing_of_it_is_known() -> None:
    text = setting_of(table(), wired(), None).text
    assert text.block_size == 0 and math.isnan(text.sum_p2) and math.isnan(text.repeat_rate)
    assert setting_of(table(), wired(), TEXT).text is TEXT
    assert stack_of(wired()).positions == 16


def test_what_the_closed_form_does_not_know_has_no_body() -> None:
    assert branches(wired(attention={"conditioned": True}))[0].body is None
    assert branches(wired(attention={"norms": (norm("ln_2"),)}))[0].body is None
    same = names.Norm(module="other", gain="ln_1.w", bias="ln_1.b", eps=0.2)
    assert branches(wired(attention={"norms": (same,)}))[0].body is not None  # another module of the same numbers
    assert branches(wired(mlp={"body": None}))[1].body is None


def test_of_branches_at_one_site_nothing_is_told_apart() -> None:
    both = names.Update(branches=(names.Branch(site="mlp_out", body=FORWARD), names.Branch(site="mlp_out", body=None)))
    measured = Measured(var={("mlp_out", 5): 0.7}, alike={("mlp_out", 5): 0.2})
    found = branches(wired(blocks=(names.Block(layer=5, updates=(both,)),)), measured)
    assert [branch.seen for branch in found] == [False, False]
    assert all(math.isnan(branch.written) for branch in found) and found[0].alike == 0.2


def test_heads_with_matrices_of_their_own_are_what_they_are_on_average() -> None:
    heads = ((linear("q", fan_out=4, bias="q.b"), linear("k", fan_out=4), linear("v", fan_out=4)),) * 1
    heads += ((linear("k", fan_out=4), linear("v", fan_out=4), linear("o", fan_out=4)),)
    apart = names.Attention(
        query=heads[0][0], key=heads[0][1], value=heads[0][2], out=linear("up"), n_head=2, n_kv_head=2, head_size=4,
        score_scale=0.5, apart=heads,
    )  # fmt: skip
    body = branches(wired(body=apart))[0].body
    assert isinstance(body, Attention) and body.out is not None
    assert body.query == Linear(
        square=pytest.approx((SQUARE["q"] + SQUARE["k"]) / 2),
        fan_in=8,
        fan_out=8,
        bias=pytest.approx(SQUARE["q.b"] / 2),
    )
    assert body.value.square == pytest.approx((SQUARE["v"] + SQUARE["o"]) / 2)
    assert body.out.square == pytest.approx(SQUARE["up"])  # it reads the heads side by side


def test_a_matrix_that_reads_another_width_or_writes_again_is_not_known() -> None:
    narrow = replace(ATTENTION, **{"value": linear("v", 4, 4)})
    body = branches(wired(body=narrow))[0].body
    assert isinstance(body, Attention) and math.isnan(body.value.square) and not math.isnan(body.query.square)
    wide = replace(ATTENTION, **{"out": linear("o", 4)})
    body = branches(wired(body=wide))[0].body
    assert isinstance(body, Attention) and body.out is not None and math.isnan(body.out.square)
    body = branches(wired(body=replace(ATTENTION, out=None)))[0].body
    assert isinstance(body, Attention) and body.out is None
    own = names.MLP(up=linear("up", square=7.0), out=linear("o"))  # computed from the parameter, as by weight norm
    _, mlp = branches(wired(mlp={"body": own}))
    assert isinstance(mlp.body, MLP) and mlp.body.up.square == 7.0
    assert math.isnan(mlp.body.out.square) and mlp.body.out.fan_out == 8  # `o` wrote to the stream before
    unknown = stack_of(wired(), frame=table()[lambda frame: frame["module"] != "q"])
    body = unknown.blocks[0].updates[0].branches[0].body
    assert isinstance(body, Attention) and math.isnan(body.query.square) and body.query.bias > 0


def test_a_recipe_says_what_it_draws_and_leaves_what_it_does_not_know() -> None:
    def rule(role: Role, dims: Dims) -> Distribution:
        stds = {Role.ATTN_Q: 0.1, Role.ATTN_QKV: 0.2, Role.TOKEN_EMBED: 0.3}
        return Constant(2.0) if role == Role.NORM_GAIN else Normal(stds[role])

    recipe = Recipe(id="r", family="user", summary="", source="", rule=rule)
    frame = table(
        q={"role": "attn_qkv"}, k={"role": "mlp_in"}, wte={"role": "token_embed"}, ls={"role": "gate"},
        **{"ln_1.w": {"role": "norm_gain"}, "ln_2.w": {"role": "norm_gain"}},
    )  # fmt: skip
    frame["dims"] = [None if name == "k" else DIMS for name in frame["module"]]
    terms = (names.Term(kind="token", weight="wte"),)
    (stack,) = setting_of(frame, wired(terms=terms), TEXT, recipe).stacks
    first, second = (b for update in stack.blocks[0].updates for b in update.branches)
    assert isinstance(first.body, Attention) and first.norm is not None and second.norm is not None
    assert first.body.query.square == pytest.approx(0.01)  # of the part that is asked for
    assert first.body.key.square == pytest.approx(SQUARE["k"])  # without dims: as found
    assert stack.terms is not None and stack.terms[0].square == pytest.approx(0.09)
    assert first.norm.gain == 4.0 and second.norm.gain == (1 + 2.0) ** 2 * 4
    assert second.square == pytest.approx(SQUARE["ls"])  # a gate stays as it is
    (found,) = setting_of(frame, wired(terms=terms), TEXT).stacks
    assert found.terms is not None and found.terms[0].square == pytest.approx(SQUARE["wte"])


def test_a_stack_says_whether_positions_differ_and_how_far_they_see() -> None:
    def stack(**changes: Any) -> Stack:
        return stack_of(wired(body=replace(ATTENTION, **changes)))

    assert stack().window == 3 and stack(window=None).window is None and stack(window=16).window is None
    assert stack(window=None, causal=True).ordered and not stack(window=None).ordered and stack().ordered
    assert not stack(window=None, causal=True, cross=0).ordered
    sinusoid = (names.Term(kind="position", weight=None, square=0.5),)
    assert stack_of(wired(body=None, terms=sinusoid)).ordered and not stack_of(wired(body=None)).ordered
    terms = (names.Term(kind="token", weight="wte", scale=2.0), names.Term(kind="position", weight="wpe", scale=9.0))
    assert stack_of(wired(terms=terms, embed_scale=3.0)).token == 6.0 and math.isnan(stack_of(wired()).token)


def test_equal_pairs_are_counted_within_sequences() -> None:
    assert equal_pairs(np.array([1, 1, 2, -1])) == pytest.approx(2 / 6)
    assert equal_pairs(np.array([[1, 1, 2], [1, 3, 3]])) == pytest.approx(4 / 12)
    assert equal_pairs(np.array([[1, -1], [-1, -1]])) == 0.0
    text = TextStatistics.of_batch(
        {"sum_p2": 0.1}, {"block_size": 3, "repeat_rate": 0.25}, np.array([[1, 1, 2], [1, 3, 3]])
    )
    assert text == TextStatistics(block_size=3, sum_p2=0.1, repeat_rate=0.25, same_target=pytest.approx(1 / 3))
    assert TextStatistics.of_batch({"sum_p2": 0.1}, {"block_size": 3, "repeat_rate": 0.25}, None).same_target is None
