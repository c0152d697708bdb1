"""Operations of a pass, handed to whoever asked for their tensors; all others pass at the price of a look-up."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode

from initlab.anatomy.operations import Counts, Listening, Operation, operation_name
from initlab.anatomy.tensors import floats, tensors

# operation, its args and kwargs, and what it gave: None before it ran
Heard = Callable[[Operation, tuple[Any, ...], dict[str, Any], Any], None]


class Hearing(Listening):
    """Hands out tensors of operations while a model runs; use through `following`.

    Args:
        wanted: (dotted name of a module, operation within a call of it) -> who gets it, before the operation if its
            `argument` is asked for, else after it.
        attends: whether anybody listens; what runs while it says no isn't counted.

    Attributes:
        n_head: heads of the `nn.MultiheadAttention` that runs, 0 outside one.
    """

    def __init__(self, wanted: Mapping[tuple[str, Operation], list[Heard]], attends: Callable[[], bool]):
        super().__init__()
        self.n_head = 0
        self._attends = attends
        self._counts = Counts()
        self._owners = {module for module, _ in wanted}
        self._wanted: dict[tuple[str, str, int], list[tuple[Operation, Heard]]] = defaultdict(list)
        for (module, operation), takers in wanted.items():
            place = (module, operation.name, operation.ordinal)
            self._wanted[place] += [(operation, taker) for taker in takers]
        self._names = {operation.name for _, operation in wanted}
        self._known: dict[Any, str | None] = {}  # function -> its name, if an operation of that name is wanted
        self._asides = 0
        self._over = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation; that of `nn.MultiheadAttention` says how many heads its tensors hold."""
        if func is not F.multi_head_attention_forward:
            return super().__torch_function__(func, types, args, kwargs)
        before, self.n_head = self.n_head, args[4] if len(args) > 4 else (kwargs or {})["num_heads"]
        try:
            return super().__torch_function__(func, types, args, kwargs)
        finally:
            self.n_head = before

    def heard(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation and give its result."""
        name = self._known.get(func, "")
        if name == "":
            name = operation_name(func)
            self._known[func] = name = name if name in self._names else None
        if name is None or self._over or self._asides or not self._attends():
            return func(*args, **kwargs)
        found: list[tuple[Operation, Heard]] = []
        for module, counts in self._counts.entered:
            found += self._wanted.get((module, name, counts[name]), ())
        self._counts.count(name)
        for operation, taker in found:
            if operation.argument is not None:
                taker(operation, args, kwargs, None)
        output = func(*args, **kwargs)
        for operation, taker in found:
            if operation.argument is None:
                taker(operation, args, kwargs, output)
        return output

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Listen to the passes of a model until the block ends, or `close` is called."""
        modules = [(name, module) for name, module in model.named_modules() if name and name in self._owners]
        with ExitStack() as stack:
            stack.enter_context(self._counts.following(modules))
            if "" in self._owners:  # it may be in the middle of its hooks already
                self._counts.entered.append(("", Counter()))
            stack.callback(self.close)
            self.__enter__()
            yield

    def close(self) -> None:
        """Stop listening, whichever modes were entered since."""
        self._over = True
        _without(self)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run operations of our own, which aren't the model's."""
        self._asides += 1
        modes = _get_current_function_mode_stack()
        on_top = bool(modes) and modes[-1] is self  # to be spared what a mode costs; else it lets everything pass
        if on_top:
            _pop_mode()
        try:
            yield
        finally:
            self._asides -= 1
            if on_top:
                _push_mode(self)


def _without(mode: Listening) -> None:
    """Take a mode off this thread's stack, from wherever it is."""
    above = []
    if mode not in _get_current_function_mode_stack():
        return
    while (top := _pop_mode()) is not mode:
        above.append(top)
    for other in reversed(above):
        _push_mode(other)


def tensor_of(operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
    """The tensor that an operation is given or gives; None where there is none, or no floating-point one.

    Args:
        operation: says which.
        args: of the call.
        kwargs: of the call.
        output: what it gave.
    """
    if operation.argument is None:
        found = next((tensor for place, tensor in enumerate(tensors(output)) if place == operation.output), None)
        return found if found is not None and found.is_floating_point() else None
    given = floats((*args, *kwargs.values()))
    return next((tensor for place, tensor in enumerate(given) if place == operation.argument), None)
