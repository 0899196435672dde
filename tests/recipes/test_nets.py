"""Keys of a network that cannot be together are told before anything is sent, with what would fit."""

import pytest

from recipes.nets import NETS
from recipes.schema.model import Model, net_of

CIFAR = {"block": "basic", "layers": [1, 1], "widths": [16, 32], "stem": "cifar"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "resnet18", "widths": [16, 32]}, "2 widths for 4 stages"),
        ({"block": "basic", "layers": [9999]}, "9,999 blocks in its layers: 4,096 at most"),
        ({**CIFAR, "width_multiplier": 64, "widths": [16384, 16384]}, "more than 10,000,000,000 weights"),
        (
            {
                **CIFAR,
                "widths": [4096, 4096],
                "stem_width": 16384,
                "maxpool": "conv",
                "in_channels": 256,
                "stem": "deep",
                "attention": "se",
                "se_ratio": 1,
                "layers": [60, 60],
                "kernels": [1, 1],
            },
            "more than 10,000,000,000 weights",
        ),
        ({"name": "resnet50", "width_per_group": 10**400}, "more than 10,000,000,000 weights"),
        ({**CIFAR, "block": "bottleneck", "width_per_group": 2}, "width_per_group=2 leaves no channels inside"),
        ({"name": "resnet18", "groups": 2}, "groups and width_per_group need bottleneck blocks"),
        ({"name": "resnext50_32x4d", "kernels": [1, 3]}, r"groups=32 are of .*kernels=\[1,3\].*\[1,3,1\] have"),
        ({"name": "resnet50", "se_ratio": 0.25}, "se_ratio=0.25 has no effect without attention=se"),
        ({"name": "preactresnet18", "maxpool": "conv"}, "maxpool=conv needs .* true would fit"),
        ({"name": "resnet50d", "stem_width": 33}, "stem_width=33 is odd: 34 would fit"),
        ({"name": "resnet18d", "shortcut": "padded"}, "add downsample=conv, or shortcut=projection"),
        ({**CIFAR, "shortcut": "padded", "widths": [32, 16]}, r"layer2.0 has fewer than go in \(32 to 16\)"),
        ({**CIFAR, "blurpool": True, "layers": [1], "widths": [16]}, "blurpool has no effect"),
        ({"name": "resnet50", "norm_groups": 8}, "norm_groups=8 has no effect without norm=group"),
        ({"name": "resnet50", "norm": "group", "sync_batchnorm": True}, "sync_batchnorm is of BatchNorm"),
        ({"name": "resnet50", "norm": "group", "bn_momentum": 0.01}, "bn_momentum=0.01 is of BatchNorm's"),
        ({"name": "resnet20_cifar", "norm": "group"}, "norm_groups=32 do not divide .*: norm_groups=16 would"),
        ({"name": "seresnet50", "channels": {"layer1": 8}}, "none with attention=se is pruned: leave them out"),
        ({"name": "resnet18", "freeze_backbone": True}, "freeze_backbone without pretrained weights"),
        ({"name": "resnet18", "freeze_backbone": True, "pretrained": "x.pth", "block_dropout": 0.1}, "no effect"),
    ],
)
def test_what_cannot_be_together_is_told_with_what_would_fit(keys, message):
    with pytest.raises(ValueError, match=message):
        Model(**keys)


def test_every_named_net_can_be_and_keys_vary_it():
    assert all(net_of(Model(name=name)).layers for name in NETS)
    # What the messages above advise.
    Model(name="resnet18d", shortcut="padded", downsample="conv")
    Model(name="resnet20_cifar", norm="group", norm_groups=16)
    Model(name="resnetrs50", attention="none", maxpool=True)
