"""Whether what is trained is known to the model."""

from __future__ import annotations

from initlab.judge.remedies import leave
from initlab.judge.rows import Rows
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import seeds, table_of
from initlab.judge.words import listed, plural
from initlab.rundir import Run


def measure_unregistered(run: Run) -> Rows:
    """What holds trainable tensors that the pass used and that aren't the model's parameters, if anything does."""
    declared = table_of(run, "declared")
    return declared[declared["kind"] == "unregistered"]


@rule(
    code="GRD003",
    question="Gradient",
    measures="tensors that require grad, that the pass used, and that model.parameters() doesn't give",
    needs="a probed model of which a pass was followed",
    unit="tensors",
    limit="none",
    basis="derived",
    why="An optimizer that is given model.parameters() never trains them; `.to(device)` leaves them where they are, "
    "state_dict() doesn't save them, and an init that walks over the model's modules doesn't reach them. Of modules in "
    "a plain Python list nothing else can be measured either: no hook finds them.",
    advice="hold modules in an nn.ModuleList or nn.ModuleDict, and tensors as nn.Parameter attributes",
    false_alarms="Parameters that are hidden in a list on purpose and given to the optimizer by hand. Frozen ones (a "
    "hidden teacher's) don't count.",
    source="torch.nn.ModuleList: modules in it are registered; torch.nn.Parameter: so are attributes of that class",
    since="0.1.0",
    about_init=False,
    remedy=leave,
    measure=measure_unregistered,
)
def parameters_unregistered(case: Case, rows: Rows) -> Finding:
    """Judge every run of which it is known."""
    bad = rows[rows["said"] > 0]
    if bad.empty:
        return case.passed("Every trainable tensor that the pass used is a parameter of the model", measured=0.0)
    bad = bad[bad["run_id"] == bad["run_id"][0]]
    count, elements = int(bad["said"].sum()), int(bad["found"].sum())
    held = [str(name) for name in bad["name"] if name]
    whose = f"in {listed(held)}" if held else "in no attribute of its modules"
    are, them = ("is no parameter", "it") if count == 1 else ("are no parameters", "them")
    return case.failed(
        f"{plural(count, 'trainable tensor')} of {elements:,} elements that the pass used {are} of the model "
        f"({whose}): model.parameters() doesn't give {them} to an optimizer",
        severity="error",
        measured=float(count),
        effect=float(count),
        advice=_advice(held) or case.rule.advice,
        **seeds(rows["said"] > 0, rows["seed"]),
    )


def _advice(held: list[str]) -> str:
    """What to hold them in instead, by what holds them."""
    said = []
    for name in held:
        place, _, kind = name.partition(", ")
        what, _, of = kind.partition(" of ")
        wanted = "nn.ParameterDict" if what.endswith("dict") else "nn.ParameterList"
        wanted = wanted if of in ("Parameter", "Tensor") else wanted.replace("Parameter", "Module")
        if not of:
            said.append(f"register {place}: assign it as an attribute, nn.Parameter(tensor) where it is a tensor")
        else:
            said.append(f"make {place} an {wanted}")
    return "; ".join(said)
