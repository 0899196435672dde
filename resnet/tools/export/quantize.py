"""`resnet quantize`: a network in int8, calibrated on its training images, or with weights in half precision."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recipes.schema.recipe import Recipe
from recipes.text import plural
from resnet.build import build_data
from resnet.data.sources.registry import Subset, spread
from resnet.data.sources.source import Source
from resnet.tools.eval_data import DataOptions, EvalData, open_eval_data
from resnet.tools.export import half, int8_onnx, int8_pt2
from resnet.tools.export.artefact import new_artefact, place_of, write_record
from resnet.tools.export.measure import Measured, Subject, as_trained, measure, prepared, spread_over
from resnet.tools.export.tracing import CannotExport
from resnet.tools.trained import UNKNOWN, Trained
from resnet.tools.weights import load_alone
from resnet.trained_network import outputs_of
from resnet.weights_file import read_weights

BACKENDS = {"pt2": int8_pt2, "onnx": int8_onnx}
"""Of int8: modules with `check`, `write`, the name of their FILE and the KIND that it is loaded as."""
_GREAT_LOSS = 10.0
"""Points of top-1 after which a network is hardly the same."""


class Options(NamedTuple):
    """What a network is to become, and how it is judged."""

    to: str = "int8"
    """int8, bf16 or fp16."""
    backend: str = "pt2"
    """A key of BACKENDS, for int8."""
    calibrate: int = 512
    """Training images at most, for int8."""
    samples: int = 10_000
    """Labelled images at most that both networks are given."""
    data: DataOptions = DataOptions()

    @property
    def name(self) -> str:
        return f"int8-{self.backend}" if self.to == "int8" else self.to


INT8 = Options()


class Quantized(NamedTuple):
    """An artefact, and what it was measured at."""

    place: Path
    file: Path
    measured: Measured
    record: dict[str, Any]
    """What artefact.json holds of it besides."""
    warnings: tuple[str, ...]


def quantize(
    trained: Trained,
    options: Options = INT8,
    out: Path | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Quantized:
    """Write an artefact of a network in smaller numbers, measured beside the network as it was trained.

    out: its folder; None: among the run's own. tell: is called with what is begun, and what the user should know.
    Raises ValueError for weights, data or a machine that do not allow it, and where a convolution did not become int8;
    nothing is left then.
    """
    place = place_of(trained, options.name, out)
    if options.to == "int8":
        BACKENDS[options.backend].check()
    recipe, outputs = trained.recipe, outputs_of(read_weights(trained.weights), trained.weights)
    data = open_eval_data(trained, outputs, options.data)
    for note in (*trained.notes, *data.notes):
        tell(note)
    with new_artefact(place) as folder, tempfile.TemporaryDirectory() as scratch:
        before = as_trained("float32", trained.weights, recipe, outputs, Path(scratch))
        if options.to == "int8":
            after, record = _int8(trained, options, before, folder, tell)
        else:
            file = folder / half.FILE
            half.write(trained.weights, recipe, data.classes, options.to, file)
            record = {"computed_in": "float32"}
            after = as_trained(options.to, file, recipe, outputs, Path(scratch))
        measured = measure(recipe, spread_over(data, options.samples), before, after, tell)
        record = {"to": options.to, **record}
        write_record(folder, trained, "quantize", data.classes, quantized=record, measured=measured.as_json())
    file = place / Path(after.spec["path"]).name
    return Quantized(place, file, measured, record, tuple(_warnings(measured, before, after)))


def _int8(
    trained: Trained, options: Options, before: Subject, folder: Path, tell: Callable[[str], object]
) -> tuple[Subject, dict[str, Any]]:
    """The network in int8 as a file in a folder, and what is kept of how it was made."""
    backend, recipe = BACKENDS[options.backend], trained.recipe
    network = load_alone(trained.weights, recipe)
    if broken := [name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()]:
        raise ValueError(f"{trained.weights}: {broken[0]} holds nan or inf: take other weights")
    source = _calibration_source(trained, options.calibrate, tell)
    file = folder / backend.FILE
    tell(f"calibrating on {plural(len(source), 'training image')}, prepared as in evaluation")
    images = _Counted(recipe, source)
    counts = backend.write(network, recipe.augment.val_size, images, file)
    if counts["int8_convolutions"] != counts["convolutions"]:
        few = f"only {counts['int8_convolutions']} of {plural(counts['convolutions'], 'convolution')} became int8"
        other = next(name for name in BACKENDS if name != options.backend)
        raise ValueError(f"{few} (model.activation={recipe.model.activation}): try --backend {other}")
    record = {"backend": options.backend, **counts, "calibration_images": images.count, "weights_per_channel": True}
    spec = {"kind": backend.KIND, "path": str(file)}
    return Subject(options.name, spec, before.parameters, before.macs, file.stat().st_size), record


class _Counted:
    """Batches of images to calibrate with, and how many there were."""

    def __init__(self, recipe: Recipe, source: Source) -> None:
        self._recipe, self._data, self.count = recipe, EvalData(source, source.classes, False), 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for images, labels, _ in prepared(self._recipe, self._data):
            self.count += len(labels)
            if len(labels):
                yield images
        if not self.count:
            raise CannotExport("none of the images to calibrate with could be read")


def _calibration_source(trained: Trained, most: int, tell: Callable[[str], object]) -> Source:
    """Training images in equal shares of each class, which are those of the recipe and never the validation's."""
    if trained.recipe.data.train == UNKNOWN:
        raise ValueError(
            f"{trained.weights} does not say which data it was trained on, and int8 is calibrated on training images: "
            "add recipe=NAME and data.train=FOLDER"
        )
    source = build_data(trained.recipe)[0]
    if most >= len(source):
        if most > len(source):
            tell(f"--calibrate {most}: there are {plural(len(source), 'training image')}, and all are taken")
        return source
    return Subset(source, spread(source.labels, most))


def _warnings(measured: Measured, before: Subject, after: Subject) -> Iterator[str]:
    yield from (f"cannot read {image}" for image in measured.broken)
    if math.isnan(measured.largest_difference):
        yield f"{after.name} answers some images with nan: do not use it"
    lost = measured.before.top1 - measured.after.top1
    if lost > _GREAT_LOSS:
        yield f"{after.name} has lost {lost:.1f} points of top-1 to {before.name}"
