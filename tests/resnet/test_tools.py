import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from recipes.load import dump, load
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


@pytest.fixture
def images(tmp_path) -> Path:
    """Unlabelled images of several formats and sizes, in folders, and files that are none."""
    folder = tmp_path / "images"
    random = np.random.default_rng(0)
    for name, size in {"b.png": (40, 60), "a/10.jpg": (50, 50), "a/9.JPG": (33, 90), "a/b/c.webp": (64, 64)}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes((folder / "b.png").read_bytes())
    return folder


def evaluate(capsys, *arguments: object) -> dict:
    main(["eval", *map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def predict(run: Path, folder: Path, out: Path, *arguments: object) -> list[list[str]]:
    """The rows of the CSV file, without its header."""
    main(["predict", str(run), str(folder), "--csv", str(out), "--device", "cpu", *map(str, arguments)])
    with out.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "label", "probability"]
    return rows


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


def test_predictions_are_those_that_the_run_evaluated(finished, tmp_path):
    rows = predict(finished.run, finished.images, tmp_path / "out.csv", "--batch-size", "16")
    classes = finished.evaluation["classes"]
    found = Counter((os.path.dirname(file), label) for file, label, _ in rows)
    matrix = [[found[true, predicted] for predicted in classes] for true in classes]
    assert matrix == finished.evaluation["confusion"]
    assert len({label for _, label, _ in rows}) > 1
    assert all(1 / len(classes) <= float(probability) <= 1 for _, _, probability in rows)


def test_images_are_predicted_in_sorted_order_whatever_the_batch(finished, images, tmp_path, capsys):
    rows = predict(finished.run, images, tmp_path / "out.csv")
    assert [file for file, _, _ in rows] == ["a/10.jpg", "a/9.JPG", "a/b/c.webp", "b.png"]
    assert capsys.readouterr().err == f"4 images in {tmp_path / 'out.csv'}\n"
    one_by_one = predict(finished.run, images, tmp_path / "out.csv", "--batch-size", "1")
    assert [row[:2] for row in one_by_one] == [row[:2] for row in rows]
    assert [float(row[2]) for row in one_by_one] == pytest.approx([float(row[2]) for row in rows], abs=2e-6)


def test_worker_processes_predict_the_same(finished, run, images, tmp_path):
    recipe = load([f"recipe={run}/recipe.yaml", "data.num_workers=2"]).recipe
    (run / "recipe.yaml").write_text(dump(recipe))
    (images / "c.png").write_bytes(b"broken")
    alone = predict(finished.run, images, tmp_path / "out.csv", "--batch-size", "2")
    assert predict(run, images, tmp_path / "out.csv", "--batch-size", "2") == alone


def test_the_recipe_decides_on_the_mirror_image(finished, run, images, tmp_path):
    recipe = load([f"recipe={run}/recipe.yaml", "eval.flip=false"]).recipe
    (run / "recipe.yaml").write_text(dump(recipe))
    assert predict(run, images, tmp_path / "a.csv") != predict(finished.run, images, tmp_path / "b.csv")


def test_a_broken_image_has_a_row_without_a_label(finished, images, tmp_path, capsys):
    whole = predict(finished.run, images, tmp_path / "out.csv", "--batch-size", "2")
    (images / "a" / "12.jpg").write_bytes((images / "a" / "10.jpg").read_bytes()[:300])
    (images / "a" / "11.png").write_bytes(b"")
    capsys.readouterr()
    rows = predict(finished.run, images, tmp_path / "out.csv", "--batch-size", "1")
    assert rows[1:3] == [["a/11.png", "", ""], ["a/12.jpg", "", ""]]
    assert [row[:2] for row in rows if row[1]] == [row[:2] for row in whole]
    err = capsys.readouterr().err
    assert f"warning: cannot read {images}/a/11.png: the file is empty" in err
    assert err.endswith(f"6 images in {tmp_path / 'out.csv'}; 2 could not be read and have no label\n")


def test_one_image_to_standard_output(finished, images, tmp_path, capsys):
    expected = predict(finished.run, images, tmp_path / "out.csv", "--batch-size", "1")[-1]
    main(["predict", str(finished.run), str(images / "b.png")])
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "file,label,probability"
    assert out.splitlines()[1].startswith(",".join(expected[:2]))


@pytest.mark.skipif(sys.platform == "darwin", reason="file names there are text")
def test_file_names_that_are_no_text(finished, images, tmp_path):
    name = b'caf\xe9, "x".png'
    os.rename(images / "b.png", os.path.join(os.fsencode(images), name))
    main(["predict", str(finished.run), str(images), "--csv", str(tmp_path / "out.csv")])
    assert b'\n"caf\xe9, ""x"".png",' in (tmp_path / "out.csv").read_bytes()


def test_mistakes_leave_the_old_csv(finished, run, images, tmp_path, capsys):
    out = tmp_path / "out.csv"
    out.write_text("old")
    (tmp_path / "empty").mkdir()
    arguments = ["predict", run, images, "--csv", out]
    assert "there is no nowhere" in mistake(capsys, "predict", run, "nowhere", "--csv", out)
    assert "no images in" in mistake(capsys, "predict", run, tmp_path / "empty", "--csv", out)
    assert "--batch-size 0" in mistake(capsys, *arguments, "--batch-size", "0")
    assert "device tpu is none of" in mistake(capsys, *arguments, "--device", "tpu")
    assert "device meta is none of" in mistake(capsys, *arguments, "--device", "meta")
    assert "device cuda:99: torch finds" in mistake(capsys, *arguments, "--device", "cuda:99")
    assert "cannot read the weights" in mistake(capsys, *arguments, "--weights", images / "b.png")
    assert "cannot read the weights" in mistake(capsys, *arguments, "--weights", "nowhere")
    (run / "evaluation.json").write_text('{"classes": ["ring"]}')
    assert "does not match this network" in mistake(capsys, *arguments)
    (run / "evaluation.json").write_text("[]")
    assert "evaluation.json is damaged" in mistake(capsys, *arguments)
    (run / "evaluation.json").unlink()
    assert "give a finished run" in mistake(capsys, *arguments)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "empty", "images", "out.csv"]


def test_the_place_of_the_csv_is_checked_first(finished, images, tmp_path, capsys):
    arguments = ["predict", finished.run, images, "--csv"]
    assert "there is no folder" in mistake(capsys, *arguments, tmp_path / "missing" / "out.csv")
    assert "is a folder" in mistake(capsys, *arguments, tmp_path)


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
