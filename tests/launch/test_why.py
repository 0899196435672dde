"""`launch why` finds faults that were planted: the right cause comes first, with a command that can be typed."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from launch.arguments import split_words
from launch.cli import COMMANDS, main
from launch.runs.job_record import Job
from launch.why import mends, reasons, signs
from launch.why.cause import Cause
from launch.why.facts import Facts, Text
from launch.why.find import causes_of
from launch.why.missed import changes_of
from launch.why.signs import first_sign
from launch.why.slow import less_network
from launch.why.sweep import counted
from launch.why.text import lines
from recipes.load import load
from resnet.process.commands import parse
from resnet.rundir.attempts import end_file
from resnet.rundir.status import write_status
from slurm.pending import Ahead, Partition, ahead_of
from slurm.profile import Profile, change_profile
from tests.fabricated import a_sweep, make_run
from tests.launch.planted import Fault, Place, faults, place_in
from tests.launch.planted.failed import DISTRACTORS, TRACEBACK, Ended, say
from tests.launch.planted.made import CIFAR, Made, diagonal
from tests.launch.planted.waiting import launch_that_was_killed

OTHER_PROGRAMS = (
    "resnet",
    "scontrol",
    "squeue",
    "sinfo",
    "sacctmgr",
    "scancel",
    "srun",
    "ssh",
    "df",
    "ls",
    "top",
    "nvidia-smi",
    sys.executable,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    with place_in(tmp_path_factory.mktemp("planted")) as place:
        yield place


@pytest.mark.parametrize("planted", faults(), ids=lambda planted: planted.id)
def test_right_cause_comes_first(planted: Fault, place: Place):
    said = place.say(planted)
    assert said.right, said.causes
    assert said.first["said"]
    assert len(said.first["evidence"]) <= 3
    for cause in said.causes:
        can_be_typed(cause["command"])


def test_what_became_slower_is_not_slower_than_others_too(tmp_path):
    """By then; what it made before is."""
    with place_in(tmp_path) as place:
        for number in range(3):
            Made(place, f"quick-{number}", *CIFAR, f"seed={number}").log().ended()
        throttled = Made(place, "throttled").log(images_per_second=lambda step: 8000.0 if step < 3000 else 1000.0)
        assert [cause["name"] for cause in place.why(throttled.ended())] == ["slower_than_before"]
        half = Made(place, "half").log(images_per_second=lambda step: 4000.0 if step < 3000 else 1000.0)
        names = [cause["name"] for cause in place.why(half.ended())]
        assert names == ["slower_than_before", "slower_than_others"]


def can_be_typed(command: str) -> None:
    """Raise where the programs would not take a command."""
    for part in filter(None, command.split(" && ")):
        program, *words = shlex.split(part)
        if program != "launch":
            assert program in OTHER_PROGRAMS, command
            continue
        verb, *words = words
        arguments = parse("launch", verb, COMMANDS[verb].what, COMMANDS[verb].module(), words)
        if verb in ("submit", "local"):
            load(split_words(arguments.words).recipe)
        elif verb == "retry":
            changes = [word for word in arguments.words if word.startswith("slurm.")]
            change_profile(Profile().model_dump(), changes, "a test")


def test_there_are_forty():
    assert len(faults()) >= 40


def test_five_lines(tmp_path, capsys):
    run = make_run(tmp_path / "r", state="failed", reason="after step 3: out of GPU memory (CUDA): try", failure="oom")
    with pytest.raises(SystemExit):
        main(["why", str(run)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "r: failed at step 20 of 40"
    assert [line[2:11].strip() for line in lines[1:]][:1] == ["why"]
    assert lines[-1].startswith("  do        launch local recipe=")
    assert len(lines) <= 5


@pytest.mark.parametrize("state", ["finished", "running"])
def test_a_run_that_is_well(tmp_path, capsys, state):
    run = make_run(tmp_path / "r", state=state, top1=95.0)
    with pytest.raises(SystemExit):
        main(["why", str(run), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["well"], told["causes"]) == (state, True, [])
    assert told["figures"]


def test_a_sweeps_causes_are_counted(tmp_path, capsys):
    sweep = a_sweep(tmp_path / "s", a=80.0, b=None, c=None, d=None)
    for name, failure, reason in (
        ("b", "oom", "out of GPU memory"),
        ("c", "oom", "out of GPU memory"),
        ("d", "nan", ""),
    ):
        write_status(sweep / name, failure=failure, reason=reason)
    with pytest.raises(SystemExit):
        main(["why", str(sweep)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "s: 3 of 4 failed: 2 x gpu memory, 1 x nan"
    assert any("(b, c)" in line for line in lines)
    with pytest.raises(SystemExit):
        main(["why", str(sweep), "--json"])
    causes = json.loads(capsys.readouterr().out)["causes"]
    assert [(cause["name"], cause["trials"]) for cause in causes] == [("gpu_memory", ["b", "c"]), ("nan", ["d"])]


@pytest.mark.parametrize(
    ("told", "name", "words"),
    [
        ("QOSMaxGRESPerUser", "qos_limit", "its QOS limits GPUs for one user"),
        ("QOSGrpNodeLimit", "qos_limit", "its QOS limits nodes"),
        ("QOSMinGRES", "qos_limit", "its QOS asks for more GPUs than the job does"),
        ("QOSMaxWallDurationPerJobLimit", "qos_limit", "its QOS limits time for one job, and the job asks for more"),
        ("AssocGrpCPURunMinutesLimit", "account_limit", "its account limits cores times the minutes"),
        ("AssocGrpGRESMinutes", "account_limit", "its account limits GPUs over time"),
        ("AssocMaxJobsLimit", "account_limit", "its account limits running jobs"),
        ("AssociationResourceLimit", "account_limit", "its account limits resources"),
        ("MaxMemPerLimit", "memory", "slurm.mem"),
        ("ReqNodeNotAvail,_UnavailableNodes:n[1-3]", "nodes_unavailable", "down, drained or reserved"),
        ("launch_failed_requeued_held", "launch_failed", "a node could not start it"),
        ("Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved", "nodes_unavailable", "down, drained"),
        ("SomethingNew", "other", "Slurm says: SomethingNew"),
    ],
)
def test_slurms_reasons_in_words(told, name, words):
    found = reasons.read(told)
    assert found.name == name
    assert words in found.words


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=17.0.", "host_memory"),
        ("OSError: [Errno 122] Disk quota exceeded: 'x'", "disk"),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", "no_kernel"),
        ("RuntimeError: No CUDA GPUs are available", "no_gpu"),
        ("Failed to initialize NVML: Driver/library version mismatch", "driver"),
        ("torch.AcceleratorError: CUDA error: device-side assert triggered", "labels"),
        ("[ 1.2] NVRM: Xid (PCI:0000:4e:00): 79, GPU has fallen off the bus.", "gpu_fault"),
        ("FATAL:   could not open image /shared/resnet.sif: no such file", "container"),
        ("/bin/sh: exec: /old/venv/bin/python3: not found", "no_python"),
        ("slurmstepd: error: execve(): /old/venv/bin/python: No such file or directory", "no_python"),
        ("ImportError: cannot import name 'x' from 'torch'", "import"),
        ("train.py: 4 ranks were asked for and Slurm started 1", "ranks"),
        ("train.py: the name of the first node, gpu07, does not resolve on gpu08", "name"),
        (
            "NCCL WARN socketStartConnect: Connect to 10.0.0.2<41> failed : No route to host",
            "network",
        ),
        ("OSError: [Errno 116] Stale file handle: '/data/a.jpg'", "file_system"),
        ("OSError: [Errno 24] Too many open files", "open_files"),
        ("RuntimeError: index 1000 is out of bounds for dimension 1 with size 1000", "labels"),
        ("OSError: [Errno 28] No space left on device: '/dev/shm/torch_1'", "shared_memory"),
        ("RuntimeError: unable to write to file </torch_1_2>: No space left on device (28)", "shared_memory"),
    ],
)
def test_signs(line, name):
    found = first_sign([Text("log", ["a line before", line])])
    assert found is not None
    assert found.sign.name == name


@pytest.mark.parametrize(
    "line",
    [
        "epoch 3/90 step 120 loss 6.91 lr 0.1 img/s 812 ETA 3h02m",
        "wandb: Network error (ConnectionError), entering retry loop.",
        "UserWarning: The given NumPy array is not writable",
        "stopped (signal SIGUSR2) after step 40, with a checkpoint",
        "[W ProcessGroupNCCL.cpp:1250] Warning: WARNING: destroy_process_group() was not called",
        "there is no better checkpoint yet",
        "srun: error: n1: task 3: Exited with exit code 1",
        "IndexError: index 5 is out of bounds for dimension 0 with size 5",
        *DISTRACTORS,
    ],
)
def test_what_is_no_sign(line):
    assert first_sign([Text("log", [line])]) is None


def test_the_first_sign_of_the_most_telling_text_counts():
    later, earlier = "OSError: No space left on device", "RuntimeError: CUDA error: out of memory"
    found = first_sign([Text("a", ["-", later, earlier]), Text("b", [earlier])])
    assert found is not None
    assert (found.sign.name, found.place) == ("disk", "a")


def first_cause(run_dir: Path, **row: object) -> Cause:
    """row: changes to what is known of the run, with which Slurm is not asked."""
    facts = Facts(run_dir)
    return causes_of(Facts(run_dir, facts.row | row) if row else facts)[0]


def test_a_ranks_own_exception_is_not_explained_by_other_lines(tmp_path):
    run = Ended(Place(tmp_path), "own")
    logs = run.attempt()
    say(logs, 2, *TRACEBACK, "OSError: [Errno 116] Stale file handle: '/data/a.jpg'")
    run.rank_fails(2, "AttributeError: 'NoneType' object has no attribute 'shape'", "crash")
    say(logs, 2, *TRACEBACK, "AttributeError: 'NoneType' object has no attribute 'shape'")
    say(logs, 0, *TRACEBACK, "OSError: [Errno 28] No space left on device: '/tmp/x'")
    cause = first_cause(run.ends("n1: Read-only file system", "srun: error: n2: task 2: Exited with exit code 1"))
    assert cause.name == "crash"
    assert "NoneType" in cause.said


def test_a_workers_end_is_explained_by_slurms_word(tmp_path):
    run = Ended(Place(tmp_path), "worker")
    run.attempt()
    run.rank_fails(2, "RuntimeError: DataLoader worker (pid(s) 123) exited unexpectedly", "crash")
    oom = "slurmstepd: error: Detected 1 oom_kill event in StepId=17.0. Some of the step tasks have been OOM Killed."
    assert first_cause(run.ends(oom, "srun: error: n2: task 2: Exited with exit code 1")).name == "host_memory"


def test_what_an_attempt_before_printed_explains_nothing(tmp_path):
    run = Ended(Place(tmp_path), "older")
    run.attempt()
    run.batch_log("slurmstepd: error: Detected 1 oom_kill event in StepId=17.0.")
    run.told("killed", "rank 3 on n2 was killed", None, cause="killed")
    run.attempt()
    for rank in (2, 0, 1, 3):
        run.rank_fails(rank, "no step for 10 minutes (a hang); the stacks are in logs/rank-2.log", "hang")
    assert first_cause(run.ends("srun: error: n2: task 2: Exited with exit code 1")).name == "hang"


def test_a_start_that_failed_before_its_attempt_is_told(tmp_path):
    run = Ended(Place(tmp_path), "setup-later")
    run.attempt()
    run.batch_log("slurmstepd: error: Detected 1 oom_kill event in StepId=17.0.")
    run.told("killed", "rank 3 on n2 was killed", None, cause="killed")
    run.batch_log("slurmstepd: error: *** JOB 17 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO JOB REQUEUE ***")
    assert first_cause(run.run_dir).name == "host_memory"
    run.batch_log("slurm.setup failed: module load cuda/99.9")
    assert first_cause(run.run_dir).name == "setup"


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("OSError: [Errno 28] No space left on device: '{root}/disk/checkpoints/x'", "launch clean --dry-run"),
        ("OSError: [Errno 28] No space left on device", "launch clean --dry-run"),
        (
            "OSError: [Errno 28] No space left on device: '/tmp/torchinductor_me/x'",
            "launch retry {run} slurm.exclude=n1",
        ),
        ("OSError: [Errno 122] Disk quota exceeded: '/home/me/.cache/x'", "df -h /home/me/.cache"),
        ("PermissionError: [Errno 13] Permission denied: '/data/a b'", "ls -ld /data '/data/a b'"),
        ("FATAL:   could not open image /shared/resnet.sif: no such file", "launch doctor cluster=local-test"),
        ("train.py: data.train=/data/x: there is no /data/x.", "srun --nodelist=n1 ls -d /data/x"),
        (
            "ModuleNotFoundError: No module named 'our_losses'",
            f"{sys.executable} -c 'import our_losses' && launch retry {{run}}",
        ),
    ],
)
def test_what_mends_it(tmp_path, line, command):
    run = Ended(Place(tmp_path), "disk")
    run.attempt()
    run.rank_fails(0, line.format(root=run.run_dir.parent), "crash")
    cause = first_cause(run.ends("srun: error: n1: task 0: Exited with exit code 1"))
    assert cause.command == command.format(run=run.run_dir)


def test_a_look_at_a_node_reaches_the_runs_cluster(tmp_path):
    run = Ended(Place(tmp_path), "far", "slurm.client={SLURM_CONF: /etc/two/slurm.conf}")
    run.attempt()
    run.rank_fails(0, "FileNotFoundError: [Errno 2] No such file or directory: '/data/x'", "crash")
    cause = first_cause(run.ends("srun: error: n1: task 0: Exited with exit code 1"))
    assert cause.command == "env SLURM_CONF=/etc/two/slurm.conf srun --nodelist=n1 ls -d /data/x"


@pytest.mark.parametrize(
    ("told", "moves"),
    [
        ("Resources", "hole nodes partition time"),
        ("QOSMaxJobsPerUserLimit", ""),
        ("QOSGrpGRESMinutes", ""),
        ("QOSMinGRES", ""),
        ("AssocMaxJobsLimit", ""),
        ("AssocGrpCPURunMinutesLimit", "nodes time"),
        ("QOSMaxNodePerUserLimit", "nodes"),
        ("QOSMaxWallDurationPerJobLimit", "time"),
        ("PartitionTimeLimit", "partition time"),
        ("QOSNotAllowed", "partition"),
        ("AccountNotAllowed", "partition"),
        ("BadConstraints", "partition"),
        ("JobHeldAdmin", ""),
        ("SomethingNew", ""),
    ],
)
def test_only_what_removes_its_reason_is_offered(told, moves):
    assert sorted(reasons.read(told).moves) == moves.split()


@pytest.mark.parametrize(
    ("limit", "told"),
    [("10", "0:20:00"), ("1-00:00:00", "48:00:00"), ("auto", "24:00:00"), ("auto:2:00:00", "auto")],
)
def test_a_longer_limit_than_was_too_short(tmp_path, limit, told):
    run = Ended(Place(tmp_path), "short", f"slurm.time={limit}").run_dir
    assert mends.longer(Facts(run)) == f"slurm.time={told}"


def test_idle_nodes_are_no_way_out_of_a_limit(tmp_path):
    run = Ended(Place(tmp_path), "limited", "slurm.time=1-00:00:00").run_dir
    (run / "slurm" / "17_submission.sh").touch()
    job = {"Partition": "gpu", "NumNodes": "2", "TimeLimit": "1-00:00:00", "Priority": "5"}
    queue = Ahead(2, 5, time.time() + 3600)
    facts = Facts(run)
    facts.row = facts.row | {"state": "queued", "slurm_state": "PENDING", "job_id": "17", "cluster": "local-test"}

    def command(reason: str) -> str:
        with (
            mock.patch("launch.why.waiting.show_job", return_value=job | {"Reason": reason}),
            mock.patch("launch.why.waiting.ahead_of", return_value=queue),
            mock.patch("launch.why.sooner.partitions", return_value=[Partition("gpu", True, None, 4)]),
        ):
            return causes_of(facts)[0].command

    assert "TimeLimit=59" in command("Priority") or "TimeLimit=60" in command("Priority")
    assert command("QOSMaxJobsPerUserLimit") == reasons.QOS
    assert command("BadConstraints").startswith("sinfo ")


def test_who_can_release_a_held_job_is_said(tmp_path):
    run = Ended(Place(tmp_path), "held").run_dir
    waits = {"state": "queued", "slurm_state": "PENDING", "slurm_reason": "JobHeldAdmin", "job_id": "17"}
    facts = Facts(run, Facts(run).row | waits)
    assert "ask an administrator" in lines(facts, causes_of(facts))[-1]


def test_a_run_that_was_never_sent_is_sent_and_not_trained_here(tmp_path, capsys):
    run = launch_that_was_killed(Place(tmp_path))
    command = f"launch submit recipe={run} run.root={run.parent} run.name=unsent cluster=NAME"
    assert first_cause(run).command == command
    with pytest.raises(SystemExit):
        main(["retry", str(run)])
    assert command in capsys.readouterr().err


def test_other_requests_of_the_same_run_are_not_ahead(monkeypatch):
    told = "17|5|N/A\n18|9|N/A\n19|9|N/A\n20|1|N/A\n"
    monkeypatch.setattr("slurm.pending.ask", lambda _: told)
    assert ahead_of("17", "gpu", 5, ["17", "18"]) == Ahead(2, 3, None)


@pytest.mark.parametrize(
    ("classes", "top1", "learnt", "name"),
    [(2, 74.0, 75.0, None), (2, 52.0, 53.0, "learns_nothing"), (2, 52.0, 90.0, "validation"), (10, 17.0, 17.0, None)],
)
def test_what_is_no_more_than_guessing(tmp_path, classes, top1, learnt, name):
    values: Any = {"train/top1": lambda _: learnt}
    made = Made(Place(tmp_path), "guesses").log(top1=top1, **values)
    made.evaluated(diagonal(classes, 100, top1 / 100), "abcdefghij"[:classes])
    found = [cause.name for cause in causes_of(Facts(made.ended())) if cause.name in ("learns_nothing", "validation")]
    assert found == ([name] if name else [])


def test_pruned_trials_and_swept_keys_are_no_faults(tmp_path):
    sweep = a_sweep(tmp_path / "s", a=80.0, b=70.0, c=None)
    write_status(sweep / "b", state="stopped", reason="pruned", failure=None)
    (sweep / "b" / "slurm").mkdir(exist_ok=True)
    end_file(sweep / "b", "pruned").touch()
    write_status(sweep / "c", failure="oom", reason="out of GPU memory")
    with mock.patch("time.time", return_value=time.time() + 9999):
        found = counted(sweep)
    assert found["trials"] == 2
    assert [(cause["name"], cause["command"]) for cause in found["causes"]] == [("gpu_memory", f"launch retry {sweep}")]
    assert Facts(sweep / "a").swept == {"optimizer.lr"}
    assert "optimizer.lr" not in changes_of(Facts(sweep / "a"))


def test_nodes_that_were_left_out_stay_out(tmp_path):
    run = Ended(Place(tmp_path), "exclude", "slurm.exclude=n7")
    run.attempt()
    run.rank_fails(2, "AcceleratorError: CUDA error: uncorrectable ECC error encountered", "device")
    cause = first_cause(run.ends("srun: error: n2: task 2: Exited with exit code 1"))
    assert cause.command == f"launch retry {run.run_dir} slurm.exclude=n7,n2"


def test_changes_that_a_retry_made_are_kept(tmp_path):
    with mock.patch("sys.argv", ["launch", "retry", "again", "slurm.nodes=2", "slurm.time=5:00:00"]):
        run = Ended(Place(tmp_path), "again", "slurm.time=5:00:00").run_dir
    command = mends.changed(Facts(run), "checkpoint.every=auto")
    assert {"slurm.nodes=2", "slurm.time=5:00:00", "checkpoint.every=auto"} <= {*shlex.split(command)}


@pytest.mark.parametrize(
    ("nodes", "batch", "told"),
    [("4", 128, "slurm.nodes=2"), ("2-4", 96, "slurm.nodes=2"), ("1-4", 128, "slurm.nodes=1-2"), ("1", 128, "topo")],
)
def test_fewer_nodes_are_those_that_the_run_takes(tmp_path, nodes, batch, told):
    words = ("recipe=cifar10_resnet20", "epochs=20", "schedule.milestones=[10,15]", f"batch_size={batch}")
    made = Made(Place(tmp_path), "network", *words, ranks=4).sent(nodes=nodes, gpus_per_node=1, cpus_per_rank=4)
    command = less_network(Facts(made.ended("failed")))
    assert command.split(" ")[-1].strip("'") == told or told == "topo"
    assert ("topo" in command) == (told == "topo")


def test_evaluations_are_no_rarer_than_the_run_is_long(tmp_path):
    made = Made(Place(tmp_path), "evaluates").log()
    made.attempt()
    made.spent({}, 0, made.plan.end_step, start=5.0, train=100.0, evaluate=3900.0)
    causes = causes_of(Facts(made.ended("stopped", step=made.plan.end_step)))
    [command] = [cause.command for cause in causes if cause.name == "evaluation"]
    assert "eval.every=20" in command.split(" ")


def test_another_device_explains_another_speed(tmp_path):
    made = Made(Place(tmp_path), "moved")
    made.attempt()
    made.attempt(3910, devices=["NVIDIA A100"])
    made.log(images_per_second=lambda step: 9000.0 if step <= 3910 else 4000.0)
    [cause] = [cause for cause in causes_of(Facts(made.ended())) if cause.name == "slower_than_before"]
    assert "NVIDIA H100 80GB HBM3 and NVIDIA A100" in cause.said


def test_a_run_that_was_told_to_stop_is_not_called_failed(tmp_path):
    run = make_run(tmp_path / "r", state="stopped", reason="signal SIGTERM")
    facts = Facts(run, Facts(run).row | {"over": True, "updated": time.time() - 9999})
    assert lines(facts, causes_of(facts))[0].startswith("r: stopped")


def test_a_long_line_takes_no_time():
    before = time.process_time()
    assert first_sign([Text("log", ["x" * 1_000_000])]) is None
    assert time.process_time() - before < 1


def test_what_would_start_sooner_does(place: Place):
    """One of two nodes is in use: on the other the run starts at once, by the command that is told."""
    cluster = place.cluster
    if jobs := cluster.queue():
        cluster.ask("scancel", *jobs)
        cluster.wait("the queue is empty", lambda: not cluster.queue())
    cluster.ask("scontrol", "update", "PartitionName=high", "State=DOWN")
    try:
        busy = ["-N1", "--exclusive", "--time=30", "--output=/dev/null", "--wrap", "exec sleep 900"]
        cluster.ask("sbatch", *busy)
        cluster.wait("a node is busy", lambda: "RUNNING" in cluster.queue().values())
        run = place.send("sooner", "slurm.nodes=2", "slurm.exclusive=true", "slurm.time=20")
        [cause] = place.why(run)
    finally:
        cluster.ask("scontrol", "update", "PartitionName=high", "State=UP")
    assert cause["command"] == f"launch cancel {run} && launch retry {run} slurm.nodes=1-2"
    assert "on 1 of 2 nodes it would start now (1 node is idle: sinfo, squeue)" in cause["evidence"][1]
    for part in cause["command"].split(" && "):
        cluster.launch(*shlex.split(part)[1:])
    job = cluster.job("sooner")
    cluster.wait("the run starts", lambda: cluster.queue().get(job) == "RUNNING", 60)
    cluster.launch("cancel", "--now", run)


def test_what_mends_a_run_in_a_held_allocation_is_what_can_be_done_there(tmp_path):
    """No key that only a job of the run's own has, and the allocation that a login node has to be told."""
    facts = Facts(Ended(Place(tmp_path), "held").run_dir)
    job = Job.to_send("held", "held", Profile(gpus_per_node=0, ranks_per_node=2), tmp_path, tmp_path)
    facts.job = replace(job, held=True, command="launch local recipe=quickstart slurm.nodes=1 --cpu-ranks 2")
    again = f"launch retry {facts.typed} --in JOBID"
    assert mends.retry(facts) == again
    assert mends.retry(facts, "slurm.time=4:00:00") == again
    assert mends.retry(facts, "slurm.mem=0", "slurm.setup='[]'") == f"{again} slurm.setup='[]'"
    assert mends.retry(facts, "--new-code") == f"{again} --new-code"
    for bad in ("--exclude-bad-nodes", mends.excluding(facts, "n3")):
        assert mends.retry(facts, bad) == f"{again} slurm.check=true"
    assert "slurm.mem" not in signs._less_memory_of_workers(facts, "")
    assert mends.doctor(facts) == again
    changed = mends.changed(facts, "grad_clip_norm=1")
    assert changed.startswith(f"launch submit --in JOBID recipe={facts.run_dir} slurm.nodes=1 grad_clip_norm=1 ")
