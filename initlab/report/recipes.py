"""Recipes as terminal text, evaluated from their data."""

from __future__ import annotations

import io
import shutil
import textwrap
from typing import Any

from rich.console import Console
from rich.table import Table

from initlab.recipes import Recipe

_FAMILIES = {
    "gpt2": "GPT-2",
    "megatron": "Megatron",
    "llama": "Llama",
    "olmo": "OLMo",
    "fans": "by fans",
    "framework": "framework",
}


def catalogue_text(recipes: list[Recipe], *, color: bool = False) -> str:
    """One line per recipe, by family: id and what it draws."""
    table = make_table("recipe", "draws")
    families = {recipe.family: [each for each in recipes if each.family == recipe.family] for recipe in recipes}
    for family, members in families.items():
        table.add_row("")
        table.add_row(_FAMILIES.get(family, family), style="bold")
        for recipe in members:
            table.add_row(f"  {recipe.id}", recipe.summary)
    table.add_row("")
    return print_table(table, color) + "initlab recipes NAME shows the std of every role, its formula and its source.\n"


def recipe_text(id: str, evaluated: dict[str, Any], size: dict[str, int], *, color: bool = False) -> str:
    """Role, distribution, std and formula of one recipe at given sizes, and where they come from."""
    table = make_table("role", "distribution", "std", "formula")
    roles = [row["role"] for row in evaluated["rows"]]
    for row in evaluated["rows"]:
        block = f" (block {row['layer']})" if roles.count(row["role"]) > 1 else ""
        table.add_row(row["role"] + block, row["distribution"], _value(row), row["formula"])
    sizes = ", ".join(f"{name} {value}" for name, value in size.items())
    name = f"{id}: {evaluated['summary']}" if evaluated["summary"] else id
    head = f"{textwrap.fill(name, shutil.get_terminal_size((100, 24)).columns)}\nat {sizes}\n\n"
    width = shutil.get_terminal_size((100, 24)).columns
    source = textwrap.fill(f"source: {evaluated['source']}", width, break_long_words=False, break_on_hyphens=False)
    return f"{head}{print_table(table, color)}\n{source}\n"


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
    console = Console(file=buffer, width=width, force_terminal=color, no_color=not color, highlight=False, markup=False)
    console.print(table)
    # rich pads every line to the table's width
    return "".join(line.rstrip() + "\n" for line in buffer.getvalue().splitlines())
