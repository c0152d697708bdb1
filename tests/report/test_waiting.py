"""The bar that a long call draws by itself."""

import io
import sys
import threading
import time
from types import SimpleNamespace

import pytest

import initlab
from initlab.errors import ConfigError
from initlab.report import waiting as module
from initlab.report.waiting import NotebookBar, TerminalBar, Waiting, drawn, heard, place, waiting


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Bar:
    def __init__(self, label):
        self.label, self.seen, self.closed = label, [], False

    def show(self, share, text):
        self.seen.append((share, text))

    def close(self):
        self.closed = True


@pytest.fixture
def bars(monkeypatch):
    """Made without patience."""
    made = []
    monkeypatch.setattr(module, "PATIENCE", 0.02)
    monkeypatch.setattr(module, "place", lambda: lambda label: made.append(Bar(label)) or made[-1])
    return made


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_a_long_call_draws_one_bar_which_what_it_calls_tells(bars):
    with waiting("fix"), waiting("probe"):
        wait_for(lambda: bars)
        told = heard(None)
        told.start(4.0, 2, 10.0)
        told.advance(1.0, "nanogpt-s0")
        assert heard(False) is None and heard("mine") == "mine"
    assert [bar.label for bar in bars] == ["fix"]
    assert bars[0].seen[-1] == (0.25, "nanogpt-s0") and bars[0].closed
    assert heard(None) is None


def test_a_short_call_draws_none_and_a_bar_that_fails_is_no_matter(bars, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 5.0)
    with waiting("probe"):
        heard(None).start(1.0, 1, 0.1)
    assert bars == []

    def broken(label):
        raise RuntimeError("no screen")

    monkeypatch.setattr(module, "PATIENCE", 0.0)
    monkeypatch.setattr(module, "place", lambda: broken)
    with waiting("probe"):
        time.sleep(0.02)
        heard(None).advance(1.0, "x")


@pytest.mark.parametrize("off", [{"progress": False}, {"run": initlab.RunOptions(progress=False)}])
def test_it_is_turned_off(bars, off):
    @drawn
    def slow(**given):
        time.sleep(0.05)
        return heard(given.get("progress", getattr(given.get("run"), "progress", None)))

    assert slow(**off) is None and bars == []
    assert slow() is not None and [bar.label for bar in bars] == ["slow"]


def test_public_calls_draw_and_keep_their_signatures(bars, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}
    config = initlab.NanoGPTConfig(**sizes, vocab_size=256)
    initlab.compare(["nanogpt"], model=config, depths=[1], seeds=1, text=initlab.Text(batch_size=1))
    (bar,) = bars
    assert bar.label == "compare" and bar.closed and bar.seen[-1][0] == 1.0
    with pytest.raises(ConfigError, match="has no option 'evry'"):
        initlab.fix(initlab.NanoGPT(config), evry=1)
    initlab.probe(initlab.NanoGPT(config), progress=False)
    assert len(bars) <= 2


def test_progress_that_can_be_told_nothing_is_refused():
    with pytest.raises(ConfigError, match="progress is 3; expected False, None, or an object"):
        initlab.RunOptions(progress=3)


def test_where_a_bar_is_seen(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert place() is None
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert place() is TerminalBar
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    assert place() is NotebookBar


def test_on_a_terminal_it_is_drawn_and_cleared(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    bar = TerminalBar("compare")
    bar.show(None, "")
    bar.show(0.5, "[nanogpt] seed 1")
    bar._rich.refresh()
    bar.close()
    assert "compare" in stream.getvalue() and "50%, about" in stream.getvalue() and "[nanogpt]" in stream.getvalue()


def test_in_a_notebook_it_is_html_that_is_emptied(monkeypatch):
    shown = []
    handle = SimpleNamespace(update=lambda data, raw: shown.append(data))
    display = SimpleNamespace(display=lambda data, raw, display_id: shown.append(data) or handle)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    bar = NotebookBar("compare")
    bar.show(0.25, "<b>")
    bar.show(0.5, "too soon")
    bar.close()
    found = [data["text/html"] for data in shown]
    assert [text.count("<progress") for text in found] == [1, 1, 0]
    assert 'value="0.250"' in found[1] and "25%" in found[1] and "&lt;b&gt;" in found[1]
    assert shown[-1] == {"text/html": "", "text/plain": ""}


def test_calls_that_begin_in_two_threads_at_the_same_moment_end_without_an_error(bars, monkeypatch):
    begun = threading.Barrier(2, timeout=5)
    errors = []

    def made(label, make):
        begun.wait()  # neither knows of the other's
        return Waiting(label, make)

    def call():
        try:
            with waiting("probe"):
                begun.wait()
        except Exception as error:
            errors.append(error)

    monkeypatch.setattr(module, "Waiting", made)
    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert errors == [] and heard(None) is None
