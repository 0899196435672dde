from collections.abc import Iterator
from pathlib import Path

import pytest

from resnet.data.shapes import draw
from tests.helpers import TINY
from tests.slurm_helpers import Cluster, need_slurm, running_cluster


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
