"""`resnet prepare`: images of any source into shards, for `data.source=shards`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.load import Loaded, load, load_over
from recipes.text import plural
from resnet.tools.arguments import positive, split_changes

if TYPE_CHECKING:
    from resnet.data.sources.shards import Index
    from resnet.tools.prepare.forms import Form

_QUALITY = 90


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = (
        "recipe=NAME; or a folder with train and val in it, a folder a class, a CSV file, parquet files, other shards"
    )
    parser.add_argument("source", metavar="SOURCE", help=what)
    parser.add_argument("out", nargs="?", metavar="OUT", help="folder for the shards")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="keys of a recipe, as data.val_fraction=0.1")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--keep", action="store_true", help="store images as they are (the default)")
    forms.add_argument("--max-side", type=positive, metavar="N", help="make the longer side at most N pixels")
    forms.add_argument("--short-side", type=positive, metavar="N", help="make the shorter side at most N pixels")
    forms.add_argument("--raw", type=positive, metavar="N", help="store pixels, the shorter side at most N")
    forms.add_argument(
        "--verify", action="store_true", help="compare files that were written into SOURCE with their digests"
    )
    parser.add_argument(
        "--quality", type=positive, metavar="Q", help=f"of the JPEG files of smaller images ({_QUALITY})"
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (one a core)")


def run(arguments: argparse.Namespace) -> None:
    words = [arguments.source, *([arguments.out] if arguments.out else []), *arguments.changes]
    paths, changes = split_changes(words)
    if arguments.verify:
        from resnet.tools.prepare.prepare import verify

        if len(paths) != 1 or changes:
            raise ValueError("--verify takes one folder, and nothing else")
        index = verify(Path(paths[0]))
        print(f"{paths[0]}: every file is as it was written\n{_summary(index)}")
        return
    form = _form(arguments)
    loaded, out = _load(paths, changes)
    from resnet.tools.prepare.prepare import prepare

    for note in loaded.notes:
        print(note, file=sys.stderr)
    index = prepare(loaded.recipe.data, Path(out), form, arguments.workers, loaded.recipe.model.in_channels)
    print(f"{out}: {_summary(index)}")
    print(f"train from them: data.source=shards data.train={out}")


def _form(arguments: argparse.Namespace) -> Form:
    from resnet.tools.prepare.forms import Form

    quality = arguments.quality or _QUALITY
    if quality > 100:
        raise ValueError(f"--quality {quality}: give 1 to 100")
    for kind in ("max_side", "short_side"):
        if side := getattr(arguments, kind):
            return Form(kind, side, quality)
    if arguments.quality:
        raise ValueError("--quality is of images that --max-side or --short-side makes smaller")
    return Form("raw", arguments.raw) if arguments.raw else Form()


def _load(paths: list[str], changes: list[str]) -> tuple[Loaded, str]:
    """The recipe whose data is prepared, and the folder for the shards."""
    from resnet.data.sources.guess import guess_data

    if any(word.startswith("recipe=") for word in changes):
        if len(paths) != 1:
            raise ValueError("give one folder for the shards, as in: resnet prepare recipe=resnet50_imagenet OUT")
        return load(changes), paths[0]
    if len(paths) != 2:
        raise ValueError("give the images and a folder for the shards, as in: resnet prepare photos OUT")
    data, notes = guess_data(paths[0])
    values = {"model": {"name": "resnet50"}, "data": data, "epochs": 1, "batch_size": 64}
    # By a name that no recipe has: its keys would come with it.
    loaded = load_over("resnet prepare", values, paths[0], changes)
    return loaded._replace(notes=(*loaded.notes, *notes)), paths[1]


def _summary(index: Index) -> str:
    from resnet.tools.prepare.prepare import amount

    lines = []
    for name, split in (("training", index.train), ("validation", index.validation)):
        size = sum(file.bytes for file in split.files)
        lines.append(f"{plural(split.images, f'{name} image')} in {plural(len(split.files), 'file')}, {amount(size)}")
    broken = [*index.train.broken, *index.validation.broken]
    text = f"{'; '.join(lines)}; {plural(len(index.classes), 'class')}"
    if broken:
        text += f"\nleft out, as they cannot be read: {plural(len(broken), 'image')} (all in index.json)"
        text += "".join(f"\n  {image.image}: {image.reason}" for image in broken[:5])
    return text
