"""`resnet export`: a trained network as files that other programs read, proved on real images by loading them again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from recipes.text import plural
from resnet.tools.eval_data import DataOptions, EvalData, open_eval_data
from resnet.tools.export.artefact import new_artefact, place_of, write_record
from resnet.tools.export.extras import need
from resnet.tools.export.formats import (
    Given,
    Product,
    write_onnx,
    write_pt2,
    write_safetensors,
    write_timm,
    write_torch,
)
from resnet.tools.export.hub import write_card, write_hub
from resnet.tools.export.measure import Measured, Subject, as_trained, measure, spread_over
from resnet.tools.export.served import NotServed
from resnet.tools.export.timm_config import is_timms, timm_name
from resnet.tools.export.torchvision_source import builder_of
from resnet.tools.export.tracing import CannotExport
from resnet.tools.trained import Trained
from resnet.tools.weights import load_alone
from resnet.trained_network import outputs_of
from resnet.weights_file import read_weights

WRITERS: dict[str, Callable[[Path, Given, int], list[Product]]] = {
    "safetensors": write_safetensors,
    "torch": write_torch,
    "timm": write_timm,
    "onnx": write_onnx,
    "pt2": write_pt2,
    "hub": write_hub,
}
"""By format; they are given an empty folder, the network, and the size of its images in pixels."""
EXTRAS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "timm": ("timm",)}
"""By format: packages that it needs beside ours."""
LIMIT = 1e-4
"""Of the difference between two logits, where none is beyond 10; else in proportion to the largest."""


class Wrong(RuntimeError):
    """An export that cannot be made, or does not answer as its network does. Nothing of it is left."""


@dataclass(frozen=True)
class Check:
    """How an exported file, loaded in a process of its own, answers beside the network that it is of.

    Two answers differ within the limit only where an image's two best logits are within twice of it: a tie.
    """

    file: str
    measured: Measured
    limit: float
    """Of the largest difference."""

    def holds(self) -> bool:
        # A NaN does not.
        return self.measured.largest_difference <= self.limit

    def __str__(self) -> str:
        found = self.measured
        return (
            f"{self.file}: logits differ by {found.largest_difference:.2g} at most (limit {self.limit:.2g}), "
            f"the same answer for {found.agreement:.2f}% of {plural(found.images, 'image')}"
        )


class Exported(NamedTuple):
    """An export that stands."""

    place: Path
    checks: list[Check]
    notes: tuple[str, ...]
    """What the user should know of the data."""


def export(
    trained: Trained,
    form: str,
    options: DataOptions,
    samples: int,
    out: Path | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Exported:
    """Write a network in a format, and compare what was written with the network on validation images.

    form: safetensors, torch, timm, onnx, pt2 or hub. options, samples: which images, and how many at most.
    out: folder; None: the run's own for this. tell: is called with what is begun.
    Raises ValueError for what the user has to change, and `Wrong` where the export is not what it should be.
    """
    model = trained.recipe.model
    builder = builder_of(model)
    by_timm = (form == "hub" and is_timms(model)) or (form == "torch" and builder == "timm")
    need("export", *EXTRAS.get("timm" if by_timm else form, ()))
    if form == "timm":
        timm_name(model)
    if form == "torch" and builder is None:
        raise ValueError(
            "neither torchvision nor timm builds this network under its names, so there is no model.py: "
            "export it in another format"
        )
    place = place_of(trained, form, out)
    outputs = outputs_of(read_weights(trained.weights), trained.weights)
    data = open_eval_data(trained, outputs, options)
    chosen = spread_over(data, samples)
    given = Given(load_alone(trained.weights, trained.recipe), trained, data.classes)
    with new_artefact(place) as folder:
        tell(f"{form} of {trained.weights}")
        try:
            products = WRITERS[form](folder, given, trained.recipe.augment.val_size)
            checks = _check(given, chosen, products, tell)
        except (CannotExport, NotServed) as error:
            raise Wrong(str(error)) from error
        if form == "hub":
            write_card(folder, given, checks[0].measured, data)
        write_record(folder, trained, "export", data.classes, **_record(form, checks))
    return Exported(place, checks, data.notes)


def _check(given: Given, data: EvalData, products: list[Product], tell: Callable[[str], object]) -> list[Check]:
    """Compare each product with the network. Raises `Wrong` where one differs by more than the limit."""
    trained, checks = given.trained, []
    with tempfile.TemporaryDirectory() as folder:
        name = Path(trained.name).name
        before = as_trained(name, trained.weights, trained.recipe, len(given.classes), Path(folder))
        for file, spec in products:
            after = Subject(file.name, spec, before.parameters, before.macs, file.stat().st_size)
            measured = measure(trained.recipe, data, before, after, tell)
            check = Check(file.name, measured, LIMIT * max(1.0, measured.largest_logit / 10))
            if not check.holds():
                raise Wrong(f"{check}: it is not kept")
            checks.append(check)
    return checks


def _record(form: str, checks: list[Check]) -> dict[str, Any]:
    """What artefact.json keeps of them. The first file's figures are the artefact's."""
    first, *others = checks
    also = {check.file: {"limit": check.limit, "measured": check.measured.as_json()} for check in others}
    return {"form": form, "limit": first.limit, "measured": first.measured.as_json(), "also": also}
