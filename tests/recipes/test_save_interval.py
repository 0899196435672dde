import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.save_interval import interval

SECONDS = st.floats(1e-4, 1e3)
RANKS = st.integers(1, 10**5)


@pytest.mark.parametrize(
    ("stall", "writing", "ranks", "expected"),
    [
        (0.02, 0.5, 8, 30),  # it is free, to 0.1%
        (0.06, 1.0, 8, 60),  # 0.1% of the time
        (0.06, 1.0, 100_000, 30),
        (1.0, 5.0, 1024, 593),  # what is best where there is a fault in 49 hours
        (40.0, 1.0, 100_000, 4000),  # 1% of the time, whatever the faults
        (0.06, 30.0, 8, 300),  # a slow disk
    ],
)
def test_seconds_between_saves(stall, writing, ranks, expected):
    assert interval(stall, writing, ranks) == pytest.approx(expected, abs=1)


@given(SECONDS, SECONDS, RANKS)
def test_saves_cost_little_and_are_never_rarer_than_is_best(stall, writing, ranks):
    between = interval(stall, writing, ranks)
    assert stall <= 0.01001 * between
    assert writing <= 0.1001 * between
    assert interval(stall, writing, 2 * ranks) <= between
    best = (2 * stall * 50_000 * 3600 / ranks) ** 0.5
    assert between <= max(best, 30, 100 * stall, 10 * writing) * 1.0001
