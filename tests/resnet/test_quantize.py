"""`resnet quantize`: what it writes is used as other programs use it, and what it refuses leaves nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxruntime.quantization
import pytest
import safetensors.torch
import torch

import resnet
from resnet.process.environment import PROGRAM
from resnet.tools.cli import main
from resnet.tools.export import extras, int8_onnx
from tests.helpers import TINY, train

pytestmark = pytest.mark.usefixtures("hardly_timed")


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    words = [*TINY, f"data.train={shapes}", "model.activation=silu", "epochs=2"]
    assert train(*words, f"run.root={root}", "run.name=tiny") == 0
    return root / "tiny"


def quantize(*words: object) -> None:
    main(["quantize", *map(str, words)])


def mistake(capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        quantize(*words)
    error = capsys.readouterr().err
    assert ended.value.code == 2, error
    return error


def images_of(recipe, count: int) -> torch.Tensor:
    """Normalised noise."""
    size = recipe.augment.val_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def check_record(folder: Path, out: str, backend: str) -> dict:
    """What is common to both backends: all convolutions, calibrated on training images, as accurate as before."""
    record = json.loads((folder / "artefact.json").read_text())
    made, measured = record["quantized"], record["measured"]
    assert (record["kind"], made["to"], made["backend"]) == ("quantize", "int8", backend)
    assert made["int8_convolutions"] == made["convolutions"] == 9
    assert made["calibration_images"] == 48
    assert measured["images"] == 30
    assert abs(measured["after"]["top1"] - measured["before"]["top1"]) <= 10
    assert measured["agreement"] >= 80
    assert 0 < measured["largest_difference"] < measured["largest_logit"] / 4
    assert measured["after"]["bytes"] < measured["before"]["bytes"] / 2
    assert f"9 of 9 convolutions in int8: {folder}" in out
    for file in folder.iterdir():
        content, places = file.read_bytes(), (PROGRAM / "resnet", folder.parents[2])
        assert not [place for place in places if str(place).encode() in content], file
    return record


def test_int8_for_onnx_runtime(run, capsys):
    quantize(run, "--backend", "onnx", "--calibrate", "48", "--samples", "30")
    out, err = capsys.readouterr()
    assert "calibrating on 48 training images" in err
    folder = run / "exports" / "int8-onnx"
    check_record(folder, out, "onnx")
    assert {file.name for file in folder.iterdir()} == {"model.onnx", "artefact.json"}
    weights = [one for one in onnx.load(folder / "model.onnx").graph.initializer if one.name.endswith("_quantized")]
    filters = [one for one in weights if len(one.dims) == 4]
    assert len(filters) == 9
    assert {one.data_type for one in filters} == {onnx.TensorProto.INT8}
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    network, images = resnet.Run(run).load(), images_of(resnet.Run(run).recipe, 7)
    with torch.no_grad():
        expected = network(images).numpy()
    for count in (1, 7):
        (logits,) = session.run(["logits"], {"images": images[:count].numpy()})
        assert np.linalg.norm(logits - expected[:count]) < np.linalg.norm(expected[:count]) / 3


def test_int8_compiled_by_torch(run, capsys):
    quantize(run, "--calibrate", "48", "--samples", "30")
    folder = run / "exports" / "int8-pt2"
    assert check_record(folder, capsys.readouterr().out, "pt2")["quantized"]["cpu"]
    compiled = torch._inductor.aoti_load_package(str(folder / "model.pt2"))
    network, images = resnet.Run(run).load(), images_of(resnet.Run(run).recipe, 7)
    with torch.inference_mode():
        expected = network(images)
        for count in (1, 7):
            assert (compiled(images[:count]) - expected[:count]).abs().max() < expected.abs().max() / 4


def test_half_precision_is_read_as_other_weights_are(run, tmp_path, capsys):
    quantize(run, "--to", "bf16", "--samples", "30", "--out", tmp_path / "half")
    assert "weights in bf16, computed with in float32" in capsys.readouterr().out
    file, whole = tmp_path / "half" / "weights.safetensors", run / "final.safetensors"
    assert file.stat().st_size < 0.52 * whole.stat().st_size
    info = resnet.weights_info(file)
    assert info == resnet.weights_info(whole)
    network, before = resnet.load(file), safetensors.torch.load_file(whole)
    for name, tensor in network.state_dict().items():
        exact = before[name].bfloat16().float() if tensor.dim() > 1 else before[name]
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, exact), name
    main(["eval", str(file), f"recipe={run}", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert abs(found["top1"] - resnet.Run(run).status["top1"]) <= 5


def test_weights_too_large_for_fp16_or_no_numbers(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "large")
    shutil.rmtree(copy / "exports", ignore_errors=True)
    tensors = safetensors.torch.load_file(copy / "final.safetensors")
    tensors["fc.weight"][0, 0] = 1e5
    safetensors.torch.save_file(tensors, copy / "final.safetensors")
    assert "fc.weight has numbers too large for fp16: take --to bf16" in mistake(capsys, copy, "--to", "fp16")
    tensors["fc.weight"][0, 0] = float("nan")
    safetensors.torch.save_file(tensors, copy / "final.safetensors")
    assert "fc.weight holds nan or inf: take other weights" in mistake(capsys, copy, "--backend", "onnx")
    assert not (copy / "exports").exists()


def test_a_convolution_that_stays_float_is_an_error_and_leaves_nothing(run, tmp_path, monkeypatch, capsys):
    whole = onnxruntime.quantization.quantize_static

    def without_one(model, *arguments, **options):
        node = next(node.name for node in onnx.load(model).graph.node if node.op_type == "Conv")
        whole(model, *arguments, nodes_to_exclude=[node], **options)

    monkeypatch.setattr(onnxruntime.quantization, "quantize_static", without_one)
    said = mistake(capsys, run, "--backend", "onnx", "--calibrate", "8", "--out", tmp_path / "o")
    assert "only 8 of 9 convolutions became int8 (model.activation=silu): try --backend pt2" in said
    assert not list(tmp_path.iterdir())


def test_what_a_library_cannot_do_is_told_in_a_line(run, tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise RuntimeError("no such operation\nand more")

    monkeypatch.setattr(int8_onnx, "write_onnx", fail)
    with pytest.raises(SystemExit) as ended:
        quantize(run, "--backend", "onnx", "--calibrate", "8", "--out", tmp_path / "o")
    assert ended.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("resnet quantize: ")
    assert last.endswith("as int8: RuntimeError: no such operation")
    assert not list(tmp_path.iterdir())


def test_mistakes(run, tmp_path, monkeypatch, capsys):
    assert "--calibrate: 0: it takes 1 or more" in mistake(capsys, run, "--calibrate", "0")
    assert "--backend is for int8" in mistake(capsys, run, "--to", "bf16", "--backend", "onnx")
    file = shutil.copy(run / "final.safetensors", tmp_path / "alone.safetensors")
    assert "is in no run: say where" in mistake(capsys, file, "--to", "bf16")
    assert "holds no artefact.json" in mistake(capsys, run, "--to", "bf16", "--out", tmp_path)
    nowhere = ["data.source=image_folder", f"data.train={tmp_path / 'no'}", f"data.val={tmp_path / 'no'}"]
    assert f"{tmp_path / 'no'}" in mistake(capsys, run, "--backend", "onnx", "--out", tmp_path / "o", *nowhere)
    with monkeypatch.context() as patched:
        patched.setattr("torch._inductor.config.cpp.cxx", ("/no/compiler",))
        assert "needs a C++ compiler" in mistake(capsys, run, "--out", tmp_path / "o")
    with monkeypatch.context() as patched:
        patched.setattr(extras, "find_spec", lambda name: None)
        assert "pip install 'resnet-launch[quantize]'" in mistake(capsys, run, "--backend", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["alone.safetensors"]
