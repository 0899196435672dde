"""Which file of a run is meant by best, last, final or a step."""

from __future__ import annotations

import contextlib
from pathlib import Path

from recipes.load import load_file
from resnet.checkpoint.commit import name_of, newest_first, step_of
from resnet.checkpoint.snapshot import EMA, MODEL
from resnet.rundir.attempts import step_of_name
from resnet.rundir.status import read_status

FINAL = "final.safetensors"
ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
"""Of files of weights."""


def weights_of(run_dir: Path, which: str | int | Path = "best", plain: bool = False) -> Path:
    """The safetensors file that "best", "last", "final", a step or a path means in a run.

    The average of the weights where the run keeps one; plain: never that. "best" is what a finished run leaves, or the
    best checkpoint until then; "last" (or "latest") the newest checkpoint; a step may be written as 500 or step-500.
    Raises ValueError where there is none.
    """
    final, name = run_dir / FINAL, str(which)
    if isinstance(which, Path) or name.endswith(ENDINGS):
        if (file := Path(name).expanduser()).is_file():
            return file
        raise ValueError(f"there is no file {file}")
    if name in ("best", "final") and final.is_file() and not (plain and has_average(run_dir)):
        return final
    checkpoint = _checkpoint(run_dir, name)
    for file in (MODEL,) if plain else (EMA, MODEL):
        if checkpoint is not None and (checkpoint / file).is_file():
            return checkpoint / file
    raise ValueError(_no_weights(run_dir, name, plain and final.is_file()))


def _checkpoint(run_dir: Path, which: str) -> Path | None:
    checkpoints = run_dir / "checkpoints"
    if which == "final":
        step = read_status(run_dir).get("final_step")
        return None if step is None else checkpoints / name_of(int(step))
    with contextlib.suppress(OSError, ValueError):
        if which in ("best", "last", "latest"):
            pointer = checkpoints / ("best" if which == "best" else "latest")
            return checkpoints / pointer.read_text().strip()
        step = step_of_name(which)
        return checkpoints / name_of(int(which.removeprefix("step-")) if step is None else step)
    return None


def _no_weights(run_dir: Path, which: str, averaged_only: bool) -> str:
    folder, final = run_dir / "checkpoints", (run_dir / FINAL).is_file()
    steps = ", ".join(str(step_of(path)) for path in reversed(newest_first(folder)))
    step = f"a checkpoint's step ({steps})"
    if averaged_only and which in ("best", "final"):
        gone = f"{run_dir / FINAL} is the average of the weights, and the checkpoint it is of is not there any more"
        return f"{gone}: give {step}" if steps else gone
    if not steps:
        return f"{run_dir} has no checkpoint " + (
            f"{which!r}: give best or final" if final else "yet, and so no weights"
        )
    if which == "final":
        return f"{run_dir} has no {FINAL}, which a finished run leaves: give best, last or {step}"
    there = {"best": final or (folder / "best").is_file(), "last": True, "final": final}
    names = ", ".join(name for name in there if there[name])
    return f"{run_dir} has no weights {which!r}: give {names}, {step}, or a safetensors file"


def has_average(run_dir: Path) -> bool:
    return load_file(run_dir / "recipe.yaml").recipe.averages
