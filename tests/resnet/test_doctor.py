"""`resnet doctor`: it measures with a run's own functions, says what the limit is, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recipes.load import load_values
from recipes.schema.augment import Augment
from resnet.build import build_data
from resnet.data.batches import MicroBatches
from resnet.data.order import Order
from resnet.data.sources.image_folder import read_folder
from resnet.tools.cli import main
from resnet.tools.doctor import Examined
from resnet.tools.doctor_advice import limit_of, told
from resnet.tools.doctor_loader import LoaderTimer
from resnet.tools.doctor_stages import Sampled, Stages, time_stages
from tests.helpers import TINY, cores, unchanged_process


def test_a_recipe_is_examined(shapes: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*TINY, f"data.train={shapes}", "data.num_workers=1", "--seconds", "0.2"]
    with unchanged_process(), cores(1):
        main(["doctor", *words, "--json"])
        found = json.loads(capsys.readouterr().out)
    assert 4 < found["sampled"]["images"] <= 160
    assert all(found[name] > 0 for name in ("loader", "step", "cores_wanted"))
    assert found["stages"]["decode"] > 0 < found["stages"]["read"]
    assert set(found["prepared"]) == {"--max-side 400", "--raw 36"}
    assert found["limit"] in ("model", "read", "decode", "crop", "policy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cache", ["memory", "device"])
def test_a_loader_is_timed_with_images_that_are_kept(cache: str, shapes: Path) -> None:
    changes = {"data.train": str(shapes), "data.per_class": 16, "data.size": 40, "data.cache": cache}
    recipe = load_values("quickstart", {**changes, "augment.crop": "pad"}).recipe
    timer = LoaderTimer(recipe, *build_data(recipe), torch.device("cpu"), workers=1, seconds=0.1)
    rate, kept = timer.rate(Stages(1.0, 1.0, 1.0, 0.0), micro_batch=16, size=64)
    assert kept
    assert rate > 0


def test_images_that_cannot_be_read_are_passed_over_unless_all_are(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "ring").mkdir()
    for number, file in enumerate(sorted((shapes / "train" / "ring").iterdir())[:3]):
        data = file.read_bytes()
        (tmp_path / "ring" / file.name).write_bytes(data if number else data[:40])
    source = read_folder(tmp_path, "data.train")
    batches = MicroBatches(source, source, Order(source.labels, 0, 2), Augment())
    assert time_stages(batches, 32, 1.0, on_gpu=False)[1].images == 2
    for file in (tmp_path / "ring").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of 3 images could be read; .* the file is empty"):
        time_stages(batches, 32, 1.0, on_gpu=False)


FOUND = Examined(
    load_values("resnet50_imagenet").recipe,
    "NVIDIA H200",
    "bf16",
    ranks=8,
    cores=16,
    workers=16,
    training_images=1_281_167,
    stages=Stages(0.1, 1.4, 0.4, 0.0),
    sampled=Sampled(404, 110.0, 500.0, True),
    prepared={"--max-side 400": 1052.0, "--raw 256": 3000.0},
    loader=6000.0,
    kept=False,
    copy=90_000.0,
    step=3000.0,
    micro_batch=256,
)
"""Of a machine that nobody has measured: what is said of it follows from the figures alone."""


REGION = load_values("resnet50_imagenet", {"data.decode": "region"}).recipe
SMALL = Sampled(404, 30.0, 300.0, True)


@pytest.mark.parametrize(
    ("changes", "limit", "words"),
    [
        ({}, "model", ["2.0 times as fast", "9 cores would feed it", "compile=true"]),
        ({"precision": "no"}, "model", ["precision=bf16"]),
        ({"step": 9000.0}, "decode", ["67% of what", "decode (74%)", "27 cores for each rank", "data.decode=region"]),
        ({"step": 9000.0, "workers": 4}, "decode", ["7 cores for each rank", "data.num_workers=null"]),
        ({"step": 9000.0, "recipe": REGION}, "decode", ["--max-side 400", "2.0 times"]),
        ({"step": 9000.0, "recipe": REGION, "sampled": SMALL}, "decode", ["data.decode=gpu"]),
        ({"step": 9000.0, "stages": Stages(9.0, 1.4, 0.4, 0.0), "training_images": 10**9}, "read", ["data.stage="]),
        ({"step": 9000.0, "stages": Stages(9.0, 1.4, 0.4, 0.0), "training_images": 9}, "read", ["data.cache=memory"]),
        ({"step": 9000.0, "stages": Stages(0.1, 1.4, 0.4, 2.0), "copy": None}, "policy", ["a GPU"]),
    ],
)
def test_the_limit_and_the_cheapest_change_follow_from_the_figures(changes, limit: str, words: list[str]) -> None:
    found = FOUND._replace(**changes)
    lines = told(found)
    assert limit_of(found) == limit
    assert len(lines) == 5
    for word in words:
        assert word in "\n".join(lines)
