"""Batches are the same whatever they are read from, and however: workers, ranks, start, source and cache."""

import importlib.util
import itertools
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.load import load
from recipes.plan import make_plan
from resnet.build import build_data, build_order
from resnet.data import kept
from resnet.data.batches import Batch, Key, MicroBatches, Prepared, training_keys, validation_keys
from resnet.data.cache import DrawnBatches, fill
from resnet.data.kept import kept_batches, memory_for
from resnet.data.loader import Loader
from resnet.data.node_memory import NodeMemory
from resnet.data.sources.source import Source
from resnet.process.environment import machine_memory
from resnet.tools.cli import main

HAS_REGION = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.nvimgcodec")
CPU = torch.device("cpu")
PAD = ("augment.crop=pad", "augment.train_size=24", "augment.val_size=24", "augment.val_resize=24", "augment.vflip=0.2")
ALL = (*PAD, "augment.random_erasing=0.4", "augment.policy=trivial_augment_wide")
CUT = ("augment.crop=random_resized", "augment.train_size=24", "augment.val_size=20", "augment.val_resize=24")


@pytest.fixture(scope="module")
def sources(shapes, tmp_path_factory) -> dict[str, list[str]]:
    """The words that open the same images from folders, from parquet files and from shards.

    Two are broken, which shards leave out: these are of the folder "sound". One class has fewer images.
    """
    import datasets

    root = tmp_path_factory.mktemp("sources")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["circle", "cross"])})
    for split in ("train", "val"):
        rows = {"image": [], "label": []}
        for label, name in enumerate(features["label"].names):
            (root / "folder" / split / name).mkdir(parents=True)
            for number, file in enumerate(sorted((shapes / split / name).glob("*.jpg"))):
                if (split, label) == ("train", 0) and number >= 12:
                    continue
                data = b"broken" if number == 1 else file.read_bytes()
                (root / "folder" / split / name / file.name).write_bytes(data)
                if number != 1:
                    (root / "sound" / split / name).mkdir(parents=True, exist_ok=True)
                    (root / "sound" / split / name / file.name).write_bytes(data)
                rows["image"].append({"bytes": data, "path": None})
                rows["label"].append(label)
        (root / "parquet").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features).to_parquet(root / "parquet" / f"{split}.parquet")
    words = {
        name: ["data.source=image_folder", *(f"data.{split}={root}/{name}/{split}" for split in ("train", "val"))]
        for name in ("folder", "sound")
    }
    main(["prepare", "recipe=quickstart", *words["sound"], str(root / "shards"), "--workers", "1"])
    words["parquet"] = ["data.source=huggingface", f"data.train={root}/parquet"]
    words["shards"] = ["data.source=shards", f"data.train={root}/shards"]
    return words


def recipe_of(*words: str):
    return load(["recipe=quickstart", "batch_size=8", "data.last_batch=keep", "seed=5", *words]).recipe


def told(batch: Batch) -> tuple:
    """What a batch says, the places of broken images left out, which each source has its own of."""
    reasons = [text.partition(": ")[2] for text in batch.broken]
    later = batch.operations
    drawn = () if later is None else (later.moves, later.magnitudes)
    tensors = [None if t is None else t.numpy().tobytes() for t in (batch.images, batch.labels, batch.erased, *drawn)]
    return batch.key, batch.missing, reasons, tensors, later and later.runs


def made(recipe, opened: tuple[Source, Source], keys: list[Key], workers: int, cache: str) -> list[tuple]:
    """What the loader gives for the keys; as for a GPU, where the operations of policies are still to be done."""
    order, loaders, cuda = build_order(recipe, opened[0]), [], torch.device("cuda")

    def loader(batches: Prepared, keys: list[Key]) -> Loader:
        loaders.append(Loader(batches, keys, CPU, workers, 2))
        return loaders[-1]

    try:
        if cache != "device":
            memory = memory_for(recipe, *opened) if cache == "memory" else None
            return [told(batch) for batch in loader(kept_batches(recipe, *opened, order, cuda, memory), keys)]
        *_, filled = fill(*opened, recipe.augment, loader, 16)
        assert filled is not None
        drawn = DrawnBatches(filled.train, filled.val, order, recipe.augment, operations_on_device=True)
        return [told(batch) for batch in filled.cache.look_up(iter(loader(drawn, keys)))]
    finally:
        for each in loaders:
            each.end()


@settings(max_examples=12, deadline=None)
@given(
    words=st.sampled_from([PAD, ALL, CUT]),
    source=st.sampled_from(["folder", "parquet", "shards"]),
    drawn=st.sampled_from([(), ("data.repeats=2",), ("data.balance=oversample",)]),
    cache=st.sampled_from(["none", "memory", "device"]),
    region=st.booleans(),
    workers=st.sampled_from([0, 0, 0, 2]),
    ranks=st.sampled_from([1, 2, 4]),
    step=st.integers(0, 9),
)
def test_batches_depend_on_the_recipe_alone(sources, words, source, drawn, cache, region, workers, ranks, step):
    cache = "memory" if (cache, words) == ("device", CUT) else cache
    decoded = ["data.decode=region"] if region and words == CUT and HAS_REGION else []
    recipe = recipe_of(*sources[source], *words, *drawn, *decoded, f"data.cache={cache}")
    plain = recipe_of(*sources["sound" if source == "shards" else "folder"], *words, *drawn, "data.cache=none")
    opened, opened_plainly = build_data(recipe), build_data(plain)
    samples = len(build_order(recipe, opened[0]))
    plan = make_plan(recipe, samples, ranks)
    one = make_plan(plain, samples, 1, plan.micro_batch)
    steps = range(step, step + 5)
    keys = [key for s in steps for rank in range(ranks) for key in training_keys(plan, rank, s)]
    assert keys == [key for s in steps for key in training_keys(one, 0, s)]
    keys += validation_keys(len(opened[1]), 3, 1, 0, recipe.augment.val_size)
    expected = made(plain, opened_plainly, keys, 0, "none")
    found = made(recipe, opened, keys, workers, cache)
    for got, wanted in zip(found, expected, strict=True):
        assert got == wanted


class Meanwhile:
    """An array in which, as soon as one of its values was looked up, something happens that changes it."""

    def __init__(self, values: np.ndarray, happens: Callable[[], object]) -> None:
        self._values, self._happens = values, happens

    def __getitem__(self, index: int) -> int:
        value = self._values[index]
        self._happens()
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self._values[index] = value


@pytest.mark.parametrize("looked_up", ["_starts", "_sizes"])
def test_a_file_that_another_process_keeps_meanwhile(sources, looked_up):
    recipe = recipe_of(*sources["folder"], *CUT, "data.cache=memory")
    training, validation = build_data(recipe)
    memory = memory_for(recipe, training, validation)
    assert memory is not None
    ours, theirs = (kept._kept_files(training, validation, memory)[0] for _ in range(2))
    ours.read(0)
    setattr(ours, looked_up, Meanwhile(getattr(ours, looked_up), lambda: theirs.read(3)))
    assert [ours.read(3) for _ in range(2)] == [training.read(3)] * 2


def test_nothing_but_such_memory_is_written_to(tmp_path):
    (tmp_path / "precious").write_bytes(bytes(64))
    with open(tmp_path / "precious", "r+b") as file, pytest.raises(OSError, match="precious, not the memory"):
        NodeMemory(64, (os.getpid(), file.fileno()))
    memory = NodeMemory(128)
    with pytest.raises(OSError, match="not the memory that was made"):
        NodeMemory(64, memory.address)


def test_without_such_memory_nothing_is_kept(sources, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    recipe = recipe_of(*sources["folder"], *PAD)
    assert memory_for(recipe, *build_data(recipe)) is None
    recipe = recipe_of(*sources["folder"], *PAD, "data.cache=memory")
    with pytest.raises(ValueError, match=r"needs Linux, and a Python with os.memfd_create: set data.cache=none"):
        memory_for(recipe, *build_data(recipe))


class Counted:
    """A source that counts how often each image is read."""

    def __init__(self, source) -> None:
        self._source, self.read_at = source, []
        self.labels, self.classes = source.labels, source.classes

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int):
        self.read_at.append(index)
        return self._source.read(index)

    def describe(self, index: int) -> str:
        return self._source.describe(index)


@pytest.mark.parametrize("words", [PAD, CUT])
def test_an_image_is_read_once_on_a_machine(sources, words):
    recipe = recipe_of(*sources["folder"], *words, "data.cache=memory")
    training, validation = (Counted(source) for source in build_data(recipe))
    memory = memory_for(recipe, training, validation)
    assert memory is not None
    training.read_at.clear()
    order = build_order(recipe, training)
    keys = [Key(epoch, start, start + 4, 24) for epoch in (0, 1) for start in range(0, len(training), 4)]
    first = kept_batches(recipe, training, validation, order, CPU, memory)
    # As another rank opens it.
    second = kept_batches(recipe, training, validation, order, CPU, NodeMemory(memory.size, memory.address))
    sent = pickle.loads(pickle.dumps(first))
    plain = pickle.loads(pickle.dumps(MicroBatches(*build_data(recipe), order, recipe.augment)))
    for turn, key in enumerate(keys):
        assert told((first, second)[turn % 2][key]) == told(plain[key])
    # Pixels of a broken image are looked for again, its bytes are as good as others.
    again = {index for index in training.read_at if training.read_at.count(index) > 1}
    assert len(again) == (2 if words == PAD else 0)
    assert {*training.read_at} == {*range(len(training))}
    # As it comes to workers that are not forked.
    assert told(sent[keys[0]]) == told(plain[keys[0]])
    assert {*sent.train._source.read_at} <= again


def test_what_does_not_fit_is_read_again(sources, monkeypatch):
    monkeypatch.setattr(kept, "_SPARE", 0.3)
    recipe = recipe_of(*sources["folder"], *CUT, "data.cache=memory")
    opened = build_data(recipe)
    keys = [Key(0, start, start + 4, 24) for start in range(0, len(opened[0]), 4)]
    assert made(recipe, opened, keys, 0, "memory") == made(recipe, opened, keys, 0, "none")


@pytest.mark.parametrize("words", [PAD, CUT])
def test_room_is_looked_for(sources, words, monkeypatch):
    monkeypatch.setattr(kept, "machine_memory", lambda: 100_000)
    recipe = recipe_of(*sources["folder"], *words, "data.cache=memory")
    with pytest.raises(ValueError, match=r"data.cache=memory may need 0.0 GB, more than half of the 0.0 GB"):
        memory_for(recipe, *build_data(recipe))
    recipe = recipe_of(*sources["folder"], *words)
    assert recipe.data.cache == "auto"
    assert memory_for(recipe, *build_data(recipe)) is None
    monkeypatch.undo()
    assert (memory_for(recipe, *build_data(recipe)) is None) == (words == CUT)


def test_it_has_no_effect_on_what_comes_decoded():
    recipe = recipe_of("data={source: synthetic}", "data.cache=memory")
    with pytest.raises(ValueError, match="no effect on images that come decoded"):
        memory_for(recipe, *build_data(recipe))


def test_memory_is_that_of_the_narrowest_control_group(tmp_path):
    def group(folder: str, **content: object) -> None:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, value in content.items():
            (tmp_path / folder / name.replace("_", ".", 1)).write_text(f"{value}\n")

    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:  8000 kB\n")
    assert machine_memory(tmp_path) == 8_192_000
    (tmp_path / "proc/self/cgroup").write_text("0::/job/step\n")
    group("sys/fs/cgroup/job/step", memory_max="max", memory_current=10, memory_stat="inactive_file 4")
    group("sys/fs/cgroup/job", memory_max=1000, memory_current=300, memory_stat="inactive_file 50\nactive_file 7")
    assert machine_memory(tmp_path) == 757
    (tmp_path / "proc/self/cgroup").write_text("4:cpu,memory:/job\n0::/\n")
    group("sys/fs/cgroup/memory/job", memory_limit_in_bytes=600, memory_usage_in_bytes=500, memory_stat="cache 1")
    assert machine_memory(tmp_path) == 100


def pss(process: int) -> int:
    """Kilobytes of memory, what is shared counted in parts."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_workers_do_not_grow_over_epochs(sources, cache):
    recipe = recipe_of(*sources["folder"], *PAD, f"data.cache={cache}")
    opened = build_data(recipe)
    memory = memory_for(recipe, *opened) if cache == "memory" else None
    batches = kept_batches(recipe, *opened, build_order(recipe, opened[0]), CPU, memory)
    count = len(opened[0]) // 4
    keys = [Key(epoch, 4 * at, 4 * at + 4, 24) for epoch in range(80) for at in range(count)]
    loader = Loader(batches, keys, CPU, workers=1, prefetch=2)
    iterator = iter(loader)
    sizes = []
    for _ in range(10):
        for batch in itertools.islice(iterator, 8 * count):
            del batch
        sizes.append(pss(loader._workers[0].pid))
    del iterator
    loader.end()
    # Each batch kept would be 3.4 MB. Pages that this process changes meanwhile count as the worker's own.
    assert max(sizes[-2:]) < sizes[1] + 2500
