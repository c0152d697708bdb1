"""What many recipes say alike, so that each writes down only what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from initlab.recipes.base import VECTORS, Constant, Dims, Distribution, Normal, Role, Uniform


def by_role(
    role: Role,
    *,
    matrix: Distribution,
    tokens: Distribution,
    positions: Distribution | None = None,
    head: Distribution | None = None,
) -> Distribution:
    """Answer for a role: norms start as the identity, biases at 0.

    Args:
        role: asked for.
        matrix: of every matrix that isn't one of the others.
        tokens: of the token embedding, which is the head too where they are tied.
        positions: of the position embedding. None: as tokens.
        head: of an untied head. None: as tokens.
    """
    if role in VECTORS:
        return Constant(1.0 if role == Role.NORM_GAIN else 0.0)
    return {Role.TOKEN_EMBED: tokens, Role.POS_EMBED: positions or tokens, Role.UNEMBED: head or tokens}.get(
        role, matrix
    )


def xavier_normal(dims: Dims, gain: str = "") -> Normal:
    """Glorot's normal, as torch.nn.init.xavier_normal_.

    Args:
        dims: of the matrix.
        gain: what follows the formula, as in " * 0.5".
    """
    return Normal(dims(f"sqrt(2 / (fan_in + fan_out)){gain}"))


def xavier_uniform(dims: Dims, gain: str = "") -> Uniform:
    """Glorot's uniform, as torch.nn.init.xavier_uniform_.

    Args:
        dims: of the matrix.
        gain: what follows the formula, as in " * 0.5".
    """
    return Uniform(dims(f"sqrt(6 / (fan_in + fan_out)){gain}"))


def wiring(**options: Any) -> Callable[[Dims], dict[str, Any]]:
    """Make a recipe's wiring.

    Args:
        options: by name; the text of a multiplier is a formula.
    """

    def wire(dims: Dims) -> dict[str, Any]:
        return {
            name: dims(value) if isinstance(value, str) and name.endswith("multiplier") else value
            for name, value in options.items()
        }

    return wire


def fairseq_wiring(**options: Any) -> Callable[[Dims], dict[str, Any]]:
    """Make the wiring of fairseq's descendants: the embedding × √n_embd, and a language model's head of its own.

    Args:
        options: further ones, as of `wiring`.
    """
    return wiring(embedding_multiplier="sqrt(n_embd)", tie_weights=False, **options)


def llama_wiring(**options: Any) -> Callable[[Dims], dict[str, Any]]:
    """Make the wiring of a Llama's descendants: RMSNorm, rotary positions, SwiGLU, no biases.

    Args:
        options: further ones, or others, as of `wiring`.
    """
    return wiring(**({"norm": "rmsnorm", "positions": "rotary", "activation": "swiglu", "bias": False} | options))


def fairseq(role: Role, dims: Dims, matrix: Distribution) -> Distribution:
    """Answer for a role with fairseq's embeddings, under an embedding multiplier of √n_embd.

    Its tokens, of std 1/√n_embd, are multiplied; its positions, of the same, are not: 1/n_embd under a multiplier of
    both.

    Args:
        role: asked for.
        dims: its sizes.
        matrix: of blocks' matrices.
    """
    return by_role(role, matrix=matrix, tokens=Normal(dims("1 / sqrt(n_embd)")), positions=Normal(dims("1 / n_embd")))
