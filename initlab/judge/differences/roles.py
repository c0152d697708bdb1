"""Differences of parameters in a screenful: those of a role that change alike, together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from initlab.judge.differences.pairing import Held
from initlab.judge.differences.parameters import ERRORS, distribution, log_of

COLUMNS = (
    *("role", "differs", "n", "of", "std_a", "std_a_max", "std_b", "std_b_max", "ratio", "what", "details", "names"),
)
_LAW = 0.01  # of a logarithm: sizes are rounded


def roles(rows: pd.DataFrame) -> pd.DataFrame:
    """Make a row for each role and kind of change.

    Columns: role; differs; n (parameters that change so) and of (those of the role in either); std_a and std_b, the
    least and with `_max` the largest; ratio (geometric mean); what, as in `parameters`; details (phrases, each once);
    names (B's, or A's of what B hasn't).

    Args:
        rows: of `parameters`.
    """
    total = rows["role"].value_counts().to_dict()
    groups: dict[tuple[str, str], list[int]] = {}
    for at, (role, what) in enumerate(zip(rows["role"], rows["what"], strict=True)):
        groups.setdefault((str(role), str(what)), []).append(at)
    found = []
    for (role, what), places in groups.items():
        own = rows.iloc[places]
        ratios = own["ratio"].to_numpy(float)
        known = ratios[(ratios > 0) & np.isfinite(ratios)]
        mean = math.exp(float(np.log(known).mean())) if len(known) == len(ratios) else float(ratios[0])
        found.append(
            (
                *(role, bool(what), len(own), int(total[role])),
                *(float(own[f"std_{side}"].agg(how)) for side in ("a", "b") for how in ("min", "max")),
                *(mean, what, list(dict.fromkeys(filter(None, own["detail"])))),
                [b or a for a, b in zip(own["name_a"], own["name_b"], strict=True)],
            )
        )
    return pd.DataFrame(found, columns=list(COLUMNS))


def stretched(a: Sequence[Held], b: Sequence[Held], size_a: tuple[int, int], size_b: tuple[int, int]) -> pd.DataFrame:
    """Make the same rows of models of different sizes, whose parameters can't be matched: one for each role.

    A std that goes with depth or width as a published law has it (1/√n_layer, 1/√n_embd, 1/n_embd) is said to.

    Args:
        a: parameters of one model.
        b: of the other.
        size_a: blocks and width of the one.
        size_b: of the other.
    """
    depth, width = (x / y if y else 1.0 for x, y in zip(size_a, size_b, strict=True))
    laws = {
        "1/√n_layer": depth**0.5,
        "1/√n_embd": width**0.5,
        "1/n_embd": width,
        "1/√(n_layer·n_embd)": (depth * width) ** 0.5,
    }
    order = list(dict.fromkeys(one.role for one in (*a, *b)))
    found = []
    for role in order:
        sides = [[one for one in side if one.role == role] for side in (a, b)]
        stds = [[one.std for one in side] or [math.nan] for side in sides]
        pooled = [math.sqrt(float(np.mean(np.square(each)))) for each in stds]
        what, details = [], []
        ratio = pooled[1] / pooled[0] if pooled[0] > 0 else 1.0 if pooled[0] == pooled[1] else math.inf
        if not sides[0] or not sides[1]:
            what = [f"only in {'A' if sides[0] else 'B'}"]
        else:
            numbers = [sum(one.numel * one.draws for one in side) for side in sides]
            error = ERRORS * math.sqrt(sum(1 / (2 * n) for n in numbers))
            if abs(log_of(ratio)) > error:
                what.append("std")
                met = [law for law, by in laws.items() if by != 1 and abs(log_of(ratio) - math.log(by)) <= error + _LAW]
                details += [f"goes as {law}" for law in met[:1]]
            kinds = [sorted({distribution(one) for one in side} - {""}) for side in sides]
            if all(kinds) and kinds[0] != kinds[1]:
                what.append("distribution")
                details.append(f"{' or '.join(kinds[0])} → {' or '.join(kinds[1])}")
        count = len(sides[1] or sides[0])
        names = [one.name for one in sides[1] or sides[0]]
        spans = [value for each in stds for value in (min(each), max(each))]
        found.append((role, bool(what), count, count, *spans, ratio, ", ".join(what), details, names))
    return pd.DataFrame(found, columns=list(COLUMNS))
