"""`resnet look`: the images of a training step exactly as the network gets them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.load import Loaded, load
from resnet.rundir.files import to_json
from resnet.rundir.find import find_run
from resnet.tools.arguments import add_root, read_step

if TYPE_CHECKING:
    from resnet.tools.look import Seen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's name under --root, or its directory; or recipe=NAME")
    add_root(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes, as data.train=... of this machine")
    parser.add_argument("--step", default="1", metavar="N", help="the step, as the log counts them (1, the first)")
    parser.add_argument("--count", type=int, default=32, metavar="N", help="the first images of the step (32)")
    parser.add_argument("--out", type=Path, metavar="OUT.png", help="the picture (look-step-N.png)")
    parser.add_argument("--original", action="store_true", help="show beside each the whole image and what was cut out")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")


def run(arguments: argparse.Namespace) -> None:
    from resnet.data.sources.files import expanded
    from resnet.run_recipe import load_run_recipe
    from resnet.tools.look import as_json, draw_seen, look, look_at_run
    from resnet.tools.output import check_output, refuse_input

    step = read_step(arguments.step, "--step")
    out = arguments.out or Path(f"look-step-{step}.png")
    check_output(out, "--out", (".png",))
    how = {"step": step, "count": arguments.count, "originals": arguments.original}
    if "=" in arguments.run:
        loaded = load([arguments.run, *arguments.overrides])
        seen, what = look(loaded.recipe, **how), loaded.recipe.name
    else:
        run_dir = find_run(arguments.run, arguments.root)
        loaded = load_run_recipe(run_dir, arguments.overrides)
        seen, what = look_at_run(run_dir, loaded.recipe, **how), str(run_dir)
    refuse_input(out, "--out", [expanded(path) for path in (loaded.recipe.data.train, loaded.recipe.data.val) if path])
    title = f"{what}, step {seen.step} (epoch {seen.epoch:.2f})"
    draw_seen(seen, out, title)
    _tell(loaded, seen)
    if arguments.json:
        print(to_json(as_json(seen) | {"picture": str(out)}, indent=1))
        return
    slots = f" in micro-batches of {seen.micro_batch}" if seen.micro_batch < seen.batch_size else ""
    print(f"{title}: the first {len(seen.samples)} of {seen.batch_size} images{slots}")
    _print_table(seen)
    print(f"picture: {out}")


def _tell(loaded: Loaded, seen: Seen) -> None:
    for line in (*loaded.notes, *(f"warning: {note}" for note in seen.notes)):
        print(line, file=sys.stderr)
    for sample in seen.samples:
        for image in sample.broken:
            print(f"warning: cannot read {image}; {sample.file} stands in its place", file=sys.stderr)


def _print_table(seen: Seen) -> None:
    from resnet.tools.look import box_text, done_to

    header = ["position", "file", "label", "whole", "crop", "done", "erased", "mixed with"]
    rows = [header]
    for sample in seen.samples:
        mixed = "" if sample.mixed_with is None else str(sample.mixed_with)
        if sample.mixed_box is not None:
            mixed += f" in {box_text(sample.mixed_box)}"
        height, width = sample.size
        facts = (f"{width}x{height}", box_text(sample.crop), done_to(sample), box_text(sample.erased), mixed)
        rows.append([str(sample.position), sample.file, sample.label_text, *facts])
    # Columns in which nothing is said are left out.
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("(boxes: width x height + left + top, in pixels)")
