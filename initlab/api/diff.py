"""What changed between two inits: `diff`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initlab.api.gradients import with_gradients
from initlab.api.reading import text_of
from initlab.errors import ConfigError
from initlab.judge import rules
from initlab.judge.differences import init_of, one_recipe
from initlab.options import Text, checked_count, checked_path, checked_seed, refuse_unknown, shown, with_fields
from initlab.report.waiting import drawn
from initlab.results import Probe, load
from initlab.results.difference import Difference
from initlab.results.result import Result
from initlab.rundir import MANIFEST, Run
from initlab.schema import Tables

if TYPE_CHECKING:
    from torch import nn

TOKENS = 1024  # of a batch, about, as `probe` makes it


@dataclass(frozen=True)
class Drawn:
    """What can be drawn at any seed: a function without arguments, or what a name on the command line stands for.

    Attributes:
        name: how it is shown.
        make: from a seed to a model.
    """

    name: str
    make: Callable[[int], nn.Module]


@with_fields
@drawn
@with_gradients()
def diff(
    a: Any,
    b: Any,
    batch: Any = None,
    *,
    seeds: int = 1,
    seed: int = 0,
    text: Text = Text(),
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    limits: Mapping[str, float] | None = None,
    **options: Any,
) -> Difference:
    """Say what changed between two inits, and what of that the luck of the draws doesn't explain.

    Answers: I changed the init, or ported the model; is it still drawn the same, and does the signal keep its scale?

    Parameters are matched by name, where names differ by role, block and size; a fused matrix with its parts. A std
    differs beyond 4 standard errors of both draws; activations and gradients beyond what several draws scatter, or, of
    one draw each, beyond what NanoGPTs do (`.verdict` and the text say which).

    Args:
        a: a run's folder, where it holds several recipes `folder:recipe`; a result (`comparison.only("nanogpt")`); a
            module, left as it was; or a function that makes one, called once for each draw.
        b: likewise. Modules and functions read the same batch.
        batch: for modules and functions, as `probe` takes it.
        seeds: draws of a function, from `seed` on; the batch is the same for all.
        seed: of the batch, and of the first draw.
        text: for the default batch; where one model can't read sequences as long as the other's, both read shorter
            ones.
        select: codes of the rules that count, as `Result.judge` takes them. Default: for runs as they were judged.
        ignore: codes of those that don't.
        limits: by code, likewise.
        **options: of `probe`: stats, dtype, sites, modules, metrics, recipe.

    Returns:
        Difference: `.verdict`, `.differs`, `.roles`, `.parameters`, `.sites`, `.findings`, `.wiring`, `.report(out)`;
        its `str` is all of it as text.

    Raises:
        ConfigError: A and B are the same; several recipes and none named; several seeds of what can't be drawn again;
            an unknown code, or a limit that is none.
        RunError, SchemaError: there is no run in a folder, or it is damaged.
        ProbeError, DataError, RecipeError: as `probe` raises them.
    """
    if options:
        from initlab.api.probe import probe

        refuse_unknown("diff", options, diff, probe)
    text, seed = text_of(text), checked_seed(seed)
    seeds = checked_count("seeds", seeds)
    given = rules.chosen(select, ignore, limits).overrides
    sides = [_found(each, name) for each, name in ((a, "a"), (b, "b"))]
    _refuse_same(sides, a, b)
    if seeds > 1 and not any(isinstance(side, Drawn) for side in sides):
        raise ConfigError(f"seeds is {seeds}: runs and modules are drawn already; give functions that make a model")
    made = [side for side in sides if not isinstance(side, _Saved)]
    batch = next(batch, None) if isinstance(batch, Iterator) else batch
    measure = _Measure(batch, seeds, seed, options)
    probed = dict(zip(map(id, made), measure.alike(made, text), strict=True))
    results, notes = [], []
    for side, name in zip(sides, "AB", strict=True):
        run = side.run if isinstance(side, _Saved) else probed[id(side)]
        run, said = init_of(run, name)
        kind = side.kind if isinstance(side, _Saved) else Probe
        result = kind(run)
        if given:
            result.judge(select=select, ignore=ignore, limits=limits)
        results.append(result)
        notes += said
    if seeds == 1 and all(isinstance(side, Drawn) for side in sides):
        notes.append("one draw of each: seeds=3 (--seeds 3) tells smaller differences from chance")
    return Difference(results[0], results[1], _names(sides), notes)


@dataclass(frozen=True)
class _Saved:
    """A run of one recipe."""

    run: Run
    kind: type[Result]
    path: Path | None


def _found(given: Any, name: str) -> Any:
    """A run of one recipe, a module, or what can be drawn. Raises ConfigError, RunError, SchemaError."""
    if isinstance(given, Result):
        run = one_recipe(given.run, None, str(given.path) if given.path else name)
        return _Saved(run, type(given), given.path)
    if isinstance(given, str | Path):
        path, recipe = _folder(str(checked_path(name, given)))
        loaded = load(path)
        return _Saved(one_recipe(loaded.run, recipe, str(path)), type(loaded), path)
    if isinstance(given, Drawn):
        return given
    from torch import nn

    if isinstance(given, nn.Module):
        return given
    if callable(given):
        called = getattr(given, "__name__", type(given).__name__).strip("<>")
        from initlab.api.probe import made
        from initlab.drawing.loading import choose_device
        from initlab.drawing.subject import seeded

        def make(draw: int) -> nn.Module:
            with seeded(draw, choose_device("auto")):
                model = made(given)
            if not isinstance(model, nn.Module):
                raise ConfigError(
                    f"{called} needs arguments; expected a function without any that makes a torch.nn.Module"
                )
            return model

        return Drawn(called, make)
    raise ConfigError(
        f"{name} is {shown(given)}; expected a run's folder, a result, a torch.nn.Module or a function that makes one"
    )


def _folder(text: str) -> tuple[Path, str | None]:
    """`folder:recipe` in its two parts."""
    head, _, tail = text.rpartition(":")
    if head and not (Path(text) / MANIFEST).exists() and (Path(head) / MANIFEST).exists():
        return Path(head), tail
    return Path(text), None


def _names(sides: Sequence[Any]) -> tuple[str, str]:
    """What A and B are called: as short as they are told apart, a folder by its last name."""
    whole = [_whole(side) for side in sides]
    short = [_short(side) for side in sides]
    if all(isinstance(side, _Saved) and side.path for side in sides) and sides[0].path == sides[1].path:
        short = [_recipe(side.run) for side in sides]
    chosen = short if short[0] != short[1] else whole
    return chosen[0], chosen[1]


def _whole(side: Any) -> str:
    if isinstance(side, _Saved):
        return _with_recipe(
            str(side.path) if side.path else str(side.run.manifest["config"].get("model", "")), side.run
        )
    return str(side.name) if isinstance(side, Drawn) else type(side).__name__


def _short(side: Any) -> str:
    if isinstance(side, _Saved) and side.path:
        return _with_recipe(side.path.resolve().name, side.run)
    return _whole(side)


def _with_recipe(name: str, run: Run) -> str:
    recipe = _recipe(run)
    return name if recipe in ("as-found", name) else f"{name}:{recipe}" if name else recipe


def _recipe(run: Run) -> str:
    return str(run.tables.summary["recipe"].iloc[0])


def _refuse_same(sides: Sequence[Any], a: Any, b: Any) -> None:
    saved = [side for side in sides if isinstance(side, _Saved)]
    if len(saved) == 2:
        recipes = [_recipe(side.run) for side in saved]
        paths = [side.path.resolve() if side.path else None for side in saved]
        same = recipes[0] == recipes[1] and (a is b or (paths[0] is not None and paths[0] == paths[1]))
        if same:
            raise ConfigError(f"a and b are the same run ({_whole(saved[0])}): nothing can differ; give two")
    elif a is b and not isinstance(sides[0], Drawn):
        raise ConfigError(f"a and b are the same {type(a).__name__}: nothing can differ; give two models")


@dataclass(frozen=True)
class _Measure:
    """How models are probed."""

    batch: Any
    seeds: int
    seed: int
    options: dict[str, Any]

    def alike(self, made: Sequence[Any], text: Text) -> list[Run]:
        """Probe one model or two, so that both read sequences of one length."""
        runs = [self.probed(each, text) for each in made]
        lengths = [int(run.tables.summary["block_size"].iloc[0]) for run in runs]
        if len(set(lengths)) < 2 or self.batch is not None or text.block_size is not None or 0 in lengths:
            return runs
        length = min(lengths)
        text = replace(text, block_size=length, batch_size=text.batch_size or max(1, TOKENS // length))
        return [self.probed(each, text) for each in made]

    def probed(self, given: Any, text: Text) -> Run:
        """Probe every draw of a model on the same batch, as one run."""
        from initlab.api.probe import probe

        if not isinstance(given, Drawn):
            return probe(given, self.batch, seed=self.seed, text=text, **self.options).run
        runs = []
        for draw in range(self.seed, self.seed + self.seeds):
            run = probe(given.make(draw), self.batch, seed=self.seed, text=text, **self.options).run
            runs.append(Run(run.tables.giving(seed=draw, run_id=f"draw-s{draw}"), run.manifest))
        manifest = runs[0].manifest
        manifest["cells"] = [str(run_id) for run in runs for run_id in run.tables.summary["run_id"]]
        manifest["config"]["seeds"] = self.seeds
        return Run(Tables.concat([run.tables for run in runs]), manifest)
