"""The docstrings of this Python's standard library: a text that every machine has, each another one."""

from __future__ import annotations

import ast
import contextlib
import gc
import hashlib
import os
import platform
import sys
import sysconfig
import warnings
from pathlib import Path

from initlab.errors import DataError

CACHE_FORMAT = 1  # raise it when the extraction changes
# Not English prose: test suites, an application, a grammar with test data, other people's packages.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages", "_bundled"}


def docstrings() -> bytes:
    """The docstrings of this Python's standard library, about 1.6 MB; extracted once, then from the cache."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    cache = _cache_file(stdlib)
    with contextlib.suppress(OSError):
        digest, _, text = cache.read_bytes().partition(b"\n")
        if text and hashlib.sha256(text).hexdigest().encode() == digest:
            return text
    # A docstring may hold lone surrogates, which UTF-8 can't.
    text = "\n\n".join(_extract(stdlib)).encode("utf-8", "replace")
    if not text:
        raise DataError(
            f"Python's standard library has no readable sources in {stdlib}, so there is no default text; "
            "pass a text file (--data PATH), or uniform for random ids"
        )
    with contextlib.suppress(OSError):  # a cache that can't be written costs seconds, not the run
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(f".{os.getpid()}")
        part.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        part.replace(cache)
    return text


def _cache_file(stdlib: Path) -> Path:
    usual = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~/AppData/Local")}
    home = os.path.expanduser(usual.get(sys.platform, "~/.cache"))  # noqa: PTH111 - doesn't raise without a home
    # The same version can hold other modules elsewhere (Debian takes some out), so the place is part of the name.
    place = hashlib.sha256(str(stdlib).encode()).hexdigest()[:8]
    name = f"docstrings-{sys.implementation.name}-{platform.python_version()}-{place}-v{CACHE_FORMAT}.txt"
    return Path(os.environ.get("XDG_CACHE_HOME") or home) / "initlab" / name


def _extract(stdlib: Path) -> list[str]:
    """Docstrings in the order of their modules' paths; indentation and runs of blanks removed, lines kept."""
    files = []
    for folder, inside, names in os.walk(stdlib):
        inside[:] = set(inside) - SKIPPED_FOLDERS  # os.walk goes where this list says
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    docs = []
    collecting = gc.isenabled()
    gc.disable()  # syntax trees hold no cycles, and looking for some among torch's objects takes most of the time
    try:
        for file in sorted(files, key=lambda file: file.relative_to(stdlib).as_posix()):
            try:
                with warnings.catch_warnings(action="ignore"):  # of old escapes in old modules
                    tree = ast.parse(file.read_bytes())
            except (OSError, SyntaxError, ValueError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    docs.append((ast.get_docstring(node, clean=False) or "").strip())
    finally:
        if collecting:
            gc.enable()
    return ["\n".join(" ".join(line.split()) for line in doc.splitlines()) for doc in docs if doc]
