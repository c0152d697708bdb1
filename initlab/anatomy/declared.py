"""Where the residual stream runs by the caller's own word: `sites=`. Declared, then verified like anything found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from initlab.anatomy.graph import Trace
from initlab.anatomy.names import nearest
from initlab.anatomy.sites import Tap
from initlab.anatomy.stream import Block, Stack
from initlab.anatomy.walking import copies_of
from initlab.errors import SiteError
from initlab.schema import SITES

DECLARED = "declared blocks"
_WHOLE = ("embed", "final_norm", "logits")  # one of each, outside the blocks
_PER_BLOCK = tuple(site for site in SITES if site not in (*_WHOLE, "module", "attn_logits", "attn_pattern"))
_ENTERING = ("embed", "resid_pre", "resid_mid", "attn_z", "mlp_act")  # what goes into a module, unless said otherwise

Place = tuple[str, Literal["in", "out"]]  # a module's input or output
Named = str | nn.Module | Sequence[str | nn.Module]
Sites = Named | Mapping[str, Named]


def declared_blocks(model: nn.Module, sites: Sites) -> tuple[list[str], dict[str, list[Place]]]:
    """Read which modules are the blocks of a model, by its caller's word, and what else is declared.

    Args:
        model: any module.
        sites: the blocks, as a glob over dotted names (`*` stays within one step: `net.layer*`), a module (a
            ModuleList: those in it) or a list of such; what writes to the stream is then found as in any model. Or a
            dict from site to these, as in `{"resid_post": "net.layer*", "attn_out": "net.layer*.mix"}`: `resid_post`
            names the blocks, the other sites are looked at as declared, and of the writes that were found those stay
            that none declared is. A site is what leaves its modules, but for
            embed, resid_pre, resid_mid, attn_z and mlp_act, which enter them; a glob that ends with `:in` or `:out`
            says otherwise.

    Returns:
        names of the blocks, and the places of every declared site.

    Raises:
        SiteError: a glob that no module has, or an unknown site.
    """
    declared = dict(sites) if isinstance(sites, Mapping) else {"resid_post": sites}
    unknown = [site for site in declared if site not in (*_WHOLE, *_PER_BLOCK)]
    if unknown:
        raise SiteError(f"sites: unknown site {unknown[0]!r}; known: {', '.join((*_WHOLE, *_PER_BLOCK))}")
    if "resid_post" not in declared:
        raise SiteError("sites: resid_post is missing; it names the modules whose outputs are the stream, the blocks")
    found = {site: _places(model, site, globs) for site, globs in declared.items()}
    return [name for name, _ in found["resid_post"]], found


def declared_taps(
    stack: Stack, found: Mapping[str, list[Place]], taps: Sequence[Tap], trace: Trace
) -> tuple[list[Tap], list[str]]:
    """Put what is declared in place of what was found.

    Args:
        stack: of the declared blocks.
        found: places by site, see `declared_blocks`.
        taps: what was found to look at.
        trace: of the pass in which it was found.

    Returns:
        the taps, and what was declared and isn't so.

    Raises:
        SiteError: modules that are in none of the blocks, or several in one.
    """
    names = [block.name for block in stack.blocks]
    inside: list[Tap] = []
    notes = []
    for layer, block in enumerate(stack.blocks):
        own = {site: _of_block(site, places, layer, names) for site, places in found.items() if site in _PER_BLOCK}
        writes, missed = _declared_writes(block, own, trace)
        written = [name for site, (name, _) in own.items() if site.endswith("_out")]
        mine = [tap for tap in taps if tap.layer == layer]
        inside += [tap for tap in mine if tap.site not in own and not _is_any(tap, written)]
        inside += [Tap(site, name, where, layer, scale=writes.get(name, 1.0)) for site, (name, where) in own.items()]
        notes += missed
    ends = [tap for tap in taps if tap.layer is None and tap.site not in found]
    ends += [Tap(site, *found[site][0]) for site in _WHOLE if site in found]
    first = [tap for tap in ends if tap.site == "embed"] or [Tap("embed", names[0], "in")]
    return [*first, *inside, *(tap for tap in ends if tap.site != "embed")], notes


def _globs(model: nn.Module, site: str, given: Any) -> list[str]:
    """What was given for a site, as globs: a module is its name, a list of modules those in it."""
    if isinstance(given, nn.ModuleList):
        given = list(given)
    if isinstance(given, str | nn.Module) or not isinstance(given, Iterable):
        given = [given]
    names = {id(module): name for name, module in model.named_modules()}
    globs = []
    for item in given:
        if isinstance(item, nn.Module) and not names.get(id(item)):
            raise SiteError(
                f"sites: {site}: the {type(item).__name__} given is no module inside {type(model).__name__}"
            )
        if not isinstance(item, str | nn.Module):
            raise SiteError(
                f"sites: {site} holds {item!r}; expected globs over dotted names ('net.layer*'), or modules"
            )
        globs.append(item if isinstance(item, str) else names[id(item)])
    return globs


def _places(model: nn.Module, site: str, given: Any) -> list[Place]:
    """(module, in or out) of every module that was given, in the model's order."""
    # a list of modules is never called: it stands for those in it
    lists = {name for name, each in model.named_modules() if isinstance(each, nn.ModuleList)}
    named = [name for name, _ in model.named_modules()]
    places: dict[str, Literal["in", "out"]] = {}
    for glob in _globs(model, site, given):
        plain = glob.removesuffix(":in").removesuffix(":out")
        entering = glob.endswith(":in") or (site in _ENTERING and not glob.endswith(":out"))
        steps = plain.count(".")
        some = [name for name in named if name.count(".") == steps and name and fnmatchcase(name, plain)]
        some = [
            each
            for name in some
            for each in ([f"{name}.{key}" for key in model.get_submodule(name)._modules] if name in lists else [name])
        ]
        if not some:
            raise SiteError(f"sites: {site}: no module {plain!r} in {type(model).__name__}; {nearest(plain, named)}")
        places |= dict.fromkeys(some, "in" if entering else "out")
    if not places:
        raise SiteError(f"sites: {site}: no glob was given; expected one such as 'net.layer*'")
    order = {name: number for number, name in enumerate(named)}
    return sorted(places.items(), key=lambda place: order[place[0]])


def _of_block(site: str, places: list[Place], layer: int, blocks: list[str]) -> Place:
    """The one of a site's modules that belongs to a block: it is inside, or they are as many as the blocks."""
    block = blocks[layer]
    inside = [place for place in places if place[0] == block or place[0].startswith(f"{block}.")]
    if len(inside) == 1:
        return inside[0]
    if not inside and len(places) == len(blocks):
        return places[layer]
    raise SiteError(
        f"sites: {site} has {len(inside)} modules in block {block} and {len(places)} in all, for {len(blocks)} blocks; "
        "expected one a block"
    )


def _is_any(tap: Tap, declared: list[str]) -> bool:
    """Whether a write that was found is one of those declared, or a part of it."""
    if not tap.site.endswith("_out"):
        return False
    own = tap.module
    return any(own == name or own.startswith(f"{name}.") or name.startswith(f"{own}.") for name in declared)


def _declared_writes(block: Block, own: Mapping[str, Place], trace: Trace) -> tuple[dict[str, float], list[str]]:
    """The scale of each declared write, and a sentence for each that the block's sum doesn't hold."""
    proved: dict[str, float] = {}
    for write in block.writes:
        for value in (*copies_of(write.term.value), *copies_of(write.term.core)):
            proved |= {place.module: write.scale for place in trace.places.get(value, ()) if place.where == "out"}
    wanted = [name for site, (name, _) in own.items() if site.endswith("_out")]
    if not block.verified:
        return {}, []  # the block's own note says so
    missed = [name for name in wanted if name not in proved]
    writers = ", ".join(write.module for write in block.writes) or "nothing"
    return proved, [f"{name} is declared to write to the stream, but the sum holds {writers}" for name in missed]
