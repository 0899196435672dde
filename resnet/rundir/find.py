"""Where runs are: by name or path, and places for new ones."""

from __future__ import annotations

import time
from pathlib import Path

from recipes.text import did_you_mean, near


def find_run(text: str, root: str | Path = "runs") -> Path:
    """The run directory that a path, or a name under `root`, stands for.

    Raises ValueError with the names that are near.
    """
    for path in (Path(text).expanduser(), Path(root) / text):
        if (path / "recipe.yaml").is_file():
            return path
    if Path(text).expanduser().is_dir():
        raise ValueError(f"{text} is no run directory: it holds no recipe.yaml")
    names = sorted(path.parent.name for path in Path(root).glob("*/recipe.yaml"))
    if close := near(text, names):
        raise ValueError(f"no run {text!r} in {root}: {did_you_mean(close)}")
    newest = ", ".join(names[-5:]) if names else "none"
    raise ValueError(f"no run {text!r}: give a path to a run directory or a name in {root} (there are: {newest})")


def new_run_dir(root: Path, recipe_name: str) -> Path:
    """A path under `root`, made of recipe and time, that nothing has yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    candidates = (root / f"{recipe_name}-{stamp}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(path for path in candidates if not path.exists())
