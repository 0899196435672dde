"""Training on a GPU: bf16, fp16 with its loss scale, deterministic kernels, and what the log tells."""

from itertools import pairwise

import pytest
import torch

from resnet.rundir.status import read_status
from resnet.tools.compare import compare_runs
from tests.helpers import column, evaluation, metrics
from tests.resnet.gpu.support import CUDA, ON_CUDA, before_each_step, run


@pytest.mark.parametrize(
    ("where", "precision"),
    [("cpu", "no"), *(pytest.param("cuda", precision, marks=CUDA) for precision in ("bf16", "fp16"))],
)
def test_it_learns(tmp_path, where, precision):
    found = run(tmp_path, "r", f"device={where}", f"precision={precision}", "epochs=3")
    assert read_status(found)["top1"] > 90
    assert evaluation(found)["samples"] == 40
    assert column(found, "train/loss")[-1] < 0.5 < 2 < column(found, "train/loss")[0]


# fp16


@pytest.fixture
def scaled(device, monkeypatch) -> list[str]:
    """Words of a run whose loss is scaled: in fp16, or, as it would be on a GPU, in float32 on the CPU."""
    if device == "cuda":
        return ["device=cuda", "precision=fp16"]
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(device, enabled=True))
    return ["device=cpu"]


def test_the_loss_scale_starts_at_65536_and_halves_with_each_skipped_step(tmp_path, scaled):
    found = run(tmp_path, "r", *scaled)
    rows = metrics(found, "train/loss")
    assert len(rows) == 10
    assert [row["loss_scale"] for row in rows] == [65536 / 2 ** row["skipped_steps"] for row in rows]
    assert rows[-1]["skipped_steps"] < 5


@pytest.mark.parametrize("spoilt", [0, 3])
def test_a_step_whose_gradient_overflows_is_left_out_and_counted(tmp_path, monkeypatch, scaled, spoilt):
    weights, hooks = [], []

    def spoil(trainer):
        weights.append(trainer.state.model.fc.weight.detach().clone())
        if trainer.state.step == spoilt:
            hooks.append(trainer.parameters[0].register_hook(lambda grad: grad * float("inf")))
        elif hooks:
            hooks.pop().remove()

    before_each_step(monkeypatch, spoil)
    # Deterministic, so that memory that nobody has written to is full of NaN.
    found = run(tmp_path, "r", *scaled, "deterministic=true")
    skipped = [0, *(int(row["skipped_steps"]) for row in metrics(found, "train/loss"))]
    assert skipped[spoilt + 1] == skipped[spoilt] + 1
    stayed = [torch.equal(before, after) for before, after in pairwise(weights)]
    # Of the last step there are no weights after it.
    assert stayed == [after > before for before, after in pairwise(skipped[:-1])]
    scales = [65536, *column(found, "loss_scale")]
    assert scales[spoilt + 1] == scales[spoilt] / 2


# Deterministic kernels


def test_two_deterministic_runs_are_equal(tmp_path, device):
    words = [f"device={device}", "deterministic=true", "max_steps=5", "augment.mixup=0.2", "ema.decay=0.9"]
    one, other = (run(tmp_path, name, *words) for name in ("one", "other"))
    assert compare_runs(one, other) == []
    differs = run(tmp_path, "differs", *words, "seed=1")
    assert compare_runs(one, differs) != []


@pytest.mark.parametrize("where", [ON_CUDA])
@pytest.mark.parametrize("deterministic", [False, True])
def test_kernels_are_tried_out_unless_they_must_be_deterministic(tmp_path, monkeypatch, where, deterministic):
    found = []
    before_each_step(
        monkeypatch,
        lambda _: found.append((torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled())),
    )
    run(tmp_path, "r", f"device={where}", f"deterministic={str(deterministic).lower()}", "max_steps=2")
    assert found == [(not deterministic, deterministic)] * 2
    assert not torch.are_deterministic_algorithms_enabled(), "left behind in this process"


# The log


def test_the_log_tells_speed_and_on_a_gpu_memory(tmp_path, device):
    found = run(tmp_path, "r", f"device={device}", "max_steps=4")
    rows = metrics(found, "train/loss")
    assert all(row["images_per_second"] > 0 and 0 <= row["data_wait"] <= 1 for row in rows)
    if device == "cuda":
        assert all(1e-3 < row["memory_gb"] < 20 for row in rows)
    else:
        assert all("memory_gb" not in row for row in rows)
