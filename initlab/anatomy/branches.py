"""The role of each matrix in a transformer block, from its widths, the matrices beside it, and its name.

A name decides only what widths leave open: which of two matrices of n_embd × n_embd is the output, which of two equal
ones is the gate.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace

from initlab.anatomy import labels
from initlab.anatomy.stacks import Matrix
from initlab.recipes import Role
from initlab.recipes.base import INNER, OUTPUTS, QKV

ATTENTION = re.compile(r"attn|attention|(^|_)att(_|$)", re.IGNORECASE)
_MLP = re.compile(
    r"mlp|ffn|feed_?forward|(^|_)ff(wd)?(_|$)|expert|moe|intermediate|dense.*dense|^fc_?\d|linear_?\d|lin\d"
)
# what has an attention's or an MLP's widths and is neither; classes in their own case: GptOssMLP is no SSM
_OTHER, _OTHER_CLASS = re.compile(r"conv|ssm|mamba"), re.compile(r"Conv|SSM|Mamba|RecurrentBlock")
_MLP_OUT = re.compile(
    r"(.*_)?down(_.*)?|fc_?(2|out)|lin(ear)?_?2|dense_?2|w_?2|w_?o|w_?out|c_proj|dense_4h_to_h|ff_out|out(put)?(_.*)?|proj_out|proj"
)
_GATE = re.compile(r"(.*_)?gate(_.*)?|wi_0|w_?g|g_proj|c_gate")
_FIRST = re.compile(r"w_?1|fc_?1|lin(ear)?_?1")
_MLP_IN = re.compile(
    r"(.*_)?up(_.*)?|w_?3|v_?1|fc_?(1|in)?|c_fc|wi(_1)?|w_?i|w_?in|lin(ear)?_?1|dense_?1|dense_h_to_4h|dense|intermediate|ff_(proj|in)"
)


def roles(branch: str, group: list[Matrix], width: int) -> dict[str, Role]:
    """Give one branch's matrices their roles, by name; those that stay open are left out."""
    return attention_roles(group, width) if branch == "attention" else mlp_roles(group, width)


def turned(matrix: Matrix, width: int, role: Role | None = None) -> Matrix:
    """Turn a bare tensor's in and out side the way its role or name says; the shape only tells the stream's side."""
    if matrix.oriented or width not in (matrix.fan_in, matrix.fan_out):
        return matrix
    other = matrix.fan_in if matrix.fan_out == width else matrix.fan_out
    if matrix.heads:
        other *= matrix.heads
        inner = role in INNER or (role is None and bool(labels.fused(matrix.label)))
        return replace(matrix, fan_in=width if inner else other, fan_out=other if inner else width)
    if role in OUTPUTS or role in INNER:
        return replace(matrix, fan_in=width, fan_out=other) if role in INNER else _writing(matrix, width, other)
    writes, reads = _MLP_OUT.fullmatch(matrix.label), _MLP_IN.fullmatch(matrix.label) or _GATE.fullmatch(matrix.label)
    if writes and not reads:
        return _writing(matrix, width, other)
    if reads and not writes:
        return replace(matrix, fan_in=width, fan_out=other)
    return matrix


def _writing(matrix: Matrix, width: int, other: int) -> Matrix:
    return replace(matrix, fan_in=other, fan_out=width)


def branches(group: list[Matrix], width: int) -> list[tuple[str, list[Matrix]]]:
    """Tell attention's matrices from an MLP's: by widths, and by names where those are silent."""
    if not group:
        return []
    wide = [m for m in group if m.fan_out == width and m.fan_in != width]
    within = any(ATTENTION.search(name) for m in group for name in (*m.labels[:-1], *m.classes))
    # a module named in_proj may be anyone's; the tensor is nn.MultiheadAttention's
    plain = [m for m in group if m.label != "in_proj" or m.name.endswith("in_proj_weight")]
    if any(any(map(_OTHER.search, m.labels[:-1])) or any(map(_OTHER_CLASS.search, m.classes)) for m in group):
        return []
    if not within and any(_MLP.search(name.lower()) for m in group for name in (*m.labels[:-1], *m.classes)):
        plain = []  # RWKV's MLP has a key and a value
    queries = [m for m in plain if labels.fused(m.label) or ATTENTION.search(m.label)]
    if within or _is_attention(group, width):
        return [("attention", group)]
    if _is_sequence(group, width):
        return [("mlp", group)]
    # an MLP: one or two matrices into a width of its own, one back
    out: list[tuple[str, list[Matrix]]] = []
    rest = list(group)
    for back in wide:
        into = [m for m in rest if m.fan_in == width and m.fan_out in (back.fan_in, 2 * back.fan_in)]
        into = [m for m in into if m not in queries]
        if 1 <= len(into) <= 2 and back not in queries and back in rest:
            out.append(("mlp", [*into, back]))
            rest = [m for m in rest if m is not back and m not in into]
    if [m for m in rest if m in queries]:
        out.append(("attention", rest))
    elif rest and out and not any(_MLP.search(name.lower()) for m in group for name in (*m.labels, *m.classes)):
        return []  # more than an MLP: Mamba's in_proj and out_proj have an MLP's widths too
    elif rest and any(_MLP.search(name.lower()) for m in rest for name in (*m.labels, *m.classes)):
        out.append(("mlp", rest))
    return out


def _is_attention(group: list[Matrix], width: int) -> bool:
    """One matrix into three times what the other reads, or three in and one back."""
    back = [m for m in group if m.fan_out == width]
    if len(group) == 2:
        return any(m.fan_in == width and m.fan_out == 3 * b.fan_in for b in back for m in group if m is not b)
    if len(group) != 4 or any(m.fan_in != width for m in group if m not in back):
        return False
    square = all(m.fan_in == m.fan_out == width for m in group)
    grouped = len({m.fan_out for m in group if m.fan_in == width and m.fan_out != width}) <= 2 and len(back) == 1
    return square or grouped


def _is_sequence(group: list[Matrix], width: int) -> bool:
    """Two matrices in an nn.Sequential, there and back."""
    if len(group) != 2 or not all(m.name.split(".")[-2].isdigit() for m in group):
        return False
    first, last = group
    return first.parent == last.parent and first.fan_in == last.fan_out == width and first.fan_out == last.fan_in


def attention_roles(group: list[Matrix], width: int) -> dict[str, Role]:
    """Give an attention's matrices their roles."""
    roles = {}
    reads = [m for m in group if m.fan_in == width and m.fan_out != width]
    named = {part for m in group for part in labels.fused(m.label)}
    for m in group:
        parts, out = labels.fused(m.label), labels.ATTN_OUT.fullmatch(m.label)
        query = parts[0] if len(parts) == 1 else Role.ATTN_QKV
        aside = labels.ATTN_OTHER.search(m.label)
        if m in reads:
            # without a name for it: the only one that reads the stream, or one of three beside the output
            if parts or (not aside and (len(reads) == 1 or _is_attention(group, width))):
                roles[m.name] = query
        elif m.fan_out == width and m.fan_in != width and not parts:
            roles[m.name] = Role.ATTN_OUT
        elif parts:  # named so, also the inner matrices of a low-rank query, key or value
            roles[m.name] = query
        elif m.fan_in == m.fan_out == width and not aside and (out or (len(group) == 2 and reads)):
            roles[m.name] = Role.ATTN_OUT
    left = [m for m in group if m.name not in roles and m.fan_out == width and not labels.ATTN_OTHER.search(m.label)]
    if named == set(QKV) and len(left) == 1 and Role.ATTN_OUT not in roles.values():
        roles[left[0].name] = Role.ATTN_OUT  # the one beside query, key and value
    return roles


def mlp_roles(group: list[Matrix], width: int) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    parents = defaultdict(list)  # each expert is an MLP of its own
    for m in group:
        parents[m.parent if len(group) > 3 else ""].append(m)
    for part in parents.values():
        roles |= _one_mlp(part, width)
    return roles


def _one_mlp(group: list[Matrix], width: int) -> dict[str, Role]:
    roles = {}
    reads = []
    for m in group:
        ordered = m.name.split(".")[-2].isdigit() and not m.experts  # nn.Sequential: the first reads, the last writes
        if m.fan_out == width and m.fan_in != width:
            roles[m.name] = Role.MLP_OUT
        elif m.fan_in == width and m.fan_out != width:
            reads.append(m)
        elif m.fan_in == m.fan_out == width:
            if (ordered and m is group[-1] and len(group) > 1) or (_MLP_OUT.fullmatch(m.label) and not ordered):
                roles[m.name] = Role.MLP_OUT
            elif ordered or _MLP_IN.fullmatch(m.label) or _GATE.fullmatch(m.label) or _FIRST.fullmatch(m.label):
                reads.append(m)
    gates = [m for m in reads if _GATE.fullmatch(m.label)]
    if not gates and len(reads) == 2:  # Llama's own w1, beside w3; fc_1 beside fc_2
        gates = [m for m in reads if _FIRST.fullmatch(m.label)]
    for m in reads:
        if len(reads) == 1:
            roles[m.name] = Role.MLP_IN  # alone, also where the gate is fused with it
        elif m in gates and len(gates) == 1:
            roles[m.name] = Role.MLP_GATE
        elif _MLP_IN.fullmatch(m.label) or (len(gates) == 1 and len(reads) == 2):
            roles[m.name] = Role.MLP_IN
    return roles
