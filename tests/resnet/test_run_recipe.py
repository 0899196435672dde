"""The recipe of a run that is used from another folder than the one it was started in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import resnet
from recipes.load import load, run_recipe_text
from resnet.run_recipe import data_of_run, load_run_recipe


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run that was started in `home`, where its data is, and is asked in `elsewhere`."""
    for folder in ("home/data/train", "home/data/val", "elsewhere", "run"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    words = ["data={source: image_folder, train: data/train, val: data/val}"]
    recipe = load(["recipe=quickstart", *words]).recipe
    (tmp_path / "run" / "recipe.yaml").write_text(run_recipe_text(recipe, tmp_path / "run" / "recipe.yaml"))
    (tmp_path / "run" / "provenance.json").write_text(json.dumps({"folder": str(tmp_path / "home")}))
    return tmp_path / "run"


def test_data_is_found_where_the_run_was_started(run, tmp_path):
    data = load_run_recipe(run, ["eval.flip=true"]).recipe.data
    assert (data.train, data.val) == (f"{tmp_path}/home/data/train", f"{tmp_path}/home/data/val")


def test_what_is_here_and_what_is_given_come_first(run, tmp_path):
    (tmp_path / "elsewhere" / "data" / "train").mkdir(parents=True)
    assert load_run_recipe(run).recipe.data.train == "data/train"
    assert load_run_recipe(run, ["data.val=mine"]).recipe.data.val == "mine"
    assert data_of_run(run, ["data"]) == {}


def test_data_that_is_nowhere_keeps_its_path(run, tmp_path):
    (tmp_path / "home" / "data" / "val").rmdir()
    assert load_run_recipe(run).recipe.data.val == "data/val"
    (run / "provenance.json").unlink()
    assert load_run_recipe(run).recipe.data.train == "data/train"


def test_from_python(run, tmp_path):
    found = resnet.Run(run)._changed({"eval.flip": True})
    assert found.eval.flip
    assert found.data.train == f"{tmp_path}/home/data/train"
