"""Depth scaling that reached one of the two branches, another matrix, every matrix, or one matrix twice."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from statistics import median

import numpy as np

from initlab.judge import Severity
from initlab.judge.matching import TOLERANCE
from initlab.judge.remedies import Change, Described, rescaled
from initlab.judge.rows import Array, Rows, middle
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import CELL, family, recorded, seeds, table_of
from initlab.judge.words import listed, trimmed
from initlab.recipes import Role
from initlab.recipes.base import INNER, OUTPUTS
from initlab.rundir import Run

_EVEN = 1.15  # largest over smallest std of a matrix over the blocks; scaled block by block is judged elsewhere
_NEAR = 0.04  # relative: "is smaller by just this factor"
_CUT = 0.9866  # std of a normal that is cut at three of it
_BLOCKS = (*INNER, *OUTPUTS)
_STACK = re.compile(r"(.*?)(?:^|\.)\d+\.")


def measure_scaled(run: Run) -> Rows:
    """Per stack and kind of matrix: its std, that times √fan_in, and √(2·n) of its n blocks."""
    weights, draws = recorded(run, "weight"), table_of(run, "draws")
    weights = weights[weights.among("role", (*_BLOCKS, Role.TOKEN_EMBED)) & (weights["std"] > 0)]
    own, drawn = weights.matching(draws, "run_id", "module")
    weights = weights[own].assign(**{name: draws[name][drawn] for name in ("rows", "columns")})
    stacks = [_STACK.match(name) for name in weights["module"]]
    inside = [stack[1] if stack else "" for stack in stacks]
    found = weights.assign(
        family=family(weights["module"]), stack=np.where(np.isnan(weights["layer"]), "", np.array(inside, dtype=object))
    ).grouped(
        [*CELL, "stack", "family", "role"],
        sort=False,
        std=("std", "median"),
        low=("std", "min"),
        high=("std", "max"),
        numel=("numel", "sum"),
        rows=("rows", "first"),
        columns=("columns", "first"),
        module=("module", "first"),
        layers=("layer", "nunique"),
    )
    side = np.where(found["rows"] == found["n_embd"], found["columns"], found["rows"])
    fan_in = np.where(found.among("role", OUTPUTS), side, found["n_embd"])
    found = found.assign(wide=found["std"] * np.sqrt(fan_in))
    return found[(found["layers"] != 1) & (found["high"] < _EVEN * found["low"])]


@dataclass(frozen=True, slots=True)
class _Slip:
    text: str
    advice: str
    severity: Severity
    factor: float
    role: str


def _slips(part: Rows, tables: Rows) -> list[_Slip]:
    """What is wrong in one stack: by std, then by std·√fan_in, the two ways in which unscaled matrices are alike."""
    n = int(part["layers"].max())
    factor = math.sqrt(2 * n)
    if n < 2 or any(_alike(part[column], part) for column in ("std", "wide")):
        return _everything(part, tables, n, factor)
    if any(_right(part[column], part, factor) for column in ("std", "wide")):
        return []  # at two blocks and a hidden layer of 4·n_embd, what is right by the one looks wrong by the other
    for column in ("std", "wide"):
        base = _usual(part[column][part.among("role", INNER)])
        if not base:
            continue
        full, less, twice = (_near(part[column] * times / base, part) for times in (1.0, factor, factor**2))
        out = part.among("role", OUTPUTS)
        if out.sum() >= 2 and (out & less).any() and (out & full).any():
            return [_lost(part[out & less], part[out & full], part[~out & less], n)]
        if out.sum() >= 2 and twice[out].all() and n > 2:
            names = listed(list(part["module"][out]))
            text = f"{names} are smaller by 2·{n} than the matrices that read the stream: by √(2·{n}) twice"
            return [_Slip(text, f"scale {names} by 1/√(2·n_layer) once", "info", factor, "attn_out")]
    return []


def _lost(scaled: Rows, lost: Rows, instead: Rows, n: int) -> _Slip:
    done, left, wrong = (list(each["module"]) for each in (scaled, lost, instead))
    more = f", and {listed(wrong)}, which only reads the stream, is" if wrong else ""
    std, wanted = float(lost["std"][0]), float(lost["std"][0]) / math.sqrt(2 * n)
    text = (
        f"{listed(left)} (std {trimmed(std)}) isn't depth-scaled, though {listed(done)} is, by 1/√(2·{n}){more}: what "
        "the blocks write by it grows with depth"
    )
    move = f", and give {listed(wrong)} the std of the other matrices" if wrong else ""
    advice = f"draw {listed(left)} with std {trimmed(wanted)} = {trimmed(std)}/√(2·{n}){move}; "
    advice += "the condition on names misses it"
    return _Slip(text, advice, "warning", 1 / math.sqrt(2 * n), str(lost["role"][0]))


def _everything(part: Rows, tables: Rows, n: int, factor: float) -> list[_Slip]:
    """All matrices of the blocks alike: smaller by √(2·n) than 1/√fan_in, or than the token table."""
    inner, out = part.among("role", INNER), part.among("role", OUTPUTS)
    if n < 2 or not inner.any() or not out.any():
        return []
    fans = part["wide"] / part["std"]
    if fans.max() < 1.2 * fans.min():
        return []  # of one fan_in a std by fan_in and one for all can't be told apart, nor a factor from chance
    wide = any(_near(part["wide"] * factor / cut, part).all() for cut in (1.0, _CUT))
    table = float(tables["std"][0]) if len(tables) == 1 else math.nan
    flat = _alike(part["std"], part) and bool(_near(part["std"] * factor / table, part).all())
    if not (wide or flat):
        return []
    what = "1/√fan_in" if wide else f"the std of {tables['module'][0]}, {trimmed(table)}"
    readers = list(part["module"][inner])
    text = f"Every matrix of the blocks is {what} divided by √(2·{n}), not only those that write to the stream"
    advice = f"divide the output projections alone by √(2·n_layer): draw {listed(readers)} √(2·{n}) times larger"
    return [_Slip(text, advice, "warning", factor, "inner")]


def _usual(values: Array) -> float:
    """The value that most of them share, 0 where they share none."""
    if not len(values):
        return 0.0
    votes = [int((np.abs(values / each - 1) < _NEAR).sum()) for each in values]
    best = int(np.argmax(votes))
    return float(values[best]) if 2 * votes[best] > len(values) or votes[best] >= 2 else 0.0


def _near(ratio: Array, part: Rows) -> Array:
    return np.asarray(np.abs(ratio - 1) < _NEAR + 4 / np.sqrt(2.0 * part["numel"]))


def _alike(values: Array, part: Rows) -> bool:
    return bool(_near(values / middle(values), part).all())


def _right(values: Array, part: Rows, factor: float) -> bool:
    """All matrices that read the stream alike, and all that write to it smaller by the factor."""
    out = part.among("role", OUTPUTS)
    return bool(_near(np.where(out, values * factor, values) / middle(values[~out]), part).all())


def scale_the_rest(finding: Finding, model: Described) -> list[Change]:
    """Multiply what the scaling missed, or what it shouldn't have reached."""
    if finding.measured is None:
        return []
    factor, why = finding.measured, "the depth factor belongs to the output projections, once"
    wanted = INNER if finding.site == "inner" else [Role(finding.site)] if finding.site in OUTPUTS else ()
    factors = [(row, factor) for row in model.of(*wanted)]
    if factor < 1:  # and what has it instead loses it
        inner = [row for row in model.of(*INNER) if row["std"] > 0]
        usual = median(row["std"] for row in inner) if inner else 0.0
        factors += [(row, 1 / factor) for row in inner if abs(row["std"] / (usual * factor) - 1) < TOLERANCE]
    return [change for row, each in factors for change in rescaled(row, list(row["stds"]), each, finding, why)]


@rule(
    code="INI010",
    question="Init",
    measures="std of each kind of matrix in the blocks, and std·√fan_in, beside those of the others: which differ by "
    "just √(2·n_layer)",
    needs="a probed or compared model with two blocks or more whose matrices have known roles",
    unit="× the std of the other matrices",
    limit="no kind with a depth factor where the other branch has none, on all matrices, or twice",
    basis="derived",
    why="The 2 in 1/√(2·n_layer) counts two writes a block. With one of them left as it is the stream still grows with "
    "depth; on a matrix that reads the stream the factor makes its branch small in the forward and its gradients large "
    "or small, and leaves the write as it was; on every matrix it counts several times.",
    advice="Scale both output projections by 1/√(2·n_layer), once, and nothing else.",
    false_alarms="Stds that differ by this very factor by chance: within 4 % of it. Published code that scales one "
    "branch on purpose (transformers' nanochat).",
    source="karpathy/llama2.c model.py (w3 for w2), facebookresearch/lingua#39 (all matrices)",
    since="0.1.0",
    roles=_BLOCKS,
    remedy=scale_the_rest,
    measure=measure_scaled,
)
def depth_factor_misplaced(case: Case, rows: Rows) -> Finding:
    """Judge every stack by itself."""
    found: list[tuple[str, _Slip]] = []
    for own in rows.parts("run_id"):
        blocks, tables = own[own.among("role", _BLOCKS)], own[own["role"] == Role.TOKEN_EMBED]
        for part in blocks.parts("stack"):
            found += [(own["run_id"][0], slip) for slip in _slips(part, tables)]
    if not found:
        return case.passed("No matrix has a depth factor that belongs elsewhere")
    slip = next((each for _, each in found if each.severity == "warning"), found[0][1])
    return case.failed(
        slip.text,
        severity=slip.severity,
        site=slip.role,
        measured=slip.factor,
        effect=abs(math.log(slip.factor)),
        advice=slip.advice,
        **seeds(rows.among("run_id", [run_id for run_id, _ in found]), rows["seed"]),
    )
