"""`launch recipes`: the recipes that come with the program, and the user's own."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from launch.derived import network
from recipes.library import config_folder
from recipes.listing import Listed, Unusable, matching, own_recipes, shipped_recipes

WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="WORD", help="those whose data has this in its name, as cifar10")
    parser.add_argument("--model", metavar="WORD", help="those whose network has this in its name, as resnet50")
    parser.add_argument("--long", action="store_true", help="describe each in a line of its own")
    parser.add_argument("--json", action="store_true", help="print a list of objects")


def run(arguments: argparse.Namespace) -> None:
    ours = shipped_recipes()
    theirs, unusable = own_recipes()
    rows = matching([*ours, *theirs], arguments.data, arguments.model)
    if arguments.json:
        print(json.dumps([_as_json(row) for row in rows], indent=1))
        return
    if arguments.data or arguments.model:
        unusable = []
    print("\n".join(_lines(rows, unusable, {str(row.path) for row in theirs}, arguments.long)))


def _as_json(row: Listed) -> dict[str, Any]:
    recipe, evidence = row.recipe, row.recipe.evidence
    return {
        "name": row.name,
        "group": row.group,
        "family": row.family,
        "model": row.model,
        **{key: network(recipe)[key] for key in ("parameters", "classes")},
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "top1": evidence.top1 if evidence else None,
        "band": evidence.band if evidence else None,
        "measured": evidence.measured.model_dump() if evidence and evidence.measured else None,
        "description": recipe.description,
        "path": str(row.path),
    }


def _lines(rows: Sequence[Listed], unusable: Sequence[Unusable], own: set[str], long: bool) -> Iterator[str]:
    width = max(len(row.name) for row in rows) + 2
    yield f"{'':{width}}  epochs  batch  {'top-1 (band)':18}  measured here"
    for group, members in groupby(rows, lambda row: row.group):
        listed = list(members)
        yield from ("", f"your own, {group}" if str(listed[0].path) in own else group)
        for family, relatives in groupby(listed, lambda row: row.family):
            yield f" {family}"
            for row in relatives:
                recipe = row.recipe
                start = f"  {row.name:{width - 2}}  {recipe.epochs:6.4g}  {recipe.batch_size:5}"
                yield f"{start}  {_expected(row):18}  {_measured(row)}".rstrip()
                if long:
                    yield from _wrapped(recipe.description, "    ")
    if unusable:
        yield from ("", "your own, not found by a name")
        for path, why in unusable:
            yield from _wrapped(f"{path}: {why}", "  ")
    yield ""
    yield "top-1: expected, in percent, and the band in which a run counts as reproduced; ~: an estimate."
    yield "What one is, and where its figures are from: launch show recipe=NAME (--long here: a line on each)"
    yield f"Your own are found in recipes/ and in {config_folder() / 'recipes'}"


def _wrapped(text: str, indent: str) -> list[str]:
    wrapper = textwrap.TextWrapper(WIDTH, indent, "    ", break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(text)


def _expected(row: Listed) -> str:
    evidence = row.recipe.evidence
    if evidence is None or evidence.top1 is None:
        return "unknown"
    if evidence.band is None:
        return f"~{evidence.top1:.1f}"
    return f"{evidence.top1:5.2f} ({evidence.band[0]:g}-{evidence.band[1]:g})"


def _measured(row: Listed) -> str:
    measured = row.recipe.evidence.measured if row.recipe.evidence else None
    if measured is None:
        return ""
    if measured.top1 is None:
        return "yes"
    spread = f" +-{measured.spread:g}" if measured.spread is not None else ""
    return f"{measured.top1:.2f}{spread}" + (f" ({measured.seeds} runs)" if measured.seeds > 1 else "")
