"""Whether each matrix is a random draw of its own: copies, one parameter in several blocks, one direction alone."""

from __future__ import annotations

import math

import numpy as np

from initlab.judge import Severity
from initlab.judge.remedies import Change, Described, drawn, leave
from initlab.judge.rows import Rows
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import LARGE, blocks, family, large_rows, large_text, seeds, table_of
from initlab.judge.words import listed, plural, trimmed
from initlab.recipes import Role
from initlab.recipes.base import INNER, OUTPUTS
from initlab.rundir import Run

_NEEDS = "a model that was probed or compared before any step, with matrices that are drawn at random"
_TABLES = ("token_embed", "unembed")  # a few of whose rows may be alike on purpose: added tokens
_HALF = 0.5
_SEEN = 4.0  # stable rank of independent entries from which one direction can be told from several
_ROLES = (*INNER, *OUTPUTS, Role.ROUTER)


def measure_draws(run: Run) -> Rows:
    """Every matrix that is drawn at random, as the table `draws` has it."""
    rows = table_of(run, "draws")
    return rows[rows["role"] != Role.NORM_GAIN]


def draw_again(finding: Finding, model: Described) -> list[Change]:
    """Draw the matrices of the blocks anew, each by itself, as the reference draws them."""
    why = "each matrix gets a draw of its own"
    rows = [row for row in model.of(*_ROLES) if model.wanted(row)]
    return [drawn(row, list(row["stds"]), row["std"], finding, why, model) for row in rows if row["std_max"] > 0]


@rule(
    code="INI005",
    question="Init",
    measures="correlation of the first 256 numbers of a matrix with those of any other, scale and mean taken off; and "
    "the share of its rows or columns that repeat others bit by bit",
    needs=_NEEDS,
    limits={"likeness": 0.9, "share": 0.05},
    unit="correlation, share",
    limit="< {likeness} with any other matrix; < {share} of the rows or columns (half those of a table or head)",
    basis="derived",
    why="Independent draws correlate by about 1/√256. Blocks, heads or experts that begin alike compute the same and "
    "get nearly the same gradient, so they are slow to become different; a matrix made of k equal shards has a k-th of "
    "its rank. A block that is deep-copied does it, and a generator that is seeded anew for each matrix or rank.",
    advice="Draw every matrix by itself.",
    false_alarms="Experts and heads copied from one on purpose (upcycling). Identities, zeros, constants and patterns "
    "of few values are left out, and so are frozen weights, as of a second network that follows the first.",
    source="pytorch/pytorch#86274 (nn.TransformerEncoder), allenai/OLMo-core#307 (shards of one seed)",
    since="0.1.0",
    roles=_ROLES,
    remedy=draw_again,
    measure=measure_draws,
)
def same_draw_twice(case: Case, rows: Rows) -> Finding:
    """Judge every pair of matrices, and every matrix by itself."""
    least, share = case.limits["likeness"], case.limits["share"]
    like = rows["likeness"] >= least
    limit = np.where(rows.among("role", _TABLES), max(_HALF, share), share)
    copied = np.nan_to_num(np.fmax(rows["row_copies"], rows["column_copies"]))
    alike, inside = rows[like], rows[copied >= limit]
    if alike.empty and inside.empty:
        return case.passed(f"Each of {_matrices(len(rows))} is a draw of its own")
    said = [_between(group, rows) for group in alike.assign(kind=_kind(alike)).parts("kind")]
    said += _within(inside)
    bad = rows[[*np.flatnonzero(like), *np.flatnonzero(copied >= limit)]]
    names = list(dict.fromkeys(bad["module"]))
    return case.failed(
        "; ".join(said[:3]),
        severity="warning",
        site=str(bad["role"][0]),
        measured=float(alike["likeness"].max()) if len(alike) else float(copied.max()),
        effect=float(len(names)),
        advice=_advice(alike, inside),
        **blocks(bad["layer"]),
        **seeds(like | (copied >= limit), rows["seed"]),
    )


def _matrices(count: int) -> str:
    return "1 matrix" if count == 1 else f"{count} matrices"


def _kind(alike: Rows) -> list[str]:
    """What a matrix and the one it is like are to each other: blocks, experts of one tensor, or two others."""
    return [
        "experts" if own.partition("[")[0] == other.partition("[")[0] else "blocks" if same else "others"
        for own, other, same in zip(
            alike["module"], alike["like"], family(alike["module"]) == family(alike["like"]), strict=True
        )
    ]


def _between(group: Rows, rows: Rows) -> str:
    first = group[0]
    count, total = len(set(group["module"])), len(set(rows["module"]))
    text = f"{first['module']} is the same draw as {first['like']} (correlation {first['likeness']:.2f})"
    return text + (f", and so are {count - 1} more of {total} matrices copies of others" if count > 1 else "")


def _within(inside: Rows) -> list[str]:
    texts = []
    for each in inside.assign(family=family(inside["module"])).parts("family"):
        row, more = each[0], len(set(each["module"])) - 1
        what = "row" if row["row_copies"] >= row["column_copies"] else "column"
        count, share = int(row[f"{what}_blocks"]), row[f"{what}_copies"]
        if count > 1:
            size = row[f"{what}s"] // count
            text = (
                f"{row['module']} is made of {count} identical blocks of {plural(int(size), what)}, copies of one draw"
            )
        else:
            which = f"{what}s {row[f'{what}_which']}"
            text = f"{share:.0%} of the {what}s of {row['module']} are copies of others, the same draw again ({which})"
        texts.append(text + (f", and {more} like it" if more > 0 else ""))
    return texts


def _advice(alike: Rows, inside: Rows) -> str:
    parts = []
    if len(alike):
        kind, name, like = _kind(alike)[0], alike["module"][0], alike["like"][0]
        how = {
            "blocks": "build and initialise every block by itself (no copy.deepcopy of one that is drawn already)",
            "experts": "draw every expert by itself",
            "others": "seed once, before the first draw: they are copied, or seeded alike",
        }[kind]
        parts.append(f"{how}, so that {name} and {like} are independent draws")
    if len(inside):
        name = inside["module"][0]
        parts.append(
            f"draw {name} as a whole, or its heads and shards from different seeds (the rank among them): these are "
            "copied, or seeded alike"
        )
    return "; ".join(parts)


@rule(
    code="INI006",
    question="Init",
    measures="stable rank ||W||_F^2 / ||W||_2^2 by four steps of a power iteration on 256 rows and columns, whether "
    "all entries are equal, and the rms of a table's rows that stand out ÷ the others'",
    needs=_NEEDS,
    limits={"factor": 4.0, "rows": LARGE},
    unit="× below independent entries",
    limit="≥ n·m / (√n + √m)² / {factor}; no constant but 0; no rows of a table {rows}× as large as its others",
    basis="derived",
    why="Independent entries of an n × m matrix have a stable rank near n·m / (√n + √m)². A matrix of one direction "
    "passes on one number of what it reads: all units compute the same but for a factor, and get gradients that keep "
    "them so. A constant does it, a product of two vectors, entries whose mean isn't 0 (rand for randn), and rows that "
    "are drawn larger than the others, as a vocabulary's added ones at torch's std 1: few hold nearly all.",
    advice="Draw each entry of the matrix by itself, with mean 0.",
    false_alarms="None known: zeros, identities, orthogonal, sparse and low-rank pairs are above the limit, and so is "
    "a matrix of few rows. Trained weights aren't judged.",
    source="Marchenko and Pastur 1967, for the largest singular value √n + √m of independent entries",
    since="0.1.0",
    roles=_ROLES,
    remedy=draw_again,
    measure=measure_draws,
)
def one_direction(case: Case, rows: Rows) -> Finding:
    """Judge the matrix with the least rank beside what its size gives."""
    constant = ~np.isnan(rows["value"]) & (rows["value"] != 0)
    large = large_rows(rows, case.limits["rows"])
    low = (rows["stable_rank"] * case.limits["factor"] < rows["usual_rank"]) & (rows["usual_rank"] >= _SEEN)
    odd = constant | low | large
    bad = rows.assign(large=large, family=family(rows["module"]))[odd]
    if bad.empty:
        return case.passed(f"{_matrices(len(rows))} have the rank that independent entries give")
    said = []
    for each in bad.parts("family"):
        row, more = each[0], len(set(each["module"])) - 1
        if not math.isnan(row["value"]):
            text = f"every entry of {row['module']} is {trimmed(row['value'])}: rank 1, all its units are the same"
        elif row["large"]:
            text = large_text(row)
        else:
            rank, usual = trimmed(row["stable_rank"], 2), trimmed(row["usual_rank"], 2)
            text = f"{row['module']} has stable rank {rank}, independent entries give {usual}"
        said.append(text + (f" (and {more} like it)" if more > 0 else ""))
    first = bad[0]
    text = "; ".join(said[:3]) + (f"; and {len(said) - 3} more kinds" if len(said) > 3 else "")
    advice = f"draw {listed([str(each) for each in bad['module'][:2]])} entry by entry with mean 0 "
    advice += "(nn.init.normal_), not as a constant, a product of two vectors or torch.rand"
    if first["large"]:
        advice = f"draw {first['odd']} as the others, with std {trimmed(first['odd_rest'], 2)}"
    return case.failed(
        text[0].upper() + text[1:] if first["large"] else text,
        severity="warning",
        site=str(first["role"]),
        measured=1.0 if not math.isnan(first["value"]) else float(first["stable_rank"]),
        effect=float(len(bad)),
        advice=advice,
        **blocks(bad["layer"]),
        **seeds(odd, rows["seed"]),
    )


@rule(
    code="INI007",
    question="Init",
    measures="parameters that several blocks of a stack hold",
    needs=_NEEDS,
    unit="blocks",
    limit="1, unless the model says that they share",
    basis="heuristic",
    why="[block] * n in a list is one block n times, and a module that is given to every block is one module: the "
    "model has a fraction of the parameters that its depth suggests.",
    advice="Make a module for every block.",
    false_alarms="Models that share weights over depth on purpose: where the config, an attribute or the list of tied "
    "weights says so it is a note; a loop over one block that is listed once isn't found at all.",
    source="habla-liaa/encodecmae#3, espnet/espnet#1278",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measure_draws,
)
def one_module_in_several_blocks(case: Case, rows: Rows) -> Finding:
    """Judge every parameter that stands in more than one block."""
    shared = rows["shared"] > 1
    bad = rows[shared]
    if bad.empty:
        return case.passed("No block holds a parameter of another")
    first = bad[0]
    count, by = int(first["shared"]), str(first["shared_by"])
    owner, other = (str(first[name]).partition("[")[0].rpartition(".")[0] for name in ("module", "shared_as"))
    severity: Severity = "info" if by else "warning"
    more = len(set(bad["module"])) - 1
    return case.failed(
        f"{count} blocks share one {owner}: {other} is the same module"
        + (f", and {more} more matrices are shared" if more else "")
        + (f"; {by} says so" if by else ""),
        severity=severity,
        site=str(first["role"]),
        measured=float(count),
        effect=float(len(bad)),
        advice=f"make a module for every block ([Block() for _ in range({count})], not [block] * {count}), so that "
        f"{owner} and {other} are two" + (f"; {by} says that it is meant" if by else ""),
        **blocks(bad["layer"]),
        **seeds(shared, rows["seed"]),
    )
