"""The 1,000 classes of ImageNet-1k (ILSVRC 2012), which weights of other trainers answer with and do not name."""

from __future__ import annotations

from pathlib import Path

import torchvision

CLASSES = 1000


def wnids() -> list[str]:
    """WordNet ids in sorted order, by which ImageNet's folders are called and its classes are numbered.

    The list is that of the challenge, taken from timm 1.0 (imagenet_synsets.txt, Apache-2.0).
    """
    return Path(__file__).with_name("imagenet_wnids.txt").read_text(encoding="ascii").split()


def names() -> list[str]:
    """In English, in the same order: torchvision's."""
    return torchvision.models.ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
