"""Images that are kept on the device: the same pixels as without, and the same run."""

import os
import signal

import numpy as np
import pytest
import torch

from recipes.errors import RecipeError
from recipes.load import load
from recipes.schema.augment import Augment
from resnet.data import cache
from resnet.data.arrays import BrokenImage
from resnet.data.batches import Key, MicroBatches
from resnet.data.cache import DrawnBatches, Filled, fill
from resnet.data.loader import Loader
from resnet.data.operations import apply_to_batch
from resnet.data.order import Order
from resnet.tools.compare import compare_runs
from tests.helpers import metrics, status, train

on_cuda = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
ALL = {"crop": "pad", "padding": 3, "train_size": 24, "val_size": 20, "val_resize": 20, "vflip": 0.3}


class Pictures:
    """So many random images of 24 and of other pixels, of which one cannot be read."""

    def __init__(self, count: int, broken: int | None = None) -> None:
        self.labels, self.classes, self._broken = np.arange(count) % 3, ["a", "b", "c"], broken

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> torch.Tensor:
        if index == self._broken:
            raise BrokenImage("made so")
        random = torch.Generator().manual_seed(index)
        return torch.randint(256, (3, 24, 24 + index % 2), generator=random, dtype=torch.uint8)

    def describe(self, index: int) -> str:
        return f"picture {index}"


def filled(training, validation, augment, device) -> Filled:
    def loader(batches, keys):
        return Loader(batches, keys, torch.device(device), workers=0, prefetch=2)

    *parts, last = fill(training, validation, augment, loader, chunk=16)
    assert parts == [None] * 4
    return last


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"random_erasing": 0.5},
        {"crop": "resize"},
        {"hflip": 0, "padding": 0},
        {"hflip": 1, "vflip": 0},
        {"hflip": 1, "vflip": 1, "interpolation": "bicubic"},
        {"policy": "randaugment", "rotation": 20, "color_jitter": 0.4, "random_erasing": 0.5},
    ],
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_cuda)])
def test_batches_are_the_same_to_the_last_bit(changes, device):
    training, validation, augment = Pictures(40, broken=7), Pictures(11, broken=2), Augment(**(ALL | changes))
    order = Order(training.labels, seed=3, batch_size=8)
    plain = MicroBatches(training, validation, order, augment)
    kept, *sources = filled(training, validation, augment, device)
    drawn = DrawnBatches(*sources, order, augment, operations_on_device=True)
    keys = [Key(epoch, start, start + 8, 24) for epoch in (0, 1) for start in range(0, 40, 8)]
    keys += [Key(None, 0, 8, 20), Key(None, 8, 11, 20)]
    for key, got in zip(keys, kept.look_up(drawn[key] for key in keys), strict=True):
        expected = plain[key]
        images = got.images if got.operations is None else apply_to_batch(got.images, got.operations)
        assert torch.equal(images.cpu(), expected.images), key
        assert got.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(got.labels, expected.labels)
        assert got.broken == expected.broken
        assert got.erased is None or torch.equal(got.erased, expected.erased)
    assert any("picture 7: made so" in plain[key].broken for key in keys)


SMALL = ("augment.crop=pad", "augment.train_size=32", "augment.val_size=32", "augment.val_resize=32")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_is_the_same_to_the_last_bit(tmp_path, tiny, capsys, workers):
    words = [*tiny, *SMALL, "epochs=2", f"run.root={tmp_path}", f"data.num_workers={workers}"]
    assert train(*words, "run.name=plain", "data.cache=none") == 0
    if not workers:
        assert train(*words, "run.name=auto") == 0
        assert "images are kept in memory as they are read" in capsys.readouterr().out
        assert compare_runs(tmp_path / "plain", tmp_path / "auto") == []
    assert train(*words, "run.name=kept", "data.cache=device", "max_steps=5") == 0
    assert "1 MB of images in " in capsys.readouterr().out
    assert train(*words, "run.name=kept", "data.cache=device") == 0
    differences = compare_runs(tmp_path / "plain", tmp_path / "kept")
    assert differences == []
    assert len(metrics(tmp_path / "kept", "train/loss")) == 20


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["recipe=resnet50_imagenet"], "augment.crop=random_resized"),
        (["recipe=cifar10_resnet18", "augment.progressive=[{epoch: 0, size: 32}]"], "augment.progressive"),
    ],
)
def test_what_it_cannot_do_is_refused(words, told):
    with pytest.raises(RecipeError, match=rf"data.cache=device cannot do .*{told}.*data.cache=auto"):
        load([*words, "data.cache=device", "data.train=x", *(["data.val=y"] if "image" in words[0] else [])])


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.setattr(cache, "available_memory", lambda: 10**6)
    words = [*tiny, *SMALL, f"run.root={tmp_path}", "run.name=r", "data.cache=device"]
    assert train(*words) == 2
    assert "needs 0.0 GB, more than half of the 0.0 GB that are free on the CPU" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    monkeypatch.setattr(cache, "available_memory", lambda: None)
    assert train(*words, "max_steps=1") == 0


def test_a_signal_is_heeded_while_the_cache_fills(tmp_path, tiny, monkeypatch, capsys):
    prepared, counted = cache._Shaped.__getitem__, []

    def signalled(self, key):
        counted.append(key)
        if len(counted) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return prepared(self, key)

    monkeypatch.setattr(cache._Shaped, "__getitem__", signalled)
    words = [*tiny, *SMALL, f"run.root={tmp_path}", "run.name=r", "data.cache=device", "max_steps=2"]
    assert train(*words) == 85
    assert len(counted) <= 4
    assert status(tmp_path / "r")["state"] == "stopped"
    assert "stopped (signal SIGTERM) after step 0, which could not be saved; to continue: " in capsys.readouterr().out
    assert train(*words) == 0


def test_a_failure_while_the_cache_fills_is_told(tmp_path, tiny, monkeypatch, capsys):
    def broken(self, key):
        raise RuntimeError("DataLoader worker is killed by signal: Bus error.")

    monkeypatch.setattr(cache._Shaped, "__getitem__", broken)
    assert train(*tiny, *SMALL, f"run.root={tmp_path}", "run.name=r", "data.cache=device") == 1
    assert status(tmp_path / "r")["state"] == "failed"
    assert "enlarge /dev/shm" in capsys.readouterr().err


def test_room_is_counted_with_the_frame(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * (50_000 * 40 * 40 + 10_000 * 32 * 32) * 3, 0))
    augment = Augment(crop="pad", padding=4, train_size=32, val_size=32, val_resize=32)
    cache.check_room(50_000, 10_000, augment, torch.device("cuda"))
    with pytest.raises(ValueError, match=r"needs 0.3 GB, more than half of the 0.5 GB"):
        cache.check_room(50_001, 10_000, augment, torch.device("cuda"))
