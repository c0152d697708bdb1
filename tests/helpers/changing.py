"""Tiny models whose forward changes them, each in its own way, and all that there is to compare of one."""

import copy
import random
from collections import Counter, OrderedDict, deque

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Mix(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.mix(self.norm(x))


class Forced(Mix):
    """EDM2's forced weight normalisation: in train mode alone."""

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.mix.weight.copy_(F.normalize(self.mix.weight, dim=1) * 3)
        return super().forward(x)


class Writing(Mix):
    """Writes into its weights in the way that it was made with."""

    def __init__(self, write):
        super().__init__()
        self.write = write
        self.table = nn.Embedding(4, 8, max_norm=0.1)

    def forward(self, x):
        with torch.no_grad():
            self.write(self)
        return super().forward(x) + self.table.weight.sum() * 0


def replaced(model):
    model.mix.weight.data = torch.ones(8, 8)


def another(model):
    model.mix.weight = nn.Parameter(torch.ones(8, 8))


def turned(model):
    model.mix.weight.t_()


def rows(model):
    model.table(torch.tensor([1, 2]))


def out(model):
    torch.mul(model.mix.weight, 2, out=model.mix.weight)


def added(model):
    model.mix.weight += 1


def frozen(model):
    model.mix.requires_grad_(False)
    model.norm.eval()


WRITES = {
    "data": lambda m: m.mix.weight.data.mul_(2),
    "detached": lambda m: m.mix.weight.detach().mul_(2),
    "a view": lambda m: m.mix.weight[2:4].zero_(),
    "an item": lambda m: m.mix.weight.__setitem__(0, 7.0),
    "several at once": lambda m: torch._foreach_mul_(list(m.mix.parameters()), 2.0),
    "numpy": lambda m: m.mix.weight.detach().numpy().fill(0),
    "init": lambda m: nn.init.normal_(m.mix.weight),
    "trunc init": lambda m: nn.init.trunc_normal_(m.mix.weight),
    "set": lambda m: m.mix.weight.set_(torch.ones(8, 8)),
    "double": lambda m: m.double().float(),
    "in place": added,
    "data replaced": replaced,
    "another parameter": another,
    "turned": turned,
    "max_norm": rows,
    "out": out,
    "frozen": frozen,
}


class Alibi(Mix):
    """Fills a buffer that was None, and registers two that weren't there."""

    def __init__(self):
        super().__init__()
        self.register_buffer("alibi", None)

    def forward(self, x):
        self.alibi = torch.ones(8)
        if not hasattr(self, "slopes"):
            self.register_buffer("slopes", torch.ones(8))
            self.register_buffer("hidden", torch.ones(8), persistent=False)
        return super().forward(x) + self.alibi + self.slopes


class Store:
    """A cache of the model's own."""

    def __init__(self):
        self.kept, self.length = [torch.zeros(2)], 0


class Remembering(Mix):
    """Counts and caches in every way."""

    def __init__(self):
        super().__init__()
        self.calls, self.seen, self.last = 0, Counter(a=1), None
        self.lengths, self.recent, self.known = [1], deque([1], maxlen=2), {1}
        self.nested = {"a": [[torch.zeros(2)], (torch.zeros(2), [1])], "b": OrderedDict(x=1, y=2)}
        self.cache_k = torch.zeros(2, 3, 8)
        self.register_buffer("cache_v", torch.zeros(2, 3, 8))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.statistics = torch.zeros(8), torch.ones(8)
        self.store = Store()
        self.unregistered = [Mix()]

    def forward(self, x):
        self.calls += 1
        self.seen["a"] += 1
        self.last = x
        self.lengths.append(x.shape[1])
        self.recent.append(2)
        self.known |= {x.shape[1]}
        self.nested["a"][0][0].add_(1)
        self.nested["a"][1][0].fill_(torch.nan)
        self.nested["a"][1][1].pop()
        self.nested["b"].move_to_end("x")
        self.nested["c"] = 1
        y = super().forward(x)
        self.cache_k[:, :] = y  # with its history
        self.cache_v[:, :] = y
        self.steps += 1
        y = F.batch_norm(y.flatten(0, 1), *self.statistics, training=True).view_as(y) + y
        self.store.kept.append(y)
        self.store.kept[0].add_(1)
        self.store.length += 1
        self.unregistered[0].mix.weight.data.zero_()
        self.new = torch.ones(2)
        del self.known
        self.known = {5}
        return y


class Drawing(Mix):
    """Draws from generators of its own, and from the process's."""

    def __init__(self):
        super().__init__()
        self.torchs, self.pythons = torch.Generator().manual_seed(1), random.Random(1)
        self.numpys = [np.random.default_rng(1), np.random.RandomState(1)]

    def forward(self, x):
        noise = torch.rand((), generator=self.torchs) + torch.rand(()) + self.pythons.random() + random.random()
        noise = noise + self.numpys[0].random() + self.numpys[1].rand() + np.random.rand()  # noqa: NPY002
        return super().forward(x) * noise


class Rebuilding(Mix):
    """Adds modules and hooks, takes others off, and changes modes."""

    def __init__(self):
        super().__init__()
        self.heard = []
        self.handle = self.mix.register_forward_hook(self.once)

    def once(self, module, args, output):
        self.heard.append(1)
        self.handle.remove()

    def forward(self, x):
        self.added = nn.Linear(8, 8)
        self.register_forward_hook(lambda m, a, o: None)
        self.norm.eval()
        y = super().forward(x)
        self._modules.move_to_end("mix") if isinstance(self._modules, OrderedDict) else None
        del self.norm
        return y


class Hooking(Mix):
    """Puts hooks and a note on its weights."""

    def __init__(self):
        super().__init__()
        self.norm.weight.register_hook(lambda g: g)

    def forward(self, x):
        for weight in (self.mix.weight, self.norm.weight):
            weight.register_hook(lambda g: g * 2)
            weight.register_post_accumulate_grad_hook(lambda p: None)
            weight.seen = True
        return super().forward(x)


class Optimizing(Mix):
    """Holds the optimizer of a step of its own."""

    def __init__(self):
        super().__init__()
        self.optimizer = torch.optim.Adam(self.parameters())

    def forward(self, x):
        with torch.enable_grad():
            super().forward(x.detach()).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return super().forward(x)


class Learning(Mix):
    """Takes a step of its own in its forward."""

    def forward(self, x):
        with torch.enable_grad():
            super().forward(x.detach()).square().mean().backward()
        with torch.no_grad():
            for p in self.parameters():
                p -= 0.1 * p.grad
                p.grad.zero_()
        return super().forward(x)


class Merging(Mix):
    """A low-rank adapter that is merged into its weight by eval(), as loralib's."""

    def __init__(self):
        super().__init__()
        self.a, self.merged = nn.Parameter(torch.full((8, 8), 0.1)), False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.mix.weight.data += self.a.data * (-1 if mode else 1)
            self.merged = not mode
        return self


def normed(kind):
    model = Mix()
    model.mix = kind(model.mix)
    return model


MODELS = {
    "forced normalisation": Forced,
    **{f"writes by {name}": lambda write=write: Writing(write) for name, write in WRITES.items()},
    "alibi": Alibi,
    "attributes": Remembering,
    "generators": Drawing,
    "modules and hooks": Rebuilding,
    "hooks on weights": Hooking,
    "a step inside": Learning,
    "an optimizer": Optimizing,
    "merged by eval": Merging,
    "spectral norm": lambda: normed(parametrizations.spectral_norm),
    "old spectral norm": lambda: normed(nn.utils.spectral_norm),
    "weight norm": lambda: normed(parametrizations.weight_norm),
    "batch norm": lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(3), nn.Linear(8, 8)),
}


def facts(value, seen=None):
    """Everything that a value holds, comparable, identity and counts of writes included."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        bits = value.detach().clone().numpy().tobytes()
        about = (id(value), value._version, value.data_ptr(), value.stride(), value.requires_grad, value.is_leaf)
        grad = value.grad if value.is_leaf else None
        more = vars(value).copy(), repr(value._backward_hooks), repr(value._post_accumulate_grad_hooks)
        return (bits, *about, value.dtype, value.shape, None if grad is None else facts(grad), *more)
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return [str(part) for part in value.get_state()]
    if id(value) in seen:
        return id(value)
    seen.add(id(value))
    if isinstance(value, dict):
        return id(value), [(key, facts(item, seen)) for key, item in value.items()]
    if isinstance(value, list | tuple | deque):
        return id(value), [facts(item, seen) for item in value]
    if isinstance(value, set):
        return id(value), copy.copy(value)
    if isinstance(value, nn.Module | Store | torch.optim.Optimizer):
        return id(value), facts(vars(value), seen)
    return value


def drawn():
    numpys = np.random.get_state()  # noqa: NPY002
    return random.getstate(), numpys[1].tolist(), numpys[2:], torch.get_rng_state().tolist()
