"""torch.compile: how often it compiles, what it leaves in files, and that it may be switched on and off."""

import contextlib
import functools
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from torch._dynamo.testing import CompileCounterWithBackend

from recipes.load import load_file
from resnet.net import build_model
from resnet.tools.compare import compare_runs
from tests import helpers
from tests.helpers import column, weights
from tests.resnet.gpu.support import CUDA, run, stopped

SIZES = ["augment.progressive=[{epoch: 0, size: 32}, {epoch: 1, size: 64}, {epoch: 2, size: 96}]", "data.max_train=32"]


@pytest.fixture
def compiled(monkeypatch, request):
    """Counts what torch.compile compiles; by the backend of that name."""
    counter = CompileCounterWithBackend(request.param)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    torch._dynamo.reset()
    yield counter
    torch._dynamo.reset()


EAGER = pytest.mark.parametrize("compiled", ["eager"], indirect=True)
"""Dynamo's part without a compiler's: seconds instead of a minute."""


@pytest.mark.parametrize(
    ("where", "compiled"),
    [
        ("cpu", "eager"),
        pytest.param("cuda", "eager", marks=CUDA),
        pytest.param("cuda", "inductor", marks=CUDA),
    ],
    indirect=["compiled"],
)
def test_a_network_is_compiled_once_and_named_as_it_is_without(tmp_path, monkeypatch, compiled, where):
    if compiled.backend == "inductor":
        if not shutil.which("gcc") and not shutil.which("clang"):
            pytest.skip("Triton needs a C compiler")
        # Its kernels are compiled by many processes.
        monkeypatch.setattr(helpers, "cores", lambda _: contextlib.nullcontext())
    found = run(tmp_path, "r", f"device={where}", "compile=true", "ema.decay=0.9", "epochs=2")
    assert compiled.frame_count == 1, "neither evaluation nor the second epoch compiles"
    names = build_model(load_file(found / "recipe.yaml").recipe.model, 10).state_dict().keys()
    assert weights(found).keys() == names
    for file in found.glob("checkpoints/*/*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            assert set(tensors.keys()) == set(names)
    assert column(found, "train/loss")[-1] < column(found, "train/loss")[0]


@EAGER
def test_another_image_size_compiles_once(tmp_path, compiled, device):
    run(tmp_path, "r", f"device={device}", "compile=true", "epochs=3", *SIZES)
    # The second size shows that it varies: what is compiled then is for any size.
    assert compiled.frame_count == 2


@EAGER
@pytest.mark.parametrize(
    ("where", "first"),
    [("cpu", "true"), pytest.param("cuda", "true", marks=CUDA), pytest.param("cuda", "false", marks=CUDA)],
)
def test_a_run_continues_with_compilation_switched(tmp_path, monkeypatch, compiled, where, first):
    words = [f"device={where}", "deterministic=true", "ema.decay=0.9"]
    straight = run(tmp_path, "straight", *words)
    assert compiled.frame_count == 0
    stopped(monkeypatch, tmp_path, "r", *words, f"compile={first}", step=4)
    found = run(tmp_path, "r", *words, f"compile={json.dumps(first == 'false')}")
    assert compiled.frame_count == 1
    assert column(found, "train/loss") == pytest.approx(column(straight, "train/loss"), rel=0.02)
    if where == "cpu":
        assert compare_runs(straight, found) == []
