"""Sizes that a model declares or shows: its vocabulary, the longest sequence it reads, the images it takes.

People keep them in a config, a dict or on the module itself, under many names; tables, caches and masks show them too.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy.stacks import linear_fans, stored_weight

LONGEST = 1024  # tokens of a sequence that is made here
IMAGE_SIZE = 32  # pixels, where the model declares no size

# Names that forwards give to token ids; any other model is given them as its first argument.
IDS = ("input_ids", "idx", "ids", "tokens", "src")

_HOLDERS = ("config", "cfg", "args", "params", "c", "hparams", "hps", "opt", "conf", "model_args", "model_config")
_INSIDE = ("text_config", "decoder")  # of a config: the half that reads text
_VOCABULARIES = (
    *("vocab_size", "n_vocab", "vocab", "d_vocab", "vocabulary_size", "vocab_len", "num_vocab", "voc_size"),
    *("tgt_vocab_size", "trg_vocab_size", "tgt_vocab", "src_vocab_size", "src_vocab", "padded_vocab_size"),
    *("num_tokens", "n_tokens", "ntoken", "ntokens", "n_words"),
)
_LENGTHS = (
    *("block_size", "max_position_embeddings", "n_positions", "num_positions", "max_positions", "max_target_positions"),
    *("max_seq_len", "max_seq_length", "max_sequence_length", "max_seqlen", "seq_len", "seq_length", "seqlen"),
    *("sequence_length", "sequence_len", "n_ctx", "max_ctx", "ctx_len", "ctx_length", "ctx_size", "context_length"),
    *("context_len", "context_size", "context_window", "max_context_length", "max_length", "max_len", "maxlen"),
)
_IMAGES = ("image_size", "img_size", "input_size", "sample_size", "resolution", "im_size")
_CHANNELS = ("in_channels", "num_channels", "in_chans", "channels", "n_channels", "image_channels")
_PATCHES = ("patch_size", "patch", "patch_dim_size")
CLASSES = ("num_classes", "n_classes", "class_num")
STEPS = ("num_timesteps", "timesteps", "n_timesteps", "num_train_timesteps", "T", "n_steps")

_POSITION = re.compile(r"(^|[._])(w?pe|w_?pos)([._]|$)|pos(ition)?(al|s)?([._]|$|_?emb|_?enc)|position", re.IGNORECASE)
# tables of something that isn't a text's tokens
_OTHER = re.compile(
    r"(^|[._])(rel(ative)?|seg(ment)?s?|type|token_type\w*|labels?|class(es)?|cls|y|t|time\w*|step\w*|cond\w*|level\w*|"
    r"task|speaker|bucket\w*|null|mask\w*|register\w*)([._]|emb|$)|bias",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"wte|tok|word|vocab|shared|embed_in|(^|[._])(w_?e|src|tgt|trg)([._]|$)|(^|[._])(input_)?emb(ed)?")
_HEAD = re.compile(r"(^|[._])(lm_|mlm_)?head|unembed|output|logits|to_logits|proj_out|generator|(^|[._])w_?u$")
_ROTARY = re.compile(r"cos|sin|freqs|rope|rotary", re.IGNORECASE)
_MASK = re.compile(r"mask|tril|triu|causal|alibi", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of token vectors: its dotted name (a module's, or a bare parameter's), its rows and its width."""

    name: str
    rows: int
    width: int


def declared(model: nn.Module, names: tuple[str, ...]) -> Iterator[int]:
    """Yield the whole numbers that a model keeps under some names, those of its config first, in the names' order.

    Args:
        model: it, its submodules, and what they hold under the usual names of a config are looked into.
        names: of what is asked.
    """
    for value in _values(model, names):
        if isinstance(value, int) and not isinstance(value, bool):
            yield value


def vocabulary(model: nn.Module) -> int | None:
    """Ids that the model understands: as it declares, where a table has them, else rows of its token table.

    None for a model of other inputs alone.
    """
    others = getattr(model, "main_input_name", "input_ids") not in (*IDS, "decoder_input_ids", "inputs")
    if others and not writes(model):
        return None  # Hugging Face's name for what a model takes, such as pixel_values
    tables = token_tables(model)
    if not tables:
        return None
    most = max(table.rows for table in tables)
    return next((size for size in declared(model, _VOCABULARIES) if 0 < size <= most), tables[0].rows)


def writes(model: nn.Module) -> bool:
    """Tell whether a model decodes tokens of what it reads, as a speech recogniser does, by Hugging Face's names.

    Args:
        model: any module.
    """
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    try:
        return "decoder_input_ids" in inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return False


def token_tables(model: nn.Module) -> list[Table]:
    """Find tables that token ids are looked up in, the likeliest first: named so, or as long as the head is wide.

    Tables of positions, segments, classes and time steps aren't among them; but one that is called like these, where
    there is no other and the head is as wide, is the tokens': many call it `t`.
    """
    modules = list(model.named_modules())
    outputs = _head_sizes(modules)
    sizes = set(declared(model, _VOCABULARIES))
    found = list(_tables(modules, sizes)) or list(_tables(modules, sizes | outputs))
    try:
        asked = getattr(model, "get_input_embeddings", lambda: None)()
    except Exception:  # Hugging Face raises where a model has none
        asked = None

    def likelihood(item: tuple[Table, Tensor]) -> tuple[bool, ...]:
        table, weight = item
        mine = asked is not None and stored_weight(asked) is weight
        # inside a repeated block it is T5's table of relative positions, or a table for each layer
        outside = not any(step.isdigit() for step in table.name.split(".")[:-1])
        return mine, outside, table.rows in sizes or table.rows in outputs, bool(_TOKEN.search(table.name.lower()))

    return [table for table, _ in sorted(found, key=likelihood, reverse=True)]


def lengths(model: nn.Module) -> list[int]:
    """Find the lengths of sequence that something in the model is made for, the smallest first.

    Declared ones, rows of a position table, of rotary caches and of causal masks.
    """
    sizes = {size for size in declared(model, _LENGTHS) if size > 1}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            rows, padding = module.num_embeddings, module.padding_idx
            if rows in sizes or (_POSITION.search(name) and not _OTHER.search(name)):
                # RoBERTa's table starts counting behind its padding row
                sizes.add(rows if padding is None else rows - int(padding) - 1)
    sizes |= {size for name, tensor in _tensors(model) if (size := _length_of(name, tensor)) is not None}
    return sorted(size for size in sizes if size > 1)


def longest(model: nn.Module) -> int:
    """Tokens of a sequence to try: what the model allows by all that is known of it, at most LONGEST."""
    return min([LONGEST, *lengths(model)])


def image_sizes(model: nn.Module, stride: int) -> list[int]:
    """Give the sizes of image, in pixels, that a model may take: those it declares, else by its position table.

    Args:
        model: to look into.
        stride: pixels between two patches.
    """
    sizes = [_side(value) for value in _values(model, _IMAGES)]
    default = getattr(model, "default_cfg", None)
    sizes += [_side(default.get("input_size")) if isinstance(default, dict) else None]
    for name, tensor in _tensors(model):
        rows = _table_rows(tensor) if _POSITION.search(name) else None
        for patches in () if rows is None else (rows, rows - 1, rows - 2):  # tokens for a class, for distillation
            if (side := math.isqrt(max(patches, 0))) and side * side == patches:
                sizes.append(side * stride)
    return list(dict.fromkeys([size for size in sizes if size] + [IMAGE_SIZE, 28, 224]))


def patch(model: nn.Module, features: int) -> tuple[int, int, int] | None:
    """Give channels, size and patch of the images that a linear layer with so many inputs reads; None: it doesn't."""
    sides = [side for value in _values(model, _IMAGES) if (side := _side(value))]
    patches = [side for value in _values(model, _PATCHES) if (side := _side(value))]
    for side in sides:
        for channels in (*declared(model, _CHANNELS), 3, 1, 4):
            for size in (*patches, math.isqrt(features // max(channels, 1))):
                if channels * size * size == features and side % size == 0:
                    return channels, side, size
    return None


def entries(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Find the modules whose type tells the shape that they take, by dotted name."""
    kinds = (nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    for name, module in model.named_modules():
        if isinstance(module, (*kinds, nn.RNNBase, nn.LayerNorm, nn.Linear)):
            yield name, module


def taken(model: nn.Module, module: nn.Module, *, graph: bool) -> list[tuple[int, ...]]:
    """Give shapes to try of what a model reads by this module, the likeliest first.

    Args:
        model: it.
        module: one of its `entries`.
        graph: the rows of what it reads are nodes.
    """
    match module:
        case nn.Conv2d():
            stride = module.stride[0] if isinstance(module.stride, tuple) else 1
            return [(4, module.in_channels, size, size) for size in image_sizes(model, stride)]
        case nn.Conv1d():
            bare: list[tuple[int, ...]] = [(4, 4096)] if module.in_channels == 1 else []  # a wave
            known = lengths(model)
            # what is so long after the convolutions' strides
            strided = [size * _stride(model, module) for size in known]
            return [*((4, module.in_channels, size) for size in dict.fromkeys((256, *known, *strided))), *bare]
        case nn.Conv3d():
            return [(2, module.in_channels, 8, 32, 32)]
        case nn.MultiheadAttention():
            return [(4, 64, module.embed_dim)]
        case nn.TransformerEncoderLayer() | nn.TransformerDecoderLayer():
            return [(4, 64, module.self_attn.embed_dim)]
        case nn.RNNBase():
            return [(4, 64, module.input_size)]
        case nn.LayerNorm():
            return [(4, 64, *module.normalized_shape)]
        case nn.Linear():
            width = module.in_features
            rows = [min(64, *lengths(model)) if lengths(model) else 64, *lengths(model)]
            several: list[tuple[int, ...]] = [(4, T, width) for T in dict.fromkeys(rows)]
            one: list[tuple[int, ...]] = [(64, width)]
            sequences = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.RNNBase)
            sequential = lengths(model) or any(isinstance(inner, sequences) for inner in model.modules())
            vectors = several + one if sequential and not graph else one + several
            image = patch(model, width)
            return [*([(4, image[0], image[1], image[1])] if image else []), *vectors]
    return []


def _stride(model: nn.Module, first: nn.Conv1d) -> int:
    """Steps of the input for one behind a convolution and those that stand beside it."""
    for module in model.modules():
        beside = [each for each in module.children() if isinstance(each, nn.Conv1d)]
        if first in beside:
            return math.prod(each.stride[0] for each in beside)
    return first.stride[0]


def _values(model: nn.Module, names: tuple[str, ...]) -> Iterator[Any]:
    modules = list(model.modules())
    seen: set[int] = set()
    for module in modules:
        for key in _HOLDERS:
            held = _attribute(module, key) if module is model else module.__dict__.get(key)
            if held is None:  # as in nearly every module
                continue
            for holder in (held, *(_read(held, inner) for inner in _INSIDE)):
                if holder is None or isinstance(holder, int | float | str | Tensor | nn.Module) or id(holder) in seen:
                    continue
                seen.add(id(holder))
                yield from (value for name in names if (value := _read(holder, name)) is not None)
    for module in modules:
        yield from (module.__dict__[name] for name in names if name in module.__dict__)


def _attribute(model: nn.Module, name: str) -> Any:
    try:
        return getattr(model, name, None)
    except Exception:  # a property of the user's
        return None


def _read(holder: Any, name: str) -> Any:
    if holder is None or isinstance(holder, Tensor | nn.Module):
        return None
    try:
        return holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
    except Exception:  # some configs refuse to answer for all layers at once
        return None


def _tables(modules: Sequence[tuple[str, nn.Module]], declared_sizes: set[int]) -> Iterator[tuple[Table, Tensor]]:
    """Every table that may hold tokens, once."""
    seen: set[int] = set()
    for path, module in modules:
        for own, parameter in module._parameters.items():
            if parameter is None or parameter.dim() != 2:
                continue
            name = path if own == "weight" else f"{path}.{own}".lstrip(".")
            bare = "embed" in type(module).__name__.lower() or (own != "weight" and _TOKEN.search(own.lower()))
            if not (isinstance(module, nn.Embedding | nn.EmbeddingBag) or bare):
                continue
            if id(parameter) in seen or linear_fans(module):
                continue
            steps = ".".join(name.split(".")[-2:])  # of a table inside a module of its own, that one's name too
            if _POSITION.search(steps) or "unembed" in steps.lower():
                continue
            if _OTHER.search(steps) and parameter.shape[0] not in declared_sizes:
                continue
            seen.add(id(parameter))
            yield Table(name, *parameter.shape), parameter


def _head_sizes(modules: Sequence[tuple[str, nn.Module]]) -> set[int]:
    """Outputs of what may be the head: the last linear layer, and those named so."""
    sizes, last = set(), True
    for name, module in reversed(modules):
        if (last or _HEAD.search(name.lower())) and (fans := linear_fans(module)):
            sizes.add(fans[1])
            last = False
    return sizes


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and tensors that are plain attributes, by dotted name."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            continue
        for own, tensor in (*module._parameters.items(), *module._buffers.items(), *module.__dict__.items()):
            if isinstance(tensor, Tensor):
                yield f"{path}.{own}".lstrip("."), tensor


def _table_rows(tensor: Tensor) -> int | None:
    """Rows of a table whose leading or inner dimensions may be 1: (T, C), (1, T, C), (T, 1, C)."""
    sizes = [size for size in tensor.shape[:-1] if size > 1]
    return sizes[0] if len(sizes) == 1 else None


def _length_of(name: str, tensor: Tensor) -> int | None:
    steps = ".".join(name.split(".")[-2:])
    if tensor.dim() < 2:
        return None
    square = tensor.shape[-1] == tensor.shape[-2] > 1
    if not isinstance(tensor, nn.Parameter):
        if square and (_MASK.search(name) or (tensor.numel() == tensor.shape[-1] ** 2 and _triangular(tensor))):
            return tensor.shape[-1]
        if _ROTARY.search(steps):
            return next((size for size in tensor.shape[:-1] if size > 1), None)
    if _POSITION.search(steps) and not _OTHER.search(steps):
        return _table_rows(tensor)
    return None


def _triangular(tensor: Tensor) -> bool:
    """Whether above the diagonal stands one value and below it another."""
    if tensor.is_meta:
        return False
    corner = tensor.detach().reshape(tensor.shape[-2:])[:16, :16].cpu()
    upper, lower = (corner[torch.ones_like(corner, dtype=torch.bool).triu(1) == side] for side in (True, False))
    return bool((upper == upper[0]).all()) and bool((lower == lower[-1]).all()) and bool(upper[0] != lower[-1])


def _side(value: Any) -> int | None:
    """The size of an image that is told as a number or as a shape."""
    if isinstance(value, tuple | list) and value:
        value = value[-1]
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
