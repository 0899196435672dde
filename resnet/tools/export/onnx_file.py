"""A network as an ONNX file."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

ANY_BATCH = ({0: torch.export.Dim("N")},)
"""For torch.export: how many images a network is given is not fixed."""


def write_onnx(network: nn.Module, size: int, file: Path) -> None:
    """Write a network in evaluation mode: `images` float32 (N, 3, size, size) -> `logits` (N, classes), N any."""
    with warnings.catch_warnings():
        # Of the exporter's own parts, as that they are deprecated.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, size, size),),
            dynamo=True,
            dynamic_shapes=ANY_BATCH,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None
        program.save(str(file), external_data=False)
