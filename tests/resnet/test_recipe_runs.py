"""Every recipe trains, the five systems on data of the shape they are for, all cut down to a second or two."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image

from recipes.library import names
from recipes.load import load
from recipes.net_size import net_size
from recipes.nets import NET_KEYS
from recipes.schema.model import net_of
from recipes.schema.recipe import NOT_TRAINING, Recipe
from resnet.net import build_model
from tests.helpers import OFF, column, evaluation, finish, metrics, newest, same, start, train, weights

SMALL = [
    *(*OFF, "data.num_workers=0", "log_every=1"),
    *("augment.train_size=32", "augment.val_resize=36", "augment.val_size=32"),
]


def picture(label: int, index: int) -> Image.Image:
    """Noise on a ground as bright as its class is high."""
    noise = np.random.default_rng([label, index]).integers(0, 60, (40, 44, 3))
    return Image.fromarray((noise + 25 * label).astype(np.uint8))


def image_folder(folder: Path, counts: dict[str, int]) -> Path:
    for label, (name, count) in enumerate(sorted(counts.items())):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture(label, index).save(folder / name / f"{index}.jpg")
    return folder


def parquet(folder: Path, split: str, count: int, classes: list[str]) -> None:
    """As CIFAR lies on the hub: PNG bytes in the column `image`, a ClassLabel in `label`."""
    rows = {"image": [], "label": [index % len(classes) for index in range(count)]}
    for index, label in enumerate(rows["label"]):
        buffer = io.BytesIO()
        picture(label, index).resize((32, 32)).save(buffer, "PNG")
        rows["image"].append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


# The five systems


def test_cifar10_resnet50_steplr_from_parquet(tmp_path):
    parquet(tmp_path, "train", 20, [f"class {n}" for n in range(10)])
    parquet(tmp_path, "test", 10, [f"class {n}" for n in range(10)])
    words = ["data.source=huggingface", f"data.train={tmp_path}", "data.val_split=test", "data.num_workers=0"]
    options = ["model.activation=leaky_relu", "model.activation_args={negative_slope: 0.1}"]
    options += ["model.name=null", "model.block=bottleneck", "model.layers=[1,1,1,1]"]
    options += ["model.groups=32", "model.width_per_group=4"]
    where = [f"run.root={tmp_path}", "run.name=r", "batch_size=4", "epochs=3", "schedule.every=1", "log_every=1"]
    assert train("recipe=cifar10_resnet50_steplr", *OFF, *words, *options, *where) == 0
    run = tmp_path / "r"
    assert evaluation(run)["classes"] == [f"class {n}" for n in range(10)]
    assert [row["epoch"] for row in metrics(run, "val/loss")] == [2, 3]
    peak = 0.01 * 4 / 64
    assert column(run, "lr") == pytest.approx([peak] * 5 + [peak / 10] * 5 + [peak / 100] * 5)
    kept = sorted(path.name for path in (run / "weights").iterdir())
    assert kept == [f"epoch-000{n}.safetensors" for n in (1, 2, 3)]
    assert same(weights(run, "weights/epoch-0003.safetensors"), weights(run, f"{newest(run)}/model.safetensors"))
    assert weights(run)["layer4.0.conv2.weight"].shape == (1024, 32, 3, 3)


def test_cifar100_onecycle(tmp_path, capsys):
    words = ["data.source=synthetic", "data.classes=100", "data.samples=40", "data.size=32", "data.num_workers=0"]
    where = [f"run.root={tmp_path}", "run.name=r", "batch_size=8", "epochs=2", "log_every=1", "progress=lines"]
    assert train("recipe=cifar100_onecycle", *OFF, *words, *where) == 0
    run, shown = tmp_path / "r", capsys.readouterr().out
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    torch_schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=10)
    expected = []
    for _ in range(10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torch_schedule.step()
    assert column(run, "lr") == pytest.approx(expected, rel=1e-6)
    assert weights(run)["fc.weight"].shape == (100, 1024)
    epochs = [line for line in shown.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 2
    for line, row in zip(epochs, metrics(run, "val/loss"), strict=True):
        assert f"val loss {row['val/loss']:.4f} top-1 {row['val/top1']:.2f}%" in line
        assert "train loss " in line
        assert " lr " in line


def test_cats_vs_dogs_resnet18(tmp_path):
    words = [
        f"data.{split}={image_folder(tmp_path / split, {'cats': n, 'dogs': n})}"
        for split, n in (("train", 9), ("val", 3))
    ]
    assert train("recipe=cats_vs_dogs_resnet18", *SMALL, *words, f"run.root={tmp_path}", "run.name=r", "epochs=1") == 0
    run = tmp_path / "r"
    assert evaluation(run)["classes"] == ["cats", "dogs"]
    assert column(run, "val/samples") == [6]
    assert column(run, "samples") == [8, 16, 18]
    network = torchvision.models.resnet18(num_classes=2)
    network.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    network.load_state_dict(weights(run))


SPORTS = {"badminton": 10, "cricket": 8, "karate": 5, "soccer": 4, "swimming": 3, "wrestling": 2}


def test_sport6_silu_and_its_unlabelled_images(tmp_path):
    image_folder(tmp_path / "by class", SPORTS)
    (tmp_path / "train").mkdir()
    rows = [("image_ID", "label")]
    for file in sorted((tmp_path / "by class").glob("*/*.jpg")):
        rows.append((f"{file.parent.name[:2]}{file.name}", file.parent.name.title()))
        file.rename(tmp_path / "train" / rows[-1][0])
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    words = [f"data.train={tmp_path}/train.csv", f"data.images={tmp_path}/train", f"run.root={tmp_path}", "run.name=r"]
    assert train("recipe=sport6_silu", *SMALL, *words, "batch_size=12", "epochs=2", report=True) == 0
    run, largest = tmp_path / "r", 8
    found = evaluation(run)
    assert found["classes"] == [name.title() for name in sorted(SPORTS)]
    assert [entry["samples"] for entry in found["per_class"]] == [2, 2, 1, 1, 1, 1]
    assert column(run, "samples")[-1] == 2 * 6 * largest
    assert found["top1"] == max(column(run, "val/top1"))
    best = (run / "checkpoints" / "best").read_text().strip()
    assert same(weights(run), weights(run, f"checkpoints/{best}/model.safetensors"))
    assert (run / "curves.png").is_file()
    assert (run / "confusion.png").is_file()

    test = image_folder(tmp_path / "test", {"": 5})
    done = finish(start("-m", "resnet", "predict", run, test, "--csv", tmp_path / "out.csv", "--device", "cpu"))
    assert done.returncode == 0, done.stderr
    header, *predicted = csv.reader(io.StringIO((tmp_path / "out.csv").read_text()))
    assert header[:2] == ["file", "label"]
    assert [row[0] for row in predicted] == [f"{n}.jpg" for n in range(5)]
    assert {row[1] for row in predicted} <= set(found["classes"])


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """Weights for ImageNet's thousand classes, as torchvision saves them."""
    torch.manual_seed(7)
    file = tmp_path_factory.mktemp("pretrained") / "resnet18.safetensors"
    safetensors.torch.save_file(torchvision.models.resnet18().state_dict(), file)
    return file


@pytest.mark.parametrize("frozen", [True, False])
def test_finetune_resnet50_from_a_file(tmp_path, pretrained, frozen):
    data = [
        f"data.{split}={image_folder(tmp_path / split, {'a': n, 'b': n, 'c': n})}"
        for split, n in (("train", 6), ("val", 2))
    ]
    words = ["model.name=resnet18", f"model.pretrained={pretrained}", "batch_size=6", "epochs=1"]
    words += ["model.freeze_backbone=true", "optimizer.backbone_lr_scale=1"] if frozen else []
    assert train("recipe=finetune_resnet50", *SMALL, *data, *words, f"run.root={tmp_path}", "run.name=r") == 0
    before, after = safetensors.torch.load_file(pretrained), weights(tmp_path / "r")
    assert after["fc.weight"].shape == (3, 512)
    unchanged = {name for name in before if name in after and torch.equal(before[name], after[name])}
    backbone = before.keys() - {"fc.weight", "fc.bias"}
    assert unchanged == (backbone if frozen else set())
    moved = (after["layer1.0.conv1.weight"] - before["layer1.0.conv1.weight"]).abs().max()
    # Adam's first steps are of the size of the learning rate: a tenth of 1e-3 here, three times.
    assert frozen or 5e-5 < moved < 5e-4


# All


NET_WORDS = ("block", "stem", "maxpool", "downsample", "shortcut", "attention")
DATA_KEYS = {"last_batch", "balance", "repeats"}
"""Those that drawn images can be given, too."""


def kinds_of_keys(recipe: Recipe) -> set[str]:
    """The keys that a recipe gives values of its own, with the words among the values: not how large a number is."""
    values = recipe.model_dump(mode="json", exclude_defaults=True, exclude={*NOT_TRAINING})
    values["data"] = {key: value for key, value in values["data"].items() if key in DATA_KEYS}
    values["model"] = {key: value for key, value in values["model"].items() if key not in (*NET_KEYS, "name")}
    net = net_of(recipe.model)
    values["net"] = {key: str(getattr(net, key)) for key in NET_WORDS}
    return {key if isinstance(at, (int, float, list)) else f"{key}={at}" for key, at in leaves("", values)}


def leaves(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def covering(recipes: list[Recipe]) -> list[str]:
    """Names of few recipes that together have every kind of key that any has."""
    left, chosen = {recipe.name: kinds_of_keys(recipe) for recipe in recipes}, []
    missing = set().union(*left.values())
    while missing:
        best = max(left, key=lambda name: len(left[name] & missing))
        chosen.append(best)
        missing -= left.pop(best)
    return chosen


RECIPES = [load([f"recipe={name}"]).recipe for name in names()]


@pytest.mark.parametrize("name", covering(RECIPES))
def test_two_steps_of_every_kind_of_recipe(tmp_path, name):
    recipe = load([f"recipe={name}"]).recipe
    words = [*OFF, "data.val=null", "data.val_fraction=null", "data.num_workers=0", "log_every=1", "batch_size=8"]
    words += ["data.source=synthetic", "data.size=40", "data.samples=16", "data.classes=8", "epochs=1"]
    words += ["augment.train_size=32", "augment.val_resize=36", "augment.val_size=32", "model.pretrained=null"]
    net = net_of(recipe.model)
    words += ["model.name=null", f"model.layers={[1] * len(net.layers)}", f"model.widths={[8] * len(net.layers)}"]
    words += ["model.stem_width=8", *(f"model.{key}={getattr(net, key)}" for key in NET_WORDS)]
    if recipe.max_batch_per_device:
        words.append("max_batch_per_device=4")
    if recipe.augment.progressive:
        words.append("augment.progressive=[{epoch: 0, size: 32}]")
    if getattr(recipe.schedule, "warmup_epochs", 0):
        words.append("schedule.warmup_epochs=0.5")
    if recipe.ema:
        words.append("ema.start_epoch=0.5")
    assert train(f"recipe={name}", *words, f"run.root={tmp_path}", "run.name=r") == 0
    run = tmp_path / "r"
    assert column(run, "step") == [1, 2, 2]
    assert all(math.isfinite(loss) for loss in column(run, "train/loss") + column(run, "val/loss"))
    assert Counter(map(len, (column(run, "val/samples"), column(run, "lr")))) == {1: 1, 2: 1}
    assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_the_network_of_every_recipe_is_built():
    models = {str(recipe.model): recipe.model for recipe in RECIPES}.values()
    for model in models:
        with torch.device("meta"):
            network = build_model(model, 10)
        size = net_size(model, 10, 224)
        assert sum(parameter.numel() for parameter in network.parameters()) == size.parameters
