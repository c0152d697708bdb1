"""Gradient ratios on text: how much of measured ÷ predicted is due to what the theory is told of the targets.

A gradient's growth from the last block to the embedding depends on how often two positions are to predict the same
token. Three answers: the whole text's (sum of squared frequencies), the batch's own (`same_target`, which
`probe` and `compare` count), and the tokens themselves, position by position.

    python benchmarks/gradient_on_text.py             # 2 recipes × 30 seeds: two minutes of one core
    python benchmarks/gradient_on_text.py --seeds 4 --out /tmp/x.md
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from initlab import environment
from initlab.corpus import Corpus, load_corpus
from initlab.drawing.apply import apply_recipe
from initlab.judge import theory
from initlab.measure.probe import Identity, measure
from initlab.models.config import NanoGPTConfig, heads
from initlab.models.nanogpt import empty_model
from initlab.models.wiring import nanogpt_wiring
from initlab.recipes import registry

RECIPES = ("nanogpt", "nanogpt-no-depth-scale")
N_EMBD, N_LAYER, T, B = 384, 12, 256, 2
TOLD = ("whole text", "this batch's targets", "the tokens themselves")


def one(recipe: str, corpus: Corpus, seed: int) -> list[float]:
    """Variance of the gradient at the embedding ÷ after the last block: measured, then predicted as in TOLD."""
    n_head, V = heads(N_EMBD), corpus.vocab_size
    model = empty_model(NanoGPTConfig(n_layer=N_LAYER, n_head=n_head, n_embd=N_EMBD, block_size=T, vocab_size=V), "cpu")
    apply_recipe(model, registry.get(recipe), seed)
    ids, targets = corpus.batch(B, T, seed)
    tables = measure(model, ids, targets, Identity(run_id="-", recipe=recipe, seed=seed), preset="light")
    grad = tables.records[tables.records["kind"] == "grad"]
    last = grad[(grad["site"] == "resid_post") & (grad["layer"] == N_LAYER - 1)]
    sizes = {"n_layer": N_LAYER, "n_embd": N_EMBD, "n_head": n_head, "vocab_size": V}
    text = theory.TextStatistics.of_batch(corpus.describe(), tables.summary.iloc[0], targets.numpy())
    parameters = theory.nanogpt_parameters(**sizes, block_size=T)
    own = theory.setting_of(parameters, nanogpt_wiring(NanoGPTConfig(**sizes)), text, registry.get(recipe))
    setting = replace(own, text=replace(text, same_target=None))
    exact = [
        theory.predict(setting, exact=True, ids=read, targets=following).grad
        for read, following in zip(ids.numpy(), targets.numpy(), strict=True)
    ]
    ends = [sum(found[place] for found in exact) for place in (("embed", None), ("resid_post", N_LAYER - 1))]
    measured = grad.loc[grad["site"] == "embed", "var"].item() / last["var"].item()
    return [measured, theory.predict(setting).gradient_ratio, theory.predict(own).gradient_ratio, ends[0] / ends[1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    corpus, machine = load_corpus("docstrings"), environment.describe("cpu")
    equal = np.mean([theory.equal_pairs(corpus.batch(B, T, seed)[1].numpy()) for seed in range(options.seeds)])
    lines = [
        "# Gradient ratios on text",
        "",
        f"Made by `python benchmarks/gradient_on_text.py --seeds {options.seeds}`: n_embd {N_EMBD}, n_layer {N_LAYER}, "
        f"{B} sequences of {T} bytes of docstrings, torch {machine['torch']}, {machine['device']}.",
        "",
        f"Two bytes of the whole text are equal with a chance of {corpus.statistics()['sum_p2']:.4f}, two targets of "
        f"one sequence with {equal:.4f}: what was just used comes again. Measured ÷ predicted, mean over seeds ± "
        "standard error; scatter is the standard deviation of a single draw.",
        "",
        "| recipe | the theory is told of | measured ÷ predicted | scatter |",
        "|---|---|---|---|",
    ]
    for recipe in RECIPES:
        found = np.array([one(recipe, corpus, seed) for seed in range(options.seeds)])
        for told, predicted in zip(TOLD, found[:, 1:].T, strict=True):
            ratio = found[:, 0] / predicted
            error = ratio.std(ddof=1) / len(ratio) ** 0.5
            lines.append(f"| {recipe} | {told} | {ratio.mean():.3f} ± {error:.3f} | {ratio.std(ddof=1):.2f} |")
    text = "\n".join(lines) + "\n"
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
