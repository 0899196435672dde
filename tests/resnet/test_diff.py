import json
import shutil
from pathlib import Path

import pytest

import resnet
from recipes.load import load
from resnet.tools.cli import main
from resnet.tools.difference import Parting, _data_of, described, diff_recipes, parting_of, told_parting
from tests.helpers import TINY, train

WORDS = [*TINY, "epochs=1", "data.per_class=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs `one` and `same`, alike, and `other` with another schedule and fewer validation images."""
    folder = tmp_path_factory.mktemp("diff")
    for name, words in {
        "one": [],
        "same": [],
        "other": ["schedule={name: step, every: 0.6, gamma: 0.1}", "data.max_val=10"],
    }.items():
        assert train(*WORDS, f"data.train={folder / 'shapes'}", f"run.root={folder}", f"run.name={name}", *words) == 0
    return folder


def diff(capsys, *words: object) -> str:
    main(["diff", *map(str, words)])
    return capsys.readouterr().out


def test_equal_runs(folder, capsys):
    out = diff(capsys, "one", "same", "--root", folder)
    assert out.splitlines()[:4] == [
        f"{folder}/one | {folder}/same",
        "recipe       the same",
        "environment  the same",
        "data         the same",
    ]
    assert out.splitlines()[-1] == "log          the 6 lines that both have are equal"
    assert resnet.diff(folder / "one", folder / "same").parting is None


def test_the_data_of_an_older_versions_run_is_known_too(folder, tmp_path):
    old = shutil.copytree(folder / "one", tmp_path / "old")
    for file in old.glob("checkpoints/step-*/manifest.json"):
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "data"}))
    digest = _data_of(folder / "one")["labels (digest)"]
    assert digest
    assert _data_of(old)["labels (digest)"] == digest


def test_what_differs_is_told_in_ten_lines(folder, capsys):
    provenance = json.loads((folder / "other" / "provenance.json").read_text())
    provenance["packages"]["torch"] = "2.0"
    (folder / "other" / "provenance.json").write_text(json.dumps(provenance))
    out = diff(capsys, "one", folder / "other", "--root", folder)
    assert len(out.splitlines()) <= 10
    assert "schedule.name onecycle | step" in out
    assert "environment  torch 2." in out
    assert "data         validation images 20 | 10" in out
    assert "results      state finished; step 5; best" in out
    assert "log          parts at step 1: lr " in out


def test_json_has_it_all(folder, capsys):
    told = json.loads(diff(capsys, folder / "one", folder / "other", "--json"))
    assert told["recipe"]["data.max_val"] == [None, 10]
    assert told["parting"]["step"] == 1
    assert set(told["parting"]["keys"]) == {"lr"}, "the loss of the first step is that of the same weights"
    found = resnet.diff(folder / "one", resnet.Run(folder / "other"))
    assert (found.data["validation images"], found.results["step"]) == ((20, 10), (5, 5))


def test_recipes_alone(capsys):
    out = diff(capsys, "recipe=resnet50_imagenet", "recipe=resnet101_imagenet")
    assert out.splitlines() == [
        "resnet50_imagenet | resnet101_imagenet",
        "recipe       model.name resnet50 | resnet101",
    ]
    assert diff(capsys, "recipe=quickstart", "recipe=quickstart").endswith("recipe       the same\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("ema.decay=0.98", "ema.decay null | 0.98"),
        ("ema.every=2 ema.decay=0.9999", "ema.every null | 2"),
        ("ema={}", "ema null | {}"),
        ("optimizer.name=adamw", "optimizer.name sgd | adamw"),
        (
            "optimizer.name=adamw optimizer.betas=[0.9,0.99]",
            "optimizer.name sgd | adamw; optimizer.betas null | [0.9, 0.99]",
        ),
        ("channels_last=false", "channels_last true | false"),
    ],
)
def test_of_a_group_that_comes_what_is_not_its_default_is_told_in_the_words_of_recipes(words, told):
    one, other = load(["recipe=quickstart"]).recipe, load(["recipe=quickstart", *words.split()]).recipe
    assert described(diff_recipes(("one", "other"), (one, other)))[1:] == [f"recipe       {told}"]
    back = described(diff_recipes(("other", "one"), (other, one)))[1]
    assert back.count(" | ") == told.count(" | ")


def test_a_run_and_a_recipe(folder, capsys):
    assert "batch_size 16 | 48" in diff(capsys, folder / "one", "recipe=quickstart")


def test_mistakes(folder, capsys):
    for words, told in ((("one", "on"), "did you mean one"), (("recipe=quickstrat", "one"), "did you mean quickstart")):
        with pytest.raises(SystemExit, match="2"):
            main(["diff", *words, "--root", str(folder)])
        assert told in capsys.readouterr().err


def row(step: int, loss: float, kind: str = "train", **others: object) -> dict:
    return {"step": step, f"{kind}/loss": loss, "time": loss * step, **others}


def test_logs_part_at_their_first_common_line_that_differs():
    one = [row(1, 2.0), row(2, 1.5), row(2, 1.4, "val"), row(3, 1.0), row(4, 0.8)]
    assert parting_of(one, [{**line, "time": 0} for line in one]) is None
    assert parting_of(one, one[1::2]) is None
    other = [row(2, 1.5), row(2, 1.401, "val"), row(3, 1.001), row(4, 0.9)]
    expected = Parting(2, {"val/loss": (1.4, 1.401)}, far_step=4, same_lines=1)
    assert parting_of(one, other) == expected
    told = told_parting(expected, 4)
    assert told.startswith("parts at step 2: val/loss 1.4 | 1.401; lines before that are equal: 1;")
    assert told.endswith("losses more than 1% apart: from step 4 on")
    assert told_parting(None, 0) == "no line of the same step in both"
