"""`resnet quantize`: a trained network in int8, or with weights in half precision."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from resnet.process.exit_codes import FAILED
from resnet.tools.arguments import add_trained, positive, split_changes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_trained(parser)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="changes to the recipe, as data.train=PATH")
    parser.add_argument(
        "--to",
        default="int8",
        choices=("int8", "bf16", "fp16"),
        help="int8: weights and images of all convolutions; bf16, fp16: weights alone, half the size (int8)",
    )
    parser.add_argument(
        "--backend",
        choices=("pt2", "onnx"),
        help="of int8: pt2, compiled by torch for this kind of CPU; onnx, a file for ONNX Runtime "
        "that needs no compiler (pt2)",
    )
    parser.add_argument(
        "--calibrate", type=positive, metavar="N", help="training images to calibrate int8 with, from all classes (512)"
    )
    parser.add_argument(
        "--samples", type=positive, default=10_000, metavar="N", help="validation images to measure both with (10000)"
    )
    parser.add_argument("--data", action="append", metavar="PATH", help="other images to measure with, as for eval")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the result is to be (RUN/exports/NAME)")


def run(arguments: argparse.Namespace) -> int | None:
    paths, changes = split_changes(arguments.changes)
    if paths:
        raise ValueError(f"unexpected argument {paths[0]}: behind RUN come changes to the recipe, as data.train=PATH")
    for option in ("backend", "calibrate"):
        if arguments.to != "int8" and getattr(arguments, option) is not None:
            raise ValueError(f"--{option} is for int8, and --to {arguments.to} takes none")

    import torch

    from recipes.text import plural
    from resnet.process.environment import cores_of_rank
    from resnet.tools.eval_data import DataOptions
    from resnet.tools.export.measure import table_of
    from resnet.tools.export.quantize import Options, quantize
    from resnet.tools.export.served import NotServed
    from resnet.tools.export.tracing import CannotExport
    from resnet.tools.trained import find_trained

    torch.set_num_threads(cores_of_rank())
    trained = find_trained(arguments.run, arguments.root, overrides=changes)
    given = {key: getattr(arguments, key) for key in ("backend", "calibrate") if getattr(arguments, key) is not None}
    data = DataOptions(tuple(arguments.data or ()))
    options = Options(to=arguments.to, samples=arguments.samples, data=data, **given)
    try:
        made = quantize(trained, options, arguments.out, lambda text: print(text, file=sys.stderr))
    except (CannotExport, NotServed) as error:
        print(f"resnet quantize: {error}", file=sys.stderr)
        return FAILED
    print(*(f"warning: {text}\n" for text in made.warnings), sep="", end="", file=sys.stderr)
    measured, record = made.measured, made.record
    print(*table_of(measured), sep="\n")
    print(
        f"the same answer to {measured.agreement:.2f}% of {plural(measured.images, 'image')}; largest difference "
        f"{measured.largest_difference:.3g}, of logits up to {measured.largest_logit:.3g}"
    )
    if arguments.to == "int8":
        print(f"{record['int8_convolutions']} of {plural(record['convolutions'], 'convolution')} in int8: {made.file}")
    else:
        print(f"weights in {arguments.to}, computed with in float32: {made.file}")
    return None
