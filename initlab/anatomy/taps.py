"""From what was read of a pass to where to look in the next one: a place of a module, or an operation within it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from initlab.anatomy.attending import Read, dropout, scored
from initlab.anatomy.graph import Op, Place, Trace, Value
from initlab.anatomy.norming import normed
from initlab.anatomy.operations import Operation
from initlab.anatomy.sites import HeadTap, RouterTap, Tap
from initlab.anatomy.stream import Block, Stack
from initlab.anatomy.walking import copies_of, origin
from initlab.anatomy.weighing import SCORING, Weighed
from initlab.anatomy.wirings import Branching, Reading
from initlab.wiring import Attention

_OF_MLP = ("mlp_pre", "mlp_linear", "mlp_act")


class Tapping:
    """Taps of one model.

    Args:
        trace: of a pass.
        stacks: of the model.
        readings: of the stacks.
    """

    def __init__(self, trace: Trace, stacks: Sequence[Stack], readings: Sequence[Reading]) -> None:
        self.trace = trace
        self.stacks, self.readings = stacks, readings
        again = {place.module for place in trace.at if place.call > 0}
        # a module that is used again shows more than one tensor
        self.once = {place.module for place in trace.at} | {m for op in trace.ops for m, _ in op.within}
        self.once -= {name for name in again if not self._is_block(name)}

    def _is_block(self, name: str) -> bool:
        return any(name == block.name for stack in self.stacks for block in stack.blocks)

    def taps(self) -> list[Tap]:
        """Every tap of the streams and what is inside their branches, in the order of the pass."""
        found: list[Tap | None] = []
        layer = 0
        for stack, reading in zip(self.stacks, self.readings, strict=True):
            first = next((block for block in stack.blocks if block.start is not None), None)
            if first is not None and not any(tap and tap.site == "embed" for tap in found):
                found.append(self._entering(first, "embed", None))
            for block, branches in zip(stack.blocks, reading.branches, strict=True):
                found += self._of_block(layer, block, branches)
                layer += 1
            if stack.final is not None:
                found.append(self.at(stack.final, "final_norm", None))
        return [tap for tap in found if tap is not None]

    def heads(self) -> list[HeadTap]:
        """Every attention of the blocks."""
        found: list[HeadTap | None] = []
        layer = 0
        for reading in self.readings:
            for branches in reading.branches:
                for one in branches:
                    for read in one.read.heads or [one.read]:
                        found += self._heads(layer, one, read)
                layer += 1
        return [tap for tap in found if tap is not None]

    def routers(self) -> list[RouterTap]:
        """Every router of the blocks' mixtures."""
        blocks = [branches for reading in self.readings for branches in reading.branches]
        found = [self._router(layer, one.read) for layer, branches in enumerate(blocks) for one in branches]
        return [tap for tap in found if tap is not None]

    def _router(self, layer: int, read: Read) -> RouterTap | None:
        routed = read.routed
        if routed is None:
            return None
        source, op = routed.matrix.source, routed.matrix.result.op
        while op is not None and source not in op.inputs:  # a bias stands behind it
            op = next((each.op for each in op.inputs if each.after(source)), None)
        given = None if op is None else op.tap(self.once, source)
        choice = routed.choice.tap(self.once)
        if given is None or choice is None:
            return None
        chosen = (choice[0], replace(choice[1], output=routed.output))
        return RouterTap(layer, routed.matrix.linear.weight, routed.experts, routed.chosen, given, chosen)

    def _of_block(self, layer: int, block: Block, branches: Sequence[Branching]) -> list[Tap | None]:
        if block.start is None or not block.sums:
            # unlike its neighbours; what goes in and comes out of it is looked at all the same
            places = (("resid_pre", block.start), ("resid_post", block.end))
            return [self.at(value, site, layer) for site, value in places if value is not None]
        found: list[Tap | None] = [self._entering(block, "resid_pre", layer)]
        shown = self._norms(block, branches)
        taken: set[str] = set()
        left = list(branches)
        for number, each in enumerate(block.sums):
            for one in left[: len(each.terms)]:
                found += self._of_branch(layer, one, shown, taken)
            left = left[len(each.terms) :]
            if number == 0 and len(block.sums) == 2:
                found.append(self.at(each.value, "resid_mid", layer))
            if each.after is not None and each.after in shown:
                found.append(self.at(each.after, shown[each.after], layer))
        end = block.end if block.end is not None else block.sums[-1].end
        found.append(self.at(end, "resid_post", layer, Place(block.name, "out")))
        return found

    def _norms(self, block: Block, branches: Sequence[Branching]) -> dict[Value, str]:
        """What ln_1 and ln_2 are: the norms that branches read, else those of the sums."""
        given = [one.read.values["ln"] for one in branches if one.read.norm is not None and "ln" in one.read.values]
        if given and len(branches) == len(block.sums) == 2 and branches[0].read.norm is None:
            return {given[0]: "ln_2"}  # what the first branch reads isn't understood
        if not given:
            given = [each.after for each in block.sums if each.after is not None and normed(each.after)]
        named: dict[Value, str] = {}
        for value in given:
            if len(set(named.values())) < 2:
                named.setdefault(value, f"ln_{len(set(named.values())) + 1}")
        return named

    def _of_branch(self, layer: int, one: Branching, shown: dict[Value, str], taken: set[str]) -> list[Tap | None]:
        found: list[Tap | None] = []
        read = one.read
        norm = read.values.get("ln") if read.norm is not None else None
        if norm is not None and norm in shown and shown[norm] not in taken:
            taken.add(shown[norm])
            found.append(self.at(norm, shown[norm], layer))
        if one.branch.site not in taken or read.experts:
            if one.branch.site == "attn_out":
                for each in read.heads or [read]:
                    found += [self._argument(value, op, site, layer) for site, op, value in scored(each)]
                found += [self.at(value, "attn_z", layer) for value in _projected(read)]
            found += [self.at(read.values[site], site, layer) for site in _OF_MLP if site in read.values]
            for expert in read.experts:
                found += [self.at(expert.values[site], site, layer) for site in _OF_MLP if site in expert.values]
        taken.add(one.branch.site)
        return [*found, self._write(layer, one)]

    def _write(self, layer: int, one: Branching) -> Tap | None:
        """What is added, as near to the sum as a module shows it; of what isn't understood also how alike it is."""
        tap = self._written(layer, one)
        known = one.branch.body is not None and not one.branch.conditioned
        return tap if tap is None or known else replace(tap, alike=True)

    def _written(self, layer: int, one: Branching) -> Tap | None:
        term = one.write.term
        scale = one.branch.scale if term.vector is None else term.scale
        if not scale or term.gated:  # what is added, and not what is multiplied
            return self.at(term.value, one.branch.site, layer)
        near = self._undropped(term.core if term.vector is not None or scale != 1 else term.value)
        for value in near:
            tap = self._place(value, one.branch.site, layer, scale)
            if tap is not None:
                return tap
        # by the dropout itself where it is a module that several branches share: before it, it would be another tensor
        last = near[-1].op
        dropped = self.at(near[-1], one.branch.site, layer, scale=scale) if last and dropout(last) > 0 else None
        return dropped or self.at(term.core, one.branch.site, layer, scale=scale)

    def _undropped(self, value: Value) -> list[Value]:
        """A value and those that it is a copy of, back to where dropout was in force."""
        found = []
        for each in copies_of(value):
            found.append(each)
            if each.op is not None and dropout(each.op) > 0:
                break
        return found

    def _entering(self, block: Block, site: str, layer: int | None) -> Tap | None:
        assert block.start is not None
        place = Place(block.name, "in")
        if self.trace.at.get(place) is not None and origin(self.trace.at[place]) is origin(block.start):
            return Tap(site, block.name, "in", layer)
        return self.at(block.start, site, layer)

    def at(
        self, value: Value, site: str, layer: int | None, prefer: Place | None = None, *, scale: float = 1.0
    ) -> Tap | None:
        """Choose where to find a tensor again.

        Args:
            value: the tensor.
            site: what it is.
            layer: the block.
            prefer: a place that is taken if it shows it.
            scale: see `Tap`.
        """
        near = self._undropped(value)
        if prefer is not None and any(prefer in self.trace.places.get(each, ()) for each in near):
            return Tap(site, prefer.module, prefer.where, layer, scale=scale)
        for each in near:
            tap = self._place(each, site, layer, scale)
            if tap is not None:
                return tap
        if value.op is None:
            return None
        told = value.op.tap(self.once)
        if told is None:
            return None
        operation = Operation(told[1].name, told[1].ordinal, None, value.output)
        return Tap(site, told[0], "op", layer, scale=scale, operation=operation)

    def _place(self, value: Value, site: str, layer: int | None, scale: float) -> Tap | None:
        places = [p for p in self.trace.places.get(value, ()) if p.module in self.once and p.call == 0 and p.module]
        place = next((p for p in places if p.where == "out"), next(iter(places), None))
        return None if place is None else Tap(site, place.module, place.where, layer, scale=scale)

    def _argument(self, value: Value, op: Op, site: str, layer: int) -> Tap | None:
        told = op.tap(self.once, value)
        return None if told is None else Tap(site, told[0], "op", layer, operation=told[1])

    def _heads(self, layer: int, one: Branching, read: Read) -> list[HeadTap | None]:
        if read.weighed:
            # the same pattern may weigh several tensors, one after another
            distinct = {(each.query, each.key): each for each in read.weighed}
            batch = read.source.shape[0] if read.source is not None and len(read.source.shape) == 3 else 0
            return [self._weighed(layer, each, batch) for each in distinct.values()]
        return [] if read.score is None else [self._scores(layer, read, read.score, one)]

    def _scores(self, layer: int, read: Read, score: Op, one: Branching) -> HeadTap | None:
        told = score.tap(self.once)
        if told is None:
            return None
        module, operation = told
        body = one.branch.body if isinstance(one.branch.body, Attention) and read is one.read else read.body
        n_head = body.n_head if isinstance(body, Attention) and len(score.inputs[0].shape) == 3 else 0
        given: dict[str, Operation] = {}
        if score.name != SCORING:
            for site, op, value in scored(read):
                name = {"q": "query", "k": "key", "v": "value"}[site]
                inner = op.tap([module], value)
                if inner is not None:
                    given[name] = inner[1]
        biased = not isinstance(body, Attention) or body.bias
        return HeadTap(layer, module, operation, **given, n_head=n_head, biased=biased)

    def _weighed(self, layer: int, each: Weighed, batch: int) -> HeadTap | None:
        """Scores and weights of an attention of another form."""
        if each.score.name == SCORING:
            told = each.score.tap(self.once)
            return None if told is None else HeadTap(layer, *told, biased=True)
        if each.weights is None:
            return None
        op, weights = each.weights
        if len(each.scores.shape) < 4:  # heads without a dimension of their own
            told = each.score.tap(self.once) if weights.op is each.score and each.score.name == "softmax" else None
            n_head = each.scores.shape[0] // batch if batch else 0
            if told is None or not n_head:
                return None
            return HeadTap(layer, *told, n_head=n_head if n_head > 1 else 0, biased=True)
        around = [name for name, _ in op.within if name in self.once]
        shared = [name for name, _ in each.score.within if name in around]
        scores, pattern = each.score.tap(shared, each.scores), op.tap(shared[-1:], weights)
        if scores is None or pattern is None:
            return None
        return HeadTap(layer, scores[0], scores[1], pattern=pattern[1], biased=True)


def _projected(read: Read) -> list[Value]:
    """What output matrices are given: of all heads together, or of each."""
    if "attn_z" in read.values:
        return [read.values["attn_z"]]
    apart = [each.values.get("attn_z") for each in read.heads] + [each.z for each in read.weighed]
    return list(dict.fromkeys(value for value in apart if value is not None))
