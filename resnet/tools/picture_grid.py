"""A grid of pictures with captions and bars as one PNG: what `resnet look` and `resnet predict --grid` draw."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from resnet.tools.output import open_output

SIDE = 200
"""Width of a tile, and height of its picture, in pixels: four of them side by side are read on a phone."""
_GAP, _LINE, _TEXT = 14, 22, 16
_PAGE, _INK, _FAINT, _BAR = "#ffffff", "#1f2328", "#59636e", "#b6d4fe"
_MARKS = {True: ("#1a7f37", "✓"), False: ("#cf222e", "✗")}
_FEWEST_COLUMNS = 4


class Tile(NamedTuple):
    """A picture and what is written below it."""

    image: np.ndarray | Image.Image
    """uint8 (H, W, 3) or (H, W), or Pillow's."""
    caption: Sequence[str] = ()
    """Lines; the first one darkest. What is too long loses its middle."""
    bars: Sequence[tuple[str, float]] = ()
    """Names with a share of 0 to 1 each, drawn as bars below the caption."""
    mark: bool | None = None
    """Whether it is right (green frame and tick) or wrong (red frame and cross); None: neither."""


def draw_grid(tiles: Sequence[Tile], path: Path | None = None, columns: int | None = None, title: str = "") -> bytes:
    """Draw tiles row by row on white; returns the PNG, which is also written to `path`, whole or not at all.

    columns: None chooses, 4 or more so that the page is about twice as high as wide. title: a line above all of them.
    Small images are enlarged without smoothing, so that their pixels show. Raises ValueError for no tiles or columns.
    """
    if not tiles or (columns is not None and columns < 1):
        raise ValueError(f"a grid of {len(tiles)} pictures in {columns} columns: both take 1 or more")
    across = min(len(tiles), columns or max(_FEWEST_COLUMNS, math.ceil(math.sqrt(len(tiles) / 2))))
    rows = [tiles[start : start + across] for start in range(0, len(tiles), across)]
    heights = [max(_height(tile) for tile in row) for row in rows]
    head = _GAP + (_LINE + _GAP // 2) * bool(title)
    width = _GAP + across * (SIDE + _GAP)
    page = Image.new("RGB", (width, head + sum(heights) + _GAP * len(rows)), _PAGE)
    pen = ImageDraw.Draw(page)
    if title:
        pen.text((_GAP, _GAP), _fitted(title, width - 2 * _GAP), _INK, _font())
    top = head
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            _draw_tile(page, pen, tile, _GAP + column * (SIDE + _GAP), top)
        top += height + _GAP
    return _saved(page, path)


def _height(tile: Tile) -> int:
    return SIDE + 4 + _LINE * (len(tile.caption) + len(tile.bars))


def _draw_tile(page: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    picture = _fitting(tile.image)
    corner = (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2)
    page.paste(picture, corner)
    if tile.mark is not None:
        _draw_mark(pen, tile.mark, left, top)
    below = top + SIDE + 4
    for number, line in enumerate(tile.caption):
        pen.text((left, below), _fitted(line, SIDE), _FAINT if number else _INK, _font())
        below += _LINE
    for name, share in tile.bars:
        _draw_bar(pen, name, share, left, below)
        below += _LINE


def _draw_mark(pen: ImageDraw.ImageDraw, mark: bool, left: int, top: int) -> None:
    colour, sign = _MARKS[mark]
    pen.rectangle((left - 4, top - 4, left + SIDE + 3, top + SIDE + 3), outline=colour, width=4)
    # Not by its colour alone: one reader in twelve does not tell red from green.
    pen.rectangle((left, top, left + 24, top + 24), fill=colour)
    pen.text((left + 12, top + 12), sign, _PAGE, _font(), anchor="mm")


def _draw_bar(pen: ImageDraw.ImageDraw, name: str, share: float, left: int, top: int) -> None:
    filled = round(SIDE * min(max(share, 0.0), 1.0))
    if filled:
        pen.rectangle((left, top, left + filled - 1, top + _LINE - 4), fill=_BAR)
    percent = f"{100 * share:.0f}%" if share >= 0.01 or share <= 0 else "<1%"
    room = SIDE - 8 - pen.textlength(percent, _font())
    pen.text((left + 3, top), _fitted(name, room), _INK, _font())
    pen.text((left + SIDE - 2, top), percent, _INK, _font(), anchor="ra")


def _fitting(image: np.ndarray | Image.Image) -> Image.Image:
    """The picture in its own proportions, its longer side as long as a tile."""
    picture = (Image.fromarray(image) if isinstance(image, np.ndarray) else image).convert("RGB")
    scale = SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS)


def _fitted(text: str, width: float) -> str:
    """The text with as much of its middle left out as makes it fit: names differ most at their ends."""
    font = _font()
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        kept = (low + high + 1) // 2
        low, high = (kept, high) if font.getlength(_shortened(text, kept)) <= width else (low, kept - 1)
    return _shortened(text, low)


def _shortened(text: str, kept: int) -> str:
    """`kept` of the characters, the end's more than the beginning's."""
    front = kept * 2 // 5
    return f"{text[:front]}…{text[len(text) - (kept - front) :]}"


@cache
def _font() -> ImageFont.FreeTypeFont:
    # Matplotlib's own, which has far more letters than Pillow's.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), _TEXT)


def _saved(page: Image.Image, path: Path | None) -> bytes:
    stream = io.BytesIO()
    page.save(stream, "PNG", optimize=True)
    if path is not None:
        with open_output(path) as file:
            file.write(stream.getvalue())
    return stream.getvalue()
