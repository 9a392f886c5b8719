"""GAIL, AIRL and reward networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3 import DQN, SAC
from torch import nn

from frozen_cases.algorithms import BUFFER, FEW, algorithm, algorithm_answers, checkpoints, of_algorithm
from frozen_cases.common import (
    CARTPOLE,
    MASKED,
    PENDULUM,
    File,
    Run,
    Tensors,
    of_arrays,
    of_module,
    of_optimizer,
    uniform,
)
from frozen_cases.data import cartpole_data, identity_data, pendulum_data
from rlsmooth.agents import (
    AIRL,
    GAIL,
    RewardNet,
    ShapedRewardNet,
    SmoothedMaskablePPO,
    SmoothedPPO,
    Transitions,
    load_reward_net,
    save_reward_net,
)
from rlsmooth.data import Demonstrations


def of_imitation(trainer: Any) -> Tensors:
    found = of_algorithm(trainer.gen_algo) | of_module("reward", trainer.reward_net)
    return found | of_optimizer("reward_optimizer", trainer.optimizer) | of_arrays({"rounds": trainer.rounds})


LEARNED = {"absorbing_reward": "learned"}  # what the files, which lack the argument, were made with

IMITATIONS: dict[str, tuple[Any, Callable[[], Demonstrations], Callable[[], Any], dict[str, Any]]] = {
    # name: class, demonstrations, algorithm, arguments
    "gail": (
        GAIL,
        cartpole_data,
        lambda: algorithm(SmoothedPPO, CARTPOLE, normalises=True, target_entropy_frac=0.9, **FEW),
        {"real_target": 0.9, "terminal_states": "absorbing", "gen_replay_buffer_capacity": 50} | LEARNED,
    ),
    "gail_dqn": (
        GAIL,
        cartpole_data,
        lambda: algorithm(DQN, CARTPOLE, train_freq=2, **BUFFER),
        {"reward_form": "log_d", "disc_learning_rate": 0.01} | LEARNED,
    ),
    "airl": (
        AIRL,
        identity_data,
        lambda: algorithm(SmoothedMaskablePPO, MASKED, smoothing=0.1, **FEW),
        {"disc_opt_cls": torch.optim.RMSprop, "horizon": 10},
    ),
    "airl_sac": (AIRL, pendulum_data, lambda: algorithm(SAC, PENDULUM, train_freq=2, **BUFFER), {}),
}


def make_imitation(name: str) -> Any:
    trainer_class, data, build, arguments = IMITATIONS[name]
    model = build()
    if trainer_class is AIRL:
        reward = RewardNet(model.observation_space, model.action_space, net_arch=[4], use_action=True)
        net: nn.Module = ShapedRewardNet(reward, gamma=0.9, potential_net_arch=[4])
    else:
        net = RewardNet(model.observation_space, model.action_space, net_arch=[4], use_done=True)
    given = {"demo_batch_size": 8, "gen_train_timesteps": 32, "seed": 0, **arguments}
    return trainer_class(data(), model, net, **given)


def imitation_file(name: str) -> File:
    trainer_class, data, build, _ = IMITATIONS[name]

    def train_on(trainer: Any) -> Tensors:
        trainer.gen_algo.set_random_seed(3)
        return of_imitation(trainer.learn(32, reset_num_timesteps=False))

    return File(
        write=lambda folder: make_imitation(name).learn(64).save(folder / "trainer"),
        read=lambda folder: trainer_class.load(folder / "trainer.zip", data(), build()),
        kept=of_imitation,
        answers=lambda trainer: algorithm_answers(trainer.gen_algo),
        train_on=train_on,
    )


def imitation_run(name: str, total: int = 160, cut: int = 110) -> Run:
    trainer_class, data, build, _ = IMITATIONS[name]

    def start(folder: Path | None) -> Any:
        return make_imitation(name).learn(total, checkpoints(folder, cut))

    def resume(folder: Path) -> Any:
        run = trainer_class.resume(folder, data(), build().get_env(), device="cpu")
        assert run.is_exact
        assert 0 < run.remaining_timesteps < total
        return run.trainer.learn(run.remaining_timesteps, run.callback, reset_num_timesteps=False)

    return Run(start, resume, of_imitation)


def reward_net(*, is_shaped: bool) -> RewardNet | ShapedRewardNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = RewardNet(spaces.Box(-1, 1, (3,)), spaces.Discrete(4), net_arch=[8], use_next_state=True, use_done=True)
        chosen = ShapedRewardNet(net, gamma=0.9, potential_net_arch=[4]) if is_shaped else net
        chosen.train()(transitions())
    return chosen


def transitions() -> Transitions:
    states = torch.from_numpy(uniform(8, 3)), torch.from_numpy(uniform(8, 3, seed=1))
    flags = torch.arange(8) == 5, torch.arange(8) == 6
    return Transitions(states[0], torch.arange(8) % 4, states[1], *flags)


def reward_file(*, is_shaped: bool) -> File:
    return File(
        write=lambda folder: save_reward_net(reward_net(is_shaped=is_shaped), folder / "net"),
        read=lambda folder: load_reward_net(folder / "net"),
        kept=lambda net: of_module("net", net),
        answers=lambda net: {"rewards": net(transitions()).detach()},
    )


FILES: dict[str, File] = {
    **{name: imitation_file(name) for name in IMITATIONS},
    "reward_net": reward_file(is_shaped=False),
    "shaped_reward_net": reward_file(is_shaped=True),
}
RUNS: dict[str, Run] = {f"run_{name}": imitation_run(name) for name in ("gail", "gail_dqn", "airl")}
