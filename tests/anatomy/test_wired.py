"""What really ran decides a parameter's role, block and parts, whatever it is called."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from initlab.anatomy.look import of
from initlab.anatomy.parameters import Parameter
from initlab.anatomy.roles import find_roles
from initlab.drawing.apply import apply_recipe
from initlab.recipes import Constant, Dims, Distribution, Normal, Role, registry
from initlab.wiring import MLP, Attention, Block, Branch, Linear, Norm, Term, Update, Wiring

V, T, D, FF, KV = 40, 12, 32, 48, 16


class Misnamed(nn.Module):
    """Its names say something else, and its blocks are no list."""

    def __init__(self) -> None:
        super().__init__()
        self.wpe = nn.Embedding(V, D)
        self.times = nn.Parameter(torch.ones(T, D))
        for layer in (0, 1):
            for name, shape in {
                "o_proj": (D + 2 * KV, D),
                "query": (D, D),
                "down": (FF, D),
                "up": (FF, D),
                "gate": (D, FF),
            }.items():
                self.register_parameter(f"{name}{layer}", nn.Parameter(torch.ones(shape)))
            for name in ("bias", "alpha"):
                self.register_parameter(f"{name}{layer}", nn.Parameter(torch.ones(D)))
        self.weird = nn.Linear(D, V)


def wiring() -> Wiring:
    def block(i: int) -> Block:
        def fused(start: int, fan_out: int) -> Linear:
            return Linear(weight=f"o_proj{i}", fan_in=D, fan_out=fan_out, start=start, fused=D + 2 * KV)

        attention = Attention(
            query=fused(2 * KV, D),
            key=fused(0, KV),
            value=fused(KV, KV),
            out=Linear(weight=f"query{i}", fan_in=D, fan_out=D),
            n_head=4,
            n_kv_head=2,
            head_size=8,
            score_scale=1.0,
        )
        mlp = MLP(
            up=Linear(weight=f"down{i}", fan_in=D, fan_out=FF),
            gate=Linear(weight=f"up{i}", fan_in=D, fan_out=FF),
            out=Linear(weight=f"gate{i}", fan_in=FF, fan_out=D),
        )
        norm = Norm(module="", gain=f"bias{i}", offset=1.0, size=D)
        first = Branch(site="attn_out", body=attention, norm=norm, gain=f"alpha{i}")
        return Block(layer=i, updates=(Update(branches=(first,)), Update(branches=(Branch(site="mlp_out", body=mlp),))))

    return Wiring(
        n_embd=D,
        blocks=(block(0), block(1)),
        terms=(Term(kind="token", weight="wpe.weight"), Term(kind="position", weight="times")),
        head=Linear(weight="weird.weight", bias="weird.bias", fan_in=D, fan_out=V),
    )


def places(*wirings: Wiring, **given: Any) -> dict[str, Parameter]:
    return {place.name: place for place in find_roles(Misnamed(), wirings, **given).parameters}


def test_a_wiring_decides_over_names() -> None:
    found = places(wiring())
    assert {name: place.role.value for name, place in found.items() if not name.endswith("0")} == {
        "wpe.weight": "token_embed",
        "times": "pos_embed",
        "o_proj1": "attn_qkv",
        "query1": "attn_out",
        "down1": "mlp_in",
        "up1": "mlp_gate",
        "gate1": "mlp_out",
        "bias1": "norm_gain",
        "alpha1": "gate",
        "weird.weight": "unembed",
        "weird.bias": "bias",
    }
    dims = found["gate1"].dims
    assert (dims.layer, dims.n_layer, dims.n_embd, dims.n_head, dims.fan_in, dims.fan_out) == (1, 2, D, 4, FF, D)
    assert (dims.block_size, dims.vocab_size) == (T, V)
    assert found["bias1"].offset == 1.0
    parts = [(rows, role.value, part.fan_in, part.fan_out) for rows, role, part in found["o_proj1"].parts]
    assert parts == [(KV, "attn_k", D, KV), (KV, "attn_v", D, KV), (D, "attn_q", D, D)]
    assert places()["gate1"].role == Role.OTHER


def test_the_callers_word_goes_over_the_wiring() -> None:
    found = places(wiring(), roles={"down*": "mlp_gate", "up?": "mlp_in", "alpha0": None})
    assert (found["down0"].role, found["up1"].role, found["alpha0"].kept) == (Role.MLP_GATE, Role.MLP_IN, True)


def test_parts_that_dont_tile_the_matrix_arent_cut() -> None:
    whole = wiring()
    branch = whole.blocks[0].updates[0].branches[0]
    assert isinstance(branch.body, Attention)
    same = Linear(weight="o_proj0", fan_in=D, fan_out=KV, fused=D + 2 * KV)
    body = Attention(**(vars(branch.body) | {"query": same, "key": same, "value": same}))
    block = Block(layer=0, updates=(Update(branches=(Branch(site="attn_out", body=body),)),))
    found = places(Wiring(n_embd=D, blocks=(block,)))
    assert (found["o_proj0"].role, found["o_proj0"].parts) == (Role.ATTN_QKV, ())


def test_zero_queries_are_drawn_into_the_rows_that_are_queries() -> None:
    def mine(role: Role, dims: Dims) -> Distribution:
        return Constant(0.0) if role == Role.ATTN_Q else Normal(0.5) if role == Role.ATTN_QKV else Normal(0.1)

    model = Misnamed()
    anatomy = of(model)
    apply_recipe(model, registry.get(mine), 0, only={"o_proj0"}, anatomy=_with(anatomy, wiring()))
    weight = model.get_parameter("o_proj0").detach()
    assert (weight[2 * KV :] == 0).all()
    assert 0.4 < float(weight[: 2 * KV].std()) < 0.6  # keys and values: what the recipe says of the fused matrix


def _with(anatomy: Any, *wirings: Wiring) -> Any:
    return replace(anatomy, parameters=find_roles(anatomy.model, wirings).parameters)
