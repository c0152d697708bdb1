"""seaborn, without the half of its import that goes into what no figure here calls."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

_LATER = {"scipy.stats": "gaussian_kde", "scipy.cluster": "hierarchy"}  # what seaborn names of them as it is imported


def seaborn() -> ModuleType:
    """Import seaborn; what it has of scipy is imported with the first density or clustered map that somebody draws.

    Returns:
        The module, whole: also for who uses it beside initlab.
    """
    if "seaborn" in sys.modules:
        return sys.modules["seaborn"]
    missing = [_StandIn(name) for name in _LATER if name not in sys.modules]
    sys.modules.update((each.__name__, each) for each in missing)
    try:
        return importlib.import_module("seaborn")
    finally:
        for each in missing:
            each.leave()


class _StandIn(ModuleType):
    """A module while it isn't imported; a thread that imports it meanwhile finds all of the real one's names in it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import machinery's own questions
            raise AttributeError(name)
        return _Named(self, name) if name == _LATER[self.__name__] else self.real(name)

    def leave(self) -> None:
        """Make room: the next import finds the real one."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]

    def real(self, name: str) -> Any:
        """What the module has of this name."""
        self.leave()
        return getattr(importlib.import_module(self.__name__), name)


class _Named:
    """A function or a module of one that isn't imported before it is used."""

    def __init__(self, of: _StandIn, name: str):
        self._of, self._name = of, name

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._of.real(self._name)(*args, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of.real(self._name), name)
