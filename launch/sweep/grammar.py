"""The values that a word of a sweep's command line stands for: commas, `range`, `log` and `linspace`.

Values stay the text that a recipe's overrides are written in, and commas within brackets, braces, parentheses and
quotes belong to the value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from recipes.errors import COMMAND_LINE, RecipeError
from recipes.keys import takes_text

MOST_VALUES = 100_000
"""Values that one `range`, `log` or `linspace` may have."""


def expand(key: str, text: str) -> list[str]:
    """The values that the text after `key=` stands for. Raises RecipeError that says what would be right."""
    try:
        parts = split_commas(text)
        if len(parts) > 1 and not all(part.strip() for part in parts):
            raise RecipeError("there is nothing before or after a comma (for no value write null)")
        return [value for part in parts for value in _call(key, part, alone=len(parts) == 1)]
    except RecipeError as error:
        raise RecipeError(f"cannot read {key}={text} ({COMMAND_LINE}): {error}") from None


_CLOSING = {"(": ")", "[": "]", "{": "}"}
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def split_commas(text: str) -> list[str]:
    """Split at the commas that are outside of brackets, braces, parentheses and quotes."""
    parts, start, position, before, open_at = [], 0, 0, "", []
    while position < len(text):
        character = text[position]
        if character in "\"'" and before in ("", *",:([{"):
            quoted = _QUOTED.match(text, position)
            if quoted:
                position = quoted.end() - 1
            elif "," in text:
                raise RecipeError(f"the quote {character} is not closed")
        elif character in _CLOSING:
            open_at.append(character)
        elif open_at and character == _CLOSING[open_at[-1]]:
            open_at.pop()
        elif character == "," and not open_at:
            parts.append(text[start:position])
            start = position + 1
        before = before if character.isspace() else character
        position += 1
    if open_at and "," in text:
        raise RecipeError(f"{open_at[-1]} is not closed by {_CLOSING[open_at[-1]]}")
    return [*parts, text[start:]]


def _call(key: str, part: str, alone: bool) -> list[str]:
    """The values of one part: those of range, log or linspace, or the part itself."""
    found = re.fullmatch(r"([A-Za-z_]\w*)\((.*)\)", part.strip(), re.DOTALL)
    if found and found[1] in FUNCTIONS:
        form, function = FUNCTIONS[found[1]]
        try:
            arguments = [Decimal(argument.strip()) for argument in found[2].split(",")]
            if not all(argument.is_finite() and abs(argument.adjusted()) < 300 for argument in arguments):
                raise InvalidOperation
            return function(*arguments)
        except (InvalidOperation, TypeError):
            raise RecipeError(f"{found[0]} must have the form {form}, of numbers") from None
    if found and not takes_text(key):
        raise RecipeError(f"there is no {found[1]}(...): use {', '.join(form for form, _ in FUNCTIONS.values())}")
    return [part if alone else part.strip()]


def spaced(start: Decimal, stop: Decimal | None = None, step: Decimal | None = None) -> list[str]:
    """From start up to, not including, stop, as Python's and Hydra's range do; floats without accumulated error."""
    if stop is None:
        start, stop = Decimal(0), start
    step = Decimal(1) if step is None else step
    if step == 0:
        raise RecipeError("the step of range must not be 0")
    number = _checked(math.ceil((Fraction(stop) - Fraction(start)) / Fraction(step)), "range")
    if number < 1:
        raise RecipeError(f"range({start},{stop},{step}) is empty: it goes from its start up to below its stop")
    return [number_text(start + index * step) for index in range(number)]


def _log_spaced(low: Decimal, high: Decimal, number: Decimal) -> list[str]:
    if low <= 0 or high <= 0:
        raise RecipeError("log(a,b,n) needs a and b above 0")
    first, width, gaps = math.log(low), math.log(high) - math.log(low), _points(number, "log") - 1
    inner = [float(f"{math.exp(first + width * index / gaps):.12g}") for index in range(1, gaps)]
    return [number_text(value) for value in (low, *inner, high)]


def _linearly_spaced(low: Decimal, high: Decimal, number: Decimal) -> list[str]:
    gaps = _points(number, "linspace") - 1
    exact = [Fraction(low) + (Fraction(high) - Fraction(low)) * index / gaps for index in range(1, gaps)]
    inner = [int(value) if value.denominator == 1 else float(f"{float(value):.12g}") for value in exact]
    return [number_text(value) for value in (low, *inner, high)]


def _points(number: Decimal, function: str) -> int:
    if number < 2 or number != int(number):
        raise RecipeError(f"{function}(a,b,n) needs a whole number n of 2 or more: both ends count")
    return _checked(int(number), function)


def _checked(number: int, function: str) -> int:
    if number > MOST_VALUES:
        raise RecipeError(f"{function} has {number} values: at most {MOST_VALUES}")
    return number


FUNCTIONS: dict[str, tuple[str, Callable[..., list[str]]]] = {
    "range": ("range(start,stop,step)", spaced),
    "log": ("log(a,b,n)", _log_spaced),
    "linspace": ("linspace(a,b,n)", _linearly_spaced),
}
"""By name: the form to write, and the function from numbers to values."""


def number_text(value: Decimal | float) -> str:
    """The shortest text that is read back as the number: 0.1, 3, 1e-05."""
    if abs(value) < 10**19 and value == int(value):
        return str(int(value))
    return repr(float(value))
