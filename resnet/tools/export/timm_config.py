"""config.json as timm writes and reads it (timm.models._hub, seen in 1.0.31)."""

from __future__ import annotations

import math
from typing import Any

from recipes.schema.augment import Augment
from recipes.schema.model import Model
from recipes.schema.recipe import Recipe
from resnet.net import effective_model
from resnet.tools.export.torchvision_source import is_torchvisions


def timm_name(model: Model) -> str:
    """timm's architecture that the network is. Raises ValueError, naming what timm does not have, where it is none."""
    net = effective_model(model)
    differs = {
        "a net given by block, layers, groups or width": net["name"] is None,
        "channels of its own": bool(net["channels"]),
        f"{model.in_channels} channels": model.in_channels != 3,
        f"stem {net['stem']}": net["stem"] != "imagenet",
        "no maxpool": not net["maxpool"],
        f"activation {net['activation']}": net["activation"] != "relu",
        "blurpool": net["blurpool"],
        "a net that varies a named one, or none of torchvision's": not is_torchvisions(model),
    }
    if wrong := [what for what, so in differs.items() if so]:
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
    name = timm_name(recipe.model)
    pretrained = {
        "custom_load": False,
        "input_size": [3, augment.val_size, augment.val_size],
        "fixed_input_size": False,
        "interpolation": augment.interpolation,
        "crop_pct": _crop_share(augment) if cropped else 1.0,
        "crop_mode": "center" if cropped else "squash",
        "mean": list(augment.mean),
        "std": list(augment.std),
        "num_classes": count,
        "pool_size": None,
        "first_conv": "conv1",
        "classifier": "fc",
    }
    features = 512 if name in ("resnet18", "resnet34") else 2048
    return {
        "architecture": name,
        "num_classes": count,
        "num_features": features,
        "global_pool": "avg",
        "label_names": classes,
        "pretrained_cfg": pretrained,
    }


def _crop_share(augment: Augment) -> float:
    """timm's crop_pct: it resizes the shorter side to the whole pixels of size / crop_pct."""
    share = augment.val_size / augment.val_resize
    return share if math.floor(augment.val_size / share) == augment.val_resize else math.nextafter(share, 0)
