"""Recipes x widths x depths x seeds -> tables, one cell at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch

from initlab.anatomy.look import of
from initlab.corpus import Corpus
from initlab.drawing.apply import apply_recipe
from initlab.errors import ConfigError
from initlab.measure.moments import PRESETS, Preset
from initlab.measure.probe import Identity, measure
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
from initlab.recipes import Recipe
from initlab.schema import Tables

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """What a sweep measures. Lists are in the order given; the first recipe is the baseline of the report."""

    recipes: tuple[str, ...]
    depths: tuple[int, ...] = (4, 8, 16)
    widths: tuple[int, ...] = (384,)
    seeds: int = 3  # seeds 0 .. seeds-1, each a draw of the weights and a batch of the data
    n_head: int | None = None  # None: heads of 64, or of the next smaller divisor of n_embd
    block_size: int = 256
    batch_size: int = 4  # sequences
    vocab_size: int = 256
    bias: bool = True
    activation: str = "gelu"
    tie_weights: bool = True
    preset: Preset = "full"
    dtype: str = "float32"  # others: the forward pass runs under autocast
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("recipes", "depths", "widths"):
            check_axis(name, getattr(self, name))
        for name in ("depths", "widths"):
            wrong = [value for value in getattr(self, name) if type(value) is not int]
            if wrong:
                raise ConfigError(f"{name} holds {wrong[0]!r}; expected whole numbers")
        for name in ("seeds", "batch_size", "n_head"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} is {value!r}; expected a whole number from 1 on")
        if self.preset not in get_args(Preset):
            raise ConfigError(f"unknown preset {self.preset!r}; known: {', '.join(PRESETS)}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPES)}")
        self._check_cells()

    def _check_cells(self) -> None:
        """Refuse sizes that contradict each other before anything is measured."""
        for cell in self.cells():
            cell.config(self)

    def heads(self, n_embd: int) -> int:
        """Attention heads at a width."""
        return self.n_head or default_heads(n_embd)

    def cells(self) -> list[Cell]:
        """Every cell, shallow models first, recipes side by side, so that an interrupted sweep still compares."""
        return [
            Cell(recipe, n_layer, n_embd, seed)
            for n_embd in self.widths
            for n_layer in sorted(self.depths)
            for seed in range(self.seeds)
            for recipe in self.recipes
        ]

    def sizes(self) -> list[dict[str, int]]:
        """The sizes that recipes are evaluated for."""
        return [
            {
                "n_layer": n_layer,
                "n_embd": n_embd,
                "n_head": self.heads(n_embd),
                "block_size": self.block_size,
                "vocab_size": self.vocab_size,
            }
            for n_embd in self.widths
            for n_layer in sorted(self.depths)
        ]

    def as_dict(self) -> dict[str, Any]:
        """The config as JSON-ready values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Cell:
    """One model of a sweep, drawn once."""

    recipe: str
    n_layer: int
    n_embd: int
    seed: int

    @property
    def run_id(self) -> str:
        return f"{self.recipe}-L{self.n_layer}-d{self.n_embd}-s{self.seed}"

    def config(self, sweep: SweepConfig) -> NanoGPTConfig:
        """The model's config. Raises ConfigError on sizes that contradict each other."""
        return NanoGPTConfig(
            n_layer=self.n_layer,
            n_embd=self.n_embd,
            n_head=sweep.heads(self.n_embd),
            block_size=sweep.block_size,
            vocab_size=sweep.vocab_size,
            bias=sweep.bias,
            activation=sweep.activation,
            tie_weights=sweep.tie_weights,
        )

    def flops(self, sweep: SweepConfig) -> float:
        """Floating-point operations of one forward and backward pass: 6 a weight and token, and the attention."""
        d, T = self.n_embd, sweep.block_size
        weights = self.n_layer * (12 * d * d + 2 * d * T) + sweep.vocab_size * d
        return 6.0 * weights * T * sweep.batch_size


def check_axis(name: str, values: Sequence[Any]) -> None:
    """Refuse an axis of a sweep that is empty or holds a value twice. Raises ConfigError."""
    if not values:
        raise ConfigError(f"{name} is empty; give at least one")
    repeated = [value for value in values if values.count(value) > 1]
    if repeated:
        raise ConfigError(f"{name} has {repeated[0]!r} more than once")


def default_heads(n_embd: int) -> int:
    """Heads of 64 (nanoGPT's size), or of the largest smaller divisor of n_embd.

    Raises:
        ConfigError: no head size between 16 and 64 divides n_embd.
    """
    if n_embd < 1:
        raise ConfigError(f"n_embd is {n_embd}; expected at least 1")
    size = max(size for size in range(1, 65) if n_embd % size == 0)
    if size < min(16, n_embd):
        raise ConfigError(f"n_embd {n_embd} has no divisor between 16 and 64 for a head size; give n_head")
    return n_embd // size


def empty_model(config: NanoGPTConfig, device: str | torch.device) -> NanoGPT:
    """A NanoGPT with uninitialised weights: building on the meta device draws nothing, so no random state is used."""
    with torch.device("meta"):
        model = NanoGPT(config)
    model.to_empty(device=device)
    if config.tie_weights:  # to_empty allocates each name by itself
        model.lm_head.weight = model.transformer.wte.weight
    return model


def measure_cell(cell: Cell, sweep: SweepConfig, recipe: Recipe, corpus: Corpus) -> Tables:
    """Build, draw and measure one cell; the batch depends on the seed alone, so recipes see the same text."""
    started = time.perf_counter()
    model = empty_model(cell.config(sweep), sweep.device)
    anatomy = of(model)
    apply_recipe(model, recipe, cell.seed, anatomy=anatomy)
    idx, targets = corpus.batch(sweep.batch_size, sweep.block_size, cell.seed)
    identity = Identity(run_id=cell.run_id, recipe=cell.recipe, seed=cell.seed)
    options: dict[str, Any] = {"preset": sweep.preset, "recipe": recipe, "autocast": DTYPES[sweep.dtype]}
    tables = measure(model, idx, targets, identity, anatomy=anatomy, **options)
    tables.summary["seconds"] = round(time.perf_counter() - started, 3)
    return tables


def matmul_rate(device: str, n_embd: int, tokens: int, dtype: torch.dtype | None = None) -> float:
    """FLOP/s of a matrix product of a sweep's own size, up to 4096, measured for a few hundredths of a second."""
    tokens, n_embd = min(tokens, 4096), min(n_embd, 4096)  # no wider product is faster, and memory is for the models
    a = torch.ones(tokens, n_embd, device=device, dtype=dtype)
    b = torch.ones(n_embd, 4 * n_embd, device=device, dtype=dtype)
    a @ b
    repeats, started = 0, time.perf_counter()
    while time.perf_counter() - started < 0.05:
        c = a @ b
        repeats += 1
    float(c[0, 0])  # waits for a GPU
    return repeats * 2.0 * tokens * n_embd * 4 * n_embd / (time.perf_counter() - started)
