"""Which of the papers' nets weights are of, by their filters."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor

from recipes.net_size import layers
from recipes.nets import NETS, built_of, keys_to
from recipes.schema.model import Model, keys_given, net_of
from recipes.text import shown

STEMS = ("conv1.weight", "conv1.0.weight")
"""The first convolution of a network, where its stem is one or three."""


class NamedNet(NamedTuple):
    """A net that has a name, by the filters of its weights."""

    name: str
    in_channels: int
    norm: str

    def keys_to(self, here: Model | None = None) -> str:
        """The keys of `model` to set so that those that are given here build it, as one writes them."""
        if here is None or here.plugin:
            plain, keys = Model(name=self.name), {"name": self.name}
        else:
            plain, keys = here, keys_to(built_of({"name": self.name}), keys_given(here))
        others = {
            key: getattr(self, key) for key in ("in_channels", "norm") if getattr(self, key) != getattr(plain, key)
        }
        return " ".join(f"model.{key}={shown(value)}" for key, value in {**keys, **others}.items())


def named_net(tensors: Mapping[str, Tensor]) -> NamedNet | None:
    """Which net the state dict is of; None: of none that has a name."""
    filters = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.dim() == 4}
    bands = next((filters[name][1] for name in STEMS if name in filters), 0)
    if not 0 < bands <= 256:
        return None
    name = next((name for name in NETS if _are_of(tensors, filters, Model(name=name, in_channels=bands))), None)
    norm = "batch" if "layer1.0.bn1.running_mean" in tensors else "group"
    return None if name is None else NamedNet(name, bands, norm)


def _are_of(tensors: Collection[str], filters: Mapping[str, tuple[int, ...]], model: Model) -> bool:
    own = {
        f"{layer.name}.weight": (layer.outputs, layer.inputs // layer.groups, layer.kernel, layer.kernel)
        for layer in layers(model)
    }
    # The filters of both orders of a block are the same, and only pre-activation has a norm behind the last stage.
    return filters == own and net_of(model).preact == ("norm.weight" in tensors)
