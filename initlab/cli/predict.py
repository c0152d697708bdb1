"""`initlab predict`: the closed form alone. Needs no torch."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from initlab.cli.common import use_color
from initlab.options import Text

if TYPE_CHECKING:
    from initlab.cli.common import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    predict = commands.add_parser(
        "predict",
        help="what to expect of a model that isn't built yet; needs no torch",
        description="The expected profile of a NanoGPT at init, in closed form: nothing is built or drawn. "
        "GPT-2 XL: initlab predict nanogpt --n-layer 48 --n-embd 1600",
    )
    predict.add_argument("recipe", nargs="?", default="nanogpt", metavar="RECIPE", help="id or file.py:name (nanogpt)")
    predict.add_argument("--n-layer", type=int, default=12, metavar="L", help="(12)")
    predict.add_argument("--n-embd", type=int, default=768, metavar="D", help="(768)")
    predict.add_argument("--n-head", type=int, metavar="N", help="heads of 64 unless given")
    predict.add_argument("--block-size", type=int, default=1024, metavar="T", help="tokens in a sequence (1024)")
    predict.add_argument("--vocab-size", type=int, metavar="V", help="(50304; 256 for text)")
    predict.add_argument("--activation", default="gelu", help="gelu, gelu_tanh, relu, silu, tanh and others (gelu)")
    predict.add_argument("--no-bias", action="store_true", help="no bias in linear layers and norms")
    predict.add_argument("--untied", action="store_true", help="lm_head with weights of its own")
    predict.add_argument(
        "--data",
        default="uniform",
        metavar="TEXT",
        help="uniform: random tokens; english, docstrings: bytes of text (uniform)",
    )
    predict.add_argument("--sum-p2", type=float, metavar="P", help="chance that two tokens of your text are equal")
    predict.add_argument("--repeat-rate", type=float, metavar="P", help="share of its tokens equal to the one before")
    predict.add_argument(
        "--exact",
        action="store_true",
        help="every position by itself instead of in groups (differs below 0.1 %%; 4 s and 0.7 GB for GPT-2 XL)",
    )
    predict.add_argument("-o", "--out", metavar="DIR", help="write profile.csv and profile.png there")
    predict.add_argument("--format", choices=("text", "json"), default="text", help="of stdout (text)")
    predict.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    from initlab.api.predict import predict
    from initlab.models.config import NanoGPTConfig, heads
    from initlab.report.formats import json_ready
    from initlab.report.predict import scalars

    model = NanoGPTConfig(
        n_layer=options.n_layer,
        n_embd=options.n_embd,
        n_head=options.n_head or heads(options.n_embd),
        block_size=options.block_size,
        vocab_size=options.vocab_size,
        bias=not options.no_bias,
        tie_weights=not options.untied,
    )
    profile = predict(
        options.recipe,
        model=model,
        activation=options.activation,
        text=Text(options.data),
        sum_p2=options.sum_p2,
        repeat_rate=options.repeat_rate,
        exact=options.exact,
    )
    folder = profile.save(options.out) if options.out else None
    if options.format == "json":
        found = {
            "recipe": profile.recipe,
            "exact": profile.exact,
            **scalars(profile.setting, profile.expected),
            "rows": json.loads(profile.var.to_json(orient="records")),
        }
        print(json.dumps(json_ready(found), ensure_ascii=False, indent=1))
        return 0
    print(profile._text(color=use_color()), end="")
    if folder is not None:
        print(f"figure  {folder / 'profile.png'}")
    return 0
