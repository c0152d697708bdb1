"""Open lists by name: what initlab ships, what a script adds with a decorator, what a package adds by entry point."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from initlab.errors import ConfigError, InitlabError

T = TypeVar("T")


_FILES: dict[tuple[Path, str], ModuleType] = {}  # by path and hash of the content


def import_file(path: Path) -> ModuleType:
    """Import a user's file, once for what it holds: what it adds to open lists would be a duplicate the second time.

    Args:
        path: of a .py file.

    Raises:
        Exception: whatever the file raises.
    """
    path = path.resolve()
    name, key = f"initlab_user_{path.stem}", (path, hashlib.sha256(path.read_bytes()).hexdigest())
    if key in _FILES:
        sys.modules[name] = _FILES[key]  # another file of this name may stand there
        return _FILES[key]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a .py suffix always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))  # the user's file imports its neighbours, as when it is run
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    _FILES[key] = module
    return module


class Registry(Generic[T]):
    """Things of one kind by name, in the order in which they were added: initlab's own first.

    The modules of initlab, then the entry points of the group `initlab.<kind>s`, are imported at the first look; each
    adds what it has as it is imported. An entry point that can't be imported is warned of, and left out. Modules that
    may also be imported by themselves are in a package that calls `load` at its end, or the order would depend on it.

    Args:
        kind: what one of them is called, as in `rule`.
        modules: of initlab, that add its own.
        error: what is raised where a name is unknown or taken.
    """

    def __init__(self, kind: str, modules: tuple[str, ...] = (), error: type[InitlabError] = ConfigError):
        self.kind = kind
        self.group = f"initlab.{kind}s"
        self._modules = modules
        self._error = error
        self._found: dict[str, T] = {}
        self._loaded = self._complete = False

    def add(self, name: str, value: T, source: str = "") -> T:
        """Add one; returns it.

        Args:
            name: by which it is found; never used again.
            value: the thing itself.
            source: shown where the name is taken later.

        Raises:
            ConfigError, or the registry's own error: the name is taken. Overwriting would change results silently.
        """
        self.load()
        if name in self._found:
            of = getattr(self._found[name], "source", "")
            raise self._error(
                f"{self.kind} {name!r} exists already{f' (source: {of})' if of else ''}; rename yours"
                f"{f' ({source})' if source else ''}"
            )
        self._found[name] = value
        return value

    def get(self, name: str) -> T:
        """Get the one of this name. Raises the registry's error, with the closest names, if there is none."""
        self._load()
        if isinstance(name, str) and name in self._found:
            return self._found[name]
        close = difflib.get_close_matches(str(name).lower(), self._found, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise self._error(f"unknown {self.kind} {name!r}; {hint}known: {', '.join(self._found)}")

    def items(self) -> dict[str, T]:
        """List all of them by name."""
        self._load()
        return dict(self._found)

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._found

    def __iter__(self) -> Iterator[T]:
        self._load()
        return iter(list(self._found.values()))

    def __len__(self) -> int:
        self._load()
        return len(self._found)

    @contextmanager
    def temporary(self) -> Iterator[None]:
        """Forget at the end what was added meanwhile: for a user's file that may be loaded again, and for tests."""
        self._load()
        before = dict(self._found)
        try:
            yield
        finally:
            self._found = before

    def from_file(self, name: str) -> Any:
        """Load what a user's file holds by a name; None if it has nothing of that name.

        What the file adds to the registry belongs to it, and is forgotten: a second load would be a duplicate.

        Args:
            name: `path/to/file.py:name`.

        Raises:
            ConfigError, or the registry's own error: there is no such file, or it can't be imported.
        """
        location, _, attribute = name.rpartition(":")
        path = Path(location)
        if not path.is_file():
            raise self._error(f"{self.kind} {name!r}: file {location} not found")
        try:
            with self.temporary():
                module = import_file(path)
        except (Exception, SystemExit) as error:
            raise self._error(
                f"{self.kind} {name!r}: {location} failed on import: {type(error).__name__}: {error}"
            ) from error
        return getattr(module, attribute, None)

    def load(self) -> None:
        """Import what initlab adds itself, in its order; not the entry points, which may need more of initlab."""
        if self._loaded:
            return
        self._loaded = True  # the modules that are imported here add to this very registry
        for module in self._modules:
            import_module(module)

    def _load(self) -> None:
        self.load()
        if self._complete:
            return
        self._complete = True
        for point in metadata.entry_points(group=self.group):
            try:
                point.load()
            except Exception as error:
                warnings.warn(
                    f"{self.kind} plugin {point.name!r} ({point.value}) can't be loaded and is left out: "
                    f"{type(error).__name__}: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
