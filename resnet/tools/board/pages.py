"""What the pages of several runs share: one file with data and scripts, links, thinned curves."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from resnet.rundir.files import write_atomic
from resnet.tools.report.html import page, to_script

_FOLDER = Path(__file__).parent
_SHARED = ("chart.js", "controls.js")


def write_page(path: Path, title: str, sections: Iterable[str], data: Mapping[str, Any], *scripts: str) -> Path:
    """Write a page of several runs and return its path. Raises ValueError where it cannot be written.

    sections: HTML. data: what `scripts`, of the files beside this one, find in the element with the id `data`.
    """
    style, *code = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("several.css", *_SHARED, *scripts))
    held = f'<script type="application/json" id="data">{to_script(data)}</script>'
    try:
        write_atomic(path, page(title, [f"<style>{style}</style>", *sections, held], "".join(code)))
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror}): give another place with --out") from error
    return path


def link_to(target: Path, page_file: Path) -> str:
    """The address of a file as a page names it, relative, so that a folder of pages can be moved or served."""
    return quote(os.path.relpath(target.absolute(), page_file.absolute().parent).replace(os.sep, "/"))


def report_link(run_dir: Path, page_file: Path) -> str | None:
    """The address of a run's report; None where none has been written."""
    report = run_dir / "report.html"
    return link_to(report, page_file) if report.is_file() else None


def linked(text: str, address: str | None) -> str:
    """HTML of a text, as a link where there is an address."""
    return f'<a href="{escape(address)}">{escape(text)}</a>' if address else escape(text)


def names_of(run_dirs: Sequence[Path]) -> list[str]:
    """The runs by name; by path where two have the same."""
    names = [run_dir.absolute().name for run_dir in run_dirs]
    return [
        os.path.relpath(run_dir) if names.count(name) > 1 else name
        for name, run_dir in zip(names, run_dirs, strict=True)
    ]


REASON_MOST = 200
"""Characters shown of why a run ended."""


def strided(count: int, most: int) -> list[int]:
    """Indices of at most so many of `count` items, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / (most - 1)) for index in range(most)]


def digits(value: float | None, number: int = 5) -> float | None:
    """A number that takes few characters."""
    return None if value is None else float(f"{value:.{number}g}")


def state_mark(state: str) -> str:
    """HTML of a run's state."""
    kind = state if state in ("finished", "failed", "running") else ""
    return f'<span class="state {kind}">{escape(state)}</span>'
