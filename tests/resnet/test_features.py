import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import resnet
from resnet.data.decode import decode
from resnet.data.transforms import eval_transform
from resnet.tools.cli import main
from resnet.tools.knn import knn
from tests.helpers import TINY, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("features")
    words = ["data.per_class=8", "epochs=1", f"run.root={folder}", "run.name=r", "eval.flip=true"]
    assert train(*TINY, *words, f"data.train={folder / 'shapes'}") == 0
    return SimpleNamespace(run=folder / "r", images=folder / "shapes" / "val")


def features(*words: object) -> None:
    main(["features", *map(str, words), "--device", "cpu"])


def array(file: Path) -> np.ndarray:
    return np.stack(pq.read_table(file).to_pandas()["feature"])


def mistake(capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        features(*words)
    error = capsys.readouterr().err
    assert ended.value.code == 2, error
    return error


def test_features_are_what_the_classifier_gets(finished, tmp_path, capsys):
    """Multiplied by its weights they are the logits of each image; ids and labels stand beside them, in order."""
    features(finished.run, finished.images, tmp_path / "f.parquet")
    assert "20 images, 256 numbers each of avgpool" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "f.parquet").to_pydict()
    names = sorted(str(file.relative_to(finished.images)) for file in finished.images.glob("*/*.jpg"))
    classes = resnet.Run(finished.run).classes
    assert table["id"] == names
    assert table["label"] == [os.path.dirname(name) for name in names]
    assert [classes[index] for index in table["label_index"]] == table["label"]
    network, augment = resnet.Run(finished.run).load(), resnet.Run(finished.run).recipe.augment
    images = torch.stack([eval_transform(augment)(decode((finished.images / name).read_bytes())) for name in names])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (augment.mean, augment.std))
    with torch.no_grad():
        expected = network((images / 255 - mean) / std)
        given = network.get_submodule("fc")(torch.from_numpy(array(tmp_path / "f.parquet")))
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


def test_what_the_file_says_of_itself(finished, tmp_path):
    features(finished.run, finished.images, tmp_path / "f.parquet", "--layer", "layer1", "augment.val_size=24")
    schema = pq.read_schema(tmp_path / "f.parquet")
    said = json.loads(schema.metadata[b"resnet_launch"])
    assert (said["layer"], said["size"], said["images"], said["val_size"]) == ("layer1", 64, 20, 24)
    assert said["weights"] == str(finished.run / "final.safetensors")
    assert len(said["weights_sha256"]) == 64
    assert schema.field("feature").type == pa.list_(pa.float32(), 64)


def test_the_runs_own_images(finished, tmp_path, capsys):
    features(finished.run, "val", tmp_path / "own.parquet", "--knn")
    assert "by the 20 nearest neighbours, 20 labelled images" in capsys.readouterr().out
    features(finished.run, finished.images, tmp_path / "given.parquet")
    assert np.array_equal(array(tmp_path / "own.parquet"), array(tmp_path / "given.parquet"))
    features(finished.run, "train", tmp_path / "own.parquet")
    assert len(array(tmp_path / "own.parquet")) == 80


def test_images_that_cannot_be_read_are_left_out_and_unknown_labels_empty(finished, tmp_path, capsys):
    folder = shutil.copytree(finished.images, tmp_path / "val")
    (folder / "ring" / "0000.jpg").write_bytes(b"")
    (folder / "ring" / "0001.jpg").rename(folder / os.fsdecode(b"caf\xe9.jpg"))
    (folder / "dots").rename(folder / "zebra")
    features(finished.run, folder, tmp_path / "f.parquet")
    out, err = capsys.readouterr()
    assert "19 images" in out
    assert "1 could not be read and is left out" in out
    assert f"cannot read {folder}/ring/0000.jpg: the file is empty" in err
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "f.parquet").to_pylist()}
    assert (rows["caf\\xe9.jpg"]["label"], rows["zebra/0000.jpg"]["label"]) == (None, "zebra")
    assert [rows[name]["label_index"] for name in ("caf\\xe9.jpg", "zebra/0000.jpg")] == [None, None]


def test_a_label_that_is_no_text(finished, tmp_path, capsys):
    folder = shutil.copytree(finished.images, tmp_path / "val")
    (folder / "dots").rename(folder / os.fsdecode(b"caf\xe9"))
    features(finished.run, folder, tmp_path / "f.parquet")
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "f.parquet").to_pylist()}
    assert rows["caf\\xe9/0000.jpg"]["label"] == "caf\\xe9"


@pytest.fixture
def small_parts(monkeypatch) -> None:
    monkeypatch.setattr("resnet.tools.features.PART", 6)


def test_an_interrupted_command_goes_on_to_the_same_bytes(finished, small_parts, tmp_path, monkeypatch, capsys):
    words = (finished.run, finished.images, "--batch-size", 3)
    features(*words, tmp_path / "whole.parquet")
    written, write_table = [], pq.write_table

    def interrupted(*arguments):
        written.append(arguments)
        if len(written) == 3:
            raise KeyboardInterrupt
        return write_table(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("resnet.tools.features.pq.write_table", interrupted)
        with pytest.raises(SystemExit) as ended:
            features(*words, tmp_path / "f.parquet")
    assert ended.value.code == 130
    assert not (tmp_path / "f.parquet").exists()
    capsys.readouterr()
    features(*words, tmp_path / "f.parquet")
    assert "12 of 20 images done before" in capsys.readouterr().err
    assert (tmp_path / "f.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.parquet", "whole.parquet"]
    assert pq.ParquetFile(tmp_path / "f.parquet").num_row_groups == 4


def test_parts_of_something_else_are_not_gone_on_with(finished, small_parts, tmp_path, capsys):
    parts = tmp_path / ".f.parquet.parts"
    parts.mkdir()
    (parts / "of.json").write_text('{"layer": "layer1"}')
    (parts / "000000000000.parquet").write_bytes(b"other")
    features(finished.run, finished.images, tmp_path / "f.parquet")
    assert "before" not in capsys.readouterr().err
    assert len(array(tmp_path / "f.parquet")) == 20


def test_mistakes(finished, tmp_path, capsys):
    out = tmp_path / "f.parquet"
    assert "ends in .parquet" in mistake(capsys, finished.run, finished.images, tmp_path / "f.csv")
    assert "give images" in mistake(capsys, finished.run, out, "eval.flip=true")
    assert "layer fc is none of avgpool, layer3" in mistake(capsys, finished.run, finished.images, out, "--layer", "fc")
    assert "there is no folder" in mistake(capsys, finished.run, finished.images, tmp_path / "no" / "f.parquet")
    assert "there is no nowhere" in mistake(capsys, finished.run, "nowhere", out)
    flat = shutil.copytree(finished.images / "ring", tmp_path / "flat")
    assert "--knn: 0 images with a label" in mistake(capsys, finished.run, flat, out, "--knn")
    assert not out.exists()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"")
    assert "none of the images could be read" in mistake(capsys, finished.run, tmp_path / "broken", out)
    image = (finished.images / "ring" / "0000.jpg").read_bytes()
    pq.write_table(pa.table({"image": [{"bytes": image, "path": None}]}), out)
    assert "is read here, and would be written over" in mistake(capsys, finished.run, out, out)
    assert "was not written by `resnet features`" in mistake(capsys, finished.run, finished.images, out)
    other = tmp_path / "g.parquet"
    with filelock.FileLock(tmp_path / ".g.parquet.lock"):
        assert "another command is writing" in mistake(capsys, finished.run, finished.images, other)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can write")
def test_a_folder_that_takes_no_file_is_told_of_at_once(finished, capsys):
    said = mistake(capsys, finished.run, finished.images, "/proc/f.parquet")
    assert "/proc/f.parquet: no file can be made in /proc: No such file or directory" in said


def test_from_python(finished, tmp_path):
    found = resnet.Run(finished.run).features(finished.images, device="cpu")
    features(finished.run, finished.images, tmp_path / "f.parquet")
    assert np.array_equal(found.features, array(tmp_path / "f.parquet"))
    assert found.ids == pq.read_table(tmp_path / "f.parquet")["id"].to_pylist()
    assert found.labels.tolist() == pq.read_table(tmp_path / "f.parquet")["label_index"].to_pylist()
    assert len(resnet.Run(finished.run).features("train", layer="layer2", device="cpu").ids) == 80


def brute(features: np.ndarray, labels: list[str | None], k: int) -> float:
    """Leave-one-out vote, image by image."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    right = []
    for at, label in enumerate(labels):
        if label is None:
            continue
        others = [other for other in range(len(labels)) if other != at and labels[other] is not None]
        nearest = sorted(others, key=lambda other: -unit[at] @ unit[other])[:k]
        votes: dict[str | None, float] = {}
        for other in nearest:
            votes[labels[other]] = votes.get(labels[other], 0) + np.exp(unit[at] @ unit[other] / 0.07)
        right.append(max(votes, key=lambda name: votes[name]) == label)
    return 100 * sum(right) / len(right)


@pytest.mark.parametrize("rows", [5, 90])
def test_nearest_neighbours_vote_as_if_counted_one_by_one(tmp_path, monkeypatch, rows):
    monkeypatch.setattr("resnet.tools.knn._BLOCK", 7)
    random = np.random.default_rng(rows)
    numbers = random.integers(0, 4, rows)
    data = random.normal(size=(rows, 5)) + 1.5 * np.eye(5)[numbers]
    labels = [None if index % 5 == 4 else f"class {number}" for index, number in enumerate(numbers)]
    feature = pa.FixedSizeListArray.from_arrays(pa.array(data.astype(np.float32).ravel()), 5)
    table = pa.table({"label": pa.array(labels), "feature": feature})
    pq.write_table(table, tmp_path / "f.parquet", row_group_size=20)
    found = knn(tmp_path / "f.parquet")
    assert found.queries == found.images == sum(label is not None for label in labels)
    assert found.top1 == pytest.approx(brute(data, labels, 20))
    monkeypatch.setattr("resnet.tools.knn.MOST_QUERIES", 3)
    assert knn(tmp_path / "f.parquet").queries == 3
    pq.write_table(table.slice(0, 1), tmp_path / "f.parquet")
    with pytest.raises(ValueError, match="--knn: 1 image with a label"):
        knn(tmp_path / "f.parquet")
