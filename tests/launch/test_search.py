"""Which points a bayes sweep tries, what its study knows, and which trials successive halving stops."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import launch.trial
from launch.commands.sweep import add_arguments, run
from launch.sweep.halving import goes_on, let_go_on, should_stop
from launch.sweep.points import sample
from launch.sweep.study import _distributions, _position, ask, crowding, suggest, tell, trial_name, values
from launch.sweep.sweep_json import sweep_json, sweep_of
from launch.sweep.sweep_types import Distribution, HalvingRule, Sweep, Values
from launch.sweep.words import from_words
from resnet.rundir.files import to_json, write_atomic
from slurm import batch

PARAMETERS: dict[str, Values | Distribution] = {
    "optimizer.lr": Distribution("uniform", 1e-4, 1.0, log=True),
    "optimizer.weight_decay": Distribution("uniform", 1e-6, 1e-1, log=True),
}
RULE = HalvingRule((1, 3), eta=2.0)


def a_sweep(
    parameters: dict[str, Values | Distribution] = PARAMETERS, count: int = 12, rule: HalvingRule | None = None
):
    metric = "loss"
    order = ("recipe", *parameters)
    return Sweep("bayes", {"recipe": "quickstart"}, parameters, order, metric=metric, early_stop=rule, run_cap=count)


def make(folder: Path, sweep: Sweep, seed: int = 0, storage: str | None = None) -> Path:
    folder.mkdir()
    more = {"name": folder.name, "seed": seed, "storage": storage, "created": 1_700_000_000.5}
    write_atomic(folder / "sweep.json", to_json(sweep_json(sweep) | more))
    return folder


@pytest.mark.parametrize(
    ("trials", "at_once", "told"), [(256, 64, ""), (2000, 256, "less than 2m39s wait"), (40, 1000, ""), (1000, 1, "")]
)
def test_a_search_that_waits_for_itself_says_so(trials, at_once, told):
    note = crowding(trials, at_once)
    assert bool(note) == bool(told)
    assert told in (note or "")


def log(run_dir: Path, losses: list[float], state: str = "running") -> None:
    """What a run leaves that was evaluated so often."""
    run_dir.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for index, loss in enumerate(losses):
        rows += [{"step": 10 * index + 5, "train/loss": 1.0}, {"step": 10 * index + 10, "val/loss": loss}]
    (run_dir / "metrics.jsonl").write_text("".join(to_json(row) + "\n" for row in rows))
    write_atomic(run_dir / "status.json", to_json({"state": state}))


def loss_of(point: dict[str, str]) -> float:
    """Least at lr 0.03; it matters ten times as much as weight decay."""
    lr, decay = (math.log10(float(point[key])) for key in PARAMETERS)
    return (lr + 1.5) ** 2 + 0.1 * (decay + 4 + 0.5 * lr) ** 2


def try_all(folder: Path, count: int) -> list[dict[str, str]]:
    points = []
    for number in range(count):
        points.append(ask(folder, number))
        tell(folder, number, "finished", loss_of(points[-1]))
    return points


def records(folder: Path) -> dict[int, list[Any]]:
    """What Optuna itself reads in the journal: the records of each trial."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "slurm" / "study.journal")))
    found: dict[int, list[Any]] = {}
    for record in optuna.load_study(study_name=None, storage=storage).trials:
        found.setdefault(record.user_attrs["number"], []).append(record)
    return found


def states(folder: Path) -> dict[int, list[str]]:
    return {number: [record.state.name for record in found] for number, found in records(folder).items()}


# The file


def test_the_file_holds_the_sweep() -> None:
    every = {
        **PARAMETERS,
        "optimizer.momentum": Distribution("normal", mu=0.9, sigma=0.02, step=0.01),
        "label_smoothing": Distribution("beta", a=2.0, b=5.0),
        "epochs": Distribution("int_uniform", 2, 5),
        "model.name": Values(("resnet18", "resnet34"), (0.25, 0.75)),
    }
    sweep = a_sweep(every, rule=HalvingRule((1, 3, 9), 3.0, True))
    assert sweep_of(json.loads(to_json(sweep_json(sweep)))) == sweep
    plain = from_words(["recipe=quickstart", "seed=0,1", "optimizer.lr=log(0.1,1,3)"])
    assert sweep_of(json.loads(to_json(sweep_json(plain)))) == plain


def test_import_is_light() -> None:
    code = "import launch.sweep.study, sys; print([m for m in ('optuna', 'numpy', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Asking


def test_starts_as_a_random_search_does_and_keeps_points(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", a_sweep(), seed=5)
    points = [ask(folder, number) for number in range(4)]
    assert points == [sample(a_sweep(), 5, number) for number in range(4)]
    written = json.loads((folder / "trial-0002" / "slurm" / "point.json").read_text())
    assert written["point"] == points[2]
    assert written["words"][:2] == ["recipe=quickstart", f"optimizer.lr={points[2]['optimizer.lr']}"]
    assert [ask(folder, number) for number in range(4)] == points
    assert states(folder) == {number: ["RUNNING"] for number in range(4)}


def test_the_same_seed_gives_the_same_points(tmp_path: Path) -> None:
    found = [try_all(make(tmp_path / name, a_sweep(), seed), 7) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert found[0] == found[1]
    assert found[0][:3] == [sample(a_sweep(), 1, number) for number in range(3)]
    assert found[0][3:] != [sample(a_sweep(), 1, number) for number in range(3, 7)]
    assert not {*map(str, found[0])} & {*map(str, found[2])}


def record(point: dict[str, str], loss: float | None) -> Any:
    """A trial in Optuna's terms; loss None: it runs."""
    import optuna

    params = {key: _position(PARAMETERS[key], text) for key, text in point.items()}
    state = optuna.trial.TrialState.RUNNING if loss is None else optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(state=state, value=loss, params=params, distributions=_distributions(a_sweep()))


def search(seed: int, count: int) -> list[Any]:
    history = []
    for number in range(count):
        point = suggest(a_sweep(count=count), seed, number, history)
        history.append(record(point, loss_of(point)))
    return history


def test_finds_better_than_random() -> None:
    found = [min(trial.value for trial in search(seed, 20)) for seed in range(12)]
    random = [min(loss_of(sample(a_sweep(), seed, number)) for number in range(20)) for seed in range(12)]
    assert sum(found) < 0.5 * sum(random)


def test_keeps_away_from_trials_that_run() -> None:
    history = search(0, 10)
    point = suggest(a_sweep(), 0, 10, history)
    assert suggest(a_sweep(), 0, 10, history) == point
    assert suggest(a_sweep(), 0, 10, [*history, record(point, None)]) != point


def test_every_kind_of_parameter_stays_what_it_is(tmp_path: Path) -> None:
    kinds: dict[str, Values | Distribution] = {
        "label_smoothing": Distribution("uniform", 0.0, 0.33, step=0.1),
        "epochs": Distribution("int_uniform", 2, 5),
        "optimizer.momentum": Distribution("normal", mu=0.9, sigma=0.0),
        "model.name": Values(("resnet18", "resnet34", "resnet50"), (0.5, 0.5, 0.0)),
    }
    folder = make(tmp_path / "s", a_sweep(kinds, count=8))
    for number in range(8):
        point = ask(folder, number)
        assert [*point] == [*kinds]
        assert point["label_smoothing"] in ("0", "0.1", "0.2", "0.3")
        assert point["epochs"] in ("2", "3", "4", "5")
        assert point["optimizer.momentum"] == "0.9"
        assert point["model.name"] in ("resnet18", "resnet34")
        tell(folder, number, "finished", float(point["epochs"]))
    assert [r.params["label_smoothing"] for [r] in records(folder).values()] == [
        float(ask(folder, number)["label_smoothing"]) for number in range(8)
    ]


def ask_some(folder: Path, numbers: list[int], results: Any) -> None:
    for number in numbers:
        results.put((number, ask(folder, number)))
        tell(folder, number, "finished", 1.0 + number)


def test_processes_that_ask_at_once(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", a_sweep(count=40))
    context = get_context("spawn")
    results = context.Queue()
    numbers = [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 10], [10, 11, 12, 13, 14, 15]]
    children = [context.Process(target=ask_some, args=(folder, some, results)) for some in numbers]
    for child in children:
        child.start()
    answers = [results.get(timeout=60) for some in numbers for _ in some]
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len({str(point) for _, point in answers}) == 16
    assert len({str(point) for number, point in answers if number == 10}) == 1
    assert states(folder) == {number: ["COMPLETE"] for number in range(16)}
    for line in (folder / "slurm" / "study.journal").read_text().splitlines():
        json.loads(line)


# Telling


def test_ends(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", a_sweep())
    for number in range(4):
        ask(folder, number)
    log(folder / "trial-0000", [3.0, 1.5, 2.0])
    log(folder / "trial-0001", [3.0, 2.5, 2.75])
    log(folder / "trial-0002", [3.0])
    log(folder / "trial-0003", [math.nan])
    for _ in range(2):
        tell(folder, 0, "finished")
        tell(folder, 1, "pruned")
        tell(folder, 2, "failed")
        tell(folder, 3, "finished")
    found = {number: record for number, [record] in records(folder).items()}
    assert {number: record.state.name for number, record in found.items()} == {
        0: "COMPLETE",
        1: "PRUNED",
        2: "FAIL",
        3: "FAIL",
    }
    assert found[0].value == 1.5
    assert found[1].intermediate_values == {3: 2.75}


def test_a_trial_that_is_continued_is_told_anew_and_never_worse(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", a_sweep())
    ask(folder, 0)
    tell(folder, 0, "failed")
    tell(folder, 0, "pruned", 2.0)
    tell(folder, 0, "finished", 1.0)
    tell(folder, 0, "failed")
    tell(folder, 0, "pruned", 2.0)
    assert states(folder) == {0: ["FAIL", "PRUNED", "COMPLETE"]}


def test_the_search_is_told_of_an_end_before_the_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "s", a_sweep())
    content = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(to_json(content | {"trials": [{"name": trial_name(0), "point": None}]}))
    ask(folder, 0)
    run_dir = folder / trial_name(0)
    log(run_dir, [2.0])
    for name in ("recipe.yaml", "pruned"):
        (run_dir / "slurm" / name).touch()
    jobs = {"runs": [str(run_dir)], "sweep": str(folder), "python": "python", "signal_lead": 120}
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    monkeypatch.setenv("SLURM_JOB_ID", "7")

    def time_limit(*_: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(batch, "report_sweep", time_limit)
    with pytest.raises(SystemExit):
        launch.trial.main([str(tmp_path / "jobs.json"), "true"])
    assert states(folder) == {0: ["PRUNED"]}


def test_what_nobody_told_is_found_by_the_files(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", a_sweep())
    for number in range(5):
        ask(folder, number)
    for number, state in enumerate(("finished", "failed", "stopped", "stopped", "queued")):
        log(folder / trial_name(number), [2.0, 1.0 + number], state)
    (folder / "trial-0002" / "slurm" / "pruned").write_text("{}")
    (folder / "trial-0003" / "slurm" / "cancel").touch()
    ask(folder, 5)
    assert states(folder) == {0: ["COMPLETE"], 1: ["FAIL"], 2: ["PRUNED"], 3: ["FAIL"], 4: ["RUNNING"], 5: ["RUNNING"]}


@pytest.mark.parametrize("damage", [b'{"op_code":4,"wor', b"\0\0\0\0\n", b"\n"])
def test_a_damaged_journal_is_made_anew_from_the_runs(tmp_path: Path, damage: bytes) -> None:
    folder = make(tmp_path / "s", a_sweep())
    for number in range(3):
        ask(folder, number)
        log(folder / trial_name(number), [1.0 + number], "finished")
    journal = folder / "slurm" / "study.journal"
    journal.write_bytes(journal.read_bytes() + damage)
    ask(folder, 3)
    assert states(folder) == {0: ["COMPLETE"], 1: ["COMPLETE"], 2: ["COMPLETE"], 3: ["RUNNING"]}
    assert (folder / "slurm" / "study.journal.damaged").read_bytes().endswith(damage)


def test_a_database_takes_the_sweep_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "s", a_sweep())
    for number in range(3):
        ask(folder, number)
        log(folder / trial_name(number), [1.0 + number], "finished")
    url = f"sqlite:///{tmp_path}/study.db"
    # A password belongs into the environment, not into sweep.json.
    monkeypatch.setenv("SECRET", tmp_path.name)
    told = f"sqlite:///{tmp_path.parent}/$SECRET/study.db"
    write_atomic(folder / "sweep.json", to_json(json.loads((folder / "sweep.json").read_text()) | {"storage": told}))
    ask(folder, 3)
    tell(folder, 3, "finished", 0.5)
    import optuna

    found = optuna.load_study(study_name=None, storage=url).trials
    assert [(trial.user_attrs["number"], trial.value) for trial in found] == [(0, 1.0), (1, 2.0), (2, 3.0), (3, 0.5)]


@pytest.mark.parametrize("url", ["sqlite:////nowhere/at/all.db", "nonsense"])
def test_a_database_that_is_not_there_is_named(tmp_path: Path, url: str) -> None:
    folder = make(tmp_path / "s", a_sweep(), storage=url)
    with pytest.raises(ValueError, match="storage cannot be opened: "):
        ask(folder, 0)
    assert not (folder / "slurm" / "search.lock").exists()


# Early stopping


def test_evaluations_in_order(tmp_path: Path) -> None:
    log(tmp_path / "run", [3.0, math.inf, 1.0])
    found = values(tmp_path / "run", "loss")
    assert found[::2] == [3.0, 1.0]
    assert math.isnan(found[1])
    assert values(tmp_path / "run", "top1") == values(tmp_path / "none", "loss") == []


@pytest.mark.parametrize(
    ("value", "rivals", "eta", "goal", "expected"),
    [
        (9.0, [1.0], 3, "minimize", True),  # fewer than eta
        (9.0, [1.0, 2.0], 3, "minimize", False),
        (1.0, [1.5, 2.0], 3, "minimize", True),
        (1.0, [1.5, 2.0], 3, "maximize", False),
        (2.0, [1.0, 3.0, 4.0, 5.0], 3, "minimize", False),  # the best 5 // 3 = 1
        (2.0, [1.0, 3.0, 4.0, 5.0, 6.0], 3, "minimize", True),
        (1.0, [1.0, 1.0, 2.0], 4, "minimize", True),  # as good as the best
        (math.nan, [1.0, 2.0], 3, "minimize", False),
        (math.nan, [1.0, 2.0], 3, "maximize", False),
        (5.0, [1.0], 1.5, "minimize", False),
    ],
)
def test_the_best_go_on(value: float, rivals: list[float], eta: float, goal: str, expected: bool) -> None:
    assert goes_on(value, rivals, eta, goal) is expected


def test_halving_judges_once_at_each_rung(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", a_sweep(rule=RULE))
    log(folder / "a", [])
    assert should_stop(folder, "a") is None
    assert not (folder / "slurm").exists()
    log(folder / "a", [5.0, 5.0])
    assert should_stop(folder, "a") is None  # alone
    log(folder / "b", [6.0])
    assert should_stop(folder, "b") == (1, 6.0)
    log(folder / "c", [4.0])
    assert should_stop(folder, "c") is None
    log(folder / "a", [5.0, 5.0, 3.0])
    assert should_stop(folder, "a") is None  # now worse than c at rung 1, which it has passed; first at rung 3
    log(folder / "c", [4.0, 4.0, 3.5, 1.0])
    assert should_stop(folder, "c") == (3, 3.5)
    lines = (folder / "slurm" / "rungs.jsonl").read_text()
    log(folder / "b", [6.0, 0.1, 0.1])
    assert should_stop(folder, "b") == (1, 6.0)
    assert should_stop(folder, "c") == (3, 3.5)
    assert (folder / "slurm" / "rungs.jsonl").read_text() == lines


def test_a_stopped_trial_can_be_continued(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", a_sweep(rule=RULE))
    for name, losses in (("a", [1.0, 1.0, 1.0]), ("b", [2.0])):
        log(folder / name, losses)
        stopped = should_stop(folder, name)
    assert stopped == (1, 2.0)
    let_go_on(folder, "b")
    assert should_stop(folder, "b") is None
    log(folder / "b", [2.0, 2.0, 2.0])
    assert should_stop(folder, "b") == (3, 2.0)


@pytest.mark.parametrize(("strict", "expected"), [(True, (2, 7.0)), (False, None)])
def test_strict_judges_by_the_value_at_the_rung(tmp_path: Path, strict: bool, expected: Any) -> None:
    folder = make(tmp_path / "s", a_sweep(rule=HalvingRule((2,), 2.0, strict)))
    log(folder / "a", [5.0, 5.0])
    log(folder / "b", [3.0, 7.0])
    assert should_stop(folder, "a") is None
    assert should_stop(folder, "b") == expected


def test_no_rule_stops_nobody(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", a_sweep())
    log(folder / "a", [math.nan] * 5)
    assert should_stop(folder, "a") is None


def test_among_a_thousand_trials(tmp_path: Path) -> None:
    folder = make(tmp_path / "s", a_sweep(rule=HalvingRule((1, 3, 9), 3.0)))
    (folder / "slurm").mkdir()
    rows = [{"trial": f"t{n}", "rung": rung, "value": n, "stop": n > 300} for rung in (1, 3) for n in range(1000)]
    (folder / "slurm" / "rungs.jsonl").write_text("".join(to_json(row) + "\n" for row in rows) + '{"trial": "half')
    for name, loss, expected in (("good", 331.5, None), ("bad", 334.5, (1, 334.5))):
        log(folder / name, [loss] * 3)
        assert should_stop(folder, name) == expected


@pytest.mark.parametrize(
    "words", [["slurm.stage_environment=/shared/env.tar"], ["slurm.container=apptainer exec /shared/a.sif"]]
)
def test_a_search_needs_our_packages_in_the_batch_script(tmp_path: Path, words: list[str]) -> None:
    file = tmp_path / "search.yaml"
    swept = "{recipe: {value: quickstart}, optimizer.lr: {min: 0.1, max: 0.4}}"
    file.write_text(f"method: bayes\nmetric: {{name: val/top1, goal: maximize}}\nparameters: {swept}\n")
    options = argparse.ArgumentParser()
    add_arguments(options)
    told = options.parse_args(["--count", "2", str(file), "cluster=local-test", *words])
    with pytest.raises(ValueError, match=f"^{words[0].split()[0]}.*need our packages in the batch script"):
        run(told)
