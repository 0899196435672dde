"""Keys of `model` that cannot be together, or would have no effect together."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from recipes.net_layers import layers_of
from recipes.nets import NET_KEYS, NETS, Net, blocks, resolve
from recipes.text import show

if TYPE_CHECKING:
    from recipes.schema.model import Model

TAG = "[A-Z][A-Z0-9_]*"
"""As torchvision names weights."""
GROUPS_OF_NORM = 32
"""Of norm=group where none are given, as in its paper."""
_MOST_BLOCKS, _MOST_WEIGHTS = 4096, 10**10
"""ResNet-1202 has 600, and the largest of the named nets 2*10^8."""


def problem_with(model: Model, net: Net) -> str | None:
    """What is wrong with the keys of a network and what would fit; None: nothing. net: what they come to."""
    return next((problem for check in _CHECKS for problem in check(model, net)), None)


def _of_stages(model: Model, net: Net) -> Iterator[str]:
    if len(net.widths) != len(net.layers):
        yield f"has {len(net.widths)} widths for {len(net.layers)} stages: give one for each of layers"
    elif (count := sum(net.layers)) > _MOST_BLOCKS:
        yield f"has {count:,} blocks in its layers: {_MOST_BLOCKS:,} at most"
    elif not all(min(block.widths) for block in blocks(net)):
        yield f"width_per_group={net.width_per_group} leaves no channels inside blocks: 64 leaves them their widths"
    elif sum(one.weights for one in layers_of(net, model.channels, model.in_channels)) > _MOST_WEIGHTS:
        yield f"has more than {_MOST_WEIGHTS:,} weights by its layers and widths: give less of them"


def _of_blocks(model: Model, net: Net) -> Iterator[str]:
    if net.expansion == 1 and (model.groups not in (None, 1) or model.width_per_group not in (None, 64)):
        yield "groups and width_per_group need bottleneck blocks (torchvision's basic block has none)"
    elif net.groups > 1 and not any(kernel > 1 for kernel in net.kernels[1:-1]):
        kernels = ",".join(map(str, net.kernels))
        yield (
            f"groups={net.groups} are of a convolution inside a block, of which kernels=[{kernels}] have none larger "
            "than 1: [1,3,1] have"
        )
    if net.attention != "se" and model.se_ratio is not None:
        yield f"se_ratio={model.se_ratio:g} has no effect without attention=se: add that, or leave it out"
    if net.preact and net.maxpool == "conv":
        yield "maxpool=conv needs a stem with norm and activation, and that of preact blocks has none: true would fit"
    if net.stem == "deep" and (width := model.channels.get("conv1", net.stem_width)) % 2:
        yield f"stem=deep has two convolutions of half its width, and stem_width={width} is odd: {width + 1} would fit"


def _of_shortcuts(model: Model, net: Net) -> Iterator[str]:
    if model.blurpool and len(net.layers) == 1 and net.maxpool != "conv":
        yield "blurpool has no effect, as no convolution behind the stem is strided in a single stage: leave it out"
    if net.shortcut != "padded":
        return
    if net.downsample == "avgpool":
        yield (
            "shortcut=padded takes every other pixel, and downsample=avgpool means of them: add downsample=conv, or "
            "shortcut=projection"
        )
    if narrower := next((block for block in blocks(net) if block.outputs < block.inputs), None):
        yield (
            f"shortcut=padded adds channels, and {narrower.place} has fewer than go in ({narrower.inputs} to "
            f"{narrower.outputs}): add shortcut=projection, or let widths ascend from stem_width on"
        )


def _of_norms(model: Model, net: Net) -> Iterator[str]:
    if model.norm == "batch":
        if model.norm_groups is not None:
            yield f"norm_groups={model.norm_groups} has no effect without norm=group: add that, or leave it out"
        return
    if model.sync_batchnorm:
        yield "sync_batchnorm is of BatchNorm, and norm=group needs no other ranks: leave it out"
    if model.bn_momentum != type(model).model_fields["bn_momentum"].default:
        yield f"bn_momentum={model.bn_momentum:g} is of BatchNorm's statistics, and norm=group has none: leave it out"
    groups, common = model.norm_groups or GROUPS_OF_NORM, math.gcd(*_normalised(net))
    if common % groups:
        fits = max(number for number in range(1, min(common, groups) + 1) if common % number == 0)
        yield f"norm_groups={groups} do not divide all of its layers' channels: norm_groups={fits} would"


def _normalised(net: Net) -> Iterator[int]:
    yield net.stem_width // 2 if net.stem == "deep" else net.stem_width
    for block in blocks(net):
        yield from block.widths


def not_pruned(model: Model, net: Net) -> str | None:
    """The key, with its value, for which a network's channels are not taken away; None: they can be."""
    kinds = {
        "attention=se": net.attention == "se",
        "shortcut=padded": net.shortcut == "padded",
        "norm=group": model.norm == "group",
        "stem=deep": net.stem == "deep",
        "maxpool=conv": net.maxpool == "conv",
    }
    return next((kind for kind, so in kinds.items() if so), None)


def _of_parts_left_out(model: Model, net: Net) -> Iterator[str]:
    """What is pruned, and what is frozen."""
    if model.channels and (kind := not_pruned(model, net)):
        yield (
            f"channels are those of a pruned network, and none with {kind} is pruned: leave them out (widths, "
            "stem_width and width_multiplier make narrower nets)"
        )
    if model.freeze_backbone and model.pretrained is None:
        yield "freeze_backbone without pretrained weights would train a classifier on random features"
    if model.freeze_backbone and model.block_dropout:
        yield f"block_dropout={model.block_dropout:g} has no effect in a frozen backbone: dropout is the classifier's"


def _of_torchvisions_weights(model: Model, net: Net) -> Iterator[str]:
    """What makes the network another one than its name's, which alone torchvision has weights of."""
    tag = model.pretrained
    if tag is None or not re.fullmatch(TAG, tag) or model.name not in NETS:
        return
    own = NETS[model.name]
    given = {key: value for key in NET_KEYS if (value := getattr(model, key)) is not None}
    other = [
        key for key, value in given.items() if _in_weights(resolve({**own, key: value})) != _in_weights(resolve(own))
    ]
    others = [f"{key}={show(given[key])}" for key in other]
    others += ["norm=group"] if model.norm == "group" else []
    others += ["activation=prelu"] if model.activation == "prelu" else []
    others += ["channels"] if model.channels else []
    if others:
        yield (
            f"has {', '.join(others)}, and pretrained={tag} are weights of {model.name} without: leave one out, or "
            "give pretrained a file, a run or hf_hub:OWNER/REPO of such a network"
        )


def _in_weights(net: Net) -> Net:
    """A net without what its weights do not tell."""
    return net._replace(maxpool="conv" if net.maxpool == "conv" else True, se_ratio=0.0)


_CHECKS = (_of_stages, _of_blocks, _of_shortcuts, _of_norms, _of_parts_left_out, _of_torchvisions_weights)
