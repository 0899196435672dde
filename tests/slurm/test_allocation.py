"""What a run is given of an allocation that a user holds, and the environment in which srun starts it."""

from __future__ import annotations

import os
import subprocess

import pytest

from slurm import allocation
from slurm.allocation import Allocation, Node, fit, read_allocation
from slurm.held import clean

LINE = (
    "JobId=15 ArrayJobId=12 ArrayTaskId=3 JobName=interactive UserId=me({uid}) GroupId=me(0) MCS_label=N/A Priority=1 "
    "JobState={state} Reason=Resources Dependency=(null) TimeLimit=1-00:00:00 EndTime=4000000000 Partition=gpu,long "
    "ReqNodeList=(null) ExcNodeList=(null) NodeList=n1,n2 BatchHost=n1 NumNodes=2 JOB_GRES=gpu:a100:6 "
    "Nodes=n1 CPU_IDs=0-3,6 Mem=0 GRES=gpu:a100:2(IDX:0-1),gpu:1g.5gb:1(IDX:7),nvme:3 "
    "Nodes=n2 CPU_IDs=0-15 Mem=1 GRES= MinCPUsNode=1\n"
)


def answering(monkeypatch, text: str) -> None:
    answers = {"show job": text, "show hostnames": "n1\nn2\n"}
    monkeypatch.setattr(allocation, "ask", lambda words, client=None: answers[" ".join(words[1:3])])


def of(*nodes: tuple[int, int], left: float | None = None, limit: str = "UNLIMITED") -> Allocation:
    """An allocation with so many cores and GPUs of each node."""
    named = [Node(f"n{number}", *node) for number, node in enumerate(nodes, 1)]
    return Allocation("7", "7", "interactive", "low", limit, left, named)


def test_slurms_own_words_are_read(monkeypatch):
    answering(monkeypatch, LINE.format(state="RUNNING", uid=os.getuid()))
    found = read_allocation("12_3")
    assert (found.job_id, found.number, found.name, found.partition) == ("12_3", "15", "interactive", "gpu,long")
    assert found.nodes == [Node("n1", 5, 3, ("1g.5gb", "a100")), Node("n2", 16, 0)]
    assert found.left is not None
    assert found.limit == "1-00:00:00"


@pytest.mark.parametrize(
    ("state", "uid", "said"),
    [("RUNNING", 4321, "is me's"), ("PENDING", None, "waits (Resources)"), ("TIMEOUT", None, "is timeout")],
)
def test_what_is_no_allocation_of_ones_own_is_refused(monkeypatch, state, uid, said):
    answering(monkeypatch, LINE.format(state=state, uid=os.getuid() if uid is None else uid))
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
        read_allocation("15")


@pytest.mark.parametrize(
    ("nodes", "options", "found"),
    [
        ([(16, 4), (16, 4)], {}, (2, 4, 4)),
        # So that the most GPUs are used, and as many of each node.
        ([(16, 4), (16, 2)], {}, (2, 2, 8)),
        ([(16, 8), (16, 8), (16, 1)], {}, (2, 8, 2)),
        ([(16, 8), (8, 0)], {}, (1, 8, 2)),
        ([(16, 4), (16, 2)], {"gpus": 4}, (1, 4, 4)),
        ([(16, 4), (16, 4)], {"cpu_ranks": 4}, (2, 4, 4)),
        ([(8, 0), (4, 0)], {}, (2, 1, 4)),
        # Fewer cores than ranks: srun is told to let them share.
        ([(1, 2)], {}, (1, 2, 1)),
        ([(8, 2), (8, 2), (8, 2)], {"taken": ["n1"]}, (2, 2, 4)),
        ([(8, 2), (8, 2), (8, 2)], {"overrides": ["slurm.nodes=1"]}, (1, 2, 4)),
        # Of fewer nodes those that have the most, and their cores alone.
        ([(8, 2), (24, 3)], {"overrides": ["slurm.nodes=1"]}, (1, 3, 8)),
        ([(64, 4), (4, 4)], {"overrides": ["slurm.nodes=1"]}, (1, 4, 16)),
        ([(8, 4), (8, 4), (8, 8)], {"overrides": ["slurm.nodes=2"]}, (2, 4, 2)),
        ([(8, 8), (8, 4)], {"overrides": ["slurm.nodes=1", "slurm.spare_nodes=1"]}, (1, 4, 2)),
        ([(8, 2), (8, 2), (8, 2)], {"overrides": ["slurm.nodes=2", "slurm.spare_nodes=1"]}, (2, 2, 4)),
    ],
)
def test_a_run_is_given_what_the_allocation_has(nodes, options, found):
    placed = fit(of(*nodes), None, **{"overrides": [], **options})
    profile = placed.profile
    assert (profile.nodes, profile.local_ranks, profile.cpus_per_rank) == found
    assert len(placed.nodes) == profile.most_nodes + profile.spare_nodes
    assert all(node.gpus >= profile.gpus_per_node for node in placed.nodes)
    assert not {node.name for node in placed.nodes} & {*options.get("taken", [])}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpus": 8}, "--gpus 8: no node of job 7 has so many"),
        ({"taken": ["n1", "n2"]}, "trains another run on each"),
        ({"overrides": ["slurm.nodes=3"]}, "slurm.nodes=3: job 7 has 2 nodes"),
        ({"overrides": ["slurm.nodes=1-2"]}, "give one number"),
        ({"overrides": ["slurm.partition=long"]}, "slurm.partition=long: job 7 has its nodes already"),
        ({"left": 100.0}, "ends in 1m40s"),
        ({"left": 100.0, "limit": "1:00"}, r"signal_lead \(120 s\) must be less than time"),
    ],
)
def test_what_it_cannot_have_is_said(options, said):
    left, limit = options.pop("left", None), options.pop("limit", "UNLIMITED")
    with pytest.raises(ValueError, match=said):
        fit(of((8, 4), (8, 2), left=left, limit=limit), None, **{"overrides": [], **options})


def test_an_allocation_of_which_slurm_tells_no_nodes():
    with pytest.raises(ValueError, match="job 7: Slurm does not say what it has of its nodes"):
        fit(of(), None, [])


def test_gpus_of_several_kinds_are_said():
    nodes = [Node("n1", 8, 1, ("a100",)), Node("n2", 8, 1, ("h100",))]
    mixed = of()._replace(nodes=nodes)
    assert fit(mixed, None, []).notes == ["GPUs of several kinds, of which the slowest sets the pace: a100, h100"]
    assert fit(mixed, None, ["slurm.nodes=1"]).notes == ["not used: n2 (1 GPU)"]
    assert fit(mixed, None, [], cpu_ranks=1).notes == []


def test_what_is_not_used_is_said():
    assert fit(of((8, 4), (8, 4), (8, 1)), None, []).notes == ["not used: n3 (1 GPU)"]
    assert fit(of((8, 4), (8, 2)), None, []).notes == ["not used: 2 GPUs of nodes that have more"]
    assert fit(of((8, 1), (8, 1)), None, [], taken=["n2"]).notes == ["not used: n2 (another run)"]


def test_srun_reads_nothing_of_what_the_allocation_was_asked_for():
    theirs = {
        "SLURM_NTASKS": "1",
        "SLURM_TRES_PER_TASK": "x",
        "SBATCH_X": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "RANK": "0",
    }
    ours = {"PATH": "/bin", "SLURM_CONF": "/c", "SLURM_CLUSTER_NAME": "one", "SLURMD_NODENAME": "n1", "NCCL_DEBUG": "1"}
    wanted = {
        **ours,
        "SLURM_JOB_ID": "15",
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_MPI_TYPE": "x",
    }
    assert clean({**theirs, **ours, "SLURM_MPI_TYPE": "x"}, "15", "12_3", ["SLURM_MPI_TYPE"]) == wanted


def test_of_a_job_that_slurm_does_not_know(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "slurm_load_jobs error: Invalid job id specified\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ValueError, match="job 9: Slurm knows no job of that number"):
        read_allocation("9")
