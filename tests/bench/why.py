"""What `launch why` says of faults that were planted: a table of the fault, what it said, and whether that was right.

python -m tests.bench.why [--only NAME ...] [--markdown]
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from recipes.text import table
from tests.launch.planted import Fault, Said, faults, place_in

HEADINGS = ("fault", "cause", "what it said", "")


def row(planted: Fault, said: Said) -> tuple[str, ...]:
    first = said.first
    return planted.what, f"{first['kind']}: {first['name']}", first["said"], "right" if said.right else "WRONG"


def as_text(rows: Sequence[tuple[str, ...]]) -> list[str]:
    columns = {heading: list(cells) for heading, cells in zip(HEADINGS, zip(*rows, strict=True), strict=True)}
    return table(columns, left=HEADINGS)


def as_markdown(rows: Sequence[tuple[str, ...]]) -> list[str]:
    body = [" | ".join(cell.replace("|", "\\|") for cell in cells) for cells in rows]
    return [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}", *(f"| {line} |" for line in body)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="functions of tests/launch/planted")
    parser.add_argument("--markdown", action="store_true", help="as in docs/why.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, place_in(Path(folder)) as place:
        chosen = [planted for planted in faults() if not arguments.only or planted.id in arguments.only]
        with contextlib.redirect_stdout(sys.stderr):
            said = [(planted, place.say(planted)) for planted in chosen]
    rows = [row(*pair) for pair in said]
    print("\n".join(as_markdown(rows) if arguments.markdown else as_text(rows)))
    print(f"\n{sum(one.right for _, one in said)} of {len(said)} right")


if __name__ == "__main__":
    main()
