import subprocess
import sys

import pytest

from resnet.process.version import VERSION
from resnet.tools.cli import main
from tests.helpers import PROGRAM


def typed(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=PROGRAM, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", [["train.py"], ["-m", "launch"], ["-m", "resnet"]])
def test_help_and_version(command):
    told = typed(*command, "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("usage: ")
    version = typed(*command, "--version")
    assert (version.returncode, version.stdout.split()[-1]) == (0, VERSION)


def test_help_of_train_needs_no_torch():
    code = "import sys; sys.argv = ['train.py', '--help']; import train; train.main(); print('torch' in sys.modules)"
    assert typed("-c", code).stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["-m", "launch", "shwo"], "launch: no command 'shwo': did you mean launch show?"),
        (["-m", "resnet", "evla"], "resnet: no command 'evla': did you mean resnet eval?"),
        (["-m", "resnet", "zzz"], "resnet: no command 'zzz': there are: eval, predict, check-data, features"),
        (["-m", "resnet", "eval", "x", "--jsn"], "resnet eval: unknown option --jsn: did you mean --json?"),
    ],
)
def test_mistyped_commands(command, told):
    done = typed(*command)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


RANK = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "waits"),
    [
        ({"RANK": "1"}, False),
        (RANK, False),
        (RANK | {"TORCHELASTIC_RUN_ID": "none"}, True),
        (RANK | {"ACCELERATE_MIXED_PRECISION": "no"}, True),
        (RANK | {"LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}, False),
    ],
)
def test_no_process_keeps_a_mistake_to_itself(environment, waits, monkeypatch, capsys):
    """Nor is it told by each rank: one that is not the first waits, and is ended by the launcher meanwhile."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    waited = []
    monkeypatch.setattr("resnet.process.mistakes.time.sleep", waited.append)
    with pytest.raises(SystemExit, match="2"):
        main(["eval", "nonesuch"])
    assert "resnet eval: " in capsys.readouterr().err
    assert bool(waited) == waits


@pytest.mark.parametrize("program", ["launch", "resnet"])
def test_every_command_explains_itself(program):
    commands = [line.split()[0] for line in typed("-m", program, "--help").stdout.splitlines() if line.startswith("  ")]
    assert len(commands) > 3
    for command in commands:
        told = typed("-m", program, command, "--help")
        assert (told.returncode, told.stderr) == (0, ""), command
        assert "--debug" in told.stdout
