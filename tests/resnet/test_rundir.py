import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import resnet.main
from resnet.rundir import files as rundir
from resnet.rundir import provenance
from resnet.rundir.find import find_run
from resnet.rundir.metrics_log import read_metrics
from resnet.rundir.read_ahead import read_ahead
from resnet.rundir.status import read_status, write_status
from tests.helpers import train


def test_write_atomic_replaces_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    rundir.write_atomic(path, "old")
    rundir.write_atomic(path, b"new")
    assert path.read_text() == "new"

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        rundir.write_atomic(path, "half")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["status.json"]


def test_status_keeps_what_is_not_written_and_is_plain_json(tmp_path):
    assert read_status(tmp_path) == {}
    write_status(tmp_path, state="running", step=25, total_steps=200, loss=float("nan"))
    write_status(tmp_path, step=50)
    status = read_status(tmp_path)
    assert (status["state"], status["step"], status["percent"], status["loss"]) == ("running", 50, 25.0, None)
    assert status["updated"] > 1.7e9
    assert "NaN" not in (tmp_path / "status.json").read_text()


def test_damaged_status_is_named(tmp_path):
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(ValueError, match=r"status\.json is damaged"):
        read_status(tmp_path)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_provenance_of_a_checkout(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    clean = provenance.provenance(["train.py", "a b"], folder=tmp_path)
    assert clean["git"] == {"sha": git(tmp_path, "rev-parse", "HEAD"), "changed": False, "diff": "", "cut": False}
    assert clean["command"] == "train.py 'a b'"
    assert clean["packages"]["pydantic"]
    (tmp_path / "a.py").write_text("two\n" * 50)
    monkeypatch.setattr(provenance, "DIFF_LIMIT", 100)
    changed = provenance.provenance([], folder=tmp_path)["git"]
    assert changed["changed"]
    assert changed["cut"]
    assert len(changed["diff"]) == 100


def test_provenance_outside_of_a_checkout(tmp_path):
    assert provenance.provenance([], folder=tmp_path)["git"] is None
    git(tmp_path, "init", "-q")
    inside = tmp_path / "site-packages"
    inside.mkdir()
    (inside / "a.py").write_text("")
    assert provenance.provenance([], folder=inside)["git"] is None


def test_provenance_holds_no_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "f00d" * 10)
    provenance.record_attempt(tmp_path, provenance.provenance(["train.py"], folder=tmp_path))
    assert "f00d" not in (tmp_path / "provenance.json").read_text()


def test_attempts(tmp_path):
    assert provenance.record_attempt(tmp_path, {"command": "first", "git": {"sha": "a"}}) == 1
    provenance.end_attempt(tmp_path, "signal SIGTERM", step=30)
    write_status(tmp_path, step=60)
    assert provenance.record_attempt(tmp_path, {"command": "second", "git": None}, step=30) == 2
    assert provenance.record_attempt(tmp_path, {"command": "third"}, step=40) == 3
    content = provenance.read_provenance(tmp_path)
    assert content["command"] == "third"
    first, second, third = content["attempts"]
    assert (first["reason"], first["step"], first["git_sha"]) == ("signal SIGTERM", 30, "a")
    assert first["end"] >= first["start"]
    assert (second["reason"], second["first_step"]) == ("killed", 30)
    assert second["step"] == 60, "how far a killed attempt came is in the status"
    assert third["end"] is None


def test_read_metrics_leaves_out_a_torn_line(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match="damaged"):
        read_metrics(tmp_path)


def test_find_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there are: none"):
        find_run("a")
    run = tmp_path / "runs" / "cifar-7"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("")
    assert find_run("cifar-7").resolve() == run
    assert find_run(str(run)) == run
    with pytest.raises(ValueError, match=r"did you mean cifar-7\?"):
        find_run("cifar7")
    with pytest.raises(ValueError, match=r"holds no recipe\.yaml"):
        find_run("runs")


def test_imports_no_torch():
    code = "import sys, resnet.tracking.wandb_client, resnet.tracking.progress, resnet.tools.cli\n"
    code += "print(json := [m for m in ('torch', 'wandb', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def is_in_cache(path: Path) -> bool:
    """Whether all of a file is in the kernel's memory."""
    with path.open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(path.stat().st_size)], 0, os.RWF_NOWAIT) == path.stat().st_size
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return False
            pytest.skip(f"this file system does not tell ({error.strerror})")


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="needs Linux")
def test_the_newest_checkpoint_is_read_while_modules_are_imported(tmp_path, monkeypatch):
    checkpoint = tmp_path / "runs" / "r" / "checkpoints" / "step-00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint.parent / "latest").write_text("step-00000010\n")
    file = checkpoint / "model.safetensors"
    with file.open("wb") as written:
        written.write(os.urandom(1 << 23))
        os.fsync(written.fileno())
        os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if is_in_cache(file):
        pytest.skip("this file system lies in memory")

    def imports():
        [thread] = [thread for thread in threading.enumerate() if thread.name == "read ahead"]
        thread.join()
        raise ValueError("no further")

    monkeypatch.setattr(resnet.main, "_heavy", imports)
    assert train("recipe=quickstart", f"run.root={tmp_path / 'runs'}", "run.name=r") == 2
    assert is_in_cache(file)

    monkeypatch.setenv("LOCAL_RANK", "1")
    assert read_ahead(checkpoint.parents[1]) is None, "once a machine"
    monkeypatch.delenv("LOCAL_RANK")
    (checkpoint.parent / "latest").write_text("../../elsewhere/step-00000010")
    assert read_ahead(checkpoint.parents[1]) is None
    assert read_ahead(tmp_path) is None
