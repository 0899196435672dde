"""The command `resnet`: what one does with runs. Each subcommand is a module of its own, imported when it is called."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from resnet.process.commands import Command, Completer, run_program
from resnet.rundir.find import run_names

COMMANDS = {
    name: Command(what, partial(importlib.import_module, f"resnet.tools.commands.{name.replace('-', '_')}"))
    for name, what in {
        "eval": "evaluate runs, checkpoints and files of weights on labelled images",
        "predict": "classify images: files, folders, lists",
        "check-data": "read all images of a training once and tell what is wrong with them",
        "features": "write what a layer makes of images to a parquet file",
        "look": "show the images of a training step exactly as the network gets them",
        "replay": "train some steps of a run again and compare with what it left",
        "prepare": "write images of any source into a few large files that are fast to read",
        "prune": "make a smaller network of a run, as a run of its own",
        "average": "write the mean of weights that a run has kept",
        "export": "write a network as safetensors, torch, ONNX or torch.export files, or for the Hugging Face Hub",
        "diff": "tell what matters of how two runs or recipes differ",
        "quantize": "make a trained network smaller and faster: int8, or weights in half precision",
        "report": "write a page that explains a run, compares several, or shows a sweep",
        "board": "write a page of all runs and sweeps in a folder",
        "doctor": "tell what limits the speed of a recipe on this machine, and what to change",
        "find-lr": "train a few steps at growing learning rates, and suggest one",
        "verify-resume": "check that a recipe resumes exactly on this machine",
    }.items()
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand and leave with its exit code."""
    # Most of a command's seconds go into imports, of which nothing is garbage; to look for it takes a tenth of them.
    gc.set_threshold(50_000)
    if code := run_program("resnet", COMMANDS, list(sys.argv[1:] if argv is None else argv), _completers):
        sys.exit(code)


def _completers() -> Mapping[str, Completer]:
    from recipes.completion import complete_word

    return {
        "KEY=VALUE": complete_word,
        "KEY=VALUE|PATH": complete_word,
        "RUN": lambda _: run_names(),
        "RUN|KEY=VALUE": lambda word: [name for name in run_names() if name.startswith(word)] or complete_word(word),
    }
