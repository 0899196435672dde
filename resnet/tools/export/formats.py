"""The files that an export consists of, by its format; and how each is loaded by programs that do not have ours."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import nn

from resnet.process.environment import PROGRAM
from resnet.rundir.files import write_atomic
from resnet.tools.export import onnx_file
from resnet.tools.export.aoti import compiled, has_compiler
from resnet.tools.export.public import description
from resnet.tools.export.timm_config import timm_config
from resnet.tools.export.torchvision_source import model_source
from resnet.tools.export.tracing import ANY_BATCH, example, exporting, remove_places
from resnet.tools.trained import Trained
from resnet.weights_file import KEY

SAFETENSORS, TORCH, ONNX, PT2, AOTI = "model.safetensors", "model.pth", "model.onnx", "model.pt2", "model_aoti.pt2"


class Given(NamedTuple):
    """What is exported."""

    network: nn.Module
    """On the CPU, in evaluation mode."""
    trained: Trained
    classes: list[str]


class Product(NamedTuple):
    """A file that has the network, and how another process loads it: see `resnet.tools.export.serve`."""

    file: Path
    spec: dict[str, Any]


def write_safetensors(folder: Path, given: Given, size: int) -> list[Product]:
    """Our own weights file, which says all of itself."""
    file = save_safetensors(folder, given)
    return [Product(file, {"kind": "ours", "path": str(file), "program": str(PROGRAM), **layout(given)})]


def write_torch(folder: Path, given: Given, size: int) -> list[Product]:
    """A state dict by torch.save, and model.py, which builds its network."""
    file = folder / TORCH
    write_source(folder, given, TORCH)
    stream = io.BytesIO()
    torch.save(given.network.state_dict(), stream)
    write_atomic(file, stream.getvalue())
    return [Product(file, {"kind": "torchvision", "path": str(file), **layout(given)})]


def write_timm(folder: Path, given: Given, size: int) -> list[Product]:
    """A folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads."""
    file = save_safetensors(folder, given)
    config = timm_config(given.trained.recipe, given.classes)
    write_atomic(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False))
    return [Product(file, {"kind": "timm", "path": str(folder), **layout(given)})]


def write_onnx(folder: Path, given: Given, size: int) -> list[Product]:
    """An ONNX file by torch's exporter: `images` (N, 3, H, W) -> `logits` (N, classes)."""
    file, said = folder / ONNX, {key: _text(value) for key, value in _description(given).items()}
    onnx_file.write_onnx(given.network, size, file, said)
    return [Product(file, {"kind": "onnx", "path": str(file)})]


def write_pt2(folder: Path, given: Given, size: int) -> list[Product]:
    """A program of torch.export; and, where a C++ compiler is, one compiled for this machine by AOTInductor."""
    said = json.dumps(_description(given))
    # AOTInductor leaves weights in the order that they are in: channels_last is 3 times as fast on a CPU (measured).
    network = given.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    with exporting("pt2"):
        program = torch.export.export(network, example(network, size), dynamic_shapes=ANY_BATCH)
        remove_places(program.graph_module)
        stream = io.BytesIO()
        torch.export.save(program, stream, extra_files={KEY: said})
    file = folder / PT2
    write_atomic(file, stream.getvalue())
    products = [Product(file, {"kind": "pt2", "path": str(file)})]
    if has_compiler():
        package = folder / AOTI
        with exporting("pt2"):
            content = compiled(program)
        write_atomic(package, content)
        products.append(Product(package, {"kind": "aoti", "path": str(package)}))
    return products


def layout(given: Given) -> dict[str, Any]:
    """The part of a product's `spec` that lets torch time it as the network is timed."""
    return {"channels_last": given.trained.recipe.channels_last}


def _description(given: Given) -> dict[str, Any]:
    return description(given.trained, given.classes)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def save_safetensors(folder: Path, given: Given) -> Path:
    """Write our own weights file."""
    file = folder / SAFETENSORS
    metadata = {KEY: json.dumps(_description(given), sort_keys=True)}
    write_atomic(file, safetensors.torch.save(given.network.state_dict(), metadata))
    return file


def write_source(folder: Path, given: Given, weights: str) -> None:
    """Write model.py, of what `builder_of` says. weights: name of the file beside it."""
    write_atomic(folder / "model.py", model_source(given.trained.recipe.model, len(given.classes), weights))
