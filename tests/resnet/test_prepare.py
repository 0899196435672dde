"""`resnet prepare`: shards hold what their source holds, however often they were begun, and train the same run."""

import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from pydantic import TypeAdapter

from recipes.errors import RecipeError
from recipes.load import load
from recipes.schema.data import Data
from resnet.data.batches import MicroBatches
from resnet.data.decode import decode
from resnet.data.sources import shards
from resnet.data.sources.registry import evenly, open_sources
from resnet.data.sources.source import Source
from resnet.process.processes import is_alive
from resnet.tools.check_data import check_data, open_paths
from resnet.tools.cli import main
from resnet.tools.prepare import prepare as preparing
from resnet.tools.prepare.forms import Form
from tests.helpers import same, start, status, train, weights

SMALL = 9_000
"""Bytes of a shard: about nine images."""


def opened(**keys) -> tuple[Source, Source]:
    return open_sources(TypeAdapter(Data).validate_python(keys))


def prepared(*words: object) -> tuple[Source, Source]:
    main(["prepare", *map(str, words), "--workers", "2"])
    folder = [word for word in map(str, words) if "=" not in word and not word.startswith("--")][1]
    return opened(source="shards", train=folder)


def refused(capsys, *words: object, code: int = 2) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["prepare", *map(str, words)])
    assert ended.value.code == code
    return capsys.readouterr().err


def hashes(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def read(source: Source) -> list[bytes | torch.Tensor]:
    return [source.read(index) for index in range(len(source))]


def picture(path: Path, width: int, height: int, kind: str = "JPEG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(width).integers(0, 256, (height // 8, width // 8), dtype=np.uint8)
    Image.fromarray(noise).convert("RGB").resize((width, height)).save(path, kind)
    return path


@pytest.fixture
def small_shards(monkeypatch) -> None:
    monkeypatch.setattr(preparing, "SHARD_BYTES", SMALL)


def test_shards_hold_what_the_source_holds_in_its_order(shapes, tmp_path, small_shards, capsys, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    out = tmp_path / "shards"
    splits = prepared(shapes, out)
    assert f"160 training images in {len(list(out.glob('data/train-*')))} files" in capsys.readouterr().out
    source = {"source": "image_folder", "train": f"{shapes}/train", "val": f"{shapes}/val"}
    parquet = {"source": "huggingface", "train": str(out)}
    loaded = datasets.load_dataset(str(out))
    for found, folder, rows, split in zip(splits, opened(**source), opened(**parquet), shards.SPLITS, strict=True):
        assert len(list(out.glob(f"data/{split}-*.parquet"))) > 3
        assert found.classes == folder.classes == rows.classes == loaded[split].features["label"].names
        assert found.labels.tolist() == folder.labels.tolist() == rows.labels.tolist() == loaded[split]["label"]
        assert read(found) == read(folder) == read(rows) == read(pickle.loads(pickle.dumps(found)))
        names = [os.path.relpath(folder.describe(index), shapes / folder_of(split)) for index in range(len(folder))]
        assert [found.describe(index).partition(".parquet:")[2] for index in range(len(found))] == names
        first = loaded[split][0]["image"]
        assert np.array_equal(np.asarray(first), decode(folder.read(0)).permute(1, 2, 0))  # pyright: ignore


def folder_of(split: str) -> str:
    return "train" if split == "train" else "val"


def wait_until(reached: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_killed_and_repeated_it_ends_with_the_same_bytes(shapes, tmp_path, small_shards):
    folder, out, whole = shutil.copytree(shapes, tmp_path / "shapes"), tmp_path / "out", tmp_path / "whole"
    prepared(folder, whole)
    # A pipe that nobody writes to holds up the shard that it is in.
    files = sorted((folder / "train").rglob("*.jpg"))
    at = next(index for index in range(100, 160) if index not in evenly(160, 100))
    content = files[at].read_bytes()
    files[at].unlink()
    os.mkfifo(files[at])
    code = (
        f"from resnet.tools.prepare import prepare; prepare.SHARD_BYTES = {SMALL}; from resnet.tools.cli import main; "
    )
    process = start("-c", f"{code}main(['prepare', '{folder}', '{out}', '--workers', '1'])")
    try:
        count = len(list(whole.glob("data/train-*")))
        number = max(shard for shard in range(count) if shard * 160 // count <= at)
        held_up = f"data/.train-{number:05d}-*.tmp"
        wait_until(lambda: list(out.glob(held_up)))
        worker = int(next(iter(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())))
        process.send_signal(signal.SIGKILL)
        process.wait()
    finally:
        process.kill()
    wait_until(lambda: not is_alive(worker))
    assert list(out.glob(held_up))
    assert not (out / "index.json").exists()
    with pytest.raises(ValueError, match="is not finished: repeat the `resnet prepare` that began it"):
        opened(source="shards", train=str(out))
    finished = {file.name: file.stat().st_mtime_ns for file in out.glob("data/*.parquet")}
    assert len(finished) > 3
    files[at].unlink()
    files[at].write_bytes(content)
    damaged = out / "data" / min(finished)
    damaged.write_bytes(damaged.read_bytes()[::-1])
    prepared(folder, out)
    assert hashes(out) == hashes(whole)
    kept = {name for name, at in finished.items() if (out / "data" / name).stat().st_mtime_ns == at}
    assert finished.keys() - kept == {damaged.name}


def test_a_second_interruption_does_not_wait_for_what_is_being_written(tmp_path):
    begun = []

    def interrupted_twice():
        with preparing._pool(1, preparing._Job({}, Form(), (), tmp_path)) as pool:
            begun.append(pool.submit(time.sleep, 60))
            wait_until(begun[0].running)
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's workers ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted_twice()
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(BrokenProcessPool):
        begun[0].result(timeout=20)


def test_broken_images_are_left_out_and_listed(shapes, tmp_path, capsys):
    folder = shutil.copytree(shapes, tmp_path / "shapes")
    cut, gone = folder / "train/circle/0003.jpg", folder / "train/dots/0001.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    gone.unlink()
    gone.symlink_to("nowhere")
    mended = folder / "train/circle/0005.jpg"
    mended.write_bytes(b"")
    told = refused(capsys, folder, tmp_path / "out", code=2)
    shutil.copy(shapes / "train/circle/0005.jpg", mended)
    assert "3 images of 160 (train) cannot be read, more than data.max_broken=0.01 of them (circle/0003.jpg: " in told
    train_images, _ = prepared(folder, tmp_path / "out", "data.max_broken=0.1")
    told = capsys.readouterr().out
    assert "left out, as they cannot be read: 2 images (all in index.json)\n  circle/0003.jpg: " in told
    broken = json.loads((tmp_path / "out/index.json").read_text())["train"]["broken"]
    assert [image["image"] for image in broken] == ["circle/0003.jpg", "dots/0001.jpg"]
    assert broken[1]["reason"] == "No such file or directory"
    whole = opened(source="image_folder", train=f"{shapes}/train", val=f"{shapes}/val")[0]
    left = [i for i in range(160) if not whole.describe(i).endswith(("circle/0003.jpg", "dots/0001.jpg"))]
    assert read(train_images) == [whole.read(index) for index in left]
    assert train_images.labels.tolist() == whole.labels[left].tolist()


@pytest.fixture
def photos(tmp_path) -> Path:
    """A wide, a high and a small image in either split."""
    for split in ("train", "val"):
        picture(tmp_path / f"photos/{split}/a/1.jpg", 200, 100)
        picture(tmp_path / f"photos/{split}/a/2.png", 90, 150, "PNG")
        picture(tmp_path / f"photos/{split}/b/3.png", 40, 24, "PNG")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("form", "sizes"),
    [
        (["--max-side", "100", "--quality", "95"], [(50, 100), (100, 60), (24, 40)]),
        (["--short-side", "64"], [(64, 128), (106, 64), (24, 40)]),
        (["--raw", "64"], [(64, 128), (106, 64), (24, 40)]),
    ],
)
def test_forms(photos, tmp_path, form, sizes):
    found, _ = prepared(photos, tmp_path / "out", *form)
    original, _ = opened(source="image_folder", train=f"{photos}/train", val=f"{photos}/val")
    for index, stored in enumerate(read(found)):
        before = decode(original.read(index))  # pyright: ignore
        pixels = decode(stored) if isinstance(stored, bytes) else stored
        assert isinstance(stored, bytes) == (form[0] != "--raw")
        assert tuple(pixels.shape) == (3, *sizes[index])
        assert torch.equal(pixels, before) == (index == 2)
        size = list(sizes[index])
        resized = torch.nn.functional.interpolate(before[None].float(), size, mode="bilinear", antialias=True)[0]
        assert (resized - pixels).abs().mean() < (0.6 if form[0] == "--raw" else 4)
    if form[0] != "--raw":
        assert found.read(2) == original.read(2)
        assert Image.open(io.BytesIO(found.read(1))).format == "JPEG"  # pyright: ignore


def test_pixels_stay_pixels(tmp_path):
    """A source that has no files: PNG where images are kept, or raw."""
    words = ["recipe=quickstart", "data={source: synthetic, samples: 8, classes: 2, size: 20}"]
    source, _ = opened(source="synthetic", samples=8, classes=2, size=20)
    for form in ("--keep", "--raw=20"):
        main(["prepare", *words, str(tmp_path / form), form])
        found, _ = opened(source="shards", train=str(tmp_path / form))
        for index in range(8):
            image = found.read(index)
            assert torch.equal(source.read(index), decode(image) if isinstance(image, bytes) else image)  # pyright: ignore


def test_sources_are_told_from_what_lies_there(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    first, _ = prepared(photos, tmp_path / "folder")
    rows = "".join(f"{split}/{name},{name[0]}\n" for split in ("train", "val") for name in ("a/1.jpg", "b/3.png"))
    (photos / "list.csv").write_text(f"file,label\n{rows}")
    by_list, val = prepared(photos / "list.csv", tmp_path / "list", "data.val_fraction=0.5")
    assert [len(by_list), len(val)] == [2, 2]
    assert by_list.read(0) == val.read(0) == first.read(0)
    for source in (tmp_path / "folder", tmp_path / "folder/data"):
        again, _ = prepared(source, tmp_path / "again" / source.name)
        assert read(again) == read(first)
        assert again.classes == first.classes
    monkeypatch.chdir(tmp_path / "folder")
    prepared("data", tmp_path / "relative")
    assert hashes(tmp_path / "relative") == hashes(tmp_path / "again/data")


def test_shards_replace_a_recipes_validation_images():
    words = ["recipe=resnet50_imagenet", "data.source=shards", "data.train=shards"]
    assert load(words).recipe.data.val is None
    assert load([*words, "data.val=others"]).recipe.data.val == "others"
    with pytest.raises(RecipeError, match="val_fraction has no effect with source=shards"):
        load([*words, "data.val_fraction=0.1"])


def test_a_folder_of_something_else_is_refused(photos, shapes, tmp_path, small_shards, capsys):
    out = tmp_path / "out"
    assert "needs val" in refused(capsys, photos / "train", out)
    assert not out.exists()
    inside = photos / "train/shards"
    assert "lie in one another: give a folder beside it" in refused(capsys, photos, inside)
    prepared(photos, out)
    before = hashes(out)
    (photos / "docs").mkdir()
    (tmp_path / "quickstart").symlink_to(photos)  # a recipe is called so
    with FileLock(out / ".lock"):  # as where nothing can be written
        prepared(tmp_path / "quickstart", out)
    assert "left out, beside training and validation images: docs" in capsys.readouterr().err
    assert "holds shards of something else (form" in refused(capsys, photos, out, "--raw", 8)
    assert "holds shards of something else (images" in refused(capsys, shapes, out)
    assert "holds other things (docs, train, val)" in refused(capsys, photos, photos)
    (tmp_path / "busy").mkdir()
    with FileLock(tmp_path / "busy/.lock"):
        assert "another `resnet prepare` is writing into" in refused(capsys, photos, tmp_path / "busy")
    assert hashes(out) == before
    (tmp_path / "busy" / f".unfinished.json.{os.uname().nodename}-1.tmp").touch()  # an interruption's
    prepared(photos, tmp_path / "busy")


@pytest.mark.skipif(sys.platform == "darwin", reason="file names there are text")
def test_a_class_that_is_no_text_is_named(photos, tmp_path, capsys):
    (photos / "train/b").rename(photos / "train" / os.fsdecode(b"caf\xe9"))
    shutil.rmtree(photos / "val/b")
    assert "the name of the class caf\\udce9 is not UTF-8" in refused(capsys, photos, tmp_path / "out")


def test_a_full_disk_leaves_whole_shards_only(shapes, tmp_path, capsys, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        told = refused(capsys, shapes, tmp_path / "out", code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert told.startswith("resnet prepare: ")
    assert "File too large" in told
    assert told.count("\n") == 1, told
    assert not list((tmp_path / "out/data").iterdir())
    monkeypatch.setattr(preparing.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2, 1, 1))
    assert "has 0.0 MB free, and the shards will need about 0." in refused(capsys, shapes, tmp_path / "out")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shapes) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(preparing, "SHARD_BYTES", SMALL * 4)
        prepared(shapes, out, "--raw", 20)
    return out


RECORDS = "index-train.npy"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("offset", -1), ("offset", 1 << 40), ("offset", (1 << 63) - 1), ("length", -1), ("length", 1 << 30)],
        *[("shard", -1), ("shard", 99), ("label", 10), ("label", -1), ("height", 1 << 30), ("height", -1)],
        *[("width", 0), ("name_offset", 1 << 40), ("name_length", 1 << 30)],
    ],
)
def test_an_index_cannot_lead_out_of_its_files(whole, tmp_path, field, value):
    out = shutil.copytree(whole, tmp_path / "out")
    records = np.load(out / RECORDS)
    records[field][7] = value
    np.save(out / RECORDS, records)
    with pytest.raises(ValueError, match=r"index-train\.npy is damaged: image 7 is not where it says"):
        opened(source="shards", train=str(out))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda index: index["train"]["files"][0].update(name="../x.parquet"), "'../x.parquet' is no name of a shard"),
        (lambda index: index["train"]["records"].update(name="/etc/passwd"), "'/etc/passwd' is no name of records"),
        (lambda index: index["train"].update(images="many"), "train.images"),
        (lambda index: index.pop("classes"), "classes: Field required"),
        (lambda index: index["classes"].pop(), "is not where it says"),
        (
            lambda index: index["classes"].__setitem__(0, index["classes"][1]),
            "its classes are not those of index-train",
        ),
        (lambda index: index["train"]["per_class"].insert(0, 1), "its classes are not those of index-train"),
        (lambda index: index.update(format=2), "has format 2"),
    ],
)
def test_a_damaged_index_is_refused(whole, tmp_path, change, reason):
    out = shutil.copytree(whole, tmp_path / "out")
    index = json.loads((out / "index.json").read_text())
    change(index)
    (out / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError) as error:
        opened(source="shards", train=str(out))
    assert reason in str(error.value)


def test_files_that_are_not_as_written_are_named(whole, tmp_path, capsys):
    out = shutil.copytree(whole, tmp_path / "out")
    first, second = sorted(out.glob("data/train-*"))[:2]
    main(["prepare", "--verify", str(out)])
    assert "every file is as it was written" in capsys.readouterr().out
    first.write_bytes(bytes(first.stat().st_size))
    found, _ = opened(source="shards", train=str(out))
    found.read(0)
    assert f"changed or missing in {out}: data/{first.name}\n" in refused(capsys, "--verify", out)
    second.write_bytes(b"")
    with pytest.raises(OSError, match=f"{second.name} has become shorter"):
        read(found)
    with pytest.raises(ValueError, match=f"{second.name} has 0 bytes, not"):
        opened(source="shards", train=str(out))
    second.unlink()
    with pytest.raises(ValueError, match=f"{second.name} cannot be read"):
        opened(source="shards", train=str(out))


def test_damaged_records_are_refused(whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    records = (out / RECORDS).read_bytes()
    for damaged in (b"x" * len(records), records.replace(b"}", b"(")):
        (out / RECORDS).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"index-train\.npy is damaged"):
            opened(source="shards", train=str(out))


def test_shards_are_checked_as_images(whole):
    checked = check_data(open_paths([str(whole)])._replace(workers=0))
    assert [len(part.whole) for part in checked.parts] == [160, 40]
    assert checked.parts[0].label(0) == "checkerboard"


def test_a_run_goes_on_from_the_shards_of_its_folder(tiny, shapes, tmp_path, monkeypatch, capsys):
    """Also where they hold what val_fraction put aside; and a run from shards goes on from the folder."""
    source = f"data={{source: image_folder, train: {shapes}/train, val_fraction: 0.25}}"
    words = [*(word for word in tiny if not word.startswith("data.")), "data.num_workers=0", "epochs=2"]
    words += [f"run.root={tmp_path}"]
    main(["prepare", *words[:1], source, str(tmp_path / "shards")])
    shards_words = ["data.source=shards", f"data.train={tmp_path / 'shards'}"]
    assert train(*words, source, "run.name=whole") == 0
    for name, first, second in (("there", [source], shards_words), ("back", shards_words, [source])):
        stop_in_batch(4, monkeypatch)
        assert train(*words, *first, f"run.name={name}") == 85
        assert status(tmp_path / name)["state"] == "stopped"
        monkeypatch.undo()
        assert train(*words, *second, f"run.name={name}") == 0
        assert same(weights(tmp_path / "whole"), weights(tmp_path / name))
    assert "changed: data.source shards -> image_folder" in capsys.readouterr().err
    main(["prepare", *words[:1], source, str(tmp_path / "fewer"), "data.max_train=100"])
    assert train(*words, *shards_words[:1], f"data.train={tmp_path / 'fewer'}", "run.name=there") == 2
    assert "is not the data" in capsys.readouterr().err


def stop_in_batch(number: int, monkeypatch) -> None:
    made, keys = MicroBatches._training, []

    def signalled(self, key, epoch):
        keys.append(key)
        if len(keys) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return made(self, key, epoch)

    monkeypatch.setattr(MicroBatches, "_training", signalled)
