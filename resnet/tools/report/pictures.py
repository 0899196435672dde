"""Small pictures for the report: training images as the network gets them, and the most confident mistakes.

They are kept in pictures.json, so that a report written again has them also where the images are not.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recipes.schema.recipe import Recipe
from resnet.rundir.files import read_json, to_json, write_atomic

if TYPE_CHECKING:
    import numpy as np

    from resnet.data.sources.source import Source

NAME = "pictures.json"
FORMAT = 1
SIDE = 128
"""Pixels of a picture's longer side."""
TRAINING = 16
"""Training images shown."""


class Picture(NamedTuple):
    """A small image with what is to be said of it."""

    jpeg: bytes
    caption: str
    file: str
    """The image's file or row."""


class Pictures(NamedTuple):
    """Those of a run."""

    training: list[Picture]
    mistakes: list[Picture]
    problem: str = ""
    """Why some are missing, for the reader."""


def kept_pictures(run_dir: Path, evaluation: Mapping[str, Any]) -> Pictures:
    """What pictures.json holds; of mistakes only those of this evaluation."""
    try:
        content = read_json(run_dir / NAME)
        mistakes = content["mistakes"] if content.get("evaluation") == _identity(evaluation) else []
        return Pictures(
            [_unpacked(item) for item in content.get("training", [])], [_unpacked(item) for item in mistakes]
        )
    except (ValueError, TypeError, KeyError, OSError):
        return Pictures([], [])


def make_pictures(
    run_dir: Path,
    recipe: Recipe,
    derived: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    sources: tuple[Source, Source] | None,
) -> Pictures:
    """Pictures made from the images, kept in pictures.json; those kept before where all are there, or no image is.

    sources: training and validation images where they are open; else the recipe's are opened if they are on this
    machine and something is missing. derived: the run's plan as provenance.json has it. Raises nothing.
    """
    kept = kept_pictures(run_dir, evaluation)
    if sources is None and kept.training and (kept.mistakes or not evaluation.get("mistakes")):
        return kept
    try:
        if sources is None:
            sources = _open(recipe)
        training = _training(recipe, derived, sources)
        mistakes = _mistakes(evaluation, sources[1])
        content = {"format": FORMAT, "training": training, "mistakes": mistakes, "evaluation": _identity(evaluation)}
        packed = {name: [_packed(item) for item in content[name]] for name in ("training", "mistakes")}
        write_atomic(run_dir / NAME, to_json(content | packed))
        return Pictures(training, mistakes)
    except Exception as error:
        return kept._replace(problem=f"The images are not shown: {str(error) or type(error).__name__}.")


def _open(recipe: Recipe) -> tuple[Source, Source]:
    """The recipe's images, without downloading or drawing any. Raises ValueError where they are not on this machine."""
    from resnet.data.sources.files import expanded

    data = recipe.data
    named = [path for path in data.paths().values() if path] or [data.train]
    missing = [path for path in named if data.source != "synthetic" and not expanded(path).exists()]
    if missing:
        raise ValueError(f"there is no {expanded(missing[0])} on this machine")
    from resnet.data.sources.registry import open_sources

    print(f"opening the images of {data.train} for the pictures of the report", file=sys.stderr)
    data = data.model_copy(update={"download": False}) if hasattr(data, "download") else data
    return open_sources(data, channels=recipe.model.in_channels)


def _training(recipe: Recipe, derived: Mapping[str, Any], sources: tuple[Source, Source]) -> list[Picture]:
    """The first images of the first step."""
    from resnet.data.order import kind_of
    from resnet.tools.look import look

    how = {"micro_batch": derived.get("micro_batch"), "order_kind": kind_of(derived)}
    seen = look(recipe, 1, TRAINING, sources=sources, **how)
    return [
        Picture(_jpeg(image), sample.label_text, sample.file)
        for image, sample in zip(seen.images, seen.samples, strict=True)
    ]


def _mistakes(evaluation: Mapping[str, Any], val: Source) -> list[Picture]:
    """Those of evaluation.json whose images are still where they were."""
    from resnet.data.arrays import BrokenImage
    from resnet.data.batches import read_image

    pictures, classes = [], evaluation.get("classes") or []
    for mistake in evaluation.get("mistakes") or []:
        index = mistake["index"]
        if index >= len(val) or val.describe(index) != mistake["image"]:
            continue
        try:
            pixels = read_image(val, index)
        except (BrokenImage, OSError):
            continue
        true, predicted, probability = classes[mistake["true"]], classes[mistake["predicted"]], mistake["probability"]
        caption = f"{true} → {predicted}" + ("" if probability is None else f", {100 * probability:.0f}%")
        pictures.append(Picture(_jpeg(pixels.permute(1, 2, 0).numpy()), caption, mistake["image"]))
    return pictures


def _jpeg(pixels: np.ndarray) -> bytes:
    """pixels: uint8 (H, W, C)."""
    from PIL import Image

    from resnet.data.bands import visible

    image, file = Image.fromarray(visible(pixels)), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(file, "JPEG", quality=82)
    return file.getvalue()


def _identity(evaluation: Mapping[str, Any]) -> list[Any]:
    """What tells an evaluation from another one of the run."""
    return [evaluation.get("step"), evaluation.get("loss")]


def _packed(picture: Picture) -> dict[str, str]:
    return {**picture._asdict(), "jpeg": base64.b64encode(picture.jpeg).decode()}


def _unpacked(item: Mapping[str, str]) -> Picture:
    return Picture(base64.b64decode(item["jpeg"]), item["caption"], item["file"])
