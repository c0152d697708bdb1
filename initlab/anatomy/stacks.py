"""What the weight matrices of a model's blocks read and write."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from initlab.anatomy import labels
from initlab.anatomy.asking import is_norm, kind
from initlab.anatomy.containers import Container

# the names under which configs keep one size: nanoGPT's first, then Hugging Face's
N_HEAD = ("n_head", "num_attention_heads", "n_heads", "num_heads", "nhead", "nh")
BLOCK_SIZE = ("block_size", "max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
VOCAB_SIZE = ("vocab_size", "n_vocab", "padded_vocab_size", "d_vocab")


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
    heads: int = 0  # of attention, stacked in the tensor: its fans are one head's

    @cached_property
    def label(self) -> str:
        """The name that says what the matrix does: q_proj in q_proj.linear.weight."""
        names = [label for label in self.labels if label not in ("linear", "layer", "base_layer")]
        return (names or self.labels or ("",))[-1]


def config_value(model: nn.Module, names: tuple[str, ...]) -> int | None:
    """Read a size that the model declares in its config, or in the config of its text half."""
    config = getattr(model, "config", None)
    held = [model.__dict__.get(name) for name in ("cfg", "args", "params", "hparams")]
    for holder in (config, getattr(config, "text_config", None), getattr(config, "decoder", None), *held):
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
    """Find the matrices in a container's blocks. Embeddings, convolutions, norms and adapters of a weight are none."""
    modules = dict(model.named_modules())
    computing = tuple(f"{name}." for name, each in modules.items() if isinstance(each, parametrize.ParametrizationList))
    for name, parameter in model.named_parameters():
        index = stack.index(name)
        owner = modules[name.rpartition(".")[0]]
        if index is None or parameter.dim() not in (2, 3) or is_norm(owner):
            continue
        if isinstance(owner, nn.Embedding | _ConvNd):
            continue
        if name.startswith(computing) and not isinstance(owner, parametrize.ParametrizationList):
            continue  # an adapter's
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
    words = tuple(step.lower() for step in steps if step and not step.isdigit())
    classes, place = [], block
    for step in inside:
        place = f"{place}.{step}" if step else place
        if step:
            classes.append(type(modules[place]).__name__)
    fans = linear_fans(owner) if own == "weight" else None
    stacked = parameter.shape[0] if parameter.dim() == 3 else 0
    heads = stacked and (labels.fused(words[-1]) or re.fullmatch("_*w_?o", words[-1]))
    return Matrix(
        name=name,
        block=block,
        labels=words,
        classes=tuple(classes),
        parent=parent,
        fan_in=fans[0] if fans else parameter.shape[-1],
        fan_out=fans[1] if fans else parameter.shape[-2],
        oriented=fans is not None or own.removesuffix("_weight") in ("in_proj", "q_proj", "k_proj", "v_proj"),
        experts=0 if heads else stacked,
        heads=stacked if heads else 0,
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
        # of one without parameters of its own nothing is counted, whatever it is
        if module._parameters and stack.index(name + ".") is not None and kind(module) == "norm":
            norms.update(p.numel() for p in module.parameters(recurse=False))
    reads, writes = Counter(m.fan_in for m in found), Counter(m.fan_out for m in found)
    if embedded and reads[embedded] and writes[embedded] and (norms[embedded] or not norms):
        return embedded
    votes = reads + writes + norms
    return votes.most_common(1)[0][0] if votes else embedded or 0


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
        if len(group) == 1 and not next(_roots(group[0], attention), None) and not group[0].experts:
            # to_out.0 works beside to_q
            around = [other for b, other in places if b == block and other != block and parent.startswith(f"{other}.")]
            parent = max(around, key=len, default=block)
        groups.setdefault((block, parent), []).extend(group)
    for (block, parent), group in list(groups.items()):
        if len(group) == 1 and parent != block and not next(_roots(group[0], attention), None) and not group[0].experts:
            groups.setdefault((block, block), []).extend(groups.pop((block, parent)))
    return list(groups.values())


def _roots(matrix: Matrix, attention: re.Pattern[str]) -> Iterator[str]:
    """Paths of the attention modules that the matrix is in, outermost first."""
    steps = matrix.parent.removeprefix(matrix.block).strip(".").split(".")
    place = matrix.block
    for step, name in zip((step for step in steps if step), matrix.classes, strict=False):
        place = f"{place}.{step}" if place else step
        if attention.search(step.lower()) or attention.search(name.lower()):
            yield place
