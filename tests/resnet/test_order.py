import pickle
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet.data import order as order_module
from resnet.data.bijection import mix, shuffled
from resnet.data.order import Order, balanced_counts, kind_of

SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 2000)
KINDS = st.sampled_from(["bijection", "table"])


def make_order(images=40, seed=0, batch_size=8, **keys):
    return Order(np.zeros(images, dtype=np.int64), seed, batch_size, **keys)


def epoch_of(order, epoch):
    return order.at(epoch, np.arange(len(order)))


def labels_of(counts):
    """Labels of classes with so many images each, mixed."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return labels[np.random.default_rng(0).permutation(len(labels))]


# The shuffle


def test_it_draws_each_thing_once_of_any_number():
    for length in range(1, 301):
        assert sorted(shuffled(np.arange(length), length, mix(length)).tolist()) == list(range(length))


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 2**64 - 1)), min_size=1, max_size=8))
def test_each_place_may_have_a_length_and_a_key_of_its_own(shuffles):
    lengths = np.array([length for length, _ in shuffles])
    keys = np.array([key for _, key in shuffles], dtype=np.uint64)
    places = np.concatenate([np.arange(length) for length in lengths])
    found = shuffled(places, np.repeat(lengths, lengths), np.repeat(keys, lengths))
    for length, part in zip(lengths, np.split(found, np.cumsum(lengths)[:-1]), strict=True):
        assert sorted(part.tolist()) == list(range(length))


def ours(count, length):
    """So many shuffles of range(length), (count, length), each with a key of its own."""
    keys = mix(5, np.arange(count, dtype=np.uint64)).repeat(length)
    return shuffled(np.tile(np.arange(length), count), length, keys).reshape(count, length)


def numpys(count, length):
    drawn = np.random.default_rng(5)
    return np.stack([drawn.permutation(length) for _ in range(count)])


def steps(count, length):
    """Numbers as far apart as a key says, from where it says: each comes to any place equally often, and no more."""
    drawn = np.random.default_rng(5)
    return np.stack([(drawn.integers(length) + (1 + drawn.integers(length - 1)) * np.arange(length)) % length
                     for _ in range(count)])  # fmt: skip


def chi_square(counts, freedom=None):
    """By how many standard deviations counts of what is equally likely are further from equal than expected."""
    expected = counts.mean()
    freedom = counts.size - 1 if freedom is None else freedom
    return (((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5


def of_places(shuffles):
    """Where each thing comes to."""
    found = shuffles(4000, 13)
    counts = np.stack([np.bincount(column, minlength=13) for column in found.T])
    return chi_square(counts, freedom=12 * 12)


def of_orders(shuffles):
    """Which of the 6 or 120 orders of 3 or 5 things."""
    worst = 0.0
    for length, orders in ((3, 6), (5, 120)):
        _, counts = np.unique(shuffles(6000, length) @ length ** np.arange(length), return_counts=True)
        worst = max(worst, abs(chi_square(np.pad(counts, (0, orders - len(counts))))), key=abs)
    return worst


def of_neighbours(shuffles):
    """How far apart the next one is."""
    found = shuffles(80, 997)
    return chi_square(np.bincount((np.diff(found, axis=1) % 997).ravel(), minlength=997)[1:])


def of_correlation(shuffles):
    """Whether the next one is larger where this one is."""
    found = shuffles(80, 997)
    first, second = found[:, :-1].ravel(), found[:, 1:].ravel()
    return np.corrcoef(first, second)[0, 1] * len(first) ** 0.5


def of_classes(shuffles):
    """How many of each of ten classes, which lie one after the other, are in a batch of 50."""
    labels = shuffles(40, 1000) // 100
    counts = np.stack([np.bincount(batch, minlength=10) for batch in labels.reshape(-1, 50)])
    # Drawn without putting back: the counts vary by less, and those of a batch and those of a class add up.
    freedom = 40 * 19 * 9
    return (((counts - 5) ** 2 / 5).sum() * 999 / 1000 - freedom) / (2 * freedom) ** 0.5


STATISTICS = (of_places, of_orders, of_neighbours, of_correlation, of_classes)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_no_statistic_tells_it_from_numpys_permutations(statistic):
    assert abs(statistic(numpys)) < 4
    assert abs(statistic(ours)) < 4


def test_the_statistics_tell_a_poor_shuffle():
    assert abs(of_places(steps)) < 4
    assert min(abs(statistic(steps)) for statistic in (of_orders, of_classes)) > 10


@pytest.mark.parametrize("length", [14_000_000, 2**33])
def test_batches_of_any_number_of_images_take_little_memory(length):
    order = Order(np.broadcast_to(np.int64(0), length), seed=1, batch_size=1024, repeats=2)
    tracemalloc.start()
    try:
        batches = [order.at(epoch, np.arange(length - 1024, length)) for epoch in (0, 1, 2000)]
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()
    drawn = np.concatenate([batch[:512] for batch in batches])
    assert len(np.unique(drawn)) > 1530, "a few may come twice, in other epochs"
    assert 0 <= drawn.min() < length / 100
    assert length * 0.99 < drawn.max() < length


def test_a_large_shuffle_is_pinned():
    assert shuffled(np.array([0, 1, 2**32, 2**33 - 1]), 2**33, 9).tolist() == [
        4236957767,
        2082468387,
        7612230362,
        1014208621,
    ]


# The order


@given(st.integers(1, 3000), SEEDS, EPOCHS, KINDS)
def test_each_epoch_draws_every_image_once(images, seed, epoch, kind):
    drawn = epoch_of(make_order(images, seed, kind=kind), epoch)
    assert sorted(drawn.tolist()) == list(range(images))
    assert drawn.dtype == np.int64


@given(st.integers(1, 200), EPOCHS, st.integers(1, 4), st.booleans(), st.randoms(use_true_random=False))
def test_positions_are_asked_for_in_any_number_and_order(images, epoch, repeats, balanced, random):
    labels = labels_of([images, 1, 7])
    drawn = balanced_counts("oversample", np.bincount(labels)) if balanced else None
    order = Order(labels, 3, 8, repeats, drawn)
    positions = np.array(random.choices(range(len(order)), k=random.randrange(1, 9)))
    assert order.at(epoch, positions).tolist() == epoch_of(order, epoch)[positions].tolist()


@given(SEEDS, SEEDS, EPOCHS, EPOCHS)
def test_another_seed_or_epoch_is_another_order(seed, other_seed, epoch, other_epoch):
    first, second = epoch_of(make_order(seed=seed), epoch), epoch_of(make_order(seed=other_seed), other_epoch)
    assert np.array_equal(first, second) == ((seed, epoch) == (other_seed, other_epoch))


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (make_order(12, seed=7, batch_size=4, kind="table"), [9, 5, 6, 3, 0, 11, 8, 7, 10, 4, 1, 2]),
        (make_order(12, seed=7, batch_size=5, repeats=3, kind="table"), [9, 5, 9, 5, 9, 6, 3, 6, 3, 6, 0, 11]),
        (
            Order(np.array([0, 0, 0, 0, 0, 1, 1, 2]), seed=7, batch_size=4, drawn=np.array([5, 5, 5]), kind="table"),
            [6, 7, 5, 6, 3, 0, 7, 6, 5, 7, 4, 1, 7, 7, 2],
        ),
        (make_order(12, seed=7, batch_size=4), [0, 9, 5, 6, 11, 1, 3, 4, 10, 7, 8, 2]),
        (make_order(12, seed=7, batch_size=5, repeats=3), [0, 9, 0, 9, 0, 5, 6, 5, 6, 5, 11, 1]),
        (
            Order(np.array([0, 0, 0, 0, 0, 1, 1, 2]), seed=7, batch_size=4, drawn=np.array([5, 5, 5])),
            [5, 6, 6, 0, 2, 1, 4, 7, 7, 3, 7, 5, 5, 7, 7],
        ),
        (
            Order(np.array([1, 0, 0, 2, 0, 0, 0, 1]), seed=7, batch_size=4, drawn=np.array([5, 5, 5])),
            [0, 7, 7, 1, 4, 2, 6, 3, 3, 5, 3, 0, 0, 3, 3],
        ),
    ],
)
def test_the_order_is_pinned(order, expected):
    """Another order would continue the runs of before on other images: it may only change with a new format."""
    assert epoch_of(order, 3).tolist() == expected


def test_a_run_that_does_not_say_its_order_has_a_table():
    kinds = [kind_of(facts) for facts in ({"epochs": 1}, {"order": "table"}, {"order": "bijection"}, {})]
    # The last one has said nothing at all yet.
    assert kinds == ["table", "table", "bijection", "bijection"]
    with pytest.raises(ValueError, match="is of the kind spiral, which a later version of resnet knows"):
        kind_of({"order": "spiral"})


def test_mix_is_pinned():
    assert mix(1, 2, 3) == 0x6AE515C1C0AC7E37
    assert len({mix(*numbers) for numbers in np.ndindex(20, 20, 3)}) == 1200


def test_the_order_does_not_use_what_numpy_may_change(monkeypatch):
    expected = epoch_of(make_order(), 1)

    def refuse(*_arguments, **_keys):
        raise AssertionError("not promised to stay the same")

    for name in ("permutation", "shuffle", "default_rng", "RandomState", "Generator", "choice", "randint"):
        monkeypatch.setattr(order_module.np.random, name, refuse)
    assert np.array_equal(epoch_of(make_order(), 1), expected)


def test_the_global_random_state_neither_matters_nor_changes():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = epoch_of(make_order(), 0)
    assert np.array_equal(np.random.get_state()[1], before)
    np.random.seed(2)
    assert np.array_equal(epoch_of(make_order(), 0), first)


CLASSES = st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any)


@given(CLASSES, SEEDS, EPOCHS, st.booleans(), KINDS)
def test_oversampling_makes_the_classes_equal(counts, seed, epoch, in_order, kind):
    labels = labels_of(counts)
    labels = np.sort(labels) if in_order else labels
    order = Order(labels, seed, 4, drawn=balanced_counts("oversample", np.bincount(labels)), kind=kind)
    drawn = epoch_of(order, epoch)
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
        index, times = np.unique(epoch_of(order, epoch), return_counts=True)
        again.add(tuple(index[times == 2]))
    assert len(again) > 5
    assert {index for part in again for index in part} == set(np.flatnonzero(labels == 1))


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 200), SEEDS, EPOCHS, KINDS)
def test_each_image_of_a_batch_stands_there_as_often_as_asked(distinct, repeats, images, seed, epoch, kind):
    batch_size = distinct * repeats
    drawn = epoch_of(make_order(images, seed, batch_size, repeats=repeats, kind=kind), epoch)
    assert len(drawn) == images
    batches = [drawn[start : start + batch_size].tolist() for start in range(0, images, batch_size)]
    whole = [batch for batch in batches if len(batch) == batch_size and images >= batch_size]
    for batch in whole:
        assert Counter(batch) == dict.fromkeys(batch[:distinct], repeats)
        # Apart, so that micro-batches of up to that size hold each image once.
        assert batch == batch[:distinct] * repeats
    assert len({index for batch in whole for index in batch}) == len(whole) * distinct


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 200), SEEDS, KINDS)
def test_a_batch_that_repeats_do_not_divide_is_full_and_as_even_as_can_be(batch_size, repeats, images, seed, kind):
    drawn = epoch_of(make_order(images, seed, batch_size, repeats=repeats, kind=kind), 0)
    assert len(drawn) == images
    for start in range(0, images - batch_size + 1, batch_size):
        times = Counter(drawn[start : start + batch_size].tolist()).values()
        assert len(times) == -(-batch_size // repeats)
        assert max(times) <= repeats
        assert max(times) - min(times) <= 1


def test_repeats_take_the_images_of_the_plain_order():
    plain = epoch_of(make_order(40, batch_size=8), 2)
    repeated = epoch_of(make_order(40, batch_size=8, repeats=2), 2)
    assert list(dict.fromkeys(repeated.tolist())) == plain[:20].tolist()


@settings(max_examples=20)
@given(CLASSES, st.integers(1, 4), st.booleans())
def test_a_pickled_order_is_the_same(counts, repeats, oversample):
    drawn = balanced_counts("oversample", np.array(counts)) if oversample else None
    order = Order(labels_of(counts), 5, 4, repeats, drawn)
    before = epoch_of(order, 1)
    again = pickle.loads(pickle.dumps(order))
    assert np.array_equal(epoch_of(again, 1), before)
    assert len(again) == len(order)


def test_a_pickle_holds_the_labels_and_no_drawn_order():
    order = make_order(10_000)
    size = len(pickle.dumps(order))
    epoch_of(order, 0)
    assert len(pickle.dumps(order)) == size < 90_000


@given(CLASSES, SEEDS, EPOCHS)
def test_square_roots_of_sizes(counts, seed, epoch):
    labels = labels_of(counts)
    order = Order(labels, seed, 4, drawn=balanced_counts("sqrt", np.bincount(labels)))
    drawn = epoch_of(order, epoch)
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
    got = np.bincount(labels[epoch_of(order, 3)], minlength=len(counts))
    assert got.sum() == len(labels) == len(order)
    rest = max(1, len(labels) - sizes[named])
    for label, size in enumerate(sizes):
        wanted = share if label == named else (1 - share) * size / rest
        assert abs(got[label] - wanted * len(labels)) < 1
