"""GAIL and AIRL: networks, rewards, absorbing states, and training against expert data."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch.nn import functional as F

from rlsmooth.agents.adversarial.airl import AIRL, log_probability
from rlsmooth.agents.adversarial.gail import GAIL
from rlsmooth.agents.adversarial.reward_envs import LearnedRewardVecEnv
from rlsmooth.agents.adversarial.reward_nets import RewardNet, RunningNorm, ShapedRewardNet, Transitions
from rlsmooth.agents.adversarial.transitions import TransitionStore, expert_store
from rlsmooth.data import Demonstrations, cartpole_v1, record

BOX = spaces.Box(-1, 1, (3,))
ACTIONS = [
    spaces.Discrete(4),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
    spaces.Box(-2, 2, (2,)),
]
OBSERVATIONS = [
    BOX,
    spaces.Discrete(5),
    spaces.Box(0, 255, (3, 36, 36), np.uint8),
    spaces.Dict({"place": BOX, "mode": spaces.Discrete(2)}),
]


def expert() -> Demonstrations:
    return cartpole_v1().sample_episodes(2, seed=0)


def ppo(**arguments: Any) -> PPO:
    given = {"n_steps": 64, "batch_size": 64, "n_epochs": 2, "seed": 0, "device": "cpu", **arguments}
    return PPO("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2, seed=0), **given)


def rows_of(observation_space: spaces.Space[Any], action_space: spaces.Space[Any], count: int = 5) -> Transitions:
    observation_space.seed(0)
    action_space.seed(0)

    def observations() -> Any:
        drawn = [observation_space.sample() for _ in range(count)]
        if isinstance(observation_space, spaces.Dict):
            return {key: torch.as_tensor(np.stack([row[key] for row in drawn])) for key in drawn[0]}
        return torch.as_tensor(np.stack(drawn))

    actions = torch.as_tensor(np.stack([action_space.sample() for _ in range(count)]))
    nothing = torch.zeros(count, dtype=torch.bool)
    return Transitions(observations(), actions, observations(), nothing, nothing)


def test_running_statistics_are_those_of_all_rows_together() -> None:
    values = torch.randn(30, 4) * 3 + 5
    left_out = torch.arange(30) % 5 == 0
    norm = RunningNorm(4)
    for start in range(0, 30, 10):
        norm(values[start : start + 10], left_out[start : start + 10])
    kept = values[~left_out]
    torch.testing.assert_close(norm.mean, kept.mean(0))
    torch.testing.assert_close(norm.variance, kept.var(0, unbiased=False))
    norm.eval()
    torch.testing.assert_close(norm(kept).mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    before = norm.count.clone()
    norm(values)
    assert norm.count == before


@pytest.mark.parametrize("action_space", ACTIONS, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("observation_space", OBSERVATIONS, ids=lambda space: type(space).__name__)
def test_every_space_has_a_score_and_the_absorbing_state_one_of_its_own(
    observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> None:
    torch.manual_seed(0)
    net = RewardNet(observation_space, action_space, use_next_state=True, use_done=True)
    rows = rows_of(observation_space, action_space)
    assert net(rows).shape == (5,)
    net.eval()
    absorbing = net(rows._replace(absorbing=torch.ones(5, dtype=torch.bool))).detach()
    assert float(absorbing.max() - absorbing.min()) < 1e-6  # whatever else the rows hold
    assert float((net(rows).detach() - absorbing[0]).abs().min()) > 1e-5


def test_a_net_needs_an_input() -> None:
    with pytest.raises(ValueError, match="use_state"):
        RewardNet(BOX, spaces.Discrete(2), use_state=False, use_action=False)


def test_the_shaped_score_is_its_formula() -> None:
    torch.manual_seed(0)
    net = ShapedRewardNet(RewardNet(BOX, spaces.Discrete(4)), gamma=0.9).eval()
    rows = rows_of(BOX, spaces.Discrete(4))._replace(terminated=torch.tensor([True, False, False, False, False]))
    plain = rows._replace(terminated=torch.zeros(5, dtype=torch.bool), absorbing=None)
    here, after = net.potential(plain), net.potential(plain._replace(observations=rows.next_observations))
    expected = net.reward(rows) + 0.9 * after * ~rows.terminated - here
    torch.testing.assert_close(net(rows), expected)
    absorbing = rows._replace(absorbing=torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(net(absorbing), net.reward(absorbing))


def test_a_store_keeps_the_newest_rows_and_gives_them_back() -> None:
    store = TransitionStore(BOX, spaces.Discrete(4), 4)
    for number in range(6):
        row = np.full((1, 3), number, np.float32)
        store.add(row, np.array([number % 4]), row, np.array([False]), np.zeros(1))
    assert sorted(store.observations[:, 0].tolist()) == [2, 3, 4, 5]
    other = TransitionStore(BOX, spaces.Discrete(4), 4)
    other.set_state(store.state())
    draw = [each.sample(16, np.random.default_rng(0), torch.device("cpu"))[0] for each in (store, other)]
    torch.testing.assert_close(draw[0].observations, draw[1].observations)
    with pytest.raises(ValueError, match="no transitions"):
        TransitionStore(BOX, spaces.Discrete(4), 4).sample(1, np.random.default_rng(0), torch.device("cpu"))


def test_terminated_demonstrations_are_padded_to_the_horizon() -> None:
    data = Demonstrations.from_arrays(
        np.zeros((10, 3), np.float32),
        np.zeros(10, np.int64),
        observation_space=BOX,
        action_space=spaces.Discrete(4),
        episode_ends=[4, 10],
        terminations=np.arange(10) == 3,
    )
    store = expert_store(data, BOX, horizon=34, needs_next=False)
    assert store.absorbing_steps.sum() == 30  # the second episode was cut off, not ended
    rows, _ = store.sample(4_000, np.random.default_rng(0), torch.device("cpu"))
    assert float(rows.absorbing.float().mean()) == pytest.approx(0.75, abs=0.03)
    discounted = expert_store(data, BOX, horizon=34, needs_next=False, gamma=0.9)
    assert discounted.absorbing_steps.sum() == pytest.approx(sum(0.9**step for step in range(30)))
    with pytest.warns(UserWarning, match="2 in all"):
        assert len(expert_store(data, BOX, horizon=None, needs_next=True)) == 8  # next rows stand for next observations


def test_the_generators_terminated_episodes_are_padded_by_what_the_discount_leaves_of_the_horizon() -> None:
    trainer = GAIL(expert(), ppo(gamma=0.995), gen_replay_buffer_capacity=256, seed=0).learn(256)
    store, expected = trainer.generated, np.zeros(256)
    for env in range(2):  # the rows of two environments alternate; so weak a policy never reaches the time limit
        ends = np.flatnonzero(store.terminated[env::2])
        lengths = np.diff(ends, prepend=-1)
        assert len(set(lengths)) > 2
        expected[2 * ends + env] = [sum(0.995**step for step in range(500 - length)) for length in lengths]
    np.testing.assert_allclose(store.absorbing_steps, expected, rtol=1e-9)


def test_an_absorbing_state_that_one_side_knows_is_seen_once_more_by_both() -> None:
    never_ended = expert()
    assert never_ended.terminations is not None
    assert not never_ended.terminations.any()
    trainer = GAIL(never_ended, ppo(gamma=0.9), seed=0)
    rows = never_ended.observations[:4], never_ended.actions[:4], never_ended.observations[:4], np.zeros(4, bool)
    as_is = GAIL(never_ended, ppo(gamma=0.9), terminal_states="as_is", seed=0)
    # Nobody has ended: nothing is known of the absorbing state, and its untrained score is not taken off.
    assert trainer._unseen_absorbing(trainer.expert) == 0
    np.testing.assert_array_equal(trainer.predict_reward(*rows), as_is.predict_reward(*rows))
    trainer.learn(256)
    assert trainer.generated.has_absorbing
    whole = sum(0.9**step for step in range(500))
    assert trainer._unseen_absorbing(trainer.expert) == pytest.approx(whole)
    share = len(trainer.generated) / len(trainer.expert)  # two sides that do the same have the same share
    assert trainer._unseen_absorbing(trainer.generated) == pytest.approx(whole * share)
    drawn, _ = trainer.expert.sample(20_000, np.random.default_rng(0), torch.device("cpu"), more_absorbing=whole)
    assert float(drawn.absorbing.float().mean()) == pytest.approx(whole / (len(never_ended) + whole), rel=0.15)
    trainer.generated.absorbing_steps[:] = 0  # no episode of the latest rows ended: it is still known
    assert trainer._unseen_absorbing(trainer.expert) > 0
    assert as_is.learn(256)._unseen_absorbing(as_is.expert) == 0


@pytest.mark.parametrize(
    ("form", "formula"),
    [
        ("minus_log_one_minus_d", F.softplus),
        ("log_d", F.logsigmoid),
        ("logit", lambda logits: logits),
    ],
)
@pytest.mark.parametrize("real_target", [1.0, 0.9])
def test_gails_reward_is_of_the_logit_less_the_equilibriums(form: Any, formula: Any, real_target: float) -> None:
    trainer = GAIL(expert(), ppo(), reward_form=form, real_target=real_target, seed=0)
    rows, _ = trainer.expert.sample(8, np.random.default_rng(0), torch.device("cpu"))
    trainer.reward_net.eval()
    offset = math.log(real_target / (2 - real_target))
    torch.testing.assert_close(trainer.reward(rows), formula(trainer.reward_net(rows) - offset))
    assert GAIL(expert(), ppo(), real_target=0.9, correct_offset=False, seed=0).offset == 0


class Constant(torch.nn.Module):
    """The same logit everywhere, another one in the absorbing state."""

    def __init__(self, logit: float, absorbing: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([float(logit), float(absorbing)]))

    def forward(self, rows: Transitions) -> torch.Tensor:
        assert rows.absorbing is not None
        return torch.where(rows.absorbing, self.weight[1], self.weight[0])


def test_the_absorbing_states_reward_is_taken_off_every_step() -> None:
    states, actions = np.zeros((2, 4), np.float32), np.zeros(2, np.int64)
    ends = np.array([False, True])
    as_is = GAIL(expert(), ppo(), Constant(0, 0), terminal_states="as_is", seed=0)
    np.testing.assert_allclose(as_is.predict_reward(states, actions, states, ends), math.log(2), rtol=1e-6)
    # A discriminator that knows nothing pays neither for going on nor for ending.
    for form in ("minus_log_one_minus_d", "log_d", "logit"):
        knows_nothing = GAIL(expert(), ppo(), Constant(0, 0), reward_form=form, seed=0)
        assert knows_nothing.horizon == 500
        knows_nothing.knows_absorbing = True
        np.testing.assert_array_equal(knows_nothing.predict_reward(states, actions, states, ends), [0, 0])
    alive_trainer = GAIL(expert(), ppo(), Constant(0.5, -2.0), seed=0)
    alive_trainer.knows_absorbing = True
    alive = alive_trainer.predict_reward(states, actions, states, ends)
    np.testing.assert_allclose(alive, math.log1p(math.exp(0.5)) - math.log1p(math.exp(-2.0)), rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.9, 0.99])
def test_returns_are_those_with_the_absorbing_state_for_ever_but_for_one_constant(gamma: float) -> None:
    trainer = GAIL(expert(), ppo(gamma=gamma), seed=0)
    trainer.knows_absorbing = True
    rows, _ = trainer.expert.sample(40, np.random.default_rng(0), torch.device("cpu"))
    arrays = [np.asarray(part) for part in (rows.observations, rows.actions, rows.next_observations)]
    with torch.no_grad():
        plain = trainer.reward(rows).numpy().astype(np.float64)
        absorbing = float(trainer.reward(trainer._absorbing))
    differences = []
    for length in (1, 7, 40):
        ends = np.arange(40) == length - 1
        paid = trainer.predict_reward(*arrays, ends)[:length]
        discounts = gamma ** np.arange(length)
        for_ever = discounts @ plain[:length] + gamma**length / (1 - gamma) * absorbing
        differences.append(for_ever - discounts @ paid)
    np.testing.assert_allclose(differences, absorbing / (1 - gamma), rtol=1e-4)


@pytest.mark.parametrize("trainer_class", [GAIL, AIRL])
def test_rewards_made_in_one_pass_are_those_of_each_step(trainer_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for is_deferred in (True, False):
        monkeypatch.setattr("rlsmooth.agents.adversarial.trainer.can_defer", lambda *_, answer=is_deferred: answer)
        model = ppo(n_epochs=1)
        trainer = trainer_class(expert(), model, demo_batch_size=32, seed=0)
        trainer.knows_absorbing = True  # else what is paid changes with the first end, in the middle of a rollout
        trainer.learn(256)
        assert "compute_returns_and_advantage" not in vars(model.rollout_buffer)
        buffer = model.rollout_buffer
        found.append([buffer.rewards, buffer.advantages, *(each.detach() for each in trainer.reward_net.parameters())])
    for first, second in zip(*found, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4)
    assert np.abs(found[0][0]).min() > 0


def test_log_probabilities_are_the_policys_own() -> None:
    model = ppo()
    observations = torch.randn(6, 4)
    actions, _, expected = model.policy(observations)
    torch.testing.assert_close(log_probability(model, observations, actions), expected.detach())
    sac = SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [16]})
    seen = torch.randn(6, 3)
    scaled, expected = sac.actor.action_log_prob(seen)
    unscaled = torch.as_tensor(sac.policy.unscale_action(scaled.detach().numpy()))
    torch.testing.assert_close(log_probability(sac, seen, unscaled), expected.detach(), atol=1e-3, rtol=1e-3)


def test_airl_refuses_what_has_no_log_probability() -> None:
    model = DQN("MlpPolicy", "CartPole-v1", device="cpu", buffer_size=100)
    with pytest.raises(TypeError, match="log-probability"):
        AIRL(expert(), model)
    recurrent = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=16, device="cpu")
    with pytest.raises(TypeError, match="without memory"):
        AIRL(expert(), recurrent)


@pytest.mark.parametrize("trainer_class", [GAIL, AIRL])
def test_masks_are_kept_with_what_was_done_under_them(trainer_class: Any) -> None:
    env = make_vec_env("rlsmooth/IdentityMasked-v0", n_envs=2, seed=0)
    model = MaskablePPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    data = record(model, "rlsmooth/IdentityMasked-v0", 3, seed=0)
    trainer = trainer_class(data, model, demo_batch_size=32, seed=0).learn(128)
    assert trainer.rounds == 2
    masks = trainer.generated.masks
    assert not masks.all()
    assert masks[np.arange(64), trainer.generated.actions].all()
    assert all(parameter.isfinite().all() for parameter in trainer.reward_net.parameters())


class Tags(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, float] = {}
        self.wrapped = False

    def _on_step(self) -> bool:
        self.wrapped |= isinstance(self.training_env, LearnedRewardVecEnv)
        self.seen |= self.logger.name_to_value
        return True


@pytest.mark.parametrize("trainer_class", [GAIL, AIRL])
def test_a_seeded_run_repeats_and_gives_the_environment_back(trainer_class: Any) -> None:
    found = []
    for _ in range(2):
        model, tags = ppo(), Tags()
        env = model.env
        trainer = trainer_class(expert(), model, demo_batch_size=32, real_target=0.9, seed=3).learn(384, tags)
        assert model.env is env
        assert tags.wrapped
        assert trainer.rounds == 3
        assert {"mean/disc/disc_acc_expert", "mean/disc/disc_loss"} <= set(tags.seen)
        found.append([*model.policy.parameters(), *trainer.reward_net.parameters()])
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


def test_a_replay_buffers_rewards_are_made_anew() -> None:
    model = SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", learning_starts=100, policy_kwargs={"net_arch": [16]})
    data = Demonstrations.from_arrays(
        np.zeros((20, 3), np.float32),
        np.ones((20, 1), np.float32),
        observation_space=gym.make("Pendulum-v1").observation_space,
        action_space=model.action_space,
        episode_ends=[20],
        terminations=np.zeros(20, bool),
    )
    trainer = GAIL(data, model, gen_train_timesteps=60, demo_batch_size=16, seed=0).learn(120)
    assert trainer.rounds == 2
    buffer: Any = model.replay_buffer
    actions = model.policy.unscale_action(buffer.actions[:120, 0])
    expected = trainer.predict_reward(
        buffer.observations[:120, 0], actions, buffer.next_observations[:120, 0], np.zeros(120, dtype=bool)
    )
    np.testing.assert_allclose(buffer.rewards[:120, 0], expected, rtol=1e-5)


def test_the_discriminator_sees_raw_observations_under_vec_normalize() -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0))
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    trainer = AIRL(expert(), model, demo_batch_size=32, seed=0).learn(128)
    assert model.env is env
    lengths = np.abs(trainer.generated.observations[:, 2])
    assert lengths.max() < 0.42  # pole angles in radians, not in standard deviations


def test_smoothed_fakes_warn_and_spaces_must_agree() -> None:
    with pytest.warns(UserWarning, match="vanishes"):
        GAIL(expert(), ppo(), fake_target=0.1, seed=0)
    model = PPO("MlpPolicy", "Pendulum-v1", device="cpu")
    with pytest.raises(ValueError, match="demonstrations"):
        GAIL(expert(), model, seed=0)
