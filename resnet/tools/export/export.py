"""`resnet export`: a trained network as a file that other programs read, proved on real images by loading it again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from recipes.text import plural
from resnet.tools.eval_data import DataOptions, EvalData, open_eval_data
from resnet.tools.export.artefact import class_names_of, new_artefact, place_of, write_record
from resnet.tools.export.extras import need
from resnet.tools.export.formats import WRITERS, CannotExport, Given, Product, compiler
from resnet.tools.export.measure import Measured, Subject, as_trained, measure, spread_over
from resnet.tools.export.served import NotServed
from resnet.tools.export.timm_config import timm_name
from resnet.tools.trained import Trained
from resnet.tools.weights import load_alone, outputs_of
from resnet.weights_file import read_weights

EXTRAS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "timm": ("timm",)}
"""By format: packages that it needs beside ours."""
LIMIT = 1e-4
"""Of the difference between two logits, where no logit is beyond 10; in proportion to the largest, where one is."""


class Wrong(RuntimeError):
    """An export that cannot be made, or does not answer as the network does. Nothing of it is left."""


@dataclass(frozen=True)
class Check:
    """How an exported file, loaded in a process of its own, answers beside the network it is of."""

    file: str
    measured: Measured
    limit: float
    """Of the largest difference."""

    def fails(self) -> bool:
        # So that a NaN fails.
        return not self.measured.largest_difference <= self.limit


class Exported(NamedTuple):
    """An export that stands."""

    place: Path
    checks: list[Check]
    notes: tuple[str, ...]
    """What the user should know of the data and the format."""


def export(
    trained: Trained,
    form: str,
    options: DataOptions,
    samples: int,
    out: Path | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Exported:
    """Write the network in a format, and compare what was written with the network on validation images.

    form: of WRITERS. options, samples: which images, and how many of them at most. out: folder; None: among the run's
    exports. tell: is called with what is begun.
    Raises ValueError for what the user has to change, and `Wrong` where the export is not what it should be.
    """
    need("export", *EXTRAS.get(form, ()))
    if form == "timm":
        timm_name(trained.recipe.model)
    place = place_of(trained, form, out)
    outputs = outputs_of(read_weights(trained.weights), trained.weights)
    data = open_eval_data(trained, outputs, options)
    classes = class_names_of(trained, outputs, data.classes)
    some = spread_over(data, samples)
    given = Given(load_alone(trained.weights, trained.recipe), trained, classes)
    with new_artefact(place) as folder:
        tell(f"{form} of {trained.weights}")
        try:
            products = WRITERS[form](folder, given, trained.recipe.augment.val_size)
            checks = _check(given, some, products, tell)
        except (CannotExport, NotServed) as error:
            raise Wrong(str(error)) from error
        record = {"format_name": form, "checks": [_as_json(check) for check in checks]}
        write_record(folder, trained, "export", classes, **record, images=_which(data, some))
    return Exported(place, checks, (*data.notes, *_notes(form)))
