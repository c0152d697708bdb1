"""What to expect of a model that nobody has built yet: `predict`. Needs no torch."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import Any

from initlab.errors import ConfigError
from initlab.judge import activations, theory
from initlab.judge.activations import Activation
from initlab.models.config import NanoGPTConfig, refuse_other_models
from initlab.models.wired import wired
from initlab.models.wiring import nanogpt_wiring
from initlab.options import Text, checked, checked_flag, real, shown, with_fields
from initlab.recipes import Recipe, registry
from initlab.recipes.base import Rule
from initlab.results import Profile

# vocabulary, chance that two tokens are equal, share of tokens equal to the one before: None is 1 / vocab_size.
# of its bytes: initlab.corpus.load_corpus(…).statistics(); docstrings as Python 3.11 has them.
TEXTS: dict[str, tuple[int, float | None, float | None]] = {
    "uniform": (50304, None, None),
    "english": (256, 0.0605, 0.0330),
    "docstrings": (256, 0.0553, 0.0330),
}
MOST_EXACT = 4096  # positions; the matrices of one block take 40 T^2 bytes


@with_fields
def predict(
    recipe: str | Recipe | Rule = "nanogpt",
    *,
    model: NanoGPTConfig | None = None,
    n_layer: int | None = None,
    n_embd: int | None = None,
    activation: Activation | None = None,
    text: Text = Text("uniform"),
    sum_p2: float | None = None,
    repeat_rate: float | None = None,
    same_target: float | None = None,
    exact: bool = False,
) -> Profile:
    """Predict the profile of a NanoGPT at init, from its recipe and sizes alone; nothing is built or drawn.

    Takes about 1 ms a block with positions in groups, which is within 0.1 % of every position by itself (`exact`).
    Exact costs O(n_layer·T²): 4 s of one x86 core and 0.7 GB for 48 blocks at T = 1024.

    Args:
        recipe: id, `file.py:name`, Recipe, or function `(role, dims) -> distribution`.
        model: sizes and options; attention averages over up to block_size tokens. Default: GPT-2's. Without a
            vocab_size the vocabulary is 50304 (GPT-2's, padded), 256 for text.
        n_layer: blocks, in place of the model's.
        n_embd: width, in place of the model's; heads keep their size.
        activation: in place of the model's: also one that NanoGPT lacks (initlab.judge.activations.NAMES), or an
            elementwise function of a numpy array.
        text: `uniform` random tokens; `english`, the bytes of the text that `compare` reads unless it is given
            another; or `docstrings`, those of Python's documentation.
        sum_p2: of your text, in place of those: chance that two tokens are equal, as
            `initlab.corpus.load_corpus(...).statistics()` has it.
        repeat_rate: likewise, share of tokens equal to the one before.
        same_target: chance that two positions of one sequence are to predict the same token, which text repeats more
            often than any two of its tokens are equal; `probe` and others count it in their batch. Default: sum_p2.
        exact: follow every position by itself.

    Returns:
        Profile: variances of every site and of the gradient, and the scalars of the first step.

    Raises:
        RecipeError: no such recipe, or it has no answer for a role.
        ConfigError: a size, statistic or name can't be used.

    Example:
        >>> initlab.predict("nanogpt", n_layer=48, n_embd=1600).growth  # GPT-2 XL
    """
    entry = registry.get(recipe)
    refuse_other_models(model, "predict expects")
    data = checked("text", text, Text).data
    if not isinstance(data, str | PathLike) or str(data) not in TEXTS:
        raise ConfigError(
            f"no statistics of the text {shown(data)}; known: {', '.join(TEXTS)}; for another text give sum_p2 and "
            "repeat_rate"
        )
    vocabulary, equal, repeated = TEXTS[str(data)]
    config = (model or NanoGPTConfig()).resized(n_layer=n_layer, n_embd=n_embd)
    V, block_size = config.vocab_size, text.block_size or config.block_size
    if V is None:
        V = text.vocab_size or vocabulary
    config = wired(config, entry)
    if not config.plain:
        raise ConfigError(
            "predict knows the parameters of nanoGPT's own wiring; of a model with other norms, positions, heads or "
            "multipliers initlab.probe and initlab.compare have the closed form beside the measurement"
        )
    if V < 2:
        raise ConfigError(f"vocab_size is {V}; expected a whole number from 2 on")
    if exact and block_size > MOST_EXACT:
        raise ConfigError(
            f"exact=True follows block_size² pairs of positions; {block_size} is above {MOST_EXACT}, leave exact out"
        )
    sum_p2 = sum_p2 if sum_p2 is not None else 1 / V if equal is None else equal
    repeat_rate = repeat_rate if repeat_rate is not None else 1 / V if repeated is None else repeated
    shares = [("sum_p2", sum_p2, 1 / V), ("repeat_rate", repeat_rate, 0.0)]
    shares += [] if same_target is None else [("same_target", same_target, 0.0)]
    checked_flag("exact", exact)
    for name, share, least in shares:
        if not real(share) or not least * (1 - 1e-9) <= share <= 1:
            found = f"{share:g}" if real(share) else shown(share)
            raise ConfigError(f"{name} is {found}; expected a share from {least:g} to 1 (vocab_size is {V})")
    activation = config.activation if activation is None else activation
    activations.check(activation)
    read = theory.TextStatistics(block_size=block_size, sum_p2=sum_p2, repeat_rate=repeat_rate, same_target=same_target)
    sizes: dict[str, Any] = {"n_layer": config.n_layer, "n_embd": config.n_embd, "n_head": config.n_head}
    sizes |= {"vocab_size": V, "bias": config.bias, "tied": config.tie_weights}
    parameters = theory.nanogpt_parameters(**sizes, block_size=block_size)
    wiring = nanogpt_wiring(replace(config, vocab_size=V), activation=activation, dropout=config.dropout)
    setting = theory.setting_of(parameters, wiring, read, entry)
    return Profile(entry.id, setting, theory.predict(setting, exact=exact), exact)
