"""Draws images of several shapes each, as JPEG files, and lists them: python make_data.py FOLDER [IMAGES]"""

import csv
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

CLASSES: tuple[str, ...] = ("circle", "square", "triangle", "cross")
SIZE = 64


def draw(pen: ImageDraw.ImageDraw, shape: str, box: tuple[int, int, int, int], colour: tuple[int, int, int]) -> None:
    left, top, right, bottom = box
    middle = (left + right) // 2, (top + bottom) // 2
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "triangle":
        pen.polygon([(middle[0], top), (right, bottom), (left, bottom)], fill=colour)
    else:
        pen.line([(left, middle[1]), (right, middle[1])], fill=colour, width=5)
        pen.line([(middle[0], top), (middle[0], bottom)], fill=colour, width=5)


def picture(rng: random.Random, shapes: Sequence[str]) -> Image.Image:
    """An image with a shape in each of some of its quarters, light on dark."""
    image = Image.new("RGB", (SIZE, SIZE), (rng.randrange(80), rng.randrange(80), rng.randrange(80)))
    pen, half = ImageDraw.Draw(image), SIZE // 2
    for shape, place in zip(shapes, rng.sample(range(4), len(shapes)), strict=True):
        side = rng.randint(18, 28)
        left = place % 2 * half + rng.randint(0, half - side)
        top = place // 2 * half + rng.randint(0, half - side)
        colour = rng.randint(130, 255), rng.randint(130, 255), rng.randint(130, 255)
        draw(pen, shape, (left, top, left + side, top + side), colour)
    return image


def make(folder: Path, images: int = 600) -> None:
    """Write folder/train.csv, folder/val.csv (a quarter as many) and the images that they list."""
    for name, count in (("train", images), ("val", images // 4)):
        rng = random.Random(name)
        (folder / name).mkdir(parents=True, exist_ok=True)
        with open(folder / f"{name}.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("file", "labels"))
            for number in range(count):
                shapes = rng.sample(CLASSES, rng.randint(1, 3))
                path = f"{name}/{number:05d}.jpg"
                picture(rng, shapes).save(folder / path, quality=90)
                table.writerow((path, " ".join(sorted(shapes))))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    make(Path(sys.argv[1]), *map(int, sys.argv[2:]))
