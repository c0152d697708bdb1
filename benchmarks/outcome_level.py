"""How often equal recipes are told apart, and what difference is found: procedures for «trains worse», simulated.

A grid is losses by seed and recipe, without any effect; a procedure fails where it calls one recipe worse. Writes
outcome_level.md.

    python benchmarks/outcome_level.py     # a minute on one core
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr
from scipy.stats import studentized_range

Grids = NDArray[np.float64]  # grid, seed, recipe
HERE = Path(__file__)
LEVEL, GRIDS = 0.05, 20_000
RECIPES, SEEDS = (2, 4, 6, 9), (2, 3, 4, 5)
POWER = 0.8


def p_values(difference: Grids) -> Grids:
    """Two-sided, of Student's t over the second axis."""
    n = difference.shape[1]
    error = difference.std(axis=1, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num(np.abs(difference.mean(axis=1)) / error)
    return 2 * stdtr(n - 1, -t)


def all_pairs(grids: Grids) -> NDArray[np.bool_]:
    """Holm over all pairs tells some pair apart where the smallest p-value is below level / number of pairs."""
    pairs = list(combinations(range(grids.shape[2]), 2))
    p = np.stack([p_values(grids[:, :, [i]] - grids[:, :, [j]])[:, 0] for i, j in pairs])
    return p.min(axis=0) <= LEVEL / len(pairs)


def with_the_winner(grids: Grids) -> NDArray[np.bool_]:
    """Holm over the differences to the recipe with the lowest mean."""
    best = grids.mean(axis=1).argmin(axis=1)[:, None, None]
    p = np.sort(p_values(grids - np.take_along_axis(grids, best, axis=2)), axis=1)[:, :-1]  # the last: with itself
    return p.min(axis=1) <= LEVEL / (grids.shape[2] - 1)


def spread(grids: Grids) -> Grids:
    """Range of the recipes' means, in pooled standard errors of a difference, of an analysis by blocks."""
    _, n, k = grids.shape
    rest = grids - grids.mean(axis=1, keepdims=True) - grids.mean(axis=2, keepdims=True)
    rest += grids.mean(axis=(1, 2), keepdims=True)
    pooled = np.sqrt((rest**2).sum(axis=(1, 2)) / ((k - 1) * (n - 1)))
    return np.ptp(grids.mean(axis=1), axis=1) / (pooled * np.sqrt(2 / n))


def tukey(grids: Grids) -> NDArray[np.bool_]:
    """The studentized range, scatter pooled over recipes."""
    _, n, k = grids.shape
    return spread(grids) > studentized_range.ppf(1 - LEVEL, k, (k - 1) * (n - 1)) / np.sqrt(2)


def hsu(grids: Grids) -> NDArray[np.bool_]:
    """Comparison with the best leaves some recipe out: one-sided Dunnett's quantile (simulated), pooled scatter."""
    _, n, k = grids.shape
    null = np.random.default_rng(1).normal(size=(GRIDS, n, k))
    behind = null.mean(axis=1)[:, 1:].max(axis=1) - null.mean(axis=1)[:, 0]
    scale = np.ptp(null.mean(axis=1), axis=1) / spread(null)
    return spread(grids) > np.quantile(behind / scale, 1 - LEVEL)


def coin(rng: np.random.Generator, shape: tuple[int, ...]) -> Grids:
    """A run survives by a coin's toss; beside that it hardly scatters."""
    return rng.normal(size=shape) / 50 + (rng.random(shape) < 0.5)


PROCEDURES: dict[str, Callable[[Grids], NDArray[np.bool_]]] = {
    "all pairs, Holm": all_pairs,
    "the winner's, Holm": with_the_winner,
    "Hsu, pooled": hsu,
    "Tukey, pooled": tukey,
}
NOISES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Grids]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "Student's t, 2 degrees": lambda rng, shape: rng.standard_t(2, size=shape),
    "lognormal": lambda rng, shape: rng.lognormal(size=shape),
    "normal, sd from 1 to 10": lambda rng, shape: rng.normal(size=shape) * np.geomspace(1, 10, shape[-1]),
    "a coin's toss": coin,
}


def found_at(recipes: int, seeds: int) -> float:
    """The fewest recipe's sd by which one must be worse than all others, to be called so in POWER of grids."""
    noise = np.random.default_rng(0).normal(size=(GRIDS // 4, seeds, recipes))
    sizes = np.geomspace(0.5, 500, 400)
    low, high = 0, len(sizes) - 1
    while low < high:  # power only grows with the size
        middle = (low + high) // 2
        shifted = noise + sizes[middle] * (np.arange(recipes) == recipes - 1)
        p = np.stack([p_values(shifted[:, :, [-1]] - shifted[:, :, [j]])[:, 0] for j in range(recipes - 1)])
        enough = (p.min(axis=0) <= LEVEL / (recipes * (recipes - 1) / 2)).mean() >= POWER
        low, high = (low, middle) if enough else (middle + 1, high)
    return float(sizes[low])


def lines(head: list[str], rows: list[list[str]]) -> str:
    """A table as Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def main() -> None:
    levels = []
    for noise, draw in NOISES.items():
        for k in RECIPES:
            grids = [draw(np.random.default_rng(0), (GRIDS, n, k)) for n in SEEDS]
            for name, told in PROCEDURES.items():
                levels.append([noise, str(k), name, *(f"{told(grid).mean():.1%}" for grid in grids)])
    powers = [[str(k), *(f"{found_at(k, n):.1f}" for n in SEEDS)] for k in RECIPES]
    seeds = [f"{n} seeds" for n in SEEDS]
    text = (
        "# How often equal recipes are told apart\n\nMade by `python benchmarks/outcome_level.py`.\n\n"
        f"Share of {GRIDS} grids of equal recipes in which a procedure at {LEVEL:.0%} calls one worse than another "
        "(Hsu: leaves one out of those that may be the only best one); `grading` uses the first.\n\n"
        f"{lines(['noise', 'recipes', 'procedure', *seeds], levels)}\n\n"
        "By how many times a recipe's sd (normal, without what the seeds share) one recipe must be worse than all "
        f"others to be called so in {POWER:.0%} of grids, all pairs by Holm:\n\n{lines(['recipes', *seeds], powers)}\n"
    )
    HERE.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
