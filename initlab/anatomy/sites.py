"""Where the residual stream runs: which module shows which site.

nanoGPT's layout (NanoGPT, and any copy of nanoGPT's model.py) is known by heart: pre-norm blocks `transformer.h[i]`
with ln_1, attn (c_attn, c_proj), ln_2 and mlp (c_fc, c_proj). In other models the stream is discovered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from initlab.anatomy.operations import Operation
from initlab.anatomy.stacks import stored_weight
from initlab.anatomy.stream import Stack
from initlab.errors import SiteError
from initlab.models.config import ACTIVATIONS
from initlab.recipes import Role


@dataclass(frozen=True, slots=True)
class Tap:
    """One tensor to measure.

    Attributes:
        site: what it is.
        module: dotted name of the module that shows it.
        where: `in`, the module's first input; `out`, its output; `op`, a tensor of an operation within a call of it.
        layer: the block.
        part: the last dimension is cut in `parts` equal pieces and this one taken, as q, k and v of a fused c_attn.
        scale: what the model multiplies the tensor with before it becomes what the site says.
        parts: see `part`.
        operation: with `op`, which; operations of modules inside the module count.
        alike: also take how alike the tensor's positions are.
    """

    site: str
    module: str
    where: Literal["in", "out", "op"]
    layer: int | None = None
    part: int | None = None
    scale: float = 1.0
    parts: int = 3
    operation: Operation | None = None
    alike: bool = False


@dataclass(frozen=True, slots=True)
class HeadTap:
    """One attention of a block.

    Attributes:
        layer: the block.
        module: dotted name of the module within a call of which the operation is.
        operation: `scaled_dot_product_attention`, `flex_attention`, or the `softmax` of one that is written out, whose
            input are the scores, scaled, biased and masked; with `pattern`, any that is given the scores (its
            `argument`); None: the module's output is q, k, v side by side, of causal attention with scale
            1/sqrt(head size).
        query: of a softmax, where q (…, T, hs) enters the product of the scores; None: not known.
        key: where k does, transposed: (…, hs, S).
        value: where v (…, S, hs) enters the product with the pattern.
        pattern: of an attention of another form, where its weights (B, nh, T, S) enter the product with v.
        n_head: heads that have no dimension of their own: of a fused output, or of tensors (B·nh, T, hs), sequences
            before heads; 0: tensors of three dimensions are of one head.
        biased: something that differs from key to key is added to the scores, or that isn't known.
    """

    layer: int
    module: str
    operation: Operation | None = None
    query: Operation | None = None
    key: Operation | None = None
    value: Operation | None = None
    pattern: Operation | None = None
    n_head: int = 0
    biased: bool = False

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Every operation that is to be heard of."""
        return tuple(op for op in (self.query, self.key, self.operation, self.value, self.pattern) if op is not None)


@dataclass(frozen=True, slots=True)
class RouterTap:
    """What chooses among the experts of a mixture.

    Attributes:
        layer: the block.
        weight: dotted name of the parameter that scores experts.
        experts: how many there are.
        chosen: how many of them a token gets.
        given: where tokens enter the product with that parameter: (module within a call of which it is, operation).
        choice: where the experts' numbers come out, likewise.
    """

    layer: int
    weight: str
    experts: int
    chosen: int
    given: tuple[str, Operation]
    choice: tuple[str, Operation]


@dataclass(frozen=True, slots=True)
class SiteMap:
    """Everything to look at in one model. `taps` are in the order of the forward pass."""

    taps: tuple[Tap, ...]
    n_layer: int  # blocks, over all stacks
    n_embd: int  # width of the stream; 0 where none was found
    heads: tuple[HeadTap, ...] = ()  # those of one block one after another; heads are numbered through them
    n_head: int = 0  # 0: unknown
    token_embedding: str = ""
    position_embedding: str = ""
    embedded: tuple[float, float] | None = None  # what these two are multiplied with in their sum, where it was read
    notes: tuple[str, ...] = ()  # what was found, and what could not be verified
    routers: tuple[RouterTap, ...] = ()


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
        heads=tuple(HeadTap(layer, f"{name}.c_attn", n_head=n_head) for layer, name in enumerate(attention)),
        n_head=n_head,
        token_embedding="transformer.wte",
        position_embedding="transformer.wpe",
    )


def _is_stack(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) > 0


def site_map(
    model: nn.Module,
    stacks: Sequence[Stack],
    stream: Sequence[Tap],
    heads: Sequence[HeadTap],
    embeddings: Mapping[Role, str],
    layer_of: Callable[[str], int | None],
    notes: Sequence[str] = (),
    terms: Mapping[str, float] | None = None,
    routers: Sequence[RouterTap] = (),
) -> SiteMap:
    """Map a model with these stacks: their taps, and every other layer's as `module`.

    Args:
        model: any module.
        stacks: as `initlab.anatomy.stream` finds them; without any, `module` sites are all there are.
        stream: taps of the stacks, see `initlab.anatomy.taps`.
        heads: of their attention.
        embeddings: names of the modules that embed tokens and positions, by role.
        layer_of: the block that a module is in.
        notes: what else is to be said of the model.
        terms: parameters that the sum of the embedding is of, and what each is multiplied with.
        routers: of their mixtures of experts.
    """
    tables = [embeddings.get(role, "") for role in (Role.TOKEN_EMBED, Role.POS_EMBED)]
    factors = [f for table in tables for name, f in (terms or {}).items() if name.removesuffix(".weight") == table]
    blocks = [block for stack in stacks for block in stack.blocks]
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
        heads=tuple(heads),
        token_embedding=tables[0],
        position_embedding=tables[1],
        embedded=(factors[0], factors[1]) if len(factors) == 2 else None,
        notes=(*_notes(stacks), *notes),
        routers=tuple(routers),
    )


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)  # measured as scalars; its output is the first block's input


def _notes(stacks: Sequence[Stack]) -> list[str]:
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
