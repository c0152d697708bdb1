"""Where the residual stream runs: which module shows which site.

nanoGPT's layout (NanoGPT, and any copy of nanoGPT's model.py) is known by heart: pre-norm blocks `transformer.h[i]`
with ln_1, attn (c_attn, c_proj), ln_2 and mlp (c_fc, c_proj). In other models the stream is discovered.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from initlab.anatomy.stacks import stored_weight
from initlab.anatomy.stream import Block, Stack
from initlab.errors import SiteError
from initlab.models.config import ACTIVATIONS
from initlab.recipes import Role


@dataclass(frozen=True, slots=True)
class Tap:
    """One tensor to measure: the first input of a module, or its output.

    `part` cuts the last dimension in three equal pieces and takes one, as q, k and v leave a fused c_attn. `scale` is
    what the model multiplies the tensor with before it becomes what the site says.
    """

    site: str
    module: str
    where: Literal["in", "out"]
    layer: int | None = None
    part: int | None = None
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class SiteMap:
    """Everything to look at in one model. `taps` are in the order of the forward pass."""

    taps: tuple[Tap, ...]
    n_layer: int  # blocks, over all stacks
    n_embd: int  # width of the stream; 0 where none was found
    attention: tuple[str, ...] = ()  # per block, the module whose output is q, k, v side by side
    n_head: int = 0  # 0: unknown
    token_embedding: str = ""
    position_embedding: str = ""
    notes: tuple[str, ...] = ()  # what was found, and what could not be verified


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
    """Map a model of nanoGPT's layout.

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
    table = stored_weight(modules["transformer.wte"])
    if table is None:
        raise SiteError("transformer.wte has no weight, so the width of the stream isn't known")
    return SiteMap(
        taps=tuple(taps),
        n_layer=len(blocks),
        n_embd=table.shape[-1],
        attention=tuple(f"{name}.c_attn" for name in attention),
        n_head=n_head,
        token_embedding="transformer.wte",
        position_embedding="transformer.wpe",
    )


def _is_stack(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) > 0


def site_map(
    model: nn.Module,
    stacks: list[Stack],
    embeddings: Mapping[Role, str],
    layer_of: Callable[[str], int | None],
    stream: Sequence[Tap] | None = None,
    notes: Sequence[str] = (),
) -> SiteMap:
    """Map a model with these stacks: their taps, and every other layer's as `module`.

    Args:
        model: any module.
        stacks: as `initlab.anatomy.stream` proves them; without any, `module` sites are all there are.
        embeddings: names of the modules that embed tokens and positions, by role.
        layer_of: the block that a module is in.
        stream: taps of the stacks, where the caller knows better than what was found.
        notes: what else is to be said of the model.
    """
    blocks = [block for stack in stacks for block in stack.blocks]
    if stream is None:
        stream = [Tap("embed", blocks[0].name, "in")] if blocks else []
        stream += [tap for layer, block in enumerate(blocks) for tap in block_taps(layer, block)]
        stream += [Tap("final_norm", stack.final_norm, "out") for stack in stacks if stack.final_norm]
    taps = list(stream)
    taken = {tap.module for tap in taps if tap.where == "out"}
    taps += [
        Tap("module", name, "out", layer_of(name))
        for name, module in model.named_modules()
        if name and name not in taken and not any(True for _ in module.children()) and not _is_embedding(module)
    ]
    return SiteMap(
        taps=tuple(taps),
        n_layer=len(blocks),
        n_embd=next((block.width for block in blocks if block.width), 0),
        token_embedding=embeddings.get(Role.TOKEN_EMBED, ""),
        position_embedding=embeddings.get(Role.POS_EMBED, ""),
        notes=(*_notes(stacks), *notes),
    )


def block_taps(layer: int, block: Block) -> list[Tap]:
    """Choose what to look at in one block: its stream, and what was found to write to it."""
    taps = [Tap("resid_pre", block.name, "in", layer)]
    sites = _write_sites([write.place.module.removeprefix(block.name) for write in block.writes])
    writes = [
        Tap(site, write.place.module, "out", layer, scale=write.scale)
        for site, write in zip(sites, block.writes, strict=True)
    ]
    # between the two sums of a sequential block; parallel branches have one sum, and no state between
    middle = [Tap("resid_mid", s.module, s.where, layer) for s in block.states[1:-1]] if len(sites) == 2 else []
    taps += writes[:1] + middle[:1] + writes[1:]
    return [*taps, Tap("resid_post", block.name, "out", layer)]


def _write_sites(names: list[str]) -> list[str]:
    """attn_out, cross_attn_out, mlp_out or mixer_out for the modules that write to the stream, in their order.

    Which module writes is proved; what kind it is, is read from its name, and of two the first is attention.
    """
    kinds = []
    for name in (name.lower() for name in names):
        attention = re.search(r"att|mha", name)
        mlp = re.search(r"mlp|ffn|feed_?forward|experts|moe|dense|fc\d|linear\d|wo$", name)
        kinds.append("mixer_out" if re.search(r"mixer|mamba|ssm|rnn|conv", name) else _kind(attention, mlp))
    if len(kinds) == 2 and sorted(kinds) in (["", ""], ["", "attn_out"], ["", "mlp_out"]):
        kinds = ["attn_out", "mlp_out"]
    kinds = [kind or "mixer_out" for kind in kinds]
    plain = [re.sub(r"\d", "", name) for name in names]  # self_attn.1 is another self_attn.0, and no cross-attention
    return [
        "cross_attn_out" if kind == "attn_out" and "attn_out" in kinds[:i] and plain[i] not in plain[:i] else kind
        for i, kind in enumerate(kinds)
    ]


def _kind(attention: re.Match[str] | None, mlp: re.Match[str] | None) -> str:
    if attention:
        return "attn_out"
    return "mlp_out" if mlp else ""


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)  # measured as scalars; its output is the first block's input


def _notes(stacks: list[Stack]) -> list[str]:
    notes = []
    for stack in stacks:
        scales = sorted({round(write.scale, 4) for block in stack.blocks for write in block.writes} - {1.0})
        proved = sum(block.verified for block in stack.blocks)
        name = stack.name or "the model itself"
        text = f"{name}: {len(stack.blocks)} blocks, stream reproduced from its writes in {proved}"
        skips = sorted({round(skip, 4) for block in stack.blocks for skip in block.skips})
        text += f", writes scaled by {', '.join(f'{scale:g}' for scale in scales)}" if scales else ""
        if any(write.per_channel for block in stack.blocks for write in block.writes):
            text += " (rms of one scale per channel)"
        notes.append(text + (f", skip scaled by {', '.join(f'{skip:g}' for skip in skips)}" if skips else ""))
        notes += [f"{block.name}: {block.note}" for block in stack.blocks if block.note]
    return notes or ["no residual stream found: no list of blocks whose output is their input plus what modules gave"]


def activation_name(model: nn.Module) -> str | None:
    """Name the MLP's activation as the theory does; None when it isn't one of those."""
    declared = getattr(getattr(model, "config", None), "activation", None)
    if isinstance(declared, str):
        return declared if declared in ACTIVATIONS else None
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


def dropout_in_force(model: nn.Module) -> float:
    """Read the dropout probability of a nanoGPT-like model, 0 in eval mode."""
    found = dict(model.named_modules()).get("transformer.drop")
    return found.p if isinstance(found, nn.Dropout) and found.training else 0.0
