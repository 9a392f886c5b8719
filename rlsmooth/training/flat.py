"""Updates in few calls, to the bit torch's own, without what it spends on small networks; and flat parameters.

One fused call over one flat tensor would be shorter still, but it gives other bits: torch's kernel rounds the last
elements of a tensor, those that do not fill a vector, in another way than the rest. So each parameter stays a tensor of
its own, and all of them go through one call. Nothing is kept between two steps and can go stale: parameters, gradients,
options and state are the optimiser's, and are read from it each time.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

_ONE = torch.ones((), dtype=torch.float32, device="cpu")
_NUMBERS = ("lr", "weight_decay", "eps")


def clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.zero_grad()`: no parameter has a gradient after it.

    Args:
        optimizer: any; one that is torch's Adam or AdamW does it without records for the profiler.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> optimizer = torch.optim.Adam([weight])
        >>> weight.sum().backward(); clear_gradients(optimizer); weight.grad is None
        True
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or "zero_grad" in vars(optimizer):
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()`, bit for bit; faster for torch's Adam and AdamW in float32 on the CPU.

    Args:
        optimizer: any. One of another class or with rare options, one that somebody hooked into or wrapped, and the
            first step of a parameter, which makes its state, take the optimiser's own way.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> optimizer = torch.optim.Adam([weight], lr=0.1)
        >>> for _ in range(2):
        ...     clear_gradients(optimizer); weight.sum().backward(); take_step(optimizer)
        >>> weight
        tensor([0.8000, 0.8000], requires_grad=True)
    """
    found = [_tensors_of(optimizer, group) for group in optimizer.param_groups] if _is_plain(optimizer) else [None]
    if None in found:
        optimizer.step()
        return
    decoupled = type(optimizer) is torch.optim.AdamW
    with torch.no_grad():
        for group, tensors in zip(optimizer.param_groups, found, strict=True):
            if tensors is not None and tensors[0]:
                _adam(group, *tensors, decoupled=group.get("decoupled_weight_decay", decoupled))


def run_backward(loss: Tensor) -> None:
    """`loss.backward()`, without the checks of what a loss may be where it is a float32 number on the CPU.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> run_backward(weight.sum()); weight.grad
        tensor([1., 1.])
    """
    if type(loss) is Tensor and loss.dtype is torch.float32 and loss.is_cpu and not loss.ndim and loss.requires_grad:
        # The graph is freed, none is made of the gradients, and those of all leaves are wanted.
        _engine_run_backward((loss,), (_ONE,), False, False, (), allow_unreachable=True, accumulate_grad=True)
    else:
        loss.backward()  # type: ignore[no-untyped-call]


def _is_plain(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it is Adam or AdamW as torch made it, and nobody waits for its calls."""
    own = vars(optimizer)
    return not (
        type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW)
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or own["_optimizer_step_pre_hooks"]
        or own["_optimizer_step_post_hooks"]
        or "step" in own  # schedulers wrap it
        or "grad_scale" in own  # gradient scalers set these two
        or "found_inf" in own
    )


def _tensors_of(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> tuple[list[Tensor], ...] | None:
    """The parameters that have gradients, these, both moments and the steps; None: take the optimiser's own way."""
    beta1, beta2 = group["betas"]
    if isinstance(group["lr"], Tensor) or isinstance(beta1, Tensor) or isinstance(beta2, Tensor):
        return None
    if group["amsgrad"] or group["maximize"] or group["capturable"] or group["differentiable"]:
        return None
    found: tuple[list[Tensor], ...] = ([], [], [], [], [])
    parameters, gradients, means, squares, steps = found
    for parameter in group["params"]:
        gradient = parameter.grad
        if gradient is None:
            continue
        state = optimizer.state.get(parameter)
        plain = gradient.dtype is torch.float32 and gradient.is_cpu and gradient.layout is torch.strided
        if not state or not plain or type(gradient) is not Tensor or type(parameter) not in (nn.Parameter, Tensor):
            return None
        parameters.append(parameter)
        gradients.append(gradient)
        means.append(state["exp_avg"])
        squares.append(state["exp_avg_sq"])
        steps.append(state["step"])
    return found


def _adam(
    group: dict[str, Any],
    parameters: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    *,
    decoupled: bool,
) -> None:
    """One step of a group, with the arithmetic of torch's fused or its plain Adam, in their order."""
    rate, decay, eps = (group[name] for name in _NUMBERS)
    beta1, beta2 = group["betas"]
    for step in steps:
        step.add_(_ONE)  # faster than torch._foreach_add_, which makes a tensor of its number each time
    if group["fused"]:
        fused = torch._fused_adamw_ if decoupled else torch._fused_adam_
        fused(
            parameters,
            gradients,
            means,
            squares,
            [],
            steps,
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
        return
    if decay and decoupled:
        torch._foreach_mul_(parameters, 1 - rate * decay)
    elif decay:
        gradients = [torch.add(*pair, alpha=decay) for pair in zip(gradients, parameters, strict=True)]
    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    numbers = [step.item() for step in steps]
    scales = [square.sqrt() for square in squares]
    torch._foreach_div_(scales, [(1 - beta2**number) ** 0.5 for number in numbers])
    torch._foreach_add_(scales, eps)
    torch._foreach_addcdiv_(parameters, means, scales, [-(rate / (1 - beta1**number)) for number in numbers])


class FlatParameters:
    """Some of an optimiser's parameters in one flat tensor, their gradients and Adam's moments in three others.

    It is what an update without autograd works on: all is contiguous, float32 and on the CPU, and `numpy()` gives the
    same memory. The module's parameters and the optimiser's state are views of it from then on, so that files,
    checkpoints, evaluations and torch's own step read and write what such an update does. `release` gives each its own
    memory again; do it when training ends, or a pickle of a parameter would hold all of them.

    Args:
        named: the parameters by name; all have to be members of the optimiser.
        optimizer: torch's Adam or AdamW.

    Attributes:
        shapes: by name.
        places: the slice of each in the flat tensors, by name.
        parameters: `[N]`, as are `gradients`, `means` and `squares` (Adam's first and second moment).

    Raises:
        ValueError: a parameter that is not a float32 one on the CPU, or given twice.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> flat = FlatParameters(dict(layer.named_parameters()), torch.optim.Adam(layer.parameters()))
        >>> flat.parameters.numpy()[flat.places["bias"]] = 0.5
        >>> layer.bias
        Parameter containing:
        tensor([0.5000], requires_grad=True)
    """

    def __init__(self, named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        for name, parameter in named.items():
            if parameter.dtype is not torch.float32 or not parameter.is_cpu:
                raise ValueError(f"{name} is {parameter.dtype} on {parameter.device}: it must be float32 on the CPU.")
        if len({id(parameter) for parameter in named.values()}) < len(named):
            raise ValueError(f"named has one parameter under two names: {', '.join(named)}.")
        self.named, self.optimizer = dict(named), optimizer
        self.shapes = {name: parameter.shape for name, parameter in named.items()}
        ends = list(itertools.accumulate(parameter.numel() for parameter in named.values()))
        self.places = {name: slice(start, end) for name, start, end in zip(named, [0, *ends], ends, strict=False)}
        count = ends[-1] if ends else 0
        self.parameters, self.gradients, self.means, self.squares = (
            torch.zeros(count, dtype=torch.float32, device="cpu") for _ in range(4)
        )
        with torch.no_grad():
            for name, parameter in named.items():
                state = optimizer.state[parameter]
                state.setdefault("step", torch.zeros((), dtype=torch.float32, device="cpu"))
                for flat, kept in ((self.means, "exp_avg"), (self.squares, "exp_avg_sq")):
                    if kept in state:
                        self.view(flat, name).copy_(state[kept])
                    state[kept] = self.view(flat, name)
                self.view(self.parameters, name).copy_(parameter)
                parameter.data = self.view(self.parameters, name)

    def view(self, flat: Tensor, name: str) -> Tensor:
        """The part of a flat tensor that belongs to a parameter, in its shape."""
        return flat[self.places[name]].view(self.shapes[name])

    def count_steps(self, count: int) -> None:
        """Tell the optimiser's state that so many steps were taken."""
        for parameter in self.named.values():
            self.optimizer.state[parameter]["step"] += count

    def release(self) -> None:
        """Give each parameter and each of its moments memory of its own."""
        for parameter in self.named.values():
            state = self.optimizer.state[parameter]
            state.update({kept: state[kept].clone() for kept in ("exp_avg", "exp_avg_sq")})
            parameter.data = parameter.data.clone()
