"""The command `resnet`: what one does with a finished run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet.process.exit_codes import FAILED, INTERRUPTED, MISTAKE
from resnet.rundir.find import find_run


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand; leaves with 0, or 1 (it failed), or 2 (the user's mistake, told without a traceback)."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.function(arguments)
    except (ValueError, OSError) as error:
        if arguments.debug:
            raise
        print(f"resnet {arguments.command}: {error}", file=sys.stderr)
        sys.exit(MISTAKE if isinstance(error, ValueError) else FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="resnet", description="Look at a run and use its weights.")
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("run", metavar="RUN", help="a run directory, or the name of one in runs/")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    report = subcommands.add_parser("report", parents=[common], help="write report.html, curves.png and confusion.png")
    report.set_defaults(function=_report)

    evaluate = subcommands.add_parser("eval", parents=[common], help="evaluate the weights on the validation images")
    evaluate.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe, as eval.flip=true")
    evaluate.add_argument("--weights", type=Path, metavar="PATH", help="default: RUN/final.safetensors")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.set_defaults(function=_evaluate)

    predict = subcommands.add_parser("predict", parents=[common], help="classify a folder of images")
    predict.add_argument("folder", type=Path, metavar="FOLDER", help="images, in subfolders too")
    predict.add_argument("--csv", type=Path, metavar="OUT", help="file to write; default: standard output")
    predict.add_argument("--batch-size", type=int, default=64, metavar="N", help="images of a forward pass (64)")
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    predict.add_argument("--weights", type=Path, metavar="PATH", help="default: RUN/final.safetensors")
    predict.set_defaults(function=_predict)

    verify = subcommands.add_parser("verify-resume", help="check that a recipe resumes exactly on this machine")
    verify.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="recipe=NAME and changes to it")
    verify.add_argument("--steps", type=int, default=12, metavar="N", help="optimizer steps of each run (12)")
    verify.add_argument("--ranks", type=int, default=1, metavar="N", help="processes, one for each GPU (1)")
    verify.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the two runs there")
    verify.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verify.set_defaults(function=_verify_resume)
    return parser


def _verify_resume(arguments: argparse.Namespace) -> None:
    from resnet.tools.verify_resume import verify_resume

    if not verify_resume(arguments.overrides, arguments.steps, arguments.ranks, arguments.keep):
        sys.exit(FAILED)


def _report(arguments: argparse.Namespace) -> None:
    from resnet.tools.report.report import write_report

    print(write_report(find_run(arguments.run)))


def _evaluate(arguments: argparse.Namespace) -> None:
    from resnet.tools.evaluate import evaluate_run

    evaluate_run(find_run(arguments.run), arguments.overrides, weights=arguments.weights, as_json=arguments.json)


def _predict(arguments: argparse.Namespace) -> None:
    from resnet.tools.predict import predict_folder

    predict_folder(
        find_run(arguments.run),
        arguments.folder,
        csv=arguments.csv,
        batch_size=arguments.batch_size,
        device=arguments.device,
        weights=arguments.weights,
    )
