"""All runs of a folder on one page."""

import json
import shutil
from pathlib import Path

import pytest

import resnet
from resnet.rundir.metrics_log import read_points
from resnet.rundir.sweep.results import sweep_so_far
from resnet.tools.board.board import SPARK_POINTS, write_board
from resnet.tools.board.pages import strided
from resnet.tools.cli import main
from resnet.tools.report.html import to_script
from tests.fabricated import make_run, page_data
from tests.resnet.test_charts import in_browser
from tests.resnet.test_comparison import make_sweep


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def runs_of(page: Path) -> dict[str, dict]:
    return {run["name"]: run for run in page_data(page)["runs"]}


def test_runs_are_listed(root, capsys):
    make_run(root / "first", "optimizer.lr=0.1", top1=80.0)
    make_run(root / "second one", top1=90.0, state="failed", failure="nan", reason="the loss is not finite")
    (root / "first" / "report.html").write_text("")
    main(["board"])
    assert capsys.readouterr().out == "runs/board.html\n"
    runs = runs_of(root / "board.html")
    first, second = runs["first"], runs["second one"]
    assert (first["state"], first["top1"], first["epoch"], first["epochs"]) == ("finished", 80, 4, 4)
    assert (first["recipe"], first["differs"]) == ("quickstart lr=0.1", {"optimizer.lr": "0.1"})
    assert first["curve"] == {"title": "top-1 %", "x": [1, 2, 3, 4], "y": [20, 40, 60, 80]}
    assert (first["report"], first["word"]) == ("first/report.html", "first")
    assert (second["report"], second["word"]) == (None, "'second one'")
    assert (second["state"], second["top1"], second["why"]) == ("failed", 45, "nan: the loss is not finite")


def test_elsewhere(root, tmp_path):
    make_run(tmp_path / "other" / "a", top1=50.0)
    (tmp_path / "other" / "a" / "report.html").write_text("")
    page = resnet.board(tmp_path / "other", out=tmp_path / "pages.html")
    assert runs_of(page)["a"]["report"] == "other/a/report.html"
    assert runs_of(page)["a"]["word"] == str(tmp_path / "other" / "a")
    with pytest.raises(SystemExit) as left:
        main(["board", "nowhere"])
    assert left.value.code == 2


def test_runs_that_cannot_be_read_are_listed(root):
    make_run(root / "good")
    broken = {"status": "status.json", "metrics": "metrics.jsonl", "provenance": "provenance.json"}
    for name, file in broken.items():
        (make_run(root / name) / file).write_bytes(b'{"val/top1": \x00\xff\n')
    shutil.rmtree(make_run(root / "only a recipe") / "checkpoints", ignore_errors=True)
    (root / "only a recipe" / "status.json").unlink()
    (root / "metrics is a folder" / "metrics.jsonl").mkdir(parents=True)
    (root / "metrics is a folder" / "recipe.yaml").write_text("")
    (root / "a folder of notes").mkdir()
    runs = runs_of(write_board(root))
    assert {name: run["state"] for name, run in runs.items()} == {
        "good": "finished",
        "status": "damaged",
        "metrics": "finished",
        "provenance": "finished",
        "only a recipe": "unknown",
        "metrics is a folder": "unknown",
    }
    assert "status.json is damaged" in runs["status"]["why"]
    assert runs["metrics"]["why"] == "metrics.jsonl: 1 damaged line"
    assert (runs["metrics"]["top1"], runs["metrics"]["curve"]["y"]) == (None, [])


def test_what_runs_say_stays_text(root):
    nasty = "</script><script>alert('x')</script><!-- \"&"
    make_run(root / "a", recipe=nasty, state="failed", reason=nasty, differs={nasty: nasty})
    make_run(root / "<img src=x>")
    page = write_board(root)
    runs = runs_of(page)
    assert runs["a"]["why"] == nasty
    assert runs["a"]["differs"] == {nasty: nasty}
    assert "<img src=x>" in runs
    text = page.read_text()
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "<!--" not in text


def test_scripts_get_json_that_ends_nothing():
    value = {"</script>": ["<!--", "\u2028", None, 1.5]}
    assert json.loads(to_script(value)) == value
    assert "<" not in to_script(value)


def test_sweeps_and_their_trials(root):
    make_run(root / "alone")
    make_sweep(root)
    (root / "harmed").mkdir()
    (root / "harmed" / "sweep.json").write_text("{}")
    page = write_board(root)
    runs = runs_of(page)
    assert runs["alone"]["sweep"] is None
    assert (runs["study/t4"]["sweep"], runs["study/t4"]["state"]) == ("study", "pruned")
    assert runs["study/t0"]["word"] == "runs/study/t0"
    sweeps = page.read_text().split("<h2>Sweeps</h2>")[1].split("</section>")[0]
    assert "71.00% top-1" in sweeps
    assert "model=b" in sweeps
    assert "sweep.json is damaged" in sweeps
    (root / "study" / "sweep.json").write_text(json.dumps(sweep_so_far(root / "study") | {"trials": [{"nam": "x"}]}))
    assert "study/t0" not in runs_of(write_board(root))


def test_an_empty_folder(root):
    root.mkdir()
    assert "No runs here yet" in write_board(root).read_text()


def test_a_run_before_its_first_evaluation_shows_its_loss(root):
    run = make_run(root / "young")
    rows = [{"step": n, "epoch": n / 1000, "train/loss": 2.0 - n / 1000} for n in range(500)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 500, "train/loss')
    young = runs_of(write_board(root))["young"]
    assert (young["top1"], young["curve"]["title"], len(young["curve"]["y"])) == (None, "training loss", SPARK_POINTS)
    assert (young["curve"]["y"][0], young["curve"]["y"][-1]) == (2.0, 1.501)


def test_points_of_a_log(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 1, "epoch": 0.5, "val/top1": 40, "note": "val/top1"}\n{"step": 2, "val/top1": null}\n'
        '{"step": 3, "val/top1": 50, \n[{"val/top1": 5}]\n{"step": 4, "note": "val/top1", "time": 9}\n'
        '{"step": 5, "val/top1": 60.5, "time": 9}\n{"step": 6, "val/top1": 99}'
    )
    points, damaged = read_points(file, "val/top1")
    assert points == [(40, 0.5, 1, None), (60.5, None, 5, 9)]
    assert damaged == 3
    file.write_text("")
    assert read_points(file, "val/top1") == ([], 0)


@pytest.mark.parametrize(("count", "most"), [(0, 30), (1, 30), (30, 30), (31, 30), (1000, 30)])
def test_evenly_spread(count, most):
    kept = strided(count, most)
    assert len(kept) == len(set(kept)) == min(count, most)
    assert kept == sorted(kept)
    if count:
        assert (kept[0], kept[-1]) == (0, count - 1)


def test_pages_in_a_browser_on_a_phone(root, tmp_path):
    for number in range(3):
        make_run(root / f"a-run-with-a-{'long-' * 12}name-{number}", "optimizer.lr=0.2", top1=70.0 + number)
    make_run(root / "broken", state="failed", reason="word " * 40)
    folder = make_sweep(root)
    names = [run_dir.name for run_dir in sorted(root.glob("a-run*"))]
    for page in (write_board(root), resnet.report(*names), resnet.report(folder)):
        found = in_browser(page.read_text(), tmp_path)
        assert found["errors"] == [], page
        assert found["width"] <= 390, page


def test_many_runs_make_a_small_page(root):
    run = make_run(root / "r0", "optimizer.lr=0.1", "label_smoothing=0.1", epochs=90)
    for number in range(1, 100):
        shutil.copytree(run, root / f"a-run-with-a-usual-name-{number}")
    assert write_board(root).stat().st_size < 200_000
