"""Are the tests able to fail? Mutants of initlab's code by mutmut, and how many of them the tests notice.

    pip install mutmut==3.8.1
    python benchmarks/mutation.py [PART ...] [--write] [--children 2] [--sample 200 [--seed 0]]

A mutant is one small change of a function: another operator, number, text or default. A part is some modules and the
unit tests that are of them; a mutant is tried with those of its part's tests that call its function. It is killed
where one fails, survives where all pass, and isn't reached where none of the part's tests calls its function. mutmut
leaves decorated functions as they are, so the judges of rules aren't mutated, only what they call.

Where a part has more mutants than there is time for, --sample tries that many of them, drawn at random.

Everything happens in a copy in a temporary folder. --write puts the part's counts and what survived into
mutation.json, and all parts as a table into mutation.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import initlab

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_suffix(".json")
# of a part: its modules, below initlab/, and the tests, below tests/
PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "statistics": (
        ("judge/slopes.py", "judge/students.py", "judge/rows.py"),
        ("judge/test_slopes.py", "judge/test_students.py", "judge/test_rows.py"),
    ),
    "matching": (("judge/matching.py",), ("judge/test_matching.py",)),
    "outcomes": (("judge/outcomes/*.py",), ("judge/outcomes",)),
    "differences": (("judge/differences/*.py",), ("judge/differences",)),
    "mending": (
        ("judge/mending.py", "judge/remedies.py", "judge/siblings.py", "judge/worsening.py", "judge/baseline.py"),
        (
            "judge/test_mending.py",
            "judge/test_remedies.py",
            "judge/test_siblings.py",
            "judge/test_worsening.py",
            "judge/test_baseline.py",
        ),
    ),
    "activations": (("judge/activations.py",), ("judge/test_activations.py",)),
    "rules": (
        ("judge/rules/*.py",),
        ("judge/test_rules.py", "judge/test_own_rules.py", "judge/test_trends.py", "judge/test_updates.py"),
    ),
    "theory": (("judge/theory/*.py",), ("judge/theory", "judge/test_theory.py")),
    "moments": (("measure/moments.py",), ("measure/test_moments.py",)),
    "measure": (("measure/*.py", "measure/statistics/*.py"), ("measure",)),
    "roles": (("anatomy/roles.py", "anatomy/names.py"), ("anatomy/test_roles.py", "anatomy/test_names.py")),
    "anatomy": (("anatomy/*.py",), ("anatomy",)),
}
OPTIONS = "--import-mode=importlib -m 'not slow and not integration'"
SETTINGS = """
[tool.mutmut]
source_paths = ["initlab"]
only_mutate = {modules}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-p", "no:cacheprovider"]
timeout_multiplier = 6.0
also_copy = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "examples", "benchmarks", "reports"]
"""
# the first step of its run, which a run afterwards finds done
MAKE = """
import sys
from pathlib import Path
from mutmut.__main__ import copy_src_dir, create_mutants
Path("mutants").mkdir()
copy_src_dir()
create_mutants(int(sys.argv[1]))
"""
# what was changed, of all survivors in one process: each start of mutmut takes seconds
SHOW = """
import sys
from mutmut.__main__ import cli
for name in sys.argv[1:]:
    cli(["show", name], standalone_mode=False)
"""


def mutate(part: str, children: int, sample: int | None, seed: int) -> tuple[dict[str, str], list[str], int]:
    """Make the mutants of a part and run its tests on each, or on a sample of them.

    Returns what became of each by its name, what survived, and how many mutants there are.
    """
    modules, tests = PARTS[part]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "initlab"
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in listed.splitlines():
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, copy / name)
        settings = copy / "pyproject.toml"
        lines = settings.read_text(encoding="utf-8").splitlines()
        # one process, and a test that fails at the first: mutmut has its own processes
        lines = [f"addopts = {json.dumps(OPTIONS)}" if line.startswith("addopts") else line for line in lines]
        text = SETTINGS.format(
            modules=json.dumps([f"initlab/{module}" for module in modules]),
            tests=json.dumps([f"tests/{test}" for test in tests]),
        )
        settings.write_text("\n".join(lines) + text, encoding="utf-8")

        # compiled tests are kept in the copy, or each mutant would compile them again
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

        def python(*arguments: str) -> str:
            ran = subprocess.run(
                [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True
            )
            if ran.returncode:
                raise SystemExit(f"mutmut failed:\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}")
            return ran.stdout

        def became() -> dict[str, str]:
            lines = python("-m", "mutmut", "results", "--all", "true").splitlines()
            return dict(line.strip().rsplit(": ", 1) for line in lines if line.strip())

        python("-c", MAKE, str(children))
        names = list(became())
        tried = names if sample is None else random.Random(seed).sample(names, min(sample, len(names)))
        chosen = tried if len(tried) < len(names) else []
        python("-m", "mutmut", "run", "--max-children", str(children), *chosen)
        found = became()
        kept = {name: found[name] for name in sorted(tried, key=names.index)}
        survivors = [name for name, what in kept.items() if what == "survived"]
        return kept, changes(python("-c", SHOW, *survivors)), len(names)


def changes(shown: str) -> list[str]:
    """What mutmut shows of mutants, a line each: the function, and its changed lines."""
    found: list[str] = []
    for line in shown.splitlines():
        if line.startswith("# "):
            function = line[2:].partition("__mutmut_")[0].removeprefix("initlab.")
            found.append(re.sub(r"\.x(ǁ\w+ǁ|_)", lambda made: f".{made[1].strip('ǁ_')}.".replace("..", "."), function))
        elif line.startswith("+") and not line.startswith("+++"):
            found[-1] += f": {line[1:].strip()}"
    return found


def module_of(mutant: str) -> str:
    """The module of a name such as initlab.judge.slopes.x_slopes__mutmut_3."""
    return mutant.rpartition(".")[0].removeprefix("initlab.")


def rows(found: dict[str, str]) -> dict[str, dict[str, int]]:
    """Count what became of the mutants of each module."""
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for name, what in found.items():
        kind = {"no tests": "not reached", "timeout": "killed", "survived": "survived", "killed": "killed"}
        counted[module_of(name)][kind.get(what, "other")] += 1
    return {module: dict(counts) for module, counts in sorted(counted.items())}


def page(results: dict[str, dict]) -> str:
    """All parts as Markdown."""
    lines = [
        "# What the tests notice",
        "",
        "`python benchmarks/mutation.py PART --write`: mutants by mutmut, tried with the tests of their part. One that",
        "runs forever counts as killed; «of those reached» is killed / (killed + survived). Of large parts a sample is",
        "tried, drawn at random (`--sample 200 --seed 0`).",
        "",
        "| part | module | tried | killed | survived | not reached | of those reached |",
        "|---|---|---|---|---|---|---|",
    ]
    for part, result in results.items():
        total: Counter[str] = Counter()
        for module, counts in result["modules"].items():
            total.update(counts)
            if result["tried"].startswith("all"):  # of a sample, a module's share is a few mutants
                lines.append(f"| {part} | {module} | all {sum(counts.values())} | {cells(counts)} |")
        lines.append(f"| {part} | together | {result['tried']} | {cells(total)} |")
    lines += [
        "",
        "## Which survive",
        "",
        "Not each is a gap. No test can tell `observed=`, `sort=` and `strict=` where no category is unused and",
        "lengths are equal, a default that is spelled out, or another dtype of the same numbers; of a limit that no",
        "number meets exactly `<` and `<=` are one; and what runs on CUDA alone isn't run here.",
        "",
    ]
    for part, result in results.items():
        lines += [f"{part} ({result['made']}; {result['tried']}):", "", "```", *result["survived"], "```", ""]
    return "\n".join(lines)


def cells(counts: Counter[str] | dict[str, int]) -> str:
    killed, survived = counts.get("killed", 0), counts.get("survived", 0)
    share = f"{killed / (killed + survived):.0%}" if killed + survived else ""
    return f"{killed} | {survived} | {counts.get('not reached', 0)} | {share}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--children", type=int, default=2, help="mutants at a time")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--sample", type=int, metavar="N", help="of each part, N of its mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    options = parser.parse_args()
    if options.sample is not None and options.sample < 1:
        parser.error("--sample takes a number from 1 on")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    for part in options.parts or PARTS:
        started = time.monotonic()
        found, survived, made = mutate(part, options.children, options.sample, options.seed)
        modules = rows(found)
        for module, counts in modules.items():
            print(module, counts)
        tried = f"all {made:,}" if len(found) == made else f"{len(found):,} of {made:,}, seed {options.seed}"
        print(f"{part} ({tried}): {time.monotonic() - started:.0f} s", flush=True)
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        results[part] = {
            "made": f"initlab {initlab.__version__}, {time.strftime('%Y-%m-%d')}",
            "tried": tried,
            "modules": modules,
            "survived": survived,
        }
        if options.write:
            ordered = {name: results[name] for name in PARTS if name in results}
            RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
            RESULTS.with_suffix(".md").write_text(page(ordered), encoding="utf-8")


if __name__ == "__main__":
    main()
