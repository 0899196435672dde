from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet.data.sources.shapes import draw
from tests.helpers import TINY
from tests.slurm_helpers import Cluster, need_slurm, running_cluster

LONGEST = ("test_slurm_ends.py", "test_sweep.py", "test_slurm.py", "test_local.py", "test_ends.py", "test_resume.py")
"""Files that take minutes, most of them in waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: side by side with the others (pytest-xdist) they set the time of the whole."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """160 training and 40 validation images of ten drawn classes, as `data.per_class=16 data.size=40` asks for."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    draw(folder, per_class=16, size=40)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """A Slurm of a test module's own, and an empty folder to send runs from."""
    need_slurm()
    with running_cluster(
        tmp_path_factory.mktemp("cluster"), tmp_path_factory.mktemp("a folder with spaces")
    ) as running:
        yield running


@pytest.fixture
def tiny(shapes) -> list[str]:
    """The words of a run of a few seconds."""
    return [*TINY, f"data.train={shapes}"]
