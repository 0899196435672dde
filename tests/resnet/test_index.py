"""Images that are listed once: indexes of folders and CSV files, and what the other ranks of a run are told."""

import errno
import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist
from pydantic import TypeAdapter

from recipes.changes import differences
from recipes.load import digest, load
from recipes.schema.data import Data
from resnet.build import build_data, build_splits_of_ranks
from resnet.data.sources.index import FOLDER, Index
from resnet.data.sources.registry import open_splits
from resnet.main import main
from resnet.ranks import leave_ranks
from tests.helpers import TINY
from tests.processes import start_ranks, wait_ranks
from tests.resnet.test_sources import write

AN_HOUR = 3600
BEFORE = time.time() - AN_HOUR


def settle(folder: Path) -> None:
    """Let a folder look as if nothing in it had changed for an hour."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (0, BEFORE))


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    for name in ("cat/b.jpg", "cat/a.jpg", "ant/deep/z.png", "bee/ü 1.bmp", os.fsdecode(b"bee/\xff.jpg")):
        for split in ("train", "val", "test"):
            write(folder / split / name)
        write(folder / "flat" / name.replace("/", "_"))
    (folder / "val/cat/a.jpg").unlink()
    (folder / "train/ant/empty").mkdir()
    rows = [f"{path.name},{path.name[:3]}" for path in (folder / "flat").iterdir()]
    lines = os.fsencode("\n".join(["file,label", *(row for row in rows if row.isprintable())]))
    (folder / "flat" / os.fsdecode(b"bee_\xff.jpg")).unlink()
    write(folder / "flat.csv", lines)
    write(folder / "labels.txt", lines.replace(b",", b"\t"))
    settle(folder)
    return folder


SOURCES = {
    "image_folder": {"source": "image_folder", "train": "{}/train", "val": "{}/val"},
    "tested": {"source": "image_folder", "train": "{}/train", "val": "{}/val", "test": "{}/test"},
    "flat": {"source": "image_folder", "train": "{}/train", "val": "{}/flat", "val_labels": "{}/labels.txt"},
    "csv": {"source": "csv", "train": "{}/flat.csv", "val_fraction": 0.2, "images": "{}/flat"},
}


def opened(kind: str, folder: Path, index: Index):
    keys = {key: str(value).format(folder) for key, value in SOURCES[kind].items()}
    return open_splits(TypeAdapter(Data).validate_python(keys), lister=index)


def content(splits) -> list:
    return [
        ([source.describe(index) for index in range(len(source))], source.labels.tolist(), source.classes)
        for source in splits
        if source is not None
    ]


@pytest.fixture
def looked_into(monkeypatch) -> list[str]:
    """The folders that are listed from here on."""
    found: list[str] = []
    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, noted(getattr(os, name), found))
    return found


def noted(look: Callable, found: list[str]) -> Callable:
    """A function of the file system that takes note of paths, but for those of the index itself."""

    def looking(path, **words):
        if FOLDER not in str(path):
            found.append(str(path))
        return look(path, **words)

    return looking


@pytest.mark.parametrize("kind", SOURCES)
def test_a_second_start_lists_nothing(images, tmp_path, looked_into, kind):
    first = content(opened(kind, images, Index(tmp_path / FOLDER)))
    # Once also where test images are opened as those of validation are, beside those of training.
    assert len({*looked_into}) == len(looked_into)
    looked_into.clear()
    assert content(opened(kind, images, Index(tmp_path / FOLDER))) == first
    assert looked_into == []
    opened(kind, images, Index(tmp_path / FOLDER, rebuild=True))
    assert looked_into


CHANGES = {
    "new file": lambda folder: write(folder / "train/cat/c.jpg"),
    "new file where there was none": lambda folder: write(folder / "train/ant/empty/c.jpg"),
    "new class": lambda folder: write(folder / "train/dog/c.jpg"),
    "removed": lambda folder: (folder / "train/ant/deep/z.png").rename(folder / "train/ant/z.png"),
    "renamed class": lambda folder: [
        (folder / split / "cat").rename(folder / split / "dog") for split in ("train", "val")
    ],
    "another file, by what keeps the folder's time": lambda folder: (
        (folder / "train/cat/b.jpg").rename(folder / "train/cat/c.jpg"),
        settle(folder),
    ),
    "val": lambda folder: (folder / "val/cat/b.jpg").rename(folder / "val/cat/c.jpg"),
    "another folder of the same name": lambda folder: (
        (folder / "train/bee").rename(folder / "bee"),
        write(folder / "train/bee/x.jpg"),
        settle(folder),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changed_is_noticed(images, tmp_path, change):
    before = content(opened("image_folder", images, Index(tmp_path / FOLDER)))
    change(images)
    now = content(opened("image_folder", images, Index(tmp_path / FOLDER)))
    assert now == content(opened("image_folder", images, Index(tmp_path / "none"))) != before


@pytest.mark.parametrize(("kind", "file"), [("csv", "flat.csv"), ("flat", "labels.txt")])
def test_a_changed_list_of_labels_is_noticed(images, tmp_path, kind, file):
    before = content(opened(kind, images, Index(tmp_path / FOLDER)))
    text = (images / file).read_text()
    (images / file).write_text(re.sub("([,\t])ant", r"\1bee", text))
    now = content(opened(kind, images, Index(tmp_path / FOLDER)))
    assert now == content(opened(kind, images, Index(tmp_path / "none"))) != before


def test_what_changed_just_before_it_was_listed_is_listed_again(images, tmp_path, looked_into):
    write(images / "train/cat/c.jpg")
    opened("image_folder", images, Index(tmp_path / FOLDER))
    looked_into.clear()
    opened("image_folder", images, Index(tmp_path / FOLDER))
    assert {f"{images}/train/cat", f"{images}/train/bee"} < {*looked_into}
    assert not any(f"{images}/val" in path for path in looked_into)


def lists(folder: Path) -> set[Path]:
    return {*(folder / FOLDER).glob("*.files")}


def test_a_damaged_index_is_made_anew(images, tmp_path):
    first = content(opened("image_folder", images, Index(tmp_path / FOLDER)))
    whole = {path: path.read_bytes() for path in (tmp_path / FOLDER).iterdir()}
    for path, good in whole.items():
        flipped = (good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good), 61))
        for bad in (*flipped, b"", good[:50], good + b"more", b"[" * 100_000, b"null", b'{"seen": 3}'):
            path.write_bytes(bad)
            assert content(opened("image_folder", images, Index(tmp_path / FOLDER))) == first
            assert path.read_bytes() == good


def stranger(ends: list[int], labels: list[int], names: bytes, **header) -> bytes:
    """A list as a stranger could have written it, with a digest that is right."""
    line = json.dumps({"classes": ["ant", "bee", "cat"], "images": len(labels), "bytes": len(names), **header}).encode()
    first = b"resnet-launch files 1\n"
    head = first + line + b" " * (-(len(first) + len(line) + 1) % 8) + b"\n"
    return head + struct.pack(f"<{len(ends) + len(labels)}q", *ends, *labels) + names


RIGHT = stranger([0, 3, 6, 14], [0, 1, 1], b"a....ab..c/..d")
HOSTILE = {
    "ends beyond": stranger([0, 2, 5000], [0, 1], b"a.b."),
    "ends before": stranger([0, -8, 4], [0, 1], b"a.b."),
    "ends so far apart that 64 bits hold no difference": stranger([0, 2**62, -(2**63) + 5, 4], [0, 1, 1], b"a.b."),
    "an end twice": stranger([0, 4, 4], [0, 1], b"a.b."),
    "a label beyond": stranger([0, 2, 4], [0, 3], b"a.b."),
    "a label before": stranger([0, 2, 4], [-1, 0], b"a.b."),
    "longer than it says": stranger([0, 2, 4], [0, 1], b"a.b.", images=3),
    "shorter than it says": stranger([0, 2, 4], [0, 1], b"a.b.", bytes=2),
    "less than nothing": stranger([0, 2, 4], [0, 1], b"a.b.", images=-1, bytes=36),
    "classes of numbers": stranger([0, 2, 4], [0, 1], b"a.b.", classes=[1, 2, 3]),
    "no number": stranger([0, 2, 4], [0, 1], b"a.b.", images="2"),
    "a name of no file": stranger([0, 2, 4], [0, 1], b"a.\0."),
    "a whole path": stranger([0, 2, 6], [0, 1], b"a./etc"),
    "a way up": stranger([0, 2, 6], [0, 1], b"a.../b"),
    "a way up inside": stranger([0, 2, 8], [0, 1], b"a.b/../c"),
    "a way up at the end": stranger([0, 2, 6], [0, 1], b"a.b/.."),
    "a pickle": b"\x80\x04cos\nsystem\n(S'false'\ntR.",
}


@pytest.mark.parametrize("hostile", [*HOSTILE.values(), RIGHT], ids=[*HOSTILE, "not"])
def test_a_list_that_a_stranger_wrote_is_not_taken(images, tmp_path, hostile):
    first = content(opened("image_folder", images, Index(tmp_path / FOLDER)))
    (entry,) = (tmp_path / FOLDER).glob("train-*.json")
    digest = hashlib.sha256(hostile).hexdigest()
    (tmp_path / FOLDER / f"{digest}.files").write_bytes(hostile)
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"list": digest}))
    # The right one shows that it is the lists that are refused.
    assert (content(opened("image_folder", images, Index(tmp_path / FOLDER))) == first) == (hostile is not RIGHT)


def test_an_entry_that_leads_out_of_the_folder_is_not_taken(images, tmp_path):
    first = content(opened("image_folder", images, Index(tmp_path / FOLDER)))
    (entry,) = (tmp_path / FOLDER).glob("train-*.json")
    told = json.loads(entry.read_text())
    shutil.copy(tmp_path / FOLDER / f"{told['list']}.files", tmp_path / "x.files")
    entry.write_text(json.dumps(told | {"list": "../x"}))
    assert content(opened("image_folder", images, Index(tmp_path / FOLDER))) == first
    assert json.loads(entry.read_text()) == told


def test_what_cannot_be_written_does_not_lose_the_list(images, tmp_path, looked_into, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "as of another user")

    with monkeypatch.context() as patched:
        patched.setattr("resnet.data.sources.index.write_atomic", refuse)
        index = Index(tmp_path / FOLDER, tells=True)
        first = content(opened("image_folder", images, index))
    assert all(one.path for one in index.told.values())
    opened("image_folder", images, Index(tmp_path / FOLDER))
    looked_into.clear()
    monkeypatch.setattr(os, "utime", refuse)
    assert content(opened("image_folder", images, Index(tmp_path / FOLDER))) == first
    assert looked_into == []


@pytest.mark.parametrize("what", ["*.json", "*.files"])
@pytest.mark.timeout(20)
def test_a_pipe_in_the_index_holds_nobody_up(images, tmp_path, what):
    first = content(opened("image_folder", images, Index(tmp_path / FOLDER)))
    for path in [*(tmp_path / FOLDER).glob(what)]:
        path.unlink()
        os.mkfifo(path)
    assert content(opened("image_folder", images, Index(tmp_path / FOLDER))) == first


def test_what_was_listed_by_other_rules_is_listed_again(images, tmp_path, looked_into, monkeypatch):
    for source, kind in (("image_folder", "image_folder"), ("csv_manifest", "csv")):
        opened(kind, images, Index(tmp_path / FOLDER))
        looked_into.clear()
        monkeypatch.setattr(f"resnet.data.sources.{source}.RULES", "of a later version")
        opened(kind, images, Index(tmp_path / FOLDER))
        assert looked_into


def test_a_list_that_is_to_be_mapped_is_as_new(images, tmp_path):
    for _ in range(2):
        opened("image_folder", images, Index(tmp_path / FOLDER, keeps=False, tells=True))
        assert all(time.time() - path.stat().st_mtime < AN_HOUR for path in lists(tmp_path))
        for path in lists(tmp_path):
            os.utime(path, (0, time.time() - 31 * 24 * AN_HOUR))


def test_where_nothing_can_be_written_the_images_are_listed(images, tmp_path):
    write(tmp_path / "runs" / FOLDER, "a file")
    first = content(opened("image_folder", images, Index(tmp_path / FOLDER)))
    assert content(opened("image_folder", images, Index(tmp_path / "runs" / FOLDER))) == first


def test_lists_that_nothing_has_any_more_are_removed_after_a_month(images, tmp_path):
    opened("image_folder", images, Index(tmp_path / FOLDER))
    for number, damaged in enumerate((b"{", b"[]", b'{"list": {}}')):
        (tmp_path / FOLDER / f"{number}.json").write_bytes(damaged)
    for name in ("c.jpg", "d.jpg", "e.jpg"):
        for path in lists(tmp_path):
            os.utime(path, (0, time.time() - 31 * 24 * AN_HOUR))
        write(images / "train/cat" / name)
        settle(images)
        opened("image_folder", images, Index(tmp_path / FOLDER))
        # Of validation, of training, and of training before, which is removed as the next one is made.
        assert len(lists(tmp_path)) == 3


def test_the_key_is_no_part_of_the_training(words):
    recipe, rebuilt = load(words).recipe, load([*words, "data.index=rebuild"]).recipe
    assert digest(recipe) == digest(rebuilt)
    assert differences(recipe, rebuilt) == {}


def test_tools_leave_no_index_where_there_are_no_runs(images, words, tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", str(images))
    build_data(load(words).recipe)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs").mkdir()
    build_data(load(words).recipe)
    assert len(lists(tmp_path / "runs")) == 2


@pytest.fixture
def words(tmp_path) -> list[str]:
    data = ["data.source=image_folder", "data.train=$PLACE/train", "data.val=$PLACE/val"]
    kept = [word for word in TINY if not word.startswith(("data.per_class", "data.size"))]
    return [*kept, *data, f"run.root={tmp_path}/runs"]


def on_ranks(words: list[str], tmp_path: Path, places: list[Path], program: Callable) -> list[int]:
    """Exit codes of three ranks, one on a node of its own and two on another, each node with its own $PLACE."""

    def placed(argv):
        rank = int(os.environ["RANK"])
        os.environ |= {"PLACE": str(places[rank > 0]), "LOCAL_RANK": str(max(0, rank - 1))}
        return program(argv)

    return wait_ranks(start_ranks(words, 3, tmp_path / "out.txt", placed), 60)


def opened_on_ranks(words: list[str], tmp_path: Path, places: list[Path]) -> list[dict]:
    """By rank what it opened and what it asked of the file system."""

    def program(argv):
        rank, local_rank = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK"))
        dist.init_process_group("gloo")
        recipe, listed, stats = load(argv).recipe, [], []
        os.scandir, os.stat = noted(os.scandir, listed), noted(os.stat, stats)
        splits = build_splits_of_ranks(recipe, {}, rank, local_rank)
        of_data = [path for path in stats if os.environ["PLACE"] in path]
        told = {"listed": listed, "stats": of_data, "content": content(splits)}
        (tmp_path / f"{rank}.json").write_text(json.dumps(told))
        leave_ranks()
        return 0

    assert on_ranks(words, tmp_path, places, program) == [0, 0, 0], (tmp_path / "out.txt").read_text()
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]


def test_one_rank_of_a_node_lists_where_there_is_no_root_yet(images, words, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, second, third = opened_on_ranks(words, tmp_path, [images, images])
    assert first["content"] == second["content"] == third["content"]
    of_data = [path for path in first["listed"] if str(images) in path]
    assert len({*of_data}) == len(of_data) > 0
    assert second["listed"]
    assert third["listed"] == third["stats"] == []
    assert not (tmp_path / "runs").exists()
    assert not [*tmp_path.glob("resnet-lists-*")]


def test_one_rank_lists(images, words, tmp_path):
    (tmp_path / "runs").mkdir()
    first, second, third = opened_on_ranks(words, tmp_path, [images, images])
    assert first["content"] == second["content"] == third["content"]
    assert first["listed"]
    assert second["listed"] == third["listed"] == third["stats"] == []
    assert second["stats"], "to tell whether it is the same folder"


def test_a_copy_on_another_node_is_listed_once(images, words, tmp_path):
    (tmp_path / "runs").mkdir()
    copy = shutil.copytree(images, tmp_path / "copy")
    first, second, third = opened_on_ranks(words, tmp_path, [images, copy])
    assert second["content"] == third["content"]
    assert json.dumps(first["content"]).replace(str(images), str(copy)) == json.dumps(second["content"])
    assert second["listed"]
    assert third["listed"] == []


OTHERS = {
    "fewer": (
        lambda copy: (copy / "val/cat/b.jpg").unlink(),
        r"data\.val: .*: 3 images and 4; cat/b\.jpg \(class cat\) is only on rank 0",
    ),
    "more": (
        lambda copy: write(copy / "train/cat/c.jpg"),
        r"data\.train: .*: 6 images and 5; cat/c\.jpg \(class cat\) is only on rank 1",
    ),
    "classes": (
        lambda copy: (copy / "train/cat").rename(copy / "train/dog"),
        "3 classes and 3, dog only on rank 1 and cat only on rank 0",
    ),
    "none": (
        lambda copy: (copy / "train").rename(copy / "away"),
        r"there is no .*/copy/train\. .* This is rank 1 \(",
    ),
}


@pytest.mark.parametrize(("change", "told"), OTHERS.values(), ids=OTHERS)
def test_other_files_on_another_node_end_all_ranks(images, words, tmp_path, change, told):
    (tmp_path / "runs").mkdir()
    copy = shutil.copytree(images, tmp_path / "copy")
    change(copy)
    codes = on_ranks(words, tmp_path, [images, copy], main)
    output = (tmp_path / "out.txt").read_text()
    assert codes == [2, 2, 2], output
    assert re.search(told, output), output
