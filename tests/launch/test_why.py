"""`launch why` finds faults that were planted: the right cause comes first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.launch.planted import Fault, Place, faults, place_in


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    with place_in(tmp_path_factory.mktemp("planted")) as place:
        yield place


@pytest.mark.parametrize("planted", faults(), ids=lambda planted: planted.id)
def test_right_cause_comes_first(planted: Fault, place: Place):
    said = place.say(planted)
    assert said.right, said.causes
    assert said.first["said"]
    assert len(said.first["evidence"]) <= 3
