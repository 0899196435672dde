"""int8 by ONNX Runtime: a file of QuantizeLinear and DequantizeLinear, which it fuses into int8 operations."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from resnet.tools.export.extras import need
from resnet.tools.export.onnx_file import write_onnx
from resnet.tools.export.tracing import exporting

FILE = "model.onnx"
KIND = "onnx"
"""Of `resnet.tools.export.serve`."""


def check() -> None:
    """Raise ValueError where it cannot be done on this machine."""
    need("quantize", "onnx", "onnxruntime", "onnxscript")


def write(network: nn.Module, size: int, images: Iterable[np.ndarray], file: Path) -> dict[str, Any]:
    """Write a model of a network in evaluation mode: `images` float32 (N, 3, size, size) -> `logits` (N, classes).

    images: those to calibrate with, in batches, normalised. Returns the numbers of `convolutions` and, of these,
    `int8_convolutions` in the graph that ONNX Runtime makes of it on this machine.
    Raises `CannotExport` where torch or ONNX Runtime cannot.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with exporting("int8"), tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        plain, prepared = Path(scratch, "plain.onnx"), Path(scratch, "prepared.onnx")
        write_onnx(network, size, plain)
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        convolutions = _operations(onnx.load(prepared))["Conv"]
        quantize_static(
            str(prepared),
            str(file),
            _reader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        found = _optimised(file, Path(scratch, "optimised.onnx"))
    return {"convolutions": convolutions, "int8_convolutions": found["QLinearConv"]}


def _reader(images: Iterable[np.ndarray]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[np.ndarray] = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            batch = next(self._batches, None)
            return None if batch is None else {"images": batch}

    return Reader()


def _operations(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def _optimised(file: Path, into: Path) -> Counter[str]:
    """Operations of the graph that is run."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(into)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return _operations(onnx.load(into))
