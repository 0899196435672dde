"""A network as an ONNX file."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

ANY_BATCH = ({0: torch.export.Dim("N")},)
"""For torch.export: how many images a network is given is not fixed."""


def write_onnx(network: nn.Module, size: int, file: Path) -> None:
    """Write a network in evaluation mode: `images` float32 (N, 3, size, size) -> `logits` (N, classes), N any.

    Raises ValueError where torch has no ONNX for one of its operations.
    """
    with warnings.catch_warnings():
        # Of the exporter's own parts, as that they are deprecated.
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                network,
                (torch.zeros(2, 3, size, size),),
                dynamo=True,
                dynamic_shapes=ANY_BATCH,
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().partition("\n")[0].partition(". See")[0]
            raise ValueError(f"torch {torch.__version__} cannot write this network as ONNX: {reason}") from error
        assert program is not None
        program.save(str(file), external_data=False)
