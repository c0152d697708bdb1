"""Init code that scales by depth, in the spellings that people write, and code that didn't run."""

import math
from typing import Any

import pytest
from torch import Tensor, nn

from initlab.anatomy.source import depth_code, forward_reads, written_stds


class Base(nn.Module):
    def __init__(self, n: int = 4, **said: Any) -> None:
        super().__init__()
        self.n, self.depth, self.n_layer = n, n, n
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(n))
        self.scaled = bool(said.get("scaled", True))
        self.dim = 8
        self.init_all()

    def init_all(self) -> None: ...


class Root(Base):
    def init_all(self) -> None:
        for name, p in self.named_parameters():
            nn.init.normal_(p, 0, 0.02 / math.sqrt(2 * self.n) if name.endswith("weight") else 0.02)


class Power(Base):
    def init_all(self) -> None:
        for p in self.parameters():
            nn.init.normal_(p, 0, 0.02 * (2 * len(self.blocks)) ** -0.5)


class Local(Base):
    def init_all(self) -> None:
        n = self.depth
        std = 0.02
        std /= (2 * n) ** 0.5
        for p in self.parameters():
            nn.init.normal_(p, 0, std)


class Storeys(nn.Module):
    """Calls its depth what nobody else does."""

    def __init__(self, storeys: int = 3, heads: int = 3) -> None:
        super().__init__()
        self.config, self.heads = {"storeys": storeys}, heads
        self.house = nn.ModuleList(nn.Linear(8, 8) for _ in range(storeys))


class Named(Storeys):
    def init_all(self, storeys: int) -> float:
        return 0.02 / math.sqrt(2 * storeys)


class Held(Storeys):
    def init_all(self) -> float:
        return 0.02 / math.sqrt(2 * self.config["storeys"])


class Aliased(Storeys):
    def init_all(self, storeys: int) -> float:
        number = storeys
        return 0.02 / math.sqrt(2 * number)


class Counted(Storeys):
    def init_all(self) -> float:
        return float(0.02 * (2 * len(self.house)) ** -0.5)


class Heads(Storeys):
    def init_all(self) -> float:
        return 0.02 / math.sqrt(2 * self.heads)


class Conditional(Base):
    def init_all(self) -> None:
        std = 0.02
        if self.scaled and self.n > 1:
            std = std / math.sqrt(2.0 * self.n_layer)
        for p in self.parameters():
            nn.init.normal_(p, 0, std)


class Fan(Base):
    def init_all(self) -> None:
        for p in self.parameters():
            n = p.numel()
            nn.init.normal_(p, 0, math.sqrt(2.0 / n) + 1 / math.sqrt(2 * self.dim) + 1 / math.sqrt(n))


class Said(Base):
    def init_all(self) -> None:
        """Doesn't divide by math.sqrt(2 * n_layer)."""
        # std = 0.02 / math.sqrt(2 * self.n_layer)


@pytest.mark.parametrize("kind", [Root, Power, Local, Conditional, Named, Held, Aliased, Counted])
def test_any_spelling_is_found(kind: type[nn.Module]) -> None:
    assert depth_code(kind()) == f"{kind.__name__}.init_all"
    assert depth_code(nn.Sequential(nn.Linear(2, 2), kind())) == f"{kind.__name__}.init_all"


def init_weights(module: nn.Module, std: float = 0.03) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)


class Apart(Base):
    """Calls a function beside it."""

    def init_all(self) -> None:
        self.apply(init_weights)


class Xavier(Base):
    def init_all(self) -> None:
        nn.init.normal_(self.blocks[0].weight, 0.0, 0.02)
        nn.init.xavier_uniform_(self.blocks[1].weight)


@pytest.mark.parametrize(
    ("model", "stds"),
    [(Root(), {0.02}), (Power(), {0.02}), (Conditional(), {0.02}), (Apart(), {0.03}), (Xavier(), {}), (Fan(), {})],
)
def test_the_std_that_the_init_code_writes_is_read(model: nn.Module, stds: set[float]) -> None:
    assert set(written_stds(model)) == set(stds)


@pytest.mark.parametrize("model", [Conditional(scaled=False), Fan(), Said(), Heads(), nn.Linear(2, 2)])
def test_what_did_not_run_and_other_roots_say_nothing(model: nn.Module) -> None:
    assert depth_code(model) == ""


class Reading(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x)

    def embed(self, x: Tensor) -> Tensor:
        return x * self.dim


class Above(Reading):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Asking(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(getattr(self, "dim", 1))


class Other(Reading):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.depth


def test_a_forward_reads_what_it_and_the_methods_it_calls_name() -> None:
    assert [forward_reads(each(), "dim") for each in (Reading, Above, Asking, Other)] == [True, True, True, False]
    patched = Reading()
    patched.forward = lambda x: x  # type: ignore[method-assign]
    assert not forward_reads(patched, "dim")
