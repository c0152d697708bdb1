"""What differs between two inits, and what of that the draws' luck doesn't explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from initlab.errors import ConfigError
from initlab.judge.differences.pairing import PART, ROLE, held, pairs
from initlab.judge.differences.parameters import parameters
from initlab.judge.differences.roles import roles, stretched
from initlab.judge.differences.sites import Basis, in_order, sites
from initlab.judge.differences.verdicts import STATES, findings
from initlab.judge.differences.wirings import wirings
from initlab.judge.rules import Finding
from initlab.judge.rules.fresh import before_training
from initlab.judge.words import listed, plural
from initlab.rundir import Run

__all__ = ["Compared", "compared", "init_of", "one_recipe"]


@dataclass(frozen=True)
class Compared:
    """Two inits beside each other.

    Attributes:
        names: what A and B are called.
        parameters: see `initlab.judge.differences.parameters.parameters`; without rows where sizes differ.
        roles: see `initlab.judge.differences.roles.roles`.
        sites: see `initlab.judge.differences.sites.sites`, in the order of a forward pass.
        findings: see `initlab.judge.differences.verdicts.findings`.
        wiring: see `initlab.judge.differences.wirings.wirings`.
        basis: what differences of activations and gradients were held against.
        notes: how parameters were matched, what was taken of each run, what can't be compared.
    """

    names: tuple[str, str]
    parameters: pd.DataFrame
    roles: pd.DataFrame
    sites: pd.DataFrame
    findings: pd.DataFrame
    wiring: pd.DataFrame
    basis: Basis
    notes: list[str]

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many roles, parameters, sites, findings and things of the wiring differ."""
        states = self.findings["state"]
        return {
            "roles": int(self.roles.loc[self.roles["differs"], "role"].nunique()),
            "parameters": int(self.parameters["differs"].sum()),
            "sites": int(self.sites["differs"].sum()),
            "wiring": len(self.wiring),
            **{state: int((states == state).sum()) for state in STATES},
        }

    @property
    def differs(self) -> bool:
        """Whether anything does, beyond chance."""
        counts = self.counts
        return any(counts[name] for name in counts if name not in ("unchanged", "not judged in B"))

    @property
    def verdict(self) -> str:
        """One sentence."""
        counts, of = self.counts, self.roles["role"].nunique()
        whole = f"{plural(of, 'role')}, {plural(len(self.sites), 'site')}"
        if not self.differs:
            what = "nothing differs" if self._identical else "nothing differs beyond chance"
            return f"{what[0].upper()}{what[1:]}: {whole}, and the same findings."
        parts = [f"{counts['roles']} of {plural(of, 'role')} differ{'s' * (counts['roles'] == 1)}"]
        parts += [f"{counts['sites']} of {plural(len(self.sites), 'site')} beyond chance"]
        parts += [plural(counts["wiring"], "difference") + " of wiring"] * bool(counts["wiring"])
        changed = [f"{counts[state]} {state}" for state in ("new", "worse", "better", "gone") if counts[state]]
        parts.append(f"findings: {', '.join(changed)}" if changed else "the same findings")
        return "; ".join(parts) + "."

    @property
    def _identical(self) -> bool:
        return bool(len(self.parameters)) and bool(self.parameters["identical"].all())


def one_recipe(run: Run, recipe: str | None, name: str) -> Run:
    """Take the rows of one recipe of a run.

    Args:
        run: of any kind.
        recipe: its id; None: the run has but one.
        name: of the run, in errors.

    Raises:
        ConfigError: there is no such recipe, or there are several and none was named.
    """
    known = list(dict.fromkeys(str(each) for each in run.tables.summary["recipe"].dropna()))
    if recipe is None:
        if len(known) != 1:
            raise ConfigError(
                f"{name} holds {len(known)} recipes ({listed(known, 6)}); name one, as in {name}:{known[0]}"
            )
        recipe = known[0]
    if recipe not in known:
        raise ConfigError(f"{name} holds no recipe {recipe!r}; it holds {', '.join(known)}")
    ids = set(run.tables.summary.loc[run.tables.summary["recipe"] == recipe, "run_id"].astype(str))
    manifest = run.manifest | {"config": run.manifest["config"] | {"recipes": [recipe]}}
    manifest["cells"] = sorted(ids)
    return Run(run.tables.of(*ids), manifest)


def init_of(run: Run, name: str) -> tuple[Run, list[str]]:
    """Take the first step of a run over steps, and of a run that trained what was measured before; and say so.

    Args:
        run: of any kind.
        name: what it is called.
    """
    run = before_training(run)
    steps = run.tables.summary["step"]
    if steps.nunique() < 2 and not (steps > 0).any():
        return run, []
    first = int(steps.min())
    kept = run.tables.at_step(first)
    ids = set(kept.summary["run_id"].astype(str))
    notes = [f"of {name}, a run over steps, step {first} is taken" + "; it is no init" * (first > 0)]
    return Run(kept.of(*ids), run.manifest), notes


def compared(
    a: Run,
    b: Run,
    found_a: Sequence[Finding],
    found_b: Sequence[Finding],
    names: tuple[str, str],
    notes: Sequence[str] = (),
) -> Compared:
    """Compare two inits, at the largest size that both runs hold.

    Args:
        a: of one recipe, its first step alone.
        b: likewise.
        found_a: findings of A, over all its sizes.
        found_b: likewise.
        names: what they are called.
        notes: what is to be said besides.
    """
    size, said = _size(a, b, names)
    notes = [*notes, *said]
    at = [_at(run, size) if size else _deepest(run) for run in (a, b)]
    both = [held(run) for run in at]
    matched = pairs(*both)
    rows = parameters(matched)
    same = False
    if size:
        notes += _matching(rows)
        same = bool(len(rows)) and bool(rows["identical"].all())
    measured = _measured(*at)
    notes += [*measured, *_light(*at)]
    depth = at[0].tables.summary["n_layer"].max() == at[1].tables.summary["n_layer"].max()
    found, basis = sites(*at, blocks=bool(depth) and bool(size), same=same and not measured)
    by_role = roles(rows) if size else stretched(both[0], both[1], _sizes(at[0])[-1], _sizes(at[1])[-1])
    wired = wirings(*at)
    return Compared(
        names=names,
        parameters=rows if size else rows.iloc[:0],
        roles=by_role,
        sites=in_order(found),
        findings=findings(found_a, found_b),
        wiring=wired,
        basis=basis,
        notes=notes,
    )


def _size(a: Run, b: Run, names: tuple[str, str]) -> tuple[tuple[int, int] | None, list[str]]:
    """The largest size that both hold, and what is to be said of sizes."""
    held = [_sizes(run) for run in (a, b)]
    common = sorted(set(held[0]) & set(held[1]))
    shown = []
    for name, own in zip("AB", held, strict=True):
        shown.append(f"{name} {' and '.join(f'{n_layer}×{width}' for n_layer, width in own)}")
    if not common:
        return None, [
            f"other sizes (blocks × width: {', '.join(shown)}): compared by role, std beside std, and at sites outside "
            "the blocks"
        ]
    n_layer, n_embd = common[-1]
    if len(held[0]) == len(held[1]) == 1:
        return common[-1], []
    return common[-1], [
        f"compared at {plural(n_layer, 'block')} of {n_embd}, the largest size of both; findings are of all sizes"
    ]


def _sizes(run: Run) -> list[tuple[int, int]]:
    summary = run.tables.summary
    return sorted(
        {(int(row["n_layer"]), int(row["n_embd"])) for row in summary[["n_layer", "n_embd"]].to_dict("records")}
    )


def _deepest(run: Run) -> Run:
    return _at(run, _sizes(run)[-1])


def _at(run: Run, size: tuple[int, int]) -> Run:
    summary = run.tables.summary
    ids = set(summary.loc[(summary["n_layer"] == size[0]) & (summary["n_embd"] == size[1]), "run_id"].astype(str))
    return Run(run.tables.of(*ids), run.manifest)


def _matching(rows: pd.DataFrame) -> list[str]:
    """How parameters were matched, where names didn't do."""
    count = rows["matched"].value_counts()
    notes = []
    if by_role := int(count.get(ROLE, 0)):
        first = rows[rows["matched"] == ROLE].iloc[0]
        rest = f"; {int(count['name'])} by name" if int(count.get("name", 0)) else ""
        notes.append(
            f"{plural(by_role, 'parameter')} matched by role, block and size, as {first['name_a']} with "
            f"{first['name_b']}{rest}"
        )
    if parts := int(count.get(PART, 0)):
        first = rows[rows["matched"] == PART].iloc[0]
        notes.append(f"{plural(parts, 'part')} of fused matrices matched, as {first['name_a']} with {first['name_b']}")
    turned = rows[(rows["shape_a"] != rows["shape_b"]) & (rows["numel_a"] == rows["numel_b"])]
    turned = turned[turned["matched"] != PART]
    if len(turned):
        notes.append(f"{len(turned)} of the matrices are stored transposed: {turned['shape_a'].iloc[0]} in A")
    if len(rows) and rows["identical"].all():
        notes.append("every parameter holds the very same numbers in A and B")
    return notes


def _measured(a: Run, b: Run) -> list[str]:
    """What of the batches and of the measuring differs, in a sentence each."""
    summaries = [run.tables.summary.iloc[0] for run in (a, b)]
    data = [run.manifest.get("data") or {} for run in (a, b)]
    said = [(column, *(summary[column] for summary in summaries)) for column in ("n_tokens", "block_size", "targets")]
    said += [(key, *(each.get(key) for each in data)) for key in ("label", "tokenizer", "sha256")]
    different = [
        f"{name} {old} and {new}" if name != "sha256" else "other tokens"
        for name, old, new in said
        if str(old) != str(new)
    ]
    seeds = [sorted({int(seed) for seed in run.tables.summary["seed"]}) for run in (a, b)]
    different += ["another seed"] * (seeds[0] != seeds[1] and not different)
    notes = []
    if different:
        notes.append(
            f"A and B may have read different batches ({', '.join(different)}), which moves activations and gradients"
        )
    if (modes := [str(summary["mode"]) for summary in summaries])[0] != modes[1]:
        notes.append(f"A was measured in {modes[0]} mode, B in {modes[1]} mode")
    return notes


def _light(a: Run, b: Run) -> list[str]:
    """What a run without kurtoses can't tell."""
    without = []
    for run, name in ((a, "A"), (b, "B")):
        weights = run.tables.records[run.tables.records["kind"] == "weight"]
        drawn = weights[weights["std"] > 0]
        without += [name] if len(drawn) and drawn["kurtosis"].isna().all() else []
    if not without:
        return []
    were = "was" if len(without) == 1 else "were"
    return [f"{' and '.join(without)} {were} measured with stats=light: distributions aren't compared"]
