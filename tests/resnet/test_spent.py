"""Where a run's time went: every second is of one kind, and what was lost is what was made again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet.process.ledger import KINDS as ON_DEVICES
from resnet.process.ledger import Ledger
from resnet.rundir.files import to_json, write_atomic
from resnet.rundir.provenance import read_provenance
from resnet.rundir.spent import KINDS, spent
from resnet.rundir.stages import read_stages, stages_file
from resnet.tools.report.spent import spent_bar
from tests.fabricated import make_run
from tests.helpers import finish, metrics, start, status, train

HOUR = 3600.0


def attempt(run: Path, number: int, begin: float, end: float | None, **fields: Any) -> None:
    """What a batch script writes of an attempt, and the trainer, with its ledger where `spent` is given."""
    (run / "slurm").mkdir(parents=True, exist_ok=True)
    own = {key: fields.pop(key) for key in ("spent", "kept", "ended", "step", "first_step") if key in fields}
    row = {"attempt": number, "job_id": "7", "start": begin, "step": own.get("first_step", 0), "ranks": 8, **fields}
    with open(run / "slurm" / "attempts.jsonl", "a") as file:
        file.write(to_json(row) + "\n")
        if end is not None:
            told = {"attempt": number, "end": end, "outcome": "killed", "step": 0, "reached": own.get("step")}
            file.write(to_json(told) + "\n")
    write_provenance(run, begin, number, **own)
    if "spent" in own:
        write_stages(run, number, begin + 5, **own)


def write_provenance(run: Path, begin: float, number: int, **own: Any) -> None:
    listed = read_provenance(run).get("attempts", [])
    fields = {"first_step": own.get("first_step", 0), "step": own.get("step", 0), "world_size": 8, "job_id": "7"}
    listed.append({"start": begin + 10, "end": None, "attempt": number, **fields})
    write_atomic(run / "provenance.json", to_json({"devices": ["H200"] * 8, "attempts": listed}))


def write_stages(run: Path, number: int, started: Any, **facts: Any) -> None:
    stages_file(run, number).parent.mkdir(parents=True, exist_ok=True)
    stages_file(run, number).write_text(to_json({"started": started, "seconds": {"python": 1.0}, **facts}))


def test_a_run_that_waited_was_killed_and_went_on(tmp_path):
    """8 ranks: an hour in the queue, killed 10 minutes after its newest checkpoint, half an hour in the queue."""
    kept = {"start": 55.0, "train": 3000.0, "evaluate": 200.0, "save": 40.0}
    begin = 1e6 + HOUR
    attempt(tmp_path, 1, begin, begin + 5 + 3295 + 600, submitted=1e6, step=95, spent={"start": 55.0},
            kept={"step": 80, "spent": kept})  # fmt: skip
    again = begin + 3900 + HOUR / 2
    whole = {"start": 45.0, "train": 1000.0, "evaluate": 100.0, "save": 20.0, "other": 5.0}
    attempt(tmp_path, 2, again, again + 5 + 1170 + 10, submitted=1e6, first_step=80, step=100, spent=whole,
            kept={"step": 100, "spent": whole}, ended=True)  # fmt: skip
    found = spent(tmp_path)
    assert found is not None
    assert found.seconds == pytest.approx(
        {"wait": 1.5 * HOUR, "idle": 0, "start": 110, "train": 4000, "evaluate": 300, "save": 60, "lost": 600}
        | {"other": 15}
    )
    assert (found.begin, found.end) == (1e6, again + 1185)
    assert (found.lost_steps, found.device, found.queued) == (15, "GPU", 0)
    assert found.lost_hours == pytest.approx(8 * 600 / 3600)
    assert found.device_hours == pytest.approx(8 * (3900 + 1185) / 3600)


def test_what_was_made_before_a_damaged_checkpoint_is_lost_too(tmp_path):
    """The newest checkpoint was of step 80, and yet the run went on from 40: half of its training is made again."""
    kept = {"start": 50.0, "train": 800.0}
    attempt(tmp_path, 1, 1e6, 1e6 + 5 + 850 + 100, submitted=1e6, step=90, spent=kept, kept={"step": 80, "spent": kept})
    attempt(tmp_path, 2, 1e6 + 955, None, in_place="node n2 failed", first_step=40, step=41, spent={"start": 20.0})
    found = spent(tmp_path, "running", 1e6 + 955 + 25 + 60)
    assert found is not None
    assert found.seconds["lost"] == pytest.approx(100 + 400)
    assert found.lost_steps == 50
    # The second goes on: what it makes may yet be kept.
    assert found.seconds["train"] == pytest.approx(400 + 60)
    assert found.seconds["wait"] == 0


def test_the_queue_is_what_was_waited_for_and_not_what_nobody_asked_for(tmp_path):
    """It failed at night, and was sent again in the morning by another job."""
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "job.json").write_text(to_json({"job_id": "7", "submitted": 1e6, "gpus_per_node": 8}))
    waiting = spent(tmp_path, "queued", 1e6 + 30)
    assert waiting is not None
    assert (waiting.seconds["wait"], waiting.queued, waiting.device_hours) == (30, 30, 0)
    attempt(tmp_path, 1, 1e6 + 60, 1e6 + 160)
    attempt(tmp_path, 2, 1e6 + 160 + 5 * HOUR, 1e6 + 200 + 5 * HOUR, job_id="9", submitted=1e6 + 160 + 4 * HOUR)
    found = spent(tmp_path)
    assert found is not None
    assert (found.seconds["wait"], found.seconds["idle"]) == (60 + HOUR, 4 * HOUR)
    # Requeued: since the last attempt's end.
    requeued = spent(tmp_path, "queued", found.end + 70)
    assert requeued is not None
    assert requeued.queued == 70


def test_the_bar_of_a_run_that_is_silent_ends_with_its_last_sign_of_life(tmp_path):
    """Killed an hour after its start, and reported a fortnight later, with status.json as the kill has left it."""
    begin = time.time() - 14 * 24 * HOUR
    attempt(tmp_path, 1, begin, None, submitted=begin, step=100)
    write_atomic(tmp_path / "status.json", to_json({"format": 1, "state": "running", "updated": begin + HOUR}))
    assert "; 8 GPU-hours" in spent_bar(tmp_path, "running")


SOME = st.one_of(st.none(), st.floats(0, 5000), st.sampled_from(["x", -5.0, True, 1e12, 3]))
STEP = st.one_of(st.none(), st.integers(0, 200), st.just("x"))
SECONDS = st.one_of(st.none(), st.dictionaries(st.sampled_from([*ON_DEVICES, "nap"]), SOME), st.just([1]))


@settings(max_examples=60)
@given(st.data())
def test_all_kinds_add_up_and_none_is_negative(data: st.DataObject):
    """Whatever is missing, damaged, or by a clock that is wrong."""
    with TemporaryDirectory() as folder:
        run = Path(folder)
        (run / "slurm").mkdir()
        draw = data.draw
        lines, own = [], []
        for number in range(1, draw(st.integers(0, 4)) + 1):
            row = {"attempt": draw(st.sampled_from([number, number, number, 1, "x", None]))}
            row |= {key: draw(SOME) for key in draw(st.sets(st.sampled_from(["start", "submitted", "seen"])))}
            row |= {
                "step": draw(STEP),
                "reached": draw(STEP),
                "ranks": draw(STEP),
                "job_id": draw(st.sampled_from("78")),
            }
            row |= {"in_place": "a rank died"} if draw(st.booleans()) else {}
            lines += [row, {"attempt": row["attempt"], "end": draw(SOME), "step": draw(STEP)}][
                : draw(st.integers(0, 2))
            ]
            if draw(st.booleans()):
                word = {"start": draw(SOME), "end": draw(SOME), "step": draw(STEP), "first_step": draw(STEP)}
                job = draw(st.sampled_from(["7", "8", None]))
                own.append(
                    word | {"job_id": job, "world_size": draw(STEP), "attempt": draw(st.sampled_from([number, 1]))}
                )
            if draw(st.booleans()):
                kept = draw(st.one_of(st.just({}), st.just(7), st.fixed_dictionaries({"step": STEP, "spent": SECONDS})))
                facts = {"spent": draw(SECONDS), "kept": kept, "ended": draw(st.booleans()), "step": draw(STEP)}
                write_stages(run, number, draw(SOME), **facts)
        (run / "slurm" / "attempts.jsonl").write_text("".join(to_json(row) + "\n" for row in lines))
        (run / "provenance.json").write_text(to_json({"attempts": own}))
        if draw(st.booleans()):
            (run / "slurm" / "job.json").write_text(
                to_json({"job_id": "7", "submitted": draw(SOME), "ranks": draw(STEP)})
            )
        (run / "status.json").write_text(to_json({"updated": draw(SOME)}))
        found = spent(run, draw(st.sampled_from(["queued", "running", None])), draw(st.floats(0, 1e4)))
        if found is not None:
            assert [*found.seconds] == [*KINDS]
            assert min([*found.seconds.values(), *found.device_seconds.values(), found.queued]) >= 0
            assert sum(found.seconds.values()) == pytest.approx(found.end - found.begin, abs=1e-3)
            assert min([0, *(one.steps for one in found.attempts), *(one.lost_steps for one in found.attempts)]) == 0


def test_a_ledger_adds_up_to_the_age_of_its_process_and_can_lose():
    ledger = Ledger()
    first = ledger.seconds()
    ledger.turn("train")
    time.sleep(0.05)
    kept = ledger.seconds()
    with ledger.of("save"):
        time.sleep(0.02)
    ledger.turn("evaluate")
    time.sleep(0.03)
    ledger.was("lost")
    ledger.turn("train")
    found = ledger.seconds()
    assert (found["save"] >= 0.02, found["lost"] >= 0.03, found["evaluate"]) == (True, True, 0)
    ledger.lose(kept)
    after = ledger.seconds()
    assert (after["save"], after["lost"]) == (0, pytest.approx(sum(after.values()) - sum(kept.values()), abs=0.01))
    assert sum(after.values()) - sum(first.values()) >= 0.1


def test_a_run_of_an_earlier_version_tells_what_it_can(tmp_path):
    run = make_run(tmp_path / "old")
    found = spent(run)
    assert found is not None
    assert sum(found.seconds.values()) == pytest.approx(found.end - found.begin)
    (run / "provenance.json").unlink()
    assert spent(run) is None


def test_each_kind_of_a_real_run_is_measured(tiny, tmp_path):
    run = tmp_path / "whole"
    assert train(*tiny, "epochs=2", f"run.root={tmp_path}", "run.name=whole") == 0
    told = read_stages(run, 1)["spent"]
    assert (told["lost"], told["evaluate"] > 0, told["train"] > 0) == (0, True, True)
    steps = metrics(run, "images_per_second")
    by_log = sum(16 / row["images_per_second"] for row in steps[1:])
    assert told["train"] == pytest.approx(by_log, rel=0.25, abs=0.3)
    found = spent(run)
    assert found is not None
    assert found.seconds["train"] == pytest.approx(told["train"], rel=0.01)
    assert (found.attempts[0].steps, found.lost_steps) == (20, 0)


def test_what_a_killed_run_makes_again_is_lost(tiny, tmp_path):
    """Killed at a known step, with a checkpoint each 4 steps: by its own files to the step and the second."""
    run = tmp_path / "killed"
    words = ["train.py", *tiny, "epochs=40", "checkpoint.every=4 steps", f"run.root={tmp_path}", "run.name=killed"]
    process = start(*words)
    reached, killed = stopped_after(run, 10, process), time.time()
    process.kill()
    finish(process)
    kept = read_stages(run, 1)["kept"]
    before = spent(run)
    assert before is not None
    assert before.lost_steps == reached - kept["step"] > 0
    assert finish(start(*words, "max_steps=16")).returncode == 0
    found = spent(run)
    assert found is not None
    assert found.attempts[1].first_step == kept["step"]
    assert (found.lost_steps, found.attempts[0].steps) == (reached - kept["step"], kept["step"])
    taken = read_stages(run, 1)["started"] + sum(kept["spent"].values())
    assert found.seconds["lost"] == pytest.approx(killed - taken, abs=1)
    assert found.seconds["wait"] == 0


def stopped_after(run: Path, step: int, process: subprocess.Popen[str], seconds: float = 120) -> int:
    """Stop a run between two checkpoints once it has made so many steps; returns how many it has made."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        process.send_signal(signal.SIGSTOP)
        with contextlib.suppress(OSError, ValueError):
            if status(run)["step"] >= step and status(run)["step"] % 4:
                return status(run)["step"]
        process.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")
