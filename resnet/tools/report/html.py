"""Pieces of an HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6675; --line: #dfe3ea; --card: #fff; --page: #f5f6f8;
  --good: #1b7f4b; --bad: #b3401f; --bar: #4c78a8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --line: #333b48; --card: #1d232d;
  --page: #14181f; --good: #5fc48f; --bad: #ef8a68; --bar: #6d9bd0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1020px; padding: 28px 20px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 26px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 10px; font-size: 17px; }
p { margin: 4px 0; }
section { margin-top: 18px; padding: 18px 20px; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 13px; }
th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
.soft { color: var(--soft); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px; margin-top: 18px; }
.fact { padding: 12px 16px; border: 1px solid var(--line); border-radius: 10px;
 background: var(--card); }
.fact b { display: block; font-size: 23px; line-height: 1.3; }
.fact span { color: var(--soft); font-size: 13px; }
.state { display: inline-block; margin-left: 8px; padding: 1px 10px; border-radius: 20px; background: var(--soft);
  color: var(--card); font-size: 13px; vertical-align: middle; }
.state.finished { background: var(--good); } .state.failed { background: var(--bad); }
.good { color: var(--good); } .bad { color: var(--bad); }
.bar { display: block; height: 10px; margin-top: 6px; border-radius: 3px; background: var(--bar); }
.wide { width: 280px; }
.label { width: 190px; color: var(--soft); }
img { display: block; max-width: 100%; margin: 0 auto; border-radius: 6px; background: #fff; }
img.square { max-height: 760px; }
pre { margin: 4px 0 10px; padding: 10px 12px; border-radius: 6px; background: var(--page); white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: 13px; }
"""


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page. title: plain text; sections: HTML."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(sections)}</body></html>\n'


def section(title: str, content: str) -> str:
    """content: HTML; empty: no section."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def table(header: Iterable[str], rows: Iterable[Iterable[str]], numbers: tuple[int, ...] = ()) -> str:
    """header and cells: HTML; no rows: no table. numbers: columns that are set to the right."""

    def line(cells: Iterable[str], tag: str) -> str:
        marks = (' class="number"' if index in numbers else "" for index in range(1000))
        return (
            "<tr>" + "".join(f"<{tag}{mark}>{cell}</{tag}>" for mark, cell in zip(marks, cells, strict=False)) + "</tr>"
        )

    body = "".join(line(row, "td") for row in rows)
    return f"<table>{line(header, 'th')}{body}</table>" if body else ""


def mapping(values: Mapping[str, Any]) -> str:
    """Two columns of plain values; those that are empty are left out."""
    rows = "".join(
        f"<tr><td class='label'>{escape(str(key).replace('_', ' '))}</td><td>{escape(show(value))}</td></tr>"
        for key, value in values.items()
        if value not in (None, "", [], {})
    )
    return f"<table>{rows}</table>" if rows else ""


def show(value: Any) -> str:
    """A value as plain text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 100_000 else str(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(show(item) for item in value)
    return str(value)


def picture(path: Path, alternative: str, style: str = "") -> str:
    """A PNG file, embedded."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img class="{style}" alt="{escape(alternative)}" src="data:image/png;base64,{data}">'


def moment(seconds: float) -> str:
    """A unix time in local time, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def counted(names: Iterable[str]) -> str:
    """Equal names once, with their number."""
    names = list(names)
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
