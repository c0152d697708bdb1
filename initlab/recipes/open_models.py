"""Language models whose code or report says what they start from, with their blocks' wiring."""

from __future__ import annotations

from typing import Any

from initlab.recipes.base import OUTPUTS, Base, Dims, Distribution, Normal, Role, TruncNormal, Uniform
from initlab.recipes.by_role import by_role, llama_wiring, wiring
from initlab.recipes.registry import recipe
from initlab.recipes.transfer import rates

_GEMMA = "google-deepmind/gemma@0449fa2 (2025) gemma/modules.py: Embedder, Attention, FeedForward, each flax's "
_GEMMA += "nn.initializers.normal(), 0.01; 1 + weight in norms, from 0, is a gain of 1 here"
_GEGLU = "its GELU is the tanh form, here exact; heads there have 256 features whatever the width"


def _gemma_wiring(**options: Any) -> Any:
    return llama_wiring(activation="geglu", embedding_multiplier="sqrt(n_embd)", tie_weights=True, **options)


def _gemma(role: Role, dims: Dims) -> Distribution:
    return by_role(role, matrix=Normal(dims("0.01")), tokens=Normal(dims("0.01")))


@recipe("gemma", family="models", source=f"{_GEMMA}; report: 2403.08295", wiring=_gemma_wiring(), note=_GEGLU)
def gemma(role: Role, dims: Dims) -> Distribution:
    """Gemma: 0.01 in every matrix, tied embeddings × √n_embd, GeGLU."""
    return _gemma(role, dims)


@recipe(
    "gemma-2",
    family="models",
    source=f"{_GEMMA}; report: 2408.00118",
    wiring=_gemma_wiring(norm_placement="sandwich", logit_cap=30.0),
    note=f"without the cap of attention's scores at 50, and without windows; {_GEGLU}",
)
def gemma_2(role: Role, dims: Dims) -> Distribution:
    """Gemma with norms around each branch and logits capped at 30."""
    return _gemma(role, dims)


@recipe(
    "gemma-3",
    family="models",
    source=f"{_GEMMA}; report: 2503.19786",
    wiring=_gemma_wiring(norm_placement="sandwich", qk_norm=True),
    note=f"without windows and the second rotary base; {_GEGLU}",
)
def gemma_3(role: Role, dims: Dims) -> Distribution:
    """Gemma with norms around each branch, and of queries and keys."""
    return _gemma(role, dims)


@recipe(
    "deepseek",
    family="models",
    source="DeepSeek LLM, 2401.02954 (2024), section 2.4; the same in DeepSeek-V2, 2405.04434, and V3, 2412.19437: "
    "«all learnable parameters are randomly initialized with a standard deviation of 0.006»",
)
def deepseek(role: Role, dims: Dims) -> Distribution:
    """0.006 in every matrix, whatever width and depth."""
    return by_role(role, matrix=Normal(dims("0.006")), tokens=Normal(dims("0.006")))


@recipe(
    "olmo2",
    family="models",
    source="OLMo 2, 2501.00656 (2025), section 3.2; allenai/OLMo@59a53e3 configs/peteish*, olmo/model.py lines "
    "489-491: init_std 0.02, init_cutoff_factor 3",
    wiring=llama_wiring(norm_placement="out", qk_norm=True, tie_weights=False),
    note="its norms of queries and keys are over the whole width, these over each head",
)
def olmo2(role: Role, dims: Dims) -> Distribution:
    """OLMo 2: 0.02 cut at three std, norms behind branches, and of queries and keys."""
    value = TruncNormal(dims("0.02"), dims("3 * 0.02"))
    return by_role(role, matrix=value, tokens=value)


@recipe(
    "qwen3",
    family="models",
    source="huggingface/transformers 5.24.0 (2026) modeling_utils.py lines 2304-2333, models/qwen3: initializer_range "
    "0.02, q_norm and k_norm of each head; report: 2505.09388, which doesn't say its init",
    wiring=llama_wiring(qk_norm=True),
    note="embeddings are tied up to 4B parameters, and untied above: say tie_weights",
)
def qwen3(role: Role, dims: Dims) -> Distribution:
    """Qwen 3 as Hugging Face makes it: a Llama at 0.02 with norms of queries and keys."""
    return by_role(role, matrix=Normal(dims("0.02")), tokens=Normal(dims("0.02")))


@recipe(
    "mamba",
    family="models",
    source="state-spaces/mamba@e9594ce (2026) mamba_ssm/models/mixer_seq_simple.py lines 91-124, _init_weights: "
    "n_residuals_per_layer 2, as where blocks have an MLP",
    note="of what isn't a state space: that one's own parameters have no role here. A block without an MLP has one "
    "residual there, so √2 times this in its outputs",
)
def mamba(role: Role, dims: Dims) -> Distribution:
    """Embeddings at 0.02, torch's default in every matrix, outputs ÷ √(2·n_layer), biases at 0."""
    bound = dims("1 / sqrt(fan_in) / sqrt(2 * n_layer)" if role in OUTPUTS else "1 / sqrt(fan_in)")
    return by_role(role, matrix=Uniform(bound), tokens=Normal(dims("0.02")), head=Uniform(dims("1 / sqrt(fan_in)")))


_CEREBRAS = "0.08 * sqrt(base_embd / n_embd)"


@recipe(
    "cerebras-gpt",
    family="transfer",
    source="Dey et al. 2023, Cerebras-GPT, 2304.03208, appendix G (table 14): μP of a base of 256 features, std 0.08 "
    "and embedding × 10 at it",
    base=Base(n_layer=32, n_embd=256),
    wiring=wiring(
        attention_multiplier="n_head / n_embd",
        embedding_multiplier=10.0,
        logit_multiplier="base_embd / n_embd",
    ),
    optimizer=rates("base_embd / n_embd", decay="1"),
    note="not checked against the table; 0.08 and 10 are what was tuned on its data, at a base of 32 blocks; here they "
    "stay with another base",
)
def cerebras_gpt(role: Role, dims: Dims) -> Distribution:
    """Cerebras-GPT's μP: 0.08·√(base/width) cut at two std, outputs ÷ √(2·n_layer), attention 1/head size."""

    def cut(std: str) -> Distribution:
        return TruncNormal(dims(std), dims(f"2 * {std}"))

    return by_role(
        role, matrix=cut(f"{_CEREBRAS} / sqrt(2 * n_layer)" if role in OUTPUTS else _CEREBRAS), tokens=cut("0.08")
    )
