"""The table of recipes in docs/recipes.md: `python -m recipes.page` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from recipes.evidence import with_spread
from recipes.library import FOLDER
from recipes.listing import Listed, shipped_recipes

PATH = FOLDER.parent / "docs" / "recipes.md"
BEGIN = "<!-- What follows is written by `python -m recipes.page`. -->\n"


def text(page: str) -> str:
    """The page with the table of today's recipes. page: as it is."""
    return page.partition(BEGIN)[0] + BEGIN + "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    for (group, family), rows in groupby(shipped_recipes(), lambda row: (row.group, row.family)):
        yield from ("", f"### {group}: {family}", "")
        yield from ("| recipe | expected top-1 (band) | evaluation | source | measured here |", "|---|---|---|---|---|")
        yield from map(_row, rows)


def _row(row: Listed) -> str:
    evidence = row.recipe.evidence
    assert evidence is not None
    expected = "unknown" if evidence.top1 is None else with_spread(evidence.top1, evidence.spread, evidence.seeds)
    if evidence.band is not None:
        expected += f" ({evidence.band[0]:g} to {evidence.band[1]:g})"
    elif evidence.top1 is not None:
        expected = f"~{expected}, an estimate"
    measured = evidence.measured
    figure = with_spread(measured.top1, measured.spread, measured.seeds) if measured and measured.top1 else ""
    link = f"[{row.recipe.name}](../{row.path.relative_to(FOLDER.parent).as_posix()})"
    return f"| {link} | {expected} | {evidence.evaluation} | {evidence.source} | {figure} |"


def main(path: Path = PATH) -> None:
    path.write_text(text(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
