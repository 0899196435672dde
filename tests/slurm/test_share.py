"""How many trials of a sweep run at once, by what is idle and who waits."""

from __future__ import annotations

import os

import pytest

from slurm.profile import Profile
from slurm.share import fitting, next_limit, nodes_of, trial_of, trials_at_once

NODES = [
    "n1  idle  0/8/0/8    gpu:2                gpu:0                         64000  0      low*  cpu,big",
    "n1  idle  0/8/0/8    gpu:2                gpu:0                         64000  0      all   cpu,big",
    "n2  mix   3/5/0/8    gpu:2                gpu:1(IDX:0)                  64000  40000  low*  cpu",
    "n3  alloc 8/0/0/8    gpu:2                gpu:2(IDX:0-1)                64000  64000  low*  cpu",
    "n4  drain 0/0/8/8    gpu:2                gpu:0                         64000  0      low*  cpu",
    "n5  idle  0/64/0/64  gpu:a100:4(S:0-1)    gpu:a100:0(IDX:N/A)           64000  0      low*  (null)",
    "n6  mix   8/56/0/64  gpu:a100:4,gpu:v:2   gpu:a100:1(IDX:3),gpu:v:2(IDX:4-5)  64000 0 low*  (null)",
    "n7* down* 0/0/8/8    (null)               gpu:0                         64000  0      low*  (null)",
    "n8  idle  0/4/0/4    (null)               gpu:0                         64000  0      low*  (null)",
    "n9  idle  0/8/0/8    gpu:8                gpu:0                         64000  0      all   big",
]


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Makes Slurm's commands of shell scripts."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(**scripts: str) -> None:
        for name, script in scripts.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)

    return make


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
        ({"gpus_per_node": 0, "cpus_per_rank": 4, "mem": "30G"}, 2 + 0 + 2 + 2 + 1),
        ({"gpus_per_node": 0, "cpus_per_rank": 4, "mem": "0"}, 1 + 0 + 1 + 1 + 1),
        ({"gpus_per_node": 1, "cpus_per_rank": 1, "exclude": "n[2-4],n6"}, 2 + 4),
        ({"gpus_per_node": 1, "cpus_per_rank": 1, "constraint": "big&cpu"}, 2),
        ({"gpus_per_node": 1, "cpus_per_rank": 1, "constraint": "big|x"}, 2 + 1 + 4 + 3),
    ],
)
def test_what_fits_on_idle_nodes(keys, places, commands):
    """Of the default partition, as the profile names none."""
    commands(scontrol='[ "$*" = "show hostnames n[2-4],n6" ] && echo "n2\nn3\nn4\nn6"')
    trial = trial_of(Profile.model_validate(keys))
    assert fitting(nodes_of(NODES, trial), trial) == places


def test_nodes_and_jobs_are_those_of_the_partition_that_slurm_would_choose(commands):
    """Others wait in another one: they want nothing that the trials have."""
    listing = "\n".join(NODES)
    commands(
        sinfo=f"cat << END\n{listing}\nEND",
        squeue='case "$*" in *--partition=low*) ;; *) echo "4|PENDING|Resources";; esac',
    )
    keys = {"gpus_per_node": 1, "cpus_per_rank": 1}
    assert trials_at_once(trial_of(Profile.model_validate(keys))) == 2 + 1 + 4 + 3
    assert trials_at_once(trial_of(Profile.model_validate({**keys, "partition": "all"}))) == 1


def test_a_sweep_takes_what_is_idle_and_gives_way():
    assert next_limit(running=0, fitting=5, others_wait=False) == 5
    assert next_limit(running=0, fitting=0, others_wait=True) == 1
    # Of four, one ends, and nothing else is free: its place is taken again; with two more, three.
    assert [next_limit(4, free, False) for free in (0, 2)] == [4, 6]
    limit = 4
    for left in (3, 2, 1, 1):
        limit = next_limit(limit, 9, others_wait=True)
        assert limit == left
