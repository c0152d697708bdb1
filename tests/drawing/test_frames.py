"""Which line drew a parameter."""

import importlib.util
import textwrap

import initlab

SOURCE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        nn.init.normal_(self.a.weight, std=0.02)
"""


def test_two_files_that_say_the_same_are_told_apart(tmp_path):
    for name in ("one", "other"):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(SOURCE))
        spec = importlib.util.spec_from_file_location(f"frames_{name}", tmp_path / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        writes = initlab.trace_init(module.Net).writes
        (line,) = writes.loc[(writes["parameter"] == "a.weight") & (writes["operation"] == "normal_"), "where"]
        assert line.endswith(f"{name}.py:11 Net.__init__")
