"""Whole sweeps, with real trainings: on a real Slurm and on this machine, killed and completed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from launch.sweep.directory import SweepDir
from launch.sweep.points import grid
from launch.sweep.sweep_json import sweep_json
from launch.sweep.trials import trials
from launch.sweep.words import from_words
from recipes.load import load
from resnet.rundir.sweep.sweep_file import read_sweep
from tests.fabricated import page_data
from tests.helpers import PROGRAM, TINY, column, status
from tests.slurm_helpers import Cluster, tell_ranks

pytestmark = pytest.mark.timeout(600)

SHORT = [word for word in TINY if not word.startswith("optimizer.lr")] + ["epochs=2"]
KILLS_ITS_CALLER = """#!/bin/sh
{sbatch} "$@"
kill -9 $PPID
"""


def attempts(trial: Path) -> list[dict]:
    from resnet.rundir.attempts import read_attempts

    return read_attempts(trial)


def states_on_the_page(study: Path) -> Counter[str]:
    """Of the page that a sweep leaves at its end, without being asked for it."""
    return Counter(trial["state"] for trial in page_data(study / "report.html")["trials"])


def test_a_sweep_on_slurm_survives_everything_and_is_completed(cluster: Cluster, shapes, tmp_path):
    words = [*SHORT, f"data.train={shapes}", "optimizer.lr=0.01,0.02", "seed=range(0,2)", "cluster=local-test"]
    words += ["slurm.gpus_per_node=1", "slurm.time=5", "--parallel", "2", "--name", "study"]
    study = cluster.run_dir("study")

    # The command is killed when Slurm has the array and nobody has noted its id.
    fake = tmp_path / "sbatch"
    fake.write_text(KILLS_ITS_CALLER.format(sbatch=shutil.which("sbatch")))
    fake.chmod(0o755)
    path = cluster.environment["PATH"]
    cluster.environment["PATH"] = f"{tmp_path}:{path}"
    cluster.launch("sweep", *words, code=-signal.SIGKILL)
    cluster.environment["PATH"] = path
    assert cluster.queue() != {}
    said = cluster.launch("sweep", *words).stdout
    assert "study: 4 of 4 trials to run" in said
    said = cluster.launch("sweep", *words).stdout
    assert "study: 0 of 4 trials to run" in said

    held: list[Path] = []

    def hold_another() -> bool:
        """Stop a trial amid its training, which may take a second."""
        for run in [file.parent for file in study.glob("*/status.json")]:
            if run not in held and 0 < (status(run).get("step") or 0) < 10:
                tell_ranks(run, signal.SIGSTOP)
                if status(run)["state"] == "running" and status(run)["step"] < 10:
                    held.append(run)
                    return True
                tell_ranks(run, signal.SIGCONT)
        return False

    cluster.wait("a trial runs", hold_another)
    [killed] = held
    tell_ranks(killed, signal.SIGKILL)
    cluster.wait("another runs", hold_another)
    preempted = held[-1]
    node = attempts(preempted)[-1]["nodes"][0]
    high = ["--partition=high", "--gres=gpu:2", f"--nodelist={node}", "--output=/dev/null"]
    cluster.ask("sbatch", *high, "--wrap", "sleep 1")
    show = ["scontrol", "show", "job", attempts(preempted)[-1]["job_id"]]
    cluster.wait("the preemption", lambda: "PreemptTime=None" not in cluster.ask(*show).stdout)
    tell_ranks(preempted, signal.SIGCONT)
    cluster.wait("all trials to end", lambda: not cluster.queue())

    counts = Counter(status(file.parent)["state"] for file in study.glob("*/status.json"))
    assert counts == states_on_the_page(study) == {"finished": 4}
    assert "study: 0 of 4 trials to run (4 finished)" in cluster.launch("sweep", *words).stdout
    trials = [file.parent for file in study.glob("*/status.json")]
    # The killed one, and no other of its array.
    assert [trial for trial in trials if any("in_place" in a for a in attempts(trial))] == [killed]
    outcomes = {trial.name: [attempt.get("outcome") for attempt in attempts(trial)] for trial in trials}
    # Slurm may requeue a job whose run has just finished, and then it is finished twice.
    assert all(each[-1] == "finished" for each in outcomes.values()), outcomes
    assert len(attempts(preempted)) > 1

    board = json.loads(cluster.launch("status", "study", "--json").stdout)
    assert board["counts"] == {"finished": 4}
    first = board["leaderboard"][0]
    values = [max(column(run, "val/top1")) for run in trials if f"lr={first['point']['optimizer.lr']}," in run.name]
    assert len(values) == 2
    assert first["value"] == pytest.approx(statistics.fmean(values))
    assert first["spread"] == pytest.approx(statistics.stdev(values))
    shown = cluster.launch("show", f"recipe={study / 'best.yaml'}", "--json").stdout
    assert json.loads(shown)["recipe"]["optimizer"]["lr"] == float(first["point"]["optimizer.lr"])
    assert cluster.launch("status", "study", "--csv").stdout.count("\n") == 5
    picture = Path(cluster.launch("status", "study", "--plot").stdout.strip())
    assert (cluster.work / picture).read_bytes().startswith(b"\x89PNG")


LEAVES_A_LEASE = """
import pathlib, socket, sys
socket.gethostname = lambda: "another-node"
from resnet.rundir.lease import Lease
run_dir = pathlib.Path(sys.argv[1])
(run_dir / "lease.lock").touch()
Lease(run_dir)._renew()
"""


def test_a_trial_knows_its_own_lease_again_on_another_node(cluster: Cluster, shapes, tmp_path):
    """The first attempt of each task of an array dies with its node, and leaves its lease behind."""
    script = tmp_path / "lease.py"
    script.write_text(LEAVES_A_LEASE)
    trial = f"\"$(ls -d '{cluster.run_dir('leased')}'/seed=$SLURM_ARRAY_TASK_ID-*)\""
    first = f"{sys.executable} {script} {trial}; scontrol requeue $SLURM_JOB_ID; sleep 60"
    stage = json.dumps(['[ "${SLURM_RESTART_COUNT:-0}" != 0 ] || { ' + first + "; }"])
    words = [*SHORT, f"data.train={shapes}", "epochs=1", "seed=0,1", "cluster=local-test", "slurm.time=5"]
    cluster.launch("sweep", *words, "slurm.gpus_per_node=1", f"slurm.stage={stage}", "--name", "leased")
    cluster.wait("both trials to end", lambda: not cluster.queue())
    runs = [file.parent for file in cluster.run_dir("leased").glob("*/status.json")]
    assert [(status(run)["state"], len(attempts(run))) for run in runs] == [("finished", 2)] * 2


def test_more_trials_than_an_array_may_have(cluster: Cluster, shapes):
    """1,101 trials where MaxArraySize is 1,001: two arrays, and no trial twice."""
    words = [*SHORT, f"data.train={shapes}", "optimizer.lr=log(0.001,0.1,367)", "seed=0,1,2", "cluster=local-test"]
    words += ["slurm.gpus_per_node=1", "slurm.sbatch.hold=true", "--parallel", "20", "--name", "many"]
    assert "1101 trials" in cluster.launch("sweep", *words, code=2).stderr
    begin = time.monotonic()
    said = cluster.launch("sweep", *words, "--yes").stdout
    print(f"1,101 trials sent in {time.monotonic() - begin:.1f} s")
    assert "1001 trials are job" in said
    assert "100 trials are job" in said
    sent = cluster.ask("squeue", "-h", "-r", "-o", "%i").stdout.split()
    assert len(sent) == 1101
    study = cluster.run_dir("many")
    jobs = [json.loads(file.read_text())["job_id"] for file in study.glob("*/slurm/job.json")]
    assert sorted(jobs) == sorted(sent)
    assert "1101 waiting and 0 running trials are cancelled" in cluster.launch("cancel", "many").stdout
    assert states_on_the_page(study) == {"stopped": 1101}
    cluster.wait("an empty queue", lambda: not cluster.queue())


def test_a_search_on_slurm_asks_watches_and_tells(cluster: Cluster, shapes, tmp_path):
    file = tmp_path / "bayes.yaml"
    file.write_text(BAYES.replace("run_cap: 4", "run_cap: 3"))
    words = [file, *SHORT, f"data.train={shapes}", "epochs=3", "cluster=local-test", "slurm.gpus_per_node=1"]
    cluster.launch("sweep", *words, "--name", "search", "--max-parallel", "2")
    cluster.wait("the search to end", lambda: not cluster.queue())
    check_search(cluster.run_dir("search"), 3)


# On this machine


BAYES = """
method: bayes
metric: {name: val_loss, goal: minimize}
run_cap: 4
early_terminate: {type: hyperband, min_iter: 1, eta: 2}
parameters:
  optimizer.lr: {distribution: log_uniform_values, min: 0.0001, max: 1.0}
  optimizer.weight_decay: {values: [0, 1e-4, 1e-3]}
"""
RANDOM = """
program: train.py
method: random
run_cap: 1
parameters:
  lr: {min: 0.001, max: 0.05}
  batch_size: {values: [8, 16]}
"""
GRID = """
program: train.py
method: grid
metric: {name: val/top1, goal: maximize}
parameters:
  optimizer.lr: {values: [0.005, 0.02]}
  epochs: {value: 1}
"""


def check_search(study: Path, count: int) -> set[str]:
    """All trials are over by a rule, each with a point of its own, and those that were pruned have saved.

    Returns the states that they ended in.
    """
    states = {}
    for number in range(count):
        trial = study / f"trial-{number:04d}"
        states[trial] = status(trial)["state"]
        if states[trial] == "stopped" and (trial / "slurm" / "pruned").exists():
            states[trial] = "pruned"
        assert load([f"recipe={trial / 'slurm' / 'recipe.yaml'}"]).recipe.optimizer.lr <= 1.0
        if states[trial] == "pruned":
            assert any((trial / "checkpoints").glob("step-*"))
    assert set(states.values()) <= {"finished", "pruned", "failed"}
    assert "finished" in states.values()
    points = [json.loads(file.read_text())["point"]["optimizer.lr"] for file in study.glob("trial-*/slurm/point.json")]
    assert len(set(points)) == count
    assert states_on_the_page(study) == Counter(states.values())
    return set(states.values())


def sweep(folder: Path, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch", "sweep", *map(str, words)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PROGRAM)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, out + err
    return out


def test_a_sweep_here_goes_on_after_its_death(shapes, tmp_path):
    words = [*SHORT, f"data.train={shapes}", "optimizer.lr=0.01,99", "--parallel", "2", "--name", "study"]
    first = sweep(tmp_path, *words)
    study = tmp_path / "runs" / "study"
    deadline = time.monotonic() + 250
    while not list(study.glob("*/checkpoints/step-*/manifest.json")):
        assert time.monotonic() < deadline, "no trial has saved a checkpoint"
        time.sleep(0.1)
    assert first.poll() is None
    first.kill()
    first.communicate()
    said = finished(sweep(tmp_path, *words), code=1)
    assert "of 2 trials to run" in said
    states = Counter(status(file.parent)["state"] for file in study.glob("*/status.json"))
    assert states == {"finished": 1, "failed": 1}
    assert states_on_the_page(study) == states
    assert "report: runs/study/report.html" in said
    assert re.search(r"^lr=99-\w+: failed\b.*not finite", said, re.MULTILINE)
    again = finished(sweep(tmp_path, *words), code=1)
    assert "1 of 2 trials to run (1 finished)" in again


@pytest.mark.parametrize(("text", "number"), [(GRID, 2), (RANDOM, 1)])
def test_sweep_files_of_wandb_run_without_it(shapes, tmp_path, text, number):
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    said = finished(sweep(tmp_path, file, *SHORT, "epochs=1", f"data.train={shapes}", "--name", "study", "--jobs", "2"))
    assert f"{number} of {number} trials to run" in said
    study = tmp_path / "runs" / "study"
    assert [status(file.parent)["state"] for file in study.glob("*/status.json")] == ["finished"] * number
    assert [trial["value"] is not None for trial in page_data(study / "report.html")["trials"]] == [True] * number
    recipe = load([f"recipe={next(study.glob('*/recipe.yaml'))}"]).recipe
    assert (recipe.wandb.group, recipe.wandb.tags) == ("study", ["study"])


def test_a_bayes_file_with_hyperband_runs_here(shapes, tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(BAYES)
    words = [file, *SHORT, "epochs=3", f"data.train={shapes}", "--name", "study", "--jobs", "2"]
    process = sweep(tmp_path, *words)
    out, err = process.communicate(timeout=400)
    ended = check_search(tmp_path / "runs" / "study", 4)
    # A learning rate near 1 may make the weights infinite, which only Optuna's order of trials decides.
    assert process.returncode == ("failed" in ended), out + err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe=quickstart", "optimizer.lrr=1,2"], "did you mean optimizer.lr?"),
        (["recipe=quickstart", "optimizer.lr=0.1,-1"], "in 1 of 2 trials"),
        (["recipe=quickstart", "seed=0,1", "run.name=x"], "--name names the sweep"),
        (["recipe=quickstart", "seed=0,1", "--jobs", "0"], "--parallel must be at least 1"),
        (["recipe=quickstart", "seed=0,1", "--parallel", "-1"], "--parallel must be at least 1"),
        (["recipe=quickstart", "seed=0,1", "model.pretrained=/no/such.pth"], "model.pretrained=/no/such.pth"),
        (["recipe=quickstart", "seed=range(0,100)"], "100 trials: --dry-run shows them, --yes sends them"),
        (["recipe=quickstart", "seed=0,1", "slurm.nodes=2"], "give cluster=NAME too"),
        (["recipe=quickstart", "seed=0,1", "cluster=local-test", "slurm.spare_nodes=1"], "a spare one is of no use"),
        (["recipe=quickstart", "seed=0,1", "--name", "a/b"], "cannot contain / or %"),
        (["none.yaml"], "none.yaml"),
    ],
)
def test_mistakes_begin_nothing(tmp_path, words, message):
    process = sweep(tmp_path, *words)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 2, out + err
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def directory(tmp_path):
    """Of a sweep over two learning rates that was planned, and not begun."""
    (tmp_path / "mine.yaml").write_text("base: quickstart\nepochs: 2\n")
    plan(tmp_path, "optimizer.lr=0.1,0.2")
    return tmp_path / "runs" / "study"


def plan(folder: Path, *words: str) -> list[dict]:
    """Note a sweep as `launch sweep` does before it starts anything; returns its trials."""
    recipe = folder / "mine.yaml"
    sweep = from_words([f"recipe={recipe}", *words])
    listed, _ = trials(sweep, grid(sweep))
    content = sweep_json(sweep) | {"metric": "top1", "goal": "maximize", "seed": 0, "command": "launch sweep"}
    with SweepDir(folder / "runs" / "study") as planned:
        planned.update(content, listed, None)
        return planned.trials


def test_more_values_of_the_same_keys_extend_a_sweep(directory, tmp_path):
    extended = plan(tmp_path, "optimizer.lr=0.4,0.1")
    assert [trial["point"]["optimizer.lr"] for trial in extended] == ["0.1", "0.2", "0.4"]
    content = json.loads((directory / "sweep.json").read_text())
    assert content["parameters"]["optimizer.lr"]["values"] == ["0.1", "0.2", "0.4"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["optimizer.lr=0.1,0.2", "epochs=9"], "fixed keys"),
        (["optimizer.lr=0.1,0.2", "seed=0,1"], "swept keys"),
    ],
)
def test_another_sweep_of_the_name_is_refused(directory, tmp_path, words, what):
    before = (directory / "sweep.json").read_bytes()
    with pytest.raises(ValueError, match=f"differs in .*{what}"):
        plan(tmp_path, *words)
    assert (directory / "sweep.json").read_bytes() == before


OLD_SWEEP = Path(__file__).parent / "data" / "sweep-0.1.0.json"
"""Of two trials, as version 0.1.0 wrote it; its paths are shortened."""


@pytest.fixture
def old_sweep(tmp_path) -> Path:
    """The directory of a sweep that version 0.1.0 has begun."""
    study = tmp_path / "runs" / "study"
    study.mkdir(parents=True)
    shutil.copy(OLD_SWEEP, study / "sweep.json")
    return study


def test_a_sweep_of_an_older_version_is_continued_by_the_same_command(old_sweep):
    before = json.loads(OLD_SWEEP.read_text())
    words = shlex.split(before["command"].replace("lr=0.01,0.02", "lr=0.01,0.02,0.04"))[2:]
    sweep = from_words([word for word in words if "=" in word])
    listed, _ = trials(sweep, grid(sweep))
    with SweepDir(old_sweep) as directory:
        directory.update(sweep_json(sweep) | {"metric": "top1", "goal": "maximize", "name": "study"}, listed, None)
    after = json.loads((old_sweep / "sweep.json").read_text())
    assert after["trials"][:2] == before["trials"]
    assert [trial["point"] for trial in after["trials"][2:]] == [{"optimizer.lr": "0.04"}]
    assert (after["format"], after["parallel"], after["created"]) == (1, 1, before["created"])


def test_what_a_newer_version_wrote_is_kept_and_what_an_older_one_left_out_has_defaults(old_sweep):
    content = json.loads(OLD_SWEEP.read_text()) | {"format": 7, "new": [1], "method": "random"}
    distribution = {"kind": "uniform", "low": 0.1, "high": 1.0, "log": True, "shape": "new"}
    content["parameters"] = {"optimizer.lr": distribution}
    for key in ("early_stop", "origins", "order", "goal", "jobs", "max_parallel"):
        del content[key]
    (old_sweep / "sweep.json").write_text(json.dumps(content))
    fields = {key: value for key, value in distribution.items() if key != "shape"}
    with SweepDir(old_sweep) as directory:
        assert directory.content["early_stop"] is None
        directory.update(read_sweep(old_sweep) | {"parameters": {"optimizer.lr": fields}}, [], None)
    after = json.loads((old_sweep / "sweep.json").read_text())
    assert (after["format"], after["new"], after["parameters"]) == (7, [1], content["parameters"])


def test_a_recipe_that_was_edited_meanwhile_makes_another_sweep(directory, tmp_path):
    (tmp_path / "mine.yaml").write_text("base: quickstart\nepochs: 5\n")
    with pytest.raises(ValueError, match="was made of another recipe"):
        plan(tmp_path, "optimizer.lr=0.1,0.2")


def test_a_trial_keeps_the_recipe_it_was_planned_with(directory, tmp_path):
    with SweepDir(directory) as planned:
        [first, _] = planned.trials
        run_dir = planned.prepare(first)
        (tmp_path / "mine.yaml").write_text("base: quickstart\nepochs: 5\n")
        planned.prepare(first)
    recipe = load([f"recipe={run_dir / 'slurm' / 'recipe.yaml'}"]).recipe
    assert (recipe.epochs, recipe.optimizer.lr, recipe.run.name) == (2, 0.1, first["name"])


def test_one_works_on_a_sweep_at_a_time(directory):
    code = "import pathlib, sys, launch.sweep.directory as d; d.SweepDir(pathlib.Path(sys.argv[1])).__enter__()"
    with SweepDir(directory):
        done = subprocess.run([sys.executable, "-c", code, directory], cwd=PROGRAM, capture_output=True, text=True)
    assert "another `launch` is working on" in done.stderr


def test_a_dry_run_shows_a_thousand_trials(tmp_path):
    words = ["recipe=cifar10_resnet18", "optimizer.lr=log(0.1,1,100)", "seed=range(0,10)", "--dry-run"]
    said = finished(sweep(tmp_path, *words))
    assert "# 1000 trials, grid" in said
    assert "... 960 more" in said
    assert list(tmp_path.iterdir()) == []
