"""Tables -> matplotlib figures, one pure function per figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from initlab.errors import ConfigError
from initlab.report.figures import curves, dots, effects, heatmaps, losses, rates, scale, train, watch
from initlab.rundir import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class FigureSpec:
    """A figure of the report. `needs` is empty when it can be drawn, otherwise it says why not."""

    name: str
    title: str
    question: str
    needs: Callable[[Run], str]
    draw: Callable[[Run, str], Figure]
    describe: Callable[[Run], str]


FIGURES: dict[str, FigureSpec] = {
    spec.name: spec
    for spec in (
        FigureSpec(
            name="watch",
            title="Scales over training",
            question="Do the stream, its gradient and the size of the updates settle, or drift away? "
            "Thin lines: the blocks between those named.",
            needs=watch.needs_watch,
            draw=watch.draw_watch,
            describe=watch.describe_watch,
        ),
        FigureSpec(
            name="losses",
            title="Loss curves",
            question="Does it train, and how fast? Of a grid: each recipe's best rate, with the longest warmup. "
            "Thin: seeds; thick: their median. «ln V»: knows nothing; «unigram»: knows how often tokens come, and "
            "no context. What rises more than 1 nat above ln V leaves the panel.",
            needs=losses.needs_losses,
            draw=losses.draw_losses,
            describe=losses.describe_losses,
        ),
        FigureSpec(
            name="rates",
            title="Loss against learning rate",
            question="How wide is the valley of rates that work? Thin: seeds; thick: their median. A run that "
            "diverged counts as ln V; a line that leaves at the top goes there.",
            needs=rates.needs_rates,
            draw=rates.draw_rates,
            describe=rates.describe_rates,
        ),
        FigureSpec(
            name="regret",
            title="Regret",
            question="How much does a recipe lose to the best one, if the rate isn't tuned? Mean over the rates of the "
            "loss, minus the lowest loss of any recipe at this depth.",
            needs=effects.needs_regret,
            draw=effects.draw_regret,
            describe=effects.describe_regret,
        ),
        FigureSpec(
            name="warmup",
            title="Gain of warmup",
            question="Which recipe needs warmup, and from which depth on? An interval that crosses zero says nothing "
            "either way; it is wide enough for all recipes of a depth together.",
            needs=effects.needs_warmup,
            draw=effects.draw_warmup,
            describe=effects.describe_warmup,
        ),
        FigureSpec(
            name="grad-norms",
            title="Gradient norm",
            question="Does the gradient settle, or spike? Runs as in the loss curves. Thin: peaks of each seed; thick: "
            "the median of their means.",
            needs=losses.needs_grad_norms,
            draw=losses.draw_grad_norms,
            describe=losses.describe_grad_norms,
        ),
        FigureSpec(
            name="schedule",
            title="Learning rate",
            question="Which rate was each step made at?",
            needs=losses.needs_schedule,
            draw=losses.draw_schedule,
            describe=losses.describe_schedule,
        ),
        FigureSpec(
            name="trained-residual",
            title="Residual stream, before and after",
            question="Does training keep the scales of the init, or bring all recipes to the same ones? The deepest "
            "model, at each recipe's best rate.",
            needs=train.needs_residual,
            draw=train.draw_residual,
            describe=train.describe_residual,
        ),
        FigureSpec(
            name="trained-gradient",
            title="Gradient, before and after",
            question="Does a gradient that was uneven over the blocks even out? Read from left (output) to right "
            "(embedding).",
            needs=train.needs_gradient,
            draw=train.draw_gradient,
            describe=train.describe_gradient,
        ),
        FigureSpec(
            name="coord",
            title="Coord check",
            question="Does a wider model stay on the scale of a narrow one, before and after each step? Where lines "
            "are flat, a learning rate found on a small model holds for a large one. A point is the median over seeds "
            "of the mean over blocks; resid_post is the last block's.",
            needs=scale.needs_coord,
            draw=scale.draw_coord,
            describe=scale.describe_coord,
        ),
        FigureSpec(
            name="coord-depth",
            title="Depth check after steps",
            question="Does a step move a deep model as far as a shallow one? The change is x after the steps minus x "
            "at init, on the same batch; where it is flat, a learning rate holds at every depth.",
            needs=scale.needs_coord_depth,
            draw=scale.draw_coord_depth,
            describe=scale.describe_coord_depth,
        ),
        FigureSpec(
            name="residual",
            title="Residual stream by layer",
            question="Does the signal keep its scale from the embedding to the last block? "
            "Line: median over seeds; band: their range.",
            needs=curves.needs_residual,
            draw=curves.draw_residual,
            describe=curves.describe_residual,
        ),
        FigureSpec(
            name="branches",
            title="Branch writes by layer",
            question="Who makes the stream grow: how much variance does each attention and each MLP add to it?",
            needs=curves.needs_branches,
            draw=curves.draw_branches,
            describe=curves.describe_branches,
        ),
        FigureSpec(
            name="depth",
            title="Depth check",
            question="Does a deeper model write less per block? Depth-scaled inits fall as L^-1; unscaled ones stay "
            "flat (L^0), and their stream grows with every block added. The MLP is the clean signal: what attention "
            "writes also grows with the correlation between positions.",
            needs=curves.needs_depth,
            draw=curves.draw_depth,
            describe=curves.describe_depth,
        ),
        FigureSpec(
            name="gradients",
            title="Gradient by layer",
            question="Does the gradient keep its scale on the way back? Read from left (output) to right (embedding). "
            "Its level scales as 1/(B·T)² with the batch, its shape does not.",
            needs=curves.needs_gradients,
            draw=curves.draw_gradients,
            describe=curves.describe_gradients,
        ),
        FigureSpec(
            name="gradient-roles",
            title="Gradient by role",
            question="Does any kind of weight get a gradient out of proportion to its own size? "
            "A small dot: weights that start at zero.",
            needs=heatmaps.needs_gradient_roles,
            draw=heatmaps.draw_gradient_roles,
            describe=heatmaps.describe_gradient_roles,
        ),
        FigureSpec(
            name="first-loss",
            title="First loss",
            question="Does the model start out knowing nothing, or confidently wrong? "
            "Line: range over seeds; lighter: shallower models.",
            needs=dots.needs_first_loss,
            draw=dots.draw_first_loss,
            describe=dots.describe_first_loss,
        ),
        FigureSpec(
            name="attention",
            title="Attention entropy",
            question="Does attention start out looking everywhere, or has any head collapsed onto a few tokens?",
            needs=dots.needs_attention,
            draw=dots.draw_attention,
            describe=dots.describe_attention,
        ),
        FigureSpec(
            name="site-map",
            title="Site map",
            question="Where does the model not behave as its weights imply? "
            "Uncoloured: as the closed form says; a small dot: nothing to compare.",
            needs=heatmaps.needs_site_map,
            draw=heatmaps.draw_site_map,
            describe=heatmaps.describe_site_map,
        ),
    )
}


def draw(name: str, run: Run, theme: str = "light") -> Figure:
    """Draw one figure.

    Raises:
        ConfigError: no such figure, or the run doesn't hold what it needs.
    """
    if name not in FIGURES:
        raise ConfigError(f"unknown figure {name!r}; figures: {', '.join(FIGURES)}")
    spec = FIGURES[name]
    reason = spec.needs(run)
    if reason:
        raise ConfigError(f"figure {name} can't be drawn: {reason}")
    return spec.draw(run, theme)
