"""Inits that look at a batch, as data: what they do, where they were read, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from initlab.errors import RecipeError
from initlab.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """An init that looks at a batch.

    Attributes:
        id: by which `apply_recipe` finds it, as it finds a recipe.
        source: where it was read.
        summary: one sentence.
        note: what it needs, and what of its source it leaves out or does otherwise.
        change: changes the parameters of an `initlab.drawing.profiled.Subject`'s model and gives the names of those
            that it changed; the function, or `module:name` of it, since one that runs a model needs torch.
    """

    id: str
    source: str
    summary: str
    note: str
    change: str | Callable[[Any], set[str]]

    @property
    def usage(self) -> str:
        """The line that applies it."""
        return f'initlab.apply_recipe(model, "{self.id}", batch=ids)'


PROFILED: Registry[Profiled] = Registry("profile", (), RecipeError)


def refuse_profiled(name: object) -> None:
    """Refuse an init that looks at a batch where a recipe is expected. Raises RecipeError.

    Args:
        name: as it was given.
    """
    if isinstance(name, str) and name in PROFILED:
        entry = PROFILED.get(name)
        raise RecipeError(
            f"{name} looks at what a model does with a batch, so that it isn't a recipe, which draws by role and size: "
            f"apply it to a model, {entry.usage}; commands take a function of n_layer and n_embd that makes a model, "
            "does so and returns it"
        )


def _add(entry: Profiled) -> None:
    PROFILED.add(entry.id, entry)


_add(
    Profiled(
        id="lsuv",
        source="Mishkin & Matas 2016, All you need is a good init, 1511.06422; ducha-aiki/LSUV-pytorch@60e9fee (2024) "
        "LSUV.py: LSUVinit, std_tol 0.1, max_attempts 10",
        summary="Every linear and convolutional layer orthonormal, then ÷ the std of its output, in the order of a "
        "pass.",
        note="A fused matrix is one layer, as it is in the code; embeddings stay as they are, unless the head is one "
        "of them. The code also takes the mean off by the bias, which the paper doesn't: biases are 0 here.",
        change="initlab.drawing.lsuv:lsuv",
    )
)
_add(
    Profiled(
        id="admin-profiled",
        source="Liu et al. 2020, Admin, 2004.08249; LiyuanLucasLiu/Transformer-Clinic@70f72b7 (2022) "
        "fairseq/fairseq/modules/transformer_layer.py lines 18, 185-196, adaptive-profiling",
        summary="Every branch of a post-norm model ÷ its ω, with ω² = 1 at first, then var(ω·x) + var(f) of the "
        "branch before.",
        note="Changes the weights that are there: draw the model before (Admin has Glorot's uniform), and once. ω is "
        "put into the output matrices, which is the same function at init; in training it is learned there, and a "
        "matrix that was divided moves ω times as far for its size.",
        change="initlab.drawing.omega:admin_profiled",
    )
)
_add(
    Profiled(
        id="gradinit",
        source="Zhu et al. 2021, GradInit, 2102.08098; zhuchen03/gradinit@777c407 (2022) "
        "fairseq/gradinit/utils/gradinit_utils.py, gradinit_optimizers.py, launch/run_iwslt_14_gradinit_no_clipping.sh",
        summary="Every parameter × a scale that is learned, so that the loss after one step of Adam at a rate of "
        "0.001 is lowest.",
        note="Changes the weights that are there, by one number each, in 780 steps, each as long as two of training. "
        "The gradient's l1 norm is held to 1000 where it is larger, scales to 0.01 at least, 100 at most for gains, "
        "0 at least for biases; tied weights share one. As in the code, the gradient is of two thirds of a batch, and "
        "the loss after the step of two thirds, of which they share one; where the code draws a new batch for each "
        "step, the one that was given is shuffled: give many sequences (with fewer than three, both are all of them). "
        "The loss is what probe would take, without the code's label smoothing. The version for SGD isn't here.",
        change="initlab.drawing.gradinit:gradinit",
    )
)
