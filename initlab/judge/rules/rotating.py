"""Whether queries and keys are rotated by their position as rotary embeddings are."""

from __future__ import annotations

import numpy as np

from initlab.judge.remedies import leave
from initlab.judge.rows import Rows
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.faults import Fault, anywhere, layers_of, measure_wiring, stacks, verdict
from initlab.judge.words import listed
from initlab.rundir import Run

_SAID = {
    "queries": (
        "queries are rotated by their position, and keys aren't",
        "rotate the keys as well: a score then depends on how far apart two positions are",
    ),
    "keys": (
        "keys are rotated by their position, and queries aren't",
        "rotate the queries as well: a score then depends on how far apart two positions are",
    ),
    "values": (
        "values are rotated by their position, as queries and keys are",
        "rotate queries and keys alone: what is read then doesn't depend on where it stands",
    ),
    "uneven": (
        "the rotation isn't one: the score of two vectors depends on more than how far apart their positions are",
        "check the halves and signs: (x1·cos - x2·sin, x2·cos + x1·sin), with tables whose columns pair features as "
        "the rotation does (halves or neighbours)",
    ),
    "still": (
        "the rotation is the same at all positions, so that it changes nothing",
        "check along which dimension the tables run: positions, not heads or sequences",
    ),
}


def measure_rotations(run: Run) -> Rows:
    """The attentions of stacks that read tokens, which have one position each."""
    rows = measure_wiring(run)
    turned = rows["turned"].astype(bool)
    tokens = np.array(["token" in (terms or "") for terms in rows["terms"]], dtype=bool)
    return rows[((rows["kind"] == "attention") | turned) & tokens]


@rule(
    code="WIR010",
    question="Wiring",
    measures="whether queries and keys, and they alone, are rotated by their position, so that the cosine of two "
    "vectors that are alike everywhere depends on the distance of their positions alone",
    needs="a stream that begins with tokens, and attention whose queries and keys are understood",
    unit="attentions",
    limit="none rotated otherwise; cosines of one distance within 0.1 of the range of all",
    basis="derived",
    why="Rotary positions turn queries and keys by angles that grow with the position, so that their product knows the "
    "distance and nothing else. One that is left out, halves that are paired with the other layout's table, or a table "
    "along the heads still runs and trains, worse, and doesn't extend beyond the lengths that were trained on.",
    advice="rotate queries and keys alone, with tables of the positions' dimension",
    false_alarms="Models that rotate values on purpose, or by positions on a grid (images among tokens), or of packed "
    "documents that begin again at 0. Rotations in place, and behind a norm of the head, aren't followed.",
    source="Su et al. 2021, 2104.09864, section 3.2.2: the product is a function of m - n",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measure_rotations,
)
def rotated_otherwise(case: Case, rows: Rows) -> Finding:
    """Judge every attention."""
    faults = []
    for run_id, stack in stacks(rows):
        for odd in stack[stack["turned"].astype(bool)].parts("turned"):
            said = [_SAID[each] for each in str(odd["turned"][0]).split()]
            where = anywhere(odd["inside"][0])
            text = f"In {where} {'; '.join(text for text, _ in said)}"
            layers = layers_of(odd)
            advice = f"in {where}, {listed([advice for _, advice in said])}"
            faults.append(Fault(run_id, text, advice, "warning", layers, "attn_logits", float(len(odd))))
    return verdict(case, rows, faults, "If anything is rotated by its position, queries and keys are, and nothing else")
