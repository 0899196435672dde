"""`launch show`: a recipe with all its values, where they come from, and what follows from them.

The text is itself a recipe: all but the values stands in comments.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from launch.derived import follows
from recipes.evidence import with_spread
from recipes.load import dump, load
from recipes.plugin_check import check_plugin_code
from recipes.text import plural
from recipes.yaml12 import Loader

WIDTH = 98


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "launch show recipe=NAME [KEY=VALUE ...] [--origin] [--gpus N] [--samples N] [--json] [--debug]"
    parser.add_argument(
        "words",
        nargs="*",
        metavar="KEY=VALUE",
        help="recipe=NAME, recipe=FILE.yaml or recipe=RUN_DIR; changes to it",
    )
    parser.add_argument("--origin", action="store_true", help="say where each value comes from")
    parser.add_argument("--gpus", type=_count, default=1, metavar="N", help="devices to train on, over all nodes (1)")
    parser.add_argument("--samples", type=_count, metavar="N", help="training images drawn in an epoch")
    parser.add_argument("--json", action="store_true", help="print an object with recipe, origins and follows")


def run(arguments: argparse.Namespace) -> None:
    loaded = load(arguments.words)
    check_plugin_code(loaded.recipe)
    facts = follows(loaded, arguments.gpus, arguments.samples)
    if arguments.json:
        recipe = loaded.recipe.model_dump(mode="json")
        print(json.dumps({"recipe": recipe, "origins": loaded.origins, "follows": facts}, indent=1))
        return
    text = dump(loaded.recipe)
    print(_with_origins(text, loaded.origins) if arguments.origin else text)
    print("\n".join(f"# {line}".rstrip() for line in _lines(facts)))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def _with_origins(text: str, origins: dict[str, str]) -> str:
    """A dumped recipe with the origin of each value as a comment in its line."""
    lines = text.splitlines()
    notes = dict(_notes(yaml.compose(text, Loader), origins, ""))
    column = min(max(len(lines[number]) for number in notes), 50) + 2
    for number, note in notes.items():
        lines[number] = f"{lines[number]:{column - 2}}  # {note}"
    return "\n".join(lines) + "\n"


def _notes(node: yaml.Node | None, origins: dict[str, str], prefix: str) -> Iterator[tuple[int, str]]:
    assert isinstance(node, yaml.MappingNode)
    for key, value in node.value:
        dotted = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _notes(value, origins, f"{dotted}.")
        else:
            # Within a text over several lines a comment would be part of it, or end it.
            line = value.end_mark.line if isinstance(value, yaml.ScalarNode) else key.start_mark.line
            yield line, origins.get(dotted, "name of the file" if dotted == "name" else "default")


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    gpus, slots = facts["gpus"], facts["accumulation"]
    yield f"What follows on {gpus} device{'s' if gpus > 1 else ''}"
    samples = f"{facts['samples']} an epoch, " if facts["samples"] else ""
    rows = [("network", _network(facts["network"])), ("training images", samples + facts["samples_from"])]
    if facts["total_steps"]:
        end, total = facts["end_step"], facts["total_steps"]
        cut = f"; ends after {end} (max_steps), with the schedule of all of them" if end < total else ""
        rows.append(("optimizer steps", f"{facts['steps_per_epoch']} an epoch, {total} in all{cut}"))
    if slots is None:
        micro = "in micro-batches as large as fit, found at the start of the run (max_batch_per_device=auto)"
    else:
        micro = f"in {slots} micro-batches of {facts['micro_batch']}" if slots > 1 else "in one pass"
    rows.append(("batch", f"{facts['batch_size']}, {facts['per_device_batch']} per device {micro}"))
    backbone = f", backbone {facts['backbone_lr']:.6g}" if facts["backbone_lr"] else ""
    stem = f", stem {facts['stem_lr']:.6g}" if facts["stem_lr"] else ""
    rows.append(("peak lr", f"{facts['lr']:.6g}{backbone}{stem}"))
    if len(facts["image_sizes"]) > 1:
        sizes = ", ".join(f"{corner['size']} from epoch {corner['epoch']}" for corner in facts["image_sizes"])
        rows.append(("image size", sizes))
    if facts["unfreeze"]:
        rows.append(("what trains", facts["unfreeze"]))
    if average := facts["ema"]:
        rescaled = f" ({average['stated']:g} rescaled)" if average["decay"] != average["stated"] else ""
        rows.append(("EMA", f"keeps {average['decay']:.6g}{rescaled} every {plural(average['every'], 'step')}"))
    if epochs := facts["swa"]:
        after = ", ".join(map(str, epochs[:3])) + (f" ... {epochs[-1]}" if len(epochs) > 3 else "")
        rows.append(("SWA", f"the mean of the weights after {plural(len(epochs), 'epoch')}: {after}"))
    if facts["saves"]:
        rows.append(("checkpoints", facts["saves"]))
    rows.append(("expected top-1", _expected(facts["expected"])))
    rows.append(("not checked yet", "the images, files of weights and the devices: training begins with that"))
    for title, text in rows:
        yield from textwrap.wrap(
            text, WIDTH, initial_indent=f"  {title:15}  ", subsequent_indent=" " * 19, break_on_hyphens=False
        )
    if facts["milestones"]:
        yield ""
        yield from _milestones(facts["milestones"], facts["momentum_is"])


def _network(network: dict[str, Any]) -> str:
    if network["layers"] is None:
        return f"{network['blocks']}, of your own"
    kind = network["blocks"].replace("preact_", "pre-activation ")
    # Only the data tells the classes of many recipes.
    others = "" if network["classes"] else f" and {network['parameters_per_class']:,} for each class"
    return (
        f"{kind} {'-'.join(map(str, network['layers']))}, {network['parameters'] / 1e6:.3g} M parameters{others}, "
        f"{network['multiply_adds'] / 1e9:.3g} G multiply-adds at {network['pixels']} px"
    )


def _expected(expected: dict[str, Any]) -> str:
    if expected["top1"] is None:
        return f"unknown, {expected['measured']}" if expected["measured"] else "unknown"
    figure = with_spread(expected["top1"], expected["spread"], expected["seeds"])
    band = " ({:g} to {:g})".format(*expected["band"]) if expected["band"] else ", an estimate"
    changed = "; your changes may move it" if expected["changed"] else ""
    by = f"; {expected['evaluation']}" if expected["evaluation"] else ""
    return f"{figure}{band}, {expected['measured']}{changed}{by}"


def _milestones(milestones: list[dict[str, Any]], momentum: str) -> Iterator[str]:
    cycled = milestones[0]["momentum"] is not None
    yield f"  {'step':>8}  {'epoch':>7}  {'lr':>10}" + (f"  {momentum:>8}" if cycled else "")
    for at in milestones:
        second = f"  {at['momentum']:8.4f}" if cycled else ""
        yield f"  {at['step']:8}  {at['epoch']:7.2f}  {at['lr']:10.4g}{second}  {at['label']}"
