"""A run that is given other numbers of nodes, on a real Slurm, ends as one that is left alone."""

import random
from itertools import pairwise

import pytest

from tests.bench.size_changes import (
    IN_STEP,
    NODES,
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
