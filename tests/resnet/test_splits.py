"""Test images apart from validation, folds, and how what is put aside is chosen."""

import json
import shutil
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

import resnet.last_evaluation
from recipes.load import load
from recipes.plan import samples_known
from recipes.schema.data import Data
from resnet.data.sources import cifar
from resnet.data.sources.cifar import Cifar
from resnet.data.sources.registry import fold, open_sources, open_splits
from resnet.rundir.evaluation import TEST, read_evaluation
from resnet.rundir.metrics_log import read_metrics
from resnet.rundir.status import read_status
from resnet.tools.cli import main as tool
from resnet.tools.compare import compare_runs
from tests.helpers import TINY, column, train
from tests.processes import start_ranks, wait_ranks
from tests.resnet.test_resume import NUMBERED


def opened(**keys):
    return open_splits(TypeAdapter(Data).validate_python(keys))


def images(source):
    return [source.describe(index) for index in range(len(source))]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(2, 6))
def test_folds_hold_each_image_once_and_each_class_evenly(counts, of):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    held = []
    for number in range(1, of + 1):
        kept, aside = fold(labels, number, of)
        assert sorted([*kept, *aside]) == list(range(len(labels)))
        held.append(aside)
    assert sorted(np.concatenate(held)) == list(range(len(labels)))
    sizes = np.array([np.bincount(labels[aside], minlength=len(counts)) for aside in held])
    assert (np.ptp(sizes, axis=0) <= 1).all()
    assert np.ptp(sizes.sum(1)) <= 1


def test_what_is_tested_on_is_put_aside_before_all_else(shapes):
    keys = {"source": "image_folder", "train": f"{shapes}/train"}
    plain = opened(**keys, val_fraction=0.25)
    assert plain.test is None
    splits = opened(**keys, val_fraction=0.25, test_fraction=0.25)
    assert [len(source) for source in splits if source is not None] == [80, 40, 40]
    assert [np.bincount(source.labels).tolist() for source in splits if source] == [[8] * 10, [4] * 10, [4] * 10]
    every = [name for source in splits for name in images(source)]
    assert len({*every}) == len(every) == 160
    folds = [opened(**keys, fold=f"{number}/3", test_fraction=0.25) for number in (1, 2, 3)]
    assert [images(one.test) for one in folds] == [images(splits.test)] * 3, "whatever is validated on"
    assert sorted(name for one in folds for name in images(one.val)) == sorted(
        name for source in splits[:2] for name in images(source)
    )
    with pytest.raises(ValueError, match=r"data.fold=900/1000 of 160 images holds none"):
        opened(**keys, fold="900/1000")
    first, val = open_sources(TypeAdapter(Data).validate_python({**keys, "fold": "1/3", "test_fraction": 0.25}))
    assert (images(first), images(val)) == (images(folds[0].train), images(folds[0].val))


@pytest.mark.parametrize(
    "keys",
    [
        {"fold": "2/3"},
        {"fold": "3/3", "test_fraction": 0.1},
        {"val_fraction": 0.25, "test_fraction": 0.15},
        {"val_fraction": 0.99},
        {"fold": "1/6", "max_train": 40},
        {"fold": "2/6", "samples": 93},
    ],
)
def test_what_is_left_to_train_is_known_before(keys):
    keys = {"source": "synthetic", "samples": 90, "size": 8, **keys}
    assert samples_known(TypeAdapter(Data).validate_python(keys)) == len(opened(**keys).train)


def test_test_images_in_a_place_of_their_own(shapes, tmp_path):
    names = sorted(folder.name for folder in (shapes / "val").iterdir())
    shutil.copytree(shapes / "val" / names[3], tmp_path / "test" / names[3])
    keys = {"source": "image_folder", "train": f"{shapes}/train", "val": f"{shapes}/val"}
    test = opened(**keys, test=f"{tmp_path}/test").test
    assert test is not None
    assert set(test.labels.tolist()) == {3}
    assert test.classes == names
    with pytest.raises(ValueError, match=r"^data\.test=.*nowhere: there is no"):
        opened(**keys, test=f"{tmp_path}/nowhere")
    files = [file for name in names for file in sorted((shapes / "train" / name).iterdir())]
    rows = [f"{file},{file.parent.name}" for file in files]
    for split, chosen in (("train", rows[::2]), ("val", rows[1::4]), ("test", rows[3::4])):
        (tmp_path / f"{split}.csv").write_text("\n".join(["file,label", *chosen]))
    csv = {split: f"{tmp_path}/{split}.csv" for split in ("train", "val", "test")}
    splits = opened(source="csv", **csv)
    assert sorted(name for source in splits for name in images(source)) == sorted(map(str, files))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.fold=4/3"], "data.fold=4/3 (command line): the folds of 3 are 1/3 to 3/3"),
        (["data.fold=1/1"], "write it as 2/5, the second of 5 parts (2 or more)"),
        (["data.fold=0/3"], "write it as 2/5"),
        (
            ["data.fold=1/5", "data.val_fraction=0.1"],
            "has both val_fraction and fold: give one",
        ),
        (["data.val_fraction=0.5", "data.test_fraction=0.5"], "leave nothing to train on"),
        (["data={source: huggingface, train: x, fold: 1/5}"], "fold carves from the training split: it needs val=null"),
        (["data={source: huggingface, train: x, test_split: train}"], "test_split=train is what is trained"),
        (["data={source: shards, train: x, test_fraction: 0.1}"], "test_fraction has no effect with source=shards"),
        (["data={source: csv, train: x, val: y, test: z, test_fraction: 0.1}"], "has both test and test_fraction"),
        (["data={source: csv, train: x, val: y, test: ./y}"], "test=./y is what is validated on (data.val)"),
        (["data={source: image_folder, train: x, val: y, test: x/}"], "test=x/ is what is trained on (data.train)"),
        (["data={source: shards, train: x, test: x}"], "test=x is what is trained on (data.train)"),
        (["data={source: huggingface, train: x, test: x, test_split: validation}"], "test_split=validation is what"),
        (["data={source: cifar10, test_split: test}"], "leaves nothing to validate on: give val_fraction or fold"),
        (["epochs=3", "early_stopping.patience=3"], "patience 3 has no effect on a run of 3 evaluations"),
        (["optimizer={name: lamb, betas: [0.9, 1]}"], "optimizer.betas"),
        (["optimizer.name=adam", "schedule={name: onecycle, max_momentum: 1}"], "are Adam's first beta here"),
        (["optimizer={name: lars, momentum: 0}", "schedule.name=onecycle"], "needs optimizer.momentum above 0"),
    ],
)
def test_what_cannot_be_together_is_refused(words, message):
    with pytest.raises(ValueError) as error:
        load(["recipe=quickstart", *words])
    assert message in str(error.value)


def test_what_lies_beside_what_is_tested_on_is_not_refused():
    for data in ("shards, train: x, val: y, test: x", "huggingface, train: x, test: x, test_split: test"):
        assert load(["recipe=quickstart", f"data={{source: {data}}}"]).recipe.data.is_tested


def test_the_official_test_images_are_tested_on(monkeypatch):
    def drawn(data, path, train):
        return Cifar(np.zeros((40, 32, 32, 3), np.uint8), [0, 1] * 20, ["a", "b"], "train" if train else "test")

    monkeypatch.setattr(cifar, "_split", drawn)
    splits = opened(source="cifar10", fold="1/4", test_split="test")
    assert [(len(source), images(source)[0].split()[0]) for source in splits if source is not None] == [
        (30, "train"),
        (10, "train"),
        (40, "test"),
    ]


def test_a_finished_run_is_tested_once_it_is_to_be(shapes, tmp_path):
    shutil.copytree(shapes / "val", tmp_path / "test")
    words = [word for word in TINY if word not in ("data.per_class=16", "data.size=40")]
    words += [f"run.root={tmp_path}", "run.name=r", "data.max_train=16"]
    words += [f"data={{source: image_folder, train: {shapes}/train, val: {shapes}/val}}"]
    assert train(*words, "epochs=1") == 0
    assert train(*words, "epochs=1", f"data.test={tmp_path}/test") == 0
    run = tmp_path / "r"
    assert read_evaluation(run, TEST)["top1"] == read_status(run)["test_top1"] == column(run, "test/top1")[0]
    assert train(*words, "epochs=2") == 0
    assert not (run / TEST).exists()


def attempt(folder, name, *words, ranks=1):
    argv = [*NUMBERED, "epochs=2", "max_batch_per_device=8", f"run.root={folder}", f"run.name={name}", *words]
    return wait_ranks(start_ranks(argv, ranks, folder / f"{name}.txt"), 120)


TESTED = ["data={source: synthetic, samples: 80, classes: 4, size: 24}", "data.test_fraction=0.25", "data.fold=1/3"]


def test_a_run_is_tested_once_at_its_end_whenever_it_is_killed(tmp_path, monkeypatch, capsys):
    evaluate, run = resnet.last_evaluation.evaluate, tmp_path / "r"

    def killed(*arguments):
        evaluate(*arguments)
        signal.raise_signal(signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(resnet.last_evaluation, "evaluate", killed)
        assert attempt(tmp_path, "r", *TESTED, ranks=2) == [-9, -9]
    assert read_status(run)["state"] == "running"
    assert attempt(tmp_path, "r", *TESTED, ranks=2) == [0, 0]
    assert attempt(tmp_path, "straight", *TESTED, ranks=2) == [0, 0]
    assert compare_runs(tmp_path / "straight", run) == []
    *_, val, test = read_metrics(run)
    assert test["test/samples"] == 20
    assert (test["step"], val["step"]) == (4, 4)
    assert sum("test/top1" in row for row in read_metrics(run)) == 1
    assert read_evaluation(run, TEST)["top1"] == test["test/top1"] == read_status(run)["test_top1"]
    assert "; 20 test images" in (tmp_path / "r.txt").read_text()
    assert f"; test top1 {test['test/top1']:.4g}% of 20 images" in (tmp_path / "r.txt").read_text()

    # What the weights that the run leaves reach, by the tool that knows nothing of the run's end.
    tool(["eval", str(run), "--split", "test", "--json"])
    [again] = json.loads(capsys.readouterr().out)
    assert again["samples"] == 20
    assert again["top1"] == test["test/top1"]
    assert again["loss"] == pytest.approx(test["test/loss"], rel=1e-5)
