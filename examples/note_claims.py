"""The statements of the note, one function each: what was measured, and whether the statement holds.

`nanogpt_claims.py` measures and trains; these functions read its runs and decide. None of them knows the answer: a
verdict follows from the numbers by the limits written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
from scipy.special import stdtrit

import initlab
from initlab.results import Comparison, Confirmation

Verdict = Literal["holds", "holds with a condition", "does not hold", "undecided"]
Kind = Literal["code fact", "init statistic", "training outcome"]

NANOGPT = "karpathy/nanoGPT model.py@3adf61e"
SAME = 0.03  # relative: two stds are the same number; the smallest matrix has 16 000 weights, a standard error of 0.6 %
SMALL = 0.05  # nats of validation loss that nobody would change an init for at this size
OUTPUTS = ("attn_out", "mlp_out")


@dataclass(frozen=True)
class Evidence:
    """Runs that the claims are judged by; see `nanogpt_claims.py`."""

    narrow: Comparison
    wide: Comparison
    activations: dict[str, Comparison]
    trained: Confirmation | None = None
    trained_activations: dict[str, Confirmation] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """A statement and what became of it."""

    statement: str
    kind: Kind
    tested: str
    measured: str
    verdict: Verdict
    confidence: str
    answer: str
    figure: str = ""
    source: str = ""


def claims(evidence: Evidence) -> list[Claim]:
    """Every statement of the note, in its order."""
    return [judge(evidence) for judge in _CLAIMS]


def stds(run: Comparison, recipe: str, role: str) -> pd.DataFrame:
    """n_layer, n_embd -> std found in the weights of a role, all blocks and seeds together."""
    rows = run.records[
        (run.records["kind"] == "weight") & (run.records["recipe"] == recipe) & (run.records["role"] == role)
    ]
    found = rows.groupby(["n_layer", "n_embd"])["var"].mean().pow(0.5).rename("std")
    return found.reset_index()


def _std(evidence: Evidence, role: str) -> pd.DataFrame:
    """Of nanogpt, at every size that was measured."""
    return pd.concat([stds(run, "nanogpt", role) for run in (evidence.narrow, evidence.wide)])


def _all_near(values: pd.Series, expected: pd.Series | float) -> bool:
    return bool(((values / expected - 1).abs() < SAME).all())


def _range(values: pd.Series) -> str:
    low, high = f"{values.min():.4f}", f"{values.max():.4f}"
    return low if low == high else f"{low} to {high}"


def _widths(frame: pd.DataFrame) -> str:
    return " and ".join(map(str, sorted(frame["n_embd"].unique())))


def growth(run: Comparison) -> pd.DataFrame:
    """recipe, n_layer, n_embd, seed -> variance after the last block ÷ of the embedding, measured and predicted."""
    records = run.records[run.records["kind"] == "activation"]
    keys = ["recipe", "n_layer", "n_embd", "seed"]
    first = records[records["site"] == "embed"].set_index(keys)[["var", "expected_var"]]
    last = records[(records["site"] == "resid_post") & (records["layer"] == records["n_layer"] - 1)]
    return (last.set_index(keys)[["var", "expected_var"]] / first).reset_index()


def _activation(evidence: Evidence) -> Claim:
    model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=1, n_head=1, n_embd=16, block_size=8, vocab_size=8))
    used = model.transformer.h[0].mlp.gelu
    exact = type(used).__name__ == "GELU" and used.approximate == "none"
    parts, moments = [], []
    for name, run in evidence.activations.items():
        rows = run.records[run.records["kind"] == "activation"]
        ratio = rows[rows["site"] == "mlp_out"]["var"].mean() / rows[rows["site"] == "mlp_pre"]["var"].mean()
        moments.append(f"{name} {ratio:.3f}")
    if evidence.trained_activations:
        baseline, *others = evidence.trained_activations
        for other in others:
            gain = _paired(
                evidence.trained_activations[other].runs,
                evidence.trained_activations[baseline].runs,
                ["seed", "lr", "n_layer"],
            )
            parts.append(f"{other} − {baseline} {gain.text}")
    trained = "; validation loss after training: " + ", ".join(parts) if parts else ""
    return Claim(
        "NanoGPT uses GELU, not ReLU, as GPT-2, GPT-3 and Llama do",
        "code fact",
        "The activation of the MLP in the NanoGPT that initlab builds, whose parameters and arithmetic are nanoGPT's; "
        "the same init with GELU, ReLU and SiLU measured at init, and trained.",
        f"MLP: nn.{type(used).__name__}, {'exact (erf)' if exact else 'approximated'}. Variance of what the MLP "
        f"writes ÷ of what enters its activation: {', '.join(moments)}{trained}.",
        "holds with a condition" if exact else "does not hold",
        "certain: read off the module; of other models, off the cited code",
        "GELU it is, but in two flavours and not everywhere: nanoGPT's is the exact one, OpenAI's GPT-2 has the tanh "
        "approximation (they differ by less than 0.03 % in every moment), and Llama has neither: its MLP is gated by "
        "SiLU. What the choice does to the signal and to the loss is in the measurement.",
        source=f"{NANOGPT}, line 83; openai/gpt-2 src/model.py@9b63575, lines 25-26; karpathy/llama2.c "
        "model.py@350e04f, line 180",
    )


def _embeddings(evidence: Evidence) -> Claim:
    found = {role: _std(evidence, role) for role in ("token_embed", "pos_embed")}
    holds = all(_all_near(frame["std"], 0.02) for frame in found.values())
    return Claim(
        "Embeddings, of tokens and of positions, have std 0.02",
        "init statistic",
        f"std of the weights of nanogpt at n_embd {_widths(found['token_embed'])}, every depth and seed.",
        f"token {_range(found['token_embed']['std'])}, position {_range(found['pos_embed']['std'])}",
        "holds" if holds else "does not hold",
        "certain: over 10 000 weights each",
        "Both are drawn from N(0, 0.02), at every width. (OpenAI's own GPT-2 code draws positions at 0.01.)",
        figure="weights",
        source=f"{NANOGPT}, lines 167-168; openai/gpt-2 src/model.py@9b63575, lines 152-155",
    )


def _feed_forward(evidence: Evidence) -> Claim:
    inner, outer = _std(evidence, "mlp_in"), _std(evidence, "mlp_out")
    rows = evidence.narrow.records
    shape = rows[(rows["kind"] == "weight") & (rows["recipe"] == "nanogpt") & (rows["role"] == "mlp_in")]
    kurtosis = float(shape["kurtosis"].mean())
    scaled = outer["std"] / (0.02 / (2 * outer["n_layer"]) ** 0.5)
    normal = abs(kurtosis) < 0.1  # -1.2 for torch's uniform default
    by_width = _all_near(inner["std"], 0.02 / inner["n_embd"].pow(0.5))
    false = normal and not by_width and _all_near(inner["std"], 0.02)
    return Claim(
        "Feed-forward layers start from PyTorch's default, scaled to std 0.02 to 0.03; 0.02/√n_embd in some configs",
        "init statistic",
        f"std and excess kurtosis of c_fc and c_proj in nanogpt at n_embd {_widths(inner)}: PyTorch's default is "
        "uniform (kurtosis −1.2), and 0.02/√n_embd would fall with the width.",
        f"c_fc: std {_range(inner['std'])}, kurtosis {kurtosis:+.3f}; c_proj: {scaled.mean():.3f} × 0.02/√(2·n_layer)",
        "does not hold" if false else "holds",
        "certain: over 50 000 weights each",
        "Nothing of PyTorch's default is left: c_fc is drawn afresh from N(0, 0.02), whatever the width, and c_proj "
        "from N(0, 0.02/√(2·n_layer)). No config of nanoGPT, in its whole history, divides by √n_embd; what that would "
        "do is among the recipes trained here (std-0.02-over-sqrt-d).",
        figure="weights",
        source=f"{NANOGPT}, lines 140-168; `git log -S 'sqrt(n_embd'` over its history is empty",
    )


def _head(evidence: Evidence) -> Claim:
    model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=1, n_head=1, n_embd=16, block_size=8, vocab_size=8))
    tied = model.lm_head.weight is model.transformer.wte.weight
    token = _std(evidence, "token_embed")
    return Claim(
        "The head is tied to the token embedding and has std 0.02",
        "init statistic",
        "Whether both names hold one tensor, and its std.",
        f"one tensor: {'yes' if tied else 'no'}; std {_range(token['std'])}",
        "holds" if tied and _all_near(token["std"], 0.02) else "does not hold",
        "certain",
        "One matrix reads the tokens and predicts them. It is drawn twice and keeps the last draw, N(0, 0.02). Tied "
        "the other way round, as nanoGPT was for a day in January 2023, the head would keep N(0, 1).",
        figure="weights",
        source=f"{NANOGPT}, line 138; the reverse tie: 7c82885, undone by 43b37fd",
    )


def _norms(evidence: Evidence) -> Claim:
    models = [
        initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=2, n_head=1, n_embd=16, block_size=8, vocab_size=8, bias=bias))
        for bias in (True, False)
    ]
    gains = all(
        bool((value == 1).all()) for model in models for name, value in model.named_parameters() if _is_gain(name)
    )
    shifts = [value for model in models for name, value in model.named_parameters() if _is_shift(name)]
    without = [name for name, _ in models[1].named_parameters() if _is_shift(name)]
    zeros = all(bool((value == 0).all()) for value in shifts)
    holds = gains and zeros
    return Claim(
        "LayerNorm's biases are zero, its weights one",
        "init statistic",
        "Every LayerNorm of a NanoGPT with biases, and of one without.",
        f"weights all 1: {'yes' if gains else 'no'}; biases all 0: {'yes' if zeros else 'no'}; biases with bias=False: "
        f"{len(without)}",
        ("holds with a condition" if not without else "holds") if holds else "does not hold",
        "certain",
        "True where there are biases. nanoGPT's train.py sets bias=False, which takes LayerNorm's away as well.",
        source=f"{NANOGPT}, lines 23-24; train.py, line 56",
    )


def _is_gain(name: str) -> bool:
    return ("ln_" in name) and name.endswith("weight")


def _is_shift(name: str) -> bool:
    return ("ln_" in name) and name.endswith("bias")


def _residual_scaling(evidence: Evidence) -> Claim:
    found = pd.concat([_std(evidence, role) for role in OUTPUTS])
    candidates = {
        "0.02/√(2·n_layer)": 0.02 / (2 * found["n_layer"]).pow(0.5),
        "0.02 × 0.02": pd.Series(4e-4, found.index),
        "0.02·√(2/n_layer)": 0.02 * (2 / found["n_layer"]).pow(0.5),
    }
    fits = {name: float((found["std"] / expected).mean()) for name, expected in candidates.items()}
    matches = [name for name, expected in candidates.items() if _all_near(found["std"], expected)]
    crucial = _effects_text(evidence, "nanogpt-no-depth-scale")
    return Claim(
        "Residual scaling: weights × 0.02, or × √(2/n_layers); crucial for stability at init",
        "init statistic",
        "std of both output projections at 4 to 48 blocks against the candidate formulas; the scaling's worth: nanogpt "
        "against nanogpt-no-depth-scale, trained on the same batches.",
        f"std found ÷ formula: {', '.join(f'{name} {ratio:.2f}' for name, ratio in fits.items())}. {crucial}",
        "holds" if len(matches) and matches[0] != "0.02/√(2·n_layer)" else "does not hold",
        "certain for the formula; the worth in loss is an estimate with its interval",
        f"The std is {matches[0] if matches else 'none of these'}: not a factor on something drawn before, but the std "
        "of the draw. Neither × 0.02 nor × √(2/n_layers) is in any version of nanoGPT or minGPT; both were measured "
        f"and trained here as recipes of their own. {_worth(evidence)}",
        figure="projections",
        source=f"{NANOGPT}, lines 143-145; `git log -S` for either over both histories is empty",
    )


def _worth(evidence: Evidence) -> str:
    """What leaving the depth scaling out costs at the deepest models with warmup, in a sentence."""
    if evidence.trained is None:
        return "What the scaling is worth, only training can say."
    found = evidence.trained.effects
    rows = found[
        (found["question"] == "recipe") & (found["recipe"] == "nanogpt-no-depth-scale") & (found["warmup"] > 0)
    ]
    parts = [
        f"{row.difference:+.3f} nats at {row.n_layer} blocks "
        + ("(not separated from zero)" if row.verdict == "not separated" else f"({row.verdict})")
        for row in rows.itertuples()
    ]
    return f"Leaving the scaling out, with warmup, changes the loss by {' and '.join(parts)}."


def _qkv(evidence: Evidence) -> Claim:
    found = _std(evidence, "attn_qkv")
    heads = pd.concat([run.heads for run in (evidence.narrow, evidence.wide)])
    scores = heads[heads["recipe"] == "nanogpt"].groupby("n_embd")["logit_std"].mean()
    spread = " and ".join(f"{value:.2g} at n_embd {width}" for width, value in scores.items())
    return Claim(
        "Query, key and value projections have an effective std of about 0.02",
        "init statistic",
        f"std of c_attn in nanogpt at n_embd {_widths(found)}.",
        _range(found["std"]),
        "holds" if _all_near(found["std"], 0.02) else "does not hold",
        "certain: over 49 000 weights each",
        "c_attn is one matrix for all three, N(0, 0.02). What that amounts to depends on the width: the attention "
        f"scores have a std of {spread}, so that narrow models attend evenly.",
        figure="weights",
        source=f"{NANOGPT}, lines 163-164",
    )


def _attention_output(evidence: Evidence) -> Claim:
    found = _std(evidence, "attn_out")
    over = found["std"] / (0.02 / found["n_layer"].pow(0.5))
    tiny, inverse = _all_near(found["std"], 4e-4), _all_near(found["std"], 0.02 / found["n_layer"].pow(0.5))
    return Claim(
        "The attention's output projection is × 0.02, or × 1/√n_layer: even smaller, very important for deep models",
        "init statistic",
        "std of attn.c_proj at 4 to 48 blocks; both variants as recipes (out-x0.02, out-xinvsqrtL), and zero-out, "
        "trained against nanogpt.",
        f"std found ÷ (0.02/√n_layer): {over.mean():.3f}. {_effects_text(evidence, 'out-x0.02')} "
        f"{_effects_text(evidence, 'out-xinvsqrtL')} {_effects_text(evidence, 'zero-out')}",
        "holds" if tiny or inverse else "does not hold",
        "certain for the formula; effects on the loss as their intervals say",
        "It is 0.02/√(2·n_layer), the same as the MLP's output projection, 1/√2 of the second variant. Smaller isn't "
        "better by itself: with tiny or zero projections the stream stays the embedding, and the tied head then "
        "recognises the token that was just read (see the surprise on the first loss).",
        figure="projections",
        source=f"{NANOGPT}, lines 143-145",
    )


def _constant_variance(evidence: Evidence) -> Claim:
    found = pd.concat([growth(evidence.narrow), growth(evidence.wide)])
    parts, slopes, ends = [], {}, {}
    for recipe in ("nanogpt", "nanogpt-no-depth-scale"):
        for n_embd, rows in found[found["recipe"] == recipe].groupby("n_embd"):
            means = rows.groupby("n_layer")["var"].mean()
            logs = [math.log(value) for value in (means.iloc[0], means.iloc[-1])]
            slope = (logs[1] - logs[0]) / math.log(means.index[-1] / means.index[0])
            slopes[recipe, n_embd], ends[recipe, n_embd] = slope, float(means.iloc[-1])
            shown = ", ".join(f"×{value:.3g} at {depth}" for depth, value in means.items())
            parts.append(f"{recipe}, n_embd {n_embd}: {shown} blocks")
    widths = sorted(found["n_embd"].unique())
    flat = all(abs(slopes["nanogpt", width]) < 0.1 for width in widths)
    constant = all(ends["nanogpt", width] < 2 for width in widths)
    verdict: Verdict = "holds" if flat and constant else "holds with a condition" if flat else "does not hold"
    return Claim(
        "std = 0.02/√(2·n_layer) guarantees that the residual stream's variance neither explodes nor vanishes with "
        "depth",
        "init statistic",
        "Variance after the last block ÷ of the embedding, measured on text, at 4 to 48 blocks, two widths.",
        "; ".join(parts),
        verdict,
        "high: every point within a few per cent of its closed form",
        f"The variance is not kept: it grows {ends['nanogpt', widths[-1]]:.0f}-fold at n_embd {widths[-1]}. What the "
        "scaling guarantees is that this growth doesn't depend on the depth, only on the width; without it the growth "
        'is proportional to depth or worse. It is also not a "newer version": the formula is in nanoGPT since '
        "January 2023, in minGPT since June 2022, and in Megatron before.",
        figure="growth",
        source=f"{NANOGPT}, lines 143-145 (since 23a0bfa, 2023-01-27); minGPT c6c9737",
    )


def _no_bias(evidence: Evidence) -> Claim:
    counts = {}
    for bias in (True, False):
        config = initlab.NanoGPTConfig(n_layer=2, n_head=1, n_embd=16, block_size=8, vocab_size=8, bias=bias)
        names = [name for name, _ in initlab.NanoGPT(config).named_parameters() if name.endswith("bias")]
        counts[bias] = (sum("ln_" not in name for name in names), sum("ln_" in name for name in names))
    default = initlab.NanoGPTConfig.__dataclass_fields__["bias"].default
    return Claim(
        "Most linear layers have no bias",
        "code fact",
        "Biases of a 2-block NanoGPT with either value of its one switch.",
        f"bias=True: {counts[True][0]} in linear layers, {counts[True][1]} in LayerNorms; bias=False: "
        f"{counts[False][0]} and {counts[False][1]}; the class's default is {default}",
        "holds with a condition" if counts[False][0] == 0 and counts[True][0] > 0 else "does not hold",
        "certain",
        "One switch takes biases from linear layers and LayerNorms together. GPTConfig's default has them, train.py's "
        "hasn't; the head never has one. Released GPT-2 weights have them.",
        source=f"{NANOGPT}, line 116; train.py, line 56",
    )


def _without_warmup(evidence: Evidence) -> Claim:
    statement = "This init is why NanoGPT trains stably even without warmup in small configurations"
    tested = (
        "Every recipe trained with and without warmup on the same batches, over rates, depths and seeds; a gain is "
        "the loss without minus the loss with warmup."
    )
    if evidence.trained is None:
        return _untrained(statement, tested)
    runs = evidence.trained.runs
    own = runs[runs["recipe"] == "nanogpt"]
    small = own["n_layer"].min()
    usual = own["lr"].min()
    gains = {(depth, lr): _gain(own[(own["n_layer"] == depth) & (own["lr"] == lr)]) for depth, lr in _cells(own)}
    bare = own[(own["warmup"] == 0) & (own["n_layer"] == small) & (own["lr"] == usual)]
    stable = not bare["diverged"].any() and bare["escaped"].all() and gains[small, usual].mean < SMALL
    costs = [cell for cell, gain in gains.items() if gain.low > 0 and gain.mean > SMALL]
    others = runs[(runs["warmup"] == 0) & (runs["n_layer"] == small) & (runs["lr"] == usual)]
    means = others.groupby("recipe", observed=True)["loss"].mean()
    as_good = sorted(
        str(recipe) for recipe in means.index if recipe != "nanogpt" and means[recipe] < means["nanogpt"] + SMALL
    )
    verdict: Verdict = "does not hold" if not stable else "holds with a condition" if costs or as_good else "holds"
    at = "; ".join(f"{depth} blocks, lr {lr:g}: {gain.text}" for (depth, lr), gain in gains.items())
    return Claim(
        statement,
        "training outcome",
        tested,
        f"Gain of nanogpt from warmup, nats: {at}. Diverged runs: {int(own['diverged'].sum())} of {len(own)}.",
        verdict,
        f"{own['seed'].nunique()} seeds, 95 % t-intervals, {len(runs)} runs in all; small models and few steps",
        _small_models(bare, gains[small, usual], f"At {small} blocks and lr {usual:g}")
        + (
            f"With depth or rate that ends: warmup gains {_most(gains).mean:.2f} nats at {_at(gains)}. "
            if costs
            else "No depth or rate was found at which warmup's gain is separated from zero and matters. "
        )
        + (
            f"And the init is not the reason: {', '.join(as_good)} {'is' if len(as_good) == 1 else 'are'} as good "
            "without warmup at that size."
            if as_good
            else "No other recipe is as good without warmup at that size."
        ),
        figure="warmup-gain",
        source='nanoGPT itself warms up (train.py line 66: 2000 steps; shakespeare_char: 100, "not super necessary '
        'potentially"); Xiong et al. 2020 (2002.04745) credit pre-LN, not the std',
    )


def _small_models(bare: pd.DataFrame, gain: Paired, where: str) -> str:
    diverged, stuck = int(bare["diverged"].sum()), int((~bare["escaped"]).sum())
    if diverged or stuck:
        lost = f"{diverged} of {len(bare)} runs without warmup diverge and {stuck} learn no more than token frequencies"
        return f"{where}, {lost}. "
    if gain.mean >= SMALL:
        return f"{where}, warmup is worth {gain.mean:.2f} nats. "
    return f"{where} it does train without warmup, and loses next to nothing ({gain.mean:+.3f} nats). "


def _matter(evidence: Evidence) -> Claim:
    statement = "Copy these exact tricks, they matter far more than people think"
    tested = "The loss of every variant against nanogpt, averaged over the swept rates, on the same batches and draws."
    if evidence.trained is None:
        return _untrained(statement, tested)
    effects = evidence.trained.effects
    effects = effects[effects["question"] == "recipe"]
    family = effects[~effects["recipe"].isin(["torch-default", "std-0.02-over-sqrt-d"])]
    default = effects[effects["recipe"] == "torch-default"]
    worst = float(default["difference"].max())
    inside = float(family["difference"].abs().max())
    separated = int((family["verdict"] != "not separated").sum())
    whole = bool((default["verdict"] == "worse").any())
    verdict: Verdict = "undecided" if not whole else "holds with a condition" if inside < worst / 2 else "holds"
    return Claim(
        statement,
        "training outcome",
        tested,
        f"torch's default costs up to {worst:.2f} nats; among GPT-2's init and its variants the largest difference is "
        f"{inside:.2f} nats, and {separated} of {len(family)} differences are separated from zero.",
        verdict,
        f"{int(effects['seeds'].max())} seeds, Holm-adjusted; small models and few steps",
        (
            "Not drawing from PyTorch's defaults matters a great deal: there the position embedding drowns the tokens, "
            "and little is learnt. "
            if whole
            else "PyTorch's defaults could not be told apart from nanogpt here. "
        )
        + (
            "Which variant of GPT-2's init is copied matters far less at these sizes; the tables say where a "
            "difference could be told from noise, and how many seeds the others would need."
            if inside < worst / 2
            else "So can the choice among the variants of GPT-2's init; the tables say which, and at which depth."
        ),
        figure="regret",
    )


def _first_loss(evidence: Evidence) -> Claim:
    excess = _excess(evidence.wide)
    small = [recipe for recipe in ("out-x0.02", "zero-out") if recipe in excess]
    high = all(excess[recipe] > excess["nanogpt"] + 0.2 for recipe in small)
    return Claim(
        "Surprise: tiny or zero output projections with a tied head raise the first loss above ln V",
        "init statistic",
        f"First loss − ln V at n_embd {_widths(evidence.wide.records)}, mean over depths and seeds.",
        ", ".join(f"{recipe} {value:+.2f}" for recipe, value in excess.items()) + " nats",
        "holds" if high else "does not hold",
        "high: beside its closed form in every report",
        "Where blocks write next to nothing, the last state is the token's own embedding, and a tied head gives that "
        "token the highest logit, before anything was learnt. That logit grows as √n_embd: at "
        f"n_embd {_widths(evidence.narrow.records)} zero-out's excess is {_excess(evidence.narrow)['zero-out']:+.2f}.",
        figure="first-loss",
    )


def _excess(run: Comparison) -> pd.Series:
    """First loss − ln V by recipe, mean over depths and seeds."""
    return (run.summary["loss"] - run.summary["ln_vocab"]).groupby(run.summary["recipe"], observed=True).mean()


def _default_grows_least(evidence: Evidence) -> Claim:
    found = growth(evidence.narrow).groupby(["recipe", "n_layer"], observed=True)["var"].mean().unstack()
    deepest = found.iloc[:, -1]
    acting = deepest.drop(index=[r for r in ("zero-out", "out-x0.02", "std-0.02-over-sqrt-d") if r in deepest.index])
    least = acting.idxmin() == "torch-default"
    rows = evidence.narrow.summary.query("step == 0")
    ratio = rows[rows["recipe"] == "torch-default"]["token_position_ratio"].mean()
    learnt, verdict = "", "undecided"
    if evidence.trained is not None:
        regrets = evidence.trained.regrets
        mean = regrets.groupby("recipe", observed=True)["regret"].mean().sort_values()
        slowest = mean.index[-1] == "torch-default"
        learnt = "; mean regret: " + ", ".join(f"{recipe} {value:.2f}" for recipe, value in mean.items()) + " nats"
        verdict = "holds" if least and slowest else "does not hold"
    return Claim(
        "Surprise: PyTorch's default has the gentlest growth, and learns slowest",
        "training outcome",
        "Growth of the stream among the inits whose blocks act; regret: the loss over all swept rates above the best "
        "of any recipe.",
        "growth at the deepest: "
        + ", ".join(f"{recipe} ×{value:.3g}" for recipe, value in deepest.items())
        + f"; token ÷ position embedding {ratio:.1e} in mean square{learnt}",
        verdict,  # type: ignore[arg-type]
        "as the intervals of the regrets say",
        "A stream that hardly grows is no sign of health: here it hardly grows because a position embedding of N(0, 1) "
        f"is in it from the start, {1 / ratio:.0f} times the tokens' share. So initlab judges that ratio, not the "
        "growth.",
        figure="regret",
    )


@dataclass(frozen=True)
class Paired:
    """A mean of differences over seeds, with its 95 % t-interval."""

    mean: float
    low: float
    high: float

    @property
    def text(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:+.3f}"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def interval(differences: pd.Series) -> Paired:
    """One value per seed."""
    n = len(differences)
    mean = float(differences.mean())
    half = float(stdtrit(n - 1, 0.975) * differences.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Paired(mean, mean - half, mean + half)


def _paired(runs: pd.DataFrame, versus: pd.DataFrame, keys: list[str]) -> Paired:
    both = runs.merge(versus, on=keys, suffixes=("", "_versus"))
    return interval((both["loss"] - both["loss_versus"]).groupby(both["seed"]).mean())


def _gain(runs: pd.DataFrame) -> Paired:
    """Loss without warmup − with, paired by seed."""
    return _paired(runs[runs["warmup"] == 0], runs[runs["warmup"] > 0], ["seed", "lr", "n_layer"])


def warmup_gains(runs: pd.DataFrame) -> pd.DataFrame:
    """recipe, n_layer, lr -> mean, low, high of the gain."""
    rows: list[dict[str, Any]] = []
    for (recipe, n_layer, lr), own in runs.groupby(["recipe", "n_layer", "lr"], observed=True):
        gain = _gain(own)
        rows.append(
            {"recipe": recipe, "n_layer": n_layer, "lr": lr, "mean": gain.mean, "low": gain.low, "high": gain.high}
        )
    return pd.DataFrame(rows)


def _cells(runs: pd.DataFrame) -> list[tuple[int, float]]:
    return sorted({(int(row.n_layer), float(row.lr)) for row in runs.itertuples()})


def _most(gains: dict[tuple[int, float], Paired]) -> Paired:
    return max(gains.values(), key=lambda gain: gain.mean)


def _at(gains: dict[tuple[int, float], Paired]) -> str:
    (depth, lr), _ = max(gains.items(), key=lambda item: item[1].mean)
    return f"{depth} blocks and lr {lr:g}"


def _effects_text(evidence: Evidence, recipe: str) -> str:
    """Loss of a recipe − nanogpt's over the rates, at every depth, with and without warmup."""
    if evidence.trained is None:
        return f"{recipe}: not trained in this run."
    found = evidence.trained.effects
    found = found[(found["question"] == "recipe") & (found["recipe"] == recipe)]
    parts = []
    for row in found.itertuples():
        needed = "over 100" if math.isinf(row.seeds_needed) else f"{row.seeds_needed:.0f}"
        seeds = f", would need {needed} seeds" if row.verdict == "not separated" else ""
        warm = "with warmup" if row.warmup else "without"
        parts.append(f"{row.n_layer} blocks {warm} {row.difference:+.3f} ({row.verdict}{seeds})")
    return f"{recipe} − nanogpt, nats: {'; '.join(parts)}."


def _untrained(statement: str, tested: str) -> Claim:
    return Claim(
        statement,
        "training outcome",
        tested,
        "not trained in this run (--quick)",
        "undecided",
        "none",
        "Only training can say; this run measured inits alone.",
    )


_CLAIMS: tuple[Callable[[Evidence], Claim], ...] = (
    _activation,
    _embeddings,
    _feed_forward,
    _head,
    _norms,
    _residual_scaling,
    _qkv,
    _attention_output,
    _constant_variance,
    _no_bias,
    _without_warmup,
    _matter,
    _first_loss,
    _default_grows_least,
)
