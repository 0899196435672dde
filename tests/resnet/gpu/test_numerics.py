"""In float32 a GPU computes what a CPU does, but for rounding: steps of every kind, evaluation, the optimizers."""

import pytest
import torch
from torch import nn

from resnet.ema import Ema
from resnet.optim import build_optimizer
from tests.helpers import column, evaluation, furthest, newest, weights
from tests.resnet.gpu.support import CUDA, ON_CUDA, run
from tests.resnet.test_optim import ALL, config

pytestmark = pytest.mark.usefixtures("exact_float32")

SMOOTH = ["precision=no", "model.activation=silu", "model.maxpool=false", "max_steps=5", "optimizer.lr=0.01"]
"""Without corners in which a rounding becomes another gradient; so is the larger eps of the optimizers."""
MIXED = ["augment.mixup=0.2", "augment.cutmix=1.0", "augment.random_erasing=0.5", "label_smoothing=0.1"]
VARIANTS = {
    "plain": [],
    "accumulating": ["max_batch_per_device=4", "ema.decay=0.5", *MIXED],
    "kept_tail": ["max_batch_per_device=8", "data.max_train=57", "data.last_batch=keep", "epochs=2"],
    "clipped": ["grad_clip_norm=0.5", "grad_clip_value=0.02", "ema.decay=0.5", "ema.start_epoch=0.3"],
    "bce": ["loss=bce", "bce_target_threshold=0.2", *MIXED],
    "adamw": ["optimizer={name: adamw, lr: 0.001, weight_decay: 0.05, eps: 0.001}"],
    "lamb": ["optimizer={name: lamb, lr: 0.005, weight_decay: 0.01, eps: 0.001}", "grad_clip_norm=1"],
    "lars": ["optimizer={name: lars, lr: 0.5, weight_decay: 0.01}"],
}


@pytest.mark.parametrize(
    ("where", "variant"),
    [("cpu", "accumulating"), *(pytest.param("cuda", variant, marks=CUDA) for variant in VARIANTS)],
)
def test_steps_equal_those_of_a_cpu(tmp_path, where, variant):
    words = [*SMOOTH, *VARIANTS[variant]]
    # On the CPU by other kernels, which round otherwise.
    expected = run(tmp_path, "expected", *words, "device=cpu", "channels_last=false")
    found = run(tmp_path, "found", *words, f"device={where}")
    for key in ("train/loss", "grad_norm", "val/loss"):
        assert column(found, key) == pytest.approx(column(expected, key), rel=1e-4), key
    files = [f"{newest(expected)}/model.safetensors"]
    if any(word.startswith("ema.") for word in words):
        files.append(f"{newest(expected)}/ema.safetensors")
    for file in files:
        assert furthest(weights(found, file), weights(expected, file)) < 2e-4
    assert evaluation(found)["samples"] == 40


# The optimizers and the average by themselves, against float64


def small(device: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(6, 4)).to(device, dtype)


def given_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)


@pytest.mark.parametrize("name", ALL)
def test_optimizers_step_as_in_float64(device, name):
    models = [small(device, torch.float32), small("cpu", torch.float64)]
    keys = config(name, weight_decay=0.05, weight_decay_norm=0.0)
    optimizers = [build_optimizer(model, keys, 1.0 if name == "lars" else 0.01) for model in models]
    if name in ("sgd", "adam", "adamw"):
        assert {bool(group["fused"]) for group in optimizers[0].param_groups} == {device == "cuda"}
        assert not any(group["fused"] for group in optimizers[1].param_groups)
    before = [parameter.detach().clone() for parameter in models[0].parameters()]
    for step in range(20):
        for model, optimizer in zip(models, optimizers, strict=True):
            given_gradients(model, step)
            optimizer.step()
    pairs = zip(*(model.parameters() for model in models), strict=True)
    for start, (found, expected) in zip(before, pairs, strict=True):
        torch.testing.assert_close(found.double().cpu(), expected, rtol=1e-5, atol=1e-6)
        assert (found - start).abs().max() > 1e-4


def test_the_average_is_that_of_float64(device):
    model = small(device, torch.float32)
    average, expected = Ema(model, 0.9, every=2), {}
    for step in range(12):
        with torch.no_grad():
            given_gradients(model, step)
            torch._foreach_add_(list(model.parameters()), [p.grad for p in model.parameters()], alpha=0.1)
            model[1].running_var.add_(0.1)
            model[1].num_batches_tracked.add_(1)
        average.update(model, step, copy=step < 4)
        if step % 2:
            continue
        now = {name: tensor.double().cpu() for name, tensor in model.state_dict().items()}
        for name, tensor in now.items():
            averaged = step > 4 and "batches" not in name
            expected[name] = 0.9 * expected[name] + 0.1 * tensor if averaged else tensor
    for name, tensor in average.module.state_dict().items():
        torch.testing.assert_close(tensor.double().cpu(), expected[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("where", [ON_CUDA])
def test_float32_on_a_gpu_is_exact_here(where):
    """What the tolerances above lean on: a convolution and a product in float32, not in TF32."""
    torch.manual_seed(0)
    images, filters = torch.randn(8, 64, 16, 16), torch.randn(64, 64, 3, 3)
    found = nn.functional.conv2d(images.to(where), filters.to(where)).double().cpu()
    torch.testing.assert_close(found, nn.functional.conv2d(images.double(), filters.double()), rtol=1e-4, atol=1e-3)
