"""What torch's exporters are given, their silence, and their failures."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import nn

ANY_BATCH = ({0: torch.export.Dim("N")},)
"""For torch.export: how many images a network is given is not fixed."""


def example(network: nn.Module, size: int) -> tuple[torch.Tensor]:
    """Images that a network is traced with. Of one alone torch would think that there is never another number."""
    # The first of its weights are those of the stem's convolution.
    channels = next(network.parameters()).shape[1]
    return (torch.zeros(2, channels, size, size),)


class CannotExport(ValueError):
    """What torch says of a network that it cannot export, in a line."""


@contextlib.contextmanager
def exporting(form: str) -> Iterator[None]:
    """Quietly; whatever an exporter raises becomes a `CannotExport`: it has errors of many kinds and lines.

    form: what it is exported as, for the message.
    """
    try:
        with quiet():
            yield
    except (CannotExport, OSError, MemoryError):
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        raise CannotExport(f"torch {torch.__version__} cannot export this network as {form}: {reason}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters tell of their own parts."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def remove_places(graph: torch.nn.Module) -> None:
    """Let a graph forget the lines of source that its operations are from: they have paths of this machine."""
    for module in graph.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
