"""What is wrong with a recipe, a line a mistake: the key, its value, where it came from, what would be right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from recipes.keys import SIMILAR, SIMILAR_VALUES, all_keys, names_of, parents, variants
from recipes.nested import NOTHING, value_at
from recipes.text import did_you_mean, near, show

COMMAND_LINE = "command line"
_MOST_LISTED = 20
"""Words, where it is known which of them may be meant."""


class RecipeError(ValueError):
    """A recipe that cannot be used; the message lists every mistake, one a line."""


def location_of(problem: Any, values: dict[str, Any]) -> list[Any]:
    """Where one of pydantic's errors is, without the variants and members of unions that it adds."""
    location = list(problem["loc"])
    if len(location) > 1 and location[0] in variants() and location[1] in variants()[location[0]][1]:
        del location[1]
    if problem["type"].startswith("union_tag"):
        return [*location, variants()[location[0]][0]]
    if problem["type"] != "missing":
        # As in activation_args.slope.float.
        while location and value_at(values, location) is NOTHING:
            location.pop()
    return location


def explain(problem: Any, values: dict[str, Any], origins: Mapping[str, str]) -> str:
    """One line for one of pydantic's errors."""
    kind, location = problem["type"], location_of(problem, values)
    key = ".".join(str(part) for part in location)
    origin = next((f" ({origins[k]})" for k in parents(key) if k in origins), "")
    if kind == "extra_forbidden":
        return f"unknown key {key}{origin}{_hint_for_key(key, values)}"
    given = value_at(values, location)
    if kind == "missing" and isinstance(location[-1], int):
        several = key.rpartition(".")[0]
        return f"{several}={show(value_at(values, location[:-1]))}{origin}: takes more items"
    if kind == "missing":
        return f"{key} is missing: {dict(all_keys(values)).get(key) or 'the recipe needs it'}"
    if given is NOTHING:
        return f"{key} is missing: one of {', '.join(sorted(variants()[location[0]][1]))}"
    if unspaced := re.match(r"([\w-]+):(\S+)$", str(location[-1])) if given is None and location else None:
        group = ".".join(str(part) for part in location[:-1])
        return f"{key}{origin} has no value: write {group}.{unspaced[1]}={unspaced[2]}, or a space after the colon"
    return _explain_value(problem, key, given, origin)


def _explain_value(problem: Any, key: str, given: Any, origin: str) -> str:
    kind, what = problem["type"], f"{key}={show(given)}{origin}"
    sweep = isinstance(given, str) and "," in given and COMMAND_LINE in origin
    also = "; several values at once are a sweep (launch sweep)" if sweep else ""
    if kind.startswith("union_tag"):
        return f"{what}{_none_of(given, sorted(variants()[key.partition('.')[0]][1]))}{also}"
    if kind == "literal_error":
        allowed = [word.strip("'") for word in re.split(r", | or ", problem["ctx"]["expected"])]
        return f"{what}{_none_of(given, allowed)}{also}"
    if kind == "value_error":
        message = wording(problem)
        if isinstance(given, dict):
            return f"{key}{origin} {message}" if key else message
        return f"{what}: {message}{also}"
    if key.startswith("model.channels.") and isinstance(given, dict):
        return f"{what}: {_in_braces(key, given)}"
    if kind in ("model_type", "model_attributes_type"):
        hint = _hint_for_group(key, given)
        return f"{what} must be a group of keys{hint}{also}"
    if kind == "string_type" and not isinstance(given, (dict, list)):
        also = f", in quotes: {key}='\"{show(given)}\"'" if COMMAND_LINE in origin else ", in quotes"
    return f"{what}: {wording(problem)}{also}"


def _in_braces(key: str, given: Any) -> str:
    """How a place inside a block is written, where its dots were taken for groups."""
    place = key.removeprefix("model.channels.")
    while isinstance(given, dict) and given:
        name, given = next(iter(given.items()))
        place += f".{name}"
    return f"places with dots are written in braces, as 'model.channels={{{place}: {show(given)}}}'"


_WORDINGS = {
    "int_": "must be a whole number",
    "float_": "must be a number",
    "finite_number": "must be a number, and finite",
    "bool_": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list, as [1, 2]",
    "tuple_type": "must be a list, as [1, 2]",
    "dict_type": "must be a group of keys",
    "greater_than_equal": "must be {ge} or more",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be {le} or less",
    "less_than": "must be less than {lt}",
    "too_short": "takes at least {min_length} items, not {actual_length}",
    "too_long": "takes at most {max_length} items, not {actual_length}",
}
"""By how pydantic calls a kind of error, or several."""


def wording(problem: Any) -> str:
    """What is wrong with a value by one of pydantic's errors, as people say it."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if (pattern := next((text for name, text in _WORDINGS.items() if kind.startswith(name)), None)) is None:
        return f"{problem['msg'][0].lower()}{problem['msg'][1:]}"
    return pattern.format(
        **{key: f"{value:g}" if isinstance(value, float) else value for key, value in context.items()}
    )


def _hint_for_group(key: str, given: Any) -> str:
    if given is True:
        return f": {key}={{}} takes its defaults"
    tag = f"{key}.{variants()[key][0] if key in variants() else 'name'}"
    if not isinstance(given, str) or not (names := names_of(tag)):
        return ""
    meant = given if given in names else next(iter(near(given, names, 1)), given)
    return f": did you mean {tag}={meant}?"


def _none_of(given: Any, allowed: list[str]) -> str:
    meant = re.sub("^wrn", "wide_resnet", given.lower()) if isinstance(given, str) else ""
    close = near(meant, allowed, 2) if meant else []
    if isinstance(given, str) and (same := SIMILAR_VALUES.get(given)) in allowed:
        close = [same]
    if close and len(allowed) > _MOST_LISTED:
        return f" is not known: {did_you_mean(close)}"
    return f" is none of {', '.join(allowed)}" + (f": {did_you_mean(close)}" if close else "")


def _hint_for_key(key: str, values: dict[str, Any]) -> str:
    everywhere = dict(all_keys(values))
    if key in everywhere:
        return ": in a file its groups are nested, not written with dots"
    if key in SIMILAR:
        return f": {did_you_mean([SIMILAR[key]])}"
    group, _, rest = key.partition(".")
    tag, by_name = variants().get(group, ("", {}))
    if having := [name for name, variant in by_name.items() if rest in variant.model_fields]:
        return f": {group}.{tag}={show(values[group][tag])} has no such key ({', '.join(having)} would)"
    parent, _, leaf = key.rpartition(".")
    same_group = {k.rpartition(".")[2]: k for k in everywhere if k.rpartition(".")[0] == parent}
    if not parent and (elsewhere := _in_variants(key)):
        return f": {did_you_mean(elsewhere)}"
    close = [same_group[name] for name in near(leaf, same_group, 1)]
    close += [k for k in everywhere if k.rpartition(".")[2] == leaf and k not in close]
    close = close or near(key, everywhere, 2, cutoff=0.7)
    if close:
        return f": {did_you_mean(close[:3])}"
    if parent and same_group:
        return f": {parent} has {', '.join(sorted(same_group))}"
    return ""


def _in_variants(leaf: str) -> list[str]:
    """The keys of that name in the groups with variants."""
    return [
        f"{group}.{leaf}"
        for group, (_, by_name) in variants().items()
        if any(leaf in variant.model_fields for variant in by_name.values())
    ]
