"""A run that ends before its last epoch, since its evaluations have become no better."""

import os
import re
import signal

import pytest

import resnet.evaluation
from launch.commands.status import describe
from launch.runs.state import rows
from resnet.early_stopping import count_evaluation
from resnet.rundir.metrics_log import read_metrics
from resnet.rundir.provenance import read_provenance
from resnet.rundir.status import read_status
from resnet.tools.compare import compare_runs
from tests.processes import start_ranks, wait_ranks
from tests.resnet.test_resume import NUMBERED

RULE = ["epochs=5", "max_batch_per_device=16", "ema=off", "early_stopping={patience: 2, min_delta: 100}"]
"""No evaluation is better than the first one by more than 100 points."""


def attempt(folder, name, *words, ranks=1):
    argv = [*NUMBERED, *RULE, f"run.root={folder}", f"run.name={name}", *words]
    return wait_ranks(start_ranks(argv, ranks, folder / f"{name}.txt"), 120)


def evaluated(run):
    return [row["epoch"] for row in read_metrics(run) if "val/top1" in row]


def test_a_run_stops_early_whenever_it_is_killed_and_goes_on_with_more_patience(tmp_path, monkeypatch, capsys):
    def killed(state, *arguments):
        count_evaluation(state, *arguments)
        if state.step == 15:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(resnet.evaluation, "count_evaluation", killed)
        assert attempt(tmp_path, "r") == [-9]
    run = tmp_path / "r"
    assert attempt(tmp_path, "r") == [0]
    assert evaluated(run) == [1, 2, 3]
    status = read_status(run)
    assert (status["state"], status["step"], status["total_steps"]) == ("finished", 15, 25)
    assert re.fullmatch(r"stopped early: no top1 better than .*% by more than 100 in 2 evaluations", status["reason"])
    assert read_provenance(run)["attempts"][-1]["reason"] == status["reason"]
    assert (run / "final.safetensors").is_file()
    assert f"\n  {status['reason']}, at epoch 3\n" in (tmp_path / "r.txt").read_text()
    assert describe(rows([run])[0])[1].strip() == status["reason"]

    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != "lease.lock"}
    assert attempt(tmp_path, "r") == [0]
    told = f"nothing to do ({status['reason']}; raise early_stopping.patience= to continue it)"
    assert told in (tmp_path / "r.txt").read_text()
    assert {file: file.read_bytes() for file in before} == before

    assert attempt(tmp_path, "r", "early_stopping.patience=3") == [0]
    assert attempt(tmp_path, "patient", "early_stopping.patience=3") == [0]
    assert evaluated(run) == [1, 2, 3, 4]
    assert compare_runs(tmp_path / "patient", run) == []

    # The rule's metric is another one too, and begins anew.
    assert attempt(tmp_path, "r", "early_stopping.patience=3", "eval.metric=loss") == [0]
    assert evaluated(run) == [1, 2, 3, 4, 5]


def test_all_ranks_stop(tmp_path):
    words = ["early_stopping={patience: 1, metric: loss, min_delta: 100}", "max_batch_per_device=8"]
    assert attempt(tmp_path, "r", *words, ranks=2) == [0, 0]
    assert evaluated(tmp_path / "r") == [1, 2]
    reason = read_status(tmp_path / "r")["reason"]
    assert re.fullmatch(r"stopped early: no loss better than .* in 1 evaluation", reason)


@pytest.mark.parametrize(
    ("metric", "values", "ends_at"),
    [
        ("top1", [50, 51, 51.4, 51.5, 52.1, 52, 52], None),
        ("top1", [50, 51, 51.4, 51.5, 51.4], 5),
        ("loss", [2, 1, 0.6, float("nan"), 0.51], 5),
        ("loss", [float("nan"), 3, 3, 3, 3], 5),
    ],
)
def test_patience_counts_evaluations_since_the_last_that_was_better_by_more_than_the_least(metric, values, ends_at):
    from recipes.load import load
    from resnet.state import TrainState

    words = [f"early_stopping={{patience: 3, metric: {metric}, min_delta: 0.5}}"]
    recipe, state = load(["recipe=quickstart", "epochs=9", *words]).recipe, TrainState(*[None] * 5)  # pyright: ignore[reportArgumentType]
    ends = [n for n, value in enumerate(values, 1) if count_evaluation(state, recipe, {metric: value})]
    assert ends[:1] == ([] if ends_at is None else [ends_at])
