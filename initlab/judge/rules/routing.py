"""Whether the experts of a mixture all get tokens: what a router chooses, beside what chance would."""

from __future__ import annotations

from collections import Counter

import numpy as np

from initlab.judge.remedies import leave
from initlab.judge.rows import Rows, smallest
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import table_of
from initlab.judge.rules.faults import Fault, verdict
from initlab.judge.words import plural, trimmed
from initlab.rundir import Run


def measure_routing(run: Run) -> Rows:
    """Per router, its loads beside those of random routers on the same tokens.

    `rare`: how probable it is that at least so many experts stay without a token, times the number of routers. An
    expert's tokens are taken as negative binomial, with the mean and variance that they have under random routers,
    which alike tokens make wider than Poisson's; where those left more experts without, as many as they did. `off`: by
    how many standard deviations of a random router's the evenness lies below their mean.
    """
    rows = table_of(run, "routing")
    if rows.empty:
        return rows
    from scipy.special import pdtrc  # slow to import, and most models have no router

    mean = rows["n_tokens"] * rows["chosen"] / rows["experts"]
    wider = np.maximum(rows["load_var_by_chance"], mean * (1 + 1e-9))
    none = (mean / wider) ** (mean**2 / (wider - mean))
    expected = np.maximum(none * rows["experts"], rows["never_by_chance"])
    count = Counter(rows["run_id"])
    routers = np.array([count[run_id] for run_id in rows["run_id"]])
    # how probable as many as these are under Poisson's law
    tail = np.where(rows["never"] > 0, pdtrc(np.maximum(rows["never"] - 1, 0), expected), 1.0)
    spread = np.maximum(rows["evenness_std_by_chance"], 1e-6)
    return rows.assign(
        rare=np.minimum(1, tail * routers),
        off=(rows["evenness_by_chance"] - rows["evenness"]) / spread,
        ratio=np.where(rows["evenness_by_chance"] > 0, rows["evenness"] / rows["evenness_by_chance"], np.nan),
    )


@rule(
    code="ACT003",
    question="Init",
    measures="experts of a mixture that no token of the batch chooses, and how evenly tokens spread over them, beside "
    "what random routers give on the same tokens",
    needs="a mixture whose router chooses each token's best experts, and statistics `full`",
    limits={"ratio": 0.5, "off": 6.0, "rare": 0.001},
    unit="× the evenness of a random router's choice",
    limit="≥ {ratio}, unless within {off} standard deviations of it; and no expert without a token where chance leaves "
    "so many with a probability below {rare}",
    basis="heuristic",
    why="An expert without tokens gets no gradient, and the others learn its part, which keeps tokens away from it: a "
    "router that begins so lopsided has collapsed before the balancing loss can act.",
    advice="draw the router as the other matrices, and its biases at 0",
    false_alarms="Routers that are 0 on purpose, as transformers draws AFMoE's: until the first step all tokens get "
    "the same experts. Routers that prefer some experts on purpose. Choices in groups are a little less even than the "
    "random routers' they are compared with. Where experts choose tokens, nothing is judged.",
    source="Shazeer et al. 2017, 1701.06538, section 4; Fedus et al. 2021, 2101.03961, section 2.2",
    since="0.1.0",
    remedy=leave,
    measure=measure_routing,
)
def lopsided_router(case: Case, rows: Rows) -> Finding:
    """Judge every router by itself."""
    starved = (rows["never"] > 0) & (rows["rare"] < case.limits["rare"])
    uneven = (rows["ratio"] < case.limits["ratio"]) & (rows["off"] > case.limits["off"])
    odd = rows[starved | uneven]
    faults = []
    for some in odd.parts("run_id", sort=True):
        run_id = some["run_id"][0]
        worst = some[smallest(np.where(np.isnan(some["ratio"]), 1, some["ratio"]))]
        name, layers = str(worst["module"]), tuple(int(layer) for layer in some["layer"])
        all_of, never = int((rows["run_id"] == run_id).sum()), int(worst["never"])
        text = f"{len(some)} of {plural(all_of, 'router')} choose lopsidedly, most so {name}: "
        if never:
            by_chance = trimmed(float(worst["never_by_chance"]), 2)
            text += f"{never} of {int(worst['experts'])} experts get no token (random routers leave {by_chance}), and "
        text += (
            f"the busiest gets {100 * float(worst['most']):.0f} % of {int(worst['n_tokens'])} tokens; evenness "
            f"{float(worst['evenness']):.2f}, random routers' {float(worst['evenness_by_chance']):.2f}"
        )
        advice = (
            f"draw {name} at random, every expert's row with the same std, and let nothing else favour an expert: "
            "biases of the router at 0, no constant added to its scores"
        )
        faults.append(Fault(run_id, text, advice, "warning", layers, "router", float(worst["ratio"])))
    return verdict(case, rows, faults, "Every router spreads tokens as a random one does")
