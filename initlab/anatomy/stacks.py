"""Where a model repeats itself, and what its weight matrices read and write."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

# the names under which configs keep one size: nanoGPT's first, then Hugging Face's
N_HEAD = ("n_head", "num_attention_heads", "n_heads", "num_heads", "nhead", "nh")
BLOCK_SIZE = ("block_size", "max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
VOCAB_SIZE = ("vocab_size", "n_vocab", "padded_vocab_size")


@dataclass(frozen=True, eq=False)
class Container:
    """A list of repeated blocks, by its structure alone."""

    path: str
    blocks: tuple[str, ...]  # paths, in order; a block used twice stands here twice
    whole: bool  # its blocks hold norms: layers or stages, not the experts or heads of one layer

    def index(self, name: str) -> int | None:
        """Which block the parameter or module of this name is in."""
        prefix = f"{self.path}." if self.path else ""
        if not name.startswith(prefix):
            return None
        step, dot, _ = name[len(prefix) :].partition(".")
        return self._places.get(prefix + step) if dot else None

    @cached_property
    def _places(self) -> dict[str, int]:
        return {block: len(self.blocks) - 1 - i for i, block in enumerate(reversed(self.blocks))}


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight that maps fan_in features to fan_out; one expert's, where experts are stacked in one tensor."""

    name: str
    block: str
    labels: tuple[str, ...]  # attribute names from the block down to the weight, indices left out
    classes: tuple[str, ...]  # class names of the modules on the way, the weight's owner left out
    parent: str
    fan_in: int
    fan_out: int
    oriented: bool  # False: a bare tensor, whose in and out side the shape doesn't tell
    experts: int = 0  # how many are stacked in the tensor

    @cached_property
    def label(self) -> str:
        """The name that says what the matrix does: q_proj in q_proj.linear.weight."""
        names = [label for label in self.labels if label not in ("linear", "layer", "base_layer")]
        return (names or self.labels or ("",))[-1]


def is_norm(module: nn.Module) -> bool:
    """Tell LayerNorm, RMSNorm, and whatever else calls itself a norm and holds nothing but its own gain and bias."""
    return "norm" in type(module).__name__.lower() and next(module.children(), None) is None


def find_containers(model: nn.Module) -> list[Container]:
    """Find every container of repeated blocks, outer ones first."""
    stacks: list[Container] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        nested = any(stack.index(path + ".") is not None for stack in stacks)
        # not named_children: that leaves out a block that is used again
        children = [(name, child) for name, child in module._modules.items() if child is not None and _is_block(child)]
        classes = Counter(type(child) for _, child in children)
        if isinstance(module, nn.Sequential) and classes:
            # an embedding and a head may stand in the same Sequential as the blocks
            children = [(name, child) for name, child in children if type(child) is classes.most_common(1)[0][0]]
        elif nested and len(classes) > 1:
            continue  # the parts of one block, as in T5
        if children:
            paths = tuple(f"{path}.{name}" if path else name for name, _ in children)
            names = f"{path.rpartition('.')[2]} {type(children[0][1]).__name__}"
            part = re.search("attention|attn|mlp|expert", names, re.I) and not re.search("block|layer", names, re.I)
            whole = not part and any(is_norm(inner) for _, child in children for inner in child.modules())
            stacks.append(Container(path, paths, whole))
    return stacks


def _is_block(module: nn.Module) -> bool:
    return next(module.children(), None) is not None and any(p.dim() > 1 for p in module.parameters())


def home(name: str, stacks: list[Container]) -> Container | None:
    """Find the container whose layers a parameter is in: of nested ones the innermost whole blocks', not experts'."""
    around = [stack for stack in stacks if stack.index(name) is not None]
    whole = [stack for stack in around if stack.whole]
    return whole[-1] if whole else around[0] if around else None


def nearest(name: str, stacks: list[Container]) -> Container | None:
    """Find the container that a parameter outside them all belongs to: the closest relative, of several the longest."""

    def closeness(stack: Container) -> tuple[int, int]:
        common = 0
        for ours, theirs in zip(name.split("."), stack.path.split("."), strict=False):
            if ours != theirs:
                break
            common += 1
        return common, len(stack.blocks)

    own = [stack for stack in stacks if home(stack.blocks[0] + ".", stacks) is stack]
    return max(own, key=closeness, default=None)


def config_value(model: nn.Module, names: tuple[str, ...]) -> int | None:
    """Read a size that the model declares in its config, or in the config of its text half."""
    config = getattr(model, "config", None)
    for holder in (config, getattr(config, "text_config", None), getattr(config, "decoder", None)):
        for name in names:
            try:
                value = holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
            except Exception:  # some configs refuse to answer for all layers at once
                continue
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def attribute(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """Read the first whole number that one of the modules keeps under one of the names."""
    for inner in module.modules():
        for name in names:
            value = inner.__dict__.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def matrices(model: nn.Module, stack: Container) -> Iterator[Matrix]:
    """Find the matrices in a container's blocks. Embeddings, convolutions and norms are none."""
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        index = stack.index(name)
        owner = modules[name.rpartition(".")[0]]
        if index is None or parameter.dim() not in (2, 3) or is_norm(owner):
            continue
        if isinstance(owner, nn.Embedding | _ConvNd):
            continue
        matrix = _matrix(name, parameter, owner, stack.blocks[index], modules)
        if matrix:
            yield matrix


def _matrix(name: str, parameter: Tensor, owner: nn.Module, block: str, modules: dict[str, nn.Module]) -> Matrix | None:
    path, _, own = name.rpartition(".")
    if own.endswith("bias") or own.startswith("bias") or (own != "weight" and sum(n > 1 for n in parameter.shape) < 2):
        return None  # RWKV's time_mix is (1, 1, C)
    if own == "weight":  # the module is the matrix, and its name says what it does
        steps = path.removeprefix(block).strip(".").split(".")
        parent = path.rpartition(".")[0]
        inside = steps[:-1]
    else:  # the tensor is the matrix: nn.MultiheadAttention, experts in one tensor
        steps = [*path.removeprefix(block).strip(".").split("."), own.removesuffix("_weight")]
        parent, inside = path, steps[:-1]
    labels = tuple(step.lower() for step in steps if step and not step.isdigit())
    classes, place = [], block
    for step in inside:
        place = f"{place}.{step}" if step else place
        if step:
            classes.append(type(modules[place]).__name__)
    fans = linear_fans(owner) if own == "weight" else None
    return Matrix(
        name=name,
        block=block,
        labels=labels,
        classes=tuple(classes),
        parent=parent,
        fan_in=fans[0] if fans else parameter.shape[-1],
        fan_out=fans[1] if fans else parameter.shape[-2],
        oriented=fans is not None or own.removesuffix("_weight") in ("in_proj", "q_proj", "k_proj", "v_proj"),
        experts=parameter.shape[0] if parameter.dim() == 3 else 0,
    )


def stored_weight(module: nn.Module) -> Tensor | None:
    """Get the module's weight as it is stored, or None.

    Reading a parametrized weight computes it, which isn't free of effects: spectral_norm's runs a power iteration in
    train mode. So the tensor that it is computed from stands for it; of several (weight_norm's) the largest.
    """
    if parametrize.is_parametrized(module, "weight"):
        originals = module.get_submodule("parametrizations.weight").parameters(recurse=False)
        return max(originals, key=Tensor.numel, default=None)
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) else None


def linear_fans(module: nn.Module) -> tuple[int, int] | None:
    """Read (fan_in, fan_out) as the module states them: nn.Linear stores (out, in), Hugging Face's Conv1D (in, out).

    None for a module that isn't linear.
    """
    weight = stored_weight(module)
    if weight is None:
        return None
    if type(module).__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int):
        return weight.numel() // module.nf, module.nf  # type: ignore[operator, return-value]
    if isinstance(getattr(module, "in_features", None), int) and isinstance(getattr(module, "out_features", None), int):
        return module.in_features, module.out_features  # type: ignore[return-value]
    return None


def stream_width(model: nn.Module, stack: Container, found: list[Matrix], embedded: int | None) -> int:
    """Tell the width of the container's residual stream: the embedding's, where the blocks read and write it.

    Otherwise the width that most matrices and norms of the stack share.
    """
    norms: Counter[int] = Counter()
    for name, module in model.named_modules():
        if is_norm(module) and stack.index(name + ".") is not None:
            norms.update(p.numel() for p in module.parameters(recurse=False))
    reads, writes = Counter(m.fan_in for m in found), Counter(m.fan_out for m in found)
    if embedded and reads[embedded] and writes[embedded] and (norms[embedded] or not norms):
        return embedded
    votes = reads + writes + norms
    return votes.most_common(1)[0][0] if votes else embedded or 0


def gain_offset(norm: nn.Module) -> float:
    """Find what the norm adds to its stored gain: 1 for Gemma's, which store the gain less one; 0 for most.

    Found by asking: with all parameters at zero, an ordinary norm returns zeros.
    """
    parameters = dict(norm.named_parameters(recurse=False))
    weight = next((p for p in parameters.values() if p.dim() == 1), None)
    if weight is None or weight.is_meta or isinstance(norm, _NormBase):  # torch's own batch norms add nothing
        return 0.0
    # A shallow copy with parameters and buffers of its own, in eval mode: asking changes nothing of the model. Its
    # forward is the class's: one that was put on the instance is bound to the model's own norm.
    twin: Any = copy.copy(norm)
    twin.__dict__["_parameters"] = {name: torch.zeros_like(p) for name, p in parameters.items()}
    twin.__dict__["_buffers"] = {name: None if b is None else b.clone() for name, b in norm._buffers.items()}
    twin.training = False
    probe = torch.linspace(-1, 1, weight.numel(), dtype=weight.dtype, device=weight.device)
    try:
        with torch.no_grad():
            out = type(norm).forward(twin, probe[None])
    except Exception:  # a norm that takes other arguments, or other shapes: not one of Gemma's
        return 0.0
    return 1.0 if isinstance(out, Tensor) and bool(out.any()) else 0.0


def units(found: list[Matrix], attention: re.Pattern[str]) -> list[list[Matrix]]:
    """Group the matrices of each block by the sub-module that they work in.

    Everything under an attention module is one group; matrices that are alone in their sub-module (BERT's
    intermediate and output) or stand in the block itself form another.
    """
    places: dict[tuple[str, str], list[Matrix]] = {}
    for matrix in found:
        parent = next(_roots(matrix, attention), matrix.parent)
        places.setdefault((matrix.block, parent), []).append(matrix)
    groups: dict[tuple[str, str], list[Matrix]] = {}
    for (block, parent), group in places.items():
        alone = len(group) == 1 and not next(_roots(group[0], attention), None) and not group[0].experts
        groups.setdefault((block, block if alone else parent), []).extend(group)
    return list(groups.values())


def _roots(matrix: Matrix, attention: re.Pattern[str]) -> Iterator[str]:
    """Paths of the attention modules that the matrix is in, outermost first."""
    steps = matrix.parent.removeprefix(matrix.block).strip(".").split(".")
    place = matrix.block
    for step, name in zip((step for step in steps if step), matrix.classes, strict=False):
        place = f"{place}.{step}" if place else step
        if attention.search(step.lower()) or attention.search(name.lower()):
            yield place
