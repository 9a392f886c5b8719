"""Updates in few calls, to the bit torch's own, without what it spends on small networks; and flat parameters.

One fused call over one flat tensor would be shorter still, but it gives other bits: torch's kernel rounds the last
elements of a tensor, those that do not fill a vector, in another way than the rest. So each parameter stays a tensor of
its own, and all of them go through one call. Nothing is kept between two steps and can go stale: parameters, gradients,
options and state are the optimiser's, and are read from it each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

_ONE = torch.ones((), dtype=torch.float32, device="cpu")
_RARE = ("amsgrad", "maximize", "capturable", "differentiable", "weight_decay")
_NUMBERS = ("lr", "weight_decay", "eps")


def clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.zero_grad()`: no parameter has a gradient after it.

    Args:
        optimizer: any; one that is torch's Adam or AdamW does it without records for the profiler.

    Examples:
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

    Examples:
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

    Examples:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> run_backward(weight.sum()); weight.grad
        tensor([1., 1.])
    """
    if type(loss) is Tensor and loss.dtype is torch.float32 and loss.is_cpu and not loss.ndim and loss.requires_grad:
        # The graph is freed, none is made of the gradients, and those of all leaves are wanted.
        one = torch.ones((), dtype=torch.float32, device="cpu")  # of this call: it may become the gradient of a view
        _engine_run_backward((loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True)
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


class FlatAdam:
    """The parameters that an engine trains, their gradients and Adam's moments, as views of one tensor each.

    A step of Adam is then one call. Numbers differ from those of torch's own step in the last bit. Nothing of it can be
    seen from outside: parameters and the optimiser's state keep their names and shapes, and go into files as ever. An
    optimiser that is not torch's plain Adam takes its own step, on gradients that are views all the same.

    Args:
        optimizer: has the parameters in its one group.
        parameters: those that are trained, float32 on the CPU; the others of the optimiser have no gradient.

    Attributes:
        gradients: float32 `[P]`, all of them.

    Examples:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> adam = FlatAdam(torch.optim.Adam([weight], lr=0.1), [weight])
        >>> adam.gradients[:] = 3.0
        >>> adam.step(max_grad_norm=1.0)
        >>> weight.tolist()
        [0.8999999761581421, 0.8999999761581421]
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
        self._optimizer = optimizer
        self.parameters = list(parameters)
        self._group = optimizer.param_groups[0]
        for parameter in self._group["params"]:
            parameter.grad = None
        sizes = [parameter.numel() for parameter in self.parameters]
        self._values = torch.cat([parameter.detach().flatten() for parameter in self.parameters])
        gradients = torch.zeros_like(self._values)
        self.gradients: NDArray[np.float32] = gradients.numpy()
        self._tensors = [self._values, gradients]
        views = zip(self.parameters, torch.split(self._values, sizes), torch.split(gradients, sizes), strict=True)
        for parameter, value, gradient in views:
            parameter.data = value.view(parameter.shape)
            parameter.grad = gradient.view(parameter.shape)
        self._options = self._read_options()
        self._is_adam = self._take_moments(sizes)

    def _read_options(self) -> list[Any]:
        """What decides which step is taken; the learning rate and its like are read at each."""
        return [_is_plain(self._optimizer), *map(self._group.get, _RARE)]

    def _take_moments(self, sizes: list[int]) -> bool:
        """Make the optimiser's state views of one tensor; whether it is the plain Adam whose step is known."""
        states, (is_plain, *rare) = self._optimizer.state, self._options
        numbers = (self._group.get("lr"), *self._group.get("betas", ()))
        is_adam = type(self._optimizer) is torch.optim.Adam and len(self._optimizer.param_groups) == 1
        if not is_plain or not is_adam or any(rare) or any(isinstance(number, Tensor) for number in numbers):
            return False
        steps = torch.tensor([float(states.get(one, {}).get("step", 0.0)) for one in self.parameters])
        for name in ("exp_avg", "exp_avg_sq"):
            whole = torch.zeros_like(self._values)
            self._tensors.append(whole)
            for place, (parameter, part) in enumerate(zip(self.parameters, torch.split(whole, sizes), strict=True)):
                state, view = states[parameter], part.view(parameter.shape)
                if name in state:
                    view.copy_(state[name])
                state["step"], state[name] = steps[place], view
        self._counts = steps.numpy()
        if bool((steps == steps[0]).all()):
            self._lists = [[tensor] for tensor in self._tensors] + [[steps[0]]]
        else:  # some have been trained longer than others
            self._lists = [list(torch.split(tensor, sizes)) for tensor in self._tensors] + [list(steps.unbind())]
        return True

    def is_current(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether all is as it was made: a loaded file, a callback or the user may have replaced some of it.

        Args:
            optimizer: in use now.
        """
        if optimizer is not self._optimizer or optimizer.param_groups[0] is not self._group:
            return False
        if self._options != self._read_options():
            return False
        pointer = self._values.data_ptr()
        for parameter in self.parameters:
            if parameter.data_ptr() != pointer or parameter.grad is None:
                return False
            pointer += 4 * parameter.numel()
        state = optimizer.state.get(self.parameters[0], {})
        return not self._is_adam or state.get("exp_avg_sq", self._values).data_ptr() == self._tensors[3].data_ptr()

    def step(self, max_grad_norm: float | None = None) -> None:
        """Clip the norm of all gradients, as torch's `clip_grad_norm_`, and take a step of the optimiser."""
        if max_grad_norm is not None:
            with np.errstate(all="ignore"):  # what is not finite stays so, as in torch
                norm = math.sqrt(float(np.dot(self.gradients, self.gradients)))
                if not norm <= max_grad_norm:
                    self.gradients *= min(max_grad_norm / (norm + 1e-6), 1.0)
        if not self._is_adam:
            self._optimizer.step()
            return
        group = self._group
        beta1, beta2 = group["betas"]
        self._counts += 1
        values, gradients, means, squares, steps = self._lists
        torch._fused_adam_(  # of tensors without a graph
            values,
            gradients,
            means,
            squares,
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give each parameter and its state memory of their own again, and take the gradients away."""
        for parameter in self.parameters:
            parameter.data = parameter.data.clone()
            parameter.grad = None
            state = self._optimizer.state.get(parameter, {})
            state.update({name: value.clone() for name, value in state.items() if isinstance(value, Tensor)})
