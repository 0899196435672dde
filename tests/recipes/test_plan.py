import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recipes.plan import effective_decay, make_plan, samples_known
from recipes.schema.recipe import Recipe
from recipes.schema.training import Ema


def make_recipe(batch_size=8, **keys):
    keys = {"epochs": 3, **keys}
    data = {"source": "synthetic", "last_batch": keys.pop("last_batch", "drop")}
    return Recipe.model_validate({"model": {"name": "resnet18"}, "data": data, "batch_size": batch_size, **keys})


@st.composite
def plans(draw):
    world_size, accumulation = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    micro_batch = draw(st.integers(2, 9))
    batch_size = world_size * accumulation * micro_batch
    recipe = make_recipe(
        batch_size,
        last_batch=draw(st.sampled_from(["drop", "keep"])),
        max_batch_per_device=micro_batch,
        epochs=draw(st.sampled_from([0.5, 1, 2, 2.5, 3])),
        eval={"every": draw(st.integers(1, 3))},
    )
    return make_plan(recipe, draw(st.integers(batch_size, 6 * batch_size)), world_size)


@given(plans())
def test_the_slots_of_all_ranks_cover_each_position_of_a_step_once(plan):
    epoch = []
    for step in range(plan.steps_per_epoch):
        slots = [
            plan.slot(step, rank * plan.accumulation + turn)
            for rank in range(plan.world_size)
            for turn in range(plan.accumulation)
        ]
        positions = [position for first, last in slots for position in range(first, last)]
        sizes = [last - first for first, last in slots]
        assert len(positions) == plan.samples_of_step(step)
        assert min(sizes) >= 2
        assert max(sizes) <= plan.micro_batch
        assert max(sizes) - min(sizes) <= 1
        epoch += positions
    assert epoch == list(range(len(epoch)))
    left = plan.samples - len(epoch)
    most_left = plan.batch_size if plan.recipe.data.last_batch == "drop" else 2 * plan.slots
    assert 0 <= left < most_left


@given(plans())
def test_each_epoch_has_the_same_slots(plan):
    for step in range(plan.steps_per_epoch):
        assert plan.slot(step + 2 * plan.steps_per_epoch, 0) == plan.slot(step, 0)
        assert plan.samples_of_step(step + plan.steps_per_epoch) == plan.samples_of_step(step)


@given(plans())
def test_samples_seen_is_the_sum_of_the_steps(plan):
    seen = 0
    for step in range(plan.total_steps + 1):
        assert plan.samples_seen(step) == seen
        seen += plan.samples_of_step(step)


@given(plans())
def test_evaluations_follow_the_epochs_asked_for_and_the_end(plan):
    every = plan.steps_per_epoch * plan.recipe.eval.every
    expected = {*range(every, plan.total_steps + 1, every), plan.total_steps}
    assert {step for step in range(plan.total_steps + 1) if plan.evaluates_after(step)} == expected


@given(plans(), st.sampled_from([1, 2, 3, 4, 8]))
def test_the_micro_batch_of_a_checkpoint_gives_the_same_steps_on_other_devices(plan, world_size):
    assume(plan.slots % world_size == 0)
    other = make_plan(plan.recipe, plan.samples, world_size, micro_batch=plan.micro_batch)
    assert (other.micro_batch, other.slots, other.total_steps) == (plan.micro_batch, plan.slots, plan.total_steps)
    assert [other.slot(0, slot) for slot in range(other.slots)] == [plan.slot(0, slot) for slot in range(plan.slots)]


def sizes_in(message):
    found = re.search(r": try batch_size=([\d or]+)", message)
    assert found, message
    return [int(size) for size in found[1].strip().removesuffix(" or").split(" or ")]


@settings(max_examples=300)
@given(st.integers(2, 200), st.integers(1, 9), st.none() | st.integers(2, 12))
def test_a_batch_divides_or_the_error_names_the_nearest_that_do(batch_size, world_size, most):
    def plan_of(size, most=most):
        return make_plan(make_recipe(size, max_batch_per_device=most), 10_000, world_size)

    try:
        plan = plan_of(batch_size)
    except ValueError as error:
        sizes = sizes_in(str(error))
        for size in sizes:
            assert plan_of(size).batch_size == size
        between = range(min(sizes) + 1 if len(sizes) == 2 else 2, max(sizes))
        for size in between:
            with pytest.raises(ValueError):
                plan_of(size)
        if larger := re.search(r"or max_batch_per_device=(\d+)", str(error)):
            assert plan_of(batch_size, int(larger[1])).micro_batch == int(larger[1]) > most
    else:
        assert plan.micro_batch * plan.accumulation * world_size == batch_size
        allowed = min(most or batch_size, batch_size // world_size)
        assert max(2, allowed / 2) <= plan.micro_batch <= allowed


def test_a_batch_that_only_tiny_micro_batches_divide_is_refused():
    with pytest.raises(ValueError) as error:
        make_plan(make_recipe(2 * 131, max_batch_per_device=64), 10_000, 1)
    assert str(error.value) == (
        "batch_size 262 does not divide over 1 device in micro-batches of 32 to 64 images: "
        "try batch_size=260 or 264, or max_batch_per_device=131"
    )
    # Asked for, it is small.
    assert make_plan(make_recipe(2 * 131, max_batch_per_device=2), 10_000, 1).micro_batch == 2
    assert make_plan(make_recipe(2 * 131, max_batch_per_device=64), 10_000, 1, micro_batch=2).accumulation == 131


@given(st.integers(2, 60), st.integers(1, 6), st.integers(2, 12))
def test_a_micro_batch_to_keep_fits_or_the_error_names_what_does(batch_size, world_size, micro_batch):
    recipe = make_recipe(batch_size)
    try:
        plan = make_plan(recipe, 1000, world_size, micro_batch)
    except ValueError as error:
        if devices := re.search(r"use ([\d, or]+) devices?$", str(error)):
            for count in re.findall(r"\d+", devices[1]):
                assert make_plan(recipe, 1000, int(count), micro_batch).micro_batch == micro_batch
        else:
            for size in sizes_in(str(error)):
                assert make_plan(make_recipe(size), 1000, world_size, micro_batch).micro_batch == micro_batch
    else:
        assert plan.accumulation * micro_batch * world_size == batch_size


def test_more_in_a_batch_than_there_is():
    with pytest.raises(ValueError, match="batch_size 64 is larger than the 50 training samples"):
        make_plan(make_recipe(64), 50, 1)
    plan = make_plan(make_recipe(64, last_batch="keep"), 50, 1)
    assert (plan.steps_per_epoch, plan.slot(0, 0)) == (1, (0, 50))


def test_learning_rate_scales_with_the_batch_it_is_stated_for():
    optimizer = {"name": "sgd", "lr": 0.1, "lr_for_batch_size": 256}
    assert make_plan(make_recipe(64, optimizer=optimizer), 1000, 1).lr == pytest.approx(0.025)
    assert make_plan(make_recipe(64, optimizer={"name": "sgd", "lr": 0.1}), 1000, 1).lr == 0.1


def test_a_fraction_of_an_epoch_ends_the_run_within_it():
    assert make_plan(make_recipe(10, epochs=2.5), 100, 1).total_steps == 25
    assert make_plan(make_recipe(10, epochs=0.001), 100, 1).total_steps == 1


def test_image_size_follows_the_corners_in_multiples_of_32():
    corners = [{"epoch": 2, "size": 100}, {"epoch": 6, "size": 228}, {"epoch": 7, "size": 200}]
    plan = make_plan(make_recipe(10, epochs=9, augment={"progressive": corners}), 30, 1)
    sizes = [plan.image_size(step) for step in range(plan.total_steps)]
    assert sizes[::3] == [100, 100, 100, 128, 160, 192, 228, 200, 200]
    assert all(sizes[step] == sizes[step - step % 3] for step in range(len(sizes)))


def test_image_size_without_corners_and_with_one():
    assert make_plan(make_recipe(augment={"train_size": 176}), 80, 1).image_size(5) == 176
    one = make_plan(make_recipe(augment={"progressive": [{"epoch": 1, "size": 90}]}), 8, 1)
    assert [one.image_size(step) for step in range(3)] == [90, 90, 90]


def test_hyper_is_the_schedules():
    schedule = {"name": "step", "every": 1, "gamma": 0.5}
    plan = make_plan(make_recipe(10, optimizer={"name": "sgd", "lr": 0.8}, schedule=schedule), 20, 1)
    assert [plan.hyper(step).lr for step in range(6)] == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2])


@pytest.mark.parametrize(
    ("data", "samples"),
    [
        ({"source": "synthetic", "samples": 90}, 90),
        ({"source": "synthetic", "samples": 90, "max_train": 40}, 40),
        ({"source": "shapes", "per_class": 7, "train_samples": 2000}, 70),
        ({"source": "cifar10", "train_samples": 500}, 500),
        ({"source": "cifar10", "train_samples": 500, "max_train": 600}, 500),
        ({"source": "cifar10"}, None),
        ({"source": "cifar10", "train_samples": 500, "balance": "oversample"}, None),
        ({"source": "cifar10", "train_samples": 500, "val_fraction": 0.1}, None),
    ],
)
def test_samples_known_before_the_data_is_seen(data, samples):
    recipe = Recipe.model_validate({"model": {"name": "resnet18"}, "data": data, "epochs": 1, "batch_size": 8})
    assert samples_known(recipe.data) == samples


@pytest.mark.parametrize(
    ("keys", "batch_size", "epochs", "expected"),
    [
        ({"decay": 0.999, "every": 4}, 1024, 90, 0.999),
        ({"decay": 0.99998, "every": 32, "rescale": True}, 8 * 128, 600, 1 - 2e-5 * 8 * 128 * 32 / 600),
        ({"decay": 0.99, "every": 32, "rescale": True}, 1024, 10, 0.0),
    ],
)
def test_effective_decay(keys, batch_size, epochs, expected):
    assert effective_decay(Ema(**keys), batch_size, epochs) == pytest.approx(expected, abs=1e-12)
