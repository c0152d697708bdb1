"""The grid that shows whether a learning rate holds as a model grows: recipes at several sizes and rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from initlab.errors import ConfigError
from initlab.measure.sweep import Cell
from initlab.models.config import NanoGPTConfig
from initlab.training.protocol import GridConfig, TrainingCell

# Rates an octave apart, so that the parabola through the lowest three has something to bend on. quick: two recipes in
# about 15 minutes on 2 cores. thorough: for a GPU.
GRIDS: dict[str, dict[str, Any]] = {
    "quick": {
        "model": NanoGPTConfig(n_layer=2, n_embd=64, n_head=4, block_size=64, bias=False),
        "widths": (64, 128, 256),
        "depths": (2,),
        "lrs": tuple(2.0**-k for k in range(12, 4, -1)),
        "seeds": 3,
        "steps": 200,
        "warmup": 40,
        "batch_size": 8,
    },
    "thorough": {
        "model": NanoGPTConfig(n_layer=4, n_embd=128, n_head=2, block_size=256, bias=False),
        "widths": (128, 256, 512, 1024),
        "depths": (4,),
        "lrs": tuple(2.0**-k for k in range(13, 4, -1)),
        "seeds": 3,
        "steps": 1000,
        "warmup": 200,
        "batch_size": 32,
    },
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferConfig(GridConfig):
    """What is trained: the widths at the smallest depth, and the depths at the smallest width, each at every rate.

    Raises:
        ConfigError: as GridConfig; also fewer than two sizes, or fewer than three rates.
    """

    def __post_init__(self) -> None:
        GridConfig.__post_init__(self)
        if len(self.sized()) < 2:
            raise ConfigError(
                f"widths is {self.widths[0]} and depths {self.depths[0]}: whether a rate holds needs two widths or "
                "more (--widths 64,128,256) or two depths or more (--depths 2,4,8)"
            )
        if len(self.lrs) < 3:
            raise ConfigError(f"lrs has {len(self.lrs)}; expected three or more, or no best rate can be found")

    def sized(self) -> list[tuple[int, int]]:
        """List (n_layer, n_embd) of every model, small ones first."""
        depth, width = min(self.depths), min(self.widths)
        wide = [(depth, n_embd) for n_embd in sorted(self.widths)]
        return wide + [(n_layer, width) for n_layer in sorted(self.depths) if n_layer != depth]

    def cells(self) -> list[Cell]:
        """List what is probed at init: one draw of every recipe and size."""
        return [Cell(recipe, *size, 0) for size in self.sized() for recipe in self.recipes]

    def runs(self) -> list[TrainingCell]:
        """List the runs: small models first, then seed by seed, recipes side by side, so that a part compares."""
        return [
            TrainingCell(recipe, *size, seed, lr, self.warmups[0])
            for size in self.sized()
            for seed in range(self.seeds)
            for lr in self.lrs
            for recipe in self.recipes
        ]
