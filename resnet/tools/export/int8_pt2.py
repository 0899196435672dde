"""int8 by torch: PT2 export quantisation of torchao, compiled by AOTInductor into a package for this kind of CPU."""

from __future__ import annotations

import platform
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from resnet.rundir.files import write_atomic
from resnet.tools.export.aoti import compiled, has_compiler
from resnet.tools.export.extras import need
from resnet.tools.export.tracing import ANY_BATCH, example, exporting, remove_places

FILE = "model.pt2"
KIND = "aoti"
"""Of `resnet.tools.export.serve`."""
_INT8_CONVOLUTION = re.compile(r"\baoti_torch_cpu__qconv\w*\(")
"""A call of one of oneDNN's convolutions of int8 images by int8 weights, in the program that was compiled."""


def check() -> None:
    """Raise ValueError where it cannot be done on this machine."""
    need("quantize", "torchao")
    if platform.machine() not in ("x86_64", "AMD64"):
        raise ValueError(f"--backend pt2 is for x86, and this is {platform.machine()}: take --backend onnx")
    if not has_compiler():
        raise ValueError(
            "--backend pt2 needs a C++ compiler (g++, or the one that CXX names), and there is none: install it, "
            "or take --backend onnx"
        )


def write(network: nn.Module, size: int, images: Iterable[np.ndarray], file: Path) -> dict[str, Any]:
    """Write a package of a network in evaluation mode: float32 (N, 3, size, size) -> logits (N, classes).

    images: those to calibrate with, in batches, normalised. Returns the numbers of `convolutions` and, of these,
    `int8_convolutions` in the compiled program, and what it was compiled for, `cpu`.
    Raises `CannotExport` where torch cannot.
    """
    with exporting("int8"), torch.no_grad():
        graph, convolutions = _quantized(network, size, images)
        program = torch.export.export(graph, example(network, size), dynamic_shapes=ANY_BATCH)
        remove_places(program.graph_module)
        content = compiled(program)
    write_atomic(file, content)
    with zipfile.ZipFile(file) as package:
        texts = {name: package.read(name).decode() for name in package.namelist() if name.endswith((".cpp", ".json"))}
    program = "".join(text for name, text in texts.items() if name.endswith(".cpp"))
    cpu = {found[1] for text in texts.values() if (found := re.search(r'"AOTI_CPU_ISA": "([^"]*)"', text))}
    found = len(_INT8_CONVOLUTION.findall(program))
    return {"convolutions": convolutions, "int8_convolutions": found, "cpu": ", ".join(sorted(cpu))}


def _quantized(network: nn.Module, size: int, images: Iterable[np.ndarray]) -> tuple[torch.fx.GraphModule, int]:
    """The network's graph with int8 between quantisation and dequantisation, and how many convolutions it has."""
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    # Not strict, torch 2.11 makes a graph of which torchao quantises nothing.
    exported = torch.export.export(network, example(network, size), strict=True, dynamic_shapes=ANY_BATCH)
    quantizer = x86.X86InductorQuantizer()
    # Without VNNI two products of 8 bits are added up in 16: seven bits of them do not overflow.
    narrow = not torch.cpu._is_vnni_supported()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=narrow))
    prepared = prepare_pt2e(exported.module(), quantizer)  # pyright: ignore[reportArgumentType]
    convolutions = sum("conv2d" in str(node.target) for node in prepared.graph.nodes if node.op == "call_function")
    for batch in images:
        prepared(torch.from_numpy(batch))
    return convert_pt2e(prepared), convolutions
