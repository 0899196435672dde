import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from recipes.load import load
from resnet.tools.check_data import check_data, open_paths, open_recipe
from resnet.tools.check_table import as_lines, figures
from resnet.tools.cli import main
from resnet.tools.image_facts import FACTS
from tests.helpers import TINY


def picture(seed: int, size: tuple[int, int] = (96, 80), mode: str = "RGB") -> Image.Image:
    """A smooth image, of another shape and other colours for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def save(path: Path, image: Image.Image, **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **how)
    return path


@pytest.fixture
def clean(tmp_path) -> Path:
    """Three classes of four images for training, and of two for validation."""
    folder = tmp_path / "set"
    for number, name in enumerate(("cat", "dog", "eel")):
        for image in range(4):
            save(folder / f"train/{name}/{image}.jpg", picture(10 * number + image))
        for image in range(2):
            save(folder / f"val/{name}/{image}.jpg", picture(100 + 10 * number + image))
    return folder


def checked_folder(folder: Path, *words: str):
    data = ("data.source=image_folder", f"data.train={folder}/train", f"data.val={folder}/val", "data.num_workers=0")
    others = [word for word in TINY if not word.startswith(("data.per_class", "data.size", "data.num_workers"))]
    return check_data(open_recipe(load([*others, *data, *words]).recipe))


def told(checked, groups) -> list[list[str]]:
    return [["/".join(checked.file(place).split("/")[-3:]) for place in group.places] for group in groups]


def test_clean_images_are_clean(clean):
    checked = checked_folder(clean)
    assert not checked.spoils
    assert not checked.same + checked.alike + checked.broken
    assert as_lines(checked)[-1] == "nothing that spoils a training"
    assert figures(checked, 0) == {
        **dict.fromkeys(("not_read", "broken", "copies", "look_alikes", "two_labels", "unlabelled"), 0),
        **dict.fromkeys(("progressive", "grey", "cmyk", "transparent", "rotated", "long", "smaller_than_crop"), 0),
        "images": 12,
        "classes": 3,
        "images_a_class": [4, 4, 4],
        "empty_classes": [],
        "one_image_classes": [],
        "formats": {"JPEG": 12},
        "orientations": {},
        "median_size": [96, 80],
        "bytes": sum(file.stat().st_size for file in (clean / "train").rglob("*.jpg")),
        "short_side": dict.fromkeys(figures(checked, 0)["short_side"], 0) | {"64 - 128": 12},
        "aspect_ratio": dict.fromkeys(figures(checked, 0)["aspect_ratio"], 0) | {"1.05 - 1.34": 12},
    }
    assert FACTS.itemsize <= 65


def test_the_same_image_is_found_in_other_bytes_elsewhere_and_under_another_label(clean):
    shutil.copy(clean / "train/cat/0.jpg", clean / "train/cat/copy.jpg")
    data = (clean / "train/cat/1.jpg").read_bytes()
    comment = b"\xff\xfe\x00\x07hello"
    (clean / "val/cat/leak.jpg").write_bytes(data[:2] + comment + data[2:])
    save(clean / "train/dog/as.png", picture(40), compress_level=1)
    save(clean / "train/eel/as.png", picture(40), compress_level=9)
    checked = checked_folder(clean)
    assert told(checked, checked.same) == [
        ["train/cat/1.jpg", "val/cat/leak.jpg"],
        ["train/dog/as.png", "train/eel/as.png"],
        ["train/cat/0.jpg", "train/cat/copy.jpg"],
    ]
    facts = [(group.same_bytes, group.leak, group.two_labels) for group in checked.same]
    assert facts == [(False, True, False), (False, False, True), (True, False, False)]
    assert checked.alike == []
    train, val = figures(checked, 0), figures(checked, 1)
    assert (train["copies"], train["two_labels"], val["copies"], val["also_in_training"]) == (2, 2, 0, 1)
    assert checked.spoils
    assert as_lines(checked)[-1] == "wrong: 1 validation image also in training, 1 image under two labels"
    assert f"  {clean}/train/cat/1.jpg (cat) = {clean}/val/cat/leak.jpg (cat), other bytes" in as_lines(checked)


def test_copies_alone_spoil_nothing(clean):
    shutil.copy(clean / "train/cat/0.jpg", clean / "train/cat/copy.jpg")
    assert not checked_folder(clean).spoils


def test_resized_and_compressed_anew_looks_alike(clean):
    save(clean / "val/dog/small.jpg", picture(11).resize((48, 40)), quality=60)
    save(clean / "train/cat/bad.jpg", picture(3), quality=30)
    for shade in (10, 20, 30):  # even surfaces have no shape
        save(clean / f"train/eel/{shade}.png", Image.new("RGB", (50, 50), (shade, shade, shade)))
    dark = Image.eval(picture(60), lambda level: level // 3)
    for name, shift in (("1.png", 0), ("2.png", 60), ("3.png", 2)):  # of one shape all three
        save(clean / f"train/fox/{name}", Image.eval(dark, lambda level: level + shift))  # noqa: B023
    checked = checked_folder(clean)
    alike = [
        ["train/dog/1.jpg", "val/dog/small.jpg"],
        ["train/cat/3.jpg", "train/cat/bad.jpg"],
        ["train/fox/1.png", "train/fox/3.png"],
    ]
    assert told(checked, checked.alike) == alike
    assert checked.same == []
    assert (figures(checked, 0)["look_alikes"], figures(checked, 1)["alike_in_training"]) == (2, 1)
    assert not checked.spoils


def test_broken_images_have_reasons(clean, monkeypatch):
    data = (clean / "train/cat/0.jpg").read_bytes()
    (clean / "train/cat/half.jpg").write_bytes(data[: len(data) // 2])
    (clean / "train/dog/empty.jpg").write_bytes(b"")
    (clean / "val/dog/page.jpg").write_text("<html>")
    opened = open_paths([str(clean / "train")], [str(clean / "val")])._replace(workers=0)
    (clean / "val/eel/1.jpg").unlink()
    checked = check_data(opened)
    reasons = {checked.file(place).removeprefix(f"{clean}/"): why for place, why in checked.broken}
    assert list(reasons) == ["train/cat/half.jpg", "train/dog/empty.jpg", "val/dog/page.jpg", "val/eel/1.jpg"]
    assert reasons["train/dog/empty.jpg"] == "the file is empty"
    assert "not an image" in reasons["val/dog/page.jpg"]
    assert reasons["val/eel/1.jpg"] == "No such file or directory"
    assert (figures(checked, 0)["broken"], figures(checked, 1)["broken"]) == (2, 2)
    assert checked.same + checked.alike == []
    assert checked.spoils
    assert as_lines(checked)[-1] == "wrong: 4 broken images"


def test_forms_of_images_are_counted(clean):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(clean / "train/cat/turned.jpg", picture(50), exif=exif)
    save(clean / "train/cat/cmyk.jpg", picture(51, mode="CMYK"))
    save(clean / "train/cat/grey.png", picture(52, mode="L"))
    save(clean / "train/cat/clear.png", picture(53, mode="RGBA"))
    save(clean / "train/cat/progressive.jpg", picture(54), progressive=True)
    save(clean / "train/cat/long.webp", picture(55, size=(400, 100)))
    save(clean / "train/cat/tiny.bmp", picture(56, size=(20, 30)))
    save(clean / "train/fox/only.jpg", picture(57))
    checked = checked_folder(clean)
    train, val = figures(checked, 0), figures(checked, 1)
    assert train["formats"] == {"JPEG": 16, "PNG": 2, "BMP": 1, "WEBP": 1}
    assert train["orientations"] == {"6": 1}
    counts = ("rotated", "cmyk", "grey", "transparent", "progressive", "long", "smaller_than_crop")
    assert [train[name] for name in counts] == [1] * 7
    assert [val[name] for name in counts] == [0] * 7
    assert (train["one_image_classes"], val["empty_classes"], train["images_a_class"]) == (["fox"], ["fox"], [1, 4, 11])
    assert (train["short_side"]["< 32"], train["aspect_ratio"][">= 3"]) == (1, 1)
    assert not checked.spoils
    text = "\n".join(as_lines(checked))
    assert f"{clean}/train/cat/turned.jpg (6)" in text
    assert "val: 1 class without an image:\n  fox" in text


def test_images_that_come_as_pixels():
    data = ("data.source=synthetic", "data.train=x", "data.samples=70", "data.size=16", "data.num_workers=0")
    others = [word for word in TINY if not word.startswith("data.")]
    opened = open_recipe(load([*others, *data]).recipe)
    checked = check_data(opened._replace(val=opened.train))
    assert figures(checked, 0)["formats"] == {"pixels": 70}
    assert figures(checked, 1)["also_in_training"] == 70


def test_ctrl_c_ends_it_with_what_is_known(clean):
    shutil.copy(clean / "train/cat/0.jpg", clean / "train/cat/copy.jpg")

    def interrupted(chunks, images):
        yield next(chunks)
        raise KeyboardInterrupt

    opened = open_paths([str(clean / "train")], [str(clean / "val")])._replace(workers=0)
    checked = check_data(opened, interrupted)
    assert checked.stopped
    assert told(checked, checked.same) == [["train/cat/0.jpg", "train/cat/copy.jpg"]]
    assert figures(checked, 1)["not_read"] == 6
    assert as_lines(checked)[-1] == "stopped, 6 images not read; of the others: nothing that spoils a training"


def test_the_command_tells_draws_and_leaves_with_what_was_found(clean, tmp_path, capsys):
    words = ["check-data", str(clean), "--grid", str(tmp_path / "grid.png")]
    (clean / "docs").mkdir()
    main(words)
    out, err = capsys.readouterr()
    assert "no picture" in out
    assert "left out, beside training and validation images: docs" in err
    assert not (tmp_path / "grid.png").exists()
    shutil.copy(clean / "train/cat/0.jpg", clean / "val/dog/0.jpg")
    save(clean / "train/cat/cmyk.jpg", picture(51, mode="CMYK"))
    with pytest.raises(SystemExit) as left:
        main([*words, "--json"])
    assert left.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert [place["file"] for place in found["same"][0]["places"]] == [
        str(clean / "train/cat/0.jpg"),
        str(clean / "val/dog/0.jpg"),
    ]
    assert [place["label"] for place in found["same"][0]["places"]] == ["cat", "dog"]
    assert found["parts"]["train"]["images"] == 13
    assert found["cmyk"] == [{"part": "train", "file": str(clean / "train/cat/cmyk.jpg"), "label": "cat"}]
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 3 * 200  # a pair and a single image


@pytest.mark.skipif(sys.platform == "darwin", reason="file names there are text")
def test_any_name_is_told_on_a_line_and_in_json(clean, capsys):
    names = [os.fsdecode(b"caf\xe9.jpg"), "two\nlines.jpg"]
    for name in names:
        (clean / "train/cat" / name).write_bytes(b"")
    told = []
    for words in ([], ["--json"]):
        with pytest.raises(SystemExit):
            main(["check-data", str(clean), *words])
        told.append(capsys.readouterr().out)
    for line in ("caf\\udce9.jpg: the file is empty", "two\\nlines.jpg: the file is empty"):
        assert f"  {clean}/train/cat/{line}\n" in told[0]
    assert [Path(broken["file"]).name for broken in json.loads(told[1].encode())["broken"]] == names


def test_a_csv_file_at_a_path_with_another_for_validation(clean, capsys):
    rows = "\n".join(f"train/{name}/{image}.jpg,{name}" for name in ("cat", "dog") for image in range(4))
    train, val = clean / "train.csv", clean / "val.csv"
    train.write_text(f"file,label\n{rows}\n")
    val.write_text("file,label\nval/cat/0.jpg,cat\nval/dog/0.jpg,wolf\n")
    main(["check-data", str(train), "--val", str(val), "--json"])
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["parts"]["train"]["images_a_class"] == [4, 4, 4]
    assert found["parts"]["val"]["unlabelled"] == 1
    assert "1 class of the data is none of training's: wolf (1)" in said.err


def test_splits_of_parquet_files_in_a_folder(clean, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    images = [(clean / f"train/cat/{number}.jpg").read_bytes() for number in (0, 1, 1)]
    (tmp_path / "rows").mkdir()
    for name, column in (("train-00000-of-00001", images[:2]), ("test-00000-of-00001", images[2:])):
        table = pyarrow.table({"image": column, "label": ["cat"] * len(column)})
        pyarrow.parquet.write_table(table, tmp_path / f"rows/{name}.parquet")
    checked = check_data(open_paths([str(tmp_path / "rows")])._replace(workers=0))
    assert [len(part.facts) for part in checked.parts] == [2, 1]
    assert [(group.places, group.leak) for group in checked.same] == [([(0, 1), (1, 0)], True)]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["recipe=quickstart", "{}"], "give paths, or recipe=NAME"),
        (["recipe=quickstart", "--val", "x"], "--val is for images at a PATH"),
        (["{}", "--grid", "{}/train/cat/0.jpg"], "ends in .png"),
        (["{}/nowhere"], "there is no"),
    ],
)
def test_mistakes(clean, words, reason, capsys):
    with pytest.raises(SystemExit) as left:
        main(["check-data", *(word.format(clean) for word in words)])
    assert left.value.code == 2
    assert reason in capsys.readouterr().err
