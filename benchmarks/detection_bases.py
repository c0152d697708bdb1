"""The models that `detection.py` plants faults in, each with handles on its parts.

A `Subject` says where things are: which module is the query matrix of block 2, which line of whose forward adds what
the MLP gives. It knows nothing of initlab; faults are written against it once, for every architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import zoo
from detection_models import OwnLlama
from torch import Tensor, nn
from zoo_inputs import DiT

import initlab

D, LAYERS, HEADS, T, V = 128, 4, 4, 64, 512


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        name: dotted.
        module, attention: its own, and its attention's.
        mlp: whose output is the MLP's.
        matrices: module by q, k, v, or qkv where fused, o, up, gate, down; no experts.
        norms: (owner, attribute) of the attention's and the MLP's, where it has some.
        act: owner and attribute of the activation.
        adds: whose forward adds the MLP's output.
    """

    name: str
    module: nn.Module
    attention: nn.Module
    mlp: nn.Module
    matrices: dict[str, nn.Module]
    norms: tuple[tuple[nn.Module, str], ...]
    act: tuple[nn.Module, str] | None
    adds: nn.Module


@dataclass
class Subject:
    """A model with handles.

    Attributes:
        base: its name in the table.
        model, blocks: blocks of the decoder where there are two stacks.
        token, position, head: the embedding, the table of positions, the head; None for what it hasn't.
        final: owner and attribute of the norm before the head.
        lines: texts of forwards, by what they do: (as it is, as a fault makes it).
        causal: whether attention may only look back.
        unit: the value of a norm's weight that means a gain of 1.
        head_size: of queries.
        stream: what the line that adds calls the stream.
        library: whether attention and losses are transformers'.
        first_block: number of the first of `blocks` through all stacks.
    """

    base: str
    model: nn.Module
    blocks: list[Block]
    token: nn.Module | None
    position: nn.Module | None
    head: nn.Module
    final: tuple[nn.Module, str] | None
    lines: dict[str, tuple[str, str]] = field(default_factory=dict)
    causal: bool = True
    unit: float = 1.0
    head_size: int = D // HEADS
    stream: str = "x"
    library: bool = False
    first_block: int = 0

    @property
    def odd(self) -> int:
        """Index of the block in which faults of a single block are."""
        return min(2, len(self.blocks) - 1)

    @property
    def names(self) -> dict[int, str]:
        """Name of each parameter by its identity; every parameter has one."""
        return {id(parameter): name for name, parameter in self.model.named_parameters()}


Make = Callable[..., Subject]


def nanogpt(base: str, d: int, n_layer: int) -> Subject:
    """NanoGPT of that size."""
    sizes = {"n_layer": n_layer, "n_head": d // 64, "n_embd": d, "block_size": T, "vocab_size": V}
    model = initlab.NanoGPT(initlab.NanoGPTConfig(**sizes))
    parts = model.transformer
    write = "self._scaled(y, self.ln_2_out, self.scale_2, self.gate_2)"
    lines = {
        "adds": (f"return self._added(x, {write}, self.ln_2)", f"return {{}}{write}"),
        "no mlp": ("y = self.mlp(self._read(x, self.ln_2))", "return x"),
        "loop": ("x = block(x)", "x = self.transformer.h[0](x)"),
        "score": ("scale=self.scale", "scale={}"),
        "mask": ("is_causal=True", "is_causal=False"),
        "heads": ("z.transpose(1, 2).contiguous()", "z.contiguous()"),
        "targets": ("targets.flatten()", "idx.flatten()"),
    }
    blocks = list(_blocks(model, "transformer.h", _gpt2_block))
    head, final = model.lm_head, (parts, "ln_f")
    return Subject(base, model, blocks, parts.wte, parts.wpe, head, final, lines, head_size=64)


def own(base: str, d: int, n_layer: int) -> Subject:
    """The hand-written Llama-like model."""
    model = OwnLlama(d, n_layer)
    add = "x = x + self.feed_forward(self.ffn_norm(x))"
    lines = {
        "adds": (add, "x = {}self.feed_forward(self.ffn_norm(x))"),
        "no mlp": (add, "pass"),
        "loop": ("x = layer(x)", "x = self.layers[0](x)"),
        "score": ("is_causal=True", "is_causal=True, scale={}"),
        "mask": ("is_causal=True", "is_causal=False"),
        "heads": ("z.transpose(1, 2).reshape", "z.reshape"),
        "targets": ("targets.flatten()", "ids.flatten()"),
        "rotation": ("q, k = rope(q), rope(k)", "pass"),
    }

    def block(name: str, b: Any) -> Block:
        a, m = b.attention, b.feed_forward
        matrices = {"q": a.wq, "k": a.wk, "v": a.wv, "o": a.wo, "up": m.w3, "gate": m.w1, "down": m.w2}
        return Block(name, b, a, m, matrices, ((b, "attention_norm"), (b, "ffn_norm")), (m, "act"), b)

    blocks = list(_blocks(model, "layers", block))
    return Subject(
        base, model, blocks, model.tok_embeddings, None, model.output, (model, "norm"), lines, head_size=d // HEADS
    )


def dit(base: str, d: int, n_layer: int) -> Subject:
    """The diffusion transformer of `zoo_inputs`, of its own size; blocks write nothing yet (adaLN-Zero)."""
    model = DiT().eval()
    lines = {
        "adds": ("return x + gate2 *", "return {}gate2 *"),
        "loop": ("x = block(x, c)", "x = self.blocks[0](x, c)"),
        "heads": ("y.transpose(1, 2).reshape", "y.reshape"),
    }

    def block(name: str, b: Any) -> Block:
        a, m = b.attn, b.mlp
        matrices = {"q": a.wq, "k": a.wk, "v": a.wv, "o": a.wo, "up": m.up, "down": m.down}
        return Block(name, b, a, m, matrices, ((b, "norm1"), (b, "norm2")), (m, "act"), b)

    blocks = list(_blocks(model, "blocks", block))
    size = zoo.HEAD
    return Subject(
        base, model, blocks, None, None, model.linear_final, (model, "norm_final"), lines, False, head_size=size
    )


HF_LINES = {
    "heads": ("attn_output.reshape(*input_shape, -1)", "attn_output.transpose(1, 2).reshape(*input_shape, -1)"),
}


def gpt2(base: str, d: int, n_layer: int) -> Subject:
    """Hugging Face's GPT-2."""
    hf = import_module("transformers")
    sizes = {"n_embd": d, "n_layer": n_layer, "n_head": HEADS, "vocab_size": V, "n_positions": T}
    model = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).eval()
    parts, lines = model.transformer, _gives("feed_forward_hidden_states") | HF_LINES
    blocks = list(_blocks(model, "transformer.h", _gpt2_block))
    return _hf(base, model, blocks, parts.wte, parts.wpe, model.lm_head, (parts, "ln_f"), lines)


def llama_like(base: str, d: int, n_layer: int, **more: Any) -> Subject:
    """A decoder of transformers with Llama's names."""
    hf = import_module("transformers")
    sizes = {"hidden_size": d, "intermediate_size": 11 * d // 4, "num_hidden_layers": n_layer, "vocab_size": V}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": d // HEADS}
    config = hf.AutoConfig.for_model(base, max_position_embeddings=T, **{**sizes, **tokens, **heads, **more})
    model = hf.AutoModelForCausalLM.from_config(config).eval()

    def block(name: str, b: Any) -> Block:
        a, m = b.self_attn, b.mlp
        matrices = {"q": a.q_proj, "k": a.k_proj, "v": a.v_proj, "o": a.o_proj}
        if hasattr(m, "up_proj"):
            matrices |= {"up": m.up_proj, "gate": m.gate_proj, "down": m.down_proj}
        second = "pre_feedforward_layernorm" if hasattr(b, "pre_feedforward_layernorm") else "post_attention_layernorm"
        act = m if hasattr(m, "act_fn") else m.experts
        return Block(name, b, a, m, matrices, ((b, "input_layernorm"), (b, second)), (act, "act_fn"), b)

    blocks = list(_blocks(model, "model.layers", block))
    inside, lines = model.model, _gives("hidden_states") | HF_LINES
    found = _hf(base, model, blocks, inside.embed_tokens, None, model.lm_head, (inside, "norm"), lines)
    found.unit = 0.0 if base == "gemma2" else 1.0
    found.head_size = d // HEADS
    return found


def bert(base: str, d: int, n_layer: int) -> Subject:
    """Hugging Face's BERT, masked language model."""
    hf = import_module("transformers")
    sizes = {"hidden_size": d, "intermediate_size": 4 * d, "num_hidden_layers": n_layer, "vocab_size": V}
    config = hf.BertConfig(**sizes, num_attention_heads=HEADS, max_position_embeddings=T)
    model = hf.BertForMaskedLM(config).eval()

    def block(name: str, b: Any) -> Block:
        a, o = b.attention.self, b.attention.output
        matrices = {"q": a.query, "k": a.key, "v": a.value, "o": o.dense}
        matrices |= {"up": b.intermediate.dense, "down": b.output.dense}
        norms = ((o, "LayerNorm"), (b.output, "LayerNorm"))
        return Block(name, b, a, b.intermediate, matrices, norms, (b.intermediate, "intermediate_act_fn"), b.output)

    inside = model.bert.embeddings
    add = "self.LayerNorm(hidden_states + input_tensor)"
    lines = {"adds": (add, "self.LayerNorm({}hidden_states)")} | HF_LINES
    blocks = list(_blocks(model, "bert.encoder.layer", block))
    head = model.cls.predictions.decoder
    return _hf(base, model, blocks, inside.word_embeddings, inside.position_embeddings, head, None, lines, False)


def t5(base: str, d: int, n_layer: int) -> Subject:
    """Hugging Face's T5; faults are planted in the decoder."""
    hf = import_module("transformers")
    sizes = {"d_model": d, "d_ff": 4 * d, "d_kv": d // HEADS, "num_layers": n_layer, "num_heads": HEADS}
    config = hf.T5Config(**sizes, vocab_size=V, decoder_start_token_id=0, pad_token_id=0)
    model = hf.T5ForConditionalGeneration(config).eval()

    def block(name: str, b: Any) -> Block:
        a, f = b.layer[0].SelfAttention, b.layer[-1].DenseReluDense
        matrices = {"q": a.q, "k": a.k, "v": a.v, "o": a.o, "up": f.wi, "down": f.wo}
        norms = ((b.layer[0], "layer_norm"), (b.layer[-1], "layer_norm"))
        return Block(name, b, a, f, matrices, norms, (f, "act"), b.layer[-1])

    add = "hidden_states + self.dropout(forwarded_states)"
    lines = {"adds": (add, "{}self.dropout(forwarded_states)")} | HF_LINES
    blocks = list(_blocks(model, "decoder.block", block))
    found = _hf(base, model, blocks, model.shared, None, model.lm_head, (model.decoder, "final_layer_norm"), lines)
    found.first_block = n_layer
    return found


def vit(base: str, d: int, n_layer: int) -> Subject:
    """Hugging Face's ViT, a classifier of pictures."""
    hf = import_module("transformers")
    sizes = {"hidden_size": d, "intermediate_size": 4 * d, "num_hidden_layers": n_layer}
    config = hf.ViTConfig(**sizes, num_attention_heads=HEADS, image_size=32, patch_size=4, num_labels=100)
    model = hf.ViTForImageClassification(config).eval()

    def block(name: str, b: Any) -> Block:
        a, m = b.attention, b.mlp
        matrices = {"q": a.q_proj, "k": a.k_proj, "v": a.v_proj, "o": a.o_proj, "up": m.fc1, "down": m.fc2}
        norms = ((b, "layernorm_before"), (b, "layernorm_after"))
        return Block(name, b, a, m, matrices, norms, (m, "activation_fn"), b)

    lines = {"adds": ("hidden_states + residual", "{}hidden_states")} | HF_LINES
    blocks = list(_blocks(model, "vit.layers", block))
    return _hf(base, model, blocks, None, None, model.classifier, (model.vit, "layernorm"), lines, False)


def _gpt2_block(name: str, b: Any) -> Block:
    a, m = b.attn, b.mlp
    matrices = {"qkv": a.c_attn, "o": a.c_proj, "up": m.c_fc, "down": m.c_proj}
    act = (m, "act" if hasattr(m, "act") else "gelu")
    return Block(name, b, a, m, matrices, ((b, "ln_1"), (b, "ln_2")), act, b)


def _gives(written: str) -> dict[str, tuple[str, str]]:
    return {"adds": (f"residual + {written}", "{}" + written)}


def _blocks(model: nn.Module, path: str, block: Callable[[str, Any], Block]) -> Iterator[Block]:
    for place, each in enumerate(model.get_submodule(path)):
        yield block(f"{path}.{place}", each)


def _hf(base: str, model: nn.Module, *parts: Any) -> Subject:
    stream = {"bert": "input_tensor", "t5": "hidden_states"}.get(base, "residual")
    return Subject(base, model, *parts, library=True, stream=stream)


# By name: what makes one of a size, and the sizes (n_embd, n_layer): the one that faults are planted in, then others.
SIZES = ((D, LAYERS), (64, 3), (256, 6))
HF: dict[str, tuple[Make, tuple[tuple[int, int], ...]]] = {
    "gpt2": (gpt2, SIZES),
    "llama": (llama_like, SIZES),
    "qwen3": (llama_like, SIZES),
    "gemma2": (llama_like, SIZES),
    "bert": (bert, SIZES),
    "t5": (t5, SIZES),
    "vit": (vit, SIZES),
    "mixtral": (lambda *size: llama_like(*size, num_local_experts=4, num_experts_per_tok=2), SIZES),
}
BASES: dict[str, tuple[Make, tuple[tuple[int, int], ...]]] = {
    "nanogpt-4": (nanogpt, SIZES),
    "nanogpt-12": (nanogpt, ((192, 12), (128, 12), (384, 12))),
    **(HF if find_spec("transformers") else {}),
    "own-llama": (own, SIZES),
    "dit": (dit, ((zoo.D, zoo.LAYERS),)),
}


def subject(base: str, seed: int = 0, size: tuple[int, int] | None = None) -> Subject:
    """Build a base.

    Args:
        base: its name in BASES.
        seed: of torch's random state.
        size: n_embd and n_layer; its first by default.
    """
    make, sizes = BASES[base]
    torch.manual_seed(seed)
    return make(base, *(size or sizes[0]))


def weight(module: nn.Module) -> Tensor:
    """A matrix as (out, in), whichever way its module keeps it; a view of it."""
    value: Tensor = module.weight.data
    return value.T if type(module).__name__ == "Conv1D" else value
