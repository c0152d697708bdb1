"""Probe every causal language model of the installed transformers, with no configuration, and write one table.

    python examples/audit_transformers.py --out reports/transformers-audit
    python examples/audit_transformers.py --out audit --only llama mamba2
    python examples/audit_transformers.py --out audit --task seq2seq   # classes that discovery wasn't written with

Each class is built from a tiny random config (nothing is downloaded), its own forward and backward are run, then
`initlab.probe(model)`. The table says which were reached, which stream was found and proved, and what the probe found.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pandas as pd
import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import initlab
from initlab.anatomy.source import depth_code

TASKS = {
    "causal": ("causal language models", modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "masked": ("masked language models", modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "seq2seq": ("sequence-to-sequence language models", modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
}

LIMIT = 240  # seconds for one class
LAYERS, VOCAB = 3, 512

# What makes a config small, by the names that configs use. Only names that a config has are passed on.
SMALL: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "embedding_size", "dim_model", "adapter_in_dim"), 64
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"), LAYERS),
    **dict.fromkeys(("decoder_layers", "num_encoder_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "swa_head_dim", "global_head_dim", "kv_channels"), 16),
    **dict.fromkeys(("v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "swa_v_head_dim", "dim_head"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "encoder_ffn_dim"), 128),
    **dict.fromkeys(("decoder_ffn_dim", "dim_ff", "d_inner", "shared_intermediate_size"), 128),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size_mlp"), 64),
    **dict.fromkeys(("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_selected_experts", "moe_k", "moe_topk", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "index_head_dim"), 32),
    **dict.fromkeys(
        ("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size", "n_tokens", "encoder_hash_byte_group_vocab"),
        VOCAB,
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"), 64),
    **dict.fromkeys(("max_target_positions", "max_source_positions", "context_length", "max_length"), 64),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "local_window_size", "attention_window_size"), 32),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("linear_num_key_heads", "index_n_heads", "num_memory_blocks"), 2),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 32),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "mamba_expand", "expand"), None),
    **dict.fromkeys(("lru_width", "attention_hidden_size", "conv_dim", "block_dim"), 64),
    **dict.fromkeys(("hidden_size_per_layer_input", "per_layer_input_dim", "laurel_rank", "adapter_rank"), 16),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups", "attn_layer_offset", "expert_layer_offset"), 1),
    **dict.fromkeys(("attn_layer_period", "expert_layer_period"), 2),
    "default_language": "en_XX",
    "rotary_dim": 8,
    "mamba_d_ssm": 128,
    "mamba_chunk_size": 16,
    "chunk_size": 16,
    "index_topk": 8,
    "num_nextn_predict_layers": 0,
    "num_kv_shared_layers": 0,
    "word_embed_proj_dim": 64,
    "patch_size": 8,
    "image_size": 32,
    "use_mamba_kernels": False,
}
SMALL = {name: value for name, value in SMALL.items() if value is not None}

# Tried in turn until a model is built and back-propagates.
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4, "num_kv_heads": 4},
    {"head_dim": None, "attention_head_dim": None},  # None: leave it to the config
    {"head_dim": 32, "n_mamba_heads": 2, "mamba_num_heads": 8, "mamba_n_heads": 8, "mamba_d_head": 16, "d_inner": None},
    {"intermediate_size": 64, "chunk_size": None, "v_head_dim": None, "qk_nope_head_dim": None},
    {"num_experts_per_tok": 1, "num_key_value_heads": 4},
    {name: None for name in SMALL if "head" in name and not name.endswith("heads")},
    {"num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "n_group": None, "topk_group": None},
)
EXTRA: tuple[dict[str, Any], ...] = ({}, {"is_decoder": True, "is_encoder_decoder": False})


class TooSlow(BaseException):  # not an Exception, so that nothing on the way takes it for a model's error
    """One class took longer than its limit."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("transformers-audit"))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="model types, as AutoConfig names them")
    parser.add_argument("--task", choices=TASKS, default="causal", help="which of transformers' lists (causal)")
    parser.add_argument("--limit", type=int, help="the first N entries alone")
    parser.add_argument("--seconds", type=int, default=LIMIT, help="limit for one class")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    kind, mapping = TASKS[args.task]
    names = list(mapping.items())
    names = [entry for entry in names if not args.only or entry[0] in args.only][: args.limit]
    started, rows = time.perf_counter(), []
    for number, (model_type, class_name) in enumerate(names, 1):
        row = audit(model_type, class_name if isinstance(class_name, str) else class_name[0], args.seconds)
        rows.append(row)
        print(f"{number}/{len(names)} {line(row)}", file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "audit.csv", index=False)
    text = summary(table, kind, time.perf_counter() - started)
    (args.out / "audit.md").write_text(text, encoding="utf-8")
    print(text.split("\n## ")[0])


def audit(model_type: str, class_name: str, seconds: int) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {
        "model_type": model_type, "class": class_name, "built": "", "runs": "", "probed": "", "stacks": 0, "blocks": 0,
        "verified": 0.0, "multipliers": "", "errors": "", "warnings": "", "error_text": "",
        "initializer_range": "", "matrix_std": "",
        "out_std": "", "depth_scaling": "", "off_range": "", "describe_init": "", "notes": "", "seconds": 0.0,
    }  # fmt: skip
    started = time.perf_counter()
    try:
        with time_limit(seconds):
            model = build(model_type, class_name, row)
            if row["runs"] == "yes":
                probe(model, row)
    except TooSlow:
        stage = next(name for name in ("built", "runs", "probed") if row[name] != "yes")
        row[stage] = f"more than {seconds} s"
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def build(model_type: str, class_name: str, row: dict[str, Any]) -> Any:
    """The first tiny model of the class that runs forward and backward; else the last that was built, or None."""
    cls, model = getattr(transformers, class_name), None
    for variant in VARIANTS:
        for extra in EXTRA:
            try:
                torch.manual_seed(0)
                candidate = cls(tiny_config(model_type, cls.config_class, {**SMALL, **variant}, extra))
            except TooSlow:
                raise
            except Exception as error:
                row["built"] = row["built"] or short(error)
                continue
            model, row["built"] = candidate, "yes"
            try:
                run(candidate)
            except TooSlow:
                raise
            except Exception as error:
                row["runs"] = row["runs"] or short(error)
                continue
            row["runs"] = "yes"
            torch.manual_seed(0)
            return model
    return model


def tiny_config(model_type: str, wanted: type, small: dict[str, Any], extra: dict[str, Any]) -> Any:
    """The config class's defaults with every size replaced, in sub-configs too."""
    config = shrink(CONFIG_MAPPING[model_type](), small, extra)
    parts = [config, *(part for part in vars(config).values() if isinstance(part, transformers.PretrainedConfig))]
    return next((part for part in parts if isinstance(part, wanted)), config)


def shrink(config: Any, small: dict[str, Any], extra: dict[str, Any]) -> Any:
    """A config of the same class with the small sizes."""
    cls = type(config)
    values: dict[str, Any] = {}
    depth = next((d for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
                  if isinstance(d := getattr(config, name, None), int)), 0)  # fmt: skip
    for name, value in vars(config).items():
        if isinstance(value, transformers.PretrainedConfig):
            values[name] = shrink(value, small, extra)
        elif name in extra:
            values[name] = extra[name]
        elif name in small and small[name] is not None and isinstance(value, int | None):
            values[name] = small[name]
        elif name.endswith("token_id") and isinstance(value, int) and value >= VOCAB and not special(name):
            values[name] = 1 + len(values) % 8
        elif name == "attn_layer_indices":
            values[name] = [1]
        elif name.endswith("token_id") and isinstance(value, list):
            values[name] = 1
        elif isinstance(value, list) and depth and len(value) == depth and not name.startswith("_"):
            values[name] = spread(value)
    return cls(**values)


def special(name: str) -> bool:
    """Ids that stand for pictures and sounds must not be met in a text."""
    return any(word in name for word in ("image", "audio", "video", "vision"))


def spread(values: list[Any]) -> list[Any]:
    """LAYERS of a list with one entry per layer, every kind of layer among them if they fit."""
    kinds = list({str(value): value for value in values}.values())
    if kinds == ["mamba"]:
        kinds.append("attention")
    return [kinds[place % len(kinds)] for place in range(LAYERS)]


def run(model: Any) -> None:
    """The model's own forward and backward, without initlab."""
    ids = torch.randint(16, VOCAB, (2, 32), generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {"input_ids": ids}
    if "use_cache" in signature(model):
        given["use_cache"] = False
    if "decoder_input_ids" in signature(model) and getattr(model.config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = ids
    logits = model(**given).logits
    if not torch.isfinite(logits).all():
        raise ValueError("logits aren't finite")
    torch.nn.functional.cross_entropy(logits.float().flatten(0, -2), ids.flatten()).backward()
    model.zero_grad(set_to_none=True)


def signature(model: Any) -> set[str]:
    """Names of the forward's arguments."""
    return set(inspect.signature(model.forward).parameters)


def probe(model: Any, row: dict[str, Any]) -> None:
    """Probe with no configuration; what was found goes into the row."""
    try:
        found = initlab.probe(model)
    except TooSlow:
        raise
    except Exception as error:
        row["probed"] = short(error)
        return
    row["probed"] = "yes"
    notes = [str(note) for note in found.coverage.loc[found.coverage["site"] == "model", "note"]]
    stacks = [
        m for note in notes if (m := re.search(r"(\d+) blocks?, stream reproduced from its writes in (\d+)", note))
    ]
    blocks, verified = (sum(int(m[group]) for m in stacks) for group in (1, 2))
    if str(found.summary["mode"].iloc[0]) and not stacks and found.summary["n_head"].iloc[0]:
        blocks = verified = int(found.summary["n_layer"].iloc[0])  # nanoGPT's own layout is known by heart
    scales = [m[1] for note in notes if (m := re.search(r"writes scaled by (.*)", note))]
    failed = [finding for finding in found.findings if finding.status == "fail"]
    row.update(
        stacks=len(stacks), blocks=blocks, verified=round(verified / blocks, 3) if blocks else 0.0,
        multipliers="; ".join(scales), errors=codes(failed, "error"),
        error_text="; ".join(f.message for f in failed if f.severity == "error")[:200],
        warnings=codes(failed, "warning"),
        notes="; ".join(note for note in notes if "stream reproduced" not in note)[:300],
    )  # fmt: skip
    declared(model, found, row)


def codes(findings: list[Any], severity: str) -> str:
    """Codes of the failed findings of one severity."""
    return " ".join(sorted({finding.code for finding in findings if str(finding.severity) == severity}))


def declared(model: Any, found: Any, row: dict[str, Any]) -> None:
    """What the class's code and config say of its init, beside what was drawn."""
    weights = found.records[found.records["kind"] == "weight"]
    for column, roles in (
        ("matrix_std", ("attn_qkv", "mlp_in", "mlp_gate")),
        ("out_std", ("attn_out", "mlp_out")),
    ):
        stds = weights.loc[weights["role"].isin(roles), "std"]
        row[column] = "–".join(sorted({f"{stds.min():.4f}", f"{stds.max():.4f}"})) if len(stds) else ""
    row["describe_init"] = "; ".join(initlab.describe_init(model).mismatches)[:300]
    config = model.config.get_text_config()
    std = getattr(config, "initializer_range", None)
    row["initializer_range"] = "" if std is None else std
    if not isinstance(std, float) or std <= 0:
        return
    parameters = dict(model.named_parameters())
    stds = dict(zip(weights["module"], weights["std"], strict=True))
    if code := depth_code(model):
        outputs = {name: stds[name] for name in weights.loc[weights["role"].isin(["attn_out", "mlp_out"]), "module"]}
        scaled = [name for name, value in outputs.items() if value < 0.75 * std]
        plain = sorted({re.sub(r"\d+", "*", name) for name in outputs.keys() - set(scaled)})
        row["depth_scaling"] = f"{code}: {len(scaled)} of {len(outputs)} output projections scaled"
        row["depth_scaling"] += f", not {', '.join(plain)}" if plain else ""
    # of matrices alone: biases, norms and gains have inits of their own
    off = {
        re.sub(r"\d+", "*", name): f"{value:.3g}"
        for name, value in stds.items()
        if parameters[name].dim() > 1 and parameters[name].numel() >= 1024 and value > 2 * std
    }
    row["off_range"] = "; ".join(f"{name} {value}" for name, value in off.items())[:400]


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TooSlow after so many seconds."""

    def stop(*_: Any) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def short(error: Exception) -> str:
    """An error in one line."""
    return re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:200]


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    stage = next((name for name in ("built", "runs", "probed") if row[name] != "yes"), "")
    if stage:
        return f"{row['model_type']}: {stage}: {row[stage]}"
    share = f"{row['verified']:.0%} of {row['blocks']} blocks verified"
    return f"{row['model_type']}: {share}, errors [{row['errors']}] warnings [{row['warnings']}], {row['seconds']} s"


def summary(table: pd.DataFrame, kind: str, seconds: float) -> str:
    """The Markdown page."""
    reached = table[table["runs"] == "yes"]
    probed = reached[reached["probed"] == "yes"]
    whole = probed[probed["verified"] == 1]
    command = " ".join(["python", *sys.argv])
    count = max(len(reached), 1)
    head = [
        f"# Audit of the {kind} of transformers {transformers.__version__}",
        "",
        f"`{command}` · torch {torch.__version__} · initlab {initlab.__version__} · {seconds:.0f} s",
        "",
        f"- entries: {len(table)}",
        f"- built: {(table['built'] == 'yes').sum()}",
        f"- own forward and backward run (reached): {len(reached)}",
        f"- probed with no configuration: {len(probed)} ({len(probed) / count:.1%} of the reached)",
        f"- every block's residual decomposition verified: {len(whole)} ({len(whole) / count:.1%} of the reached)",
        f"- some block verified: {(probed['verified'] > 0).sum()}",
        f"- with an error-level finding: {(probed['errors'] != '').sum()}",
        "",
    ]
    parts = (
        ("Not reached", table[table["runs"] != "yes"], ["model_type", "built", "runs"]),
        ("Reached, not probed", reached[reached["probed"] != "yes"], ["model_type", "probed"]),
        (
            "Probed, not every block verified",
            probed[probed["verified"] < 1],
            ["model_type", "blocks", "verified", "notes"],
        ),
        (
            "Depth scaling that the class's own code declares",
            probed[probed["depth_scaling"] != ""],
            ["model_type", "initializer_range", "out_std", "depth_scaling"],
        ),
        (
            "Matrices drawn at more than twice the config's initializer_range",
            probed[probed["off_range"] != ""],
            ["model_type", "initializer_range", "off_range"],
        ),
        ("Error-level findings", probed[probed["errors"] != ""], ["model_type", "errors", "error_text"]),
        (
            "Probed",
            probed,
            ["model_type", "class", "stacks", "blocks", "verified", "multipliers", "warnings", "seconds"],
        ),
    )
    for title, rows, columns in parts:
        head += [f"## {title} ({len(rows)})", "", markdown(rows[columns]), ""]
    return "\n".join(head)


def markdown(rows: pd.DataFrame) -> str:
    """A table in Markdown."""
    cells = [list(rows.columns), ["---"] * len(rows.columns), *rows.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in cells)


if __name__ == "__main__":
    main()
