"""`resnet find-lr`: train a few steps at growing learning rates, and suggest one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.load import load
from resnet.rundir.files import to_json

if TYPE_CHECKING:
    from resnet.tools.find_lr import Found

_LINES = 20
"""Of the table."""
_WIDTH = 40
"""Characters of its longest bar."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="recipe=NAME and changes to it")
    parser.add_argument("--from", dest="first", type=float, default=1e-5, metavar="LR", help="first rate (1e-5)")
    parser.add_argument("--to", dest="last", type=float, default=10.0, metavar="LR", help="last rate (10)")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="optimizer steps in between (100)")
    parser.add_argument("--out", type=Path, default=Path("find-lr.png"), metavar="FILE", help="picture (find-lr.png)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")


def run(arguments: argparse.Namespace) -> None:
    loaded = load(arguments.overrides)
    from resnet.tools.find_lr import find_lr
    from resnet.tools.output import check_output
    from resnet.tools.report.plots import draw_range

    check_output(arguments.out, "--out", (".png", ".svg"))
    for note in loaded.notes:
        print(note, file=sys.stderr)
    recipe = loaded.recipe
    found = find_lr(recipe, arguments.first, arguments.last, arguments.steps, lambda line: print(line, file=sys.stderr))
    draw_range(found.lrs, found.losses, found.smoothed, _marks(found), recipe.name, arguments.out)
    if arguments.json:
        print(to_json(found._asdict() | {"picture": str(arguments.out)}, indent=1))
        return
    print("\n".join(_told(found, recipe.optimizer.lr)))
    print(f"picture: {arguments.out}")


def _marks(found: Found) -> dict[str, float]:
    marks = {"steepest descent": found.steepest, "a tenth of the least loss's": found.tenth}
    return {name: lr for name, lr in marks.items() if lr is not None}


def _told(found: Found, lr: float) -> Iterator[str]:
    finite = [loss for loss in found.smoothed if loss == loss]
    low, high = min(finite, default=0.0), max(finite[: len(finite) // 2 + 1], default=1.0)
    yield f"{'optimizer.lr':>12}  {'loss':>8}"
    for index in range(0, len(found.lrs), max(1, len(found.lrs) // _LINES)):
        loss = found.smoothed[index]
        bar = "#" * round(_WIDTH * min(1.0, (loss - low) / ((high - low) or 1.0)))
        yield f"{found.lrs[index]:12.3g}  {loss:8.4f}  {bar}".rstrip()
    yield f"ends at {found.lrs[-1]:.3g}: the loss diverged" if found.diverged else "the loss did not diverge"
    if found.tenth == found.lrs[-1] / 10:
        yield "the loss still falls at the last rate: a higher --to would show where it ends"
    if found.steepest is None or found.tenth is None:
        yield "the loss did not fall: nothing to suggest (a lower --from, or more --steps)"
        return
    yield f"suggested: optimizer.lr={found.steepest:.2g}, where the loss falls fastest"
    yield f"      and: optimizer.lr={found.tenth:.2g}, a tenth of the rate of the least loss; the recipe has {lr:g}"
