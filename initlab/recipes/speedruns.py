"""The two code bases that GPT-2's quality is raced on, as they were when they were read."""

from __future__ import annotations

from initlab.recipes.base import Constant, Dims, Distribution, Normal, Role, Uniform
from initlab.recipes.by_role import by_role, llama_wiring
from initlab.recipes.registry import recipe

_COMMON = {"activation": "relu2", "qk_norm": True, "embed_norm": True}
_LEFT = "Norms there have no gain, these one that starts at 1; rates are left out, since Muon trains the matrices"


@recipe(
    "nanochat",
    family="models",
    source="karpathy/nanochat@92d63d4 (2026-07-03) nanochat/gpt.py lines 74-96, 200-255: init_weights",
    wiring=llama_wiring(
        **_COMMON, attention_multiplier="1.2 ** 2 * sqrt(n_head / n_embd)", logit_cap=15.0, tie_weights=False
    ),
    note="without the stream's multipliers (1.15 to 1.05 by block), the embedding that is added to it again (0.20 to "
    f"0.05), value embeddings, smear and backout. {_LEFT}",
)
def nanochat(role: Role, dims: Dims) -> Distribution:
    """Outputs at 0, uniform of std 1/√n_embd, MLP 0.4 of it; tokens 0.8, untied head 0.001, queries and keys × 1.2."""
    if role in (Role.ATTN_OUT, Role.MLP_OUT):
        return Constant(0.0)
    matrix = "0.4 * sqrt(3 / n_embd)" if role in (Role.MLP_IN, Role.MLP_GATE) else "sqrt(3 / n_embd)"
    return by_role(role, matrix=Uniform(dims(matrix)), tokens=Normal(dims("0.8")), head=Normal(dims("0.001")))


@recipe(
    "modded-nanogpt",
    family="models",
    source="KellerJordan/modded-nanogpt@f411b3d (2026-08-01) train_gpt.py lines 1035, 1103-1105, 1226-1231, 1286-1308, "
    "1334-1345, 1549, 1638-1665",
    wiring=llama_wiring(**_COMMON, attention_multiplier=0.1, skip_multiplier="1.1 ** 0.5", tie_weights=True),
    note="values at half of the others' std are its multiplier (0.5) of q, k and v, which norms take off q and k "
    "again. The head begins as the embedding and parts from it after two thirds of the steps: here tied. Without its "
    "logits 23·sigmoid((x + 5)/7.5), value and bigram embeddings, learned mixing of earlier blocks, gates, paired "
    f"heads, windows, and the block without attention. {_LEFT}",
)
def modded_nanogpt(role: Role, dims: Dims) -> Distribution:
    """MLP outputs at 0, uniform of std 0.5/√n_embd, values half of it; embedding and head 0.005, stream × √1.1."""
    if role == Role.MLP_OUT:
        return Constant(0.0)
    scale = "0.25" if role == Role.ATTN_V else "0.5"
    return by_role(role, matrix=Uniform(dims(f"{scale} * sqrt(3 / n_embd)")), tokens=Normal(dims("0.005")))
