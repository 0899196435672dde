"""Numbers that can be trusted: ranks that differ are found and named, and the run goes on from before that."""

from __future__ import annotations

import json

import torch

from resnet.ema import Ema
from resnet.metrics import Window
from resnet.recheck import Answer, who_is_wrong
from resnet.replicas import checksums, odd_ones, replicated
from resnet.state import TrainState
from resnet.stragglers import Seconds, told
from resnet.tools.compare import compare_runs
from tests.bench.flips import flips
from tests.helpers import OFF, metrics, same, status, weights
from tests.processes import start_ranks, wait_ranks

OWN = """
import pathlib
import time
import numpy as np
import torch
import torch.distributed as dist

class Flips:
    def __init__(self, once):
        self.once = pathlib.Path(once)

    def on_step(self, step, model):
        if step == 3 and dist.get_rank() == 1 and not self.once.exists():
            self.once.touch()
            next(model.parameters()).detach().view(torch.int32)[0, 0, 0, 0] ^= 1

class Several:
    # Labels an image; one read fails once on rank 2, in a micro-batch that two ranks make.
    def __init__(self, train=True):
        self.classes, self.left = ["a", "b", "c", "d"], 14 if train else None
        self.targets = np.random.default_rng(0).integers(0, 2, (48, 4)).astype(np.float32)

    def __len__(self):
        return 48

    def read(self, index):
        if self.left and dist.is_initialized() and dist.get_rank() == 2:
            self.left -= 1
            if not self.left:
                raise OSError(5, "Input/output error")
        return torch.from_numpy(np.random.default_rng(index).integers(0, 255, (3, 20, 20), dtype=np.uint8))

    def describe(self, index):
        return f"image {index}"

class Sleeps:
    def on_step(self, step, model):
        time.sleep(0.2 * (dist.get_rank() == 1))

class Spoils:
    def __init__(self, rank, at):
        self.rank, self.at = rank, at

    def on_step(self, step, model):
        if step == self.at and dist.get_rank() == self.rank:
            model.get_submodule("layer1").register_forward_hook(lambda _, given, made: made * (1 + 2**-20))
"""
NET = ["recipe=quickstart", *OFF, "model={name: null, block: basic, layers: [1, 1], widths: [8, 16]}", "log_every=2"]
DATA = ["data={source: synthetic, samples: 48, classes: 4, size: 20, num_workers: 0}", "batch_size=6", "epochs=1"]
SMALL = [
    *NET,
    *DATA,
    "augment={train_size: 16, val_resize: 16, val_size: 16}",
    "progress=off",
    "checkpoint.every=2 steps",
]


def test_any_one_element_and_any_swap_change_the_sum():
    for values in (torch.randn(3, 5, 2, 2), torch.randn(7).bfloat16(), torch.randn(4, 3).double(), torch.arange(6)):
        before = checksums([values, values])
        words = values.view(-1).view(torch.uint8)
        for byte in range(len(words)):
            for bit in range(8):
                words[byte] ^= 1 << bit
                first, second = checksums([values, values.clone()])
                assert first == second != before[0]
                words[byte] ^= 1 << bit
        flat = values.view(-1)
        flat[[1, -1]] = flat[[-1, 1]]
        assert checksums([values]) != before[:1]
    # In the order of the memory, whatever the shape says.
    images = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert checksums([images]) == checksums([images.permute(0, 2, 3, 1).contiguous()])


def test_who_is_wrong_is_known_where_two_agree_and_are_the_most():
    assert odd_ones([5, 5]) == odd_ones([5]) == []
    assert odd_ones([5, 5, 6]) == [2]
    assert odd_ones([6, 5, 5, 7]) == [0, 3]
    for undecided in ([5, 6], [5, 6, 7], [5, 5, 6, 6]):
        assert odd_ones(undecided) is None


def test_flipped_bits_are_found_at_the_next_save():
    outcomes = flips(8, ranks=3, seed=1)
    assert all(outcome["found"] for outcome in outcomes), outcomes


def test_a_run_with_a_flipped_bit_ends_as_if_nothing_had_been(tmp_path):
    def train(name: str, once: str) -> list[int]:
        own = f"plugins.callbacks=[{{path: '{tmp_path}/own.py:Flips', args: {{once: '{tmp_path / once}'}}}}]"
        argv = [*SMALL, own, f"run.root={tmp_path}", f"run.name={name}"]
        return wait_ranks(start_ranks(argv, 3, tmp_path / f"{name}.txt"), 120)

    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "never").touch()
    assert train("whole", "never") == [0, 0, 0], (tmp_path / "whole.txt").read_text()
    assert train("hurt", "once") == [1, 1, 1], (tmp_path / "hurt.txt").read_text()
    found = status(tmp_path / "hurt")
    assert (found["state"], found["failure"]) == ("failed", "sdc")
    assert found["reason"].startswith("after step 4: silent data corruption: rank 1 on ")
    assert (tmp_path / "hurt/checkpoints/latest").read_text().strip() == "step-00000002"
    records = [json.loads((tmp_path / f"hurt/logs/failure-{rank}.json").read_text()) for rank in range(3)]
    assert [record["own_fault"] for record in records] == [False, True, False]
    assert train("hurt", "once") == [0, 0, 0], (tmp_path / "hurt.txt").read_text()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "hurt"))


def test_a_rank_that_computes_wrong_gradients_is_named_before_the_update(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    steps = ["batch_size=24", "max_batch_per_device=4", "epochs=2", "augment.mixup=0.2", "model.dropout=0.2"]

    def train(name: str, at: int, *words: str) -> list[int]:
        own = f"plugins.callbacks=[{{path: '{tmp_path}/own.py:Spoils', args: {{rank: 2, at: {at}}}}}]"
        given = [word for word in SMALL if not word.startswith("data=") or "loss=bce" not in words]
        argv = [*given, *steps, own, *words, f"run.root={tmp_path}", f"run.name={name}"]
        return wait_ranks(start_ranks(argv, 3, tmp_path / f"{name}.txt"), 120)

    # What is computed twice leaves no trace.
    assert train("without", 9) == [0, 0, 0], (tmp_path / "without.txt").read_text()
    sleeps = f"plugins.callbacks=[{{path: '{tmp_path}/own.py:Sleeps'}}]"
    assert train("with", 9, "recheck=1", sleeps) == [0, 0, 0], (tmp_path / "with.txt").read_text()
    assert compare_runs(tmp_path / "without", tmp_path / "with") == []
    # Nor does a rank that is slow, which is named.
    slow = metrics(tmp_path / "with", "slow_ranks")[-1]
    assert (slow["slowest_rank"], slow["slowest_by"]) == (1, "other"), slow
    assert status(tmp_path / "with")["slow_ranks"] == slow["slow_ranks"]
    # Nor does one that could not read an image. Its fault is told by rows of several labels too.
    source = f"data={{source: plugin, plugin: {{path: '{tmp_path}/own.py:Several'}}, num_workers: 0, max_broken: 0.1}}"
    several = [source, "loss=bce", "label_smoothing=0"]
    assert train("hurt", 3, "recheck=2", *several) == [1, 1, 1], (tmp_path / "hurt.txt").read_text()
    assert "unreadable image: image " in (tmp_path / "hurt.txt").read_text()
    found = status(tmp_path / "hurt")
    assert (found["state"], found["failure"]) == ("failed", "sdc")
    assert found["reason"].startswith("after step 3: silent data corruption: rank 2 on "), found["reason"]
    assert "makes other gradients of the same images" in found["reason"]


def test_who_computed_wrong_is_told_by_a_third_or_by_a_repetition():
    def judged(answers: list[list[int]], repeated: list[int], third: int) -> tuple[list[int], bool] | None:
        """answers: by rank, of each micro-batch. repeated: each rank's second answer of its own."""
        ranks = len(answers)
        asked = [(rank + 1, rank + third) for rank in range(ranks)]
        other, thirds = ([answers[rank][pair[i] % ranks] for rank, pair in enumerate(asked)] for i in (0, 1))
        made = ([answers[rank][rank] for rank in range(ranks)], other, repeated, thirds)
        return who_is_wrong(*([Answer(0, value) for value in values] for values in made))

    right = [[10, 20, 30, 40] for _ in range(4)]
    spoilt = [*right[:2], [11, 21, 31, 41], right[3]]
    assert judged(spoilt, [10, 20, 31, 40], 2) == ([2], True)
    once = [*right[:2], [10, 20, 31, 40], right[3]]
    assert judged(once, [10, 20, 30, 40], 2) == ([2], True)
    # Where several do not repeat themselves, nothing is known of any.
    assert judged(spoilt, [10, 22, 32, 40], 2) is None
    assert judged([[10, 20], [11, 21]], [10, 21], 1) == ([0, 1], False)
    assert judged([[10, 20], [11, 21]], [10, 22], 1) == ([1], True)
    # An answer without an image that could not be read says nothing of another's.
    good, wrong, without = Answer(1, 10), Answer(1, 11), Answer(2, 20, broken=1)
    assert who_is_wrong([good] * 4, [good, wrong, good, good], [without, *[good] * 3], [good] * 4) == ([1], True)
    told = who_is_wrong([good] * 4, [good, wrong, good, good], [good] * 4, [without] * 4)
    assert told == ([1, 2], False)


def test_an_average_that_has_not_begun_is_not_compared():
    model = torch.nn.Linear(2, 2)
    state = TrainState(
        model, torch.optim.SGD(model.parameters()), torch.amp.GradScaler("cpu"), None, Window(torch.device("cpu"))
    )
    state.ema = Ema(model, decay=None)
    assert [*replicated(state)] == ["weight", "bias"]
    state.ema.update(model, 0)
    assert [*replicated(state)][2:] == ["average of weight", "average of bias"]


def test_a_slow_rank_is_named_with_the_reason():
    def line(**slow: float) -> dict:
        # Two that wait 0.05 s for the network, and longer for a third that takes more of something.
        extra = sum(slow.values())
        quick = Seconds(0.4 + extra, data=0.05, compute=0.25, wait=0.05 + extra)
        parts = {"data": 0.05 + slow.get("data", 0), "compute": 0.25 + slow.get("compute", 0)}
        return told([quick, quick, Seconds(0.4 + extra, **parts, wait=0.05)], ["a", "a", "b"])

    assert (line()["slowest_ratio"], line()["network_wait"]) == (1, 0.125)
    assert line(compute=0.05)["slowest_ratio"] == 1.143
    assert "slow_ranks" not in line(compute=0.05)
    for part in ("data", "compute", "other"):
        assert line(**{part: 0.35})["slow_ranks"] == f"rank 2 on b: 2.00 times the median ({part})"
