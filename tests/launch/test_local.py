"""`launch local`: real runs through accelerate, and what signals do to processes that stand for it."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch import cli
from launch.runs import attend
from launch.runs.here import visible_gpus
from resnet.process.processes import children
from resnet.rundir.status import read_status
from tests.helpers import OFF, PROGRAM, TINY, finish, start, status
from tests.resnet.test_ends import newest_step, processes_with, reaches, wait_for

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")

LONG = ["epochs=5000", "eval.every=5000"]
"""Runs until it is stopped."""


@pytest.fixture
def tiny(shapes, tmp_path) -> list[str]:
    return [*TINY, f"data.train={shapes}", f"run.root={tmp_path}"]


@pytest.fixture
def mark(tmp_path):
    """A word in the environment of all processes of a test; none of them outlives it."""
    name = f"local-{os.getpid()}-{tmp_path.name}"
    yield name
    for process in processes_with(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.fixture
def around(tmp_path) -> dict[str, object]:
    """An environment that would spoil a run: accelerate's own file, what another launcher or a batch script exports."""
    config = tmp_path / "hf" / "accelerate" / "default_config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("{distributed_type: FSDP, num_machines: 2, num_processes: 4, mixed_precision: fp16, gpu_ids: 7}")
    return {"HF_HOME": tmp_path / "hf", "MASTER_ADDR": "nowhere", "WORLD_SIZE": 8, "ACCELERATE_USE_FSDP": "true"}


def begin(mark: str, *words: object, **environment: object) -> subprocess.Popen[str]:
    return start("-m", "launch", "local", *words, on_cores=2, TEST_MARK=mark, **environment)


def no_process_left(mark: str) -> None:
    wait_for(lambda: not processes_with(mark))


# Runs


def test_two_at_once_finish_whatever_is_around_and_are_logged_and_retried(tiny, tmp_path, mark, around):
    """`launch logs` shows all that the ranks printed, and `launch retry` continues runs on as many ranks."""
    root = tmp_path / "my runs"
    done, broken = root / "the first", root / "the second"
    words = [*tiny, f"run.root={root}", "epochs=2", "max_steps=2", "data.max_train=32", "data.max_val=8"]
    both = [begin(mark, *words, f"run.name={run.name}", "--cpu-ranks", 2, **around) for run in (done, broken)]
    for run, ended in zip((done, broken), map(finish, both), strict=True):
        assert ended.returncode == 0, ended.stderr
        assert "basic 1-1-1 on 2 x CPU" in ended.stdout
        assert (status(run)["state"], status(run)["step"]) == ("finished", 2)
        assert json.loads((run / "provenance.json").read_text())["world_size"] == 2
        assert (run / "logs" / "attempt-1" / "rank-1.log").is_file()
        assert all(re.match(r" *\d+%  ", line) for line in ended.stderr.splitlines()), ended.stderr
    no_process_left(mark)

    def launched(*words: object, code: int = 0) -> str:
        done = finish(start("-m", "launch", *words, "--root", root, on_cores=2))
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    log = launched("logs", done.name)
    assert "basic 1-1-1 on 2 x CPU" in log
    assert "finished: best top1" in log
    recipe = broken / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("max_steps: 2", "max_steps: null"))
    (broken / "status.json").write_text(json.dumps(status(broken) | {"state": "failed"}))
    told = launched("retry", done.name, broken.name, code=2)
    assert f"launch retry: {done.name} is finished" in told
    assert f"{broken.name} continues here from step 2" in told
    assert (status(broken)["state"], status(broken)["step"]) == ("finished", 4)
    assert "basic 1-1-1 on 2 x CPU" in launched("logs", broken.name, "--attempt", "2")
    assert "retry cannot change the recipe" in launched("retry", done.name, "epochs=3", code=2)


@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGTERM, 2), (signal.SIGUSR2, 1)])
def test_a_signal_stops_the_run_with_a_checkpoint(tiny, tmp_path, mark, number, ranks):
    process = begin(mark, *tiny, *LONG, "run.name=r", "--cpu-ranks", ranks)
    run = tmp_path / "r"
    wait_for(reaches(run, 2))
    process.send_signal(number)
    done = finish(process)
    assert done.returncode == 85, done.stderr
    no_process_left(mark)
    found = status(run)
    assert (found["state"], found["reason"]) == ("stopped", f"signal {number.name}")
    assert newest_step(run) == found["step"]
    assert "Traceback" not in done.stderr


def test_ctrl_c_in_a_terminal(tiny, tmp_path, mark):
    words = [*tiny, *LONG, "run.name=r"]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(PROGRAM)
        os.environ.update(TEST_MARK=mark, TERM="xterm")
        os.execv(sys.executable, [sys.executable, "-m", "launch", "local", *words])
    shown = bytearray()

    def read():
        with contextlib.suppress(OSError):
            while part := os.read(terminal, 4096):
                shown.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    wait_for(lambda: b"loss" in shown)
    os.write(terminal, b"\x03")
    _, code = os.waitpid(child, 0)
    reader.join()
    os.close(terminal)
    assert os.waitstatus_to_exitcode(code) == 85, shown.decode()
    assert re.search(r"\r +0% .*loss", shown.decode()), "a live bar"
    assert status(tmp_path / "r")["reason"] == "signal SIGINT"
    no_process_left(mark)


def test_the_run_stops_with_a_checkpoint_where_the_launcher_is_killed(tiny, tmp_path, mark):
    process = begin(mark, *tiny, *LONG, "run.name=r", "--cpu-ranks", 2)
    run = tmp_path / "r"
    wait_for(reaches(run, 2))
    process.kill()
    finish(process)
    no_process_left(mark)
    found = status(run)
    assert (found["state"], found["reason"]) == ("stopped", "signal SIGTERM")
    assert newest_step(run) == found["step"]


def test_a_signal_before_the_training_ends_it_at_once(tiny, tmp_path, mark):
    process = begin(mark, *tiny, *LONG, "run.name=r", "--cpu-ranks", 2)
    wait_for(lambda: len(processes_with(mark)) >= 2)
    process.send_signal(signal.SIGTERM)
    done = finish(process, 60)
    assert (done.returncode, done.stdout) == (85, "")
    assert done.stderr == "launch local: stopped before the training began, nothing was written\n"
    assert not (tmp_path / "r").exists()
    no_process_left(mark)


def test_a_run_that_fails_says_so_once(tiny, tmp_path, mark):
    words = [*tiny, "optimizer.lr=1e30", "schedule.name=constant", "epochs=2", "run.name=r"]
    done = finish(begin(mark, *words, "--cpu-ranks", 2))
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("training failed: ") == 1
    assert "the loss is not finite" in done.stderr
    assert not re.search("Traceback|ChildFailedError|elastic", done.stderr)
    assert read_status(tmp_path / "r")["failure"] == "nan"
    no_process_left(mark)


def test_a_mistake_that_only_the_trainer_sees(tmp_path, mark, around):
    words = ["recipe=quickstart", *OFF, "data={source: image_folder, train: /nowhere/train, val: /nowhere/val}"]
    done = finish(begin(mark, *words, f"run.root={tmp_path / 'runs'}", **around))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("train.py: data.train=/nowhere/train: there is no /nowhere/train")
    assert done.stderr.count("/nowhere") == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lr=1"], "unknown key lr (command line): did you mean optimizer.lr?"),
        (["--cpu-ranks", "5"], "batch_size 48 does not divide over 5 devices"),
        (["--cpu-ranks", "0"], "--cpu-ranks 0: give 1 or more"),
        (["--gpus", "5"], "--gpus 5, but 2 can be seen here"),
        (["--gpus", "2", "device=cpu"], "device=cpu trains without GPUs"),
        (["--cpu-ranks", "2", "device=cuda"], "device=cuda asks for a GPU"),
        (["--gpus", "2", "--cpu-ranks", "2"], "not allowed with"),
    ],
)
def test_mistakes_end_before_anything_starts(capsys, monkeypatch, words, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started something"))
    with pytest.raises(SystemExit) as left:
        cli.main(["local", "recipe=quickstart", *words])
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert message in error
    assert "Traceback" not in error


def test_nothing_slow_is_imported_here():
    code = "import sys, launch.commands.local; print([n for n in ('torch', 'accelerate', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROGRAM, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# GPUs


@pytest.mark.parametrize(
    ("chosen", "count"),
    [("", 0), ("-1", 0), ("0", 1), ("2,3", 2), ("0, 1", 2), ("0,-1,1", 1), ("GPU-8f,MIG-2a", 2), ("NoDevFiles", 0)],
)
def test_visible_gpus_are_those_that_are_chosen(monkeypatch, chosen, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == count


@pytest.mark.parametrize(
    ("script", "count"),
    [
        ("echo 'GPU 0: A (UUID: GPU-1)'; echo '  MIG 1g Device 0: (UUID: MIG-1)'; echo 'GPU 1: A (UUID: GPU-2)'", 2),
        ("echo 'GPU access blocked'; exit 9", 0),
    ],
)
def test_visible_gpus_are_those_that_the_driver_lists(monkeypatch, tmp_path, script, count):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == count
    (tmp_path / "nvidia-smi").unlink()
    assert visible_gpus() == 0


# Signals, with scripts in the place of accelerate and its ranks

RANK = """
import os, signal, sys, time
def note(number, _):
    with open(sys.argv[1], "a") as log:
        print(os.getpid(), signal.Signals(number).name, file=log, flush=True)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, note)
while True:
    time.sleep(1)
"""
LAUNCHER = """
import signal, subprocess, sys
rank, log = sys.argv[1:]
ranks = [subprocess.Popen([sys.executable, "-c", rank, log], start_new_session=True) for _ in range(2)]
helper = subprocess.Popen(["sleep", "100"])
for rank in ranks:
    rank.wait()
helper.kill()
sys.exit(128 + signal.SIGKILL)
"""


@pytest.fixture
def attended(tmp_path, mark):
    """A launcher with two ranks that is attended to: received signals, file of what the ranks noted, how it ended."""
    log = tmp_path / "log"
    log.touch()
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, RANK, log], start_new_session=True, env=os.environ | {"TEST_MARK": mark}
    )
    received, ended = [], []
    thread = threading.Thread(target=lambda: ended.append(attend.attend(process, 2, received)))
    thread.start()
    yield process, received, log, ended
    received += [signal.SIGINT] * 3
    thread.join()


def ready(process, mark):
    wait_for(lambda: len(attend.ranks_of(process.pid)) == 2)
    assert len(processes_with(mark)) == 4
    time.sleep(0.5)


def test_each_rank_gets_each_signal_once(attended, mark):
    process, received, log, ended = attended
    ready(process, mark)
    ranks = sorted(map(str, attend.ranks_of(process.pid)))
    for number, lines in ((signal.SIGTERM, 2), (signal.SIGINT, 4), (signal.SIGUSR2, 6), (signal.SIGINT, 8)):
        received.append(number)
        wait_for(lambda lines=lines: len(log.read_text().splitlines()) == lines)
    time.sleep(0.5)
    noted = [line.split() for line in log.read_text().splitlines()]
    for rank in ranks:
        assert [name for pid, name in noted if pid == rank] == ["SIGTERM", "SIGINT", "SIGUSR2", "SIGINT"]
    assert process.poll() is None
    assert ended == []


def test_the_third_interrupt_kills_all(attended, mark, capsys):
    process, received, _, ended = attended
    ready(process, mark)
    received += [signal.SIGINT] * 3
    wait_for(lambda: ended == [130])
    no_process_left(mark)
    assert "launch local: stopped at once" in capsys.readouterr().err


def test_a_rank_that_was_killed_is_told(attended, mark, capsys):
    process, _, _, ended = attended
    ready(process, mark)
    for rank in attend.ranks_of(process.pid):
        os.kill(rank, signal.SIGKILL)
    wait_for(lambda: ended == [1])
    assert capsys.readouterr().err == "launch local: a process of the training was killed (SIGKILL)\n"


def test_children_are_found_without_proc(monkeypatch, tmp_path):
    if shutil.which("ps") is None:
        pytest.skip("no ps")
    monkeypatch.setattr("resnet.process.processes.PROC", tmp_path / "no")
    with subprocess.Popen(["sleep", "100"]) as child:
        assert child.pid in children(os.getpid())
        assert child.pid not in children(child.pid)
        child.kill()
