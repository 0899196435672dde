"""Trials of a sweep on a machine with several GPUs: each has one of its own, and the next takes one that is free."""

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

import launch.sweep.here
from launch import cli
from tests.helpers import OFF

TRIAL = """
import json, os, sys, time
begin = time.time()
time.sleep(1.5)
place = {"begin": begin, "end": time.time(), "gpu": os.environ["CUDA_VISIBLE_DEVICES"]}
with open(sys.argv[0] + "." + str(os.getpid()), "w") as file:
    json.dump(place, file)
"""


def places(monkeypatch: pytest.MonkeyPatch, folder: Path, visible: str, *words: str) -> list[dict]:
    """Where and when each trial ran, by `launch sweep`, with a script that only tells in the place of train.py."""
    script = folder / "train.py"
    script.write_text(TRIAL)
    monkeypatch.setattr(launch.sweep.here, "TRAIN", script)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(SystemExit) as left:
        cli.main(["sweep", "recipe=quickstart", *OFF[1:], f"run.root={folder}", "--name", "study", *words])
    assert left.value.code == 0
    return [json.loads(file.read_text()) for file in folder.glob("train.py.*")]


@pytest.mark.parametrize(
    ("visible", "words", "gpus"),
    [
        ("3,GPU-8f,5", ["seed=0,1,2", "--parallel", "2"], {"3", "GPU-8f"}),
        ("2, 4", ["seed=0,1", "--parallel", "2"], {"2", "4"}),
        ("2", ["seed=0,1"], {"2"}),
    ],
)
def test_each_trial_has_a_gpu_of_its_own(monkeypatch, tmp_path, visible, words, gpus):
    found = places(monkeypatch, tmp_path, visible, *words)
    assert {place["gpu"] for place in found} == gpus
    assert len(found) == words[0].count(",") + 1
    by_gpu = defaultdict(list)
    for place in found:
        by_gpu[place["gpu"]].append((place["begin"], place["end"]))
    for spans in by_gpu.values():
        assert all(end <= begin for (_, end), (begin, _) in pairwise(sorted(spans))), "two at once"
    if len(by_gpu) == 2:
        first, second = (min(spans) for spans in by_gpu.values())
        assert max(first[0], second[0]) < min(first[1], second[1]), "side by side"


def test_more_at_once_than_there_are_gpus_take_turns(monkeypatch, tmp_path, capsys):
    first, second = sorted(places(monkeypatch, tmp_path, "0", "seed=0,1", "--parallel", "2"), key=lambda p: p["begin"])
    assert "--parallel 2: GPUs here: 1, one for each trial, so 1 at a time\n" in capsys.readouterr().out
    assert first["end"] <= second["begin"]
