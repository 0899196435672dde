"""Evaluations as a table for people, and as rows of stable names for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from recipes.text import listed, plural, table
from resnet.tools.evaluate import Evaluation

WORST = 30
"""Classes that a table for people lists."""
_FIGURES = (
    *("name", "top1", "top5", "loss", "ece", "samples", "unreadable", "images_per_second", "kind", "size", "flip"),
    *("classes", "answered", "evidence", "weights", "run"),
)
"""Columns of the CSV file and keys of the JSON objects, in this order."""


def row(found: Evaluation) -> dict[str, Any]:
    """The figures of an evaluation by the names that scripts rely on. top1, top5 and ece in percent."""
    assert found.recipe is not None
    kinds = {True: "swa" if found.recipe.swa else "ema", False: "plain", None: None}
    content = {
        "kind": kinds[found.averaged],
        "size": found.recipe.augment.val_size,
        "flip": found.recipe.eval.flip,
        "classes": len(found.classes),
        "unreadable": sum(told.startswith("cannot read ") for told in found.warnings),
        "weights": str(found.weights),
        "run": None if found.run is None else str(found.run),
    }
    own = {"metrics": found.metrics} if found.metrics else {}
    return {name: content[name] if name in content else getattr(found, name) for name in _FIGURES} | own


def as_table(results: Sequence[Evaluation], width: int | None = None) -> list[str]:
    """The lines of a table, a row an evaluation, and below it how they compare with what is known of their recipes.

    width: of the terminal; None: as wide as it is.
    """
    rows = [row(found) for found in results]
    columns = {"name": [one["name"] for one in rows], "top-1": [_percent(one["top1"]) for one in rows]}
    if any(one["answered"] > 5 and one["top5"] is not None for one in rows):
        columns["top-5"] = [_percent(one["top5"]) if one["answered"] > 5 else "-" for one in rows]
    if any(one["loss"] is not None for one in rows):
        columns["loss"] = ["-" if one["loss"] is None else f"{one['loss']:.4f}" for one in rows]
    for name in dict.fromkeys(name for one in rows for name in one.get("metrics", ())):
        values = [one.get("metrics", {}).get(name) for one in rows]
        columns[name] = ["-" if value is None else f"{value:.4g}" for value in values]
    columns["ECE"] = [_percent(one["ece"]) for one in rows]
    columns["images"] = [f"{one['samples']:,}" for one in rows]
    columns["images/s"] = ["-" if (s := one["images_per_second"]) is None else f"{s:,.0f}" for one in rows]
    columns["weights"] = [_what(one) for one in rows]
    lines = table(columns, width, dropped=("images/s", "ECE", "loss"), least={"name": 12}, left=("name", "weights"))
    judged: dict[str, list[str]] = {}
    for one in rows:
        if one["evidence"]:
            judged.setdefault(one["evidence"], []).append(one["name"])
    return [*lines, *(f"{listed(names)}: top-1 is {text}" for text, names in judged.items())]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}%"


def _what(one: dict[str, Any]) -> str:
    kind = {"ema": ["EMA"], "swa": ["SWA"], "plain": ["plain"], None: []}[one["kind"]]
    return ", ".join([*kind, f"{one['size']} px", *(["flip"] if one["flip"] else [])])


def class_table(results: Sequence[Evaluation], width: int | None = None) -> list[str]:
    """The accuracies of the classes side by side, the worst first by their mean over the evaluations."""
    shares = [{one["class"]: one for one in found.per_class if one["samples"]} for found in results]
    names = list(dict.fromkeys(name for by_name in shares for name in by_name))
    top1 = {name: [_share(by_name.get(name)) for by_name in shares] for name in names}
    names.sort(key=lambda name: sum(v := [value for value in top1[name] if value is not None]) / len(v))
    shown = names[:WORST]
    samples = [max(by_name[name]["samples"] for by_name in shares if name in by_name) for name in shown]
    columns = {"class": shown, "images": [f"{count:,}" for count in samples]}
    for index, found in enumerate(results):
        heading = found.name if found.name not in columns else f"{found.name} ({index + 1})"
        columns[heading] = [_percent(top1[name][index]) for name in shown]
    lines = table(columns, width, left=("class",))
    left_out = len(names) - len(shown)
    return lines + ([f"and {plural(left_out, 'better class')} (--csv and --json have all)"] if left_out else [])


def _share(one: dict[str, Any] | None) -> float | None:
    return None if one is None else 100 * one["correct"] / one["samples"]


def as_csv(results: Sequence[Evaluation], per_class: bool = False) -> str:
    """A row an evaluation under a header; per_class: a row a class of each, in the order of the network's outputs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if per_class:
        writer.writerow(("name", "class", "samples", "correct", "top1"))
        for found in results:
            for one in found.per_class:
                top1 = _share(one) if one["samples"] else None
                writer.writerow((found.name, one["class"], one["samples"], one["correct"], top1))
        return text.getvalue()
    writer.writerow(_FIGURES)
    writer.writerows([row(found)[name] for name in _FIGURES] for found in results)
    return text.getvalue()


def as_objects(results: Sequence[Evaluation], per_class: bool = False) -> list[dict[str, Any]]:
    """An object an evaluation, with its calibration; per_class: and its classes."""
    return [
        row(found) | {"calibration": found.calibration} | ({"per_class": found.per_class} if per_class else {})
        for found in results
    ]
