import json

import pytest

from launch.cli import main
from recipes.describe import recipe_keys
from recipes.keys import all_keys, variants
from slurm.profile import Profile


@pytest.fixture
def keys(capsys):
    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["keys", *words])
        out, err = capsys.readouterr()
        assert ended.value.code == (2 if err else 0)
        return out + err

    return run


def test_every_key_is_explained():
    """With its type and meaning: of every variant of the groups that have some, and of clusters."""
    rows = recipe_keys()
    known = {key.name for key in rows}
    for group, (tag, by_name) in variants().items():
        for name in by_name:
            expected = {key for key, _ in all_keys({group: {tag: name}}) if key not in variants()}
            assert expected <= known, (group, name)
    assert [key.name for key in rows if not key.kind or not key.meaning] == []


def test_one_key_in_full(keys):
    told = keys("optimizer.momentum")
    assert "takes     a number >= 0 and < 1" in told
    assert "default   0.9" in told
    assert "only with optimizer.name=sgd, optimizer.name=rmsprop_tf, optimizer.name=lars" in told
    assert "one of auto, bf16, fp16, no" in keys("precision")
    assert "none: it has to be given" in keys("epochs")
    assert "Wall-clock limit" in keys("slurm.time")


def test_a_group_and_a_word(keys):
    told = keys("checkpoint")
    assert "checkpoint.every: " in told
    assert "checkpoint.keep: a whole number >= 1  (2)" in told
    assert "optimizer.lr:" not in told
    assert {"mixup", "cutmix"} <= {key["name"].rpartition(".")[2] for key in json.loads(keys("cutmix", "--json"))}


def test_all_of_them(keys):
    names = {key["name"] for key in json.loads(keys("--json"))}
    assert {"optimizer.lr", "schedule.every", "data.val_labels", "slurm.nodes", "ema.decay"} <= names
    assert {f"slurm.{name}" for name in Profile.model_fields} <= names
    assert all(len(line) <= 100 for line in keys().splitlines())


def test_a_key_that_is_none(keys):
    assert "no key 'lrr': did you mean optimizer.lr?" in keys("lrr")
    assert "no key 'zzzz': launch keys lists them all" in keys("zzzz")
