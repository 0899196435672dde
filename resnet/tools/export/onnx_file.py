"""A network as an ONNX file."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

MOST_IN_BATCH = 1024
"""Images of a batch, at most, that a program of torch.export takes."""


def batch_of_any_size() -> tuple[dict[int, torch.export.Dim]]:
    """For torch.export: the first dimension of the images is not fixed."""
    return ({0: torch.export.Dim("batch", min=1, max=MOST_IN_BATCH)},)


def write_onnx(network: nn.Module, size: int, file: Path) -> None:
    """Write a network in evaluation mode: `images` float32 (N, 3, size, size) -> `logits` (N, classes), N any."""
    with warnings.catch_warnings():
        # Of the exporter's own parts, as that they are deprecated.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, size, size),),
            dynamo=True,
            dynamic_shapes=batch_of_any_size(),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        assert program is not None
        program.save(str(file), external_data=False)
