"""`resnet verify-resume`: whether a recipe, on this machine, ends the same when it is interrupted."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from recipes.load import load
from recipes.text import plural
from resnet.checkpoint.commit import newest_first, step_of
from resnet.pretrained import word_of_weights
from resnet.process.command_lines import TRAIN, accelerate_argv
from resnet.process.processes import kill_all
from resnet.rundir.status import read_status
from resnet.tools.compare import compare_runs

START_SECONDS = 1800.0
"""How long a run may take to reach the step it is interrupted at."""


def _silent(_: str) -> None:
    pass


def verify_resume(
    overrides: Sequence[str],
    steps: int = 12,
    ranks: int = 1,
    keep: Path | None = None,
    tell: Callable[[str], None] = _silent,
) -> list[str]:
    """Train `steps` steps twice, the second time killed once and stopped by a signal once, and compare the two runs.

    overrides: `recipe=NAME` and changes to it, as for train.py. keep: folder to leave both runs in.
    tell: is given a line as each part begins. Returns what differs, tensor by tensor, as `compare_runs` does; nothing
    where they are equal to the last bit. Raises ValueError for a recipe that cannot be used, too few steps, or a run
    that fails.
    """
    if steps < 4:
        raise ValueError(f"--steps {steps} leaves no room for two interruptions: give 4 or more")
    recipe = load(overrides).recipe
    every = max(1, steps // 4)
    fixed = [f"max_steps={steps}", "log_every=1", f"checkpoint.every={every} steps", "wandb.mode=disabled"]
    fixed += [f"checkpoint.keep={steps}", "progress=off"]
    fixed += [word_of_weights(key, source, recipe.run.root) for key, source in recipe.weights_read().items()]
    with contextlib.ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="verify-resume-")))
        folder.mkdir(parents=True, exist_ok=True)
        commands = {
            name: _command([*overrides, *fixed, f"run.root={folder}", f"run.name={name}"], ranks)
            for name in ("straight", "interrupted")
        }
        tell(f"{recipe.name}: {steps} steps on {plural(ranks, 'rank')}, without interruption")
        _finish(commands["straight"], folder, "straight")
        for number, step in ((signal.SIGKILL, every), (signal.SIGTERM, 2 * every)):
            tell(f"the same, {signal.Signals(number).name} after step {step}")
            _interrupt(commands["interrupted"], folder, step, number)
        tell("continued to its end")
        _finish(commands["interrupted"], folder, "interrupted")
        return compare_runs(folder / "straight", folder / "interrupted")


def _command(arguments: list[str], ranks: int) -> list[str]:
    if ranks == 1:
        return [sys.executable, str(TRAIN), *arguments]
    return [*accelerate_argv(ranks), *arguments]


def _start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True)


def _finish(command: list[str], folder: Path, name: str) -> None:
    code = _start(command, folder).wait()
    if code != 0 or read_status(folder / name).get("state") != "finished":
        raise ValueError(f"the run ended with code {code}:\n{_tail(folder)}")


def _interrupt(command: list[str], folder: Path, step: int, number: signal.Signals) -> None:
    """Start the run, send the signal to all its processes once a checkpoint of the step is there, wait for its end."""
    process = _start(command, folder)
    deadline = time.monotonic() + START_SECONDS
    while max((step_of(path) for path in newest_first(folder / "interrupted" / "checkpoints")), default=0) < step:
        if process.poll() is not None:
            if process.returncode == 0:
                return
            raise ValueError(f"the run ended with code {process.returncode}:\n{_tail(folder)}")
        if time.monotonic() > deadline:
            kill_all(process)
            raise ValueError(f"the run did not reach step {step} in {START_SECONDS / 60:g} minutes:\n{_tail(folder)}")
        time.sleep(0.02)
    if number == signal.SIGKILL:
        kill_all(process)
    else:
        process.send_signal(number)
    process.wait()


def _tail(folder: Path) -> str:
    return "\n".join((folder / "output.txt").read_text(errors="replace").splitlines()[-15:])
