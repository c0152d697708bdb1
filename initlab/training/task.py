"""What a model is trained to do: to read windows of a text, by a loss of the tokens after them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy.inputs import Inputs, of_ids, ways
from initlab.anatomy.look import of
from initlab.anatomy.sizes import lengths, vocabulary
from initlab.anatomy.tensors import changed, floats, tensors
from initlab.errors import ConfigError
from initlab.measure.batches import way_of
from initlab.measure.changing import short
from initlab.measure.losses import logits_in, take_loss
from initlab.measure.passes import Passes
from initlab.measure.probe import look
from initlab.measure.targets import shift_of
from initlab.models.nanogpt import NanoGPT
from initlab.training.speed import flops_per_token

_EXPECTED = "a causal language model, which predicts the next token of a text"
LONGEST = 256  # tokens of a window where the model could read more and nobody said how many


@dataclass(frozen=True, eq=False, slots=True)
class Task:
    """How a model is called on windows of a text, and which loss is trained on; made by `task_of`.

    Attributes:
        model: the module itself; what is called may be compiled or wrapped.
        block_size: tokens in a window.
        vocab_size: ids that the model knows.
        way: number of the call among `initlab.anatomy.inputs.ways`; None: a NanoGPT, `model(idx, targets)[1]`.
        template: such a call, where it is given nothing but ids and targets.
        own_loss: trained on is what the forward makes of the targets, else the cross entropy of its logits.
        draws: the forward may draw at random, as dropout does.
        flops: of a forward and backward pass per token; NaN where they aren't known.
    """

    model: nn.Module
    block_size: int
    vocab_size: int
    way: int | None = None
    template: Inputs | None = None
    own_loss: bool = True
    draws: bool = True
    flops: float = math.nan

    def inputs(self, idx: Tensor, targets: Tensor) -> Inputs:
        """Make the call that reads a batch.

        Args:
            idx: (B, T) ids.
            targets: (B, T), the token after each.
        """
        if self.way is None:
            return of_ids(self.model, idx, targets)
        if (made := self.template) is not None:
            swapped = {id(made.ids): idx, id(made.targets): targets}
            args, kwargs = changed((made.args, made.kwargs), lambda tensor: swapped[id(tensor)])
            return replace(made, args=args, kwargs=kwargs, ids=idx, targets=targets)
        return next(islice(ways(self.model, idx, targets), self.way, None))

    def loss(self, called: nn.Module, idx: Tensor, targets: Tensor) -> Tensor:
        """Run a batch and take the loss that is trained on; it may hold terms that the model adds to its own.

        Args:
            called: the model, or what it was compiled to or wrapped in.
            idx: (B, T) ids, on the model's device.
            targets: (B, T), the token after each.
        """
        if self.way is None:
            loss: Tensor = called(idx, targets)[1]
            return loss
        inputs = self.inputs(idx, targets)
        output = inputs.call(called)
        return _own(output) if self.own_loss else take_loss(output, inputs, self.vocab_size).loss

    def judged(self, called: nn.Module, idx: Tensor, targets: Tensor) -> Tensor:
        """Run a batch and take the mean cross entropy of the tokens after it, where the model returns logits.

        Args:
            called: as in `loss`.
            idx: (B, T) ids, on the model's device.
            targets: (B, T), the token after each.
        """
        if self.way is None:
            return self.loss(called, idx, targets)
        inputs = self.inputs(idx, targets)
        output = inputs.call(called)
        if logits_in(output, inputs.ids, self.vocab_size) is None:
            return _own(output)
        return take_loss(output, inputs, self.vocab_size).loss

    @property
    def identity(self) -> dict[str, Any]:
        """Values that tell this model from another, for a checkpoint."""
        if isinstance(self.model, NanoGPT):
            return asdict(self.model.config)
        shapes = "".join(f"{name} {tuple(each.shape)};" for name, each in self.model.named_parameters())
        hashed = hashlib.sha256(shapes.encode()).hexdigest()[:12]
        return {"class": type(self.model).__name__, "block_size": self.block_size, "shapes": hashed}


def task_of(model: nn.Module, block_size: int | None = None) -> Task:
    """Find out how a model is called on token ids, by a pass over two windows, and which loss it is trained on.

    That is its own where the forward makes one of the targets that it is given, unless these turn out to be taken for
    others than the next tokens; else the cross entropy of its logits, as `probe` takes it.

    Args:
        model: unwrapped, on any device; left as it was.
        block_size: tokens in a window; None: `window_of` the model.

    Raises:
        ConfigError: it isn't a model that predicts the next token of a text.
        ProbeError: its forward raised on everything that was tried (chained).
    """
    if isinstance(model, NanoGPT):
        c = model.config
        return Task(
            model,
            block_size or c.block_size,
            model.lm_head.out_features,
            draws=c.dropout > 0,
            flops=flops_per_token(c),
        )
    name = type(model).__name__
    vocab_size = vocabulary(model)
    if vocab_size is None:
        raise ConfigError(f"{name} has no table of tokens; expected {_EXPECTED}")
    block_size = window_of(model) if block_size is None else block_size
    idx, targets = _windows(block_size, vocab_size)
    way = way_of(model, idx, targets)
    made = next(islice(ways(model, idx, targets), way, None))
    inputs = made.to(next(model.parameters()).device)
    passes = Passes(of(model), None, 0)
    base = passes.run(inputs)
    scored = base.shown is not None and logits_in(base.shown, inputs.ids, vocab_size) is not None
    own = any(_same(each, targets) for each in tensors((inputs.args, inputs.kwargs))) and bool(base.losses)
    if own and scored:
        call = next(short(inputs))
        shift = shift_of(passes, call, passes.run(call))["value"]
        # where it can't be told, terms may have been added to the cross entropy, which only make it larger
        own = shift == 1 or (
            math.isnan(shift) and float(base.losses[0]) >= float(take_loss(base.shown, inputs, vocab_size).loss)
        )
    if not own and not scored:
        raise ConfigError(
            f"{name} returns neither logits over its {vocab_size} tokens at each position nor a loss of the targets; "
            f"expected {_EXPECTED}"
        )
    given = {id(tensor) for tensor in tensors((made.args, made.kwargs))}
    plain = made.ids is not None and made.targets is not None and given <= {id(made.ids), id(made.targets)}
    return Task(model, block_size, vocab_size, way=way, template=made if plain else None, own_loss=own)


def window_of(model: nn.Module, otherwise: int = 64) -> int:
    """Choose how long the windows are that a model is trained on, tokens.

    Args:
        model: a NanoGPT has a block_size; of others what they declare counts, up to LONGEST.
        otherwise: of a model that declares none.
    """
    if isinstance(model, NanoGPT):
        return model.config.block_size
    known = lengths(model)
    return min(known[0], LONGEST) if known else otherwise


def refuse_what_sees_ahead(task: Task) -> None:
    """Refuse a model whose output at a token moves with later ones: it would read what it is to predict.

    Args:
        task: of the model, which is left as it was.

    Raises:
        ConfigError: it sees them.
        ProbeError: its forward raised (chained).
    """
    if task.way is None:
        return
    idx, targets = _windows(task.block_size, task.vocab_size)
    inputs = task.inputs(idx, targets)
    passes = Passes(look(task.model, inputs), None, 0)
    base = passes.run(inputs)
    if base.shown is None or base.shown.dim() != 3:  # a loss alone doesn't say what it has seen
        return
    at = 5 * task.block_size // 8
    other = idx.clone()
    other[:, at] = (other[:, at] + 1) % task.vocab_size
    earlier = base.moved(passes.run(task.inputs(other, targets)))[0][:at]
    if max(earlier, default=0.0) > passes.noise(inputs, base):
        raise ConfigError(
            f"{type(task.model).__name__} sees later tokens: {sum(each > 0 for each in earlier)} of {at} positions "
            f"move when a token after them is another, so that it would read what it is to predict; expected "
            f"{_EXPECTED}"
        )


def _windows(block_size: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Two windows of random ids, and the tokens after them."""
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(vocab_size, (2, block_size + 1), generator=generator)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def _own(output: Any) -> Tensor:
    """The loss that a forward made of its targets."""
    found = [each for each in floats(output) if each.dim() == 0]
    return next((each for each in found if each.requires_grad), found[0])


def _same(tensor: Tensor, targets: Tensor) -> bool:
    return tensor.shape == targets.shape and bool((tensor.cpu() == targets).all())
