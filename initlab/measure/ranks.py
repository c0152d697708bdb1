"""One model measured by several processes, each on its own batch: what they tell each other.

Every word that passes is an error or a value, on a group of its own that waits for a while and not for good: where one
process raises, the others raise the same at their next word.
"""

from __future__ import annotations

import pickle
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from initlab import errors
from initlab.anatomy.inputs import Inputs
from initlab.anatomy.tensors import changed, tensors
from initlab.errors import ConfigError, InitlabError, ProbeError
from initlab.measure.losses import Judged
from initlab.measure.merging import THIRD, merged
from initlab.measure.moments import Preset
from initlab.measure.recorder import Recorder
from initlab.measure.statistics import Statistic
from initlab.schema import Tables

WAIT = timedelta(minutes=2)  # for a process that doesn't come


class Ranks:
    """The processes that measure a model, and which one this is; of one, everything stays as it is.

    Args:
        group: of gloo, which carries words between CPUs whatever the model is on; None: alone.

    Attributes:
        rank: of this process.
        size: of the group.
        notes: what there is to say of how the model was measured.
        lost: a process didn't come; nothing more can be said.
    """

    def __init__(self, group: Any = None):
        self._group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        self.notes: tuple[str, ...] = ()
        self.lost = False
        self._told = False  # an error has passed: nobody listens any more

    def gathered(self, value: Any) -> list[Any]:
        """Give each process's value to all, in the order of the processes.

        Args:
            value: of this one; anything that pickles, tensors on the CPU.

        Raises:
            InitlabError: another process raised, or didn't come.
        """
        if self.size == 1:
            return [value]
        found = self._exchanged(pickle.dumps(value), "")
        return [pickle.loads(each) for each in found]  # of processes of the caller's own run

    def agreed(self) -> None:
        """Go on only where every process has come so far without an error; before they work on one tensor together."""
        self.gathered(None)

    def tell(self, error: Exception) -> None:
        """Let the others know of an error here, so that they don't wait; the next word begins anew.

        Args:
            error: what was raised; one that was heard from another isn't told again.
        """
        if self.size > 1 and not self._told and not self.lost:
            with suppress(InitlabError):
                self._exchanged(b"", f"{type(error).__name__}: {error}")
        self._told = False

    def close(self) -> None:
        """Leave the group; nothing is said any more."""
        group, self._group = self._group, None
        if group is not None:
            self.lost = True
            with suppress(Exception):  # of a group that is gone
                dist.destroy_process_group(group)

    def _exchanged(self, value: bytes, error: str) -> list[bytes]:
        words: list[Any] = [None] * self.size
        if self.lost:
            raise ProbeError("the other processes of this run are gone")
        try:
            dist.all_gather_object(words, (value, error), group=self._group)
        except Exception as raised:
            self.lost = True
            raise ProbeError(_missing(raised)) from raised
        for number, (_, text) in enumerate(words):
            if text and not error:
                self._told = True
                kind = getattr(errors, text.partition(":")[0], ProbeError)
                raise kind(f"process {number} of {self.size} raised {text}")
        return [each for each, _ in words]

    def same(self, what: str, value: dict[str, Any]) -> None:
        """Refuse what differs between processes.

        Args:
            what: it is, for the error.
            value: of this one; by name.

        Raises:
            ConfigError: another process has another.
        """
        first, *others = self.gathered(value)
        for number, other in enumerate(others, 1):
            wrong = next((name for name in first | other if first.get(name) != other.get(name)), None)
            if wrong is not None:
                shown = f"{first.get(wrong)!r:.80} on process 0 and {other.get(wrong)!r:.80} on process {number}"
                raise ConfigError(f"{what} differ between the processes: {wrong} is {shown}; expected the same")

    def batch(self, inputs: Inputs) -> tuple[Inputs, Inputs]:
        """Put the batches of all processes together.

        Args:
            inputs: of this one.

        Returns:
            the first process's, which all look at the model with; and the whole batch, whose ids and targets are there,
            but whose other tensors are shapes alone.

        Raises:
            ConfigError: they differ in more than the number of samples.
        """
        if self.size == 1:
            return inputs, inputs
        own = inputs.to(torch.device("cpu"))
        shapes = [tuple(tensor.shape) for tensor in _given(own)]
        looked = {f"tensor {n} from its second axis on": shape[1:] for n, shape in enumerate(shapes)}
        self.same("batches", looked | {"holding": [x is not None for x in (own.ids, own.targets, own.labels)]})
        firsts = self.gathered(shapes)
        parts = self.gathered((own.ids, own.targets))
        first = self.gathered(own if self.rank == 0 else None)[0]
        sizes = iter([[each[n][0] if each[n] else 1 for each in firsts] for n in range(len(shapes))])

        def whole(tensor: Tensor) -> Tensor:
            shape = [sum(next(sizes)), *tensor.shape[1:]]
            return torch.empty(shape[: tensor.dim()], dtype=tensor.dtype, device="meta")

        args, kwargs = changed((own.args, own.kwargs), whole)
        ids, targets = (None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True))
        return first, replace(own, args=args, kwargs=kwargs, ids=ids, targets=targets)

    def also(self, preset: Preset) -> tuple[Statistic, ...]:
        """List what must be taken beside the moments for them to be merged.

        Args:
            preset: of the moments.
        """
        return (THIRD,) if self.size > 1 and preset == "full" else ()

    def share(self, judged: Judged, inputs: Inputs) -> Tensor:
        """Weigh the loss of this process's batch so that all of them sum up to the loss of the whole batch.

        Args:
            judged: a mean over this process's targets, tokens or examples.
            inputs: that it was taken of.

        Raises:
            ProbeError: the processes took different losses.
        """
        if self.size == 1:
            return judged.loss
        self.same("losses", {"kind": judged.targets, "gradient": judged.loss.requires_grad})
        counts = self.gathered(_counted(judged, inputs))
        return judged.loss * (counts[self.rank] / sum(counts) if sum(counts) else 1 / self.size)

    def summed(self, gradient: Tensor) -> Tensor:
        """Sum a tensor up over the processes, which call this in one order; `agreed` comes before the first.

        Args:
            gradient: of this process; left as it is.
        """
        if self.size == 1:
            return gradient
        total = gradient.to_dense() if gradient.layout != torch.strided else gradient
        # what is rounded to 16 bits at each sum would depend on how many processes there are
        wide = torch.float32 if total.dtype in (torch.float16, torch.bfloat16) else total.dtype
        total = total.to(wide, copy=True, memory_format=torch.contiguous_format)
        flat = torch.view_as_real(total) if total.is_complex() else total
        dist.all_reduce(flat, group=self._group if total.device.type == "cpu" else None)
        return total.to(gradient.dtype)

    def pool(self, recorder: Recorder, *others: Recorder) -> None:
        """Put together what has no mean: which units never fire, and how many tokens each expert gets.

        Args:
            recorder: of this process's pass, which gets it.
            others: of further passes of its step.
        """
        for other in others:
            for key, largest in other.dead.items():
                recorder.dead[key] = torch.maximum(recorder.dead[key], largest) if key in recorder.dead else largest
        if self.size == 1:
            return
        own = {key: largest.cpu() for key, largest in recorder.dead.items()}
        parts = self.gathered((own, recorder.routers.loads()))
        for key, largest in (each for dead, _ in parts for each in dead.items()):
            own[key] = torch.maximum(own[key], largest) if key in own else largest
        recorder.dead = own
        recorder.routers.count_instead(loads for _, loads in parts)

    def merged(self, *parts: tuple[Tables, Inputs]) -> Tables:
        """Merge the tables of all processes, each with its share of the loss, to those of the whole batch.

        Args:
            parts: of this process, one or several: tables, and the inputs that they are of.
        """
        if self.size == 1 and len(parts) == 1:
            return parts[0][0]
        own = [(each, 0 if of.targets is None else int((of.targets >= 0).sum())) for each, of in parts]
        found = [part for several in self.gathered(own) for part in several]
        of = ("processes", "process") if self.size > 1 else ("micro-batches", "micro-batch")
        return merged([each for each, _ in found], [count for _, count in found], of)


ALONE = Ranks()


def opened() -> Ranks:
    """Open a group of all processes of this run, which each of them does.

    Raises:
        ProbeError: another didn't come.
    """
    if dist.get_world_size() == 1:
        return Ranks()  # which is given notes of its own
    try:
        return Ranks(dist.new_group(backend="gloo", timeout=WAIT))
    except Exception as raised:
        raise ProbeError(_missing(raised)) from raised


def _given(inputs: Inputs) -> list[Tensor]:
    return list(tensors((inputs.args, inputs.kwargs)))


def _counted(judged: Judged, inputs: Inputs) -> int:
    """Of what the loss is a mean."""
    if judged.logits is not None and inputs.targets is not None:
        return int((inputs.targets >= 0).sum())
    if judged.targets == "class labels" and inputs.labels is not None:
        return int((inputs.labels != -100).sum())
    return inputs.n_tokens


def _missing(raised: Exception) -> str:
    minutes = round(WAIT.total_seconds() / 60)
    return (
        f"not every process of the group came within {minutes} minutes: call this on each of them, with the wrapped "
        f"model and its own batch, or on one of them with model.module ({type(raised).__name__}: {raised!s:.200})"
    )
