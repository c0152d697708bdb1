"""What the residual stream keeps: of single writes, of the embedding, of the difference between positions."""

from __future__ import annotations

import math

import numpy as np

from initlab.judge.rows import Row, Rows, largest, smallest
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import CELL, called, family, in_block, normed_writes, recorded, seeds, size, table_of
from initlab.judge.rules.trends import off_trend
from initlab.judge.words import listed, trimmed
from initlab.recipes import Role
from initlab.recipes.base import OUTPUTS
from initlab.rundir import Run

_WRITES = ("attn_out", "cross_attn_out", "mlp_out", "mixer_out")
_ENTERED = {"attn_out": "resid_pre", "mlp_out": "resid_mid"}  # the stream that a write is added to
# share of the sum below which a rounded sum doesn't change: half a unit in the last place
_ABSORBED = {"bfloat16": 2.0**-8, "float16": 2.0**-11}


def measure_spike(run: Run) -> Rows:
    """ln(variance of a block's write / trend over the blocks), relative to the closed form where there is one.

    Modules that write at one site are judged by themselves: a trend is over the same module of every block.
    """
    rows = recorded(run, "activation", *_WRITES)
    keys = [*CELL, "site", "module", "layer"]
    rows = rows.grouped(keys, var=("var", "mean"), expected_var=("expected_var", "mean"))
    layers, variances, expected = (rows[name] for name in ("layer", "var", "expected_var"))
    rows = rows.assign(family=family(rows["module"]))
    alike = rows.groups("run_id", "site", "family")
    offs, blocks = np.zeros(len(rows)), np.zeros(len(rows))
    for at in alike:
        known = bool((expected[at] > 0).all())
        off = off_trend(layers[at], variances[at] / expected[at] if known else variances[at])
        if not known:
            # attention averages unlike tokens away, and they are unlike in the first block alone
            early = (layers[at] == layers[at].min()) & np.isfinite(off)
            off = np.where(early, np.maximum(off, 0.0), off)
        offs[at], blocks[at] = off, len(at)
    return rows.assign(off=offs)[[place for at in alike for place in at if blocks[place] > 3]]


@rule(
    code="RES004",
    question="Depth",
    measures="variance of a block's write ÷ a power law of the block's number, fitted robustly to the same module of "
    "all blocks; both relative to the closed form where there is one",
    needs="a residual stream of four blocks or more",
    limits={"factor": 8.0},
    unit="× the other blocks' trend",
    limit="between ÷{factor} and ×{factor}",
    basis="heuristic",
    why="Blocks of one stack that are drawn alike write alike. One that doesn't was drawn, scaled or wired "
    "differently, and a single large write sets the scale of everything after it.",
    advice="Compare the block's weights with its neighbours'.",
    false_alarms="Dense blocks among expert ones. A first block whose attention averages unlike tokens writes up to "
    "30× less than later ones; so without a closed form it is judged only for writing more, or nothing.",
    source="trend: Theil-Sen on ln variance over ln(block + 1)",
    since="0.1.0",
    evidence="branches",
    measure=measure_spike,
)
def single_layer_spike(case: Case, rows: Rows) -> Finding:
    """Judge the write farthest from its trend; 0 counts as one when the others write."""
    beyond = np.abs(rows["off"]) > math.log(case.limits["factor"])
    worst = rows[largest(np.abs(rows["off"]))]
    factor = math.exp(float(worst["off"]))
    common = {"measured": factor, "site": str(worst["site"])}
    if not beyond.any():
        return case.passed("No block writes much more or less than the trend over the blocks says", **common)
    layer = int(worst["layer"])
    return case.failed(
        f"Block {layer} of {int(worst['n_layer'])} ({worst['module']}) writes {trimmed(factor, 2)}× the variance that "
        f"the other blocks' trend suggests{size(worst, rows)}",
        severity="warning",
        effect=min(abs(float(worst["off"])), 1e6),
        advice=f"compare the weights of {worst['module']} with those of its neighbours, and how it is wired",
        layer_first=layer,
        layer_last=layer,
        **seeds(beyond, rows["seed"]),
        **common,
    )


def measure_absorbed(run: Run) -> Rows:
    """rms of every write that isn't exactly 0 ÷ rms of the stream it is added to, and the stream's dtype."""
    stream = recorded(run, "activation", *_ENTERED.values())
    stream = stream[(stream["rms"] > 0) & np.isfinite(stream["rms"])]
    stream = stream.grouped([*CELL, "layer", "site"], level=("rms", "mean"), dtype=("dtype", "first"))
    seen = set(stream["site"])
    if "resid_pre" not in seen:
        return Rows({})
    writes = recorded(run, "activation", *_ENTERED)
    writes = writes[(writes["rms"] > 0) & np.isfinite(writes["rms"])]
    of = {site: own if own in seen else "resid_pre" for site, own in _ENTERED.items()}
    entering = writes.assign(site=[of[site] for site in writes["site"]])
    own, entered = entering.matching(stream, "run_id", "layer", "site")
    ratio = writes["rms"][own] / stream["level"][entered]
    return writes[own].assign(ratio=ratio, dtype=stream["dtype"][entered])


@rule(
    code="RES005",
    question="Numerics",
    measures="smallest rms(write) / rms(stream it is added to), of writes that aren't exactly 0",
    needs="a residual stream",
    limits=_ABSORBED,
    unit="× the stream",
    limit="≥ {bfloat16} in bfloat16, ≥ {float16} in float16",
    basis="derived",
    why="A sum in bfloat16 keeps 8 bits: what is below 2^-8 of the stream is rounded away, so the branch neither says "
    "anything nor learns from what it says.",
    advice="Keep the stream in float32, or let the branch write more.",
    false_alarms="Streams kept in float32 (also under autocast) lose nothing: a note.",
    source="half a unit in the last place: eps(bfloat16) = 2^-7, eps(float16) = 2^-10",
    since="0.1.0",
    evidence="branches",
    measure=measure_absorbed,
)
def absorbed_branch(case: Case, rows: Rows) -> Finding:
    """Judge the smallest write, against the rounding of the stream's own dtype, or else of bfloat16."""
    worst = rows[smallest(rows["ratio"])]
    dtype, ratio = str(worst["dtype"]), float(worst["ratio"])
    own = dtype in case.limits
    limit = case.limits[dtype if own else "bfloat16"]
    layer = int(worst["layer"])
    common = {"measured": ratio, "site": str(worst["site"]), "layer_first": layer}
    text = (
        f"The smallest write is {trimmed(ratio, 2)}× the stream it is added to, in rms ({worst['site']}, block {layer})"
    )
    if ratio >= limit:
        return case.passed(text, **common)
    return case.failed(
        text + ("" if own else f": harmless in {dtype}, lost in bfloat16"),
        severity="warning" if own else "info",
        effect=math.log(limit / ratio),
        advice="keep the residual stream in float32, or let the branch write more (std of its output projection)",
        **seeds(rows["ratio"] < limit, rows["seed"]),
        **common,
    )


def measure_growth(run: Run) -> Rows:
    """Variance of the last residual stream ÷ that of the embedding, per cell, now and at twice the depth.

    What further blocks would write is what the last quarter of them does, by the closed form where it knows the stream,
    else as measured. Beside it what the manifest has of output projections that aren't scaled by depth: their names and
    std, and by which recipe they are drawn so.
    """
    embed = recorded(run, "activation", "embed").grouped(["run_id"], var=("var", "mean"))
    begun = dict(zip(embed["run_id"], embed["var"], strict=True))
    stream = recorded(run, "activation", "resid_post")
    last = stream[stream["layer"] == stream["n_layer"] - 1].grouped(CELL, var=("var", "mean"))
    start = np.array([begun.get(run_id, math.nan) for run_id in last["run_id"]])
    further = {own["run_id"][0]: _further(own) for own in stream.parts("run_id")}
    init = run.manifest.get("init") or {}
    drawn = init.get("outputs") or {"names": [], "stds": [], "like": None, "so": False}
    scaled = set(normed_writes(run)["run_id"]) | _multiplied(run)
    names = listed(list(dict.fromkeys(map(in_block, drawn["names"]))))
    found = last.assign(
        growth=last["var"] / start,
        doubled=(last["var"] + np.array([further[run_id] for run_id in last["run_id"]])) / start,
        # a norm takes their scale away, a multiplier has the depth in it
        unscaled=["" if run_id in scaled else names for run_id in last["run_id"]],
        outputs=called(run, last, "the output projections", *OUTPUTS),
        table=called(run, last, "the embedding", Role.TOKEN_EMBED),
        stds=" to ".join(dict.fromkeys(trimmed(end(drawn["stds"]), 2) for end in (min, max) if drawn["stds"])),
        like=drawn["like"],
        so=drawn["so"],
        embed=math.sqrt(start[0]) if len(start) == 1 and start[0] > 0 else math.nan,
    )
    return found[np.isfinite(found["growth"])]


def _multiplied(run: Run) -> set[str]:
    """Models whose branches are multiplied with √(2/n_layer) or less as they are added (depth-muP, CompleteP)."""
    wiring = table_of(run, "wiring")
    wiring = wiring[~np.isnan(wiring["scale"])]
    small = wiring["scale"] <= 1.01 * np.sqrt(2 / np.maximum(wiring["n_layer"], 1)) * (wiring["n_layer"] > 2)
    return set(wiring["run_id"]) - set(wiring["run_id"][~small])


def _further(stream: Rows) -> float:
    """What as many blocks again would add, each as much as the last quarter does."""
    column = "expected_var" if (stream["expected_var"] > 0).all() else "var"
    by_block = stream.grouped(["layer"], var=(column, "mean"))["var"]
    blocks = int(stream["n_layer"][0])
    back = max(1, len(by_block) // 4)
    if len(by_block) <= back:
        return math.nan
    return max(0.0, (by_block[-1] - by_block[-1 - back]) / back * blocks)


@rule(
    code="RES006",
    question="Depth",
    measures="variance of the last residual stream ÷ variance of what enters the first block; and whether the output "
    "projections are as wide as the matrices that read the stream (std² above 1/√(2·n_layer) of theirs)",
    needs="a residual stream",
    limits={"factor": 1024.0, "added": 1.0, "unpublished": 8192.0},
    unit="× the embedding",
    limit="≤ {factor}; without depth scaling, blocks that add at most {added}; a warning above {unpublished}",
    basis="heuristic",
    why="What the head reads is then the blocks' writes, and hardly the token. Later blocks change the stream little, "
    "and gradients grow towards the embedding by about the same factor. Output projections that aren't scaled by depth "
    "make it worse with every block.",
    advice="divide the std of the output projections by √(2·n_layer), or draw the embedding with a larger std",
    false_alarms="GPT-2's own sizes grow 103× (124M) to 556× (1.5B) and train, so the limit is above them. Llama's "
    "0.02 without depth scaling passes it from width 768 on and is trained everywhere: a note where the model fits a "
    "recipe that models are trained from, or where its config names the std. Of other models it is a warning above "
    "8192×, which a 1/√fan_in draw (nanodo: 1600× at 12 × 256) stays below. Unscaled outputs under the limit are a "
    "note: width 128 lost 0.004, 0.044 and 0.085 nats by them at 6, 24 and 48 layers.",
    source="kernel theory of GPT-2's sizes; 540 runs of 300 steps at width 128; 28 of 150 steps at 6 × 64: with 20000× "
    "and more (all linears kaiming_uniform) the loss is 0.1 nats above GPT-2's init at either's better rate",
    since="0.1.0",
    evidence="residual",
    roles=OUTPUTS,
    measure=measure_growth,
)
def drowned_embedding(case: Case, rows: Rows) -> Finding:
    """Judge the cell whose stream grows most."""
    worst, limit = rows[largest(rows["growth"])], case.limits["factor"]
    growth, outputs, n_layer = float(worst["growth"]), str(worst["unscaled"]), int(worst["n_layer"])
    text = f"From embedding to last block the stream's variance grows {trimmed(growth)}×{size(worst, rows)}"
    unscaled = bool(outputs) and growth - 1 > case.limits["added"]
    if growth <= limit and not unscaled:
        return case.passed(text, measured=growth, site="resid_post")
    drowned = growth > limit
    text += f": the embedding is {trimmed(1 / growth, 1)} of what the head reads" if drowned else ""
    if unscaled:
        verb, them = ("aren't", "them") if " and " in outputs else ("isn't", "it")
        text += f"; {outputs} (std {worst['stds']}) {verb} scaled by depth"
        text += f", as {worst['like']} draws {them}" if worst["so"] else ""
        text += f", so that it would be {trimmed(float(worst['doubled']))}× at {2 * n_layer} layers"
    # of a model whose weights weren't described, as in a comparison of recipes, it isn't known what they are like
    unpublished = worst["like"] == "" and growth > case.limits["unpublished"]
    return case.failed(
        text,
        severity="warning" if unpublished else "info",
        measured=growth,
        site="resid_post",
        effect=math.log(growth / limit),
        advice=_advice(worst, drowned=drowned, unscaled=unscaled),
        **seeds(rows["growth"] > (limit if drowned else 1 + case.limits["added"]), rows["seed"]),
    )


def _advice(worst: Row, *, drowned: bool, unscaled: bool) -> str:
    advice = (
        f"divide the std of {worst['unscaled']} by √(2·{int(worst['n_layer'])}), as recipe='megatron' does"
        if unscaled
        else f"draw {worst['outputs']} with a smaller std"
    )
    if not drowned:
        return advice
    std = float(worst["embed"])
    return f"{advice}, or {worst['table']} with a larger one" + (
        "" if math.isnan(std) else f" (now std {trimmed(std)})"
    )


def measure_collapse(run: Run) -> Rows:
    """Mean cosine between positions in the last stream, and its closed form where there is one."""
    summary, wiring = table_of(run, "summary"), table_of(run, "wiring")
    after = wiring[wiring["sum_norm"].astype(bool)]["run_id"]
    rows = summary[~np.isnan(summary["token_cosine"])]
    return rows.assign(post_norm=rows.among("run_id", set(after)))


@rule(
    code="RES007",
    question="Depth",
    measures="mean cosine between two positions of a sequence, in the last residual stream",
    needs="a residual stream of shape (B, T, C)",
    limits={"cosine": 0.95, "excess": 0.2, "healthy": 0.7},
    unit="mean cosine",
    limit="≤ {cosine}, and at most {excess} above the closed form where there is one: a note up to {healthy}",
    basis="heuristic",
    why="Attention averages, so positions grow alike with depth. Where they are all the same, queries and keys get no "
    "gradient, and nothing that depends on the token reaches the head.",
    advice="scale the branches by depth, or let the embedding weigh more against what the blocks write",
    false_alarms="A text of few tokens is alike by itself, and so is what begins with a vector that all positions "
    "share (BERT's segments have 1/3). GPT-2's sizes have 0.48 (124M) to 0.70 (1.5B) by the closed form and train "
    "well, so the limit is far above.",
    source="Noci et al. 2022, 2206.03126",
    since="0.1.0",
    measure=measure_collapse,
)
def rank_collapse(case: Case, rows: Rows) -> Finding:
    """Judge the cell whose positions are most alike; beside it what the closed form expects."""
    cosine, expected = rows["token_cosine"], rows["expected_token_cosine"]
    bad = (cosine > case.limits["cosine"]) | (cosine > expected + case.limits["excess"])
    worst = rows[largest(np.where(bad, cosine, cosine - 2))]
    value, known = float(worst["token_cosine"]), float(worst["expected_token_cosine"])
    beside = "" if math.isnan(known) else f" (closed form {known:.2f})"
    text = f"Two positions of the last stream have a mean cosine of {value:.2f}{beside}{size(worst, rows)}"
    common = {"measured": value, "site": "resid_post"}
    if not bad.any():
        return case.passed(text, **common)
    alike = value > case.limits["healthy"]
    if alike and bool(worst["post_norm"]):
        text += "; its norms stand behind the sum (post-norm), which shrinks what is older at every branch"
        common["advice"] = (
            "put the norms before the branches (pre-norm, norm_first=True); or keep them and weigh the stream by "
            "depth, as DeepNet does (initlab recipes deepnorm)"
        )
    if not alike:
        common["advice"] = (
            "look for what the closed form doesn't know: a vector that all positions share, a wiring of its own"
        )
    return case.failed(
        f"{text}: {'the model hardly tells its tokens apart' if alike else 'more alike than the closed form has it'}",
        severity="warning" if alike else "info",
        effect=max(value - case.limits["cosine"], 0.0),
        **seeds(bad, rows["seed"]),
        **common,
    )
