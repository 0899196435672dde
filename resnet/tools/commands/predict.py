"""`resnet predict`: images without labels, classified by a run's weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from resnet.rundir.find import find_run
from resnet.tools.arguments import add_run, add_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="images, in subfolders too; or one image")
    parser.add_argument("--csv", type=Path, metavar="OUT", help="file to write; default: standard output")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images of a forward pass (64)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_weights(parser)


def run(arguments: argparse.Namespace) -> None:
    from resnet.rundir.files import write_atomic
    from resnet.tools.predict import check_writable, images_of, predict, to_csv

    run_dir, csv, folder = find_run(arguments.run, arguments.root), arguments.csv, arguments.folder
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size {arguments.batch_size}: it takes 1 image or more")
    if csv is not None:
        check_writable(csv)
    found = predict(
        run_dir,
        images_of([folder]),
        batch_size=arguments.batch_size,
        device=arguments.device,
        weights=arguments.weights,
    )
    for prediction in found:
        if prediction.problem:
            print(f"warning: cannot read {prediction.file}: {prediction.problem}", file=sys.stderr)
    content = to_csv(found, folder if folder.is_dir() else folder.parent)
    if csv is None:
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    else:
        write_atomic(csv, content)
    broken = sum(prediction.label is None for prediction in found)
    note = f"; {broken} could not be read and have no label" if broken else ""
    print(f"{len(found)} images{f' in {csv}' if csv else ''}{note}", file=sys.stderr)
