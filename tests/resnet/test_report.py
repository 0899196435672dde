import json
import math
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from recipes.evidence import judge
from recipes.load import dump, load, load_file
from recipes.schema.recipe import Recipe
from resnet.rundir.files import to_json
from resnet.rundir.provenance import end_attempt, provenance, record_attempt
from resnet.rundir.status import write_status
from resnet.tools.cli import main
from resnet.tools.report.charts import Point
from resnet.tools.report.curves import learning_rates, seconds_per_epoch
from resnet.tools.report.plots import draw_confusion, draw_curves, most_confused
from resnet.tools.report.report import differing, write_report
from resnet.tools.report.results import confused_pairs, heat_map
from tests.resnet.test_charts import in_browser

CLASSES = ["circle", "square", "<b>star</b>", "stripes"]


def make_run(folder: Path, classes: list[str] = CLASSES, epochs: int = 6, confusion: bool = True) -> Path:
    """A run directory as a finished training leaves it, with numbers made up."""
    rng = random.Random(0)
    run = folder / "runs" / "first try"
    run.mkdir(parents=True)
    recipe = load(["recipe=quickstart", f"epochs={epochs}", "optimizer.lr=0.2", "ema.decay=0.99"]).recipe
    (run / "recipe.yaml").write_text(dump(recipe))
    plan = {"steps_per_epoch": 40, "total_steps": 40 * epochs, "micro_batch": 25}
    record_attempt(run, provenance(["train.py", "recipe=quickstart"], ["CPU", "CPU"], 2, plan))
    end_attempt(run, "signal SIGTERM", 80)
    record_attempt(run, provenance(["train.py", "recipe=quickstart"], ["CPU", "CPU"], 2, plan), step=80)
    rows = []
    for step in range(5, 40 * epochs + 1, 5):
        loss = 2.3 * math.exp(-step / 60) + 0.2 * rng.random()
        row = {
            "step": step,
            "epoch": step / 40,
            "samples": step * 50,
            "time": 1.7e9 + step,
            "lr": 0.2 * (1 - step / 40 / epochs),
        }
        row |= {"train/loss": loss, "train/top1": 100 - 40 * loss, "images_per_second": 140 + 9 * rng.random()}
        row |= {"slowest_rank": 1, "slowest_ratio": 1.3, "slow_ranks": "rank 1 on <n2>: 1.30 times the median (data)"}
        rows.append(row | {"data_wait": 0.04, "memory_gb": 1.5})
        if step % 40 == 0:
            row = {"step": step, "epoch": step / 40, "time": 1.7e9 + step, "val/samples": 500}
            rows.append(row | {"val/loss": loss + 0.1, "val/top1": 95 - 30 * loss, "val/top5": 99.0})
    (run / "metrics.jsonl").write_text("".join(to_json(row) + "\n" for row in rows))
    end_attempt(run, "finished", 40 * epochs)
    steps = 40 * epochs
    write_status(run, name="first <try>", state="finished", step=steps, total_steps=steps, epoch=epochs, epochs=epochs)
    matrix = np.eye(len(classes), dtype=int) * 90
    for index in range(len(classes)):
        matrix[index, (index * 7 + 1) % len(classes)] += 3 + index % 9
    per_class = [
        {"class": name, "samples": int(matrix[i].sum()), "correct": int(matrix[i, i])} for i, name in enumerate(classes)
    ]
    evaluation = {"top1": 93.5, "top5": 99.0, "loss": 0.3, "samples": int(matrix.sum()), "classes": classes}
    evaluation |= {"confusion": matrix.tolist()} if confusion else {}
    (run / "evaluation.json").write_text(json.dumps(evaluation | {"per_class": per_class}))
    return run


def test_report_holds_the_run_and_nothing_from_outside(tmp_path):
    run = make_run(tmp_path)
    page = write_report(run).read_text()
    assert "first &lt;try&gt;" in page
    assert "<try>" not in page
    assert "lines of the log; rank 1 on &lt;n2&gt;: 1.30 times the median (data)" in page
    assert "<b>star" not in page
    assert "&lt;b&gt;star&lt;/b&gt;" in page
    assert "default-src 'none'" in page
    assert not re.findall(r"(?:src|href)=.(?!data:)", page)
    assert page.count("<svg") == page.count('<script type="application/json">') == 7
    assert page.count("<script") == 8
    assert "top-5" not in page
    for text in (
        "not comparable with the recipe",
        "optimizer.lr",
        "signal SIGTERM",
        "80 to 240",
        "steps per epoch",
        "resnet predict",
    ):
        assert text in page, text
    assert (run / "curves.png").stat().st_size > 10_000
    assert (run / "confusion.png").stat().st_size > 10_000
    worst = page.split("Accuracy by class")[1].split("</table>")[0]
    shares = [float(cell.split("%")[0]) for cell in worst.split('<td class="number">')[1::2]]
    assert shares == sorted(shares)
    assert len(shares) == len(CLASSES)


def test_report_shows_what_the_network_became(tmp_path):
    run = make_run(tmp_path)
    assert "What it became" not in write_report(run).read_text()
    folder = run / "exports" / "int8 <x>"
    folder.mkdir(parents=True)
    figures = {"top1": 93.5, "top5": 99.0, "parameters": 1_000, "bytes": 4_000_000, "macs": 2e9}
    before = {**figures, "latency_ms": 10.0, "images_per_second": 100.0}
    after = before | {"top1": 93.25, "bytes": 1_000_000, "latency_ms": 2.5, "images_per_second": None}
    measured = {"before": before, "after": after, "images": 2_000, "agreement": 98.5}
    (folder / "artefact.json").write_text(json.dumps({"format": 1, "kind": "quantize", "measured": measured}))
    rows = write_report(run).read_text().split("What it became")[1].split("<tbody>")[1].split("</tbody>")[0]
    cells = [re.sub("<[^>]*>", " ", cell).split() for cell in re.findall("<td[^>]*>(.*?)</td>", rows)]
    assert cells == [
        ["int8", "&lt;x&gt;", "quantised"],
        *(["93.25%", "-0.25"], ["99.00%", "+0.00"], ["0.00", "x1"], ["1.00", "x0.25"], ["2", "x1"], ["2.50", "x0.25"]),
        *([], ["98.50%"], ["2,000"]),
    ]
    (folder / "artefact.json").write_text("{")
    with pytest.raises(ValueError, match=r"artefact\.json is damaged"):
        write_report(run)


def test_a_page_of_many_classes_and_rows_fits_a_phone(tmp_path):
    run = make_run(tmp_path, [f"n{index:08d} wire-haired terrier" for index in range(300)], epochs=90)
    page = write_report(run).read_text()
    assert len(page) < 500_000
    assert "top-5" in page
    assert '<table class="heat">' not in page
    confused = page.split("Classes confused most")[1].split("</table>")[0]
    counts = [int(count) for count in re.findall(r"(\d+) of \d+", confused)]
    assert len(counts) == 20
    assert counts == sorted(counts, reverse=True)
    found = in_browser(page, tmp_path)
    assert (found["errors"], found["narrow"]) == ([], 0)
    assert found["width"] <= 390
    assert found["tip"].startswith("epoch 4")


def test_report_of_a_run_that_has_only_begun(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # The recipe's data would be found elsewhere.
    run = tmp_path / "begun"
    run.mkdir()
    (run / "recipe.yaml").write_text(dump(load(["recipe=quickstart"]).recipe))
    page = write_report(run).read_text()
    assert "begun" in page
    assert "data:image" not in page
    assert "<svg" not in page
    assert "go on with this run" in page


def test_report_names_a_damaged_file(tmp_path):
    run = make_run(tmp_path)
    (run / "evaluation.json").write_text('{"top1": 9')
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged"):
        write_report(run)


def test_settings_that_differ():
    recipe = load(["recipe=quickstart", "ema.decay=0.5", "batch_size=100", "model.zero_init_residual=true"]).recipe
    found = {key: (value, default) for key, value, default in differing(recipe)}
    assert found["ema"] == ("on", "off")
    assert found["ema.decay"][0] == 0.5
    assert found["model.zero_init_residual"] == (True, False)
    assert found["batch_size"] == (100, None)
    assert "seed" not in found
    assert not any(key.startswith(("evidence", "wandb", "run")) for key in found)


def of_imagenet(**changes) -> Recipe:
    return load(["recipe=resnet50_imagenet", *(f"{key}={value}" for key, value in changes.items())]).recipe


def test_an_accuracy_is_held_against_what_the_recipe_reaches():
    recipe = of_imagenet(**{"data.train": "/elsewhere", "seed": 3, "data.source": "huggingface"})
    low, high = recipe.evidence.band
    assert judge(recipe, (low + high) / 2, 1_281_167) == (f"within the expected {low:g} to {high:g}%", True)
    assert judge(recipe, low - 1) == (f"below the expected {low:g} to {high:g}%", False)
    assert judge(recipe, high + 1)[0].startswith("above")
    assert judge(of_imagenet(**{"data.decode": "region"}), high).good, "the same pixels"
    assert judge(of_imagenet(**{"data.decode": "gpu"}), high).text.endswith(": data.decode=gpu")
    assert judge(recipe.model_copy(update={"evidence": None}), 80.0) == ("no expected value known", None)


def test_an_accuracy_of_a_base_is_held_against_what_is_trained_alike(tmp_path):
    (tmp_path / "birds.yaml").write_text("base: resnet50_imagenet\ndata: {train: x, train_samples: null}\n")
    recipe = load([f"recipe={tmp_path}/birds.yaml"]).recipe
    low, high = recipe.evidence.band
    assert judge(recipe, low - 1, 5000).text == "not comparable with the recipe's: 5,000 training images, not 1,281,167"
    assert judge(recipe, low - 1, 1_281_167).good is False
    (tmp_path / "own.yaml").write_text("base: birds.yaml\nmodel: {name: resnet18}\nname: own\n")
    recipe = load([f"recipe={tmp_path}/own.yaml"]).recipe
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    assert judge(load_file(tmp_path / "recipe.yaml").recipe, high).text.endswith(": model.name=resnet18")
    (tmp_path / "own.yaml").write_text("base: birds.yaml\nmodel: {name: resnet18}\nevidence: {band: [1, 2]}\n")
    assert judge(load([f"recipe={tmp_path}/own.yaml"]).recipe, 1.5).good


@pytest.mark.parametrize(
    ("changes", "samples", "why"),
    [
        ({"epochs": 1}, None, "epochs=1.0"),
        ({"augment.val_size": 192}, None, "augment.val_size=192"),
        ({"max_steps": 20}, None, "max_steps=20"),
        ({}, 500, "500 training images, not 1,281,167"),
    ],
)
def test_an_accuracy_is_not_held_against_that_of_another_training(changes, samples, why):
    assert judge(of_imagenet(**changes), 20.0, samples) == (f"not comparable with the recipe's: {why}", None)


@pytest.mark.parametrize("count", [2, 30, 45])
def test_confusion_of_any_number_of_classes(tmp_path, count):
    matrix = np.eye(count, dtype=int) * 5
    matrix[0, 1] = 2
    matrix[1] = 0
    draw_confusion(matrix, [f"${name}" for name in range(count)], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes()[:4] == b"\x89PNG"


def test_most_confused_classes_are_chosen_by_mistakes():
    matrix = np.diag([50, 50, 50, 50])
    matrix[3, 1] = 9
    assert most_confused(matrix, 2).tolist() == [1, 3]


def test_confusion_is_counted_where_an_evaluation_has_only_the_matrix():
    matrix = [[5, 1, 0], [3, 9, 4], [0, 0, 2]]
    assert confused_pairs({"confusion": matrix}) == [(1, 2, 4), (1, 0, 3), (0, 1, 1)]
    assert confused_pairs({"confusion": matrix, "confused": [[2, 0, 7]]}) == [(2, 0, 7)]
    table = heat_map({"confusion": matrix, "classes": ["a", "<b>", "c"]})
    assert table.count("<td") == 10
    assert "25" in table
    assert "<b>" not in table


def test_curves_of_rows_with_gaps(tmp_path):
    rows = [{"step": 1, "epoch": 0.5, "train/loss": None, "lr": 0.1}, {"step": 2, "epoch": 1.0, "val/loss": 1.0}]
    for chosen in (rows, rows[:1], []):
        draw_curves(chosen, tmp_path / "curves.svg", [(0.0, 0.1)] * len(chosen), top5=True)
        assert (tmp_path / "curves.svg").read_text().count("axes_") >= 4


def rates(points: Sequence[Point], epochs: Sequence[float]) -> list[float | None]:
    """What holds at each epoch."""
    return [next(rate for at, rate in reversed(points) if at <= epoch + 1e-9) for epoch in epochs]


@pytest.mark.parametrize("per_epoch", [3, 40, 5004])
def test_the_learning_rate_is_that_of_the_schedule_at_any_number_of_steps(per_epoch):
    recipe = load(["recipe=quickstart", "epochs=90", "schedule={name: step, every: 30}"]).recipe
    derived = {"steps_per_epoch": per_epoch, "total_steps": 90 * per_epoch, "lr": 0.1}
    rows = [{"step": per_epoch, "epoch": 1.0, "lr": 0.1}]
    points = learning_rates(recipe, derived, rows)
    assert points[0] == (0, 0.1)
    assert points[-1][0] == 90
    assert len(points) < 800
    before = 30 - 0.5 / per_epoch
    found = rates(points, [before, 30, 60 - 0.5 / per_epoch, 60, 89])
    assert found == pytest.approx([0.1, 0.01, 0.01, 0.001, 0.001])


def test_the_learning_rate_before_a_change_of_the_recipe_is_the_logged_one():
    recipe = load(["recipe=quickstart", "epochs=4", "schedule.name=constant"]).recipe
    derived = {"steps_per_epoch": 10, "total_steps": 40, "lr": 0.1}
    rows = [{"step": step, "epoch": step / 10, "lr": 0.3 if step <= 20 else 0.1} for step in range(1, 31)]
    assert rates(learning_rates(recipe, derived, rows), [0.0, 1.9, 2.0, 4.0]) == [0.3, 0.3, 0.1, 0.1]
    assert learning_rates(recipe, {}, rows)[0] == (0.1, 0.3)


def test_time_of_an_epoch_leaves_interruptions_out():
    rows = [
        {"step": 5, "epoch": 0.5, "samples": 50, "images_per_second": 10.0, "time": 0.0},
        {"step": 10, "epoch": 1.0, "samples": 100, "images_per_second": 5.0, "time": 10.0},
        {"step": 10, "epoch": 1.0, "val/samples": 7, "time": 13.0},
        {"step": 20, "epoch": 2.0, "samples": 200, "images_per_second": 10.0, "time": 9000.0},
        {"step": 25, "epoch": 2.5, "samples": 250, "images_per_second": 10.0, "time": 9005.0},
    ]
    assert seconds_per_epoch(rows) == ([(1.0, 15.0), (2.0, 10.0)], [(1.0, 3.0)])


def test_a_run_that_is_silent_is_told(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    write_status(run, state="running")
    assert "nothing heard" not in write_report(run, page_only=True).read_text()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    page = write_report(run, page_only=True).read_text()
    assert '<span class="state running">running</span>' in page
    assert "nothing heard of it for 2h" in page


def test_command_line(tmp_path, monkeypatch, capsys):
    make_run(tmp_path, confusion=False)
    monkeypatch.chdir(tmp_path)
    main(["report", "first try"])
    assert Path(capsys.readouterr().out.strip()).is_file()
    with pytest.raises(SystemExit) as left:
        main(["report", "first tri"])
    assert left.value.code == 2
    assert capsys.readouterr().err == "resnet report: no run 'first tri' in runs: did you mean first try?\n"
    with pytest.raises(SystemExit):
        main(["report", "first tri", "--debug"])
    assert "Traceback" in capsys.readouterr().err
