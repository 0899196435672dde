"""model.py: a few lines of torchvision or timm that build a network of ours, for programs that do not have ours."""

from __future__ import annotations

from recipes.net_size import layers
from recipes.nets import TORCHVISIONS
from recipes.schema.model import Model, net_of
from resnet.blocks import make_activation
from resnet.net import effective_model
from resnet.tools.export.timm_config import is_timms, timm_name

_BLOCKS = {"basic": "BasicBlock", "bottleneck": "Bottleneck"}
_KERNELS = {"basic": (3, 3), "bottleneck": (1, 3, 1)}
_STAGES = 4
_EPSILON = 1e-5
"""Of torchvision's BatchNorm."""
_DOCSTRING = '''"""The network, for torch and {package} alone.

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
_EPSILONS = """\
for module in network.modules():
    if isinstance(module, nn.BatchNorm2d):
        module.eps = {eps}
"""
_CHANNELS = """\
for name, (inputs, outputs) in CHANNELS.items():
    old = network.get_submodule(name)
    size = (inputs, outputs, old.kernel_size, old.stride, old.padding)
    network.set_submodule(name, type(old)(*size, groups=old.groups, bias=False))
    norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1")
    network.set_submodule(norm, nn.BatchNorm2d(outputs))
"""


def builder_of(model: Model) -> str | None:
    """Which package builds the network, under its names, in a few lines: torchvision, timm, or none."""
    if _is_torchvisions(model):
        return "torchvision"
    return "timm" if is_timms(model) else None


def _is_torchvisions(model: Model) -> bool:
    """Whether it is torchvision's network but for what `_changes` can change."""
    net = net_of(model)
    if net.block not in _BLOCKS or net.stem == "deep" or net.maxpool == "conv" or len(net.layers) > _STAGES:
        return False
    if net.kernels != _KERNELS[net.block] or net.attention != "none" or model.norm != "batch":
        return False
    other = net.downsample != "conv" or net.shortcut != "projection"
    return not other and [*_sizes(model)] == [name for name in _sizes(_plain(model)) if _is_in(name, len(net.layers))]


def _is_in(layer: str, stages: int) -> bool:
    """Whether a layer is in none of the stages that follow so many."""
    return not layer.startswith(tuple(f"layer{stage}." for stage in range(stages + 1, _STAGES + 1)))


def _plain(model: Model) -> Model:
    """torchvision's network that is nearest to it."""
    net, name = net_of(model), effective_model(model)["name"]
    if name in TORCHVISIONS:
        return Model(name=name)
    layers = [*net.layers, 1, 1, 1][:_STAGES]
    if net.expansion == 1:
        return Model(block=net.block, layers=layers)
    return Model(block=net.block, layers=layers, groups=net.groups, width_per_group=net.width_per_group)


def model_source(model: Model, classes: int, weights: str) -> str:
    """A Python file with `build()`, which gives the network with new weights. It needs `builder_of` and torch alone.

    weights: name of the file beside it with those of the network, as safetensors or by torch.save.
    """
    if weights.endswith(".safetensors"):
        loaded = f'safetensors.torch.load_file("{weights}")'
    else:
        loaded = f'torch.load("{weights}", weights_only=True)'
    package = builder_of(model)
    docstring = _DOCSTRING.format(loaded=loaded, package=package)
    parts = _timms_parts(model, classes) if package == "timm" else _torchvisions_parts(model, classes)
    parts[0].insert(0, docstring)
    return "\n\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _timms_parts(model: Model, classes: int) -> list[list[str]]:
    bands = "" if model.in_channels == 3 else f", in_chans={model.in_channels}"
    made = f'timm.create_model("{timm_name(model)}", num_classes={classes}{bands})'
    return [["import timm"], [_BUILD, f"    return {made}"]]


def _torchvisions_parts(model: Model, classes: int) -> list[list[str]]:
    made, changes = _torchvisions(model, classes), _changes(model, classes)
    imports = [*["import torch"] * model.blurpool, *["from torch import nn"] * bool(changes)]
    return [
        [*imports, "from torchvision.models import resnet"],
        [_BLURRED] if model.blurpool else [],
        _table(_channels(model)),
        [_BUILD, *([f"    network = {made}", *changes, "    return network"] if changes else [f"    return {made}"])],
    ]


def _table(channels: dict[str, tuple[int, int]]) -> list[str]:
    rows = [f'    "{name}": {sizes},' for name, sizes in channels.items()]
    return ["CHANNELS = {", *rows, "}"] if rows else []


def _torchvisions(model: Model, classes: int) -> str:
    """torchvision's call that makes the network, or what is nearest to it."""
    plain = _plain(model)
    if plain.name:
        return f"resnet.{plain.name}(num_classes={classes})"
    others = "".join(
        f", {key}={value}"
        for key, own in (("groups", 1), ("width_per_group", 64))
        if (value := getattr(plain, key)) not in (None, own)
    )
    return f"resnet.ResNet(resnet.{_BLOCKS[net_of(plain).block]}, {plain.layers}, num_classes={classes}{others})"


def _changes(model: Model, classes: int) -> list[str]:
    """Lines that make of torchvision's network the other one."""
    net, lines = net_of(model), []
    lines += [f"network.layer{stage} = nn.Identity()" for stage in range(len(net.layers) + 1, _STAGES + 1)]
    if net.stem == "cifar":
        lines += ["network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)"]
    if not net.maxpool:
        lines += ["network.maxpool = nn.Identity()"]
    if model.activation != "relu":
        lines += _activation(model)
    if model.blurpool:
        lines += _BLUR.splitlines()
    if _channels(model):
        lines += _CHANNELS.splitlines()
    if model.bn_eps != _EPSILON:
        lines += [_EPSILONS.format(eps=model.bn_eps)]
    if (features := _sizes(model)["fc"][0]) != _sizes(_plain(model))["fc"][0]:
        lines += [f"network.fc = nn.Linear({features}, {classes})"]
    return [f"    {line}" for part in lines for line in part.splitlines()]


def _sizes(model: Model) -> dict[str, tuple[int, int]]:
    """Channels in and out of each layer that has any."""
    return {layer.name: (layer.inputs, layer.outputs) for layer in layers(model, 1)}


def _channels(model: Model) -> dict[str, tuple[int, int]]:
    """Of the convolutions that have others than torchvision's."""
    plain = _sizes(_plain(model))
    return {name: sizes for name, sizes in _sizes(model).items() if name != "fc" and sizes != plain[name]}


def _activation(model: Model) -> list[str]:
    name = type(make_activation(model.activation, model.activation_args)).__name__
    arguments = ", ".join(f"{key}={value!r}" for key, value in model.activation_args.items())
    return [
        'for parent in [module for module in network.modules() if hasattr(module, "relu")]:',
        f"    parent.relu = nn.{name}({arguments})",
    ]
