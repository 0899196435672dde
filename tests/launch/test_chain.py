"""What follows a run or a sweep's winner: how it is asked for, what is refused, and how it is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import cli
from launch.chain.here import run_here
from launch.chain.plan import settle
from launch.runs.chain import Chain, note, read, step_rows, this_process
from resnet.process.exit_codes import FAILED, INTERRUPTED
from resnet.process.processes import started
from resnet.rundir.chain import acts_on, begin_step, new_folder, note_step, read_chain, words_of_step, write_chain
from resnet.rundir.files import to_json
from slurm.queue import Job
from tests.fabricated import a_sweep, make_run
from tests.helpers import OFF, PROGRAM, TINY, status, train


@pytest.fixture
def launch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def steps_of(words: str, subject: Path, is_sweep: bool = False) -> list[tuple]:
    steps, _ = settle(subject, is_sweep, words.split())
    return [(step["command"], step["words"], step["acts_on"], step["makes"]) for step in steps]


def test_names_are_settled_before_anything_runs(tmp_path):
    run = make_run(tmp_path / "small", *OFF)
    tuned, more, no_sweep = str(tmp_path / "small-tuned"), str(tmp_path / "elsewhere" / "more"), "wandb.sweep=null"
    words = f"eval --plain -- train epochs=1 -- report -- train run.name=more run.root={tmp_path}/elsewhere -- eval"
    assert steps_of(words, run) == [
        ("eval", ["--plain"], str(run), None),
        (
            "train",
            [no_sweep, "epochs=1", f'run.root="{tmp_path}"', 'run.name="small-tuned"'],
            str(run),
            tuned,
        ),
        ("report", [], tuned, None),
        ("train", [no_sweep, f'run.root="{tmp_path}/elsewhere"', 'run.name="more"'], tuned, more),
        ("eval", [], more, None),
    ]


def test_what_prune_makes_is_what_is_acted_on(tmp_path):
    run = make_run(tmp_path / "small", *OFF)
    pruned, tuned = (str(tmp_path / name) for name in ("small-pruned", "small-pruned-tuned"))
    steps = steps_of("prune --amount 0.5 -- train epochs=1 -- export --format onnx", run)
    assert steps[0] == ("prune", ["--amount", "0.5", "--name", "small-pruned"], str(run), pruned)
    assert steps[1][2:] == (pruned, tuned)
    assert steps[2] == ("export", ["--format", "onnx"], tuned, None)
    assert steps_of("prune --amount 0.5 --name less -- eval", run)[1][2] == str(tmp_path / "less")


def test_the_winner_is_found_once(tmp_path):
    folder = a_sweep(tmp_path / "lrs", slow=70.0, best=80.0, broken=None)
    chain = folder / "chain" / "1"
    chain.mkdir(parents=True)
    steps, _ = settle(folder, True, ["eval", "--", "train", "epochs=1"])
    assert steps[1]["makes"] == str(folder / "winner-tuned")
    content = {"subject": str(folder), "steps": steps}
    assert begin_step(chain, content, 1) == folder / "best"
    make_run(folder / "later", top1=90.0)
    listed = json.loads((folder / "sweep.json").read_text())
    listed["trials"].append({"name": "later", "point": {"optimizer.lr": "later"}})
    (folder / "sweep.json").write_text(to_json(listed))
    assert acts_on(chain, content, 2) == folder / "best"
    words = words_of_step(chain, content, 2)
    assert words[:2] == [f"recipe={folder / 'best'}", f'model.pretrained="{folder / "best"}"']
    assert "wandb.sweep=null" in words


def test_a_run_that_was_stopped_is_not_followed(tmp_path):
    run = make_run(tmp_path / "small", state="stopped")
    content = {"subject": str(run), "steps": [{"command": "eval", "words": [], "acts_on": str(run), "makes": None}]}
    with pytest.raises(ValueError, match=r"small is not finished \(it is stopped\): `launch retry`"):
        begin_step(tmp_path, content, 1)
    losers = a_sweep(tmp_path / "lrs", one=None)
    content = {"subject": str(losers), "steps": [{"command": "eval", "acts_on": None, "makes": None}]}
    with pytest.raises(ValueError, match=r"lrs has no winner: no trial has finished .* \(1 failed\)"):
        begin_step(tmp_path, content, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("small", "step 1 is empty"),
        ("small -- eval -- -- report", "step 2 is empty"),
        ("small -- evall", "no step 'evall': did you mean eval?"),
        ("small -- eval --per-clas -- report --ot x", "step 2 (report): unknown option --ot: did you mean --out?"),
        ("small -- features", "step 1 (features): the following arguments are required"),
        ("small -- train optimizer.lrr=1", "step 1 (train): unknown key optimizer.lrr (command line)"),
        ("small -- train resume=never", "resume= is the chain's"),
        ("small -- train run.name=other", "other is there already: choose another name (run.name=NAME)"),
        ("small -- train -- train run.name=small-tuned", "step 2 (train): "),
        ("small -- train batch_size=7777777", "batch_size"),
        ("small epochs=2 -- eval", "-- train epochs=2"),
        ("small slurm.time=5 -- eval", "slurm.time=5 changes a cluster's profile"),
        ("small lr=0.2 -- eval", "lr=0.2: a recipe's keys belong behind a step `train`"),
        ("small -- prune --amount 0.5 --name .hid", "step 1 (prune): run.name=.hid: a run's name does not start"),
        ("small -- prune --amount 2", "step 1 (prune): argument --amount: 2: give a share above 0 and below 1"),
        ("small -- export --format onnx --samples 0", "step 1 (export): argument --samples: 0: it takes 1 or more"),
        ("small -- quantize --calibrate x", "step 1 (quantize): argument --calibrate: x: it takes 1 or more"),
        ("small -- prune --amount 0.5 --name a/b", "step 1 (prune): --name a/b: give a name without slashes"),
        ("lrs/lr=0.1 -- eval --per-clas", "step 1 (eval): unknown option --per-clas"),
        ("small other -- eval", "name one run or sweep in front of --, not small and other"),
        ("smal -- eval", "did you mean small?"),
        ("other -- eval", "other is not finished (it is failed), with no job to wait for: launch retry other"),
        ("lrs -- eval", "lrs has no winner: no trial has finished"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, launch, words, message):
    make_run(tmp_path / "runs" / "small", *OFF)
    make_run(tmp_path / "runs" / "other", state="failed")
    a_sweep(tmp_path / "runs" / "lrs", **{"lr=0.1": None})
    code, out, err = launch("chain", *words.split())
    assert (code, out) == (2, "")
    assert message in err
    assert not list(tmp_path.glob("runs/*/chain"))


def test_here_one_after_the_other(tmp_path, shapes):
    assert train(*TINY, f"data.train={shapes}", "epochs=1", f"run.root={tmp_path}/runs", "run.name=small") == 0

    def chain(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launch", *words]
        environment = os.environ | {"PYTHONPATH": str(PROGRAM)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)

    words = ["train", "epochs=2", "optimizer.lr=0.001", "--", "eval", "--csv", "figures.txt", "--", "report"]
    done = chain("chain", "small", "--", *words)
    assert done.returncode == 2, done.stderr
    tuned = tmp_path / "runs" / "small-tuned"
    assert (status(tuned)["state"], status(tuned)["epoch"]) == ("finished", 2)
    assert "loaded 56 tensors from" in (tmp_path / "runs" / "small" / "chain" / "1" / "1-train.log").read_text()
    assert "loaded 56 tensors from" in done.stdout
    rows = json.loads(chain("status", "small", "--json").stdout)[0]["chain"]
    assert [row["state"] for row in rows] == ["finished", "failed", "skipped"]
    assert rows[1]["reason"].startswith("resnet eval: --csv figures.txt: give a file")
    assert "figures.txt" in (tmp_path / rows[1]["log"]).read_text()
    told = chain("status", "small").stdout
    assert "chain       2/3: eval failed" in told
    assert "resnet eval: --csv figures.txt: give a file" in told
    assert "chain 2/3: eval failed" in chain("status").stdout
    assert read_chain(tmp_path / "runs" / "small" / "chain" / "1")["steps"][0]["makes"] == str(tuned)


CANCELLED = Job("CANCELLED", reason="DependencyNeverSatisfied")


@pytest.mark.parametrize(
    ("told", "jobs", "states", "where"),
    [
        ([{}, {}], [Job("PENDING"), Job("PENDING")], "queued queued", "1/2: eval queued"),
        ([{"state": "running"}, {}], [Job("RUNNING"), Job("PENDING")], "running queued", "1/2: eval running"),
        # Preempted: its own word is of the attempt before.
        ([{"state": "running"}, {}], [Job("PENDING"), Job("PENDING")], "queued queued", "1/2: eval queued"),
        ([{"state": "finished"}, {}], [None, Job("RUNNING")], "finished running", "2/2: report running"),
        ([{"state": "finished"}] * 2, [None, None], "finished finished", "2/2: report finished"),
        ([{"state": "failed"}, {}], [None, CANCELLED], "failed skipped", "1/2: eval failed"),
        ([{"state": "running"}, {}], [Job("TIMEOUT"), CANCELLED], "failed skipped", "1/2: eval failed"),
        ([{"state": "running"}, {}], [Job("CANCELLED"), CANCELLED], "cancelled skipped", "1/2: eval cancelled"),
        ([{}, {}], [CANCELLED, CANCELLED], "skipped skipped", "1/2: eval skipped"),
        ([{}, {}], [Job("CANCELLED"), Job("CANCELLED")], "cancelled skipped", "1/2: eval cancelled"),
        ([{}, {}], [None, None], "skipped skipped", "1/2: eval skipped"),
    ],
)
def test_how_steps_are_told(tmp_path, told, jobs, states, where):
    steps = [
        {"command": command, "words": [], "acts_on": "r", "makes": None, "job_id": str(number)}
        for number, command in enumerate(("eval", "report"))
    ]
    known = {str(number): job for number, job in enumerate(jobs) if job}
    rows = step_rows(Chain(tmp_path, {"subject": "r", "steps": steps}, told), known, None)
    assert " ".join(row["state"] for row in rows) == states
    assert note(rows) == f"chain {where}"


def test_slurm_that_does_not_answer_leaves_a_steps_own_word(tmp_path):
    steps = [{"command": "eval", "words": [], "acts_on": "r", "makes": None, "job_id": "1"}]
    chain = Chain(tmp_path, {"subject": "r", "steps": steps}, [{"state": "running"}])
    [row] = step_rows(chain, {}, "squeue is away")
    assert (row["state"], row["reason"]) == ("running", "squeue is away")


def a_chain(run: Path, **fields) -> dict:
    step = {"command": "eval", "words": [], "acts_on": str(run), "makes": None, "job_id": None}
    write_chain(folder := new_folder(run), content := {"subject": str(run), "steps": [step], **fields})
    note_step(folder, content, 1, state="running")
    return content


def test_only_the_process_of_a_chain_is_told_to_end(tmp_path, launch):
    run = make_run(tmp_path / "runs" / "small", *OFF)
    with subprocess.Popen(["sleep", "60"]) as process:
        here = this_process() | {"pid": process.pid}
        a_chain(run, **here)
        # Of this number, and begun at another time.
        assert "is told to end" not in launch("cancel", "small")[1]
        assert process.poll() is None
        assert json.loads(launch("status", "small", "--json")[1])[0]["chain"][0]["state"] == "failed"
        a_chain(run, **here | {"started": started(process.pid)})
        assert "is under way" in launch("chain", "small", "--", "report")[2]
        assert f"its chain here, process {process.pid}, is told to end" in launch("cancel", "small")[1]
        assert process.wait(10) == -signal.SIGTERM


def test_one_chain_at_a_time(tmp_path, launch):
    make_run(tmp_path / "runs" / "small", *OFF)
    script = "import sys; from pathlib import Path; from launch.runs.chain import being_chained\n"
    script += "with being_chained(Path(sys.argv[1])): print('held', flush=True); input()"
    words = [sys.executable, "-c", script, str(tmp_path / "runs" / "small")]
    environment = os.environ | {"PYTHONPATH": str(PROGRAM)}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        assert "a chain of small is under way" in launch("chain", "small", "--", "report")[2]
        other.communicate(b"\n")


@pytest.mark.parametrize(
    "text",
    ["{", '{"steps": [5], "subject": "r"}', '{"steps": [], "subject": "r"}', '{"steps": [{"command": "eval"}]}'],
)
def test_a_chain_that_cannot_be_read_is_told(tmp_path, launch, text):
    run = make_run(tmp_path / "runs" / "small", *OFF)
    file = new_folder(run) / "chain.json"
    file.write_text(text)
    assert "chain.json damaged" in launch("status")[1]
    assert "chain/1/chain.json is damaged" in launch("status", "small")[1]
    code, _, err = launch("chain", "small", "--", "report")
    assert code == 2
    assert "chain/1/chain.json is damaged" in err
    assert "what follows it is not cancelled" in launch("cancel", "small")[1]


def test_a_job_of_the_same_number_is_not_a_steps(tmp_path):
    content = a_chain(tmp_path / "r")
    content["steps"][0]["job_id"] = "7"
    chain = Chain(tmp_path, content, [{}])
    assert chain.forgotten({"7": Job("RUNNING", name="r.1-eval")}) == []
    jobs = {"7": Job("RUNNING", name="another")}
    assert chain.forgotten(jobs) == ["7"]
    assert [row["state"] for row in step_rows(chain, jobs, None)] == ["skipped"]


def test_a_chain_here_that_is_cancelled_says_so(tmp_path, launch):
    run = make_run(tmp_path / "runs" / "small", *OFF)
    words = [sys.executable, "-m", "launch", "chain", "small", "--", "eval", "--", "report"]
    environment = os.environ | {"PYTHONPATH": str(PROGRAM)}
    with subprocess.Popen(words, cwd=tmp_path, env=environment) as process:
        while not (run / "chain" / "1" / "1-eval.json").exists():
            assert process.poll() is None
            time.sleep(0.02)
        assert "is told to end" in launch("cancel", "small")[1]
        assert process.wait(30) == INTERRUPTED
    rows = json.loads(launch("status", "small", "--json")[1])[0]["chain"]
    told = [(row["state"], row["reason"]) for row in rows]
    assert told == [("cancelled", "signal SIGTERM"), ("skipped", None)]


def test_a_run_that_took_the_name_meanwhile_is_not_trained_on(tmp_path):
    run = make_run(tmp_path / "small", *OFF)
    steps, recipes = settle(run, False, ["train", "epochs=1"])
    make_run(tmp_path / "small-tuned", state="stopped")
    assert run_here(run, steps, recipes) == FAILED
    assert status(tmp_path / "small-tuned")["state"] == "stopped"
    chain = read(run)
    assert chain
    assert "small-tuned is there already, and was not made by this step" in chain.told[0]["reason"]


def test_a_run_whose_name_holds_an_equals_sign_can_be_continued(tmp_path, launch):
    make_run(tmp_path / "runs" / "lr=0.1-e6ec34", *OFF)
    assert "lr=0.1-e6ec34 is finished" in launch("retry", "lr=0.1-e6ec34")[2]
    assert "lr=0.2: retry cannot change the recipe" in launch("retry", "lr=0.1-e6ec34", "lr=0.2")[2]
