"""The jobs by which one run waits: for each cluster, each QOS, and each range of numbers of nodes, one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from launch.runs.job_record import Job, place_in_words
from launch.runs.sizes import Sizes, find_sizes
from launch.runs.slices import slice_for
from recipes.plan import make_plan, samples_known, sizes_of
from recipes.schema.recipe import Recipe
from resnet.rundir.provenance import kept_plan
from slurm.profile import Profile
from slurm.sbatch import Submission

MOST = 8
"""Requests of a run: each takes a place in the queue, of which a user may often have a hundred."""


class Place(NamedTuple):
    """A cluster that a run may be trained on."""

    cluster: str
    """Name of the profile."""
    profile: Profile


class Request(NamedTuple):
    """A job that is to be sent."""

    cluster: str
    profile: Profile
    """With one QOS, and numbers of nodes without a gap."""
    sizes: Sizes
    """All on this cluster, to which a job may fall back that loses a node."""

    def is_of(self, job: Job) -> bool:
        """Whether a job was sent for it."""
        return (job.cluster, job.profile) == (self.cluster, self.profile.model_dump(mode="json"))

    @property
    def in_words(self) -> str:
        return place_in_words(self.cluster, self.profile.model_dump(include={"partition", "qos", "nodes"}))


def make_requests(recipe: Recipe, places: Sequence[Place], run_dir: Path | None = None) -> list[Request]:
    """All of them, in the order of the clusters, the largest sizes first; one for a run that waits in one place.

    Raises ValueError where they are too many, or the batch cannot be made of the same micro-batches on each cluster.
    """
    _refuse_unreachable(places)
    found = [
        Request(place.cluster, place.profile.model_copy(update={"qos": qos}).on_nodes(f"{least}-{most}"), sizes)
        for place, sizes in zip(places, _sizes(recipe, places, run_dir), strict=True)
        for qos in place.profile.each_qos
        for least, most in sizes.ranges
    ]
    if len(found) > MOST:
        told = "; ".join(request.in_words for request in found)
        raise ValueError(
            f"{len(found)} requests for one run, of at most {MOST}, one for each cluster, QOS and range of nodes: name "
            f"fewer in cluster=, slurm.qos= or slurm.nodes= ({told})"
        )
    return found


def _refuse_unreachable(places: Sequence[Place]) -> None:
    """Raise ValueError where a job could not tell, from a node of another cluster, how to reach one."""
    reached = [place for place in places if place.profile.client]
    for place in places:
        if reached and not place.profile.client:
            raise ValueError(
                f"cluster={place.cluster}: from a node of {reached[0].cluster}, whose profile has `client`, it is not "
                "known how to reach it: add to its profile `client: {SLURM_CONF: FILE}`, a file that the nodes of all "
                "clusters see, or `client: {SLURM_CLUSTERS: NAME}`, where one accounting database knows all"
            )


def _sizes(recipe: Recipe, places: Sequence[Place], run_dir: Path | None) -> list[Sizes]:
    """The sizes on each cluster, all of the same micro-batches. Raises ValueError where there are none."""
    alone = [find_sizes(recipe, place.profile, run_dir) for place in places]
    if recipe.model.sync_batchnorm and len({sizes.plan.world_size for sizes in alone}) > 1:
        pairs = zip(places, alone, strict=True)
        ranks = ", ".join(f"{sizes.plan.world_size} on {place.cluster}" for place, sizes in pairs)
        raise ValueError(f"model.sync_batchnorm=true normalises over all ranks, which are {ranks}: name one cluster")
    # What is found at the start is found by the first cluster, and has to do for the others.
    telling = ("micro_batch", "world_size") if recipe.max_batch_per_device == "auto" else ("micro_batch",)
    if len({tuple(getattr(sizes.plan, key) for key in telling) for sizes in alone}) == 1:
        return alone
    counts = [
        {nodes: nodes * place.profile.local_ranks for nodes in range(place.profile.least_nodes, most + 1)}
        for place in places
        for most in [place.profile.most_nodes]
    ]
    kept = kept_plan(run_dir).get("micro_batch") if run_dir else None
    micro_batch, fitting = sizes_of(recipe, (ranks for one in counts for ranks in one.values()), kept)
    found = []
    for place, one in zip(places, counts, strict=True):
        nodes = tuple(number for number, ranks in one.items() if ranks in fitting)
        if not nodes:
            raise ValueError(
                f"cluster={place.cluster}: batch_size={recipe.batch_size} is not made of micro-batches of "
                f"{micro_batch}, as on the other clusters, on {place.profile.nodes} nodes of "
                f"{place.profile.local_ranks} ranks: change its slurm.nodes, or max_batch_per_device"
            )
        samples = samples_known(recipe.data) or recipe.batch_size
        plan = make_plan(recipe, samples, nodes[-1] * place.profile.local_ranks, micro_batch)
        found.append(Sizes(nodes, plan, micro_batch))
    return found


def submission_of(run_dir: Path, recipe: Recipe, request: Request, snapshot: Path, cwd: Path) -> Submission:
    """What is sent of a run for a request."""
    files, (cluster, profile, sizes) = run_dir / "slurm", request
    slice_ = slice_for(recipe, cluster, profile, run_dir)
    runs, resolved = [run_dir], [files / "recipe.yaml"]
    return Submission(profile, run_dir.name, files, snapshot, cwd, runs, resolved, slice=slice_, **sizes.of_job)
