"""Weights to start from: files, runs and torchvision's, and whether they fit the network."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from resnet.net import ResNet


def load_pretrained(model: ResNet, source: str) -> str:
    """Load weights into the network and say in a sentence what was loaded.

    source: a .safetensors or .pth file, a run directory (its final.safetensors), or a tag of torchvision's weights for
    the named net. A classifier for another number of classes is left as it is; everything else must fit.
    Raises ValueError, with the network unchanged, where it does not fit or cannot be read or fetched.
    """
    weights = _read_weights(model, source)
    own = model.state_dict()
    head = {name: weights[name] for name in ("fc.weight", "fc.bias") if name in weights}
    new_head = "fc.weight" in head and head["fc.weight"].shape[0] != own["fc.weight"].shape[0]
    same_width = new_head and head["fc.weight"].shape[1:] == own["fc.weight"].shape[1:]
    expected = {name for name in own if not (same_width and name in head)}
    given = {name: tensor for name, tensor in weights.items() if not (same_width and name in head)}

    # Weights from before torch 0.4.1 have no count of batches; BatchNorm trains and predicts the same without.
    missing = [name for name in own if name in expected - given.keys() and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in expected]
    misshaped = [
        f"{name} is {list(given[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    problems = [
        f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (("without", missing), ("with unknown", unexpected), ("in another shape:", misshaped))
        if names
    ]
    if problems:
        raise ValueError(f"model.pretrained {source} does not fit the model: {'; '.join(problems)}")
    model.load_state_dict(given, strict=False)
    if same_width:
        classes = f"{head['fc.weight'].shape[0]} classes there, {own['fc.weight'].shape[0]} here"
        return f"loaded {len(given)} tensors from {source}; the classifier is new ({classes})"
    return f"loaded {len(given)} tensors from {source}"


def _read_weights(model: ResNet, source: str) -> dict[str, Tensor]:
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / "final.safetensors"
        if not path.is_file():
            raise ValueError(f"model.pretrained {source} is a folder without final.safetensors (an unfinished run?)")
    if path.is_file():
        return _read_file(path)
    if path.suffix in (".safetensors", ".pth", ".pt") or len(path.parts) > 1:
        raise ValueError(f"model.pretrained {source}: there is no such file")
    return _fetch_weights(model.config.name, source)


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it is damaged or holds more than tensors: save its state dict alone"
        raise ValueError(f"model.pretrained {path} cannot be read: {reason}") from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"model.pretrained {path} cannot be read: {error}") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"model.pretrained {path} holds no state dict (names and tensors)")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _fetch_weights(architecture: str | None, tag: str) -> dict[str, Tensor]:
    if architecture is None:
        raise ValueError(f"model.pretrained {tag}: no such file, and torchvision has weights for named nets only")
    known = torchvision.models.get_model_weights(architecture)
    if tag not in known.__members__:
        tags = ", ".join(known.__members__)
        raise ValueError(f"model.pretrained {tag} is neither a file nor one of {architecture}'s weights: {tags}")
    weights = known[tag]
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"model.pretrained {tag} could not be fetched ({error}): download {weights.url} and give the file's path"
        ) from error
