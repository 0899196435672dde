"""What the batch script decides: whether to try again, and whose fault an end was."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnet.process.environment import ATTEMPT, CORES, cores_of_rank
from resnet.rundir.attempts import end_file, newest_step, read_attempts
from resnet.rundir.lease import Lease, holder_elsewhere, read_lease
from resnet.rundir.status import read_status, write_status
from slurm import attend, batch, budget, srun
from slurm.batch import Job
from slurm.control import free_port
from slurm.ends import End, end_of_staging, end_of_training, slurms_word
from slurm.record import OwnLog
from slurm.sweep_page import report_sweep
from tests.fabricated import make_run, page_data
from tests.helpers import PROGRAM

JOBS = {"runs": [], "srun": [], "stage": [], "master": None, "max_requeues": 10, "signal_lead": 30}
JOBS |= {"cores": 1, "node_cores": 1}


@pytest.fixture
def run_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "logs" / "attempt-1").mkdir(parents=True)
    return tmp_path


def record(run_dir: Path, *attempts: dict) -> None:
    """attempts: fields of start and end together; without `outcome` the attempt has no end."""
    with open(run_dir / "slurm" / "attempts.jsonl", "a") as file:
        for number, fields in enumerate(attempts, 1):
            begin = {"attempt": number, "job_id": "7", "start": 0, "step": fields["step"]}
            begin |= {key: fields[key] for key in ("job_id", "start") if key in fields}
            file.write(json.dumps(begin) + "\n")
            if "outcome" in fields:
                end = {"attempt": number, "end": 1, "outcome": fields["outcome"], "step": fields.get("last", 0)}
                file.write(json.dumps(end | {"fruitless": fields.get("fruitless", False)}) + "\n")


def commit(run_dir: Path, step: int) -> None:
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text("{}")


def why_not(run_dir: Path, step: int = 0, **jobs) -> str | None:
    if step:
        commit(run_dir, step)
    return Job(JOBS | jobs, run_dir)._why_not()


LOST = {"step": 40}
FRUITLESS = {"step": 40, "outcome": "stopped", "last": 40, "fruitless": True}
PREEMPTED = {"step": 40, "outcome": "stopped", "last": 40}


@pytest.mark.parametrize(
    ("before", "refused"),
    [
        ([], False),
        ([LOST, LOST], False),
        ([LOST, LOST, LOST], True),
        ([LOST, FRUITLESS, LOST], True),
        ([LOST, LOST, {"step": 30}], False),
        # Preempted before it could save: nobody's fault, as often as it happens.
        ([PREEMPTED] * 9, False),
        # Those of an earlier job: the user has sent the run again.
        ([LOST | {"job_id": "6"}] * 3, False),
    ],
)
def test_two_restarts_without_a_checkpoint_are_the_last(run_dir, before, refused):
    record(run_dir, *before)
    reason = why_not(run_dir, step=40)
    assert (reason is not None) == refused
    assert reason is None or "3 attempts in a row ended without a checkpoint after step 40" in reason


def test_an_attempt_in_place_is_preempted_with_its_job(run_dir, monkeypatch):
    """Of which accounting knows when it began, hours before perhaps."""
    record(run_dir, FRUITLESS | {"start": 5}, FRUITLESS | {"start": 900}, LOST | {"start": 7200})
    monkeypatch.setattr(budget, "was_preempted", lambda _, start: start == 5)
    assert why_not(run_dir, step=40) is None
    monkeypatch.setattr(budget, "was_preempted", lambda *_: False)
    assert why_not(run_dir, step=40) is not None


def test_progress_starts_the_count_anew(run_dir):
    record(run_dir, LOST, LOST, LOST)
    assert why_not(run_dir, step=60) is None


def test_there_is_a_cap_on_everything(run_dir):
    record(run_dir, *({"step": 10 * n, "outcome": "stopped"} for n in range(4)))
    assert why_not(run_dir, 50, max_requeues=4) is None
    assert "started 4 times" in (why_not(run_dir, 50, max_requeues=3) or "")


def test_a_run_that_is_not_tried_again_says_so(run_dir, capfd):
    record(run_dir, *({"step": 0},) * 3)
    assert Job(JOBS, run_dir).run(["true"]) == 1
    status = read_status(run_dir)
    assert (status["state"], status["failure"]) == ("failed", "budget")
    assert len(read_attempts(run_dir)) == 3


def test_a_cancelled_run_does_not_begin(run_dir):
    end_file(run_dir, "cancelled").touch()
    assert Job(JOBS, run_dir).run(["false"]) == 0
    assert read_status(run_dir)["reason"] == "cancelled"


def test_progress_is_what_was_committed(run_dir):
    assert newest_step(run_dir) == 0
    commit(run_dir, 5)
    commit(run_dir, 20)
    (run_dir / "checkpoints" / "step-00000030").mkdir()
    (run_dir / "checkpoints" / "step-00000040.tmp").mkdir()
    assert newest_step(run_dir) == 20


def test_the_last_trial_to_end_writes_the_sweeps_page(tmp_path, capfd):
    study, python = tmp_path / "a study", shlex.quote(sys.executable)
    content = {"name": "s", "method": "grid", "metric": "top1", "fixed": {}, "parameters": {"seed": {"values": []}}}
    trials = [{"name": f"t{number}", "point": {"seed": str(number)}} for number in range(3)]
    runs = [make_run(study / "t0"), make_run(study / "t1", state="failed"), make_run(study / "t2", state="running")]
    (study / "sweep.json").write_text(json.dumps(content | {"trials": trials}))
    report_sweep(runs[1], python)
    long_ago = {"updated": time.time() - 3600}
    # It was requeued, and waits in the queue.
    (runs[2] / "status.json").write_text(json.dumps(read_status(runs[2]) | {"state": "queued"} | long_ago))
    report_sweep(runs[2], python)
    assert not (study / "report.html").exists()
    # Ended without a word, long ago: nobody waits for it.
    (runs[2] / "status.json").write_text(json.dumps(read_status(runs[2]) | {"state": "running"} | long_ago))
    report_sweep(runs[1], python)
    states = [trial["state"] for trial in page_data(study / "report.html")["trials"]]
    assert states == ["finished", "failed", "running"]
    capfd.readouterr()
    (study / "report.html").unlink()
    (study / "report.html").mkdir()
    report_sweep(runs[1], python)
    assert re.fullmatch(r"the sweep's page could not be written: .*report.html.*\n", capfd.readouterr().err)
    (study / "sweep.json").write_text(json.dumps(content | {"trials": [{"name": 1}]}))
    report_sweep(runs[1], python)
    assert re.fullmatch(r"the sweep's page could not be written: .*\n", capfd.readouterr().err)


@pytest.mark.parametrize(
    ("said", "log", "expected"),
    [
        (
            ["srun: error: n2: task 3: Killed"],
            "Epoch 1\n",
            End("failed", "rank 3 on n2 was killed\n  Epoch 1", "killed", "n2"),
        ),
        (
            ["srun: error: n2: task 3: Out Of Memory"],
            "",
            End("failed", "rank 3 on n2 was killed for want of memory (slurm.mem, data.num_workers)", "oom"),
        ),
        (
            ["slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.", "srun: error: n2: task 3: Killed"],
            "",
            End("failed", "rank 3 on n2 was killed for want of memory (slurm.mem, data.num_workers)", "oom"),
        ),
        (
            ["srun: error: n1: tasks 3,5-7: Exited with exit code 2"],
            "train.py: unknown key a\n  b\nmore\n",
            End("failed", "rank 3 on n1: unknown key a\n  b", "mistake"),
        ),
        (
            ["srun: error: n1: task 3: Exited with exit code 1"],
            "Traceback\nImportError: no torch\n",
            End("failed", "rank 3 on n1: exited with exit code 1\n  Traceback\n  ImportError: no torch", "crash", "n1"),
        ),
        (
            ["srun: error: n1: task 3: User defined signal 2"],
            "",
            End("stopped", "signal SIGUSR2, before the ranks could listen"),
        ),
        (
            ["srun: error: Node failure on n2", "srun: error: n2: task 3: Killed"],
            "",
            End("killed", "node n2 failed", "node", "n2"),
        ),
        (
            ["srun: error: Unable to create step for job 7: Unable to contact slurm controller (connect failure)"],
            "",
            End(
                "failed",
                "srun ended with code 1\n  srun: error: Unable to create step for job 7: "
                "Unable to contact slurm controller (connect failure)",
                "slurm",
            ),
        ),
        (
            ["srun: error: n2: task 3: Segmentation fault"],
            "",
            End("failed", "rank 3 on n2 was ended by a segmentation fault", "killed", "n2"),
        ),
        (
            ["srun: error: Unable to create step"],
            "",
            End("failed", "srun ended with code 1\n  srun: error: Unable to create step", "crash"),
        ),
    ],
)
def test_an_end_that_the_trainer_did_not_tell_is_explained(run_dir, said, log, expected):
    (run_dir / "rank-3.log").write_text(log)
    assert end_of_training(1, said, {"state": "running"}, None, run_dir, None) == expected


@pytest.mark.parametrize("how", ["User defined signal 2", "Terminated"])
def test_a_signal_before_the_ranks_listen_is_a_stop(tmp_path, how):
    said = [f"srun: error: n1: tasks 0-3: {how}"]
    assert end_of_training(1, said, {"state": "running"}, None, tmp_path, None).outcome == "stopped"
    assert end_of_staging(1, said, ["n1"], tmp_path).outcome == "stopped"


@pytest.mark.parametrize(
    ("status", "told", "outcome"),
    [
        ({"state": "stopped", "reason": "signal SIGUSR2"}, None, "stopped"),
        ({"state": "failed", "failure": "nan", "reason": "not finite"}, None, "failed"),
        # Ranks that lost another one: srun knows which, and why.
        ({"state": "failed", "failure": "peer", "reason": "lost the others"}, None, "failed"),
        ({"state": "running"}, "signal SIGTERM", "killed"),
        ({"state": "finished"}, "signal SIGUSR2", "finished"),
    ],
)
def test_the_runs_own_word_goes_first(tmp_path, status, told, outcome):
    said = ["srun: error: n2: task 1: Killed"]
    end = end_of_training(1, said, status, told, tmp_path, "n2")
    assert end.outcome == outcome
    if status.get("failure") == "peer":
        assert end.reason == "rank 1 on n2 was killed"


@pytest.mark.parametrize(("failure", "node"), [("hang", "n3"), ("nccl", "n3"), ("data", "n2"), ("peer", "n3")])
def test_those_that_wait_for_a_node_that_is_gone_are_not_to_blame(tmp_path, failure, node):
    status = {"state": "failed", "failure": failure, "reason": "no step"}
    said = ["srun: error: n2: task 1: Exited with exit code 1"]
    end = end_of_training(1, said, status, None, tmp_path, "n2", "n3")
    assert (end.node, end.failure) == (node, "node" if node == "n3" else failure)


@pytest.mark.parametrize(("at_start", "cause"), [(7200, "preempted"), (80, "walltime"), (None, "preempted")])
def test_the_grace_of_a_preemption_is_no_time_limit(run_dir, monkeypatch, at_start, cause):
    """Slurm gives a job that it preempts a new end."""
    end = at_start and time.time() + at_start
    monkeypatch.setattr(attend, "end_time", lambda _: end)

    def srun(*_):
        nonlocal end
        end = time.time() + 20
        write_status(run_dir, state="stopped")
        return 0

    monkeypatch.setattr(OwnLog, "slurms_word", lambda _: None)
    monkeypatch.setattr(Job, "requeue", lambda *_: 0)
    monkeypatch.setattr(batch, "hostnames", lambda: ["n1"])
    monkeypatch.setattr(Job, "run_step", srun)
    assert Job(JOBS, run_dir).run(["true"]) == 0
    assert read_attempts(run_dir)[-1]["cause"] == cause


@pytest.mark.parametrize(
    ("log", "word"),
    [
        ("", None),
        ("slurmstepd: error: *** STEP 8.0 ON n1 CANCELLED AT 2026-11-22T21:42:13 ***\n", None),
        ("slurmstepd: error: *** JOB 8 ON n1 CANCELLED AT 2026-11-22T21:42:13 ***\n", ""),
        ("slurmstepd: error: *** JOB 8 ON n1 CANCELLED AT 2026-11-22T21:42:13 DUE TO TIME LIMIT ***\n", "TIME LIMIT"),
        ("slurmstepd: error: *** JOB 8 ON n1 CANCELLED AT 2026-11-22T21:42:13 DUE TO PREEMPTION ***\n", "PREEMPTION"),
        ("slurmstepd: error: *** JOB 8 ON n1 CANCELLED AT 2026-11-22T21:42:13 DUE TO JOB REQUEUE ***\n", "JOB REQUEUE"),
    ],
)
def test_slurms_word_on_an_end(log, word):
    assert slurms_word(f"something\n{log}more\n") == word


def see_it_end(run_dir, monkeypatch, srun: list[str], names: str, **jobs) -> list[dict]:
    """Run the job with programs in the place of Slurm's that take down their words; returns the attempts.

    srun: shell lines that the steps are, one after another, the last also of all after it. names: of the job's nodes.
    """
    programs = run_dir / "bin"
    programs.mkdir()
    turns = "".join(f"{turn}) {line};;\n" for turn, line in enumerate(srun[:-1], 1))
    pending = f'[ ! -e {run_dir}/requeued ] || {{ echo "Job is pending execution for job 7" >&2; exit 1; }}'
    texts = {
        "srun": f"echo x >> {run_dir}/turns; case $(wc -l < {run_dir}/turns) in\n{turns}*) {srun[-1]};;\nesac",
        "scontrol": f"case $1-$2 in show-job) cat {run_dir}/end;; show*) echo {names};; ping*) echo is UP;; "
        f"requeue*) {pending};; esac",
    }
    for name, text in texts.items():
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {run_dir}/said\n{text}\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    Job(JOBS | jobs, run_dir).run(["train"])
    return read_attempts(run_dir)


KILLED = 'echo "srun: error: n2: task 1: Killed" >&2; exit 137'
FAILED_NODE = 'echo "srun: error: Task launch for StepId=7.0 failed on node n2: no answer" >&2; exit 1'
FINISHES = """echo '{"state": "finished"}' > status.json"""


def test_a_rank_that_dies_at_each_start_ends_the_run(run_dir, monkeypatch, capfd):
    attempts = see_it_end(run_dir, monkeypatch, [KILLED], "n1 n2")
    assert [(attempt["node"], attempt["cause"], attempt["fruitless"]) for attempt in attempts] == [
        ("n2", "killed", True)
    ] * 3
    ended = read_status(run_dir)
    assert (ended["state"], ended["failure"]) == ("failed", "killed")
    assert re.match(r"rank 1 on n2 was killed\n3 attempts in a row ended without a checkpoint", ended["reason"])


@pytest.mark.parametrize(
    ("at_start", "then", "reason"),
    [
        # Slurm preempted the job after its ranks were out: nobody heard the signal.
        (7200, 300, "preempted: rank 1 on n2 was killed"),
        # Too late to start again here, and still not the time limit's doing.
        (80, 80, "rank 1 on n2 was killed"),
    ],
)
def test_a_job_that_ends_soon_goes_to_the_queue(run_dir, monkeypatch, capfd, at_start, then, reason):
    monkeypatch.chdir(run_dir)
    now = int(time.time())
    (run_dir / "end").write_text(f"EndTime={now + at_start}")
    if then < at_start:
        # Slurm is quicker than we.
        (run_dir / "requeued").touch()
    [attempt] = see_it_end(run_dir, monkeypatch, [f"echo EndTime={now + then} > end; {KILLED}"], "n1 n2")
    assert attempt["cause"] == ("preempted" if then < at_start else "killed")
    assert (read_status(run_dir)["state"], read_status(run_dir)["reason"]) == ("queued", reason)
    assert "scontrol requeue 7" in (run_dir / "said").read_text()


@pytest.mark.parametrize(
    ("heard", "gone", "is_late", "dead"),
    [
        ("n1 n2", "n3", False, ["n3"]),
        ("n1", "n2 n3", False, ["n2", "n3"]),
        # They die slowly, all or some.
        ("", "", False, []),
        ("", "", True, []),
        ("n1 n2", "", False, []),
        ("n1 n2", "", True, ["n3"]),
        # On the first this script runs.
        ("n2 n3", "n1", True, []),
    ],
)
def test_a_node_is_dead_that_slurm_does_not_reach_or_that_alone_is_silent(monkeypatch, heard, gone, is_late, dead):
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setattr(srun, "nodes_that_are_gone", lambda names: [name for name in names if name in gone])
    step = srun.Step("attempt-1", ["n1", "n2", "n3"])
    step.last_lines += [f"srun: error: {node}: task 1: Killed" for node in heard.split()]
    assert step._dead_nodes(is_late) == dead


def test_a_node_that_kills_ranks_twice_makes_room_for_a_spare(run_dir, monkeypatch, capfd):
    monkeypatch.chdir(run_dir)
    attempts = see_it_end(run_dir, monkeypatch, [KILLED, KILLED, FINISHES], "n1 n2 n3", nodes=2)
    assert [attempt["nodes"] for attempt in attempts] == [["n1", "n2"], ["n1", "n2"], ["n1", "n3"]]
    said = (run_dir / "said").read_text()
    assert "scontrol update JobId=7 NodeList=n1,n3\n" in said
    assert "srun --overlap --job-name=attempt-3 --nodes=2 --nodelist=n1,n3 --ntasks=2 --ntasks-per-node=1" in said


@pytest.mark.parametrize(
    ("saved", "more", "nodes"), [(20, {}, ["n1", "n3"]), (20, {"sync_batchnorm": True}, None), (0, {}, None)]
)
def test_without_a_spare_fewer_nodes_make_the_same_batches(run_dir, monkeypatch, capfd, saved, more, nodes):
    """Three ranks would not: 16 is no multiple of 3 x 4. Before the first checkpoint nothing says what a batch is."""
    monkeypatch.chdir(run_dir)
    if saved:
        commit(run_dir, saved)
    (run_dir / "provenance.json").write_text(json.dumps({"plan": {"batch_size": 16, "micro_batch": 4, **more}}))
    attempts = see_it_end(run_dir, monkeypatch, [FAILED_NODE, FINISHES], "n1 n2 n3 n4")
    assert [attempt["nodes"] for attempt in attempts[1:]] == ([nodes] if nodes else [])
    assert ("scontrol requeue 7" in (run_dir / "said").read_text()) == (nodes is None)
    assert ("ExcNodeList=n2" in (run_dir / "said").read_text()) == (nodes is None)


def test_a_damaged_status_does_not_keep_a_job_from_ending_well(run_dir, monkeypatch):
    (run_dir / "status.json").write_text("{")
    monkeypatch.setattr(batch, "hostnames", lambda: ["n1"])
    monkeypatch.setattr(Job, "run_step", lambda *_, **__: 1)
    assert Job(JOBS, run_dir).run(["true"]) == 1
    assert read_status(run_dir)["state"] == "failed"


def test_what_another_trains_is_left_alone(run_dir, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "6")
    lease = Lease(run_dir)
    lease.acquire()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    write_status(run_dir, state="running", step=7)
    jobs = run_dir / "jobs.json"
    jobs.write_text(json.dumps(JOBS | {"runs": [str(run_dir)]}))
    try:
        command = [sys.executable, "-m", "slurm.batch", str(jobs), "true"]
        done = subprocess.run(command, cwd=PROGRAM, capture_output=True, text=True)
    finally:
        lease.release()
    assert done.returncode == 1
    assert "is being trained by process" in done.stderr
    assert (read_status(run_dir)["state"], read_status(run_dir)["step"]) == ("running", 7)


@pytest.mark.parametrize(("noted", "restarts", "attempt"), [("100_2", 1, None), ("102", 1, None), ("100_2", 0, 3)])
def test_the_lease_of_an_earlier_attempt_in_an_array_is_its_own(run_dir, monkeypatch, noted, restarts, attempt):
    """noted: by this version, and by 0.1.0, which noted a task's plain number. attempt: that began in place."""
    for name, value in {"JOB_ID": 102, "ARRAY_JOB_ID": 100, "ARRAY_TASK_ID": 2, "RESTART_COUNT": restarts}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv(ATTEMPT, str(attempt or ""))
    said: list[str] = []
    holder = {"host": "elsewhere", "pid": 7, "job_id": noted, "token": "another", "count": 1, "time": time.time()}
    holder |= {"attempt": attempt - 1} if attempt else {}
    (run_dir / "lease.json").write_text(json.dumps(holder))
    assert holder_elsewhere(run_dir) is None
    lease = Lease(run_dir)
    lease.acquire(said.append)
    # It waits for nobody.
    assert (read_lease(run_dir)["job_id"], said) == ("100_2", [])
    lease.release()


def test_a_run_that_is_trained_elsewhere_does_not_stay_queued(run_dir, monkeypatch):
    holder = {"host": "elsewhere", "pid": 7, "job_id": "6", "token": "another", "count": 1, "time": time.time()}
    (run_dir / "lease.json").write_text(json.dumps(holder))
    (run_dir / "lease.lock").touch()
    write_status(run_dir, state="queued")
    assert Job(JOBS, run_dir).run(["true"]) == 1
    ended = read_status(run_dir)
    assert (ended["state"], ended["failure"]) == ("failed", "lease")
    assert "is being trained by process 7 on elsewhere, job 6" in ended["reason"]


def test_jobs_on_a_node_take_different_ports():
    taken = []
    try:
        for job in range(100, 120):
            port = free_port(str(job))
            listener = socket.socket()
            listener.bind(("", port))
            listener.listen()
            taken.append(listener)
    finally:
        for listener in taken:
            listener.close()
    assert len(taken) == 20


def test_a_port_that_another_program_was_quicker_to_take_is_tried_again(run_dir, monkeypatch):
    monkeypatch.setattr(batch, "hostnames", lambda: ["n1"])
    log, ports = run_dir / "logs" / "attempt-1" / "rank-0.log", []

    def srun(job, words, environment, is_lost):
        ports.append(environment["MASTER_PORT"])
        assert environment[CORES] == "1"
        if len(ports) == 1:
            log.write_text("DistNetworkError: EADDRINUSE")
            job.srun.lines.append("srun: error: n1: task 0: Exited with exit code 1")
            return 1
        write_status(run_dir, state="finished")
        return 0

    monkeypatch.setattr(Job, "run_step", srun)
    assert Job(JOBS, run_dir).run(["true"]) == 0
    assert len(set(ports)) == 2


@pytest.mark.parametrize(
    ("given", "ranks", "cores"),
    [
        # Slurm has bound this rank to 8 cores: they are its own, not to be shared with the node's other ranks.
        ("8", 8, 8),
        # Slurm lets the node's ranks run everywhere.
        ("2", 4, 2),
        ("16", 1, 8),
        (None, 2, 4),
        (None, 1, 8),
        (None, 16, 1),
    ],
)
def test_the_cores_of_a_rank(monkeypatch, given, ranks, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.delenv(CORES, raising=False)
    if given:
        monkeypatch.setenv(CORES, given)
    assert cores_of_rank() == cores


def test_a_taken_port_is_passed_over():
    with socket.socket() as listener:
        listener.bind(("", free_port("31")))
        listener.listen()
        assert free_port("31") != listener.getsockname()[1]


def test_the_batch_script_needs_no_package():
    """With a container it runs on the host's Python."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import slurm.batch"], cwd=PROGRAM, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_status_that_is_finished_stays_so(run_dir, monkeypatch):
    write_status(run_dir, state="finished")
    monkeypatch.setattr(batch, "hostnames", lambda: ["n1"])
    monkeypatch.setattr(Job, "run_step", lambda *_, **__: 0)
    assert Job(JOBS, run_dir).run(["true"]) == 0
    assert read_status(run_dir)["state"] == "finished"


@pytest.mark.parametrize(
    ("reason", "cause"),
    [("signal SIGTERM, before the ranks could listen", "cancelled"), ("signal SIGUSR2", "preempted")],
)
def test_slurms_word_on_a_sigterm_is_awaited(run_dir, monkeypatch, reason, cause):
    """The ranks may have ended of it before Slurm says in the log that a user has cancelled the job."""
    words = iter([None, None, ""])
    monkeypatch.setattr(OwnLog, "slurms_word", lambda _: next(words))
    assert Job(JOBS, run_dir)._cause(End("stopped", reason)) == cause
