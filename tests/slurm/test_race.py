"""One run that waits with several jobs: who takes it, who leaves it, and that it is trained once."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from resnet.rundir.attempts import read_attempts
from resnet.rundir.files import read_lines
from slurm import claim as claims
from slurm import race
from slurm.claim import follow, newest_claim
from slurm.race import TOKEN, enter, is_gone, take
from tests.helpers import status
from tests.racing import NAMES, SUBMIT, batch_scripts, holder, two_clusters, verdict
from tests.slurm_helpers import need_slurm
from tests.stand_in import MADE

ROUNDS = 200


def own(request: str, **fields) -> dict:
    return {"request": request, "job_id": "1", "restart": 0, "cluster": request, "name": "run", **fields}


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "run" / "slurm").mkdir(parents=True)
    return tmp_path / "run"


def _claim_again_and_again(run: Path, name: str, barrier, won) -> None:
    for number in range(ROUNDS):
        barrier.wait()
        # All find what is left of the round before stale.
        race.is_gone = lambda _, claim, number=number: claim.content["round"] < number
        claim = take(run, own(name, round=number))
        won.put((number, name if claim else None))
        barrier.wait()


def test_of_jobs_that_all_find_a_claim_stale_one_takes_it_over(run):
    names = ["a", "b", "c"]
    context = multiprocessing.get_context("fork")
    barrier, won = context.Barrier(len(names)), context.Queue()
    children = [context.Process(target=_claim_again_and_again, args=(run, name, barrier, won)) for name in names]
    for child in children:
        child.start()
    found = [won.get(timeout=100) for _ in range(ROUNDS * len(names))]
    for child in children:
        child.join(10)
    winners = [[name for number, name in found if number == one and name] for one in range(ROUNDS)]
    # One that is another's in a row takes its own over: it is the same job.
    assert [len(one) for one in winners] == [1] * ROUNDS
    newest = newest_claim(run)
    assert newest
    assert newest.number == ROUNDS
    # It does happen that another is quicker.
    assert len({one[0] for one in winners}) > 1


def test_a_claim_is_whole_and_its_number_is_used_once(run):
    first = follow(run, None, own("a"))
    assert first
    assert follow(run, None, own("b")) is None
    assert newest_claim(run) == first
    second = follow(run, first, {"free": "a"})
    assert second
    assert second.holder is None
    assert not second.over
    assert [path.name for path in (run / "slurm" / "claims").iterdir()] != []
    assert sorted(path.name for path in (run / "slurm" / "claims").iterdir()) == ["000001", "000002"]


def test_a_job_that_starts_again_takes_its_own_claim(run):
    assert take(run, own("a"))
    again = take(run, own("a", restart=1))
    assert again
    assert again.number == 2
    follow(run, again, {**again.content, "over": "finished"})
    assert take(run, own("b")) is None
    assert take(run, own("a", restart=2)) is None


def test_without_its_controller_a_holder_is_known_by_its_signs_of_life(run, monkeypatch):
    monkeypatch.setattr(claims, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(race, "LOOK_SECONDS", 0.1)
    held = take(run, own("a"))
    assert held
    begin = time.monotonic()
    assert is_gone(run, held)
    assert 1 < time.monotonic() - begin < 30
    monkeypatch.setattr(claims, "STALE_SECONDS", 60.0)
    beating = multiprocessing.get_context("fork").Process(target=_beat, args=(run, held))
    beating.start()
    try:
        assert not is_gone(run, held)
    finally:
        beating.kill()


def _beat(run: Path, held: claims.Claim) -> None:
    while True:
        claims.beat(run, held)
        time.sleep(0.2)


def test_a_claim_that_is_let_go_of_meanwhile_is_no_hindrance(run, monkeypatch):
    monkeypatch.setattr(race, "LOOK_SECONDS", 0.1)
    held = take(run, own("a"))
    assert held
    assert follow(run, held, {"free": "a"})
    assert is_gone(run, held)
    assert take(run, own("b"))


def token(run: Path) -> dict:
    (run / "slurm" / TOKEN).write_text("t")
    for name in ("a", "b"):
        (run / "slurm" / name).mkdir()
    return {"name": "a", "token": "t", "inode": (run / "slurm" / TOKEN).stat().st_ino, "cluster": "one"}


def test_a_copy_of_the_folder_is_not_the_folder(run, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    request = token(run)
    (run / "status.json").write_text('{"state": "queued"}')
    mirror = run.with_name("mirror")
    shutil.copytree(run, mirror)
    before = sorted(os.listdir(mirror / "slurm"))
    assert enter(mirror, request) == 1
    assert "another folder here" in capsys.readouterr().err
    assert sorted(os.listdir(mirror / "slurm")) == before
    assert enter(run.with_name("nothing"), request) == 1
    assert "does not see the folder" in capsys.readouterr().err
    (run / "slurm" / TOKEN).write_text("of a later submission")
    assert enter(run, request) == 0
    assert newest_claim(run) is None
    assert (run / "status.json").read_text() == '{"state": "queued"}'


def test_the_run_is_over_for_those_that_come_late(run, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    request = token(run)
    found = enter(run, request)
    assert isinstance(found, race.Race)
    (run / "status.json").write_text('{"state": "finished"}')
    found.end()
    newest = newest_claim(run)
    assert newest
    assert newest.over == "finished"
    assert enter(run, {**request, "name": "b"}) == 0
    # Nobody's beat is seen when it is over.
    last = claims.last_beat(run, found.claim)
    time.sleep(0.1)
    assert claims.last_beat(run, found.claim) == last


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    need_slurm()
    with two_clusters(tmp_path_factory.mktemp("two")) as found:
        yield found


def test_of_two_that_start_at_once_one_trains(two):
    two.block()
    run = two.submit("at-once")
    shown = two.launch("status", run).stdout
    assert "waiting in 2 places: ./one.yaml low 1 node" in shown
    [row] = json.loads(two.launch("status", "--json", run).stdout)
    assert [place["cluster"] for place in row["places"]] == ["./one.yaml", "./two.yaml"]
    # Of equal ids on clusters of equal names.
    assert len({place["job_id"] for place in row["places"]}) == 1
    assert "in the queue already" in two.launch("retry", run, code=2).stderr
    two.free()
    assert two.wait_end(run)["state"] == "finished"
    assert verdict(run) | {"by": 1} == {"state": "finished", "all": True, "twice": 0, "turns": 0, "by": 1}
    assert len(verdict(run)["by"]) == 1
    newest = newest_claim(run)
    assert newest
    assert newest.over == "finished"


def test_a_run_that_goes_back_to_the_queue_waits_everywhere_again(two):
    two.block()
    run = two.submit("goes-back")
    two.free("one")
    two.wait("steps", lambda: len(read_lines(run / MADE)) > 2)
    two.wait("the other is cancelled", lambda: two.states("two", run.name) == ["CA"])
    held = newest_claim(run)
    assert held
    assert held.content["request"] == "request-1"
    # Somebody else takes its place, so that the other cluster is first.
    two.ask("one", "sbatch", "--job-name=block", "--exclusive", "--output=/dev/null", "--wrap=sleep 900", "--nice=-100")
    two.free("two")
    two.ask("one", "scancel", "--signal=USR2", held.content["job_id"])
    assert two.wait_end(run)["state"] == "finished"
    two.free()
    found = verdict(run)
    assert (found["twice"], found["turns"], len(found["by"])) == (0, 0, 2)
    assert found["by"][-1].startswith("./two.yaml")
    attempts = read_attempts(run)
    assert [one["cluster"] for one in attempts] == ["./one.yaml", "./two.yaml"]
    assert len({one["sent"] for one in attempts}) == 1


def test_a_winner_that_is_killed_with_its_claim_leaves_the_run_to_the_other(two):
    two.block()
    run = two.submit("killed")
    # With both controllers still the winner cannot have the other cancelled.
    two.free()
    two.wait("a claim", lambda: holder(run))
    first = holder(run)
    for pid, request in batch_scripts(run).items():
        if request == first:
            os.kill(pid, signal.SIGKILL)
    state = two.wait_end(run)["state"]
    if state != "finished":
        # Where the other had not started, it was cancelled: a user sends both again.
        two.launch("retry", run)
        state = two.wait_end(run)["state"]
    assert state == "finished"
    assert verdict(run)["turns"] == 0


def test_where_the_others_cluster_cannot_be_reached_its_job_ends_when_it_starts(two):
    two.block()
    run = two.submit("unreachable")
    with two.stopped("two"):
        two.free("one")
        two.wait("the end", lambda: status(run)["state"] == "finished")
    two.free("two")
    assert two.wait_end(run)["state"] == "finished"
    assert len(verdict(run)["by"]) == 1
    assert two.states("two", run.name) in (["CD"], ["CA"])
    before = status(run)
    assert two.launch("retry", run, code=2).stderr.endswith("is finished\n")
    assert status(run) == before


def test_cancel_ends_all_requests_and_retry_sends_them_again(two):
    two.block()
    run = two.submit("cancelled")
    told = two.launch("cancel", run).stdout
    assert re.search(r"jobs (\d+) on ./one.yaml, \1 on ./two.yaml are cancelled", told), told
    assert [two.states(name, run.name) for name in NAMES] == [["CA"], ["CA"]]
    assert status(run)["state"] == "stopped"
    assert "waits in 2 places" in two.launch("retry", run).stdout
    # Each in a folder of its own, and no files of jobs of equal ids in one.
    assert sorted(path.name for path in (run / "slurm").glob("request-*")) == [f"request-{n}" for n in range(1, 5)]
    two.free()
    assert two.wait_end(run)["state"] == "finished"
    assert "this job is not needed" in two.launch("logs", "--batch", run).stdout or holder(run) is None


def test_one_that_slurm_refuses_is_left_out_and_all_are_an_error(two):
    two.block()
    sent = two.launch(*SUBMIT, "run.name=refused", "cluster=./one.yaml,./two.yaml", "slurm.partition=none", code=2)
    assert "./one.yaml none 1 node" in sent.stderr
    assert "./two.yaml none 1 node" in sent.stderr
    assert not (two.work / "runs" / "refused").exists()
    (two.work / "other.yaml").write_text((two.work / "two.yaml").read_text().replace("partition: low", "partition: no"))
    dry = two.launch(*SUBMIT, "run.name=half", "cluster=./one.yaml,./other.yaml", "--dry-run").stdout
    told = dry.partition("# run directory")[2].splitlines()
    # Two lines of Slurm's refusal among them: what is printed stays a batch script.
    assert "Slurm refused the job" in dry
    assert all(line.startswith("# ") for line in told[1:])
    sent = two.launch(*SUBMIT, "run.name=half", "cluster=./one.yaml,./other.yaml")
    assert "not sent to ./other.yaml no 1 node: Slurm refused the job" in sent.stderr
    assert "half is job" in sent.stdout
    two.launch("cancel", two.work / "runs" / "half")
    two.free()


def test_several_clusters_are_for_submit_and_need_one_folder(two):
    two_of_them = "cluster=./one.yaml,./two.yaml"
    assert "only `launch submit` sends" in two.launch("doctor", two_of_them, code=2).stderr
    assert "one cluster at a time" in two.launch(*SUBMIT, two_of_them, "--rehearse", code=2).stderr
    (two.work / "far.yaml").write_text((two.work / "two.yaml").read_text().replace("/runs", "/other"))
    refused = two.launch(*SUBMIT, "run.name=x", "cluster=./one.yaml,./far.yaml", code=2)
    assert "needs one folder that all see" in refused.stderr
    many = [*SUBMIT, "run.name=x", two_of_them, "slurm.qos=a,b,c,d,e"]
    assert "10 requests for one run, of at most 8" in two.launch(*many, code=2).stderr
    dry = two.launch(*SUBMIT, "run.name=x", two_of_them, "--dry-run").stdout
    assert "# waits in        2 places, and is trained by the job that starts first:" in dry
    assert not (two.work / "runs" / "x").exists()
