"""What names say of a parameter, where its shape and its place leave something open."""

from __future__ import annotations

import re

from initlab.recipes import Role

_LEAD = r"_*(to_?|w_?|c_|in_proj_|linear_|fc_|lin_)?"
_TAIL = r"(_.*|s|lin|proj|linear)?"
# several of query, key and value in one matrix, in the order in which they are named
_FUSED = re.compile(
    _LEAD + r"(qkv|kqv|qk|kv|query_key_value|query_key|key_value|queries_keys_values|keyval(ue)?)" + _TAIL
)
_SINGLE = {
    Role.ATTN_Q: re.compile(_LEAD + r"(q|query|queries)" + _TAIL),
    Role.ATTN_K: re.compile(_LEAD + r"(k|key|keys)" + _TAIL),
    Role.ATTN_V: re.compile(_LEAD + r"(v|val|value|values)" + _TAIL),
}
_ALL_THREE = re.compile(r"c_attn|att_proj|attn_proj|in_proj|w_pack")
ATTN_OTHER = re.compile(r"gate|(^|_)g(_|$)|router|(^|_)ve(_|$)|norm|bias|scale|mix|decay")
ATTN_OUT = re.compile(
    r"c_proj|_*w_?o|o|o_.*|to_out|out|out_.*|proj|proj_out|dense|output.*|att(ention|n)?_out(put)?.*|merge"
)
# matrices that stand in a block and belong to none of its branches
ASIDE = re.compile(
    r"lora|dora|adapter|ada_?ln|ada_?norm|modulation|(^|_)film(_|$)|(^|_)time_?(emb|proj|step|mlp)|hyper|"
    r"value_emb|(^|_)cond(_|$|ition)"
)
# tables that are no vocabulary of the stream: values of attention, classes, times
ASIDE_TABLE = re.compile(
    r"value|(^|_)ves?(_|$)|per_layer|gram(_|s|$)|class|label|(^|_)y(_|$)|time|(^|_)cond|speaker|task"
)
POSITION = re.compile(r"pos(ition)?s?(_|$|emb)|wpe|position|rel(ative)?_|segment|token_type")
TOKEN = re.compile(r"wte|tok|word|embed_tokens|embed_in|shared|vocab|^w_?e$")
BARE_TOKEN = re.compile(r"wte|vocab|(tok|token|word)s?_?emb|emb(ed)?_?tok|^w_?e$")  # not mask_token, memory_tokens
HEAD = re.compile(r"(^|_)(lm_|mlm_|cls_)?head(_|$)|unembed|embed_out|output|decoder|classifier|score|logits|^w_?u$")
# what multiplies a branch: by channel or as a whole
GATE = re.compile(
    r"layer_?scale|(^|_)ls_?\d*(_|$)|gamma|lambda|alpha|(^|_)gate|re_?zero|skip|resid|(?<!logit_)(?<!qk_)scale$"
)
NORM = re.compile(r"norm|(^|_)ln(_?\d+|_f)?(_|$)")
NORM_BIAS = re.compile(r"bias|beta|shift|^b(_?\d)?$|_b$")


def fused(label: str) -> tuple[Role, ...]:
    """Read which of query, key and value a matrix holds, in order.

    Args:
        label: last part of its name, in lower case.

    Returns:
        one role, or several of a fused matrix; none where the name says nothing of them.
    """
    if ATTN_OTHER.search(label):
        return ()
    if _ALL_THREE.fullmatch(label):
        return (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V)
    if found := _FUSED.fullmatch(label):
        letters = {"q": Role.ATTN_Q, "k": Role.ATTN_K, "v": Role.ATTN_V}
        text = found[2]
        words = [w[0] for w in re.findall("quer|key|val", text)] if len(text) > 3 else list(text)
        return tuple(letters[word] for word in words)
    return next(((role,) for role, pattern in _SINGLE.items() if pattern.fullmatch(label)), ())


def last(path: str) -> str:
    """Read the last part of a dotted name that isn't an index, in lower case.

    Args:
        path: of a module or parameter.
    """
    return next((step.lower() for step in reversed(path.split(".")) if not step.isdigit()), "")


def words(path: str) -> list[str]:
    """Read all parts of a dotted name that aren't indices, the last first, in lower case.

    Args:
        path: of a module or parameter.
    """
    return [step.lower() for step in reversed(path.split(".")) if step and not step.isdigit()]
