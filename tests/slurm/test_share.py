"""How many trials of a sweep run at once, by what is idle and who waits."""

from __future__ import annotations

import pytest

from slurm.profile import Profile
from slurm.share import fitting, next_limit, trial_of

NODES = [
    "n1  idle  0/8/0/8    gpu:2                gpu:0",
    "n1  idle  0/8/0/8    gpu:2                gpu:0",
    "n2  mix   3/5/0/8    gpu:2                gpu:1(IDX:0)",
    "n3  alloc 8/0/0/8    gpu:2                gpu:2(IDX:0-1)",
    "n4  drain 0/0/8/8    gpu:2                gpu:0",
    "n5  idle  0/64/0/64  gpu:a100:4(S:0-1)    gpu:a100:0(IDX:N/A)",
    "n6  mix   8/56/0/64  gpu:a100:4,gpu:v:2   gpu:a100:1(IDX:3),gpu:v:2(IDX:4-5)",
    "n7* down* 0/0/8/8    (null)               gpu:0",
    "n8  idle  0/4/0/4    (null)               gpu:0",
]


@pytest.mark.parametrize(
    ("keys", "places"),
    [
        ({"gpus_per_node": 1, "cpus_per_rank": 1}, 2 + 1 + 4 + 3),
        ({"gpus_per_node": 1, "cpus_per_rank": 6}, 1 + 0 + 4 + 3),
        ({"gpus_per_node": 2, "cpus_per_rank": 1}, 1 + 0 + 2 + 1),
        ({"gpus_per_node": 1, "cpus_per_rank": 1, "gpu_type": "a100"}, 4 + 3),
        ({"gpus_per_node": 1, "cpus_per_rank": 1, "gpu_type": "v"}, 0),
        ({"gpus_per_node": 1, "cpus_per_rank": 1, "exclusive": True}, 1 + 1),
        ({"gpus_per_node": 1, "cpus_per_rank": 1, "nodes": 2}, 2),
        ({"gpus_per_node": 1, "cpus_per_rank": 1, "nodes": "1-4"}, 2 + 1 + 4 + 3),
        ({"gpus_per_node": 0, "cpus_per_rank": 4}, 2 + 1 + 16 + 14 + 1),
    ],
)
def test_what_fits_on_idle_nodes(keys, places):
    assert fitting(NODES, trial_of(Profile.model_validate(keys))) == places


def test_a_sweep_takes_what_is_idle_and_gives_way():
    assert next_limit(running=0, fitting=5, others_wait=False) == 5
    assert next_limit(running=0, fitting=0, others_wait=True) == 1
    # Of four, one ends, and nothing else is free: its place is taken again; with two more, three.
    assert [next_limit(4, free, False) for free in (0, 2)] == [4, 6]
    limit = 4
    for left in (3, 2, 1, 1):
        limit = next_limit(limit, 9, others_wait=True)
        assert limit == left
