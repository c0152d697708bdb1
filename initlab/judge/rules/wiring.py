"""How the blocks of a stack are put together: what is added, through which norms, and like the others or not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from initlab.judge import Severity
from initlab.judge.remedies import leave
from initlab.judge.rows import Rows
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.faults import Fault, anywhere, layers_of, measure_wiring, stacks, unexplained, verdict
from initlab.judge.words import listed, plural, trimmed

_NEEDS = "a residual stream that was followed"
_KNOWN = ("attention", "mlp", "experts")

Row = Mapping[str, Any]  # of the table `wiring`
Say = Callable[[Row, Row, str], tuple[str, str]]


def _presence(before: str, what: str, column: str) -> Say:
    """Say that a block lacks what the others have, or has what they lack."""

    def say(row: Row, usual: Row, others: str) -> tuple[str, str]:
        there, name = bool(row[column]), row["inside"]
        if there:
            return (
                f"{row['block']}: {what} ({row[column]}) {before} {name}, which {others} lack",
                f"take {row[column]} out of {row['block']}, or give every block one",
            )
        like = anywhere(usual[column])
        return (
            f"{row['block']}: no {what} {before} {name}; {others} have one ({like})",
            f"give {row['block']} the {what} {before} {name} that the other blocks have ({like})",
        )

    return say


def _value(what: str, column: str) -> Say:
    """Say that a block has another value than the others."""

    def say(row: Row, usual: Row, others: str) -> tuple[str, str]:
        here, there = (_shown(each[column]) for each in (row, usual))
        text = f"{row['block']}: {what.format(name=row['inside'])} {here}; in {others} {there}"
        return text, f"make {row['inside']} as in the other blocks ({there} in place of {here})"

    return say


def _shown(value: object) -> str:
    return trimmed(value) if isinstance(value, float) else str(value)


# what is compared: name -> (columns that must be alike, of what kinds it is known, how it is said)
_FEATURES: dict[str, tuple[tuple[str, ...], Say]] = {
    "norm": (_KNOWN, _presence("before", "norm", "norm")),
    "post_norm": ((*_KNOWN, "unknown"), _presence("after", "norm", "post_norm")),
    "sum_norm": ((*_KNOWN, "unknown"), _presence("of the sum after", "norm", "sum_norm")),
    "gain": ((*_KNOWN, "unknown"), _presence("of each channel after", "gain", "gain")),
    "qk_norm": (("attention",), _presence("of the queries and keys in", "norm", "qk_norm")),
    "keep": ((*_KNOWN, "unknown"), _value("where {name} is added, the stream is multiplied with", "keep")),
    "scale": ((*_KNOWN, "unknown"), _value("what {name} adds is multiplied with", "scale")),
    "activation": (("mlp", "experts"), _value("the activation of {name} is", "activation")),
    "causal": (("attention",), _value("a position of {name} sees", "sees")),
    "relative": (("attention",), _value("√head_size × the scale of q·k in {name} is", "relative")),
}
_COMPARABLE = {"activation": "gated", "qk_norm": "rotary"}  # only among those that are alike in this
_SEES = {1: "those before it", 0: "all"}
_NAMED = ("norm", "post_norm", "sum_norm", "gain", "qk_norm")  # of which only counts whether there is one


def _odd_ones(run_id: str, rows: Rows) -> Iterator[Fault]:
    """What single blocks of one stack have otherwise than the rest."""
    followed = rows[rows["kind"] != "unfollowed"]
    followed = followed.assign(
        relative=followed["score_scale"] * followed["head_size"] ** 0.5,
        sees=[_SEES.get(causal, math.nan) for causal in followed["causal"]],
    )
    yield from _lacking(run_id, followed, len(set(rows["layer"])))
    replaced = set(followed["layer"][followed["keep"] == 0])
    slots: dict[tuple[str, int], list[Row]] = {}
    written: Counter[tuple[int, str]] = Counter()  # a block may write at a site more than once
    for each in followed:
        here = each["layer"], each["site"]
        slots.setdefault((each["site"], written[here]), []).append(each)
        written[here] += 1
    for slot in slots.values():
        for name, (kinds, say) in _FEATURES.items():
            known = [each for each in slot if each["kind"] in kinds]
            if name in ("keep", "scale", "post_norm"):
                known = [each for each in known if each["keep"] != 0]
            if name in ("norm", "sum_norm"):  # without its sum, a norm between two branches may be of either kind
                known = [each for each in known if each["layer"] not in replaced]
            if (like := _COMPARABLE.get(name)) and known:
                said = Counter(each[like] for each in known if not math.isnan(each[like]))
                most = said.most_common(1)[0][0] if said else None
                known = [each for each in known if each[like] == most]
            values = [bool(each[name]) if name in _NAMED else _rounded(each[name]) for each in known]
            if not values:
                continue
            usual = Counter(values).most_common(1)[0][0]
            odd = [place for place, value in enumerate(values) if value != usual]
            if name == "sum_norm" and usual and odd == [len(values) - 1] and known[-1]["final_norm"]:
                continue  # the norm of the last sum stands behind the blocks
            if not unexplained(odd, len(values)):
                continue
            sibling = known[values.index(usual)]
            others = f"the other {len(values) - len(odd)} blocks"
            for place in odd:
                row = known[place]
                text, advice = say(row, sibling, others)
                yield _fault(run_id, row, text, advice)


def _rounded(value: object) -> object:
    """Numbers within 1 % are alike; a missing one is like another."""
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.2g}")
    return value


def _lacking(run_id: str, rows: Rows, count: int) -> Iterator[Fault]:
    """Blocks in which one of the writes that the others make isn't there."""
    blocks = {own["layer"][0]: own for own in rows.parts("layer", sort=False)}
    sites = {layer: Counter(own["site"]) for layer, own in blocks.items()}
    if not sites:
        return
    usual = Counter(tuple(sorted(each.elements())) for each in sites.values()).most_common(1)[0][0]
    odd = {layer: Counter(usual) - each for layer, each in sites.items() if each < Counter(usual)}
    places = {layer: place for place, layer in enumerate(sites)}
    if not unexplained([places[layer] for layer in odd], count):
        return
    for layer, missing in odd.items():
        row = blocks[layer][0]
        like = next(blocks[at] for at, each in sites.items() if tuple(sorted(each.elements())) == usual)
        names = listed([anywhere(name) for name in like["inside"][like.among("site", missing)]])
        text = f"{row['block']}: nothing like {names} is added to the stream, which the other blocks add"
        advice = f"call {names} in the forward of {row['block']} and add what it gives, as the other blocks do"
        yield _fault(run_id, row, text, advice)


def _fault(run_id: str, row: Row, text: str, advice: str) -> Fault:
    return Fault(run_id, text, advice, "warning", (int(row["layer"]),), str(row["site"]))


@rule(
    code="WIR001",
    question="Wiring",
    measures="norms, factors, activation, mask, scale and writes of each block beside those of the others in its stack",
    needs=f"{_NEEDS} through three blocks or more",
    unit="blocks",
    limit="none that differs from two thirds of its stack, but the first, several last ones, or every n-th",
    basis="heuristic",
    why="Blocks of a stack come from one class: where a single one lacks a norm or a write, or has another factor, a "
    "line was changed in one place, or a module replaced by hand.",
    advice="compare the forward of the block that is named with that of the others",
    false_alarms="An architecture from a search that leaves out parts of single blocks. Windows, positions, sizes of "
    "heads and what kind of branch it is (attention, mixer, experts) may differ from block to block.",
    source="the blocks of transformers' models, in which no single one differs so",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measure_wiring,
)
def block_unlike_others(case: Case, rows: Rows) -> Finding:
    """Judge every stack by itself."""
    if max(len(set(stack["layer"])) for _, stack in stacks(rows)) < 3:
        return case.not_applicable(f"Needs {case.rule.needs}")
    faults = [fault for run_id, stack in stacks(rows) for fault in _odd_ones(run_id, stack)]
    return verdict(case, rows, faults, "No block is wired unlike the others of its stack")


@rule(
    code="WIR002",
    question="Wiring",
    measures="attentions, MLPs and mixtures of experts whose result becomes the stream instead of being added to it",
    needs=_NEEDS,
    unit="writes",
    limit="none; in some blocks alone an error",
    basis="derived",
    why="Without the sum everything before the block reaches what follows only through its matrices, which at init "
    "shrink it and mix it; and so does the gradient on its way back.",
    advice="add what the module gives to the stream",
    false_alarms="Models that do without skip connections on purpose (in all blocks: a warning).",
    source="He et al. 2016, 1603.05027; He et al. 2023, 2302.10322, for what it takes to do without",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measure_wiring,
)
def residual_missing(case: Case, rows: Rows) -> Finding:
    """Judge every stack by itself: whether the others of its blocks add what this one doesn't."""
    faults = []
    for run_id, stack in stacks(rows):
        replaced = stack[(stack["keep"] == 0) & (stack["note"] != "") & stack.among("kind", _KNOWN)]
        count, total = len(set(replaced["layer"])), len(set(stack["layer"]))
        names = list(dict.fromkeys(anywhere(name) if count == total else name for name in replaced["inside"]))
        if not names:
            continue
        where = "in every block" if count == total else f"in {count} of {plural(total, 'block')}"
        text = f"What {listed(names)} gives isn't added to the stream but replaces it, {where}"
        advice = f"restore the residual connection: x = x + {listed(names)}(…), not x = {listed(names)}(…)"
        layers = tuple(int(layer) for layer in replaced["layer"])
        severity: Severity = "warning" if count == total else "error"
        faults.append(Fault(run_id, text, advice, severity, layers, str(replaced["site"][0]), float(count)))
    return verdict(case, rows, faults, "Every attention and MLP that was understood is added to the stream")


@rule(
    code="WIR003",
    question="Wiring",
    measures="whether a norm stands between the last block and the head of a stack whose branches read through norms",
    needs=f"{_NEEDS}, and a head that reads it",
    unit="norms",
    limit="one",
    basis="derived",
    why="In a pre-norm stack the stream grows with every write. Without a last norm the logits grow with it, over "
    "depth and over training, and the head's gradient too.",
    advice="put a norm between the last block and the head",
    false_alarms="Post-norm stacks end with a norm of their own and aren't judged.",
    source="Radford et al. 2019 (GPT-2), section 2.3: an additional normalisation after the final block",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measure_wiring,
)
def final_norm_missing(case: Case, rows: Rows) -> Finding:
    """Judge the stacks that a head reads and whose branches are known to read through norms."""
    read = rows[(rows["head"] != "") & rows.among("kind", _KNOWN)]
    faults, judged = [], False
    for run_id, stack in stacks(read):
        if (stack["norm"] != "").mean() <= 0.5 or (stack["sum_norm"] != "").any():
            continue
        judged = True
        first = stack[0]
        if first["final_norm"]:
            continue
        text = (
            f"The head ({first['head']}) reads the stream without a norm, although the blocks read it through one "
            f"({anywhere(stack['norm'][stack['norm'] != ''][-1])})"
        )
        advice = f"put a norm between the last block ({stack['block'][-1]}) and {first['head']}"
        faults.append(Fault(run_id, text, advice, "warning", site="final_norm"))
    if not judged:
        return case.not_applicable("Needs a stack whose branches read through norms, and a head that reads it")
    return verdict(case, rows, faults, "A norm stands between the last block and the head")


@rule(
    code="WIR004",
    question="Wiring",
    measures="blocks none of whose parameters are trained, while those of the others are",
    needs=f"{_NEEDS} through three blocks or more",
    unit="blocks",
    limit="none, but the first ones, several last ones, or every n-th",
    basis="heuristic",
    why="A block in the middle that isn't trained stays what the init made of it: a random function that all others "
    "have to work around.",
    advice="set requires_grad of the block's parameters",
    false_alarms="A single block that is frozen on purpose, as for an ablation.",
    source="what people freeze: a prefix of the blocks, or those of a pretrained model between new ones",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measure_wiring,
)
def frozen_block(case: Case, rows: Rows) -> Finding:
    """Judge every stack by itself."""
    faults = []
    for run_id, stack in stacks(rows):
        blocks = stack.grouped(["layer"], sort=False, block=("block", "first"), frozen=("frozen", "first"))
        odd = [place for place, share in enumerate(blocks["frozen"]) if share == 1]
        if not unexplained(odd, len(blocks)):
            continue
        layers, names = tuple(int(layer) for layer in blocks["layer"][odd]), list(blocks["block"][odd])
        which = listed([f"block {layer} ({name})" for layer, name in zip(layers, names, strict=True)])
        text = f"No parameter of {which} is trained; those of the other {len(blocks) - len(odd)} blocks are"
        advice = f"set requires_grad on the parameters of {listed(names)}, unless it is frozen on purpose"
        faults.append(Fault(run_id, text, advice, "warning", layers, measured=float(len(odd))))
    return verdict(case, rows, faults, "No single block is frozen")


@rule(
    code="WIR011",
    question="Wiring",
    measures="branches whose gradient doesn't flow back to the stream that they read",
    needs=_NEEDS,
    unit="branches",
    limit="none",
    basis="derived",
    why="What a branch reads through `detach`, `.data` or `no_grad` it can't ask earlier blocks for: these learn from "
    "the skip alone. The forward pass is the same, and the loss falls, less.",
    advice="take detach, .data or no_grad from what the branch reads",
    false_alarms="Branches that are kept apart on purpose (side networks, auxiliary heads).",
    source="torch.Tensor.detach: the result never requires grad",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measure_wiring,
)
def branch_without_gradient(case: Case, rows: Rows) -> Finding:
    """Judge every branch that was followed."""
    followed = rows[(rows["kind"] != "unfollowed") & ~np.isnan(rows["detached"])]
    if followed.empty:
        return case.not_applicable(f"Needs {_NEEDS}")
    faults = []
    for run_id, stack in stacks(followed):
        odd = stack[stack["detached"] == 1]
        for some in odd.parts("site"):
            names = listed(list(dict.fromkeys(anywhere(name) for name in some["inside"])))
            text = f"{names} reads the stream without a gradient: what is added there asks nothing of earlier blocks"
            advice = f"take detach, .data or no_grad from what {names} reads, unless it is kept apart on purpose"
            layers = layers_of(some)
            faults.append(Fault(run_id, text, advice, "warning", layers, str(some["site"][0]), float(len(some))))
    return verdict(case, followed, faults, "The gradient of every branch flows back to the stream")


@rule(
    code="WIR012",
    question="Wiring",
    measures="probability in force with which what a branch adds, or an attention's weights, are dropped",
    needs=f"{_NEEDS}, of a model in train mode",
    limits={"most": 0.5},
    unit="probability",
    limit="≤ {most}",
    basis="heuristic",
    why="torch's p is the share that is dropped. A value that was meant as the share that is kept drops nearly all, "
    "multiplies the rest with 1/(1 - p), and every step trains on noise.",
    advice="give the probability of dropping: 1 - keep",
    false_alarms="Strong regularisation of small data on purpose, and stochastic depth above a half.",
    source="torch.nn.Dropout: p is the probability of an element to be zeroed; Srivastava et al. 2014: at most a half",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measure_wiring,
)
def mostly_dropped(case: Case, rows: Rows) -> Finding:
    """Judge every branch that was followed."""
    followed = rows[(rows["kind"] != "unfollowed") & ~np.isnan(rows["dropout"])]
    if followed.empty:
        return case.not_applicable(f"Needs {case.rule.needs}")
    most = case.limits["most"]
    faults = []
    for run_id, stack in stacks(followed):
        odd = stack[stack["dropout"] > most]
        if odd.empty:
            continue
        p = float(odd["dropout"].max())
        names = listed(list(dict.fromkeys(anywhere(name) for name in odd["inside"])))
        layers = layers_of(odd)
        text = f"{names}: {p:.0%} is dropped, {1 - p:.0%} kept"
        advice = (
            f"dropout takes the share that is dropped: {trimmed(1 - p)} in place of {trimmed(p)}, if that was meant"
        )
        faults.append(Fault(run_id, text, advice, "warning", layers, str(odd["site"][0]), p))
    return verdict(case, followed, faults, "At most half of what branches add is dropped")
