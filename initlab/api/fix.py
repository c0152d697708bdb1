"""An init that fails its checks, mended: `fix`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab.api.gradients import with_gradients
from initlab.api.mend import Look, Mended, mend
from initlab.api.probe import made, probe
from initlab.api.reading import text_of
from initlab.errors import ConfigError, RecipeError
from initlab.judge import rules
from initlab.judge.mending import wired_wrongly
from initlab.judge.remedies import Change
from initlab.judge.rules import Finding
from initlab.judge.rules.fresh import TRAINED_BELOW
from initlab.options import checked_flag, checked_path, checked_seed, refuse_unknown, with_fields
from initlab.recipes import Recipe, registry
from initlab.recipes.base import Rule
from initlab.report import notebook
from initlab.report.fix import AS_FOUND, CHANGED, Shown, changes, proposal_text
from initlab.report.terminal import harmless
from initlab.report.waiting import drawn
from initlab.results import Probe
from initlab.results.difference import Difference

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Proposal:
    """What `fix` would change.

    Attributes:
        model: that it is about: the given one, or the one that the given function made.
        before, after: probes of the model as found, and of the changed copy; `after` is None without a change.
        problems: findings that it answers; a depth scaling that is lacking on one model is among them as RES001.
        changes: by role and stack of blocks.
        left: findings that stay.
        notes: what is worth knowing, and not changed: what is as published, or what a change lets the blocks' writes
            become (unscaled by depth, and now above the embedding).
        refused: what was tried and isn't proposed, with the reason.
        applied: whether the model was changed.
    """

    model: nn.Module
    before: Probe
    problems: list[Finding]
    changes: list[Change]
    left: list[Finding]
    notes: list[Finding]
    after: Probe | None
    _change: Callable[[], None] | None = field(repr=False)
    refused: list[tuple[Change, str]] = field(default_factory=list)
    applied: bool = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Per role and stack: role, stack, n (parameters), names, found and proposed (std), how, code, why, evidence.

        `code` is of the finding that goes with it, `why` says what is odd, compared with what; `evidence` in a word:
        siblings, recipe, or the rule's own remedy. `part` names the rows of a matrix that it is about, and no others.
        """
        return [_row(change) for change in self.changes]

    @property
    def not_proposed(self) -> list[dict[str, Any]]:
        """What was tried and doesn't help: as `rows`, with the `reason`."""
        return [_row(change) | {"reason": reason} for change, reason in self.refused]

    @property
    def _name(self) -> str:
        from initlab.anatomy.unwrapping import bare

        return type(bare(self.model)[0]).__name__

    @property
    def wiring(self) -> list[str]:
        """A line for each finding whose cause is no weight: what to change in the code."""
        return [f"{finding.code}: {finding.advice}" for finding in wired_wrongly(self.left)]

    def apply(self) -> None:
        """Change the model, in place, as shown: all of it, or nothing where something raises half way.

        Raises:
            ConfigError: there is nothing to change, or it was applied already: a factor would count twice.
        """
        if self._change is None:
            raise ConfigError(f"there is nothing to change in {self._name}")
        if self.applied:
            raise ConfigError(f"this proposal was applied to {self._name} already; call fix again for another look")
        self._change()
        self.applied = True

    def report(self, out: str | Path) -> Path:
        """Write report.html and what belongs to it, the model as found beside the changed copy; returns its path.

        Args:
            out: the folder.

        Raises:
            RunError: it holds another run, or can't be written.
        """
        out = checked_path("out", out)
        if self.after is None:
            return self.before.report(out)
        found = Difference(self.before, self.after, names=(AS_FOUND, CHANGED))
        return found.report(out, changes=changes(self.rows))

    def _repr_html_(self) -> str:
        return notebook.of_text(repr(self))

    def __repr__(self) -> str:
        text = proposal_text(
            Shown(
                model=self._name,
                problems=self.problems,
                rows=self.rows,
                left=self.left,
                notes=self.notes,
                refused=self.not_proposed,
                wired=wired_wrongly(self.problems),
                before=self.before.run,
                after=self.after.run if self.after else None,
                applied=self.applied,
            )
        )
        return harmless(text)


def _row(change: Change) -> dict[str, Any]:
    return {
        "role": change.role,
        "stack": change.stack,
        "n": len(change.names),
        "names": list(change.names),
        "part": None if change.rows is None else dict(zip(("axis", "first", "end"), change.rows, strict=True)),
        "found": change.found,
        "proposed": change.proposed,
        "how": change.how,
        "recipe": change.recipe,
        "code": change.code,
        "why": change.why,
        "evidence": change.evidence,
    }


@with_fields
@drawn
@with_gradients()
def fix(
    model: nn.Module | Callable[[], nn.Module],
    batch: Any = None,
    *,
    recipe: str | Recipe | Rule | None = None,
    apply: bool = False,
    seed: int = 0,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    limits: Mapping[str, float] | None = None,
    progress: bool = True,
    **options: Any,
) -> Proposal:
    """Propose the smallest change of the weights that brings back what is odd about them, proved on a copy.

    Evidence in this order: a parameter, or rows of one, that differs from its siblings (the same of the other blocks)
    becomes what they are; a role that differs from the recipe that the others fit, or from the model's config, becomes
    that; only then counts what the rule that fails knows as a remedy. What is meant is left (frozen, zero and learning,
    a gate, what its module or the config declares), and so is what no failing check depends on. Where the model is
    wired wrongly, no weight is changed to hide it: the line to change is said.

    A change is proposed where a finding goes, no other check and no measure gets worse beyond what seeds scatter, and
    everything else stays as it is, bit for bit. A scale is restored by a factor, which keeps the draw; drawn anew is
    only what is no draw (constant, of low rank, copied, not finite, 0 where nothing can learn).

    Args:
        model: left exactly as found, unless `apply`. The copy takes as much memory again. A function without arguments
            that makes one: it is made, its init code is judged as well, and it is the proposal's `.model`.
        batch: as `probe` takes it.
        recipe: what the model should have been drawn from; then INI001 is judged and mended too.
        apply: change the model at once, as `proposal.apply()` does.
        seed: of the batch, and of what is drawn.
        select: codes of the rules that count, as `Result.judge` takes them.
        ignore: codes of those that don't.
        limits: by code, likewise.
        progress: whether a bar is drawn, as by `probe`.
        options: text, dtype and sites, as `probe` takes them.

    Returns:
        Proposal: `.model`, `.rows` (role, parameters, std found and proposed, how, why), `.before` and `.after`
        (probes), `.left` (findings that stay), `.wiring` (what to change in the code), `.apply()`, `.report(out)`; its
        `str` is all of it as text.

    Raises:
        RecipeError: the model was trained, so that another scale would destroy what it has learnt; unknown recipe.
        ConfigError: the model can't be copied; an unknown code, or a limit that is none.
        ProbeError, DataError: as `probe` raises them.
    """
    from initlab.anatomy.unwrapping import unwrap

    refuse_unknown("fix", options, fix, probe)
    if "text" in options:
        options["text"] = text_of(options["text"])
    seed, apply = checked_seed(seed), checked_flag("apply", apply)
    declared = registry.get(recipe) if recipe is not None else None
    counted = {rule.code for rule in rules.chosen(select, ignore, limits).rules}
    model = made(model)
    inside, _ = unwrap(model)

    def measure(candidate: nn.Module, seed: int = seed) -> Probe:
        found = probe(candidate, batch, recipe=declared, seed=seed, progress=progress, **options)
        found.judge(select=select, ignore=ignore, limits=limits)
        return found

    before = measure(inside)
    _refuse_trained(inside, before)
    look = Look(inside, before, declared, counted)
    proposal = Proposal(model, before, look.problems, [], look.problems, look.notes, None, None)
    if look.problems:
        done: Mended = mend(inside, look, measure, declared, seed)
        proposal.refused = done.refused
        if done.changes:
            proposal.changes, proposal.left, proposal.after = done.changes, done.look.problems, done.look.probe
            proposal.notes, proposal._change = done.look.notes, lambda: done.make(inside)
    if apply and proposal.changes:
        proposal.apply()
    return proposal


def _refuse_trained(model: nn.Module, found: Probe) -> None:
    step = int(found.run.manifest["config"]["step"])
    loss, ln_vocab = (float(found.summary[name].iloc[0]) for name in ("loss", "ln_vocab"))
    if step > 0 or loss < ln_vocab - TRAINED_BELOW:
        reason = f"{step} steps" if step > 0 else f"its loss is {loss:.2f}, ln V {ln_vocab:.2f}"
        raise RecipeError(
            f"{type(model).__name__} was trained ({reason}): fix changes inits, and another scale would destroy what "
            "it has learnt; give it a fresh model"
        )
