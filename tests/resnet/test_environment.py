"""What a process takes from the environment that its launcher and its user gave it."""

import os
import sys

import pytest

from tests.helpers import PROGRAM, finish, start

TELL = f"import sys; sys.path.insert(0, {str(PROGRAM)!r})\n" + (
    "from resnet.process.environment import threads_asked\nprint('threads', threads_asked(), flush=True)\n"
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
        (ACCELERATE, None, "None"),
        (ACCELERATE, "1", "1"),
        (TORCHRUN, None, "None"),
        (TORCHRUN, "2", "2"),
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
