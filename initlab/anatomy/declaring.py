"""What a model's config declares of its init: the std of its weights, a tied head, multipliers.

A config is believed for the part of the model that holds it: an image tower with a config of its own has nothing to do
with the std that the language model around it declares.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from initlab.anatomy.constants import constants
from initlab.anatomy.holding import holders
from initlab.anatomy.parameters import Parameter
from initlab.anatomy.source import forward_reads
from initlab.anatomy.special import time_steps, zeroed
from initlab.recipes import Role
from initlab.wiring import Wiring

Kind = Literal[
    "std",
    "other std",
    "tied",
    "embed scale",
    "layer scale",
    "zero",
    "constant",
    "least step",
    "most step",
    "unregistered",
]

_STD = re.compile(
    r"initializer_(range|std)|init_(std|range|sigma)|(weights?_)?(init_)?std(_init)?|weight_init_(std|range)"
)
_LIKE_STD = re.compile(r"std|sigma|(^|_)init")
_TIED = re.compile(r"((^|_)(tied?|tying|share[ds]?|sharing)_.*(embed|word|head|output|weight))|weight_(tying|sharing)$")
_NOT_TIED = re.compile(r"(^|_)(untied?|no_tie|no_tying)_?")
_EMBED_SCALE = re.compile(r"(scale_emb(ed(ding)?s?)?|emb(ed(ding)?s?)?_(scale|multiplier|mult))$")
_LAYER_SCALE = re.compile(r"(layer_?scales?_(init(_values?)?|values?)|ls_init(_values?)?|init_values)$")


@dataclass(frozen=True, slots=True)
class Declaration:
    """One thing that is said, beside what is so.

    Attributes:
        kind: of what; `other std`: a further number that some weights may have been drawn with; `zero`: a parameter
            that the code sets to 0 by name; `constant`: one that its class makes of one number, found: the value
            that is farthest from it; `least step`, `most step`: the ends of the range of a state's steps in time;
            `unregistered`: so many trainable tensors that the pass used and the model doesn't know, found: elements.
        name: where it says so, as `config.initializer_range`; empty: a config that says nothing of the kind. Of what is
            unregistered, what holds it.
        said: its value; 1 and 0 for yes and no.
        found: what the model has; NaN where that is read from the tables.
        about: of a std the module that holds the config, `` for the whole; else names of parameters.
    """

    kind: Kind
    name: str
    said: float
    found: float = math.nan
    about: str = ""


def declarations(model: nn.Module, parameters: tuple[Parameter, ...], wirings: tuple[Wiring, ...]) -> list[Declaration]:
    """Read what the configs of a model declare.

    Args:
        model: read, never called.
        parameters: with their roles.
        wirings: of its stacks.
    """
    found = list(_stds(model))
    said: dict[Kind, tuple[str, bool | float]] = {}
    for holder, values in holders(model):
        for name, value in values.items():
            if (kind := _kind(name)) and isinstance(value, bool | int | float) and kind not in said:
                # a config is asked by whoever likes; an attribute that no forward reads, as an inherited one, is idle
                if kind == "embed scale" and holder == "self" and not forward_reads(model, name):
                    continue
                no = kind == "tied" and bool(_NOT_TIED.search(name.lower()))
                said[kind] = (f"{holder}.{name}", not value if no else value)
    if "tied" in said:
        found += _tied(model, parameters, *said["tied"])
    if "embed scale" in said:
        found += _embed_scale(wirings, *said["embed scale"])
    own = dict(model.named_parameters())
    for name, function in zeroed(model).items():
        if own[name].dim() > 1 and not own[name].is_meta:
            found.append(Declaration("zero", function, 0.0, float(own[name].detach().abs().max()), name))
    found += _constants(model, own)
    for name, place, least, most, step in time_steps(model):
        found += [
            Declaration("least step", place, least, step, name),
            Declaration("most step", place, most, step, name),
        ]
    gates = [place.name for place in parameters if place.role == Role.GATE]
    if "layer scale" in said and gates:
        name, value = said["layer scale"]
        found.append(Declaration("layer scale", name, float(value), about=" ".join(gates)))
    elif gates:
        found += _own_scales(model, gates)
    return found


def _constants(model: nn.Module, own: dict[str, nn.Parameter]) -> list[Declaration]:
    """What classes make of one number, and the value that is farthest from it; all are read from the device at once."""
    made = {
        name: said
        for name, said in constants(model).items()
        if own[name].requires_grad and not own[name].is_meta and own[name].numel()
    }
    flat = {name: own[name].detach().flatten().float() for name in made}
    farthest = [flat[name][(flat[name] - value).abs().argmax()] for name, (_, value) in made.items()]
    values = torch.stack(farthest).tolist() if farthest else []
    return [
        Declaration("constant", function, value, now, name)
        for (name, (function, value)), now in zip(made.items(), values, strict=True)
    ]


def _own_scales(model: nn.Module, gates: list[str]) -> Iterator[Declaration]:
    """What the modules that hold gates say of them, as timm's LayerScale keeps its `init_values`."""
    said: dict[tuple[str, float], list[str]] = {}
    for gate in gates:
        owner = gate.rpartition(".")[0]
        for name, value in vars(model.get_submodule(owner)).items():
            if _LAYER_SCALE.fullmatch(name.lower()) and type(value) in (int, float):
                said.setdefault((name, float(value)), []).append(gate)
    for (name, value), own in said.items():
        yield Declaration("layer scale", f"{own[0].rpartition('.')[0]}.{name}", value, about=" ".join(own))


def _kind(name: str) -> Kind | None:
    lower = name.lower()
    if _NOT_TIED.search(lower) or _TIED.search(lower):
        return "tied" if not re.search(r"encoder_decoder|encoder_to", lower) else None
    if _EMBED_SCALE.fullmatch(lower):
        return "embed scale"
    return "layer scale" if _LAYER_SCALE.fullmatch(lower) else None


def _stds(model: nn.Module) -> Iterator[Declaration]:
    """Of each module that holds a config which the one around it doesn't: the std, and other numbers like it."""
    known: dict[str, set[int]] = {}  # configs that a module holds, or that the nearest module around it does
    for path, module in model.named_modules():
        seen = known.get(path.rpartition(".")[0], set()) if path else set()
        held = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        own = [
            (name, values)
            for name, values in holders(module)
            if name != "self" and "." not in name and id(held.get(name)) not in seen
        ]
        known[path] = {id(held.get(name)) for name, _ in own} or seen
        if not path:  # plain attributes count of the model itself
            own += [(name, values) for name, values in holders(module) if name == "self"]
        if not own:
            continue
        numbers = [
            (f"{holder}.{name}", float(value), name.lower())
            for holder, values in own
            for name, value in values.items()
            if isinstance(value, float) and 0 < value < 2
        ]
        stds = [(name, value) for name, value, key in numbers if _STD.fullmatch(key)]
        yield from (Declaration("std", name, value, about=path) for name, value in stds[:1])
        if not stds:
            yield Declaration("std", "", math.nan, about=path)
        others = [(name, value) for name, value, key in numbers if _LIKE_STD.search(key)]
        yield from (Declaration("other std", name, value, about=path) for name, value in others)


def _tied(model: nn.Module, parameters: tuple[Parameter, ...], name: str, said: bool | float) -> Iterator[Declaration]:
    """Whether table and head are one parameter, of a model that has one of each and of one shape."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    tables = [place.name for place in parameters if place.role == Role.TOKEN_EMBED]
    heads = [place.name for place in parameters if place.role == Role.UNEMBED]
    if len(tables) != 1 or len(heads) > 1:
        return
    value = float(bool(said))
    if heads:
        keys = getattr(
            model, "_tied_weights_keys", (heads[0],)
        )  # a class that lists none ties none, whatever its config
        listed = any(re.search(str(key), heads[0]) for key in keys or ())
        if shapes[tables[0]] == shapes[heads[0]] and (not value or listed):
            yield Declaration("tied", name, value, 0.0, f"{heads[0]} {tables[0]}")
        return
    table = model.get_parameter(tables[0])
    for other, parameter in model.named_parameters(remove_duplicate=False):
        if parameter is table and not isinstance(model.get_submodule(other.rpartition(".")[0]), nn.Embedding):
            yield Declaration("tied", name, value, 1.0, f"{other} {tables[0]}")
            return


def _embed_scale(wirings: tuple[Wiring, ...], name: str, said: bool | float) -> Iterator[Declaration]:
    """What the token table's rows are multiplied with; a config that only says that they are means √n_embd."""
    for wiring in wirings:
        for term in wiring.terms or ():
            if term.kind == "token" and term.weight:
                wanted = (math.sqrt(wiring.n_embd) if said else 1.0) if isinstance(said, bool) else float(said)
                yield Declaration("embed scale", name, wanted, term.scale * wiring.embed_scale, term.weight)
                return
