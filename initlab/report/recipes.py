"""Recipes as terminal text, evaluated from their data."""

from __future__ import annotations

import io
import shutil
import textwrap
from typing import Any

from rich.console import Console
from rich.table import Table

from initlab.recipes import Recipe
from initlab.recipes.profiled import Profiled

ADAM = {"lr": "rate", "weight_decay": "decay", "eps": "eps"}
_FAMILIES = {
    "gpt2": "GPT-2",
    "megatron": "Megatron",
    "llama": "Llama",
    "olmo": "OLMo",
    "fans": "by fans",
    "transfer": "whose rates hold over width or depth",
    "depth": "for many layers",
    "models": "as published models have them",
    "framework": "framework",
}


PROFILES = "that look at a batch"


def catalogue_text(recipes: list[Recipe], profiles: list[Profiled], *, color: bool = False) -> str:
    """One line per recipe, by family: id and what it draws; then the inits that look at a batch."""
    table = make_table("recipe", "draws")
    families = {recipe.family: [each for each in recipes if each.family == recipe.family] for recipe in recipes}
    for family, members in families.items():
        table.add_row("")
        table.add_row(_FAMILIES.get(family, family), style="bold")
        for recipe in members:
            table.add_row(f"  {recipe.id}", recipe.summary)
    table.add_row("")
    table.add_row(PROFILES, style="bold")
    for entry in profiles:
        table.add_row(f"  {entry.id}", entry.summary)
    table.add_row("")
    said = "initlab recipes NAME shows the std of every role, its formula and its source, or how it is used.\n"
    return print_table(table, color) + said


def profile_text(entry: Profiled) -> str:
    """What an init does that looks at a batch, what it needs, how it is used, and where it was read."""
    lines = (f"{entry.id}: {entry.summary}", "", f"note: {entry.note}", f"source: {entry.source}", "")
    width = shutil.get_terminal_size((100, 24)).columns
    filled = [textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in lines]
    return "".join(f"{line}\n" for line in filled) + f"    {entry.usage}\n"


def recipe_text(id: str, evaluated: dict[str, Any], size: dict[str, int], *, color: bool = False) -> str:
    """Role, distribution, std and formula of one recipe at given sizes, and where they come from."""
    adam = [name for name in ADAM if any(row.get(name, 1.0) != 1.0 for row in evaluated["rows"])]
    table = make_table("role", "distribution", "std", "formula", *(f"{ADAM[name]} ×" for name in adam))
    roles = [row["role"] for row in evaluated["rows"]]
    for row in evaluated["rows"]:
        block = f" (block {row['layer']})" if roles.count(row["role"]) > 1 else ""
        multipliers = [_with_formula(row[name], row[f"{name}_formula"]) for name in adam]
        table.add_row(row["role"] + block, row["distribution"], _value(row), row["formula"], *multipliers)
    sizes = ", ".join(f"{name} {value}" for name, value in size.items())
    name = f"{id}: {evaluated['summary']}" if evaluated["summary"] else id
    head = f"{textwrap.fill(name, shutil.get_terminal_size((100, 24)).columns)}\nat {sizes}\n\n"
    width = shutil.get_terminal_size((100, 24)).columns
    lines = [f"wiring: {wiring_text(each)}" for each in evaluated.get("wiring", [])]
    if base := evaluated.get("base"):
        lines.append(f"base: n_layer {base['n_layer']}, n_embd {base['n_embd']}, where every multiplier is 1")
    lines += [f"note: {evaluated['note']}"] if "note" in evaluated else []
    lines.append(f"source: {evaluated['source']}")
    filled = [textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in lines]
    return f"{head}{print_table(table, color)}\n" + "".join(f"{line}\n" for line in filled)


def wiring_text(wiring: dict[str, Any]) -> str:
    """Options of a recipe's wiring at one size, each with its value and formula.

    Args:
        wiring: one of what `evaluate` gives.
    """
    return ", ".join(
        f"{name} {_with_formula(value, wiring['formulas'].get(name, ''))}" for name, value in wiring["options"].items()
    )


def _with_formula(value: Any, formula: str) -> str:
    if isinstance(value, list | tuple):
        value = f"{value[0]:.3g} to {value[-1]:.3g}"
    elif isinstance(value, float):
        value = f"{value:.4g}"
    return f"{value} = {formula}" if formula and formula != value else f"{value}"


def _value(row: dict[str, Any]) -> str:
    return f"{row['mean']:g} (all)" if row["distribution"] == "constant" else f"{row['std']:.4g}"


def make_table(*heads: str) -> Table:
    """A table without lines, whose first column isn't wrapped."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for place, head in enumerate(heads):
        table.add_column(head, no_wrap=place == 0)
    return table


def print_table(table: Table, color: bool, most: int | None = None) -> str:
    """The table as text, as wide as the terminal or narrower."""
    buffer = io.StringIO()
    width = shutil.get_terminal_size((100, 24)).columns
    width = min(width, most or width)
    console = Console(
        file=buffer,
        width=width,
        force_terminal=color,
        no_color=not color,
        highlight=False,
        markup=False,
        force_jupyter=False,
    )
    console.print(table)
    # rich pads every line to the table's width
    return "".join(line.rstrip() + "\n" for line in buffer.getvalue().splitlines())
