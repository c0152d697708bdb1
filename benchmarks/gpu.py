"""What a user's calls cost on a GPU, and whether their numbers are those of a CPU.

    python benchmarks/gpu.py [--only probe,memory,kernels,train,watch,agreement,statistics,sweeps,grid] [--write]

Sections:
    probe       wall time of a bare forward and backward pass of nanoGPT's 124M, of naive hooks that take five
                statistics of every module's output and of its gradient, of the recorded pass of a probe (forward, loss,
                backward and every statistic, read back), of the internal `measure` (also the tables and the roles of
                the parameters) and of the public `initlab.probe` (also the theory, the init's facts and the manifest);
                what the last two add is work of the CPU alone
    memory      the peak of each of these
    kernels     the CUDA kernels of each, counted once by torch.profiler
    train       the trainer's steps against a minimal loop's, tokens/s and share of the GPU's peak
    watch       a training loop's steps under `initlab.watch`, on watched and on unwatched steps
    agreement   records of one model on the CPU and on the GPU, float32 without TF32
    statistics  statistics of many kinds of tensor against two passes in float64
    sweeps      `compare` and `confirm` from end to end, on the GPU and on the same machine's CPU
    grid        a grid's runs one by one and side by side: seconds of all of it and of the training alone, peak memory,
                and the largest difference of a run's losses, over the first ten steps and at the end

Times are medians over rounds, each of which runs every way once, in an order that turns round every time, in one
process and with the device waited for. --write keeps the result beside this file, next to that of other
sections.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import initlab
from initlab import environment
from initlab.anatomy.inputs import of_ids
from initlab.anatomy.sites import SiteMap, find_sites
from initlab.drawing.apply import apply_recipe
from initlab.engines import ENGINES
from initlab.measure.losses import take_loss
from initlab.measure.moments import Moments, Preset
from initlab.measure.probe import Identity, measure
from initlab.measure.recorder import recording
from initlab.measure.sweep import DTYPES
from initlab.models.config import PRESETS, NanoGPTConfig
from initlab.models.nanogpt import empty_model
from initlab.options import RunOptions
from initlab.recipes import registry
from initlab.schema import Tables
from initlab.training.config import TrainConfig
from initlab.training.data import Split, load_split
from initlab.training.execution import Execution
from initlab.training.protocol import GridConfig, grid_values
from initlab.training.speed import flops_per_token, peak_flops
from initlab.training.trainer import train

SMALL = NanoGPTConfig(n_layer=2, n_head=2, n_embd=64, block_size=64, vocab_size=256, bias=False)
AGREEING = NanoGPTConfig(n_layer=4, n_head=4, n_embd=128, block_size=128, vocab_size=512)
IDENTITY = Identity(run_id="benchmark", recipe="nanogpt", seed=0)
Rows = list[dict[str, Any]]


class Setting:
    """What every section shares: the device, the model's sizes and how often each way is run."""

    def __init__(self, device: str, small: bool, rounds: int):
        self.device = torch.device(device)
        self.small = small
        self.config = SMALL if small else PRESETS["gpt2"]
        self.rounds = rounds

    def model(self) -> nn.Module:
        model = empty_model(self.config, str(self.device))
        apply_recipe(model, registry.get("nanogpt"), 0)
        return model

    def batch(self, rows: int) -> tuple[Tensor, Tensor]:
        shape = (2, rows, self.config.block_size)
        return torch.randint(self.config.vocab_size, shape, device=self.device).unbind(0)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def autocast(self, dtype: str) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=DTYPES[dtype], enabled=DTYPES[dtype] is not None)

    def timed(self, way: Callable[[], Any]) -> float:
        self.wait()
        started = time.perf_counter()
        way()
        self.wait()
        return time.perf_counter() - started

    def medians(self, ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
        """Seconds of each way; the first two rounds warm up, as what is compiled at its first use is then there."""
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for round_ in range(self.rounds + 2):
            for name in list(ways)[:: 1 if round_ % 2 else -1]:
                spent = self.timed(ways[name])
                if round_ > 1:
                    seconds[name].append(spent)
        return {name: statistics.median(spent) for name, spent in seconds.items()}


def bare(setting: Setting, model: nn.Module, batch: tuple[Tensor, Tensor], dtype: str) -> None:
    with setting.autocast(dtype):
        loss = model(*batch)[1]
    torch.autograd.grad(loss, list(model.parameters()))


@contextlib.contextmanager
def naive_hooks(model: nn.Module) -> Iterator[list[Tensor]]:
    """What one writes without a tool: five statistics of each module's output and of the gradient that reaches it."""
    taken: list[Tensor] = []

    def take(x: Tensor) -> None:
        x = x.detach().float()
        taken.append(torch.stack([x.mean(), x.std(), x.abs().max(), (x == 0).float().mean(), x.isnan().float().mean()]))

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            take(output)
            if output.requires_grad:
                output.register_hook(take)

    handles = [module.register_forward_hook(hook) for module in model.modules() if not list(module.children())]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def naive(setting: Setting, model: nn.Module, batch: tuple[Tensor, Tensor], dtype: str) -> None:
    with naive_hooks(model) as taken:
        bare(setting, model, batch, dtype)
        torch.stack(taken).cpu()


def recorded(
    setting: Setting, model: nn.Module, batch: tuple[Tensor, Tensor], dtype: str, sites: SiteMap, preset: Preset
) -> None:
    inputs = of_ids(model, *batch)

    def forward() -> Any:
        with setting.autocast(dtype):
            return inputs.call(model)

    with recording(model, sites, preset) as recorder:
        loss = take_loss(forward(), inputs, setting.config.vocab_size).loss
        recorder.close()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for x in (*model.parameters(), *gradients):
            recorder.moments.add(x, "weight", "")
    recorder.moments.read()


def ways(setting: Setting, model: nn.Module, batch: tuple[Tensor, Tensor], dtype: str) -> dict[str, Callable[[], Any]]:
    sites = find_sites(model)

    def measured(preset: Any) -> Callable[[], Any]:
        return lambda: measure(model, *batch, IDENTITY, preset=preset, autocast=DTYPES[dtype])

    def probed(preset: str) -> Callable[[], Any]:
        return lambda: initlab.probe(model, batch, stats=preset, dtype=dtype)

    return {
        "bare": lambda: bare(setting, model, batch, dtype),
        "naive hooks": lambda: naive(setting, model, batch, dtype),
        "recorded pass, light": lambda: recorded(setting, model, batch, dtype, sites, "light"),
        "recorded pass, full": lambda: recorded(setting, model, batch, dtype, sites, "full"),
        "measure, light": measured("light"),
        "measure, full": measured("full"),
        "probe, light": probed("light"),
        "probe, full": probed("full"),
    }


def probes(setting: Setting) -> Iterator[tuple[str, dict[str, Callable[[], Any]]]]:
    model = setting.model()
    for dtype in ("bfloat16", "float32"):
        for rows in (4, 16):
            name = f"{dtype}, batch {rows}×{setting.config.block_size}"
            yield name, ways(setting, model, setting.batch(rows), dtype)


def probe_section(setting: Setting) -> Rows:
    rows = []
    for name, each in probes(setting):
        seconds = setting.medians(each)
        for way, spent in seconds.items():
            row = {"setting": name, "way": way, "ms": 1e3 * spent, "ratio": spent / seconds["bare"]}
            rows.append(row)
            show(row)
    return rows


def memory_section(setting: Setting) -> Rows:
    rows = []
    for name, each in probes(setting):
        for way, call in each.items():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            row = {"setting": name, "way": way, "peak_gib": (torch.cuda.max_memory_allocated() - before) / 2**30}
            rows.append(row)
            show(row)
    return rows


def kernels_section(setting: Setting) -> Rows:
    """Kernels alone; copies and fills of memory by the driver's own engines aren't."""
    rows = []
    name, each = next(probes(setting))
    for way, call in each.items():
        call()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            setting.wait()
        events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        kernels = [e for e in events if not e.name.startswith(("Memcpy", "Memset"))]
        busy = sum(e.time_range.elapsed_us() for e in events) / 1e3
        fetched = sum(e.name.startswith("Memcpy DtoH") for e in events)
        row = {"setting": name, "way": way, "kernels": len(kernels), "device_ms": busy, "copies_to_host": fetched}
        rows.append(row)
        show(row)
        spent: Counter[str] = Counter()
        for e in kernels:
            spent[e.name[:70]] += e.time_range.elapsed_us()
        print("   ", {kernel: round(us / 1e3, 2) for kernel, us in spent.most_common(6)})
    return rows


def minimal_loop(setting: Setting, compiled: bool, rows: int, steps: int) -> list[float]:
    """Seconds a step of nanoGPT's loop without anything else, over the second half of the steps."""
    model = setting.model()
    called = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batches = [setting.batch(rows) for _ in range(4)]
    seconds = []
    for chunk in range(steps // 10):

        def ten(start: int = 10 * chunk) -> None:
            for step in range(start, start + 10):
                with setting.autocast("bfloat16"):
                    loss = called(*batches[step % 4])[1]
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        seconds.append(setting.timed(ten) / 10)
    return seconds[len(seconds) // 2 :]


def train_section(setting: Setting) -> Rows:
    rows = []
    batch_rows, steps = 16, 60
    tokens = batch_rows * setting.config.block_size
    share = flops_per_token(setting.config) / peak_flops(setting.device)
    split = load_split("uniform", vocab_size=setting.config.vocab_size)
    for compiled in (False, True):
        loop = tokens / statistics.median(minimal_loop(setting, compiled, batch_rows, steps))
        torch._dynamo.reset()
        config = TrainConfig(
            steps=steps,
            lr=1e-4,
            batch_size=batch_rows,
            eval_batches=1,
            log_every=10,
            dtype="bfloat16",
            compile=compiled,
            device=str(setting.device),
        )
        logged = [row["tokens_per_second"] for row in train(setting.model(), split, config).rows]
        rates = [rate for rate in logged if math.isfinite(rate)]
        ours = statistics.median(rates[len(rates) // 2 :])
        torch._dynamo.reset()
        how = "compiled" if compiled else "eager"
        for way, rate in (("minimal loop", loop), ("trainer", ours)):
            row = {"setting": f"{how}, batch {batch_rows}", "way": way, "tokens_per_s": rate, "mfu": rate * share}
            rows.append(row | {"ratio": loop / rate})
            show(rows[-1])
    return rows


def watch_section(setting: Setting) -> Rows:
    rows = []
    batch = setting.batch(16)
    for compiled in (False, True):
        model = setting.model()
        called = torch.compile(model) if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def step(watch: Any = None, called: Any = called, optimizer: Any = optimizer) -> None:
            with setting.autocast("bfloat16"):
                loss = called(*batch)[1]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if watch is not None:
                watch.step(loss)

        def steps(n: int, call: Callable[..., None] = step, model: Any = called, **options: Any) -> float:
            with initlab.watch(model, **options) if options else contextlib.nullcontext() as watch:
                call(watch)
                return statistics.median(setting.timed(lambda: call(watch)) for _ in range(n))

        for _ in range(3):
            step()
        n = 2 * setting.rounds
        spent = {"bare": steps(n), "not watched": steps(n, every=10**6, start_step=1)}
        spent |= {f"watched, {stats}": steps(n, every=1, stats=stats) for stats in ("light", "full")}
        for way, seconds in spent.items():
            how = "compiled" if compiled else "eager"
            rows.append({"setting": how, "way": way, "ms": 1e3 * seconds, "ratio": seconds / spent["bare"]})
            show(rows[-1])
        torch._dynamo.reset()
    return rows


def agreement_section(setting: Setting) -> Rows:
    """Largest differences over all records; of a mean relative to the rms, of shares and the kurtosis as they are."""
    model = empty_model(AGREEING, "cpu")
    apply_recipe(model, registry.get("nanogpt"), 0)
    batch = torch.randint(AGREEING.vocab_size, (2, 4, AGREEING.block_size)).unbind(0)
    here = measure(model, *batch, IDENTITY)
    there = measure(model.to(setting.device), *(x.to(setting.device) for x in batch), IDENTITY)
    rows = []
    # a sum of the terms cancels there, and what is left is rounding
    cancelled = ((here.records["kind"] == "grad") | (here.records["kind"] == "weight_grad")) & (
        here.records["rms"] < 1e-9
    )
    for table, drop in (("records", cancelled), ("heads", None), ("summary", None)):
        a, b = getattr(here, table), getattr(there, table)
        if drop is not None:
            a, b = a[~drop], b[~drop]
        for column in a.select_dtypes("float64"):
            if column == "seconds" or a[column].isna().all():
                continue
            assert (a[column].isna() == b[column].isna()).all(), column
            difference = (a[column] - b[column]).abs()
            if column == "mean":
                difference = difference / a["rms"]
            elif not column.startswith("frac_") and column != "kurtosis":
                difference = difference / a[column].abs().where(a[column] != 0, 1)
            place = difference.idxmax()
            at = "" if table != "records" else " ".join(map(str, a.loc[place, ["kind", "module"]]))
            rows.append({"table": table, "column": column, "largest": float(difference.max()), "at": at})
            show(rows[-1])
    if cancelled.any():
        print(f"{cancelled.sum()} records left out, whose gradients cancel to rounding")
    return rows


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 700, generator=generator)
    return {
        "normal": x,
        "of a long tensor": torch.randn(1 << 24, generator=generator) * 0.02,
        "mean 100 std": x + 100,
        "huge": x * 1e37,
        "tiny": x * 1e-37,
        "subnormal": x * 1e-40,
        "heavy tails": x**5,
        "half zeros": x.relu(),
        "constant": torch.full((1000,), 0.1),
        "one NaN": torch.cat([x.flatten(), torch.tensor([math.nan])]),
        "one infinity": torch.cat([x.flatten(), torch.tensor([math.inf])]),
        "a third of qkv": torch.randn(4, 64, 3 * 96, generator=generator)[..., 96:192],
        "every other column": x[:, ::2],
        "transposed": x.t(),
        "expanded": x[:, :1].expand(300, 50),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
    }


def exact(x: Tensor) -> dict[str, float]:
    """Two passes in float64."""
    a = x.double().flatten().numpy()
    if not a.size:
        return {"numel": 0.0}
    with np.errstate(all="ignore"):
        mean = a.mean()
        central = a - mean
        var = float((central**2).mean())
        bare = np.abs(a)
        return {
            "numel": float(a.size),
            "mean": float(mean),
            "var": var,
            "abs_max": float(bare.max()),
            "abs_mean": float(bare.mean()),
            "kurtosis": float(((central / math.sqrt(var)) ** 4).mean()) - 3 if var > 0 else math.nan,
            "frac_nonfinite": float((~np.isfinite(a)).mean()),
            "frac_zero": float((bare == 0).mean()),
            "frac_under_e4m3": float(((bare > 0) & (bare < 2.0**-6)).mean()),
            "frac_over_e4m3": float((bare > 448).mean()),
        }


def statistics_section(setting: Setting) -> Rows:
    """Largest error of each column over the tensors; of a mean relative to the rms, of shares as they are."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        given = {name: x.to(dtype) for name, x in tensors().items()}
        moments = Moments("full")
        for x in given.values():
            moments.add(x.to(setting.device))
        worst: dict[str, tuple[float, str]] = {}
        for (name, x), row in zip(given.items(), moments.read(), strict=True):
            expected = exact(x)
            for column, value in expected.items():
                found = row[column]
                if math.isnan(value) or math.isinf(value) or not math.isfinite(found):
                    # a tensor with an infinity has no finite moments, whichever of NaN and infinity it gets
                    same = math.isfinite(found) == math.isfinite(value)
                    error = 0.0 if same else math.inf
                else:
                    relative = math.hypot(expected["mean"], math.sqrt(expected["var"])) if column == "mean" else value
                    least = 1.0 if column == "kurtosis" else 0.0
                    absolute = column.startswith("frac_") or not relative
                    error = abs(found - value) / (1 if absolute else max(abs(relative), least))
                worst[column] = max(worst.get(column, (0.0, "")), (error, name))
        for column, (error, name) in worst.items():
            rows.append({"dtype": str(dtype).removeprefix("torch."), "column": column, "largest": error, "at": name})
            show(rows[-1])
    return rows


def sweeps_section(setting: Setting) -> Rows:
    """Seconds of whole calls; on the CPU `confirm` trains in as many processes as there are cores.

    The sizes of `thorough` are meant for a GPU, and run there alone.
    """
    recipes = ["nanogpt", "xavier"]
    small: dict[str, Any] = {"depths": [2], "seeds": 1} if setting.small else {"depths": [4, 12], "seeds": 2}
    grid: dict[str, Any] = {**small, "lrs": [1e-3], "warmups": [0], "steps": 100}
    thorough = grid | {"steps": 50, "thorough": True, "dtype": "float32"}
    calls: dict[str, Callable[[str], Any]] = {
        "compare": lambda device: initlab.compare(recipes, **small, run=RunOptions(device=device)),
        "confirm": lambda device: initlab.confirm(recipes, **grid, run=RunOptions(device=device)),
        "confirm, thorough sizes": lambda device: initlab.confirm(recipes, **thorough, run=RunOptions(device=device)),
    }
    rows = []
    for name, call in calls.items():
        devices = (str(setting.device),) if name.endswith("sizes") else (str(setting.device), "cpu")
        for device in dict.fromkeys(devices):
            started = time.perf_counter()
            result = call(device)
            row: dict[str, Any] = {"call": name, "device": device, "seconds": time.perf_counter() - started}
            row["failed"] = len(result.run.manifest["failed"])
            runs = result.run.tables.runs
            if len(runs):
                row["val_loss"] = float(runs["val_loss"].mean())
            rows.append(row)
            show(row)
    return rows


def trained_by(name: str, grid: GridConfig, split: Split, setting: Setting) -> tuple[dict[str, Any], pd.DataFrame]:
    """A grid's runs made by an engine: what they took, and the losses of each step."""
    recipes = {id: registry.get(id) for id in grid.recipes}
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter(), time.process_time()
    with Execution(grid, recipes, split, ENGINES.get(name)) as execution:
        found = Tables.concat([tables for _, tables in execution.results(grid.runs()) if isinstance(tables, Tables)])
    row: dict[str, Any] = {"seconds": time.perf_counter() - started[0], "cpu_seconds": time.process_time() - started[1]}
    row |= {"runs": len(found.runs), "training_seconds": float(found.runs["seconds"].sum())}
    if setting.device.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row, found.training.set_index(["run_id", "step"])[["loss", "val_loss"]]


def grid_section(setting: Setting) -> Rows:
    """Two recipes of one wiring at the sizes of `thorough`; a rate, a warmup and a seed more double the runs."""
    sizes = (("float32", 2),) if setting.small else (("float32", 6), ("bfloat16", 6), ("bfloat16", 24))
    split = load_split()
    rows = []
    for dtype, n_layer in sizes:
        values = grid_values("thorough", depths=(n_layer,), seeds=1 if setting.small else 2, steps=12, warmups=(0, 4))
        model = NanoGPTConfig(n_embd=32, n_head=2, block_size=32) if setting.small else values["model"]
        values |= {"model": replace(model, vocab_size=split.vocab_size), "widths": (model.n_embd,)}
        values |= {"lrs": (1e-3, 3e-3)} if setting.small else {"steps": 50}
        grid = GridConfig(recipes=("nanogpt", "xavier"), **values, dtype=dtype, device=str(setting.device))
        trained_by("here", replace(grid, recipes=("nanogpt",), lrs=(1e-3,), warmups=(0,), seeds=1), split, setting)
        made = {name: trained_by(name, grid, split, setting) for name in ("here", "batched")}
        (alone, losses), (_, beside) = made["here"], made["batched"]
        apart = (losses - beside).abs()
        early = apart["loss"][apart.index.get_level_values("step") < 10]
        for name, way in (("here", "one by one"), ("batched", "side by side")):
            row = {"setting": f"{dtype}, {n_layer} layers of {model.n_embd}", "way": way, **made[name][0]}
            row["times_as_fast"] = alone["seconds"] / row["seconds"]
            row |= {"loss_apart_10": 0.0 if name == "here" else float(early.max())}
            row |= {"val_loss_apart": 0.0 if name == "here" else float(apart["val_loss"].max())}
            rows.append(row)
            show(row)
    return rows


SECTIONS: dict[str, Callable[[Setting], Rows]] = {
    "probe": probe_section,
    "memory": memory_section,
    "kernels": kernels_section,
    "train": train_section,
    "watch": watch_section,
    "agreement": agreement_section,
    "statistics": statistics_section,
    "sweeps": sweeps_section,
    "grid": grid_section,
}


def show(row: dict[str, Any]) -> None:
    print({key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between them")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--write", nargs="?", const=str(Path(__file__).with_suffix(".json")), help="default: gpu.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    setting = Setting(options.device, options.small, options.rounds)
    path = Path(options.write) if options.write else None
    result: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}
    result["environment"] = environment.describe(options.device)
    for name in options.only.split(","):
        started = time.perf_counter()
        print(f"{name}:", flush=True)
        result[name] = SECTIONS[name](setting)
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        if path is not None:
            path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
