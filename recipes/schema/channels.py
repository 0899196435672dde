"""What images of other channels than red, green and blue ask of a recipe's keys."""

from __future__ import annotations

from typing import Any

from recipes.schema.augment import Augment
from recipes.schema.data import Data

RGB, GREY = 3, 1
COLOURS = {RGB: "RGB", GREY: "grey"}
_OF_GREY = {"mean": [0.459], "std": [0.2256]}
"""The luma (ITU-R 601) of ImageNet's means and deviations, on a scale of 0 to 1."""


def with_grey_means(values: Any) -> Any:
    """A recipe's keys as given, and augment.mean and augment.std of grey images where they are left out."""
    model, augment = (values.get(key) for key in ("model", "augment")) if isinstance(values, dict) else (None, None)
    if isinstance(model, dict) and model.get("in_channels") == GREY and isinstance(augment, dict | None):
        return {**values, "augment": {**_OF_GREY, **(augment or {})}}
    return values


def check_channels(channels: int, augment: Augment, data: Data) -> None:
    """Raise ValueError where keys do not fit `model.in_channels`, which is `channels`."""
    for key in ("mean", "std"):
        given = len(getattr(augment, key))
        if given != channels:
            raise ValueError(
                f"augment.{key} has {given} values, and model.in_channels is {channels}: give one a channel, on a "
                f"scale of 0 to 1 (`resnet check-data IMAGES --channels {channels}` prints those of a sample)"
            )
    if channels != RGB and (wrong := _of_colours(augment)):
        raise ValueError(
            f"{wrong} is for red, green and blue, and model.in_channels is {channels}: crops, flips, rotation, "
            "random_erasing, mixup and cutmix take any"
        )
    if data.decode != "cpu" and (channels != RGB or data.pixel_max is not None):
        why = f"model.in_channels is {channels}" if channels != RGB else "data.pixel_max is set"
        raise ValueError(f"data.decode={data.decode} makes RGB of 8 bits, and {why}: set data.decode=cpu")
    if data.pixel_max is not None and data.gives_rgb:
        raise ValueError(f"data.pixel_max has no effect with data.source={data.source}, of 8 bits: leave it out")
    if channels not in (RGB, GREY) and data.gives_rgb:
        raise ValueError(f"data.source={data.source} gives RGB, of which model.in_channels takes 3 or 1")


def _of_colours(augment: Augment) -> str:
    if augment.policy != "none":
        return f"augment.policy={augment.policy}"
    return f"augment.color_jitter={augment.color_jitter:g}" if augment.color_jitter else ""
