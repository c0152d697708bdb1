"""GradInit: each parameter's scale learned on a batch, so that one step of Adam leads to the lowest loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from initlab.anatomy.inputs import Inputs
from initlab.anatomy.tensors import changed, tensors
from initlab.drawing.profiled import Subject
from initlab.errors import RecipeError
from initlab.recipes import Role

Values = dict[str, Tensor]
Loss = Callable[[Values], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Numbers of the published runs on translation, with Adam.

    Attributes:
        eta: rate of the step that is looked ahead.
        gamma: largest l1 norm of the gradient; where it is larger, a step lowers it instead of the loss.
        lr: of Adam on the scales.
        betas: of Adam on the scales.
        steps: of Adam on the scales.
        least: smallest scale.
        most: largest scale of a gain.
    """

    eta: float = 1e-3
    gamma: float = 1e3
    lr: float = 2.5e-3
    betas: tuple[float, float] = (0.9, 0.98)
    steps: int = 780
    least: float = 0.01
    most: float = 100.0


def gradinit(subject: Subject) -> set[str]:
    """Multiply every trained parameter with a learned scale; see `initlab.recipes.profiled`.

    Args:
        subject: the model, and the batch.

    Raises:
        RecipeError: the loss or its gradient isn't finite, or has no second derivative; nothing can be trained.
        ConfigError: the forward raises, or there is no loss.
    """
    settings = Settings()
    named = {name: p for name, p in subject.model.named_parameters() if p.requires_grad and p.is_floating_point()}
    values = {name: _wide(p.detach()).clone() for name, p in named.items()}
    if not values:
        raise RecipeError(
            f"{type(subject.model).__name__} has no parameter that is trained, which GradInit could scale"
        )
    inputs, rest = subject.inputs, dict[str, Tensor]()
    if any(value.dtype != named[name].dtype for name, value in values.items()):  # 0.001 is lost in 16 bits
        others = {**dict(subject.model.named_parameters()), **dict(subject.model.named_buffers())}
        rest = {name: _wide(value.detach()) for name, value in others.items() if name not in values}
        args, kwargs = changed((inputs.args, inputs.kwargs), _wide)
        inputs = replace(inputs, args=args, kwargs=kwargs)
    generator = torch.Generator().manual_seed(subject.seed)

    def losses() -> tuple[Loss, Loss]:
        first, second = halves(inputs, generator)
        return lambda held: subject.loss(first, rest | held), lambda held: subject.loss(second, rest | held)

    scales = learn(values, losses, _bounds(values, subject, settings), settings, subject.told)
    with torch.no_grad():
        for (name, value), scale in zip(values.items(), scales, strict=True):
            named[name].copy_(value * scale)
    return {name for name, value in values.items() if bool(value.any())}


def meta_gradient(
    values: Values, scales: Tensor, first: Loss, second: Loss, settings: Settings
) -> tuple[Tensor, float]:
    """Differentiate, by the scales, the loss after a step of Adam from zero moments: θ - η·sign(g).

    Where g's l1 norm is larger than gamma, differentiate that norm. The step counts as a constant, as in the code: the
    sign has no derivative. The loss is ÷ η, as there.

    Args:
        values: parameters before they are scaled.
        scales: one number each.
        first: the loss that g is of.
        second: the loss after the step.
        settings: eta and gamma.

    Returns:
        the gradient, in float64, and the l1 norm of g.
    """
    scales = scales.detach().requires_grad_()
    scaled = _scaled(values, scales)
    steps = _gradients(first(scaled), scaled)
    norm = float(sum(each.abs().sum() for each in steps))
    if norm > settings.gamma:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            scaled = _scaled(values, scales)
            steps = _gradients(first(scaled), scaled, create_graph=True)
            aim = sum((each.abs().sum() for each in steps), torch.zeros(()))
            return _by_scales(aim, scales), norm
    after = {name: each - settings.eta * step.sign() for (name, each), step in zip(scaled.items(), steps, strict=True)}
    return _by_scales(second(after) / settings.eta, scales), norm


def learn(
    values: Values,
    losses: Callable[[], tuple[Loss, Loss]],
    bounds: tuple[Tensor, Tensor],
    settings: Settings,
    told: Callable[[int], None] = lambda steps: None,
) -> Tensor:
    """Learn a scale for each parameter, by an Adam for the loss and another for the gradient's norm.

    Args:
        values: parameters before they are scaled.
        losses: makes the two losses of a step, see `meta_gradient`.
        bounds: least and largest of each scale, in float64.
        settings: of it.
        told: of every step, with how many there are.

    Returns:
        the scales, in float64, in the order of the values.

    Raises:
        RecipeError: a gradient isn't finite.
    """
    scales = torch.ones_like(bounds[0])
    adams = [torch.optim.Adam([scales], lr=settings.lr, betas=settings.betas) for _ in range(2)]
    for step in range(settings.steps):
        gradient, norm = meta_gradient(values, scales, *losses(), settings)
        if not bool(gradient.isfinite().all()):
            raise RecipeError(
                f"GradInit: the gradient isn't finite after {step} of {settings.steps} steps; expected a model whose "
                "loss is finite, and no dtype that overflows"
            )
        scales.grad = gradient
        adams[norm > settings.gamma].step()
        torch.clamp(scales, *bounds, out=scales)
        told(settings.steps)
    return scales


def _bounds(values: Values, subject: Subject, settings: Settings) -> tuple[Tensor, Tensor]:
    """Of each scale by what its parameter is for: biases may go to 0."""
    roles = {each.name: each.role for each in subject.anatomy.parameters}
    biases = (Role.BIAS, Role.NORM_BIAS)
    least = [0.0 if roles.get(name) in biases else settings.least for name in values]
    most = [settings.most if roles.get(name) == Role.NORM_GAIN else math.inf for name in values]
    return torch.tensor(least, dtype=torch.float64), torch.tensor(most, dtype=torch.float64)


def halves(inputs: Inputs, generator: torch.Generator) -> tuple[Inputs, Inputs]:
    """Shuffle the rows of a batch, and take the first two thirds and the last two, which share a third.

    Args:
        inputs: whole; both are it where it has fewer than three rows, or something in it isn't row by row.
        generator: of the order.
    """
    beside = (inputs.ids, inputs.targets, inputs.labels, inputs.own_labels)
    found = list(tensors((inputs.args, inputs.kwargs, beside)))
    rows = len(found[0]) if found and all(each.dim() for each in found) else 0
    if rows < 3 or any(len(each) != rows for each in found):
        return inputs, inputs
    order = torch.randperm(rows, generator=generator)
    third = rows // 3

    def taken(at: Tensor) -> Inputs:
        def rows_of(value: Any) -> Any:
            return changed(value, lambda tensor: tensor[at.to(tensor.device)])

        ids, targets, labels, own = map(rows_of, beside)
        args, kwargs = rows_of((inputs.args, inputs.kwargs))
        return replace(inputs, args=args, kwargs=kwargs, ids=ids, targets=targets, labels=labels, own_labels=own)

    return taken(order[: rows - third]), taken(order[third:])


def _scaled(values: Values, scales: Tensor) -> Values:
    return {name: value * scale.to(value) for (name, value), scale in zip(values.items(), scales.unbind(), strict=True)}


def _gradients(loss: Tensor, scaled: Values, create_graph: bool = False) -> list[Tensor]:
    try:
        found = torch.autograd.grad(loss, list(scaled.values()), create_graph=create_graph, allow_unused=True)
    except RuntimeError as error:
        what = "its gradient's norm can't be differentiated" if create_graph else "the loss has no gradient"
        raise RecipeError(f"GradInit: {what}: {error}") from error
    return [torch.zeros_like(v) if g is None else g for g, v in zip(found, scaled.values(), strict=True)]


def _by_scales(aim: Tensor, scales: Tensor) -> Tensor:
    try:
        # grad(aim, [scales]) would walk past the error of what is marked as differentiable once, which isn't on the way
        aim.backward()
    except RuntimeError as error:
        raise RecipeError(f"GradInit can't differentiate by the scales: {error}") from error
    return torch.zeros_like(scales) if scales.grad is None else scales.grad


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
