"""Packages that only some commands need, and that `pip install` brings when asked for them."""

from __future__ import annotations

from importlib.util import find_spec


def need(extra: str, *packages: str) -> None:
    """Raise ValueError, with the line that installs them, where packages are not there.

    extra: of this program's optional dependencies, as in pyproject.toml. packages: names as they are imported.
    """
    if missing := [package for package in packages if find_spec(package) is None]:
        raise ValueError(f"this needs {' and '.join(missing)}: pip install 'resnet-launch[{extra}]'")
