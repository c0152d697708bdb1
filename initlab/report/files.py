"""A document as files: the page, its figures, the same as Markdown, the findings as JSON."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from initlab.errors import RunError
from initlab.report import figures, html, markdown
from initlab.report.document import Document
from initlab.report.formats import judged
from initlab.rundir import write_whole


def write_report(document: Document, out: Path) -> Path:
    """Write report.html, report.md, figures/*.png and findings.json; every file is whole or not there.

    Args:
        document: of a run.
        out: the folder, made where there is none.

    Returns:
        The path of report.html.

    Raises:
        RunError: the folder can't be written.
    """
    out = Path(out)
    pictures = out / "figures"
    try:
        pictures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"report folder {out} can't be written: {error.strerror}; choose another with -o") from None
    for spec in figures.FIGURES:
        (pictures / f"{spec.name}.png").unlink(missing_ok=True)  # of an earlier report into the same folder
    with _uncollected():
        for drawing in document.drawings:
            write_whole(pictures / f"{drawing.name}.png", drawing.png)
        findings_text = json.dumps(judged(document), indent=1, ensure_ascii=False)
        write_whole(out / "findings.json", f"{findings_text}\n".encode())
        write_whole(out / "report.md", markdown.text(document).encode())
        write_whole(out / "report.html", html.page(document).encode())
    return out / "report.html"


@contextmanager
def _uncollected() -> Iterator[None]:
    """Look for no cycles meanwhile: figures are hundreds of thousands of objects that are all in use until they are
    written, and to ask them again and again whether they are takes an eighth of a report."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
