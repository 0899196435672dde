"""What a job makes of what its ranks say of their nodes before training, and what of a rehearsal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.commands.status import describe
from launch.runs.estimate import shown_by_runs, told
from launch.runs.job_record import Job, write_job
from launch.runs.rehearsal_report import report_on
from launch.runs.state import rows
from recipes.load import load
from resnet.rundir.files import append_line, to_json
from resnet.rundir.stages import stages_file
from slurm.node_check import judge
from slurm.profile import Profile
from tests.fabricated import make_run
from tests.helpers import OFF

NODES = ["n1", "n2", "n3"]


def alone(node: str, rank: int, device: str = "cuda", bad: tuple[str, ...] = (), **facts: Any) -> dict[str, Any]:
    return {"node": node, "rank": rank, "device": device, "bad": [*bad], "facts": facts}


def joined(node: str, rank: int, rate: float, clock: float = 0.0, backend: str = "nccl") -> dict[str, Any]:
    return {"node": node, "rank": rank, "clock": clock, "pair_gbs": rate, "all_reduce_gbs": 9.0, "backend": backend}


def of_all(*more: dict[str, Any], without: str = "") -> list[dict[str, Any]]:
    return [*(alone(node, rank) for rank, node in enumerate(NODES) if node != without), *more]


@pytest.mark.parametrize(
    ("rows_", "bad"),
    [
        (of_all(), {}),
        (of_all(alone("n2", 3, bad=("GPU 1: heat", "and more"))), {"n2": "GPU 1: heat"}),
        (of_all(without="n3"), {"n3": "no answer within 7 s"}),
        (of_all(alone("n1", 3, device="cpu")), {"n1": "rank 3 sees no GPU"}),
        (of_all(*(joined(node, rank, 10 - 6 * (node == "n2")) for rank, node in enumerate(NODES))), {"n2": "4 GB/s"}),
        # On CPUs that may be busy it is only told.
        (of_all(*(joined(n, rank, 10 - 6 * (n == "n2"), backend="gloo") for rank, n in enumerate(NODES))), {}),
        # Whom to blame cannot be known of two.
        (of_all(joined("n1", 0, 10), joined("n2", 1, 1)), {}),
        # Without GPUs on any of them none is missing.
        ([alone(node, rank, device="cpu") for rank, node in enumerate(NODES)], {}),
        # What all nodes do is no node's fault.
        ([alone(node, rank, bad=("wrong",)) for rank, node in enumerate(NODES)], {}),
        ([], {}),
    ],
)
def test_the_bad_node_is_named(rows_, bad):
    found = judge(rows_, NODES, 7.0)
    assert found.bad.keys() == bad.keys()
    assert all(why in found.bad[node] for node, why in bad.items())
    if bad:
        assert found.end is not None
        assert (found.end.outcome, found.end.failure, found.end.node) == ("killed", "node", next(iter(bad)))
    else:
        assert found.end is None


def test_what_is_no_reason_to_leave_a_node_out_is_told():
    rows_ = of_all(
        *(joined(node, rank, 10 - 6 * (node == "n2"), 5.0 * (node == "n3"), "gloo") for rank, node in enumerate(NODES)),
        alone("n1", 3, tmp_gb=0.2, shm_gb=30.0, unreadable=["data.train=/data: No such file or directory"]),
        {"node": "n2", "rank": 1, "trouble": "DistNetworkError: refused"},
    )
    found = judge(rows_, NODES)
    assert [*found.notes] == [
        "n1: 0.2 GB free in the folder for temporary files",
        "n1 cannot read data.train=/data: No such file or directory",
        "n3: its clock is +5.0 s off the others'",
        "n2: its network gives 4 GB/s, the median is 10",
        "n2: DistNetworkError: refused",
    ]
    assert found.all_reduce_gbs == 9.0
    many = judge([alone(f"n{number}", number, tmp_gb=0.1) for number in range(200)], [])
    assert len(many.notes) == 11
    assert many.notes[-1] == "... and 190 more such lines"
    [only] = judge([alone("n1", 0, bad=("wrong",))], ["n1"]).bad
    assert only == "n1"


STARTED = 1_700_000_100.0


@pytest.fixture
def rehearsed(tmp_path):
    """The directory of a rehearsal of two starts, by what its first one's stages and its check say."""

    def make(seconds: dict[str, float], check: dict[str, Any] | None = None, state: str = "stopped", **status) -> Path:
        run = make_run(tmp_path / "x-rehearsal", *OFF, state=state, **{"reason": "rehearsed"} | status)
        (run / "slurm").mkdir()
        write_job(run, job_of(run.name, Profile(gpus_per_node=2)), "1")
        for number in (1, 2):
            begin = STARTED + 100 * (number - 1)
            record = {"attempt": number, "job_id": "1", "start": begin, "nodes": ["n1"], "step": 0}
            append_line(run / "slurm" / "attempts.jsonl", record | ({"check": check} if check and number == 1 else {}))
            append_line(run / "slurm" / "attempts.jsonl", record | {"end": begin + 90})
            if seconds:
                stages_file(run, number).parent.mkdir(parents=True)
                facts = {"started": begin + 12, "seconds": seconds, "first_step": 0, "step": 3, "further_images": 50}
                stages_file(run, number).write_text(to_json(facts))
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
    # 8 epochs of 10 steps of quickstart's 250 images at 50 a second, on 2 GPUs.
    batch = load(["recipe=quickstart"]).recipe.batch_size
    assert f"about {8 * 10 * batch / 50 * 2 / 3600:.2g} GPU-hours" in "\n".join(report.lines)
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
    assert shown_by_runs(recipe, "there", here, tmp_path) is None
    recipe = load(["recipe=quickstart", "epochs=40", *OFF]).recipe
    speed = shown_by_runs(recipe, "there", here, tmp_path)
    assert speed is not None
    assert (speed.images_per_second, speed.steps_per_epoch) == (200.0, 10)
    line, seconds = told(recipe, here, speed)
    assert seconds == 40 * 10 * recipe.batch_size / 200
    assert line.startswith(f"about {seconds * 8 / 3600:.2g} GPU-hours, ")
    assert "of 8 GPUs (by 2 runs, 2 of them finished: 200 img/s" in line
    assert shown_by_runs(recipe, "elsewhere", here, tmp_path) is None
