"""Optimizers: parameter groups by the type of their layer, SGD and Adam(W) of torch, LAMB and LARS of our own."""

# torch._foreach_* has no public name; torch's own optimizers are built of it.

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from recipes.schedules import Hyper
from recipes.schema import optimizer as schema

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
        case schema.Adam():
            return torch.optim.Adam(groups, lr, config.betas, config.eps, fused=fused)
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
    members: dict[tuple[float, str], list[nn.Parameter]] = {}
    for scale in dict.fromkeys((config.backbone_lr_scale, 1.0)):
        members |= {(scale, kind): [] for kind in decays}
    for name, kind, parameter in _by_kind(model):
        scale = 1.0 if name == "fc" else config.backbone_lr_scale
        members[scale, kind].append(parameter)
    groups: list[dict[str, Any]] = []
    for (scale, kind), parameters in members.items():
        options = {"lr": lr * scale, "lr_scale": scale, "weight_decay": decays[kind]}
        # Of neighbours only: a checkpoint knows the parameters by their place in this order.
        if groups and groups[-1].items() >= options.items():
            groups[-1]["params"] += parameters
        elif parameters:
            groups.append({"params": parameters, **options})
    return groups


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


class Lamb(torch.optim.Optimizer):
    """LAMB: Adam's bias-corrected direction plus weight decay, rescaled layer by layer to the norm of the weights.

    You et al. 2019 (arXiv:1904.00962), algorithm 2. As in NVIDIA's and timm's versions, groups without weight decay are
    not rescaled. Gradients are used as they are: clipping their norm is the training loop's.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "step": 0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert closure is None
        for group in self.param_groups:
            params, grads = _with_gradients(group)
            if not params:
                continue
            group["step"] += 1
            beta1, beta2 = group["betas"]
            averages = _buffers(self.state, params, "exp_avg")
            squares = _buffers(self.state, params, "exp_avg_sq")
            torch._foreach_lerp_(averages, grads, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)

            denominators = torch._foreach_sqrt(squares)
            torch._foreach_div_(denominators, (1 - beta2 ** group["step"]) ** 0.5)
            torch._foreach_add_(denominators, group["eps"])
            updates = list(torch._foreach_div(averages, 1 - beta1 ** group["step"]))
            torch._foreach_div_(updates, denominators)
            if group["weight_decay"]:
                torch._foreach_add_(updates, params, alpha=group["weight_decay"])
                weight_norms, update_norms = _norms(params), _norms(updates)
                ratios = _where_both(weight_norms, update_norms, weight_norms / update_norms)
                torch._foreach_mul_(updates, list(ratios.unbind()))
            torch._foreach_add_(params, updates, alpha=-group["lr"])


class Lars(torch.optim.Optimizer):
    """LARS: SGD with momentum whose learning rate is rescaled layer by layer to the norm of the weights.

    You et al. 2017 (arXiv:1708.03888), algorithm 1, as in MLPerf's reference: weight decay is added to the gradient,
    the momentum buffer sums steps that already carry their learning rate, and groups without weight decay are not
    rescaled.
    """

    def __init__(self, params: Any, lr: float, momentum: float, trust_coefficient: float, eps: float) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "weight_decay": 0.0,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert closure is None
        for group in self.param_groups:
            params, grads = _with_gradients(group)
            if not params:
                continue
            decay, momenta = group["weight_decay"], _buffers(self.state, params, "momentum_buffer")
            torch._foreach_mul_(momenta, group["momentum"])
            if decay:
                weight_norms, grad_norms = _norms(params), _norms(grads)
                ratios = group["trust_coefficient"] * weight_norms / (grad_norms + decay * weight_norms + group["eps"])
                ratios = _where_both(weight_norms, grad_norms, ratios)
                updates = torch._foreach_add(grads, params, alpha=decay)
                torch._foreach_mul_(updates, list((ratios * group["lr"]).unbind()))
                torch._foreach_add_(momenta, updates)
            else:
                torch._foreach_add_(momenta, grads, alpha=group["lr"])
            torch._foreach_sub_(params, momenta)


def _with_gradients(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    params = [parameter for parameter in group["params"] if parameter.grad is not None]
    return params, [parameter.grad for parameter in params]


def _buffers(state: Any, params: list[Tensor], name: str) -> list[Tensor]:
    for parameter in params:
        if name not in state[parameter]:
            state[parameter][name] = torch.zeros_like(parameter)
    return [state[parameter][name] for parameter in params]


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors))


def _where_both(first: Tensor, second: Tensor, ratios: Tensor) -> Tensor:
    """The ratios where both norms are positive, else 1; chosen on the device, without waiting for it."""
    return torch.where((first > 0) & (second > 0), ratios, 1.0)
