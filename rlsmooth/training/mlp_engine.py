"""Forward and backward passes of small multilayer perceptrons in numpy, on the memory of torch's own parameters.

A network of two layers of 64 spends most of its time in the calls of a deep-learning library, not in its arithmetic.
Here a pass is a handful of numpy calls into buffers that are made once. The parameters stay torch's: saving, loading,
evaluating and optimisers see each change, since both read the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array: TypeAlias = NDArray[np.float32]
Engine: TypeAlias = Literal["torch", "numpy"]
ENGINES: tuple[Engine, ...] = ("torch", "numpy")
_KEPT_SIZES = 4
"""Buffers are kept for so many sizes of minibatches: an epoch's, its last one's, and those of a log line."""


class _Activation(NamedTuple):
    forward: Callable[[Array], Any]  # in place
    backward: Callable[[Array, Array], Any]  # multiplies the second, a gradient, in place; may spoil the first


def _tanh_backward(output: Array, gradient: Array) -> None:
    np.multiply(output, output, out=output)
    np.subtract(1, output, out=output)
    gradient *= output


def _relu_backward(output: Array, gradient: Array) -> None:
    gradient *= output > 0


def _elu(values: Array) -> None:
    np.maximum(values, np.expm1(np.minimum(values, 0)), out=values)


def _elu_backward(output: Array, gradient: Array) -> None:
    np.minimum(output, 0, out=output)  # its slope is 1 above 0, and the output + 1 below
    output += 1
    gradient *= output


ACTIVATIONS: dict[type[nn.Module], _Activation] = {
    nn.Tanh: _Activation(lambda values: np.tanh(values, out=values), _tanh_backward),
    nn.ReLU: _Activation(lambda values: np.maximum(values, 0, out=values), _relu_backward),
    nn.ELU: _Activation(_elu, _elu_backward),
}


def why_not_served(modules: Iterable[nn.Module]) -> str | None:
    """The reason why `MLP` can't compute a stack of modules, or None where it can.

    Args:
        modules: from the input to the output: linear layers in float32 on the CPU, each but the last followed by Tanh,
            ReLU or ELU.

    Examples:
        >>> why_not_served([nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1)])
        'it has a layer of GELU; Linear, Tanh, ReLU and ELU are known'
    """
    last_is_linear, seen = False, set()
    for module in modules:
        if type(module) is nn.Linear:
            if module.weight.dtype != torch.float32 or module.weight.device.type != "cpu":
                return f"a layer is {module.weight.dtype} on {module.weight.device}; float32 on the CPU is known"
            if "bias" not in dict(module.named_parameters()):
                return "a layer has no bias"
            if id(module) in seen:
                return "a layer is there twice"
            seen.add(id(module))
            if last_is_linear:
                return "a layer has no activation"
            last_is_linear = True
        elif type(module) not in ACTIVATIONS or (isinstance(module, nn.ELU) and module.alpha != 1.0):
            return f"it has a layer of {type(module).__name__}; Linear, Tanh, ReLU and ELU are known"
        elif not last_is_linear:
            return f"{type(module).__name__} does not follow a linear layer"
        else:
            last_is_linear = False
    return None if last_is_linear else "its last layer is not linear"


class MLP:
    """Linear layers with activations between them: outputs, and the gradients of their parameters.

    Args:
        modules: from the input to the output, such that `why_not_served` finds nothing.

    Raises:
        ValueError: they are of another kind.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> from rlsmooth.training.flat import FlatAdam
        >>> memory = FlatAdam(torch.optim.Adam(net.parameters()), net.parameters())
        >>> mlp, inputs = MLP(net), np.ones((5, 2), np.float32)
        >>> bool(np.allclose(mlp.forward(inputs), net(torch.ones(5, 2)).detach(), atol=1e-6))
        True
        >>> mlp.backward(np.ones((5, 1), np.float32))
        >>> net[2].bias.grad
        tensor([5.])
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        modules = list(modules)
        reason = why_not_served(modules)
        if reason is not None:
            raise ValueError(f"modules can't be computed in numpy: {reason}.")
        self.layers: list[nn.Linear] = [module for module in modules if isinstance(module, nn.Linear)]
        self._activations = [ACTIVATIONS[type(module)] for module in modules if type(module) in ACTIVATIONS]
        self._weights = [layer.weight.detach().numpy() for layer in self.layers]
        self._biases = [layer.bias.detach().numpy() for layer in self.layers]
        self._last_bias = self._biases[-1][:, None]
        self._places = [(vars(layer)["_parameters"], layer.weight.data_ptr()) for layer in self.layers]
        self._gradients = [(_gradient_of(layer.weight), _gradient_of(layer.bias)) for layer in self.layers]
        self._buffers: dict[int, _Buffers] = {}
        self._inputs = np.empty((0, 0), np.float32)

    def is_current(self) -> bool:
        """Whether the layers' weights are still where they were."""
        for parameters, pointer in self._places:  # noqa: SIM110  # faster, and asked for at each step of a rollout
            if parameters["weight"].data_ptr() != pointer:
                return False
        return True

    def forward(self, inputs: Array) -> Array:
        """The outputs, `[B, O]`, in a buffer that the next pass of as many samples overwrites.

        They are laid out class by class, in which a sum over the classes takes a tenth of the time.

        Args:
            inputs: float32 `[B, I]`; kept, not copied, for `backward`.
        """
        buffers = self._buffers.get(len(inputs)) or self._make_buffers(len(inputs))
        self._inputs = values = inputs
        for weight, bias, activate, out in buffers.hidden:
            np.dot(values, weight, out)
            np.add(out, bias, out)
            activate(out)
            values = out
        np.dot(self._weights[-1], values.T, buffers.outputs)
        np.add(buffers.outputs, self._last_bias, buffers.outputs)
        return buffers.outputs.T

    def backward(self, gradient: Array) -> None:
        """Write the parameters' gradients into their `grad`, which they must have, for the last `forward`'s inputs.

        Args:
            gradient: of the loss with respect to the outputs, float32 `[B, O]`.
        """
        buffers = self._buffers[len(gradient)]
        for place in range(len(self.layers) - 1, -1, -1):
            weight, bias = self._gradients[place]
            assert weight is not None, "FlatAdam gives the parameters their gradients"
            assert bias is not None
            inputs = buffers.hidden[place - 1].out if place else self._inputs
            np.dot(gradient.T, inputs, weight)
            np.dot(buffers.ones, gradient, bias)
            if place:
                below = buffers.below[place - 1]
                np.dot(gradient, self._weights[place], below)
                self._activations[place - 1].backward(inputs, below)
                gradient = below

    def _make_buffers(self, size: int) -> _Buffers:
        if len(self._buffers) == _KEPT_SIZES:
            self._buffers.clear()
        between = [np.empty((size, layer.out_features), np.float32) for layer in self.layers[:-1]]
        functions = [activation.forward for activation in self._activations]
        weights = [weight.T for weight in self._weights[:-1]]
        self._buffers[size] = made = _Buffers(
            [_Hidden(*parts) for parts in zip(weights, self._biases[:-1], functions, between, strict=True)],
            np.empty((self.layers[-1].out_features, size), np.float32),
            [np.empty_like(out) for out in between],
            np.ones(size, np.float32),
        )
        return made


class _Hidden(NamedTuple):
    weight: Array  # [I, O]
    bias: Array
    activate: Callable[[Array], Any]
    out: Array  # [B, O]


class _Buffers(NamedTuple):
    """What passes of one number of samples write to."""

    hidden: list[_Hidden]
    outputs: Array  # [O, B]
    below: list[Array]  # gradients with respect to the hidden outputs
    ones: Array  # [B]


def _gradient_of(parameter: Tensor) -> Array | None:
    return None if parameter.grad is None else parameter.grad.numpy()
