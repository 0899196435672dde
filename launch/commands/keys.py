"""`launch keys`: the keys of recipes and of clusters, with type, default and meaning."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence

from recipes.describe import Key, keys_of, recipe_keys
from recipes.text import did_you_mean, near
from slurm.profile import Profile

WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "wanted", nargs="*", metavar="KEY", help="a key, a group of keys, or a word to look for (default: all of them)"
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects")


def run(arguments: argparse.Namespace) -> None:
    everything = [*recipe_keys(), *keys_of(Profile, "slurm.")]
    found = [key for key in everything if not arguments.wanted]
    for wanted in arguments.wanted:
        found += [key for key in search(everything, wanted) if key not in found]
    if arguments.json:
        print(json.dumps([key._asdict() for key in found], indent=1))
    elif len({key.name for key in found}) == 1:
        print("\n".join(line for key in found for line in _in_full(key)))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
        print("\n".join(_listed(found, width)))


def search(keys: Sequence[Key], wanted: str) -> list[Key]:
    """The key of that name; else those of the group; else those in whose name or meaning the word is.

    Raises ValueError, with names that are near, where there is none.
    """
    wanted = wanted.rstrip(".=")
    for found in (
        [key for key in keys if key.name == wanted and key.kind != "a group of keys"],
        [key for key in keys if key.name.startswith(f"{wanted}.")],
        [key for key in keys if wanted.lower() in f"{key.name} {key.meaning} {key.kind}".lower()],
    ):
        if found:
            return found
    leaves = {key.name if "." in wanted else key.name.rpartition(".")[2]: key.name for key in reversed(keys)}
    close = [leaves[name] for name in near(wanted, leaves)]
    raise ValueError(f"no key {wanted!r}: {did_you_mean(close) if close else 'launch keys lists them all'}")


def _in_full(key: Key) -> Iterator[str]:
    yield key.name
    told = {
        "takes": key.kind,
        "default": key.default or "none: it has to be given",
        "only with": ", ".join(key.variants),
    }
    for label, text in told.items():
        if text:
            yield from textwrap.wrap(text, WIDTH, initial_indent=f"  {label:10}", subsequent_indent=" " * 12)
    yield from textwrap.wrap(key.meaning, WIDTH, initial_indent="  ", subsequent_indent="  ")


def _listed(keys: Sequence[Key], width: int) -> Iterator[str]:
    """A line of facts and a line of meaning for each; of the same key with several types, one after the other."""
    group = None
    for key in keys:
        if (now := key.name.partition(".")[0] if "." in key.name else "") != group:
            group = now
            yield ""
        default = f"  ({key.default})" if key.default else ""
        only = f"  with {', '.join(key.variants)}" if key.variants else ""
        yield from textwrap.wrap(f"{key.name}: {key.kind}{default}{only}", width - 1, subsequent_indent="    ")
        yield from textwrap.wrap(key.meaning, width - 1, initial_indent="    ", subsequent_indent="    ")
