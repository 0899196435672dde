"""On a GPU: the same promises as elsewhere, in bf16. Skipped without one."""

from pathlib import Path

import pytest
import torch

from resnet.rundir.status import read_status
from resnet.tools.compare import compare_runs
from resnet.tools.verify_resume import verify_resume
from tests.helpers import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


def quickstart(folder: Path, name: str, *words: str) -> Path:
    fixed = ("device=cuda", "precision=bf16", "wandb.mode=disabled", f"data.train={folder}/shapes")
    assert train("recipe=quickstart", *fixed, f"run.root={folder}", f"run.name={name}", *words) == 0
    return folder / name


def test_quickstart_learns_in_bf16(tmp_path):
    run = quickstart(tmp_path, "r")
    assert read_status(run)["top1"] > 90


def test_two_deterministic_runs_are_equal(tmp_path):
    one, other = (quickstart(tmp_path, name, "deterministic=true", "max_steps=20") for name in ("one", "other"))
    assert compare_runs(one, other) == []


def test_a_deterministic_run_resumes_exactly(tmp_path, capsys):
    words = ["recipe=quickstart", "device=cuda", "deterministic=true", f"data.train={tmp_path}/shapes", "ema.decay=0.9"]
    assert verify_resume(words, steps=8, ranks=1, keep=tmp_path / "runs") == []
