"""The walls of the house: who may import whom, what starts without torch, and names that outlive a version."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import PROGRAM, train

MAY_IMPORT = {
    "recipes": set(),
    "resnet.process": set(),
    "resnet.rundir": {"resnet.process"},
    "resnet": {"recipes", "resnet.process", "resnet.rundir"},
    "resnet.tools": {"recipes", "resnet.process", "resnet.rundir", "resnet"},
    "resnet.tools.commands": {"recipes", "resnet.process", "resnet.rundir", "resnet", "resnet.tools"},
    "resnet.api": {"recipes", "resnet.process", "resnet.rundir", "resnet", "resnet.tools"},
    "slurm": {"recipes", "resnet.process", "resnet.rundir"},
    "launch": {"recipes", "resnet.process", "resnet.rundir", "slurm"},
    "launch.chain": {"recipes", "resnet.process", "resnet.rundir", "slurm", "launch"},
    "launch.commands": {"recipes", "resnet.process", "resnet.rundir", "slurm", "launch", "launch.chain"},
}
"""By room: the other rooms it may import from. A room ends where one inside it begins."""
DOORS = {
    ("resnet.rundir", "recipes"): {"recipes.metric", "recipes.text"},
    ("resnet.process", "recipes"): {"recipes.text"},
    ("slurm", "resnet"): {"resnet.main"},
    ("slurm", "resnet.tools"): {"resnet.tools.cli"},
    ("launch", "resnet.api"): {"resnet.api"},
    ("resnet", "resnet.tools"): {"resnet.tools.report.report"},
    ("resnet", "resnet.api"): {"resnet.api"},
}
"""Between two rooms, the one module that may be imported: where it takes seconds, inside a function only."""
STANDARD_LIBRARY_ONLY = ("resnet.process", "resnet.rundir")
IN_THE_BATCH_SCRIPT = (
    *("recipes.text", "slurm.batch", "slurm.control", "slurm.ends", "slurm.environment_copy", "slurm.held"),
    *("slurm.nodes", "slurm.on_nodes", "slurm.patience", "slurm.rank_output", "slurm.rehearsal", "slurm.share"),
    *("slurm.srun", "slurm.step", "slurm.sweep_page"),
)
"""Run by whatever Python 3.9 the host of a container has."""
WITHOUT_TORCH = ("launch", "slurm", "recipes", "resnet.process", "resnet.rundir")
HEAVY = ("torch", "torchvision", "accelerate", "wandb", "datasets")


def modules(package: str) -> list[str]:
    folder = PROGRAM / package.replace(".", "/")
    names = [".".join(file.relative_to(PROGRAM).with_suffix("").parts) for file in folder.rglob("*.py")]
    return sorted(name.removesuffix(".__init__") for name in names if not name.endswith("__main__"))


def file_of(module: str) -> Path:
    path = PROGRAM / module.replace(".", "/")
    # A folder without one may lie beside a module, as that of the logs beside recipes.evidence.
    return path / "__init__.py" if (path / "__init__.py").is_file() else path.with_suffix(".py")


def room_of(module: str) -> str | None:
    rooms = [room for room in MAY_IMPORT if module == room or module.startswith(f"{room}.")]
    return max(rooms, key=len, default=None)


def imported(module: str, text: str) -> Iterator[tuple[str, bool]]:
    """Modules of ours that a file imports, and whether at its top."""
    tree = ast.parse(text)
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if file_of(name).is_file() else node.module for name in inner]
        else:
            continue
        yield from ((name, id(node) in top) for name in dict.fromkeys(found) if room_of(name))


def forbidden(module: str, text: str) -> list[str]:
    """What a file imports through a wall, in words."""
    here, found = room_of(module), []
    assert here is not None, module
    for name, at_top in imported(module, text):
        there = room_of(name)
        assert there is not None
        if (here, there) in DOORS:
            open_to_it = name in DOORS[here, there] and (not at_top or there == "recipes")
        else:
            open_to_it = there == here or there in MAY_IMPORT[here]
        if not open_to_it:
            found.append(f"{module} imports {name}: {here} may not import it")
    return found


@pytest.mark.parametrize("package", ["recipes", "resnet", "slurm", "launch"])
def test_imports_go_one_way(package):
    assert not [line for name in modules(package) for line in forbidden(name, file_of(name).read_text())]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("recipes.plan", "from resnet.rundir.files import write_atomic"),
        ("resnet.rundir.files", "from recipes.load import load"),
        ("resnet.loop", "from resnet.tools.report.report import write_report"),
        ("slurm.job", "from resnet.main import main"),
        ("slurm.queue", "def ask():\n    import launch.runs.state"),
        ("launch.runs.state", "import resnet.run"),
        ("launch.runs.state", "from launch.commands import status"),
        ("launch.runs.state", "from launch.chain import plan"),
    ],
)
def test_walls_hold(module, line):
    assert forbidden(module, line)


@pytest.mark.parametrize("room", ["launch.commands", "resnet.tools.commands"])
def test_commands_import_no_other_command(room):
    for name in modules(room):
        others = [other for other, _ in imported(name, file_of(name).read_text()) if room_of(other) == room]
        assert not others, name


def fresh(code: str, *options: str) -> str:
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=PROGRAM, capture_output=True, text=True, check=True).stdout


def test_ground_is_of_the_standard_library_alone():
    names = [name for package in STANDARD_LIBRARY_ONLY for name in modules(package)]
    names += [name for name in IN_THE_BATCH_SCRIPT if file_of(name).is_file()]
    # -S: as where nothing is installed. -I would leave out the folder itself.
    found = fresh(f"import sys; sys.path.insert(0, '.'); import {', '.join(names)}; print(sorted(sys.modules))", "-S")
    loaded = {name.partition(".")[0] for name in ast.literal_eval(found)}
    assert loaded - {"__main__"} <= {*sys.stdlib_module_names, "recipes", "resnet", "slurm"}
    for name in names:
        ast.parse(file_of(name).read_text(), feature_version=(3, 9))


def test_nothing_heavy_is_imported_by_the_launcher():
    # The page of a sweep, which the launcher writes at its end, among them.
    names = [*(name for package in WITHOUT_TORCH for name in modules(package)), "resnet.tools.board.sweep"]
    found = fresh(f"import sys, {', '.join(names)}; print([name for name in {HEAVY} if name in sys.modules])")
    assert found == "[]\n"


def test_names_that_queued_jobs_and_old_copies_of_the_code_use():
    """Batch scripts run these modules, and submitit's pickles name these functions: they keep their places."""
    import launch.trial
    import slurm.batch
    import slurm.job
    import slurm.step

    assert callable(slurm.batch.main)
    assert callable(slurm.step.main)
    assert callable(launch.trial.main)
    for name in ("train", "do_step"):
        function = getattr(slurm.job, name)
        assert (function.__module__, function.__qualname__) == ("slurm.job", name)


RUN_FILES = {
    *("recipe.yaml", "status.json", "provenance.json", "metrics.jsonl", "evaluation.json", "final.safetensors"),
    *("lease.lock", "logs/rank-0.json", "logs/rank-0.log", "logs/attempt-1/rank-0.log", "logs/attempt-1/stages.json"),
    *("checkpoints/latest", "checkpoints/best", "checkpoints/step-00000010/manifest.json"),
    *("checkpoints/step-00000010/model.safetensors", "checkpoints/step-00000010/training_state.pt"),
}
"""Of a finished run, beside its pictures and report: other programs, and other versions of this one, know them."""


def test_names_of_the_files_in_a_run_directory(tiny, tmp_path):
    assert train(*tiny, "epochs=1", f"run.root={tmp_path}", "run.name=r") == 0
    run = tmp_path / "r"
    assert {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()} == RUN_FILES
    for name in ("recipe.yaml", "status.json"):
        assert re.search(r"^ ?\"?format\"?: 1", (run / name).read_text(), re.MULTILINE)
