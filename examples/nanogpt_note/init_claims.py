"""The note's statements about code and about weights, one function each: measured, and judged by the numbers.

None of these functions knows the answer: a verdict follows from the runs by the limits of `evidence`.
"""

from __future__ import annotations

import math

import pandas as pd

import initlab
from nanogpt_note.evidence import (
    NANOGPT,
    OUTPUTS,
    Claim,
    Evidence,
    Verdict,
    all_near,
    effects_text,
    growth,
    nanogpt_std,
    paired,
    shown_range,
    widths,
)


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
            gain = paired(
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
    found = {role: nanogpt_std(evidence, role) for role in ("token_embed", "pos_embed")}
    holds = all(all_near(frame["std"], 0.02) for frame in found.values())
    return Claim(
        "Embeddings, of tokens and of positions, have std 0.02",
        "init statistic",
        f"std of the weights of nanogpt at n_embd {widths(found['token_embed'])}, every depth and seed.",
        f"token {shown_range(found['token_embed']['std'])}, position {shown_range(found['pos_embed']['std'])}",
        "holds" if holds else "does not hold",
        "certain: over 10 000 weights each",
        "Both are drawn from N(0, 0.02), at every width. (OpenAI's own GPT-2 code draws positions at 0.01.)",
        figure="weights",
        source=f"{NANOGPT}, lines 167-168; openai/gpt-2 src/model.py@9b63575, lines 152-155",
    )


def _feed_forward(evidence: Evidence) -> Claim:
    inner, outer = nanogpt_std(evidence, "mlp_in"), nanogpt_std(evidence, "mlp_out")
    rows = evidence.narrow.records
    shape = rows[(rows["kind"] == "weight") & (rows["recipe"] == "nanogpt") & (rows["role"] == "mlp_in")]
    kurtosis = float(shape["kurtosis"].mean())
    scaled = outer["std"] / (0.02 / (2 * outer["n_layer"]) ** 0.5)
    normal = abs(kurtosis) < 0.1  # -1.2 for torch's uniform default
    by_width = all_near(inner["std"], 0.02 / inner["n_embd"].pow(0.5))
    false = normal and not by_width and all_near(inner["std"], 0.02)
    return Claim(
        "Feed-forward layers start from PyTorch's default, scaled to std 0.02 to 0.03; 0.02/√n_embd in some configs",
        "init statistic",
        f"std and excess kurtosis of c_fc and c_proj in nanogpt at n_embd {widths(inner)}: PyTorch's default is "
        "uniform (kurtosis −1.2), and 0.02/√n_embd would fall with the width.",
        f"c_fc: std {shown_range(inner['std'])}, kurtosis {kurtosis:+.3f}; "
        f"c_proj: {scaled.mean():.3f} × 0.02/√(2·n_layer)",
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
    token = nanogpt_std(evidence, "token_embed")
    return Claim(
        "The head is tied to the token embedding and has std 0.02",
        "init statistic",
        "Whether both names hold one tensor, and its std.",
        f"one tensor: {'yes' if tied else 'no'}; std {shown_range(token['std'])}",
        "holds" if tied and all_near(token["std"], 0.02) else "does not hold",
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
    found = pd.concat([nanogpt_std(evidence, role) for role in OUTPUTS])
    candidates = {
        "0.02/√(2·n_layer)": 0.02 / (2 * found["n_layer"]).pow(0.5),
        "0.02 × 0.02": pd.Series(4e-4, found.index),
        "0.02·√(2/n_layer)": 0.02 * (2 / found["n_layer"]).pow(0.5),
    }
    fits = {name: float((found["std"] / expected).mean()) for name, expected in candidates.items()}
    matches = [name for name, expected in candidates.items() if all_near(found["std"], expected)]
    crucial = effects_text(evidence, "nanogpt-no-depth-scale")
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
    found = nanogpt_std(evidence, "attn_qkv")
    heads = pd.concat([run.heads for run in (evidence.narrow, evidence.wide)])
    scores = heads[heads["recipe"] == "nanogpt"].groupby("n_embd")["logit_std"].mean()
    spread = " and ".join(f"{value:.2g} at n_embd {width}" for width, value in scores.items())
    return Claim(
        "Query, key and value projections have an effective std of about 0.02",
        "init statistic",
        f"std of c_attn in nanogpt at n_embd {widths(found)}.",
        shown_range(found["std"]),
        "holds" if all_near(found["std"], 0.02) else "does not hold",
        "certain: over 49 000 weights each",
        "c_attn is one matrix for all three, N(0, 0.02). What that amounts to depends on the width: the attention "
        f"scores have a std of {spread}, so that narrow models attend evenly.",
        figure="weights",
        source=f"{NANOGPT}, lines 163-164",
    )


def _attention_output(evidence: Evidence) -> Claim:
    found = nanogpt_std(evidence, "attn_out")
    over = found["std"] / (0.02 / found["n_layer"].pow(0.5))
    tiny, inverse = all_near(found["std"], 4e-4), all_near(found["std"], 0.02 / found["n_layer"].pow(0.5))
    return Claim(
        "The attention's output projection is × 0.02, or × 1/√n_layer: even smaller, very important for deep models",
        "init statistic",
        "std of attn.c_proj at 4 to 48 blocks; both variants as recipes (out-x0.02, out-xinvsqrtL), and zero-out, "
        "trained against nanogpt.",
        f"std found ÷ (0.02/√n_layer): {over.mean():.3f}. {effects_text(evidence, 'out-x0.02')} "
        f"{effects_text(evidence, 'out-xinvsqrtL')} {effects_text(evidence, 'zero-out')}",
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


INIT_CLAIMS = (
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
)
