"""model.py: a few lines of torchvision that build a network of ours, for programs that do not have ours."""

from __future__ import annotations

import torch
from torch import nn

from recipes.nets import TORCHVISIONS, resolve
from recipes.schema.model import Model, net_of
from resnet.blocks import make_activation
from resnet.net import build_model, effective_model

_BLOCKS = {"basic": "BasicBlock", "bottleneck": "Bottleneck"}
_EXPANSION = {"basic": 1, "bottleneck": 4}
_DOCSTRING = '''"""The network, for torch and torchvision alone.

network = build().eval()
network.load_state_dict({loaded})
"""
'''
_BUILD = '''def build():
    """Input: float (N, 3, H, W), normalised as artefact.json says; output: logits (N, classes)."""'''
_BLURRED = '''class BlurredConv2d(nn.Conv2d):
    """A convolution behind a 3x3 binomial low-pass filter (Zhang 2019, arXiv:1904.11486)."""

    def forward(self, images):
        taps = torch.tensor([1.0, 2.0, 1.0], dtype=images.dtype, device=images.device) / 4
        blur = taps.outer(taps).expand(self.in_channels, 1, 3, 3)
        return super().forward(nn.functional.conv2d(images, blur, padding=1, groups=self.in_channels))'''
_BLUR = """\
for parent in list(network.modules()):
    for name, old in parent.named_children():
        if isinstance(old, nn.Conv2d) and max(old.stride) > 1 and old.in_channels >= 16:
            size = (old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding)
            setattr(parent, name, BlurredConv2d(*size, groups=old.groups, bias=False))
"""
_CHANNELS = """\
for name, (inputs, outputs) in CHANNELS.items():
    old = network.get_submodule(name)
    size = (inputs, outputs, old.kernel_size, old.stride, old.padding)
    network.set_submodule(name, type(old)(*size, groups=old.groups, bias=False))
    norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1")
    network.set_submodule(norm, nn.BatchNorm2d(outputs))
"""


_VARIED = ("block", "layers", "groups", "width_per_group", "stem", "maxpool")
"""Fields of a net that its modules can have otherwise."""


def is_torchvisions(model: Model) -> bool:
    """Whether a network can be made of torchvision's modules."""
    net = net_of(model)
    shaped = net.stem != "deep" and net.maxpool != "conv" and len(net.layers) in (3, 4) and not net.preact
    alike = net == resolve({key: getattr(net, key) for key in _VARIED})
    return shaped and alike and (model.in_channels, model.norm, model.bn_eps) == (3, "batch", 1e-5)


def model_source(model: Model, classes: int, weights: str) -> str:
    """A Python file with `build()`, which gives the network with new weights. It needs torch and torchvision alone.

    weights: name of the file beside it with those of the network, as safetensors or by torch.save.
    Raises ValueError where the network is none of torchvision's modules.
    """
    if not is_torchvisions(model):
        raise ValueError("model.py needs a net of torchvision's modules: export another format (onnx, pt2)")
    made, changes = _torchvisions(model, classes), _changes(model, classes)
    if weights.endswith(".safetensors"):
        loaded = f'safetensors.torch.load_file("{weights}")'
    else:
        loaded = f'torch.load("{weights}", weights_only=True)'
    imports = [*["import torch"] * model.blurpool, *["from torch import nn"] * bool(changes)]
    parts = [
        [_DOCSTRING.format(loaded=loaded), *imports, "from torchvision.models import resnet"],
        [_BLURRED] if model.blurpool else [],
        _table(_channels(model, classes)),
        [_BUILD, *([f"    network = {made}", *changes, "    return network"] if changes else [f"    return {made}"])],
    ]
    return "\n\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _table(channels: dict[str, tuple[int, int]]) -> list[str]:
    rows = [f'    "{name}": {sizes},' for name, sizes in channels.items()]
    return ["CHANNELS = {", *rows, "}"] if rows else []


def _torchvisions(model: Model, classes: int) -> str:
    """torchvision's call that makes the network, or what is nearest to it."""
    net = effective_model(model)
    if net["name"] in TORCHVISIONS:
        return f"resnet.{net['name']}(num_classes={classes})"
    made, layers = net_of(model), [*net_of(model).layers, 1][:4]
    others = "".join(f", {key}={net[key]}" for key in ("groups", "width_per_group") if net[key])
    return f"resnet.ResNet(resnet.{_BLOCKS[made.block]}, {layers}, num_classes={classes}{others})"


def _changes(model: Model, classes: int) -> list[str]:
    """Lines that make of torchvision's network the other one."""
    net, lines = effective_model(model), []
    if len(net_of(model).layers) == 3:
        lines += ["network.layer4 = nn.Identity()"]
    if net["stem"] == "cifar":
        lines += ["network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)"]
    if not net["maxpool"]:
        lines += ["network.maxpool = nn.Identity()"]
    if net["activation"] != "relu":
        lines += _activation(model)
    if net["blurpool"]:
        lines += _BLUR.splitlines()
    if net["channels"]:
        lines += _CHANNELS.splitlines()
    if (features := _sizes(model, classes)["fc"][0]) != 512 * _EXPANSION[net_of(model).block]:
        lines += [f"network.fc = nn.Linear({features}, {classes})"]
    return [f"    {line}" for line in lines]


def _sizes(model: Model, classes: int) -> dict[str, tuple[int, int]]:
    """Channels in and out of each layer that has any."""
    with torch.device("meta"):
        modules = dict(build_model(model, classes).named_modules())
    convolutions = {
        name: (module.in_channels, module.out_channels)
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d)
    }
    head = modules["fc"]
    assert isinstance(head, nn.Linear)
    return {**convolutions, "fc": (head.in_features, head.out_features)}


def _channels(model: Model, classes: int) -> dict[str, tuple[int, int]]:
    """Of the convolutions that have others than the net by itself."""
    own = _sizes(model.model_copy(update={"channels": {}}), classes)
    return {name: sizes for name, sizes in _sizes(model, classes).items() if name != "fc" and sizes != own[name]}


def _activation(model: Model) -> list[str]:
    name = type(make_activation(model.activation, model.activation_args)).__name__
    arguments = ", ".join(f"{key}={value!r}" for key, value in model.activation_args.items())
    return [
        'for parent in [module for module in network.modules() if hasattr(module, "relu")]:',
        f"    parent.relu = nn.{name}({arguments})",
    ]
