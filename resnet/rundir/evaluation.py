"""evaluation.json: what the best evaluation of a run found, class by class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnet.rundir.files import read_json, to_json, write_atomic

NAME = "evaluation.json"
TEST = "test_evaluation.json"
"""The same of the final weights on the test images."""
FORMAT = 1
MOST_CLASSES_OF_A_MATRIX = 200


def write_evaluation(
    run_dir: Path, result: Mapping[str, Any], classes: list[str], step: int | None, name: str = NAME
) -> None:
    """evaluation.json: totals, each class's share, calibration, what is confused, and the most confident mistakes.

    result: of an evaluation (`resnet.tally.Tally.read`), its confusion a (C, C) tensor of counts, [true, predicted],
    its mistakes as `resnet.tally.described` gives them. classes: C names. The matrix itself is in it where it is of a
    readable size. Where there is no such matrix, since images have several labels, classes have no shares.
    """
    confusion: list[list[int]] = [] if result["confusion"] is None else result["confusion"].tolist()
    content = {"format": FORMAT} | {name: result[name] for name in ("top1", "top5", "loss", "ece", "samples")}
    content |= {"step": step, "classes": classes}
    content["per_class"] = [
        {"class": name, "samples": sum(row), "correct": row[index]}
        for index, (name, row) in enumerate(zip(classes, confusion, strict=bool(confusion)))
    ]
    content |= {"calibration": result["calibration"], "confused": result["confused"]}
    content["mistakes"] = result["mistakes"]
    if confusion and len(classes) <= MOST_CLASSES_OF_A_MATRIX:
        content["confusion"] = confusion
    write_atomic(run_dir / name, to_json(content))


def read_evaluation(run_dir: Path, name: str = NAME) -> dict[str, Any]:
    """The content of evaluation.json (or TEST); empty where there is none. Raises ValueError where it is damaged."""
    return read_json(run_dir / name)


def class_names(run_dir: Path) -> list[str]:
    """The classes in the order of the network's outputs. Raises ValueError where the run has not noted them."""
    found = read_evaluation(run_dir)
    if not found:
        raise ValueError(f"{run_dir} has no {NAME}, which names the classes: give a finished run")
    if not isinstance(found.get("classes"), list):
        raise ValueError(f"{run_dir / NAME} is damaged: it should name the classes")
    return [str(name) for name in found["classes"]]
