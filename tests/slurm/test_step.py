"""How a step of a chain ends in its job: by what srun and Slurm said, and by what is there already."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from resnet.rundir.chain import new_folder, newest_folder, read_step, write_chain
from resnet.rundir.files import to_json
from tests.fabricated import make_run
from tests.helpers import OFF, PROGRAM

JOBS = {"srun": [], "stage": [], "master": None, "max_requeues": 1, "signal_lead": 30, "cores": 1, "node_cores": 1}


@pytest.fixture
def do_step(tmp_path):
    """Do the one step of a chain of `small` in job 7, with commands that say what Slurm's would; returns its end."""
    programs = tmp_path / "bin"
    programs.mkdir()
    srun = f'echo "$@" > {tmp_path}/words; echo "$SRUN_SAYS" >&2; exit $SRUN_CODE'
    for name, text in {"srun": srun, "scontrol": "echo EndTime=$END"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    run = make_run(tmp_path / "small", *OFF)

    def call(makes: Path | None = None, says: str = "", code: int = 0, restarts: int = 0, left: int = 9000) -> Any:
        step = {"command": "prune" if makes else "eval", "words": [], "acts_on": str(run), "job_id": "7"}
        folder = (newest_folder(run) if restarts else None) or new_folder(run)
        content = {"subject": str(run), "steps": [step | {"makes": str(makes) if makes else None}]}
        write_chain(folder, content)
        jobs = JOBS | {"runs": [str(makes or run)], "chain": str(folder), "step": 1}
        (tmp_path / "jobs.json").write_text(to_json(jobs))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(PROGRAM), "SLURM_JOB_ID": "7"}
        environment |= {"SRUN_SAYS": says, "SRUN_CODE": str(code), "END": str(int(time.time()) + left)}
        environment |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
        words = [sys.executable, "-S", "-m", "slurm.step", str(tmp_path / "jobs.json"), "command"]
        with open(tmp_path / "log", "w") as log:
            subprocess.run(words, env=environment, stdout=log, stderr=log, cwd=tmp_path, timeout=60)
        told = read_step(folder, content, 1)
        return told["state"], told["reason"]

    return call


def fate(how: str) -> dict[str, Any]:
    return {"says": f"srun: error: n1: task 0: {how}", "code": 1}


SLURMS = "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-22T21:42:13 DUE TO PREEMPTION ***\n"


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (fate("Terminated"), ("failed", "was killed by SIGTERM")),
        (fate("User defined signal 2"), ("queued", "preempted")),
        (fate("User defined signal 2") | {"left": 40}, ("failed", "it came to its time limit")),
        ({"says": SLURMS, "code": 1}, ("queued", "preemption")),
    ],
)
def test_a_step_that_is_killed_starts_again_only_where_slurm_did_it(do_step, tmp_path, how, expected):
    state, reason = do_step(**how)
    assert (state, reason[: len(expected[1])]) == expected
    # Also in a job of several nodes.
    assert "--nodes=1 --ntasks=1" in (tmp_path / "words").read_text()


def test_a_step_is_started_no_more_often_than_is_allowed(do_step):
    again = fate("User defined signal 2")
    assert do_step(**again)[0] == "queued"
    assert do_step(**again, restarts=1)[0] == "queued"
    assert do_step(**again, restarts=2) == ("failed", "started 2 times, which is all that slurm.max_requeues allows")


def pruned(folder: Path) -> Path:
    make_run(folder, *OFF)
    (folder / "artefact.json").write_text(to_json({"kind": "prune", "made": time.time()}))
    return folder


def test_a_pruned_run_is_the_steps_own_only_where_it_was_made_by_it(do_step, tmp_path):
    made = pruned(tmp_path / "foreign")
    assert "is there already" in do_step(made)[1]
    # The name was taken while the job waited to start again, or before.
    old = pruned(tmp_path / "old")
    assert do_step(tmp_path / "new", **fate("User defined signal 2"))[0] == "queued"
    assert "is there already" in do_step(old, restarts=1)[1]
    assert do_step(pruned(tmp_path / "new"), restarts=1) == ("finished", None)
