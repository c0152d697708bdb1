"""The report: one self-contained page, the figures as files, the findings as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from initlab import schema
from initlab.errors import RunError
from initlab.judge.outcomes import outcomes
from initlab.judge.rules.base import Finding
from initlab.judge.slopes import slopes
from initlab.report import confirm, digest, figures, inventory, scale, train
from initlab.report.svg import inline_svg, png
from initlab.report.theme import DARK, LIGHT, series
from initlab.rundir import Run, write_whole

_EVIDENCE = {
    "Depth": "depth",
    "Embedding": "residual",
    "Attention": "attention",
    "Logits": "first-loss",
    "Gradient": "gradients",
    "Width": "coord",
    "Updates": "coord-depth",
}
# rules whose evidence another figure shows than that of their question
_EVIDENCE_OF_RULE = {
    "RES002": "residual",
    "RES003": "site-map",
    "RES004": "branches",
    "RES005": "branches",
    "RES006": "residual",
    "RES007": "",
    "ACT001": "site-map",
    "ACT002": "",
    "GRD002": "gradient-roles",
}


@dataclass(frozen=True, slots=True)
class Section:
    """A figure as the page shows it."""

    name: str
    title: str
    question: str
    svg: str
    words: str
    png: bytes


@dataclass(frozen=True, slots=True)
class Card:
    """Failures of one rule: what they share once, and a line per recipe."""

    anchor: str
    lead: Finding
    findings: list[Finding]
    evidence: str  # name of the figure that shows it, or empty


@dataclass(frozen=True, slots=True)
class Cell:
    """Scoreboard: one recipe, one question."""

    status: str
    glyph: str
    text: str
    detail: str
    anchor: str


def render_html(
    run: Run,
    findings: Sequence[Finding],
    drawn: tuple[list[Section], list[tuple[str, str]]] | None = None,
) -> str:
    """The whole page as text; needs no file beside it and asks for none."""
    recipes = digest.recipes_of(run)
    sections, skipped = drawn or _sections(run)
    cards = _cards(findings, {section.name for section in sections})
    return _template().render(
        verdict=_verdict(run, findings),
        shortfall=digest.shortfall(run),
        version=run.manifest.get("initlab_version", ""),
        kind=run.manifest.get("kind", ""),
        command=run.manifest.get("command", ""),
        facts=digest.facts(run),
        looks=series(recipes),
        baseline=recipes[0] if len(recipes) > 1 else None,
        questions=digest.questions(findings),
        scoreboard=_scoreboard(recipes, findings, cards),
        overview=digest.overview(run, findings),
        cards=cards,
        counted=digest.count_sentence(run, findings),
        passed=[finding for finding in findings if finding.status == "pass"],
        skipped_checks=[finding for finding in findings if finding.status == "not_applicable"],
        slope_tables=_slope_tables(run),
        lost=scale.lost(run) if run.manifest.get("kind") == "scale" else [],
        sections=sections,
        skipped_figures=_by_reason(skipped),
        recipe_table=inventory.recipe_table(run, recipes),
        recipe_info=run.manifest.get("recipes") or {},
        coverage=inventory.coverage_table(run.tables.coverage),
        watched=run.manifest.get("kind") == "watch",
        trained=train.trained(run, findings),
        first_step=digest.steps_of(run)[0],
        cells=inventory.cell_table(run.tables.summary),
        cells_total=run.tables.summary["run_id"].nunique(),
        data=inventory.pairs(run.manifest.get("data") or {}),
        environment=inventory.pairs(run.manifest.get("environment") or {}),
        configuration=inventory.pairs(run.manifest["config"]),
        definitions=_definitions(run),
        glyphs=digest.GLYPHS,
        css=stylesheet(),
    )


def _verdict(run: Run, findings: Sequence[Finding]) -> str:
    """The page's heading: what training did, where there was any to compare with the probe."""
    if run.manifest.get("kind") == "confirm":
        return confirm.verdict(run, outcomes(run, findings))
    return digest.verdict(run, findings)


def write_report(run: Run, findings: Sequence[Finding], out: Path) -> Path:
    """Write report.html, figures/*.png and findings.json; every file is whole or not there.

    Returns:
        The path of report.html.

    Raises:
        RunError: the folder can't be written.
    """
    out = Path(out)
    pictures = out / "figures"
    try:
        pictures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"report folder {out} can't be written: {error.strerror}; choose another with -o") from error
    drawn, skipped = _sections(run)
    for spec in figures.FIGURES:
        path = pictures / f"{spec.name}.png"
        if (picture := next((each.png for each in drawn if each.name == spec.name), None)) is not None:
            write_whole(path, picture)
        else:
            path.unlink(missing_ok=True)  # of an earlier report into the same folder
    judged = {
        "judging": run.manifest.get("judging", {}),
        "findings": [_json_ready(finding.as_dict()) for finding in findings],
    }
    findings_text = json.dumps(judged, indent=1, ensure_ascii=False)
    write_whole(out / "findings.json", f"{findings_text}\n".encode())
    write_whole(out / "report.html", render_html(run, findings, (drawn, skipped)).encode())
    return out / "report.html"


def _json_ready(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: they become their names."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("initlab.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=digest.number,
        signed=digest.signed,
        measured=digest.measured,
        where=digest.where,
        plural=digest.plural,
        exponent=lambda fit: digest.exponent_text(*fit),
        slope=lambda fit: scale.slope_text(*fit),
    )
    return environment.get_template("report.html.j2")


@cache
def stylesheet() -> str:
    """Colours of both themes as variables, and the rules of the page."""
    light, dark = (";".join(f"--{token}:{colour}" for token, colour in palette.items()) for palette in (LIGHT, DARK))
    rules = resources.files("initlab.report").joinpath("report.css").read_text(encoding="utf-8")
    # Only screens get dark: paper is white.
    return f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}"


def _definitions(run: Run) -> dict[str, dict[str, schema.Column]]:
    """Columns of the tables that the run has; coverage has a section of its own."""
    held = {name for name, frame in run.tables.items() if len(frame)} | {"records", "heads", "summary"}
    return {name: columns for name, columns in schema.TABLES.items() if name in held - {"coverage"}}


def _slope_tables(run: Run) -> list[tuple[scale.SlopeTable, scale.SlopeTable]]:
    """Per axis, the selection that the terminal shows, and all of it."""
    if run.manifest.get("kind") != "scale":
        return []
    found = slopes(run.tables.records)
    return list(zip(scale.slope_tables(found), scale.slope_tables(found, every=True), strict=True))


def _sections(run: Run) -> tuple[list[Section], list[tuple[str, str]]]:
    sections, skipped = [], []
    for spec in figures.in_order():
        if reason := spec.needs(run):
            skipped.append((spec.title, reason))
            continue
        words, picture = spec.words(run), spec.draw(run, "light")
        svg = inline_svg(picture, spec.name, spec.title, words)
        sections.append(Section(spec.name, spec.title, spec.question, svg, words, png(picture, words)))
    return sections, skipped


def _by_reason(skipped: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Figures that lack the same thing are named together."""
    titles: dict[str, list[str]] = {}
    for title, reason in skipped:
        titles.setdefault(reason, []).append(title)
    return [(", ".join(names), reason) for reason, names in titles.items()]


def _cards(findings: Sequence[Finding], figures_shown: set[str]) -> list[Card]:
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in digest.failing(findings):
        same = (finding.code, finding.severity, finding.why, finding.advice, finding.limit, finding.source)
        groups.setdefault(same, []).append(finding)
    return [
        Card(f"finding-{index}", group[0], group, figure if figure in figures_shown else "")
        for index, group in enumerate(groups.values(), 1)
        for figure in [_EVIDENCE_OF_RULE.get(group[0].code, _EVIDENCE.get(group[0].question, ""))]
    ]


def _scoreboard(
    recipes: Sequence[str], findings: Sequence[Finding], cards: Sequence[Card]
) -> list[tuple[str, list[Cell]]]:
    anchors = {id(finding): card.anchor for card in cards for finding in card.findings}
    return [
        (recipe, [_cell(recipe, question, findings, anchors) for question in digest.questions(findings)])
        for recipe in recipes
    ]


def _cell(recipe: str, question: str, findings: Sequence[Finding], anchors: dict[int, str]) -> Cell:
    own = [finding for finding in findings if finding.recipe == recipe and finding.question == question]
    status, glyph = digest.worst(own), digest.GLYPHS[digest.worst(own)]
    failed = digest.failing(own)
    if failed:
        word = {"error": "error", "warning": "warning", "info": "note"}[status]
        text = word if len(failed) == 1 else f"{len(failed)} failed"
        return Cell(status, glyph, text, digest.measured(failed[0]), anchors[id(failed[0])])
    passed = [finding for finding in own if finding.status == "pass"]
    if not passed:
        return Cell(status, glyph, "not judged", "", "")
    numbers = [text for finding in passed if (text := digest.measured(finding))]
    return Cell(status, glyph, "pass", numbers[0] if len(passed) == 1 and numbers else "", "")
