"""A run that version 0.1.0 has made, and one that a version to come has made, are read and continued by this one.

tests/fixtures/run-0.1.0.tar.xz is a real one, of a network whose weights are zeros, so that it packs small.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

import resnet
from launch.runs.state import rows
from recipes.load import load_file
from resnet.checkpoint.commit import newest_first
from resnet.checkpoint.snapshot import read_rest
from resnet.rundir.evaluation import class_names
from resnet.rundir.metrics_log import INPUT_DIGEST, read_metrics
from resnet.rundir.provenance import read_provenance
from resnet.tools.cli import main
from resnet.tools.report.report import write_report
from tests.helpers import status, train

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "run-0.1.0.tar.xz"


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        # Python 3.10.11 and 3.11.3 and older do not know filters; theirs is no stranger's archive.
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder / "run"


@pytest.fixture(params=["0.1.0", "of a version to come"])
def run(old, request, tmp_path, monkeypatch, shapes) -> Path:
    """A copy, in a folder with the data and the first weights that its recipe names."""
    run = shutil.copytree(old, tmp_path / "runs" / "run")
    if request.param != "0.1.0":
        for file in ("status.json", "provenance.json", "evaluation.json"):
            content = json.loads((run / file).read_text())
            (run / file).write_text(json.dumps(content | {"format": 9, "future": {"depth": 1}}))
        (run / "recipe.yaml").write_text("format: 9\nfuture: {depth: 1}\n" + (run / "recipe.yaml").read_text())
    (tmp_path / "shapes").symlink_to(shapes)
    weights = safetensors.torch.load_file(run / "final.safetensors")
    safetensors.torch.save_file({k: torch.zeros_like(v) for k, v in weights.items()}, tmp_path / "zeros.safetensors")
    monkeypatch.chdir(tmp_path)
    return run


def test_it_is_read(run, capsys):
    [row] = rows([run])
    assert (row["state"], row["step"], row["epochs"], row["over"]) == ("finished", 20, 2, True)
    assert len(read_metrics(run)) == 22
    assert read_provenance(run)["attempts"][-1]["reason"] == "finished"
    assert (load_file(run / "recipe.yaml").recipe.name, len(class_names(run))) == ("quickstart", 10)
    assert "finished" in write_report(run).read_text()
    main(["eval", str(run), "--json"])
    assert json.loads(capsys.readouterr().out)[0]["top1"] == pytest.approx(status(run)["top1"])
    main(["predict", str(run), "shapes/val/ring/0000.jpg"])
    assert "0000.jpg" in capsys.readouterr().out


def test_it_is_continued(run):
    assert resnet.compare(run, run) == []
    assert train(f"recipe={run}", "epochs=3", f"run.root={run.parent}", "run.name=run") == 0
    assert (status(run)["state"], status(run)["step"], status(run)["format"]) == ("finished", 30, status(run)["format"])
    rows = read_metrics(run)
    assert len(rows) == 33
    trained = [row for row in rows if "train/loss" in row]
    assert [INPUT_DIGEST in row for row in trained] == [False] * 20 + [True] * 10
    assert len(read_provenance(run)["attempts"]) == 2
    # Its order of the data is the one that it began with.
    assert read_rest(newest_first(run / "checkpoints")[0])["order"] == "table"
    if "format" in json.loads((run / "evaluation.json").read_text()):
        assert "future" in status(run)
        assert "future" in (run / "recipe.yaml").read_text()
