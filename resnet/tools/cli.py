"""The command `resnet`: what one does with a finished run. Each subcommand prints what a function returns."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from recipes.load import load
from resnet.process.commands import Command, Completer, run_program
from resnet.process.exit_codes import FAILED, FINISHED
from resnet.rundir.files import to_json
from resnet.rundir.find import find_run, run_names

LISTED = 20
"""Differences of two runs that are printed."""


class _Tool(NamedTuple):
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand and leave with its exit code."""
    if code := run_program("resnet", COMMANDS, list(sys.argv[1:] if argv is None else argv), _completers):
        sys.exit(code)


def _completers() -> Mapping[str, Completer]:
    from recipes.completion import complete_word

    return {"KEY=VALUE": complete_word, "RUN": lambda _: run_names()}


def _takes_a_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's name under --root, or its directory")
    parser.add_argument("--root", default="runs", help="folder of the runs (default: %(default)s)")


def _takes_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, metavar="PATH", help="default: RUN/final.safetensors")


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    _takes_a_run(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe, as eval.flip=true")
    _takes_weights(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _evaluate(arguments: argparse.Namespace) -> None:
    import torch

    from resnet.process.environment import cores_of_rank
    from resnet.tools.evaluate import evaluate

    run_dir = find_run(arguments.run, arguments.root)
    loaded = load([f"recipe={run_dir / 'recipe.yaml'}", *arguments.overrides])
    # As many as training takes, so that it rounds as training did.
    torch.set_num_threads(cores_of_rank())
    result = evaluate(run_dir, loaded.recipe, arguments.weights)
    for line in (*loaded.notes, *(f"warning: {warning}" for warning in result.warnings)):
        print(line, file=sys.stderr)
    if arguments.json:
        figures = {name: getattr(result, name) for name in ("top1", "top5", "loss", "samples")}
        print(to_json(figures | {"weights": str(result.weights), "run": str(result.run)}))
    else:
        print(
            f"top-1 {result.top1:.2f}%  top-5 {result.top5:.2f}%  loss {result.loss:.4f}  "
            f"{result.samples} images  {result.weights}"
        )


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    _takes_a_run(parser)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="images, in subfolders too; or one image")
    parser.add_argument("--csv", type=Path, metavar="OUT", help="file to write; default: standard output")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images of a forward pass (64)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    _takes_weights(parser)


def _predict(arguments: argparse.Namespace) -> None:
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


def _report(arguments: argparse.Namespace) -> None:
    from resnet.tools.report.report import write_report

    print(write_report(find_run(arguments.run, arguments.root)))


def _verify_resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="recipe=NAME and changes to it")
    parser.add_argument("--steps", type=int, default=12, metavar="N", help="optimizer steps of each run (12)")
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="processes, one for each GPU (1)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the two runs there")


def _verify_resume(arguments: argparse.Namespace) -> int:
    from resnet.tools.verify_resume import verify_resume

    found = verify_resume(arguments.overrides, arguments.steps, arguments.ranks, arguments.keep, tell=_print_now)
    if not found:
        print("equal to the last bit: weights, statistics, optimizer, counters, log")
        return FINISHED
    print(f"NOT equal, {len(found)} differences:", *found[:LISTED], sep="\n  ")
    if len(found) > LISTED:
        print(f"  ... and {len(found) - LISTED} more")
    deterministic = load(arguments.overrides).recipe.deterministic
    if not deterministic and any(name in str(found) for name in ("model", "optimizer")):
        print("on a GPU, sums in unordered kernels differ from run to run: deterministic=true orders them, at a cost")
    return FAILED


def _print_now(line: str) -> None:
    print(line, flush=True)


COMMANDS = {
    name: Command(what, lambda tool=tool: tool)
    for name, what, tool in (
        ("report", "write report.html, curves.png and confusion.png anew", _Tool(_takes_a_run, _report)),
        ("eval", "evaluate a run's weights on the validation images", _Tool(_evaluate_arguments, _evaluate)),
        ("predict", "classify a folder of images", _Tool(_predict_arguments, _predict)),
        (
            "verify-resume",
            "check that a recipe resumes exactly on this machine",
            _Tool(_verify_resume_arguments, _verify_resume),
        ),
    )
}
