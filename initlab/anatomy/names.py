"""Names of modules, in sentences."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any


def nearest(wanted: Any, named: Iterable[str]) -> str:
    """Say which names exist, those most like the wanted one first."""
    names = [name for name in named if name]
    close = difflib.get_close_matches(str(wanted), names, n=4, cutoff=0.4)
    shown = close or names[:4]
    return f"its modules are named like {', '.join(shown)}" if shown else "it has no modules inside"


def starred(name: str) -> str:
    """Put `*` for every number in a dotted name: what is alike in all blocks, as `h.*.mlp` for `h.3.mlp`.

    Args:
        name: of a module or a parameter.
    """
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
