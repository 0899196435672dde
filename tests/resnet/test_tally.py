import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from resnet.tally import BINS, CONFUSED, MISTAKES, Tally

CPU = torch.device("cpu")


def drawn(samples: int, classes: int, seed: int, spread: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels; several images have the same logits, so that their confidences are equal."""
    random = torch.Generator().manual_seed(seed)
    different = spread * torch.randn(1 + samples // 2, classes, generator=random)
    chosen = torch.randint(len(different), (samples,), generator=random)
    return different[chosen], torch.randint(classes, (samples,), generator=random)


def tally_of(logits: torch.Tensor, labels: torch.Tensor, batch: int = 7, rank: int = 0, ranks: int = 1) -> Tally:
    """What a rank counts: every image in batches that are the same however many ranks there are."""
    tally = Tally(logits.shape[1], CPU)
    for start in range(rank * batch, len(labels), ranks * batch):
        one = slice(start, start + batch)
        loss = torch.nn.functional.cross_entropy(logits[one], labels[one], reduction="sum")
        tally.add(loss, logits[one], logits[one].softmax(1), labels[one], torch.arange(len(labels))[one])
    return tally


def plain_calibration(confidence: np.ndarray, right: np.ndarray) -> tuple[float, list[int]]:
    """The expected calibration error in percent and the images of each bin, as Guo et al. 2017 write them down."""
    error, sizes = 0.0, []
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        inside = (confidence > low) & (confidence <= high)
        sizes.append(int(inside.sum()))
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return 100 * error, sizes


@given(st.integers(1, 200), st.integers(1, 12), st.integers(0, 2**31), st.sampled_from([0.05, 1.0, 4.0, 20.0]))
@settings(max_examples=60, deadline=None)
def test_figures_are_those_of_plain_numpy(samples, classes, seed, spread):
    logits, labels = drawn(samples, classes, seed, spread)
    found = tally_of(logits, labels).read()
    scores = logits.softmax(1)
    confidence, predicted = scores.max(1).values.double().numpy(), logits.topk(1).indices[:, 0].numpy()
    right = predicted == labels.numpy()
    error, sizes = plain_calibration(confidence, right)
    assert [entry["samples"] for entry in found["calibration"]] == sizes
    assert found["ece"] == pytest.approx(error, abs=1e-5)
    assert found["top1"] == pytest.approx(100 * right.mean())
    assert found["samples"] == samples
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4, abs=1e-5)
    wrong = sorted((-np.float32(c), i) for i, (c, r) in enumerate(zip(confidence, right, strict=True)) if not r)
    assert [mistake.index for mistake in found["mistakes"]] == [index for _, index in wrong[:MISTAKES]]
    for mistake in found["mistakes"]:
        assert (mistake.true, mistake.predicted) == (labels[mistake.index], predicted[mistake.index])
        assert mistake.probability == np.float32(confidence[mistake.index])
        assert mistake.probability_of_true == scores[mistake.index, mistake.true]


def test_the_most_confused_pairs_come_first():
    logits, labels = drawn(3000, 12, seed=1)
    found = tally_of(logits, labels).read()
    matrix = found["confusion"].numpy()
    pairs = sorted((-int(matrix[t, p]), t, p) for t in range(12) for p in range(12) if t != p and matrix[t, p])
    assert found["confused"] == [[true, predicted, -count] for count, true, predicted in pairs[:CONFUSED]]


def merged(tallies: list[Tally], monkeypatch: pytest.MonkeyPatch) -> dict:
    """What the first of several ranks reads, with the others' parts handed to it in place of a process group."""
    others = tallies[1:]
    parts = iter([[getattr(other, name) for other in others] for name in ("confusion", "loss", "top5", "_bins")])
    monkeypatch.setattr("resnet.tally.sum_over_ranks", lambda tensor: tensor + sum(next(parts)))
    monkeypatch.setattr("resnet.tally.dist.is_initialized", lambda: True)
    monkeypatch.setattr("resnet.tally.dist.get_world_size", lambda: len(tallies))

    def gather(ranks: list[torch.Tensor], mine: torch.Tensor) -> None:
        ranks[0].copy_(mine)
        for place, other in zip(ranks[1:], others, strict=True):
            place.copy_(torch.stack([other._worst, other._cells, other._true.view(torch.int32).long()]))

    monkeypatch.setattr("resnet.tally.dist.all_gather", gather)
    return tallies[0].read()


@pytest.mark.parametrize("spread", [0.05, 3.0])
def test_figures_do_not_depend_on_the_number_of_ranks(spread, monkeypatch):
    logits, labels = drawn(500, 10, seed=2, spread=spread)
    alone = tally_of(logits, labels).read()
    several = merged([tally_of(logits, labels, rank=rank, ranks=3) for rank in range(3)], monkeypatch)
    assert torch.equal(alone.pop("confusion"), several.pop("confusion"))
    assert alone == several
    assert len(alone["mistakes"]) == MISTAKES


def test_counting_never_makes_the_host_wait():
    class Refusing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert not any(name in str(func) for name in ("_local_scalar_dense", "nonzero", "is_nonzero")), str(func)
            return func(*args, **(kwargs or {}))

    logits, labels = drawn(50, 10, seed=3)
    with Refusing():
        tally_of(logits, labels)


def test_what_is_not_finite_is_told_and_ends_nothing():
    logits, labels = drawn(20, 10, seed=4)
    logits[3] = float("nan")
    found = tally_of(logits, labels).read()
    assert np.isnan(found["loss"])
    assert found["samples"] == 20
    assert sum(entry["samples"] for entry in found["calibration"]) == 20
