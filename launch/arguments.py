"""The words of a command line, sorted: what to train, where, and how the cluster's profile is changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

WORDS_USAGE = "[KEY=VALUE ...] [slurm.KEY=VALUE ...]"


class Words(NamedTuple):
    recipe: list[str]
    """For `recipes.load`."""
    cluster: str | None
    slurm: list[str]
    """Changes to the profile, for `slurm.profile.load_profile`."""


def split_words(words: Iterable[str]) -> Words:
    """Sort words by what they are of. Raises ValueError where two clusters are given, or slurm keys without one."""
    recipe, clusters, slurm = [], [], []
    for word in words:
        key, _, value = word.partition("=")
        if key == "cluster":
            clusters.append(value)
        elif key.startswith("slurm."):
            slurm.append(word)
        else:
            recipe.append(word)
    if len(clusters) > 1:
        raise ValueError(f"give one cluster=NAME, not {' and '.join(clusters)}")
    if slurm and not clusters:
        raise ValueError(f"{slurm[0]} changes a cluster's profile: give cluster=NAME too")
    return Words(recipe, clusters[0] if clusters else None, slurm)
