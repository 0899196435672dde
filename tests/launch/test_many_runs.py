"""What is kept beside many runs, so that a look reads only what has changed since the one before."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from launch.runs import state
from launch.runs.state import rows
from resnet.rundir import index
from resnet.rundir.state import own_rows
from resnet.rundir.status import write_status
from resnet.rundir.sweep import results as of_sweep
from resnet.rundir.sweep.results import results, sweep_so_far
from tests.fabricated import a_sweep


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> Path:
    """Three trials that have finished, a while ago, of which as many as that are many."""
    for module in (index, state, of_sweep):
        monkeypatch.setattr(module, "LEAST_RUNS", 3)
    folder = a_sweep(tmp_path / "sweep", **{"0.1": 70.0, "0.2": 80.0, "0.3": 75.0})
    for file in folder.rglob("*"):
        age(file)
    return folder


def age(file: Path) -> None:
    then = time.time() - 100
    os.utime(file, (then, then))


def trials(sweep: Path) -> list[Path]:
    return [sweep / name for name in ("0.1", "0.2", "0.3")]


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of the runs of which files are read."""
    names, before, values = [], state._read, of_sweep._evaluations
    monkeypatch.setattr(state, "_read", lambda run: names.append(run.name) or before(run))
    monkeypatch.setattr(
        of_sweep, "_evaluations", lambda run, *what: names.append(f"values of {Path(run).name}") or values(run, *what)
    )
    return names


def look(sweep: Path) -> tuple[list, list]:
    found = rows(trials(sweep))
    board = results(sweep_so_far(sweep), found, now=time.time())
    steady = [{key: row[key] for key in row if key != "last_checkpoint_age_s"} for row in found]
    return steady, [(trial.name, trial.value, trial.best_epoch, trial.seconds) for trial in board.trials]


def test_only_what_has_changed_is_read_again(sweep, read):
    first = look(sweep)
    assert len(read) == 6
    read.clear()
    assert look(sweep) == first
    assert read == []
    write_status(sweep / "0.2", state="stopped", reason="signal")
    (sweep / "0.3" / "metrics.jsonl").write_text('{"step": 1, "epoch": 1, "val/top1": 99.0}\n')
    (told, values) = look(sweep)
    assert read == ["0.2", "values of 0.2", "values of 0.3"]
    assert [row["state"] for row in told] == ["finished", "stopped", "finished"]
    assert [value for _, value, *_ in values] == [70.0, 80.0, 99.0]


def test_what_was_just_written_is_not_taken_as_read(sweep, read):
    write_status(sweep / "0.1", best=1.0)
    for _ in range(2):
        look(sweep)
    assert read.count("0.1") == 2
    assert read.count("0.2") == 1


def test_a_run_is_read_again_once_it_was_sent_again(sweep, read):
    write_status(sweep / "0.1", state="failed", failure="nan", reason="not finite")
    age(sweep / "0.1" / "status.json")
    look(sweep)
    (sweep / "0.1" / "slurm").mkdir()
    (sweep / "0.1" / "slurm" / "job.json").write_text(json.dumps({"job_id": "7", "name": "0.1", "cluster": "h100"}))
    read.clear()
    assert state._read_all(trials(sweep))[0].job_id == "7"
    assert read == ["0.1"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "[" * 100_000, '{"version": "0", "runs": {}}', '{"version": "1", "runs": {"0.1": [[], 1]}}'],
)
def test_a_damaged_index_is_not_trusted(sweep, content):
    first = look(sweep)
    for name in (state.INDEX, of_sweep.INDEX):
        (sweep / name).write_text(content)
    assert look(sweep) == first
    known = json.loads((sweep / state.INDEX).read_text())["runs"]
    assert sorted(known) == ["0.1", "0.2", "0.3"]


@pytest.mark.parametrize(
    "value", [{}, {"status": 1, "sent": {}}, {"best": 1, "last": [], "problem": None, "seconds": 2}]
)
def test_values_of_another_shape_are_not_trusted(sweep, value):
    first = look(sweep)
    for name in (state.INDEX, of_sweep.INDEX):
        content = json.loads((sweep / name).read_text())
        for found in content["runs"].values():
            found[1] = value
        (sweep / name).write_text(json.dumps(content))
    assert look(sweep) == first


def test_a_folder_that_cannot_be_written_does_without(sweep, read):
    # Not by its mode: root writes everywhere.
    for name in (state.INDEX, of_sweep.INDEX):
        (sweep / name).mkdir()
    assert look(sweep) == look(sweep)
    assert len(read) == 12
    assert [row["state"] for row in own_rows(trials(sweep))] == ["finished"] * 3
