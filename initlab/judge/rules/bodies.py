"""What single branches compute: masks, scales, positions and nonlinearities as the pass showed them."""

from __future__ import annotations

import math

import numpy as np

from initlab.judge import Severity
from initlab.judge.remedies import leave
from initlab.judge.rows import Rows, largest
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import heads_of, recorded, table_of
from initlab.judge.rules.faults import Fault, anywhere, inside, layers_of, measure_wiring, stacks, verdict
from initlab.judge.words import listed, plural, trimmed
from initlab.rundir import Run

_ATTENTION = "an attention that was understood"


def _modules(rows: Rows) -> str:
    """`layers.N.attention` of the attentions of all blocks, or the names of a few."""
    names = list(dict.fromkeys(rows["inside"]))
    return names[0] if len(names) == 1 else listed(list(dict.fromkeys(anywhere(name) for name in names)))


@rule(
    code="WIR005",
    question="Wiring",
    measures="whether a position's attention sees later ones, in the stack that gives the logits of next tokens",
    needs=f"{_ATTENTION}, and a loss over next tokens",
    unit="attentions",
    limit="none that sees later ones; an error where the class says next tokens, or others of the stack are masked",
    basis="derived",
    why="The next token is the next position's input: an attention that sees it copies the answer. The loss falls to "
    "nothing in training and what is learned can't generate.",
    advice="give the attention a causal mask",
    false_alarms="Masked and diffusion models whose class doesn't say so, measured on next tokens for want of their "
    "own targets: pass batch=(ids, targets) under the names that they have in training, or ignore it.",
    source="Vaswani et al. 2017, section 3.2.3",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measure_wiring,
)
def sees_later_positions(case: Case, rows: Rows) -> Finding:
    """Judge the last stack of each model, unless its class says that it is trained on something else."""
    own = own_attentions(last_stacks(rows))
    own = own[((own["targets"] == "next-token") | (own["aim"] == "next-token")) & (own["aim"] != "else")]
    if own.empty:
        return case.not_applicable(f"Needs {case.rule.needs}")
    faults = []
    for run_id, stack in stacks(own):
        open_ones = stack[stack["causal"] == 0]
        if open_ones.empty:
            continue
        declared = (stack["aim"] == "next-token").any()
        severity: Severity = "error" if declared or len(open_ones) < len(stack) else "warning"
        name = _modules(open_ones)
        where = plural(len(set(open_ones["layer"])), "block")
        text = f"Attention sees later positions in {where} ({name}): among what it reads is the token to predict"
        advice = f"give {name} a causal mask: is_causal=True, or -inf for the scores of later positions"
        advice += "" if severity == "error" else "; a model that is trained on masked tokens is right as it is"
        faults.append(Fault(run_id, text, advice, severity, layers_of(open_ones), "attn_pattern"))
    return verdict(case, own, faults, "No attention sees later positions")


@rule(
    code="WIR006",
    question="Wiring",
    measures="MLPs, experts of a mixture among them, whose activation is the identity",
    needs="an MLP that was understood",
    unit="MLPs",
    limit="none",
    basis="derived",
    why="Two matrices in a row are one: an MLP without a nonlinearity adds parameters and no function. With a gate it "
    "is a product of two linear maps: a function, but not the one that SwiGLU's or GEGLU's name promises.",
    advice="put an activation between the MLP's matrices",
    false_alarms="A gated MLP without an activation is bilinear, which trains about as well (Shazeer 2020): few mean "
    "it, and it is what is left of a SwiGLU that lost its activation.",
    source="Shazeer 2020, 2002.05202, table 1",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measure_wiring,
)
def linear_mlp(case: Case, rows: Rows) -> Finding:
    """Judge every MLP of every stack."""
    own = rows[(rows["kind"] == "mlp") | ((rows["kind"] == "experts") & (rows["activation"] != ""))]
    if own.empty:
        return case.not_applicable(f"Needs {case.rule.needs}")
    faults = []
    for run_id, stack in stacks(own[own["activation"] == "identity"]):
        for some in stack.parts("gated", sort=True):
            name, where = _modules(some), plural(len(set(some["layer"])), "block")
            it = "An expert" if (some["kind"] == "experts").all() else "The MLP"
            if some["gated"][0]:
                text = f"{it} has a gate and no activation in {where} ({name}): a bilinear one"
                advice = f"put the activation (SiLU, GELU) on the gate of {name}, unless it is meant to be bilinear: "
                advice += "then ignore WIR006"
            else:
                text = f"{it} has no nonlinearity in {where} ({name}): its two matrices are one linear map"
                advice = f"put an activation (GELU, SiLU) between the matrices of {name}"
            faults.append(Fault(run_id, text, advice, "warning", layers_of(some), "mlp_act"))
    return verdict(case, own, faults, "Every MLP that was understood has a nonlinearity")


def measure_scores(run: Run) -> Rows:
    """Per attention without QK-norm and soft cap: its scale × √head_size, std of its logits, rms of queries ÷ keys.

    Not of recipes whose own wiring has a factor for it.
    """
    rows = table_of(run, "wiring")
    rows = rows[(rows["kind"] == "attention") & (rows["qk_norm"] == "") & np.isnan(rows["soft_cap"])]
    meant = [
        recipe
        for recipe, told in (run.manifest.get("recipes") or {}).items()
        if any("attention_multiplier" in each.get("options", {}) for each in told.get("wiring") or ())
    ]
    rows = rows[~rows.among("recipe", meant)]
    weights = recorded(run, "weight")
    rms = dict(zip(zip(weights["run_id"], weights["module"], strict=True), weights["rms"].tolist(), strict=True))
    heads = heads_of(run).grouped(["run_id", "layer"], std=("logit_std", "max"))
    std = dict(zip(zip(heads["run_id"], heads["layer"], strict=True), heads["std"].tolist(), strict=True))
    share = [
        rms.get((cell, query), math.nan) / (rms.get((cell, key)) or math.nan) if query != key else 1.0
        for cell, query, key in zip(rows["run_id"], rows["query"], rows["key"], strict=True)
    ]
    return rows.assign(
        inside=inside(rows),
        relative=rows["score_scale"] * rows["head_size"] ** 0.5,
        share=share,
        std=[std.get(place, math.nan) for place in zip(rows["run_id"], rows["layer"], strict=True)],
    )


@rule(
    code="WIR007",
    question="Attention",
    measures="what q·k is multiplied with before the softmax × √head_size, where no norm or cap bounds the scores",
    needs=f"{_ATTENTION}, without QK-norm",
    limits={"off": 1.02, "std": 1.2, "drawn": 1.3},
    unit="× 1/√head_size",
    limit="within {off}×; a note, and a warning where the logits' std is above {std} or the factor is 1/√n_embd; none "
    "where the queries are drawn smaller instead, to within {drawn}×",
    basis="paper",
    why="q·k is a sum over head_size products. Without the factor its std grows as √head_size, and the softmax with it "
    "saturates as soon as queries and keys learn. With 1/√n_embd, the width of all heads in place of one's, it is "
    "√n_head times flatter than meant.",
    advice="multiply q·k with 1/√head_size",
    false_alarms="1/head_size is muP's (not held against recipes that wire it), GPT-Neo has none, and a multiplier may "
    "be meant: a note. Where it is 1/√n_embd "
    "as well, the note stays one. T5 draws its queries smaller instead.",
    source="Vaswani et al. 2017, section 3.2.1; Yang et al. 2022, 2203.03466, for 1/head_size",
    since="0.1.0",
    evidence="attention",
    remedy=leave,
    measure=measure_scores,
)
def unusual_score_scale(case: Case, rows: Rows) -> Finding:
    """Judge the attentions of each model together, by the one whose scale is farthest off."""
    off, steep, drawn = (math.log(case.limits[name]) for name in ("off", "std", "drawn"))
    faults = []
    for run_id, stack in stacks(rows[rows["relative"] > 0]):
        away = np.log(stack["relative"])
        folded = np.abs(away + np.where(stack["share"] > 0, np.log(stack["share"]), math.inf)) <= drawn
        odd = stack[(np.abs(away) > off) & ~(folded & (np.abs(away) > drawn))]
        if odd.empty:
            continue
        worst = odd[largest(np.abs(np.log(odd["relative"])))]
        size, scale, std = int(worst["head_size"]), float(worst["score_scale"]), float(np.fmax.reduce(odd["std"]))
        large = worst["relative"] > 1
        name = _modules(odd)
        usual = f"1/√head_size = {trimmed(size**-0.5)}"
        text = f"q·k is multiplied with {trimmed(scale)} in {name}, {trimmed(worst['relative'])}× the usual {usual}"
        text += "" if math.isnan(std) else f"; std of its logits {trimmed(std, 2)}"
        advice = f"scale the scores of {name} by 1/√{size} = {trimmed(size**-0.5)}, unless the factor is meant"
        severity: Severity = "warning" if large and std > 0 and math.log(std) > steep else "info"
        width = int(worst["n_embd"])
        if abs(scale * size - 1) < 0.02:
            text, advice = f"{text}: it is 1/head_size, as muP has it", f"{advice} (1/d, as in muP)"
        elif width > size and abs(scale * math.sqrt(width) - 1) < 0.01:
            severity = "warning"
            text += f": it is 1/√{width}, the model's width in place of a head's"
            advice = f"scale the scores of {name} by 1/√{size} = {trimmed(size**-0.5)}, not by 1/√n_embd"
        faults.append(Fault(run_id, text, advice, severity, layers_of(odd), "attn_logits", float(worst["relative"])))
    return verdict(case, rows, faults, "The scores are scaled by 1/√head_size, or drawn as if they were")


def last_stacks(rows: Rows) -> Rows:
    """Pick the last stack of each model.

    Args:
        rows: of the table `wiring`.
    """
    last = rows.grouped(["run_id"], stack=("stack", "max"))
    return rows[rows.matching(last, "run_id", "stack")[0]]


def own_attentions(rows: Rows) -> Rows:
    """Pick the attentions that read what they write to.

    Args:
        rows: of the table `wiring`.
    """
    return rows[(rows["kind"] == "attention") & np.isnan(rows["cross"])]


def told_apart(stack: Rows) -> bool | None:
    """Tell whether anything tells the positions of a stack apart; None where a branch isn't understood.

    Args:
        stack: its rows of the table `wiring`.
    """
    own = own_attentions(stack)
    other = ~stack.among("kind", ("attention", "mlp"))
    # beside attention it is an MLP or a mixture; without, it may mix positions: a convolution, a state space
    mixing = (stack["site"] != "mlp_out") | ~stack.among("layer", own["layer"])
    if (other & mixing).any() or own.empty:
        return None
    return "position" in stack["terms"][0] or bool((own["rotary"] == 1).any() or (own["bias"] == 1).any())


@rule(
    code="WIR008",
    question="Wiring",
    measures="whether anything tells positions apart: a term of the embedding, rotation, a bias of the scores",
    needs=f"an embedding that is a sum of tables, and {_ATTENTION} in every block",
    unit="sources of position",
    limit="one or more; a note of a causal model with an option for positions that is off",
    basis="derived",
    why="Attention without positions reads a bag of words. Under a causal mask the number of visible keys still tells "
    "where a position is; without one nothing does.",
    advice="add a position embedding, or rotate queries and keys",
    false_alarms="Causal models without positions on purpose (NoPE), which few are, and which don't have an option for "
    "them that is None or False.",
    source="Kazemnejad et al. 2023, 2305.19466; Haviv et al. 2022, 2203.16634",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measure_wiring,
)
def no_positions(case: Case, rows: Rows) -> Finding:
    """Judge the stacks that read tokens, of which every branch but experts is understood."""
    faults, judged = [], False
    for run_id, stack in stacks(rows[["token" in terms for terms in rows["terms"]]]):
        own = own_attentions(stack)
        placed = told_apart(stack)
        judged = judged or placed is not None
        if placed is not False:
            continue
        name, causal = _modules(own), bool((own["causal"] == 1).all())
        text = f"Nothing tells positions apart: no position embedding, no rotation and no bias of the scores in {name}"
        text += "; only the causal mask does (NoPE)" if causal else ", so the model reads a bag of words"
        advice = f"rotate queries and keys in {name}, or add positions to the embedding"
        advice += ", unless it is meant to do without: then ignore WIR008" if causal else ""
        declared = own["placeless"][0] or ""
        text += f", as {declared} says" if declared else ""
        faults.append(
            Fault(run_id, text, advice, "info" if declared and causal else "warning", layers_of(own), "embed")
        )
    if not judged:
        return case.not_applicable(f"Needs {case.rule.needs}")
    return verdict(case, rows, faults, "Positions are told apart")


_AXES = (
    "Attention runs over heads in place of positions in {}: no position sees another",
    "transpose before the attention: view(B, T, n_head, head_size).transpose(1, 2)",
)
_JOINED = (
    "The heads' outputs are joined without being transposed back in {}: what a position gets is of several positions",
    "transpose before the reshape: y.transpose(1, 2).reshape(B, T, n_embd)",
)
_CUT = (
    "{} are cut into heads across positions in {}: a head's vector is a piece of another position",
    "cut the features alone: view(B, T, n_head, head_size).transpose(1, 2), not view(B, n_head, T, head_size)",
)


@rule(
    code="WIR009",
    question="Wiring",
    measures="whether heads are cut out of positions, and joined again, one position at a time",
    needs=f"{_ATTENTION}, of two heads or more",
    unit="attentions",
    limit="none in which positions are mixed by a reshape",
    basis="derived",
    why="A reshape of (batch, heads, positions, features) to (batch, positions, all features) without a transpose has "
    "the right shape and the wrong contents: each vector is of several positions. Under a causal mask later tokens "
    "leak; without one nothing shows but a worse model.",
    advice="move the dimension of the heads with transpose or permute before the reshape",
    false_alarms="Models that mix positions by a reshape on purpose, which none of transformers does. Reshapes that "
    "can't be followed from matrix to attention are passed over.",
    source="Vaswani et al. 2017, section 3.2.2: the heads of a position are concatenated",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measure_wiring,
)
def positions_crossed(case: Case, rows: Rows) -> Finding:
    """Judge every attention of two heads or more."""
    own = rows[(rows["kind"] == "attention") & (rows["n_head"] > 1)]
    if own.empty:
        return case.not_applicable(f"Needs {case.rule.needs}")
    faults = []
    for run_id, stack in stacks(own):
        for odd in stack[stack["crossed"] != ""].parts("crossed"):
            parts = odd["crossed"][0].split()
            name, cut = _modules(odd), [part for part in parts if part not in ("output", "positions")]
            said = [_AXES] if "positions" in parts else []
            said += [(_CUT[0].format(listed(cut).capitalize(), "{}"), _CUT[1])] if cut else []
            said += [_JOINED] if "output" in parts else []
            text = "; ".join(each.format(name) for each, _ in said)
            advice = f"in {name} " + "; ".join(each for _, each in said)
            faults.append(Fault(run_id, text, advice, "warning", layers_of(odd), "attn_z", float(len(odd))))
    return verdict(case, own, faults, "Heads are cut out of positions, and joined again, one position at a time")
