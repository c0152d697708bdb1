"""What commands share that measure several models: their sizes, the text that they read, what is expected of them."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab.api.looking import anatomy_of
from initlab.errors import ConfigError, ProbeError, RecipeError
from initlab.judge import theory
from initlab.models.config import config_at
from initlab.models.wired import wired
from initlab.options import Text
from initlab.recipes.tabulating import evaluate, evaluate_places
from initlab.schema import Tables

if TYPE_CHECKING:
    from torch import nn

    from initlab.anatomy.inputs import Inputs
    from initlab.anatomy.look import Anatomy
    from initlab.corpus import Corpus
    from initlab.drawing.makers import Maker
    from initlab.drawing.subject import Subject
    from initlab.measure.sweep import Cell, SweepConfig
    from initlab.recipes import Recipe

TOKENS = 1024  # of a batch, about, of what isn't a NanoGPT


@dataclass(slots=True)
class _Surveyed:
    """What making every model once has told."""

    counts: dict[tuple[Maker, int, int], int] = field(default_factory=dict)  # parameters, by maker and size
    asked: list[Any] = field(default_factory=list)  # (role, dims) of every parameter that recipes are drawn into
    classes: list[str] = field(default_factory=list)
    described: dict[str, Any] = field(default_factory=dict)  # of the first model's batch
    batch: dict[str, Any] = field(default_factory=dict)


class SideBySide:
    """A subject and what its models read.

    Args:
        subject: what is measured.
        text: what its models read; NanoGPTs, sequences of their block_size.
        rows: sequences in a batch of NanoGPTs, where the text says nothing.
        batch: in place of a text, for models that aren't NanoGPTs of a config.
        corpus: in place of loading the text, for models that know its vocabulary.
        described: what a manifest says of the corpus.
        roles: what parameters of the models that recipes are drawn into are for, see `initlab.apply_recipe`.

    Raises:
        ConfigError, DataError: the text or the batch can't be used, or roles are given to NanoGPTs or functions.
    """

    def __init__(
        self,
        subject: Subject,
        text: Text,
        *,
        rows: int = 4,
        batch: Any = None,
        corpus: Corpus | None = None,
        described: dict[str, Any] | None = None,
        roles: Mapping[str, str | None] | None = None,
    ):
        if roles is not None and subject.base is None:
            raise ConfigError("roles= is of the model that recipes are drawn into; give it by model=, or leave it out")
        if batch is not None and subject.config is not None:
            raise ConfigError("batch= is for models of functions; NanoGPTs drawn from recipes read `text`")
        self.subject = subject
        self.text = text
        self.batch = next(batch, None) if isinstance(batch, Iterator) else batch  # every model reads the same
        self.rows = rows if text.batch_size is None else text.batch_size
        self.corpus = self._given = corpus
        self.refused: dict[str, str] = {}  # recipes that these models can't be given, and why
        self._loaded: dict[tuple[str, str | None, int | None], Corpus] = {}
        self.roles = roles
        subject.look, subject.passed = partial(anatomy_of, roles=roles), self._passed
        self.seen = _Surveyed(described=described or {})
        if text.block_size is not None:
            subject.read(block_size=text.block_size)
        if subject.config is not None and corpus is None:
            config = config_at(subject.config, min(subject.depths), min(subject.widths))
            if None not in (config.vocab_size, text.vocab_size) and config.vocab_size != text.vocab_size:
                raise ConfigError(f"the model has vocab_size {config.vocab_size}, the text {text.vocab_size}")
            self.corpus = self.load(text.data, text.tokenizer, config.vocab_size or text.vocab_size)
            subject.read(vocab_size=self.corpus.vocab_size)
            self.corpus.batch(self.rows, config.block_size, 0)  # refuses a text that is too short
            self.seen.described = self.corpus.describe()

    @property
    def described(self) -> dict[str, Any]:
        """What a manifest says of the text: that of the NanoGPTs, else of the first model."""
        return self.seen.described

    @property
    def left_out(self) -> dict[str, Any]:
        """What run.json says of recipes that were left out; nothing without any."""
        return {"left_out": self.refused} if self.refused else {}

    @property
    def tokens(self) -> int:
        """Tokens in a batch, about."""
        config = self.subject.config
        if config is None:
            return TOKENS
        return self.rows * config_at(config, min(self.subject.depths), min(self.subject.widths)).block_size

    def inputs(self, name: str, model: nn.Module, seed: int) -> tuple[Inputs, dict[str, Any]]:
        """Read the batch of a model: the same for every recipe at a seed; and describe its text."""
        from initlab.anatomy.inputs import of_ids
        from initlab.models.nanogpt import NanoGPT

        if self.subject.sized(name) is not None:
            return self._made(model, seed)
        assert self.corpus is not None and isinstance(model, NanoGPT)
        return of_ids(model, *self.corpus.batch(self.rows, model.config.block_size, seed)), self.described

    def load(self, data: str | Path, tokenizer: str | None, vocab_size: int | None) -> Corpus:
        """Load a text as `load_corpus` does, once; what was given in its place is it."""
        if self._given is not None:
            return self._given
        from initlab.corpus import load_corpus

        key = (str(data), tokenizer, vocab_size)
        if key not in self._loaded:
            self._loaded[key] = load_corpus(data, tokenizer, vocab_size)
        return self._loaded[key]

    def _made(self, model: nn.Module, seed: int) -> tuple[Inputs, dict[str, Any]]:
        from initlab.measure.batches import inputs_for

        return inputs_for(model, self.batch, text=self.text, seed=seed, load=self.load)

    def _passed(self, model: nn.Module) -> Anatomy:
        from initlab.measure.probe import look

        return look(model, self._made(model, 0)[0], said_roles=self.roles)

    def said(self, name: str) -> Mapping[str, str | None] | None:
        """What is said of the roles in the models of an item; of functions with an init of their own nothing."""
        return self.roles if name in self.subject.recipes else None

    def survey(self, sweep: SweepConfig, *, trained: bool = False) -> None:
        """Make every size of every function once.

        Args:
            sweep: its sizes.
            trained: draw each recipe too, and group the parameters for its optimizer; those that can't be are left out
                of the subject and told in `refused`, while there are others.

        Raises:
            ProbeError: one can't be made, or is of the same size as another.
            RecipeError: a recipe has no answer for a parameter, or a parameter has no role; of recipes that are to be
                trained, each has something that this model can't be given.
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
                    if maker is base and not trained:
                        seen.asked += asked(self.subject.look(model))
                    if place == places[0]:
                        inputs, described = self._made(model, 0)
                        seen.described = seen.described or described
                        ids = inputs.ids
                        shape = {} if ids is None else {"batch_size": ids.shape[0], "block_size": ids.shape[1]}
                        given = {} if self.batch is None else {"batch": _fingerprint(inputs)}
                        seen.batch = seen.batch or shape | given
                        if self.batch is not None:  # what is made has been tried
                            _try(maker, model.to(sweep.device), inputs)
                        if maker.module(*place) is model:
                            raise ProbeError(
                                f"{maker.name} returned the same model twice; expected a new one each time"
                            )
                    if maker is base and trained:
                        self._leave_out(partial(self._draw, model))
                    elif maker is base and place == places[0]:
                        self._leave_out(partial(self._wire, model))
            _check_growth(maker, places, seen.counts)
        self._leave_out(lambda recipe: self._evaluated(recipe, sweep))

    def _draw(self, model: nn.Module, recipe: Recipe) -> None:
        """Draw a recipe into a model, and group its parameters. Raises RecipeError where that can't be done."""
        from initlab.drawing.apply import apply_recipe, asked
        from initlab.drawing.groups import adam_groups

        anatomy = self.subject.look(model)
        places = asked(anatomy)
        apply_recipe(model, recipe, 0, anatomy=anatomy, look=self.subject.passed)
        adam_groups(model, recipe, lr=1.0, anatomy=anatomy)
        evaluate_places(recipe, places)
        self.seen.asked += [each for each in places if each not in self.seen.asked]

    def _wire(self, model: nn.Module, recipe: Recipe) -> None:
        """Give a model a recipe's wiring. Raises RecipeError where that can't be done."""
        from initlab.drawing.apply import apply_recipe

        if recipe.wiring is not None:
            apply_recipe(model, recipe, 0, anatomy=self.subject.look(model), look=self.subject.passed)

    def _leave_out(self, attempt: Callable[[Recipe], Any]) -> None:
        """Leave out the recipes for which an attempt fails. Raises RecipeError: nothing is left."""
        first: RecipeError | None = None
        for id, recipe in self.subject.recipes.items():
            try:
                attempt(recipe)
            except RecipeError as error:
                first = first or error
                self.refused[id] = str(error)
                del self.subject.items[id]
        if first is not None and not self.subject.items:
            raise first

    def refuse_other_architectures(self) -> None:
        """Refuse recipes for NanoGPTs beside functions that make other models. Raises ConfigError."""
        subject = self.subject
        others = sorted({*self.seen.classes} - {"NanoGPT"})
        if subject.config is not None and subject.recipes and others:
            raise ConfigError(
                f"{next(iter(subject.recipes))} is a recipe, and beside it are functions that make models of another "
                f"architecture ({', '.join(others)}); say with model= (--model) what recipes are to be drawn into"
            )

    def evaluated(self, sweep: SweepConfig) -> dict[str, Any]:
        """Evaluate every recipe for what it is drawn into, as run.json holds it."""
        return {id: self._evaluated(entry, sweep) for id, entry in self.subject.recipes.items()}

    def _evaluated(self, entry: Recipe, sweep: SweepConfig) -> dict[str, Any]:
        if self.subject.base is not None:
            return evaluate_places(entry, self.seen.asked)
        sizes = sweep.sizes()
        own = wired(sweep.config(sizes[0]["n_layer"], sizes[0]["n_embd"]), entry)
        return evaluate(entry, sizes, bias=own.bias, tied=own.tie_weights)

    def as_dict(self, sweep: SweepConfig) -> dict[str, Any]:
        """The part of run.json that makes two runs the same."""
        kept = sweep.as_dict()
        makers = self.subject.makers
        if makers:
            classes = ["NanoGPT"] * (self.subject.config is not None) + self.seen.classes
            kept |= {"model": ", ".join(dict.fromkeys(classes)), "sources": [maker.source for maker in makers]}
            kept |= {} if self.subject.config is not None else self.seen.batch
        kept |= {"roles": dict(self.roles)} if self.roles else {}
        return kept | {key: self.described.get(key) for key in ("label", "tokenizer", "sha256")}

    def work(self, cell: Cell, sweep: SweepConfig) -> float:
        """Floating-point operations of one forward and backward pass."""
        maker = self.subject.sized(cell.recipe)
        if maker is None:
            return cell.flops(sweep)
        tokens = self.rows * self.text.block_size if self.text.block_size and self.text.batch_size else TOKENS
        return 6.0 * self.seen.counts[maker, cell.n_layer, cell.n_embd] * tokens

    def measure(self, sweep: SweepConfig, cell: Cell) -> Tables:
        """Make, draw and measure the model of a cell, in the mode it is made in, and fill in what is expected of it."""
        from initlab.drawing.subject import seeded
        from initlab.measure.probe import Identity, look, measure_inputs
        from initlab.measure.sweep import DTYPES, fill_sizes

        started = time.perf_counter()
        name, autocast = cell.recipe, DTYPES[sweep.dtype]
        options: dict[str, Any] = {"preset": sweep.preset, "recipe": self.subject.recipes.get(name)}
        identity = Identity(run_id=cell.run_id, recipe=name, seed=cell.seed)
        with seeded(cell.seed, sweep.device):
            model = self.subject.make(name, cell.n_layer, cell.n_embd, cell.seed, sweep.device)
            inputs, described = self.inputs(name, model, cell.seed)
            anatomy = look(model, inputs, seed=cell.seed, autocast=autocast, said_roles=self.said(name))
            tables = measure_inputs(model, inputs, identity, anatomy=anatomy, autocast=autocast, **options)
            self.expect(name, anatomy, tables, inputs, described)
        fill_sizes(tables, cell)
        tables.summary["seconds"] = round(time.perf_counter() - started, 3)
        return tables

    def expect(self, name: str, anatomy: Anatomy, tables: Tables, inputs: Inputs, described: dict[str, Any]) -> None:
        """Fill in `expected_*` in place: of NanoGPTs what the recipe implies, of others what their own weights imply.

        Args:
            name: of the recipe or function.
            anatomy: of its model.
            tables: of its first step.
            inputs: what it was measured on.
            described: the text that they are of.
        """
        from initlab.drawing.subject import own_size

        summary = tables.summary.iloc[0]
        if own_size(anatomy) != (summary["n_layer"], summary["n_embd"]):
            return
        targets = None if inputs.targets is None else inputs.targets.cpu().numpy()
        recipe = self.subject.recipes[name] if self.subject.sized(name) is None else None
        dims = None if recipe is None else anatomy.dims
        theory.expect(tables, anatomy.wirings, described, targets, recipe=recipe, dims=dims)


def _fingerprint(inputs: Inputs) -> str:
    """Of a batch, so that a run isn't resumed with another."""
    import torch

    from initlab.anatomy.tensors import tensors

    made = hashlib.sha256()
    for each in tensors((inputs.args, inputs.kwargs, inputs.targets)):
        made.update(f"{each.dtype} {tuple(each.shape)}".encode())
        made.update(each.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()[:12]


def _try(maker: Maker, model: nn.Module, inputs: Inputs) -> None:
    """Run a model once. Raises ProbeError where it can't read the batch that was given."""
    import torch

    from initlab.anatomy.restoring import copied
    from initlab.anatomy.tensors import tensors

    try:
        with torch.no_grad():
            args, kwargs = copied((inputs.args, inputs.kwargs))  # a forward may write into them
            replace(inputs, args=args, kwargs=kwargs).to(next(model.parameters()).device).call(model)
    except (Exception, SystemExit) as error:
        shapes = " and ".join(str(tuple(each.shape)) for each in tensors((inputs.args, inputs.kwargs)))
        raise ProbeError(
            f"{type(model).__name__} of {maker.name} can't read a batch of {shapes}: {type(error).__name__}: {error}; "
            "pass one that models of every size read"
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
