"""Planted faults of the wiring, of what init code does, and of what a model does with its batch."""

from __future__ import annotations
import __future__

import inspect
import sys
import textwrap
from types import MethodType
from typing import Any

import torch
from detection_bases import Subject
from detection_faults import (
    NotHere,
    Planted,
    changed,
    depth_scaled,
    fault,
    in_all,
    in_block,
    matrices,
    need,
    of_branch,
    times,
)
from torch import Tensor, nn
from torch.nn import functional as F


def edit(module: nn.Module, old: str, new: str) -> None:
    """Replace the last place of a text in the forward of one module, as a commit would.

    Args:
        module: whose `forward` becomes another; its class stays.
        old: text that is there.
        new: in its place.

    Raises:
        NotHere: the text isn't there.
    """
    forward = inspect.unwrap(type(module).forward)
    source = textwrap.dedent(inspect.getsource(forward))
    source = source[source.index("def forward") :]
    before, found, after = source.rpartition(old)
    if not found:
        raise NotHere(f"no {old!r} in {type(module).__name__}.forward")
    names = vars(sys.modules[type(module).__module__]) | {"F": F, "torch": torch}
    space: dict[str, Any] = {}
    code = compile(before + new + after, forward.__code__.co_filename, "exec", __future__.annotations.compiler_flag)
    exec(code, names, space)
    module.forward = MethodType(space["forward"], module)


def line(subject: Subject, module: nn.Module, what: str, *values: Any) -> None:
    """Edit the line of a base that does something.

    Args:
        subject: whose `lines` say how.
        module: whose forward holds it.
        what: key of `lines`.
        values: for the new text.
    """
    old, new = need(subject.lines.get(what))
    edit(module, old, new.format(*values))


def wrapped(module: nn.Module, change: Any) -> None:
    """Change what a module gives; of a tuple, its first."""
    forward = module.forward

    def changed_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = forward(*args, **kwargs)
        return (change(given[0]), *given[1:]) if isinstance(given, tuple) else change(given)

    module.forward = MethodType(changed_forward, module)


RESIDUAL = r"residual|skip|added|stream"


@fault("residual missing, one MLP", "wiring", RESIDUAL)
def _(s: Subject) -> Planted:
    line(s, s.blocks[s.odd].adds, "adds", "")
    return Planted(in_block(s, s.odd))


@fault("residual missing, all MLPs", "wiring", RESIDUAL)
def _(s: Subject) -> Planted:
    for block in s.blocks:
        line(s, block.adds, "adds", "")
    return Planted(of_branch(s, "mlp"))


@fault("residual doubled, one MLP", "wiring", RESIDUAL + r"|twice|doubled|2×")
def _(s: Subject) -> Planted:
    line(s, s.blocks[s.odd].adds, "adds", f"{s.stream} + {s.stream} + ")
    return Planted(in_block(s, s.odd))


@fault("residual × 0.1, one MLP", "wiring", RESIDUAL + r"|scaled|multipl|0\.1")
def _(s: Subject) -> Planted:
    line(s, s.blocks[s.odd].adds, "adds", f"0.1 * {s.stream} + ")
    return Planted(in_block(s, s.odd))


@fault("norm missing, one block", "wiring", "norm")
def _(s: Subject) -> Planted:
    setattr(*s.blocks[s.odd].norms[1], nn.Identity())
    return Planted(in_block(s, s.odd))


@fault("norm missing before the head", "wiring", "norm")
def _(s: Subject) -> Planted:
    setattr(*need(s.final), nn.Identity())
    return Planted("final|head|logits|last")


@fault("activation missing", "wiring", r"activation|nonlinear|linear")
def _(s: Subject) -> Planted:
    for block in s.blocks:
        setattr(*need(block.act), nn.Identity())
    return Planted(of_branch(s, "mlp"))


@fault("MLP of one block not called", "wiring", r"unused|used in|not called|gradient|no MLP|lacks")
def _(s: Subject) -> Planted:
    line(s, s.blocks[s.odd].module, "no mlp")
    return Planted(in_block(s, s.odd))


@fault("loop calls block 0 every time", "wiring", r"unused|used in|not called|gradient|once|again")
def _(s: Subject) -> Planted:
    line(s, s.model, "loop")
    return Planted(in_block(s, 1))


@fault("MLP of one block detached", "wiring", r"detach|gradient")
def _(s: Subject) -> Planted:
    wrapped(s.blocks[s.odd].mlp, lambda given: given.detach())
    return Planted(in_block(s, s.odd))


@fault("one block frozen", "wiring", r"requires_grad|frozen|train")
def _(s: Subject) -> Planted:
    for parameter in s.blocks[s.odd].module.parameters():
        parameter.requires_grad_(False)
    return Planted(in_block(s, s.odd))


SCALE = r"scale|head_size|√d|1/√|multipl"


def _score(s: Subject, factor: float) -> Planted:
    for block in s.blocks:
        if "score" in s.lines:
            line(s, block.attention, "score", factor)
        else:
            name = "scaling" if s.library else "scale"
            setattr(block.attention, name, factor)
    return Planted(of_branch(s, "attention") + "|logits")


@fault("attention scale missing", "attention", SCALE, harm="mild")
def _(s: Subject) -> Planted:
    need(s.base != "t5")  # whose init holds the scale
    return _score(s, 1.0)


@fault("attention scale applied twice", "attention", SCALE, harm="benign")  # muP's 1/d is as small
def _(s: Subject) -> Planted:
    need(s.base != "t5")
    return _score(s, 1 / s.head_size)


@fault("causal mask missing", "attention", r"mask|causal|later|future")
def _(s: Subject) -> Planted:
    need(s.causal)
    for block in s.blocks:
        if not s.library:
            line(s, block.attention, "mask")
            continue
        attention, key = block.attention, "mask" if s.base == "t5" else "attention_mask"
        attention.is_causal = False

        def unmasked(self: nn.Module, *args: Any, _old: Any = attention.forward, _key: str = key, **more: Any) -> Any:
            return _old(*args, **(more | {_key: None}))

        if s.base == "gpt2":
            need("attention_mask" in inspect.signature(attention.forward).parameters)
        attention.forward = MethodType(unmasked, attention)
    return Planted(of_branch(s, "attention") + "|mask")


@fault("heads joined without transposing back", "attention", r"transpos|position|later|token|reshape|view|order|mix")
def _(s: Subject) -> Planted:
    for block in s.blocks:
        line(s, block.attention, "heads")
    return Planted(of_branch(s, "attention"))


@fault("no positions", "behaviour", r"position|wpe|rotary|order", harm="mild")  # causal models learn without, later
def _(s: Subject) -> Planted:
    rotary = getattr(getattr(s.model, "model", None), "rotary_emb", None)
    if s.position is not None:
        wrapped(s.position, torch.zeros_like)
    elif rotary is not None:
        forward = rotary.forward
        rotary.forward = lambda *args, **more: tuple(
            fill(each) for fill, each in zip((torch.ones_like, torch.zeros_like), forward(*args, **more), strict=True)
        )
    else:
        for block in s.blocks:
            line(s, block.attention, "rotation")
    return Planted(r"position|embed|rotary|wpe|attention|logits|model")


@fault("loss of the token that is read", "behaviour", r"shift|target|next|own token|reads|label")
def _(s: Subject) -> Planted:
    need(s.causal and s.base != "t5")
    if not s.library:
        line(s, s.model, "targets")
    else:
        s.model.loss_function = _unshifted
    return Planted(r"loss|target|label|logits")


def _unshifted(logits: Tensor, labels: Tensor, *_: Any, **__: Any) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


@fault("batch and sequence swapped in attention", "behaviour", r"batch|sample|transpos|later|causal")
def _(s: Subject) -> Planted:
    need(not s.library)
    for block in s.blocks:
        forward = block.attention.forward
        block.attention.forward = lambda x, _old=forward: _old(x.transpose(0, 1)).transpose(0, 1)
    return Planted(of_branch(s, "attention") + "|logits|batch|sample")


@fault("MLP centred over the batch", "behaviour", r"batch|sample|sequences")
def _(s: Subject) -> Planted:
    need(s.base != "mixtral")
    wrapped(s.blocks[s.odd].mlp, lambda given: given - given.mean(0, keepdim=True))
    return Planted(in_block(s, s.odd) + "|logits|batch|sample")


@fault("dropout that eval doesn't stop", "behaviour", r"random|determin|dropout|same batch|eval")
def _(s: Subject) -> Planted:
    s.model.eval()
    wrapped(s.blocks[s.odd].mlp, lambda given: F.dropout(given, 0.1))
    return Planted(in_block(s, s.odd) + "|logits|eval|dropout|model")


# Of what init code does, and of what the config says


@fault(
    "a matrix that no line writes",
    "init code",
    r"never|not written|no line|uninitiali[sz]ed|empty|skipped",
    traced=True,
)
def _(s: Subject) -> Planted:
    module = s.blocks[s.odd].matrices["o"]
    name = s.names[id(module.weight)]
    module.weight = nn.Parameter(torch.empty(module.weight.shape))
    return Planted(name.replace(".", r"\."))


OVER = r"drawn over|overwr|undo|again|twice|special|depth"


@fault("blanket init after a special one", "init code", OVER, traced=True)
def _(s: Subject) -> Planted:
    gates = [block.module.adaLN_modulation[1].weight for block in s.blocks] if s.base == "dit" else []
    names = tuple(s.names[id(each)] for each in gates or depth_scaled(s))

    def normal(module: nn.Module) -> None:
        if hasattr(module, "weight") and module.weight is not None and module.weight.dim() == 2:
            nn.init.normal_(module.weight, 0.0, 0.02)

    s.model.apply(normal)
    place = "adaLN|modulation" if s.base == "dit" else in_all(s, "o", "down")
    return Planted(place, names, None if s.base != "dit" else _zero(names))


def _zero(names: tuple[str, ...]) -> Any:
    return lambda model: all(not dict(model.named_parameters())[name].detach().any() for name in names)


@fault("tie lost though the config says tied", "init code", r"\bti(e|ed)\b")
def _(s: Subject) -> Planted:
    need(s.token is not None and s.token.weight is s.head.weight and hasattr(s.model, "config"))
    s.head.weight = nn.Parameter(torch.randn_like(s.head.weight) * s.head.weight.detach().std())
    return Planted("head|tied|unembed|embed")


@fault("declared std lost", "init code", r"initializer_range|declared|config")
def _(s: Subject) -> Planted:
    need(hasattr(getattr(s.model, "config", None), "initializer_range") and s.base != "t5")
    names = changed(s, matrices(s.blocks), times(4))
    return Planted(in_all(s, "qkv", "q", "k", "v", "o", "up", "gate", "down"), names)


@fault("embedding multiplier lost", "init code", r"multipl|scale_embedding|√|sqrt|embed")
def _(s: Subject) -> Planted:
    need(s.base == "gemma2")
    s.token.embed_scale = torch.ones_like(s.token.embed_scale)
    return Planted("embed")


@fault("one block in every place", "init code", r"same|shared|once|twice|again|one block|times", harm="mild")  # ALBERT
def _(s: Subject) -> Planted:
    need(s.base != "t5")  # of whose blocks the first differs
    path, _, _ = s.blocks[0].name.rpartition(".")
    stack = s.model.get_submodule(path)
    for place in range(1, len(stack)):
        stack[place] = stack[0]
    return Planted(in_block(s, 0) + "|blocks|layers")


@fault("router biased to two experts", "attention", r"router|expert|gate")
def _(s: Subject) -> Planted:
    for block in s.blocks:
        router = need(getattr(block.mlp, "gate", None))

        def biased(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits = F.linear(x.reshape(-1, self.hidden_dim), self.weight) + torch.tensor([20.0, 10, 0, 0])
            values, chosen = logits.softmax(-1).topk(2, -1)
            return logits, values / values.sum(-1, keepdim=True), chosen

        router.forward = MethodType(biased, router)
    return Planted("router|gate|expert")
