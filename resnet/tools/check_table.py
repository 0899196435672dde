"""What `resnet check-data` tells: a table, the findings with their files, the same for JSON, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from recipes.text import listed, plural, table
from resnet.data.arrays import BrokenImage
from resnet.data.bands import visible
from resnet.data.batches import read_image
from resnet.tools.check_data import LONG, Checked, Group, Part, Place
from resnet.tools.look import short_name
from resnet.tools.picture_grid import Tile, draw_grid
from resnet.tools.prediction_rows import printable

_SHORT_SIDES = (32, 64, 128, 224, 256, 384, 512, 1024)
_RATIOS = (1.05, 1.34, 1.51, 2.0, LONG)
_GREY = (b"1", b"L", b"LA", b"La", b"I", b"F")
_MOST_LISTED, _MOST_OF_A_GROUP = 5, 4
_TILES_OF_A_KIND = 8


def figures(checked: Checked, at: int) -> dict[str, Any]:
    """What is counted of a part, under the names of JSON. Sides are in pixels."""
    part, whole = checked.parts[at], checked.parts[at].whole
    height, width = whole["height"].astype(np.int64), whole["width"].astype(np.int64)
    short = np.minimum(height, width)
    ratio = np.maximum(height, width) / np.maximum(short, 1)
    turned = {str(value): count for value, count in _counted(whole["orientation"]).items() if value != 1}
    return {
        "images": len(part.facts),
        "not_read": len(part.facts) - len(whole) - len(part.broken),
        "broken": len(part.broken),
        "copies": _beyond_the_first(checked.same, at),
        "look_alikes": _beyond_the_first(checked.alike, at),
        "two_labels": _images_of(checked.same, at, lambda group: group.two_labels),
        **({"also_in_training": _images_of(checked.same, at, lambda group: group.leak)} if at else {}),
        **({"alike_in_training": _images_of(checked.alike, at, lambda group: group.leak)} if at else {}),
        **_class_figures(part),
        "bytes": int(whole["bytes"].sum()),
        "formats": {name.decode() or "pixels": count for name, count in _counted(whole["format"]).items()},
        "progressive": int(whole["progressive"].sum()),
        "grey": int(sum((whole["mode"] == mode).sum() for mode in _GREY) + _starts(whole["mode"], b"I;")),
        "cmyk": int((whole["mode"] == b"CMYK").sum()),
        "transparent": int(whole["alpha"].sum()),
        "rotated": sum(turned.values()),
        "orientations": turned,
        "long": int((ratio > LONG).sum()),
        "smaller_than_crop": None if checked.crop is None else int((short < checked.crop).sum()),
        "short_side": dict(zip(_ranges(_SHORT_SIDES), _histogram(short, _SHORT_SIDES), strict=True)),
        "aspect_ratio": dict(zip(_ranges(_RATIOS), _histogram(ratio, _RATIOS), strict=True)),
        "median_size": [int(np.median(width)), int(np.median(height))] if len(whole) else None,
    }


def _class_figures(part: Part) -> dict[str, Any]:
    counts, names = part.counts, np.array(part.source.classes, dtype=object)
    present = counts[counts > 0]
    return {
        "unlabelled": int((part.source.labels < 0).sum()),
        "classes": len(names),
        "empty_classes": names[counts == 0].tolist(),
        "one_image_classes": names[counts == 1].tolist(),
        "images_a_class": [int(present.min()), int(np.median(present)), int(present.max())] if len(present) else None,
    }


def _counted(values: np.ndarray) -> dict[Any, int]:
    """How often each value occurs, the most frequent first."""
    found = zip(*(each.tolist() for each in np.unique(values, return_counts=True)), strict=True)
    return dict(sorted(found, key=lambda pair: -pair[1]))


def _starts(modes: np.ndarray, start: bytes) -> int:
    return int(np.char.startswith(modes, start).sum())


def _beyond_the_first(groups: Iterable[Group], at: int) -> int:
    """Images of a part that another one before them in the same part is equal to, or looks like."""
    return sum(max(0, sum(place.part == at for place in group.places) - 1) for group in groups)


def _images_of(groups: Iterable[Group], at: int, kind: Callable[[Group], bool]) -> int:
    return sum(place.part == at for group in groups if kind(group) for place in group.places)


def _ranges(edges: Sequence[float]) -> list[str]:
    """Names of the ranges that edges cut, as in "< 32", "32 - 64", ">= 64"."""
    return [
        f"< {edges[0]}",
        *(f"{low} - {high}" for low, high in pairwise(edges)),
        f">= {edges[-1]}",
    ]


def _histogram(values: np.ndarray, edges: Sequence[float]) -> list[int]:
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1).tolist()


def as_json(checked: Checked) -> dict[str, Any]:
    """All that was found, with every file of it."""

    def told(place: Place) -> dict[str, Any]:
        return {"part": checked.parts[place.part].name, "file": checked.file(place), "label": checked.label(place)}

    def groups(found: Iterable[Group]) -> list[dict[str, Any]]:
        return [{**group._asdict(), "places": [told(place) for place in group.places]} for group in found]

    return {
        "spoils": checked.spoils,
        "stopped": checked.stopped,
        "crop": checked.crop,
        "notes": checked.notes,
        "levels": checked.levels and checked.levels._asdict(),
        "parts": {part.name: figures(checked, at) for at, part in enumerate(checked.parts)},
        "broken": [{**told(place), "reason": why} for place, why in checked.broken],
        "same": groups(checked.same),
        "look_alikes": groups(checked.alike),
        "rotated": [told(place) for place in _where(checked, lambda facts: facts["orientation"] > 1)],
        "cmyk": [told(place) for place in _where(checked, lambda facts: facts["mode"] == b"CMYK")],
        "long": [told(place) for place in _where(checked, _is_long)],
    }


def _where(checked: Checked, kind: Callable[[np.ndarray], np.ndarray]) -> list[Place]:
    """The images of a kind."""
    return [
        Place(at, index) for at, part in enumerate(checked.parts) for index in np.flatnonzero(kind(part.facts)).tolist()
    ]


def _is_long(facts: np.ndarray) -> np.ndarray:
    sides = np.stack([facts["height"], facts["width"]]).astype(np.int64)
    return sides.max(0) > LONG * sides.min(0)


def as_lines(checked: Checked) -> list[str]:
    """The table, what was found under headings, and at last whether it spoils a training."""
    found = [figures(checked, at) for at in range(len(checked.parts))]
    return [*_table(checked, found), *_levels(checked), *_findings(checked, found), "", verdict(checked, found)]


def _levels(checked: Checked) -> list[str]:
    """As keys of a recipe."""
    if checked.levels is None:
        return []
    mean, std = (",".join(f"{value:.3f}" for value in values) for values in checked.levels[1:])
    return ["", f"of {plural(checked.levels.images, 'training image')}: augment.mean=[{mean}] augment.std=[{std}]"]


def _table(checked: Checked, found: list[dict[str, Any]]) -> list[str]:
    rows = [_cells(figure, checked.crop) for figure in found]
    names = list(dict.fromkeys(name for cells in rows for name in cells))
    shown = [name for name in names if any(cells.get(name, "0") != "0" for cells in rows)]
    parts = {
        part.name: [cells.get(name, "") for name in shown] for part, cells in zip(checked.parts, rows, strict=True)
    }
    return table({"": shown, **parts}, left=[""])


def _cells(figure: dict[str, Any], crop: int | None) -> dict[str, str]:
    """A column of the table; what is "0" in all of them is left out."""
    spread = figure["images_a_class"]
    whole = figure["images"] - figure["not_read"] - figure["broken"]
    counts = {
        "images": figure["images"],
        "not read (stopped)": figure["not_read"],
        "broken": figure["broken"],
        "also in training": figure.get("also_in_training", 0),
        "under two labels": figure["two_labels"],
        "copies of another": figure["copies"],
        "look like another": figure["look_alikes"],
        "look like one in training": figure.get("alike_in_training", 0),
        "without a label": figure["unlabelled"],
        "classes": figure["classes"],
        "classes without an image": len(figure["empty_classes"]),
        "classes of one image": len(figure["one_image_classes"]),
    }
    shapes = {
        **{name: figure["formats"][name] for name in figure["formats"]},
        "progressive": figure["progressive"],
        "grey": figure["grey"],
        "CMYK": figure["cmyk"],
        "transparent": figure["transparent"],
        "rotated by EXIF": figure["rotated"],
        f"longer than {LONG}:1": figure["long"],
        f"smaller than the crop ({crop})": figure["smaller_than_crop"] or 0,
        **{f"short side {name}": count for name, count in figure["short_side"].items()},
        **{f"long : short {name}": count for name, count in figure["aspect_ratio"].items()},
    }
    texts = {
        "images a class (least, median, most)": " ".join(f"{count:,}" for count in spread) if spread else "0",
        "megabytes": f"{figure['bytes'] / 1e6:,.1f}",
        "kilobytes an image": f"{figure['bytes'] / 1e3 / max(1, whole):,.1f}",
    }
    told = lambda numbers: {name: f"{number:,}" for name, number in numbers.items()}  # noqa: E731
    return told(counts) | texts | told(shapes)


def _findings(checked: Checked, found: list[dict[str, Any]]) -> Iterator[str]:
    """A heading for each kind of what was found, and below it the first few."""
    same = checked.same
    groups = {
        "the same image for training and for validation": [group for group in same if group.leak],
        "the same image under two labels": [group for group in same if group.two_labels and not group.leak],
        "the same image several times": [group for group in same if not group.leak and not group.two_labels],
        "images for training and for validation that look alike": [group for group in checked.alike if group.leak],
        "images of one part that look alike": [group for group in checked.alike if not group.leak],
    }
    yield from _section("broken", [f"{checked.file(place)}: {why}" for place, why in checked.broken])
    for heading, members in groups.items():
        yield from _section(heading, [_group_text(checked, group) for group in members])
    turned = [f"{checked.file(place)} ({orientation})" for place, orientation in _turned(checked)]
    yield from _section("rotated by EXIF, which training ignores: it sees them as they lie in the file", turned)
    for part, figure in zip(checked.parts, found, strict=True):
        for key, what in (("empty_classes", "without an image"), ("one_image_classes", "of one image")):
            if names := figure[key]:
                yield from _section(f"{part.name}: {plural(len(names), 'class')} {what}", [listed(names, 10)])


def _turned(checked: Checked) -> list[tuple[Place, int]]:
    places = _where(checked, lambda facts: facts["orientation"] > 1)
    return [(place, int(checked.parts[place.part].facts["orientation"][place.image])) for place in places]


def _section(heading: str, lines: list[str]) -> Iterator[str]:
    if not lines:
        return
    yield from ("", f"{heading}:", *(f"  {printable(line)}" for line in lines[:_MOST_LISTED]))
    if len(lines) > _MOST_LISTED:
        yield f"  and {len(lines) - _MOST_LISTED:,} more"


def _group_text(checked: Checked, group: Group) -> str:
    """As in `train/cat/1.jpg (cat) = val/dog/2.jpg (dog), other bytes`."""
    members = [f"{checked.file(place)} ({checked.label(place) or 'no label'})" for place in group.places]
    more = f" and {len(members) - _MOST_OF_A_GROUP} more" if len(members) > _MOST_OF_A_GROUP else ""
    alike = group in checked.alike
    bytes_differ = ", other bytes" if not group.same_bytes and not alike else ""
    return (" ~ " if alike else " = ").join(members[:_MOST_OF_A_GROUP]) + more + bytes_differ


def verdict(checked: Checked, found: list[dict[str, Any]]) -> str:
    """The last line."""
    leaked = sum(figure.get("also_in_training", 0) for figure in found)
    double = sum(group.two_labels for group in checked.same)
    wrong = [plural(len(checked.broken), "broken image")] * bool(checked.broken)
    wrong += [f"{plural(leaked, 'validation image')} also in training"] * bool(leaked)
    wrong += [f"{plural(double, 'image')} under two labels"] * bool(double)
    text = f"wrong: {', '.join(wrong)}" if wrong else "nothing that spoils a training"
    left = sum(figure["not_read"] for figure in found)
    return f"stopped, {plural(left, 'image')} not read; of the others: {text}" if checked.stopped else text


def draw_suspicious(checked: Checked, path: Path | None = None, title: str = "") -> bytes | None:
    """Some of all kinds of what was found as one PNG, also written to `path`; None where there is nothing to show.

    Images are shown as they are decoded for training.
    """
    tiles = list(_tiles(checked))
    return draw_grid(tiles, path, 4, title) if tiles else None


def _tiles(checked: Checked) -> Iterator[Tile]:
    """Pairs side by side, then single images."""
    kinds = {
        "leak": [group for group in checked.same if group.leak],
        "two labels": [group for group in checked.same if group.two_labels and not group.leak],
        "copy": [group for group in checked.same if not group.leak and not group.two_labels],
        "alike": checked.alike,
    }
    for kind, groups in kinds.items():
        for number, group in enumerate(groups[: _TILES_OF_A_KIND // 2], start=1):
            for place in _pair(checked, group):
                yield from _tile(checked, place, f"{kind} {number}")
    singles = {
        "CMYK": _where(checked, lambda facts: facts["mode"] == b"CMYK"),
        f"longer than {LONG}:1": _where(checked, _is_long),
    }
    for kind, places in singles.items():
        for place in places[:_TILES_OF_A_KIND]:
            yield from _tile(checked, place, kind)
    for place, orientation in _turned(checked)[:_TILES_OF_A_KIND]:
        yield from _tile(checked, place, f"EXIF orientation {orientation}")


def _pair(checked: Checked, group: Group) -> tuple[Place, Place]:
    """Two images of a group that differ in what is wrong about it: one of each part, or of each label, if there are."""
    first, *others = group.places
    if group.leak:
        return first, next(place for place in others if place.part != first.part)
    return first, next((place for place in others if checked.label(place) != checked.label(first)), others[0])


def _tile(checked: Checked, place: Place, kind: str) -> Iterator[Tile]:
    part = checked.parts[place.part]
    try:
        image = read_image(part.source, place.image)
    except (BrokenImage, OSError):  # gone since
        return
    size = f"{image.shape[2]}x{image.shape[1]}"
    label = checked.label(place) or "no label"
    lines = [f"{kind}: {part.name}", label, short_name(checked.file(place)), size]
    yield Tile(visible(image.permute(1, 2, 0).contiguous().numpy()), lines)
