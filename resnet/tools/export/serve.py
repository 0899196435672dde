"""A process that holds one network, as any program would load it, and answers for it. Run by path, with -I.

    python -I serve.py FD SPEC

FD is a socket that `multiprocessing.connection` speaks over, SPEC a JSON object with `kind`, a key of OPENERS, and what
that needs. Nothing of this program is imported here but by the kind that is its own network: what the others load has
to stand without it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Opened(NamedTuple):
    """A network: images float32 (N, 3, H, W), normalised -> its own input -> its own output -> logits (N, classes)."""

    prepare: Callable[[np.ndarray], Any]
    forward: Callable[[Any], Any]
    fetch: Callable[[Any], np.ndarray]


def open_ours(spec: dict[str, Any]) -> Opened:
    """A weights file `path` with the recipe in the file `recipe`, by the program in the folder `program`."""
    sys.path.insert(0, spec["program"])
    import torch

    from recipes.load import load_file
    from resnet.tools.weights import load_alone

    recipe = load_file(Path(spec["recipe"])).recipe
    memory_format = torch.channels_last if recipe.channels_last else torch.contiguous_format
    network = load_alone(Path(spec["path"]), recipe).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    return _of_torch(network, memory_format)


def open_pt2(spec: dict[str, Any]) -> Opened:
    """A program of torch.export in the file `path`."""
    import torch

    return _of_torch(torch.export.load(spec["path"]).module())


def open_aoti(spec: dict[str, Any]) -> Opened:
    """A compiled package of AOTInductor in the file `path`."""
    import torch

    return _of_torch(torch._inductor.aoti_load_package(spec["path"]))


def open_onnx(spec: dict[str, Any]) -> Opened:
    """An ONNX model in the file `path`, on the CPU by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    # Its threads would go on spinning while the other network is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(spec["path"], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return Opened(lambda images: {name: images}, lambda given: session.run(None, given)[0], lambda logits: logits)


OPENERS = {"ours": open_ours, "pt2": open_pt2, "aoti": open_aoti, "onnx": open_onnx}


def _of_torch(network: Callable[[Any], Any], memory_format: Any = None) -> Opened:
    import torch

    def prepare(images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images).contiguous(memory_format=memory_format or torch.contiguous_format)

    @torch.inference_mode()
    def forward(images: torch.Tensor) -> torch.Tensor:
        return network(images)

    return Opened(prepare, forward, lambda logits: logits.float().numpy())


def main(descriptor: int, spec: dict[str, Any]) -> None:
    """Answer requests until the other side hangs up."""
    # What libraries print is for people.
    os.dup2(2, 1)
    if spec["kind"] != "onnx":
        import torch

        torch.set_num_threads(spec["threads"])
    connection = Connection(descriptor)
    network = OPENERS[spec["kind"]](spec)
    connection.send("open")
    given = None
    while True:
        try:
            request, value = connection.recv()
        except EOFError:
            return
        if request == "logits":
            answer = network.fetch(network.forward(network.prepare(value)))
        elif request == "hold":
            given, answer = network.prepare(value), None
        else:
            start = time.perf_counter()
            network.forward(given)
            answer = time.perf_counter() - start
        connection.send(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
