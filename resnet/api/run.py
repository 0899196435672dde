"""A run directory as a value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.load import load_file
from recipes.schema.recipe import Recipe
from resnet.api.recipe import as_words, load_recipe, noted
from resnet.checkpoint.commit import newest_first
from resnet.run_recipe import data_of_run
from resnet.rundir.evaluation import class_names
from resnet.rundir.find import find_run
from resnet.rundir.metrics_log import read_metrics
from resnet.rundir.state import true_status

if TYPE_CHECKING:
    from torch import nn

    from resnet.tools.evaluate import Evaluation
    from resnet.tools.features import Features
    from resnet.tools.look import Seen
    from resnet.tools.predict import Prediction
    from resnet.tools.replay import Replay
    from resnet.tools.trained import Trained


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
        return noted(load_file(self.path / "recipe.yaml"))

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
        and width of layer1, layer2 ... Images that cannot be read are left out. `resnet features` writes files of any
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

        return replay(self.path, first, last, overrides=as_words(changes))

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
