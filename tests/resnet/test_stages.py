"""What an attempt spends its time on is in its directory; a rehearsal makes so many steps, saves, and goes on later."""

from __future__ import annotations

import time

import pytest

from launch.commands.status import describe
from launch.runs.state import rows
from resnet.process.environment import REHEARSAL
from resnet.process.exit_codes import STOPPED
from resnet.process.stages import STAGES
from resnet.rundir.stages import described, read_stages, stages_file
from tests.helpers import newest, status, train


def test_each_attempt_tells_its_stages_and_a_rehearsal_stops(tiny, tmp_path, monkeypatch):
    run, before = tmp_path / "rehearsed", time.time()
    words = [*tiny, "epochs=2", f"run.root={tmp_path}", "run.name=rehearsed"]
    for steps, reached in ((3, 3), (1, 4)):
        monkeypatch.setenv(REHEARSAL, str(steps))
        assert train(*words) == STOPPED
        assert (status(run)["state"], status(run)["reason"], status(run)["step"]) == ("stopped", "rehearsed", reached)
        assert newest(run).endswith(f"{reached:08d}")
    first, second = read_stages(run, 1), read_stages(run, 2)
    assert [*first["seconds"]] == [stage for stage in STAGES if stage not in ("stage", "restore")]
    assert "restore" in second["seconds"]
    assert (first["further_images"], second["further_images"], second["first_step"]) == (32, 0, 3)
    # The process is that of the tests, which began before.
    assert first["started"] < before
    assert first["started"] + sum(first["seconds"].values()) == pytest.approx(time.time(), abs=60)
    [line] = [line for line in describe(rows([run])[0]) if line.startswith("  start ")]
    assert described(second["seconds"]) in line
    stages_file(run, 2).write_text('{"seconds": [1]}')
    assert read_stages(run, 2) == {}


def test_the_longest_stage_comes_first_and_short_ones_are_left_out():
    taken = {"python": 0.4, "imports": 6.0, "join": 30.0, "batch": 1.0, "step": 0.7, "steps": 900.0}
    told = "first step after 38.1 s: joining the other ranks 30.0, imports 6.0, first batch 1.0, first step 0.7"
    assert described(taken) == told
    assert described({"python": 0.4, "imports": 6.0}) == ""
