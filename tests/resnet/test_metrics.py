import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from resnet.metrics import SUMMED, Window

CPU = torch.device("cpu")


def window_of(rows, ask_after=()) -> Window:
    """rows: step, loss, right, pixels, samples and broken images of each micro-batch; ask_after: rows to look after."""
    window = Window(CPU)
    for number, (step, loss, right, pixels, samples, broken) in enumerate(rows):
        window.add(step, torch.tensor(loss), torch.tensor(right), torch.tensor(pixels), samples, broken)
        if number in ask_after:
            window.sums.clone()
    return window


def rows(count: int = 700) -> list[tuple[int, float, int, int, int, int]]:
    draw = random.Random(0)

    def pixels() -> int:
        return draw.randrange(-(2**63), 2**63)

    return [(i // 2, draw.expovariate(0.3), draw.randrange(40), pixels(), 33 + i % 5, i % 2) for i in range(count)]


def test_means_are_those_of_the_samples():
    given = rows()
    means = window_of(given).read()
    samples = sum(row[4] for row in given)
    assert means.loss == pytest.approx(sum(loss * n for _, loss, _, _, n, _ in given) / samples, abs=1e-6)
    assert means.top1 == pytest.approx(100 * sum(row[2] for row in given) / samples)
    assert (means.broken, means.skipped, means.bad_step) == (350, 0, -1)
    assert means.input_digest == sum(row[3] for row in given) % 2**53


@pytest.mark.parametrize("ask_after", [(0,), (3, 4, 500), range(0, 700, 7)])
def test_sums_do_not_depend_on_when_they_are_asked_for(ask_after):
    assert torch.equal(window_of(rows(), ask_after).sums, window_of(rows()).sums)


def test_sums_do_not_depend_on_the_number_of_ranks():
    given = rows()
    shares = [window_of(given[rank::4]).sums for rank in range(4)]
    assert torch.equal(torch.stack(shares).sum(0)[SUMMED], window_of(given).sums[SUMMED])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_loss_that_is_not_finite_is_found(value):
    given = [(step, value if step >= 5 else 1.0, 1, 0, 2, 0) for step in range(9)]
    for ask_after in ((), (5, 7), range(9)):
        means = window_of(given, ask_after).read()
        assert (means.bad_step, means.loss) == (5, 5 / 9)


def test_clearing_keeps_what_is_counted_over_the_epoch_until_its_end():
    window = window_of(rows(4))
    window.clear(epoch_ends=False)
    assert window.sums.tolist() == [0, 0, 0, 2, 0, 0, 0, 0]
    window.clear(epoch_ends=True)
    assert not window.sums.any()


def test_adding_costs_the_device_nothing():
    class Counting(TorchDispatchMode):
        calls: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls.append(str(func))
            return func(*args, **(kwargs or {}))

    window, loss, right = Window(CPU), torch.tensor(1.0), torch.tensor(3)
    with Counting() as counting:
        for step in range(200):
            window.add(step, loss, right, right, 4, 0)
    assert {*counting.calls} <= {"aten.detach.default", "aten.alias.default"}, {*counting.calls}
