import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from recipes.schedules import Hyper, Schedule, Span, hyper_at

SCHEDULE = TypeAdapter(Schedule)


def schedule(name, **keys):
    return SCHEDULE.validate_python({"name": name, **keys})


def ours(config, steps_per_epoch, total_steps, lr):
    return [hyper_at(config, step, steps_per_epoch, total_steps, lr) for step in range(total_steps)]


def torchs(make, steps_per_epoch, total_steps, lr, per_epoch=False, optimizer=torch.optim.SGD, **keys):
    """Learning rate and momentum that each step of a plain PyTorch loop uses."""
    optimizer = optimizer([torch.zeros(1, requires_grad=True)], lr=lr, **keys)
    scheduler = make(optimizer)
    used = []
    for step in range(total_steps):
        group = optimizer.param_groups[0]
        used.append((group["lr"], group["betas"][0] if "betas" in group else group["momentum"]))
        optimizer.step()
        if (not per_epoch or (step + 1) % steps_per_epoch == 0) and step + 1 < total_steps:
            scheduler.step()
    return used


def assert_same_rates(config, make, steps_per_epoch, total_steps, per_epoch):
    expected = torchs(make, steps_per_epoch, total_steps, 0.3, per_epoch)
    got = ours(config, steps_per_epoch, total_steps, 0.3)
    assert [hyper.lr for hyper in got] == pytest.approx([lr for lr, _ in expected], rel=1e-9, abs=1e-12)
    assert {hyper.momentum for hyper in got} == {None}


@pytest.mark.parametrize("update", ["step", "epoch"])
def test_step_equals_torch(update):
    config = schedule("step", every=3, gamma=0.1, update=update)
    assert_same_rates(config, lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.1), 7, 70, per_epoch=True)


@pytest.mark.parametrize("final", [0.0, 0.01])
def test_cosine_equals_torch(final):
    def make(length):
        return lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, length, eta_min=0.3 * final)

    assert_same_rates(schedule("cosine", final=final), make(66), 7, 66, per_epoch=False)
    assert_same_rates(schedule("cosine", final=final, update="epoch"), make(10), 7, 70, per_epoch=True)


def test_warmup_and_cosine_equal_torchvisions_references():
    def make(optimizer):
        lrs = torch.optim.lr_scheduler
        warmup = lrs.LinearLR(optimizer, start_factor=0.01, total_iters=5)
        cosine = lrs.CosineAnnealingLR(optimizer, T_max=20 - 5)
        return lrs.SequentialLR(optimizer, [warmup, cosine], milestones=[5])

    config = schedule("cosine", warmup_epochs=5, warmup_start=0.01, update="epoch")
    assert_same_rates(config, make, 4, 80, per_epoch=True)


@pytest.mark.parametrize("update", ["step", "epoch"])
def test_milestones_equal_torchs(update):
    config = schedule("multistep", milestones=[2, 3, 7], gamma=0.2, update=update)
    make = lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 3, 7], 0.2)  # noqa: E731
    assert_same_rates(config, make, 7, 70, per_epoch=True)


def test_milestones_of_a_fraction_of_an_epoch_come_on_the_step():
    config = schedule("multistep", milestones=[0.3, 0.7, 2], gamma=0.5)
    assert [hyper.lr for hyper in ours(config, 10, 12, 1.0)] == [1.0] * 3 + [0.5] * 4 + [0.25] * 5
    turns = [*config.turns(Span(10, 12, 1.0))]
    assert turns == [(3, "drop 1 of 3"), (7, "drop 2 of 3")]


@pytest.mark.parametrize("per_epoch", [False, True])
def test_exponential_equals_torchs(per_epoch):
    config = schedule("exponential", gamma=0.6, update="epoch" if per_epoch else "step")
    factor = 0.6 if per_epoch else 0.6 ** (1 / 7)
    assert_same_rates(config, lambda o: torch.optim.lr_scheduler.ExponentialLR(o, factor), 7, 50, per_epoch)


@pytest.mark.parametrize("power", [1.0, 2.5])
@pytest.mark.parametrize("per_epoch", [False, True])
def test_poly_equals_torchs(power, per_epoch):
    config = schedule("poly", power=power, update="epoch" if per_epoch else "step")
    length = 10 if per_epoch else 70
    assert_same_rates(config, lambda o: torch.optim.lr_scheduler.PolynomialLR(o, length, power), 7, 70, per_epoch)


@pytest.mark.parametrize("per_epoch", [False, True])
@pytest.mark.parametrize(("multiplier", "restarts"), [(1, [4, 8, 12, 16]), (3, [4, 16])])
def test_restarts_equal_torchs(per_epoch, multiplier, restarts):
    config = schedule(
        "cosine_restarts", period=4, multiplier=multiplier, final=0.1, update="epoch" if per_epoch else "step"
    )
    period = 4 if per_epoch else 20

    def make(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, period, multiplier, eta_min=0.03)

    assert_same_rates(config, make, 5, 85, per_epoch)
    found = [(step, f"restart {n} of {len(restarts)}") for n, step in enumerate([5 * at for at in restarts], 1)]
    assert [*config.turns(Span(5, 85, 0.3))] == found


@pytest.mark.parametrize(
    ("name", "keys", "make"),
    [
        ("multistep", {"milestones": [7, 11]}, lambda lrs, o: lrs.MultiStepLR(o, [4, 8], 0.1)),
        ("exponential", {"gamma": 0.8}, lambda lrs, o: lrs.ExponentialLR(o, 0.8)),
        ("poly", {"power": 2}, lambda lrs, o: lrs.PolynomialLR(o, 12, 2)),
        ("cosine_restarts", {"period": 5}, lambda lrs, o: lrs.CosineAnnealingWarmRestarts(o, 5)),
    ],
)
def test_what_follows_a_warmup_equals_torchs(name, keys, make):
    def sequential(optimizer):
        lrs = torch.optim.lr_scheduler
        warmup = lrs.LinearLR(optimizer, start_factor=0.05, total_iters=3)
        return lrs.SequentialLR(optimizer, [warmup, make(lrs, optimizer)], milestones=[3])

    config = schedule(name, warmup_epochs=3, warmup_start=0.05, update="epoch", **keys)
    assert_same_rates(config, sequential, 2, 30, per_epoch=True)


def test_milestones_that_do_not_ascend_are_refused():
    with pytest.raises(ValueError, match=r"must ascend: give \[30.0, 60.0\]"):
        schedule("multistep", milestones=[60, 30, 30])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize(("total_steps", "pct_start"), [(100, 0.3), (97, 0.35), (7, 0.1), (2, 0.9)])
def test_onecycle_equals_torch(optimizer, anneal, total_steps, pct_start):
    def make(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.3, total_steps=total_steps, pct_start=pct_start, anneal_strategy=anneal, div_factor=20
        )

    keys: dict[str, Any] = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    expected = torchs(make, 10, total_steps, 0.3, optimizer=optimizer, **keys)
    got = ours(schedule("onecycle", pct_start=pct_start, anneal=anneal, div_factor=20), 10, total_steps, 0.3)
    assert [hyper.lr for hyper in got] == pytest.approx([lr for lr, _ in expected], rel=1e-9, abs=1e-15)
    assert [hyper.momentum for hyper in got] == pytest.approx([momentum for _, momentum in expected], rel=1e-12)


def test_onecycle_where_torch_divides_by_zero():
    assert hyper_at(schedule("onecycle", pct_start=0.25), 0, 2, 4, 0.3) == Hyper(0.3, 0.85)
    assert hyper_at(schedule("onecycle"), 0, 2, 1, 0.3).lr == pytest.approx(0.3 / 25 / 1e4)


def test_onecycle_may_leave_momentum_alone():
    assert hyper_at(schedule("onecycle", cycle_momentum=False), 3, 2, 10, 0.3).momentum is None


def test_drops_of_a_fraction_of_an_epoch_come_on_the_step():
    config = schedule("step", every=0.1, gamma=0.5)
    assert [hyper.lr for hyper in ours(config, 30, 12, 1.0)] == [0.5 ** (step // 3) for step in range(12)]


def test_warmup_by_step_is_a_straight_line_to_lr():
    got = [hyper.lr for hyper in ours(schedule("constant", warmup_epochs=2, warmup_start=0.2), 5, 15, 0.5)]
    assert got == pytest.approx([0.1 + 0.04 * step for step in range(10)] + [0.5] * 5)


def test_poly():
    got = [hyper.lr for hyper in ours(schedule("poly", power=2, warmup_epochs=1, final=0.1), 4, 12, 2.0)]
    assert got[4:] == pytest.approx([0.2 + 1.8 * (1 - t / 8) ** 2 for t in range(8)])
    assert got[0] == pytest.approx(0.02)


def test_triangular_is_linear_in_epochs():
    got = [hyper.lr for hyper in ours(schedule("triangular", peak_epoch=2, start=0.1), 5, 40, 1.7)]
    assert got[0] == pytest.approx(0.17)
    assert got[5] == pytest.approx(1.7 * 0.55)
    assert got[10] == 1.7
    assert got[25] == pytest.approx(0.85)
    assert got[39] == pytest.approx(1.7 / 30)


def test_triangular_of_a_run_that_ends_before_its_peak_only_climbs():
    got = [hyper.lr for hyper in ours(schedule("triangular", peak_epoch=2), 5, 8, 1.0)]
    assert got == sorted(got)


WARMUP = {
    # Not 1e-295, after which a period ends within what floating point can tell.
    "warmup_epochs": st.floats(0, 0.9).map(lambda epochs: round(epochs, 6)),
    "warmup_start": st.floats(1e-4, 1),
    "update": st.sampled_from(["step", "epoch"]),
}
FINAL = st.floats(0, 1)
SCHEDULES = st.one_of(
    st.fixed_dictionaries({"name": st.just("constant"), **WARMUP}),
    st.fixed_dictionaries({"name": st.just("step"), "every": st.floats(0.05, 9), "gamma": st.floats(0.1, 1), **WARMUP}),
    st.fixed_dictionaries(
        {
            "name": st.just("multistep"),
            "milestones": st.lists(st.integers(1, 9), min_size=1, unique=True).map(sorted),
            **WARMUP,
        }
    ),
    st.fixed_dictionaries({"name": st.just("exponential"), "gamma": st.floats(0.1, 1), **WARMUP}),
    st.fixed_dictionaries(
        {
            "name": st.just("cosine_restarts"),
            "period": st.integers(1, 40).map(lambda tenths: tenths / 10),
            "multiplier": st.integers(1, 3),
            **WARMUP,
        }
    ),
    st.fixed_dictionaries({"name": st.just("cosine"), "final": FINAL, **WARMUP}),
    st.fixed_dictionaries({"name": st.just("poly"), "final": FINAL, "power": st.floats(0.5, 3), **WARMUP}),
    st.fixed_dictionaries({"name": st.just("triangular"), "final": FINAL, "peak_epoch": st.floats(0, 9)}),
    st.fixed_dictionaries({"name": st.just("onecycle"), "pct_start": st.floats(0.01, 0.99)}),
).map(SCHEDULE.validate_python)


@settings(max_examples=300, deadline=None)
@given(config=SCHEDULES, steps_per_epoch=st.integers(1, 30), epochs=st.floats(1, 6), lr=st.floats(1e-5, 10))
def test_rates_are_positive_and_never_above_the_peak(config, steps_per_epoch, epochs, lr):
    total_steps = max(1, round(steps_per_epoch * epochs))
    rates = [hyper.lr for hyper in ours(config, steps_per_epoch, total_steps, lr)]
    assert all(math.isfinite(rate) and 0 < rate <= lr * (1 + 1e-12) for rate in rates)


@given(steps_per_epoch=st.integers(2, 30), peak=st.integers(1, 4), final=st.floats(0, 0.9))
def test_triangular_and_warmup_peak_where_they_say(steps_per_epoch, peak, final):
    for config in (
        schedule("triangular", peak_epoch=peak, final=final),
        schedule("cosine", warmup_epochs=peak, final=final),
        schedule("poly", warmup_epochs=peak, final=final),
    ):
        rates = [hyper.lr for hyper in ours(config, steps_per_epoch, steps_per_epoch * 6, 0.7)]
        assert rates.index(max(rates)) == peak * steps_per_epoch
        assert max(rates) == pytest.approx(0.7)


def test_needs_no_torch():
    code = "import sys, recipes.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
