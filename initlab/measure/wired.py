"""From how a model was found to be wired to rows of the table `wiring`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from initlab.anatomy.look import Anatomy
from initlab.wiring import MLP, Attention, Block, Branch, Norm, Update, Wiring, reads_another

# classes that say what they are trained on; of others nothing is known
_NEXT_TOKEN = re.compile(r"CausalLM|(?<!X)GPT|DoubleHeads")
_WRITING = re.compile(r"ConditionalGeneration|Seq2SeqLM|Speech2Text")
_TASK = re.compile(r"For[A-Z]|Masked|MLM")
_ELSE = re.compile(rf"{_TASK.pattern}|[Bb](ert|ERT)|Encoder|[Dd]iffusion|Denois|ViT|Vision|Classif|XLNet|XLM|Flaubert")

# names of what would tell positions apart, or of an option for it
_POSITIONS = re.compile(
    r"(use_|with_|has_)?(pe|wpe|rope|alibi|(pos|positional|position|rotary)s?(_?(emb(ed(ding)?)?|encoding|table)s?)?(_type)?)"
)


def wiring_rows(keys: dict[str, Any], anatomy: Anatomy) -> list[dict[str, Any]]:
    """Make a row for each branch of each block, and one for a block in which none was found.

    Args:
        keys: the cell's key columns; the step isn't one of this table.
        anatomy: of the model.
    """
    shared = {name: value for name, value in keys.items() if name != "step"} | {
        "aim": aim_of(anatomy.model, anatomy.seen),
        "placeless": placeless(anatomy.model),
    }
    rows = []
    for number, wiring in enumerate(anatomy.seen):
        stack = shared | {"stack": number} | _of_stack(wiring)
        for block in wiring.blocks:
            place = stack | {
                "layer": block.layer,
                "block": block.name,
                "note": block.note,
                "frozen": _frozen(anatomy.model, block.name),
            }
            rows += [place | row for row in _of_block(block)]
    return rows


def placeless(model: nn.Module) -> str:
    """Name what of a model says that it has no positions: an option that is off, as `GPT.pos is None`.

    Args:
        model: any.

    Returns:
        empty where nothing says so, or another such option, or what it makes, is there.
    """
    said = ""
    for module in model.modules():
        held = vars(module)
        own = held | held["_modules"] | held["_buffers"] | held["_parameters"]
        for where, found in (("", own), (".config", getattr(held.get("config"), "__dict__", {}))):
            for name, value in found.items():
                if not _POSITIONS.fullmatch(name):
                    continue
                if value is None or value is False or value in ("none", "nope"):
                    said = said or f"{type(module).__name__}{where}.{name} is {value}"
                elif value is True or isinstance(value, str | nn.Module | Tensor):
                    return ""
    return said


def aim_of(model: nn.Module, wirings: Sequence[Wiring] = ()) -> str | None:
    """Read from the name of a model's class what it is trained on: next-token, else, or nothing.

    Args:
        model: any.
        wirings: of its stacks. One that reads another's last state, in a class that generates, writes token by token,
            and so does one that begins with tokens and ends in a head.
    """
    name = type(model).__name__
    if _WRITING.search(name) and reads_another(wirings):
        return "next-token"
    if _NEXT_TOKEN.search(name):
        return "next-token"
    writes = not _TASK.search(name) and any(
        each.head is not None and any(term.kind == "token" for term in each.terms or ())
        for each in wirings
        if reads_another([each])
    )
    if writes:
        return "next-token"
    return "else" if _ELSE.search(name) else None


def _of_stack(wiring: Wiring) -> dict[str, Any]:
    return {
        "terms": " ".join(term.kind for term in wiring.terms or () if term.square != 0),
        "embed_norm": _module(wiring.embed_norm),
        "final_norm": _module(wiring.final_norm),
        "head": wiring.head.weight if wiring.head is not None else "",
        "head_module": wiring.head.module if wiring.head is not None else "",
        "tied": int(wiring.tied),
        "logit_scale": wiring.logit_scale,
        "logit_cap": wiring.logit_cap,
    }


def _of_block(block: Block) -> Iterator[dict[str, Any]]:
    if block.note and not any(update.keep == 0 for update in block.updates):
        yield {"kind": "unfollowed"}
        return
    for number, update in enumerate(block.updates):
        for branch in update.branches:
            yield {"update": number} | _of_branch(update, branch)


def _of_branch(update: Update, branch: Branch) -> dict[str, Any]:
    row = {
        "site": branch.site,
        "module": branch.module,
        "kind": "unknown",
        "norm": _module(branch.norm),
        "post_norm": _module(branch.post),
        "sum_norm": _module(update.norm),
        "keep": update.keep,
        "scale": branch.scale,
        "gain": branch.gain or "",
        "detached": int(branch.detached),
        "dropout": max(branch.dropout, branch.body.dropout if isinstance(branch.body, Attention) else 0.0),
        "turned": " ".join(branch.turned),
    }
    body = branch.body
    if isinstance(body, Attention):
        return row | {
            "kind": "attention",
            "query": body.query.weight,
            "key": body.key.weight,
            "causal": int(body.causal),
            "window": body.window,
            "score_scale": body.score_scale,
            "head_size": body.head_size,
            "n_head": body.n_head,
            "n_kv_head": body.n_kv_head,
            "rotary": int(body.rotary),
            "bias": int(body.bias),
            "qk_norm": _module(body.query_norm),
            "soft_cap": body.soft_cap,
            "cross": body.cross,
            "crossed": " ".join(body.crossed),
        }
    if isinstance(body, MLP):
        activation = body.activation if isinstance(body.activation, str) else "function"
        return row | {
            "kind": "mlp",
            "activation": activation,
            "gated": int(body.gate is not None),
            "up": body.up.weight,
        }
    if branch.experts:
        return row | {"kind": "experts"} | _of_experts([each for each in branch.experts if each is not None])
    return row


def _of_experts(known: Sequence[MLP]) -> dict[str, Any]:
    """What the MLPs of a mixture have in common; of its activations the one that is none, if there is one."""
    if not known:
        return {}
    names = [each.activation if isinstance(each.activation, str) else "function" for each in known]
    plain = names.index("identity") if "identity" in names else 0
    return {"activation": names[plain], "gated": int(known[plain].gate is not None), "up": known[plain].up.weight}


def _module(norm: Norm | None) -> str:
    """What a norm is called; one without a module of its own is there too."""
    return "" if norm is None else norm.module or "(the model itself)"


def _frozen(model: nn.Module, block: str) -> float:
    """Share of a block's parameters that aren't trained; 0 of what is no module."""
    try:
        parameters = list(model.get_submodule(block).parameters()) if block else []
    except AttributeError:
        return 0.0
    total = sum(parameter.numel() for parameter in parameters)
    return sum(p.numel() for p in parameters if not p.requires_grad) / total if total else 0.0
