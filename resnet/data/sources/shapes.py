"""Ten classes of drawn shapes and textures as an image folder of JPEG files: for a first try without a download."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from recipes.schema.data import ShapesData
from resnet.data.sources.files import Files, expanded
from resnet.data.sources.image_folder import read_folder

_MARKER = "drawn.json"
_VERSION = 1


def open_shapes(data: ShapesData) -> tuple[Files, Files]:
    """Training and validation images, drawn into the folder `train` first if it is not there."""
    folder = expanded(data.train)
    draw(folder, data.per_class, data.size)
    train = read_folder(folder / "train", "data.train")
    return train, read_folder(folder / "val", "data.train", train.classes)


def draw(folder: Path, per_class: int, size: int) -> None:
    """Draw folder/train/CLASS/0000.jpg ... (`per_class` of each) and a quarter as many into folder/val.

    The longer side of each image is `size` pixels. The folder appears whole or not at all, also where several processes
    draw it at once; one drawn before with the same numbers is kept. Raises ValueError if anything else is there.
    """
    wanted = {"version": _VERSION, "per_class": per_class, "size": size}
    if _holds(folder, wanted):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True) as near:
        unfinished = Path(near, "shapes")
        for split, count in (("train", per_class), ("val", max(1, per_class // 4))):
            for number, name in enumerate(SHAPES):
                (unfinished / split / name).mkdir(parents=True)
                for index in range(count):
                    random = np.random.default_rng([split == "val", number, index])
                    image = _draw(name, size, random)
                    image.save(unfinished / split / name / f"{index:04d}.jpg", quality=90)
        (unfinished / _MARKER).write_text(json.dumps(wanted))
        try:
            unfinished.rename(folder)
        except OSError:
            if not _holds(folder, wanted):  # else another process was faster
                raise


def _holds(folder: Path, wanted: dict[str, int]) -> bool:
    """Whether the folder holds just this; False if there is nothing."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    marker = folder / _MARKER
    if not marker.is_file():
        raise ValueError(
            f"data.train: {folder} holds something else than drawn shapes: give data.source=shapes a folder of its own"
        )
    if (found := json.loads(marker.read_text())) != wanted:
        raise ValueError(f"data.train: {folder} holds {found}, not {wanted}: remove it, or give another data.train")
    return True


class _Canvas(NamedTuple):
    """An image to paint on, and where and with what; lengths in pixels."""

    image: Image.Image
    pen: ImageDraw.ImageDraw
    back: np.ndarray
    colour: tuple[int, int, int]
    centre: np.ndarray
    radius: float
    random: np.random.Generator

    def box(self, across: float, down: float) -> list[float]:
        """Left, top, right and bottom of a rectangle around the centre, half its sides as shares of radius."""
        half = self.radius * np.array([across, down])
        return [*(self.centre - half), *(self.centre + half)]


def _draw(name: str, size: int, random: np.random.Generator) -> Image.Image:
    short = int(random.integers(round(0.85 * size), size + 1))
    width, height = (size, short) if random.random() < 0.5 else (short, size)
    back, front = _colours(random)
    image = Image.new("RGB", (width, height), _triple(back))
    centre = np.array([width, height]) / 2 + random.uniform(-0.08, 0.08, 2) * short
    radius = short * random.uniform(0.28, 0.4)
    SHAPES[name](_Canvas(image, ImageDraw.Draw(image), back, _triple(front), centre, radius, random))
    noisy = np.asarray(image) + random.normal(0, random.uniform(2, 12), (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _colours(random: np.random.Generator) -> np.ndarray:
    """Two colours (2, 3) far enough apart in brightness to be told from each other."""
    while True:
        pair = random.integers(0, 256, (2, 3))
        if np.ptp(pair.mean(axis=1)) > 60:
            return pair


def _triple(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in colour)
    return red, green, blue


def _circle(canvas: _Canvas) -> None:
    canvas.pen.ellipse(canvas.box(1, 1), fill=canvas.colour)


def _square(canvas: _Canvas) -> None:
    canvas.pen.rectangle(canvas.box(0.9, 0.9), fill=canvas.colour)


def _triangle(canvas: _Canvas) -> None:
    left, top, right, bottom = canvas.box(1, 0.95)
    canvas.pen.polygon([(canvas.centre[0], top), (left, bottom), (right, bottom)], fill=canvas.colour)


def _ring(canvas: _Canvas) -> None:
    width = round(canvas.radius * canvas.random.uniform(0.2, 0.4))
    canvas.pen.ellipse(canvas.box(1, 1), outline=canvas.colour, width=width)


def _cross(canvas: _Canvas) -> None:
    arm = canvas.random.uniform(0.2, 0.35)
    canvas.pen.rectangle(canvas.box(1, arm), fill=canvas.colour)
    canvas.pen.rectangle(canvas.box(arm, 1), fill=canvas.colour)


def _horizontal_stripes(canvas: _Canvas) -> None:
    for top, bottom in _stripes(canvas):
        canvas.pen.rectangle([0, top, canvas.image.width, bottom], fill=canvas.colour)


def _vertical_stripes(canvas: _Canvas) -> None:
    for left, right in _stripes(canvas):
        canvas.pen.rectangle([left, 0, right, canvas.image.height], fill=canvas.colour)


def _stripes(canvas: _Canvas) -> list[tuple[float, float]]:
    step = canvas.radius * canvas.random.uniform(0.4, 0.7)
    starts = np.arange(canvas.random.uniform(-step, 0), max(canvas.image.size), step)
    return [(start, start + step / 2) for start in starts]


def _checkerboard(canvas: _Canvas) -> None:
    step = canvas.radius * canvas.random.uniform(0.4, 0.6)
    for parity, corner in _cells(canvas, step):
        if parity:
            canvas.pen.rectangle([*corner, *(corner + step)], fill=canvas.colour)


def _dots(canvas: _Canvas) -> None:
    step = canvas.radius * canvas.random.uniform(0.55, 0.8)
    for _, corner in _cells(canvas, step):
        canvas.pen.ellipse([*(corner + 0.22 * step), *(corner + 0.78 * step)], fill=canvas.colour)


def _cells(canvas: _Canvas, step: float) -> list[tuple[int, np.ndarray]]:
    """Parity and top left corner of the cells of a grid over the image."""
    shift = canvas.random.uniform(-step, 0, 2)
    columns, rows = (int(side / step) + 2 for side in canvas.image.size)
    return [((x + y) % 2, shift + step * np.array([x, y])) for x in range(columns) for y in range(rows)]


def _gradient(canvas: _Canvas) -> None:
    width, height = canvas.image.size
    for y in range(height):
        share = y / height
        mixed = (1 - share) * canvas.back + share * np.array(canvas.colour)
        canvas.pen.line([0, y, width, y], fill=_triple(mixed))


SHAPES = {
    "checkerboard": _checkerboard,
    "circle": _circle,
    "cross": _cross,
    "dots": _dots,
    "gradient": _gradient,
    "horizontal_stripes": _horizontal_stripes,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "vertical_stripes": _vertical_stripes,
}
"""What paints a class, by its name."""
