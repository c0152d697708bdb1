"""The tables: the seam between the half that measures (torch) and the half that judges and shows (no torch).

Every column that initlab itself writes is declared here and nowhere else: name, dtype, unit, and of a statistic how it
scales. One row of `records` is one tensor at one site, step and seed, so statistics are columns and `groupby` answers
most questions.

Tables grow by columns. A reader fills declared columns that a run lacks, but for the required ones, and keeps those it
doesn't know: they are statistics of a user's own, or of a newer initlab.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from types import NoneType
from typing import Any, Literal

import numpy as np
import pandas as pd

from initlab.errors import SchemaError

# Raised only when a reader of the version before would misread a table; a further column is no such change.
SCHEMA_VERSION = 1

# Order of a forward pass; TransformerLens' names for the residual stream, nanoGPT's for what is inside a block.
RESIDUAL_SITES = ("embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "final_norm", "logits")
SITES = (
    "embed",
    "resid_pre",
    "ln_1",
    "q",
    "k",
    "v",
    "attn_logits",
    "attn_pattern",
    "attn_z",
    "attn_out",
    "resid_mid",
    "ln_2",
    "mlp_pre",  # what enters the activation
    "mlp_linear",  # of a gated MLP, the factor that doesn't
    "mlp_act",
    "mlp_out",
    "cross_attn_out",  # a decoder's second attention
    "mixer_out",  # a write that is neither attention nor MLP
    "resid_post",
    "final_norm",
    "logits",
    "module",  # any other layer of a model
)
UNASKED = -1.0  # in the column `reached`
# in the column `where` of the table `behaviour`
FIRST_AXIS, BATCH_AXIS = "first axis", "batch axis"
LABELS_MADE, LABELS_IDS = "targets made by the probe", "labels that are the ids"
FORMATS = ("fp16", "bf16", "e4m3", "e5m2")

Dtype = Literal["string", "category", "int64", "Int64", "float64"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its pandas dtype and what it means, with units.

    Attributes:
        key: rows can't be told apart, or placed, without it.
        taken: of a statistic of a tensor, the lowest preset in which a pass over the tensor takes it.
        degree: of a statistic f, the d in f(a·x) = |a|^d f(x).
    """

    dtype: Dtype
    meaning: str
    key: bool = False
    taken: Literal["light", "full"] | None = None
    degree: int = 0

    @property
    def required(self) -> bool:
        """A table without it can't be read: a key, or a whole number, which can't be NA. One added later is neither."""
        return self.key or self.dtype == "int64"


_KEYS = {
    "run_id": Column("category", "cell of the sweep: one model, drawn once", key=True),
    "recipe": Column("category", "recipe id; `as-found` for a model measured as it was given", key=True),
    "seed": Column("int64", "init seed"),
    "step": Column("int64", "optimizer steps done; 0 = before any update"),
    "n_layer": Column("int64", "blocks in the model"),
    "n_embd": Column("int64", "width of the residual stream"),
}

RECORDS: dict[str, Column] = {
    **_KEYS,
    "layer": Column("Int64", "0-based block; NA for embed, final_norm, logits", key=True),
    "position": Column("int64", "order in the forward pass, for plotting"),
    "site": Column("category", "where: see SITES; for parameters, their role", key=True),
    "kind": Column(
        "category",
        "activation, grad, weight, weight_grad, update, or change: activation minus step 0's; effective: (W - W_0) x "
        "of a matrix, propagating: W_0 (x - x_0); drift: W - W_0 of a parameter in training, origin: W_0 itself",
        key=True,
    ),
    "role": Column("category", "role of a parameter, NA for activations"),
    "module": Column("string", "dotted name in the user's model", key=True),
    "call": Column("int64", "n-th use of the module in one forward pass, from 0"),
    "dtype": Column("category", "dtype of the tensor itself"),
    "n_tokens": Column("int64", "B*T behind the row; gradients of a mean loss scale as 1/(B*T)"),
    "targets": Column("category", "what the loss was taken against; gradients depend on it strongly"),
    # Statistics of the tensor; those with `taken` in the order in which `measure.moments` gives them.
    "numel": Column("int64", "elements", taken="light"),
    "mean": Column("float64", "E[x], over every element", taken="light", degree=1),
    "std": Column("float64", "sqrt(var)", degree=1),
    "var": Column("float64", "E[x^2] - E[x]^2, population", taken="light", degree=2),
    "rms": Column("float64", "sqrt(E[x^2])", degree=1),
    "abs_mean": Column("float64", "E|x|; NaN in preset `light`", taken="full", degree=1),
    "abs_max": Column("float64", "max |x|", taken="light", degree=1),
    "kurtosis": Column("float64", "excess kurtosis, 0 for a Gaussian; NaN in preset `light`", taken="full"),
    "frac_zero": Column(
        "float64", "share that is exactly 0, sampled above 16384 elements but on CUDA; NaN in `light`", taken="full"
    ),
    "frac_nonfinite": Column("float64", "share that is NaN or infinite, exact", taken="light"),
    "frac_minus_inf": Column(
        "float64",
        "share that is -infinity, exact; in a module's output no fault by itself: it hides keys from a softmax",
        taken="light",
    ),
    **{
        f"frac_{edge}_{fmt}": Column(
            "float64", f"share of |x| {word} of {fmt}, as frac_zero; NaN in `light`", taken="full"
        )
        for fmt in FORMATS
        for edge, word in (("under", "nonzero and below the smallest normal"), ("over", "above the largest value"))
    },
    "expected_var": Column("float64", "closed-form prediction of var; NaN where there is none"),
    "together": Column(
        "float64",
        "mean product of two positions of a sequence over the mean square, where the closed form needs it; else NaN",
    ),
    "reached": Column(
        "float64",
        "of a gradient that is 0: 1 = it isn't any more once zeros before it have moved, or another branch is dropped; "
        "0 = it stays 0; -1 = so it does, but it is of a part that this batch gives nothing to, or that another output "
        "than the loss's reads; NaN elsewhere",
    ),
}

HEADS: dict[str, Column] = {
    **_KEYS,
    "layer": Column("Int64", "0-based block", key=True),
    "head": Column("int64", "0-based head, numbered on through the attentions of a block that has several"),
    "n_rows": Column("int64", "query rows sampled"),
    "entropy": Column("float64", "mean entropy of the attention pattern over the sampled rows, nats"),
    "entropy_frac": Column("float64", "mean of entropy / ln(keys visible to the row): 1 = uniform, 0 = one token"),
    "logit_std": Column("float64", "std of the visible attention logits within a row, mean over rows"),
    "entropy_frac_by_input": Column(
        "float64",
        "entropy_frac of the scores without what they have in common in all sequences, as a bias of positions; NaN "
        "where nothing is added to them",
    ),
    "logit_std_by_input": Column("float64", "logit_std of the same"),
    "module": Column("string", "dotted name of the module in which the attention is"),
}

SUMMARY: dict[str, Column] = {
    **_KEYS,
    "n_head": Column("int64", "attention heads"),
    "block_size": Column("int64", "tokens in a sequence, T"),
    "vocab_size": Column("int64", "rows of the token embedding, V"),
    "n_params": Column("int64", "parameters, tied ones once"),
    "n_tokens": Column("int64", "B*T of the measured batch"),
    "mode": Column("category", "train or eval, as the model was found"),
    "targets": Column("category", "what the loss was taken against"),
    "loss": Column("float64", "mean cross entropy of the batch, nats"),
    "ln_vocab": Column("float64", "ln V, the loss of a model that knows nothing, nats"),
    "expected_loss": Column("float64", "closed-form prediction of loss, nats; NaN outside its validity"),
    "logit_std": Column("float64", "std of the logits over all tokens and vocabulary"),
    "expected_logit_std": Column("float64", "closed-form prediction of logit_std"),
    "own_logit": Column("float64", "mean logit of the token that was just read"),
    "expected_own_logit": Column("float64", "closed-form prediction of own_logit"),
    "repeat_rate": Column("float64", "share of the batch's targets equal to the token just read"),
    "token_cosine": Column("float64", "mean cosine between positions in the last residual stream; 1 = rank collapse"),
    "expected_token_cosine": Column("float64", "closed-form prediction of token_cosine"),
    "token_position_ratio": Column("float64", "E[token embedding^2] / E[position embedding^2] entering block 0"),
    "embed_together": Column(
        "float64",
        "E[x_s x_t] / E[x^2] over different positions s, t of a sequence and all channels entering block 0, on 8 "
        "sequences: 0 = positions share nothing, 1 = all the same",
    ),
    "dead_frac": Column("float64", "share of MLP units that are <= 0 on every token of the batch"),
    "seconds": Column("float64", "time to build, draw and measure this cell"),
}

COVERAGE: dict[str, Column] = {
    "run_id": _KEYS["run_id"],
    "kind": RECORDS["kind"],
    "site": RECORDS["site"],
    "expected": Column("int64", "tensors of this site the model should have shown"),
    "fired": Column("int64", "tensors that were measured"),
    "note": Column("string", "why the two differ, or how the site was sampled"),
}

WIRING: dict[str, Column] = {
    **{name: column for name, column in _KEYS.items() if name != "step"},
    "stack": Column("int64", "number of the residual stream in the model, from 0"),
    "layer": Column("Int64", "0-based block; NA of a stack without blocks", key=True),
    "block": Column("string", "its dotted name"),
    "update": Column("Int64", "which sum of the block the branch is added in, from 0; NA of a block without any"),
    "site": RECORDS["site"],
    "module": Column("string", "dotted name of the module that gives what is added"),
    "kind": Column(
        "category",
        "attention, mlp, experts: a mixture of MLPs, unknown: not understood, or unfollowed: the block as a whole",
        key=True,
    ),
    "note": Column("string", "why the stream couldn't be followed through the block; of all its rows"),
    "norm": Column("string", "module of the norm that the branch reads through, empty without one"),
    "post_norm": Column("string", "of what it gives, before it is added"),
    "sum_norm": Column("string", "of the stream after the sum"),
    "keep": Column("float64", "what the sum multiplies the stream with; 0 = the branch replaces it"),
    "scale": Column("float64", "what the branch is multiplied with as it is added"),
    "gain": Column("string", "parameter with a number for each channel that multiplies it"),
    "activation": Column(
        "string", "of an MLP or experts, its name; `function` where it has none, identity where there is none"
    ),
    "gated": Column("Int64", "of an MLP: 1 = two matrices read the stream, of which one gates the other"),
    "up": Column("string", "of an MLP, the weight that reads the stream"),
    "query": Column("string", "of an attention, the weight that gives the queries"),
    "key": Column("string", "and the keys"),
    "causal": Column("Int64", "1 = a position sees those up to its own, 0 = all"),
    "window": Column("Int64", "most positions that one sees, NA without a limit"),
    "score_scale": Column("float64", "what q·k is multiplied with before the softmax"),
    "head_size": Column("Int64", "features of a head's query"),
    "n_head": Column("Int64", "heads of the queries"),
    "n_kv_head": Column("Int64", "heads of keys and values"),
    "rotary": Column("Int64", "1 = queries and keys are rotated by their position"),
    "bias": Column("Int64", "1 = the scores get something added that differs from key to key"),
    "qk_norm": Column("string", "module that normalises the queries"),
    "soft_cap": Column("float64", "c where scores are c·tanh(scores / c); NaN without"),
    "cross": Column("Int64", "stack that gives keys and values, NA where it is the own"),
    "dropout": Column("float64", "probability in force of what it adds, or its attention weights, to be dropped"),
    "detached": Column("Int64", "1 = the gradient of what is added doesn't flow back to the stream that is read"),
    "turned": Column(
        "string",
        "what isn't as a rotation of queries and keys has it: queries or keys (they alone are rotated), values (they "
        "too), uneven (cosines of what is alike depend on more than the distance), still (on no position)",
    ),
    "crossed": Column("string", "what isn't cut into heads, or joined, position by position"),
    "frozen": Column("float64", "share of the block's parameters, by elements, that aren't trained"),
    "aim": Column("category", "what the model's class says that it is trained on: next-token, else, or nothing (NA)"),
    "placeless": Column("string", "what of the model says that it has no positions, `GPT.pos is None`; or empty"),
    "terms": Column("string", "kinds of the summands that the stack begins with; empty where that isn't known"),
    "embed_norm": Column("string", "module of the norm of that sum"),
    "final_norm": Column("string", "module of the norm between the last block and what reads it"),
    "head": Column("string", "weight that gives the logits from the stack, empty without one"),
    "head_module": Column("string", "dotted name of the module that applies it"),
    "tied": Column("Int64", "1 = the token table is the head"),
    "logit_scale": Column("float64", "what the logits are multiplied with"),
    "logit_cap": Column("float64", "c where logits are c·tanh(logits / c); NaN without"),
}

ROUTING: dict[str, Column] = {
    **_KEYS,
    "layer": Column("Int64", "0-based block", key=True),
    "module": Column("string", "dotted name of the parameter by which a router scores the experts of a mixture"),
    "n_tokens": Column("int64", "tokens that chose"),
    "experts": Column("int64", "experts to choose from"),
    "chosen": Column("int64", "that each token gets"),
    "most": Column("float64", "share of the tokens that the busiest expert gets"),
    "never": Column("int64", "experts that no token chose"),
    "never_by_chance": Column("float64", "the same under random routers on these tokens, mean over draws"),
    "load_var_by_chance": Column("float64", "variance of an expert's tokens under them, over draws and experts"),
    "evenness": Column(
        "float64", "(1 / sum of squared shares - chosen) / (experts - chosen): 1 = all alike, 0 = always the same"
    ),
    "evenness_by_chance": Column("float64", "mean of it under random routers on these tokens"),
    "evenness_std_by_chance": Column("float64", "std of it over their draws"),
}

WRITES: dict[str, Column] = {
    "run_id": _KEYS["run_id"],
    "parameter": Column("string", "dotted name; of a tied one, its first", key=True),
    "held": Column("category", "parameter, or buffer", key=True),
    "shape": Column("string", "768×3072"),
    "ndim": Column("Int64", "its dimensions"),
    "holder": Column("string", "class of the module that has it"),
    "tied": Column("string", "its other names, with commas between"),
    "untied": Column("string", "a name that shared this tensor while the model was made, and has one of its own now"),
    "copied": Column("string", "a parameter before it with the same draw, which this one is a copy of"),
    "state": Column(
        "category", "of the finished model: meta: has no memory; unheard: made before, or out of sight; else set"
    ),
    "unset": Column("float64", "share of its elements that nothing ever wrote, or that were written as NaN"),
    "order": Column("Int64", "number of the write among all that were heard, from 0; NA of what was never written"),
    "operation": Column("string", "as the code has it: normal_, mul_, zeros"),
    "arguments": Column("string", "of it, those that are numbers and words"),
    "distribution": Column(
        "category", "normal, cut normal, uniform, constant, given, computed, …; after a scaling too"
    ),
    "text": Column("string", "it with its numbers: normal(0, 0.02)"),
    "mean": Column("float64", "of it; NaN where it has none"),
    "std": Column("float64", "of it; of a cut normal that of the whole one"),
    "factor": Column("float64", "what a scaling multiplied every element with; NaN of other writes"),
    "share": Column("float64", "of the tensor that was written; NaN where that isn't known"),
    "where": Column("string", "file:line function, in the user's code"),
    "by": Column("category", "default: the init of a module of torch's, or code"),
    "made": Column("Int64", "1 = the memory was made with it (zeros), 0 = overwritten"),
    "replaced": Column("Int64", "1 = of memory that the finished model doesn't have under this name any more"),
}

BEHAVIOUR: dict[str, Column] = {
    **{name: column for name, column in _KEYS.items() if name != "step"},
    "check": Column(
        "category",
        "what is asked of passes over two short sequences: later (do positions before a changed token move), context "
        "(do those after it), samples (does the other sequence), order (does the last position, when those before it "
        "are turned round), rows (do two equal sequences differ), targets (how many places on is a token's target), "
        "random (do two passes in eval differ), padding (does what a mask leaves move with what it hides)",
        key=True,
    ),
    "value": Column(
        "float64", "farthest that any of them moves, ‖change‖/‖output‖; of targets, places. NaN: it couldn't be told"
    ),
    "scale": Column("float64", "how far what should move does; of targets, the model's own loss"),
    "noise": Column("float64", "what may move by rounding; of targets, within which two losses are the same"),
    "share": Column("float64", "share of the positions asked that move"),
    "where": Column("string", "positions, modules or the argument concerned"),
    "aim": WIRING["aim"],
    "mode": SUMMARY["mode"],
    "routed": Column("Int64", "1 = a router chooses among experts, which may be full"),
    "note": Column("string", "why it couldn't be told"),
}

DRAWS: dict[str, Column] = {
    **{name: column for name, column in _KEYS.items() if name != "step"},
    "layer": Column("Int64", "0-based block; NA outside the blocks", key=True),
    "module": Column("string", "dotted name; `name[2]`: the third of several matrices in one tensor", key=True),
    "role": Column("category", "its role"),
    "rows": Column("int64", "of the matrix as it is stored; of a gain its numbers"),
    "columns": Column("int64", "of it"),
    "value": Column("float64", "that all its entries have; NaN where they differ"),
    "mean": Column(
        "float64", "of a norm's gain, with what its module adds to it; NaN of a matrix, which `records` has"
    ),
    "spread": Column("float64", "its std over the channels"),
    "stable_rank": Column("float64", "sum of squares / largest singular value squared; 1 = one direction; NaN unknown"),
    "usual_rank": Column("float64", "the same of independent entries: n·m / (√n + √m)²"),
    "odd": Column(
        "string",
        "of a table (tokens, positions, head): its rows whose rms is the farthest from the others'; empty for none",
    ),
    "odd_rms": Column("float64", "their rms; NaN without any"),
    "odd_rest": Column("float64", "the others', the median row's"),
    "like": Column("string", "the earlier weight whose first numbers its own are most alike, scale and mean taken off"),
    "likeness": Column("float64", "their correlation; 1 = one draw, NaN where it is no random draw"),
    "row_blocks": Column("Int64", "equal blocks of rows that it is made of, 1 for none"),
    "row_copies": Column("float64", "share of its rows that repeat an earlier one"),
    "row_which": Column("string", "the first of them, in words"),
    "column_blocks": Column("Int64", "as row_blocks, of columns"),
    "column_copies": Column("float64", "as row_copies"),
    "column_which": Column("string", "as row_which"),
    "shared": Column("Int64", "blocks that hold this very parameter, 1 for its own alone"),
    "shared_as": Column("string", "its name in the next of them"),
    "shared_by": Column("string", "what in the model says that blocks share weights, empty where nothing does"),
    "parts": Column(
        "string", "of a fused matrix each part with its elements, mean and std: `attn_q 4096 0.0001 0.02; attn_k …`"
    ),
}

DECLARED: dict[str, Column] = {
    **{name: column for name, column in _KEYS.items() if name != "step"},
    "kind": Column(
        "category",
        "std, other std (that some weights may have), tied, embed scale, layer scale, zero, constant, least step, "
        "most step, unregistered (trainable tensors that the pass used and that aren't the model's parameters)",
        key=True,
    ),
    "name": Column(
        "string",
        "where the model says so, as config.initializer_range; empty: it has a config without. Of what is unregistered "
        "the attribute that holds it, empty where none does",
    ),
    "said": Column("float64", "what it says; of tied 1 = yes, 0 = no; of what is unregistered, how many tensors"),
    "found": Column("float64", "what is so; NaN where the weights of `records` tell; how many elements they have"),
    "about": Column("string", "of a std the module whose config it is, empty for the whole; else parameters"),
}

TRAINING: dict[str, Column] = {
    "run_id": Column("category", "training run; a row of the table runs", key=True),
    "step": Column("int64", "optimizer steps done before this row's batch; 0 = the init's own loss"),
    "tokens": Column("int64", "tokens trained on before this row's batch"),
    "lr": Column("float64", "learning rate of the step that follows"),
    "loss": Column("float64", "mean cross entropy of the training batch, nats"),
    "val_loss": Column("float64", "mean cross entropy of the evaluation batches, nats; NaN between evaluations"),
    "grad_norm": Column("float64", "2-norm of all gradients together, before clipping"),
    "tokens_per_second": Column("float64", "since the row before; NaN where it wasn't timed"),
    "mfu": Column("float64", "share of the GPU's bf16 peak, nanoGPT's count of operations; NaN on other devices"),
}

RUNS: dict[str, Column] = {
    **{name: column for name, column in _KEYS.items() if name != "step"},
    "lr": Column("float64", "peak learning rate"),
    "warmup": Column("int64", "steps of linear warmup; 0 = none"),
    "steps": Column("int64", "optimizer steps planned"),
    "steps_done": Column("int64", "optimizer steps made; fewer where the loss stopped being finite"),
    "tokens": Column("int64", "tokens trained on"),
    "n_params": SUMMARY["n_params"],
    "ln_vocab": SUMMARY["ln_vocab"],
    "unigram_loss": Column("float64", "loss of predicting the training split's token frequencies on the other, nats"),
    "first_loss": Column("float64", "val_loss before the first step, nats"),
    "val_loss": Column("float64", "val_loss after the last step, nats; NaN where the run diverged"),
    "seconds": Column(
        "float64", "wall time of the run, evaluations among it; its share where runs are trained side by side"
    ),
}

_OWN = Column("float64", "a statistic that isn't initlab's own")

TABLES: dict[str, dict[str, Column]] = {
    "records": RECORDS,
    "heads": HEADS,
    "summary": SUMMARY,
    "coverage": COVERAGE,
    "wiring": WIRING,
    "routing": ROUTING,
    "writes": WRITES,
    "behaviour": BEHAVIOUR,
    "draws": DRAWS,
    "declared": DECLARED,
    "training": TRAINING,
    "runs": RUNS,
}


def extras(name: str, columns: Iterable[str]) -> list[str]:
    """Those among a table's columns that aren't declared: a user's own, in their order."""
    return [column for column in columns if column not in TABLES[name]]


def table(name: str, rows: list[dict[str, object]], extra: Sequence[str] = ()) -> pd.DataFrame:
    """Make a table from rows; columns that a row lacks are NA.

    Args:
        name: of the table.
        rows: column -> value.
        extra: columns that aren't declared, of numbers; they come last.

    Raises:
        SchemaError: a row holds a column that is neither declared nor among `extra`, or a value that its dtype can't.
    """
    columns = TABLES[name] | dict.fromkeys(extra, _OWN)
    unknown = sorted({key for row in rows for key in row} - set(columns))
    if unknown:
        raise SchemaError(f"unknown columns for table {name}: {', '.join(unknown)}")
    made = {key: _column(spec.dtype, [row.get(key) for row in rows]) for key, spec in columns.items()}
    for key, values in made.items():
        if values is None:
            made[key] = pd.Series([row.get(key) for row in rows], dtype=object)
    frame = pd.DataFrame(made)
    return frame if all(values.dtype != object for values in made.values()) else cast(name, frame)


def _column(dtype: Dtype, values: list[Any]) -> Any:
    """Values as an array of the declared dtype, where they are plain Python ones; else None, and `cast` looks closer.

    What `cast` makes of the same values, for a tenth of the time.
    """
    kinds = {type(value) for value in values}
    if dtype == "float64" and all(issubclass(kind, float) or kind in (int, NoneType) for kind in kinds):
        return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    if dtype == "int64" and kinds <= {int, float} and all(float(value).is_integer() for value in values):
        return np.array([int(value) for value in values], dtype=np.int64)
    if dtype == "Int64" and kinds <= {int, NoneType}:
        return pd.array(values, dtype="Int64")
    if dtype == "string" and kinds <= {str, NoneType}:
        return pd.array(["" if value is None else value for value in values], dtype="string")
    if dtype == "category" and kinds <= {str, NoneType}:
        known = sorted({value for value in values if isinstance(value, str)})
        places = {value: place for place, value in enumerate(known)}
        codes = [places.get(value, -1) for value in values]
        return pd.Categorical.from_codes(codes, categories=pd.Index(known, dtype="string"))
    return None


def cast(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Give every column its declared dtype and order; the frame may come from a CSV file, and from any version.

    Declared columns that the frame lacks are NA. Columns that aren't declared come last, in the frame's order: float64
    if they hold numbers, else text.

    Raises:
        SchemaError: required columns are missing, or a column holds values that its dtype can't.
    """
    columns = TABLES[name]
    missing = [column for column, spec in columns.items() if spec.required and column not in frame.columns]
    if missing:
        raise SchemaError(
            f"table {name} lacks the columns {', '.join(missing)}, which every version of initlab writes; the file is "
            "damaged, or isn't a run's"
        )
    out = {}
    for column, spec in columns.items():
        values = frame[column] if column in frame.columns else pd.Series(pd.NA, frame.index, dtype=object)
        try:
            out[column] = _typed(values, spec.dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise SchemaError(f"table {name}, column {column}: not {spec.dtype}: {error}") from None
    for column in extras(name, frame.columns):
        try:
            out[column] = _typed(frame[column], _OWN.dtype)
        except (TypeError, ValueError):
            out[column] = _typed(frame[column], "string")
    return pd.DataFrame(out, index=frame.index)


def _typed(values: pd.Series, dtype: Dtype) -> pd.Series:
    if values.dtype == dtype and dtype in ("float64", "int64"):
        return values
    if dtype == "float64" and values.dtype == object:
        values = values.where(values.notna(), np.nan)
    # A category of strings: an all-NA column would otherwise become a category of floats. Int64 on the way to int64
    # refuses to cut 1.5 down to 1. A text is never NA: a CSV file can't tell NA from "".
    made = values.astype({"category": "string", "int64": "Int64"}.get(dtype, dtype))
    return made.fillna("") if dtype == "string" else made.astype(dtype)


@dataclass
class Tables:
    """The tables of a run. Built empty, or from frames that follow the schema."""

    records: pd.DataFrame = field(default_factory=lambda: table("records", []))
    heads: pd.DataFrame = field(default_factory=lambda: table("heads", []))
    summary: pd.DataFrame = field(default_factory=lambda: table("summary", []))
    coverage: pd.DataFrame = field(default_factory=lambda: table("coverage", []))
    wiring: pd.DataFrame = field(default_factory=lambda: table("wiring", []))
    routing: pd.DataFrame = field(default_factory=lambda: table("routing", []))
    writes: pd.DataFrame = field(default_factory=lambda: table("writes", []))
    behaviour: pd.DataFrame = field(default_factory=lambda: table("behaviour", []))
    draws: pd.DataFrame = field(default_factory=lambda: table("draws", []))
    declared: pd.DataFrame = field(default_factory=lambda: table("declared", []))
    training: pd.DataFrame = field(default_factory=lambda: table("training", []))
    runs: pd.DataFrame = field(default_factory=lambda: table("runs", []))

    @classmethod
    def concat(cls, parts: list[Tables]) -> Tables:
        """Stack the tables of several cells."""
        merged = {}
        for name in TABLES:
            frames = [frame for part in parts if len(frame := getattr(part, name))]
            merged[name] = cast(name, pd.concat(frames, ignore_index=True)) if frames else table(name, [])
        return cls(**merged)

    def of(self, *run_ids: str) -> Tables:
        """The rows of one cell, or of several."""
        return Tables(**{name: frame[frame["run_id"].isin(run_ids)] for name, frame in self.items()})

    def giving(self, **columns: Any) -> Tables:
        """The tables with other values in some columns, of those that have them.

        Args:
            **columns: a value for all rows, or a function of the column as texts.
        """
        frames = {}
        for name, frame in self.items():
            new = {
                column: value(frame[column].astype(str)) if callable(value) else value
                for column, value in columns.items()
                if column in frame
            }
            frames[name] = cast(name, frame.assign(**new)) if new and len(frame) else frame
        return Tables(**frames)

    def at_step(self, step: int) -> Tables:
        """The rows of one step; coverage, wiring, behaviour, writes and runs are of the models, at any step."""
        return Tables(
            **{name: frame[frame["step"] == step] if "step" in frame else frame for name, frame in self.items()}
        )

    def items(self) -> list[tuple[str, pd.DataFrame]]:
        """(name, frame) of every table, in the order of TABLES."""
        return [(item.name, getattr(self, item.name)) for item in fields(self)]
