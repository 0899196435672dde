"""Completion as a shell asks for it: through argcomplete's protocol, and in a real bash."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import PROGRAM


def complete(line: str, cwd: Path = PROGRAM, program: str = "launch.cli") -> list[str]:
    """What the last word of a line may become."""
    code = f"from {program} import main; import sys; sys.argv[0] = {line.split()[0]!r}; main()"
    environment = os.environ | {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "IFS": "\013"}
    environment |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(cwd / "completions"), "PYTHONPATH": str(PROGRAM)}
    environment |= {"COMP_TYPE": "9", "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:"}
    try:
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=cwd, check=True, timeout=60)
        return (cwd / "completions").read_text().split("\013")
    finally:
        (cwd / "completions").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("launch st", ["status "]),
        ("launch local recipe=cifar10_resnet18_f", ["cifar10_resnet18_fast "]),
        ("launch show optimizer.trust", ["optimizer.trust_coefficient="]),
        ("launch submit model.name=resnet15", ["resnet152 ", "resnet152d "]),
        ("launch submit schedule.name=tri", ["triangular "]),
        ("launch submit cluster=h1", ["h100 "]),
        ("launch submit slurm.signal", ["slurm.signal_lead="]),
        ("launch status --js", ["--json "]),
    ],
)
def test_words(tmp_path, line, expected):
    found = [word.strip() for word in complete(line, tmp_path)]
    assert found == [word.strip() for word in expected]


def test_names_of_runs(tmp_path):
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.yaml").touch()
    assert [word.strip() for word in complete("launch logs fi", tmp_path)] == ["first"]
    assert [word.strip() for word in complete("resnet eval se", tmp_path, "resnet.tools.cli")] == ["second"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_is_told_where_to_ask():
    done = subprocess.run(
        [sys.executable, "-m", "launch", "completion", "bash"], cwd=PROGRAM, capture_output=True, text=True, check=True
    )
    assert 'eval "$(register-python-argcomplete launch resnet)"' in done.stdout
