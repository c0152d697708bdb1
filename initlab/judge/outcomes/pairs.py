"""Which recipes train worse than another of the same runs: every pair, paired over seeds, held to one level together.

Why all pairs, and not the best against the rest. The best of the same runs is best by luck, too: with equal recipes,
Holm over the differences to it calls one worse in 7 % (4 recipes, 3 seeds) to 11 % (9 recipes, 5 seeds) of grids. Hsu's
comparison with the best (1996, Multiple Comparisons, chapter 4) doesn't mend that here: a recipe that it leaves out is
not the only best one, and may be as good; equal recipes are left out in 10 to 28 % of grids. That a recipe is worse
than another one is a statement about a pair, so that the family is all pairs, and any of them may be picked afterwards.

Why each pair has its own scatter. Recipes at the edge of stability scatter ten times as much as others: with scatters
spread over a decade, pooling them (Tukey's studentized range) finds differences between equal recipes in 10 to 16 % of
grids. A paired t-test over seeds needs nothing of the kind, and Holm's procedure (1979, Scandinavian Journal of
Statistics 6) nothing of how the tests depend on each other.

Limits. What is found in four of five grids is 7 times a recipe's scatter with 4 recipes and 3 seeds, 12 times with 9
and 3, 3.5 times with 9 and 5; two seeds find next to nothing. A rate at which each run survives
by a coin's toss has no normal noise: where three seeds agree by chance their scatter is tiny, and of equal recipes one
is called worse in 15 % (4 recipes) to 28 % (6) of grids of three seeds; with five it is 3 %. Heavy tails err on the
safe side. Figures: `python benchmarks/outcome_level.py`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pandas as pd

from initlab.judge.students import LEVEL, Mean, holm

PAIRS_DEFINITION = (
    "Every recipe is compared with every other one at that depth: the paired difference over seeds (the same seed is "
    "the same data order and the same draw of the weights), Student's t, and Holm's procedure over all pairs, so that "
    f"with equal recipes the chance of any «trains worse» at a depth stays below {LEVEL:.0%}, whichever was luckiest"
)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two recipes, the one with the higher loss first.

    Attributes:
        worse: name of the recipe with the higher mean loss.
        better: name of the other one.
        difference: of the loss, worse minus better, over the seeds that both have; its value is never negative.
        p_holm: two-sided p-value of no difference, adjusted for the number of pairs; NaN of a single seed.
        level: that this pair was held to.
    """

    worse: str
    better: str
    difference: Mean
    p_holm: float
    level: float

    @property
    def separated(self) -> bool:
        """Whether the pair differs at the family's level; False of a single seed."""
        return self.p_holm <= LEVEL

    @property
    def seeds_needed(self) -> float:
        """The fewest seeds that would separate this mean and scatter, see `Mean.seeds_needed`."""
        return self.difference.seeds_needed(self.level)


def pairs(loss: pd.DataFrame) -> list[Pair]:
    """Compare every recipe with every other one.

    Args:
        loss: by seed (rows) and recipe (columns), NaN where a recipe lacks a seed.

    Returns:
        One per pair of recipes with a seed in common, in the order of the columns.
    """
    columns = {str(name): loss[name].to_numpy(float) for name in loss}
    found = []
    for one, other in itertools.combinations(columns, 2):
        difference = Mean.of(columns[one] - columns[other])
        if difference.value < 0:
            one, other, difference = other, one, Mean(difference.n, -difference.value, difference.sd)
        if difference.n:
            found.append((one, other, difference))
    adjusted, levels = holm([difference.p for _, _, difference in found])
    return [Pair(*each, float(p), float(level)) for each, p, level in zip(found, adjusted, levels, strict=True)]
