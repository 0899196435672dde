"""The command lines that start a training: for a program to run, and for a person to type."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet.process.environment import ATTEMPT, is_under_accelerate

_HERE = Path(__file__).parent
TRAIN = _HERE.resolve().parents[1] / "train.py"


def accelerate_argv(ranks: int) -> list[str]:
    """What trains on so many ranks of this machine; the words of the run follow."""
    several = ["--multi_gpu", "--main_process_port", "0"] if ranks > 1 else []
    flags = ["--config_file", str(_HERE / "accelerate.yaml"), "--num_machines", "1", "--num_processes", str(ranks)]
    flags += [*several, "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [sys.executable, str(_HERE / "accelerate_main.py"), *flags, str(TRAIN)]


def accelerate_command(ranks: int) -> str:
    """What a person types to train on so many ranks, up to train.py."""
    return f"accelerate launch --multi_gpu --num_processes {ranks}" if ranks > 1 else "accelerate launch"


def continue_command(run_dir: Path) -> str:
    """The command line of this process, with the run named; in a job the command that sends it again."""
    if ATTEMPT in os.environ:
        return shlex.join(["launch", "retry", str(run_dir)])
    ranks, launcher = int(os.environ.get("WORLD_SIZE", "1")), "python"
    if is_under_accelerate():
        launcher = accelerate_command(ranks)
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}"
    return f"{launcher} {shlex.join([sys.argv[0], *words_to_continue(sys.argv[1:], run_dir)])}"


def words_to_continue(words: Sequence[str], run_dir: Path) -> list[str]:
    """The words of a run with its place named, in which `resume=PATH` and the like have done their part."""
    given = [word for word in words if word.partition("=")[0] not in ("run.name", "run.root", "resume")]
    return [*given, f"run.root={run_dir.parent}", f"run.name={run_dir.name}"]
