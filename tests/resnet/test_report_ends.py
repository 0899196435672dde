"""The report that a run leaves, however it ends, and its pictures."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

import resnet
import resnet.loop
from resnet.process.environment import ATTEMPT
from resnet.process.exit_codes import FAILED, STOPPED
from resnet.tools.cli import main
from tests.helpers import TINY, column, evaluation, metrics, train
from tests.resnet.test_charts import in_browser


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shapes) -> Path:
    """A run of four epochs of ten steps, evaluated after two and four, with its report."""
    root = tmp_path_factory.mktemp("runs")
    words = [*TINY, f"data.train={shapes}", "epochs=4", "eval.every=2", "log_every=50", "checkpoint.keep=2"]
    assert train(*words, f"run.root={root}", "run.name=first", report=True) == 0
    return root / "first"


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def page_of(run: Path) -> str:
    return (run / "report.html").read_text()


def figures(run: Path, heading: str) -> list[str]:
    """The pictures of a section."""
    part = page_of(run).split(f"<h2>{heading}</h2>")[-1].split("</section>")[0]
    return re.findall(r"<figure><img.*?</figure>", part)


def test_each_epoch_has_a_line(finished):
    assert column(finished, "train/loss") == [row["train/loss"] for row in metrics(finished, "lr")]
    assert [row["epoch"] for row in metrics(finished, "lr")] == [1, 2, 3, 4]
    assert [row["epoch"] for row in metrics(finished, "val/loss")] == [2, 4]


def test_a_finished_run_shows_its_images(finished):
    mistakes = evaluation(finished)["mistakes"]
    assert mistakes
    shown = figures(finished, "Most confident mistakes")
    assert len(shown) == len(mistakes)
    classes = evaluation(finished)["classes"]
    for figure, mistake in zip(shown, mistakes, strict=True):
        true, predicted = classes[mistake["true"]], classes[mistake["predicted"]]
        assert f"{true} → {predicted}, {100 * mistake['probability']:.0f}%" in figure
        assert mistake["image"] in figure
    assert len(figures(finished, "Training images as the network gets them")) == 16
    assert len(page_of(finished)) < 1_000_000
    assert "Expected calibration error" in page_of(finished)


def test_a_finished_run_in_a_browser(finished, tmp_path):
    found = in_browser(page_of(finished), tmp_path)
    assert (found["errors"], found["narrow"]) == ([], 0)
    assert found["width"] <= 390
    assert re.match(r"epoch \d.*training \d.*validation \d", found["tip"])


def test_pictures_stay_where_the_images_are_not(copied, shapes, monkeypatch):
    before = figures(copied, "Most confident mistakes")
    recipe = (copied / "recipe.yaml").read_text()
    (copied / "recipe.yaml").write_text(recipe.replace(str(shapes), "/nowhere/shapes"))
    monkeypatch.chdir(copied.parent)
    main(["report", "./copied"])
    assert figures(copied, "Most confident mistakes") == before
    assert len(figures(copied, "Training images as the network gets them")) == 16


def test_a_report_without_images_says_so(copied, shapes, capsys):
    (copied / "pictures.json").unlink()
    recipe = (copied / "recipe.yaml").read_text()
    (copied / "recipe.yaml").write_text(recipe.replace(str(shapes), "/nowhere/shapes"))
    assert resnet.Run(copied).report() == copied / "report.html"
    assert "The images are not shown: there is no /nowhere/shapes on this machine." in page_of(copied)
    assert not figures(copied, "Most confident mistakes")
    assert not (copied / "pictures.json").exists()
    (copied / "recipe.yaml").write_text(recipe)
    resnet.Run(copied).report()
    assert len(figures(copied, "Most confident mistakes")) == len(evaluation(copied)["mistakes"])
    assert "opening the images of" in capsys.readouterr().err


def test_images_that_are_others_by_now_are_left_out(copied, shapes):
    changed = evaluation(copied)
    changed["loss"] += 1  # another evaluation than that of the pictures kept
    changed["mistakes"][0]["image"] = str(shapes / "val" / "ring" / "elsewhere.jpg")
    changed["mistakes"][1]["index"] = 10**6
    (copied / "evaluation.json").write_text(json.dumps(changed))
    resnet.Run(copied).report()
    assert len(figures(copied, "Most confident mistakes")) == len(changed["mistakes"]) - 2


def test_damaged_pictures_are_made_again(copied):
    (copied / "pictures.json").write_text("[1")
    resnet.Run(copied).report()
    assert len(figures(copied, "Training images as the network gets them")) == 16


def test_a_failed_run_has_a_report(tiny, tmp_path, capsys):
    assert train(*tiny, f"run.root={tmp_path}", "run.name=r", "optimizer.lr=1e30", report=True) == FAILED
    page = page_of(tmp_path / "r")
    assert '<span class="state failed">failed</span>' in page
    assert "the loss is not finite since step" in page
    assert figures(tmp_path / "r", "Training images as the network gets them")
    assert "could not be written" not in capsys.readouterr().err


@pytest.mark.parametrize("in_a_job", [False, True])
def test_a_stopped_run_has_a_report(tiny, tmp_path, monkeypatch, in_a_job):
    step = resnet.loop.train_step

    def patched(trainer):
        if trainer.state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    monkeypatch.setattr(resnet.loop, "train_step", patched)
    if in_a_job:
        monkeypatch.setenv(ATTEMPT, "1")
    assert train(*tiny, f"run.root={tmp_path}", "run.name=r", "epochs=20", report=True) == STOPPED
    run = tmp_path / "r"
    assert '<span class="state ">stopped</span>' in page_of(run)
    assert "signal SIGTERM" in page_of(run)
    assert "Gradient norm" in page_of(run)
    # A job that is about to be queued again has no time for pictures.
    assert (run / "curves.png").exists() == (run / "pictures.json").exists() == (not in_a_job)
