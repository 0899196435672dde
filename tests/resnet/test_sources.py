import io
import json
import multiprocessing
import os
import pickle
import urllib.error
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from recipes.schema.data import Data
from resnet.data.arrays import BrokenImage
from resnet.data.decode import decode
from resnet.data.sources.registry import carve, open_sources, spread
from resnet.data.sources.shapes import SHAPES, draw


def opened(source: str, **keys):
    return open_sources(TypeAdapter(Data).validate_python({"source": source, **keys}))


def jpeg(level: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (level, level, level)).save(file, "JPEG")
    return file.getvalue()


def write(path: Path, content: bytes | str = b"image") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def names_of(source) -> list[str]:
    return [os.path.basename(source.describe(index)) for index in range(len(source))]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("cat/b.JPG", "cat/a.jpeg", "ant/deep/z.png", "ant/a.Webp", "bee/ü 1.bmp"):
        write(tmp_path / "train" / name, name)
        write(tmp_path / "val" / name, name)
    for name in (".hidden/a.jpg", "cat/.b.jpg", "cat/notes.txt", "README.md", "ant/Thumbs.db"):
        write(tmp_path / "train" / name)
    return tmp_path


def test_image_folder(folder):
    train, val = opened("image_folder", train=f"{folder}/train", val=f"{folder}/val")
    assert train.classes == val.classes == ["ant", "bee", "cat"]
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [0, 0, 1, 2, 2]
    assert names_of(train) == ["a.Webp", "z.png", "ü 1.bmp", "a.jpeg", "b.JPG"]
    assert [train.read(index) for index in (1, 2)] == [b"ant/deep/z.png", "bee/ü 1.bmp".encode()]


def test_paths_are_expanded(folder, monkeypatch):
    monkeypatch.setenv("PICTURES", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    train, val = opened("image_folder", train="$PICTURES/train", val="~/val")
    assert (len(train), len(val)) == (5, 5)


def test_a_pickled_source_reads_the_same_and_is_small(folder):
    for number in range(2000):
        write(folder / "train" / "cat" / f"image_number_{number:08d}.jpg")
    train, _ = opened("image_folder", train=f"{folder}/train", val=f"{folder}/val")
    data = pickle.dumps(train)
    assert names_of(pickle.loads(data)) == names_of(train)
    assert len(data) < 100_000


def test_validation_may_lack_a_class(folder):
    (folder / "val/bee/ü 1.bmp").unlink()
    _, val = opened("image_folder", train=f"{folder}/train", val=f"{folder}/val")
    assert val.labels.tolist() == [0, 0, 2, 2]


def test_an_unreadable_image_is_an_os_error(folder):
    train, _ = opened("image_folder", train=f"{folder}/train", val=f"{folder}/val")
    (folder / "train/ant/a.Webp").unlink()
    with pytest.raises(OSError):
        train.read(0)


def test_mistakes_in_image_folders(folder, tmp_path):
    def message(**keys) -> str:
        with pytest.raises(ValueError) as error:
            opened("image_folder", **{"train": f"{folder}/train", "val": f"{folder}/val", **keys})
        return str(error.value)

    missing = message(train="../nowhere/imagenet")
    assert "data.train=../nowhere/imagenet" in missing
    assert os.path.abspath("../nowhere/imagenet") in missing
    assert "image-net.org" in missing
    assert "ILSVRC/imagenet-1k" in missing
    cats = message(train="data/cats_vs_dogs/train")
    assert "one folder a class" in cats
    assert "image-net.org" not in cats
    assert "data.val=" in message(val="nowhere")
    assert "README.md is a file" in message(train=f"{folder}/train/README.md")
    assert "holds splits" in message(train=str(folder))
    assert "no folder for each class" in message(train=f"{folder}/train/cat")
    assert "data.val_labels" in message(val=f"{folder}/train/cat")
    assert "no effect without val" in message(val=None, val_fraction=0.5, val_labels="x")
    write(folder / "val/wasp/a.jpg")
    assert "wasp" in message()
    (folder / "train/dodo").mkdir()
    assert "class folder dodo" in message()


FLAT_LISTS = {
    "names": "1.jpg cat\n2.jpg ant\n\n3.jpg cat\n",
    "indices with a byte order mark": "\ufeff1.jpg 2\r\n2.jpg 0\r\n3.jpg 2\r\n",
    "commas and a header": "file,class\n3.jpg,cat\n1.jpg,cat\n2.jpg,ant\n",
    "tabs, folders, no extension": "val/1\tcat\nval/2\tant\nval/3\tcat\n",
    "Kaggle": "ImageId,PredictionString\n1,cat 85 1 499 272 cat 1 2 3 4 \n2,ant 0 0 9 9 \n3,cat 5 5 6 6 \n",
}


@pytest.mark.parametrize("kind", FLAT_LISTS)
def test_flat_validation_folder(folder, kind):
    for number in (1, 2, 3):
        write(folder / "flat" / f"{number}.jpg", str(number))
    labels = write(folder / "labels.txt", FLAT_LISTS[kind])
    _, val = opened("image_folder", train=f"{folder}/train", val=f"{folder}/flat", val_labels=str(labels))
    assert val.labels.tolist() == [2, 0, 2]
    assert val.read(1) == b"2"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("490\n361\n171\n", "LOC_val_solution.csv"),
        ("1.jpg cat\n2.jpg cow\n", "line 2.*'cow'"),
        ("1.jpg 0\n2.jpg 3\n", "line 1.*index below 3"),
        ("1.jpg cat\n", "no line for 2.jpg"),
        ("1.jpg cat\n2.jpg cat\n4.jpg cat", "4.jpg"),
        ("1.jpg cat\n2.jpg\n", "line 2"),
        ("", "empty"),
    ],
)
def test_mistakes_in_flat_labels(folder, content, reason):
    for number in (1, 2):
        write(folder / "flat" / f"{number}.jpg")
    labels = write(folder / "labels.txt", content)
    with pytest.raises(ValueError, match=reason):
        opened("image_folder", train=f"{folder}/train", val=f"{folder}/flat", val_labels=str(labels))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(tmp_path, delimiter):
    rows = [("label", "file"), ("10", "a.jpg"), ("9", "sub/b, c.jpg"), ("10", "a.jpg")]
    quoted = "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in rows)
    manifest = write(tmp_path / "train.csv", "\ufeff" + quoted + "\n\n")
    for name in ("a.jpg", "sub/b, c.jpg"):
        write(tmp_path / name, name)
    train, val = opened("csv", train=str(manifest), val=str(manifest), file_column="file", label_column="label")
    assert train.classes == ["9", "10"]
    assert train.labels.tolist() == val.labels.tolist() == [1, 0, 1]
    assert train.read(1) == b"sub/b, c.jpg"


def test_csv_images_elsewhere_and_first_columns(tmp_path):
    write(tmp_path / "images/a.jpg")
    manifest = write(tmp_path / "list/train.csv", "file,label,more\na.jpg,cat,1\n")
    val = write(tmp_path / "list/val.csv", f"file,label\n{tmp_path}/images/a.jpg,cat\n")
    train, _ = opened("csv", train=str(manifest), val=str(val), images=f"{tmp_path}/images")
    assert train.describe(0) == f"{tmp_path}/images/a.jpg"


@pytest.mark.parametrize(
    ("header", "row", "keys"),
    [
        ("file,width,Label", "a.jpg,8,cat", {}),
        ("labels,file", "cat,a.jpg", {}),
        ("label,labels", "a.jpg,cat", {}),
        ("width,file,kind", "8,a.jpg,cat", {"file_column": "file"}),
        ("label,kind", "a.jpg,cat", {"file_column": "label"}),
    ],
)
def test_columns_of_a_csv_are_known_by_their_names(tmp_path, header, row, keys):
    write(tmp_path / "a.jpg")
    manifest = write(tmp_path / "train.csv", f"{header}\n{row}\n{row}\n")
    train, _ = opened("csv", train=str(manifest), val=str(manifest), **keys)
    assert (train.classes, names_of(train)) == (["cat"], ["a.jpg"] * 2)


@pytest.mark.parametrize(
    ("content", "keys", "reason"),
    [
        ("file,label\na.jpg,x\n", {"label_column": "kind"}, "'kind'.*label_column.*file, label"),
        ("file\na.jpg\n", {}, "no second column"),
        ("file,label\na.jpg,x\na.jpg,\n", {}, "line 3 has no label"),
        ("file,label\na.jpg,x\n\na.jpg\n", {}, "line 4 has no label"),
        ("file,label\n,x\n", {}, "line 2 has no file name"),
        ("file,label\na.jpg,x\nb.jpg,x\nc/d.jpg,x\n", {}, "2 of 3 images.*b.jpg, c/d.jpg"),
        ("file,label\na.jpg,x\na.jpg,y\na.jpg,x\n", {}, r"1 file under two.* a.jpg is x \(line 2\) and y \(line 3\)"),
        ("file,label\n", {}, "no rows"),
        ("file,label\na.jpg,\xff".encode("latin1"), {}, "UTF-8"),
    ],
)
def test_mistakes_in_csv(tmp_path, content, keys, reason):
    write(tmp_path / "a.jpg")
    manifest = write(tmp_path / "train.csv", content)
    with pytest.raises(ValueError, match=reason):
        opened("csv", train=str(manifest), val_fraction=0.5, **keys)


def test_csv_validation_labels_must_be_known(tmp_path):
    write(tmp_path / "a.jpg")
    train = write(tmp_path / "train.csv", "file,label\na.jpg,cat\n")
    val = write(tmp_path / "val.csv", "file,label\na.jpg,cow\n")
    with pytest.raises(ValueError, match="cow"):
        opened("csv", train=str(train), val=str(val))


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


def rows(datasets, levels, labels, label_type):
    features = datasets.Features({"img": datasets.Image(), "id": datasets.Value("int64"), "kind": label_type})
    images = [{"bytes": jpeg(level), "path": None} for level in levels]
    return datasets.Dataset.from_dict({"img": images, "id": list(levels), "kind": labels}, features=features)


@pytest.fixture
def parquet(tmp_path, datasets) -> Path:
    kinds = datasets.ClassLabel(names=["dog", "cat"])
    (tmp_path / "set/data").mkdir(parents=True)
    rows(datasets, [10, 20], [1, 0], kinds).to_parquet(tmp_path / "set/data/train-00000-of-00002.parquet")
    rows(datasets, [30, 40], [1, 0], kinds).to_parquet(tmp_path / "set/data/train-00001-of-00002.parquet")
    rows(datasets, [50], [1], kinds).to_parquet(tmp_path / "set/data/test-00000-of-00001.parquet")
    return tmp_path / "set"


def level_of(source, index: int) -> int:
    return int(decode(source.read(index))[0, 0, 0])


def test_parquet_files(parquet):
    train, val = opened("huggingface", train=str(parquet), val_split="test")
    assert train.classes == val.classes == ["dog", "cat"]
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [1, 0, 1, 0]
    assert val.labels.tolist() == [1]
    assert [level_of(train, index) for index in range(4)] == [10, 20, 30, 40]
    assert "train row 2" in train.describe(2)
    assert pickle.loads(pickle.dumps(val)).read(0) == val.read(0)


def test_parquet_carved(parquet):
    train, val = opened("huggingface", train=str(parquet), val_split=None, val_fraction=0.5)
    assert sorted(train.labels) == sorted(val.labels) == [0, 1]
    assert {level_of(part, index) for part in (train, val) for index in (0, 1)} == {10, 20, 30, 40}


@pytest.mark.parametrize("form", ["struct", "binary"])
@pytest.mark.parametrize(("name", "labels"), [("label", [3, 12]), ("labels", ["3", "12"])])
def test_columns_of_parquet_files_are_known_by_their_names(tmp_path, datasets, form, name, labels):
    """As pandas and others write them, without the types of `datasets`."""
    images = [jpeg(10), jpeg(20)]
    column = images if form == "binary" else [{"bytes": data, "path": None} for data in images]
    table = pyarrow.table({"id": [1, 2], "img": column, name: labels, "score": [0.5, 1.0]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    train, _ = opened("huggingface", train=str(tmp_path), val=str(tmp_path), val_split="train")
    assert [train.classes[label] for label in train.labels] == ["3", "12"]
    assert train.classes == sorted(map(str, labels), key=int if name == "label" else str)
    assert [level_of(train, index) for index in (0, 1)] == [10, 20]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"label": [1, 2], "labels": [1, 2]}, "label, labels both could be it"),
        ({"label": [0.5, 1.0]}, "label holds double, neither integers nor text"),
        ({"labels": [[1], [1, 2]]}, "labels holds list.*neither integers nor text"),
        ({"kind": [1, 2]}, "none is called label or labels"),
    ],
)
def test_columns_of_parquet_files_that_are_no_classes(tmp_path, datasets, columns, reason):
    table = pyarrow.table({"image": [jpeg(10), jpeg(20)], **columns})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=reason):
        opened("huggingface", train=str(tmp_path), val_split=None, val_fraction=0.5)


def test_validation_from_another_folder_with_text_labels(tmp_path, datasets):
    text = datasets.Value("string")
    for name, kinds in (("a/x.parquet", ["zebra", "ant"]), ("b/y.parquet", ["ant", "zebra"])):
        (tmp_path / name).parent.mkdir()
        rows(datasets, [1, 2], kinds, text).to_parquet(tmp_path / name)
    train, val = opened("huggingface", train=f"{tmp_path}/a", val=f"{tmp_path}/b", label_column="kind")
    assert train.classes == ["ant", "zebra"]
    assert (train.labels.tolist(), val.labels.tolist()) == ([1, 0], [0, 1])


def test_folder_of_save_to_disk(tmp_path, datasets):
    split = rows(datasets, [60, 70, 80], [30, 4, 30], datasets.Value("int32")).select([2, 1, 0])
    datasets.DatasetDict({"train": split, "val": split}).save_to_disk(str(tmp_path / "saved"))
    train, val = opened("huggingface", train=f"{tmp_path}/saved", label_column="kind", image_column="img")
    assert train.classes == ["4", "30"]
    assert [level_of(val, index) for index in range(3)] == [80, 70, 60]
    assert val.labels.tolist() == [1, 0, 1]


def test_a_row_without_an_image_is_broken(tmp_path, datasets):
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = pyarrow.array([None, {"bytes": None, "path": None}], kind)
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": ["a", "b"]}), tmp_path / "train.parquet")
    train, _ = opened("huggingface", train=f"{tmp_path}/train.parquet", val=f"{tmp_path}/train.parquet")
    for index, reason in enumerate(("the row has no image", "neither an image nor a path of one")):
        with pytest.raises(BrokenImage, match=reason):
            train.read(index)


def test_mistakes_in_hugging_face_sets(parquet, tmp_path, datasets, monkeypatch):
    def message(**keys) -> str:
        with pytest.raises(ValueError) as error:
            opened("huggingface", **{"train": str(parquet), "val_split": "test", **keys})
        return str(error.value)

    assert "data.val_split=validation" in message(val_split="validation")
    assert "test, train" in message(val_split="validation")
    assert "data.train_split=all" in message(train_split="all")
    assert "val_split=null needs val_fraction" in message(val_split=None)
    assert "val_split=null" in message(val_fraction=0.1)
    assert "img (Image), id (Value), kind (ClassLabel)" in message(label_column="label")
    assert "holds no images" in message(image_column="id")
    assert str(tmp_path / "nowhere") in message(train=f"{tmp_path}/nowhere")
    rows(datasets, [1], [-1], datasets.ClassLabel(names=["dog", "cat"])).to_parquet(tmp_path / "test.parquet")
    assert "without labels" in message(val=f"{tmp_path}/test.parquet")
    rows(datasets, [1], ["cow"], datasets.Value("string")).to_parquet(tmp_path / "cow.parquet")
    assert "'kind'" in message(label_column="'kind'")
    assert "cow" in message(val=f"{tmp_path}/cow.parquet", label_column="kind")
    rows(datasets, [1], [None], datasets.Value("string")).to_parquet(tmp_path / "null.parquet")
    assert "1 row without kind" in message(train=f"{tmp_path}/null.parquet", label_column="kind")
    write(tmp_path / "broken.parquet", b"PAR1 nothing")
    assert "cannot be read" in message(train=f"{tmp_path}/broken.parquet")
    (tmp_path / "bare").mkdir()
    assert "no parquet files" in message(train=f"{tmp_path}/bare")

    def unreachable(*_):
        raise ConnectionError("Couldn't reach the hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    hub = message(train="someone/pictures")
    assert os.path.abspath("someone/pictures") in hub
    assert "Couldn't reach the hub." in hub
    assert "and more" not in hub


def test_cifar(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    pixels = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    for name in [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]:
        content = pickle.dumps({"data": pixels, "labels": [3, 0]})
        write(tmp_path / "cifar-10-batches-py" / name, content)
    names = [f"class{number}" for number in range(10)]
    write(tmp_path / "cifar-10-batches-py/batches.meta", pickle.dumps({"label_names": names}))
    train, val = opened("cifar10", train=str(tmp_path))
    assert (len(train), len(val), train.classes) == (10, 2, names)
    assert train.labels.tolist() == [3, 0] * 5
    image = val.read(1)
    assert isinstance(image, torch.Tensor)
    assert torch.equal(image, torch.from_numpy(pixels[1].reshape(3, 32, 32)))


def test_cifar_that_cannot_be_had(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    with pytest.raises(ValueError, match=r"data.download is false") as error:
        opened("cifar100", train=f"{tmp_path}/cifar", download=False)
    assert f"{tmp_path}/cifar" in str(error.value)

    def offline(_):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(CIFAR100, "download", offline)
    with pytest.raises(ValueError, match=r"could not be downloaded.*not known.*cifar-100-python.tar.gz"):
        opened("cifar100", train=f"{tmp_path}/cifar")
    (tmp_path / "cifar" / CIFAR100.filename).write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"cifar-100-python\.tar\.gz is damaged, or not what"):
        opened("cifar100", train=f"{tmp_path}/cifar")


def test_shapes_are_drawn_once_and_the_same_everywhere(tmp_path):
    train, val = opened("shapes", train=f"{tmp_path}/one/shapes", per_class=4, size=24)
    assert train.classes == val.classes == list(SHAPES)
    assert np.bincount(train.labels).tolist() == [4] * 10
    assert np.bincount(val.labels).tolist() == [1] * 10
    shapes = [decode(train.read(index)).shape[1:] for index in range(40)]
    assert all(max(shape) == 24 and min(shape) >= 20 for shape in shapes)
    assert len(set(shapes)) > 3
    files = [train.read(index) for index in range(40)]
    assert len(set(files)) == 40
    assert val.read(0) not in files

    changed = Path(train.describe(0)).stat().st_mtime_ns
    again, _ = opened("shapes", train=f"{tmp_path}/one/shapes", per_class=4, size=24)
    assert Path(again.describe(0)).stat().st_mtime_ns == changed
    other, _ = opened("shapes", train=f"{tmp_path}/two", per_class=4, size=24)
    assert [other.read(index) for index in range(40)] == files


def test_shapes_touch_no_other_folder(tmp_path):
    draw(tmp_path / "shapes", 1, 16)
    with pytest.raises(ValueError, match=r"another data\.train"):
        draw(tmp_path / "shapes", 2, 16)
    write(tmp_path / "mine/thesis.txt")
    with pytest.raises(ValueError, match="something else"):
        draw(tmp_path / "mine", 1, 16)
    (tmp_path / "empty").mkdir()
    draw(tmp_path / "empty", 1, 16)
    assert json.loads((tmp_path / "empty/drawn.json").read_text())["size"] == 16


def test_several_processes_draw_one_folder(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=spawn) as pool:
        drawn = [pool.submit(draw, tmp_path / "shapes", 20, 32) for _ in range(3)]
        assert [future.result() for future in drawn] == [None] * 3
    assert os.listdir(tmp_path) == ["shapes"]
    assert len(list((tmp_path / "shapes/train").glob("*/*.jpg"))) == 200


def test_synthetic_images_tell_their_class():
    train, val = opened("synthetic", train="x", classes=5, samples=40, size=33)
    assert (len(train), len(val)) == (40, 10)
    assert torch.equal(train.read(7), opened("synthetic", train="x", classes=5, samples=40, size=33)[0].read(7))
    assert not torch.equal(train.read(0), val.read(0))
    images = torch.stack([train.read(index) for index in range(40)])
    assert (images.shape, images.dtype) == ((40, 3, 33, 33), torch.uint8)
    labels = torch.from_numpy(train.labels)
    means = torch.stack([images[labels == label].float().mean(0) for label in range(5)])
    for index in range(10):
        nearest = (means - val.read(index).float()).abs().mean((1, 2, 3)).argmin()
        assert nearest == val.labels[index]


@pytest.mark.parametrize("source", ["synthetic", "shapes"])
def test_made_data_takes_no_validation_path(source, tmp_path):
    with pytest.raises(ValueError, match="val has no effect"):
        opened(source, train=str(tmp_path / "x"), val="y")


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.9])
def test_carve_takes_its_share_of_each_class(fraction):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 2, 3, 7], [100, 40, 3, 2]))
    kept, aside = carve(labels, fraction)
    assert sorted([*kept, *aside]) == list(range(145))
    assert sorted(aside) == aside.tolist()
    for label, size in ((0, 100), (2, 40), (3, 3), (7, 2)):
        count = (labels[aside] == label).sum()
        assert 1 <= count < size
        assert abs(count - fraction * size) <= 1
    assert np.array_equal(aside, carve(labels.copy(), fraction)[1])


def test_carve_draws_from_all_of_a_class():
    _, aside = carve(np.zeros(1000, dtype=np.int64), 0.1)
    assert np.histogram(aside, bins=4, range=(0, 1000))[0].min() >= 15


def test_carve_leaves_single_images_in_training():
    kept, aside = carve(np.array([0, 1, 1]), 0.5)
    assert 0 in kept
    assert len(aside) == 1


@pytest.mark.parametrize("count", [1, 4, 17, 99, 100])
def test_spread_keeps_the_shares_of_the_classes(count):
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [50, 30, 20]))
    indices = spread(labels, count)
    assert len(set(indices.tolist())) == count
    shares = np.bincount(labels[indices], minlength=3)
    assert (np.abs(shares - count * np.array([0.5, 0.3, 0.2])) <= 1).all()


def test_subsets_read_the_images_they_hold():
    keys = {"train": "x", "samples": 40, "size": 8, "classes": 4}
    whole, _ = opened("synthetic", **keys)
    train, val = opened("synthetic", **keys, max_train=8, val_fraction=0.25, max_val=4)
    assert np.bincount(train.labels).tolist() == [2, 2, 2, 2]
    assert np.bincount(val.labels).tolist() == [1, 1, 1, 1]
    seen = set()
    for part in (train, val):
        for index in range(len(part)):
            number = int(part.describe(index).rsplit(" ", 1)[1])
            assert torch.equal(part.read(index), whole.read(number))
            assert part.labels[index] == whole.labels[number]
            seen.add(number)
    assert len(seen) == 12
    assert len(opened("synthetic", **keys, max_train=1000)[0]) == 40


def test_nothing_to_validate_on(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg"):
        write(tmp_path / name)
    with pytest.raises(ValueError, match="validate"):
        opened("image_folder", train=str(tmp_path), val_fraction=0.5)
