"""What remedies are made of: which role's weights, from which std to which, and why.

A remedy is a function of a finding and the model as described; it stands in the file of its rule, which names it. What
several rules share is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from initlab.judge.matching import TOLERANCE, unscaled
from initlab.judge.words import trimmed
from initlab.recipes import Constant, Normal, Role, TruncNormal, Uniform

if TYPE_CHECKING:
    from initlab.judge.rules import Finding  # whose modules import this one

INIT_CODE = "init code"  # evidence of what gives the model what its own code says
_SIGMAS = 4.0
GPT2_STD = 0.02 * math.sqrt(768)  # of the logits and of the hidden pre-activations of a fresh GPT-2 124M: 0.554


@dataclass(frozen=True, slots=True)
class Change:
    """What to do with some parameters of one role.

    `factor` multiplies them, which keeps the draw; without one they are drawn anew, from `drawn` or as the `recipe` has
    it. `how` says so. With `rows` (axis, first, last + 1) it is about these alone, with `only_bad` about the elements
    that aren't finite. With `orders` each gets the very numbers back that this write of its own left.
    """

    role: str
    stack: str  # path of the container of their blocks, "" outside the blocks
    names: tuple[str, ...]
    found: float  # std, pooled
    proposed: float
    code: str  # of the finding that it answers
    why: str
    how: str
    factor: float | None = None
    recipe: str = ""
    drawn: Normal | Uniform | TruncNormal | Constant | None = None
    orders: tuple[int, ...] = ()
    rows: tuple[int, int, int] | None = None
    only_bad: bool = False
    evidence: str = "rule"  # what it was compared with: init code, siblings, recipe, config; or a rule's own remedy


@dataclass(frozen=True, slots=True)
class Described:
    """A model as its weights describe it.

    Attributes:
        rows: of `drawing.describe`, compared at least with the reference.
        reference: id of the recipe that a role is drawn from where it must be drawn.
        summary: the probe's summary row.
        counted: of `drawing.census`.
        declared: std that the model's config names.
        restored: changes that give parameters the draws back which the init code overwrote.
        meant: the number that each parameter is made of by its class, of those that are made of one.
        strict: the reference is what the user says was meant, its distributions included.
    """

    rows: Sequence[dict[str, Any]]
    reference: str
    summary: dict[str, Any]
    counted: Sequence[dict[str, Any]] = ()
    declared: Sequence[float] = ()
    restored: Sequence[Change] = ()
    meant: Mapping[str, float] = field(default_factory=dict)
    strict: bool = False  # the reference was declared, its distributions too

    def of(self, *roles: Role) -> list[dict[str, Any]]:
        """Pick rows.

        Args:
            roles: of any of these.
        """
        return [row for row in self.rows if row["role"] in roles]

    def wanted(self, row: dict[str, Any]) -> dict[str, Any]:
        """Look up what the reference draws; nothing where it has no answer.

        Args:
            row: one of `rows`.
        """
        found: dict[str, Any] = row["expected"].get(self.reference, {})
        return found

    def trains(self, row: dict[str, Any]) -> bool:
        """Tell whether all parameters of a row are trained; what is frozen was put there on purpose.

        Args:
            row: one of `rows`.
        """
        frozen = {entry["name"] for entry in self.counted if not entry["trains"]}
        return not frozen & set(row["stds"])


Remedy = Callable[["Finding", Described], list[Change]]


def scale_outputs(finding: Finding, model: Described) -> list[Change]:
    """Divide by √(2·n_layer) what isn't yet: two writes a block.

    Args:
        finding: to answer.
        model: whose output projections write to its stream.
    """
    changes = []
    for row, names in unscaled(model.rows):
        factor = 1 / math.sqrt(2 * row["n_layer"])
        why = (
            f"{row['n_layer']} blocks write twice each; 1/√(2·{row['n_layer']}) makes the sum independent of the depth"
        )
        changes += rescaled(row, names, factor, finding, why)
    return changes


def make_constant(
    finding: Finding, model: Described, wanted: Mapping[str, float], why: Callable[[float], str]
) -> list[Change]:
    """Set the parameters of a finding to the numbers that the model's own code makes them of.

    Args:
        finding: whose site names them.
        model: in which they were found; what is frozen stays.
        wanted: number by parameter.
        why: what the code says, of a number.
    """
    named = set(finding.site.split(" ")) & wanted.keys()
    found: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for entry in model.counted:
        if entry["name"] in named and entry["trains"]:
            found.setdefault((str(entry["role"]), str(entry["stack"]), wanted[entry["name"]]), []).append(entry)
    return [
        Change(
            role,
            stack,
            tuple(str(each["name"]) for each in some),
            math.sqrt(sum(float(each["std"]) ** 2 for each in some) / len(some)),
            abs(value),
            finding.code,
            why(value),
            f"set to {trimmed(value)}",
            drawn=Constant(value),
            evidence=INIT_CODE,
        )
        for (role, stack, value), some in found.items()
    ]


def redraw_what_is_off(finding: Finding, model: Described) -> list[Change]:
    """Bring every role that doesn't fit the reference to it.

    Args:
        finding: to answer.
        model: compared with the reference.
    """
    changes = []
    for row in model.rows:
        wanted = model.wanted(row)
        if wanted.get("misfits"):
            why = f"{model.reference} draws {wanted['text']}"
            changes += as_wanted(row, wanted["misfits"], finding, why, model)
    return changes


def rescaled(row: dict[str, Any], names: list[str], factor: float, finding: Finding, why: str) -> list[Change]:
    """Multiply some parameters; no change where all of them are 0.

    Args:
        row: of their role.
        names: of the parameters.
        factor: of their std.
        finding: that it answers.
        why: in words.
    """
    std = _pooled(row["stds"][name] for name in names) if names else 0.0
    if std == 0:
        return []
    how = f"× {trimmed(factor)}"
    return [Change(row["role"], row["stack"], tuple(names), std, std * factor, finding.code, why, how, factor)]


def towards(row: dict[str, Any], std: float, finding: Finding, why: str, model: Described) -> list[Change]:
    """Bring a role to a std: by a factor where there is something to multiply, else by a draw.

    Args:
        row: of the role.
        std: that it gets.
        finding: that it answers.
        why: in words.
        model: whose reference says how to draw.
    """
    if row["std"] > 0 and math.isfinite(row["std"]):
        return rescaled(row, list(row["stds"]), std / row["std"], finding, why)
    if not model.wanted(row):
        return []
    return [drawn(row, list(row["stds"]), row["std"], finding, why, model)]


def plain(factor: float, slack: float, *others: float) -> float:
    """Give the whole number (to 12), root of 2 or other one, or its inverse, that chance doesn't tell a factor from.

    Args:
        factor: as measured.
        slack: of its logarithm, that chance makes.
        others: numbers that are as likely.

    Returns:
        The factor itself, where there is no such number.
    """
    for number in (*others, *range(2, 13), math.sqrt(2)):
        for each in (float(number), 1 / number):
            if abs(math.log(factor / each)) <= min(slack, TOLERANCE):
                return each
    return factor


def as_wanted(row: dict[str, Any], names: Sequence[str], finding: Finding, why: str, model: Described) -> list[Change]:
    """Bring some parameters of a role to the reference: by a factor where they are a draw, else by a new one.

    Args:
        row: of the role.
        names: of the parameters.
        finding: that it answers.
        why: in words.
        model: whose reference says how to draw.
    """
    wanted = model.wanted(row)
    counted = {entry["name"]: entry for entry in model.counted}
    scaled: list[tuple[float, list[str]]] = []  # the factor of the first, and all that share it
    anew: list[str] = []
    # of a small matrix, std and mean scatter by more than the tolerance
    error = _SIGMAS / math.sqrt(max(1.0, row["numel"] / max(1, row["n"])))
    slack = max(2 * TOLERANCE, error)
    for name in names:
        std, goal = row["stds"][name], wanted["each"][name] if "each" in wanted else wanted["std"]
        drawn_once = counted[name]["kind"] in ("normal", "uniform", "") if name in counted else std > 0
        mean = counted[name]["mean"] if name in counted else wanted["misfit_mean"]
        centred = math.isfinite(std) and abs(mean) <= max(TOLERANCE, error) * std
        kind = {row["distribution"], wanted["kind"]}
        other = "orthogonal" in kind or (model.strict and kind == {"normal", "uniform"})
        factor = goal / std if std > 0 and goal > 0 else 1.0
        if not (drawn_once and centred and abs(factor - 1) > TOLERANCE / 2) or other:
            anew.append(name)
        elif near := next((each for each in scaled if abs(math.log(each[0] / factor)) < slack), None):
            near[1].append(name)
        else:
            scaled.append((factor, [name]))
    changes = []
    for factor, group in scaled:
        goal = wanted["each"][group[0]] if "each" in wanted else wanted["std"]
        pooled = _pooled(row["stds"][name] for name in group)
        elements = row["numel"] * len(group) / max(1, row["n"])
        exact = goal / pooled if wanted["flat"] else factor
        exact = plain(exact, 3 / math.sqrt(2 * max(1, elements)), math.sqrt(2 * row["n_layer"]))
        changes += rescaled(row, group, exact, finding, why)
    return changes + ([drawn(row, anew, _pooled(row["stds"][n] for n in anew), finding, why, model)] if anew else [])


def drawn(row: dict[str, Any], names: list[str], found: float, finding: Finding, why: str, model: Described) -> Change:
    """Draw some parameters as the reference does.

    Args:
        row: of their role.
        names: of the parameters.
        found: their std.
        finding: that it answers.
        why: in words.
        model: whose reference says how to draw.
    """
    wanted = model.wanted(row)
    constant = wanted["kind"] == "constant"
    how = f"set to {wanted['mean']:g}" if constant else f"draw, {wanted['kind']}"
    return Change(
        row["role"],
        row["stack"],
        tuple(names),
        found,
        wanted["std"],
        finding.code,
        why,
        how,
        recipe=model.reference,
    )


def _pooled(stds: Iterable[float]) -> float:
    values = list(stds)
    return math.sqrt(sum(std * std for std in values) / len(values))


def leave(finding: Finding, model: Described) -> list[Change]:
    """Propose nothing: no draw of its weights mends a model that is wired wrongly. `fix` then says what to change.

    Args:
        finding: of the rule.
        model: as described.
    """
    return []
