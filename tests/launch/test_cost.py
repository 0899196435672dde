"""What a run costs: before it is sent, by others; while it goes on, by itself; and once it is over."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.cli import main
from launch.commands import status
from launch.commands.status import describe
from launch.runs import course
from launch.runs.course import Limit, Span, outlook, overhead, span_of
from launch.runs.expected import REHEARSALS, UNKNOWN, Expected, expected, keep_rehearsal, limit_of, lines
from launch.runs.job_record import Job, read_job, write_job
from launch.runs.so_far import SoFar, as_json, so_far
from launch.runs.so_far import lines as cost_lines
from launch.runs.state import rows
from launch.sweep import dry_run as of_sweep
from launch.sweep.directory import Place
from launch.sweep.sweep_types import HalvingRule, Sweep
from launch.sweep.trials import Trial
from recipes.load import load
from recipes.schema.recipe import Recipe
from resnet.rundir.files import append_line, to_json
from resnet.rundir.find import runs_in
from resnet.rundir.spent import hours, spent
from resnet.rundir.stages import stages_file
from resnet.rundir.status import write_status
from slurm.profile import Profile
from slurm.slices import Slice
from slurm.slicing import slice_now
from tests.fabricated import make_run
from tests.helpers import OFF

HERE = Profile(gpus_per_node=8, gpu_type="h100", time="0:16:40", signal_lead=100)
SENT = 1_700_000_000.0


def of(*changes: str) -> Recipe:
    return load(["recipe=quickstart", *OFF, *changes]).recipe


def make(
    run: Path, each: float = 2.0, begin: tuple[float, ...] = (60.0,), profile: Profile = HERE, **status: Any
) -> Path:
    """A run of 40 steps, a step in so many seconds, in attempts of 20 s of starting, as many steps each, four
    evaluations of 6 s, a second of saving and 3 s of leaving. begin: of each, in seconds since it was sent."""
    make_run(run, *OFF, images_per_second=16 / each, **status)
    (run / "slurm").mkdir()
    write_job(run, replace(Job.to_send(run.name, "there", profile, Path("code"), Path("here")), submitted=SENT), "1")
    own, steps = [], 40 // len(begin)
    for number, at in enumerate(begin, 1):
        first = steps * (number - 1)
        spent = {"start": 20.0, "train": (steps - 1) * each, "evaluate": 24.0 / len(begin), "save": 1.0, "other": 3.0}
        row = {"attempt": number, "job_id": "1", "start": SENT + at, "submitted": SENT, "ranks": 8}
        append_line(run / "slurm" / "attempts.jsonl", row | {"step": first})
        append_line(
            run / "slurm" / "attempts.jsonl", row | {"end": SENT + at + sum(spent.values()), "step": first + steps}
        )
        own.append({"start": SENT + at, "attempt": number, "first_step": first, "step": first + steps, "job_id": "1"})
        stages_file(run, number).parent.mkdir(parents=True)
        facts = {"started": SENT + at, "seconds": {"python": 1.0}, "spent": spent, "ended": True, "step": first + steps}
        stages_file(run, number).write_text(to_json(facts | {"kept": {"step": first + steps, "spent": spent}}))
    provenance = {"devices": ["H100"] * 8, "plan": {"batch_size": 16}}
    (run / "provenance.json").write_text(to_json(provenance | {"attempts": [one | {"world_size": 8} for one in own]}))
    return run


def found(root: Path, *changes: str, nodes: tuple[int, ...] = (1,), profile: Profile = HERE) -> Expected | None:
    return expected(of(*changes), "there", profile, root, nodes, limit_of(profile))


def test_a_run_is_expected_to_take_what_others_alike_took(tmp_path):
    """Two of them, of which one is half as fast: eight GPUs, four evaluations of 6 s, a start of 20 s, 3 s to leave."""
    make(tmp_path / "fast", 2.0)
    make(tmp_path / "slow", 4.0, (60.0, 60.0 + 200 + 300))
    make(tmp_path / "elsewhere", 90.0, profile=Profile(gpus_per_node=8, gpu_type="a100"))
    one = found(tmp_path, "epochs=8")
    assert one is not None
    [(ranks, outlook)] = one.by_ranks
    fast, slow = 2 + 1 / 39, 4 + 2 / 38
    assert ranks == 8
    by_speed = [80 * step + 8 * 6 + 23 for step in (fast, (fast + slow) / 2, slow)]
    assert outlook.seconds == pytest.approx(by_speed, abs=0.01)
    assert one.device_hours == pytest.approx([8 * seconds / 3600 for seconds in by_speed], abs=0.001)
    assert outlook.attempts == 1
    told = [*lines(one, HERE, "2026-11-28 09:59:30")]
    assert told[0].endswith("on 8 GPUs (by 2 runs, 2 finished; with starts, saves and evaluations)")
    assert told[0].startswith("takes           about 0.698 (0.518 to 0.878) GPU-hours: 5m14s (3m53s to 6m35s)")
    assert told[1:] == ["expected end    2026-11-28 10:04, between 11-28 10:03 and 11-28 10:06"]
    assert len([*lines(one, HERE, "unknown")]) == 1


def test_the_queue_between_the_attempts_is_in_the_end_that_is_expected(tmp_path):
    ended = 60 + 20 + 19 * 2 + 12 + 1 + 3
    make(tmp_path / "one", 2.0, (60.0, ended + 300.0))
    one = found(tmp_path, "epochs=100")
    assert one is not None
    [(_, outlook)] = one.by_ranks
    # 2,632 s of work and 877 s for it in an attempt.
    assert outlook.attempts == 4
    assert outlook.wait == pytest.approx([900] * 3)
    end = [*lines(one, HERE, "2026-11-28 10:00:00")][1]
    assert end.endswith("the queue before 3 further starts with it: 15m00s")
    seconds = (datetime.fromisoformat(end[16:32]) - datetime.fromisoformat("2026-11-28 10:00")).total_seconds()
    assert seconds == pytest.approx(outlook.seconds.likely + 900, abs=60)


def test_of_one_attempt_nothing_is_known_of_the_queue_between(tmp_path):
    make(tmp_path / "one")
    one = found(tmp_path, "epochs=100")
    assert one is not None
    told = [*lines(one, HERE, "2026-11-28 10:00:00")]
    assert told[1].endswith("and the queue before 2 further starts, of which nothing is known")
    with pytest.raises(ValueError, match=r"would not come to train: a start takes 23 s.*slurm.time"):
        found(tmp_path, profile=HERE.model_copy(update={"time": "0:02:00"}))


def test_of_slices_the_least_is_expected_and_the_longest_is_the_best(tmp_path):
    """130 h in slices of half an hour to 36 h, a minute of each to stop: backfill gives no more than the least."""
    make(tmp_path / "one", 2 - 1 / 39)
    sliced = HERE.model_copy(update={"time": "auto"})
    recipe = of("epochs=18000")
    one = expected(recipe, "there", sliced, tmp_path, (1,), limit_of(sliced, Slice(30, 36 * 60, 60)))
    assert one is not None
    [(_, outlook)] = one.by_ranks
    assert (outlook.fewest, outlook.attempts) == (4, math.ceil(18000 * 26 / (1800 - 60 - 23)))
    assert outlook.seconds.low < outlook.seconds.likely - 268 * 23
    [_, end] = lines(one, sliced, "2026-11-28 10:00:00")
    assert end.endswith("and the queue before 3 to 272 further starts, of which nothing is known")


def test_a_run_in_slices_expects_those_that_its_batch_script_asks_for(tmp_path):
    """After an attempt that failed within seconds."""
    run = make(tmp_path / "x", 2.0, (60.0,), HERE.model_copy(update={"time": "auto"}), state="stopped", step=20)
    row = {"attempt": 2, "job_id": "1", "start": SENT + 300, "submitted": SENT, "ranks": 8, "step": 20}
    for told in (row, row | {"end": SENT + 304}):
        append_line(run / "slurm" / "attempts.jsonl", told)
    jobs = {"slice": {"limit": 600, "least_lead": 0}, "nodes": 1, "signal_lead": 120}
    (run / "slurm" / "x.jobs.json").write_text(to_json(jobs))
    found = so_far_of(run, SENT + 400, state="queued", step=20, total_steps=100_000, expected_start=SENT + 900)
    assert found.to_come is not None
    slice = slice_now(jobs, run)
    work = found.to_come.seconds.likely - found.to_come.attempts * 23
    assert found.to_come.attempts == math.ceil(work / (60 * slice.least - slice.lead - 23))
    assert found.to_come.fewest < found.to_come.attempts < 30


def test_a_range_of_nodes_gives_the_range(tmp_path):
    several = HERE.model_copy(update={"nodes": "1-2"})
    make(tmp_path / "one", profile=several)
    one = found(tmp_path, nodes=(1, 2), profile=several)
    assert one is not None
    (two_nodes, faster), (one_node, slower) = one.by_ranks
    assert (two_nodes, one_node) == (16, 8)
    assert slower.seconds.likely - 23 == pytest.approx(2 * (faster.seconds.likely - 23))
    assert next(lines(one, several, "unknown")).count(" on ") == 2


def test_without_runs_a_rehearsal_tells_and_else_the_way_to_one(tmp_path):
    assert found(tmp_path) is None
    told = [*lines(None, HERE, "2026-11-28 10:00:00")]
    assert told == ["takes           not known: no run here has trained this on such nodes; --rehearse measures it"]
    rehearsal = make(tmp_path / "x-rehearsal", 5.0)
    keep_rehearsal(rehearsal, None)
    assert not (tmp_path / REHEARSALS).exists()
    keep_rehearsal(rehearsal, 8.0)
    for file in sorted(rehearsal.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    rehearsal.rmdir()
    one = found(tmp_path)
    assert one is not None
    assert one.by == "by the few steps of the rehearsal x-rehearsal"
    assert one.by_ranks[0][1].device_seconds.likely > 80 * 16 / 8.0 * 8
    assert [*runs_in(tmp_path)] == [], "what a rehearsal has left is no run"


SECONDS = st.just(0.0) | st.floats(1e-3, 1e6)
SPANS = st.lists(SECONDS, min_size=3, max_size=3).map(lambda values: Span(*sorted(values)))


@given(
    SPANS,
    st.floats(0, 100),
    st.none() | SPANS,
    st.integers(1, 9),
    st.floats(1, 1e5),
    st.just(0.0) | st.floats(1, 1e5),
    st.floats(0, 1e5),
)
def test_what_is_to_come_is_in_order_and_fits_its_attempts(work, start, wait, ranks, trains, left, more):
    """Each attempt trains so long, or longer, after its start, that which trains now for what is left of it."""
    found = outlook(work, start, wait, ranks, Limit(trains + start, trains + start + more, 0.0), left)
    assert 0 <= found.fewest <= found.attempts
    assert left + found.fewest * (trains + more) >= work.likely * (1 - 1e-9)
    assert 0 <= found.seconds.low <= found.seconds.likely <= found.seconds.high
    assert found.device_seconds == found.seconds.times(ranks)
    assert left + found.attempts * trains >= work.likely * (1 - 1e-9)
    assert left + (found.attempts - 1) * trains < work.likely * (1 + 1e-9) or found.attempts == 0
    queued = max(0, found.attempts - (0 if left else 1))
    if found.wait is not None:
        assert found.wait.likely == pytest.approx(queued * wait.likely if wait else 0)
        assert 0 <= found.wait.low <= found.wait.likely <= found.wait.high


def test_a_span_leaves_out_what_is_rare():
    assert span_of([]) is None
    assert span_of([3.0]) == (3, 3, 3)
    assert span_of([1.0, 9.0, 2.0]) == (1, 2, 9)
    span = span_of([10.0] * 30 + [1000.0])
    assert span is not None
    assert span.high == 10


def so_far_of(run: Path, now: float, **row: Any) -> SoFar:
    [told] = rows([run])
    found = so_far(told | {"over": False, "time_left_s": None, "expected_start": None} | row, now)
    assert found is not None
    return found


def test_a_run_that_goes_on_tells_what_is_to_come(tmp_path):
    """Its second attempt runs for 100 s, after two minutes in the queue; half of its 40 steps are made."""
    run = make(tmp_path / "x", 2.0, (60.0, 254.0), state="running")
    lines = (run / "slurm" / "attempts.jsonl").read_text().splitlines()
    (run / "slurm" / "attempts.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    now = SENT + 354
    found = so_far_of(run, now, state="running", step=30, total_steps=40, time_left_s=400.0)
    assert found.spent.device_hours == pytest.approx(8 * (74 + 100) / 3600)
    assert (found.spent.seconds["wait"], found.spent.queued) == (180, 0)
    assert found.to_come is not None
    assert found.end is not None
    assert found.device_hours is not None
    # Ten steps at 100 img/s by its log, and what was evaluated and saved beside the training of others.
    assert found.to_come.attempts == 0
    assert 1.6 < found.to_come.seconds.likely < 4
    assert found.end.likely == pytest.approx(now + found.to_come.seconds.likely)
    short = so_far_of(run, now, state="running", step=30, total_steps=4000, time_left_s=200.0)
    assert short.to_come is not None
    assert short.to_come.attempts == 1
    assert short.to_come.wait == pytest.approx([120] * 3)


def test_a_run_that_waits_tells_how_long_it_has_and_when_it_is_to_end(tmp_path):
    run = make(tmp_path / "x", 2.0, (60.0,), state="stopped", step=20)
    end = SENT + 60 + 20 + 78 + 24 + 1 + 3
    found = so_far_of(run, end + 50, state="queued", step=20, expected_start=end + 600)
    assert (found.spent.queued, found.spent.seconds["wait"]) == (50, 110)
    assert found.end is not None
    assert found.end.likely > end + 600
    # Slurm does not say when it starts, and so nobody can tell the end.
    found = so_far_of(run, end + 50, state="queued", step=20)
    assert (found.end, found.to_come is not None) == (None, True)


def test_an_attempt_that_could_not_note_its_end_ends_with_its_last_sign_of_life(tmp_path):
    """Slurm ended the batch script at once: what came after is the queue's, and it has no cause."""
    run = make(tmp_path / "x", 2.0, (60.0, 400.0), updated=SENT + 500.0)
    lines = [json.loads(line) for line in (run / "slurm" / "attempts.jsonl").read_text().splitlines()]
    (run / "slurm" / "attempts.jsonl").write_text("".join(to_json(row) + "\n" for row in lines if "end" not in row))
    found = so_far(rows([run])[0])
    assert found is not None
    assert found.spent.seconds["wait"] == pytest.approx(60 + 400 - (60 + 20 + 38 + 12 + 1 + 3))
    assert sum(found.spent.seconds.values()) == pytest.approx(found.spent.end - found.spent.begin)
    assert min(found.spent.seconds.values()) >= 0
    assert found.spent.device_hours == pytest.approx(8 * (74 + 74) / 3600)
    assert "cost        0.329 GPU-hours" in "\n".join(describe(rows([run])[0]))
    # Killed: by its lease, and not by what `launch cancel` or `launch retry` has written since.
    facts = {"started": SENT + 400, "seconds": {"python": 1.0}, "spent": {"start": 20.0}, "kept": {}, "step": 30}
    stages_file(run, 2).write_text(to_json(facts))
    (run / "lease.json").write_text(to_json({"time": SENT + 500}))
    for state in ("queued", "stopped"):
        write_status(run, state=state)
        assert so_far_of(run, SENT + 9000, state="queued", step=40).spent.queued == pytest.approx(8500)


def test_a_run_in_an_allocation_ends_with_it(tmp_path):
    """Of 4,000 steps it is at the 20th, and it is told to save in 1,000 s, 100 s before the end."""
    run = make(tmp_path / "x", 2.0, (60.0,), state="running")
    job = read_job(run)
    assert job is not None
    write_job(run, replace(job, held=True), "1")
    row = {"state": "running", "step": 20, "total_steps": 40_000}
    found = so_far_of(run, SENT + 300, time_left_s=1100.0, **row)
    whole = so_far_of(run, SENT + 300, **row)
    assert whole.to_come is not None
    assert found.to_come is not None
    assert found.end is not None
    assert found.last_step == pytest.approx(20 + 39_980 * 1000 / whole.to_come.seconds.likely, abs=1)
    assert (found.to_come.attempts, whole.to_come.attempts) == (0, 0)
    assert found.end.likely == pytest.approx(SENT + 1300)
    assert found.to_come.device_seconds.likely == pytest.approx(8000)
    cost = cost_lines(found)["cost"]
    assert f"; the allocation ends first, at about step {found.last_step:,}: " in cost
    assert "further" not in cost
    # Where all of it fits there is nothing to say.
    assert so_far_of(run, SENT + 300, time_left_s=1e6, **row).end == whole.end


def test_what_stands_idle_is_said_not_to_be_counted(tmp_path):
    spare = HERE.model_copy(update={"spare_nodes": 1})
    run = make(tmp_path / "x", profile=spare)
    assert "GPU-hours, what is idle of its nodes not counted" in "\n".join(describe(rows([run])[0]))
    one = found(tmp_path, profile=spare)
    assert one is not None
    assert next(lines(one, spare, "unknown")).endswith("what is idle of its nodes not counted)")


def test_a_short_attempt_that_evaluated_says_little_of_what_evaluations_cost(tmp_path):
    """Two that trained for two hours, with a tenth of it for evaluations, and one that only came to evaluate."""
    run = make(tmp_path / "x")
    found = spent(run)
    assert found is not None
    attempts = [
        found.attempts[0]._replace(seconds={"train": train, "evaluate": evaluate, "save": 0.0})
        for train, evaluate in ((7200.0, 720.0), (7200.0, 720.0), (3.0, 360.0))
    ]
    assert overhead(attempts) == pytest.approx((14403 + 1800) / 14403)
    assert overhead([]) == 1


def test_a_run_without_attempts_is_told_by_others_or_not_at_all(tmp_path):
    """Its files are of an earlier training, as where a run's directory was copied."""
    run = make(tmp_path / "x", 2.0)
    (run / "slurm" / "attempts.jsonl").unlink()
    (run / "provenance.json").unlink()
    for state in ("running", "queued"):
        found = so_far_of(run, SENT + 90, state=state, step=0)
        assert (found.to_come, found.end, found.spent.device_hours) == (None, None, 0)


def launched(capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_status_in_full_and_as_json(tmp_path, capsys):
    run = make(tmp_path / "runs" / "x")
    make(tmp_path / "runs" / "y")
    [row] = json.loads(launched(capsys, "status", run, "--json"))
    assert set(row["spent"]) == {"wait", "idle", "start", "train", "evaluate", "save", "lost", "other"}
    assert (row["spent"]["train"], row["spent"]["evaluate"], row["queued_s"]) == (78, 24, 60)
    assert row["gpu_hours"] == pytest.approx(8 * 126 / 3600)
    assert (row["gpu_hours_in_all"], row["expected_end"]) == (None, None)
    said = launched(capsys, "status", run)
    assert "  time        3m06s: queue 32%, start 11%, train 42%, evaluations 13%, saves 0.5%, leaving 1.6%\n" in said
    assert "  cost        0.28 GPU-hours\n" in said
    # Of many no more files are read.
    many = json.loads(launched(capsys, "status", "--root", tmp_path / "runs", "--json"))
    assert [row["state"] for row in many if "spent" not in row] == ["finished"] * 2
    assert as_json(None)["gpu_hours"] is None


def test_other_runs_are_read_once_however_many_are_asked_for(tmp_path, monkeypatch, capsys):
    """Three that wait, and have shown nothing themselves."""
    make(tmp_path / "before")
    for name in ("a", "b", "c"):
        run = make(tmp_path / name, state="queued", updated=1.0)
        for file in (run / "metrics.jsonl", run / "provenance.json", run / "slurm" / "attempts.jsonl"):
            file.unlink()
        write_status(run, images_per_second=None)
    read, whole = [], course.read_points
    monkeypatch.setattr(course, "read_points", lambda file, key: read.append(file.parent.name) or whole(file, key))
    found = rows([tmp_path / name for name in ("a", "b", "c")])
    told = status._with_costs([row | {"over": False, "state": "queued", "expected_start": SENT} for row in found])
    assert all(row["gpu_hours_in_all"]["likely"] > 0 for row in told)
    assert read.count("before") == 2, "its log's speeds, and its evaluations"


def told_of_a_sweep(root: Path, *changes: str, profile: Profile = HERE, sweep: Any = None) -> list[str]:
    """Two at once, of a trial a change, where no Slurm answers."""
    trials = [Trial(f"t{number}", dict([one.split("=")]), (), of(one), "") for number, one in enumerate(changes)]
    place = Place("there", profile, root, 2)
    plain = Sweep("grid", {}, {}, ())
    return [*of_sweep._costs(sweep or plain, trials, len(trials), root / "sweep", place)]


def test_a_sweep_is_expected_to_take_as_many(tmp_path):
    """Those of twice the epochs train for twice as long, and start once too."""
    make(tmp_path / "before", 2.0)
    four, eight = found(tmp_path, "epochs=4"), found(tmp_path, "epochs=8")
    assert four is not None
    assert eight is not None
    [told] = told_of_a_sweep(tmp_path, "epochs=4", "epochs=8")
    assert told.startswith(f"about {hours(3600 * (four.device_hours.likely + eight.device_hours.likely))} GPU-hours, ")
    assert told.endswith(" a trial (by 1 run, 1 finished)")
    place = Place("there", HERE, tmp_path, 5)
    [_, end] = of_sweep._takes([four] * 2, "", 10, place, datetime.fromisoformat("2026-11-28 10:00:00"))
    assert end.startswith("expected start 2026-11-28 10:00, end 2026-11-28 10:")


def test_a_sweep_says_what_its_estimate_does_not_know(tmp_path):
    make(tmp_path / "before", 2.0)
    stopping = Sweep("grid", {}, {}, (), early_stop=HalvingRule((1,)))
    [told] = told_of_a_sweep(tmp_path, f"batch_size={of().batch_size}", "batch_size=50", sweep=stopping)
    assert told.endswith(
        "(by 1 run, 1 finished; each trial as fast as the first, though they differ in batch_size; "
        "early stopping not counted)"
    )
    [told] = told_of_a_sweep(tmp_path, "seed=1", "seed=2", profile=HERE.model_copy(update={"time": "0:02:00"}))
    assert told.startswith("takes not known: an attempt of 120 s would not come to train")
    assert told_of_a_sweep(tmp_path / "none", "seed=1") == [f"takes {UNKNOWN}"]
