"""GAIL and AIRL: networks, rewards, absorbing states, training against expert data, options and tags."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch.nn import functional as F

from rlsmooth.agents.adversarial.airl import AIRL, log_probability
from rlsmooth.agents.adversarial.gail import GAIL
from rlsmooth.agents.adversarial.reward_envs import LearnedRewardVecEnv, can_defer
from rlsmooth.agents.adversarial.reward_nets import RewardNet, RunningNorm, ShapedRewardNet, Transitions
from rlsmooth.agents.adversarial.transitions import TransitionStore, expert_store
from rlsmooth.data import Demonstrations, cartpole_v1, record
from rlsmooth.training import accumulated_discriminator_step, discriminator_step
from support import assert_raises, read_events, recorded
from trainers import cartpole_ppo as ppo
from trainers import expert, transitions_of

BOX = spaces.Box(-1, 1, (3,))
ACTIONS = [spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), spaces.Box(-2, 2, (2,))]
OBSERVATIONS = [
    BOX,
    spaces.Discrete(5),
    spaces.Box(0, 255, (3, 36, 36), np.uint8),
    spaces.Dict({"place": BOX, "mode": spaces.Discrete(2)}),
]


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
    rows = transitions_of(observation_space, action_space)
    assert net(rows).shape == (5,)
    net.eval()
    absorbing = net(rows._replace(absorbing=torch.ones(5, dtype=torch.bool))).detach()
    assert float(absorbing.max() - absorbing.min()) < 1e-6  # whatever else the rows hold
    assert float((net(rows).detach() - absorbing[0]).abs().min()) > 1e-5


def test_the_shaped_score_is_its_formula() -> None:
    torch.manual_seed(0)
    net = ShapedRewardNet(RewardNet(BOX, spaces.Discrete(4)), gamma=0.9).eval()
    rows = transitions_of(BOX, spaces.Discrete(4))._replace(terminated=torch.tensor([True, False, False, False, False]))
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
    states, actions = np.zeros((10, 3), np.float32), np.zeros(10, np.int64)
    data = recorded(states, actions, BOX, spaces.Discrete(4), [4, 10], terminations=np.arange(10) == 3)
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
    assert not never_ended.terminations.any()
    trainer = GAIL(never_ended, ppo(gamma=0.9), absorbing_reward="learned", seed=0)
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


def test_an_expert_that_never_terminates_makes_counted_rewards_those_without_an_absorbing_state() -> None:
    """Bit for bit: nothing is taken off, and the network's batches are the same."""
    found = []
    for terminal_states in ("absorbing", "as_is"):
        trainer = GAIL(expert(), ppo(), terminal_states=terminal_states, seed=0).learn(256)  # type: ignore[arg-type]
        assert trainer.generated.terminated.any()
        found.append([*trainer.policy.parameters(), *trainer.reward_net.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("form", ["minus_log_one_minus_d", "log_d", "logit"])
@pytest.mark.parametrize(("real", "fake"), [(1.0, 0.0), (0.9, 0.1)])
@pytest.mark.parametrize("ratio", [0.2, 5.0, 0.0])
@pytest.mark.filterwarnings("ignore:fake_target")
def test_the_counted_logit_is_that_of_the_best_discriminator(form: Any, real: float, fake: float, ratio: float) -> None:
    short = record(lambda observation: 0, "CartPole-v1", 3, seed=0)  # all its episodes terminate
    options = {"reward_form": form, "real_target": real, "fake_target": fake}
    trainer = GAIL(short, ppo(gamma=0.9), seed=0, **options).learn(64)
    trainer.generated.absorbing_steps[:] = trainer.expert.absorbing_ratio() * ratio  # so often the generator terminates
    trainer.train_discriminator()
    sides = trainer.expert, trainer.generated
    seen = [side.absorbing_ratio(trainer._unseen_absorbing(side) if form == "logit" else 0.0) for side in sides]
    logits = np.linspace(-60, 60, 240_001)
    losses = sum(
        steps * (target * np.logaddexp(0, -logits) + (1 - target) * np.logaddexp(0, logits))
        for steps, target in zip(seen, (real, fake), strict=True)
    )
    bound = {"minus_log_one_minus_d": np.minimum, "log_d": np.maximum, "logit": lambda logit, _: logit}[form]
    expected = bound(logits[np.argmin(losses)], trainer.offset)
    if ratio or form != "log_d" or fake:  # else it is infinite
        assert trainer.absorbing_logit == pytest.approx(expected, abs=1e-3)
    # All else is the network's, and the absorbing state's reward is taken off every step.
    rows = trainer.generated.latest(32, 32)
    as_is = GAIL(short, ppo(), trainer.reward_net, terminal_states="as_is", **options)
    paid = as_is.predict_reward(*rows) - trainer.predict_reward(*rows)
    value = trainer.absorbing_logit - trainer.offset
    rewards = {"minus_log_one_minus_d": np.logaddexp(0, value), "log_d": -np.logaddexp(0, -value), "logit": value}
    np.testing.assert_allclose(paid, rewards[form], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "formula"),
    [("minus_log_one_minus_d", F.softplus), ("log_d", F.logsigmoid), ("logit", lambda logits: logits)],
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


@pytest.mark.parametrize(("gamma", "absorbing_reward"), [(0.9, "learned"), (0.99, "learned"), (0.99, "counted")])
def test_returns_are_those_with_the_absorbing_state_for_ever_but_for_one_constant(
    gamma: float, absorbing_reward: Any
) -> None:
    trainer = GAIL(expert(), ppo(gamma=gamma), absorbing_reward=absorbing_reward, seed=0)
    trainer.knows_absorbing, trainer.absorbing_logit = True, -0.5
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


def test_log_probabilities_of_sac_are_its_actors() -> None:
    sac = SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", policy_kwargs={"net_arch": [16]})
    seen = torch.randn(6, 3)
    scaled, expected = sac.actor.action_log_prob(seen)
    unscaled = torch.as_tensor(sac.policy.unscale_action(scaled.detach().numpy()))
    torch.testing.assert_close(log_probability(sac, seen, unscaled), expected.detach(), atol=1e-3, rtol=1e-3)


def test_airl_refuses_a_policy_with_memory() -> None:
    recurrent = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=16, device="cpu")
    assert_raises(TypeError, "without memory", AIRL, expert(), recurrent)


@pytest.mark.parametrize("trainer_class", [GAIL, AIRL])
def test_a_seeded_run_repeats_and_gives_the_environment_back(trainer_class: Any) -> None:
    found, tags, wrapped = [], set(), set()

    def note(local: dict[str, Any], _: Any) -> bool:
        tags.update(local["self"].logger.name_to_value)
        wrapped.add(isinstance(local["self"].env, LearnedRewardVecEnv))
        return True

    for _ in range(2):
        model = ppo()
        env = model.env
        trainer = trainer_class(expert(), model, demo_batch_size=32, real_target=0.9, seed=3).learn(384, note)
        assert model.env is env
        assert wrapped == {True}
        assert trainer.rounds == 3
        assert {"mean/disc/disc_acc_expert", "mean/disc/disc_loss"} <= tags
        found.append([*model.policy.parameters(), *trainer.reward_net.parameters()])
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


def test_a_replay_buffers_rewards_are_made_anew() -> None:
    model = SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", learning_starts=100, policy_kwargs={"net_arch": [16]})
    states, actions = np.zeros((20, 3), np.float32), np.ones((20, 1), np.float32)
    given = {"terminations": np.zeros(20, bool)}
    data = recorded(states, actions, model.observation_space, model.action_space, **given)
    trainer = GAIL(data, model, gen_train_timesteps=60, demo_batch_size=16, seed=0).learn(120)
    assert trainer.rounds == 2
    buffer: Any = model.replay_buffer
    actions = model.policy.unscale_action(buffer.actions[:120, 0])
    expected = trainer.predict_reward(
        buffer.observations[:120, 0], actions, buffer.next_observations[:120, 0], np.zeros(120, dtype=bool)
    )
    np.testing.assert_allclose(buffer.rewards[:120, 0], expected, rtol=1e-5)


def test_smoothed_fakes_warn_and_spaces_must_agree() -> None:
    with pytest.warns(UserWarning, match="vanishes"):
        GAIL(expert(), ppo(), fake_target=0.1, seed=0)
    model = PPO("MlpPolicy", "Pendulum-v1", device="cpu")
    assert_raises(ValueError, "demonstrations", GAIL, expert(), model, seed=0)


# ---- options, warnings, and the tags that imitation's users look for


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
    assert_raises(ValueError, "disc_learning_rate", GAIL, expert(), ppo(), disc_learning_rate=0.0)
    assert_raises(TypeError, "disc_opt_kwargs", GAIL, expert(), ppo(), disc_opt_kwargs={"beta": 1})
    wrong: Any = torch.nn.Linear
    assert_raises(TypeError, "disc_opt_cls", GAIL, expert(), ppo(), disc_opt_cls=wrong)


def test_a_minibatch_must_divide_the_batch() -> None:
    for size, message in ((48, r"=48 must divide demo_batch_size=64: try 32\."), (128, "=128")):
        given = {"demo_batch_size": 64, "demo_minibatch_size": size}
        assert_raises(ValueError, f"demo_minibatch_size{message}", GAIL, expert(), ppo(), **given)


def test_rounds_end_with_rollouts() -> None:
    with pytest.warns(UserWarning, match=r"gen_train_timesteps=200 is no multiple .* after 256 steps") as caught:
        trainer = GAIL(expert(), ppo(), gen_train_timesteps=200, demo_batch_size=16, seed=0)
    assert caught[0].filename == __file__
    assert trainer.learn(512).rounds == 2


def test_demonstrations_of_another_horizon_warn() -> None:
    data = cartpole_v1()

    def of_length(length: int, terminations: Any = None) -> Demonstrations:
        given = {"terminations": terminations, "next_observations": data.next_observations[:length]}
        parts = data.observations[:length], data.actions[:length], data.observation_space, data.action_space
        return recorded(*parts, **given)

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
    assert_raises(ValueError, "`absorbing` is True", GAIL, expert(), ppo(), Blind(), seed=0)
    net = Blind().train()
    GAIL(expert(), ppo(), net, terminal_states="as_is", demo_batch_size=16, seed=0).learn(128)
    assert_raises(ValueError, "`absorbing` is True", AIRL, expert(), ppo(), net, seed=0)
    assert not net.training


class OwnBuffer(RolloutBuffer):
    def add(self, *arguments: Any) -> None:
        super().add(*arguments)


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
    assert not can_defer(ppo(rollout_buffer_class=OwnBuffer), 128)
    assert not can_defer(DQN("MlpPolicy", "CartPole-v1", buffer_size=10, device="cpu"), 10_000)


def test_a_callback_may_stop_a_rollout_half_way() -> None:
    model = ppo()
    trainer = GAIL(expert(), model, demo_batch_size=16, seed=0)
    trainer.learn(1_000, lambda local, _: local["self"].num_timesteps < 200)
    assert (model.num_timesteps, trainer.rounds) == (200, 1)
    assert "compute_returns_and_advantage" not in vars(model.rollout_buffer)
    trainer.learn(256)
    assert trainer.rounds == 3
    assert np.isfinite(model.rollout_buffer.advantages).all()


def test_callbacks_see_no_rewards_before_they_are_made() -> None:
    model, seen = ppo(), []
    GAIL(expert(), model, demo_batch_size=16, seed=0).learn(128, lambda local, _: not seen.extend(local["rewards"]))
    assert set(seen) == {0.0}
    assert np.abs(model.rollout_buffer.rewards).min() > 0


@pytest.mark.parametrize("trainer_class", [GAIL, AIRL])
def test_tensorboard_has_imitations_tags(trainer_class: Any, tmp_path: Path) -> None:
    model = ppo(tensorboard_log=str(tmp_path))
    trainer_class(expert(), model, demo_batch_size=32, seed=0).learn(640)
    (folder,) = tmp_path.glob(f"{trainer_class.__name__}_*")
    events = read_events(folder)
    tags = set(events.Tags()["scalars"])
    names = ("loss", "acc", "acc_expert", "acc_gen", "entropy", "proportion_expert_true", "proportion_expert_pred")
    assert {f"mean/disc/disc_{name}" for name in names} <= tags
    assert {"mean/disc/n_expert", "mean/disc/n_generated"} <= tags
    names = ("ep_rew_mean", "ep_len_mean", "ep_rew_wrapped_mean")
    gen = {*(f"rollout/{name}" for name in names), "train/loss", "train/value_loss"}
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
