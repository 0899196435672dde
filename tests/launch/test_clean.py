"""What `launch clean` removes, and what it never does."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import time
from pathlib import Path

import pytest

from launch import cli
from launch.commands import clean as command
from launch.runs import leftovers, state
from launch.runs.job_record import Job, write_job
from launch.runs.send import SNAPSHOTS
from recipes.schema.data import ImageFolderData
from resnet.checkpoint.commit import commit, newest_valid
from resnet.data.sources.image_folder import open_image_folder
from resnet.data.sources.index import Index
from resnet.rundir import files
from resnet.rundir.find import remember_root
from resnet.rundir.status import write_status
from slurm.code_copy import take_snapshot
from slurm.profile import load_profile
from tests.fabricated import a_sweep, make_run

STEPS = (10, 20, 30, 40)
COPIES = {name: f"{number:016x}" for number, name in enumerate(("finished", "retry", "chained", "young", "trial"))}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Beside the runs of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def program(tmp_path) -> Path:
    """What copies of the code are taken of."""
    (folder := tmp_path / "program").mkdir()
    (folder / "train.py").write_text("print()")
    return folder


def clean(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(["clean", *words])
    return int(end.value.code or 0)


def a_run(name: str, state: str = "finished", best: int = 20, **status) -> Path:
    run = make_run(Path("runs") / name, state=state, **status)
    for step in STEPS:
        commit(run / "checkpoints", step, {"model.safetensors": bytes(1000)}, {})
    (run / "checkpoints" / "best").write_text(f"step-{best:08d}\n")
    return run


def kept(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*"))


def age(path: Path, seconds: float = 2 * 3600) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def sent(run: Path, copy: Path, job_id: str = "1") -> None:
    (run / "slurm").mkdir(exist_ok=True)
    write_job(run, Job.to_send(run.name, "h100", load_profile("h100"), copy, Path.cwd()), job_id)


def test_checkpoints_of_finished_runs_but_the_best_and_the_last(capsys):
    done, failed, trained = a_run("done"), a_run("failed", "failed"), a_run("trained")
    (trained / "lease.json").write_text(json.dumps({"host": "elsewhere", "pid": 1, "time": time.time()}))
    (trained / "lease.lock").touch()
    assert clean("--dry-run") == 0
    assert "2 checkpoints" in capsys.readouterr().out
    assert clean() == 2, "without a terminal nothing is removed unasked"
    assert kept(done) == [*STEPS]
    assert clean("--yes") == 0
    assert "removed 2 checkpoints" in capsys.readouterr().out
    assert (kept(done), kept(failed), kept(trained)) == ([20, 40], [*STEPS], [*STEPS])
    assert newest_valid(done / "checkpoints", pytest.fail) == done / "checkpoints" / "step-00000040"


@pytest.mark.parametrize("name", ["best", "last"])
def test_no_checkpoint_goes_while_one_that_would_stay_is_torn(name):
    run = a_run("torn")
    torn = run / "checkpoints" / f"step-{20 if name == 'best' else 40:08d}" / "model.safetensors"
    torn.write_bytes(b"half")
    assert clean("--yes") == 0
    assert kept(run) == [*STEPS]


def test_what_a_run_to_come_starts_from_stays():
    source, other = a_run("source"), a_run("other")
    coming = make_run(Path("runs/coming"), state="stopped")
    (coming / "slurm").mkdir()
    (coming / "slurm" / "recipe.yaml").write_text(f"resume: {source.absolute()}/checkpoints/step-00000010\n")
    assert clean("--yes", "source", "other") == 0
    assert (kept(source), kept(other)) == ([*STEPS], [20, 40])


@pytest.mark.parametrize("where", ["words", "file", "chain"])
def test_what_trials_and_steps_to_come_start_from_stays(where):
    source, other = a_run("source"), a_run("other")
    named = f"{source.absolute()}/checkpoints/step-00000010/model.safetensors"
    sweep = a_sweep(Path("runs/sweep"), **{"0.1": 70.0, "0.2": 70.0})
    if where == "chain":
        chain = sweep / "chain" / "1"
        chain.mkdir(parents=True)
        step = {"command": "train", "acts_on": None, "makes": "/x", "job_id": None}
        words = [f"model.pretrained={named}"]
        told = {"format": 1, "subject": str(sweep), "steps": [step | {"words": words}]}
        (chain / "chain.json").write_text(json.dumps(told))
    else:
        Path("base.yaml").write_text(f"base: quickstart\nmodel: {{pretrained: {named}}}\n")
        Path("mine.yaml").write_text("base: base.yaml\n")
        content = json.loads((sweep / "sweep.json").read_text())
        own = {"recipe": str(Path("mine.yaml").absolute())}
        content["fixed"] = own if where == "file" else {"recipe": "quickstart", "model.pretrained": named}
        (sweep / "sweep.json").write_text(json.dumps(content))
        # Interrupted before this one was begun.
        shutil.rmtree(sweep / "0.2")
    assert clean("--yes") == 0
    assert (kept(source), kept(other)) == ([*STEPS], [20, 40])
    shutil.rmtree(sweep)
    assert clean("--yes") == 0
    assert kept(source) == [20, 40]


def test_a_link_to_where_runs_are_sent_is_the_same_folder(tmp_path, capsys):
    (tmp_path / "scratch").mkdir()
    Path("runs").symlink_to("scratch")
    done = a_run("done")
    remember_root(tmp_path / "scratch")
    assert [path.name for path in state.folders("runs")] == ["done"]
    assert clean("--yes", "done") == 0
    assert "2 checkpoints, of" in capsys.readouterr().out
    assert kept(done) == [20, 40]


def test_copies_of_the_code_that_only_finished_runs_used(capsys):
    copies = [Path("runs") / SNAPSHOTS / name for name in COPIES.values()]
    for copy in copies:
        copy.mkdir(parents=True)
        (copy / "train.py").touch()
        age(copy, 0 if copy.name == COPIES["young"] else 7200)
    sent(a_run("done"), copies[0].absolute())
    sent(failed := a_run("failed", "failed", failure="oom"), copies[1].absolute())
    sweep = a_sweep(Path("runs/sweep"), **{"0.1": 70.0, "0.2": None})
    sent(sweep / "0.2", copies[4].absolute())
    chain = failed.parent / "done" / "chain" / "1"
    chain.mkdir(parents=True)
    step = {"command": "eval", "words": [], "acts_on": "done", "makes": None, "job_id": None}
    content = {
        "format": 1,
        "subject": str(failed.parent / "done"),
        "steps": [step | {"job": {"snapshot": f"/x/{COPIES['chained']}"}}],
    }
    (chain / "chain.json").write_text(json.dumps(content))
    assert clean("--yes") == 0
    assert [name for name, digest in COPIES.items() if (Path("runs") / SNAPSHOTS / digest).exists()] == [*COPIES][1:]
    # A run that is being sent has not said yet which it runs.
    copies[0].mkdir()
    age(copies[0])
    write_status(make_run(Path("runs/new")), state="queued")
    assert clean("--yes") == 0
    assert copies[0].exists()


def test_a_copy_of_the_code_that_is_about_to_be_used_is_young_again(program, tmp_path):
    copy = age(take_snapshot(tmp_path / "runs" / SNAPSHOTS, program))
    assert take_snapshot(tmp_path / "runs" / SNAPSHOTS, program) == copy
    assert clean("--yes") == 0
    assert copy.is_dir()
    age(copy)
    assert clean("--yes") == 0
    assert not copy.exists()


def test_a_copy_of_the_code_that_lost_a_file_is_made_anew(program, tmp_path):
    copy = take_snapshot(tmp_path / "runs" / SNAPSHOTS, program)
    # As Python, which ran it, leaves its own there.
    (copy / "train.py").rename(copy / "train.pyc")
    assert (take_snapshot(tmp_path / "runs" / SNAPSHOTS, program) / "train.py").is_file()


def test_a_kill_in_the_middle_leaves_the_rest_loadable(monkeypatch):
    run, remove = a_run("done"), files.remove

    def die_before_the_content_goes(path: Path) -> None:
        if path.exists():
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr(files, "remove", die_before_the_content_goes)
    with pytest.raises(KeyboardInterrupt):
        command.run(argparse.Namespace(runs=[], root="runs", failed=False, dry_run=False, yes=True))
    monkeypatch.setattr(files, "remove", remove)
    assert kept(run) == [20, 30, 40]
    [left] = run.glob("checkpoints/.*.old.tmp")
    assert clean("--yes") == 0
    assert not left.exists()
    assert kept(run) == [20, 40]


def test_packed_environments_stay_while_a_run_is_under_way():
    packed = Path("runs") / SNAPSHOTS / "environment-0123456789ab.tar"
    packed.parent.mkdir(parents=True)
    packed.touch()
    run = make_run(Path("runs/r"), state="queued")
    for now, there in (("queued", True), ("finished", False)):
        write_status(run, state=now)
        age(packed)
        assert clean("--yes") == 0
        assert packed.exists() == there


def test_what_killed_processes_left(capsys):
    run, running = a_run("done"), a_run("running", "running", host="elsewhere", updated=time.time())
    left = []
    for folder in (run, running):
        torn = folder / "checkpoints" / "step-00000050.tmp"
        torn.mkdir()
        left += [age(torn), folder / ".status.json.node-7.tmp"]
        left[-1].write_text("{")
        age(left[-1])
    removed = run.parent / ".old.old.tmp"
    shutil.copytree(run, removed)
    others = [a_run("exp.tmp", best=40), a_sweep(Path("runs/lr.tmp"), **{"0.1": 70.0}), run.parent / ".moved-1.tmp"]
    shutil.copytree(run, others[-1])
    for file in (run.parent / "notes.tmp", run / ".notes.tmp"):
        file.touch()
        others.append(file)
    for path in others:
        age(path)
    fresh = run / ".metrics.jsonl.node-7.tmp"
    fresh.touch()
    assert clean("--yes") == 0
    assert [path.exists() for path in left] == [False, False, True, True]
    assert fresh.exists()
    assert not removed.exists()
    assert [path.name for path in others if not path.exists()] == []


def test_failed_runs_go_by_a_word_of_their_own():
    early, late = make_run(Path("runs/early"), state="failed"), a_run("late", "failed")
    killed = make_run(Path("runs/killed"), state="running", host=socket.gethostname(), pid=2**22 + 1)
    sweep = a_sweep(Path("runs/sweep"), **{"0.1": None})
    assert clean("--yes") == 0
    assert early.is_dir()
    assert clean("--yes", "--failed") == 0
    assert not early.exists()
    assert not killed.exists()
    assert late.is_dir()
    assert (sweep / "0.1").is_dir()
    assert [*Path("runs").glob(".*old*")] == []


def test_failed_runs_that_are_sent_again_meanwhile_stay():
    runs = [make_run(Path("runs") / name, state="failed") for name in ("one", "two", "three")]
    listed = leftovers.failed_runs(state.rows(runs))
    write_status(runs[0], state="queued")
    again = leftovers.given_up(listed)
    assert [one.path for one in again] == runs[1:]
    write_status(runs[1], state="queued")
    assert [leftovers.take_away(one) for one in again] == [False, True]
    # It may wait in the queue of another cluster that shares the folder.
    [row] = state.rows([runs[0]])
    assert not leftovers.has_nothing(row | {"state": "failed", "failure": "gone", "over": True})


def test_lists_of_images_whose_folder_is_gone(tmp_path):
    index = Path("runs/.index")
    index.parent.mkdir()
    for name in ("here", "gone", "used"):
        (tmp_path / name / "cat").mkdir(parents=True)
        (tmp_path / name / "cat" / f"{name}.jpg").touch()
        for path in (tmp_path / name).rglob("*"):
            age(path)
        age(tmp_path / name)
        data = ImageFolderData(source="image_folder", train=str(tmp_path / name), val=None, val_fraction=0.5)
        open_image_folder(data, Index(index))
        if name != "here":
            shutil.rmtree(tmp_path / name)
    of = {
        entry.name.partition("-")[0]: index / f"{json.loads(entry.read_text())['list']}.files"
        for entry in index.glob("*.json")
    }
    for name in ("here", "gone"):
        age(of[name], 31 * 86400)
    assert clean("--yes") == 0
    assert {name: path.exists() for name, path in of.items()} == {"here": True, "gone": False, "used": True}
    assert len([*index.glob("*.json")]) == 2
