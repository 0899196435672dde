"""A network as an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resnet.rundir.files import write_atomic
from resnet.tools.export.tracing import ANY_BATCH, example, exporting


def write_onnx(network: nn.Module, size: int, file: Path, properties: Mapping[str, str] | None = None) -> None:
    """Write a network in evaluation mode: `images` float32 (N, 3, size, size) -> `logits` (N, classes), N any.

    properties: what the file says of itself. Raises `CannotExport`, as for an operation that ONNX does not have.
    """
    import onnx

    with exporting("onnx"):
        program = torch.onnx.export(
            network,
            example(network, size),
            dynamo=True,
            dynamic_shapes=ANY_BATCH,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None
        model = program.model_proto
        _remove_places(model)
        onnx.helper.set_model_props(model, dict(properties or {}))
        onnx.checker.check_model(model)
    write_atomic(file, model.SerializeToString())


def _remove_places(model: Any) -> None:
    """What the exporter notes of each operation: the lines of source, with paths of this machine, that it is from."""
    for graph in (model.graph, *model.functions):
        graph.ClearField("metadata_props")
        for part in (*graph.node, *graph.value_info):
            part.ClearField("metadata_props")
    for part in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        part.ClearField("metadata_props")
