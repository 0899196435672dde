"""Runs in allocations that a user holds, with a Slurm that is played: nodes that go, clusters, two runs at once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from slurm import batch, held
from slurm.held import Held, HeldNodes
from slurm.profile import Profile
from slurm.sbatch import Submission, write_held
from slurm.srun import Step


@pytest.fixture
def given_back(monkeypatch) -> list[list[str]]:
    """What the allocation of n1, n2, n3 and n4 is made smaller to."""
    given: list[list[str]] = []
    monkeypatch.setattr(batch, "give_node_back", lambda kept: given.append(list(kept)))
    monkeypatch.setattr(held, "nodes_of", lambda job: ["n1", "n2", "n3", "n4"])
    return given


def on(*nodes: str, dead: list[str]) -> Held:
    """A run on these nodes of the allocation."""
    job = object.__new__(Held)
    job.job_id, job.nodes, job.srun = "5", HeldNodes(list(nodes), 2, 1), Step()
    job.srun.dead_nodes = dead
    return job


@pytest.mark.parametrize("gone_by", ["Slurm's word", "its silence"])
def test_of_a_node_that_is_gone_all_others_stay_the_users(monkeypatch, given_back, gone_by):
    """Also those on which the run does not train; and the run's first goes as any other."""
    monkeypatch.setattr(held, "nodes_that_are_gone", lambda names: names if gone_by == "Slurm's word" else [])
    on("n2", "n3", dead=[] if gone_by == "Slurm's word" else ["n2"]).leave_out("n2", "node n2 failed")
    assert given_back == [["n1", "n3", "n4"]]


def test_a_node_that_lives_is_left_out_and_stays_the_users(monkeypatch, given_back):
    monkeypatch.setattr(held, "nodes_that_are_gone", lambda names: [])
    job = on("n2", "n3", dead=[])
    job.leave_out("n3", "n3 failed the start check: GPU 1 is slow")
    assert given_back == []
    assert job.nodes.good == ["n2"]


@pytest.mark.parametrize("is_here", [True, False])
def test_what_trains_it_here_reaches_the_cluster_as_this_machine_does(tmp_path, is_here):
    """A node reaches its own cluster without a client's variables; a login node does not."""
    run = tmp_path / "run"
    (run / "slurm").mkdir(parents=True)
    profile = Profile(client={"SLURM_CLUSTERS": "two", "SLURM_CONF": "/two.conf"})
    submission = Submission(profile, "run", run / "slurm", Path("/code"), tmp_path, [run], [run / "slurm/recipe.yaml"])
    script = write_held(submission, {"node_cores": 8}, is_here)
    shell = "".join(f"{line}\n" for line in script.read_text().splitlines() if "SLURM_C" in line)
    told = subprocess.run(
        ["bash", "-c", f'{shell}echo "$SLURM_CLUSTERS $SLURM_CONF"'],
        env={"SLURM_CLUSTERS": "two", "SLURM_CONF": "/two.conf"},
        capture_output=True,
        text=True,
    )
    assert told.stdout == ("two /two.conf\n" if is_here else " \n")
