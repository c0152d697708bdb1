"""The words that aren't the field's own: a page explains them, and docs/glossary.md is made of them."""

from __future__ import annotations

# what is in backticks is code
WORDS = {
    "write": "what a block's attention or MLP adds to the residual stream: `attn_out`, `mlp_out`",
    "stream": "the residual stream: what blocks read from and add to",
    "branch": "the computation between the stream and one write",
    "closed form": "a statistic as it follows from weights' std, sizes and wiring, without a measurement",
    "var, rms": "E[x²] − E[x]², and √E[x²], over every element of a tensor",
    "depth exponent": "x in variance ∝ n_layer^x: −1 where outputs are scaled by 1/√(2·n_layer), 0 where they aren't",
    "coord check": "exponents over the width, before and after a few steps, as in mup",
    "role": "`token_embed`, `pos_embed`, `attn_q`, `attn_out`, `mlp_in`, `unembed`, `norm_gain`, …; "
    "`other` where none is known",
    "recipe": "an init, by role and size; for some also a wiring, and multipliers of Adam's rate, decay and eps",
    "base": "the sizes at which a recipe's multipliers are 1",
    "finding": "the verdict of one rule on one recipe: failed (error, warning, note), passed, or not applicable",
    "ln V": "loss of a model that knows nothing: natural logarithm of the vocabulary's size",
    "regret": "loss above that of the best recipe of the same grid, in nats",
    "stuck": "a run that ends no better than knowing how frequent tokens are",
    "drift": "how the best learning rate goes with the size, as an exponent",
    "as found": "a model measured with the weights it came with",
}


def plain() -> dict[str, str]:
    """Give every word its meaning, as a page writes it."""
    return {word: meaning.replace("`", "") for word, meaning in WORDS.items()}
