"""Where the residual stream runs by the caller's own word: `sites=`. Declared, then verified like anything found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from initlab.anatomy.names import nearest
from initlab.anatomy.sites import Tap, block_taps
from initlab.anatomy.stream import Block, Stack, find_stacks
from initlab.errors import SiteError
from initlab.schema import SITES

DECLARED = "declared blocks"
_WHOLE = ("embed", "final_norm", "logits")  # one of each, outside the blocks
_PER_BLOCK = tuple(site for site in SITES if site not in (*_WHOLE, "module", "attn_logits", "attn_pattern"))
_ENTERING = ("embed", "resid_pre", "resid_mid", "attn_z", "mlp_act")  # what goes into a module, unless said otherwise

Place = tuple[str, Literal["in", "out"]]  # a module's input or output
Named = str | nn.Module | Sequence[str | nn.Module]
Sites = Named | Mapping[str, Named]


def declared_stream(
    model: nn.Module, sites: Sites, forward: Callable[[], Any]
) -> tuple[list[Stack], list[Tap], list[str]]:
    """Follow the stream of a model whose blocks, or sites, the caller names.

    Args:
        model: any module.
        sites: the blocks, as a glob over dotted names (`*` stays within one step: `net.layer*`), a module (a
            ModuleList: those in it) or a list of such; what writes to the stream is then found as in any model. Or a
            dict from site to these, as in `{"resid_post": "net.layer*", "attn_out": "net.layer*.mix"}`: `resid_post`
            names the blocks, the other sites are looked at as declared, and of the writes that were found those stay
            that none declared is. A site is what leaves its modules, but for
            embed, resid_pre, resid_mid, attn_z and mlp_act, which enter them; a glob that ends with `:in` or `:out`
            says otherwise.
        forward: runs the model on a batch, for the verification.

    Returns:
        the one stack, its taps, and what was declared and isn't so.

    Raises:
        SiteError: a glob that no module has, an unknown site, or modules that are in none of the blocks.
    """
    declared = dict(sites) if isinstance(sites, Mapping) else {"resid_post": sites}
    unknown = [site for site in declared if site not in (*_WHOLE, *_PER_BLOCK)]
    if unknown:
        raise SiteError(f"sites: unknown site {unknown[0]!r}; known: {', '.join((*_WHOLE, *_PER_BLOCK))}")
    if "resid_post" not in declared:
        raise SiteError("sites: resid_post is missing; it names the modules whose outputs are the stream, the blocks")
    found = {site: _places(model, site, globs) for site, globs in declared.items()}
    names = [name for name, _ in found["resid_post"]]
    (stack,) = find_stacks(model, forward, {DECLARED: names})
    taps: list[Tap] = []
    notes = []
    for layer, block in enumerate(stack.blocks):
        own = {site: _of_block(site, places, layer, names) for site, places in found.items() if site in _PER_BLOCK}
        writes, missed = _declared_writes(block, own)
        written = [name for site, (name, _) in own.items() if site.endswith("_out")]
        taps += [t for t in block_taps(layer, block) if t.site not in own and not _is_any(t, written, block)]
        taps += [Tap(site, name, where, layer, scale=writes.get(name, 1.0)) for site, (name, where) in own.items()]
        notes += missed
    if stack.final_norm:
        found.setdefault("final_norm", [(stack.final_norm, "out")])
    found.setdefault("embed", [(names[0], "in")])
    embed, *ends = (Tap(site, *found[site][0]) for site in _WHOLE if site in found)
    return [stack], [embed, *taps, *ends], notes


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
    named = [name for name, _ in model.named_modules()]
    places: dict[str, Literal["in", "out"]] = {}
    for glob in _globs(model, site, given):
        plain = glob.removesuffix(":in").removesuffix(":out")
        entering = glob.endswith(":in") or (site in _ENTERING and not glob.endswith(":out"))
        steps = plain.count(".")
        some = [name for name in named if name.count(".") == steps and name and fnmatchcase(name, plain)]
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


def _is_any(tap: Tap, declared: list[str], block: Block) -> bool:
    """Whether a write that was found is one of those declared, under another name or as a part of it."""
    if not tap.site.endswith("_out"):
        return False
    same = next({w.place.module, *w.handed_on} for w in block.writes if w.place.module == tap.module)
    return any(
        one == name or one.startswith(f"{name}.") or name.startswith(f"{one}.") for one in same for name in declared
    )


def _declared_writes(block: Block, own: Mapping[str, Place]) -> tuple[dict[str, float], list[str]]:
    """The scale of each declared write, and a sentence for each that the block's sum doesn't hold."""
    proved = {name: write.scale for write in block.writes for name in (write.place.module, *write.handed_on)}
    wanted = [name for site, (name, _) in own.items() if site.endswith("_out")]
    if not block.verified:
        return {}, []  # the block's own note says so
    missed = [name for name in wanted if name not in proved]
    writers = ", ".join(write.place.module for write in block.writes) or "nothing that isn't 0"
    return proved, [f"{name} is declared to write to the stream, but the sum holds {writers}" for name in missed]
