"""The note's statements about training, and two surprises, one function each: judged by paired runs."""

from __future__ import annotations

import pandas as pd

from nanogpt_note.evidence import SMALL, Claim, Evidence, Paired, Verdict, excess, gain_of, growth, untrained, widths


def _without_warmup(evidence: Evidence) -> Claim:
    statement = "This init is why NanoGPT trains stably even without warmup in small configurations"
    tested = (
        "Every recipe trained with and without warmup on the same batches, over rates, depths and seeds; a gain is "
        "the loss without minus the loss with warmup."
    )
    if evidence.trained is None:
        return untrained(statement, tested)
    runs = evidence.trained.runs
    own = runs[runs["recipe"] == "nanogpt"]
    small = own["n_layer"].min()
    usual = own["lr"].min()
    gains = {(depth, lr): gain_of(own[(own["n_layer"] == depth) & (own["lr"] == lr)]) for depth, lr in _cells(own)}
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


def _cells(runs: pd.DataFrame) -> list[tuple[int, float]]:
    return sorted({(int(row.n_layer), float(row.lr)) for row in runs.itertuples()})


def _most(gains: dict[tuple[int, float], Paired]) -> Paired:
    return max(gains.values(), key=lambda gain: gain.mean)


def _at(gains: dict[tuple[int, float], Paired]) -> str:
    (depth, lr), _ = max(gains.items(), key=lambda item: item[1].mean)
    return f"{depth} blocks and lr {lr:g}"


def _matter(evidence: Evidence) -> Claim:
    statement = "Copy these exact tricks, they matter far more than people think"
    tested = "The loss of every variant against nanogpt, averaged over the swept rates, on the same batches and draws."
    if evidence.trained is None:
        return untrained(statement, tested)
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
    first = excess(evidence.wide)
    small = [recipe for recipe in ("out-x0.02", "zero-out") if recipe in first]
    high = all(first[recipe] > first["nanogpt"] + 0.2 for recipe in small)
    return Claim(
        "Surprise: tiny or zero output projections with a tied head raise the first loss above ln V",
        "init statistic",
        f"First loss − ln V at n_embd {widths(evidence.wide.records)}, mean over depths and seeds.",
        ", ".join(f"{recipe} {value:+.2f}" for recipe, value in first.items()) + " nats",
        "holds" if high else "does not hold",
        "high: beside its closed form in every report",
        "Where blocks write next to nothing, the last state is the token's own embedding, and a tied head gives that "
        "token the highest logit, before anything was learnt. That logit grows as √n_embd: at "
        f"n_embd {widths(evidence.narrow.records)} zero-out's excess is {excess(evidence.narrow)['zero-out']:+.2f}.",
        figure="first-loss",
    )


def _default_grows_least(evidence: Evidence) -> Claim:
    parts, least = [], {}
    for run in (evidence.narrow, evidence.wide):
        found = growth(run).groupby(["recipe", "n_layer"], observed=True)["var"].mean().unstack()
        deepest = found.iloc[:, -1]
        acting = deepest.drop(index=[recipe for recipe in _HARDLY_ACT if recipe in deepest.index])
        least[widths(run.records)] = acting.idxmin() == "torch-default"
        shown = ", ".join(f"{recipe} ×{value:.3g}" for recipe, value in deepest.items())
        parts.append(f"growth at n_embd {widths(run.records)} and {found.columns[-1]} blocks: {shown}")
    rows = evidence.narrow.summary
    ratio = rows[rows["recipe"] == "torch-default"]["token_position_ratio"].mean()
    verdict: Verdict = "undecided"
    slowest = False
    if evidence.trained is not None:
        mean = evidence.trained.regrets.groupby("recipe", observed=True)["regret"].mean().sort_values()
        slowest = mean.index[-1] == "torch-default"
        parts.append("mean regret, nats: " + ", ".join(f"{recipe} {value:.2f}" for recipe, value in mean.items()))
        verdict = (
            "holds" if all(least.values()) else "holds with a condition" if any(least.values()) else "does not hold"
        )
        verdict = verdict if slowest else "does not hold"
    where = " and ".join(width for width, holds in least.items() if holds)
    return Claim(
        "Surprise: PyTorch's default has the gentlest growth, and learns slowest",
        "training outcome",
        "Growth of the stream among the inits whose blocks act; regret: the loss over all swept rates above the best "
        "of any recipe.",
        f"{'; '.join(parts)}; token ÷ position embedding {ratio:.1e} in mean square",
        verdict,
        "as the intervals of the regrets say",
        (f"It has the gentlest growth at n_embd {where}" if where else "Its growth is not the gentlest")
        + (", and of all recipes it learns slowest. " if slowest else ". ")
        + "A stream that grows little is no sign of health: a position embedding of N(0, 1) is in it from the start, "
        f"{1 / ratio:.0f} times the tokens' share, and blocks add little to that. So initlab judges that ratio, not "
        "the growth.",
        figure="regret",
    )


_HARDLY_ACT = ("zero-out", "out-x0.02", "std-0.02-over-sqrt-d")

TRAINING_CLAIMS = (_without_warmup, _matter, _first_loss, _default_grows_least)
