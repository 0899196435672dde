"""Sweeps from the words of a command line; a word gives one value or several, as in `seed=range(0,3)`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from launch.sweep.grammar import expand
from launch.sweep.sweep_types import Distribution, Sweep, Values
from recipes.errors import COMMAND_LINE, RecipeError
from recipes.keys import takes_text
from recipes.library import all_names
from recipes.load import split_argument
from recipes.schema.recipe import NOT_TRAINING


def from_words(words: Iterable[str]) -> Sweep:
    """The grid that a command line stands for. Raises RecipeError with all mistakes at once."""
    given, notes = read_words(words)
    return Sweep("grid", *parted(given), notes=notes)


def parted(
    given: Mapping[str, Values | Distribution],
) -> tuple[dict[str, str], dict[str, Values | Distribution], tuple[str, ...]]:
    """What is fixed, what is swept, and the order of the keys. Raises RecipeError where no recipe is among them."""
    if "recipe" not in given:
        raise RecipeError(f"give recipe=NAME, or several as in recipe=A,B; there are: {', '.join(all_names())}")
    alone = {key: v.texts[0] for key, v in given.items() if isinstance(v, Values) and len(v.texts) == 1}
    return alone, {key: values for key, values in given.items() if key not in alone}, tuple(given)


def read_words(words: Iterable[str]) -> tuple[dict[str, Values], tuple[str, ...]]:
    """The values that each key is given on a command line, and notes. Raises RecipeError with all mistakes at once."""
    given: dict[str, Values] = {}
    notes, mistakes = [], []
    for word in words:
        try:
            key, text = split_argument(word)
            texts = expand(key, text)
            values = tuple(dict.fromkeys(texts))
            if len(values) > 1:
                refuse_without_effect(key, f"{key}={text} ({COMMAND_LINE})")
            if key in given and (key == "recipe" or len(values) > 1 or len(given[key].texts) > 1):
                raise RecipeError(f"{key} is given twice: give all its values at once, as in {key}=A,B")
        except RecipeError as error:
            mistakes.append(str(error))
            continue
        if len(values) < len(texts):
            notes.append(f"{key}={text}: a value is given twice and tried once")
        given.pop(key, None)
        given[key] = Values(values)
    if mistakes:
        raise RecipeError("\n".join(dict.fromkeys(mistakes)))
    return given, tuple(notes)


def refuse_without_effect(key: str, what: str) -> None:
    """Raise RecipeError for a key whose values would all make the same training."""
    if key.partition(".")[0] in NOT_TRAINING:
        quoted = ", or in quotes if the comma is text, as in '\"a, b\"'" if takes_text(key) else ""
        raise RecipeError(f"{what}: {key} does not change the training; give one value{quoted}")
