"""Several runs at once: evaluated, listed, reported, compared."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet.api.recipe import as_words
from resnet.api.run import Run
from resnet.rundir.find import is_run

if TYPE_CHECKING:
    from resnet.tools.difference import Difference
    from resnet.tools.evaluate import Evaluation


def evaluate(
    what: Iterable[str | Path | Run],
    changes: Mapping[str, Any] | None = None,
    *,
    data: str | Path | Iterable[str | Path] = (),
    real: str | Path | None = None,
    only_present: bool = False,
    known_only: bool = False,
    plain: bool = False,
    root: str | Path = "runs",
) -> list[Evaluation]:
    """Evaluate several networks; where they take the same images, these are decoded once.

    what: runs, "RUN@last", "RUN@step-500" and the like, or files of weights. changes: to their recipes, by dotted key;
    "recipe" for files that do not say what they are. data: other labelled images (a folder of classes, a CSV file,
    parquet files), their classes matched by name. real: ImageNet-ReaL's real.json. only_present: let the networks
    answer only the classes that the data holds, as for ImageNet-A and -R. known_only: leave out images of classes that
    the networks do not have. plain: the trained weights in place of their average. root: folder of the runs.
    Raises ValueError for what cannot be used.
    """
    from resnet.data.sources.given import as_paths
    from resnet.tools import evaluate as tool
    from resnet.tools.eval_data import DataOptions
    from resnet.tools.trained import find_trained

    trained = [find_trained(os.fspath(one), root, plain, as_words(changes or {})) for one in what]
    options = DataOptions(
        tuple(as_paths(data)),
        real=None if real is None else Path(real),
        only_present=only_present,
        known_only=known_only,
    )
    return tool.evaluate(trained, options)


def runs(root: str | Path = "runs") -> list[Run]:
    """The runs that lie in a folder, by name."""
    files = sorted(Path(root).expanduser().glob("*/recipe.yaml"))
    return [Run(file.parent) for file in files if is_run(file.parent)]


def board(root: str | Path = "runs", out: str | Path | None = None) -> Path:
    """Write a page of all runs and sweeps in a folder, which links their reports, and return its path.

    out: of the page; None: board.html in the folder.
    Raises ValueError where the folder is not there, or the page cannot be written.
    """
    from resnet.tools.board.board import write_board

    return write_board(Path(root).expanduser(), None if out is None else Path(out))


def report(*runs: Run | str | Path, root: str | Path = "runs", out: str | Path | None = None) -> Path:
    """Write the report of a run or of a sweep, or a page that compares several runs, and return its path.

    runs: as for `Run`; or one sweep. out: of the page that compares; None: comparison.html in the folder of the runs.
    Raises ValueError for runs that are not there, and files that cannot be read or written.
    """
    from resnet.tools.reports import write_pages

    if not runs:
        raise ValueError("name a run, several, or a sweep")
    return write_pages([str(Path(run)) for run in runs], root, None if out is None else Path(out))


def compare(one: Run | str | Path, other: Run | str | Path) -> list[str]:
    """Compare the newest checkpoints and the logs of two runs to the last bit; what differs, in words.

    An empty list: they are equal. Raises ValueError for a run without a checkpoint.
    """
    from resnet.tools.compare import compare_runs

    first, second = (run if isinstance(run, Run) else Run(run) for run in (one, other))
    return compare_runs(first.path, second.path)


def diff(one: Run | str | Path, other: Run | str | Path) -> Difference:
    """What matters of how two runs differ: recipe, environment, data, results, and the step at which the logs part.

    Unlike `compare`, which looks at every bit of the newest checkpoints. Raises ValueError for damaged files.
    """
    from resnet.tools.difference import diff_runs

    first, second = (run if isinstance(run, Run) else Run(run) for run in (one, other))
    return diff_runs(first.path, second.path, (first.recipe, second.recipe))
