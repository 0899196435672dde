import csv
import io
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import resnet
from recipes.load import dump, load
from resnet.tools.cli import main
from resnet.tools.output import open_output
from resnet.tools.predict import Prediction, spread_over
from resnet.tools.prediction_rows import json_row, parse_columns
from tests.helpers import TINY, evaluation, start, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> SimpleNamespace:
    """A run as train.py leaves it: its directory, the validation images, and what its last evaluation found."""
    folder = tmp_path_factory.mktemp("predict")
    words = ["data.per_class=8", "epochs=2", "ema.decay=0.7", "eval.flip=true", f"run.root={folder}", "run.name=r"]
    assert train(*TINY, *words, f"data.train={folder / 'shapes'}") == 0
    return SimpleNamespace(run=folder / "r", images=folder / "shapes" / "val", evaluation=evaluation(folder / "r"))


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


def predict(run: Path, path: Path, out: Path, *arguments: object) -> list[list[str]]:
    """The rows of the CSV file, without its header."""
    main(["predict", str(run), str(path), "--csv", str(out), "--device", "cpu", *map(str, arguments)])
    header, *rows = table(out)
    assert header[:3] == ["file", "label", "probability"]
    return rows


def table(file: Path) -> list[list[str]]:
    with file.open(newline="") as lines:
        return list(csv.reader(lines))


def mistake(capsys, *arguments: object, code: int = 2) -> str:
    """The message of a command that ends as the user's mistake."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert ended.value.code == code, error
    assert "Traceback" not in error
    return error


def test_predictions_are_those_that_the_run_evaluated(finished, tmp_path, capsys):
    rows = predict(finished.run, finished.images, tmp_path / "out.csv", "--batch-size", "16")
    classes = finished.evaluation["classes"]
    found = Counter((os.path.dirname(file), label) for file, label, _ in rows)
    matrix = [[found[true, predicted] for predicted in classes] for true in classes]
    assert matrix == finished.evaluation["confusion"]
    assert len({label for _, label, _ in rows}) > 1
    assert all(1 / len(classes) <= float(probability) <= 1 for _, _, probability in rows)
    right = sum(matrix[at][at] for at in range(len(classes)))
    assert f"{right} of 20 labelled images right ({5 * right}.00%)" in capsys.readouterr().err


def test_images_are_predicted_in_sorted_order_whatever_the_batch(finished, images, tmp_path, capsys):
    rows = predict(finished.run, images, tmp_path / "out.csv")
    assert [file for file, _, _ in rows] == ["a/10.jpg", "a/9.JPG", "a/b/c.webp", "b.png"]
    unknown = "no class of the data is one of the network's: a (3)"
    assert capsys.readouterr().err == f"{unknown}\n4 images in {tmp_path / 'out.csv'}\n"
    one_by_one = predict(finished.run, images, tmp_path / "out.csv", "--batch-size", "1")
    assert [row[:2] for row in one_by_one] == [row[:2] for row in rows]
    assert [float(row[2]) for row in one_by_one] == pytest.approx([float(row[2]) for row in rows], abs=2e-6)


def test_worker_processes_predict_the_same(finished, images, tmp_path):
    (images / "c.png").write_bytes(b"broken")
    alone = predict(finished.run, images, tmp_path / "out.csv", "--batch-size", "2")
    with_workers = predict(finished.run, images, tmp_path / "out.csv", "--batch-size", "2", "data.num_workers=2")
    assert with_workers == alone


def test_the_recipe_decides_on_the_mirror_image(finished, run, images, tmp_path):
    recipe = load([f"recipe={run}/recipe.yaml", "eval.flip=false"]).recipe
    (run / "recipe.yaml").write_text(dump(recipe))
    plain = predict(run, images, tmp_path / "a.csv")
    assert plain != predict(finished.run, images, tmp_path / "b.csv")
    assert plain == predict(finished.run, images, tmp_path / "b.csv", "eval.flip=false")


def test_other_weights_of_the_run(finished, images, tmp_path):
    best = predict(finished.run, images, tmp_path / "a.csv")
    assert predict(finished.run / "final.safetensors", images, tmp_path / "a.csv") == best
    first = min((finished.run / "checkpoints").glob("step-*"))
    step = predict(Path(f"{finished.run}@{first.name}"), images, tmp_path / "a.csv")
    assert step == predict(first / "ema.safetensors", images, tmp_path / "a.csv")
    assert step != predict(first / "model.safetensors", images, tmp_path / "a.csv")


def test_a_file_that_names_no_classes_has_those_of_the_run_whose_recipe_is_given(finished, images, tmp_path, capsys):
    save_file(load_file(finished.run / "final.safetensors"), tmp_path / "bare.safetensors")
    expected = predict(finished.run, images, tmp_path / "out.csv")
    for recipe in (finished.run, finished.run / "recipe.yaml"):
        assert predict(tmp_path / "bare.safetensors", images, tmp_path / "out.csv", f"recipe={recipe}") == expected
    assert f"bare.safetensors names no classes: those of {finished.run} are taken" in capsys.readouterr().err
    other = shutil.copytree(finished.run, tmp_path / "other")
    names = {"classes": finished.evaluation["classes"][:9]}
    (other / "evaluation.json").write_text(json.dumps(finished.evaluation | names))
    rows = predict(tmp_path / "bare.safetensors", images, tmp_path / "out.csv", f"recipe={other}")
    assert {label for _, label, _ in rows} <= {str(number) for number in range(10)}


def test_a_broken_image_has_a_row_without_a_label(finished, images, tmp_path, capsys):
    whole = predict(finished.run, images, tmp_path / "out.csv", "--batch-size", "2")
    (images / "a" / "12.jpg").write_bytes((images / "a" / "10.jpg").read_bytes()[:300])
    (images / "a" / "11.png").write_bytes(b"")
    capsys.readouterr()
    rows = predict(finished.run, images, tmp_path / "out.csv", "--batch-size", "1", "--top", "2")
    assert rows[1:3] == [["a/11.png", "", "", "", ""], ["a/12.jpg", "", "", "", ""]]
    assert [row[:2] for row in rows if row[1]] == [row[:2] for row in whole]
    err = capsys.readouterr().err
    assert f"warning: cannot read {images}/a/11.png: the file is empty" in err
    assert err.endswith(f"6 images in {tmp_path / 'out.csv'}; 2 could not be read and have no label\n")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["ring", "zebra"], "1 class of the data is none of the network's: zebra (1)"),
        (["bear", "zebra"], "no class of the data is one of the network's: bear (1), zebra (1)"),
        (["3", "12"], "1 class of the data is none of the network's: 12 (1); numbers are positions from 0 to 9"),
        (["11", "12"], "no class of the data is one of the network's: 11 (1), 12 (1)"),
    ],
)
def test_labels_that_the_network_does_not_know_are_told(finished, images, tmp_path, capsys, labels, told):
    lines = (f"images/{name},{label}\n" for name, label in zip(("b.png", "a/10.jpg"), labels, strict=True))
    (tmp_path / "list.csv").write_text(f"file,label\n{''.join(lines)}")
    main(["predict", str(finished.run), str(tmp_path / "list.csv")])
    err = capsys.readouterr().err
    assert told in err.splitlines()
    assert ("1 labelled image right" in err) == told.startswith("1 class")
    with pytest.raises(SystemExit):
        main(["eval", str(finished.run), "--data", str(tmp_path / "list.csv")])
    leaves = ". --known-only leaves them out" if told.startswith("1 class") else ""
    assert capsys.readouterr().err == f"resnet eval: {told}{leaves}\n"


def test_only_the_first_of_many_broken_images_are_listed(finished, tmp_path, capsys):
    for number in range(25):
        (tmp_path / f"{number:02}.png").write_bytes(b"")
    words = ["predict", finished.run, tmp_path, "--csv", tmp_path / "out.csv"]
    with pytest.raises(SystemExit, match="1"):
        main([str(word) for word in words])
    assert len(table(tmp_path / "out.csv")) == 26
    lines = capsys.readouterr().err.splitlines()
    assert sum("cannot read" in line and line.endswith("empty") for line in lines) == 20
    assert "warning: 5 more cannot be read" in lines


def test_one_image_to_standard_output(finished, images, tmp_path, capsys):
    expected = predict(finished.run, images, tmp_path / "out.csv", "--batch-size", "1")[-1]
    main(["predict", str(finished.run), str(images / "b.png")])
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "file,label,probability"
    assert out.splitlines()[1].startswith(",".join(expected[:2]))


def on_terminal(monkeypatch, capsys, *arguments: object) -> list[str]:
    """The lines of a command whose standard output is a terminal of 60 columns."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        main([str(argument) for argument in arguments])
        stream.flush()
    return stream.buffer.getvalue().decode().splitlines()  # pyright: ignore[reportAttributeAccessIssue]


def test_one_image_on_a_terminal_is_a_table_with_bars(finished, images, monkeypatch, capsys):
    name, *lines = on_terminal(monkeypatch, capsys, "predict", finished.run, images / "b.png")
    (prediction,) = resnet.Run(finished.run).predict(images / "b.png")
    assert name == str(images / "b.png")
    assert [line.split()[:2] for line in lines] == [[label, f"{100 * value:.1f}%"] for label, value in prediction.top]
    assert lines[0].count("█") == max(line.count("█") for line in lines) > 0
    assert max(map(len, lines)) < 60
    assert capsys.readouterr().err == ""


def test_several_images_on_a_terminal_are_a_line_each(finished, images, monkeypatch, capsys):
    (images / "a\nb.png").write_bytes(b"")
    lines = on_terminal(monkeypatch, capsys, "predict", finished.run, images)
    assert [line.split()[-1] for line in lines] == ["a\\nb.png", "a/10.jpg", "a/9.JPG", "a/b/c.webp", "b.png"]
    assert lines[1].split()[0].endswith("%")
    assert len({line.index(line.split()[-1]) for line in lines}) == 1


def test_json_lines(finished, images, capsysbinary):
    (images / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    main(["predict", str(finished.run), str(images), "--json", "--top", "3"])
    rows = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [row["id"] for row in rows] == ["a/10.jpg", "a/9.JPG", "a/b/c.webp", "b.png", os.fsdecode(b"caf\xe9.png")]
    assert rows[0]["file"] == str(images / "a/10.jpg")
    assert (rows[0]["top"][0]["label"], len(rows[0]["top"])) == (rows[0]["label"], 3)
    assert rows[0]["index"] == finished.evaluation["classes"].index(rows[0]["label"])
    assert (rows[4]["label"], rows[4]["problem"]) == (None, "the file is empty")


def test_a_submission_has_the_ids_of_the_list(finished, images, tmp_path, capsys):
    """Ids without an extension, twice the same, and one of no file, in the list's order."""
    listed = tmp_path / "test.csv"
    listed.write_text("\ufeffid\na/9\nb\na/9\nnowhere\n")
    out = tmp_path / "submission.csv"
    words = ["predict", finished.run, listed, "--images", images, "--csv", out]
    main([*map(str, words), "--columns", "image_id=id,breed=label,score,top3,number=index"])
    header, *rows = table(out)
    assert header == ["image_id", "breed", "score", "top3", "number"]
    assert [row[0] for row in rows] == ["a/9", "b", "a/9", "nowhere"]
    assert rows[0] == rows[2]
    assert rows[0][3].split()[0] == rows[0][1]
    assert finished.evaluation["classes"][int(rows[0][4])] == rows[0][1]
    assert rows[3][1:] == ["", "", "", ""]
    err = capsys.readouterr().err
    assert f"3 ids had no extension: matched to *.JPG, *.png in {images}" in err
    assert f"warning: cannot read {images}/nowhere: " in err


def test_a_submission_of_probabilities_has_a_column_a_class(finished, images, tmp_path):
    out = tmp_path / "out.csv"
    main(["predict", str(finished.run), str(images), "--csv", str(out), "--columns", "id,probabilities"])
    header, *rows = table(out)
    assert header == ["id", *finished.evaluation["classes"]]
    labels = [row[1] for row in predict(finished.run, images, tmp_path / "plain.csv")]
    for row, label in zip(rows, labels, strict=True):
        values = [float(value) for value in row[1:]]
        assert sum(values) == pytest.approx(1, abs=1e-4)
        assert header[1 + values.index(max(values))] == label


def test_two_classes_of_one_name_keep_their_own_probabilities():
    columns = parse_columns("id,probabilities", ["crane", "ox", "crane"])
    top = (("crane", 0.6), ("crane", 0.3), ("ox", 0.1))
    found = Prediction("a.png", "crane", 0.6, top, id="a", number=2, numbers=(2, 0, 1))
    assert columns.header == ["id", "crane", "ox", "crane"]
    assert columns.row(found) == ["a", "0.300000", "0.100000", "0.600000"]
    assert columns.row(Prediction("b.png", None, 0.0, problem="empty", id="b")) == ["b", None, None, None]


def test_json_has_no_nan():
    for name in ("a.png", os.fsdecode(b"caf\xe9.png")):
        found = Prediction(name, "ox", float("nan"), (("ox", float("nan")),), id=name, number=0, numbers=(0,))
        row = json.loads(json_row(found), parse_constant=pytest.fail)
        assert (row["file"], row["probability"], row["top"]) == (name, None, [{"label": "ox", "probability": None}])


def test_the_precision_is_that_of_the_recipes_evaluation(finished, images, tmp_path, capsys):
    plain = predict(finished.run, images, tmp_path / "out.csv")
    assert predict(finished.run, images, tmp_path / "out.csv", "precision=bf16") != plain
    capsys.readouterr()
    assert predict(finished.run, images, tmp_path / "out.csv", "precision=fp16", "device=auto") == plain
    assert capsys.readouterr().err.count("precision=fp16 needs a GPU: computed in float32 here") == 1


@pytest.mark.parametrize(
    ("text", "message"), [("id,lable", "Did you mean label"), ("who", "as in who=label"), ("a,", "values are")]
)
def test_columns_that_say_nothing(text, message):
    with pytest.raises(ValueError, match=message):
        parse_columns(text, ["a"])


def test_ranked_columns(finished, images, tmp_path, capsys):
    predict(finished.run, images, tmp_path / "out.csv", "--top", "3")
    header, *rows = table(tmp_path / "out.csv")
    assert header[3:] == ["label_2", "probability_2", "label_3", "probability_3"]
    for row in rows:
        assert float(row[2]) >= float(row[4]) >= float(row[6])
        assert len({row[1], row[3], row[5]}) == 3
    for words in (["--top", "99"], ["--columns", "file,label,probability,top99"]):
        capsys.readouterr()
        predict(finished.run, images, tmp_path / "out.csv", *words)
        assert "99 classes an image are asked for, and the network has 10: all are told" in capsys.readouterr().err
    assert len(table(tmp_path / "out.csv")[1][3].split()) == 10


@pytest.mark.skipif(sys.platform == "darwin", reason="file names there are text")
def test_file_names_that_are_no_text(finished, images, tmp_path):
    name = b'caf\xe9, "x".png'
    os.rename(images / "b.png", os.path.join(os.fsencode(images), name))
    out = tmp_path / "out.csv"
    main(["predict", str(finished.run), str(images), "--csv", str(out)])
    assert b'\n"caf\xe9, ""x"".png",' in out.read_bytes()
    main(["predict", str(finished.run), str(out), "--images", str(images), "--csv", str(tmp_path / "again.csv")])
    assert (tmp_path / "again.csv").read_bytes() == out.read_bytes()


def test_a_grid_of_pictures(finished, tmp_path, capsys):
    grid = tmp_path / "grid.png"
    shutil.copytree(finished.images, tmp_path / "val")
    (tmp_path / "val" / "ring" / "zzz.png").write_bytes(b"")
    main(["predict", str(finished.run), str(tmp_path / "val"), "--grid", str(grid), "--csv", str(tmp_path / "out.csv")])
    with Image.open(grid) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or ()}
    rows = table(tmp_path / "out.csv")[1:]
    right = {os.path.dirname(file) == label for file, label, _ in rows if label}
    assert ((0x1A, 0x7F, 0x37) in colours, (0xCF, 0x22, 0x2E) in colours) == (True in right, False in right)
    assert picture.width > 4 * 200


def test_pictures_are_taken_evenly():
    assert sorted(spread_over(10, 5)) == [1, 3, 5, 7, 9]
    assert sorted(spread_over(3, 48)) == [0, 1, 2]
    assert max(spread_over(10**6, 48)) < 10**6


def test_mistakes_leave_the_old_csv(finished, run, images, tmp_path, capsys):
    out = tmp_path / "out.csv"
    out.write_text("old")
    (tmp_path / "empty").mkdir()
    arguments = ["predict", run, images, "--csv", out]
    assert "there is no nowhere" in mistake(capsys, "predict", run, "nowhere", "--csv", out)
    assert "no images in" in mistake(capsys, "predict", run, tmp_path / "empty", "--csv", out)
    assert "nothing matches" in mistake(capsys, "predict", run, f"{images}/*.gif", "--csv", out)
    assert "--batch-size 0" in mistake(capsys, *arguments, "--batch-size", "0")
    assert "--top 0" in mistake(capsys, *arguments, "--top", "0")
    assert "--columns says which classes are told" in mistake(capsys, *arguments, "--top", "3", "--columns", "id,label")
    assert "give a file that ends in .png" in mistake(capsys, "predict", run, images, "--grid", tmp_path / "g.jpg")
    assert "leave out --csv" in mistake(capsys, *arguments, "--json")
    assert "device tpu is none of" in mistake(capsys, *arguments, "--device", "tpu")
    assert "device meta is none of" in mistake(capsys, *arguments, "--device", "meta")
    assert "device cuda:99: torch finds" in mistake(capsys, *arguments, "--device", "cuda:99")
    assert "did you mean eval.flip" in mistake(capsys, *arguments, "eval.flop=true")
    assert "no weights 'step-9'" in mistake(capsys, "predict", f"{run}@step-9", images, "--csv", out)
    (run / "final.safetensors").write_bytes(b"nothing")
    mistake(capsys, *arguments)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "empty", "images", "out.csv"]


def test_the_place_of_the_csv_is_checked_first(finished, images, tmp_path, capsys):
    for option, name in (("--csv", "out.csv"), ("--grid", "out.png")):
        arguments = ["predict", finished.run, images, option]
        assert "there is no folder" in mistake(capsys, *arguments, tmp_path / "missing" / name)
        assert "is a folder" in mistake(capsys, *arguments, tmp_path)


@pytest.mark.parametrize(
    ("given", "option", "out"),
    [
        ("list.csv", "--csv", "list.csv"),
        ("list.csv", "--csv", "link.csv"),
        ("*.csv", "--csv", "images/../list.csv"),
        ("list.csv", "--grid", "images/b.png"),
        ("images", "--grid", "link.png"),
    ],
)
def test_what_is_read_is_not_written_over(finished, images, tmp_path, capsys, given, option, out):
    (tmp_path / "list.csv").write_text(f"file\n{images}/b.png\n")
    (tmp_path / "link.csv").symlink_to("list.csv")
    os.link(images / "b.png", tmp_path / "link.png")
    before = (tmp_path / out).read_bytes()
    said = mistake(capsys, "predict", finished.run, tmp_path / given, option, tmp_path / out)
    assert f"{option} {tmp_path / out} is read here" in said
    assert (tmp_path / out).read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_and_a_device_is_written_to(finished, images, tmp_path, capsys):
    assert "No space left" in mistake(capsys, "predict", finished.run, images, "--csv", "/dev/full", code=1)
    assert Path("/dev/full").is_char_device()


def test_the_csv_is_replaced_at_the_end_only(finished, tmp_path, monkeypatch):
    """While it is written the old one is there; Ctrl-C leaves it so, and nothing beside it."""
    out, link = tmp_path / "out.csv", tmp_path / "link.csv"
    out.write_text("old")
    link.symlink_to(out)
    seen = []

    def interrupted(self, prediction, file) -> None:
        seen.append((out.read_text(), len(list(tmp_path.glob(".out.csv.*.tmp")))))
        if len(seen) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("resnet.tools.commands.predict._Writer._take", interrupted)
        with pytest.raises(SystemExit) as ended:
            main(["predict", str(finished.run), str(finished.images), "--csv", str(link)])
    assert ended.value.code == 130
    assert seen == [("old", 1)] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "out.csv"]
    assert out.read_text() == "old"
    assert len(predict(finished.run, finished.images, link)) == 20
    assert link.is_symlink()


def test_a_reader_that_has_seen_enough_ends_it_with_its_workers(finished, tmp_path):
    """As `| head -1` does: a worker that is left would be waited for without end."""
    (tmp_path / "list.csv").write_text("file\n" + f"{next(finished.images.glob('*/*.jpg'))}\n" * 5000)
    command = ["predict", finished.run, tmp_path / "list.csv", "--device", "cpu", "--batch-size", 8]
    process = start("-m", "resnet", *command, "data.num_workers=2", OMP_NUM_THREADS=1)
    assert process.stdout is not None
    assert process.stdout.readline() == "file,label,probability\n"
    process.stdout.close()
    try:
        assert process.wait(60) != 0
    finally:
        process.kill()


def test_two_at_once_write_a_whole_file_each(tmp_path, monkeypatch):
    """To the same place: what ends last is there, whole."""
    out = tmp_path / "out.csv"
    with open_output(out) as one:
        one.write(b"one ")
        with monkeypatch.context() as patched:
            patched.setattr(os, "getpid", lambda: 1)
            with open_output(out) as other:
                other.write(b"other")
        assert out.read_bytes() == b"other"
        one.write(b"whole")
    assert out.read_bytes() == b"one whole"
    assert list(tmp_path.iterdir()) == [out]


def test_rows_are_not_held(finished, tmp_path, monkeypatch, capsys):
    """Of 3,000 images no more predictions are alive than a batch or two have."""
    listed, alive = tmp_path / "list.csv", []
    Image.new("RGB", (8, 8)).save(name := tmp_path / "a.png")
    listed.write_text("file\n" + f"{name}\n" * 3000)
    counted = Prediction.__new__

    class Watched(Prediction):
        living = 0

        def __new__(cls, *values):
            Watched.living += 1
            alive.append(Watched.living)
            return counted(cls, *values)

        def __del__(self):
            Watched.living -= 1

    monkeypatch.setattr("resnet.tools.predict.Prediction", Watched)
    words = ["--csv", tmp_path / "out.csv", "--grid", tmp_path / "grid.png", "--batch-size", 100]
    words += ["eval.flip=false", "augment.val_resize=16", "augment.val_size=16"]
    main([*map(str, ["predict", finished.run, listed, *words])])
    assert len(table(tmp_path / "out.csv")) == len(alive) + 1 == 3001
    assert max(alive) < 48 + 100


def test_predictions_come_as_they_are_asked_for(finished, tmp_path):
    """In Python: nothing is computed before the first is taken, and workers end when the caller has had enough."""
    run = resnet.Run(finished.run)
    found = run.predictions(finished.images, top=2, batch_size=2, device="cpu")
    first = next(found)
    assert isinstance(first, resnet.Prediction)
    assert (first.id, first.true, len(first.top)) == (
        os.path.relpath(first.file, finished.images),
        first.id.split("/")[0],
        2,
    )
    found.close()
    listed = tmp_path / "l.csv"
    listed.write_text(f"file,label\n{first.file},{first.true}\n")
    (again,) = run.predict(listed, top=2, batch_size=2, device="cpu")
    assert (again.id, again.label, again.true) == (first.file, first.label, first.true)
    with Image.open(first.file) as picture:
        array = np.asarray(picture)
        for call in (run.predict, run.features, lambda images: resnet.evaluate([run], data=images)):
            for given, kind in (
                (picture, "JpegImageFile"),
                ([picture], "JpegImageFile"),
                (array, "ndarray"),
                (b"x", "int"),
            ):
                with pytest.raises(ValueError, match=f"images are given as paths .* of type {kind}"):
                    call(given)
    with pytest.raises(ValueError, match="batch_size=0"):
        run.predictions(finished.images, batch_size=0)
