"""What a model does with its input: which positions read which, and whether samples stay apart."""

from __future__ import annotations

import numpy as np

from initlab.judge import Severity
from initlab.judge.remedies import leave
from initlab.judge.rows import Rows
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.faults import Fault, verdict
from initlab.judge.rules.moving import measured_by, moves, percent, ratio, untold
from initlab.judge.words import trimmed
from initlab.schema import BATCH_AXIS, FIRST_AXIS, LABELS_IDS, LABELS_MADE

_NEEDS = "`initlab.probe` with stats='full', of a model that reads tokens"
_LIMITS = {"most": 1.0}
_LIMIT = "≤ {most}× what rounding moves"
_BASIS = (
    "Passes of one shape run the same kernels: what isn't read moves nothing. A share of 1e-5 of the output is left to "
    "transforms and experts that regroup sums, 3e-4 where numbers have 16 bits."
)
_TOLD = 500.0  # times the noise that what should move has to move, before that something else doesn't says anything


@rule(
    code="BEH001",
    question="Behaviour",
    measures="how far the output of earlier positions moves when a token is changed, relative to itself",
    needs=f"{_NEEDS}, and a loss over next tokens",
    limits=_LIMITS,
    unit="× rounding",
    limit=f"{_LIMIT}; a note where neither class nor mask nor positions that stay nor the caller's targets say that it "
    "is to be causal",
    basis="derived",
    why="An output that reads the token it has to predict copies it: the loss falls to nothing in training, and what "
    "is learned can't generate. " + _BASIS,
    advice="look for a mask that is off by one (torch.triu(…, 1) hides, torch.tril(…, 0) shows), and for what mixes "
    "positions beside attention: a norm, mean or softmax over the sequence's dimension, a convolution that isn't "
    "padded on the left alone, a reshape where a transpose belongs",
    false_alarms="Masked and diffusion models whose class doesn't say so: a note. Experts that choose their tokens "
    "read later ones, and so may experts that are full: a note.",
    source="Vaswani et al. 2017, section 3.2.3; Zhou et al. 2022, 2202.09368, section 5, for experts' choice",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measured_by("later", "What moves before a changed token; attentions without a mask are left to WIR005."),
)
def reads_later_tokens(case: Case, rows: Rows) -> Finding:
    """Judge models that are measured on next tokens, but those whose class says that they are trained on others."""
    own = rows[((rows["targets"] == "next-token") | (rows["aim"] == "next-token")) & (rows["aim"] != "else")]
    if own.empty:
        return case.not_applicable(f"Needs {case.rule.needs}")
    own = own[own["open"] == 0]
    if own.empty:
        return case.not_applicable("Attention sees later positions: WIR005 judges that")
    if unknown := untold(case, own):
        return unknown
    faults = []
    for row in own:
        if not moves(row, case.limits["most"]):
            continue
        sure = row["aim"] == "next-token" or row["masked"] > 0 or row["share"] < 1 or row["asks"]
        severity: Severity = "error" if sure and row["routed"] != 1 else "info"
        text = f"The output of earlier positions moves by {percent(row['value'])} when a later token changes"
        text += f" ({row['where']})"
        text += ", although attention is masked" if row["masked"] > 0 else ""
        advice = case.rule.advice
        advice += "" if sure else "; a model that is trained on masked tokens is right as it is"
        faults.append(Fault(str(row["run_id"]), text, advice, severity, site="logits", measured=ratio(row)))
    if not faults and not (own["scale"] > own["noise"]).any():
        return case.not_applicable("It couldn't be told: a changed token moves no other position at all")
    return verdict(case, own, faults, "No output moves when a later token changes")


@rule(
    code="BEH002",
    question="Behaviour",
    measures="how far the output of the last position moves when the tokens before it are turned round",
    needs=_NEEDS,
    limits=_LIMITS,
    unit="× rounding",
    limit="> {most}× what rounding moves, where other tokens in their place move it 500 times as far or more",
    basis="derived",
    why="A model that gives the same for every order of what it reads has a bag of words: its positions are added to "
    "nothing, are zero, or the same everywhere.",
    advice="follow the positions from where they are made to where they should act",
    false_alarms="One block of causal attention without positions; models of sets. Stacks that are wired without "
    "positions at all are left to WIR008.",
    source="Kazemnejad et al. 2023, 2305.19466: a causal mask tells order from the second block on",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measured_by("order", "What the last position makes of those before it in another order."),
)
def order_without_effect(case: Case, rows: Rows) -> Finding:
    """Judge models whose last position reads other tokens at all."""
    own = rows[rows["placed"]]
    if own.empty:
        return case.not_applicable("Nothing tells positions apart in the wiring: WIR008 judges that")
    if unknown := untold(case, own):
        return unknown
    told = own[own["scale"] > _TOLD * own["noise"]]
    if told.empty:
        return case.not_applicable("It couldn't be told: other tokens before it hardly move the last position")
    text = "The output of the last position is the same in whichever order the tokens before it stand"
    faults = [
        Fault(str(row["run_id"]), text, case.rule.advice, "warning", site="embed", measured=ratio(row))
        for row in told
        if not moves(row, case.limits["most"])
    ]
    return verdict(case, told, faults, "The order of what is read has an effect")


@rule(
    code="BEH003",
    question="Behaviour",
    measures="how far the output of one sample moves when another one in the batch is changed",
    needs="`initlab.probe` with stats='full', of a batch of two samples or more",
    limits=_LIMITS,
    unit="× rounding",
    limit=f"{_LIMIT}; an error where attention sees the batch in place of the sequence",
    basis="derived",
    why="What a sample gives must not depend on who is beside it: in generation nobody is. " + _BASIS,
    advice="look for attention over the batch (batch_first=True forgotten), a reshape that mixes batch and heads, a "
    "mean or norm over the batch",
    false_alarms="BatchNorm in training, in models without tokens: passes. Experts that may be full: a note. A model "
    "that takes (T, B) and was measured on ids (B, T) alone: a note, pass batch= in its order.",
    source="torch.nn.MultiheadAttention, batch_first; Ioffe & Szegedy 2015, 1502.03167",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measured_by("samples", "What moves in one sample when a token of another changes."),
)
def samples_not_independent(case: Case, rows: Rows) -> Finding:
    """Judge every model that was run on two samples."""
    if unknown := untold(case, rows):
        return unknown
    faults = []
    for row in rows:
        where = row["where"]
        over = where not in ("", FIRST_AXIS, BATCH_AXIS)
        if not moves(row, case.limits["most"]) or (over and row["targets"] != "next-token"):
            continue
        text = f"The output of one sample moves by {percent(row['value'])} when another one in the batch changes"
        advice = case.rule.advice
        severity: Severity = "info" if row["routed"] == 1 else "warning"
        if not over and where:
            text += ", and nothing moves along the sequence: the first axis is read as the sequence"
            advice = "set batch_first=True, or where the model is meant to take (T, B), pass batch= in that order"
            severity = "info" if where == FIRST_AXIS else "error"
        elif where:
            text += f": {where} {'normalise' if ',' in where else 'normalises'} over the batch"
            advice = f"put LayerNorm or RMSNorm in the place of {where}"
        elif row["routed"] == 1:
            text += "; experts that are full, or chosen over the batch, do that"
        faults.append(Fault(str(row["run_id"]), text, advice, severity, site="logits", measured=ratio(row)))
    return verdict(case, rows, faults, "Samples of a batch don't depend on each other")


@rule(
    code="BEH004",
    question="Behaviour",
    measures="how many places after the token that is read its target stands, by the model's own loss",
    needs="`initlab.probe` with stats='full', and a loss over next tokens that the model takes itself, or the caller's "
    "targets",
    unit="places",
    limit="one; a note, or nothing, where the labels were made by the probe",
    basis="derived",
    why="A model that is asked for the token it is given learns to copy it: the loss falls fast, to nothing, and the "
    "model generates one token for ever. Two places on, it never learns the next one.",
    advice="shift once: logits[:, :-1] against ids[:, 1:]",
    false_alarms="Models that are trained on their own input on purpose (masked ones whose class doesn't say so), and "
    "on tokens further on. Bart's decoder takes labels that are shifted before: a note.",
    source="transformers, ForCausalLMLoss, which shifts; nanoGPT train.py, get_batch, which has shifted",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measured_by("targets", "Which shift of the ids gives the model's own loss, to 2e-6 of it."),
)
def target_not_next_token(case: Case, rows: Rows) -> Finding:
    """Judge models whose loss is that of one shift and no other; labels of the probe's say nothing of the user's."""
    if unknown := untold(case, rows):
        return unknown
    made, ids = rows["where"] == LABELS_MADE, rows["where"] == LABELS_IDS
    # labels of the probe's: of the ids, or of the next ones, of which a model that shifts by itself takes one further
    told = rows[(rows["value"] <= 0) | ~(made | ids) | (rows["value"] > np.where(made, 2, 1))]
    if told.empty:
        does = "shifts" if (rows["value"] > (rows["where"] == LABELS_MADE)).any() else "doesn't shift"
        text = f"Labels were made by the probe: whether yours are shifted can't be seen; the model {does} them itself"
        return case.not_applicable(text)
    faults = []
    for row in told:
        if row["value"] == 1 or (row["value"] > 1 and not row["where"]):  # trained on tokens further on
            continue
        by = f" (with {row['where']})" if row["where"] else ""
        severity: Severity = "error"
        if row["value"] == 0:
            text, advice = f"The loss asks for the token that is read, not for the next one{by}", case.rule.advice
            if row["where"] == LABELS_IDS:  # it may be meant for labels that are shifted before
                severity, advice = "info", f"{advice}, unless the labels that it is given are shifted before"
        elif row["value"] < 0:
            text, advice = f"The loss asks for the token before the one that is read{by}", case.rule.advice
        else:
            text = f"The loss asks for the token {trimmed(row['value'])} places on, not for the next one{by}"
            advice = "shift once, and by one: in the batch or in the model, not in both"
        faults.append(Fault(str(row["run_id"]), text, advice, severity, site="logits", measured=float(row["value"])))
    return verdict(case, told, faults, "The loss asks for the next token")


@rule(
    code="BEH005",
    question="Behaviour",
    measures="how far the outputs of two passes in eval differ that draw from other seeds",
    needs="`initlab.probe` with stats='full'",
    limits=_LIMITS,
    unit="× rounding",
    limit=f"{_LIMIT}; a note where it isn't dropout",
    basis="derived",
    why="In eval dropout is off, so that what is generated and reported is the model's and not chance's.",
    advice="F.dropout(x, p, training=self.training), dropout_p=self.p if self.training else 0.0",
    false_alarms="Models that draw on purpose (noise of a diffusion model or an autoencoder, masks, hashes): a note.",
    source="torch.nn.functional.dropout, whose training is True by default",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measured_by("random", "What moves in eval between two passes from other seeds."),
)
def random_in_eval(case: Case, rows: Rows) -> Finding:
    """Judge every model that was run."""
    if unknown := untold(case, rows):
        return unknown
    faults = []
    for row in rows:
        if not moves(row, case.limits["most"]):
            continue
        text = f"Two passes in eval differ by {percent(row['value'])}"
        severity: Severity = "warning" if row["where"] else "info"
        text += f": dropout is in force in {row['where']}" if row["where"] else ": the model draws at random"
        advice = case.rule.advice if row["where"] else "draw only where self.training, unless chance is meant"
        faults.append(Fault(str(row["run_id"]), text, advice, severity, measured=ratio(row)))
    return verdict(case, rows, faults, "Passes in eval are all the same")


@rule(
    code="BEH006",
    question="Behaviour",
    measures="how far the output of the stillest position that a mask leaves moves when tokens that it hides change",
    needs=f"{_NEEDS} and takes attention_mask or key_padding_mask",
    limits={"most": 0.5},
    unit="× as far",
    limit="≤ {most}× as far as where nothing hides them",
    basis="heuristic",
    why="Sequences of a batch are padded to one length. A model that reads the padding gives another answer to the "
    "same text in another batch.",
    advice="add the mask to the scores before the softmax: -inf where it hides a key",
    false_alarms="Models that are only ever padded on the right under a causal mask. Recurrent ones: a note. What is "
    "read otherwise than by attention (convolutions, landmarks, pooling) moves some, which passes.",
    source="transformers, attention_mask: 1 keeps; torch.nn.MultiheadAttention, key_padding_mask: True hides",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measured_by("padding", "What moves behind the first quarter of a sequence when it is hidden, and changed."),
)
def padding_mask_ignored(case: Case, rows: Rows) -> Finding:
    """Judge models whose open positions read the tokens that are hidden here, where nothing hides them."""
    if unknown := untold(case, rows):
        return unknown
    told = rows[rows["scale"] > rows["noise"]]
    if told.empty:
        return case.not_applicable("It couldn't be told: positions don't read each other")
    faults = []
    for row in told:
        share = float(row["value"] / row["scale"])
        if not moves(row, 1.0) or share <= case.limits["most"]:
            continue
        text = f"Tokens that {row['where']} hides move the output of others by {percent(row['value'])}"
        text += f"; by {percent(row['scale'])} where nothing hides them"
        severity: Severity = "warning" if row["open"] or row["masked"] else "info"
        faults.append(Fault(str(row["run_id"]), text, case.rule.advice, severity, site="attn", measured=share))
    return verdict(case, told, faults, "What a padding mask hides isn't read")


@rule(
    code="BEH007",
    question="Behaviour",
    measures="how far the output of later positions moves when a token is changed",
    needs=_NEEDS,
    limits=_LIMITS,
    unit="× rounding",
    limit="> {most}× what rounding moves",
    basis="derived",
    why="A model in which nothing reaches the positions behind a token predicts from one token alone, however deep it "
    "is: attention runs over heads, features or the batch, or its mask is the wrong way round.",
    advice="look at the shapes that enter attention: (B, n_head, T, head_size), of which T is the last but one",
    false_alarms="none known; models without attention are judged only where their class says next tokens.",
    source="torch.nn.functional.scaled_dot_product_attention, whose sequence is the last dimension but one",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measured_by("context", "What moves behind a changed token."),
)
def context_not_read(case: Case, rows: Rows) -> Finding:
    """Judge models of tokens; those that read the first axis as the sequence are BEH003's."""
    if unknown := untold(case, rows):
        return unknown
    text = "No output moves when a token before it changes: nothing of the context is read"
    faults = []
    own = rows[
        (rows["open"] > 0) | (rows["masked"] > 0) | (rows["aim"] == "next-token") | (rows["value"] > rows["noise"])
    ]
    if own.empty:
        return case.not_applicable("Nothing of the context is read, and no attention was found that would")
    own = own[own["where"] == ""]
    if own.empty:
        return case.not_applicable("Samples of the batch are read in place of the sequence: BEH003 judges that")
    own = own[own["scale"] > _TOLD * own["noise"]]
    if own.empty:
        return case.not_applicable("It couldn't be told: a token hardly moves its own output")
    for row in own:
        if moves(row, case.limits["most"]):
            continue
        faults.append(Fault(str(row["run_id"]), text, case.rule.advice, "error", site="logits", measured=ratio(row)))
    return verdict(case, own, faults, "Positions read those before them")


@rule(
    code="BEH008",
    question="Behaviour",
    measures="how far the outputs of two equal sequences in one batch differ",
    needs=f"{_NEEDS} and draws nothing at random",
    limits=_LIMITS,
    unit="× rounding",
    limit=_LIMIT,
    basis="derived",
    why="The same text gives the same wherever it stands in a batch. Where it doesn't, something is added, or looked "
    "up, by the number of the sample: mostly positions along the wrong axis.",
    advice="look at the shape of what is added to the embedding: positions are (1, T, C), along the second axis",
    false_alarms="Experts that may be full: a note.",
    source="torch's tutorial on language models, whose positions are (T, 1, C) for sequences along the first axis",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measured_by("rows", "How far two equal sequences of one batch differ."),
)
def rows_told_apart(case: Case, rows: Rows) -> Finding:
    """Judge models that were run on the same sequence twice in one batch."""
    if unknown := untold(case, rows):
        return unknown
    faults = []
    for row in rows:
        if not moves(row, case.limits["most"]):
            continue
        text = f"The same sequence twice in a batch gives outputs that differ by {percent(row['value'])}"
        severity: Severity = "info" if row["routed"] == 1 else "warning"
        faults.append(Fault(str(row["run_id"]), text, case.rule.advice, severity, site="embed", measured=ratio(row)))
    return verdict(case, rows, faults, "The same sequence gives the same in every row")
