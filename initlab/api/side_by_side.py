"""What `compare` and `scale` share: models of several sizes, the text that they read, and what is expected of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab.errors import ConfigError, ProbeError
from initlab.judge import theory
from initlab.models.config import config_at
from initlab.options import Text
from initlab.recipes.tabulating import evaluate, evaluate_places
from initlab.schema import Tables

if TYPE_CHECKING:
    from torch import nn

    from initlab.anatomy.look import Anatomy
    from initlab.corpus import Corpus
    from initlab.drawing.subject import Maker, Subject
    from initlab.measure.inputs import Inputs
    from initlab.measure.sweep import Cell, SweepConfig

TOKENS = 1024  # of a batch, about, of what isn't a NanoGPT


@dataclass(slots=True)
class _Surveyed:
    """What making every model once has told."""

    counts: dict[tuple[Maker, int, int], int] = field(default_factory=dict)  # parameters, by maker and size
    asked: list[Any] = field(default_factory=list)  # (role, dims) of every parameter that recipes are drawn into
    classes: list[str] = field(default_factory=list)
    described: dict[str, Any] = field(default_factory=dict)  # of the first model's batch
    batch: dict[str, int] = field(default_factory=dict)


class SideBySide:
    """A subject and what its models read.

    Args:
        subject: what is measured.
        text: what its models read; NanoGPTs, sequences of their block_size.
        rows: sequences in a batch of NanoGPTs, where the text says nothing.
        batch: in place of a text, for models that aren't NanoGPTs of a config.

    Raises:
        ConfigError, DataError: the text or the batch can't be used.
    """

    def __init__(self, subject: Subject, text: Text, *, rows: int = 4, batch: Any = None):
        if batch is not None and subject.config is not None:
            raise ConfigError("batch= is for models of functions; NanoGPTs drawn from recipes read `text`")
        self.subject = subject
        self.text = text
        self.batch = batch
        self.rows = rows if text.batch_size is None else text.batch_size
        self.corpus: Corpus | None = None
        self._loaded: dict[tuple[str, str | None, int | None], Corpus] = {}
        self.seen = _Surveyed()
        if subject.config is not None:
            config = config_at(subject.config, min(subject.depths), min(subject.widths))
            self.corpus = self.load(text.data, text.tokenizer, config.vocab_size)
            subject.read(self.corpus.vocab_size)
            self.corpus.batch(self.rows, config.block_size, 0)  # refuses a text that is too short
            self.seen.described = self.corpus.describe()

    @property
    def described(self) -> dict[str, Any]:
        """What a manifest says of the text: that of the NanoGPTs, else of the first model."""
        return self.seen.described

    @property
    def tokens(self) -> int:
        """Tokens in a batch, about."""
        config = self.subject.config
        if config is None:
            return TOKENS
        return self.rows * config_at(config, min(self.subject.depths), min(self.subject.widths)).block_size

    def inputs(self, name: str, model: nn.Module, seed: int) -> tuple[Inputs, dict[str, Any]]:
        """Read the batch of a model: the same for every recipe at a seed; and describe its text."""
        from initlab.measure.inputs import of_ids
        from initlab.models.nanogpt import NanoGPT

        if self.subject.sized(name) is not None:
            return self._made(model, seed)
        assert self.corpus is not None and isinstance(model, NanoGPT)
        return of_ids(model, *self.corpus.batch(self.rows, model.config.block_size, seed)), self.described

    def load(self, data: str | Path, tokenizer: str | None, vocab_size: int | None) -> Corpus:
        """Load a text as `load_corpus` does, once."""
        from initlab.corpus import load_corpus

        key = (str(data), tokenizer, vocab_size)
        if key not in self._loaded:
            self._loaded[key] = load_corpus(data, tokenizer, vocab_size)
        return self._loaded[key]

    def _made(self, model: nn.Module, seed: int) -> tuple[Inputs, dict[str, Any]]:
        from initlab.measure.batches import inputs_for

        return inputs_for(model, self.batch, text=self.text, seed=seed, load=self.load)

    def survey(self, sweep: SweepConfig) -> None:
        """Make every size of every function once.

        Raises:
            ProbeError: one can't be made, or is of the same size as another.
            RecipeError: a recipe has no answer for a parameter, or a parameter has no role.
            ConfigError, DataError: no batch can be made.
        """
        from initlab.drawing.apply import asked
        from initlab.drawing.subject import seeded

        seen, base = self.seen, self.subject.base
        places = list(dict.fromkeys((cell.n_layer, cell.n_embd) for cell in sweep.cells()))
        for maker in self.subject.makers:
            for place in places:
                with seeded(0, sweep.device):
                    model = maker.module(*place)
                    seen.counts[maker, *place] = sum(p.numel() for p in model.parameters())
                    seen.classes.append(type(model).__name__)
                    if maker is base:
                        seen.asked += asked(model)
                    if place == places[0]:
                        inputs, described = self._made(model, 0)
                        seen.described = seen.described or described
                        ids = inputs.ids
                        shape = {} if ids is None else {"batch_size": ids.shape[0], "block_size": ids.shape[1]}
                        seen.batch = seen.batch or shape
                        _try(maker, model.to(sweep.device), inputs)
            _check_growth(maker, places, seen.counts)
        self.evaluated(sweep)

    def evaluated(self, sweep: SweepConfig) -> dict[str, Any]:
        """Evaluate every recipe for what it is drawn into, as run.json holds it."""
        recipes = self.subject.recipes.items()
        if self.subject.base is not None:
            return {id: evaluate_places(entry, self.seen.asked) for id, entry in recipes}
        sizes = sweep.sizes()
        if not sizes:
            return {}
        config = sweep.config(sizes[0]["n_layer"], sizes[0]["n_embd"])
        return {id: evaluate(entry, sizes, bias=config.bias, tied=config.tie_weights) for id, entry in recipes}

    def as_dict(self, sweep: SweepConfig) -> dict[str, Any]:
        """The part of run.json that makes two runs the same."""
        kept = sweep.as_dict()
        makers = self.subject.makers
        if makers:
            classes = ["NanoGPT"] * (self.subject.config is not None) + self.seen.classes
            kept |= {"model": ", ".join(dict.fromkeys(classes)), "sources": [maker.source for maker in makers]}
            kept |= {} if self.subject.config is not None else self.seen.batch
        return kept | {key: self.described.get(key) for key in ("label", "tokenizer", "sha256")}

    def work(self, cell: Cell, sweep: SweepConfig) -> float:
        """Floating-point operations of one forward and backward pass."""
        maker = self.subject.sized(cell.recipe)
        if maker is None:
            return cell.flops(sweep)
        return 6.0 * self.seen.counts[maker, cell.n_layer, cell.n_embd] * TOKENS

    def expect(self, anatomy: Anatomy, tables: Tables, inputs: Inputs, described: dict[str, Any]) -> None:
        """Fill in `expected_*` in place from the weights as found, where the closed form knows the model.

        Args:
            anatomy: of the model.
            tables: of its first step.
            inputs, described: what it read.
        """
        from initlab.anatomy.families import architecture
        from initlab.drawing.subject import own_size

        summary = tables.summary.iloc[0]
        wiring = architecture(anatomy, int(summary["block_size"]))
        if wiring is None or own_size(anatomy) != (summary["n_layer"], summary["n_embd"]):
            return
        targets = None if inputs.targets is None else inputs.targets.cpu().numpy()
        discovered = anatomy.layout != "nanogpt"
        theory.expect(tables, theory.Wiring(**wiring), described, targets, discovered=discovered)


def _try(maker: Maker, model: nn.Module, inputs: Inputs) -> None:
    """Run a model once. Raises ProbeError where it can't read the batch that was made for it."""
    import torch

    from initlab.measure.inputs import tensors

    try:
        with torch.no_grad():
            inputs.to(next(model.parameters()).device).call(model)
    except Exception as error:
        shapes = " and ".join(str(tuple(each.shape)) for each in tensors((inputs.args, inputs.kwargs)))
        raise ProbeError(
            f"{type(model).__name__} of {maker.name} can't read a batch of {shapes}: {type(error).__name__}: {error}; "
            "pass batch=, or let its config declare its longest sequence, as block_size"
        ) from error


def _check_growth(maker: Maker, places: Sequence[tuple[int, int]], counts: dict[tuple[Maker, int, int], int]) -> None:
    """Refuse a function that makes the same model at two sizes. Raises ProbeError."""
    smallest = min(places)
    for axis, name in enumerate(("n_layer", "n_embd")):
        line = sorted(place for place in places if place[1 - axis] == smallest[1 - axis])
        for small, large in itertools.pairwise(line):
            if counts[maker, *small] >= counts[maker, *large]:
                raise ProbeError(
                    f"{maker.name} made {counts[maker, *small]} parameters at {name} {small[axis]} and "
                    f"{counts[maker, *large]} at {large[axis]}; expected more at the larger: does it use {name}?"
                )
