"""On how many nodes a run can be trained without becoming another: its sizes, chosen where it is sent from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recipes.plan import Plan, either, make_plan, samples_known, sizes_of
from recipes.schema.recipe import Recipe
from resnet.rundir.provenance import kept_plan
from slurm.profile import Profile

SMALLER = 4
"""By how much a micro-batch may be smaller that is proposed: BatchNorm's statistics get worse with it."""


class Sizes(NamedTuple):
    """The numbers of nodes on which a run makes the same steps of the same micro-batches."""

    nodes: tuple[int, ...]
    """Ascending."""
    plan: Plan
    """On the most of them. Where the recipe does not tell the number of samples, of one step an epoch."""
    micro_batch: int | None
    """That the ranks are told; None: of a run on one number of nodes, whose ranks find it by the recipe."""

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The least and the most of each range without gaps, as Slurm is asked for them; the largest first."""
        return neighbours(self.nodes)[::-1]

    def in_one_job(self) -> str:
        """All of them, as `slurm.nodes` takes them. Raises ValueError where a job would have to leave some out."""
        if len(self.ranges) == 1:
            return "{}-{}".format(*self.ranges[0])
        least, most = max(self.ranges, key=lambda found: found[1] - found[0])
        alone = f", or slurm.nodes={least}-{most}" if least < most else ""
        raise ValueError(
            f"slurm.nodes: the batch divides over {either(*self.nodes)} nodes, and one job takes no range with gaps "
            f"(launch submit sends several): give one of these numbers{alone}"
        )

    @property
    def of_job(self) -> dict[str, Any]:
        """What a job of the run is told of them: fields of a `Submission`."""
        return {"sizes": self.nodes, "micro_batch": self.micro_batch} if self.micro_batch else {}


def neighbours(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges without gaps: 1, 2, 4, 8 as 1-2, 4-4 and 8-8."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found


def find_sizes(recipe: Recipe, profile: Profile, run_dir: Path | None = None) -> Sizes:
    """The sizes of a run within `slurm.nodes`; one with checkpoints in `run_dir` keeps their micro-batch.

    Raises ValueError, with what would do, where its batch divides over none of them, and where the recipe's network
    would be another on each.
    """
    _check_devices(recipe, profile)
    kept = kept_plan(run_dir).get("micro_batch") if run_dir else None
    samples = samples_known(recipe.data) or recipe.batch_size
    if not profile.is_range:
        return Sizes((profile.most_nodes,), make_plan(recipe, samples, profile.ranks, kept), None)
    if recipe.model.sync_batchnorm:
        raise ValueError(
            f"slurm.nodes={profile.nodes}: model.sync_batchnorm=true normalises over all ranks, so that each number of "
            f"nodes would train another model: give one, as slurm.nodes={profile.most_nodes}"
        )
    ranks = profile.local_ranks
    try:
        micro_batch, fitting = sizes_of(recipe, (ranks * nodes for nodes in _asked(profile)), kept)
    except ValueError as error:
        others = " or ".join(str(nodes) for nodes in _nearest(recipe, profile, kept))
        also = f"\nor slurm.nodes={others}" if others else ""
        raise ValueError(f"slurm.nodes={profile.nodes}: none of these numbers fits. {error}{also}") from None
    plan = make_plan(recipe, samples, fitting[-1], micro_batch)
    return Sizes(tuple(count // ranks for count in fitting), plan, micro_batch)


def others_left_out(recipe: Recipe, profile: Profile, sizes: Sizes) -> str | None:
    """A line on the numbers of nodes that are asked for and do not fit, where smaller micro-batches fit more of them.

    Of a new run: one with checkpoints keeps its micro-batch.
    """
    if sizes.micro_batch is None or len(sizes.nodes) == len(_asked(profile)):
        return None
    most, best = sizes.nodes, None
    for limit in range(sizes.micro_batch - 1, max(2, sizes.micro_batch // SMALLER) - 1, -1):
        try:
            found = find_sizes(recipe.model_copy(update={"max_batch_per_device": limit}), profile)
        except ValueError:
            continue
        if len(found.nodes) > len(most):
            most, best = found.nodes, found.micro_batch
    return f"max_batch_per_device={best} would fit {either(*most)} nodes" if best else None


def _asked(profile: Profile) -> range:
    return range(profile.least_nodes, profile.most_nodes + 1)


def _nearest(recipe: Recipe, profile: Profile, kept: int | None) -> Iterator[int]:
    """The numbers of nodes below and above those that are asked for that would do."""
    asked, most = _asked(profile), recipe.batch_size // profile.local_ranks
    for others in (range(asked[0] - 1, 0, -1), range(asked[-1] + 1, most + 1)):
        for nodes in others:
            try:
                sizes_of(recipe, [nodes * profile.local_ranks], kept)
            except ValueError:
                continue
            yield nodes
            break


def _check_devices(recipe: Recipe, profile: Profile) -> None:
    needs_gpus = {
        "device=cuda": recipe.device == "cuda",
        "precision=fp16": recipe.precision == "fp16",
        "model.sync_batchnorm=true": recipe.model.sync_batchnorm,
    }
    if not profile.gpus_per_node and (words := [word for word, needs in needs_gpus.items() if needs]):
        raise ValueError(f"{', '.join(words)}, but slurm.gpus_per_node=0")
