"""What to feed a model that nobody described."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy.arguments import DECODED, POSITIONAL, TARGETS, Maker, kind_of, parameters, required
from initlab.anatomy.examples import example, shown, signature
from initlab.anatomy.given import held, marked, marks_for, refuse_sparse
from initlab.anatomy.sizes import IDS, vocabulary, writes
from initlab.anatomy.tensors import moved, tensors
from initlab.errors import ConfigError
from initlab.models.nanogpt import NanoGPT

TOKENS = 1024  # of a batch that is made here

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

_NO_IDS = re.compile(r"^(targets?|labels?|y)$|mask|type|segment|position")  # (B, T) integers that are no tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """One call of a model's forward.

    `ids` and `targets` are what the loss and the tied head's own logit refer to, (B, T) each; None for models without
    tokens. `labels` are a caller's classes, one for each of what the model classifies, which its forward isn't given;
    `own_labels` those of a batch for the model's own loss, which it isn't given either. `aim` says what the targets
    are, `theirs` that they are the caller's and not made here, `notes` what was changed of a caller's batch.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    ids: Tensor | None = None
    targets: Tensor | None = None
    labels: Tensor | None = None
    own_labels: Tensor | None = None
    aim: str = "next-token"
    theirs: bool = False
    notes: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Inputs:
        """Every tensor, in any nesting, on the device."""
        return replace(
            self,
            args=moved(self.args, device),
            kwargs=moved(self.kwargs, device),
            ids=moved(self.ids, device),
            targets=moved(self.targets, device),
            labels=moved(self.labels, device),
            own_labels=moved(self.own_labels, device),
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


Rows = slice | tuple[slice, slice]  # of a batch, or of them a part of each
Ways = Callable[[Rows], Iterator[Inputs]]


def of_ids(model: nn.Module, ids: Tensor, targets: Tensor) -> Inputs:
    """Token ids in the form that the model's forward takes them.

    A forward with `targets`, as nanoGPT's, gets them, since it may return all logits only then. Labels are never
    given: what a model does with them differs, and the loss is taken from the logits.
    """
    names = parameters(model)
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


def ways(model: nn.Module, ids: Tensor | None, targets: Tensor | None = None, seed: int = 0) -> Iterator[Inputs]:
    """Yield the ways to call a model's forward on some ids, or on what is drawn for it, the likeliest first.

    A forward with `targets` is given them, since it may return all logits only then, and in a second way isn't, since
    it may return its loss alone. One that is given the ids' next tokens has no -1 among them: many know of none.

    Args:
        model: whose forward.
        ids: (B, T) that it reads; None: it reads none.
        targets: of each position, -1 where there is none; None: the next tokens.
        seed: of what is drawn.

    Raises:
        ConfigError: nothing is known of an argument that the forward needs; the message shows an example.
    """
    wanted = [parameter.name for parameter in required(model)]
    names = parameters(model)
    rest = targets
    if ids is not None and targets is None:
        rest = next_tokens(ids)
    if ids is not None and rest is not None and "input_ids" in names and wanted[:2] in ([], ["input_ids"]):
        given = of_ids(model, ids, rest)
        yield given
        if "pixel_values" in names and "pixel_values" not in wanted:
            for image in Maker(model, ids, None, seed).images("pixel_values"):
                said = f"made here: {shown({'input_ids': ids, 'pixel_values': image})}"
                yield replace(given, kwargs={**given.kwargs, "pixel_values": image}, notes=(said,))
        if len(wanted) < 2:
            return
    optional = [name for name in TARGETS if name in names and name not in wanted and not writes(model)]
    needed = [name for name in TARGETS if name in wanted]
    short = ids is not None and targets is None and ids.shape[1] > 2 and not isinstance(model, NanoGPT)
    if ids is not None and (needed or optional):
        taken = (ids[:, :-1], ids[:, 1:]) if short else (ids, rest)
        note = () if not short else (f"sequences of {ids.shape[1] - 1} tokens: the last one is a target alone",)
        for made in _calls(model, *taken, seed):
            given = made if needed else replace(made, kwargs={**made.kwargs, optional[0]: made.targets})
            yield replace(given, notes=(*given.notes, *note))
    if not needed or ids is None:
        yield from _calls(model, ids, rest, seed)


def _calls(model: nn.Module, ids: Tensor | None, targets: Tensor | None, seed: int) -> Iterator[Inputs]:
    maker = Maker(model, ids, targets, seed)
    arguments = maker.arguments()
    unknown = [each.name for each in arguments if not each.forms]
    if unknown or not arguments:
        what = f"nothing is known of {', '.join(unknown)}" if unknown else "its forward's arguments have no names"
        if ids is None and not maker.entries:
            what = "it has no embedding, linear or convolution to read a shape from"
        raise ConfigError(
            f"no batch can be made for {type(model).__name__}{signature(model)}: {what}; pass batch= (a tensor, a "
            f"tuple of arguments, or a dict of keyword arguments), as in {example(model)}"
        )
    read = [each.name for each in arguments if each.kind == "ids"]
    main = next((name for name in read if DECODED.search(name)), read[0] if read else "")
    for call in maker.calls():
        names = {each.name: each for each in arguments}
        args = tuple(value for name, value in call.items() if not names[name].keyword)
        kwargs = {name: value for name, value in call.items() if names[name].keyword}
        own = call.get(main)
        aims = None
        if own is not None and targets is not None:
            rows = None if own is ids else int(own.max()) + 1
            aims = targets if rows is None else torch.where(targets < 0, targets, targets % rows)
        plain = len(read) == 1 and all(each.kind in ("ids", "targets") for each in arguments)
        notes = () if plain else (f"made here: {shown(call)}",)
        yield Inputs(args=args, kwargs=kwargs, ids=own, targets=aims, notes=notes)


def of_batch(model: nn.Module, batch: Any, choose: Callable[[Ways], Inputs] | None = None) -> Inputs:
    """A batch of the caller's: ids, (ids, targets), arguments, keyword arguments, or a loader of any of these.

    Args:
        model: whose forward is called.
        batch: see `initlab.probe`.
        choose: of the ways to give ids to the forward, for some of their rows; None: the likeliest.

    Raises:
        ConfigError: nothing in it can be given to a model.
    """
    choose = choose or (lambda found: next(found(slice(None))))
    batch = held(batch)
    if isinstance(batch, Tensor):
        return _of_tensor(model, batch, None, choose)
    if isinstance(batch, Mapping):
        return _of_mapping(model, batch)
    if isinstance(batch, list) and batch and all(isinstance(item, Mapping) for item in batch):
        return _of_mapping(model, batch[0])  # a list that stands for a loader
    if isinstance(batch, tuple | list):
        if not any(True for _ in tensors(batch)):
            raise ConfigError(f"batch is a {type(batch).__name__} without a tensor; expected the forward's arguments")
        if len(batch) == 2 and _is_ids(batch[0]) and _is_ids(batch[1]) and not _needs_two(model):
            if batch[0].shape != batch[1].shape:
                shapes = f"{tuple(batch[0].shape)} and targets {tuple(batch[1].shape)}"
                raise ConfigError(f"ids are {shapes}; expected the same shape")
            return _of_tensor(model, batch[0], batch[1], choose)
        args, notes = _taken(model, tuple(batch))
        labels = _classes(batch[len(args) :])
        if len(args) == 1 and _is_ids(args[0]) and vocabulary(model) is not None:
            made = _of_tensor(model, args[0], None, choose)
            return replace(made, labels=labels, notes=(*notes, *made.notes))
        return replace(_of_arguments(model, args), labels=labels, notes=notes)
    if hasattr(batch, "__iter__") and not isinstance(batch, str):
        first = next(iter(batch), None)
        if first is None:
            raise ConfigError("batch is an empty loader; expected one that yields batches")
        return of_batch(model, first, choose)
    raise ConfigError(
        f"batch is {type(batch).__name__}; expected token ids (B, T), (ids, targets), a tuple of arguments, a dict of "
        "keyword arguments, or a loader of these"
    )


def _needs_two(model: nn.Module) -> bool:
    """Whether the second of two values is an argument that the forward can't do without, and no targets."""
    second = [parameter.name for parameter in required(model) if parameter.kind in POSITIONAL][1:2]
    return bool(second) and second[0] not in TARGETS


def _of_arguments(model: nn.Module, args: tuple[Any, ...]) -> Inputs:
    """Arguments in order; the ids are the decoder's, or the first ones, of a model that has a table for them."""
    names = [name for name, parameter in parameters(model).items() if parameter.kind in POSITIONAL]
    read = {name: value for name, value in zip(names, args, strict=False) if _is_ids(value)}
    if not read or not _needs_two(model) or vocabulary(model) is None:
        return Inputs(args=args)
    ids = next((value for name, value in read.items() if DECODED.search(name)), next(iter(read.values()))).long()
    return Inputs(args=args, ids=ids, targets=next_tokens(ids) if ids.shape[1] > 1 else None)


def _of_mapping(model: nn.Module, batch: Mapping[Any, Any]) -> Inputs:
    """Keyword arguments, with what their `labels` mean to the model.

    A decoder's labels are the ids themselves, which it shifts in its loss. A masked model's and an encoder-decoder's
    stand at their own positions; a classifier's belong to its own loss. These are left with the model.
    """
    if not batch or not all(isinstance(key, str) for key in batch):
        raise ConfigError(f"batch is a dict with keys {list(batch)[:5]}; expected the forward's keyword arguments")
    kwargs = dict(batch)
    labels = kwargs.get("labels")
    read = {key: value for key, value in kwargs.items() if _is_ids(value) and not _NO_IDS.search(key)}
    ids = next((value for key, value in read.items() if key in IDS), None)
    if ids is None and vocabulary(model) is not None:
        ids = next(iter(read.values()), None)
    ids = next((value for key, value in read.items() if DECODED.search(key)), ids)
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        # the logits are those of the decoder's ids, which Hugging Face's models make of the labels
        make = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        if kwargs.get("decoder_input_ids") is None and _is_ids(labels) and callable(make):
            kwargs["decoder_input_ids"] = make(labels=labels)
        ids = kwargs.get("decoder_input_ids")
        ids = ids if _is_ids(ids) else None
    if labels is None:
        aims = next((kwargs[name] for name in TARGETS if _is_ids(kwargs.get(name))), None)
        theirs = ids is not None and aims is not None and aims.shape == ids.shape
        aims = aims if theirs or ids is None else next_tokens(ids)
        aims = None if ids is None or aims is None else aims.long()
        return Inputs(kwargs=kwargs, ids=ids, targets=aims, theirs=theirs)
    if ids is None or not _is_ids(labels):
        return Inputs(kwargs=kwargs, ids=ids)
    if labels.shape != ids.shape:
        shapes = f"ids are {tuple(ids.shape)} and labels {tuple(labels.shape)}"
        if shifts(model):
            raise ConfigError(f"batch: {shapes}; expected the same shape")
        return Inputs(kwargs=kwargs, ids=ids)
    if shifts(model):
        del kwargs["labels"]
        targets = next_tokens(marked(labels.long()))
    else:
        targets = marked(labels.long())
    if not (targets >= 0).any():
        raise ConfigError(f"no position of the batch, {tuple(ids.shape)}, has a target; expected a label besides -100")
    if shifts(model):
        return Inputs(kwargs=kwargs, ids=ids, targets=targets, own_labels=labels, theirs=True)
    return Inputs(kwargs=kwargs, ids=ids, targets=targets, aim="labels", theirs=True)


def shifts(model: nn.Module) -> bool:
    """Tell whether a model's labels are its ids, one place on: Hugging Face's classes are named for their task.

    Args:
        model: any.
    """
    task = re.search(r"(?:For(?=[A-Z])|MaskedLM)(\w*)", type(model).__name__)
    decodes = task is None or task[1].startswith(("CausalLM", "ConditionalGeneration"))
    return decodes and not getattr(getattr(model, "config", None), "is_encoder_decoder", False)


def _taken(model: nn.Module, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """Without the trailing arguments that the forward doesn't take, as the labels of a loader's (image, label)."""
    known = parameters(model).values()
    positional = [p for p in known if p.kind in POSITIONAL]
    if any(p.kind == p.VAR_POSITIONAL for p in known) or not positional:
        return args, ()
    takes = len(positional)
    if 1 < len(args) <= takes and _classes(args[-1:]) is not None and _is_aside(positional[len(args) - 1]):
        takes = len(args) - 1
    left = len(args) - takes
    if left <= 0:
        return args, ()
    note = f"the forward takes {takes} of the batch's {len(args)} values: the last {left} weren't given to it"
    return args[:takes], (note,)


def _is_aside(parameter: inspect.Parameter) -> bool:
    """An argument that a forward can do without, and that no vector of integers is meant for, such as a mask."""
    return parameter.default is None and kind_of(parameter, reads_ids=False, first=False) in ("mask", "padding")


def _classes(left: Sequence[Any]) -> Tensor | None:
    """The classes among what a forward wasn't given: integers."""
    found = [each for each in left if isinstance(each, Tensor) and each.dim() and each.dtype in _WHOLE]
    return found[0].long() if len(found) == 1 else None


def of_call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    """A call that somebody else makes: its ids are those under a usual name, else the first (B, T) integers."""
    ids = None
    if vocabulary(model) is not None:
        named = [kwargs[name] for name in IDS if _is_ids(kwargs.get(name))]
        ids = next((value for value in (*named, *tensors((args, kwargs))) if _is_ids(value)), None)
    return Inputs(args=args, kwargs=kwargs, ids=ids)


def next_tokens(ids: Tensor) -> Tensor:
    """Each position's next id, and -1 (no target) at the last: (B, T) -> (B, T)."""
    return torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -1)], dim=1)


def _of_tensor(model: nn.Module, first: Tensor, targets: Tensor | None, choose: Callable[[Ways], Inputs]) -> Inputs:
    if first.numel() == 0:
        raise ConfigError(f"batch has shape {tuple(first.shape)}; expected at least one element")
    if first.is_floating_point() or first.is_complex():
        return Inputs(args=(first,))
    if not _is_ids(first):
        raise ConfigError(f"batch is {tuple(first.shape)} {first.dtype}; expected token ids (B, T) of an integer dtype")
    refuse_sparse(batch=first, targets=targets)
    ids = first.long()
    aims = next_tokens(ids) if targets is None else targets.long()
    if not (aims >= 0).any():
        raise ConfigError(f"no position of the batch, {tuple(ids.shape)}, has a target; expected two tokens or more")
    if ids.min() < 0:
        raise ConfigError(f"the batch holds the id {int(ids.min())}; expected ids from 0 on")
    if targets is None:
        return choose(lambda rows: ways(model, ids[rows]))
    marked(aims)
    marks = marks_for(model, aims)

    def found(rows: Rows) -> Iterator[Inputs]:
        for mark in marks:
            yield from ways(model, ids[rows], aims.masked_fill(aims < 0, mark)[rows])

    chosen = choose(found)
    return replace(chosen, targets=None if chosen.targets is None else marked(chosen.targets), theirs=True)


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dim() == 2
        and not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    )
