"""An expected profile as terminal text."""

from __future__ import annotations

import math
from typing import Any

from initlab.judge.theory import STEEP, Prediction, Setting
from initlab.judge.words import number, plural, signed
from initlab.report.brief import layers_shown
from initlab.report.terminal import narrowed, plain_table, print_text, wrapped


def scalars(setting: Setting, expected: Prediction) -> dict[str, Any]:
    """What one number says: sizes, statistics of the text, and the first step."""
    return {
        "n_layer": len(setting.blocks),
        "n_embd": setting.n_embd,
        "block_size": setting.text.block_size,
        "vocab_size": setting.vocab_size,
        "sum_p2": setting.text.sum_p2,
        "repeat_rate": setting.text.repeat_rate,
        "growth": expected.growth,
        "gradient_ratio": expected.gradient_ratio,
        "logit_std": expected.logit_std,
        "own_logit": expected.own_logit,
        "loss": expected.loss,
        "ln_vocab": math.log(setting.vocab_size),
        "token_cosine": expected.token_cosine,
    }


def profile_text(
    recipe: str, setting: Setting, expected: Prediction, *, exact: bool, width: int | None = None, color: bool = False
) -> str:
    """Sizes, a row per block (every k-th of a deep model), and the scalars of the first step."""
    n_layer = len(setting.blocks)
    text = f"chance of equal tokens {number(setting.text.sum_p2)}, repeated in a row {number(setting.text.repeat_rate)}"
    head = " · ".join(
        (
            f"initlab predict {recipe}",
            f"n_layer {n_layer}, n_embd {setting.n_embd}",
            f"T {setting.text.block_size}",
            f"vocabulary {setting.vocab_size}",
            text,
            "every position by itself" if exact else "positions in groups",
        )
    )
    table = plain_table(
        "after",
        "residual\nvar",
        "attention\nwrites",
        "MLP\nwrites",
        "grad var\n÷ last",
        "attn logit\nstd",
        "attn entropy\n÷ ln(keys)",
    )
    top = expected.grad["resid_post", n_layer - 1]
    for layer, name in layers_shown(n_layer):
        if layer is None:
            at: tuple[str, int | None] = ("embed", None)
            inner = ["", ""]
            attention = ["", ""]
        else:
            at = ("resid_post", layer)
            inner = [number(expected.var[site, layer]) for site in ("attn_out", "mlp_out")]
            fraction = expected.entropy_frac[layer]
            attention = [number(expected.score_std[layer]), "–" if math.isnan(fraction) else f"{fraction:.3f}"]
        ratio = number(expected.grad[at] / top) if top > 0 else "–"
        table.add_row(name, number(expected.var[at]), *inner, ratio, *attention)
    skipped = len(layers_shown(n_layer)) <= n_layer
    own = f"; that of the token just read has mean {number(expected.own_logit)}" if setting.tied else ""
    notes = [
        f"The stream grows ×{number(expected.growth, 3)} over {plural(n_layer, 'block')}, the gradient "
        f"×{number(expected.gradient_ratio, 3)} on its way back; two positions end with a cosine of "
        f"{number(expected.token_cosine)}.",
        f"Logits have std {number(expected.logit_std)}{own}. First loss {expected.loss:.3f} nats: "
        f"ln V {signed(expected.loss - math.log(setting.vocab_size), 3)}.",
    ]
    if expected.steep:
        notes.append(
            f"Attention logits reach std {number(max(expected.score_std))}: above {STEEP:g} the softmax is no small "
            "perturbation of a uniform one, and these numbers are rough (kaiming, 2.0: half of the gradient's "
            "growth is measured)."
        )

    def body(console: Any, columns: int) -> None:
        console.print(wrapped(head, columns), style="dim" if color else "")
        console.print()
        console.print(narrowed(table, columns))
        if skipped:
            console.print("not every block is shown; profile.csv (-o DIR) has them all", style="dim" if color else "")
        console.print()
        for note in notes:
            console.print(wrapped(note, columns))

    return print_text(body, width, color)
