"""What a run's network became outside of training, as HTML: each artefact beside the network it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from resnet.rundir.artefacts import read_records
from resnet.rundir.files import number
from resnet.tools.report.html import moment, table

_KINDS = {"export": "exported", "quantize": "quantised", "prune": "pruned"}


def artefact_table(run_dir: Path) -> str:
    """A row for each artefact, and for each further file of it that has the network; empty where there is none.

    Raises ValueError where a record is damaged.
    """
    rows = [_row(part) for record in read_records(run_dir) for part in (record, *_further(record))]
    what = (
        "<p class='soft'>Measured on validation images in turn with the network that it was made of, by one processor; "
        "in parentheses what changed.</p>"
    )
    heads = ["", "", "top-1", "top-5", "parameters", "MB", "GMACs", "ms, batch 1", "images/s, batch 32", "same answer"]
    shown = table([*heads, "images", "processor", "made"], rows, numbers=tuple(range(2, 11)))
    return what + shown if shown else ""


def _further(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The record as that of each file in `also`."""
    return [
        {**record, "name": f"{record['name']}: {file}", "measured": _mapping(found).get("measured")}
        for file, found in _mapping(record.get("also")).items()
    ]


def _row(record: Mapping[str, Any]) -> list[str]:
    measured = _mapping(record.get("measured"))
    before, after = (_numbers(measured.get(when)) for when in ("before", "after"))

    def cell(key: str, form: str, scale: float = 1.0) -> str:
        value, base = after.get(key), before.get(key)
        if value is None:
            return ""
        return f"{value / scale:{form}}" + (f" (x{value / base:.2f})" if base and value != base else "")

    def percent(key: str) -> str:
        value, base = after.get(key), before.get(key)
        if value is None:
            return ""
        return f"{value:.2f}%" + (f" ({value - base:+.2f})" if base is not None else "")

    agreement, images, made = (
        number(value) for value in (*map(measured.get, ("agreement", "images")), record.get("made"))
    )
    cells = [
        str(record["name"]),
        _KINDS.get(str(record.get("kind")), str(record.get("kind"))),
        percent("top1"),
        percent("top5"),
        cell("parameters", ",.0f"),
        cell("bytes", ".2f", 1e6),
        cell("macs", ".4g", 1e9),
        cell("latency_ms", ".2f"),
        cell("images_per_second", ".0f"),
        "" if agreement is None else f"{agreement:.2f}%",
        "" if images is None else f"{images:,.0f}",
        str(record.get("machine") or ""),
        "" if made is None else moment(made),
    ]
    return [escape(text) for text in cells]


def _numbers(figures: Any) -> dict[str, float]:
    """The numbers of a record's part, whatever else somebody has put there."""
    found = ((key, number(item)) for key, item in _mapping(figures).items())
    return {key: float(value) for key, value in found if value is not None}


def _mapping(part: Any) -> Mapping[str, Any]:
    return part if isinstance(part, Mapping) else {}
