"""Which embedding tables make the stream: tokens', positions', and those of another use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from initlab.anatomy import labels
from initlab.anatomy.containers import Container
from initlab.anatomy.stacks import linear_fans, stored_weight
from initlab.recipes import Role


def embeddings(
    model: nn.Module, named: Mapping[str, Tensor], stacks: Sequence[Container], vocab_size: int
) -> tuple[dict[str, Role], dict[str, nn.Embedding]]:
    """Find the tables of the stream: asked for, tied to a head, of the vocabulary's size, or named so.

    Args:
        model: asked for its input's table, as Hugging Face's answer.
        named: its parameters.
        stacks: containers of its blocks.
        vocab_size: that it declares, 0 for none.

    Returns:
        roles of tables (others have none), and the module of every table, by name of the parameter.
    """
    asked = _asked(model)
    # by identity: a tied table may stand under its head's name
    names = {id(parameter): name for name, parameter in named.items()}
    tables: dict[str, nn.Embedding] = {}
    paths: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            name = names.get(id(stored_weight(module)))
            if name is not None and name not in paths:
                paths[name] = path
                tables[name] = module
    linears = [module for module in model.modules() if linear_fans(module)]
    heads = {id(stored_weight(module)) for module in linears}
    outs = {fans[1] for module in linears if (fans := linear_fans(module))}
    known = {name for name, module in tables.items() if module is asked or id(named[name]) in heads}
    roles: dict[str, Role] = {}
    for name, path in paths.items():
        meant, rows = _meant(path), named[name].shape[0]
        if any(stack.index(name) is not None for stack in stacks):
            # a table inside a block is no vocabulary: T5's relative positions
            if meant == Role.POS_EMBED:
                roles[name] = Role.POS_EMBED
        elif name in known:
            roles[name] = Role.TOKEN_EMBED
        elif meant:
            if meant != Role.OTHER:
                roles[name] = meant
        elif (rows == vocab_size and not known) or rows in outs or len(paths) == 1:
            roles[name] = Role.TOKEN_EMBED
    table = None if asked is None else stored_weight(asked)
    if table is not None:
        # the one that the model itself calls its input; others (per-layer tables) are of other widths
        for name in [name for name, role in roles.items() if role == Role.TOKEN_EMBED]:
            if named[name].shape[-1] != table.shape[-1]:
                del roles[name]
    if not roles:
        roles |= _bare(named, stacks, vocab_size)
    return roles, tables


def _asked(model: nn.Module) -> nn.Module | None:
    getter = getattr(model, "get_input_embeddings", None)
    try:
        found = getter() if getter else None
    except Exception:  # Hugging Face raises where a model has none
        return None
    return found if isinstance(found, nn.Module) else None


def _meant(path: str) -> Role | None:
    """What the table is called, by the last two parts of its name that say something."""
    for word in labels.words(path)[:2]:
        if labels.POSITION.search(word):
            return Role.POS_EMBED
        if labels.ASIDE_TABLE.search(word):
            return Role.OTHER
        if labels.TOKEN.search(word):
            return Role.TOKEN_EMBED
    return None


def _bare(named: Mapping[str, Tensor], stacks: Sequence[Container], vocab_size: int) -> dict[str, Role]:
    """A token table that is a parameter of its own."""
    for name, parameter in named.items():
        own = name.rpartition(".")[2].lower()
        outside = parameter.dim() == 2 and not any(stack.index(name) is not None for stack in stacks)
        if not outside or own == "weight" or min(parameter.shape) < 2:
            continue
        if labels.BARE_TOKEN.search(own) or parameter.shape[0] == vocab_size:
            return {name: Role.TOKEN_EMBED}
    return {}
