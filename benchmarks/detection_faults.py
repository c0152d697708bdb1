"""The faults that `detection.py` plants: what is done to a model, where that is, and what is wrong about it.

Each says, without knowledge of what initlab writes:

- `cause`: the words of which one has to be in what is said about it, so that it counts as the right advice;
- where it is (`Planted.where`): a block's name or number for what is wrong in one block, the role or path of the
  parameters for what is wrong in all of them;
- which parameters it changed, which `fix` then has to restore, or what must hold of them again.

`harm`: `harmful` faults cost training or change what is trained; `mild` ones are unusual and often survived;
`benign` ones are choices that some models make.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from detection_bases import Block, Subject
from torch import Tensor, nn

ROLES = {
    "qkv": "attn_[qkv]", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_out",
    "up": "mlp_in", "gate": "mlp_gate", "down": "mlp_out",
}  # fmt: skip


class NotHere(Exception):
    """The base has nothing that this fault could be planted in."""


@dataclass
class Planted:
    """Where a fault was planted.

    Attributes:
        where: a regular expression that what is said about it has to match, so that it counts as located.
        weights: parameters that were changed; empty where the fault is no init.
        mended: of the model after `fix`, whether it is gone; their scale alone counts without one.
    """

    where: str
    weights: tuple[str, ...] = ()
    mended: Callable[[nn.Module], bool] | None = None


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: in the table.
        group: kind.
        cause: regular expression.
        plant: puts it into a subject.
        harm: see above.
        traced: whether it is in the init code, so that the model is probed through a function that makes it.
    """

    name: str
    group: str
    cause: str
    plant: Callable[[Subject], Planted]
    harm: str = "harmful"
    traced: bool = False


FAULTS: list[Fault] = []


def fault(name: str, group: str, cause: str, **more: Any) -> Callable[[Callable[[Subject], Planted]], None]:
    """Add a kind of fault; its name is told once."""

    def add(plant: Callable[[Subject], Planted]) -> None:
        assert name not in {each.name for each in FAULTS}
        FAULTS.append(Fault(name, group, cause, plant, **more))

    return add


def need(found: Any) -> Any:
    """What a base has to have."""
    if found is None or found is False or found == {}:
        raise NotHere
    return found


def in_block(subject: Subject, index: int) -> str:
    """Words for one block: its path, or its number."""
    number = subject.first_block + index
    return rf"{re.escape(subject.blocks[index].name)}(?!\d)|\b[Bb]locks? {number}\b(?!-)"


def in_all(subject: Subject, *keys: str) -> str:
    """Words for a matrix of every block: its role, or its path within the block."""
    first = subject.blocks[0]
    paths = {id(module): name for name, module in first.module.named_modules()}
    words = [ROLES[key] for key in keys if key in first.matrices]
    words += [re.escape(paths[id(first.matrices[key])]) for key in keys if key in first.matrices]
    return "|".join(need(words or None))


def of_branch(subject: Subject, which: str) -> str:
    """Words for the attention or the MLP of every block."""
    module = getattr(subject.blocks[0], which)
    paths = {id(module): name for name, module in subject.blocks[0].module.named_modules()}
    roles = "attn_|[Aa]ttention" if which == "attention" else r"mlp_|\bMLPs?\b"
    return rf"{re.escape(paths[id(module)])}\b|{roles}"


def matrices(blocks: Iterable[Block], *keys: str) -> list[nn.Parameter]:
    """Those matrices of those blocks; all without keys."""
    found = [module.weight for block in blocks for key, module in block.matrices.items() if not keys or key in keys]
    return need(found or None)


def outputs(subject: Subject) -> list[nn.Parameter]:
    """What writes to the stream."""
    return matrices(subject.blocks, "o", "down")


def depth_scaled(subject: Subject) -> list[nn.Parameter]:
    """What writes to the stream, where the base draws it smaller by the depth."""
    need(subject.base in ("nanogpt-4", "nanogpt-12", "gpt2", "own-llama"))
    return outputs(subject)


def changed(subject: Subject, parameters: Iterable[nn.Parameter], change: Callable[[Tensor], Any]) -> tuple[str, ...]:
    """Change them in place; their names."""
    names, found = subject.names, []
    with torch.no_grad():
        for parameter in {id(each): each for each in parameters}.values():
            change(parameter)
            found.append(names[id(parameter)])
    return tuple(found)


def times(factor: float) -> Callable[[Tensor], Tensor]:
    """A change: every element by a factor."""
    return lambda parameter: parameter.mul_(factor)


def kaiming(parameter: Tensor) -> Tensor:
    """A change: as torch's Linear draws itself."""
    return nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))


def gains(subject: Subject) -> list[nn.Parameter]:
    """Weights of the norms."""
    every = [place for block in subject.blocks for place in block.norms] + ([subject.final] if subject.final else [])
    found = [weight for owner, name in every if (weight := getattr(getattr(owner, name), "weight", None)) is not None]
    return need(found or None)
