"""What the init code did, read from the table `writes`: the draws of each parameter, and the line that a finding is
about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from initlab.judge import Severity
from initlab.judge.cache import kept
from initlab.judge.rules.base import Case, Finding
from initlab.judge.rules.counting import family, rows_of
from initlab.judge.words import listed, plural, trimmed
from initlab.recipes import Role
from initlab.rundir import Run

AS_FOUND = "as-found"
_MOST = 2  # lines that a finding names
_WHOLE = 0.999  # share of a tensor that parts of it make up
# what is drawn, of a site whose scale it decides
_ROLES: dict[str, tuple[str, ...]] = {
    "embed": (Role.TOKEN_EMBED.value, Role.POS_EMBED.value),
    "logits": (Role.UNEMBED.value, Role.TOKEN_EMBED.value),
    "q": (Role.ATTN_QKV.value, Role.ATTN_Q.value),
    "k": (Role.ATTN_QKV.value, Role.ATTN_K.value),
    "v": (Role.ATTN_QKV.value, Role.ATTN_V.value),
    "attn_logits": (Role.ATTN_QKV.value, Role.ATTN_Q.value, Role.ATTN_K.value),
    "mlp_pre": (Role.MLP_IN.value,),
}


@kept
def writes_of(run: Run) -> pd.DataFrame:
    """The table `writes` with recipe and pattern (`h.*.mlp.c_fc.weight`), in the order in which things were written."""
    rows = run.tables.writes
    if rows.empty:  # as of every model that no function made
        return rows.assign(recipe="", pattern="")
    recipes = dict(zip(run.tables.summary["run_id"].astype(str), run.tables.summary["recipe"].astype(str), strict=True))
    made = rows.assign(
        recipe=[recipes.get(run_id, AS_FOUND) for run_id in rows["run_id"].astype(str)],
        pattern=family(rows["parameter"]),
        distribution=rows["distribution"].astype("string").fillna(""),
        by=rows["by"].astype("string").fillna(""),
        held=rows["held"].astype(str),
        state=rows["state"].astype(str),
    )
    return made.sort_values("order", kind="stable")


def draws_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Writes of whole parameters that aren't scalings, in the memory that the model still has.

    Args:
        rows: of `writes_of`.
    """
    if rows.empty:  # as of every model that no function made
        return rows
    kept_rows = (rows["held"] == "parameter") & (rows["replaced"] == 0) & rows["factor"].isna()
    return rows[kept_rows & (rows["share"] >= 1) & rows["order"].notna()]


def last_draws(rows: pd.DataFrame) -> pd.DataFrame:
    """The last of `draws_of` each parameter.

    Args:
        rows: of `writes_of`.
    """
    return draws_of(rows).drop_duplicates(["run_id", "parameter"], keep="last")


def in_parts(rows: pd.DataFrame) -> set[tuple[str, str]]:
    """(run, parameter) of what is drawn again in parts that make up the whole: thirds of q, k and v, expert by expert.

    Args:
        rows: of `writes_of`.
    """
    if rows.empty:
        return set()
    parts = rows[(rows["replaced"] == 0) & rows["factor"].isna() & (rows["share"] < 1) & rows["order"].notna()]
    both = parts.merge(last_draws(rows)[["run_id", "parameter", "order"]], on=["run_id", "parameter"])
    both = both[both["order_x"] > both["order_y"]]
    shares = both.groupby(["run_id", "parameter"], observed=True)["share"].sum()
    return {(str(run_id), str(name)) for run_id, name in shares.index[shares > _WHOLE]}


def fault(
    case: Case,
    text: str,
    rows: pd.DataFrame,
    *,
    advice: str,
    severity: Severity = "warning",
    measured: float | None = None,
    effect: float | None = None,
) -> Finding:
    """Make the finding of a rule about the one trace that there is.

    Args:
        case: the recipe before the rule.
        text: what is wrong.
        rows: those that are, of which the number is what was measured unless said otherwise.
        advice: what to do.
        severity: of it.
        measured: in the rule's unit.
        effect: what findings are ordered by.
    """
    count = float(len(rows))
    return case.failed(
        text,
        severity=severity,
        measured=count if measured is None else measured,
        effect=count if effect is None else effect,
        advice=advice,
        seeds_failing=1,
        seeds_total=1,
    )


def said(row: pd.Series) -> str:
    """Say what a write did, and where: `model.py:57 (_init_weights: normal_(mean=0.0, std=0.02))`.

    Args:
        row: of `writes_of`.
    """
    place, _, function = str(row["where"]).rpartition(" ")
    did = f"{row['operation']}({row['arguments']})" if len(str(row["arguments"])) < 60 else f"{row['operation']}(…)"
    if not row["arguments"] and row["distribution"] not in ("constant", "computed"):
        did = f"{row['operation']}: {row['text']}"
    if row["by"] == "default":
        did = f"torch's own init, {row['text']}"
    return f"{place} ({function}: {did})"


def patterns(rows: pd.DataFrame) -> str:
    """Name parameters by pattern, with their number: `h.*.mlp.c_proj.weight (12)`.

    Args:
        rows: of parameters, each once.
    """
    names = rows.groupby("pattern", sort=False)["parameter"].agg(list)
    return listed([f"{pattern} ({len(own)})" if len(own) > 1 else str(own[0]) for pattern, own in names.items()])


def with_lines(run: Run, findings: Sequence[Finding], roles: dict[str, tuple[Role, ...]]) -> list[Finding]:
    """Give the findings about parameters the lines that drew them.

    Args:
        run: with the table `writes`, else they stay as they are.
        findings: of any status.
        roles: by code, what a rule is about; findings of other codes stay as they are.
    """
    if run.tables.writes.empty:
        return list(findings)
    rows = writes_of(run)
    return [
        replace(each, drawn_at=_lines(run, rows, each, roles[each.code]))
        if each.status == "fail" and each.code in roles and ".py:" not in each.message  # else it names lines itself
        else each
        for each in findings
    ]


def _lines(run: Run, rows: pd.DataFrame, finding: Finding, roles: Sequence[Role]) -> str:
    own = rows[(rows["recipe"] == finding.recipe) & (rows["held"] == "parameter") & (rows["replaced"] == 0)]
    words = set(re.findall(r"[A-Za-z_][\w.]*\w", finding.message))
    told = [role.value for role in Role if "_" in role.value and role.value in words]  # `other` and `bias` are words
    pairs = own[["parameter", "tied"]].drop_duplicates().itertuples(index=False)
    names = {name for name, tied in pairs if words & {name, *str(tied).split(", ")}} or _about(
        run, finding, told or [role.value for role in roles]
    )
    last = last_draws(own[own["parameter"].isin(names)])
    if last.empty:
        return ""
    order = last.groupby(["where", "operation", "arguments"], sort=False)["parameter"].size().sort_values()[::-1]
    shown = []
    for where, operation, arguments in order.index:
        same = (last["where"] == where) & (last["operation"] == operation) & (last["arguments"] == arguments)
        first = last[same].iloc[0]
        after = own[(own["parameter"] == first["parameter"]) & (own["order"] > first["order"]) & own["factor"].notna()]
        scaled = [
            f", × {trimmed(row['factor'])} at {str(row['where']).rpartition(' ')[0]}" for _, row in after.iterrows()
        ]
        shown.append(said(first) + "".join(scaled[:_MOST]))
    more = f" and {plural(len(shown) - _MOST, 'other draw')}" if len(shown) > _MOST else ""
    return "; ".join(shown[:_MOST]) + more


def _about(run: Run, finding: Finding, roles: Sequence[str]) -> set[str]:
    """Parameters of a finding's site, or else of its rule's roles, in its blocks."""
    weights = rows_of(run, "weight")
    weights = weights[weights["recipe"].astype(str) == finding.recipe]
    kinds = weights["site"].astype(str)
    wanted = [kind for kind in _ROLES.get(finding.site, (finding.site,)) if (kinds == kind).any()] or roles
    found = weights[kinds.isin(wanted)]
    if finding.layer_first is not None:
        last = finding.layer_last if finding.layer_last is not None else finding.layer_first
        inside = found["layer"].between(finding.layer_first, last)
        found = found[inside.fillna(False).astype(bool) | found["layer"].isna()]
    return set(found["module"].astype(str))
