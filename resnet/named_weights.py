"""Which of the papers' nets weights are of, by their filters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from recipes.net_size import layers
from recipes.nets import NETS
from recipes.schema.model import Model

STEMS = ("conv1.weight", "conv1.0.weight")
"""The first convolution of a network, where its stem is one or three."""


def keys_of(tensors: Mapping[str, Tensor]) -> str:
    """The keys of `model` that build the network of a state dict, as one writes them; empty: no net that has a name."""
    filters = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.dim() == 4}
    bands = next((filters[name][1] for name in STEMS if name in filters), 0)
    if not 0 < bands <= 256:
        return ""
    name = next((name for name in NETS if _are_of(filters, Model(name=name, in_channels=bands))), None)
    if name is None:
        return ""
    keys = {"name": name, "in_channels": bands if bands != 3 else None}
    keys["norm"] = None if "layer1.0.bn1.running_mean" in tensors else "group"
    return " ".join(f"model.{key}={value}" for key, value in keys.items() if value)


def _are_of(filters: Mapping[str, tuple[int, ...]], model: Model) -> bool:
    own = {
        f"{layer.name}.weight": (layer.outputs, layer.inputs // layer.groups, layer.kernel, layer.kernel)
        for layer in layers(model)
    }
    return filters == own
