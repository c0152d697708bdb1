"""Planted faults of the init: weights of the wrong scale, not drawn, or drawn alike."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from detection_bases import Subject, weight
from detection_faults import (
    ROLES,
    NotHere,
    Planted,
    changed,
    depth_scaled,
    fault,
    gains,
    in_all,
    in_block,
    kaiming,
    matrices,
    need,
    of_branch,
    times,
)
from torch import Tensor, nn

NORMS = r"norm|\bln_|LayerNorm"


@fault("depth scaling lost", "scale", r"depth|n_layer|√\(2|sqrt\(2")
def _(s: Subject) -> Planted:
    names = changed(s, depth_scaled(s), times(math.sqrt(2 * len(s.blocks))))
    return Planted(in_all(s, "o", "down"), names)


@fault("depth scaling lost in the MLP", "scale", r"depth|n_layer|√\(2|sqrt\(2")
def _(s: Subject) -> Planted:
    depth_scaled(s)
    names = changed(s, matrices(s.blocks, "down"), times(math.sqrt(2 * len(s.blocks))))
    return Planted(in_all(s, "down"), names)


@fault("depth scaling on the wrong matrix", "scale", r"depth|n_layer|√\(2|sqrt\(2")
def _(s: Subject) -> Planted:
    depth_scaled(s)
    factor = math.sqrt(2 * len(s.blocks))
    names = changed(s, matrices(s.blocks, "down"), times(factor))
    names += changed(s, matrices(s.blocks, "up"), times(1 / factor))
    return Planted(in_all(s, "down", "up"), names)


@fault("depth scaling applied twice", "scale", r"depth|n_layer|√\(2|sqrt\(2|twice", harm="mild")
def _(s: Subject) -> Planted:
    names = changed(s, depth_scaled(s), times(1 / math.sqrt(2 * len(s.blocks))))
    return Planted(in_all(s, "o", "down"), names)


SIBLINGS = r"sibling|other blocks|other \d+ blocks|neighbour"


@fault("one block × 5", "scale", SIBLINGS)
def _(s: Subject) -> Planted:
    return Planted(in_block(s, s.odd), changed(s, matrices([s.blocks[s.odd]]), times(5)))


@fault("one block × 30", "scale", SIBLINGS)
def _(s: Subject) -> Planted:
    return Planted(in_block(s, s.odd), changed(s, matrices([s.blocks[s.odd]]), times(30)))


@fault("one block at torch's default", "scale", SIBLINGS)
def _(s: Subject) -> Planted:
    return Planted(in_block(s, s.odd), changed(s, matrices([s.blocks[s.odd]]), kaiming))


@fault("one matrix × 8", "scale", SIBLINGS)
def _(s: Subject) -> Planted:
    names = changed(s, matrices([s.blocks[s.odd]], "up", "o")[-1:], times(8))
    return Planted(re.escape(names[0]), names)


@fault("one head's queries × 30", "scale", r"row|head|uneven|other")
def _(s: Subject) -> Planted:
    block = s.blocks[s.odd]
    module = block.matrices.get("qkv") or block.matrices["q"]
    names = changed(s, [module.weight], lambda _: weight(module)[: s.head_size].mul_(30))
    return Planted(in_block(s, s.odd), names)


@fault("all matrices at kaiming_uniform_", "scale", r"std|recipe|initializer_range|torch|kaiming|√|√")
def _(s: Subject) -> Planted:
    names = changed(s, matrices(s.blocks), nn.init.kaiming_uniform_)
    return Planted(in_all(s, *ROLES), names)


@fault("all weights of std 1e-5", "scale", r"std|small|initializer_range|recipe")
def _(s: Subject) -> Planted:
    every = [each for each in s.model.parameters() if each.dim() > 1 and float(each.detach().abs().max()) > 0]
    return Planted(in_all(s, *ROLES), changed(s, every, lambda each: each.normal_(0.0, 1e-5)))


@fault("queries, keys, values × 4", "scale", r"quer|key|qkv|attn_[qkv]|std", harm="mild")
def _(s: Subject) -> Planted:
    keys = ("qkv", "q", "k", "v")
    return Planted(in_all(s, *keys), changed(s, matrices(s.blocks, *keys), times(4)))


@fault("positions ~ N(0, 1)", "scale", r"position|wpe")
def _(s: Subject) -> Planted:
    names = changed(s, [need(s.position).weight], lambda each: each.normal_())
    return Planted(r"position|wpe|pos_embed", names)


@fault("positions zero", "scale", r"position|wpe", harm="mild")
def _(s: Subject) -> Planted:
    names = changed(s, [need(s.position).weight], lambda each: each.zero_())
    return Planted(r"position|wpe|pos_embed", names)


@fault("tied embedding ~ N(0, 1)", "scale", r"embed|wte|head")
def _(s: Subject) -> Planted:
    need(s.token is not None and s.token.weight is s.head.weight and s.base != "t5")  # T5's is drawn so
    names = changed(s, [s.head.weight], lambda each: each.normal_())
    return Planted(r"embed|wte|head|logits", names)


@fault("head × 30", "scale", r"head|logit|unembed|classifier")
def _(s: Subject) -> Planted:
    need(s.token is None or s.token.weight is not s.head.weight)
    need(bool(s.head.weight.detach().abs().max() > 0))
    return Planted(r"head|unembed|logits|classifier", changed(s, [s.head.weight], times(30)))


@fault("head zero", "scale", r"head|unembed|classifier|zero|\b0\b", harm="benign")
def _(s: Subject) -> Planted:
    need(s.token is None or s.token.weight is not s.head.weight)
    need(bool(s.head.weight.detach().abs().max() > 0))
    return Planted(r"head|unembed|logits|classifier", changed(s, [s.head.weight], times(0)))


@fault("norm gains 0", "scale", r"norm|gain")
def _(s: Subject) -> Planted:
    return Planted(NORMS, changed(s, gains(s), lambda each: each.fill_(s.unit - 1)))


@fault("norm gains 0.1", "scale", r"norm|gain", harm="mild")
def _(s: Subject) -> Planted:
    return Planted(NORMS, changed(s, gains(s), lambda each: each.fill_(s.unit - 0.9)))


@fault("gain of the final norm 20", "scale", r"norm|gain")
def _(s: Subject) -> Planted:
    owner, name = need(s.final)
    gain = need(getattr(getattr(owner, name), "weight", None))
    return Planted(NORMS + r"|final", changed(s, [gain], lambda each: each.fill_(s.unit + 19)))


@fault("gates and inputs of the MLP zero", "scale", r"zero|\b0\b")
def _(s: Subject) -> Planted:
    need("gate" in s.blocks[0].matrices)
    return Planted(in_all(s, "gate", "up"), changed(s, matrices(s.blocks, "gate", "up"), times(0)))


@fault("hidden biases -2 before ReLU", "scale", r"dead|bias|negative|≤ 0|never")
def _(s: Subject) -> Planted:
    biases = [getattr(block.matrices.get("up"), "bias", None) for block in s.blocks]
    names = changed(s, [need(bias) for bias in biases], lambda each: each.fill_(-2.0))
    for block in s.blocks:
        setattr(*block.act, nn.ReLU())
    return Planted(of_branch(s, "mlp") + "|" + in_all(s, "up"), names)


@fault("one expert × 10", "scale", r"expert|row|uneven|other")
def _(s: Subject) -> Planted:
    experts = need(getattr(s.blocks[s.odd].mlp, "experts", None))
    names = changed(s, experts.parameters(), lambda each: each[1].mul_(10))
    return Planted(in_block(s, s.odd), names)


@fault("router × 100", "scale", r"router|gate|expert")
def _(s: Subject) -> Planted:
    routers = [need(getattr(block.mlp, "gate", None)).weight for block in s.blocks]
    return Planted("router|gate", changed(s, routers, times(100)))


@fault("router zero", "scale", r"router|gate|expert")
def _(s: Subject) -> Planted:
    routers = [need(getattr(block.mlp, "gate", None)).weight for block in s.blocks]
    return Planted("router|gate", changed(s, routers, times(0)))


@fault("NaN in one weight", "values", r"NaN|finite")
def _(s: Subject) -> Planted:
    found = matrices([s.blocks[s.odd]], "up", "o")[-1]
    names = changed(s, [found], lambda each: each[0].__setitem__(0, math.nan))
    return Planted(re.escape(names[0]), names)


@fault("float16 that overflows", "values", r"overflow|float16|finite|range|large")
def _(s: Subject) -> Planted:
    if s.base == "dit":
        raise NotHere("it makes its times in float32, and so runs in no other precision")
    names = changed(s, matrices([s.blocks[s.odd]], "up", "down"), times(3e4))
    s.model.half()
    return Planted(in_block(s, s.odd), names)


ALIKE = r"same|identical|cop(y|ies)|correlat|alike"


@fault("blocks are copies of one", "copies", ALIKE)
def _(s: Subject) -> Planted:
    first = s.blocks[0].module.state_dict()
    drawn = [each for block in s.blocks[1:] for each in block.module.parameters() if each.dim() > 1]
    before = [each.detach().clone() for each in drawn]
    for block in s.blocks[1:]:
        block.module.load_state_dict(first, strict=False)
    # experts and routers, too, which are none of `matrices`
    copied = tuple(s.names[id(each)] for each, old in zip(drawn, before, strict=True) if not torch.equal(each, old))
    return Planted(in_block(s, 1), copied, _distinct(copied))


@fault("heads of one draw", "copies", ALIKE)
def _(s: Subject) -> Planted:
    names: tuple[str, ...] = ()
    for block in s.blocks:
        module = block.matrices.get("qkv") or block.matrices["q"]
        first, second = weight(module)[: 2 * s.head_size].chunk(2)
        names += changed(s, [module.weight], lambda _, one=first, two=second: two.copy_(one))

    def mended(model: nn.Module) -> bool:
        weights = dict(model.named_parameters())
        transposed = type(module).__name__ == "Conv1D"
        drawn = [weights[name].detach() for name in names]
        return all(not _same(*(w.T if transposed else w)[: 2 * s.head_size].chunk(2)) for w in drawn)

    return Planted(in_all(s, "q", "qkv"), names, mended)


@fault("shards of one draw", "copies", ALIKE)
def _(s: Subject) -> Planted:
    names: tuple[str, ...] = ()
    for block in s.blocks:
        w = weight(need(block.matrices.get("up")))
        names += changed(s, [block.matrices["up"].weight], lambda _, w=w: w[len(w) // 2 :].copy_(w[: len(w) // 2]))

    def mended(model: nn.Module) -> bool:
        weights = dict(model.named_parameters())
        axis = 1 if type(s.blocks[0].matrices["up"]).__name__ == "Conv1D" else 0
        return all(not _same(*weights[name].detach().chunk(2, axis)) for name in names)

    return Planted(in_all(s, "up"), names, mended)


@fault("experts of one draw", "copies", ALIKE)
def _(s: Subject) -> Planted:
    names: tuple[str, ...] = ()
    for block in s.blocks:
        experts = need(getattr(block.mlp, "experts", None))
        names += changed(s, experts.parameters(), lambda each: each.copy_(each[:1].expand_as(each)))

    def mended(model: nn.Module) -> bool:
        weights = dict(model.named_parameters())
        return all(not _same(weights[name][0], weights[name][1]) for name in names)

    return Planted("expert", names, mended)


@fault("all matrices constant", "copies", r"constant|rank|same value|one direction")
def _(s: Subject) -> Planted:
    names = changed(s, matrices(s.blocks), lambda each: each.fill_(0.02))
    return Planted(in_all(s, *ROLES), names, _of_rank(names))


@fault("MLP inputs of rank 1", "copies", r"rank|direction|independent")
def _(s: Subject) -> Planted:
    def outer(each: Tensor) -> Tensor:
        drawn = torch.randn(each.shape[0], 1) * torch.randn(1, each.shape[1])
        return each.copy_(drawn / drawn.std() * each.std())

    names = changed(s, matrices(s.blocks, "up"), outer)
    return Planted(in_all(s, "up"), names, _of_rank(names))


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].abs() > 0.5)


def _distinct(names: tuple[str, ...]) -> Callable[[nn.Module], bool]:
    def mended(model: nn.Module) -> bool:
        groups: dict[str, list[Tensor]] = {}
        for name, parameter in model.named_parameters():
            if (general := re.sub(r"\d+", "N", name)) in {re.sub(r"\d+", "N", each) for each in names}:
                groups.setdefault(general, []).append(parameter.detach())
        return all(not _same(a, b) for g in groups.values() for i, a in enumerate(g) for b in g[:i])

    return mended


def _of_rank(names: tuple[str, ...]) -> Callable[[nn.Module], bool]:
    def mended(model: nn.Module) -> bool:
        weights = dict(model.named_parameters())
        return all(int(torch.linalg.matrix_rank(weights[name].detach().float())) > 5 for name in names)

    return mended
