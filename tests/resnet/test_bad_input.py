"""A user's mistakes: a short message that names the thing and what would be right, code 2, and nothing left behind."""

import shutil
from pathlib import Path

import pytest
import torch

from recipes.load import load
from resnet.build import build_data
from resnet.data.sources.shapes import draw
from tests.helpers import TINY, finish, start, train
from tests.processes import start_ranks, wait_ranks

MOST_LINES = 6


@pytest.fixture
def tiny(shapes, tmp_path, monkeypatch) -> list[str]:
    """A tiny run in tmp_path/runs/r, with nothing wrong in it, started in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return [*TINY, f"data.train={shapes}", f"run.root={tmp_path}/runs", "run.name=r"]


def mistake(capsys, *words: object) -> str:
    """The message of a command that is the user's mistake."""
    capsys.readouterr()
    code = train(*words)
    out, error = capsys.readouterr()
    assert code == 2, error
    assert error.startswith("train.py: ")
    assert "Traceback" not in error
    assert len(error.splitlines()) <= MOST_LINES, error
    assert out == ""
    return error


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["optimizer.lrr=0.1"], ["unknown key optimizer.lrr (command line): did you mean optimizer.lr?"]),
        (
            ["epochs=many", "batch_size=1.5", "model.stem=tv"],
            ["epochs=many (", "batch_size=1.5 (", "model.stem=tv (", "imagenet, cifar"],
        ),
        (["--lr=3"], ["'--lr=3'", "did you mean lr=3?"]),
        (["schedule={name: cosine, warmup_epochs: 5}"], ["schedule.warmup_epochs 5", "epochs 3"]),
        (["model.num_classes=7"], ["model.num_classes=7", "data.source=shapes has 10 classes"]),
        (["batch_size=200"], ["batch_size 200", "160 training samples"]),
        (
            ["batch_size=25", "max_batch_per_device=4"],
            ["batch_size 25 does not divide", "in micro-batches of 2 to 4", "try batch_size="],
        ),
        (["precision=fp16"], ["precision=fp16 needs a GPU, and device=cpu: use precision=no, or auto"]),
        (["model.sync_batchnorm=true"], ["model.sync_batchnorm needs GPUs"]),
        (["model.pretrained=nowhere.safetensors"], ["model.pretrained", "nowhere.safetensors"]),
        (["model.pretrained=IMAGENET9K"], ["model.pretrained", "IMAGENET9K"]),
        (["model.activation=rleu"], ["model.activation", "rleu", "relu"]),
        (["resume=nowhere"], ["resume=", "nowhere is no checkpoint"]),
        (["data.decode=gpu"], ["data.decode=gpu needs a GPU, and device=cpu: use data.decode=cpu"]),
        (
            ["data.decode=gpu", "data.cache=device", "augment.crop=resize"],
            ["decodes once, on the CPU"],
        ),
        pytest.param(["device=cuda"], ["device=cuda", "no GPU"], marks=NO_GPU),
        pytest.param(["data.decode=gpu", "device=auto"], ["data.decode=gpu", "no GPU"], marks=NO_GPU),
    ],
)
def test_mistakes_in_the_recipe(tiny, tmp_path, capsys, words, told):
    error = mistake(capsys, *tiny, *words)
    for text in told:
        assert text in error
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert not any((tmp_path / "here").iterdir())


def test_another_number_of_classes_than_the_folders(tmp_path):
    draw(tmp_path / "drawn", 4, 32)
    words = [
        f"data={{source: image_folder, train: {tmp_path}/drawn/train, val: {tmp_path}/drawn/val}}",
        "model.num_classes=7",
    ]
    with pytest.raises(ValueError, match=r"num_classes=7, but .*/train has 10 classes \(checkerboard, circle,"):
        build_data(load(["recipe=quickstart", *words]).recipe)


def test_imagenet_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    error = mistake(capsys, "recipe=resnet50_imagenet", "device=cpu")
    for text in (
        "data.train=data/imagenet/train",
        f"no {tmp_path}/data/imagenet/train",
        "image-net.org",
        "data.source=huggingface",
    ):
        assert text in error
    assert not any(tmp_path.iterdir())


def test_a_recipe_that_is_not_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "did you mean resnet50_imagenet" in mistake(capsys, "recipe=resnet50_imagnet")
    assert "quickstart" in mistake(capsys)
    assert "did you mean recipe=quickstart?" in mistake(capsys, "quickstart")


def folders(tiny: list[str], root: Path) -> list[str]:
    kept = [word for word in tiny if word.partition("=")[0] not in ("data.per_class", "data.size", "data.train")]
    return [*kept, "data.source=image_folder", f"data.train={root}/train", f"data.val={root}/val"]


def test_class_folders(tiny, shapes, tmp_path, capsys):
    root = Path(shutil.copytree(shapes, tmp_path / "images"))
    words = folders(tiny, root)
    for file in (root / "train" / "ring").iterdir():
        file.unlink()
    error = mistake(capsys, *words)
    assert "data.train: no images in the class folder ring of" in error
    assert "fill or remove it" in error
    (root / "train" / "ring").rmdir()
    error = mistake(capsys, *words)
    assert "data.val" in error
    assert "classes that the training images do not have: ring" in error
    error = mistake(capsys, *words, f"data.train={root}")
    assert f"give data.train={root}/train" in error
    assert not (tmp_path / "runs").exists()


def test_a_root_that_cannot_be_written(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    error = mistake(capsys, *tiny, f"run.root={tmp_path}/file")
    assert f"{tmp_path}/file" in error
    assert "run.root" in error
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture(scope="module")
def existing(tmp_path_factory, shapes) -> Path:
    run = tmp_path_factory.mktemp("existing") / "r"
    words = [*TINY, f"data.train={shapes}", f"run.root={run.parent}", "run.name=r"]
    assert train(*words, "data.max_train=32", "epochs=1") == 0
    return run


def test_an_existing_run_is_not_changed_by_mistake(existing, tiny, shapes, tmp_path, capsys):
    run = Path(shutil.copytree(existing, tmp_path / "runs" / "r"))
    content = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words = [*tiny, "data.max_train=32", "epochs=2"]
    assert f"{run} exists and resume=never: choose another run.name" in mistake(capsys, *words, "resume=never")
    error = mistake(capsys, *words, "seed=1", "batch_size=8", "model.activation=silu")
    for text in ("batch_size: 16 -> 8", "seed: 0 -> 1", "model.activation: relu -> silu", "choose another run.name"):
        assert text in error
    assert "resume=" in mistake(capsys, *words, f"resume={run}")
    assert "is of step 2 and this recipe ends at step 1" in mistake(capsys, *words, "epochs=0.5")
    other = shutil.copytree(shapes, tmp_path / "other")
    shutil.rmtree(other / "train" / "ring")
    shutil.rmtree(other / "val" / "ring")
    assert "is not the data" in mistake(capsys, *folders(words, other))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == content


def test_a_process_that_misses_the_others(tiny, tmp_path, monkeypatch, capsys):
    # What `accelerate launch --cpu --num_machines 2` sets: each process would train alone and say it went well.
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert "accelerate launch --multi_gpu --num_processes N" in mistake(capsys, *tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_lone_process_tells_whatever_rank_its_environment_has(tiny, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    assert "unknown key epoch" in mistake(capsys, *tiny, "epoch=3")


def test_the_traceback_is_there_for_who_asks(tiny, capsys):
    assert train(*tiny, "--debug", "batch_size=200") == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "train.py: batch_size 200" in error


def test_a_batch_that_does_not_divide_over_two_ranks(tiny, tmp_path_factory, tmp_path):
    output = tmp_path_factory.mktemp("two") / "output"
    ranks = start_ranks([*tiny, "batch_size=15"], 2, output)
    assert wait_ranks(ranks, 60) == [2, 2]
    expected = "batch_size 15 does not divide over 2 devices (2 images or more each): try batch_size=14 or 16"
    assert output.read_text() == f"train.py: {expected}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_mistake_on_the_command_line_of_a_shell(tmp_path):
    done = finish(start("train.py", "recipe=quickstart", "optimizer.lr=fast", f"run.root={tmp_path}/runs"))
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["train.py: optimizer.lr=fast (command line): must be a number"]
    assert not any(tmp_path.iterdir())
