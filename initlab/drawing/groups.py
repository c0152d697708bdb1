"""What AdamW gets for a model: nanoGPT's two groups, or those of a recipe's optimizer part."""

from __future__ import annotations

from typing import Any

from torch import nn

from initlab.anatomy.look import Anatomy, of
from initlab.anatomy.parameters import Parameter
from initlab.errors import RecipeError
from initlab.recipes import Adam, Recipe, Role


def adam_groups(
    model: nn.Module,
    recipe: Recipe | None = None,
    *,
    lr: float,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    anatomy: Anatomy | None = None,
) -> list[dict[str, Any]]:
    """Group a model's parameters for AdamW; those that are frozen are left out.

    As in nanoGPT's configure_optimizers matrices decay, and vectors and single numbers don't. A recipe with an
    optimizer part has a group for each of its multipliers; parameters of unknown role are trained as the run says.

    Args:
        model: any.
        recipe: drawn into it. None, or one without an optimizer part: one rate for all.
        lr: the run's learning rate.
        weight_decay: the run's.
        eps: the run's.
        anatomy: of the model, where it was looked at before.

    Returns:
        groups with `params`, `lr`, `weight_decay`, `eps`, and `lr_multiplier`, for a schedule to multiply with.

    Raises:
        RecipeError: the recipe has no answer, or two for one fused matrix.
    """
    found: dict[tuple[Adam, bool], list[nn.Parameter]] = {}
    if recipe is None or recipe.optimizer is None:
        found = {(Adam(), True): [], (Adam(), False): []}
        settings = {}
    else:
        looked = of(model) if anatomy is None else anatomy
        settings = {each.name: _of(each, recipe) for each in looked.parameters}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault((settings.get(name, Adam()), parameter.dim() >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * each.lr,
            "weight_decay": weight_decay * each.weight_decay if decays else 0.0,
            "eps": eps * each.eps,
            "lr_multiplier": each.lr,
        }
        for (each, decays), parameters in found.items()
    ]


def _of(found: Parameter, recipe: Recipe) -> Adam:
    if found.role == Role.OTHER:
        return Adam()
    answers = dict.fromkeys(recipe.adam(role, dims) for _, role, dims in found.asked())
    if len(answers) > 1:
        raise RecipeError(
            f"the optimizer part of {recipe.id} treats parts of {found.name} differently, and AdamW has one setting "
            "for a parameter: give each a matrix of its own"
        )
    return next(iter(answers))
