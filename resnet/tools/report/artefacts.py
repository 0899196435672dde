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
    records = read_records(run_dir)
    rows = [_row(part) for record in records for part in (record, *_further(record))]
    processors = ", ".join(dict.fromkeys(str(record["machine"]) for record in records if record.get("machine")))
    what = "Each in turn with the network that it was made of, on the same validation images; below it how that changed"
    note = f"<p class='soft'>{escape(what + (f'. {processors}' if processors else ''))}.</p>"
    heads = ["", "top-1", "top-5", "M params", "MB", "GMACs", "ms at 1", "img/s at 32", "same answer", "images"]
    shown = table(heads, rows, numbers=tuple(range(1, 10)))
    return note + shown if shown else ""


def _further(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The record as that of each file in `also`."""
    return [
        {**record, "name": f"{record['name']}: {file}", "measured": _mapping(found).get("measured")}
        for file, found in _mapping(record.get("also")).items()
    ]


def _row(record: Mapping[str, Any]) -> list[str]:
    measured = _mapping(record.get("measured"))
    before, after = (_numbers(measured.get(when)) for when in ("before", "after"))

    def times(key: str, form: str, scale: float = 1.0) -> str:
        value, base = after.get(key), before.get(key)
        return "" if value is None else _cell(f"{value / scale:{form}}", f"x{value / base:.2g}" if base else "")

    def percent(key: str) -> str:
        value, base = after.get(key), before.get(key)
        return "" if value is None else _cell(f"{value:.2f}%", "" if base is None else f"{value - base:+.2f}")

    agreement, images, made = (
        number(value) for value in (*map(measured.get, ("agreement", "images")), record.get("made"))
    )
    kind = _KINDS.get(str(record.get("kind")), str(record.get("kind")))
    return [
        _cell(str(record["name"]), kind if made is None else f"{kind} {moment(made)}"),
        percent("top1"),
        percent("top5"),
        times("parameters", ".2f", 1e6),
        times("bytes", ".2f", 1e6),
        times("macs", ".4g", 1e9),
        times("latency_ms", ".2f"),
        times("images_per_second", ".0f"),
        "" if agreement is None else f"{agreement:.2f}%",
        "" if images is None else f"{images:,.0f}",
    ]


def _cell(value: str, below: str) -> str:
    return f"{escape(value)}<br><span class='soft'>{escape(below)}</span>"


def _numbers(figures: Any) -> dict[str, float]:
    """The numbers of a record's part, whatever else somebody has put there."""
    found = ((key, number(item)) for key, item in _mapping(figures).items())
    return {key: float(value) for key, value in found if value is not None}


def _mapping(part: Any) -> Mapping[str, Any]:
    return part if isinstance(part, Mapping) else {}
