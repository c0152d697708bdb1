"""Recipes evaluated for a GPT of given sizes: the one source of every table in docs, terminal, report and run.json."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from initlab.recipes.base import Dims, Recipe, Role


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
        sizes: n_layer, n_embd, n_head, block_size and vocab_size of each.
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
            last = size["n_layer"] - 1
            values = {layer: recipe(role, replace(dims, layer=layer)) for layer in (0, last)}
            if values[0] == values[last]:
                values = {0: values[0]}
            rows += [
                {
                    "role": role.value,
                    "n_layer": size["n_layer"],
                    "n_embd": size["n_embd"],
                    "layer": layer,
                    "distribution": value.kind,
                    "mean": float(value.mean),
                    "std": float(value.std),  # a user's may be of numpy or torch
                    "formula": value.formula,
                }
                for layer, value in values.items()
            ]
    return {"summary": recipe.summary, "family": recipe.family, "source": recipe.source, "rows": rows}
