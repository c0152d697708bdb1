"""The report as values: what the page, the terminal and the Markdown write, and none of them derives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from initlab import schema
from initlab.judge.differences import Compared
from initlab.judge.outcomes import outcomes
from initlab.judge.rules import RULES, Finding
from initlab.judge.rules.drawn import AS_FOUND
from initlab.judge.slopes import slopes
from initlab.judge.words import plural
from initlab.report import brief, confirm, diff, figures, glossary, inventory, scale, train, transfer
from initlab.report.beside import again, recalled
from initlab.report.drawings import Drawing
from initlab.report.facts import facts, header, model_notes, shortfall
from initlab.report.keys import key_numbers
from initlab.report.values import Brief, Table
from initlab.report.verdict import GLYPHS, count_sentence, failing, measured, questions, verdict, worst
from initlab.report.view import recipes_of, steps_of
from initlab.rundir import Run


@dataclass(frozen=True, slots=True)
class Card:
    """Failures of one rule: what they share once, and a line per recipe."""

    anchor: str
    lead: Finding
    findings: list[Finding]
    evidence: str  # name of the figure that shows it, or empty
    false_alarms: str  # in which it is known to be wrong; of a rule that this process doesn't know, empty

    @property
    def advice(self) -> str:
        """What to do, if it is the same for all of them."""
        return self.lead.advice if len({finding.advice for finding in self.findings}) == 1 else ""


@dataclass(frozen=True, slots=True)
class Square:
    """Scoreboard: one recipe, one question."""

    status: str
    glyph: str
    text: str
    detail: str
    anchor: str  # of the card of its worst failure
    id: str = ""  # of the list of its checks
    checks: Sequence[Finding] = ()  # that passed


class Document:
    """Everything that a report says of a run; what takes time is made when a renderer asks for it, and once.

    Args:
        run: tables and manifest.
        findings: of all rules.
        modules: of a scaling run, glob of the sites and modules that its brief shows; None for a selection.
        known: failures among the findings that a baseline has too; they are counted, and shown on the scoreboard.

    Attributes:
        modules: as given.
        facts: what was run, as pairs of a label and a value.
        header: what was run, in a line.
        shortfall: sentences about what is missing or failed.
        notes: what was found out about the model itself.
        failing: failures, worst first.
        counted: how many checks failed, passed and didn't apply.
        passed: checks that passed.
        inapplicable: checks that say nothing of this run.
        questions: columns of the scoreboard, those that some recipe was judged by; the ones that fail come first.
        recipe_info: summary and source of each recipe.
        first_step: the first step that was measured.
    """

    def __init__(
        self, run: Run, findings: Sequence[Finding], modules: str | None = None, known: Sequence[Finding] = ()
    ):
        self.run = run
        self.findings = findings
        self.known = known
        self._before = set(map(id, known))
        self._new = [each for each in findings if not self.knew(each)]
        self.kind = str(run.manifest.get("kind", ""))
        self.version = str(run.manifest.get("initlab_version", ""))
        self.command = str(run.manifest.get("command", ""))
        self.recipes = recipes_of(run)
        self.baseline = self.recipes[0] if len(self.recipes) > 1 else None
        self.modules = modules
        self.facts = facts(run)
        self.header = header(run)
        self.shortfall = shortfall(run)
        self.notes = model_notes(run)
        self.failing = failing(self._new)
        self.counted = count_sentence(run, self._new, len(known))
        self.passed = [finding for finding in findings if finding.status == "pass"]
        self.inapplicable = [finding for finding in findings if finding.status == "not_applicable"]
        asked = questions([each for each in findings if each.status != "not_applicable"])
        failed = {each.question for each in findings if each.status == "fail" and each.severity != "info"}
        self.questions = sorted(asked, key=lambda question: question not in failed)
        self.recipe_info = run.manifest.get("recipes") or {}
        self.first_step = steps_of(run)[0]

    def knew(self, finding: Finding) -> bool:
        """Tell whether a finding is one of those that the baseline has too."""
        return id(finding) in self._before

    def named(self, recipe: str) -> str:
        """Say what a finding is of: a recipe, or a model that was measured as it was given."""
        model = str(self.run.manifest.get("config", {}).get("model") or "")
        return model if model and recipe == AS_FOUND else recipe

    @cached_property
    def verdict(self) -> str:
        """One sentence: is anything wrong, and with what; of a confirmation, whether the probe had said so."""
        if self.kind == "confirm":
            return confirm.verdict(self.run, self.graded)
        if self.kind == "transfer":
            return transfer.verdict(self.run)
        said = verdict(self.run, self._new)
        if not self.known:
            return said
        return f"{said} Not counted: {plural(len(self.known), 'finding')} that the baseline has too."

    @property
    def headline(self) -> str:
        """What a page opens with: the verdict, or what differs; where one was made to mend the other, whether it is."""
        if self.changed and not self.run.manifest.get("changes"):
            return self.changed.verdict
        return self.verdict

    @cached_property
    def graded(self) -> pd.DataFrame:
        """Prediction beside outcome, a row per recipe and depth; empty but of a confirmation."""
        return outcomes(self.run, self.findings) if self.kind == "confirm" else pd.DataFrame()

    @cached_property
    def brief(self) -> Brief:
        """The run in a screenful."""
        if self.kind == "confirm":
            return confirm.brief(self.run, self.graded)
        if self.kind == "transfer":
            return transfer.brief(self.run)
        return brief.brief(self.run, self.findings, self.modules)

    @cached_property
    def changed(self) -> Compared | None:
        """What differs between the two inits that the run holds beside each other; None of any other run."""
        return again(self.run)

    @cached_property
    def changes(self) -> list[Table]:
        """The same as tables."""
        return diff.tables(self.changed) if self.changed else []

    @cached_property
    def cards(self) -> list[Card]:
        """Failures, a card for those that have all but the recipe, and what to do about it, in common."""
        return cards_of(self.failing, {spec.name for spec, reason in self._needs if not reason})

    @cached_property
    def scoreboard(self) -> list[tuple[str, list[Square]]]:
        """A row of answers per recipe."""
        return _scoreboard(self.recipes, self.questions, self.findings, self.cards)

    @cached_property
    def key_numbers(self) -> Table:
        """A row per recipe, of what its deepest model does."""
        return key_numbers(self.run, self.findings)

    @cached_property
    def glossary(self) -> dict[str, str]:
        """The words that aren't the field's own."""
        return glossary.plain()

    @cached_property
    def trained(self) -> train.Trained | None:
        """What training says; None where nothing was trained."""
        return train.trained(self.run, self.graded)

    @cached_property
    def slope_tables(self) -> list[tuple[scale.SlopeTable, scale.SlopeTable]]:
        """Per axis of a scaling run, the selection that its brief shows, and all of it."""
        if self.kind != "scale":
            return []
        found = slopes(self.run.tables.records)
        return list(zip(scale.slope_tables(found), scale.slope_tables(found, every=True), strict=True))

    @cached_property
    def lost(self) -> list[str]:
        """Sizes of a scaling run whose models are in no slope."""
        return scale.lost(self.run) if self.kind == "scale" else []

    @cached_property
    def drawings(self) -> list[Drawing]:
        """The figures that this run has data for, in the order of the page; none is drawn before it is asked for."""
        called = {recipe: self.named(recipe) for recipe in self.recipes}
        run = recalled(self.run, {old: new for old, new in called.items() if old != new})
        return [Drawing(spec, run) for spec, reason in self._needs if not reason]

    @cached_property
    def cited(self) -> set[str]:
        """Names of the figures that a failure points to; where none does, of the first."""
        return {card.evidence for card in self.cards if card.evidence} or {each.name for each in self.drawings[:1]}

    @cached_property
    def undrawn(self) -> list[tuple[str, str]]:
        """Titles of the other figures, and what the run lacks for them."""
        return _by_reason([(spec.title, reason) for spec, reason in self._needs if reason])

    @cached_property
    def _needs(self) -> list[tuple[figures.FigureSpec, str]]:
        return [(spec, spec.needs(self.run)) for spec in figures.in_order()]

    @cached_property
    def recipe_table(self) -> dict[str, Any]:
        """What each role is drawn from, evaluated."""
        return inventory.recipe_table(self.run, self.recipes)

    @cached_property
    def coverage(self) -> dict[str, Any]:
        """Sites expected and measured."""
        return inventory.coverage_table(self.run.tables.coverage)

    @cached_property
    def cells(self) -> dict[str, Any]:
        """The first rows of the summary, and how many there are."""
        table = inventory.cell_table(self.run.tables.summary)
        return {**table, "total": self.run.tables.summary["run_id"].nunique()}

    @cached_property
    def provenance(self) -> dict[str, list[tuple[str, str]]]:
        """Data, environment and configuration, as pairs; empty where the run doesn't say."""
        manifest = self.run.manifest
        return {
            "Data behind the batch": inventory.pairs(manifest.get("data") or {}),
            "Environment": inventory.pairs(manifest.get("environment") or {}),
            "Configuration": inventory.pairs(manifest["config"]),
        }

    @cached_property
    def definitions(self) -> dict[str, dict[str, schema.Column]]:
        """Columns of the tables that the run has; coverage has a section of its own."""
        held = {name for name, frame in self.run.tables.items() if len(frame)} | {"records", "heads", "summary"}
        meanings = self.run.manifest.get("metrics") or {}
        return {
            name: schema.TABLES[name]
            | {
                column: schema.Column("float64", meanings.get(column, "a statistic of the user's own"))
                for column in schema.extras(name, frame)
            }
            for name, frame in self.run.tables.items()
            if name in held - {"coverage"}
        }


def _by_reason(skipped: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Figures that lack the same thing are named together."""
    titles: dict[str, list[str]] = {}
    for title, reason in skipped:
        titles.setdefault(reason, []).append(title)
    return [(", ".join(names), reason) for reason, names in titles.items()]


def cards_of(findings: Sequence[Finding], figures_shown: set[str]) -> list[Card]:
    """Put failures that have all but the recipe in common on a card.

    Args:
        findings: failures.
        figures_shown: names of the figures that a card may point to.
    """
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        same = (finding.code, finding.severity, finding.why, finding.limit, finding.source)
        groups.setdefault(same, []).append(finding)
    rules = {rule.code: rule for rule in RULES}
    cards = []
    for index, group in enumerate(groups.values(), 1):
        rule = rules.get(group[0].code)
        figure = rule.evidence if rule and rule.evidence in figures_shown else ""
        cards.append(Card(f"finding-{index}", group[0], group, figure, rule.false_alarms if rule else ""))
    return cards


def _scoreboard(
    recipes: Sequence[str], columns: Sequence[str], findings: Sequence[Finding], cards: Sequence[Card]
) -> list[tuple[str, list[Square]]]:
    anchors = {id(finding): card.anchor for card in cards for finding in card.findings}
    return [
        (
            recipe,
            [_cell(recipe, question, findings, anchors, f"square-{row}-{at}") for at, question in enumerate(columns)],
        )
        for row, recipe in enumerate(recipes)
    ]


def _cell(recipe: str, question: str, findings: Sequence[Finding], anchors: dict[int, str], name: str) -> Square:
    own = [finding for finding in findings if finding.recipe == recipe and finding.question == question]
    status, glyph = worst(own), GLYPHS[worst(own)]
    failed = failing(own)
    if failed:
        word = {"error": "error", "warning": "warning", "info": "note"}[status]
        worst_ones = sum(finding.severity == status for finding in failed)
        text = word if worst_ones == 1 else plural(worst_ones, word)
        return Square(status, glyph, text, measured(failed[0]), anchors.get(id(failed[0]), ""))
    passed = [finding for finding in own if finding.status == "pass"]
    if not passed:
        return Square(status, glyph, "not judged", "", "")
    numbers = [text for finding in passed if (text := measured(finding))]
    return Square(status, glyph, "pass", numbers[0] if len(passed) == 1 and numbers else "", "", name, passed)
