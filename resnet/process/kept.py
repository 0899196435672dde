"""Answers that are kept while a command goes on. Only the standard library, Python 3.9."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """What was asked once, by what it was asked of; nothing is kept outside of `within`."""

    def __init__(self) -> None:
        self.answers: dict[Any, T] | None = None

    @contextlib.contextmanager
    def within(self) -> Iterator[None]:
        """Keep answers, and forget them at the end; where they are kept already, they are the same ones."""
        before, self.answers = self.answers, {} if self.answers is None else self.answers
        try:
            yield
        finally:
            self.answers = before
