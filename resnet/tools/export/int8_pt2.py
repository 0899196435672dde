"""int8 by torch: PT2 export quantisation of torchao, compiled by AOTInductor into a package for this kind of CPU."""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from resnet.rundir.files import write_atomic
from resnet.tools.export.extras import need
from resnet.tools.export.onnx_file import ANY_BATCH

FILE = "model.pt2"
_INT8_CONVOLUTION = re.compile(r"\baoti_torch_cpu__qconv\w*\(")
"""A call of one of oneDNN's convolutions of int8 images by int8 weights, in the program that was compiled."""


def check() -> None:
    """Raise ValueError where it cannot be done on this machine."""
    need("quantize", "torchao")
    if platform.machine() not in ("x86_64", "AMD64"):
        raise ValueError(f"--backend pt2 is for x86, and this is {platform.machine()}: take --backend onnx")
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise ValueError(
            "--backend pt2 needs a C++ compiler (g++, or the one that CXX names), and there is none: install it, "
            "or take --backend onnx"
        ) from error


def write(network: nn.Module, size: int, images: Iterable[np.ndarray], file: Path) -> dict[str, Any]:
    """Write a package of a network in evaluation mode: float32 (N, 3, size, size) -> logits (N, classes).

    images: those to calibrate with, in batches, normalised. Returns the numbers of `convolutions` and, of these,
    `int8_convolutions` in the compiled program, and what it was compiled for, `cpu`.
    Raises ValueError where it cannot be compiled.
    """
    with _quiet(), torch.no_grad():
        graph, convolutions = _quantized(network, size, images)
        write_atomic(file, _compiled(graph, size))
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

    example = (torch.zeros(2, 3, size, size),)
    # Not strict, torch 2.11 makes a graph of which torchao quantises nothing.
    exported = torch.export.export(network, example, strict=True, dynamic_shapes=ANY_BATCH)
    quantizer = x86.X86InductorQuantizer()
    # Without VNNI two products of 8 bits are added up in 16: seven bits of them do not overflow.
    narrow = not torch.cpu._is_vnni_supported()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=narrow))
    prepared = prepare_pt2e(exported.module(), quantizer)  # pyright: ignore[reportArgumentType]
    convolutions = sum("conv2d" in str(node.target) for node in prepared.graph.nodes if node.op == "call_function")
    for batch in images:
        prepared(torch.from_numpy(batch))
    return convert_pt2e(prepared), convolutions


def _compiled(graph: torch.fx.GraphModule, size: int) -> bytes:
    from torch._inductor import config
    from torch._inductor.exc import CppCompileError

    example = (torch.zeros(2, 3, size, size),)
    exported = torch.export.export(graph, example, dynamic_shapes=ANY_BATCH)
    # Only frozen weights are packed for the kernels of int8.
    settings: dict[str, Any] = {"freezing": True, "compile_threads": 1}
    if hasattr(config.aot_inductor, "enable_line_tables"):
        # A megabyte for debuggers, which torch 2.11 leaves out anyway.
        settings["aot_inductor.enable_line_tables"] = False
    package = io.BytesIO()
    try:
        torch._inductor.aoti_compile_and_package(exported, package_path=package, inductor_configs=settings)
    except CppCompileError as error:
        lines = [line for line in str(error).splitlines() if "error" in line.lower()] or [str(error)]
        raise ValueError(f"the C++ compiler failed ({lines[-1].strip()}): take --backend onnx") from error
    return package.getvalue()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and torchao say of their own parts."""
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
