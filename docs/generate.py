"""Makes the pages that are tables of the package: `python docs/generate.py`; a test holds them to it."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from initlab import cli
from initlab.judge.rules import RULES
from initlab.recipes import registry
from initlab.recipes.profiled import PROFILED
from initlab.report.glossary import WORDS
from initlab.report.rules import sections
from initlab.report.verdict import questions

HERE = Path(__file__).parent
BASE = "own-llama"  # of benchmarks/detection.csv: the model that is written by hand
MOST = 260  # letters of what is said of a fault


def rules() -> str:
    """Every rule, by question."""
    parts = ["# Every rule", f"{len(RULES)} rules; `initlab rules CODE` prints one."]
    for question in questions(list(RULES)):
        parts.append(f"## {question}")
        for rule in RULES:
            if rule.question == question:
                parts.append(f"### {rule.code} {rule.name}")
                parts += [f"**{heading}.** {_plain(text)}" for heading, text in sections(rule).items()]
    return "\n\n".join(parts) + "\n"


def recipes() -> str:
    """Every recipe, by family."""
    known = registry.all_recipes().values()
    parts = ["# Every recipe", f"{len(known)} recipes; `initlab recipes NAME` shows every role's std and formula."]
    for family in dict.fromkeys(recipe.family for recipe in known):
        rows = [recipe for recipe in known if recipe.family == family]
        table = ["| recipe | what it draws | source |", "|---|---|---|"]
        table += [f"| `{recipe.id}` | {_cell(recipe.summary)} | {_cell(recipe.source)} |" for recipe in rows]
        parts += [f"## {family}", "\n".join(table)]
    profiles = PROFILED.items().values()
    table = ["| id | what it does | note | source |", "|---|---|---|---|"]
    table += [f"| `{p.id}` | {_cell(p.summary)} | {_cell(p.note)} | {_cell(p.source)} |" for p in profiles]
    parts += ["## Inits that look at a batch", f"`{next(iter(profiles)).usage}`", "\n".join(table)]
    return "\n\n".join(parts) + "\n"


def cookbook() -> str:
    """What is said of every fault that benchmarks/detection.py plants into the model that is written by hand."""
    with (HERE.parent / "benchmarks" / "detection.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["base"] == BASE and row["planted"] == "yes"]
    parts = [
        "# Faults, and what is said of them",
        "Planted into a Llama written by hand; of other models see [the whole table](../benchmarks/detection.md). "
        "Codes are followed by e, w or i: error, warning, note.",
    ]
    for group in dict.fromkeys(row["group"] for row in rows):
        table = ["| fault | harm | findings | the first says |", "|---|---|---|---|"]
        for row in rows:
            if row["group"] == group:
                said = row["text"] if len(row["text"]) <= MOST else row["text"][:MOST].rsplit(" ", 1)[0] + " …"
                table.append(f"| {_cell(row['fault'])} | {row['harm']} | {row['codes']} | {_cell(said)} |")
        parts += [f"## {group}", "\n".join(table)]
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """Every command with its options."""
    found = next(each for each in cli.parser()._actions if isinstance(each, argparse._SubParsersAction))
    said = {each.dest: each.help or "" for each in found._choices_actions}
    parts = ["# Every command", "What `initlab COMMAND --help` says, where there are examples too."]
    for name, parser in found.choices.items():
        table = ["| option | what it is |", "|---|---|"]
        for each in parser._actions:
            if each.help not in (argparse.SUPPRESS, None) and not isinstance(each, argparse._HelpAction):
                table.append(f"| {_option(each)} | {_help(each)} |")
        parts += [f"## {name}", _plain(said[name]), "\n".join(table)]
    return "\n\n".join(parts) + "\n"


def _option(action: argparse.Action) -> str:
    """`-o`, `--out DIR`, or the name of what needs no option."""
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    if action.choices is not None and not action.metavar:
        value = "{" + ",".join(str(each) for each in action.choices) + "}"
    value = " ".join(value) if isinstance(value, tuple) else value
    names = action.option_strings or [value]
    text = ", ".join(f"`{each}`" for each in names[:-1])
    last = f"`{names[-1]} {value}`" if value and action.option_strings and action.nargs != 0 else f"`{names[-1]}`"
    return (f"{text}, {last}" if text else last).replace("|", "\\|")


def _help(action: argparse.Action) -> str:
    """Its help, as a cell; what is between backticks is code already."""
    text = " ".join(((action.help or "") % {"default": action.default, "prog": "initlab"}).replace("|", "/").split())
    return "`".join(each if place % 2 else _plain(each) for place, each in enumerate(text.split("`")))


def glossary() -> str:
    """The words that every page explains too."""
    parts = [
        "# Glossary",
        "Sites have TransformerLens' names, sizes and parameters nanoGPT's, roles say what a parameter does. These are "
        "the words\nthat aren't the field's own.",
        "\n".join(["| word | meaning |", "|---|---|", *(f"| **{word}** | {said} |" for word, said in WORDS.items())]),
    ]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    for sign in "\\`*_<>[]":
        text = text.replace(sign, f"\\{sign}")
    return text


def _cell(text: str) -> str:
    return _plain(" ".join(text.split())).replace("|", "\\|")


PAGES = {
    "commands.md": commands,
    "rules.md": rules,
    "recipe-list.md": recipes,
    "cookbook.md": cookbook,
    "glossary.md": glossary,
}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (HERE / name).write_text(make(), encoding="utf-8")
