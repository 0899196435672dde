"""What a sweep is told to have found."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch import cli
from launch.runs import state as run_state
from launch.sweep.plot import plot
from launch.sweep.text import lines, to_csv, to_object, write_best
from recipes.load import dump, load
from recipes.text import labels
from resnet.rundir.files import to_json
from resnet.rundir.sweep.ranking import t_quantile
from resnet.rundir.sweep.results import Board, folders, results, sweep_so_far

NOW = 1_700_000_000.0


def trial(value=None, state="finished", evaluations=None, **files) -> dict:
    """What a trial has left; value: of its one evaluation."""
    if evaluations is None:
        evaluations = [] if value is None else [value]
    return {"state": state, "evaluations": evaluations, **files}


def sweep(root: Path, trials: Sequence[tuple[dict | None, dict | None]], **fields) -> Path:
    """A sweep's directory, by hand. trials: point, and what is in its directory (None: there is none)."""
    folder = root / "study"
    metric = fields.get("metric", "top1")
    listed = []
    for number, (point, left) in enumerate(trials):
        name = f"t{number}"
        words = ["recipe=quickstart", *(f"{key}={text}" for key, text in (point or {}).items())]
        listed.append({"name": name, "digest": None, "point": point, "words": words})
        if left is not None:
            _trial(folder / name, left, metric)
    keys = dict.fromkeys(key for point, _ in trials for key in point or {})
    content = {"name": "study", "method": "grid", "metric": metric, "goal": "maximize", "seed": 0, "ranks": 4}
    content |= {"fixed": {"recipe": "quickstart"}, "parameters": {key: {"values": []} for key in keys}, "order": []}
    content |= {"origins": {}, "gpus_per_trial": 4, "created": NOW - 3600, "trials": listed}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(content | fields))
    return folder


def _trial(run_dir: Path, left: dict, metric: str) -> None:
    (run_dir / "slurm").mkdir(parents=True)
    pruned = left["state"] == "pruned"
    status = {"state": "stopped" if pruned else left["state"], "updated": NOW - 600, "epochs": 10, "host": "n1"}
    (run_dir / "status.json").write_text(json.dumps(status | left.get("status", {})))
    if pruned:
        (run_dir / "slurm" / "pruned").write_text("{}")
    attempts = left.get("attempts", [(NOW - 1300, NOW - 700)])
    records = [{"attempt": number, "start": start, "step": 0} for number, (start, _) in enumerate(attempts, 1)]
    records += [{"attempt": n, "end": end, "step": 9} for n, (_, end) in enumerate(attempts, 1) if end is not None]
    (run_dir / "slurm" / "attempts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = []
    for epoch, value in enumerate(left["evaluations"], 1):
        rows.append({"step": 10 * epoch - 1, "epoch": epoch - 0.1, "train/loss": 0.01, "time": NOW})
        rows.append({"step": 10 * epoch, "epoch": float(epoch), f"val/{metric}": value, "val/samples": 50, "time": NOW})
    text = "".join(to_json(row) + "\n" for row in rows)
    (run_dir / "metrics.jsonl").write_text(text + left.get("more_metrics", ""))


def board_of(folder: Path) -> Board:
    read = sweep_so_far(folder)
    return results(read, run_state.rows(folders(read)), now=NOW)


def lr_and_seeds(values: dict[str, list[float | None]]) -> list[tuple[dict, dict | None]]:
    return [
        ({"optimizer.lr": lr, "seed": str(seed)}, None if value is None else trial(value))
        for lr, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]


# Trials


def test_best_and_last_evaluation_and_what_they_cost(tmp_path):
    twice = [(NOW - 2000, NOW - 1800), (NOW - 1000, NOW - 900)]
    folder = sweep(tmp_path, [({"optimizer.lr": "0.1"}, trial(evaluations=[10, 50.5, None, 50.5, 40], attempts=twice))])
    one = board_of(folder).trials[0]
    assert (one.value, one.best_epoch, one.last) == (50.5, 2.0, 40)
    assert (one.state, one.epoch, one.epochs) == ("finished", 5.0, 10)
    assert one.seconds == 300
    assert one.gpu_hours == pytest.approx(300 * 4 / 3600)


def test_states(tmp_path):
    lost = trial(state="failed", status={"failure": "nan", "reason": "the loss is not finite"})
    running = trial(20.0, "running", status={"eta_s": 60}, attempts=[(NOW - 100, None)])
    left = [trial(30.0), trial(10.0, "pruned"), trial(11.0, "stopped"), lost, running, None]
    points = [{"optimizer.lr": str(number)} for number in range(len(left))]
    folder = sweep(tmp_path, list(zip(points, left, strict=True)))
    board = board_of(folder)
    assert [one.state for one in board.trials] == ["finished", "pruned", "stopped", "failed", "running", "not sent"]
    assert list(board.counts.values()) == [1] * 6
    assert board.trials[4].seconds == 100
    # Only what has finished is a result; the others follow by their value so far, then those without one.
    assert [one.trials[0] for one in board.settings] == ["t0", "t4", "t2", "t1", "t3", "t5"]
    text = "\n".join(lines(board))
    assert "6 trials: 1 finished, 1 running, 1 not sent, 1 pruned, 1 stopped, 1 failed" in text
    assert "failed: 1 nan; again with launch retry" in text
    assert "t3: the loss is not finite" in text
    assert "best so far: lr=0, top-1 30.00 % (one trial)" in text


def test_eta_is_told_from_trials_that_ended(tmp_path):
    running = trial(20.0, "running", status={"eta_s": 60}, attempts=[(NOW - 540, None)])
    points = [{"optimizer.lr": str(number)} for number in range(4)]
    lives = [trial(30.0), running, None, None]
    folder = sweep(tmp_path, list(zip(points, lives, strict=True)))
    assert board_of(folder).eta_s == 60 + 2 * 600
    folder = sweep(tmp_path / "none_ended", list(zip(points[1:], lives[1:], strict=True)))
    assert board_of(folder).eta_s is None


def test_time_without_slurm_and_of_an_attempt_that_was_cut_off(tmp_path):
    cut = trial(30.0, "stopped", attempts=[(NOW - 5000, None), (NOW - 1000, None)])
    folder = sweep(tmp_path, [({"optimizer.lr": "1"}, trial(30.0, attempts=[])), ({"optimizer.lr": "2"}, cut)])
    known = [{"start": NOW - 5000, "end": NOW - 4000}, {"start": NOW - 1000, "end": None}]
    for name in ("t0", "t1"):
        (folder / name / "provenance.json").write_text(json.dumps({"command": "x", "attempts": known}))
    # The end of the last one is the last sign of life, 600 s ago.
    assert [one.seconds for one in board_of(folder).trials] == [1400, 1400]


def test_without_gpus_there_are_no_gpu_hours(tmp_path):
    board = board_of(sweep(tmp_path, [({"optimizer.lr": "1"}, trial(30.0))], gpus_per_trial=0))
    assert board.gpu_hours == 0
    assert "GPU" not in "\n".join(lines(board))


def test_damaged_metrics(tmp_path):
    torn = '{"step": 60, "epoch": 6.0, "val/top1": 99\n{"step": 70, "epoch": 7.0, "val/top1": 45.0, "time": 1}\n'
    unfinished = '{"step": 80, "epoch": 8.0, "val/top1": 98.0}'
    folder = sweep(
        tmp_path, [({"optimizer.lr": "1"}, trial(40.0, more_metrics=f"\x00\xff rubbish\n{torn}{unfinished}"))]
    )
    board = board_of(folder)
    one = board.trials[0]
    assert (one.value, one.best_epoch, one.last) == (45.0, 7.0, 45.0)
    assert one.problem == "metrics.jsonl: 1 damaged line left out"
    assert "t0: metrics.jsonl: 1 damaged line left out" in lines(board)


def test_metrics_are_read_again_when_they_have_changed(tmp_path):
    folder = sweep(tmp_path, [({"optimizer.lr": "1"}, trial(40.0))])
    assert board_of(folder).trials[0].value == 40
    with open(folder / "t0" / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "epoch": 2.0, "val/top1": 41.5}\n')
    assert board_of(folder).trials[0].value == 41.5


def test_what_a_search_has_asked_for(tmp_path):
    folder = sweep(tmp_path, [(None, trial(40.0)), (None, None)], method="bayes", parameters={"optimizer.lr": {}})
    chosen = {"point": {"optimizer.lr": "0.3"}, "words": ["recipe=quickstart", "optimizer.lr=0.3"]}
    (folder / "t0" / "slurm" / "point.json").write_text(json.dumps(chosen))
    board = board_of(folder)
    assert [one.point for one in board.trials] == [{"optimizer.lr": "0.3"}, {}]
    assert [one.trials for one in board.settings] == [("t0",)]
    assert (best := write_best(folder, board))
    assert load([f"recipe={best}"]).recipe.optimizer.lr == 0.3


def test_no_sweep(tmp_path):
    with pytest.raises(ValueError, match="not a sweep"):
        sweep_so_far(tmp_path)
    whole = sweep(tmp_path, [(None, None)])
    content = json.loads((whole / "sweep.json").read_text())
    without_names = [json.dumps(content | {"trials": trials}) for trials in (None, ["t0"], [{"nam": "t0"}])]
    for damaged in ('{"name": ', "[]", '{"name": "a"}', *without_names):
        (tmp_path / "sweep.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"sweep\.json is damaged"):
            sweep_so_far(tmp_path)


def test_a_damaged_sweep_can_be_cancelled(tmp_path, capfd):
    folder = sweep(tmp_path, [({"seed": "0"}, trial(40.0))])
    (folder / "slurm").mkdir()
    (folder / "sweep.json").write_text("{")
    with pytest.raises(SystemExit) as end:
        cli.main(["cancel", str(folder)])
    said = capfd.readouterr()
    assert (end.value.code, said.out.startswith("study: 0 waiting and 0 running trials are cancelled")) == (0, True)
    assert said.err.startswith("the sweep's page could not be written: ")


# Settings


def test_mean_and_spread_over_seeds(tmp_path):
    values = {"0.1": [90.0, 91.0, 92.0], "0.5": [93.0, 95.0, None], "1.0": [94.5, None, None]}
    board = board_of(sweep(tmp_path, lr_and_seeds(values)))
    first, second, third = board.settings
    assert (first.point, first.done, first.value, first.spread) == ({"optimizer.lr": "1.0"}, 1, 94.5, None)
    assert (second.value, second.spread, second.low, second.high) == (94.0, pytest.approx(2**0.5), 93, 95)
    assert second.states == {"finished": 2, "not sent": 1}
    assert second.best_trial == "t4"
    assert (third.value, third.spread, third.done) == (91.0, 1.0, 3)
    table = [line.split("  ") for line in lines(board)]
    assert [cells[-1] for cells in table if cells[0] in ("1", "2", "3")] == [
        "1 of 3, 2 not sent",
        "2 of 3, 1 not sent",
        "3 of 3",
    ]
    assert board.comparison
    assert board.comparison.text == "lr=1.0 is ahead of lr=0.5 by 0.50 points; one seed of lr=1.0: no spread is known"


def test_folds_are_repeated_as_seeds_are(tmp_path):
    values = {"0.1": [90.0, 91.0, 92.0], "0.5": [93.0, 94.0, 96.0]}
    points = [
        ({"optimizer.lr": lr, "data.fold": f"{number}/3"}, trial(value))
        for lr, of_folds in values.items()
        for number, value in enumerate(of_folds, 1)
    ]
    board = board_of(sweep(tmp_path, points))
    assert [(one.point, one.done, one.spread) for one in board.settings] == [
        ({"optimizer.lr": "0.5"}, 3, pytest.approx((14 / 3 / 2) ** 0.5)),
        ({"optimizer.lr": "0.1"}, 3, 1.0),
    ]
    told = "\n".join(lines(board))
    assert "(mean of 3 folds, standard deviation 1.53)" in told
    assert "(differences between folds of a setting)" in told
    both = [({"seed": seed, "data.fold": fold}, trial(90.0)) for seed in "01" for fold in ("1/2", "2/2")]
    board = board_of(sweep(tmp_path / "both", both))
    assert [(one.label, one.done) for one in board.settings] == [("the recipe", 4)]
    assert "(mean of 4 runs, standard deviation 0.00)" in "\n".join(lines(board))


def test_loss_is_minimized(tmp_path):
    trials = [({"optimizer.lr": lr}, trial(evaluations=seen)) for lr, seen in (("1", [2.0, 0.7, 0.9]), ("2", [0.8]))]
    board = board_of(sweep(tmp_path, trials, metric="loss", goal="minimize"))
    assert [one.value for one in board.settings] == [0.7, 0.8]
    assert (board.trials[0].best_epoch, board.trials[0].last) == (2.0, 0.9)
    assert board.comparison
    assert board.comparison.text == "lr=1 is ahead of lr=2 by 0.1; one seed each: no spread is known"
    assert "the lowest val loss wins" in lines(board)[0]


def test_ties(tmp_path):
    board = board_of(sweep(tmp_path, lr_and_seeds({"0.5": [90.0, 90.0], "0.1": [90.0, 90.0]})))
    assert [one.point["optimizer.lr"] for one in board.settings] == ["0.5", "0.1"]
    assert board.comparison
    assert board.comparison.text == "lr=0.5 and lr=0.1 are level; neither varies over its seeds"
    assert board.importance == ()


def test_no_finished_trial(tmp_path):
    folder = sweep(tmp_path, [({"optimizer.lr": "1"}, trial(state="queued")), ({"optimizer.lr": "2"}, None)])
    board = board_of(folder)
    assert (board.best, board.comparison, board.importance, board.eta_s) == (None, None, (), None)
    assert "no trial has been evaluated yet" in lines(board)
    assert write_best(folder, board) is None
    assert to_object(board)["best"] is None
    plot(board, folder / "sweep.png")


def test_a_sweep_of_one_recipe(tmp_path):
    folder = sweep(tmp_path, [({}, trial(80.0))])
    board = board_of(folder)
    assert board.best
    assert board.best.label == "the recipe"
    plot(board, folder / "sweep.png")


# How sure it is


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (10, 2.2281), (30, 2.0423), (120, 1.9799)]
)
def test_students_t(freedom, expected):
    # Table of the 97.5% quantile.
    assert t_quantile(freedom) == pytest.approx(expected, abs=2e-4)


def test_welch_interval(tmp_path):
    # Variances of the means 1/3 and 4/3, so df = (5/3)^2 / ((1/9 + 16/9) / 2) = 50/17.
    board = board_of(sweep(tmp_path, lr_and_seeds({"0.1": [89.0, 90.0, 91.0], "0.5": [98.0, 100.0, 102.0]})))
    assert board.comparison
    assert board.comparison.difference == 10
    assert board.comparison.margin == pytest.approx(t_quantile(50 / 17) * (5 / 3) ** 0.5)
    assert 3.18 < t_quantile(50 / 17) < 3.24
    assert board.comparison.text == "lr=0.5 beats lr=0.1 by 10.00 ± 4.16 points (95%)"


def test_what_seeds_cannot_tell(tmp_path):
    board = board_of(sweep(tmp_path, lr_and_seeds({"0.1": [89.0, 91.0], "0.5": [90.0, 92.0]})))
    assert board.comparison
    # Standard error sqrt(2), two degrees of freedom: 4.3027 * 1.4142.
    assert board.comparison.text == "lr=0.5 and lr=0.1 cannot be told apart by these seeds: 1.00 ± 6.08 points (95%)"


# What mattered


def test_share_of_the_variance(tmp_path):
    # lr moves the value by 8, the optimizer by 4, the seed by 2: sums of squares 128, 32 and 8 of 168.
    trials = [
        (
            {"optimizer.lr": lr, "optimizer.name": name, "seed": seed},
            trial(50 + 8 * (lr == "1") + 4 * (name == "lamb") + 2 * (seed == "1")),
        )
        for lr in ("0", "1")
        for name in ("sgd", "lamb")
        for seed in ("0", "1")
    ]
    board = board_of(sweep(tmp_path, trials))
    assert [(one.key, one.groups) for one in board.importance] == [
        ("optimizer.lr", 2),
        ("optimizer.name", 2),
        ("seed", 4),
    ]
    assert [one.share for one in board.importance] == pytest.approx([128 / 168, 32 / 168, 8 / 168])
    assert board.importance[0].by_chance == pytest.approx(1 / 7)
    text = lines(board)
    assert "  lr          76%  (by chance 14%)" in text
    assert "  seed         5%  (differences between seeds of a setting)" in text


def test_many_values_are_put_into_quantiles(tmp_path):
    trials = [
        ({"optimizer.lr": f"{number / 7:.8g}", "label_smoothing": "0"}, trial(50 + number)) for number in range(8)
    ]
    (lr,) = board_of(sweep(tmp_path, trials)).importance
    # Two groups of four: of 42, each group keeps 5.
    assert (lr.groups, lr.share) == (2, pytest.approx(1 - 10 / 42))


def test_words_of_which_each_stands_once_tell_nothing(tmp_path):
    trials = [({"optimizer.name": name}, trial(50 + len(name))) for name in ("sgd", "lamb", "adamw")]
    assert board_of(sweep(tmp_path, trials)).importance == ()


# What is printed and written


def test_a_table_keeps_within_the_terminal(tmp_path):
    trials = [
        ({"optimizer.lr": f"0.1234567{n}", "recipe": "resnet50_imagenet_large_batch", "seed": "1"}, trial(50.0 + n))
        for n in range(30)
    ]
    board = board_of(sweep(tmp_path, trials))
    for width in (40, 80, 120):
        table = lines(board, width, top=5)[3:10]
        assert table[0].startswith("#")
        assert table[-1] == "... and 25 more settings"
        assert max(map(len, table)) < width
    assert "resnet50_im..large_batch" in table[1]


def test_labels():
    keys = ["optimizer.lr", "model.name", "schedule.name", "a.size", "b.size", "seed", "ema.decay"]
    assert list(labels(keys).values()) == ["lr", "model", "schedule", "a.size", "b.size", "seed", "decay"]
    assert labels(keys, with_group=["ema"])["ema.decay"] == "ema.decay"


def test_json_and_csv(tmp_path):
    folder = sweep(tmp_path, lr_and_seeds({"0.1": [89.0, 91.0], "0.5": [92.0, None]}))
    board = board_of(folder)
    write_best(folder, board)
    told = json.loads(to_json(to_object(board)))
    assert told["counts"] == {"finished": 3, "not sent": 1}
    assert [one["value"] for one in told["leaderboard"]] == [92.0, 90.0]
    assert [one["name"] for one in told["trials"]] == ["t0", "t1", "t2", "t3"]
    assert told["best"]["recipe"] == str(folder / "best.yaml")
    header, *rows = csv.reader(io.StringIO(to_csv(board)))
    assert header == ["name", "state", "optimizer.lr", "seed", "val/top1", "best_epoch", "seconds", "gpu_hours"]
    assert rows[1] == ["t1", "finished", "0.1", "1", "91.0", "1.0", "600.0", "0.6667"]
    assert rows[3] == ["t3", "not sent", "0.5", "1", "", "", "0.0", "0.0"]


def test_the_winners_recipe(tmp_path):
    folder = sweep(tmp_path, lr_and_seeds({"0.1": [89.0, 91.0], "0.5": [90.0, 93.0]}))
    own = [
        "recipe=quickstart",
        "optimizer.lr=0.5",
        "seed=1",
        "data.fold=1/3",
        "run.name=t3",
        "run.root=study",
        "wandb.group=study",
    ]
    (folder / "t3" / "recipe.yaml").write_text(dump(load(own).recipe))
    file = write_best(folder, board_of(folder))
    assert file
    assert file == folder / "best.yaml"
    recipe = load([f"recipe={file}"]).recipe
    assert (recipe.optimizer.lr, recipe.seed, recipe.run.name, recipe.wandb.group) == (0.5, 1, None, None)
    assert recipe.name == "quickstart"
    assert recipe.evidence
    assert recipe.evidence.top1 == load(["recipe=quickstart"]).recipe.evidence.top1
    assert "before the sweep study changed it (optimizer.lr=0.5 seed=1)" in recipe.evidence.notes
    head = file.read_text().splitlines()[:4]
    assert head == [
        "# Best of the sweep study: lr=0.5",
        "# top-1 91.50 % (mean of 2 seeds, standard deviation 2.12); this is t3",
        "# It trains without fold 1/3: to train on all images set data.fold=null and give",
        "# a validation set",
    ]
    assert f"  launch show recipe={file}" in lines(board_of(folder))
    before = file.stat().st_mtime_ns, file.stat().st_ino
    write_best(folder, board_of(folder))
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before


def test_the_picture(tmp_path):
    words = {"model.name": ("resnet18", "resnet$50$"), "seed": ("0", "1")}
    trials: list[tuple[dict, dict | None]] = [
        ({"optimizer.lr": f"{10 ** -(n % 16):g}", **{key: of[n % 2] for key, of in words.items()}}, trial(n, state))
        for n, state in enumerate(["finished"] * 20 + ["pruned", "failed", "stopped"])
    ]
    trials.append(({"optimizer.lr": "1", "model.name": "resnet18", "seed": "0"}, None))
    folder = sweep(tmp_path, trials)
    plot(board_of(folder), folder / "sweep.png")
    picture = (folder / "sweep.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    # Three panels of 3.2 inches at 100 dpi.
    assert int.from_bytes(picture[16:20], "big") == 960


def test_nothing_heavy_is_imported():
    heavy = ("torch", "numpy", "wandb", "matplotlib", "pydantic", "yaml", "submitit")
    code = f"import sys, launch.sweep.text, launch.sweep.plot; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]", done.stderr
