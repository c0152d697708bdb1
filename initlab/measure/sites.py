"""Where the residual stream runs: which module shows which site.

Understands nanoGPT's layout (NanoGPT, and any copy of nanoGPT's model.py): pre-norm blocks `transformer.h[i]` with
ln_1, attn (c_attn, c_proj), ln_2 and mlp (c_fc, c_proj).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from initlab.errors import SiteError


@dataclass(frozen=True, slots=True)
class Tap:
    """One tensor to measure: the first input of a module, or its output.

    `part` cuts the last dimension in three equal pieces and takes one, as q, k and v leave a fused c_attn.
    """

    site: str
    module: str
    where: Literal["in", "out"]
    layer: int | None = None
    part: int | None = None


@dataclass(frozen=True, slots=True)
class SiteMap:
    """Everything to look at in one model. `taps` are in the order of the forward pass."""

    taps: tuple[Tap, ...]
    attention: tuple[str, ...]  # per block, the module whose output is q, k, v side by side
    n_head: int
    token_embedding: str
    position_embedding: str

    @property
    def n_layer(self) -> int:
        return len(self.attention)


_IN_BLOCK: tuple[tuple[str, str, Literal["in", "out"], int | None], ...] = (
    ("resid_pre", "", "in", None),
    ("ln_1", "ln_1", "out", None),
    ("q", "attn.c_attn", "out", 0),
    ("k", "attn.c_attn", "out", 1),
    ("v", "attn.c_attn", "out", 2),
    ("attn_z", "attn.c_proj", "in", None),
    ("attn_out", "attn", "out", None),
    ("resid_mid", "ln_2", "in", None),
    ("ln_2", "ln_2", "out", None),
    ("mlp_pre", "mlp.c_fc", "out", None),
    ("mlp_act", "mlp.c_proj", "in", None),
    ("mlp_out", "mlp", "out", None),
    ("resid_post", "", "out", None),
)


def find_sites(model: nn.Module) -> SiteMap:
    """The site map of a model.

    Raises:
        SiteError: the model isn't laid out as nanoGPT's GPT; the message names what is missing.
    """
    modules = dict(model.named_modules())
    blocks = modules.get("transformer.h")
    if not isinstance(blocks, nn.ModuleList) or len(blocks) == 0:
        found = [f"{name} ({len(m)} × {type(m[0]).__name__})" for name, m in modules.items() if _is_stack(m)]
        raise SiteError(
            f"no transformer blocks found in {type(model).__name__}: looked for a ModuleList transformer.h; "
            f"found {', '.join(found) or 'no ModuleList'}; expected nanoGPT's layout, as initlab.NanoGPT has it"
        )
    prefixes = [f"transformer.h.{layer}" for layer in range(len(blocks))]
    taps = [Tap("embed", prefixes[0], "in")]
    for layer, prefix in enumerate(prefixes):
        taps += [
            Tap(site, f"{prefix}.{name}" if name else prefix, where, layer, part)
            for site, name, where, part in _IN_BLOCK
        ]
    taps += [Tap("final_norm", "transformer.ln_f", "out"), Tap("logits", "lm_head", "out")]
    needed = {tap.module for tap in taps} | {"transformer.wte", "transformer.wpe"}
    missing = sorted(needed - set(modules))
    if missing:
        raise SiteError(
            f"{type(model).__name__} isn't laid out as nanoGPT's GPT: it has no module {', '.join(missing[:4])}"
        )
    attention = [f"{prefix}.attn" for prefix in prefixes]
    n_head = getattr(modules[attention[0]], "n_head", None)
    if not isinstance(n_head, int):
        raise SiteError(f"{attention[0]} has no integer attribute n_head, so its heads can't be told apart")
    return SiteMap(
        taps=tuple(taps),
        attention=tuple(f"{name}.c_attn" for name in attention),
        n_head=n_head,
        token_embedding="transformer.wte",
        position_embedding="transformer.wpe",
    )


def _is_stack(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) > 0


def sizes(model: nn.Module, sites: SiteMap) -> dict[str, int]:
    """n_layer, n_embd, n_head, block_size and vocab_size of a model whose sites were found."""
    modules = dict(model.named_modules())
    vocab_size, n_embd = modules[sites.token_embedding].weight.shape
    return {
        "n_layer": sites.n_layer,
        "n_embd": n_embd,
        "n_head": sites.n_head,
        "block_size": modules[sites.position_embedding].weight.shape[0],
        "vocab_size": vocab_size,
    }


def activation_name(model: nn.Module) -> str | None:
    """The MLP's activation as the theory names it; None when it isn't one of those."""
    declared = getattr(getattr(model, "config", None), "activation", None)
    if isinstance(declared, str):
        return declared
    found = dict(model.named_modules()).get("transformer.h.0.mlp.gelu")
    match found:
        case nn.GELU(approximate="none"):
            return "gelu"
        case nn.GELU(approximate="tanh"):
            return "gelu_tanh"
        case nn.ReLU():
            return "relu"
        case nn.SiLU():
            return "silu"
    return None
