"""How the program and its environment get to a node's own disk, by the very commands and without a Slurm."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from slurm.environment_copy import Copies, prepare, removal
from slurm.profile import ProfileError, load_profile


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["slurm.stage_environment=venv"], "must be a whole path"),
        (["slurm.stage_environment=/venv.zip"], "must be a folder or end with one of .tar"),
        (["slurm.stage_environment=/x.sif"], "which container or srun_args must name"),
        (["slurm.stage_environment=/x", "slurm.container=apptainer exec /y.sif"], "must be the image of container="),
        (["slurm.stage_environment=/x", "slurm.python=python"], "leave it out for its bin/python"),
    ],
)
def test_environments_that_do_not_fit_are_refused(words, problem):
    with pytest.raises(ProfileError, match=problem):
        load_profile("local-test", words)


@pytest.fixture
def environment(tmp_path) -> Path:
    """A folder with a program under bin/python."""
    folder = tmp_path / "shared" / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text("#!/bin/sh\necho moved\n")
    (folder / "bin" / "python").chmod(0o755)
    return folder


def copies(told: dict[str, str] | None, folder: Path, monkeypatch) -> Copies:
    """As a job would have them, whose one node is this machine."""
    (folder / "scratch").mkdir(exist_ok=True)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("PWD", str(folder / "code"))

    def srun(nodes, command):
        return subprocess.run(command, env=os.environ | {"SLURM_NODEID": "0"}).returncode

    return Copies({"environment": told, "ship_code": True, "scratch": str(folder / "scratch")}, srun)


@pytest.mark.parametrize("kind", ["folder", "archive", "image"])
def test_commands_name_the_copies(environment, tmp_path, monkeypatch, kind):
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.py").touch()
    path = str(environment)
    if kind != "folder":
        path = f"{environment}.{'tar.gz' if kind == 'archive' else 'sif'}"
        with tarfile.open(path, "w:gz") as file:
            file.add(environment, ".")
    told = prepare(path, "" if kind == "image" else "bin/python", tmp_path / ".code")
    moved = copies(told, tmp_path, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", f"{code}:/other")
    assert moved.bring(["n1"], every=[]) == 0
    if kind == "image":
        program, image = moved.words(["--container-image=" + path, path])
        assert image == program.partition("=")[2] != path
        assert Path(image).read_bytes() == Path(path).read_bytes()
    else:
        [python, other] = moved.words([f"{path}/bin/python", f"{path}2/bin/python"])
        assert subprocess.run([python], capture_output=True, text=True).stdout == "moved\n"
        assert other == f"{path}2/bin/python"
    [option] = moved.options()
    place = option.partition("=")[2]
    assert (Path(place) / "train.py").is_file()
    assert moved.variables()["PYTHONPATH"] == f"{place}:/other"
    # An attempt after it finds them there.
    (code / "train.py").unlink()
    assert copies(told, tmp_path, monkeypatch).bring(["n1"], every=[]) == 0
    subprocess.run(removal(moved.folders), check=True)
    assert [*(tmp_path / "scratch").iterdir()] == []


def test_the_program_is_compiled_for_the_nodes_and_not_where_it_lies(tmp_path, monkeypatch):
    code, tools = tmp_path / "code", tmp_path / "tools"
    for folder in (code, tools):
        folder.mkdir()
    (code / "train.py").touch()
    # On the one node there is, as Slurm's does it.
    (tools / "sbcast").write_text('#!/bin/sh\nexec cp "$2" "$3"\n')
    (tools / "sbcast").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    moved = copies(None, tmp_path, monkeypatch)
    assert moved.bring(["n1", "n2"], every=["n1"]) == 0
    [option] = moved.options()
    assert sorted(path.suffix for path in Path(option.partition("=")[2]).rglob("train*")) == [".py", ".pyc"]
    assert [path.name for path in code.iterdir()] == ["train.py"]
    subprocess.run(removal(moved.folders), check=True)
    assert [*(tmp_path / "scratch").iterdir()] == []


def test_a_folder_is_packed_once_until_it_changes(environment, tmp_path, capsys):
    first = prepare(str(environment), "bin/python", tmp_path / ".code")
    assert prepare(str(environment), "bin/python", tmp_path / ".code") == first
    (environment / "lib").write_text("newer")
    second = prepare(str(environment), "bin/python", tmp_path / ".code")
    assert second["file"] != first["file"]
    assert capsys.readouterr().err.count("packing") == 2
    with pytest.raises(ValueError, match="there is no bin/python3 in it"):
        prepare(str(environment), "bin/python3", tmp_path / ".code")


def test_what_cannot_be_brought_leaves_nothing(environment, tmp_path, monkeypatch, capfd):
    file = tmp_path / "broken.tar.gz"
    file.write_text("no archive")
    broken = copies(prepare(str(file), "bin/python", tmp_path), tmp_path, monkeypatch)
    assert broken.bring(["n1"], every=[]) != 0
    assert "This does not look like a tar archive" in capfd.readouterr().err
    assert broken.words([f"{file}/bin/python"]) == [f"{file}/bin/python"]
    assert [*Path(broken.folders[0]).iterdir()] == []


def programs(folder: Path, monkeypatch, **texts: str) -> None:
    """Let programs in the place of Slurm's be found first."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_broadcast_that_was_cut_off_is_not_used(environment, tmp_path, monkeypatch):
    told = prepare(str(environment), "bin/python", tmp_path / ".code")
    # $2: the file, $3: its place on the nodes.
    programs(tmp_path / "bin", monkeypatch, sbcast='head -c 2000 "$2" > "$3"; exit 1')
    moved = copies(told, tmp_path, monkeypatch)
    assert moved.bring(["n1"], every=["n1"]) == 0
    [python] = moved.words([f"{environment}/bin/python"])
    assert subprocess.run([python], capture_output=True, text=True).stdout == "moved\n"
    assert [*Path(moved.folders[0]).glob("*.part")] == []


@pytest.mark.skipif(os.getuid() != 0, reason="gives a folder to another user")
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_somebody_else_has_left_is_not_used(environment, tmp_path, monkeypatch, capfd, kind):
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.py").touch()
    told = prepare(str(environment), "bin/python", tmp_path / ".code")
    moved = copies(None, tmp_path, monkeypatch)
    moved.bring(["n1", "n2"], every=[])
    folder = Path(moved.folders[0])
    if kind == "folder":
        os.chown(folder, 65534, 65534)
    else:
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    assert copies(told, tmp_path, monkeypatch).bring(["n1"], every=[]) != 0
    again = copies(None, tmp_path, monkeypatch)
    # Then they import the program from the shared file system.
    assert (again.bring(["n1", "n2"], every=[]), again.options()) == (0, [])
    assert capfd.readouterr().err.count("is not this user's own folder") == 2


def test_copies_of_jobs_that_are_over_are_removed(environment, tmp_path, monkeypatch):
    told = prepare(str(environment), "bin/python", tmp_path / ".code")
    moved = copies(told, tmp_path, monkeypatch)
    assert moved.bring(["n1"], every=[]) == 0
    folder = Path(moved.folders[0])
    old, queued, strange = (folder.with_name(folder.name.replace("-12", f"-{job}")) for job in ("7", "8", "9"))
    for path in (old, queued, strange):
        path.mkdir()
    os.chown(strange, 65534, 65534) if os.getuid() == 0 else strange.rmdir()
    # Where Slurm does not answer nothing is known to be over.
    assert copies(told, tmp_path, monkeypatch).bring(["n1"], every=[]) == 0
    assert old.exists()
    programs(tmp_path / "bin", monkeypatch, squeue="echo 8; echo 12")
    assert copies(told, tmp_path, monkeypatch).bring(["n1"], every=[]) == 0
    assert not old.exists()
    assert queued.exists()
    assert strange.exists() == (os.getuid() == 0)
    assert (folder / f"environment-{told['key']}" / "bin" / "python").exists()
