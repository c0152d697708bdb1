"""What reaches a terminal, whatever names hold."""

import pytest
from rich.text import Text

from initlab import cli
from initlab.report.terminal import harmless, print_text

NAMES = [
    "\x1b]0;title\x07",
    "\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\",
    "\x1b[2J",
    "\x1b[8mhidden",
    "\x1b[1;8mhidden",
    "\x9b2J",
    "a\rb",
    "\u202etxt.exe",
    "\u2066a\u2069",
    "\x00\x07\x08\x7f",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("color", [False, True])
def test_a_name_can_do_nothing_to_a_terminal(name, color):
    shown = print_text(lambda console, _: console.print(Text(f"before {name} after", style="bold red")), 80, color)
    left = shown.replace("\x1b[1;31m", "").replace("\x1b[0m", "")
    assert left.startswith("before") and "after" in left
    assert all(each.isprintable() or each == "\n" for each in left)
    assert ("\x1b[1;31m" in shown) is color


def test_plain_text_stays_as_it_is():
    text = "σ² × √2 – 中文\tä\n"
    assert harmless(text) == harmless(text, True) == text


def test_an_error_is_harmless_too(capsys, tmp_path):
    assert cli.main(["report", str(tmp_path / "\x1b]0;title\x07")]) == 2
    assert "\x1b" not in capsys.readouterr().err
