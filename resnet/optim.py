"""The optimizer of a recipe: which one it is, and its parameter groups by type and place of their layers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from recipes.schedules import Hyper
from recipes.schema import optimizer as schema
from resnet.optimizers import Lamb, Lars, RmspropTf

_STEM, _BLOCK = re.compile(r"conv1|bn1|maxpool"), re.compile(r"layer\d+\.\d+")
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def build_optimizer(model: nn.Module, config: schema.Optimizer, lr: float) -> torch.optim.Optimizer:
    """Build the optimizer for the trainable parameters of a network that is on its device already, and not wrapped.

    lr: peak learning rate, scaled to the batch size. Each group carries `lr_scale`, its own multiple of it.
    """
    groups = _groups(model, config, lr)
    on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
    # On the CPU torch's plain loop: its fused kernel rounds differently, and lists of tensors do not fit its caches.
    fused = True if on_gpu else None
    match config:
        case schema.Sgd():
            optimizer = torch.optim.SGD(groups, lr, config.momentum, nesterov=config.nesterov, fused=fused)
            if on_gpu and config.momentum:
                _begin_without_momentum(optimizer)
            return optimizer
        case schema.AdamW():
            return torch.optim.AdamW(groups, lr, config.betas, config.eps, fused=fused)
        case schema.NAdamW():
            return torch.optim.NAdam(
                groups, lr, config.betas, config.eps, momentum_decay=config.momentum_decay, decoupled_weight_decay=True
            )
        case schema.Adam():
            return torch.optim.Adam(groups, lr, config.betas, config.eps, fused=fused)
        case schema.Rmsprop():
            return torch.optim.RMSprop(
                groups, lr, config.alpha, config.eps, momentum=config.momentum, centered=config.centered
            )
        case schema.RmspropTf():
            return RmspropTf(groups, lr, config.alpha, config.eps, config.momentum)
        case schema.Lamb():
            return Lamb(groups, lr, config.betas, config.eps)
        case schema.Lars():
            return Lars(groups, lr, config.momentum, config.trust_coefficient, config.eps)


def _begin_without_momentum(optimizer: torch.optim.SGD) -> None:
    """Give every parameter a momentum of 0, from which a first step leads to where it leads without one.

    torch's fused kernel makes them in the first step, and where fp16's scaler leaves that one out, it goes on with
    whatever was in that memory.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def set_hyper(optimizer: torch.optim.Optimizer, hyper: Hyper) -> None:
    """Write a step's learning rate and, where the schedule cycles it, momentum or Adam's first beta into all groups."""
    for group in optimizer.param_groups:
        group["lr"] = hyper.lr * group["lr_scale"]
        if hyper.momentum is None:
            continue
        if "betas" in group:
            group["betas"] = (hyper.momentum, group["betas"][1])
        else:
            group["momentum"] = hyper.momentum


def _groups(model: nn.Module, config: schema.Optimizer, lr: float) -> list[dict[str, Any]]:
    decays = {
        "weight": config.weight_decay,
        "norm": config.weight_decay if config.weight_decay_norm is None else config.weight_decay_norm,
        "bias": config.weight_decay if config.weight_decay_bias is None else config.weight_decay_bias,
    }
    found, by_layer = [*_by_kind(model)], config.layer_decay != 1
    scale_of = _layer_scales(model, config) if by_layer else _backbone_scale(config)
    # A checkpoint knows the parameters by their place in this order, which layer_decay leaves as it is without.
    if by_layer:
        keys = itertools.product(decays, dict.fromkeys(scale_of(name) for name, _, _ in found))
        keys = [(scale, kind) for kind, scale in keys]
    else:
        keys = itertools.product(dict.fromkeys((config.backbone_lr_scale, 1.0)), decays)
    members: dict[tuple[float, str], list[nn.Parameter]] = {key: [] for key in keys}
    for name, kind, parameter in found:
        members[scale_of(name), kind].append(parameter)
    groups: list[dict[str, Any]] = []
    for (scale, kind), parameters in members.items():
        options = {"lr": lr * scale, "lr_scale": scale, "weight_decay": decays[kind]}
        # Of neighbours only, for the sake of that order.
        if parameters and groups and groups[-1].items() >= options.items():
            groups[-1]["params"] += parameters
        elif parameters:
            groups.append({"params": parameters, **options})
    return groups


def _backbone_scale(config: schema.Optimizer) -> Callable[[str], float]:
    return lambda module: 1.0 if module == "fc" else config.backbone_lr_scale


def _layer_scales(model: nn.Module, config: schema.Optimizer) -> Callable[[str], float]:
    """Of a module's name, as timm's group_matcher divides a ResNet: the stem, each block, and what comes after them."""
    blocks = list(dict.fromkeys(found[0] for name, _ in model.named_modules() if (found := _BLOCK.match(name))))

    def scale(module: str) -> float:
        if found := _BLOCK.match(module):
            return config.scale_of_layer(blocks.index(found[0]) + 1, len(blocks))
        return config.scale_of_layer(0 if _STEM.match(module) else len(blocks) + 1, len(blocks))

    return scale


def _by_kind(model: nn.Module) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Each trainable parameter once, with its module's name and whether it is a norm's, a bias, or another weight."""
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            yield (
                module_name,
                "norm" if isinstance(module, _NORMS) else "bias" if name == "bias" else "weight",
                parameter,
            )
