"""Which of several ways to call a model works: each is tried without gradients, on the model as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from initlab.anatomy.inputs import Inputs
from initlab.anatomy.operations import Listening, operation_name
from initlab.anatomy.restoring import copied, untouched
from initlab.anatomy.unwrapping import eagerly


class _Careful(Listening):
    """Raises where a GPU would give up: after an id that a table doesn't have it can't be used any more."""

    def heard(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if operation_name(func) == "embedding":
            ids, table = (*args, kwargs.get("input"), kwargs.get("weight"))[:2]
            if isinstance(ids, Tensor) and isinstance(table, Tensor) and ids.is_cuda and ids.numel():
                least, most = (int(each) for each in ids.aminmax())
                if least < 0 or most >= len(table):
                    raise IndexError(f"index {most if least >= 0 else least} is out of range of {len(table)} rows")
        return func(*args, **kwargs)


def first_that_runs(
    model: nn.Module, ways: Iterable[Inputs], seed: int, complete: Callable[[Any, Inputs], bool]
) -> int | Exception | SystemExit:
    """Find the first of some calls that a model's forward takes, and after which it returned all that is wanted.

    Where none is complete, the first that ran.

    Args:
        model: unwrapped; left as it was.
        ways: calls, see `initlab.anatomy.inputs.ways`.
        seed: of what the forward draws.
        complete: tells from what the forward returned whether a call gives all that is wanted.

    Returns:
        The number of the call, or the first error of the forward where each raised.
    """
    device = next(model.parameters()).device
    ran: int | None = None
    first: Exception | SystemExit | None = None
    for number, inputs in enumerate(ways):
        try:
            args, kwargs = copied((inputs.args, inputs.kwargs))  # a forward may write into them
            call = replace(inputs, args=args, kwargs=kwargs).to(device)
            with untouched(model, seed), eagerly(model), torch.no_grad(), _Careful():
                output = call.call(model)
        except (Exception, SystemExit) as error:
            first = first or error
            continue
        if complete(output, inputs):
            return number
        ran = number if ran is None else ran
    if ran is not None:
        return ran
    assert first is not None
    return first
