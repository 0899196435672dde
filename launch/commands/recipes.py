"""`launch recipes`: the recipes that come with the program."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from itertools import groupby
from typing import Any

from launch.derived import network
from recipes.load import folder_of, load, names
from recipes.schema.recipe import Recipe

GROUPS = ("starters", "cifar", "imagenet")
"""Folders of recipes, in the order of a first look; others follow."""
WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a list of objects")


def run(arguments: argparse.Namespace) -> None:
    recipes = sorted((load([f"recipe={name}"]).recipe for name in names()), key=_place)
    rows = [_row(recipe) for recipe in recipes]
    print(json.dumps(rows, indent=1) if arguments.json else _table(rows))


def _row(recipe: Recipe) -> dict[str, Any]:
    evidence = recipe.evidence
    return {
        "name": recipe.name,
        "group": folder_of(recipe.name),
        "model": recipe.model.name or f"{recipe.model.block} {'-'.join(map(str, recipe.model.layers or []))}",
        **{key: network(recipe)[key] for key in ("parameters", "classes")},
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "top1": evidence.top1 if evidence else None,
        "band": evidence.band if evidence else None,
        "description": recipe.description,
    }


def _place(recipe: Recipe) -> tuple[int, str, bool, list[Any]]:
    """By folder, what needs no data first, then by name, where resnet50 comes before resnet101."""
    folder, parts = folder_of(recipe.name), re.split(r"(\d+)", recipe.name)
    place = GROUPS.index(folder) if folder in GROUPS else len(GROUPS)
    return place, folder, not recipe.data.made_here, [int(part) if part.isdigit() else part for part in parts]


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
