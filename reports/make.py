"""Makes every report of this folder again: `python reports/make.py [NAME…]`.

Holds every command. Tables are packed (records.csv.xz); `initlab report FOLDER` reads them.
"""

from __future__ import annotations

import json
import lzma
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
COMMANDS = {
    "recipes-by-depth": "compare nanogpt nanogpt-no-depth-scale torch-default",
    # on the text that was the default when the limits were calibrated on it: docs/training.md quotes its grades
    "recipes-trained": "confirm nanogpt nanogpt-no-depth-scale nanogpt-width-matched torch-default --data docstrings",
    "gpt2-124m": "compare nanogpt nanogpt-no-depth-scale torch-default --depths 12 --n-embd 768 --block-size 1024 "
    "--batch-size 1 --vocab-size 50304 --seeds 1 --no-bias",
}
# read karpathy/char-rnn's tinyshakespeare.txt in the folder of the repository, where it is; as benchmarks/transfer.py
TRANSFERS = {
    "parametrisations/width": "transfer nanogpt-width-matched mup --data tinyshakespeare.txt",
    "parametrisations/llama": "transfer nanogpt-width-matched mup --model benchmarks/detection_models.py:llama "
    "--widths 32,64,128 --steps 150 --data tinyshakespeare.txt",
    "fresh-ground": "confirm nanogpt xavier kaiming orthogonal small-init-wang-neox torchtitan-llama3 olmo-mitchell "
    "nanodo deepseek deepnorm --n-embd 96 --warmups 40 --data tinyshakespeare.txt",
    "parametrisations/depth": "transfer nanogpt-width-matched depth-mup completep --depths 2,4,8,16 "
    "--data tinyshakespeare.txt",
}
COMMANDS |= TRANSFERS
# each writes into the folder that it is given last
SCRIPTS = {
    "transformers-audit": "examples/audit_transformers.py --out",  # needs the extra hf
    "fixed-model": "examples/07_fix_a_model.py",
    "nanogpt-claims": "examples/nanogpt_claims.py -o",  # half an hour; goes on where it stopped
}
EXAMPLES = "examples"  # what each of them prints, beside them
PACKED = ("records.csv", "heads.csv", "coverage.csv", "training.csv")


def print_examples() -> None:
    """Keep what every numbered example prints in examples/output."""
    out = ROOT / "examples" / "output"
    out.mkdir(exist_ok=True)
    for script in sorted((ROOT / "examples").glob("[0-9]*.py")):
        done = subprocess.run([sys.executable, str(script)], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        (out / f"{script.stem}.txt").write_text(done.stdout, encoding="utf-8")


def leave_unchecked(run: Path) -> None:
    """Make a folder one without checksums, which has lost tables on purpose."""
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in manifest.items() if key not in ("committed", "sum")}
    (run / "run.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (run / "commits.jsonl").unlink(missing_ok=True)


def make(name: str) -> None:
    if name == EXAMPLES:
        print_examples()
        return
    made = Path("initlab-runs") / name  # ignored by git, so that the page shows a commit without changes
    if name == "transformers-audit":
        made = Path("reports") / name  # compares with what is there
    elif name != "nanogpt-claims":
        shutil.rmtree(ROOT / made, ignore_errors=True)
    command = ["-m", "initlab", *shlex.split(COMMANDS[name]), "-o"] if name in COMMANDS else shlex.split(SCRIPTS[name])
    done = subprocess.run(
        [sys.executable, *command, str(made)], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    if name == "transformers-audit":
        return
    out = HERE / name
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / made, out)
    if name == "nanogpt-claims":  # 9 MB otherwise; what the claims read off these runs is in data/
        for path in [path for run in out.iterdir() if run.name != "training" for path in run.glob("*.csv")]:
            if path.parent.name != "data" and path.name in PACKED:
                path.unlink()
                leave_unchecked(path.parent)
    (out / "terminal.txt").write_text(done.stdout.replace(f"{made}/", ""), encoding="utf-8")
    for path in [path for table in PACKED for path in out.rglob(table)]:
        path.with_name(path.name + ".xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))
        path.unlink()


if __name__ == "__main__":
    known = [*COMMANDS, *SCRIPTS, EXAMPLES]
    usual = [name for name in known if name not in TRANSFERS or (ROOT / "tinyshakespeare.txt").exists()]
    unknown = set(sys.argv[1:]) - set(known)
    if unknown:
        sys.exit(f"unknown report {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    for each in sys.argv[1:] or usual:
        make(each)
