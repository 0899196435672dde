"""Optimizers of our own, of lists of tensors: LAMB, LARS and TensorFlow's RMSprop."""

# torch._foreach_* has no public name; torch's own optimizers are built of it.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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


class RmspropTf(torch.optim.Optimizer):
    """RMSprop as TensorFlow has it: eps is within the root, the squares' average begins at 1, and the momentum buffer
    sums steps that already carry their learning rate.

    As in timm's RMSpropTF, by which the settings of TensorFlow's recipes are used in PyTorch. Weight decay is added to
    the gradient.
    """

    def __init__(self, params: Any, lr: float, alpha: float, eps: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert closure is None
        for group in self.param_groups:
            params, grads = _with_gradients(group)
            if not params:
                continue
            if group["weight_decay"]:
                grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
            averages = _buffers(self.state, params, "square_avg", torch.ones_like)
            squares = torch._foreach_mul(grads, grads)
            torch._foreach_sub_(squares, averages)
            torch._foreach_add_(averages, squares, alpha=1 - group["alpha"])
            roots = torch._foreach_add(averages, group["eps"])
            torch._foreach_sqrt_(roots)
            if group["momentum"]:
                momenta = _buffers(self.state, params, "momentum_buffer")
                torch._foreach_mul_(momenta, group["momentum"])
                torch._foreach_addcdiv_(momenta, grads, roots, value=group["lr"])
                torch._foreach_sub_(params, momenta)
            else:
                torch._foreach_addcdiv_(params, grads, roots, value=-group["lr"])


def _with_gradients(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    params = [parameter for parameter in group["params"] if parameter.grad is not None]
    return params, [parameter.grad for parameter in params]


def _buffers(
    state: Any, params: list[Tensor], name: str, begin: Callable[[Tensor], Tensor] = torch.zeros_like
) -> list[Tensor]:
    for parameter in params:
        if name not in state[parameter]:
            state[parameter][name] = begin(parameter)
    return [state[parameter][name] for parameter in params]


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors))


def _where_both(first: Tensor, second: Tensor, ratios: Tensor) -> Tensor:
    """The ratios where both norms are positive, else 1; chosen on the device, without waiting for it."""
    return torch.where((first > 0) & (second > 0), ratios, 1.0)
