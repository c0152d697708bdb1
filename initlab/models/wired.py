"""A NanoGPT wired as a recipe has it. Needs no torch."""

from __future__ import annotations

from dataclasses import fields, replace

from initlab.errors import ConfigError, RecipeError
from initlab.models.config import GPT2_VOCAB, WIRING, NanoGPTConfig
from initlab.recipes import Dims, Recipe

OPTIONS = (*WIRING, "activation", "bias", "tie_weights")  # that a recipe may say
_DEFAULTS = {field.name: field.default for field in fields(NanoGPTConfig)}


def wired(config: NanoGPTConfig, recipe: Recipe) -> NanoGPTConfig:
    """Give a NanoGPT the wiring that belongs to a recipe; as it is where the recipe says nothing.

    Args:
        config: of the sizes that the recipe's formulas are evaluated at.
        recipe: any.

    Raises:
        RecipeError: the recipe's wiring fails, or has an option that NanoGPT hasn't.
        ConfigError: the config has another value than the recipe and than nanoGPT, or the two can't go together.
    """
    found = recipe.wired(dims_of(config))
    if unknown := sorted(found.keys() - set(OPTIONS)):
        raise RecipeError(
            f"the wiring of {recipe.id} has {unknown[0]}, which NanoGPT doesn't take; known: "
            f"{', '.join(sorted(OPTIONS))}"
        )
    for name, value in found.items():
        given = getattr(config, name)
        if given not in (_DEFAULTS[name], value):
            raise ConfigError(
                f"{recipe.id} wires {name} as {value!r}, and the model's config says {given!r}; leave it out of one of "
                "the two"
            )
    return replace(config, **found)


def dims_of(config: NanoGPTConfig) -> Dims:
    """Say a NanoGPT's sizes as a recipe is asked with them, the fans those of a square matrix.

    Args:
        config: any.
    """
    return Dims(
        n_layer=config.n_layer,
        n_embd=config.n_embd,
        n_head=config.n_head,
        block_size=config.block_size,
        vocab_size=config.vocab_size or GPT2_VOCAB,
        fan_in=config.n_embd,
        fan_out=config.n_embd,
        tied=config.tie_weights,
    )
