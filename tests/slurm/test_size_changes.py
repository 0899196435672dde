"""A run that is given other numbers of nodes, on a real Slurm, ends as one that is left alone."""

import random
import re
from itertools import pairwise

import pytest

from tests.bench.size_changes import (
    CLUSTER,
    IN_STEP,
    NODES,
    RANGE,
    block,
    change_sizes,
    made_twice,
    other_sizes,
    random_steps,
    rows,
    slowly,
    verdict,
    words_of,
)
from tests.slurm_helpers import need_slurm, running_cluster, train_here

pytestmark = pytest.mark.timeout(600)
CHANGES, STEPS = 2, 24


def test_changes_are_at_different_steps_and_of_size():
    for seed in range(20):
        steps = random_steps(random.Random(seed), 20, 126)
        assert len({*steps}) == 20
        assert steps == sorted(steps)
        assert steps[0] > 0
        assert steps[-1] < 126
        sizes = [NODES, *other_sizes(random.Random(seed), 20)]
        assert all(then != now for then, now in pairwise(sizes))


@pytest.mark.slurm
def test_other_numbers_of_nodes_make_the_same_steps(tmp_path, shapes):
    need_slurm()
    words = words_of(shapes, STEPS)
    (tmp_path / "here").mkdir()
    reference = train_here(words, tmp_path / "here" / "undisturbed", NODES)
    (tmp_path / "work").mkdir()
    steps = random_steps(random.Random(0), CHANGES, STEPS)
    with running_cluster(tmp_path / "cluster", tmp_path / "work", NODES, accounting=False) as cluster:
        ways = change_sizes(cluster, "changed", slowly(words, tmp_path / "notes"), steps, seed=0)
        attempts = cluster.attempts("changed")
        found = verdict(cluster.run_dir("changed"), reference, attempts)
    told = rows(attempts, ways)
    assert (found["state"], found["changes"]) == ("finished", CHANGES), told
    assert made_twice(tmp_path / "notes") == 0
    assert found["same_steps"], told
    assert found["micro_batches"] == [IN_STEP]
    assert len(found["ranks"]) > 1
    # Rounding, over so few steps.
    assert found["furthest"] < 1e-4


@pytest.mark.slurm
def test_a_job_on_one_node_grows_once_nobody_else_needs_the_others(tmp_path, shapes):
    need_slurm()
    (tmp_path / "work").mkdir()
    # A quarter of an hour on one node: what growing is taken to cost is some minutes.
    words = [*slowly(words_of(shapes, 2000), tmp_path / "notes"), "checkpoint.keep=2"]
    with running_cluster(tmp_path / "cluster", tmp_path / "work", NODES, accounting=False) as cluster:
        block(cluster, NODES - 1)
        cluster.launch("submit", *words, *CLUSTER, RANGE, "--grow=0.2", "run.name=grows")
        cluster.wait_step("grows", 25)
        assert len(cluster.attempts("grows")[0]["nodes"]) == 1
        block(cluster, 0)
        cluster.wait("more nodes", lambda: len(cluster.attempts("grows")) > 1)
        cluster.wait_step("grows", cluster.attempts("grows")[0]["last_step"] + 2, attempt=2)
        small, large = cluster.attempts("grows")
        cluster.launch("cancel", "grows", "--now")
    assert (small["outcome"], small["cause"], small["planned"]) == ("stopped", "grow", True)
    assert re.fullmatch(r"3 nodes are free for it in the place of 1, to end about \d+ min sooner", small["bigger"])
    assert (len(large["nodes"]), large["step"], large["restart"]) == (NODES, small["last_step"], 1)
    assert made_twice(tmp_path / "notes") == 0
