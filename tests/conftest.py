from pathlib import Path

import pytest

from resnet.data.shapes import draw


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """160 training and 40 validation images of ten drawn classes, as `data.per_class=16 data.size=40` asks for."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    draw(folder, per_class=16, size=40)
    return folder
