"""How `fix` finds its change: candidates by evidence, each tried on a copy, and what isn't needed taken out again."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from initlab.api.lost import LostDraws
from initlab.judge import matching, mending
from initlab.judge.lost import CODE
from initlab.judge.remedies import INIT_CODE, Change, Described
from initlab.judge.rules import RULES, Finding
from initlab.judge.rules.depth import unscaled_outputs
from initlab.judge.siblings import Group
from initlab.judge.worsening import worse
from initlab.recipes import Recipe, registry
from initlab.results import Probe
from initlab.results.tracing import CODES
from initlab.wiring import Branch, Update, Wiring

if TYPE_CHECKING:
    from torch import nn

ROUNDS = 6  # of finding, change, new measurement: a change can uncover what another finding hid
_SINGLE = 4  # groups or fewer that are tried one by one where all of them don't help


class Look:
    """A model measured and described: what is wrong, and what could be done."""

    def __init__(
        self,
        model: nn.Module,
        found: Probe,
        declared: Recipe | None,
        counted: Container[str],
        first: Look | None = None,
    ):
        from initlab.api.looking import anatomy_of
        from initlab.drawing.census import census
        from initlab.drawing.declared import config_recipe, declared_stds
        from initlab.drawing.describe import describe

        self.probe = found
        self.counted = counted  # codes of the rules in force
        self.declared = declared
        self.config = config_recipe(model, matching.CONFIG) if declared is None else None
        self.closest = str((found.run.manifest.get("init") or {}).get("closest", ""))
        named = dict.fromkeys([*matching.REFERENCES, *([self.closest] if self.closest else [])])
        known: list[str | Recipe] = [*named, *filter(None, [self.config])]
        if declared is not None and declared.id not in known:
            known.append(declared)
        anatomy = anatomy_of(model)
        self.rows = describe(anatomy, known)
        self.entries = census(anatomy)
        self.stds = declared_stds(model)
        failed = [f for f in found.findings if f.status == "fail" and f.severity != "info"]
        # what the init code did stays done: a changed copy wasn't made by it, and can't be judged by these; but for
        # the draws that it lost, which its parameters show again, or don't
        self.drawn: list[Finding] = [f for f in failed if f.code.startswith(CODES)] if first is None else first.drawn
        self.lost: LostDraws = first.lost if first else LostDraws(model, found, self.drawn, self.entries)
        lacking = [f for f in self.drawn if f.code == CODE and self.lost.changes]
        lacking = lacking if first is None or self.lost.missing(model, self.entries) else []
        done = [f for f in self.drawn if f.code == CODE and self.lost.whole and not lacking]
        failed = [*_of_weights(failed), *lacking]
        # a declared recipe says what was meant, and INI001 whether it is so
        said = declared is not None or any(finding.code in ("RES001", "INI002") for finding in failed)
        unscaled = None if said else unscaled_outputs(self.rows, _growth(found))
        unscaled = unscaled if unscaled is not None and unscaled.code in counted else None
        if any(update.norm or branch.post for wiring in anatomy.seen for update, branch in _branches(wiring)):
            unscaled = None  # a norm takes the outputs' scale away again
        # a block that is drawn otherwise hides which recipe the others are of; once it is mended, they say
        self.undecided = first is None and any(finding.code == "INI003" for finding in failed)
        if unscaled is not None and first is not None and first.unscaled:  # what was meant, the model as found says
            unscaled = replace(unscaled, severity="warning")
        # An embedding that shrinks leaves the same writes above it: that is no fault of the change, nor to be chased.
        counts = not self.undecided if first is None else first.unscaled or first.undecided
        self.unscaled: bool = unscaled is not None and unscaled.severity != "info" and counts
        told = [f for f in self.drawn if f not in lacking and f not in done]
        self.notes = told + ([unscaled] if unscaled and not self.unscaled else [])
        self.problems: list[Finding] = failed + ([unscaled] if unscaled and self.unscaled else [])

    @property
    def score(self) -> tuple[int, int]:
        """Errors, then warnings; the fewer the better."""
        return tuple(sum(f.severity == level for f in self.problems) for level in ("error", "warning"))  # type: ignore[return-value]

    @property
    def codes(self) -> dict[str, str]:
        """Severity of each problem."""
        return {finding.code: finding.severity for finding in self.problems}

    @cached_property
    def described(self) -> Described:
        """The model as remedies are given it."""
        reference = self.declared.id if self.declared else matching.reference_of(self.rows, self.closest)
        declared = self.probe.run.tables.declared
        made = declared[declared["kind"] == "constant"]
        return Described(
            self.rows,
            reference,
            dict(self.probe.summary.iloc[0]),
            self.entries,
            self.stds,
            self.lost.changes,
            dict(zip(made["about"].astype(str), made["said"].astype(float), strict=True)),
            strict=self.declared is not None,
        )

    def gone(self, after: Look) -> list[str]:
        """Codes of the problems that aren't there after a change; one that couldn't be judged any more hasn't gone."""
        judged = {f.code for f in after.probe.findings if f.status != "not_applicable"} | {"RES001", CODE}
        return [code for code in self.codes if code not in after.codes and code in judged]


@dataclass
class Mended:
    """What came of it.

    Attributes:
        look: at the changed copy, or at the model where nothing is changed.
        groups: of changes, in order.
        make: changes a model so.
        refused: changes that don't help, and why.
    """

    look: Look
    groups: list[Group]
    make: Callable[[nn.Module], None]
    refused: list[tuple[Change, str]] = field(default_factory=list)

    @property
    def changes(self) -> list[Change]:
        """All of them; those that multiply the same parameters as one."""
        return mending.merged(change for group in self.groups for change in group.changes)


def mend(model: nn.Module, first: Look, measure: Callable[..., Probe], declared: Recipe | None, seed: int) -> Mended:
    """Find the smallest change that clears most.

    Args:
        model: stays as it is.
        first: look at it, with problems.
        measure: probes a model; takes `seed`.
        declared: recipe that was meant.
        seed: of what is drawn.
    """
    return _Search(model, first, measure, declared, seed).run()


class _Search:
    def __init__(
        self, model: nn.Module, first: Look, measure: Callable[..., Probe], declared: Recipe | None, seed: int
    ):
        self.model, self.first, self.measure, self.declared, self.seed = model, first, measure, declared, seed
        self.refused: dict[tuple[Any, ...], tuple[Change, str]] = {}
        self._again: tuple[Probe, Probe] | None = None  # from where it is measured, and that with another seed

    def run(self) -> Mended:
        states = self._states()
        for groups, look in sorted(states, key=lambda state: (state[1].score, len(state[0]))):
            if look.score >= self.first.score:
                if new := [code for code in look.codes if code not in self.first.codes]:
                    self._refuse(groups, f"{', '.join(new)} {'fails' if len(new) == 1 else 'fail'} then")
                break
            groups, look = self._pruned(groups, look)
            if reasons := self._worse(groups, look):
                self._refuse(groups, reasons[0])
                continue
            return self._mended(look, groups)
        return self._mended(self.first, [])

    def _mended(self, look: Look, groups: list[Group]) -> Mended:
        kept = {_key(change) for group in groups for change in group.changes}
        refused = [each for key, each in self.refused.items() if key not in kept]
        return Mended(look, groups, lambda target: self._make(target, groups), refused)

    def _states(self) -> list[tuple[list[Group], Look]]:
        """What each step led to: the first evidence that helps, then what is left or was uncovered."""
        groups, look = list[Group](), self.first
        states = []
        tried: set[tuple[Any, ...]] = set()
        for _ in range(ROUNDS):
            step = self._step(groups, look, tried) if look.problems else None
            if step is None:
                break
            groups, look = step
            states.append((groups, look))
        return states

    def _step(self, groups: list[Group], look: Look, tried: set[tuple[Any, ...]]) -> tuple[list[Group], Look] | None:
        for stage in mending.stages(look.problems):
            found = [
                group for group in stage(look.problems, look.described) if not set(map(_key, group.changes)) & tried
            ]
            if not found:
                continue
            tried |= {_key(change) for group in found for change in group.changes}
            singles = [[group] for group in found] if 1 < len(found) <= _SINGLE else []
            for some in [found, *singles]:
                seen = self._tried([*groups, *some])
                if self._helps(look, seen):
                    return [*groups, *some], seen
            self._refuse(found, f"{', '.join(look.codes)} {'stays' if len(look.codes) == 1 else 'stay'}")
        return None

    def _helps(self, look: Look, seen: Look) -> bool:
        milder = [code for code, level in look.codes.items() if level == "error" and seen.codes.get(code) == "warning"]
        return bool(look.gone(seen) or milder)

    def _pruned(self, groups: list[Group], look: Look) -> tuple[list[Group], Look]:
        """Without what no finding depends on; what is left says which finding goes with it."""
        if len(groups) < 2:
            return self._said(groups, look), look
        at = len(groups) - 1
        while at >= 0 and len(groups) > 1:
            rest = groups[:at] + groups[at + 1 :]
            seen = self._tried(rest)
            if seen.score <= look.score and not set(seen.codes) - set(look.codes):
                groups, look = rest, seen
            at -= 1
        return self._said(groups, look), look

    def _said(self, groups: list[Group], look: Look) -> list[Group]:
        """With the code of a finding that went, where the first guess did not."""
        gone = self.first.gone(look)
        named = [
            tuple(c if c.code in gone or not gone else replace(c, code=_likely(c, gone)) for c in group.changes)
            for group in groups
        ]
        return [Group(changes, group.text) for changes, group in zip(named, groups, strict=True)]

    def _worse(self, groups: list[Group], look: Look) -> list[str]:
        from initlab.drawing.edits import untouched

        twin = self._twin(groups)
        names = {name for group in groups for change in group.changes for name in change.names}
        if moved := untouched(self.model, twin, names):
            return [f"{moved[0]} would change too"]
        # what the init code itself drew is what was meant: what comes of that is said, and measured from there
        meant = [group for group in groups if group.changes[0].evidence == INIT_CODE]
        if len(meant) == len(groups):
            return []
        if self._again is None:
            start = self.first.probe if not meant else self._tried(meant).probe
            self._again = start, self.measure(self._twin(meant) if meant else self.model, seed=self.seed + 1)
        start, again = self._again
        return worse(
            start.run, look.probe.run, again.run, _of_weights(start.findings), _of_weights(look.probe.findings)
        )

    def _refuse(self, groups: Sequence[Group], reason: str) -> None:
        for change in (change for group in groups for change in group.changes):
            self.refused.setdefault(_key(change), (change, reason))

    def _tried(self, groups: list[Group]) -> Look:
        twin = self._twin(groups)
        return Look(twin, self.measure(twin), self.declared, self.first.counted, self.first)

    def _twin(self, groups: list[Group]) -> nn.Module:
        from initlab.drawing.apply import copied

        twin = copied(self.model)
        self._make(twin, groups)
        return twin

    def _make(self, target: nn.Module, groups: Sequence[Group]) -> None:
        from initlab.drawing.edits import all_or_nothing, redraw, rescale

        changes = [change for group in groups for change in group.changes]
        with all_or_nothing(target, {name for change in changes for name in change.names}):
            for change in changes:
                if change.orders:
                    self.first.lost.give_back(target, change)
                elif change.factor is not None:
                    rescale(target, change.names, change.factor, change.rows)
                else:
                    source = change.drawn or self._recipe(change.recipe)
                    redraw(target, change.names, source, self.seed, rows=change.rows, only_bad=change.only_bad)

    def _recipe(self, id: str) -> Recipe:
        own = [each for each in (self.declared, self.first.config) if each is not None and each.id == id]
        return own[0] if own else registry.get(id)


def _of_weights(findings: Sequence[Finding]) -> list[Finding]:
    """Those that a copy can be judged by, which no init code made."""
    return [finding for finding in findings if not finding.code.startswith(CODES)]


def _likely(change: Change, gone: Sequence[str]) -> str:
    rules = RULES.items()
    return next((code for code in gone if code in rules and change.role in rules[code].roles), gone[0])


def _key(change: Change) -> tuple[Any, ...]:
    size = None if change.factor is None else round(math.log(change.factor), 2)
    return (change.role, change.stack, change.names, size, change.recipe, change.drawn, change.rows)


def _branches(wiring: Wiring) -> Iterator[tuple[Update, Branch]]:
    return ((update, branch) for block in wiring.blocks for update in block.updates for branch in update.branches)


def _growth(found: Probe) -> float:
    """Variance that the blocks add to the stream, in units of the embedding's."""
    embed, last = found.at("embed")["var"], found.at("resid_post")["var"]
    if embed.empty or last.empty or not embed.iloc[0] > 0:
        return math.nan
    return float(last.max() / embed.iloc[0] - 1)
