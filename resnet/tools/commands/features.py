"""`resnet features`: what a layer of a trained network makes of images, as a parquet file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recipes.text import plural
from resnet.tools.arguments import add_lists, add_trained, split_changes
from resnet.tools.output import check_output, counted, refuse_input
from resnet.tools.prediction_rows import printable

_MOST_LISTED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trained(parser)
    what = "images as for `resnet predict`, or `train` or `val` of the run's own data; and KEY=VALUE"
    parser.add_argument("source", nargs="+", metavar="SOURCE", help=what)
    parser.add_argument("out", metavar="OUT.parquet", help="file to write")
    parser.add_argument(
        "--layer", default="avgpool", help="avgpool, or the mean over height and width of layer1, layer2 ... (avgpool)"
    )
    parser.add_argument("--knn", action="store_true", help="tell how often the 20 nearest neighbours know the label")
    add_lists(parser)
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images of a forward pass (64)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def run(arguments: argparse.Namespace) -> None:
    paths, changes = split_changes([*arguments.source, arguments.out])
    out = Path(paths.pop())
    if not paths or out.suffix != ".parquet":
        raise ValueError(f"{out}: give images, and behind them the file to write, which ends in .parquet")
    check_output(out, "OUT.parquet")
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size {arguments.batch_size}: it takes 1 or more")

    from resnet.data.sources.given import files_of, files_read
    from resnet.tools.features import OwnImages, is_features, open_images, write_features
    from resnet.tools.forward import choose_device, evaluation_precision
    from resnet.tools.knn import check_labels, knn
    from resnet.tools.predict import named
    from resnet.tools.trained import find_trained

    trained = named(find_trained(arguments.run, arguments.root, overrides=changes))
    source = open_images(trained, paths, (arguments.file_column, arguments.label_column), arguments.images)
    read = files_of(trained.recipe.data) if isinstance(source, OwnImages) else files_read(paths)
    refuse_input(out, "OUT.parquet", read)
    if arguments.knn:
        check_labels(sum(source.label_name(index) is not None for index in range(len(source))))
    if out.exists() and not is_features(out):
        raise ValueError(f"{out} is there, and was not written by `resnet features`: give another name, or remove it")
    notes = [*trained.notes, *source.notes]
    evaluation_precision(trained.recipe, choose_device(arguments.device), notes.append)
    print(*(f"{note}\n" for note in notes), sep="", end="", file=sys.stderr)
    total = len(source)

    def told(blocks, done):
        if done:
            print(f"{done:,} of {plural(total, 'image')} done before", file=sys.stderr)
        return counted(blocks, total, weight=lambda block: len(block[0]) + len(block[2]), done=done)

    written = write_features(trained, source, out, arguments.layer, arguments.batch_size, arguments.device, told)
    for file, problem in written.problems[:_MOST_LISTED]:
        print(f"warning: cannot read {printable(file)}: {problem}", file=sys.stderr)
    missing = total - written.rows
    left_out = f"; {missing:,} could not be read and {'is' if missing == 1 else 'are'} left out" if missing else ""
    print(
        f"{out}: {plural(written.rows, 'image')}, {plural(written.size, 'number')} each of {arguments.layer}{left_out}"
    )
    if arguments.knn:
        found = knn(out)
        some = "" if found.queries == found.images else f" of {found.queries:,} images among"
        print(f"top-1 {found.top1:.2f}% by the 20 nearest neighbours,{some} {found.images:,} labelled images")
