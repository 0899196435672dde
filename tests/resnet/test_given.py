import csv
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from recipes.schema.data import CsvData, HuggingFaceData
from resnet.data.sources.given import images_of, open_given


@pytest.fixture
def folder(tmp_path) -> Path:
    """dog/1.png, dog/10.jpg, dog/2.png, cat/a.png and a.png, and what is no image."""
    for name in ("dog/1.png", "dog/10.jpg", "dog/2.png", "cat/a.png", "a.png"):
        put(tmp_path / "photos" / name)
    (tmp_path / "photos" / ".hidden").mkdir()
    put(tmp_path / "photos" / ".hidden" / "b.png")
    put(tmp_path / "photos" / "cat" / ".c.png")
    (tmp_path / "photos" / "notes.md").write_text("no image")
    return tmp_path / "photos"


def put(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(file)


def table(file: Path, *rows: str) -> Path:
    file.write_text("\n".join(rows) + "\n")
    return file


def labels_by_id(source) -> dict[str, str | None]:
    return {source.ids[index]: source.label_name(index) for index in range(len(source))}


def test_a_folder_in_sorted_order_labelled_by_its_folders(folder):
    found = open_given(folder)
    assert list(found.ids) == ["a.png", "cat/a.png", "dog/1.png", "dog/10.jpg", "dog/2.png"]
    assert (found.classes, found.labels.tolist()) == (["cat", "dog"], [-1, 0, 1, 1, 1])
    assert found.describe(1) == str(folder / "cat" / "a.png")
    assert found.read(1) == (folder / "cat" / "a.png").read_bytes()
    assert labels_by_id(found)["a.png"] is None
    assert not found.unmatched


def test_labels_are_matched_to_the_networks_classes_by_name(folder):
    found = open_given(folder, classes=["zebra", "dog"])
    assert found.labels.tolist() == [-1, -1, 1, 1, 1]
    assert found.label_name(1) == "cat"
    assert found.unmatched == {"cat": 1}


def test_one_image_is_called_by_its_name_and_several_as_they_are_given(folder, monkeypatch):
    assert list(open_given(folder / "dog" / "1.png").ids) == ["1.png"]
    monkeypatch.chdir(folder.parent)
    several = open_given(["photos/dog/2.png", "photos/a.png", "photos/cat", "photos/dog/2.png"])
    assert list(several.ids) == ["photos/dog/2.png", "photos/a.png", "photos/cat/a.png", "photos/dog/2.png"]
    assert [several.describe(index) for index in range(4)] == list(several.ids)
    with pytest.raises(ValueError, match="there is no nowhere"):
        open_given(["photos/a.png", "nowhere"])


def test_patterns_match_as_in_a_shell(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert list(open_given("photos/**/*.png").ids) == [
        "photos/a.png",
        "photos/cat/a.png",
        "photos/dog/1.png",
        "photos/dog/2.png",
    ]
    assert len(open_given("photos/*")) == 5
    assert list(open_given("photos/[cd]*").ids) == [
        "photos/cat/a.png",
        "photos/dog/1.png",
        "photos/dog/10.jpg",
        "photos/dog/2.png",
    ]
    put(folder / "a[1]*.png")
    assert list(open_given("photos/a[1]*.png").ids) == ["a[1]*.png"]
    with pytest.raises(ValueError, match=r"nothing matches photos/[*].gif"):
        open_given("photos/*.gif")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_csv_file_is_read_as_training_reads_it(folder, mark):
    """With a BOM, blank lines and duplicates: a row each, in order."""
    rows = ["\ufefffile,label", "dog/1.png,dog", "", "cat/a.png,cat", "dog/1.png,dog", "a.png,"]
    found = open_given(table(folder / "list.csv", *(row.replace(",", mark) for row in rows)))
    assert list(found.ids) == ["dog/1.png", "cat/a.png", "dog/1.png", "a.png"]
    assert (found.classes, found.labels.tolist()) == (["cat", "dog"], [1, 0, 1, -1])
    assert found.notes == []


def test_columns_by_name_by_position_or_as_in_the_recipe(folder):
    file = table(folder / "list.csv", ",breed,where", "0,dog,dog/1.png", "1,cat,cat/a.png")
    expected = {"dog/1.png": "dog", "cat/a.png": "cat"}
    assert labels_by_id(open_given(file, columns=("where", "breed"))) == expected
    assert labels_by_id(open_given(file, columns=("3", "2"))) == expected
    assert labels_by_id(open_given(file, columns=("where", None))) == dict.fromkeys(expected)
    for rows in (
        ("id,width,label", "dog/1.png,8,dog", "cat/a.png,9,cat"),
        ("label,file", "dog,dog/1.png", "cat,cat/a.png"),
    ):
        assert labels_by_id(open_given(table(folder / "named.csv", *rows))) == expected
    like = CsvData(source="csv", train="x", val="y", file_column="where", label_column="breed")
    assert labels_by_id(open_given(file, like=like)) == expected
    assert labels_by_id(open_given(table(folder / "b.csv", "id", "a.png"), like=like)) == {"a.png": None}
    with pytest.raises(ValueError, match=r"no column 'wher'.*did you mean where"):
        open_given(file, columns=("wher", None))


def test_ids_without_an_extension_are_matched_to_files(folder):
    file = table(folder / "test.csv", "id", "dog/10", "dog/1", "cat/a", "dog/3")
    found = open_given(file)
    assert list(found.ids) == ["dog/10", "dog/1", "cat/a", "dog/3"]
    assert [os.path.relpath(found.describe(at), folder) for at in range(4)] == [
        "dog/10.jpg",
        "dog/1.png",
        "cat/a.png",
        "dog/3",
    ]
    assert found.notes == [f"3 ids had no extension: matched to *.png, *.jpg in {folder}"]


def test_names_in_a_list_start_from_images(folder, tmp_path):
    file = table(tmp_path / "test.csv", "id", "10", "1", "1")
    found = open_given(file, images=folder / "dog")
    assert [Path(found.describe(at)).name for at in range(3)] == ["10.jpg", "1.png", "1.png"]
    with pytest.raises(ValueError, match="none of the 3 images in") as raised:
        open_given(file, images=folder)
    assert f"it is in {folder}/dog: give --images {folder}/dog" in str(raised.value)
    with pytest.raises(ValueError, match="there is no folder"):
        open_given(file, images="nowhere")


def test_numeric_labels_are_positions_where_no_name_is_a_number(folder):
    file = table(folder / "list.csv", "file,label", "a.png,1", "cat/a.png,0", "dog/1.png,")
    found = open_given(file, classes=["cat", "dog"])
    assert found.labels.tolist() == [1, 0, -1]
    assert labels_by_id(found) == {"a.png": "dog", "cat/a.png": "cat", "dog/1.png": None}
    assert "positions in the list of classes" in found.notes[0]
    assert open_given(file, classes=["1", "0"]).labels.tolist() == [0, 1, -1]
    assert open_given(file, classes=["cat"]).unmatched == {"1": 1}


def test_text_files_hold_a_path_a_line(folder, monkeypatch):
    file = table(folder / "list.txt", "# found today", "dog/1.png", "", "cat/a.png 7", f"{folder}/a.png")
    found = open_given(file)
    assert labels_by_id(found) == {"dog/1.png": None, "cat/a.png": "7", f"{folder}/a.png": None}
    monkeypatch.chdir(folder)
    elsewhere = folder.parent / "list.txt"
    from_here = open_given(table(elsewhere, "dog/1.png"))
    assert from_here.read(0) == (folder / "dog/1.png").read_bytes()
    assert "start from" in from_here.notes[0]


def test_a_csv_without_a_header_keeps_its_first_image(folder):
    found = open_given(table(folder / "list.csv", "dog/1.png,dog", "a.png,cat"))
    assert labels_by_id(found) == {"dog/1.png": "dog", "a.png": "cat"}
    assert "has no header" in found.notes[0]


def test_lists_that_cannot_be_read(folder):
    for content, message in (
        (b"", "is empty"),
        (b"id\n", "names no images"),
        (b"file,label\n,dog\n", "has no file name"),
        ("file\na.png\n".encode("utf-16"), "is not a"),
        (b'file\n"a.png\n' + b"x" * 200_000, "is not a CSV file"),
        (b"file\nb.png\nc.png\n", "none of the 2 images"),
    ):
        (folder / "list.csv").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            open_given(folder / "list.csv")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in"):
        open_given(folder / "empty")


@pytest.mark.skipif(sys.platform == "darwin", reason="file names there are text")
def test_names_that_are_no_text_or_hold_newlines_and_commas(folder):
    names = [os.fsdecode(b"caf\xe9.png"), 'a\n,"b".png']
    for name in names:
        os.link(folder / "a.png", folder / "dog" / name)
    found = open_given(folder / "dog")
    assert set(names) < set(found.ids)
    with (folder / "list.csv").open("w", newline="", errors="surrogateescape") as file:
        csv.writer(file).writerows([["file"], *([f"dog/{name}"] for name in names)])
    listed = open_given(folder / "list.csv")
    assert list(listed.ids) == [f"dog/{name}" for name in names]
    assert pickle.loads(pickle.dumps(listed)).describe(0) == listed.describe(0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """parquet/{train,test}-0.parquet and disk/ of save_to_disk, the test split without labels."""
    import datasets

    root = tmp_path_factory.mktemp("rows")
    put(root / "a.png")
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    both = datasets.DatasetDict()
    for split, labels in {"train": [1, 0, 1], "test": [-1, -1]}.items():
        columns = {"image": [str(root / "a.png")] * len(labels), "label": labels}
        both[split] = datasets.Dataset.from_dict(columns, datasets.Features(kinds))
        (root / "parquet").mkdir(exist_ok=True)
        both[split].to_parquet(root / "parquet" / f"{split}-0.parquet")
    both.save_to_disk(root / "disk")
    both["train"].remove_columns("label").save_to_disk(root / "bare")
    return root


def test_rows_of_parquet_files_and_saved_data_sets(saved):
    for path in ("parquet/train-0.parquet", "disk/train"):
        found = open_given(saved / path, classes=["dog", "cat"])
        assert (list(found.ids), found.labels.tolist()) == (["0", "1", "2"], [0, 1, 0])
        assert found.read(0) == (saved / "a.png").read_bytes()
    assert open_given(saved / "parquet" / "test-0.parquet").labels.tolist() == [-1, -1]
    assert open_given(saved / "bare").labels.tolist() == [-1, -1, -1]
    both = open_given([saved / "parquet" / "test-0.parquet", saved / "a.png", saved / "disk" / "train"])
    assert both.labels.tolist() == [-1, -1, -1, 1, 0, 1]
    assert both.describe(4) == f"{saved}/disk/train row 1"


def test_one_of_several_splits_has_to_be_named(saved):
    with pytest.raises(ValueError, match=r"splits test, train: give one of them, as .*parquet/test-0.parquet"):
        open_given(saved / "parquet")
    with pytest.raises(ValueError, match=r"give one of them, as .*disk/test"):
        open_given(saved / "disk")
    like = HuggingFaceData(source="huggingface", train="x", val_split="test")
    assert len(open_given(saved / "parquet", like=like)) == 2


NAMES = st.lists(st.lists(st.sampled_from(["a", "b.", "a-", "Z", "é", "1"]), min_size=1, max_size=3), max_size=8)


@settings(max_examples=30, deadline=None)
@given(NAMES)
def test_the_order_is_that_of_whole_names(tmp_path_factory, paths):
    root = tmp_path_factory.mktemp("order")
    names = {"/".join(parts) + ".png" for parts in paths}
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    assert list(images_of(root)) == sorted(names)


def test_what_is_held_of_a_row_is_its_name(tmp_path):
    import tracemalloc

    put(tmp_path / "a.png")
    file = table(tmp_path / "list.csv", "file,label", *("a.png,dog" for _ in range(20_000)))
    tracemalloc.start()
    found = open_given(file)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(found) == 20_000
    assert held < 20_000 * 60
    assert np.all(found.labels == 0)


def test_a_link_to_a_folder_above_is_not_gone_into(folder):
    (folder / "dog" / "up").symlink_to(folder)
    (folder / "dog" / "cats").symlink_to(folder / "cat")
    found = open_given(folder / "dog")
    assert set(found.ids) == {*(name.name for name in (folder / "dog").glob("*.*")), "cats/a.png"}
