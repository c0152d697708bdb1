"""Open lists: initlab's own, a script's, a package's."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from initlab.errors import ConfigError, RecipeError
from initlab.registry import Registry, import_file


def test_names_are_unique_and_an_unknown_one_names_the_closest() -> None:
    registry: Registry[int] = Registry("number", error=RecipeError)
    assert registry.add("three", 3) == 3
    registry.add("four", 4)
    assert list(registry) == [3, 4] and len(registry) == 2 and "four" in registry and registry.items()["three"] == 3
    with pytest.raises(RecipeError, match="number 'three' exists already"):
        registry.add("three", 5)
    with pytest.raises(RecipeError, match=r"unknown number 'tree'; did you mean three\? known: three, four"):
        registry.get("tree")


def test_what_is_added_temporarily_is_gone_afterwards_also_after_an_error() -> None:
    registry: Registry[int] = Registry("number")
    with pytest.raises(ZeroDivisionError), registry.temporary():
        registry.add("one", 1)
        _ = 1 / 0
    assert "one" not in registry


def test_an_installed_package_adds_by_entry_point_and_a_broken_one_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numbers_plugin.py").write_text("import test_registry_of\ntest_registry_of.registry.add('seven', 7)\n")
    info = tmp_path / "numbers_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numbers-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[initlab.numbers]\nseven = numbers_plugin\nbroken = no_such_module\n")
    (tmp_path / "test_registry_of.py").write_text(
        "from initlab.registry import Registry, import_file\nregistry = Registry('number')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert [point.name for point in metadata.entry_points(group="initlab.numbers")]
    import test_registry_of  # type: ignore[import-not-found]

    try:
        with pytest.warns(RuntimeWarning, match="number plugin 'broken' .* is left out: ModuleNotFoundError"):
            assert test_registry_of.registry.get("seven") == 7
    finally:
        for name in ("numbers_plugin", "test_registry_of"):
            sys.modules.pop(name, None)


def test_the_default_error_is_a_config_error() -> None:
    with pytest.raises(ConfigError):
        Registry("thing").get("none")


def test_a_users_file_is_imported_once_for_what_it_holds(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("made = []\n")
    first = import_file(file)
    first.made.append(1)
    assert import_file(tmp_path / "." / "mine.py") is first and sys.modules["initlab_user_mine"] is first
    file.write_text("made = []  # changed\n")
    assert import_file(file).made == []
    file.write_text("raise OSError('not now')\n")
    for _ in range(2):
        with pytest.raises(OSError, match="not now"):
            import_file(file)
    assert str(tmp_path) not in sys.path
