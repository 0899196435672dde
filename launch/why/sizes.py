"""The numbers of nodes at which a run stays the same."""

from __future__ import annotations

import contextlib

from launch.runs.sizes import find_sizes
from launch.why.facts import Facts
from slurm.profile import Profile


def sizes_up_to(facts: Facts, most: int) -> tuple[int, ...]:
    """Ascending; none where the run's recipe or job cannot be read."""
    if facts.recipe is None or facts.job is None:
        return ()
    with contextlib.suppress(ValueError):
        changes = {"nodes": f"1-{most}", "spare_nodes": 0}
        profile = Profile.model_validate({**facts.job.known_profile, **changes})
        return find_sizes(facts.recipe, profile, facts.run_dir).nodes
    return ()
