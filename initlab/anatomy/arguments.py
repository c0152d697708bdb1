"""The arguments of a forward that nobody described: what each is, by its name, its annotation and the first layers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy import sizes

MOST = 12  # ways to call one forward that are tried

TARGETS = ("targets", "target", "labels", "label", "y")
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

# What an argument is, by its name; the first that matches.
_NAMED = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in {
        "padding": r"pad(ding)?_mask|attention_mask|(^|_)padding$|valid_mask",
        "mask": r"mask",
        "edges": r"edge_index|^edges$",
        "adjacency": r"^adj|adjacency|^A$",
        "members": r"^batch(_index)?$",
        "images": r"image|(^|_)img|pixel|^photo",
        "vectors": r"embeds|hidden|memory|enc(oder)?_out|features|context|latents?$",
        "offset": r"start_pos|offset|cache_pos|^step$|^layer$",
        "segments": r"segment|token_type|type_ids",
        "sizes": r"len(gth)?s?$",
        "positions": r"^pos(ition)?s?(_ids)?$|input_pos|position_ids",
        "time": r"^t$|^times?$|timestep|noise_level|^sigma|noise_labels|^noise$",
        "targets": r"^targets?(_ids)?$|^labels?$",
        "classes": r"^y$|^class(es)?$|class_(label|id|idx)|^cls|^cond$|^c$",
        "ids": r"ids|idx|token|^(src|tgt|trg|text|prompt|source|caption|input_seq|seq|decoder_input|encoder_input)s?$",
    }.items()
)
_INTEGERS = re.compile(r"\b(U?Int\d*|Integer|LongTensor|IntTensor)\b")
_FLOATS = re.compile(r"\b(Float\d*|FloatTensor|Real|Num)\b")
DECODED = re.compile(r"^(tgt|trg|target|dec|decoder|y)(_|$)")  # the logits of an encoder-decoder are of these
# entries of other inputs than the one that the stream starts from
_ASIDE = re.compile(r"(^|[._])(t|y|time|label|cond|class|pos)\w*([._]|$)|timestep|rope|rotary")
_CLASSES = re.compile(r"label|class|cond|(^|[._])(y|cls)([._]|$|_?emb)", re.IGNORECASE)
_SINUSOIDAL = re.compile(r"timestep|sinus|fourier|freq", re.IGNORECASE)

Make = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument to make: what it is, and in which forms it is tried, the likeliest first.

    `kind` is empty where nothing is known of it.
    """

    name: str
    kind: str
    forms: tuple[Make, ...]
    keyword: bool = False


def parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    """Read the signature of a model's forward; empty where Python can't."""
    try:
        return dict(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        return {}


def required(model: nn.Module) -> list[inspect.Parameter]:
    """Give what a forward can't do without; its first parameter where each has a default."""
    known = list(parameters(model).values())
    without = [p for p in known if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not any(p.kind in POSITIONAL for p in without):
        without = [*[p for p in known if p.kind in POSITIONAL][:1], *without]
    if sizes.writes(model) and without and without[0].name == getattr(model, "main_input_name", ""):
        without += [p for p in known if p.name == "decoder_input_ids" and p not in without]
    return without


def kind_of(parameter: inspect.Parameter, *, reads_ids: bool, first: bool) -> str:
    """Name what an argument is; empty where neither name nor annotation says.

    Args:
        parameter: of a forward.
        reads_ids: the model has a table of tokens.
        first: it is the first that has to be given: where nothing is said, what the model is for.
    """
    name = parameter.name
    said = "" if parameter.annotation is parameter.empty else parameter.annotation
    annotation = said if isinstance(said, str) else getattr(said, "__name__", "") + str(said)
    if annotation in ("int", "float", "bool", "intint", "<class 'int'>") or said in (int, float, bool):
        return "offset" if "int" in annotation or said is int else ""
    named = next((kind for kind, pattern in _NAMED if pattern.search(name if name == "A" else name.lower())), "")
    if named and not (first and named in ("vectors", "classes", "time", "targets", "offset", "positions", "sizes")):
        return "vectors" if named == "ids" and not reads_ids else named
    if _INTEGERS.search(annotation) and reads_ids:
        return "ids"
    if _FLOATS.search(annotation):
        return "vectors"
    if first or re.search(r"^(x|inputs?|seqs?|source|src|tgt|trg|a|b|q|k|v|query|keys?|values?)\w*$", name.lower()):
        return "ids" if reads_ids else "vectors"
    # an argument of a model of vectors is one more of them, unless it sounds like a number
    number = re.search(r"temp|scale|alpha|beta|eps|weight|drop|lr|^n_|num|size|flag|mode|return|use_", name.lower())
    return "" if reads_ids or number or parameter.kind == parameter.KEYWORD_ONLY else "vectors"


class Maker:
    """Makes the arguments of one model's forward.

    Args:
        model: whose forward.
        ids: token ids (B, T) that it reads; None: it reads none.
        targets: of them, for a forward that needs targets.
        seed: of what is drawn.
    """

    def __init__(self, model: nn.Module, ids: Tensor | None, targets: Tensor | None, seed: int):
        self.model = model
        self.ids, self.targets = ids, targets
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        self.lead: tuple[int, ...] = () if ids is None else tuple(ids.shape)
        self.aside = ""

    @cached_property
    def tables(self) -> list[sizes.Table]:
        """What the ids are looked up in; few forwards have an argument that it is asked for."""
        return sizes.token_tables(self.model) if self.ids is not None else []

    @cached_property
    def entries(self) -> list[tuple[str, nn.Module]]:
        """Modules whose type tells what they take."""
        return list(sizes.entries(self.model))

    def arguments(self) -> list[Argument]:
        """Say what each argument is that the forward can't do without, in its order."""
        wanted = required(self.model)
        kinds: dict[str, str] = {}
        self.aside = self._other_than_ids(wanted)
        for place, parameter in enumerate(wanted):
            first = place == 0 and parameter.name != self.aside
            kinds[parameter.name] = kind_of(parameter, reads_ids=self.ids is not None, first=first)
        self.graph = bool({"edges", "adjacency"} & set(kinds.values()))
        numbers: dict[str, int] = {}
        names = list(parameters(self.model))
        made: list[Argument] = []
        for parameter in wanted:
            kind = kinds[parameter.name]
            number = numbers.get(kind, 0)
            numbers[kind] = number + 1
            forms = tuple(self._forms(parameter.name, kind, number))
            # also one that others, which aren't given, stand before
            keyword = parameter.kind == parameter.KEYWORD_ONLY or names.index(parameter.name) != len(made)
            made.append(Argument(parameter.name, kind if forms else "", forms, keyword))
        return made

    def _other_than_ids(self, wanted: list[inspect.Parameter]) -> str:
        """The name of the first argument where the ids are those that a decoder writes, and it reads something else."""
        main = wanted[0].name if wanted else ""
        return main if self.ids is not None and sizes.writes(self.model) and main not in sizes.IDS else ""

    def calls(self) -> Iterator[dict[str, Any]]:
        """Yield whole calls to try, by name of the argument; those of one kind go through their forms together."""
        arguments = self.arguments()
        counts: dict[str, int] = {}
        for each in arguments:
            counts[each.kind] = max(counts.get(each.kind, 0), len(each.forms))
        together = sorted(product(*map(range, counts.values())), key=sum) if counts else []
        for chosen in together[:MOST]:
            form = dict(zip(counts, chosen, strict=True))
            self.lead = () if self.ids is None else tuple(self.ids.shape)
            made = {}
            # what gives the others their shape goes first
            for each in sorted(arguments, key=lambda each: each.kind not in ("ids", "vectors", "images")):
                value = each.forms[min(form[each.kind], len(each.forms) - 1)]()
                made[each.name] = value
                if not self.lead and isinstance(value, Tensor):
                    self.lead = tuple(value.shape)
            yield {each.name: made[each.name] for each in arguments}

    def _forms(self, name: str, kind: str, number: int) -> Iterator[Make]:
        match kind:
            case "ids" if self.ids is not None:
                rows = self._rows(name, number)
                yield lambda: self.ids if rows is None else self.ids % rows  # type: ignore[operator]
            case "vectors" | "images":
                for shape in self._shapes(name, kind, number):
                    yield partial(self._randn, shape)
            case "padding" | "mask":
                yield from self._masks(name, kind)
            case "offset":
                yield lambda: 0
            case "positions":
                yield lambda: torch.arange(self._length)
                yield lambda: torch.arange(self._length).expand(self._batch, -1)
            case "segments":
                yield lambda: torch.zeros(self._first[:2], dtype=torch.long)
            case "sizes":
                yield lambda: torch.full((self._batch,), self._length)
            case "time":
                yield from self._times()
            case "classes" | "targets":
                yield from self._classes()
            case "adjacency":
                yield self._adjacency
            case "edges":
                yield lambda: torch.randint(self._first[0], (2, 4 * self._first[0]), generator=self.generator)
            case "members":
                yield lambda: torch.zeros(self._first[0], dtype=torch.long)

    def images(self, name: str) -> Iterator[Tensor]:
        """Yield images to try for an argument, as many as there are sequences."""
        self.graph = False
        for shape in self._shapes(name, "images", 0):
            if len(shape) == 4:
                yield self._randn(shape)

    @property
    def _first(self) -> tuple[int, ...]:
        """Shape of what the others are beside: the ids, else the first that was made."""
        return self.lead or (4, 64)

    @property
    def _batch(self) -> int:
        return self._first[0]

    @property
    def _length(self) -> int:
        return self._first[1] if len(self._first) > 1 else self._batch

    def _randn(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.dtype)

    def _rows(self, name: str, number: int) -> int | None:
        """Rows of the table that one of several ids is looked up in, where they differ; None: the ids are as given."""
        rows = [table.rows for table in self.tables if table.width == self.tables[0].width]
        if len(set(rows)) < 2:
            return None
        stem = name.lower().removesuffix("s").split("_")[0][:3]
        own = [table.rows for table in self.tables if stem in table.name.lower()]
        return own[0] if own else None if number == 0 else rows[min(number, len(rows) - 1)]

    def _shapes(self, name: str, kind: str, number: int) -> list[tuple[int, ...]]:
        """Shapes to try: of the layer that is named like the argument, else of the first, then of the n-th."""
        stem = name.lower().rstrip("s").removesuffix("_in")
        named = [e for e in self.entries if len(stem) > 2 and stem in e[0].lower()]
        main = [e for e in self.entries if not _ASIDE.search(e[0])] or self.entries
        if kind == "images":
            images = [e for e in main if isinstance(e[1], nn.Conv2d)]
            named, main = [e for e in named if e in images], images or main
        if self.ids is not None and kind == "vectors" and not named and name != self.aside:
            width = self.tables[0].width if self.tables else 1
            return [(*self._first[:2], width)]
        tops: dict[str, tuple[str, nn.Module]] = {}
        for entry in main:
            tops.setdefault(entry[0].split(".")[0], entry)
        nth = list(tops.values())[number : number + 1]
        found = [
            shape
            for entry in (named or main[:1]) + nth
            for shape in sizes.taken(self.model, entry[1], graph=self.graph)
        ]
        if self.ids is not None:
            found = [(self._batch, *shape[1:]) for shape in found if len(shape) > 2] or found
        return list(dict.fromkeys(found))

    def _masks(self, name: str, kind: str) -> Iterator[Make]:
        """Masks that hide nothing, and for what may be causal, what comes later.

        True lets through, as in scaled_dot_product_attention, and where that leaves a model without a number, hides.
        """
        source = re.search(r"src|enc|memory|input", name)

        def everything(*shape: int, dtype: torch.dtype = torch.bool) -> Tensor:
            return torch.ones(shape, dtype=dtype)

        def causal() -> Tensor:
            return everything(self._length, self._length) if source else everything(self._length, self._length).tril()

        def added() -> Tensor:
            hidden = torch.zeros(self._length, self._length, dtype=self.dtype)
            return hidden if source else hidden.masked_fill(~causal(), float("-inf"))

        rows: list[Make] = [
            lambda: everything(self._batch, self._length, dtype=torch.long),
            lambda: everything(self._batch, self._length),
            lambda: ~everything(self._batch, self._length),
        ]
        squares: list[Make] = [
            causal,
            added,
            lambda: everything(self._batch, 1, 1, self._length) if source else causal()[None, None],
        ]
        if any(isinstance(module, nn.MultiheadAttention) for module in self.model.modules()):
            # torch's own: True hides, and where everything is hidden nothing is amiss
            rows, squares = rows[2:], squares[1:2]
        yield from (rows + squares if kind == "padding" else squares + rows)

    def _times(self) -> Iterator[Make]:
        steps = next(sizes.declared(self.model, sizes.STEPS), 0)
        tables = {n: m.num_embeddings for n, m in self.model.named_modules() if isinstance(m, nn.Embedding)}
        own = [rows for name, rows in tables.items() if re.search(r"(^|[._])(t|time\w*|step\w*)([._]|$)", name)]
        others = [rows for name, rows in tables.items() if self.ids is None and not _CLASSES.search(name)]
        steps = min(own or ([steps] if steps else others), default=0)
        sinusoidal = steps or any(_SINUSOIDAL.search(f"{n}.{type(m).__name__}") for n, m in self.model.named_modules())
        whole: Make = lambda: torch.randint(steps or 1000, (self._batch,), generator=self.generator)  # noqa: E731
        share: Make = lambda: torch.rand(self._batch, generator=self.generator).to(self.dtype)  # noqa: E731
        yield from ((whole, share) if sinusoidal else (share, whole))
        yield lambda: share()[:, None]

    def _classes(self) -> Iterator[Make]:
        tables = [
            module.num_embeddings
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Embedding) and _CLASSES.search(name)
        ]
        count = next(sizes.declared(self.model, sizes.CLASSES), tables[0] if tables else 0)
        if self.targets is not None and not tables:
            yield lambda: self.targets
        heads = [module.out_features for module in self.model.modules() if isinstance(module, nn.Linear)]
        yield lambda: torch.randint(count or heads[-1] if heads else 2, (self._batch,), generator=self.generator)
        yield lambda: self._randn(self._first)

    def _adjacency(self) -> Tensor:
        """Some edges, each node's own, and every row sums to one."""
        nodes = self._first[-2]
        edges = torch.rand(*self._first[:-2], nodes, nodes, generator=self.generator) < 4 / nodes
        edges = (edges | edges.transpose(-1, -2) | torch.eye(nodes, dtype=torch.bool)).to(self.dtype)
        return edges / edges.sum(-1, keepdim=True)
