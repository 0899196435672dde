import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

import resnet
from recipes.load import load
from resnet.process.environment import PROGRAM
from resnet.rundir.artefacts import NAME
from resnet.rundir.find import find_run, runs_in
from resnet.tools.export.artefact import new_artefact, place_of
from resnet.tools.export.measure import Figures, Measured, _Counts
from resnet.tools.export.public import public_recipe, public_words
from resnet.tools.export.served import served
from resnet.tools.trained import Trained, _run_of_file


def record(folder, kind="export", **files) -> None:
    (folder / NAME).write_text(json.dumps({"kind": kind, "files": files}))


def made(place) -> None:
    with new_artefact(place) as folder:
        record(folder)


def test_an_artefact_takes_the_place_of_the_one_before_as_a_whole(tmp_path):
    place = tmp_path / "exports" / "onnx"
    for content in ("old", "new"):
        with new_artefact(place) as folder:
            record(folder, **{content: 0})
            (folder / content).touch()
    assert {file.name for file in place.iterdir()} == {NAME, "new"}
    assert os.listdir(place.parent) == ["onnx"]


def test_one_that_replaces_nothing_leaves_what_came_in_between(tmp_path):
    place = tmp_path / "pruned"

    def made_twice():
        with new_artefact(place, replaces=False) as folder:
            (folder / "mine").touch()
            place.mkdir()
            (place / "theirs").touch()

    with pytest.raises(ValueError, match="pruned is there: choose another --name"):
        made_twice()
    assert [os.listdir(place), os.listdir(tmp_path)] == [["theirs"], ["pruned"]]


def fail(place):
    with new_artefact(place) as folder:
        (folder / "model.onnx").write_text("half")
        raise OSError("full")


def test_nothing_is_left_of_one_that_fails(tmp_path):
    place = tmp_path / "run" / "exports" / "onnx"
    place.parent.parent.mkdir()
    with pytest.raises(OSError, match="full"):
        fail(place)
    assert os.listdir(tmp_path / "run") == []
    with new_artefact(place) as folder:
        record(folder, good=0)
    with pytest.raises(OSError, match="full"):
        fail(place)
    assert "good" in (place / NAME).read_text()
    assert os.listdir(place.parent) == ["onnx"]


def killed_in(work) -> None:
    """Let a copy of this process work until it kills itself."""
    if (child := os.fork()) == 0:
        work()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_what_a_killed_one_left_goes_with_the_next(tmp_path):
    place = tmp_path / "onnx"

    def work() -> None:
        with new_artefact(place):
            os.kill(os.getpid(), signal.SIGKILL)

    killed_in(work)
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    made(place)
    assert os.listdir(tmp_path) == ["onnx"]


def test_the_old_one_is_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    place, renamed = tmp_path / "onnx", Path.rename
    made(place)
    (place / NAME).write_text((place / NAME).read_text().replace("export", "old"))

    def rename(path, target):
        if path.suffix == ".tmp":
            raise KeyboardInterrupt
        return renamed(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            made(place)
    assert "old" in (place / NAME).read_text()
    assert os.listdir(tmp_path) == ["onnx"]


def test_what_one_killed_between_the_renames_put_aside_is_back_with_the_next(tmp_path):
    place = tmp_path / "onnx"
    made(place)
    # As of a container that was started again, with the same number.
    place.rename(tmp_path / f".onnx.{os.uname().nodename}-{os.getpid()}.old")
    with pytest.raises(OSError, match="full"):
        fail(place)
    assert os.listdir(tmp_path) == ["onnx"]


def test_what_others_put_there_meanwhile_stays(tmp_path):
    place = tmp_path / "onnx"

    def made_twice():
        with new_artefact(place) as folder:
            record(folder)
            place.mkdir()
            (place / "thesis.tex").touch()

    with pytest.raises(ValueError, match=r"onnx is there and holds no artefact\.json"):
        made_twice()
    assert [os.listdir(place), os.listdir(tmp_path)] == [["thesis.tex"], ["onnx"]]


def test_a_link_to_an_artefact_stays_one(tmp_path):
    place, link = tmp_path / "onnx", tmp_path / "newest"
    made(place)
    before = place.stat().st_ino
    link.symlink_to(place)
    made(link)
    assert link.is_symlink()
    assert place.stat().st_ino != before


def refused(out, weights="net.safetensors") -> str:
    with pytest.raises(ValueError) as told:
        place_of(Trained("net", Path(weights), None, [], None), "onnx", out)
    return str(told.value)


def test_places_that_are_no_artefacts(tmp_path):
    assert "onnx cannot be made: " in refused(Path(__file__) / "onnx")
    assert "holds no artefact.json" in refused(Path("/"))
    for damaged in ({"files": 5}, {"files": None}, {}):
        (tmp_path / NAME).write_text(json.dumps(damaged))
        assert "does not say which files" in refused(tmp_path)
    record(tmp_path, **{"status.json": 0, "net.pth": 0})
    (tmp_path / "net.pth").touch()
    assert "give another --out" in refused(tmp_path, tmp_path / "net.pth")
    (tmp_path / "status.json").touch()
    assert "is a run" in refused(tmp_path)
    (tmp_path / "status.json").unlink()
    record(tmp_path, "prune", **{"net.pth": 0})
    assert "is a run" in refused(tmp_path)


def test_an_export_is_no_run(tmp_path):
    for name in ("hub", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").touch()
    record(tmp_path / "hub")
    record(tmp_path / "run", "prune")
    assert [run.path.name for run in resnet.runs(tmp_path)] == [path.name for path in runs_in(tmp_path)] == ["run"]
    assert _run_of_file(tmp_path / "hub" / "model.safetensors") is None
    assert _run_of_file(tmp_path / "run" / "final.safetensors") == tmp_path / "run"
    with pytest.raises(ValueError, match="is an export"):
        find_run(str(tmp_path / "hub"))


def serving(monkeypatch, file, lines: str):
    """What is said of a network whose process runs those lines."""
    file.write_text(f"import os, sys\n{lines}")
    monkeypatch.setattr("resnet.tools.export.served._PROGRAM", file)
    with pytest.raises(ValueError) as told:
        served("x", {"kind": "x"}).__enter__()
    return str(told.value)


def test_a_process_that_was_killed_is_told_by_its_signal(tmp_path, monkeypatch):
    warned = "print('a warning', file=sys.stderr, flush=True)\nos.kill(os.getpid(), {})"
    told = serving(monkeypatch, tmp_path / "x.py", warned.format(9))
    assert told.endswith(": killed by SIGKILL (out of memory?)")
    assert "killed by SIGABRT; it said last: a warning" in serving(monkeypatch, tmp_path / "x.py", warned.format(6))


def test_modules_of_pythonpath_are_found_and_ours_are_not(tmp_path, monkeypatch):
    """As on clusters whose modules set it; our program may lie there, too."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "onnxruntime.py").write_text("import numpy, resnet")
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('of the working directory')")
    monkeypatch.chdir(tmp_path)
    for path in (str(PROGRAM), str(tmp_path / "packages"), ""):
        monkeypatch.syspath_prepend(path)
    with pytest.raises(ValueError) as told:
        served("x", {"kind": "onnx", "path": "x"}).__enter__()
    assert "import of resnet halted" in str(told.value)


def test_a_network_that_cannot_be_loaded_says_why_in_a_line(tmp_path):
    file = tmp_path / "model.pt2"
    file.write_bytes(b"not a program")
    opened = served("the copy", {"kind": "pt2", "path": str(file)})
    with pytest.raises(ValueError, match=r"the copy cannot be used in a process of its own: .*") as told:
        opened.__enter__()
    assert len(str(told.value).splitlines()) == 1


def test_nan_is_the_largest_difference():
    counts = _Counts()
    good, labels = np.eye(3, dtype=np.float32), np.arange(3)
    counts.add([good, good + 0.5], labels)
    assert (counts.difference, counts.agreed, counts.right) == (0.5, 3, [3, 3])
    counts.add([good, np.full((3, 3), np.nan, dtype=np.float32)], labels)
    counts.add([good, good], labels)
    assert np.isnan(counts.difference)
    assert counts.images == 9


def test_unread_images_are_counted_and_not_named():
    figures = Figures("x", 1, 1, 1, 1, 1, 1, 1)
    assert Measured(figures, figures, 2, 0, 1, 100, ("/home/me/cat.png",)).as_json()["broken"] == 1


PLACE = "/home/me/here"
NO_PLACES = {
    *("name", "description", "model.activation", "data.config", "data.train_split", "data.val_split"),
    *("data.image_column", "data.label_column", "data.file_column", "data.test_split", "eval.metric"),
    *("evidence.source", "evidence.evaluation", "evidence.notes"),
    *("evidence.measured.command", "evidence.measured.commit", "evidence.measured.card"),
}
"""Texts of a recipe that say nothing of the machine."""


def with_places(group: Any, above: str = "") -> Any:
    """A copy with PLACE for each text that could be one."""
    values: dict = {}
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        if isinstance(value, BaseModel):
            values[name] = with_places(value, f"{above}{name}.")
        elif field.annotation in (str, str | None) and above + name not in NO_PLACES:
            values[name] = PLACE
    return group.model_copy(update=values)


@pytest.mark.parametrize("source", ["image_folder", "csv", "huggingface", "cifar10"])
def test_no_key_of_a_recipe_tells_places(source):
    data = [f"data.source={source}", "data.train=x", "data.val=y" if source != "cifar10" else "seed=1"]
    recipe = with_places(load(["recipe=quickstart", *data, "distill.teacher=x", "model.pretrained=x"]).recipe)
    assert (recipe.data.train, recipe.distill.teacher, recipe.model.pretrained) == (PLACE, PLACE, PLACE)
    assert PLACE not in str(public_recipe(recipe))
    own = load(["recipe=quickstart", f"plugins.loss={PROGRAM}/x.py:f", f"plugins.callbacks=[{PROGRAM}/y.py:g]"]).recipe
    assert str(PROGRAM) not in str(public_recipe(own)["plugins"])
    assert "y.py:g" in str(public_recipe(own)["plugins"])
    assert public_recipe(recipe)["distill"]["weight"] == 0.5


def test_words_of_a_command_keep_the_names_of_paths():
    words = ["export", "/home/me/first", "--out=/home/me/out", "data.val=~/val", "--format", "onnx", "/a=/b"]
    assert public_words(words) == ["export", "first", "--out=out", "data.val=val", "--format", "onnx", "b"]


def test_top_5_counts_a_label_among_the_five_best():
    logits = np.arange(7, dtype=np.float32)[None].repeat(7, 0)
    counts = _Counts()
    counts.add([logits, -logits], np.arange(7))
    assert (counts.right, counts.right5) == ([1, 1], [5, 5])


def test_the_process_ends_with_the_program(tmp_path, monkeypatch):
    """No network goes on holding memory after a kill of the command."""
    child, note = tmp_path / "child.py", tmp_path / "pid"
    child.write_text(
        "import os, sys; from multiprocessing.connection import Connection\n"
        f"c = Connection(int(sys.argv[1])); open({str(note)!r}, 'w').write(str(os.getpid())); c.send(1)\n"
        f"try: c.recv()\nexcept EOFError: os.remove({str(note)!r})"
    )
    monkeypatch.setattr("resnet.tools.export.served._PROGRAM", child)

    def work() -> None:
        with served("x", {"kind": "x"}):
            os.kill(os.getpid(), signal.SIGKILL)

    killed_in(work)
    deadline = time.monotonic() + 20
    while note.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
