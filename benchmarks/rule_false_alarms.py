"""Which rules fire on healthy fresh models: nanoGPT's own sizes, and Hugging Face's inits at three widths.

    python benchmarks/rule_false_alarms.py [--write] [--seeds 3] [--only gpt2 llama]

A row is one model at one size; its columns are the codes that fired, by severity, and in how many of the seeds.
Each model is as its library initialises it, in eval mode, and probed with no configuration. --write keeps the table
beside this file.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import initlab
from initlab.judge.rules.selecting import judged_by

NANOGPT = ((64, 4), (128, 4), (192, 12), (384, 6), (384, 24), (768, 12))  # n_embd, n_layer
# d, blocks: tiny, medium, and the usual width
SIZES = ((64, 4), (256, 6), (768, 8))
VOCAB = 32768


def nanogpt(d: int, blocks: int) -> nn.Module:
    return initlab.NanoGPT(
        initlab.NanoGPTConfig(n_layer=blocks, n_head=d // 64, n_embd=d, block_size=256, vocab_size=256)
    )


def llama_like(name: str, d: int, blocks: int, **more: Any) -> nn.Module:
    """A model whose config has Llama's names for sizes."""
    config = transformers.AutoConfig.for_model(
        name,
        hidden_size=d,
        intermediate_size=4 * d,
        num_hidden_layers=blocks,
        num_attention_heads=max(d // 64, 2),
        vocab_size=VOCAB,
        max_position_embeddings=1024,
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **more},
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def gpt2(d: int, blocks: int) -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=d, n_layer=blocks, n_head=max(d // 64, 2), vocab_size=VOCAB, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def gpt_neo(d: int, blocks: int) -> nn.Module:
    config = transformers.GPTNeoConfig(
        hidden_size=d, num_layers=blocks, num_heads=max(d // 64, 2), vocab_size=VOCAB, bos_token_id=1, eos_token_id=2,
        attention_types=[[["global", "local"], blocks // 2]],
    )  # fmt: skip
    return transformers.GPTNeoForCausalLM(config)


def bloom(d: int, blocks: int) -> nn.Module:
    config = transformers.BloomConfig(hidden_size=d, n_layer=blocks, n_head=max(d // 64, 2), vocab_size=VOCAB)
    return transformers.BloomForCausalLM(config)


def opt(d: int, blocks: int) -> nn.Module:
    return llama_like("opt", d, blocks, ffn_dim=4 * d, word_embed_proj_dim=d)


def t5(d: int, blocks: int) -> nn.Module:
    config = transformers.T5Config(
        d_model=d, d_ff=4 * d, d_kv=min(64, d // 2), num_layers=blocks, num_heads=max(d // 64, 2), vocab_size=VOCAB,
        decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


HEAD = {"head_dim": 32}
MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "gpt2": gpt2,
    "llama": partial(llama_like, "llama"),
    "bert": partial(llama_like, "bert", is_decoder=True),
    "roberta": partial(llama_like, "roberta", is_decoder=True),
    "opt": opt,
    "gpt_neo": gpt_neo,
    "gpt_neox": partial(llama_like, "gpt_neox"),
    "bloom": bloom,
    "mistral": partial(llama_like, "mistral", num_key_value_heads=2),
    "mixtral": partial(llama_like, "mixtral", num_key_value_heads=2, num_local_experts=4),
    "qwen2": partial(llama_like, "qwen2", num_key_value_heads=2),
    "qwen3": partial(llama_like, "qwen3", num_key_value_heads=2, **HEAD),
    "gemma": partial(llama_like, "gemma", num_key_value_heads=1, **HEAD),
    "gemma2": partial(llama_like, "gemma2", num_key_value_heads=1, **HEAD),
    "phi": partial(llama_like, "phi"),
    "olmo2": partial(llama_like, "olmo2"),
    "t5": t5,
}


def cells(only: list[str]) -> Iterator[tuple[str, int, int, Callable[[int, int], nn.Module]]]:
    if not only or "nanogpt" in only:
        for d, blocks in NANOGPT:
            yield "nanogpt", d, blocks, nanogpt
    for name, make in MODELS.items():
        if not only or name in only:
            for d, blocks in SIZES:
                yield name, d, blocks, make


def fired(make: Callable[[int, int], nn.Module], d: int, blocks: int, seeds: int) -> dict[str, Counter[str]]:
    """severity -> code -> seeds in which it fired."""
    found: dict[str, Counter[str]] = {"error": Counter(), "warning": Counter(), "info": Counter(), "applies": Counter()}
    for seed in range(seeds):
        torch.manual_seed(seed)
        result = initlab.probe(make(d, blocks).eval(), seed=seed)
        for finding in result.findings:
            if finding.status == "fail":
                found[finding.severity][finding.code] += 1
                print(f"    seed {seed} {finding.severity} {finding.code}: {finding.message}", flush=True)
            found["applies"][finding.code] += finding.status != "not_applicable"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="MODEL")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into rule_false_alarms.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    started, lines, totals = time.perf_counter(), [], Counter[str]()
    for name, d, blocks, make in cells(options.only):
        print(f"{name} {blocks} x {d}", flush=True)
        found = fired(make, d, blocks, options.seeds)
        texts = [
            ", ".join(f"{code} ({n}/{options.seeds})" for code, n in sorted(found[severity].items())) or "-"
            for severity in ("error", "warning", "info")
        ]
        totals.update({severity: int(bool(found[severity])) for severity in found})
        applied = sum(count > 0 for count in found["applies"].values())
        lines.append(f"| {name} | {blocks} | {d} | {applied} | {' | '.join(texts)} |")
    head = [
        f"# Rules that fire on healthy fresh models, transformers {transformers.__version__}",
        "",
        f"`python benchmarks/rule_false_alarms.py --seeds {options.seeds}` · torch {torch.__version__} · "
        f"{time.perf_counter() - started:.0f} s",
        "",
        f"Of {len(lines)} models {totals['error']} have an error, {totals['warning']} a warning, {totals['info']} a "
        f"note, in some seed. {judged_by()}",
        "",
        "| model | n_layer | n_embd | rules that apply | errors | warnings | notes |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    text = "\n".join([*head, *lines]) + "\n"
    print(text)
    if options.write:
        Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
