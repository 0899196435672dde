"""What a process takes from the environment that its launcher and its user gave it, and how it leaves."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

import resnet.main
from tests.helpers import PROGRAM, finish, start, train

TELL = f"import sys; sys.path.insert(0, {str(PROGRAM)!r})\n" + (
    "from resnet.process.environment import threads_asked\nfrom resnet.process.streams import forgive_output\n"
    "forgive_output()\nprint('threads', threads_asked(), flush=True)\n"
)
ALONE = ()
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes", "1", "--mixed_precision", "no")
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


@pytest.mark.parametrize(
    ("launcher", "given", "asked"),
    [
        (ALONE, None, "None"),
        (ALONE, "1", "1"),
        (ALONE, "3,2", "3"),
        (ALONE, "many", "None"),
        (ACCELERATE, "1", "1"),
        (TORCHRUN, None, "None"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="looks at the launcher's environment in /proc")
def test_threads_are_those_that_the_user_asked_for(tmp_path, monkeypatch, launcher, given, asked):
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")] + ["OMP_NUM_THREADS"]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tell.py").write_text(TELL)
    done = finish(start(*launcher, tmp_path / "tell.py", **({"OMP_NUM_THREADS": given} if given else {})))
    assert done.returncode == 0, done.stderr
    assert {line for line in done.stdout.splitlines() if line.startswith("threads")} == {f"threads {asked}"}


def test_without_an_output_the_exit_code_is_right():
    command = f"exec {sys.executable} train.py recipe=nobodys >&- 2>&-"
    assert subprocess.run(command, shell=True, cwd=PROGRAM).returncode == 2


@pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET"), reason="one write has to be told from the next")
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_line_is_one_write(monkeypatch, name):
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    text = f"import sys; from resnet.process.streams import forgive_output; forgive_output(); stream = sys.{name}\n"
    text += "for rank in range(2): print('rank', rank, file=stream)\nprint('50%', end='\\r', file=stream, flush=True)"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(10)
    with ours, theirs:
        subprocess.run([sys.executable, "-c", text], cwd=PROGRAM, check=True, **{name: theirs})
        assert [ours.recv(100) for _ in range(3)] == [b"rank 0\n", b"rank 1\n", b"50%\r"]


@pytest.mark.parametrize("code", [0, 85])
def test_leaving_loses_nothing_that_was_printed(code):
    text = f"from resnet.process.streams import leave; print('x' * 100_000); leave({code})"
    done = finish(start("-c", text))
    assert (done.returncode, len(done.stdout)) == (code, 100_001)


def test_a_profiler_gets_to_write(tmp_path):
    finish(start("-m", "cProfile", "-o", tmp_path / "profile", "train.py", "recipe=nobodys"))
    assert (tmp_path / "profile").stat().st_size > 1000


def test_a_signal_during_the_imports_ends_at_once(monkeypatch, tmp_path, capsys):
    def slow():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

    monkeypatch.setattr(resnet.main, "_heavy", slow)
    assert train("recipe=quickstart", f"run.root={tmp_path}") == 85
    assert "stopped (SIGTERM) before anything was written" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
