"""The behaviours that imitation's `tests/algorithms/test_adversarial.py` checks, of our `GAIL` and `AIRL`.

Which behaviour is whose test, and what differs: docs/imitation-tests.md."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from rlsmooth.agents import AIRL, GAIL, RewardNet, ShapedRewardNet
from rlsmooth.agents.adversarial.airl import log_probability
from rlsmooth.data import Demonstrations, cartpole_v1, record
from rlsmooth.training.discriminator import discriminator_loss, discriminator_statistics
from support import assert_raises, recorded

KINDS = {"airl-ppo": (AIRL, PPO), "gail-ppo": (GAIL, PPO), "gail-dqn": (GAIL, DQN)}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_batch_size = pytest.mark.parametrize("batch_size", [1, 128])
ROUND = 64


def first_rows(count: int) -> Demonstrations:
    """The expert's first `count` transitions, as one episode."""
    batch = cartpole_v1()[:count]
    given = {"next_observations": batch.next_observations, "terminations": np.zeros(count, dtype=bool)}
    spaces = cartpole_v1().observation_space, cartpole_v1().action_space
    return recorded(batch.observations, batch.actions, *spaces, **given)


def generator(model_class: Any, env_id: str = "CartPole-v1", *, n_envs: int = 1, parallel: bool = False) -> Any:
    kind = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}} if parallel else {}
    env = make_vec_env(env_id, n_envs, seed=0, **kind)  # type: ignore[arg-type]
    assert isinstance(env, SubprocVecEnv if parallel else DummyVecEnv)
    if model_class is PPO:
        return PPO("MlpPolicy", env, n_steps=ROUND // n_envs, batch_size=32, n_epochs=2, seed=0, device="cpu")
    return model_class("MlpPolicy", env, buffer_size=1000, learning_starts=16, seed=0, device="cpu")


def make(kind: str, demonstrations: Demonstrations | None = None, *, model: Any = None, **arguments: Any) -> Any:
    trainer_class, model_class = KINDS[kind]
    given = {"demo_batch_size": 32, "gen_train_timesteps": ROUND, "seed": 0, **arguments}
    return trainer_class(demonstrations or first_rows(400), model or generator(model_class), **given)


def add_generated(trainer: Any, count: int) -> None:
    """What a generator that acts at random would have added to the store."""
    seen = record(lambda observation: int(observation[1] > 0), "CartPole-v1", 20, seed=3)[:count]
    nothing = np.zeros(count, dtype=bool)
    trainer.generated.add(seen.observations, seen.actions, seen.next_observations, nothing, np.zeros(count))


def test_airl_refuses_a_policy_without_log_probabilities_at_once() -> None:
    assert_raises(TypeError, "has no log-probability", AIRL, first_rows(20), generator(DQN), demo_batch_size=20)


@each_kind
def test_a_discriminator_without_generated_rows_is_an_error(kind: str) -> None:
    assert_raises(RuntimeError, "call learn first", make(kind).train_discriminator)


@each_kind
@pytest.mark.parametrize("rows", [5, 400])
def test_both_sides_always_have_as_many_rows(kind: str, rows: int) -> None:
    """imitation refuses sides of other sizes, and batches above the data. Here rows are drawn, again if need be."""
    trainer = make(kind, first_rows(rows), demo_batch_size=50, gen_replay_buffer_capacity=100)
    add_generated(trainer, 7)
    found = trainer.train_discriminator()
    assert found["n_expert"] == found["n_generated"] == 50
    assert found["disc_proportion_expert_true"] == 0.5


@each_batch_size
@pytest.mark.parametrize("parallel", [True, False], ids=["processes", "one process"])
@each_kind
def test_a_round_of_both_ends_well(kind: str, parallel: bool, batch_size: int) -> None:
    model = generator(KINDS[kind][1], n_envs=2, parallel=parallel)
    trainer = make(kind, model=model, demo_batch_size=batch_size)
    before = [parameter.clone() for parameter in (*trainer.reward_net.parameters(), *model.policy.parameters())]
    trainer.learn(2 * ROUND)
    assert trainer.rounds == 2
    found = trainer.train_discriminator()
    assert all(math.isfinite(value) for value in found.values())
    after = [*trainer.reward_net.parameters(), *model.policy.parameters()]
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert all(parameter.isfinite().all() for parameter in after)
    model.env.close()


@torch.no_grad()
def loss_on_all_rows(trainer: Any, rows: int) -> float:
    trainer.reward_net.eval()
    sides = []
    for store in (trainer.expert, trainer.generated):
        drawn, _ = store.sample(10 * rows, np.random.default_rng(0), torch.device("cpu"))
        sides.append(trainer.logits(drawn, None))
    return float(discriminator_loss(*sides))


@each_batch_size
@each_kind
def test_three_updates_make_the_discriminator_better(kind: str, batch_size: int) -> None:
    given: dict[str, Any] = {"demo_batch_size": batch_size, "gen_replay_buffer_capacity": batch_size}
    given |= {"n_disc_updates_per_round": 1}
    trainer = make(kind, first_rows(batch_size), **given)
    add_generated(trainer, batch_size)
    trainer.train_discriminator()  # standardises by the rows that it has seen: from here on they stay the same
    start = loss_on_all_rows(trainer, batch_size)
    found = [trainer.train_discriminator() for _ in range(3)]
    assert loss_on_all_rows(trainer, batch_size) < start
    if batch_size == 1:  # the same two rows each time
        assert found[2]["disc_loss"] < found[0]["disc_loss"]


@each_kind
def test_two_half_batches_are_one_batch(kind: str) -> None:
    pair = []
    for size in (None, 3):
        model = generator(KINDS[kind][1])
        with torch.random.fork_rng():
            torch.manual_seed(7)
            # Running statistics see one half batch before the other; without them the halves add up.
            net: Any = RewardNet(model.observation_space, model.action_space, normalize_inputs=False)
            if kind == "airl-ppo":
                net = ShapedRewardNet(net, gamma=0.99)
        arguments: dict[str, Any] = {"demo_batch_size": 6, "n_disc_updates_per_round": 1, "demo_minibatch_size": size}
        # Not Adam, whose steps do not tell a gradient from twice the gradient.
        arguments |= {"disc_opt_cls": torch.optim.SGD, "disc_learning_rate": 0.1}
        pair.append(make(kind, model=model, reward_net=net, **arguments))
    for trainer in pair:
        add_generated(trainer, ROUND)
    for step in range(8):
        statistics = [trainer.train_discriminator() for trainer in pair]
        assert statistics[0] == pytest.approx(statistics[1], rel=1e-4, abs=1e-5)
        tolerance: dict[str, Any] = {"atol": (1 + step) * 2e-4, "rtol": (1 + step) * 1e-5}  # imitation's
        torch.testing.assert_close(*(trainer.reward_net.state_dict() for trainer in pair), **tolerance)
    assert_raises(ValueError, "demo_minibatch_size", make, kind, demo_batch_size=6, demo_minibatch_size=4)


@pytest.mark.parametrize("count", [2, 4, 10])
@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("kind", ["airl-ppo", "gail-ppo"])
def test_logits_of_random_transitions(kind: str, env_id: str, count: int) -> None:
    """AIRL asks the policy for its log-probabilities by itself: nobody can forget to hand them over."""
    model = generator(PPO, env_id)
    space = model.action_space
    space.seed(0)
    trainer = make(kind, record(lambda observation: space.sample(), env_id, 2, seed=0), model=model)
    rows, _ = trainer.expert.sample(count, np.random.default_rng(0), torch.device("cpu"))
    trainer.reward_net.eval()
    logits = trainer.logits(rows, None)
    assert logits.shape == (count,)
    assert logits.isfinite().all()
    scores = trainer.reward_net(rows)
    if kind == "airl-ppo":
        with torch.no_grad():
            _, log_probabilities, _ = model.policy.evaluate_actions(rows.observations, rows.actions)
        torch.testing.assert_close(log_probability(model, rows.observations, rows.actions), log_probabilities)
        scores = scores - log_probabilities.masked_fill(rows.absorbing, 0.0)
    torch.testing.assert_close(logits, scores)


@pytest.mark.parametrize("count", [0, 1, 10, 40])
def test_the_statistics_are_numbers_whatever_the_batch(count: int) -> None:
    draw = np.random.default_rng(count)
    real = draw.integers(0, 2, count).astype(bool)
    logits = torch.from_numpy(draw.standard_normal(count) * 10)
    found = discriminator_statistics(logits[real], logits[~real], torch.tensor(draw.random() * 10))
    for name, value in found._asdict().items():
        assert isinstance(float(value), float), name
    if count == 40:
        right = np.where(real, logits.numpy() >= 0, logits.numpy() < 0)
        assert float(found.accuracy) == pytest.approx(right.mean())
        assert float(found.accuracy_real) == pytest.approx(right[real].mean())
        assert float(found.share_predicted_real) == pytest.approx((logits.numpy() >= 0).mean())


def test_gail_with_sac_on_every_device(device: torch.device) -> None:
    """imitation's crashed on the GPU (its issue 655): arrays and tensors of two devices met."""
    data = record(lambda observation: -observation[2:] / 8, "Pendulum-v1", 2, seed=0)
    model = SAC("MlpPolicy", "Pendulum-v1", learning_starts=4, batch_size=8, seed=0, device=device)
    trainer = GAIL(data, model, demo_batch_size=1024, gen_train_timesteps=8, seed=0).learn(16)
    assert trainer.rounds == 2
    assert {parameter.device.type for parameter in trainer.reward_net.parameters()} == {device.type}
