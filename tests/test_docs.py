"""README and docs/: links lead somewhere, commands can be parsed, code runs, and tables are those of the package."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch

import initlab
from initlab import cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_kind_of_test_is_told_how_to_be_run_and_what_isnt_slow_is_run():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    kinds = [marker.partition(":")[0] for marker in settings["markers"]]
    told = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert all(re.search(rf"-m .*\b{kind}\b", told) for kind in kinds)
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert "pytest" in run and "pytest -m 'integration and not slow'" in run
    assert "-m 'not slow and not integration'" in settings["addopts"]


def generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(name, language):
    return [text for kind, text in BLOCK.findall((ROOT / name).read_text(encoding="utf-8")) if kind == language]


def heading_ids(page):
    """Anchors as Markdown renderers make them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("name", ["commands.md", "rules.md", "recipe-list.md", "cookbook.md", "glossary.md"])
def test_generated_pages_are_as_generated(name):
    made = generator().PAGES[name]()
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == made, "run python docs/generate.py"


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in heading_ids(file), target


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {page.name for page in PAGES[1:]}


@pytest.mark.parametrize("name", NAMES)
def test_commands_can_be_parsed(name):
    for block in blocks(name, "sh"):
        for line in re.split(r"\n|&&", block):
            words = shlex.split(line, comments=True)
            if words[:1] == ["initlab"] and "…" not in words and "--print-completion" not in words:
                assert cli.parser().parse_args(words[1:]).run is not None, line


@pytest.mark.parametrize("name", NAMES)
def test_code_is_python(name):
    for block in blocks(name, "python"):
        compile(block, name, "exec")


class MyModel(torch.nn.Module):
    def __init__(self, config=None):
        super().__init__()
        self.tokens = torch.nn.Embedding(64, 32)
        layer = torch.nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.net = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(32, 64)

    def forward(self, ids):
        mask = torch.nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.net(self.tokens(ids), mask=mask, is_causal=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/ci.md", "docs/extend.md"])
def test_code_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    initlab.probe(MyModel(), stats="light").report(tmp_path / "before")
    (tmp_path / "before" / "findings.json").rename(tmp_path / "findings.json")
    own = {"initlab": initlab, "MyModel": MyModel, "make_model": MyModel, "model": MyModel(), "config": None}
    for block in blocks(name, "python"):
        exec(compile(block, name, "exec"), own)
