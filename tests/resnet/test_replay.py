import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import resnet
from resnet.checkpoint.commit import name_of
from resnet.process.processes import is_alive
from resnet.tools import replay_run, verify_resume
from resnet.tools.cli import main
from resnet.tools.look import look_at_run
from resnet.tools.replay import replay
from tests.helpers import TINY, train

WORDS = [
    *TINY,
    "data.per_class=8",
    "epochs=3",
    "log_every=3",
    "checkpoint.keep=9",
    "ema.decay=0.5",
    "augment.mixup=0.2",
    "wandb.mode=disabled",
]
"""Three epochs of 5 steps: checkpoints of the steps 5, 10 and 15, and lines of the log in between."""


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
    main(["replay", str(trained / "r"), "--from", "step-5", "--to", "step-10"])
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == [
        f"training steps 6 to 10 of {trained / 'r'} again on 1 rank",
        "steps 6 to 10: equal to the last bit",
    ]
    assert "checkpoint step-00000010 (weights, average, optimizer, counters) and 5 lines of the log" in out
    assert content_of(trained / "r") == before


def test_every_step_can_be_logged(trained, here, capsys):
    main(["replay", str(trained / "r"), "--from", "10", "--log-every", "1"])
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[2:7]] == [str(step) for step in range(11, 16)]
    assert "steps 11 to 15: equal to the last bit" in out


def test_steps_without_a_checkpoint_at_their_end(trained, here):
    found = resnet.Run(trained / "r").replay(5, 8)
    assert (found.first, found.last, found.equal, found.close, found.first_step) == (5, 8, True, True, None)
    assert "no weights of step 8 are kept (there are step-00000005, step-00000010, step-00000015)" in found.notes[0]
    assert [row["step"] for row in found.rows] == [5, 6]


def test_a_bit_flipped_in_the_last_checkpoint_is_found(run, here, capsys):
    flip(checkpoint(run, 10) / "model.safetensors", bit=0)
    with pytest.raises(SystemExit, match="1"):
        main(["replay", str(run), "--from", "5"])
    out = capsys.readouterr().out
    assert "steps 6 to 10: NOT equal" in out
    assert "model.safetensors has changed since it was written" in out
    assert "% of its elements differ, by up to" in out
    assert "the log is equal throughout" in out


def test_a_bit_flipped_under_a_forged_manifest_is_found(run, here):
    flip(checkpoint(run, 10) / "model.safetensors", bit=0)
    forge(checkpoint(run, 10))
    found = replay(run, 5)
    assert [line.partition(":")[0] for line in found.differences] == ["model.layer3.0.downsample.1.weight"]
    assert (found.close, found.first_step) == (False, None)


def test_a_bit_flipped_in_the_first_checkpoint_is_refused(run, here, capsys):
    flip(checkpoint(run, 5) / "model.safetensors", bit=0)
    with pytest.raises(SystemExit, match="2"):
        main(["replay", str(run), "--from", "5"])
    assert "model.safetensors has changed since it was written" in capsys.readouterr().err


def test_a_first_checkpoint_with_a_forged_manifest_is_found(run, here):
    flip(checkpoint(run, 5) / "model.safetensors", bit=22)
    forge(checkpoint(run, 5))
    found = replay(run, 5)
    assert (found.equal, found.close) == (False, False)
    assert found.first_step == 6, "the first line after step 5; the evaluation there was of the average"
    assert "machine, versions, ranks and threads are the same" in found.notes
    told = "the images behind the line of step 6 are the same: what was computed from them differs"
    assert told in found.notes


@pytest.mark.parametrize("keeps_time", [False, True])
def test_an_image_that_was_replaced_is_found(run, trained, tmp_path, here, keeps_time):
    data = shutil.copytree(trained / "shapes", tmp_path / "shapes")
    recipe = resnet.load_recipe(run)
    sample = look_at_run(run, recipe, 8, 16).samples[5]
    other = data / Path(sample.file).relative_to(trained / "shapes")
    before = other.stat()
    Image.new("RGB", (40, 40), "red").save(other)
    if keeps_time:
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = replay(run, 5, overrides=[f"data.train={data}"])
    assert found.first_step == 9, "the line of the steps 7 to 9"
    assert found.differences[0].startswith("the log parts at step 9: train/loss")
    assert ", from other images" in found.differences[0]
    assert "images behind the line of step 9 are not those that the run trained on" in " ".join(found.notes)
    named = [note for note in found.notes if "was changed at" in note]
    assert len(named) == (not keeps_time)
    if named:
        assert named[0].startswith(f"{other} was changed at ")
        assert named[0].endswith("after the run had trained on it: resnet look --step 8 shows it")


def test_the_same_images_elsewhere_are_the_same(run, trained, tmp_path, here):
    data = shutil.copytree(trained / "shapes", tmp_path / "shapes")
    assert replay(run, 5, 7, overrides=[f"data.train={data}"]).equal


def test_other_images_are_refused(run, trained, tmp_path, here):
    data = shutil.copytree(trained / "shapes", tmp_path / "shapes")
    (data / "train" / "ring" / "0000.jpg").unlink()
    with pytest.raises(ValueError, match=r"is not the data that .* was trained on"):
        replay(run, 5, overrides=[f"data.train={data}"])


def test_changes_are_told_or_refused(run, here):
    found = replay(run, 5, 7, overrides=["optimizer.lr=0.02"])
    assert not found.close
    assert "changed for this: optimizer.lr 0.01 -> 0.02" in found.notes
    with pytest.raises(ValueError, match=r"(?s)cannot change while it goes on:.*seed: 0 -> 1"):
        replay(run, 5, overrides=["seed=1"])


def test_a_changed_seed_is_told(run, here):
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("\nseed: 0\n", "\nseed: 7\n"))
    found = replay(run, 5)
    assert found.differences == ["recipe.yaml has been edited: seed is 7, and the checkpoint was trained by 0"]
    assert (found.equal, found.close) == (False, False)


def as_elsewhere(run: Path) -> None:
    """Let the run have been trained by another torch."""
    provenance = json.loads((run / "provenance.json").read_text())
    provenance["packages"]["torch"] = "2.0"
    (run / "provenance.json").write_text(json.dumps(provenance))


def test_rounding_needs_a_reason(run, here, capsys):
    flip(checkpoint(run, 5) / "model.safetensors", bit=2)
    forge(checkpoint(run, 5))
    found = replay(run, 5)
    assert (found.equal, found.close) == (False, False)
    as_elsewhere(run)
    main(["replay", str(run), "--from", "5", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["equal"], told["close"]) == (False, True)
    assert told["environment"]["torch"][0] == "2.0"
    assert "different, as rounding is, by: torch" in told["notes"]


def test_more_than_rounding_has_no_excuse(run, here):
    as_elsewhere(run)
    flip(checkpoint(run, 10) / "model.safetensors", bit=28)
    forge(checkpoint(run, 10))
    found = replay(run, 5)
    assert not found.close
    assert "not the same: torch" not in " ".join(found.notes), "the log is equal"


def test_the_images_of_each_step_are_drawn(trained, tmp_path, here, capsys):
    words = ["--from", "5", "--to", "7", "--dump-batches", "--keep", str(tmp_path / "kept")]
    main(["replay", str(trained / "r"), *words])
    drawn = sorted(os.listdir(tmp_path / "kept" / "batches"))
    assert drawn == ["step-00000006.json", "step-00000006.png", "step-00000007.json", "step-00000007.png"]
    images = json.loads((tmp_path / "kept" / "batches" / "step-00000007.json").read_text())["images"]
    seen = look_at_run(trained / "r", resnet.load_recipe(trained / "r"), 7, 16).samples
    assert [image["file"] for image in images] == [sample.file for sample in seen]
    assert (tmp_path / "kept" / "replay" / "metrics.jsonl").is_file()
    with pytest.raises(ValueError, match="is there already: give another --keep"):
        replay(trained / "r", 5, 7, keep=tmp_path / "kept")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--from", "7"], "no checkpoint of step 7 to begin from: there are step-00000005, step-00000010"),
        (["--from", "step-15"], "has trained no step after its checkpoint step-00000015: give an earlier --from"),
        (["--to", "16"], "--to 16 is beyond what the run has logged, 15 steps"),
        (["--from", "first"], "--from first: give a step, as step-500 or 500"),
        (["--from", "10", "--to", "10"], "nothing to train again from step 10 to step 10: give a later --to"),
        (["--log-every", "2"], "--log-every 2: the run logged every 3 steps"),
        (["--dump-batches"], "--dump-batches needs a folder: give --keep FOLDER"),
        (["model.pretrained=x", "optimizer.lrr=1"], "did you mean optimizer.lr"),
    ],
)
def test_mistakes(trained, capsys, words, told):
    with pytest.raises(SystemExit, match="2"):
        main(["replay", str(trained / "r"), *words])
    assert told in capsys.readouterr().err


LAUNCHER = """
import subprocess, sys, time
rank = "import os, signal, sys, time; signal.signal(15, signal.SIG_IGN); "
rank += "open(sys.argv[1] + str(os.getpid()), 'w'); time.sleep(60)"
for _ in range(2):
    subprocess.Popen([sys.executable, "-c", rank, sys.argv[1]], start_new_session=True)
time.sleep(60)
"""
"""As torch's: ranks have sessions of their own, and these here go on after a SIGTERM, as if they were saving."""


def as_if_launched(folder: Path) -> list[str]:
    folder.mkdir()
    return [sys.executable, "-c", LAUNCHER, f"{folder}/"]


def check_ended(folder: Path) -> None:
    ranks = [int(file.name) for file in folder.iterdir()]
    assert len(ranks) == 2
    assert not any(map(is_alive, ranks))


def test_no_rank_goes_on_when_the_steps_are_done(monkeypatch, tmp_path):
    command = as_if_launched(tmp_path / "ranks")
    monkeypatch.setattr(replay_run, "accelerate_argv", lambda ranks: command)
    begun = lambda: len(os.listdir(tmp_path / "ranks")) == 2  # noqa: E731
    replay_run.train_again([], 2, None, begun, tmp_path / "output.txt")
    check_ended(tmp_path / "ranks")


def test_a_kill_reaches_every_rank_of_a_run_that_is_verified(monkeypatch, tmp_path):
    checkpoints, ranks = tmp_path / "interrupted" / "checkpoints", tmp_path / "ranks"
    reached = lambda _: [checkpoints / name_of(3)] if len(os.listdir(ranks)) == 2 else []  # noqa: E731
    monkeypatch.setattr(verify_resume, "newest_first", reached)
    verify_resume._interrupt(as_if_launched(ranks), tmp_path, 3, signal.SIGKILL)
    check_ended(ranks)


def test_a_training_that_fails_is_told(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(replay_run, "TRAIN", tmp_path / "nothing.py")
    with pytest.raises(ValueError, match=r"(?s)could not be trained again \(code 2\).*nothing.py"):
        replay(trained / "r", 5)
