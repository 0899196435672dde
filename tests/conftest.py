from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from resnet.data.sources.shapes import draw
from tests.helpers import TINY, cores
from tests.slurm_helpers import Cluster, need_slurm, running_cluster

PROCESSES = (
    *("test_api", "test_artefacts", "test_averaging", "test_bad_input", "test_bands", "test_bench", "test_bench_gpu"),
    *("test_check_data", "test_check_node", "test_completion", "test_diff", "test_distill", "test_doctor", "test_ends"),
    *("test_early_stopping", "test_spent", "test_splits"),
    *("test_environment", "test_find_lr", "test_flight_recorder", "test_micro_batch"),
    *("test_eval", "test_example_pages", "test_examples", "test_export", "test_features"),
    *(
        "test_front_doors",
        "test_held_without_slurm",
        "test_index",
        "test_kept",
        "test_local",
        "test_logs",
        "test_look",
        "test_old_runs",
    ),
    *("test_parity", "test_pinning", "test_plugins", "test_predict", "test_prepare", "test_progress", "test_prune"),
    *("test_quantize", "test_ranks", "test_recipe_runs", "test_replay", "test_race", "test_report_ends", "test_resume"),
    "test_size_changes",
    *("test_stage", "test_step", "test_sweep", "test_tools", "test_tour", "test_tracker", "test_train", "test_trust"),
    *("test_wandb_page", "test_weights_file", "test_why_curves", "test_why"),
)
"""Modules of which most tests start processes or train."""
LONGEST = (
    *("test_slurm_ends.py", "test_sweep.py", "test_tour.py", "test_slurm.py", "test_local.py", "test_ends.py"),
    *("test_resume.py", "test_look.py", "test_bad_input.py", "test_example_pages.py", "test_quantize.py"),
    *("test_export.py", "test_prune.py", "test_early_stopping.py", "test_splits.py", "test_ranks.py", "test_trust.py"),
)
"""Files that take minutes, most of them in waiting, and those that fork ranks: a process in which autograd has started
threads, as some tests make it do, can no longer be forked for that."""

# A machine that does other things beside is slow, which says nothing of what is tested.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by what it needs, and put the longest first: side by side with the others they set the time."""
    for item in items:
        module, needs = item.path.stem, {*getattr(item, "fixturenames", ())}
        if "cluster" in needs or module in ("test_questions", "test_queue", "test_testcluster"):
            item.add_marker("slurm")
        elif module in PROCESSES or {"tiny", "shapes"} & needs:
            item.add_marker("process")
        elif not item.get_closest_marker("gpu"):
            # What a test of a GPU does on a CPU is training, as it is there.
            item.add_marker("process" if item.path.parent.name == "gpu" else "fast")
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


@pytest.fixture
def hardly_timed(monkeypatch) -> Iterator[None]:
    """Networks that are measured beside each other are timed once, and on one core."""
    from resnet.tools.export import measure

    monkeypatch.setattr(measure, "TIMED_SECONDS", 0.0)
    monkeypatch.setattr(measure, "LEAST_TIMES", 1)
    with cores(1):
        yield
