"""config.json as timm writes and reads it (timm.models._hub, seen in 1.0.31)."""

from __future__ import annotations

import math
from typing import Any

from recipes.nets import TORCHVISIONS
from recipes.schema.augment import Augment
from recipes.schema.model import Model, net_of
from recipes.schema.recipe import Recipe
from recipes.text import shown
from resnet.net import effective_model

_NAMES = (
    *TORCHVISIONS,
    *(f"resnet{depth}d" for depth in (18, 26, 34, 50, 101, 152, 200)),
    *(f"seresnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"resnetrs{depth}" for depth in (50, 101, 152, 200, 270, 350, 420)),
    *("resnet26", "resnet200"),
)
"""Nets that timm has under the same name, with the same names of tensors."""


def timm_name(model: Model) -> str:
    """timm's architecture that the network is. Raises ValueError, naming what timm does not have, where it is none."""
    net = effective_model(model)
    known = net["name"] in _NAMES
    own = effective_model(Model(name=net["name"], in_channels=model.in_channels)) if known else {}
    differs = [key for key in own if own[key] != net[key] and key not in ("channels", "activation_args")]
    wrong = [
        *([] if known else [net["name"] or "a net given by block, layers, groups or width"]),
        *(["channels of its own"] if net["channels"] else []),
        *(f"{key} {shown(net[key])}" for key in differs),
    ]
    if wrong:
        raise ValueError(f"timm has no such network ({', '.join(wrong)}): export it in another format")
    return net["name"]


def is_timms(model: Model) -> bool:
    """Whether timm has the network."""
    try:
        return bool(timm_name(model))
    except ValueError:
        return False


def timm_config(recipe: Recipe, classes: list[str]) -> dict[str, Any]:
    """What timm has to know of the network and its images."""
    augment, count = recipe.augment, len(classes)
    cropped = augment.crop == "random_resized"
    name, net, bands = timm_name(recipe.model), net_of(recipe.model), recipe.model.in_channels
    pretrained = {
        "custom_load": False,
        "input_size": [bands, augment.val_size, augment.val_size],
        "fixed_input_size": False,
        "interpolation": augment.interpolation,
        "crop_pct": _crop_share(augment) if cropped else 1.0,
        "crop_mode": "center" if cropped else "squash",
        "mean": list(augment.mean),
        "std": list(augment.std),
        "num_classes": count,
        "pool_size": None,
        "first_conv": "conv1.0" if net.stem == "deep" else "conv1",
        "classifier": "fc",
    }
    return {
        "architecture": name,
        "num_classes": count,
        "num_features": net.widths[-1] * net.expansion,
        "global_pool": "avg",
        "label_names": classes,
        **({} if bands == 3 else {"model_args": {"in_chans": bands}}),
        "pretrained_cfg": pretrained,
    }


def _crop_share(augment: Augment) -> float:
    """timm's crop_pct: it resizes the shorter side to the whole pixels of size / crop_pct."""
    share = augment.val_size / augment.val_resize
    return share if math.floor(augment.val_size / share) == augment.val_resize else math.nextafter(share, 0)
