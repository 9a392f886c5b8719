"""An update in few calls is torch's own, bit for bit, whatever the optimiser, the shapes and what others change."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rlsmooth.training.flat import FlatAdam, clear_gradients, run_backward, take_step

ADAM, ADAMW = torch.optim.Adam, torch.optim.AdamW
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda members: ADAM(members, lr=0.01),
    "adam_fused": lambda members: ADAM(members, lr=0.01, eps=1e-5, fused=True),
    "adam_l2": lambda members: ADAM(members, lr=0.01, betas=(0.5, 0.9), weight_decay=0.1),
    "adam_l2_fused": lambda members: ADAM(members, lr=0.01, weight_decay=0.1, fused=True),
    "adam_foreach": lambda members: ADAM(members, lr=0.01, foreach=True),
    "adamw": lambda members: ADAMW(members, lr=0.01, weight_decay=0.1),
    "adamw_fused": lambda members: ADAMW(members, lr=0.01, weight_decay=0.1, fused=True),
    "amsgrad": lambda members: ADAM(members, lr=0.01, amsgrad=True),
    "maximize": lambda members: ADAM(members, lr=0.01, maximize=True, fused=True),
    "tensor_rate": lambda members: ADAM(members, lr=torch.tensor(0.01)),
    "sgd": lambda members: torch.optim.SGD(members, lr=0.01, momentum=0.9),
    "subclass": lambda members: type("Own", (ADAM,), {})(members, lr=0.01),
}


class Net(nn.Module):
    """Odd sizes, whose last elements fill no vector; a weight used twice; one that few updates reach; one that none."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.first, self.second, self.rare = nn.Linear(3, 13), nn.Linear(13, 5), nn.Linear(5, 5)
        self.never = nn.Linear(2, 2)

    def forward(self, inputs: Tensor, step: int) -> Tensor:
        hidden = torch.relu(self.first(inputs * self.scale))
        hidden = torch.relu(hidden @ self.first.weight @ self.first.weight.t())
        output: Tensor = self.second(hidden)
        return self.rare(output) if step % 3 == 2 else output


def train(
    build: Callable[[Any], torch.optim.Optimizer],
    *,
    few_calls: bool,
    meddle: Callable[[Net, torch.optim.Optimizer, int], None] = lambda *_: None,
    dtype: torch.dtype = torch.float32,
    steps: int = 12,
    clip: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    net = Net().to(dtype)
    optimizer = build([{"params": list(net.parameters())}])
    for step in range(steps):
        meddle(net, optimizer, step)
        loss = net(torch.randn(9, 3, dtype=dtype), step).square().mean()
        if few_calls:
            clear_gradients(optimizer)
            run_backward(loss / 2)
            run_backward(net(torch.randn(9, 3, dtype=dtype), step).square().mean() / 2)
        else:
            optimizer.zero_grad()
            (loss / 2).backward()
            (net(torch.randn(9, 3, dtype=dtype), step).square().mean() / 2).backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), 0.01)
        take_step(optimizer) if few_calls else optimizer.step()
    kept = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    return list(net.state_dict().values()), kept


def assert_same_bits(one: tuple[list[Tensor], list[Tensor]], two: tuple[list[Tensor], list[Tensor]]) -> None:
    for mine, torchs in zip(one, two, strict=True):
        assert len(mine) == len(torchs)
        for left, right in zip(mine, torchs, strict=True):
            assert left.detach().numpy().tobytes() == right.detach().numpy().tobytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_updates_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    ours, torchs = (train(OPTIMIZERS[name], few_calls=few, dtype=dtype, clip=True) for few in (True, False))
    assert_same_bits(ours, torchs)


def replace(net: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    if step == 4:
        net.second.weight = nn.Parameter(net.second.weight.detach() * 2)  # the optimiser keeps the old one


def freeze(net: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    net.first.bias.requires_grad_(step not in (4, 5))


def load(net: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    if step == 4:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        net.load_state_dict(pickle.loads(pickle.dumps(net.state_dict())))
        optimizer.param_groups[0]["lr"] *= 0.5
        net.second.weight.register_hook(lambda gradient: gradient * 3)


def move(net: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    net.to(torch.float64 if step == 3 else torch.float32).to(torch.float32)


def add_group(net: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    if step == 4:
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 1.0})
    optimizer.param_groups[-1]["params"][-1].grad = None


@pytest.mark.parametrize("meddle", [replace, freeze, load, move, add_group])
@pytest.mark.parametrize("name", ["adam", "adam_fused"])
def test_what_others_do_between_updates_counts(meddle: Callable[..., None], name: str) -> None:
    ours, torchs = (train(OPTIMIZERS[name], few_calls=few, meddle=meddle) for few in (True, False))
    assert_same_bits(ours, torchs)
    if meddle in (replace, freeze, load):
        alone = train(OPTIMIZERS[name], few_calls=True)
        assert not all(map(torch.equal, ours[0], alone[0]))


def test_hooks_schedulers_and_wrappers_of_an_optimiser_are_called() -> None:
    calls: list[str] = []
    weight = nn.Parameter(torch.ones(3))
    optimizer = ADAM([weight], fused=True)

    def update() -> None:
        clear_gradients(optimizer)
        run_backward(weight.sum())
        take_step(optimizer)

    update()
    handle = optimizer.register_step_post_hook(lambda *_: calls.append("hook"))
    update()
    handle.remove()
    both = register_optimizer_step_pre_hook(lambda *_: calls.append("every"))
    update()
    both.remove()
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)  # counts the steps by wrapping `step`
    update()
    optimizer.zero_grad = lambda: calls.append("zero_grad")  # type: ignore[method-assign, assignment]
    update()
    assert calls == ["hook", "every", "zero_grad"]
    assert optimizer.state[weight]["step"].item() == 5


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("max_grad_norm", [None, 0.01])
def test_a_flat_step_is_the_optimisers_own(kind: Any, max_grad_norm: float | None) -> None:
    """To rounding, beside steps that torch takes itself; names, shapes and steps stay the optimiser's."""
    torch.manual_seed(0)
    nets = [Net(), Net()]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [kind(net.parameters(), lr=0.01) for net in nets]
    inputs = torch.randn(9, 3)

    def torchs(place: int) -> None:
        optimizers[place].zero_grad()
        nets[place](inputs, 0).square().mean().backward()
        nn.utils.clip_grad_norm_(nets[place].parameters(), max_grad_norm or 1e9)
        optimizers[place].step()

    torchs(0), torchs(1)
    trained = [value for value in nets[0].parameters() if value.grad is not None]
    flat = FlatAdam(optimizers[0], trained)
    for _ in range(5):
        gradients = torch.autograd.grad(nets[0](inputs, 0).square().mean(), trained)
        flat.gradients[:] = np.concatenate([gradient.numpy().ravel() for gradient in gradients])
        flat.step(max_grad_norm)
        torchs(1)
        assert flat.is_current(optimizers[0])
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    torch.testing.assert_close(states[0], states[1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict(), rtol=1e-5, atol=1e-7)
    optimizers[0].load_state_dict(optimizers[1].state_dict())
    assert not flat.is_current(optimizers[0])
    flat = FlatAdam(optimizers[0], trained)
    flat.release()
    assert not flat.is_current(optimizers[0])
    assert nets[0].scale.untyped_storage().nbytes() == nets[1].scale.untyped_storage().nbytes()
    torchs(0), torchs(1)
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict(), rtol=1e-5, atol=1e-7)
