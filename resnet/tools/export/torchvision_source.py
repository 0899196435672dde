"""model.py: a few lines of torchvision that build a network of ours, for programs that do not have ours."""

from __future__ import annotations

import torch
from torch import nn

from recipes.schema.model import Model
from resnet.net import build_model, effective_model, make_activation

_BLOCKS = {"basic": "BasicBlock", "bottleneck": "Bottleneck"}
_EXPANSION = {"basic": 1, "bottleneck": 4}
_BLURRED = '''

class BlurredConv2d(nn.Conv2d):
    """A convolution behind a 3x3 binomial low-pass filter (Zhang 2019, arXiv:1904.11486)."""

    def forward(self, images):
        taps = torch.tensor([1.0, 2.0, 1.0], dtype=images.dtype, device=images.device) / 4
        blur = taps.outer(taps).expand(self.in_channels, 1, 3, 3)
        return super().forward(nn.functional.conv2d(images, blur, padding=1, groups=self.in_channels))
'''
_BLUR = """\
for parent in list(network.modules()):
    for name, old in parent.named_children():
        if isinstance(old, nn.Conv2d) and max(old.stride) > 1 and old.in_channels >= 16:
            size = (old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding)
            setattr(parent, name, BlurredConv2d(*size, groups=old.groups, bias=False))
"""
_RESIZE = """\
    place, _, last = name.rpartition(".")
    parent, old = network.get_submodule(place), network.get_submodule(name)
    size = (inputs, outputs, old.kernel_size, old.stride, old.padding)
    setattr(parent, last, type(old)(*size, groups=old.groups, bias=False))
    setattr(parent, last.replace("conv", "bn") if "conv" in last else "1", nn.BatchNorm2d(outputs))
"""


def model_source(model: Model, classes: int, weights: str) -> str:
    """A Python file with `build()`, which gives the network with new weights. It needs torch and torchvision alone.

    weights: name of the file beside it with those of the network, as safetensors or by torch.save.
    """
    changes = _changes(model, classes)
    modules = ["import torch"] * model.blurpool + ["from torch import nn"] * bool(changes)
    loaded = (
        f'safetensors.torch.load_file("{weights}")'
        if weights.endswith(".safetensors")
        else f'torch.load("{weights}", weights_only=True)'
    )
    return "\n".join(
        [
            '"""The network, for torch and torchvision alone.',
            "",
            "    network = build().eval()",
            f"    network.load_state_dict({loaded})",
            '"""',
            "",
            *modules,
            "from torchvision.models import resnet",
            _BLURRED if model.blurpool else "\n",
            "def build():",
            '    """Input: float (N, 3, H, W), normalised as artefact.json says; output: logits (N, classes)."""',
            *(
                [f"    return {_torchvisions(model, classes)}"]
                if not changes
                else [f"    network = {_torchvisions(model, classes)}", *changes, "    return network"]
            ),
            "",
        ]
    )


def _torchvisions(model: Model, classes: int) -> str:
    """torchvision's call that makes the network, or what is nearest to it."""
    net = effective_model(model)
    if net["name"]:
        return f"resnet.{net['name']}(num_classes={classes})"
    layers = [*net["layers"], 1][:4]
    others = "".join(f", {key}={net[key]}" for key in ("groups", "width_per_group") if net[key])
    return f"resnet.ResNet(resnet.{_BLOCKS[net['block']]}, {layers}, num_classes={classes}{others})"


def _changes(model: Model, classes: int) -> list[str]:
    """Lines that make of torchvision's network the other one."""
    net, lines = effective_model(model), []
    if net["layers"] is not None and len(net["layers"]) == 3:
        lines += [
            "network.layer4 = nn.Identity()",
            f"network.fc = nn.Linear({256 * _EXPANSION[net['block']]}, {classes})",
        ]
    if net["stem"] == "cifar":
        lines += ["network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)"]
    if not net["maxpool"]:
        lines += ["network.maxpool = nn.Identity()"]
    if net["activation"] != "relu":
        lines += _activation(model)
    if net["blurpool"]:
        lines += _BLUR.splitlines()
    if net["channels"]:
        lines += _channels(model, classes)
    return [f"    {line}" for line in lines]


def _channels(model: Model, classes: int) -> list[str]:
    """Lines that give convolutions, and the BatchNorm behind each, the channels of a pruned network."""
    with torch.device("meta"):
        plain, pruned = (build_model(one, classes) for one in (model.model_copy(update={"channels": {}}), model))
    sizes = (
        {name: (one.in_channels, one.out_channels) for name, one in net.named_modules() if isinstance(one, nn.Conv2d)}
        for net in (plain, pruned)
    )
    before, after = sizes
    rows = [f'    ("{name}", {size[0]}, {size[1]}),' for name, size in after.items() if size != before[name]]
    head = f"network.fc = nn.Linear({pruned.fc.in_features}, {classes})"
    return ["sizes = [", *rows, "]", "for name, inputs, outputs in sizes:", *_RESIZE.splitlines(), head]


def _activation(model: Model) -> list[str]:
    name = type(make_activation(model.activation, model.activation_args)).__name__
    arguments = ", ".join(f"{key}={value!r}" for key, value in model.activation_args.items())
    return [
        'for parent in [module for module in network.modules() if hasattr(module, "relu")]:',
        f"    parent.relu = nn.{name}({arguments})",
    ]
