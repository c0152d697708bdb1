"""The forward recursion: the covariance of the residual stream between positions, from update to update.

What a branch writes goes through a random matrix of its own and is independent of the stream it is added to.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from initlab.judge import activations
from initlab.judge.theory.positions import Array, Grid, View, peakedness
from initlab.judge.theory.settings import MLP, Attention, Block, Branch, Linear, Norm, Setting, Stack, Update
from initlab.judge.theory.states import State, embedding, normalised

Site = tuple[str, int | None]

# std of attention logits. Up to 1, as xavier's, the recursion is right within 5 %; at kaiming's 2 the attention's write
# is predicted at half, and the gradient's growth at twice of what is measured.
STEEP = 1.2
LONG = 256  # blocks, of more of which the backward pass has not everything kept: a tenth of a megabyte each
# of scores that something was added to: so flat, whatever it is hardly moves an average over the keys
FLAT = 0.5


@dataclass(frozen=True, slots=True)
class AttentionTrace:
    """What the backward pass needs of one attention. Vectors are (G,), matrices (G, G) of two different positions."""

    view: View
    query: Array  # mean square of q
    query_between: Array
    own_value: Array  # mean square of v and of k that the other positions don't share
    own_key: Array
    squares: Array  # sum of squared attention weights
    query_back: Array | float  # through the norms of q, k and z
    key_back: Array | float
    out_back: Array | float
    slope: Array | float  # of the soft cap, squared


@dataclass(frozen=True, slots=True)
class Way:
    """One matrix that leads into an MLP, and what its gradient is multiplied with on the way back."""

    site: str
    matrix: Linear
    factor: Array  # E f'^2, or of a gated MLP E f^2 and E (f' up)^2
    factor_between: Array


@dataclass(frozen=True, slots=True)
class MLPTrace:
    """What the backward pass needs of one MLP."""

    ways: tuple[Way, ...]
    inner_back: Array | float


@dataclass(frozen=True, slots=True)
class BranchTrace:
    """One branch: what its norms multiply the gradient with, and its body; None where that isn't known."""

    branch: Branch
    back: Array | float
    body: AttentionTrace | MLPTrace | None
    post_back: Array | float


@dataclass(frozen=True, slots=True)
class UpdateTrace:
    """One update: its branches, and what the norm of the sum multiplies the gradient with."""

    update: Update
    branches: tuple[BranchTrace, ...]
    back: Array | float


Traced = list[tuple[Block, list[UpdateTrace]]]


@dataclass(slots=True)
class StackTrace:
    """One stack: the last state, that behind the final norm, and what the backward pass needs."""

    stack: Stack
    grid: Grid
    last: State
    final: State
    final_back: Array | float
    own: Array  # what a token's own row is multiplied with in the last state
    parts: list[Traced | Callable[[], Traced]] = field(default_factory=list)  # of its blocks in order, or how to get it

    def back(self) -> Iterator[tuple[Block, list[UpdateTrace]]]:
        """Yield its blocks from the last to the first."""
        for part in reversed(self.parts):
            yield from reversed(part if isinstance(part, list) else part())


@dataclass(slots=True)
class Trace:
    """A forward pass: variances by (site, layer), and its stacks."""

    var: dict[Site, float] = field(default_factory=dict)
    stacks: list[StackTrace] = field(default_factory=list)
    scores: dict[int, Array] = field(default_factory=dict)  # by layer, variance of the attention logits within a row
    keys: dict[int, Array] = field(default_factory=dict)  # by layer, how many each query sees
    steep: set[int] = field(default_factory=set)  # layers whose attention is too steep to be followed


def follow(
    setting: Setting, grids: Sequence[Grid], same: float | Array, *, backward: bool = True, strict: bool = False
) -> Trace:
    """Follow the state through the blocks of every stack.

    Args:
        setting: of the model.
        grids: positions of each stack.
        same: probability that two positions hold the same token, a number or one for each pair, (G, G).
        backward: keep what `backward` needs: one (G, G) matrix in float32 for the MLP and one for q, of each block; of
            more than LONG blocks √n at a time, which are followed once more from the state that was kept before them.
        strict: nothing is known of what a steep attention gives; else a rough guess goes on.
    """
    return _Follower(setting, grids, backward=backward, strict=strict).follow(same)


class _Follower:
    """Follows states through the blocks of a setting, and notes what it meets."""

    def __init__(self, setting: Setting, grids: Sequence[Grid], *, backward: bool, strict: bool):
        self.setting, self.grids = setting, grids
        self.backward, self.strict = backward, strict
        self.trace = Trace()
        self._views: dict[tuple[int, int | None, bool, int | None], View] = {}

    def follow(self, same: float | Array) -> Trace:
        for number, (stack, grid) in enumerate(zip(self.setting.stacks, self.grids, strict=True)):
            x, embed_back = embedding(stack, grid, same)
            if stack.terms is not None and not number:
                self.trace.var["embed", None] = x.var(grid)
            own = stack.token * np.sqrt(embed_back) * np.ones(len(grid.size))
            found = StackTrace(stack, grid, x, x, 1.0, own)
            whole = len(stack.blocks)
            size = whole if whole <= LONG else math.isqrt(whole)
            for start in range(0, whole, max(size, 1)):
                part = range(start, min(start + size, whole))
                again = functools.partial(self._again, number, grid, part, x, own, found)
                x, own, traced = self._part(number, grid, part, x, own, found)
                if self.backward:
                    found.parts.append(traced if size == whole else again)
            final, back = normalised(x, stack.final_norm)
            found.last, found.final, found.final_back, found.own = x, final, back, own
            self.trace.stacks.append(found)
        last = self.trace.stacks[-1]
        if last.stack.final_norm is not None:
            self.trace.var["final_norm", None] = last.final.var(last.grid)
        return self.trace

    def _part(
        self, number: int, grid: Grid, part: range, x: State, own: Array, found: StackTrace
    ) -> tuple[State, Array, Traced]:
        """Follow blocks that come one after another."""
        kept: Traced = []
        for place in part:
            block = found.stack.blocks[place]
            x, own, updates = self._block(number, grid, block, x, own, found, first=not place)
            kept.append((block, updates))
        return x, own, kept

    def _again(self, *asked: Any) -> Traced:
        return self._part(*asked)[2]

    def _block(
        self, number: int, grid: Grid, block: Block, x: State, own: Array, found: StackTrace, *, first: bool
    ) -> tuple[State, Array, list[UpdateTrace]]:
        var, layer = self.trace.var, block.layer
        if not first or found.stack.terms is not None:  # what was measured is nothing to expect
            var["resid_pre", layer] = x.var(grid)
        updates = []
        for place, update in enumerate(block.updates):
            total, traces = x.times(update.keep**2), []
            for branch in update.branches:
                write, traced = self._branch(number, grid, branch, layer, x)
                total = total.plus(write)
                traces.append(traced)
            if place == 0 and len(block.updates) == 2:
                var["resid_mid", layer] = total.var(grid)
            x, back = self._norm(total, update.norm, grid, layer)
            own = own * update.keep * np.sqrt(back)
            updates.append(UpdateTrace(update, tuple(traces), back))
        var["resid_post", layer] = x.var(grid)
        return x, own, updates

    def _norm(self, x: State, norm: Norm | None, grid: Grid, layer: int) -> tuple[State, Array | float]:
        out, back = normalised(x, norm)
        if norm is not None and norm.site:
            self.trace.var[norm.site, layer] = out.var(grid)
        return out, back

    def _branch(self, number: int, grid: Grid, branch: Branch, layer: int, x: State) -> tuple[State, BranchTrace]:
        inside, back = self._norm(x, branch.norm, grid, layer)
        body: AttentionTrace | MLPTrace | None = None
        if isinstance(branch.body, Attention):
            out, body = self._attention(number, grid, branch, branch.body, layer, inside)
        elif isinstance(branch.body, MLP):
            out, body = self._mlp(grid, branch, branch.body, layer, inside)
        else:  # as it was measured: behind its norm, its scale and its dropout
            alike = 0.0 if math.isnan(branch.alike) else branch.alike
            write = State(np.full(len(x.q), branch.written), np.full_like(x.o, alike * branch.written))
            return write, BranchTrace(branch, back, None, 1.0)
        out, post_back = self._norm(out, branch.post, grid, layer)
        write = out.times(branch.square, 1 - branch.dropout)
        if branch.seen:
            self.trace.var[branch.site, layer] = write.var(grid)
        return write, BranchTrace(branch, back, body, post_back)

    def _view(self, number: int, attention: Attention) -> View:
        key = (number, attention.cross, attention.causal, attention.window)
        if key not in self._views:
            keys = None if attention.cross is None else self.grids[attention.cross]
            causal = attention.causal and attention.cross is None
            self._views[key] = View(self.grids[number], keys, causal=causal, window=attention.window)
        return self._views[key]

    def _end(self, number: int, x: State) -> State:
        """The last state of another stack; of one that isn't followed before this one nothing is known."""
        if number < len(self.trace.stacks):
            return self.trace.stacks[number].final
        return State(np.full_like(x.q, math.nan), np.full_like(x.o, math.nan))

    def _attention(
        self, number: int, grid: Grid, branch: Branch, attention: Attention, layer: int, x: State
    ) -> tuple[State, AttentionTrace]:
        view = self._view(number, attention)
        other = x if attention.cross is None else self._end(attention.cross, x)
        q, query_back = normalised(x.through(attention.query), attention.query_norm)
        k, key_back = normalised(other.through(attention.key), attention.key_norm)
        v = other.through(attention.value)
        own_key, own_value = k.q - np.diag(k.o), v.q - np.diag(v.o)
        scores, shared, slope = self._scores(attention, view, q, k, own_key)
        squares = peakedness(scores, view.keys)
        steep = grid.mean(np.sqrt(np.maximum(scores, 0))) > STEEP
        z = State(*view.attend(v.q, v.o, squares, 1 - attention.dropout))
        if (not attention.causal or attention.cross is not None) and attention.spread is None:
            z = z.plus(_preferred(view, q, scores, own_value, attention.value.fan_in))
        if steep and self.strict:
            z = State(np.full_like(z.q, np.nan), np.full_like(z.o, np.nan))
        z, out_back = normalised(z.times(attention.head_square), attention.out_norm)
        if branch.seen and attention.cross is None:
            self.trace.scores[layer], self.trace.keys[layer] = scores, view.keys
            if steep:
                self.trace.steep.add(layer)
            scales = attention.query_scale, attention.key_scale, 1.0  # q and k are seen as they enter the product
            for site, state, scale in zip(("q", "k", "v"), (q, k, v), scales, strict=True):
                self.trace.var[site, layer] = state.var(grid) * scale**2
            self.trace.var["attn_logits", layer] = shared
            self.trace.var["attn_z", layer] = z.var(grid)
        elif steep:
            self.trace.steep.add(layer)
        out = z if attention.out is None else z.through(attention.out)
        traced = AttentionTrace(
            view, q.q, q.o.astype(np.float32), own_value, own_key, squares, query_back, key_back, out_back, slope
        )
        return out, traced

    def _scores(
        self, attention: Attention, view: View, q: State, k: State, own: Array
    ) -> tuple[Array, float, Array | float]:
        """Variance of the scores within a row, over all rows, and what a soft cap leaves of their gradient.

        What the keys share, the softmax ignores.
        """
        scale = attention.score_scale**2 * attention.head_size
        grid = Grid(view.sizes[0])
        if attention.cross is not None:
            own = view.over_keys(own) / view.keys
            seen = view.over_keys(k.q) / view.keys
        else:
            seen = k.q
        total = scale * grid.mean(q.q) * Grid(view.sizes[1]).mean(k.q)
        within: Array = scale * q.q * own
        slope: Array | float = 1.0
        if attention.soft_cap is not None and np.isfinite(within).all():
            cap = attention.soft_cap**2
            each = scale * q.q * seen / cap
            square, slope = activations.moments("tanh", each, each, each)
            common, _ = activations.moments("tanh", each, each, each - within / cap)
            within, total = cap * (square - common), cap * grid.mean(square)
        if attention.spread is not None:
            flat = attention.spread <= FLAT**2
            within = np.full_like(within, attention.spread if flat else np.nan)
            total = np.nan
        return within, total, slope

    def _mlp(self, grid: Grid, branch: Branch, mlp: MLP, layer: int, x: State) -> tuple[State, MLPTrace]:
        f, up = mlp.activation, x.through(mlp.up)
        pre = up if mlp.gate is None else x.through(mlp.gate)
        sites = {"mlp_pre": pre} if mlp.gate is None else {"mlp_pre": pre, "mlp_linear": up}
        if np.isnan(pre.q).any():
            square, slope = np.full_like(pre.q, np.nan), np.full_like(pre.q, np.nan)
            between, slope_between = np.full_like(pre.o, np.nan), np.full_like(pre.o, np.nan)
            mean = square
        else:
            square, slope = activations.moments(f, pre.q, pre.q, pre.q)
            between, slope_between = activations.moments(f, pre.q[:, None], pre.q[None, :], pre.o)
            mean = activations.mean(f, pre.q)
        if mlp.gate is None:
            ways: tuple[Way, ...] = (Way("mlp_pre", mlp.up, slope, slope_between.astype(np.float32)),)
            act = State(square, between, mean)
        else:  # what comes up is independent of the gate, and has mean 0
            ways = (
                Way("mlp_linear", mlp.up, square, between.astype(np.float32)),
                Way("mlp_pre", mlp.gate, slope * up.q, (slope_between * up.o).astype(np.float32)),
            )
            act = State(square * up.q, between * up.o)
        act, inner_back = normalised(act, mlp.inner_norm)
        act = act.times(1.0, 1 - mlp.dropout)
        if branch.seen:
            for site, state in (*sites.items(), ("mlp_act", act)):
                self.trace.var[site, layer] = state.var(grid)
        return act.through(mlp.out), MLPTrace(ways, inner_back)


def _preferred(view: View, q: State, scores: Array, own_value: Array, n_embd: int) -> State:
    """What attention gives on top because scores and values are of the same keys.

    A query's scores weigh n_embd directions of what the keys hold, so that keys of high score have values in common:
    variance of the scores / n_embd of a value's own mean square, whatever the number of keys. The even average falls as
    1 / keys: at 512 keys and n_embd 192 this doubles what a first block gives. With a causal mask the first positions,
    which see few keys, outweigh it, and it is left out.
    """
    own = view.over_keys(own_value) / view.keys
    more = scores * (1 - 1 / view.keys) * own / n_embd
    root = np.sqrt(np.divide(more, q.q, out=np.zeros_like(more), where=q.q > 0))  # queries may be drawn as zeros
    return State(more, q.o * root[:, None] * root)
