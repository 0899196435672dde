"""Runs in allocations that a user holds, with a Slurm that is played: nodes that go, clusters, two runs at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launch.cli import main
from launch.runs import given
from launch.runs import held as placing
from launch.runs.given import giving
from launch.runs.job_record import Job, is_under_way, job_text
from recipes.load import dump, load
from resnet.rundir.status import write_status
from slurm import batch, held
from slurm.allocation import Allocation, Node
from slurm.held import Held, HeldNodes, steps_name
from slurm.profile import Profile
from slurm.sbatch import Submission, write_held
from slurm.srun import Step

ALLOCATION = Allocation("5", "5", "x", "low", "UNLIMITED", None, [Node(f"n{number}", 8, 2) for number in (1, 2)], "1")


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


def test_two_runs_of_one_name_are_told_apart(monkeypatch, tmp_path):
    """In one allocation, from two folders of runs: each is signalled by its own steps, whatever path leads to it."""
    first, second = tmp_path / "a" / "run", tmp_path / "b" / "run"
    first.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    names = [steps_name(run_dir) for run_dir in (first, second)]
    assert steps_name(tmp_path / "link" / "run") == names[0]
    steps = "".join(f"5.{number}|n{number}|{name}/attempt-1\n" for number, name in enumerate(names, 1))
    asked: list[list[str]] = []
    monkeypatch.setattr(held, "ask", lambda words, client=None: asked.append(words) or steps)
    assert held.signal_steps("5", names[1], "USR2")
    assert asked[-1] == ["scancel", "--signal=USR2", "5.2"]


@pytest.fixture
def steps(monkeypatch) -> list[str]:
    """The steps of the allocation, as squeue prints them."""
    known: list[str] = []
    monkeypatch.setattr(held, "ask", lambda words, client=None: "".join(f"{step}\n" for step in known))
    return known


def run_in(tmp_path: Path, name: str, state: str = "running") -> tuple[Path, Job]:
    run = tmp_path / name
    (run / "slurm").mkdir(parents=True)
    write_status(run, name=name, state=state)
    job = Job.to_send(name, "held", Profile(), tmp_path, tmp_path)
    return run, replace(job, job_id="5", held=True, steps=steps_name(run))


def died() -> dict[str, object]:
    """What a process of this machine said of itself that has ended."""
    return {"place": held.pid_namespace(), "pid": os.getpid(), "began": "1", "time": time.time()}


@pytest.mark.parametrize("state", ["queued", "running"])
@pytest.mark.parametrize(
    "seen", ["by its process", "by its sign", "by its supervisor's step", "by its ranks' step", ""]
)
def test_a_run_is_under_way_for_as_long_as_what_trains_it_is_there(monkeypatch, tmp_path, steps, state, seen):
    """However long its set-up takes, and wherever that is asked."""
    run, job = run_in(tmp_path, "run", state)
    long_ago = time.time() - 3000
    write_status(run, updated=long_ago)
    if seen == "by its process":
        held.note_supervisor(run, listens=False)
    else:
        monkeypatch.setattr(held, "this_process", died)
        held.note_supervisor(run, listens=False)
    os.utime(run / "slurm" / "held.json", (long_ago, long_ago))
    if seen == "by its sign":
        monkeypatch.setattr(held, "pid_namespace", lambda: "another machine")
        assert not is_under_way(run, job)
        held.give_sign(run)
    if "step" in seen:
        steps.append(f"5.0|n1|{job.steps}/{'supervisor' if 'supervisor' in seen else 'attempt-2'}")
    steps.append("5.1|n2|run-00000000/attempt-1")
    assert is_under_way(run, job) is bool(seen)
    write_status(run, state="stopped")
    assert not is_under_way(run, job)


@pytest.fixture
def nodes(monkeypatch, tmp_path) -> Allocation:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return ALLOCATION


def place(allocation: Allocation, run: Path, *nodes: str) -> None:
    with giving(allocation) as given_now:
        given_now.name(given_now.give(nodes), run, steps_name(run))


def taken(allocation: Allocation) -> set[str]:
    with giving(allocation) as given_now:
        return given_now.taken(held.own_steps(allocation.job_id))


def test_no_node_is_given_to_two_runs_that_are_placed_at_once(nodes, steps):
    """By two commands, one right after the other, of which neither has begun to train."""
    script = (
        "import sys; from launch.runs.given import giving; from tests.slurm.test_held_without_slurm import ALLOCATION\n"
        "with giving(ALLOCATION) as given: taken = given.taken([]); print(*taken); given.give(['n2'])\n"
        "input()"
    )
    with giving(nodes) as given_now:
        given_now.give(["n1"])
        other = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1.5)
    assert other.stdout
    assert other.stdout.readline() == "n1\n"
    time.sleep(0.2)
    assert taken(nodes) == {"n1", "n2"}
    other.communicate("\n")
    assert taken(nodes) == {"n1"}


def test_a_runs_nodes_are_its_own_until_it_is_over(monkeypatch, nodes, steps, tmp_path):
    """Those to spare too, and between two steps; after a retry they are those of the retry."""
    run, job = run_in(tmp_path, "run")
    with monkeypatch.context() as ended:
        # The command that sent it.
        ended.setattr(given, "this_process", died)
        place(nodes, run, "n1", "n2")
    assert taken(nodes) == set()
    with monkeypatch.context() as ended:
        ended.setattr(given, "this_process", died)
        place(nodes, run, "n1", "n2")
    steps.append(f"5.0|n1|{job.steps}/supervisor")
    assert taken(nodes) == {"n1", "n2"}
    assert taken(nodes._replace(submitted="2")) == set()
    place(nodes, run, "n2")
    assert taken(nodes) == {"n2"}
    write_status(run, state="stopped")
    assert taken(nodes) == set()


def test_all_that_the_first_rank_prints_is_shown(tmp_path, capfdbinary, monkeypatch):
    """Also the last words of an attempt after which the next one has begun; without a look at the disk at each turn."""
    folder = tmp_path / "logs" / "attempt-1"
    folder.mkdir(parents=True)
    (tmp_path / "log").write_text("before\n")
    (folder / "rank-0.log").write_text("of a start before\n")
    looks: list[Path] = []
    found = placing.log_file
    monkeypatch.setattr(placing, "log_file", lambda run, rank: looks.append(run) or found(run, rank))
    printed = placing._Printed(tmp_path, tmp_path / "log")
    for _ in range(20):
        printed.show()
    assert len(looks) <= 2
    with open(folder / "rank-0.log", "a") as log:
        log.write("step 1\n")
        printed.show()
        log.write("last words\n")
    second = tmp_path / "logs" / "attempt-2"
    second.mkdir()
    printed._looked = 0
    printed.show()
    (second / "stage-0.log").write_text("data\n")
    printed._looked = 0
    printed.show()
    (second / "rank-0.log").write_text("step 2\n")
    printed._looked = 0
    printed.show()
    with open(second / "rank-0.log", "a") as log:
        log.write("the end\n")
    printed.show(is_over=True)
    assert capfdbinary.readouterr().out == b"step 1\nlast words\ndata\nstep 2\nthe end\n"


@pytest.fixture
def launch(monkeypatch, tmp_path, capsys):
    """Runs `launch` in a shell whose SLURM_JOB_ID is 5, of which this Slurm knows nothing any more."""
    (tmp_path / "bin").mkdir()
    for name, script in {"scontrol": "echo 'error: Invalid job id specified' >&2; exit 1", "srun": "exit 1"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "5")

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main([*words])
        return ended.value.code, capsys.readouterr().err

    return run


def trained(tmp_path: Path, *words: str) -> Path:
    """A run that `launch local` has begun outside of Slurm."""
    recipe = load(["recipe=quickstart", "run.name=run", f"run.root={tmp_path}", *words]).recipe
    run = tmp_path / "run"
    (run / "slurm").mkdir(parents=True)
    (run / "recipe.yaml").write_text(dump(recipe))
    write_status(run, name="run", state="stopped")
    return run


def test_a_shell_that_outlives_its_allocation_is_told(launch, tmp_path):
    code, said = launch("local", "recipe=quickstart", f"run.root={tmp_path}")
    assert (code, "unset SLURM_JOB_ID" in said, "--here" in said) == (2, True, True)
    code, said = launch("submit", "--in", "5", "recipe=quickstart", f"run.root={tmp_path}")
    assert (code, "SLURM_JOB_ID" in said) == (2, False)


def test_in_an_allocation_retry_takes_its_nodes_as_launch_local_does(launch, tmp_path):
    """Also of a run that was trained without Slurm before, and not the cores of the login node."""
    code, said = launch("retry", str(trained(tmp_path)))
    assert (code, "job 5: Slurm knows no job of that number" in said) == (2, True)


@pytest.mark.parametrize(("device", "sent_with", "asked"), [("cpu", None, 1), ("cpu", 4, 4), ("cuda", 4, None)])
def test_a_retry_asks_for_what_the_recipe_trains_on(launch, monkeypatch, tmp_path, device, sent_with, asked):
    run = trained(tmp_path, f"device={device}")
    profile = Profile(gpus_per_node=0, ranks_per_node=sent_with, setup=["module load cuda"])
    job = Job.to_send("run", "held", profile, tmp_path, tmp_path)
    (run / "slurm" / "job.json").write_text(job_text(replace(job, held=True), "5"))
    told: list[object] = []

    def of(*_: object, cpu_ranks: int | None, before: dict) -> None:
        told.append(cpu_ranks)
        assert before["setup"] == ["module load cuda"]
        raise ValueError("that is all")

    monkeypatch.setattr(placing.Holding, "of", of)
    assert launch("retry", str(run), "--in", "5")[0] == 2
    assert told == [asked]


@pytest.mark.parametrize("debug", [True, False])
def test_debug_reaches_the_ranks(tmp_path, debug):
    run = trained(tmp_path)
    submission = Submission(Profile(), "run", run / "slurm", Path("/code"), tmp_path, [run], [run / "recipe.yaml"])
    script = write_held(submission, {"node_cores": 8}, True, debug)
    assert ("--debug" in script.read_text()) is debug
