"""How things are told to people: durations, keys, what a mistyped word may have meant. Standard library only."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

_MOST_SHOWN = 3
"""Items of a mapping."""


def format_duration(seconds: float) -> str:
    """As 9s, 4m05s, 1h02m or 3d04h."""
    whole = round(max(0.0, seconds))
    for large, small, names in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if whole >= large:
            return f"{whole // large}{names[0]}{whole % large // small:02d}{names[1]}"
    return f"{whole}s"


def labels(keys: Iterable[str], with_group: Collection[str] = ()) -> dict[str, str]:
    """For each key its last parts, as many as tell it from the others; a variant's key is called by its group.

    with_group: groups of a recipe whose keys are always called by both. Trials are known by these names.
    """
    found = {}
    paths = {key: re.sub(r"(?<=.)\.(name|source)$", "", key).split(".") for key in keys}
    for key, path in paths.items():
        for length in range(2 if path[0] in with_group else 1, len(path) + 1):
            label = path[-length:]
            if not any(other[-length:] == label for name, other in paths.items() if name != key):
                break
        else:
            label = key.split(".")
        found[key] = ".".join(label)
    return found


def show(value: Any) -> str:
    """A value as a person would write it in a recipe; of a long mapping, as a pruned network's channels, the first."""
    if isinstance(value, Mapping) and len(value) > _MOST_SHOWN:
        first = json.dumps(dict(list(value.items())[:_MOST_SHOWN]), default=str)
        return f"{first[:-1]} and {len(value) - _MOST_SHOWN} more}}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def shown(value: Any) -> str:
    """A value as one writes it on the command line."""
    if isinstance(value, dict):
        return "'{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}'"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(str, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def near(word: str, names: Iterable[str], count: int = 3, cutoff: float = 0.6) -> list[str]:
    """The names that a mistyped word may have meant, the likeliest first; case and separators do not matter.

    A name that the word is a part of goes before those that look like it.
    """
    asked, plain = joined(word), {joined(name): name for name in names}
    if asked and asked in plain:
        return [plain[asked]]
    holding = sorted(
        (name for name in plain if _is_part(asked, name)), key=lambda name: (not name.startswith(asked), len(name))
    )
    if holding:
        return [plain[name] for name in holding[:count]]
    spelled = {name.lower().replace("-", "_"): name for name in plain.values()}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), spelled, n=count, cutoff=cutoff)
    return [spelled[name] for name in found]


def joined(name: str) -> str:
    """A name without case and separators: people write SE-ResNet-50, and files seresnet50."""
    return re.sub(r"[\W_]", "", name.lower())


def _is_part(word: str, name: str) -> bool:
    """Whether a name begins with a word, or holds a long one; not with a part of a number."""
    least = 3 if name.startswith(word) else 6
    return len(word) >= least and re.search(rf"{re.escape(word)}(?!(?<=\d)\d)", name) is not None


def did_you_mean(close: Sequence[str]) -> str:
    return f"did you mean {' or '.join(close)}?"


def suggestion(word: str, names: Iterable[str], otherwise: str = "there are:", count: int = 3) -> str:
    """What to say of a word that is none of the names: those it may have meant, or else all of them."""
    names = list(names)
    close = near(word, names, count)
    return did_you_mean(close) if close else f"{otherwise} {', '.join(names)}"


def unknown_words(words: Sequence[str], help_text: str) -> str:
    """What to say of words that a command does not take. help_text: the command's, which names its options."""
    word = next((word for word in words if word.startswith("-")), words[0])
    option, equals, value = word.partition("=")
    if close := near(option, re.findall(r"--[a-z-]+", help_text), 1):
        hint = did_you_mean(close)
    elif "KEY=VALUE" in help_text and option.startswith("-"):
        hint = f"keys of the recipe are written without dashes, as in {option.lstrip('-')}={value if equals else '...'}"
    else:
        hint = "--help says what there is"
    return f"{'unknown option' if word.startswith('-') else 'unexpected argument'} {word}: {hint}"


def plural(number: int, what: str) -> str:
    """As in `1 class`, `2 classes` and `1,000 images`."""
    ending = "" if number == 1 else "es" if what.endswith("s") else "s"
    return f"{number:,} {what}{ending}"


def listed(names: Sequence[object], most: int = 5) -> str:
    """The first few names for a message, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def table(
    columns: Mapping[str, Sequence[str]],
    width: int | None = None,
    dropped: Sequence[str] = (),
    least: Mapping[str, int] | None = None,
    left: Collection[str] = (),
) -> list[str]:
    """A line for each row under a line of headings.

    columns: heading -> cells. width: of the terminal, to be kept within; None: as wide as it is. dropped: headings that
    are left out where it is narrow, in this order. least: those that are narrowed then, the last one first, with the
    fewest characters of each; without any, lines that are still too long are cut. left: those that are set to the
    left; others are set to the right.
    """
    widths = {heading: max(map(len, [heading, *cells])) for heading, cells in columns.items()}
    least = {heading: min(number, widths[heading]) for heading, number in (least or {}).items() if heading in widths}
    # A character in the last column moves some terminals to the next line.
    room = math.inf if width is None else width - 1
    for heading in dropped:
        if sum((widths | least).values()) + 2 * (len(widths) - 1) > room:
            widths.pop(heading, None)
    for heading in reversed([heading for heading in least if heading in widths]):
        excess = sum(widths.values()) + 2 * (len(widths) - 1) - room
        widths[heading] = int(max(least[heading], min(widths[heading], widths[heading] - excess)))
    rows = [list(widths), *zip(*(columns[heading] for heading in widths), strict=True)]
    lines = (
        "  ".join(_cell(text, heading, widths[heading], left) for heading, text in zip(widths, row, strict=True))
        for row in rows
    )
    return [line.rstrip() if least or len(line.rstrip()) <= room else cut(line, int(room)) for line in lines]


def _cell(text: str, heading: str, width: int, left: Collection[str]) -> str:
    # Names often differ at their ends only.
    text = cut(text, width, middle=heading == "name")
    return text.ljust(width) if heading in left else text.rjust(width)


def cut(text: str, width: int, middle: bool = False) -> str:
    """A text of at most so many characters, with two dots where it is shortened: at its end, or in its middle."""
    if len(text) <= width:
        return text
    kept = width // 2 if middle else width - 2
    return f"{text[:kept]}..{text[len(text) - (width - 2 - kept) :]}"
