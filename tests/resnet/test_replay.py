import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import resnet
from resnet.checkpoint.commit import name_of
from resnet.tools import replay_run
from resnet.tools.cli import main
from resnet.tools.look import look_at_run
from resnet.tools.replay import replay
from tests.helpers import TINY, train

WORDS = [
    *TINY,
    "epochs=3",
    "log_every=3",
    "checkpoint.keep=9",
    "ema.decay=0.5",
    "augment.mixup=0.2",
    "wandb.mode=disabled",
]
"""Three epochs of 10 steps: checkpoints of the steps 10, 20 and 30, and lines of the log in between."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with the run `r` and, in `shapes`, its data."""
    folder = tmp_path_factory.mktemp("replay")
    assert train(*WORDS, f"data.train={folder / 'shapes'}", f"run.root={folder}", "run.name=r") == 0
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the run, to be damaged."""
    return shutil.copytree(trained / "r", tmp_path / "r")


@pytest.fixture
def here(monkeypatch) -> None:
    """Trains in this process, which takes a second, and not in one of its own, which takes ten."""

    def train_here(words: list[str], ranks: int, threads: int, done: Callable[[], bool], output: Path) -> None:
        assert (ranks, threads) == (1, 1)
        with contextlib.redirect_stdout(io.StringIO()):
            code = train(*words)
        assert done(), code

    monkeypatch.setattr(replay_run, "train_again", train_here)


def content_of(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of change of each file."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        str(file.relative_to(folder)): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in files
    }


def flip(file: Path, bit: int, from_end: int = 4) -> None:
    """Flip one bit of a little-endian float32 that ends `from_end` bytes before the end; bit 0 is the least."""
    content = bytearray(file.read_bytes())
    content[len(content) - from_end + bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def forge(checkpoint: Path) -> None:
    """Make a manifest agree with files that have changed."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        facts["sha256"] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / name_of(step)


def test_steps_are_equal_to_the_last_bit_in_a_process_of_their_own(trained, capsys):
    before = content_of(trained / "r")
    main(["replay", str(trained / "r"), "--from", "step-10", "--to", "step-20"])
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == [
        f"training steps 11 to 20 of {trained / 'r'} again on 1 rank",
        "steps 11 to 20: equal to the last bit",
    ]
    assert "checkpoint step-00000020 (weights, average, optimizer, counters) and 6 lines of the log" in out
    assert content_of(trained / "r") == before


def test_every_step_can_be_logged(trained, here, capsys):
    main(["replay", str(trained / "r"), "--from", "20", "--log-every", "1"])
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[2:12]] == [str(step) for step in range(21, 31)]
    assert "steps 21 to 30: equal to the last bit" in out


def test_steps_without_a_checkpoint_at_their_end(trained, here):
    found = resnet.Run(trained / "r").replay(10, 17)
    assert (found.first, found.last, found.equal, found.close, found.first_step) == (10, 17, True, True, None)
    assert "no weights of step 17 are kept (there are step-00000010, step-00000020, step-00000030)" in found.notes[0]
    assert [row["step"] for row in found.rows] == [10, 12, 15]


def test_a_bit_flipped_in_the_last_checkpoint_is_found(run, here, capsys):
    flip(checkpoint(run, 20) / "model.safetensors", bit=0)
    with pytest.raises(SystemExit, match="1"):
        main(["replay", str(run), "--from", "10"])
    out = capsys.readouterr().out
    assert "steps 11 to 20: NOT equal" in out
    assert "model.safetensors has changed since it was written" in out
    assert "% of its elements differ, by up to" in out
    assert "the log is equal throughout" in out


def test_a_bit_flipped_under_a_forged_manifest_is_found(run, here):
    flip(checkpoint(run, 20) / "model.safetensors", bit=0)
    forge(checkpoint(run, 20))
    found = replay(run, 10)
    assert [line.partition(":")[0] for line in found.differences] == ["model.layer3.0.downsample.1.weight"]
    assert (found.close, found.first_step) == (False, None)


def test_a_bit_flipped_in_the_first_checkpoint_is_refused(run, here, capsys):
    flip(checkpoint(run, 10) / "model.safetensors", bit=0)
    with pytest.raises(SystemExit, match="2"):
        main(["replay", str(run), "--from", "10"])
    assert "model.safetensors has changed since it was written" in capsys.readouterr().err


def test_a_first_checkpoint_with_a_forged_manifest_is_found(run, here):
    flip(checkpoint(run, 10) / "model.safetensors", bit=22)
    forge(checkpoint(run, 10))
    found = replay(run, 10)
    assert (found.equal, found.close) == (False, False)
    assert found.first_step == 12, "the first line after step 10; the evaluation there was of the average"
    assert "machine, versions, ranks and threads are the same" in found.notes


def test_an_image_that_was_replaced_is_named(run, trained, tmp_path, here):
    data = shutil.copytree(trained / "shapes", tmp_path / "shapes")
    recipe = resnet.load_recipe(run)
    sample = look_at_run(run, recipe, 13, 16).samples[5]
    other = data / Path(sample.file).relative_to(trained / "shapes")
    Image.new("RGB", (40, 40), "red").save(other)
    found = replay(run, 10, overrides=[f"data.train={data}"])
    assert found.first_step == 15, "the line of the steps 13 to 15"
    assert found.differences[0].startswith("the log parts at step 15: train/loss")
    (named,) = [note for note in found.notes if "was changed at" in note]
    assert named.startswith(f"{other} was changed at ")
    assert named.endswith("after the run had trained on it: resnet look --step 13 shows it")


def test_the_same_images_elsewhere_are_the_same(run, trained, tmp_path, here):
    data = shutil.copytree(trained / "shapes", tmp_path / "shapes")
    assert replay(run, 10, 13, overrides=[f"data.train={data}"]).equal


def test_other_images_are_refused(run, trained, tmp_path, here):
    with pytest.raises(ValueError, match=r"is not the data that .* was trained on"):
        replay(run, 10, overrides=["data.max_train=150"])


def test_a_changed_seed_is_told(run, here):
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("\nseed: 0\n", "\nseed: 7\n"))
    found = replay(run, 10)
    assert found.differences == ["recipe.yaml has been edited: seed is 7, and the checkpoint was trained by 0"]
    assert (found.equal, found.close) == (False, False)


def as_elsewhere(run: Path) -> None:
    """Let the run have been trained by another torch."""
    provenance = json.loads((run / "provenance.json").read_text())
    provenance["packages"]["torch"] = "2.0"
    (run / "provenance.json").write_text(json.dumps(provenance))


def test_rounding_needs_a_reason(run, here, capsys):
    flip(checkpoint(run, 10) / "model.safetensors", bit=2)
    forge(checkpoint(run, 10))
    found = replay(run, 10)
    assert (found.equal, found.close) == (False, False)
    as_elsewhere(run)
    main(["replay", str(run), "--from", "10", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["equal"], told["close"]) == (False, True)
    assert told["environment"]["torch"][0] == "2.0"
    assert "different, as rounding is, by: torch" in told["notes"]


def test_more_than_rounding_has_no_excuse(run, here):
    as_elsewhere(run)
    flip(checkpoint(run, 20) / "model.safetensors", bit=28)
    forge(checkpoint(run, 20))
    found = replay(run, 10)
    assert not found.close
    assert "not the same: torch" not in " ".join(found.notes), "the log is equal"


def test_the_images_of_each_step_are_drawn(trained, tmp_path, here, capsys):
    words = ["--from", "10", "--to", "12", "--dump-batches", "--keep", str(tmp_path / "kept")]
    main(["replay", str(trained / "r"), *words])
    drawn = sorted(os.listdir(tmp_path / "kept" / "batches"))
    assert drawn == ["step-00000010.json", "step-00000010.png", "step-00000011.json", "step-00000011.png"]
    images = json.loads((tmp_path / "kept" / "batches" / "step-00000011.json").read_text())["images"]
    seen = look_at_run(trained / "r", resnet.load_recipe(trained / "r"), 11, 16).samples
    assert [image["file"] for image in images] == [sample.file for sample in seen]
    assert (tmp_path / "kept" / "replay" / "metrics.jsonl").is_file()
    with pytest.raises(ValueError, match="is there already: give another --keep"):
        replay(trained / "r", 10, 12, keep=tmp_path / "kept")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--from", "15"], "no checkpoint of step 15 to begin from: there are step-00000010, step-00000020"),
        (["--from", "step-30"], "nothing to train again from step 30 to step 30: the run has logged 30 steps"),
        (["--from", "20", "--to", "10"], "nothing to train again from step 20 to step 10"),
        (["--to", "31"], "nothing to train again from step 10 to step 31"),
        (["--from", "first"], "--from first: give a step, as step-500 or 500"),
        (["--log-every", "2"], "--log-every 2: the run logged every 3 steps"),
        (["--dump-batches"], "--dump-batches needs a folder: give --keep FOLDER"),
        (["model.pretrained=x", "optimizer.lrr=1"], "did you mean optimizer.lr"),
    ],
)
def test_mistakes(trained, capsys, words, told):
    with pytest.raises(SystemExit, match="2"):
        main(["replay", str(trained / "r"), *words])
    assert told in capsys.readouterr().err


def test_a_training_that_fails_is_told(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(replay_run, "TRAIN", tmp_path / "nothing.py")
    with pytest.raises(ValueError, match=r"(?s)could not be trained again \(code 2\).*nothing.py"):
        replay(trained / "r", 10)
