"""Schemes for many layers that keep their norms: where norms stand, what is multiplied, how much smaller to draw."""

from __future__ import annotations

from initlab.recipes.base import OUTPUTS, Dims, Distribution, Normal, Role, Uniform
from initlab.recipes.by_role import (
    by_role,
    fairseq,
    fairseq_wiring,
    llama_wiring,
    wiring,
    xavier_normal,
    xavier_uniform,
)
from initlab.recipes.registry import recipe

_EMBEDDING = "embeddings as fairseq, on which it was built, has them"
_MLP = (Role.MLP_IN, Role.MLP_GATE, Role.MLP_OUT)
_SCALED = (Role.ATTN_V, *OUTPUTS, Role.MLP_IN, Role.MLP_GATE)  # what DeepNorm, T-Fixup and Sub-LN scale
_UNSAID_BIASES = "Its biases of q, k, v and in the MLP are left as torch draws them, here 0"


_DEEPNORM = fairseq_wiring(norm_placement="post", skip_multiplier="(2 * n_layer) ** 0.25")
_BETA = " / (8 * n_layer) ** 0.25"


@recipe(
    "deepnorm",
    family="depth",
    source="Wang et al. 2022, DeepNet, 2203.00555, figure 2: decoder-only, α = (2M)^(1/4), β = (8M)^(-1/4)",
    wiring=_DEEPNORM,
    note=_EMBEDDING,
)
def deepnorm(role: Role, dims: Dims) -> Distribution:
    """Norm(α·x + f(x)) with α = (2·n_layer)^¼; Glorot normal, values, outputs and MLP ÷ (8·n_layer)^¼."""
    return fairseq(role, dims, xavier_normal(dims, _BETA if role in _SCALED else ""))


def _torchscale(role: Role, dims: Dims, factor: str) -> Distribution:
    if role in (Role.ATTN_QKV, Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V):
        return Uniform(dims("sqrt(3 / (fan_in + fan_out))" + (factor if role == Role.ATTN_V else "")))
    return Uniform(dims(f"1 / sqrt(fan_in){factor}")) if role in _MLP else xavier_uniform(dims, factor)


@recipe(
    "deepnorm-torchscale",
    family="depth",
    source="microsoft/torchscale@4d1e0e8 (2024): architecture/decoder.py lines 89-93, 286-298; "
    "component/multihead_attention.py reset_parameters; what is divided is reported in its issue 16",
    wiring=_DEEPNORM,
    note=_UNSAID_BIASES,
)
def deepnorm_torchscale(role: Role, dims: Dims) -> Distribution:
    """deepnorm as its authors' code draws: q, k, v at Glorot ÷ √2, the MLP at torch's default, ÷ (8·n_layer)^¼."""
    return fairseq(role, dims, _torchscale(role, dims, _BETA))


@recipe(
    "magneto",
    family="depth",
    source="Wang et al. 2022, Magneto (Foundation Transformers), 2210.06423: decoder-only, γ = √ln 2M; as in "
    "microsoft/torchscale@4d1e0e8 (2024) architecture/decoder.py lines 300-314",
    wiring=fairseq_wiring(inner_norm="both"),
    note=f"{_EMBEDDING}; the code multiplies another draw: see deepnorm-torchscale",
)
def magneto(role: Role, dims: Dims) -> Distribution:
    """Sub-LN: more norms inside of branches; Glorot normal, values, outputs and MLP × √ln(2·n_layer)."""
    return fairseq(role, dims, xavier_normal(dims, " * sqrt(log(2 * n_layer))" if role in _SCALED else ""))


@recipe(
    "admin",
    family="depth",
    source="Liu et al. 2020, Admin, 2004.08249; closed form: microsoft/admin-torch@08b6605 (2022) admin_torch/admin.py "
    "calculate_init, output change O(log n), n = 2·n_layer residual layers",
    wiring=fairseq_wiring(norm_placement="post", skip_multiplier="sqrt((2 * n_layer + 1) / log(2 * n_layer + 1) - 1)"),
    note=f"{_EMBEDDING}. The paper measures ω of each branch on a batch: admin-profiled of apply_recipe(…, batch=…); "
    "there ω is learned, here and in the code's default it stays",
)
def admin(role: Role, dims: Dims) -> Distribution:
    """Norm(ω·x + f(x)) with ω² = (n + 1)/ln(n + 1) - 1, n = 2·n_layer; Glorot uniform, q, k and v ÷ √2."""
    qkv = role in (Role.ATTN_QKV, Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V)
    return fairseq(role, dims, xavier_uniform(dims, " / sqrt(2)" if qkv else ""))


@recipe(
    "normformer",
    family="depth",
    source="Shleifer et al. 2021, NormFormer, 2110.09456; facebookresearch/fairseq@00b6434 (2023) "
    "modules/transformer_layer.py: scale_attn, scale_heads, scale_fc",
    wiring=fairseq_wiring(norm_placement="sandwich-attn", inner_norm="mlp", head_scale=1.0),
    note="HeadScale as in the paper, before the output projection; the code has it behind, the same while it is 1. "
    f"{_UNSAID_BIASES}",
)
def normformer(role: Role, dims: Dims) -> Distribution:
    """Norms behind attention and inside the MLP, a learned number a head; Glorot, the MLP at torch's default."""
    return fairseq(role, dims, _torchscale(role, dims, ""))


@recipe(
    "ds-init",
    family="depth",
    source="Zhang, Titov & Sennrich 2019, 1908.11365: U(±γ·α/√l) with α = 1, γ² = 6/(fan_in + fan_out)",
    wiring=fairseq_wiring(norm_placement="post"),
    note="its code, bzhangGo/zero@d97e2c2 models/transformer.py lines 38-42, divides the variance by √l, so the bound "
    "by l^(1/4). Embeddings 1/√n_embd, tokens × √n_embd, since the paper says none",
)
def ds_init(role: Role, dims: Dims) -> Distribution:
    """Post-norm, Glorot uniform ÷ √(layer + 1), by block."""
    return fairseq(role, dims, xavier_uniform(dims, " / sqrt(layer + 1)"))


@recipe(
    "layernorm-scaling",
    family="depth",
    source="Sun et al. 2025, The Curse of Depth, 2502.05795; lmsdss/LayerNorm-Scaling@3ac54dd (2026) "
    "peft_pretraining/modeling_llama.py lines 427-453, 857-880 (norm type LNS)",
    wiring=llama_wiring(norm_multiplier="1 / sqrt(layer + 1)", tie_weights=False),
)
def layernorm_scaling(role: Role, dims: Dims) -> Distribution:
    """A Llama at 0.02 whose norms give 1/√(layer + 1) of what they would."""
    return by_role(role, matrix=Normal(dims("0.02")), tokens=Normal(dims("0.02")))


@recipe(
    "peri-ln",
    family="depth",
    source="Kim et al. 2025, Peri-LN, 2502.02732: norms before and behind each branch, of the embedding and "
    "before the head; drawn as Megatron-LM, 0.02",
    wiring=llama_wiring(norm_placement="sandwich", embed_norm=True, tie_weights=False),
    note="the std of the outputs doesn't count behind a norm, and the paper doesn't print it: Megatron's "
    "0.02/√(2·n_layer)",
)
def peri_ln(role: Role, dims: Dims) -> Distribution:
    """Norms around each branch, of the embedding and before the head; N(0, 0.02), outputs 0.02/√(2·n_layer)."""
    matrix = Normal(dims("0.02 / sqrt(2 * n_layer)" if role in OUTPUTS else "0.02"))
    return by_role(role, matrix=matrix, tokens=Normal(dims("0.02")))


@recipe(
    "spike-no-more",
    family="depth",
    source="Takase et al. 2023, Spike No More, 2312.16903: scaled embedding (× √n_embd, std √(2/5) then), small "
    "sub-layers √(2/(5·n_embd)), outputs ÷ √(2·n_layer)",
    wiring=wiring(embedding_multiplier="sqrt(n_embd)"),
    note="its other form, a norm of the embedding in place of the multiplier, is wiring embed_norm. A learned position "
    "embedding is drawn so that the multiplier leaves it at √(2/(5·n_embd))",
)
def spike_no_more(role: Role, dims: Dims) -> Distribution:
    """small-init with embeddings × √n_embd: a large shortcut beside small branches."""
    small = "sqrt(2 / (5 * n_embd))"
    matrix = Normal(dims(f"{small} / sqrt(2 * n_layer)" if role in OUTPUTS else small))
    return by_role(role, matrix=matrix, tokens=Normal(dims(small)), positions=Normal(dims(f"{small} / sqrt(n_embd)")))
