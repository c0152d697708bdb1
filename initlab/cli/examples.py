"""What is shown below the help of each command."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "compare": (
        "initlab compare nanogpt nanogpt-no-depth-scale torch-default",
        "initlab compare nanogpt xavier mine.py:my_recipe --depths 4,8,16 --seeds 3 --data my.txt",
        "initlab compare nanogpt small-init-wang-neox --model mine.py:make --format markdown",
    ),
    "probe": (
        "initlab probe mine.py:make_model",
        "initlab probe gpt2 --recipe torch-default --stats light",
        "initlab probe mine.py:make_model --fail-on warning --format github --baseline findings.json",
    ),
    "scale": (
        "initlab scale nanogpt mup --widths 64,128,256",
        "initlab scale nanogpt --depths 2,4,8,16 --steps 0",
    ),
    "transfer": (
        "initlab transfer nanogpt-width-matched mup --data my.txt",
        "initlab transfer nanogpt mup --model mine.py:make --depths 2,4,8",
    ),
    "confirm": (
        "initlab confirm nanogpt nanogpt-no-depth-scale torch-default",
        "initlab confirm nanogpt deepnorm --model mine.py:make --depths 4,8 --data my.txt",
    ),
    "train": (
        "initlab train nanogpt --preset shakespeare-cpu --data my.txt",
        "initlab train nanogpt --preset shakespeare-cpu --data my.txt --watch-every 100",
    ),
    "fix": (
        "initlab fix mine.py:make_model",
        "initlab fix mine.py:make_model --save fixed.pt -o before-and-after",
    ),
    "trace-init": ("initlab trace-init mine.py:make_model --arg n_layer=6",),
    "diff": (
        "initlab diff runs/before runs/after",
        "initlab diff before.py:make after.py:make --seeds 3",
        "initlab diff mine.py:make mine.py:make --arg-b depth_scale=true -o what-changed",
    ),
    "predict": ("initlab predict nanogpt --n-layer 48 --n-embd 1600",),
    "report": (
        "initlab report initlab-runs/compare-20260101T120000",
        "initlab report runs/a --select RES,EMB --limit EMB001=0.05 --format concise",
    ),
    "recipes": ("initlab recipes mup --n-layer 12 --n-embd 768",),
    "rules": ("initlab rules RES001",),
}


def below(command: str) -> str | None:
    """Write the examples of a command as the end of its help, None where it has none.

    Args:
        command: as it is called.
    """
    lines = EXAMPLES.get(command, ())
    return "\n".join(["examples:", *(f"  {line}" for line in lines)]) if lines else None
