"""What other tools say of the same planted faults in the hand-written Llama-like model, each used as its docs show.

Run by `detection.py --peers` where they install (`pip install torchlens anyinit mup`); one that isn't there gets no
column. They answer other questions than initlab, and only whether anything changes is asked, not where or why:

- thresholds: a hook on every module, the loss and the gradients, judged by seven fixed numbers, as people write them;
- torchlens: `debug.audit_trace` of a forward pass, and `debug.gradient_flow_audit` after a backward one;
- AnyInit: what `report.assert_healthy` raises after `initialize(analytic)`, which draws every weight anew;
- mup: `get_coord_data` over three widths and three steps of Adam. It draws a figure; read here by the exponent of l1
  over the width: one that differs by more than 0.25 from the unmutated model's is seen (its own seeds differ by 0.11).

A fault is seen where a tool says a sentence (its numbers and names left out) or raises an error that it doesn't of the
unmutated model.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import pairwise

import detection_inits  # noqa: F401  (it adds to FAULTS)
import detection_wirings  # noqa: F401  (likewise)
import numpy as np
import pandas as pd
import torch
from children import Death, results, short
from detection_bases import V, subject
from detection_faults import FAULTS, Fault, NotHere
from torch import Tensor, nn
from torch.nn import functional as F

BASE, WIDTHS = "own-llama", (64, 128, 256)
SLOPE = 0.25  # of exponents of l1 over the width that count as different


class Logits(nn.Module):
    """The model, giving its logits alone, a row for each token; peers take no tuple with a None in it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids)[0].flatten(0, 1)


def batch() -> tuple[Tensor, Tensor]:
    """Random ids, and the next of each as targets."""
    ids = torch.randint(0, V, (8, 65), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1], ids[:, 1:].flatten()


def model(fault: Fault | None, width: int = 128) -> Logits:
    """The base of a width, with a fault in it or none."""
    made = subject(BASE, size=(width, 4))
    torch.manual_seed(1)
    if fault is not None:
        fault.plant(made)
    return Logits(made.model)


def thresholds(fault: Fault | None) -> set[str]:
    """Seven fixed numbers on hooks."""
    made, stds = model(fault), {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, __: object, given: object) -> None:
            given = given[0] if isinstance(given, tuple) else given
            stds.setdefault(name, float(given.detach().float().std()))

        return keep

    for name, module in made.named_modules():
        module.register_forward_hook(hook(name))
    ids, targets = batch()
    loss = F.cross_entropy(made(ids).float(), targets)
    loss.backward()
    grads = [None if each.grad is None else float(each.grad.float().norm()) for each in made.parameters()]
    blocks = [std for name, std in stds.items() if re.fullmatch(r"model\.layers\.\d+", name) and std > 0]
    learning = [each for each in grads if each]
    said = {
        "not finite": not all(map(math.isfinite, [*stds.values(), float(loss)])),
        "an output of std 0": 0.0 in stds.values(),
        "no gradient": not all(grads),
        "first loss 0.5 off ln V": abs(float(loss) - math.log(V)) > 0.5,
        "blocks' outputs differ 10-fold": max(blocks) > 10 * min(blocks),
        "a block's output is 3 times that before": any(b > 3 * a for a, b in pairwise(blocks)),
        "gradients differ 10^4-fold": max(learning) > 1e4 * min(learning),
    }
    return {sentence for sentence, is_so in said.items() if is_so}


def torchlens(fault: Fault | None) -> set[str]:
    """The audit of a forward pass, and of the gradients' flow; in an interpreter of its own, as forks are refused."""
    name = [] if fault is None else [fault.name]
    done = subprocess.run([sys.executable, __file__, *name], check=False, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise NotHere(last) if "NotHere" in last else RuntimeError(last)
    return set(json.loads(done.stdout.strip().rpartition("\n")[2]))


def audited(fault: Fault | None) -> set[str]:
    """What torchlens says, in this process."""
    import torchlens as tl

    ids, targets = batch()
    made = model(fault)
    said = {(each.check, each.severity) for each in tl.debug.audit_trace(tl.trace(made, ids)).findings}
    trace = tl.trace(made, ids, capture=tl.options.CaptureOptions(save_grads=True))
    trace.log_backward(F.cross_entropy(trace[trace.output_layers[0]].out, targets))
    frame = tl.debug.gradient_flow_audit(trace)
    return {f"{check} {severity}" for check, severity in said} | set(
        frame.loc[frame["severity"] > 0, "reason"].map(str)
    )


def anyinit(fault: Fault | None) -> set[str]:
    """What the report of a new init isn't content with."""
    from anyinit import initialize

    try:
        initialize(model(fault), "analytic", lambda: batch()[0], seed=0).assert_healthy()
    except AssertionError as error:
        return set(str(error).partition(": ")[2].split("; "))
    return set()


def mup(fault: Fault | None) -> set[str]:
    """Exponents of the coord check, as sentences; those of the unmutated model are compared by number."""
    from mup.coord_check import get_coord_data

    models = {width: lambda width=width: model(fault, width) for width in WIDTHS}
    options = {"mup": False, "cuda": False, "nsteps": 3, "show_progress": False}
    frame = get_coord_data(
        models, [batch()], optimizer="adam", filter_module_by_name=lambda name: name != "model", **options
    )
    said = set()
    for (module, step), rows in frame.groupby(["module", "t"]):
        with np.errstate(divide="ignore", invalid="ignore"):
            exponent = np.polyfit(np.log(rows["width"]), np.log(rows["l1"]), 1)[0]
        said.add(f"{module} {step}: {exponent:.6f}")
    return said


TOOLS: dict[str, tuple[str, Callable[[Fault | None], set[str]]]] = {
    "fixed thresholds": ("", thresholds),
    "torchlens": ("torchlens", torchlens),
    "AnyInit": ("anyinit", anyinit),
    "mup coord check": ("mup", mup),
}


@dataclass(frozen=True)
class Asked:
    """A tool asked about a fault, or about the unmutated model."""

    tool: str
    fault: Fault | None


def asked(task: Asked) -> set[str] | str:
    """What it says; an error as one sentence; the reason where the fault isn't of this model."""
    try:
        return TOOLS[task.tool][1](task.fault)
    except NotHere:
        return "not here"
    except Exception as error:
        return {f"raised {short(error)}"}


def compared(table: pd.DataFrame, faults: Sequence[Fault], *, jobs: int, seconds: int) -> pd.DataFrame:
    """Faults of the one base × tools.

    Args:
        table: of `detection.py`.
        faults: to ask about.
        jobs: processes at a time.
        seconds: limit of CPU time for one.
    """
    here = [tool for tool, (module, _) in TOOLS.items() if not module or find_spec(module)]
    tasks = [Asked(tool, fault) for tool in here for fault in (None, *faults)]
    said = dict(results(tasks, asked, jobs=jobs, seconds=seconds))
    own = table[(table["base"] == BASE) & (table["planted"] == "yes")].set_index("fault")
    rows = []
    for fault in faults:
        if fault.name in own.index:
            cells = {tool: new(tool, said[Asked(tool, fault)], said[Asked(tool, None)]) for tool in here}
            found = own.loc[fault.name]
            letter = "yes" if found["any"] else "note" if found["note"] else "·"
            rows.append({"fault": fault.name, "group": fault.group, "harm": fault.harm, "initlab": letter} | cells)
    frame = pd.DataFrame(rows)
    harmful = frame[frame["harm"] == "harmful"]
    share = {tool: f"{(harmful[tool] == 'yes').sum()}/{len(harmful)}" for tool in ("initlab", *here)}
    frame.loc[len(frame)] = {"fault": "**harmful, seen**", "group": "", "harm": ""} | share
    frame.attrs["about"] = (
        f"In {BASE}: who says anything that isn't said of the unmutated model (`detection_peers.py` says how each is "
        f"asked). {', '.join(_version(tool) for tool in here if TOOLS[tool][0])}. Of the unmutated model: "
        + "; ".join(f"{tool} {about(said[Asked(tool, None)])}" for tool in here if tool != "mup coord check")
        + "."
    )
    return frame


def about(said: set[str] | str | Death) -> str:
    """What is said of the unmutated model, in short."""
    found = sorted(said) if isinstance(said, set) else [str(said)]
    return f"says «{'; '.join(found)[:200]}»" if found else "says nothing"


def new(tool: str, said: set[str] | str | Death, before: set[str] | str | Death) -> str:
    """Whether a tool says what it doesn't say of the unmutated model.

    Args:
        tool: its name.
        said: of the faulty model.
        before: of the unmutated one.
    """
    if not isinstance(said, set) or not isinstance(before, set):
        return "died"
    if tool == "mup coord check" and not any(each.startswith("raised") for each in said | before):
        one, other = (dict(each.rsplit(": ", 1) for each in part) for part in (said, before))
        off = [abs(float(one.get(key, "nan")) - float(value)) for key, value in other.items()]
        return "·" if all(each <= SLOPE for each in off) else "yes"
    return "yes" if {_plain(each) for each in said} - {_plain(each) for each in before} else "·"


def _plain(sentence: str) -> str:
    return re.sub(r"'[^']*'|[\d.%e+-]+", "#", sentence)


def _version(tool: str) -> str:
    package = TOOLS[tool][0]
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


if __name__ == "__main__":
    print(json.dumps(sorted(audited(next((fault for fault in FAULTS if fault.name in sys.argv[1:]), None)))))
