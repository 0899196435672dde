"""A process that holds one network, as any program would load it, and answers for it. Run by path, with -I.

    python -I serve.py FD SPEC

FD is a socket that `multiprocessing.connection` speaks over, SPEC a JSON object with `kind`, a key of OPENERS, and what
that needs; also `threads`, and `search_path` for modules. Nothing of this program can be imported here but by the kind
that is its own network: what the others load has to stand without it.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    # Not before `main` has said where it is.
    import numpy as np

OURS = ("launch", "recipes", "resnet", "slurm", "train")
"""Modules of this program, which may lie beside all others or be found by an editable installation's hook."""


class Opened(NamedTuple):
    """A network: images float32 (N, 3, H, W), normalised -> its own input -> its own output -> logits (N, classes)."""

    prepare: Callable[[np.ndarray], Any]
    forward: Callable[[Any], Any]
    fetch: Callable[[Any], np.ndarray]


def open_ours(spec: dict[str, Any]) -> Opened:
    """A weights file `path` by the program in the folder `program`: by the recipe in the file `recipe`, where that is
    given, or by what the file says of itself."""
    for name in OURS:
        del sys.modules[name]
    sys.path.insert(0, spec["program"])

    from recipes.load import load_file
    from resnet.tools.weights import load_alone

    recipe = load_file(Path(spec["recipe"])).recipe if "recipe" in spec else None
    return _of_torch(load_alone(Path(spec["path"]), recipe), spec["channels_last"])


def open_torchvision(spec: dict[str, Any]) -> Opened:
    """A state dict in the file `path`, with the network that `build` of the model.py beside it makes."""
    import torch
    from safetensors.torch import load_file

    path = Path(spec["path"])
    network = runpy.run_path(str(path.with_name("model.py")))["build"]()
    weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    network.load_state_dict(weights)
    return _of_torch(network.eval(), spec["channels_last"])


def open_timm(spec: dict[str, Any]) -> Opened:
    """A folder `path` in timm's form."""
    import timm

    network = timm.create_model(f"local-dir:{spec['path']}", pretrained=True)
    return _of_torch(network.eval(), spec["channels_last"])


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


OPENERS = {
    "ours": open_ours,
    "torchvision": open_torchvision,
    "timm": open_timm,
    "pt2": open_pt2,
    "aoti": open_aoti,
    "onnx": open_onnx,
}


def _of_torch(network: Any, channels_last: bool = False) -> Opened:
    import torch

    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    if channels_last:
        network = network.to(memory_format=memory_format)

    def prepare(images: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images).contiguous(memory_format=memory_format)

    @torch.inference_mode()
    def forward(images: torch.Tensor) -> torch.Tensor:
        return network(images)

    return Opened(prepare, forward, lambda logits: logits.float().numpy())


def main(descriptor: int, spec: dict[str, Any]) -> None:
    """Answer requests until the other side hangs up."""
    # What libraries print is for people.
    os.dup2(2, 1)
    sys.path[:] = spec["search_path"]
    for name in OURS:
        # It is not found.
        sys.modules[name] = None  # pyright: ignore[reportArgumentType]
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
