"""Numbers of nodes on which a run stays the same: chosen where it is sent from, sent, and told to its ranks."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.runs.requests import MOST, Place, make_requests, submission_of
from launch.runs.sizes import find_sizes, neighbours, others_left_out
from recipes.load import load
from recipes.plan import make_plan
from recipes.schema.recipe import Recipe
from slurm.profile import Profile
from slurm.sbatch import _jobs, script

NUMBERS = st.integers(1, 12)


def make_recipe(batch_size: int, limit: int | str | None = None, sync_batchnorm: bool = False) -> Recipe:
    limits = {} if limit is None else {"max_batch_per_device": limit}
    model = {"name": "resnet18", "sync_batchnorm": sync_batchnorm}
    data = {"source": "synthetic", "samples": 100_000}
    return Recipe.model_validate({"model": model, "data": data, "epochs": 1, "batch_size": batch_size, **limits})


def saved_run(folder: Path, batch_size: int, micro_batch: int) -> Path:
    (folder / "provenance.json").write_text(
        json.dumps({"plan": {"batch_size": batch_size, "micro_batch": micro_batch}})
    )
    (folder / "checkpoints" / "step-00000010").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000010" / "manifest.json").write_text("{}")
    return folder


def sent(recipe: Recipe, profile: Profile, run_dir: Path = Path("/runs/a")) -> list[tuple[str, dict]]:
    """What sbatch's --nodes is given for each job, and what its batch script reads."""
    found = []
    for request in make_requests(recipe, [Place("x", profile)], run_dir):
        submission = submission_of(run_dir, recipe, request, Path("/code"), Path("/"))
        words = [line.partition("--nodes=")[2] for line in script(submission).splitlines() if "--nodes=" in line]
        found.append((words[-1], _jobs(submission)))
    return found


@given(st.integers(2, 4096), st.one_of(st.none(), st.just("auto"), st.integers(2, 300)), NUMBERS, NUMBERS, NUMBERS)
def test_a_size_that_does_not_divide_is_never_sent(batch_size, limit, one, other, gpus):
    """And each that would divide is among the sizes; all make the batch of the same micro-batches."""
    least, most = sorted((one, other))
    profile, recipe = Profile(nodes=f"{least}-{most}", gpus_per_node=gpus), make_recipe(batch_size, limit)
    try:
        sizes = find_sizes(recipe, profile)
    except ValueError:
        for nodes in range(least, most + 1):
            with pytest.raises(ValueError, match="does not divide"):
                make_plan(recipe, 100_000, nodes * gpus)
        return
    if len(sizes.ranges) > MOST:
        with pytest.raises(ValueError, match=f"of at most {MOST}"):
            sent(recipe, profile)
        return
    asked, jobs = [], {}
    for words, jobs in sent(recipe, profile):  # noqa: B007
        first, last = map(int, (words if "-" in words else f"{words}-{words}").split("-"))
        asked += range(first, last + 1)
    # Each of them by one job.
    assert sorted(asked) == [*sizes.nodes]
    if least == most:
        assert (sizes.micro_batch, jobs["micro_batch"], jobs["sizes"]) == (None, None, [])
        return
    assert (jobs["micro_batch"], jobs["sizes"]) == (sizes.micro_batch, [*sizes.nodes])
    for nodes in range(least, most + 1):
        fits = batch_size % (sizes.micro_batch * nodes * gpus) == 0
        assert fits == (nodes in sizes.nodes)
        if fits:
            plan = make_plan(recipe, 100_000, nodes * gpus, sizes.micro_batch)
            assert (plan.slots, plan.total_steps, plan.lr) == (sizes.plan.slots, sizes.plan.total_steps, sizes.plan.lr)
    # What the most nodes alone would make.
    assert make_plan(recipe, 100_000, sizes.nodes[-1] * gpus).micro_batch == sizes.micro_batch


@given(st.sets(st.integers(1, 20), min_size=1))
def test_ranges_without_gaps(numbers):
    found = neighbours(sorted(numbers))
    assert [number for least, most in found for number in range(least, most + 1)] == sorted(numbers)
    assert all(after[0] > before[1] + 1 for before, after in itertools.pairwise(found))


def test_a_run_with_checkpoints_keeps_its_micro_batch(tmp_path):
    profile = Profile(nodes="1-8", gpus_per_node=1)
    assert find_sizes(make_recipe(64), profile, tmp_path)[::2] == ((1, 2, 4, 8), 8)
    run = saved_run(tmp_path, 64, 16)
    assert find_sizes(make_recipe(64), profile, run)[::2] == ((1, 2, 4), 16)
    found = [(asked, jobs["sizes"], jobs["micro_batch"]) for asked, jobs in sent(make_recipe(64), profile, run)]
    assert found == [("4", [1, 2, 4], 16), ("1-2", [1, 2, 4], 16)]
    with pytest.raises(ValueError, match="nodes=5-8: none of these") as refused:
        find_sizes(make_recipe(64), Profile(nodes="5-8"), run)
    assert "micro-batches of 16, which the run keeps" in str(refused.value)
    assert str(refused.value).endswith("or slurm.nodes=4")
    # So does one on a fixed number of nodes.
    with pytest.raises(ValueError, match="which the run keeps"):
        find_sizes(make_recipe(64), Profile(nodes=8), run)


def test_what_cannot_be_is_refused_with_what_would():
    with pytest.raises(ValueError, match="batch_size 64 does not divide over 10 devices") as refused:
        find_sizes(make_recipe(64), Profile(nodes="5-7", gpus_per_node=2))
    assert str(refused.value).endswith("or slurm.nodes=4 or 8")
    with pytest.raises(ValueError, match=r"normalises over all ranks.*give one, as slurm.nodes=4"):
        find_sizes(make_recipe(64, sync_batchnorm=True), Profile(nodes="1-4"))
    find_sizes(make_recipe(64, sync_batchnorm=True), Profile(nodes=4))


def test_smaller_micro_batches_are_proposed_that_fit_more_nodes():
    profile = Profile(nodes="1-3")

    def proposed(batch_size: int, profile: Profile = profile) -> str | None:
        recipe = make_recipe(batch_size)
        return others_left_out(recipe, profile, find_sizes(recipe, profile))

    assert proposed(48) == "max_batch_per_device=8 would fit 1, 2 or 3 nodes"
    assert proposed(64) is None
    assert proposed(48, Profile(nodes="1-2")) is None
    assert proposed(48, Profile(nodes=3)) is None


def test_jobs_of_a_range_say_how_much_a_node_must_have_and_not_how_many_ranks():
    recipe = load(["recipe=quickstart", "batch_size=48", "max_batch_per_device=4"]).recipe
    profile = Profile(nodes="1-3", gpus_per_node=2, cpus_per_rank=4)
    [request] = make_requests(recipe, [Place("x", profile)])
    text = script(submission_of(Path("/runs/a"), recipe, request, Path("/code"), Path("/")))
    assert "#SBATCH --nodes=1-3\n" in text
    assert "#SBATCH --mincpus=8\n" in text
    assert "ntasks" not in text
    assert "cpus-per-task" not in text


def test_one_job_takes_no_range_with_gaps():
    """As a step of a chain is one: it would train on two nodes at most, in the micro-batches of sixteen."""
    recipe = make_recipe(256, 16)
    assert find_sizes(recipe, Profile(nodes="1-2", gpus_per_node=1)).in_one_job() == "1-2"
    assert find_sizes(recipe, Profile(nodes=4, gpus_per_node=1)).in_one_job() == "4-4"
    gaps = find_sizes(recipe, Profile(nodes="1-16", gpus_per_node=1))
    with pytest.raises(ValueError, match=r"1, 2, 4, 8 or 16 nodes.*give one of these numbers, or slurm.nodes=1-2"):
        gaps.in_one_job()
