"""The pages in examples/ do what they say: their commands in turn, on drawn images that lie as their data does.

What trains is made small by changes that are added to its command; blocks marked `sh skip` download, and are not run.
"""

from __future__ import annotations

import csv
import pickle
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import launch.cli
import resnet.tools.cli
from resnet.data.sources.shapes import SHAPES, _draw
from resnet.rundir.find import runs_in
from tests.helpers import OFF, PROGRAM, evaluation, train

PAGES = PROGRAM / "examples"
SMALL = [*OFF, "data.num_workers=0", "log_every=1"]
NET = ["model.name=null", "model.block=basic", "model.layers=[1,1,1]"]
PIXELS = ["augment.train_size=32", "augment.val_resize=36", "augment.val_size=32"]


def draw(kind: int, index: int, size: int = 40) -> Image.Image:
    """A shape, a kind a class."""
    return _draw(list(SHAPES)[kind], size, np.random.default_rng([kind, index]))


def draw_folder(folder: Path, classes: list[str], count: int) -> None:
    for kind, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            draw(kind, index).save(folder / name / f"{index}.jpg")


def write_cifar(folder: Path, files: dict[str, int], label_key: str, classes: int) -> None:
    """As the archive unpacks: pickled rows of 3 x 32 x 32 bytes and their labels."""
    folder.mkdir(parents=True)
    for name, count in files.items():
        labels = [index % classes for index in range(count)]
        images = [np.asarray(draw(label % 10, n, 32).resize((32, 32))) for n, label in enumerate(labels)]
        rows = np.stack(images).transpose(0, 3, 1, 2).reshape(count, -1)
        (folder / name).write_bytes(pickle.dumps({"data": rows, label_key: labels}))


def cifar10(monkeypatch) -> None:
    folder = Path("data/cifar-10-batches-py")
    write_cifar(folder, {**{f"data_batch_{n}": 8 for n in range(1, 6)}, "test_batch": 20}, "labels", 10)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {n}" for n in range(10)]}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, *_: Path(path).is_file())


def cifar100(monkeypatch) -> None:
    folder = Path("data/cifar-100-python")
    write_cifar(folder, {"train": 200, "test": 100}, "fine_labels", 100)
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {n}" for n in range(100)]}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, *_: Path(path).is_file())
    draw(0, 1, 32).save("apple.png")


def cats_and_dogs(monkeypatch) -> None:
    draw_folder(Path("data/PetImages"), ["Cat", "Dog"], 20)
    Path("data/PetImages/Cat/666.jpg").touch()
    draw_folder(Path("photos"), ["."], 3)
    draw(1, 7).save("photos/garden.jpg")


SPORTS = {"Badminton": 8, "Cricket": 5, "Karate": 5, "Soccer": 5, "Swimming": 5, "Wrestling": 5}


def sports(monkeypatch) -> None:
    for split, counts in (("train", SPORTS), ("test", {"": 4})):
        folder = Path("data/sport6", split)
        folder.mkdir(parents=True)
        rows = [("image_ID", "label") if split == "train" else ("image_ID",)]
        for kind, (name, count) in enumerate(counts.items()):
            for index in range(count):
                draw(kind, index).save(folder / f"{kind}{index}.jpg")
                rows.append((f"{kind}{index}.jpg", name)[: len(rows[0])])
        with open(f"data/sport6/{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)


def own_images(monkeypatch) -> None:
    for split, count in (("train", 8), ("val", 3)):
        draw_folder(Path("data/finetune", split), ["ant", "bee", "cat"], count)
    draw_folder(Path("photos"), ["."], 3)
    torch.manual_seed(7)
    torch.save({"model": torchvision.models.resnet18().state_dict()}, "theirs.pth")


ADDED: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], list[str]]] = {
    "cifar10_resnet50_steplr": (cifar10, [*NET, "batch_size=10", "epochs=2", "schedule.every=1"]),
    "cifar100_onecycle": (cifar100, ["model.block=basic", "model.layers=[1,1,1]", "batch_size=50", "epochs=1"]),
    "cats_vs_dogs_resnet18": (cats_and_dogs, [*NET, *PIXELS, "data.max_broken=0.1", "epochs=1"]),
    "sport6_silu": (sports, [*PIXELS, "model.layers=[1,1,1]", "batch_size=12", "epochs=1"]),
    "finetune_resnet50": (own_images, ["model.name=resnet18", *PIXELS, "batch_size=8", "epochs=1"]),
}
"""By page: what puts its data in place, and the changes that make its training small."""


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", (PAGES / f"{page}.md").read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(words: list[str], added: list[str]) -> None:
    if words[:3] == ["accelerate", "launch", "train.py"]:
        first = [*added, "model.pretrained=theirs.pth"] if "model.freeze_backbone=true" in words else added
        assert train(*words[3:], *SMALL, *first, report=True) == 0
    elif words[0] == "resnet":
        of_recipe = any(word.startswith("recipe=") for word in words)
        resnet.tools.cli.main([*words[1:], *([*SMALL, *added] if of_recipe else [])])
    else:
        assert words[0] == "launch", words
        with pytest.raises(SystemExit) as ended:
            launch.cli.main(words[1:])
        assert ended.value.code == 0


def test_every_page_is_listed_and_run():
    pages = {path.stem for path in PAGES.glob("*.md")} - {"README"}
    assert pages == set(ADDED)
    assert pages <= set(re.findall(r"\]\((\w+)\.md\)", (PAGES / "README.md").read_text()))
    assert all(commands(page) for page in pages)


@pytest.mark.parametrize("page", ADDED)
def test_a_page_from_its_data_to_the_last_picture(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prepare, added = ADDED[page]
    prepare(monkeypatch)
    for words in commands(page):
        run(words, added)
        named = [Path(word) for word in words if word.endswith((".png", ".csv")) and "data" not in word]
        assert all(path.stat().st_size for path in named), words
    said = capsys.readouterr()
    assert "top-1" in said.out
    for run_dir in runs_in(Path("runs")):
        assert evaluation(run_dir)["classes"]
        assert (run_dir / "report.html").stat().st_size
    for code in blocks(page, "python"):
        exec(compile(code.replace("resnet50", "resnet18"), page, "exec"), {})
    if page == "sport6_silu":
        header, *rows = csv.reader(Path("submission.csv").read_text().splitlines())
        assert header == ["image_ID", "label"]
        assert [row[0] for row in rows] == [f"0{index}.jpg" for index in range(4)]
        assert {row[1] for row in rows} <= set(SPORTS)
    if page == "finetune_resnet50":
        assert "the classifier is new (1,000 classes there, 3 here)" in said.out
        assert "tensors from head; the classifier is kept" in said.out
    if page == "cats_vs_dogs_resnet18":
        assert "666.jpg" in said.err
