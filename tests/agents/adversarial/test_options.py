"""GAIL's and AIRL's options, what they warn of, and the tags that imitation's users look for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlsmooth.agents import AIRL, GAIL, RewardNet, ShapedRewardNet, Transitions
from rlsmooth.agents.adversarial.reward_envs import can_defer
from rlsmooth.data import Demonstrations, cartpole_v1
from rlsmooth.training import accumulated_discriminator_step, discriminator_step


def expert() -> Demonstrations:
    return cartpole_v1().sample_episodes(2, seed=0)


def ppo(**arguments: Any) -> PPO:
    given = {"n_steps": 64, "batch_size": 64, "n_epochs": 1, "seed": 0, "device": "cpu", **arguments}
    return PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2, seed=0), **given)


def of_length(length: int, terminations: Any = None) -> Demonstrations:
    data = cartpole_v1()
    return Demonstrations.from_arrays(
        data.observations[:length],
        data.actions[:length],
        observation_space=data.observation_space,
        action_space=data.action_space,
        episode_ends=[length],
        terminations=terminations,
        next_observations=data.next_observations[:length],
    )


@pytest.mark.parametrize("trainer_class", [GAIL, AIRL])
def test_minibatches_add_up_to_the_batch(trainer_class: Any) -> None:
    found = []
    for size in (None, 64, 16):
        model = ppo()
        spaces = model.observation_space, model.action_space
        net: Any = RewardNet(*spaces, normalize_inputs=False)  # running statistics would be of parts
        net.load_state_dict(found[0][0]) if found else None
        start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        trainer = trainer_class(
            expert(), model, net, demo_batch_size=64, demo_minibatch_size=size, disc_opt_cls=torch.optim.SGD, seed=0
        )
        trainer.learn(128)
        found.append((start, trainer.reward_net.state_dict(), trainer.train_discriminator()))
    assert not torch.equal(found[0][0]["layers.0.weight"], found[0][1]["layers.0.weight"])
    for _, parameters, statistics in found[1:]:
        for name, tensor in parameters.items():
            torch.testing.assert_close(tensor, found[0][1][name], rtol=1e-5, atol=1e-6)
        assert statistics == pytest.approx(found[0][2], rel=1e-5, abs=1e-6)


def test_parts_give_the_gradient_of_the_whole() -> None:
    logits = torch.linspace(-2, 2, 12)
    steps = []
    for parts in (1, 3):
        weight = torch.ones(1, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=1.0)
        pairs = ((weight * real, weight * -real) for real in logits.chunk(parts))
        if parts == 1:
            statistics = discriminator_step(optimizer, *next(pairs), real_target=0.9, max_grad_norm=0.1)
        else:
            statistics = accumulated_discriminator_step(optimizer, pairs, parts, real_target=0.9, max_grad_norm=0.1)
        steps.append([weight.detach(), *statistics])
    torch.testing.assert_close(steps[0], steps[1])
    assert float((1 - steps[0][0]).abs()) == pytest.approx(0.1, rel=1e-4)
    with pytest.raises(ValueError, match="num_parts=2, and 1 came"):
        accumulated_discriminator_step(torch.optim.SGD([weight], lr=1.0), [(weight, weight)], 2)


def test_the_optimiser_is_the_users() -> None:
    trainer = GAIL(expert(), ppo(), disc_opt_cls=torch.optim.AdamW, disc_opt_kwargs={"lr": 2e-3, "betas": (0.5, 0.9)})
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert trainer.optimizer.param_groups[0]["lr"] == 2e-3
    assert trainer.optimizer.param_groups[0]["betas"] == (0.5, 0.9)
    assert GAIL(expert(), ppo(), seed=0).optimizer.param_groups[0]["lr"] == 1e-3
    assert AIRL(expert(), ppo(), disc_learning_rate=0.5, seed=0).optimizer.param_groups[0]["lr"] == 0.5
    with pytest.raises(ValueError, match="give one of them"):
        GAIL(expert(), ppo(), disc_learning_rate=1e-3, disc_opt_kwargs={"lr": 2e-3})
    with pytest.raises(ValueError, match="disc_learning_rate"):
        GAIL(expert(), ppo(), disc_learning_rate=0.0)
    with pytest.raises(TypeError, match="disc_opt_kwargs"):
        GAIL(expert(), ppo(), disc_opt_kwargs={"beta": 1})
    wrong: Any = torch.nn.Linear
    with pytest.raises(TypeError, match="disc_opt_cls"):
        GAIL(expert(), ppo(), disc_opt_cls=wrong)


def test_a_minibatch_must_divide_the_batch() -> None:
    with pytest.raises(ValueError, match=r"demo_minibatch_size=48 must divide demo_batch_size=64: try 32\."):
        GAIL(expert(), ppo(), demo_batch_size=64, demo_minibatch_size=48)
    with pytest.raises(ValueError, match="demo_minibatch_size=128"):
        GAIL(expert(), ppo(), demo_batch_size=64, demo_minibatch_size=128)


def test_the_discriminator_needs_the_generators_rows() -> None:
    with pytest.raises(RuntimeError, match="call learn first"):
        GAIL(expert(), ppo(), seed=0).train_discriminator()


def test_rounds_end_with_rollouts() -> None:
    with pytest.warns(UserWarning, match=r"gen_train_timesteps=200 is no multiple .* after 256 steps") as caught:
        trainer = GAIL(expert(), ppo(), gen_train_timesteps=200, demo_batch_size=16, seed=0)
    assert caught[0].filename == __file__
    assert trainer.learn(512).rounds == 2


def test_demonstrations_of_another_horizon_warn() -> None:
    with pytest.warns(UserWarning, match="have no terminations, and episodes of 100 steps under a horizon of 500"):
        GAIL(of_length(100), ppo(), seed=0)
    with pytest.warns(UserWarning, match="up to 400 steps, and horizon is 300") as caught:
        GAIL(of_length(400, np.zeros(400, bool)), ppo(), horizon=300, seed=0)
    assert caught[0].filename == __file__
    GAIL(of_length(100, np.zeros(100, bool)), ppo(), seed=0)
    GAIL(of_length(100), ppo(), terminal_states="as_is", seed=0)


class Blind(torch.nn.Module):
    """Does not look whether a row is the absorbing state's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, rows: Transitions) -> torch.Tensor:
        assert isinstance(rows.observations, torch.Tensor)
        return self.layer(rows.observations)[:, 0]


def test_networks_that_know_no_absorbing_state_are_refused_where_there_is_one() -> None:
    with pytest.raises(ValueError, match="`absorbing` is True"):
        GAIL(expert(), ppo(), Blind(), seed=0)
    net = Blind().train()
    GAIL(expert(), ppo(), net, terminal_states="as_is", demo_batch_size=16, seed=0).learn(128)
    with pytest.raises(ValueError, match="`absorbing` is True"):
        AIRL(expert(), ppo(), net, seed=0)
    assert not net.training


def test_which_rollouts_can_wait_for_their_rewards() -> None:
    class Own(PPO):
        def collect_rollouts(self, *arguments: Any, **named: Any) -> bool:
            return super().collect_rollouts(*arguments, **named)

    model = ppo()
    assert can_defer(model, 128)
    assert not can_defer(model, 127)  # the store would forget rows before they are paid
    own = Own("MlpPolicy", "CartPole-v1", device="cpu")
    assert isinstance(own, OnPolicyAlgorithm)
    assert not can_defer(own, 10_000)
    assert not can_defer(DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu"), 10_000)


class StopAt(BaseCallback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        return self.num_timesteps < self.step


def test_a_callback_may_stop_a_rollout_half_way() -> None:
    model = ppo()
    trainer = GAIL(expert(), model, demo_batch_size=16, seed=0).learn(1_000, StopAt(200))
    assert (model.num_timesteps, trainer.rounds) == (200, 1)
    assert "compute_returns_and_advantage" not in vars(model.rollout_buffer)
    trainer.learn(256)
    assert trainer.rounds == 3
    assert np.isfinite(model.rollout_buffer.advantages).all()


class Seen(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.wrapped: list[float] = []

    def _on_step(self) -> bool:
        self.wrapped += [float(reward) for reward in self.locals["rewards"]]
        return True


def test_callbacks_see_no_rewards_before_they_are_made() -> None:
    seen = Seen()
    model = ppo()
    GAIL(expert(), model, demo_batch_size=16, seed=0).learn(128, seen)
    assert set(seen.wrapped) == {0.0}
    assert np.abs(model.rollout_buffer.rewards).min() > 0


@pytest.mark.parametrize("trainer_class", [GAIL, AIRL])
def test_tensorboard_has_imitations_tags(trainer_class: Any, tmp_path: Path) -> None:
    model = ppo(tensorboard_log=str(tmp_path))
    trainer_class(expert(), model, demo_batch_size=32, seed=0).learn(640)
    (folder,) = tmp_path.glob(f"{trainer_class.__name__}_*")
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    names = ("loss", "acc", "acc_expert", "acc_gen", "entropy", "proportion_expert_true", "proportion_expert_pred")
    assert {f"mean/disc/disc_{name}" for name in names} <= tags
    assert {"mean/disc/n_expert", "mean/disc/n_generated"} <= tags
    gen = (
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "rollout/ep_rew_wrapped_mean",
        "train/loss",
        "train/value_loss",
    )
    assert {f"mean/gen/{name}" for name in gen} <= tags
    # One value a round, each the mean of what the round had.
    for own, mean in (("train/value_loss", "mean/gen/train/value_loss"), ("rollout/ep_rew_mean",) * 2):
        values = [event.value for event in events.Scalars(own)]
        assert [event.value for event in events.Scalars(mean)] == pytest.approx(values)
    true = [event.value for event in events.Scalars("rollout/ep_rew_mean")]
    # CartPole pays 1 a step: the true return is the length, whatever the network pays.
    assert true == pytest.approx([event.value for event in events.Scalars("rollout/ep_len_mean")])
    share = [event.value for event in events.Scalars("mean/disc/disc_proportion_expert_true")]
    assert share == [0.5] * 5  # the last round too
    assert all(0 < event.value < 2 * math.log(2) for event in events.Scalars("mean/disc/disc_loss"))


def test_the_recovered_reward_is_without_shaping() -> None:
    trainer = AIRL(expert(), ppo(), demo_batch_size=32, real_target=0.9, seed=0).learn(256)
    rows = trainer.generated.latest(64, 64)
    net = trainer.reward_net
    assert isinstance(net, ShapedRewardNet)
    drawn = Transitions(*(torch.as_tensor(part) for part in rows))
    with torch.no_grad():
        expected = net.reward(drawn) - net.reward(trainer._absorbing)
    np.testing.assert_allclose(trainer.reward_function(*rows), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(trainer.predict_reward(*rows) - trainer.reward_function(*rows)).max() > 1e-3
    gail = GAIL(expert(), ppo(), demo_batch_size=32, seed=0).learn(128)
    np.testing.assert_array_equal(gail.reward_function(*rows), gail.predict_reward(*rows))
