"""Pieces of an HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from resnet.tools.report.style import SCRIPT, STYLE

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What a browser holds the page to: nothing is fetched."""


def page(title: str, sections: Iterable[str], script: str = "") -> str:
    """A whole page. title: plain text; sections: HTML; script: JavaScript to run beside that of the charts."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    head += f"<title>{escape(title)}</title><style>{STYLE}</style>"
    body = f"{''.join(sections)}<script>{SCRIPT}{script}</script>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def to_script(data: Any) -> str:
    """JSON that stays inside of a script element, whatever the texts in it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # "</script" ends the element, and "<!--" would hide its end.
    return text.replace("<", "\\u003c")


def section(title: str, content: str) -> str:
    """content: HTML; empty: no section."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def facts(values: Iterable[tuple[str, str, str]]) -> str:
    """Cards beside one another: a value in large type, what it is, and "good", "bad" or "". Plain text."""
    cells = "".join(
        f"<div class='fact'><b class='{mark}'>{escape(value)}</b><span>{escape(what)}</span></div>"
        for value, what, mark in values
    )
    return f"<div class='facts'>{cells}</div>" if cells else ""


def table(header: Iterable[str], rows: Iterable[Iterable[str]], numbers: tuple[int, ...] = (), style: str = "") -> str:
    """A table that scrolls within its card where it is too wide; no rows: no table.

    header and cells: HTML. numbers: columns that are set to the right.
    """

    def line(cells: Iterable[str], begin: str, end: str) -> str:
        marks = (' class="number"' if index in numbers else "" for index in itertools.count())
        return "".join(f"<{begin}{mark}>{cell}</{end}>" for mark, cell in zip(marks, cells, strict=False))

    body = "".join(f"<tr>{line(row, 'td', 'td')}</tr>" for row in rows)
    kind = f' class="{style}"' if style else ""
    head = line(header, 'th scope="col"', "th")
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        if body
        else ""
    )


def mapping(values: Mapping[str, Any]) -> str:
    """Two columns of plain values; those that are empty are left out."""
    rows = "".join(
        f'<tr><th scope="row" class="label">{escape(str(key).replace("_", " "))}</th>'
        f"<td>{escape(show(value))}</td></tr>"
        for key, value in values.items()
        if value not in (None, "", [], {})
    )
    return f'<table class="mapping">{rows}</table>' if rows else ""


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


def bar(percent: float) -> str:
    """A bar that fills so much of its cell."""
    return f'<i class="bar" style="width:{percent:.1f}%"></i>'


def pictures(tiles: Iterable[tuple[bytes, str, str]]) -> str:
    """Small JPEG images beside one another, embedded: each with a caption and what it shows where it is not seen."""
    cells = "".join(
        f'<figure><img alt="{escape(alternative)}" title="{escape(alternative)}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">{escape(caption)}</figure>'
        for data, caption, alternative in tiles
    )
    return f'<div class="pictures">{cells}</div>' if cells else ""


def moment(seconds: float) -> str:
    """A unix time in local time, to the minute; empty for one that no calendar has."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return ""


def counted(names: Iterable[str]) -> str:
    """Equal names once, with their number."""
    names = list(names)
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
