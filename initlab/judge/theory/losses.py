"""The first loss, from the variance of the logits."""

from __future__ import annotations

import math

import numpy as np

from initlab.judge.theory.positions import Array


def first_loss(*, vocab_size: int, spread: float, own_logit: float, repeat_rate: float) -> float:
    """Compute the expected cross entropy, nats, of independent Gaussian logits; the token just read has its own mean.

    Exact for any spread, by E ln S = integral of (e^-t - E e^-tS) dt/t with t = e^-u: E e^-tS is the product over the
    tokens of E exp(-e^(x-u)).

    Args:
        vocab_size: logits of a position.
        spread: variance of the logits around their means.
        own_logit: mean logit of the token just read; d·σ²/√q for a tied head, 0 for an untied one.
        repeat_rate: probability that the target is that token.
    """
    std = math.sqrt(spread)
    # wide logits have a loss as wide: steps that grow with it keep 4 digits, and the memory within 100 MB
    step = max(min(0.1 * std, 0.2), std / 200) or 1.0
    x = np.arange(-8 * std, 8 * std + step, step)
    weight = np.exp(-0.5 * (x / std) ** 2) if std else np.ones(1)
    x = x if std else np.zeros(1)
    weight /= weight.sum()
    low = min(-8 * std, own_logit - 8 * std) - 5  # below it both terms are 0, above the other end too
    high = max(8 * std, own_logit + 8 * std) + math.log(vocab_size) + 40
    u = np.linspace(low, high, min(max(400, int((high - low) / 0.1)), 4000))

    def alive(mean: float) -> Array:
        """E exp(-e^(x - u)) over the logits x of one token."""
        return np.asarray(np.exp(-np.exp(np.minimum(mean + x[None, :] - u[:, None], 50))) @ weight)

    others = (vocab_size - 1) * np.log(np.maximum(alive(0.0), 1e-300))
    gone = np.exp(-np.exp(np.minimum(-u, 50))) - np.exp(others) * alive(own_logit)
    return float(np.trapezoid(gone, u)) - repeat_rate * own_logit
