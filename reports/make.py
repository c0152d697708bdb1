"""Makes every report of this folder again: `python reports/make.py [NAME…]`.

Holds every command. Tables are packed (records.csv.xz); `initlab report FOLDER` reads them.
"""

from __future__ import annotations

import lzma
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
COMMANDS = {
    "recipes-by-depth": "compare nanogpt nanogpt-no-depth-scale torch-default",
}
# need what their first lines say
SCRIPTS = {
    "transformers-audit": "examples/audit_transformers.py --out reports/transformers-audit",
}


def make(name: str) -> None:
    if name in SCRIPTS:
        subprocess.run([sys.executable, *shlex.split(SCRIPTS[name])], check=True, cwd=HERE.parent)
        return
    made = Path("initlab-runs") / name  # ignored by git, so that the page shows a commit without changes
    shutil.rmtree(HERE.parent / made, ignore_errors=True)
    command = [sys.executable, "-m", "initlab", *shlex.split(COMMANDS[name]), "-o", str(made)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent).stdout
    out = HERE / name
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(HERE.parent / made, out)
    (out / "terminal.txt").write_text(text, encoding="utf-8")
    for table in ("records.csv", "heads.csv", "coverage.csv"):
        path = out / table
        path.with_name(table + ".xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))
        path.unlink()


if __name__ == "__main__":
    known = [*COMMANDS, *SCRIPTS]
    unknown = set(sys.argv[1:]) - set(known)
    if unknown:
        sys.exit(f"unknown report {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    for each in sys.argv[1:] or known:
        make(each)
