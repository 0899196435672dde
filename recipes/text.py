"""How things are told to people: durations, keys, what a mistyped word may have meant. Standard library only."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


def format_duration(seconds: float) -> str:
    """As 9s, 4m05s, 1h02m or 3d04h."""
    whole = round(max(0.0, seconds))
    for large, small, names in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if whole >= large:
            return f"{whole // large}{names[0]}{whole % large // small:02d}{names[1]}"
    return f"{whole}s"


def labels(keys: Iterable[str]) -> dict[str, str]:
    """For each key its last parts, as many as tell it from the others; a variant's key is called by its group."""
    found = {}
    paths = {key: re.sub(r"(?<=.)\.(name|source)$", "", key).split(".") for key in keys}
    for key, path in paths.items():
        for length in range(1, len(path) + 1):
            label = path[-length:]
            if not any(other[-length:] == label for name, other in paths.items() if name != key):
                break
        else:
            label = key.split(".")
        found[key] = ".".join(label)
    return found


def near(word: str, names: Iterable[str], count: int = 3, cutoff: float = 0.6) -> list[str]:
    """The names that a mistyped word may have meant, the likeliest first; case does not matter, nor - for _."""
    plain = {name.lower().replace("-", "_"): name for name in names}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), plain, n=count, cutoff=cutoff)
    return [plain[name] for name in found]


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


def listed(names: Sequence[object], most: int = 5) -> str:
    """The first few names for a message, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more
