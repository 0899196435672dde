"""Packages that only some commands need."""

from __future__ import annotations

import importlib.util


def need(package: str, extra: str) -> None:
    """Raise ValueError, which says what to install, where a package is not there. extra: of this program, with it."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{package} is not installed: pip install 'resnet-launch[{extra}]'")
