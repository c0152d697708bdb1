"""A model's wiring in the words of a recipe's: what it has, and what is to be multiplied for it to have more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from initlab.errors import RecipeError
from initlab.wiring import MLP, Attention, Block, Branch, Norm, Update, Wiring

Pieces = tuple[tuple[int, int], ...]
SAME = 1e-4  # numbers are read from float32 tensors and products of them


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What the output of a module has to be multiplied with.

    Attributes:
        what: it is, for a message.
        module: dotted name; empty where there is none.
        factor: the number.
        start_of: of a learned number, what it starts at; None: there is none.
        width: features of the learned number; 0: one for all.
        pieces: of the output's features those that are multiplied, (first, one past the last); empty: all.
    """

    what: str
    module: str
    factor: float = 1.0
    start_of: float | None = None
    width: int = 0
    pieces: Pieces = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """The options of a recipe's wiring that can be given to a model that is built; None leaves it as it is."""

    residual_multiplier: float | tuple[float, ...] | None = None
    skip_multiplier: float | tuple[float, ...] | None = None
    norm_multiplier: float | tuple[float, ...] | None = None
    attention_multiplier: float | None = None
    embedding_multiplier: float | None = None
    logit_multiplier: float | None = None
    layer_scale: float | None = None
    gate: float | None = None

    @classmethod
    def of(cls, options: dict[str, Any]) -> Wanted:
        """Pick them out of all options. Raises RecipeError where one is no number."""
        single = ("attention_multiplier", "embedding_multiplier", "logit_multiplier", "layer_scale", "gate")
        for name in [field.name for field in fields(cls) if field.name in options]:
            value = options[name]
            for each in value if isinstance(value, tuple) and name not in single else (value,):
                if isinstance(each, bool) or not isinstance(each, Real) or not math.isfinite(each):
                    raise RecipeError(f"{name} is {each!r}; expected a finite number")
        return cls(**{field.name: options[field.name] for field in fields(cls) if field.name in options})

    def at(self, name: str, layer: int) -> float | None:
        """Look an option up for a block. Raises RecipeError where it has another number of blocks."""
        value = getattr(self, name)
        if not isinstance(value, tuple):
            return None if value is None else float(value)
        if layer >= len(value):
            raise RecipeError(f"{name} has numbers for {len(value)} blocks, and there are more")
        return float(value[layer])


def found_options(wiring: Wiring) -> dict[str, Any]:
    """Say what a model has of the options that can't be given to it once it is built.

    Args:
        wiring: as it was read.
    """
    branches = list(wiring.branches())
    attention = [branch.body for branch in branches if isinstance(branch.body, Attention)]
    mlps = [branch.body for branch in branches if isinstance(branch.body, MLP)]
    norms = [norm for block in wiring.blocks for update in block.updates for norm in _norms(update)]
    kinds = {"layernorm" if norm.centred else "rmsnorm" for norm in norms} or {"none"}
    inner = "mlp" if mlps and all(mlp.inner_norm for mlp in mlps) else "none"
    if inner == "mlp" and attention and all(each.out_norm for each in attention):
        inner = "both"
    gates = {mlp.activation if isinstance(mlp.activation, str) else "a function" for mlp in mlps}
    gated = {"silu": "swiglu", "gelu": "geglu", "gelu_tanh": "geglu", "relu": "reglu"}
    activations = {gated.get(name, name) if any(mlp.gate for mlp in mlps) else name for name in gates}
    return {
        "norm": _one(kinds),
        "norm_placement": _one({_placement(block) for block in wiring.blocks}),
        "inner_norm": inner,
        "qk_norm": bool(attention) and all(each.query_norm is not None for each in attention),
        "embed_norm": wiring.embed_norm is not None,
        "logit_cap": wiring.logit_cap,
        "tie_weights": wiring.tied,
        "positions": _positions(wiring, attention),
        "activation": _one(activations),
    }


def wrong_options(options: dict[str, Any], has: dict[str, Any]) -> list[str]:
    """List the options that a model has otherwise, and can't be given.

    Args:
        options: of a recipe's wiring.
        has: what the model has, of `found_options`.
    """
    return [name for name in options if name in has and not _equal(has[name], options[name])]


def unknown_options(options: dict[str, Any], has: dict[str, Any]) -> list[str]:
    """List the options that can neither be told of a model nor be given to it.

    Args:
        options: of a recipe's wiring.
        has: what the model has, of `found_options`.
    """
    return sorted(options.keys() - has.keys() - {field.name for field in fields(Wanted)} - {"bias"})


def head_size(wirings: Iterable[Wiring]) -> int | None:
    """Tell the features of a head by the first attention that ran; None without any.

    Args:
        wirings: of a model's stacks.
    """
    bodies = (branch.body for wiring in wirings for branch in wiring.branches())
    return next((body.head_size for body in bodies if isinstance(body, Attention)), None)


def places(wiring: Wiring, wanted: Wanted) -> Iterator[Place]:
    """Yield what has to be multiplied so that a model has what is wanted.

    Args:
        wiring: as it was read.
        wanted: the options.

    Raises:
        RecipeError: an option has no place in this model.
    """
    for layer, block in enumerate(wiring.blocks):
        at = f"of {block.name or f'block {layer}'}"
        for update in block.updates:
            for branch in update.branches:
                yield from _of_branch(layer, update, branch, wiring.n_embd, wanted, at)
                yield from _of_scores(branch.body, wanted.attention_multiplier, at)
    if wanted.embedding_multiplier is not None:
        yield from _of_embedding(wiring, wanted.embedding_multiplier)
    if wanted.logit_multiplier is not None:
        if wiring.head is None:
            raise RecipeError("no head was found for logit_multiplier")
        factor = _ratio("the logits", wanted.logit_multiplier, wiring.logit_scale)
        yield from _needed("logit_multiplier: the logits", wiring.head.module, factor)


def _of_branch(layer: int, update: Update, branch: Branch, n_embd: int, wanted: Wanted, at: str) -> Iterator[Place]:
    gives = f"what {branch.site} {at} adds"
    skip, residual = (wanted.at(name, layer) for name in ("skip_multiplier", "residual_multiplier"))
    if skip is not None or residual is not None or wanted.gate is not None:
        skip = 1.0 if skip is None else skip
        if not math.isclose(skip, update.keep, rel_tol=SAME) and update.norm is None:
            raise RecipeError("skip_multiplier needs a norm of the sum (post-norm), or the stream is another one")
        # norm(skip · x + r · f) = norm(keep · x + r · keep / skip · f), but for the norm's eps
        target = (1.0 if residual is None else residual) * update.keep / skip
        if wanted.gate is None:
            yield from _needed(f"residual_multiplier: {gives}", branch.module, _ratio(gives, target, branch.scale))
        elif not math.isclose(branch.scale, target * wanted.gate, rel_tol=SAME, abs_tol=1e-12):
            # a learned number is read as what it starts at, which one that is there already isn't
            if branch.scale == 0:
                raise RecipeError(f"{gives} is multiplied with 0 already")
            yield Place(what=f"gate: {gives}", module=branch.module, factor=target / branch.scale, start_of=wanted.gate)
    norm = wanted.at("norm_multiplier", layer)
    if norm is not None:
        if branch.norm is None:
            raise RecipeError(f"norm_multiplier needs a norm in front of {branch.site} {at}")
        for each in branch.norms or (branch.norm,):
            yield from _needed(f"norm_multiplier: {each.module}", each.module, _ratio(each.module, norm, each.scale))
    if wanted.layer_scale is not None and branch.gain is None:
        yield Place(what=f"layer_scale: {gives}", module=branch.module, start_of=wanted.layer_scale, width=n_embd)


def _of_scores(body: Any, wanted: float | None, at: str) -> Iterator[Place]:
    if wanted is None or not isinstance(body, Attention):
        return
    factor = _ratio("q·k", wanted, body.score_scale)
    what = f"attention_multiplier: the queries {at}"
    if body.query_norm is not None:  # what is in front of it has no effect
        yield from _needed(what, body.query_norm.module, factor)
        return
    for query in [apart[0] for apart in body.apart] or [body.query]:
        yield from _needed(what, query.module, factor, () if query.fused in (0, query.fan_out) else query.places)


def _of_embedding(wiring: Wiring, wanted: float) -> Iterator[Place]:
    if wiring.terms is None:
        raise RecipeError("what the embedding is made of isn't known, for embedding_multiplier")
    for term in wiring.terms:
        factor = _ratio("the embedding", wanted, wiring.embed_scale * term.scale)
        if term.weight is None and not math.isclose(factor, 1.0, rel_tol=SAME):
            raise RecipeError(f"embedding_multiplier: a {term.kind} term isn't the output of a module")
        module = (term.weight or "").rpartition(".")[0]
        yield from _needed(f"embedding_multiplier: {module}", module, factor)


def _ratio(what: str, wanted: float, has: float) -> float:
    if has == 0 and wanted != 0:
        raise RecipeError(f"{what} is multiplied with 0 already")
    return wanted / has if has else 1.0


def _needed(what: str, module: str, factor: float, pieces: Pieces = ()) -> Iterator[Place]:
    if not math.isclose(factor, 1.0, rel_tol=SAME):
        yield Place(what=what, module=module, factor=factor, pieces=pieces)


def _positions(wiring: Wiring, attention: list[Attention]) -> str:
    if attention and all(each.rotary for each in attention):
        return "rotary"
    if wiring.terms is None or any(term.kind == "position" and term.weight is None for term in wiring.terms):
        return "others"
    return "learned" if any(term.kind == "position" for term in wiring.terms) else "none"


def _norms(update: Update) -> list[Norm]:
    found = [update.norm, *(norm for branch in update.branches for norm in (branch.norm, branch.post))]
    return [norm for norm in found if norm is not None]


def _placement(block: Block) -> str:
    updates = block.updates
    if all(update.norm is not None for update in updates):
        return "post"
    branches = list(block.branches())
    before, after = ([getattr(branch, name) is not None for branch in branches] for name in ("norm", "post"))
    if all(after):
        return "sandwich" if all(before) else "out"
    if any(after):
        attention = [isinstance(branch.body, Attention) for branch in branches]
        return "sandwich-attn" if after == attention and all(before) else "mixed"
    return "pre" if all(before) else "none" if not any(before) else "mixed"


def _equal(has: Any, wanted: Any) -> bool:
    if isinstance(has, float) and isinstance(wanted, int | float):
        return math.isclose(has, wanted, rel_tol=SAME)
    return bool(has == wanted)


def _one(found: set[str]) -> str:
    return next(iter(found)) if len(found) == 1 else " and ".join(sorted(found))
