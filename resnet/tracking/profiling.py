"""torch.profiler over a few chosen steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from resnet.run_hooks import RunHooks
    from resnet.trainer import Trainer


@contextlib.contextmanager
def profile_steps(trainer: Trainer) -> Iterator[None]:
    """Record the recipe's `profile` steps into profile/rank-R.json of the run directory; nothing where it has none."""
    chosen = trainer.recipe.profile
    if chosen is None:
        yield
        return
    hooks: RunHooks = trainer.hooks  # pyright: ignore[reportAssignmentType]
    file = hooks.run_dir / "profile" / f"rank-{trainer.rank}.json"
    file.parent.mkdir(exist_ok=True)
    schedule = torch.profiler.schedule(wait=max(chosen.start - 1, 0), warmup=1, active=chosen.steps, repeat=1)
    profile = torch.profiler.profile(schedule=schedule, on_trace_ready=lambda p: p.export_chrome_trace(str(file)))
    after_step = hooks.after_step

    def step_and_tell() -> bool:
        profile.step()
        return after_step()

    hooks.after_step = step_and_tell
    with profile:
        yield
