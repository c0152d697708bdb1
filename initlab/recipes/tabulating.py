"""Recipes evaluated for a GPT of given sizes: the one source of every table in docs, terminal, report and run.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from typing import Any

from initlab.recipes.base import QKV, Adam, Dims, Distribution, Formula, Recipe, Role
from initlab.recipes.distributions import text_of


def gpt_dims(
    role: Role, *, n_layer: int, n_embd: int, n_head: int, block_size: int, vocab_size: int, tied: bool = True
) -> Dims:
    """Sizes of a role's matrix in a GPT with a 4·n_embd MLP; a bias gets those of c_attn (fan_in n_embd)."""
    fans = {
        Role.TOKEN_EMBED: (vocab_size, n_embd),
        Role.POS_EMBED: (block_size, n_embd),
        Role.MLP_IN: (n_embd, 4 * n_embd),
        Role.MLP_GATE: (n_embd, 4 * n_embd),
        Role.MLP_OUT: (4 * n_embd, n_embd),
        Role.UNEMBED: (n_embd, vocab_size),
    }
    fan_in, fan_out = fans.get(role, (n_embd, n_embd))
    return Dims(
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head,
        block_size=block_size,
        vocab_size=vocab_size,
        fan_in=fan_in,
        fan_out=fan_out,
        tied=tied,
    )


def gpt_roles(*, bias: bool = True, tied: bool = True) -> list[Role]:
    """List the roles that a GPT has, in the order of a forward pass."""
    roles = [Role.TOKEN_EMBED, Role.POS_EMBED, Role.NORM_GAIN, Role.ATTN_QKV, Role.ATTN_OUT, Role.MLP_IN, Role.MLP_OUT]
    roles += [] if tied else [Role.UNEMBED]
    roles += [Role.NORM_BIAS, Role.BIAS] if bias else []
    return roles


def evaluate(
    recipe: Recipe, sizes: list[dict[str, int]], *, bias: bool = True, tied: bool = True, special: bool = False
) -> dict[str, Any]:
    """Evaluate a recipe as JSON-ready data: summary, source, and a row per role and size.

    A recipe that draws blocks differently has a row for the first block and one for the last.

    Args:
        recipe: any.
        sizes: n_layer, n_embd, n_head, block_size and vocab_size of each.
        bias: the model has biases.
        tied: its head is the token embedding.
        special: also the roles that a GPT lacks, where the recipe tells them apart: an MLP's gate, which is otherwise
            drawn as the projection beside it, and an experts' router, otherwise as queries are.
    """
    rows = []
    for size in sizes:
        roles = gpt_roles(bias=bias, tied=tied)
        if special:
            for role, beside in ((Role.ROUTER, Role.ATTN_QKV), (Role.MLP_GATE, Role.MLP_IN)):
                both = [recipe(each, gpt_dims(each, **size, tied=tied)) for each in (role, beside)]
                if both[0] != both[1]:
                    roles.insert(roles.index(Role.MLP_IN), role)
        for role in roles:
            dims = gpt_dims(role, **size, tied=tied)
            asked = QKV if role == Role.ATTN_QKV else (role,)
            layers = (0, size["n_layer"] - 1)
            found = [_rows(recipe, ((each, replace(dims, layer=layer)) for layer in layers)) for each in asked]
            rows += _alike(found)
    wirings = [_wiring(recipe, gpt_dims(Role.OTHER, **size, tied=tied)) for size in sizes]
    return _described(recipe, rows, wirings)


def evaluate_places(recipe: Recipe, places: Iterable[tuple[Role, Dims]]) -> dict[str, Any]:
    """Evaluate a recipe as `evaluate` does, for the parameters of models as they are.

    Args:
        recipe: any.
        places: role and sizes of every parameter, model by model.

    Raises:
        RecipeError: the recipe has no answer for one of them.
    """
    by_size: dict[tuple[int, int, Role], dict[Role, list[tuple[Role, Dims]]]] = {}
    for role, dims in places:
        if dims.layer in (0, dims.n_layer - 1):
            line = Role.ATTN_QKV if role in QKV else role
            by_size.setdefault((dims.n_layer, dims.n_embd, line), {}).setdefault(role, []).append((role, dims))
    lines = [_alike([_rows(recipe, found) for found in by_role.values()]) for by_role in by_size.values()]
    sizes = {
        (dims.n_layer, dims.n_embd): dims for found in by_size.values() for (_, dims) in next(iter(found.values()))
    }
    return _described(recipe, [row for line in lines for row in line], [_wiring(recipe, d) for d in sizes.values()])


def _rows(recipe: Recipe, places: Iterable[tuple[Role, Dims]]) -> list[dict[str, Any]]:
    """A row for each distribution, with the first block that has it."""
    values: dict[Distribution, tuple[Role, Dims]] = {}
    for role, dims in places:
        values.setdefault(recipe(role, dims), (role, dims))
    return [
        {
            "role": role.value,
            "n_layer": dims.n_layer,
            "n_embd": dims.n_embd,
            "layer": dims.layer,
            "distribution": value.kind,
            "mean": float(value.mean),
            "std": float(value.std),  # a user's may be of numpy or torch
            "formula": value.formula,
        }
        | ({} if recipe.optimizer is None else _multipliers(recipe.adam(role, dims)))
        for value, (role, dims) in values.items()
    ]


def _alike(found: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One line for q, k and v where all three are drawn alike."""
    drawn = [[row | {"role": Role.ATTN_QKV.value} for row in rows] for rows in found]
    if len(found) > 1 and all(rows == drawn[0] for rows in drawn):
        return drawn[0]
    return [row for rows in found for row in rows]


def _multipliers(adam: Adam) -> dict[str, Any]:
    """Of the rate, decay and eps, each with its formula."""
    found: dict[str, Any] = {}
    for field in fields(adam):
        value = getattr(adam, field.name)
        found |= {field.name: float(value), f"{field.name}_formula": text_of(value)}
    return found


def _wiring(recipe: Recipe, dims: Dims) -> dict[str, Any]:
    """The options at one size, and the formulas of those that have one; by block where they differ."""
    found = recipe.wired(dims)
    texts = {name: _texts(value) for name, value in found.items()}
    return {
        "n_layer": dims.n_layer,
        "n_embd": dims.n_embd,
        "options": found,
        "formulas": {name: text for name, text in texts.items() if text},
    }


def _texts(value: Any) -> str:
    first = value[0] if isinstance(value, tuple) else value
    return first.text if isinstance(first, Formula) else ""


def _described(recipe: Recipe, rows: list[dict[str, Any]], wirings: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": recipe.summary, "family": recipe.family, "source": recipe.source}
    found |= {"note": recipe.note} if recipe.note else {}
    found |= {"base": asdict(recipe.base)} if recipe.base else {}
    found |= {"wiring": wirings} if recipe.wiring else {}
    return found | {"rows": rows}
