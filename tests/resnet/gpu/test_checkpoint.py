"""Checkpoints of a run on a GPU: what they hold, and what continues from them."""

import time

import pytest
import safetensors.torch
import torch

import resnet.build
from resnet.checkpoint.commit import name_of
from resnet.checkpoint.snapshot import EMA, MODEL, Snapshot, read_rest
from resnet.checkpoint.stopwatch import Stopwatch
from resnet.rundir.status import read_status
from resnet.tools.compare import compare_runs
from resnet.trainer import Trainer
from tests.helpers import column, same
from tests.resnet.gpu.support import CUDA, ON_CUDA, before_each_step, occupy, run, stopped

ADAMW = "optimizer={name: adamw, lr: 0.002}"
LAMB = "optimizer={name: lamb, lr: 0.01, weight_decay: 0.01}"


def copied(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The network's weights and statistics as they are now, on their device."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


# What a checkpoint holds


def test_every_checkpoint_is_the_state_of_its_step_though_training_runs_on(tmp_path, monkeypatch, device):
    seen = {}

    def look(trainer: Trainer) -> None:
        state = trainer.state
        # In the order of the optimizer, which numbers parameters group by group.
        parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
        momenta = [state.optimizer.state[p]["momentum_buffer"].clone() for p in parameters if state.step]
        seen[state.step] = copied(state.model), copied(state.weights), momenta

    before_each_step(monkeypatch, look)
    words = ["checkpoint.every='1 step'", "checkpoint.keep=20", "ema.decay=0.9", "log_every=10"]
    found = run(tmp_path, "r", f"device={device}", "max_steps=5", *words)
    for step in range(1, 5):
        folder = found / "checkpoints" / name_of(step)
        model, average, momenta = seen[step]
        assert same(safetensors.torch.load_file(folder / MODEL), on_cpu(model)), step
        assert same(safetensors.torch.load_file(folder / EMA), on_cpu(average)), step
        saved = read_rest(folder)["optimizer"]["state"]
        assert len(saved) == len(momenta)
        assert all(torch.equal(saved[i]["momentum_buffer"], momentum.cpu()) for i, momentum in enumerate(momenta)), step
    assert not same(on_cpu(seen[1][0]), on_cpu(seen[2][0]))


@pytest.mark.parametrize("waits", [pytest.param(True, marks=CUDA), pytest.param(False, marks=CUDA)])
def test_a_snapshot_is_read_when_its_copies_are_done(tmp_path, monkeypatch, waits):
    """And without the wait for them it would be torn: this test sees that."""
    taken, files, expected = Snapshot(), {}, {}

    def look(trainer: Trainer) -> None:
        state = trainer.state
        if state.step == 3:
            taken.take(state, {})
            taken.files({})
        elif state.step == 6:
            expected.update(copied(state.model))
            occupy(300)
            taken.take(state, {})
            with torch.no_grad():
                torch._foreach_mul_(trainer.parameters, 1.01)
            with monkeypatch.context() as patched:
                if not waits:
                    patched.setattr(torch.cuda.Event, "synchronize", lambda _: None)
                files.update(taken.files({}))

    before_each_step(monkeypatch, look)
    run(tmp_path, "r", "device=cuda", "max_steps=7", "log_every=10")
    assert same(safetensors.torch.load(files[MODEL]), on_cpu(expected)) == waits


# What continues from one


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("cpu", ADAMW),
        *(pytest.param("cuda", change, marks=CUDA) for change in ("precision=bf16", "precision=fp16", ADAMW, LAMB)),
    ],
)
def test_a_stopped_run_ends_as_one_that_was_not(tmp_path, monkeypatch, where, change):
    words = [f"device={where}", "deterministic=true", "ema.decay=0.9", "augment.mixup=0.2", change]
    straight = run(tmp_path, "straight", *words)
    assert stopped(monkeypatch, tmp_path, "r", *words, step=4) == tmp_path / "r"
    assert read_status(tmp_path / "r")["step"] == 5
    assert compare_runs(straight, run(tmp_path, "r", *words)) == []


def test_counters_of_fused_kernels_are_restored_to_the_device(tmp_path, monkeypatch, device):
    found = []

    def look(trainer: Trainer) -> None:
        optimizer = trainer.state.optimizer
        counters = [optimizer.state[parameter]["step"] for parameter in trainer.parameters]
        fused = {bool(group["fused"]) for group in optimizer.param_groups}
        found.append((fused, {counter.device.type for counter in counters}, {counter.item() for counter in counters}))

    stopped(monkeypatch, tmp_path, "r", f"device={device}", ADAMW, step=4)
    before_each_step(monkeypatch, look)
    run(tmp_path, "r", f"device={device}", ADAMW)
    assert found == [({device == "cuda"}, {device}, {float(step)}) for step in range(5, 10)]


@pytest.mark.parametrize(
    ("begun", "continued", "told"),
    [
        ("cpu", "cpu", "changed: precision no -> bf16"),
        pytest.param("cuda", "cpu", "changed: precision bf16 -> no", marks=CUDA),
        pytest.param("cpu", "cuda", "changed: precision no -> bf16", marks=CUDA),
    ],
)
def test_a_run_continues_on_another_device(tmp_path, monkeypatch, capsys, begun, continued, told):
    words = [ADAMW, "ema.decay=0.9", "deterministic=true"]
    straight = run(tmp_path, "straight", f"device={begun}", *words)
    stopped(monkeypatch, tmp_path, "r", f"device={begun}", *words, step=4)
    capsys.readouterr()
    if begun == continued:
        # As another CPU might have it.
        monkeypatch.setattr(resnet.build, "choose_precision", lambda *_: "bf16")
    found = run(tmp_path, "r", f"device={continued}", *words)
    assert capsys.readouterr().err.count(f"{told}\n") == 1
    losses, expected = (column(one, "train/loss") for one in (found, straight))
    assert losses[:5] == expected[:5]
    # bf16 has 8 bits of mantissa: near, and not the same.
    assert losses[5:] != expected[5:]
    assert losses == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("where", [ON_CUDA])
def test_a_stopwatch_tells_what_the_gpu_takes_and_does_not_wait(where):
    device = torch.device(where)
    factor = torch.randn(4096, 4096, device=device)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    watch = Stopwatch(device)
    for _ in range(50):
        factor @ factor
    watch.stop()
    asked = time.perf_counter() - begin
    torch.cuda.synchronize()
    assert asked < watch.seconds() <= time.perf_counter() - begin
