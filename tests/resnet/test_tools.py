import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from resnet.tools import verify_resume
from resnet.tools.cli import main

PROGRAM = Path(__file__).parents[2]
TINY = (
    "recipe=quickstart device=cpu data.per_class=8 data.size=40 data.num_workers=0 model.name=null model.block=basic "
    "model.layers=[1,1,1] augment.train_size=32 augment.val_resize=36 augment.val_size=32 batch_size=16 epochs=4 "
    "optimizer.lr=0.02 ema.decay=0.7 eval.flip=true wandb.mode=disabled progress=off run.name=r"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> SimpleNamespace:
    """A run as train.py leaves it: its directory, the data's, and what its last evaluation found."""
    folder = tmp_path_factory.mktemp("tools")
    where = [f"data.train={folder / 'shapes'}", f"run.root={folder}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM / "train.py"), *TINY.split(), *where]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    evaluation = json.loads((folder / "r" / "evaluation.json").read_text())
    return SimpleNamespace(run=folder / "r", images=folder / "shapes" / "val", evaluation=evaluation)


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the run, to be damaged."""
    return shutil.copytree(finished.run, tmp_path / "copy")


def evaluate(capsys, *arguments: object) -> dict:
    main(["eval", *map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def mistake(capsys, *arguments: object) -> str:
    """The message of a command that ends as the user's mistake."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert ended.value.code == 2, error
    assert "Traceback" not in error
    return error


def test_evaluating_again_gives_the_figures_of_the_run(finished, capsys):
    result = evaluate(capsys, finished.run)
    expected = {name: finished.evaluation[name] for name in ("top1", "top5", "loss", "samples")}
    assert expected["samples"] == 20
    assert result == expected | {"weights": str(finished.run / "final.safetensors"), "run": str(finished.run)}


def test_evaluation_as_text(finished, capsys):
    main(["eval", str(finished.run)])
    out = capsys.readouterr().out
    assert f"top-1 {finished.evaluation['top1']:.2f}%" in out
    assert f"loss {finished.evaluation['loss']:.4f}  20 images" in out


def test_overrides_change_what_is_evaluated(finished, capsys):
    loss = finished.evaluation["loss"]
    assert evaluate(capsys, finished.run, "data.max_val=7")["samples"] == 7
    assert evaluate(capsys, finished.run, "eval.flip=false")["loss"] != pytest.approx(loss, rel=1e-5)
    same = evaluate(capsys, finished.run, "eval.batch_size=3", "data.num_workers=2")["loss"]
    assert same == pytest.approx(loss, rel=1e-6)


def test_other_weights_give_other_figures(finished, capsys):
    newest = max((finished.run / "checkpoints").glob("step-*/model.safetensors"))
    result = evaluate(capsys, finished.run, "--weights", newest)
    assert result["weights"] == str(newest)
    assert result["loss"] != pytest.approx(finished.evaluation["loss"], rel=1e-4)


def test_unreadable_validation_images_are_named_and_left_out(finished, tmp_path, capsys):
    folder = shutil.copytree(finished.images, tmp_path / "val")
    (folder / "ring" / "0001.jpg").write_bytes(b"\xff\xd8 cut short")
    data = json.dumps({"source": "image_folder", "train": str(folder), "val": str(folder)})
    main(["eval", str(finished.run), f"data={data}", "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["samples"] == 19
    assert f"warning: cannot read {folder / 'ring' / '0001.jpg'}: " in err
    assert "classes" not in err


def test_other_class_names_are_told(finished, tmp_path, capsys):
    folder = shutil.copytree(finished.images, tmp_path / "val")
    (folder / "ring").rename(folder / "zebra")
    data = json.dumps({"source": "image_folder", "train": str(folder), "val": str(folder)})
    main(["eval", str(finished.run), f"data={data}"])
    assert "the run's classes have other names" in capsys.readouterr().err


def test_mistakes_of_an_evaluation(run, capsys):
    assert "did you mean eval.flip" in mistake(capsys, "eval", run, "eval.flop=true")
    said = mistake(capsys, "eval", run, "model.layers=[1,1,2]")
    assert "is of another network: layers [1,1,1]; here: layers [1,1,2]. It needs model.layers=[1,1,1]" in said
    assert "give one recipe" in mistake(capsys, "eval", run, "recipe=quickstart")
    (run / "final.safetensors").unlink()
    assert "give a finished run, or --weights" in mistake(capsys, "eval", run)


def test_verifying_a_resume_on_one_rank_starts_the_trainer(monkeypatch, tmp_path):
    started = []

    def noted(command: list[str], folder: Path, name: str) -> None:
        started.append(command)
        raise ValueError("enough")

    monkeypatch.setattr(verify_resume, "_finish", noted)
    with pytest.raises(ValueError, match="enough"):
        verify_resume.verify_resume(TINY.split(), keep=tmp_path)
    assert started[0][:2] == [sys.executable, str(PROGRAM / "train.py")]
    assert started[0][2] == "recipe=quickstart"
