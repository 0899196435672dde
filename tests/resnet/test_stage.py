"""Copies on a node's own disk: whole or not there, made once, and the same run as without."""

import contextlib
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from recipes.errors import RecipeError
from recipes.load import load
from resnet import run
from resnet.build import build_data
from resnet.data import stage as staging
from resnet.data.copying import Copying, Stopped
from resnet.data.sources.files import WHOLE
from resnet.data.stage import stage
from resnet.tools.compare import compare_runs
from tests.helpers import TINY, status, train
from tests.processes import start_ranks, wait_ranks

FOLDERS = [word for word in TINY if not word.startswith("data.")]


@pytest.fixture
def images(shapes, tmp_path) -> Path:
    """A copy of the shapes that a test may change."""
    return Path(shutil.copytree(shapes, tmp_path / "images"))


def words(images: Path, place: object) -> list[str]:
    source = ["data.source=image_folder", f"data.train={images}/train", f"data.val={images}/val", "data.num_workers=0"]
    return [*FOLDERS, *source, f"data.stage={place}"]


def data_of(*changes: str):
    return load(["recipe=quickstart", *changes]).recipe.data


def staged(images: Path, place: Path, stopped=lambda: False) -> dict[str, str]:
    return stage(data_of(*words(images, place)[len(FOLDERS) :]), stopped, print)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def unfinished(place: Path) -> list[Path]:
    return [*place.glob(".stage/unfinished/*")]


def test_ranks_train_from_one_copy_as_from_the_images(images, tmp_path, monkeypatch):
    monkeypatch.setenv("FAST", str(tmp_path / "fast"))
    (images / "train" / "circle" / "broken.jpg").write_bytes(b"nothing")
    also = ["data.max_broken=0.5", "max_steps=10", f"run.root={tmp_path}"]
    memory = ["data.cache=memory", "data.num_workers=1"]
    for name, place, more in (("plain", "null", []), ("copied", "$FAST/x", []), ("again", "$FAST/x", memory)):
        ranks = start_ranks([*words(images, place), *also, *more, f"run.name={name}"], 2, tmp_path / f"{name}.txt")
        assert wait_ranks(ranks, 100) == [0, 0], (tmp_path / f"{name}.txt").read_text()
        assert compare_runs(tmp_path / "plain", tmp_path / name) == []
    told = {name: (tmp_path / f"{name}.txt").read_text() for name in ("plain", "copied", "again")}
    broken = f"unreadable image: {images}/train/circle/broken.jpg: "
    assert all(broken in text for text in told.values())
    assert told["copied"].count(" copied ") == 2
    assert " copied " not in told["again"]
    assert "images are kept in memory as they are read: up to " in told["again"]
    assert f"stage: {tmp_path}" not in (tmp_path / "copied" / "recipe.yaml").read_text()
    copies = [*(tmp_path / "fast" / "x").glob(f"*/{WHOLE}")]
    assert [contents(copy.parent / copy.parent.name[:-13]) for copy in sorted(copies)] == [
        contents(images / "train"),
        contents(images / "val"),
    ]


def test_changed_images_are_copied_anew(images, tmp_path):
    first = staged(images, tmp_path / "x")
    assert staged(images, tmp_path / "x") == first
    next(images.glob("train/*/*.jpg")).write_bytes(b"other")
    second = staged(images, tmp_path / "x")
    assert second["train"] != first["train"]
    assert second["val"] == first["val"]
    assert contents(Path(second["train"])) == contents(images / "train")
    (images / "val" / "empty").mkdir()
    third = staged(images, tmp_path / "x")
    assert third["train"] == second["train"]
    assert (Path(third["val"]) / "empty").is_dir()


@pytest.mark.parametrize("lost", [WHOLE, "train/*/*.jpg", "train/circle"])
def test_a_copy_that_has_lost_files_is_copied_anew(images, tmp_path, lost, capsys):
    (images / "train" / "circle" / "nowhere.jpg").symlink_to("nowhere")
    os.mkfifo(images / "train" / "circle" / "pipe")
    # Another's, whatever its name.
    (tmp_path / "x" / "backup-202601011230.tmp").mkdir(parents=True)
    found = Path(staged(images, tmp_path / "x")["train"])
    before = contents(found)
    assert len(before) == len([*images.glob("train/*/*.jpg")]) - 1
    for path in [*found.parent.glob(lost)][:3]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert Path(staged(images, tmp_path / "x")["train"]) == found
    assert "lost some of its files: it is copied anew" in capsys.readouterr().out
    assert contents(found) == before
    staged(images, tmp_path / "x")
    assert capsys.readouterr().out.endswith(f": reads the copies in {tmp_path / 'x'}\n")
    assert (tmp_path / "x" / "backup-202601011230.tmp").is_dir()


def test_a_file_that_is_not_written_to_its_end(images, tmp_path):
    """Of the last write to a full disk a part is done, and no error told: as of one that passes a limit."""
    victim = images / "train" / "circle" / "large.jpg"
    victim.write_bytes(bytes(1_000_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (999_999, before[1]))
    try:
        with pytest.raises(ValueError, match=r"large.jpg cannot be copied: File too large"):
            staged(images, tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [*(tmp_path / "x").glob("[!.]*")]


def test_places_that_cannot_be_copied_to(images, tmp_path):
    for inside in (images / "train", images / "val" / "fast"):
        with pytest.raises(ValueError, match=r"data.stage=.* lies in .*, which is to be copied"):
            staged(images, inside)
    assert not (images / "val" / "fast").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data.stage=.*/file/x: .* cannot be written to \(Not a directory\)"):
        staged(images, tmp_path / "file" / "x")


@contextlib.contextmanager
def process(task):
    """A forked process that runs a task; ended with the block."""
    child = os.fork()
    if not child:
        code = 1
        try:
            code = task()
        finally:
            os._exit(code or 0)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_was_killed_is_copied_by_who_waited(images, tmp_path, monkeypatch, capfd):
    copy, place = Copying._copy, tmp_path / "x"

    def slowly() -> None:
        monkeypatch.setattr(Copying, "_copy", lambda *given: (time.sleep(0.5), copy(*given))[1])
        staged(images, place)

    def waits() -> None:
        print(staged(images, place), flush=True)

    with process(slowly) as first:
        until(lambda: any(path.is_file() for path in place.glob(".stage/unfinished/*/*/*")))
        with process(waits) as second:
            until(lambda: "waits for another process" in capfd.readouterr().out)
            assert unfinished(place)
            os.kill(first, signal.SIGKILL)
            assert os.waitpid(second, 0)[1] == 0
    assert not unfinished(place)
    capfd.readouterr()
    found = staged(images, place)
    assert " copied " not in capfd.readouterr().out
    assert contents(Path(found["train"])) == contents(images / "train")


def test_a_signal_ends_the_run_and_leaves_no_half(images, tmp_path, monkeypatch, capsys):
    copy, copied = Copying._copy, []

    def signalled(self, *files):
        if len(copied) == 20:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
        copied.append(files)
        return copy(self, *files)

    monkeypatch.setattr(Copying, "_copy", signalled)
    # Nothing is read from where the images are.
    monkeypatch.setattr(run, "build_splits_of_ranks", None)
    also = [f"run.root={tmp_path}", "run.name=r", "max_steps=2"]
    assert train(*words(images, tmp_path / "x"), *also) == 85
    assert not (tmp_path / "r").exists()
    assert not [*(tmp_path / "x").glob("[!.]*")]
    assert not unfinished(tmp_path / "x")
    told = capsys.readouterr().out
    assert "stopped (signal SIGTERM) while the data was copied; to continue: " in told
    assert f"run.root={tmp_path} run.name=r" in told
    assert " copied 0" not in told
    # As `launch` leaves it, which goes by the status.
    (tmp_path / "r").mkdir()
    copied.clear()
    assert train(*words(images, tmp_path / "x"), *also) == 85
    assert status(tmp_path / "r")["state"] == "stopped"
    monkeypatch.undo()
    assert train(*words(images, tmp_path / "x"), *also) == 0
    # Not even looked for.
    shutil.rmtree(images)
    assert train(*words(images, tmp_path / "x"), *also) == 0
    assert "r is finished: nothing to do" in capsys.readouterr().out
    assert train(*words(images, tmp_path / "x"), *also, "resume=never") == 2


def test_room_is_looked_for_before_anything_is_copied(images, tmp_path, monkeypatch):
    size, free = sum(map(len, contents(images).values())), 10_000
    there = os.statvfs(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda place: os.statvfs_result((*there[:4], free // there[1], *there[5:])))
    assert size > free
    with pytest.raises(ValueError, match=r"0.00 GB in 220 files are to be copied, and .* has room for 0.00 GB"):
        staged(images, tmp_path / "x")
    assert not unfinished(tmp_path / "x")
    assert not [*(tmp_path / "x").glob("[!.]*")]


@pytest.mark.parametrize(("happens", "told"), [("vanish", "vanished while"), ("change", "changed while it was copied")])
def test_what_changes_meanwhile_is_named(images, tmp_path, monkeypatch, happens, told):
    copy, victim = Copying._copy, max((images / "train").rglob("*.jpg"))

    def meanwhile(self, source, target):
        if source == victim:
            # Of the same size.
            victim.unlink() if happens == "vanish" else victim.write_bytes(victim.read_bytes()[::-1])
        return copy(self, source, target)

    monkeypatch.setattr(Copying, "_copy", meanwhile)
    with pytest.raises(ValueError, match=f"{victim.name} .*{told}"):
        staged(images, tmp_path / "x")
    assert not unfinished(tmp_path / "x")


def test_of_a_manifest_the_files_that_it_names(images, tmp_path):
    first, second, *_, last = sorted((images / "train").rglob("*.jpg"))
    second = second.rename(second.with_name("..a.jpg"))
    rows = [f"{file.relative_to(images)},{file.parent.name}" for file in (first, second, last)]
    (images / "list.csv").write_text("\n".join(["file,label", *rows, ""]))
    given = ["data.source=csv", f"data.train={images}/list.csv", "data.val_fraction=0.5", f"data.stage={tmp_path}/x"]
    found = Path(stage(data_of(*given), lambda: False, print)["train"])
    assert {*contents(found.parent)} == {"list.csv", *(row.partition(",")[0] for row in rows)}
    through = [f"../{images.name}/train/other/../{row.removeprefix('train/')}" for row in rows]
    (images / "train" / "other").mkdir()
    (images / "list.csv").write_text("\n".join(["file,label", *through, ""]))
    recipe = load(["recipe=quickstart", *given]).recipe
    copied = build_data(recipe, stage(recipe.data, lambda: False, print))
    for source, plain in zip(copied, build_data(recipe), strict=True):
        assert [source.read(n) for n in range(len(source))] == [plain.read(n) for n in range(len(plain))]
    (images / "list.csv").write_text("\n".join(["file,label", *rows, ""]))
    apart = [*given, f"data.images={images}"]
    copies = stage(data_of(*apart), lambda: False, print)
    train_images, _ = build_data(load(["recipe=quickstart", *apart]).recipe, copies)
    assert train_images.describe(0).startswith(f"{images}/train/")
    (images / "list.csv").write_text(f"file,label\n{first},a\n{last},b\n")
    with pytest.raises(ValueError, match=r"a whole path says where the image is now. Let the names start from"):
        stage(data_of(*given), lambda: False, print)
    last.rename(images.parent / "out.jpg")
    (images / "list.csv").write_text(f"file,label\n{rows[0]}\n../out.jpg,b\n")
    with pytest.raises(ValueError, match=r"leads out of the images' folder .*data.images"):
        stage(data_of(*given), lambda: False, print)


def test_stopped_while_another_copies(images, tmp_path):
    (tmp_path / "x").mkdir()
    with staging._alone(tmp_path / "x", lambda: False, print), pytest.raises(Stopped):
        staged(images, tmp_path / "x", stopped=lambda: True)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["data.source=shapes"], "no effect with source=shapes"),
        (["data.source=cifar10"], "no effect with source=cifar10"),
        (["data.source=huggingface", "data.train=someone/pictures"], "someone/pictures is a name on the hub"),
    ],
)
def test_without_files_it_is_refused(given, told):
    with pytest.raises(RecipeError, match=told):
        data_of(*given, "data.stage=/tmp/x")


def test_a_variable_that_is_not_set_is_named(images):
    with pytest.raises(ValueError, match=r"data.stage=\$NOT_SET_HERE/x names a variable that is not set on"):
        staged(images, Path("$NOT_SET_HERE/x"))
