import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet.data import order as order_module
from resnet.data.order import Order, balanced_counts, mix

SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 2000)


def make_order(images=40, seed=0, batch_size=8, **keys):
    return Order(np.zeros(images, dtype=np.int64), seed, batch_size, **keys)


def labels_of(counts):
    """Labels of classes with so many images each, mixed."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels[np.random.default_rng(0).permutation(len(labels))]


@given(st.integers(1, 300), SEEDS, EPOCHS)
def test_each_epoch_draws_every_image_once(images, seed, epoch):
    drawn = make_order(images, seed).epoch(epoch)
    assert sorted(drawn.tolist()) == list(range(images))
    assert drawn.dtype == np.int64


@given(SEEDS, SEEDS, EPOCHS, EPOCHS)
def test_another_seed_or_epoch_is_another_order(seed, other_seed, epoch, other_epoch):
    first, second = make_order(seed=seed).epoch(epoch), make_order(seed=other_seed).epoch(other_epoch)
    assert np.array_equal(first, second) == ((seed, epoch) == (other_seed, other_epoch))


def test_images_come_to_any_place_equally_often():
    places = np.stack([make_order(6, seed).epoch(epoch) for seed in range(40) for epoch in range(50)])
    shares = np.stack([np.bincount(column, minlength=6) for column in places.T]) / len(places)
    # Of 2000 draws a share of 1/6 deviates by 0.0083; five times that is allowed.
    assert np.abs(shares - 1 / 6).max() < 0.042


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (make_order(12, seed=7, batch_size=4), [9, 5, 6, 3, 0, 11, 8, 7, 10, 4, 1, 2]),
        (make_order(12, seed=7, batch_size=5, repeats=3), [9, 5, 9, 5, 9, 6, 3, 6, 3, 6, 0, 11]),
        (
            Order(np.array([0, 0, 0, 0, 0, 1, 1, 2]), seed=7, batch_size=4, drawn=np.array([5, 5, 5])),
            [6, 7, 5, 6, 3, 0, 7, 6, 5, 7, 4, 1, 7, 7, 2],
        ),
    ],
)
def test_the_order_is_pinned(order, expected):
    """Another order would continue the runs of before on other images: it may only change with a new format."""
    assert order.epoch(3).tolist() == expected


def test_mix_is_pinned():
    assert mix(1, 2, 3) == 0x6AE515C1C0AC7E37
    assert len({mix(*numbers) for numbers in np.ndindex(20, 20, 3)}) == 1200


def test_the_order_does_not_use_what_numpy_may_change(monkeypatch):
    expected = make_order().epoch(1)

    def refuse(*_arguments, **_keys):
        raise AssertionError("not promised to stay the same")

    for name in ("permutation", "shuffle", "default_rng", "RandomState", "Generator", "choice", "randint"):
        monkeypatch.setattr(order_module.np.random, name, refuse)
    assert np.array_equal(make_order().epoch(1), expected)


def test_the_global_random_state_neither_matters_nor_changes():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = make_order().epoch(0)
    assert np.array_equal(np.random.get_state()[1], before)
    np.random.seed(2)
    assert np.array_equal(make_order().epoch(0), first)


CLASSES = st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any)


@given(CLASSES, SEEDS, EPOCHS)
def test_oversampling_makes_the_classes_equal(counts, seed, epoch):
    labels = labels_of(counts)
    order = Order(labels, seed, 4, drawn=balanced_counts("oversample", np.bincount(labels)))
    drawn = order.epoch(epoch)
    largest = max(counts)
    assert Counter(labels[drawn].tolist()) == {label: largest for label, count in enumerate(counts) if count}
    assert len(order) == len(drawn)
    for label, count in enumerate(counts):
        times = [int((drawn == index).sum()) for index in np.flatnonzero(labels == label)]
        assert all(largest // count <= time <= -(-largest // count) for time in times)


def test_oversampling_draws_another_part_again_in_each_epoch():
    labels = labels_of([10, 6])
    order = Order(labels, 0, 4, drawn=balanced_counts("oversample", np.bincount(labels)))
    again = set()
    for epoch in range(20):
        index, times = np.unique(order.epoch(epoch), return_counts=True)
        again.add(tuple(index[times == 2]))
    assert len(again) > 5
    assert {index for part in again for index in part} == set(np.flatnonzero(labels == 1))


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 200), SEEDS, EPOCHS)
def test_each_image_of_a_batch_stands_there_as_often_as_asked(distinct, repeats, images, seed, epoch):
    batch_size = distinct * repeats
    drawn = make_order(images, seed, batch_size, repeats=repeats).epoch(epoch)
    assert len(drawn) == images
    batches = [drawn[start : start + batch_size].tolist() for start in range(0, images, batch_size)]
    whole = [batch for batch in batches if len(batch) == batch_size and images >= batch_size]
    for batch in whole:
        assert Counter(batch) == dict.fromkeys(batch[:distinct], repeats)
        # Apart, so that micro-batches of up to that size hold each image once.
        assert batch == batch[:distinct] * repeats
    assert len({index for batch in whole for index in batch}) == len(whole) * distinct


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 200), SEEDS)
def test_a_batch_that_repeats_do_not_divide_is_full_and_as_even_as_can_be(batch_size, repeats, images, seed):
    drawn = make_order(images, seed, batch_size, repeats=repeats).epoch(0)
    assert len(drawn) == images
    for start in range(0, images - batch_size + 1, batch_size):
        times = Counter(drawn[start : start + batch_size].tolist()).values()
        assert len(times) == -(-batch_size // repeats)
        assert max(times) <= repeats
        assert max(times) - min(times) <= 1


def test_repeats_take_the_images_of_the_plain_order():
    plain = make_order(40, batch_size=8).epoch(2)
    repeated = make_order(40, batch_size=8, repeats=2).epoch(2)
    assert list(dict.fromkeys(repeated.tolist())) == plain[:20].tolist()


@settings(max_examples=20)
@given(CLASSES, st.integers(1, 4), st.booleans())
def test_a_pickled_order_is_the_same(counts, repeats, oversample):
    drawn = balanced_counts("oversample", np.array(counts)) if oversample else None
    order = Order(labels_of(counts), 5, 4, repeats, drawn)
    before = order.epoch(1)
    again = pickle.loads(pickle.dumps(order))
    assert np.array_equal(again.epoch(1), before)
    assert len(again) == len(order)


def test_a_pickle_holds_the_labels_and_no_drawn_order():
    order = make_order(10_000)
    size = len(pickle.dumps(order))
    order.epoch(0)
    assert len(pickle.dumps(order)) == size < 90_000


def test_an_epoch_is_drawn_once_and_cannot_be_changed():
    order = make_order()
    assert order.epoch(1) is order.epoch(1)
    with pytest.raises(ValueError):
        order.epoch(1)[0] = 3


@given(CLASSES, SEEDS, EPOCHS)
def test_square_roots_of_sizes(counts, seed, epoch):
    labels = labels_of(counts)
    order = Order(labels, seed, 4, drawn=balanced_counts("sqrt", np.bincount(labels)))
    drawn = order.epoch(epoch)
    assert set(drawn.tolist()) == set(range(len(labels))), "none is left out"
    assert len(order) == len(drawn)
    got = np.bincount(labels[drawn], minlength=len(counts))
    for one, size in zip(got, counts, strict=True):
        assert abs(one - (size * max(counts)) ** 0.5) <= 0.5


@given(CLASSES, st.floats(0.01, 0.99), SEEDS)
def test_shares_of_an_epoch_that_is_as_long_as_there_are_images(counts, share, seed):
    labels = labels_of(counts)
    sizes = np.bincount(labels, minlength=len(counts))
    named = int(np.argmax(sizes > 0))
    share = share if np.count_nonzero(sizes) > 1 else 1.0
    order = Order(labels, seed, 4, drawn=balanced_counts("shares", sizes, {named: share}))
    got = np.bincount(labels[order.epoch(3)], minlength=len(counts))
    assert got.sum() == len(labels) == len(order)
    rest = max(1, len(labels) - sizes[named])
    for label, size in enumerate(sizes):
        wanted = share if label == named else (1 - share) * size / rest
        assert abs(got[label] - wanted * len(labels)) < 1
