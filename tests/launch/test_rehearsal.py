"""What `launch submit` tells of a run before it is sent: by a rehearsal, and by runs that trained the same."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from launch.commands.status import describe
from launch.runs import send as sending
from launch.runs.alike import runs_alike
from launch.runs.job_record import Job, read_job, write_job
from launch.runs.rehearsal import MARK, _make_room, _short, rehearse
from launch.runs.rehearsal_report import report_on
from launch.runs.state import rows
from recipes.load import load
from recipes.text import format_duration
from resnet.process.exit_codes import INTERRUPTED
from resnet.rundir.files import append_line, to_json
from resnet.rundir.spent import hours
from resnet.rundir.stages import stages_file
from resnet.rundir.status import read_status, write_status
from slurm.profile import Profile, seconds
from tests.fabricated import make_run
from tests.helpers import OFF

STARTED = 1_700_000_100.0


@pytest.fixture
def rehearsed(tmp_path):
    """The directory of a rehearsal of two starts, by what its first one's stages and its check say."""

    def make(
        seconds: dict[str, float], check: dict[str, Any] | None = None, state: str = "stopped", **status: Any
    ) -> Path:
        status.setdefault("reason", "rehearsed")
        run = make_run(tmp_path / "x-rehearsal", *OFF, state=state, **status)
        (run / "slurm").mkdir()
        write_job(run, job_of(run.name, Profile(gpus_per_node=2)), "1")
        own = []
        for number in (1, 2):
            begin = STARTED + 100 * (number - 1)
            record = {"attempt": number, "job_id": "1", "start": begin, "nodes": ["n1"], "step": 0}
            append_line(run / "slurm" / "attempts.jsonl", record | ({"check": check} if check and number == 1 else {}))
            append_line(run / "slurm" / "attempts.jsonl", record | {"end": begin + 90})
            if seconds:
                stages_file(run, number).parent.mkdir(parents=True)
                facts = {"started": begin + 12, "seconds": seconds, "first_step": 0, "step": 3, "further_images": 50}
                stages_file(run, number).write_text(to_json(facts))
                own.append({"start": begin + 12, "attempt": number, "first_step": 0, "step": 3, "job_id": "1"})
        (run / "provenance.json").write_text(to_json({"devices": ["H100"] * 2, "attempts": own}))
        return run

    return make


def job_of(name: str, profile: Profile, cluster: str = "there") -> Job:
    return Job.to_send(name, cluster, profile, Path("code"), Path("here"))


WELL = {"python": 0.5, "imports": 6.0, "join": 3.0, "step": 2.0, "steps": 1.0, "save": 4.0, "end": 1.0}
CHECK = {"bad": {}, "notes": [], "all_reduce_gbs": 80.0, "seconds": 8.0}


def test_a_rehearsal_tells_its_seconds_and_what_the_run_takes(rehearsed):
    run = rehearsed(WELL, CHECK)
    report = report_on(run, load(["recipe=quickstart", "epochs=8", *OFF]).recipe, Profile(gpus_per_node=2))
    assert report.problems == []
    table = {line[2:38].strip(): line[38:].split() for line in report.lines if line.startswith("  ")}
    assert [(name, cells[0]) for name, cells in table.items()] == [
        *[("queue", "0.0"), ("start check", "8.0"), ("preparing nodes, starting the ranks", "4.0")],
        *[("starting Python", "0.5"), ("imports", "6.0"), ("joining the other ranks", "3.0"), ("first step", "2.0")],
        *[("further steps", "1.0"), ("last save", "4.0"), ("report and last files", "1.0"), ("leaving", "60.5")],
        ("second start, one step and save", "29.5"),
    ]
    assert table["further steps"][1:] == ["50", "img/s"]
    # 8 epochs of 10 steps of quickstart's 250 images at 50 a second, on 2 GPUs; of 90 s the rest is start.
    batch = load(["recipe=quickstart"]).recipe.batch_size
    seconds = 8 * 10 * batch / 50 + 90 - 1 - 4
    [takes] = [line for line in report.lines if line.startswith("takes")]
    assert takes == (
        f"takes  about {hours(seconds * 2)} GPU-hours: {format_duration(seconds)} on 2 GPUs (by this rehearsal's few "
        "steps: 50 img/s; with starts; evaluations come on top)"
    )
    assert "start check: all well" in "\n".join(describe(rows([run])[0]))


@pytest.mark.parametrize(
    ("seconds", "check", "status", "profile", "words"),
    [
        ({}, None, {"state": "failed", "reason": "rank 1: out of files", "failure": "crash"}, {}, "WRONG  rank 1: out"),
        ({}, None, {"reason": "n1 failed the start check: heat"}, {}, "WRONG  n1 failed the start check: heat"),
        ({}, None, {}, {}, "WRONG  the ranks did not come to a first step"),
        (WELL, {"notes": ["n1 cannot read data.train=/x: no"]}, {}, {}, "WRONG  n1 cannot read data.train=/x: no"),
        (WELL, {"bad": {"n2": "heat"}}, {}, {}, "note   without n2: heat"),
        (WELL, None, {}, {"signal_lead": 5}, "note   to save takes 4 s: slurm.signal_lead=5 is short, give 17"),
        (WELL, None, {}, {"time": "0:0:40", "signal_lead": 30}, "note   each attempt of slurm.time=0:0:40 spends 12s"),
        (WELL | {"steps": 4000.0}, None, {}, {"signal_lead": 9000}, "note   an epoch takes about 5h33m, more than"),
    ],
)
def test_a_rehearsal_tells_what_would_go_wrong(rehearsed, seconds, check, status, profile, words):
    run = rehearsed(seconds, CHECK | check if check else None, **status)
    profile = Profile(gpus_per_node=2, **{"time": "8:00:00", **profile})
    report = report_on(run, load(["recipe=quickstart", *OFF]).recipe, profile)
    assert any(line.startswith(words) for line in report.lines), report.lines
    assert bool(report.problems) == words.startswith("WRONG")


def test_a_rehearsal_claims_no_second_start_that_was_not(rehearsed):
    recipe, profile = load(["recipe=quickstart", *OFF]).recipe, Profile(gpus_per_node=2)
    run = rehearsed(WELL, CHECK)
    assert report_on(run, recipe, profile).lines[-1].endswith("made steps, went on from the checkpoint and left")
    shutil.rmtree(stages_file(run, 2).parent)
    lines = (run / "slurm" / "attempts.jsonl").read_text().splitlines(keepends=True)
    (run / "slurm" / "attempts.jsonl").write_text("".join(lines[:2]))
    assert report_on(run, recipe, profile).problems == [
        "the job ended before the ranks were started again from their checkpoint"
    ]
    write_status(run, state="finished", reason=None)
    report = report_on(run, recipe, profile)
    assert report.lines[-1].endswith("made steps and left")
    assert "note   the training was over in its first start" in "\n".join(report.lines)


def test_what_a_run_takes_follows_its_growing_images(rehearsed):
    small = "augment.progressive=[{epoch: 0, size: 32}, {epoch: 4, size: 64}]"
    recipe = load(["recipe=quickstart", "epochs=8", small, *OFF]).recipe
    told = "\n".join(report_on(rehearsed(WELL, CHECK), recipe, Profile(gpus_per_node=2)).lines)
    # Epochs of 32, 32, 64, 64 pixels (to whole 32), then 64 to the end: 13 / 4 of the first's on average.
    assert "50 img/s at 32 px, 15 by the pixels of all epochs" in told


def test_a_job_that_ctrl_c_meets_on_its_way_is_cancelled(tmp_path, monkeypatch):
    """The signal waits until the job's id is noted; then the job is withdrawn, and its directory is not taken away."""
    asked, before = [], signal.signal(signal.SIGINT, signal.default_int_handler)

    def sent(submission):
        assert (submission.folder / MARK).exists(), "a kill at this moment leaves what the next rehearsal knows"
        # To this thread, as in a process that has no other.
        signal.raise_signal(signal.SIGINT)
        return ["7"]

    monkeypatch.setattr(sending, "submit_jobs", sent)
    monkeypatch.setattr(sending, "check_slurm", lambda: None)
    monkeypatch.setattr(sending, "take_snapshot", lambda place: place)
    monkeypatch.setattr(sending, "ask", lambda words, client: asked.append(words) or "")
    try:
        loaded = load(["recipe=quickstart", f"run.root={tmp_path}", "run.name=x"])
        assert rehearse(loaded, "there", Profile(), keep=False) == INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    run = tmp_path / "x-rehearsal"
    job = read_job(run)
    assert job is not None
    assert (job.job_id, asked) == ("7", [["scancel", "7"]])
    assert read_status(run)["reason"] == "cancelled"


def test_runs_that_train_the_same_at_the_same_place_tell_what_it_takes(tmp_path):
    here = Profile(gpus_per_node=8, gpu_type="h100")
    for name, changes, profile, rate in (
        ("alike", [], here, 100.0),
        ("other lr", ["optimizer.lr=0.3"], here, 300.0),
        ("elsewhere", [], Profile(gpus_per_node=8, gpu_type="a100"), 5.0),
        ("larger", ["augment.train_size=96"], here, 5.0),
        ("no speed yet", [], here, None),
    ):
        run = make_run(tmp_path / name, *OFF, *changes, images_per_second=rate)
        (run / "slurm").mkdir()
        write_job(run, job_of(name, profile), "1")
    make_run(tmp_path / "never sent", *OFF, images_per_second=5.0)
    recipe = load(["recipe=quickstart", "epochs=40", "batch_size=20", *OFF]).recipe
    assert [*runs_alike(recipe, "there", here, tmp_path)] == []
    recipe = load(["recipe=quickstart", "epochs=40", *OFF]).recipe
    found = runs_alike(recipe, "there", here, tmp_path)
    assert {run.name: status["images_per_second"] for run, status in found} == {"alike": 100.0, "other lr": 300.0}
    assert [*runs_alike(recipe, "elsewhere", here, tmp_path)] == []


def test_only_an_earlier_rehearsal_makes_room(tmp_path):
    _make_room(tmp_path / "none")
    run = make_run(tmp_path / "x-rehearsal", *OFF)
    with pytest.raises(ValueError, match="is no rehearsal"):
        _make_room(run)
    (run / "slurm").mkdir()
    (run / "slurm" / MARK).touch()
    _make_room(run)
    assert not run.exists()


@pytest.mark.parametrize(("time", "limit"), [("2-00", 1800), ("0:10:30", 630), ("1", 60)])
def test_a_rehearsal_asks_for_half_an_hour_at_most(time, limit):
    short = _short(Profile(time=time, signal_lead=30))
    assert (seconds(short.time), short.signal_lead, short.check) == (limit, 30, True)
    assert Profile.model_validate(short.model_dump()) == short
