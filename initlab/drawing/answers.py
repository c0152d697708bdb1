"""What recipes draw for the parameters of one model, each asked once for parameters that are alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from initlab.anatomy.parameters import Parameter
from initlab.drawing.apply import drawn_from
from initlab.recipes import Dims, Distribution, Recipe


class _Listening(Dims):
    """Sizes that know whether their block was asked for: an answer that didn't ask holds for every block."""

    asked: bool

    def __getattribute__(self, name: str) -> Any:
        if name == "layer":
            object.__setattr__(self, "asked", True)
        return super().__getattribute__(name)

    def __hash__(self) -> int:  # a rule may look sizes up in a table, or keep its answers
        return hash(Dims(**_values(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dims) and all(
            object.__getattribute__(self, name) == object.__getattribute__(other, name) for name in Dims.__slots__
        )


def _values(dims: Dims) -> dict[str, Any]:
    return {name: getattr(dims, name) for name in Dims.__slots__}


class Answers:
    """Keeps what `drawn_from` gives, by recipe and by parameters that differ at most in their block.

    Args:
        parameters: of the model; others can't be asked for.
    """

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self._kinds: dict[str, int] = {}
        self._places: list[Parameter] = []
        self._known: dict[tuple[int, int], list[Distribution]] = {}
        numbers: dict[Any, int] = {}
        for place in parameters:
            kind = place.role, *((role, replace(dims, layer=0)) for _, role, dims in place.asked())
            number = numbers.setdefault(kind, len(numbers))
            self._kinds[place.name] = number
            if number == len(self._places):
                self._places.append(_listening(place))

    def of(self, place: Parameter, recipe: Recipe) -> list[Distribution]:
        """Look up what a parameter is drawn from, as `drawn_from`.

        Args:
            place: of the model.
            recipe: asked; it has to outlive this object.

        Raises:
            RecipeError: as `drawn_from` raises it.
        """
        key = id(recipe), self._kinds[place.name]
        if (found := self._known.get(key)) is not None:
            return found
        first = self._places[key[1]]
        if first.name != place.name:  # the first one's answer was of its block alone
            return drawn_from(place, recipe)
        sizes = [dims for dims in (first.dims, *(dims for _, _, dims in first.parts)) if isinstance(dims, _Listening)]
        for each in sizes:
            object.__setattr__(each, "asked", False)
        found = drawn_from(first, recipe)
        if not any(each.asked for each in sizes):
            self._known[key] = found
        return found


def _listening(place: Parameter) -> Parameter:
    parts = tuple((size, role, _Listening(**_values(dims))) for size, role, dims in place.parts)
    return replace(place, dims=_Listening(**_values(place.dims)), parts=parts)
