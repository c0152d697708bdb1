"""`initlab recipes`: needs no torch."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from initlab.cli.common import use_color
from initlab.errors import ConfigError

if TYPE_CHECKING:
    from initlab.cli.common import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    recipes = commands.add_parser(
        "recipes",
        help="list init recipes, or show what one draws",
        description="List the recipes, or show what one draws for given sizes: role, distribution, std, formula.",
    )
    recipes.add_argument("name", nargs="?", metavar="NAME", help="id or file.py:name")
    recipes.add_argument("--n-layer", type=int, default=12, metavar="L", help="(12)")
    recipes.add_argument("--n-embd", type=int, default=768, metavar="D", help="(768)")
    recipes.add_argument("--n-head", type=int, metavar="N", help="heads of 64 unless given")
    recipes.add_argument("--block-size", type=int, default=1024, metavar="T", help="(1024)")
    recipes.add_argument("--vocab-size", type=int, default=50304, metavar="V", help="(50304)")
    recipes.add_argument("--untied", action="store_true", help="lm_head with weights of its own")
    recipes.add_argument("--format", choices=("text", "json"), default="text", help="of stdout (text)")
    recipes.set_defaults(run=_recipes)


def _recipes(options: argparse.Namespace) -> int:
    from initlab.recipes import registry
    from initlab.recipes.profiled import PROFILED
    from initlab.recipes.tabulating import evaluate
    from initlab.report import recipes as catalogue

    if options.name is None:
        known, profiles = registry.all_recipes().values(), PROFILED.items().values()
        if options.format == "json":
            rows = [{"id": r.id, "family": r.family, "summary": r.summary, "source": r.source} for r in known]
            rows += [{"id": p.id, "family": "profiled", "summary": p.summary, "source": p.source} for p in profiles]
            print(json.dumps(rows, ensure_ascii=False, indent=1))
        else:
            print(catalogue.catalogue_text(list(known), list(profiles), color=use_color()), end="")
        return 0
    if options.name in PROFILED:
        found = PROFILED.get(options.name)
        if options.format == "json":
            row = {name: getattr(found, name) for name in ("id", "summary", "note", "source", "usage")}
            print(json.dumps(row, ensure_ascii=False, indent=1))
        else:
            print(catalogue.profile_text(found), end="")
        return 0
    entry = registry.get(options.name)
    size = {
        "n_layer": options.n_layer,
        "n_embd": options.n_embd,
        "n_head": options.n_head or max(options.n_embd // 64, 1),
        "block_size": options.block_size,
        "vocab_size": options.vocab_size,
    }
    wrong = [name for name, value in size.items() if value < 1]
    if wrong:
        raise ConfigError(f"{wrong[0]} is {size[wrong[0]]}; expected at least 1")
    evaluated = evaluate(entry, [size], tied=not options.untied, special=True)
    if options.format == "json":
        print(json.dumps({"id": entry.id, **evaluated}, ensure_ascii=False, indent=1))
    else:
        print(catalogue.recipe_text(entry.id, evaluated, size, color=use_color()), end="")
    return 0
