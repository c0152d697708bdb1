"""Recipes x widths x depths x seeds -> tables, one cell at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import Any, get_args

import torch

from initlab.drawing.subject import check_axis, check_sizes
from initlab.measure.moments import Preset
from initlab.models.config import WIRING, Configs, NanoGPTConfig, config_at
from initlab.options import checked_choice, checked_count
from initlab.schema import Tables

SIZES = ("n_layer", "n_embd", "n_head", "block_size", "vocab_size")
OPTIONS = ("n_head", "block_size", "vocab_size", "bias", "activation", "tie_weights", "dropout")
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """What a sweep measures. Lists are in the order given; the first recipe is the baseline of the report."""

    recipes: tuple[str, ...]
    model: Configs | None  # of the NanoGPTs that recipes are drawn into; None: of another kind
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    seeds: int = 3  # seeds 0 .. seeds-1, each a draw of the weights and a batch of the data
    batch_size: int = 4  # sequences
    preset: Preset = "full"
    dtype: str = "float32"  # others: the forward pass runs under autocast
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_axis("recipes", self.recipes)
        for name in ("depths", "widths"):
            object.__setattr__(self, name, check_sizes(name, getattr(self, name)))
        for name in ("seeds", "batch_size"):
            object.__setattr__(self, name, checked_count(name, getattr(self, name)))
        checked_choice("preset", self.preset, get_args(Preset))
        checked_choice("dtype", self.dtype, DTYPES)
        self.sizes()  # refuses what contradicts itself before anything is measured

    def config(self, n_layer: int, n_embd: int) -> NanoGPTConfig:
        """Resize the NanoGPT that recipes are drawn into. Raises ConfigError on sizes that contradict each other."""
        assert self.model is not None
        return config_at(self.model, n_layer, n_embd)

    def cells(self) -> list[Cell]:
        """Every cell, shallow models first, recipes side by side, so that an interrupted sweep still compares."""
        return [
            Cell(recipe, n_layer, n_embd, seed)
            for n_embd in self.widths
            for n_layer in sorted(self.depths)
            for seed in range(self.seeds)
            for recipe in self.recipes
        ]

    def sizes(self) -> list[dict[str, Any]]:
        """List the sizes that recipes are evaluated for, as `gpt_dims` takes them; none where no NanoGPT is made."""
        places = dict.fromkeys((cell.n_layer, cell.n_embd) for cell in self.cells()) if self.model else {}
        return [{name: getattr(self.config(*place), name) for name in SIZES} for place in places]

    def as_dict(self) -> dict[str, Any]:
        """Flatten the config into JSON-ready values; an option of NanoGPTs that widths differ in is a list."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "model"}
        configs = [self.config(min(self.depths), n_embd) for n_embd in self.widths] if self.model else []
        # of nanoGPT's own wiring nothing is said, so that runs from before there was another go on
        other = [name for name in WIRING if any(getattr(c, name) != getattr(NanoGPTConfig, name) for c in configs)]
        for name in (*OPTIONS, *other) if configs else ():
            found = list(dict.fromkeys(getattr(config, name) for config in configs))
            values[name] = found if len(found) > 1 else found[0]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


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
        return sweep.config(self.n_layer, self.n_embd)

    def flops(self, sweep: SweepConfig) -> float:
        """Floating-point operations of one forward and backward pass: 6 a weight and token, and the attention."""
        config = self.config(sweep)
        d, T = self.n_embd, config.block_size
        weights = self.n_layer * (12 * d * d + 2 * d * T) + (config.vocab_size or 0) * d
        return 6.0 * weights * T * sweep.batch_size


def fill_sizes(tables: Tables, cell: Cell) -> None:
    """Give the rows of a model without a stream, which has no size of its own, the one that was asked for, in place.

    Args:
        tables: of the cell's model.
        cell: it.
    """
    for frame in (tables.records, tables.summary, tables.heads):
        for column, size in (("n_layer", cell.n_layer), ("n_embd", cell.n_embd)):
            frame[column] = frame[column].mask(frame[column] == 0, size)


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
