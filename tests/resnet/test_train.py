"""Whole runs, from a command line to what they leave."""

import json
import math
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import torchvision
from torchcodec.decoders import decode_image
from torchvision.transforms import v2

import resnet.data.batches
from recipes.load import load, load_file
from recipes.plan import make_plan
from resnet.build import _settle_buckets
from resnet.net import build_model
from tests.helpers import (
    TINY,
    column,
    evaluation,
    finish,
    furthest,
    metrics,
    newest,
    same,
    start,
    status,
    train,
    weights,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def tiny(shapes, tmp_path) -> list[str]:
    """A tiny run in tmp_path/r."""
    return [*TINY, f"data.train={shapes}", f"run.root={tmp_path}", "run.name=r"]


def independent_loss(network: torch.nn.Module, folder: Path) -> float:
    """Mean cross-entropy over an image folder, by other code (shorter side 36, centre 32, ImageNet's mean)."""
    steps = [v2.Resize(36, antialias=True), v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True)]
    transform = v2.Compose([*steps, v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    classes = sorted(path.name for path in folder.iterdir())
    files = sorted(folder.glob("*/*.jpg"))
    images = torch.stack([transform(decode_image(str(file))) for file in files])
    labels = torch.tensor([classes.index(file.parent.name) for file in files])
    with torch.inference_mode():
        return F.cross_entropy(network.eval()(images), labels).item()


# What a run leaves


@pytest.fixture(scope="module")
def quickstart(root, shapes) -> SimpleNamespace:
    """README's first command with smaller images, fewer of them, and the decoding processes it takes by default."""
    small = "augment.train_size=32 augment.val_resize=36 augment.val_size=32 data.per_class=16 data.size=40 epochs=2"
    words = ["recipe=quickstart", "device=cpu", *small.split(), f"data.train={shapes}", f"run.root={root}"]
    done = finish(start("train.py", *words, WANDB_MODE="offline"))
    assert done.returncode == 0, done.stderr
    (run,) = root.glob("quickstart-*")
    return SimpleNamespace(run=run, done=done, words=words)


def test_quickstart_leaves_a_directory_that_explains_itself(quickstart):
    run = quickstart.run
    assert load_file(run / "recipe.yaml").recipe.run.name == run.name
    again = load([f"recipe={run}/recipe.yaml", "run.name=null"]).recipe
    assert again == load(quickstart.words).recipe
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["command"].startswith("train.py recipe=quickstart device=cpu ")
    assert provenance["world_size"] == 1
    assert [attempt["reason"] for attempt in provenance["attempts"]] == ["finished"]
    found = status(run)
    assert (found["name"], found["state"], found["step"], found["percent"]) == (run.name, "finished", 6, 100)
    assert found["best"] == evaluation(run)["top1"] == max(column(run, "val/top1"))
    assert found["top1"] == column(run, "val/top1")[-1]
    for name in ("curves.png", "confusion.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    assert run.name in (run / "report.html").read_text()


def test_metrics_have_the_documented_keys(quickstart):
    trained = {"step", "epoch", "samples", "time", "lr", "train/loss", "train/top1"}
    trained |= {"images_per_second", "data_wait", "grad_norm", "input_digest"}
    evaluated = {"step", "epoch", "time", "val/loss", "val/top1", "val/top5", "val/samples"}
    assert [set(row) for row in metrics(quickstart.run)] == [trained, evaluated] * 2
    assert column(quickstart.run, "samples") == [144, 288]
    assert column(quickstart.run, "val/samples") == [40, 40]
    assert all(0 <= share <= 1 for share in column(quickstart.run, "data_wait"))


def test_final_weights_give_the_loss_of_the_evaluation_in_torchvision(quickstart, shapes):
    network = torchvision.models.resnet18(num_classes=10)
    network.load_state_dict(weights(quickstart.run), strict=True)
    found = evaluation(quickstart.run)
    assert independent_loss(network, shapes / "val") == pytest.approx(found["loss"], rel=1e-4)
    assert [sum(row) for row in found["confusion"]] == [entry["samples"] for entry in found["per_class"]] == [4] * 10
    assert found["classes"] == sorted(path.name for path in (shapes / "val").iterdir())


def test_the_end_is_told_in_one_block(quickstart):
    run, out = quickstart.run, quickstart.done.stdout
    assert "finished: best top" in out
    assert f"{status(run)['best']:.4g}%" in out
    assert all(str(run / name) in out for name in ("final.safetensors", "metrics.jsonl", "report.html"))
    assert "\r" not in out + quickstart.done.stderr
    assert f"wandb sync --id {(run / 'wandb_id.txt').read_text().strip()} {run}/wandb/offline-run-" in out


# Ranks

MIXED = [
    *("augment.mixup=0.2", "augment.cutmix=1.0", "augment.random_erasing=0.5", "model.stochastic_depth=0.3"),
    *("label_smoothing=0.1", "grad_clip_norm=5", "ema.decay=0.5", "max_batch_per_device=8", "epochs=2"),
    # The last batch is of 5 images; 7 batches of validation images over 2 ranks, the last of one image.
    *("data.max_train=53", "data.last_batch=keep", "data.max_val=37", "eval.batch_size=6"),
]


@pytest.fixture(scope="module")
def by_ranks(root, shapes) -> dict[int, Path]:
    """The same run on two ranks and on one, by the number of ranks."""
    words = [*TINY, *MIXED, f"data.train={shapes}", f"run.root={root}"]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2]
    two = start(*launch, "train.py", *words, "run.name=two", on_cores=2)
    assert train(*words, "run.name=one") == 0
    done = finish(two)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished: best") == 1
    return {1: root / "one", 2: root / "two"}


def test_two_ranks_train_as_one_process_does(by_ranks):
    one, two = by_ranks[1], by_ranks[2]
    for key, tolerance in {"train/loss": 1e-5, "grad_norm": 1e-4, "train/top1": 1e-9, "val/loss": 1e-4}.items():
        assert column(two, key) == pytest.approx(column(one, key), rel=tolerance), key
    assert column(one, "samples") == column(two, "samples") == [16, 32, 48, 53, 69, 85, 101, 106]
    digests = column(one, "input_digest")
    assert digests == column(two, "input_digest")
    assert len({*digests}) == 8
    for name in ("final.safetensors", f"{newest(one)}/model.safetensors"):
        assert furthest(weights(one, name), weights(two, name)) < 1e-5
    assert furthest(weights(one), weights(one, f"{newest(one)}/model.safetensors")) > 1e-3


def test_every_validation_image_counts_once_on_any_number_of_ranks(by_ranks):
    images = Counter(entry["samples"] for entry in evaluation(by_ranks[1])["per_class"])
    assert images == {4: 7, 3: 3}
    for run in by_ranks.values():
        assert column(run, "val/samples") == [37, 37]
    assert evaluation(by_ranks[1])["confusion"] == evaluation(by_ranks[2])["confusion"]


def test_the_number_of_ranks_is_recorded(by_ranks):
    for ranks, run in by_ranks.items():
        provenance = json.loads((run / "provenance.json").read_text())
        assert (provenance["world_size"], provenance["devices"]) == (ranks, ["CPU"] * ranks)
        assert (provenance["plan"]["micro_batch"], provenance["plan"]["accumulation"]) == (8, 2 // ranks)


# Stopping and continuing


def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(tiny, tmp_path):
    words = [*tiny, *MIXED, "epochs=5", "log_every=4", "checkpoint.every='2 epochs'"]
    assert train(*words, "run.name=whole") == 0
    stopped = start("train.py", *words)
    log = tmp_path / "r" / "metrics.jsonl"
    while stopped.poll() is None and (not log.is_file() or not log.stat().st_size):
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    done = finish(stopped)
    assert done.returncode == 85, done.stderr
    assert status(tmp_path / "r")["state"] == "stopped"
    assert f"run.root={tmp_path} run.name=r" in done.stdout
    step = int(newest(tmp_path / "r").rpartition("-")[2])
    assert 2 <= step < 20
    assert status(tmp_path / "r")["step"] == step, "not that of the log's last line"

    assert train(*words) == 0
    whole, resumed = tmp_path / "whole", tmp_path / "r"
    assert same(weights(whole), weights(resumed))
    assert same(
        weights(whole, f"{newest(whole)}/model.safetensors"), weights(resumed, f"{newest(resumed)}/model.safetensors")
    )
    clock = {"time", "images_per_second", "data_wait"}
    rows = [[{key: row[key] for key in row.keys() - clock} for row in metrics(run)] for run in (whole, resumed)]
    assert rows[0] == rows[1]
    attempts = json.loads((resumed / "provenance.json").read_text())["attempts"]
    assert [attempt["first_step"] for attempt in attempts] == [0, step]


def test_a_finished_run_is_left_alone_and_more_epochs_continue_it(tiny, tmp_path, capsys):
    words = [*tiny, "data.max_train=32", "schedule.name=constant"]
    assert train(*words, "epochs=1") == 0
    before = (tmp_path / "r" / "metrics.jsonl").read_bytes()
    assert train(*words, "epochs=1") == 0
    assert "is finished: nothing to do" in capsys.readouterr().out
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == before
    assert train(*words, "epochs=2") == 0
    assert train(*words, "epochs=2", "run.name=at_once") == 0
    assert same(weights(tmp_path / "r", f"{newest(tmp_path / 'r')}/model.safetensors"),
                weights(tmp_path / "at_once", f"{newest(tmp_path / 'at_once')}/model.safetensors"))  # fmt: skip


# What goes wrong on the way


@pytest.fixture
def with_broken_images(shapes, tmp_path) -> list[Path]:
    """Three broken images among the 160 of tmp_path/shapes/train, one among the 40 of tmp_path/shapes/val."""
    folder = shutil.copytree(shapes, tmp_path / "shapes")
    files = [*sorted(folder.glob("train/*/*.jpg"))[7::60], *sorted(folder.glob("val/*/*.jpg"))[3:4]]
    for file, length in zip(files, (0, 20, 300, 300), strict=True):
        file.write_bytes(file.read_bytes()[:length])
    return files


def folder_run(tiny: list[str], folder: Path, *words: str) -> int:
    words = (f"data.train={folder / 'train'}", f"data.val={folder / 'val'}", "data.source=image_folder", *words)
    return train(*(word for word in tiny if word.partition("=")[0] not in ("data.per_class", "data.size")), *words)


def test_broken_images_are_named_and_replaced(tiny, tmp_path, with_broken_images, capsys):
    assert folder_run(tiny, tmp_path / "shapes", "data.max_broken=0.03", "epochs=2", "data.num_workers=1") == 0
    run = tmp_path / "r"
    broken = {row["step"]: row.get("broken_images", 0) for row in metrics(run, "train/loss")}
    assert [broken[10], broken[20]] == [3, 3]
    assert column(run, "samples")[-1] == 320
    assert column(run, "val/samples") == [39, 39]
    output = "".join(capsys.readouterr())
    for file in with_broken_images:
        assert output.count(f"{file}: ") == 1, output


def test_too_many_broken_images_end_the_run(tiny, tmp_path, with_broken_images, capsys):
    assert folder_run(tiny, tmp_path / "shapes", "data.max_broken=0.01", "epochs=2") == 1
    error = capsys.readouterr().err
    assert "2 of this epoch's images so far could not be read, more than data.max_broken 0.01" in error
    assert sum(str(file) in error for file in with_broken_images) == 2
    assert "Traceback" not in error
    found = status(tmp_path / "r")
    assert (found["state"], found["failure"]) == ("failed", "data")
    assert not (tmp_path / "r" / "final.safetensors").exists()


@pytest.mark.parametrize(
    ("split", "workers", "message"),
    [
        ("train", 0, "100 images in a row cannot be read; the last is "),
        ("train", 1, "100 images in a row cannot be read; the last is "),
        ("val", 0, "40 of 40 validation images could not be read, more than data.max_broken "),
    ],
)
def test_images_that_are_all_broken_end_the_run(tiny, tmp_path, shapes, capsys, split, workers, message):
    folder = Path(shutil.copytree(shapes, tmp_path / "shapes"))
    for file in (folder / split).glob("*/*.jpg"):
        file.write_bytes(b"nothing")
    assert folder_run(tiny, folder, f"data.num_workers={workers}", "epochs=1") == 1
    error = capsys.readouterr().err
    assert message in error
    assert f"{folder}/{split}/" in error
    assert "Traceback" not in error
    assert status(tmp_path / "r")["failure"] == "data"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["log_every=1", "checkpoint.every='3 epochs'"], "the loss is not finite since step "),
        (["log_every=10", "checkpoint.every='1 step'"], "weights are not finite after step "),
    ],
)
def test_what_is_not_finite_ends_the_run_and_is_never_saved(tiny, tmp_path, capsys, words, message):
    assert train(*tiny, *words, "optimizer.lr=1e30", "schedule.name=constant", "epochs=2") == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    run = tmp_path / "r"
    found = status(run)
    assert (found["state"], found["failure"]) == ("failed", "nan")
    assert message in found["reason"]
    for file in run.glob("checkpoints/*/*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in safetensors.torch.load_file(file).values())
    rows = metrics(run, "train/loss")
    assert all(math.isfinite(row["train/loss"]) for row in rows)
    if "log_every=1" in words:
        assert f"{message}{rows[-1]['step'] + 1} " in error, "steps are counted as in the log"
    assert not (run / "final.safetensors").exists()


# Parts of recipes


def test_the_average_is_evaluated_and_kept(tiny, tmp_path, shapes):
    assert train(*tiny, "data.max_train=64", "epochs=1", "ema.decay=0.9") == 0
    run = tmp_path / "r"
    assert same(weights(run), weights(run, f"{newest(run)}/ema.safetensors"))
    network = build_model(load_file(run / "recipe.yaml").recipe.model, num_classes=10)
    for name, is_evaluated in (("final.safetensors", True), (f"{newest(run)}/model.safetensors", False)):
        network.load_state_dict(weights(run, name))
        loss = independent_loss(network, shapes / "val")
        assert (loss == pytest.approx(evaluation(run)["loss"], rel=1e-4)) == is_evaluated


def test_training_images_grow_with_the_epochs(tiny, tmp_path, monkeypatch):
    sizes = []
    made = resnet.data.batches.train_crop

    def noted(augment, size):
        sizes.append(size)
        return made(augment, size)

    monkeypatch.setattr(resnet.data.batches, "train_crop", noted)
    corners = "augment.progressive=[{epoch: 0, size: 32}, {epoch: 2, size: 96}]"
    assert train(*tiny, corners, "data.max_train=32", "epochs=4") == 0
    assert sizes == [32, 64, 96]
    assert len(column(tmp_path / "r", "val/loss")) == 4


def test_chosen_steps_are_profiled(tiny, tmp_path):
    assert train(*tiny, "data.max_train=64", "epochs=1", "profile.start=1", "profile.steps=2") == 0
    trace = json.loads((tmp_path / "r" / "profile" / "rank-0.json").read_text())
    names = Counter(event["name"] for event in trace["traceEvents"])
    assert names["ProfilerStep#1"] == names["ProfilerStep#2"] == 1
    assert "ProfilerStep#3" not in names
    assert names["aten::convolution"] > 0


def test_the_last_batch_is_dropped_or_kept(tiny, tmp_path):
    words = [*tiny, "data.max_train=37", "epochs=2"]
    assert train(*words, "data.last_batch=drop", "run.name=drop") == 0
    assert train(*words, "data.last_batch=keep", "run.name=keep") == 0
    assert column(tmp_path / "drop", "samples") == [16, 32, 48, 64]
    assert column(tmp_path / "keep", "samples") == [16, 32, 37, 53, 69, 74]


@pytest.mark.parametrize(
    ("precision", "mixup", "dtype"),
    [("bf16", 0, torch.bfloat16), ("bf16", 0.2, torch.float32), ("no", 0, torch.float32)],
)
def test_ddp_settles_on_what_training_gives_the_network(precision, mixup, dtype):
    # Another type would be compiled once more.
    recipe = load(["recipe=quickstart", f"precision={precision}", f"augment.mixup={mixup}"]).recipe
    model, given = build_model(recipe.model, 10), []

    def network(images):
        given.append(images)
        return model(images.float())

    accelerator = SimpleNamespace(device=torch.device("cpu"), mixed_precision=precision)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _settle_buckets(recipe, make_plan(recipe, 2000, 1), network, model, accelerator, 0)
    assert [images.dtype for images in given] == [dtype] * 2
    assert given[0].is_contiguous(memory_format=torch.channels_last)
    assert same(before, model.state_dict())
