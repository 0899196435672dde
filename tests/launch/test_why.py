"""`launch why` finds faults that were planted: the right cause comes first, with a command that can be typed."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator

import pytest

from launch.arguments import split_words
from launch.cli import COMMANDS, main
from launch.why import reasons
from launch.why.facts import Text
from launch.why.signs import first_sign
from recipes.load import load
from resnet.process.commands import parse
from resnet.rundir.status import write_status
from slurm.profile import Profile, change_profile
from tests.fabricated import a_sweep, make_run
from tests.launch.planted import Fault, Place, faults, place_in

OTHER_PROGRAMS = ("resnet", "scontrol", "squeue", "sinfo", "sacctmgr", "scancel", "ssh", sys.executable)


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
    run = make_run(tmp_path / "r", state=state)
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
    ],
)
def test_what_is_no_sign(line):
    assert first_sign([Text("log", [line])]) is None


def test_the_first_sign_of_the_most_telling_text_counts():
    later, earlier = "OSError: No space left on device", "RuntimeError: CUDA error: out of memory"
    found = first_sign([Text("a", ["-", later, earlier]), Text("b", [earlier])])
    assert found is not None
    assert (found.sign.name, found.place) == ("disk", "a")


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
