"""What to feed a model that nobody described, and which loss to take of what it returns."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initlab.anatomy.tensors import floats, moved, tensors
from initlab.errors import ConfigError, ProbeError
from initlab.measure.moments import compiled_kernels

TOKENS = 1024  # of a batch that is made here
LONGEST = 1024  # tokens of a sequence that is made here
IMAGE_SIZE = 32  # pixels, where the model declares no size

# Names that forwards give to token ids; any other model is given them as its first argument.
_IDS = ("input_ids", "idx", "ids", "tokens", "src")


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """One call of a model's forward.

    `ids` and `targets` are what the loss and the tied head's own logit refer to, (B, T) each; None for models without
    tokens. `aim` says what the targets are, and `notes` what was changed of a caller's batch.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    ids: Tensor | None = None
    targets: Tensor | None = None
    aim: str = "next-token"
    notes: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Inputs:
        """Every tensor, in any nesting, on the device."""
        return replace(
            self,
            args=moved(self.args, device),
            kwargs=moved(self.kwargs, device),
            ids=moved(self.ids, device),
            targets=moved(self.targets, device),
        )

    def call(self, model: nn.Module) -> Any:
        """The model's output."""
        return model(*self.args, **self.kwargs)

    @property
    def n_tokens(self) -> int:
        """Tokens, or for a model without them, examples."""
        if self.ids is not None:
            return self.ids.numel()
        first = next(tensors((self.args, self.kwargs)), None)
        if first is None or first.dim() == 0:
            return 0 if first is None else 1
        return first[..., 0].numel() if first.dim() == 3 else len(first)


def of_ids(model: nn.Module, ids: Tensor, targets: Tensor) -> Inputs:
    """Token ids in the form that the model's forward takes them.

    A forward with `targets`, as nanoGPT's, gets them, since it may return all logits only then. Labels are never
    given: what a model does with them differs, and the loss is taken from the logits.
    """
    names = _parameters(model)
    args: tuple[Any, ...] = (ids,)
    kwargs: dict[str, Any] = {}
    if "input_ids" in names:
        args, kwargs = (), {"input_ids": ids}
        config = getattr(model, "config", None)
        if "decoder_input_ids" in names and getattr(config, "is_encoder_decoder", False):
            kwargs["decoder_input_ids"] = ids
        if "use_cache" in names:
            kwargs["use_cache"] = False  # a cache keeps every layer's keys alive
    elif "targets" in names:
        args = (ids, targets)
    return Inputs(args=args, kwargs=kwargs, ids=ids, targets=targets)


def of_batch(model: nn.Module, batch: Any) -> Inputs:
    """A batch of the caller's: ids, (ids, targets), arguments, keyword arguments, or a loader of any of these.

    Raises:
        ConfigError: nothing in it can be given to a model.
    """
    if isinstance(batch, Tensor):
        return _of_tensor(model, batch, None)
    if isinstance(batch, Mapping):
        return _of_mapping(model, batch)
    if isinstance(batch, list) and batch and all(isinstance(item, Mapping) for item in batch):
        return _of_mapping(model, batch[0])  # a list that stands for a loader
    if isinstance(batch, tuple | list):
        if not any(True for _ in tensors(batch)):
            raise ConfigError(f"batch is a {type(batch).__name__} without a tensor; expected the forward's arguments")
        if len(batch) == 2 and _is_ids(batch[0]) and _is_ids(batch[1]):
            if batch[0].shape != batch[1].shape:
                shapes = f"{tuple(batch[0].shape)} and targets {tuple(batch[1].shape)}"
                raise ConfigError(f"ids are {shapes}; expected the same shape")
            return _of_tensor(model, *batch)
        args, notes = _taken(model, tuple(batch))
        if len(args) == 1 and _is_ids(args[0]) and vocabulary(model) is not None:
            return replace(_of_tensor(model, args[0], None), notes=notes)
        return Inputs(args=args, notes=notes)
    if hasattr(batch, "__iter__") and not isinstance(batch, str):
        first = next(iter(batch), None)
        if first is None:
            raise ConfigError("batch is an empty loader; expected one that yields batches")
        return of_batch(model, first)
    raise ConfigError(
        f"batch is {type(batch).__name__}; expected token ids (B, T), (ids, targets), a tuple of arguments, a dict of "
        "keyword arguments, or a loader of these"
    )


def _of_mapping(model: nn.Module, batch: Mapping[Any, Any]) -> Inputs:
    """Keyword arguments, with what their `labels` mean to the model.

    A decoder's labels are the ids themselves, which it shifts in its loss. A masked model's and an encoder-decoder's
    stand at their own positions; a classifier's belong to its own loss. These are left with the model.
    """
    if not batch or not all(isinstance(key, str) for key in batch):
        raise ConfigError(f"batch is a dict with keys {list(batch)[:5]}; expected the forward's keyword arguments")
    kwargs = dict(batch)
    labels = kwargs.get("labels")
    ids = next((value for key, value in kwargs.items() if key in _IDS and _is_ids(value)), None)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        # the logits are those of the decoder's ids, which Hugging Face's models make of the labels
        make = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if kwargs.get("decoder_input_ids") is None and _is_ids(labels) and callable(make):
            kwargs["decoder_input_ids"] = make(labels=labels)
        ids = kwargs.get("decoder_input_ids")
        ids = ids if _is_ids(ids) else None
    if labels is None:
        return Inputs(kwargs=kwargs, ids=ids, targets=None if ids is None else next_tokens(ids))
    if ids is None or not _is_ids(labels):
        return Inputs(kwargs=kwargs, ids=ids)
    if labels.shape != ids.shape:
        shapes = f"ids are {tuple(ids.shape)} and labels {tuple(labels.shape)}"
        if _shifts(model):
            raise ConfigError(f"batch: {shapes}; expected the same shape")
        return Inputs(kwargs=kwargs, ids=ids)
    if _shifts(model):
        del kwargs["labels"]
        targets = next_tokens(labels)
    else:
        targets = labels
    # Hugging Face marks what doesn't count with -100
    targets = targets.long().masked_fill(targets == -100, -1)
    if not (targets >= 0).any():
        raise ConfigError(f"no position of the batch, {tuple(ids.shape)}, has a target; expected a label besides -100")
    return Inputs(kwargs=kwargs, ids=ids, targets=targets, aim="next-token" if _shifts(model) else "labels")


def _shifts(model: nn.Module) -> bool:
    """Whether a model's labels are its ids, one place on: Hugging Face's classes are named for their task."""
    task = re.search(r"(?:For(?=[A-Z])|MaskedLM)(\w*)", type(model).__name__)
    decodes = task is None or task[1].startswith(("CausalLM", "ConditionalGeneration"))
    return decodes and not getattr(getattr(model, "config", None), "is_encoder_decoder", False)


def _taken(model: nn.Module, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """Without the trailing arguments that the forward doesn't take, as the labels of a loader's (image, label)."""
    parameters = _parameters(model).values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind == p.VAR_POSITIONAL for p in parameters) or not 0 < len(positional) < len(args):
        return args, ()
    left = len(args) - len(positional)
    note = f"the forward takes {len(positional)} of the batch's {len(args)} values: the last {left} weren't given to it"
    return args[: len(positional)], (note,)


def of_call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    """A call that somebody else makes: its ids are those under a usual name, else the first (B, T) integers."""
    ids = None
    if vocabulary(model) is not None:
        named = [kwargs[name] for name in _IDS if _is_ids(kwargs.get(name))]
        ids = next((value for value in (*named, *tensors((args, kwargs))) if _is_ids(value)), None)
    return Inputs(args=args, kwargs=kwargs, ids=ids)


def for_vectors(model: nn.Module, seed: int) -> Inputs:
    """Gaussian inputs for a model without tokens, in the shape that its first layer takes.

    Raises:
        ConfigError: no layer says what it takes; the message shows the forward's signature.
    """
    generator = torch.Generator().manual_seed(seed)
    parameter = next(model.parameters())
    for module in model.modules():
        shape = _shape_for(model, module)
        if shape is not None:
            value = torch.randn(shape, generator=generator).to(parameter.device, parameter.dtype)
            positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            required = [p for p in _parameters(model).values() if p.default is p.empty and p.kind in positional]
            # an encoder and a decoder, as nn.Transformer: both get the same sequence
            return Inputs(args=(value,) * max(1, min(len(required), 2)))
    raise ConfigError(
        f"no batch can be made for {type(model).__name__}{inspect.signature(model.forward)}: it has no embedding, "
        "linear or convolution to read a shape from; pass batch= (a tensor, a tuple of arguments, or a dict of keyword "
        "arguments)"
    )


def vocabulary(model: nn.Module) -> int | None:
    """Ids that the model understands: its config's, else its first embedding's; None for a model of other inputs."""
    if getattr(model, "main_input_name", "input_ids") not in (*_IDS, "decoder_input_ids"):
        return None  # Hugging Face's name for what a model takes, such as pixel_values
    config = getattr(model, "config", None)
    for part in (config, getattr(config, "text_config", None)):
        size = getattr(part, "vocab_size", None)
        if isinstance(size, int) and size > 0:
            return size
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    return tables[0] if tables else None


def longest(model: nn.Module) -> int:
    """Tokens of a sequence to try: what the config allows, at most LONGEST."""
    config = getattr(model, "config", None)
    positions = ("block_size", "n_positions", "max_position_embeddings", "max_target_positions", "n_ctx")
    lengths = ("max_seq_len", "seq_length", "max_length")
    limits = [
        size
        for part in (config, getattr(config, "text_config", None))
        for name in (*positions, *lengths)
        if isinstance(size := getattr(part, name, None), int) and size > 1
    ]
    tables = [
        module for module in model.modules() if isinstance(module, nn.Embedding) and module.padding_idx is not None
    ]
    # a position table with a padding row, as RoBERTa's, starts counting behind it
    limits += [t.num_embeddings - int(t.padding_idx or 0) - 1 for t in tables if t.num_embeddings in limits]
    return min([LONGEST, *(limit for limit in limits if limit > 1)])


@dataclass(frozen=True, slots=True)
class Judged:
    """A loss, what it was taken against, and the logits if there are any, (B, T, V)."""

    loss: Tensor
    targets: str
    logits: Tensor | None


def take_loss(output: Any, inputs: Inputs, vocab_size: int | None) -> Judged:
    """Cross entropy of logits if the output holds any, else the model's own loss, else the output's mean square.

    Raises:
        ProbeError: the output holds no floating-point tensor.
    """
    found = list(floats(output))
    if inputs.ids is not None and inputs.targets is not None:
        logits = logits_in(output, inputs.ids, vocab_size)
        if logits is not None:
            del output, found  # and with them what the model's own loss keeps for its backward pass: as much again
            # Taken here and not from the model, so that it is the same quantity whatever a model calls its loss.
            return Judged(_cross_entropy(logits.flatten(0, 1), inputs.targets.flatten()), inputs.aim, logits)
    own = next((t for t in found if t.dim() == 0 and t.requires_grad), None)
    if own is not None:
        return Judged(own, "the model's own loss", None)
    if not found:
        raise ProbeError(
            f"the model returned {type(output).__name__} without a floating-point tensor; nothing to measure"
        )
    return Judged(found[0].float().square().mean(), "mean square of the output", None)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the targets that aren't -1, in float32 or wider."""
    if logits.is_cuda and type(logits) is Tensor and (kernels := compiled_kernels(logits.device)):
        from initlab.measure.entropies import cross_entropy

        if logits.dtype in kernels.READABLE:
            return cross_entropy(logits, targets)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, targets, ignore_index=-1)


def logits_in(output: Any, ids: Tensor | None, vocab_size: int | None) -> Tensor | None:
    """The logits that a model returned for token ids (B, T): (B, T, V), in any nesting; None if there are none."""
    if ids is None:
        return None
    found = (t for t in floats(output) if t.dim() == 3 and t.shape[:2] == ids.shape)
    return next((t for t in found if _spans(t, vocab_size)), None)


def next_tokens(ids: Tensor) -> Tensor:
    """Each position's next id, and -1 (no target) at the last: (B, T) -> (B, T)."""
    return torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -1)], dim=1)


def _of_tensor(model: nn.Module, first: Tensor, targets: Tensor | None) -> Inputs:
    if first.numel() == 0:
        raise ConfigError(f"batch has shape {tuple(first.shape)}; expected at least one element")
    if first.is_floating_point():
        return Inputs(args=(first,))
    if not _is_ids(first):
        raise ConfigError(f"batch is {tuple(first.shape)} {first.dtype}; expected token ids (B, T) of an integer dtype")
    ids = first.long()
    targets = next_tokens(ids) if targets is None else targets.long()
    if not (targets >= 0).any():
        raise ConfigError(f"no position of the batch, {tuple(ids.shape)}, has a target; expected two tokens or more")
    if ids.min() < 0:
        raise ConfigError(f"the batch holds the id {int(ids.min())}; expected ids from 0 on")
    return of_ids(model, ids, targets)


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, Tensor) and value.dim() == 2 and not (value.is_floating_point() or value.dtype == torch.bool)
    )


def _spans(tensor: Tensor, vocab_size: int | None) -> bool:
    """Logits may be padded beyond the vocabulary; hidden states are narrower than it or of another width."""
    return vocab_size is None or vocab_size <= tensor.shape[-1] < vocab_size + 512


def _shape_for(model: nn.Module, module: nn.Module) -> tuple[int, ...] | None:
    match module:
        case nn.Conv2d():
            size = getattr(getattr(model, "config", None), "image_size", None)
            size = (
                size if isinstance(size, int) else getattr(model, "default_cfg", {}).get("input_size", [IMAGE_SIZE])[-1]
            )
            return (4, module.in_channels, size, size)
        case nn.Conv1d():
            return (4, module.in_channels, 256)
        case nn.MultiheadAttention():
            return (4, 64, module.embed_dim)
        case nn.TransformerEncoderLayer() | nn.TransformerDecoderLayer():
            return (4, 64, module.self_attn.embed_dim)
        case nn.LayerNorm():
            return (4, 64, *module.normalized_shape)
        case nn.Linear():
            return (64, module.in_features)
    return None


def _parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        return {}
