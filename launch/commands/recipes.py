"""`launch recipes`: the recipes that come with the program."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from itertools import groupby
from typing import Any

from recipes.load import load, names
from recipes.schema.recipe import Recipe

GROUPS = ("Downloads nothing", "CIFAR", "ImageNet", "Your own images")
WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a list of objects")


def run(arguments: argparse.Namespace) -> None:
    rows = sorted((_row(load([f"recipe={name}"]).recipe) for name in names()), key=_place)
    print(json.dumps(rows, indent=1) if arguments.json else _table(rows))


def _row(recipe: Recipe) -> dict[str, Any]:
    evidence = recipe.evidence
    return {
        "name": recipe.name,
        "group": _group(recipe),
        "model": recipe.model.name or f"{recipe.model.block} {'-'.join(map(str, recipe.model.layers or []))}",
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "top1": evidence.top1 if evidence else None,
        "band": evidence.band if evidence else None,
        "description": recipe.description,
    }


def _group(recipe: Recipe) -> str:
    data = recipe.data
    if data.source in ("shapes", "synthetic"):
        return "Downloads nothing"
    if data.source in ("cifar10", "cifar100"):
        return "CIFAR"
    return "ImageNet" if "imagenet" in data.train else "Your own images"


def _place(row: dict[str, Any]) -> tuple[int, list[Any]]:
    """By group, then by name, where resnet50 comes before resnet101."""
    parts = re.split(r"(\d+)", row["name"])
    return GROUPS.index(row["group"]), [int(part) if part.isdigit() else part for part in parts]


def _table(rows: list[dict[str, Any]]) -> str:
    name, model = (max(len(row[key]) for row in rows) for key in ("name", "model"))
    lines = [f"{'name':{name}}  {'model':{model}}  epochs  batch  top-1 (band)"]
    for group, members in groupby(rows, lambda row: row["group"]):
        lines += ["", group]
        for row in members:
            lines.append(
                f"{row['name']:{name}}  {row['model']:{model}}  {row['epochs']:6g}  {row['batch_size']:5}  {_top1(row)}"
            )
            lines += textwrap.wrap(row["description"], WIDTH, initial_indent="    ", subsequent_indent="    ")
    lines += ["", "top-1: expected, in percent, and the range in which a run counts as reproduced."]
    lines += ["Where it is known from: launch show recipe=NAME"]
    return "\n".join(lines)


def _top1(row: dict[str, Any]) -> str:
    if row["top1"] is None:
        return "unknown"
    return f"{row['top1']:5.2f}" + (f" ({row['band'][0]:g}-{row['band'][1]:g})" if row["band"] else "")
