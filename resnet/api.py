"""What `import resnet` offers: recipes, networks, and runs with what they measured and learnt.

Nothing here changes the process that calls it: threads, environment, signals, random numbers and child processes stay.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.load import Loaded, load_file, load_values
from recipes.schema.recipe import Recipe
from resnet.checkpoint.commit import newest_first
from resnet.run_recipe import data_of_run
from resnet.rundir.evaluation import class_names
from resnet.rundir.find import find_run
from resnet.rundir.metrics_log import read_metrics
from resnet.rundir.state import true_status

if TYPE_CHECKING:
    from torch import nn

    from resnet.tools.difference import Difference
    from resnet.tools.evaluate import Evaluation
    from resnet.tools.features import Features
    from resnet.tools.look import Seen
    from resnet.tools.predict import Prediction
    from resnet.tools.replay import Replay
    from resnet.tools.trained import Trained
    from resnet.weights_file import WeightsInfo


def load_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Load a recipe by its name, or from a YAML file or a run directory by its path.

    changes: values by dotted key, as in `{"optimizer.lr": 0.1, "model.layers": [1, 1, 1], "ema": None}`.
    Raises ValueError with all mistakes at once, each with what would be right.
    """
    return _noted(load_values(name, changes))


def build_model(recipe: Recipe | str, num_classes: int | None = None) -> nn.Module:
    """Build the network that training would begin with, on the CPU: float (N, 3, H, W) -> logits (N, num_classes).

    Its weights come from the recipe's seed, or are the pretrained ones that it names.
    recipe: of `load_recipe`, or the name of one. num_classes: None takes the recipe's model.num_classes.
    Raises ValueError where neither gives the number of classes, and for pretrained weights that cannot be used.
    """
    import torch

    from resnet.build import initial_model
    from resnet.pretrained import shaped_as_weights

    recipe, _ = shaped_as_weights(load_recipe(recipe) if isinstance(recipe, str) else recipe)
    classes = recipe.model.num_classes if num_classes is None else num_classes
    if classes is None:
        raise ValueError("the recipe takes the number of classes from its data: give num_classes=")
    if classes < 1:
        raise ValueError(f"num_classes={classes}: a network has 1 class or more")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        return initial_model(recipe, classes)[0]


def load(weights: str | Path, recipe: Recipe | str | None = None) -> nn.Module:
    """Load the network of a weights file, on the CPU and in evaluation mode: normalised float (N, 3, H, W) -> logits.

    recipe: for a file that does not say which network it is of, a recipe that does, or the name of one.
    Raises ValueError where it cannot be read, or is of another network than the recipe's.
    """
    from resnet.tools.weights import load_alone

    return load_alone(_weights_file(weights), load_recipe(recipe) if isinstance(recipe, str) else recipe)


def weights_info(weights: str | Path) -> WeightsInfo | None:
    """What a weights file says of itself: architecture, classes, mean and std, sizes, recipe, step.

    None: nothing, as it is of another program or of version 0.1.0. Raises ValueError where it cannot be read.
    """
    from resnet.weights_file import read_info

    return read_info(_weights_file(weights))


def _weights_file(weights: str | Path) -> Path:
    file = Path(weights).expanduser()
    if not file.is_file():
        raise ValueError(f"there is no file {file}: give a file of weights, as final.safetensors in a run's directory")
    return file


class Run:
    """A run directory: how it is, what it measured, and its weights. What is read is read anew each time."""

    def __init__(self, run: str | Path, root: str | Path = "runs") -> None:
        """Find a run by its path, or by its name under `root`. Raises ValueError with names that are near."""
        self.path = find_run(str(run), root)

    def __repr__(self) -> str:
        try:
            status = self.status
        except (ValueError, OSError):
            status = {"state": "damaged"}
        facts = [str(status.get("state", "unknown"))]
        if status.get("epoch") is not None:
            facts.append(f"epoch {status['epoch']:.4g}" + (f"/{status['epochs']:g}" if status.get("epochs") else ""))
        if status.get("top1") is not None:
            facts.append(f"top-1 {status['top1']:.2f}%")
        return f"Run({str(self.path)!r}: {', '.join(facts)})"

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.absolute().name

    @property
    def status(self) -> dict[str, Any]:
        """The fields of status.json, as state, epoch, best, top1 and eta_s; empty before the run has begun.

        A run whose trainer is gone has failed, whatever the file says. Raises ValueError where the file is damaged.
        """
        return true_status(self.path)

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe it is trained by."""
        return _noted(load_file(self.path / "recipe.yaml"))

    @property
    def classes(self) -> list[str]:
        """Names of the classes in the order of the network's outputs. Raises ValueError before the first evaluation."""
        return class_names(self.path)

    @property
    def checkpoints(self) -> list[Path]:
        """Directories of its checkpoints, the newest last."""
        return newest_first(self.path / "checkpoints")[::-1]

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl in order, as `pandas.DataFrame` takes them.

        Rows of training have `train/loss`, `lr` and the like, rows of evaluations `val/loss`, `val/top1` (percent);
        all have step and epoch.
        """
        return read_metrics(self.path)

    def load(self, weights: str | int | Path = "best") -> nn.Module:
        """Load the network, on the CPU and in evaluation mode: normalised float (N, 3, H, W) -> logits (N, classes).

        weights: "best" (what a finished run leaves), "last", a checkpoint's step, or a safetensors file.
        Raises ValueError where the run has no such weights.
        """
        import torch

        from resnet.run_weights import weights_of
        from resnet.tools.weights import load_network

        return load_network(self.recipe, None, weights_of(self.path, weights), torch.device("cpu"))

    def predict(
        self,
        paths: str | Path | Iterable[str | Path],
        top: int = 5,
        *,
        weights: str | int | Path = "best",
        batch_size: int = 64,
        device: str = "auto",
    ) -> list[Prediction]:
        """Classify images as in the recipe's evaluation; a `Prediction` each, in their order.

        paths: an image, a folder (with its subfolders, in sorted order), a pattern, a CSV file or another list, parquet
        files, or several of these (see `resnet predict --help`). top: classes of each prediction. weights: as for
        `load`. batch_size: images of a forward pass. device: auto, cpu, cuda or cuda:N.
        An image that cannot be read has no label, and its `problem` says why.
        Raises ValueError for paths that are not there and weights that cannot be used.
        """
        return list(self.predictions(paths, top, weights=weights, batch_size=batch_size, device=device))

    def predictions(
        self,
        paths: str | Path | Iterable[str | Path],
        top: int = 5,
        *,
        weights: str | int | Path = "best",
        batch_size: int = 64,
        device: str = "auto",
    ) -> Iterator[Prediction]:
        """As `predict`, one after the other as they are made: any number of images in the memory of a few batches."""
        from resnet.data.sources.given import open_given
        from resnet.tools.predict import predictions

        trained = self._trained(weights)
        source = open_given(paths, trained.classes, like=trained.recipe.data)
        return predictions(trained, source, top, batch_size, device)

    def features(
        self,
        paths: str | Path | Iterable[str | Path],
        layer: str = "avgpool",
        *,
        weights: str | int | Path = "best",
        batch_size: int = 64,
        device: str = "auto",
    ) -> Features:
        """What a layer makes of images: `features` float32 (n, size), `ids` and `labels` (-1 for none), in order.

        paths: as for `predict`, or "train" or "val" for the run's own images. layer: avgpool, or the mean over height
        and width of layer1 ... layer4. Images that cannot be read are left out. `resnet features` writes files of any
        size. Raises ValueError for another layer, and where no image can be read.
        """
        from resnet.tools.features import features_of, open_images

        trained = self._trained(weights)
        return features_of(trained, open_images(trained, paths), layer, batch_size, device)

    def _trained(self, weights: str | int | Path) -> Trained:
        from resnet.run_weights import weights_of
        from resnet.tools.predict import named
        from resnet.tools.trained import of_run

        return named(of_run(f"{self.name}@{weights}", self.path, weights_of(self.path, weights)))

    def _changed(self, changes: Mapping[str, Any]) -> Recipe:
        return load_recipe(self.path / "recipe.yaml", {**data_of_run(self.path, changes), **changes})

    def look(self, step: int = 1, count: int = 32, **changes: Any) -> Seen:
        """The first `count` images of a training step exactly as the network got them, and what was done to each.

        step: counted from 1, as in the log. changes: to the recipe, as in `run.look(7, **{"data.train": "photos"})` for
        data that lies elsewhere on this machine. Raises ValueError for data or steps that are not there.
        """
        from resnet.tools.look import look_at_run

        return look_at_run(self.path, self._changed(changes), step, count)

    def replay(self, first: int | None = None, last: int | None = None, **changes: Any) -> Replay:
        """Train the steps after checkpoint `first` up to `last` again, elsewhere, and compare with what the run left.

        first: None: the earliest checkpoint's step. last: None: the next checkpoint's, else the last that was logged.
        changes: to the recipe, as where the data lies on this machine. The run is only read; a process trains.
        Raises ValueError for steps that the run does not have, and a checkpoint or data that cannot be used.
        """
        from resnet.tools.replay import replay

        return replay(self.path, first, last, overrides=_as_words(changes))

    def evaluate(self, weights: str | int | Path = "best", /, **changes: Any) -> Evaluation:
        """Evaluate on the validation images as in training.

        weights: as for `load`. changes: to the recipe, as in `run.evaluate(**{"eval.flip": True})`.
        Raises ValueError for changes, data or weights that cannot be used.
        """
        from resnet.tools import evaluate as tool

        return tool.evaluate([self._trained(weights)._replace(recipe=self._changed(changes))])[0]

    def export(self, form: str = "onnx", *, weights: str | int | Path = "best", samples: int = 1000) -> Path:
        """Write the network for other programs, compare what was written with it on images, and return the folder.

        form: safetensors, torch, timm, onnx, pt2 or hub (docs/export.md). weights: as for `load`. samples: validation
        images at most. Raises ValueError for what cannot be used, and RuntimeError where an export answers otherwise.
        """
        from resnet.tools.eval_data import THE_RECIPES
        from resnet.tools.export.export import export

        return export(self._trained(weights), form, THE_RECIPES, samples).place

    def quantize(self, to: str = "int8", *, backend: str = "pt2", weights: str | int | Path = "best") -> Path:
        """Write the network in smaller numbers, measure it beside the trained one, and return the folder.

        to: int8, bf16 or fp16. backend: of int8, pt2 or onnx (docs/quantize.md). weights: as for `load`.
        Raises ValueError for what cannot be used, and where a convolution did not become int8.
        """
        from resnet.tools.export.quantize import Options, quantize

        return quantize(self._trained(weights), Options(to=to, backend=backend)).place

    def prune(self, amount: float, name: str | None = None, *, weights: str | int | Path = "best") -> Run:
        """Make a run of a network with that share of the channels of each layer taken out, and return it.

        name: of the new run, beside this one; None: this one's with -pruned. weights: as for `load`.
        Raises ValueError for what cannot be pruned, and a name that is taken.
        """
        from resnet.tools.export.prune import Pruning
        from resnet.tools.export.pruned_run import prune

        return Run(prune(self._trained(weights), Pruning(amount), name).run_dir)

    def report(self) -> Path:
        """Write report.html anew, with curves.png and confusion.png beside it, and return its path.

        Also while the run trains. Raises ValueError where one of the run's files is damaged.
        """
        from resnet.tools.report.report import write_report

        return write_report(self.path)


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

    trained = [find_trained(os.fspath(one), root, plain, _as_words(changes or {})) for one in what]
    options = DataOptions(
        tuple(as_paths(data)),
        real=None if real is None else Path(real),
        only_present=only_present,
        known_only=known_only,
    )
    return tool.evaluate(trained, options)


def runs(root: str | Path = "runs") -> list[Run]:
    """The runs that lie in a folder, by name."""
    return [Run(file.parent) for file in sorted(Path(root).expanduser().glob("*/recipe.yaml"))]


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


def _as_words(changes: Mapping[str, Any]) -> list[str]:
    """Changes as a command line has them."""
    values = {key: value if key == "recipe" else json.dumps(value, default=str) for key, value in changes.items()}
    return [f"{key}={value}" for key, value in values.items()]


def _noted(loaded: Loaded) -> Recipe:
    for note in loaded.notes:
        warnings.warn(note, stacklevel=3)
    return loaded.recipe
