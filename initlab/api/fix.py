"""An init that fails its checks, mended: `fix`."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from initlab.api.probe import probe
from initlab.errors import ConfigError, RecipeError
from initlab.judge import matching, mending, rules
from initlab.judge.remedies import Change, Described
from initlab.judge.rules import Finding
from initlab.judge.rules.depth import unscaled_outputs
from initlab.judge.rules.fresh import TRAINED_BELOW
from initlab.options import checked_seed, refuse_unknown
from initlab.recipes import Recipe, registry
from initlab.recipes.base import Rule
from initlab.report.fix import Shown, proposal_text
from initlab.results import Probe

if TYPE_CHECKING:
    from torch import nn

ROUNDS = 4  # of finding, change, new measurement: a change can uncover what another finding hid


@dataclass
class Proposal:
    """What `fix` would change.

    Attributes:
        model: class of the model.
        before, after: probes of the model as found, and of the changed copy; `after` is None without a change.
        problems: findings that it answers; a depth scaling that is lacking on one model is among them as RES001.
        changes: by role and stack of blocks.
        left: findings that stay.
        notes: what is worth knowing, and not changed: what is as published, or what a change lets the blocks' writes
            become (unscaled by depth, and now above the embedding).
        applied: whether the model was changed.
    """

    model: str
    before: Probe
    problems: list[Finding]
    changes: list[Change]
    left: list[Finding]
    notes: list[Finding]
    after: Probe | None
    _change: Callable[[], None] | None = field(repr=False)
    applied: bool = False

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Per role and stack: role, stack, n (parameters), names, found and proposed (std), how, code, why."""
        return [
            {
                "role": change.role,
                "stack": change.stack,
                "n": len(change.names),
                "names": list(change.names),
                "found": change.found,
                "proposed": change.proposed,
                "how": change.how,
                "recipe": change.recipe,
                "code": change.code,
                "why": change.why,
            }
            for change in self.changes
        ]

    def apply(self) -> None:
        """Change the model, in place, as shown.

        Raises:
            ConfigError: there is nothing to change, or it was applied already: a factor would count twice.
        """
        if self._change is None:
            raise ConfigError(f"there is nothing to change in {self.model}")
        if self.applied:
            raise ConfigError(f"this proposal was applied to {self.model} already; call fix again for another look")
        self._change()
        self.applied = True

    def __repr__(self) -> str:
        return proposal_text(
            Shown(
                model=self.model,
                problems=self.problems,
                rows=self.rows,
                left=self.left,
                notes=self.notes,
                before=self.before.run,
                after=self.after.run if self.after else None,
                applied=self.applied,
            )
        )


def fix(
    model: nn.Module,
    batch: Any = None,
    *,
    recipe: str | Recipe | Rule | None = None,
    apply: bool = False,
    seed: int = 0,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    limits: Mapping[str, float] | None = None,
    **options: Any,
) -> Proposal:
    """Propose the smallest change of the weights that clears the findings of `probe`, tried on a copy.

    Role by role first: multiply the output projections by 1/√(2·n_layer), give positions the tokens' std, shrink the
    head, draw what was lost. Where that doesn't clear the findings, the roles that they are about, and then whatever
    else doesn't fit the nearest published recipe (or `recipe`), are brought to it. Of what clears most, the change of
    the fewest roles is proposed. Findings that no init can clear are listed as left.

    Args:
        model: left exactly as found, unless `apply`. The copy takes as much memory again.
        batch: as `probe` takes it.
        recipe: what the model should have been drawn from; then INI001 is judged and mended too.
        apply: change the model at once, as `proposal.apply()` does.
        seed: of the batch, and of what is drawn.
        select: codes of the rules that count, as `Result.judge` takes them.
        ignore: codes of those that don't.
        limits: by code, likewise.
        options: text, dtype and sites, as `probe` takes them.

    Returns:
        Proposal: `.rows` (role, parameters, std found and proposed, how, why), `.before` and `.after` (probes),
        `.left` (findings that stay), `.apply()`; its `str` is all of it as text.

    Raises:
        RecipeError: the model was trained, so that another scale would destroy what it has learnt; unknown recipe.
        ConfigError: the model can't be copied; an unknown code, or a limit that is none.
        ProbeError, DataError: as `probe` raises them.
    """
    from initlab.anatomy.unwrapping import unwrap

    refuse_unknown("fix", options, fix, probe)
    seed = checked_seed(seed)
    declared = registry.get(recipe) if recipe is not None else None
    counted = {rule.code for rule in rules.chosen(select, ignore, limits).rules}
    inside, _ = unwrap(model)

    def measure(candidate: nn.Module) -> Probe:
        found = probe(candidate, batch, recipe=declared, seed=seed, **options)
        found.judge(select=select, ignore=ignore, limits=limits)
        return found

    before = measure(inside)
    _refuse_trained(inside, before)
    look = _Look(inside, before, declared, counted)
    proposal = Proposal(type(inside).__name__, before, look.problems, [], look.problems, look.notes, None, None)
    if look.problems:
        best = _search(inside, look, measure, declared, seed)
        if best is not None:
            changes, found = best
            proposal.changes, proposal.left, proposal.after = changes, found.problems, found.probe
            proposal.notes = found.notes
            proposal._change = lambda: _apply(inside, changes, declared, seed)
    if apply and proposal.changes:
        proposal.apply()
    return proposal


class _Look:
    """A model measured and described: what is wrong, and what could be done."""

    def __init__(
        self,
        model: nn.Module,
        found: Probe,
        declared: Recipe | None,
        counted: Container[str],
        first: _Look | None = None,
    ):
        from initlab.api.looking import anatomy_of
        from initlab.drawing.describe import describe

        self.probe = found
        self.counted = counted  # codes of the rules in force
        known: list[str | Recipe] = [*matching.REFERENCES]
        if declared is not None and declared.id not in known:
            known.append(declared)
        self.rows = describe(anatomy_of(model), known)
        failed = [f for f in found.findings if f.status == "fail" and f.severity != "info"]
        # a declared recipe says what was meant, and INI001 whether it is so
        said = declared is not None or any(finding.code in ("RES001", "INI002") for finding in failed)
        unscaled = None if said else unscaled_outputs(self.rows, _growth(found))
        unscaled = unscaled if unscaled is not None and unscaled.code in counted else None
        # An embedding that shrinks leaves the same writes above it: that is no fault of the change, nor to be chased.
        counts = first is None or first.unscaled
        self.unscaled: bool = unscaled is not None and unscaled.severity != "info" and counts
        self.notes = [unscaled] if unscaled and not self.unscaled else []
        self.problems: list[Finding] = failed + ([unscaled] if unscaled and self.unscaled else [])

    @property
    def score(self) -> tuple[int, int]:
        """Errors, then warnings; the fewer the better."""
        return tuple(sum(f.severity == level for f in self.problems) for level in ("error", "warning"))  # type: ignore[return-value]

    def described(self, reference: str) -> Described:
        return Described(self.rows, reference, dict(self.probe.summary.iloc[0]))


def _search(
    model: nn.Module, look: _Look, measure: Callable[[nn.Module], Probe], declared: Recipe | None, seed: int
) -> tuple[list[Change], _Look] | None:
    """The best of: changes role by role; the nearest recipe; nanogpt. None where none of them helps."""
    from initlab.drawing.apply import copied

    nearest = declared.id if declared else matching.reference_of(look.rows)

    def tried(changes: list[Change], twin: nn.Module) -> _Look:
        _apply(twin, changes, declared, seed)
        return _Look(twin, measure(twin), declared, look.counted, look)

    twin, seen, changes = copied(model), look, list[Change]()
    for _ in range(ROUNDS):
        taken = {(change.role, change.stack, change.code) for change in changes}
        new = mending.propose(seen.problems, seen.described(nearest))
        new = [change for change in new if (change.role, change.stack, change.code) not in taken]
        if not new:
            break
        changes += new
        seen = tried(new, twin)
    candidates = [(mending.merged(changes), seen)] if changes else []
    for reference in dict.fromkeys([nearest] if declared else [nearest, "nanogpt"]):
        if any(not each.problems for _, each in candidates):
            break
        about, rest = mending.toward_the_reference(look.problems, look.described(reference))
        left = look.problems
        if about:
            candidates.append((about, tried(about, copied(model))))
            left = candidates[-1][1].problems
        if left and rest:
            whole = about + [replace(change, code=left[0].code) for change in rest]
            candidates.append((whole, tried(whole, copied(model))))
    better = [each for each in candidates if each[1].score < look.score]
    return min(better, key=lambda each: (each[1].score, len({change.role for change in each[0]})), default=None)


def _apply(model: nn.Module, changes: Sequence[Change], declared: Recipe | None, seed: int) -> None:
    from initlab.drawing.apply import apply_recipe, rescale

    for change in changes:
        if change.factor is not None:
            rescale(model, change.names, change.factor)
        else:
            known = declared is not None and change.recipe == declared.id
            source = declared if known and declared is not None else registry.get(change.recipe)
            apply_recipe(model, source, seed, only=change.names)


def _refuse_trained(model: nn.Module, found: Probe) -> None:
    step = int(found.run.manifest["config"]["step"])
    loss, ln_vocab = (float(found.summary[name].iloc[0]) for name in ("loss", "ln_vocab"))
    if step > 0 or loss < ln_vocab - TRAINED_BELOW:
        reason = f"{step} steps" if step > 0 else f"its loss is {loss:.2f}, ln V {ln_vocab:.2f}"
        raise RecipeError(
            f"{type(model).__name__} was trained ({reason}): fix changes inits, and another scale would destroy what "
            "it has learnt; give it a fresh model"
        )


def _growth(found: Probe) -> float:
    """Variance that the blocks add to the stream, in units of the embedding's."""
    embed, last = found.at("embed")["var"], found.at("resid_post")["var"]
    if embed.empty or last.empty or not embed.iloc[0] > 0:
        return math.nan
    return float(last.max() / embed.iloc[0] - 1)
