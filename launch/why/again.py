"""The command that goes on with a run, or trains it anew, with changes."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

from launch.why.facts import Facts
from recipes.text import shown
from resnet.rundir.find import ROOT


def with_changes(facts: Facts, *changes: str, ranks: int | None = None) -> str:
    """Go on with the run from its newest checkpoint with changes: to its recipe (`a.b=value`), or `slurm.KEY=value`.

    One that trains or waits is ended first, with a checkpoint. Of one that is finished the recipe is trained anew.
    ranks: of this machine, for a run that was not sent to Slurm; None: as many as before.
    """
    if facts.state == "finished":
        return _trained(facts, f"{facts.run_dir.name}-2", changes, ranks)
    if facts.job and all(change.startswith("slurm.") for change in changes):
        return _ended_first(facts) + " ".join(["launch retry", facts.typed, *map(shlex.quote, changes)])
    return _ended_first(facts) + _trained(facts, facts.run_dir.name, changes, ranks)


def made_anew(facts: Facts, *changes: str) -> str:
    """Train the run's recipe from the start, beside the run."""
    return _trained(facts, f"{facts.run_dir.name}-2", changes)


def on_cpu(facts: Facts) -> bool:
    """Whether the run trains on CPUs."""
    devices = facts.provenance.get("devices") or []
    return bool(devices) and all(device == "CPU" for device in devices)


def _trained(facts: Facts, name: str, changes: tuple[str, ...], ranks: int | None = None) -> str:
    root = facts.run_dir.parent
    place = [] if root.absolute() == Path(ROOT).absolute() else [f"run.root={root}"]
    words = [f"recipe={facts.run_dir}", *place, f"run.name={name}"]
    if facts.job is None:
        count = ranks or int(facts.provenance.get("world_size") or 1)
        several = ["--cpu-ranks", str(count)] if count > 1 and on_cpu(facts) else []
        return shlex.join(["launch", "local", *several, *words, *changes])
    given = {change.partition("=")[0] for change in changes}
    profile = [word for word in _profile_words(facts) if word.partition("=")[0] not in given]
    return shlex.join(["launch", "submit", *words, f"cluster={facts.job.cluster}", *profile, *changes])


def _profile_words(facts: Facts) -> list[str]:
    """What the run's profile was changed in when it was sent."""
    from slurm.profile import load_profile

    assert facts.job is not None
    with contextlib.suppress(ValueError, OSError):
        before = load_profile(facts.job.cluster).model_dump(mode="json")
        sent = facts.job.known_profile
        return [f"slurm.{key}={shown(value)}" for key, value in sent.items() if before.get(key) != value]
    return []


def _ended_first(facts: Facts) -> str:
    if facts.state not in ("running", "queued"):
        return ""
    return f"launch cancel {facts.typed} && launch status {facts.typed} --watch && "
