"""Cloning from observation: spaces, masks, what it must not look at, runs, files and checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from rlsmooth.agents import BC, BCO, load_agent, save_agent
from rlsmooth.agents.cloning.collection import collect
from rlsmooth.agents.cloning.training_data import action_target
from rlsmooth.agents.spaces import wrap_env
from rlsmooth.data import Demonstrations, ObservationOnly, cartpole_v1, concatenate, record
from rlsmooth.targets import Smoothing
from rlsmooth.training import SafeFileError, checkpoint_steps
from support import Counter, KillAt, assert_raises, listen, read_events, same_parameters

PLACES = 5


class Walk(gym.Env[Any, Any]):
    """A walk to the place 0 on a circle of five, each step's reward 1 there; the next observation tells the action.

    Kinds: `"discrete"` (actions -1, 0, 1), `"masked"` (a fourth action does the same as 1; at odd places the one, at
    even places the other is illegal), `"multi_discrete"` (two circles, the second goes forward or stays),
    `"multi_binary"` (two bits that the action flips), `"box"` (a place in the plane, and a step).
    """

    def __init__(self, kind: str = "discrete", form: str = "flat") -> None:
        self.kind, self.form = kind, form
        self.action_space, size = {
            "discrete": (spaces.Discrete(3), PLACES),
            "masked": (spaces.Discrete(4), PLACES),
            "multi_discrete": (spaces.MultiDiscrete([3, 2]), 2 * PLACES),
            "multi_binary": (spaces.MultiBinary(2), 2),
            "box": (spaces.Box(-1, 1, (2,)), 2),
        }[kind]
        flat = spaces.Box(-np.inf, np.inf, (size,))
        image = spaces.Box(0, 255, (36, 36, 1), np.uint8)
        self.observation_space = {
            "flat": flat,
            "number": spaces.Discrete(PLACES),
            "dict": spaces.Dict({"flat": flat, "number": spaces.Discrete(PLACES)}),
            "image": image,
        }[form]
        if kind == "masked":
            self.action_masks = self._masks

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        if self.kind == "box":
            self.place = self.np_random.normal(size=2)
        else:
            self.place = self.np_random.integers(2 if self.kind == "multi_binary" else PLACES, size=2)
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        if self.kind == "masked":
            assert self._masks()[action], f"action {action} is illegal at {self.place[0]}"
        self.steps += 1
        if self.kind == "box":
            self.place = self.place + action
        elif self.kind == "multi_binary":
            self.place = (self.place + action) % 2
        else:
            step = action if self.kind == "multi_discrete" else [min(action, 2), 1]
            self.place = (self.place + np.array(step) - [1, 0 if self.kind == "multi_discrete" else 1]) % PLACES
        reward = float(np.exp(-np.abs(self.place).max())) if self.kind == "box" else float(self.place[0] == 0)
        return self._seen(), reward, False, self.steps == 8, {}

    def _masks(self) -> Any:
        odd = bool(self.place[0] % 2)
        return np.array([True, True, odd, not odd])

    def _seen(self) -> Any:
        if self.kind in ("box", "multi_binary"):
            return self.place.astype(np.float32)
        circles = 2 if self.kind == "multi_discrete" else 1
        flat = np.eye(PLACES, dtype=np.float32)[self.place[:circles]].reshape(-1)
        number = np.int64(self.place[0])
        image = np.zeros((36, 36, 1), np.uint8)
        image[:, 7 * number : 7 * number + 7] = 255
        return {"flat": flat, "number": number, "dict": {"flat": flat, "number": number}, "image": image}[self.form]


def expert(kind: str, form: str = "flat") -> Any:
    """The way to 0 of one observation."""

    def act(seen: Any) -> Any:
        if kind == "box":
            return np.clip(-0.5 * seen, -1, 1)
        if kind == "multi_binary":
            return np.array([1 - seen[1], 1], np.int8)  # around all four states
        if form == "image":
            place = int(seen[0, :, 0].argmax()) // 7
        else:
            number = seen["number"] if form == "dict" else seen
            place = int(number) if form in ("number", "dict") else int(seen[:PLACES].argmax())
        step = 0 if place == 0 else 1 if place > 2 else -1
        if kind == "multi_discrete":
            return np.array([step + 1, int(seen[PLACES:].argmax() > 2)])
        return 3 if kind == "masked" and step == 1 and place % 2 == 0 else step + 1

    return act


def watched(kind: str = "discrete", form: str = "flat", n_episodes: int = 12) -> Demonstrations:
    return record(expert(kind, form), Walk(kind, form), n_episodes, seed=7)


def make(data: Any, env: Any = None, **arguments: Any) -> BCO:
    given = {"n_rounds": 2, "transitions_per_round": 100, "n_epochs": 8, "batch_size": 32, "learning_rate": 0.02}
    given |= {"inverse_learning_rate": 0.02, "inverse_epochs": 8, "policy_kwargs": {"net_arch": [16]}}
    given |= {"inverse_net_arch": (32,), "seed": 0, "device": "cpu", **arguments}
    policy = given.pop("policy", "MlpPolicy")
    return BCO(policy, Walk() if env is None else env, data, **given)


# ---- learning
@pytest.mark.parametrize("kind", ["discrete", "masked", "multi_discrete", "multi_binary", "box"])
def test_it_finds_the_actions_and_learns_them(kind: str) -> None:
    data = watched(kind)
    agent = make(data, Walk(kind), transitions_per_round=300, n_epochs=35).learn()
    last = agent.history[-1]
    assert agent.num_timesteps == len(agent.transitions) == 600  # type: ignore[arg-type]
    actions, _ = agent.predict(data.observations, deterministic=True)
    if kind == "box":
        assert last["pseudo_label_error"] < 0.1
        assert np.sqrt(np.mean((actions - data.actions) ** 2)) < 0.15
        return
    assert last["pseudo_label_accuracy"] == 1.0
    assert last["inverse_dynamics_accuracy"] > (0.95 if kind != "masked" else 0.9)
    if kind == "masked":  # a policy that takes no masks may choose the illegal twin
        actions, goals = np.minimum(actions, 2), np.minimum(data.actions, 2)
    else:
        goals = data.actions
    assert np.mean(actions == goals) > 0.97


@pytest.mark.parametrize("form", ["number", "dict", "image"])
def test_every_kind_of_observation(form: str) -> None:
    policy = {"number": "MlpPolicy", "dict": "MultiInputPolicy", "image": "CnnPolicy"}[form]
    data = watched(form=form)
    more: dict[str, Any] = {"policy": policy, "n_rounds": 1, "transitions_per_round": 250, "n_epochs": 15}
    more |= {"inverse_epochs": 40}
    if form == "image":
        more |= {"inverse_epochs": 5, "learning_rate": 2e-3, "inverse_learning_rate": 2e-3, "n_epochs": 8}
    agent = make(data, Walk(form=form), **more).learn()
    assert agent.history[-1]["pseudo_label_accuracy"] > 0.97
    actions, _ = agent.predict(data.observations, deterministic=True)
    assert np.mean(actions == data.actions) > 0.97


def test_where_all_labels_are_right_a_round_is_cloning() -> None:
    data = watched()
    agent = make(data, n_rounds=1, transitions_per_round=400, smoothing=0.2)
    twin = make(None, smoothing=0.2)  # the same initial policy
    seed = agent._seed_of(1)
    agent.learn()
    assert agent.history[0]["pseudo_label_accuracy"] == 1.0
    given: dict[str, Any] = {"smoothing": 0.2, "learning_rate": 0.02, "batch_size": 32, "seed": seed, "device": "cpu"}
    assert same_parameters(agent, BC(twin.policy, None, data, **given).learn(total_epochs=8))


@pytest.mark.slow
def test_learning_on_cartpole_without_its_actions() -> None:
    data = ObservationOnly.from_demonstrations(cartpole_v1()).sample_episodes(2, seed=0)
    agent = BCO("MlpPolicy", "CartPole-v1", data, n_rounds=1, transitions_per_round=500, n_epochs=30, seed=0)
    agent.learn()
    mean, _ = evaluate_policy(agent, agent.env, n_eval_episodes=5)  # type: ignore[arg-type]
    assert mean > 150  # acting at random: 22


# ---- what it must not look at
def test_actions_of_demonstrations_play_no_part() -> None:
    data = watched()
    rng = np.random.default_rng(0)
    shuffled = data.replace_unchecked(actions=rng.permutation(data.actions))
    assert not np.array_equal(shuffled.actions, data.actions)
    plain = ObservationOnly.from_demonstrations(data)
    one, two, three = (make(given).learn() for given in (data, shuffled, plain))
    assert same_parameters(one, two)
    assert same_parameters(one, three)
    assert "pseudo_label_accuracy" not in three.history[0]
    assert two.history[-1]["pseudo_label_accuracy"] < one.history[-1]["pseudo_label_accuracy"]  # a log line alone
    soft = data.replace_unchecked(action_probs=np.full((len(data), 3), 1 / 3), rewards=None)
    assert same_parameters(one, make(soft).learn())


def test_demonstrations_without_next_observations_lose_their_last_rows() -> None:
    data = watched()
    agent = make(data.replace_unchecked(next_observations=None), n_rounds=1, inverse_epochs=40).learn()
    assert len(agent.pairs) == len(data) - data.num_episodes
    assert agent.history[0]["pseudo_label_accuracy"] > 0.9


# ---- masks
@pytest.mark.parametrize("policy", ["MlpPolicy", "MaskableMlpPolicy"])
@pytest.mark.parametrize("pseudo_labels", ["hard", "soft"])
def test_illegal_actions_are_not_taken_not_guessed_and_get_no_mass(policy: str, pseudo_labels: Any) -> None:
    data = watched("masked")
    masks = np.asarray(data.action_masks)
    env = make_vec_env(lambda: Walk("masked"), n_envs=3)
    agent = make(data, env, policy=policy, pseudo_labels=pseudo_labels, smoothing=0.2).learn()
    taken, legal = agent.transitions.actions, np.asarray(agent.transitions.action_masks)
    assert len(taken) == 204
    assert legal[np.arange(204), taken].all()  # the environment would have raised, too
    labelled = agent.bc.demonstrations
    assert masks[np.arange(len(data)), labelled.actions].all()
    if pseudo_labels == "soft":
        assert (np.asarray(labelled.action_probs)[~masks] == 0).all()
        dataclasses.replace(labelled)  # checks all of it
    (batch,) = agent.bc._data.chunks()
    (target,) = action_target(agent.bc.head, agent.bc.smoothings, batch)
    dense = target.dense()
    assert (dense[~torch.from_numpy(masks)] == 0).all()
    torch.testing.assert_close(dense.sum(-1), torch.ones(len(data)))
    assert float(dense.min(-1).values.max()) == 0


def test_random_actions_are_uniform_over_the_legal_ones() -> None:
    made = collect(None, wrap_env("env", Walk("masked")), 2000, seed=0, after_step=lambda _: True)
    legal = np.asarray(made.action_masks)
    counts = np.bincount(made.actions, minlength=4)
    expected = (legal / legal.sum(1, keepdims=True)).sum(0)
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected)).all()
    assert legal[np.arange(2000), made.actions].all()


def test_soft_pseudo_labels_are_the_models_probabilities() -> None:
    data = watched()
    agent = make(data, pseudo_labels="soft", inverse_smoothing=0.3, n_rounds=1).learn()
    probabilities = agent.inverse_dynamics.probabilities(data.observations, data.next_observations)
    assert np.array_equal(agent.bc.demonstrations.action_probs, probabilities)  # type: ignore[arg-type]
    assert agent.history[0]["pseudo_label_confidence"] == pytest.approx(float(probabilities.max(1).mean()), abs=1e-6)
    with pytest.raises(ValueError, match="needs a Discrete action space"):
        make(watched("multi_binary"), Walk("multi_binary"), pseudo_labels="soft")


# ---- collecting
def test_transitions_are_what_the_environments_did() -> None:
    env = make_vec_env(Walk, n_envs=3)
    steps = []

    def after_step(count: int) -> bool:
        steps.append(count)
        return True

    made = collect(None, env, 100, seed=0, after_step=after_step)
    assert steps == [3] * 34
    assert len(made) == 102
    before, after = (np.asarray(part).argmax(1) for part in (made.observations, made.next_observations))
    assert np.array_equal((after - before) % PLACES, (made.actions - 1) % PLACES)  # also where an episode ends
    assert max(made.episode_lengths()) <= 8
    assert {34, 68, 102} <= set(made.episode_ends.tolist())
    assert made.num_episodes >= 50
    again = collect(None, env, 100, seed=0, after_step=after_step)
    assert np.array_equal(again.observations, made.observations)
    assert np.array_equal(again.actions, made.actions)
    both = concatenate([made, again])
    assert len(both) == 204
    assert both.episode_ends.tolist() == [*made.episode_ends, *(again.episode_ends + 102)]
    assert collect(None, env, 100, seed=0, after_step=lambda _: False) is None


def test_later_rounds_act_by_the_policy() -> None:
    data = watched()
    agent = make(data, n_rounds=2, transitions_per_round=300, n_epochs=25, smoothing=0.0).learn()
    counts = [np.bincount(part.actions, minlength=3) for part in agent.parts]
    assert counts[0].min() > 70  # a third each
    at_goal = np.asarray(agent.parts[1].observations)[:, 0] == 1
    assert at_goal.mean() > 0.5  # whom it clones stays there


# ---- mistakes
def test_mistakes_are_told() -> None:
    data = watched()
    assert_raises(TypeError, r"use ObservationOnly\.from_trajectories", make, [1, 2])
    assert_raises(ValueError, "pseudo_labels='firm'", make, data, pseudo_labels="firm")
    assert_raises(ValueError, "n_rounds=0", make, data, n_rounds=0)
    assert_raises(ValueError, "transitions_per_round=9 must be at least 10", make, data, transitions_per_round=9)
    assert_raises(ValueError, "demonstrations has observation_space", make, watched("multi_discrete"))
    assert_raises(ValueError, "demonstrations has action_space", make, watched("masked"))
    assert_raises(ValueError, "eval_env has action_space", make, data, eval_env=Walk("masked"))
    assert_raises(TypeError, "inverse_learning_rate", make, data, inverse_learning_rate=lambda _: 0.1)
    assert_raises(ValueError, "inverse_learning_rate='slow'", make, data, inverse_learning_rate="slow")
    assert_raises(ValueError, "inverse_inputs='all'", make, data, inverse_inputs="all")
    with pytest.raises(TypeError, match="inverse_smoothing has a callable alpha"):
        make(data, inverse_smoothing=Smoothing(lambda progress: 0.1 * progress))
    assert_raises(ValueError, "demonstrations is None", make(None).learn)
    spaces_only = make(data, (data.observation_space, data.action_space))
    assert_raises(ValueError, "no environment to act in", spaces_only.learn)
    assert_raises(ValueError, "no environment to evaluate in", spaces_only.evaluate)
    assert_raises(TypeError, "env is None", BCO, "MlpPolicy", None, data)
    spaces_only.set_env(Walk())
    assert spaces_only.learn().round == 2


@pytest.mark.parametrize("space", [spaces.Discrete(2), spaces.Box(0, 1, (2,))])
def test_the_first_rounds_actions_are_not_the_environments_own_noise(space: spaces.Space[Any]) -> None:
    class Draws(gym.Env[Any, Any]):
        observation_space = spaces.Box(0, 1, (1,))
        action_space = space

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            super().reset(seed=seed)
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> Any:
            draws.append(self.np_random.random(2))
            return np.zeros(1, np.float32), 0.0, False, False, {}

    draws: list[Any] = []
    made = collect(None, wrap_env("env", Draws()), 100, seed=11, after_step=lambda _: True)
    found, actions = np.array(draws), np.asarray(made.actions)
    if isinstance(space, spaces.Box):
        assert abs(np.corrcoef(found[:, 0], actions[:, 0])[0, 1]) < 0.5
    else:
        assert 0.2 < np.mean(found.argmax(axis=1) == actions) < 0.8


# ---- runs: repeats, callbacks, logs; on CartPole-v1, with few steps
ENV = "CartPole-v1"


def watched_cartpole() -> Demonstrations:
    return cartpole_v1().select_episodes([0])


def make_short(data: Demonstrations, env: Any = ENV, **arguments: Any) -> BCO:
    given: dict[str, Any] = {"n_rounds": 2, "transitions_per_round": 100, "n_epochs": 1, "inverse_epochs": 2}
    given |= {"inverse_net_arch": (8,), "policy_kwargs": {"net_arch": [16]}, "seed": 0, "device": "cpu", **arguments}
    return BCO("MlpPolicy", env, data, **given)


def test_a_seed_repeats_and_nobody_elses_numbers_are_drawn() -> None:
    data = watched_cartpole()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = make_short(data).learn()
    assert torch.equal(torch.get_rng_state(), state)
    two = make_short(data).learn()
    assert same_parameters(one, two)
    assert one.history == two.history
    assert not same_parameters(one, make_short(data, seed=1).learn())


def test_a_second_call_goes_on() -> None:
    data = watched_cartpole()
    agent = make_short(data, n_rounds=1).learn()
    agent.learn()
    whole = make_short(data, n_rounds=2).learn()
    assert same_parameters(agent, whole)
    assert agent.round == 2


def test_callbacks_see_rounds_as_rollouts_and_may_stop() -> None:
    data = watched_cartpole()
    counter = Counter(10**6)
    agent = make_short(data).learn(counter, progress_bar=True)
    assert counter.told == ["total 200", "rollout", "100", "rollout", "200", "end"]
    assert counter.n_calls == 200
    stopped = make_short(data).learn(Counter(150))
    assert (stopped.round, stopped.num_timesteps) == (1, 100)
    stopped.learn()
    assert stopped.round == 3
    whole = make_short(data, n_rounds=3).learn()
    assert same_parameters(stopped, whole)
    assert not same_parameters(stopped, agent)


def test_stable_baselines_callback_evaluates(tmp_path: Path) -> None:
    evaluation = EvalCallback(make_vec_env(ENV), eval_freq=100, log_path=str(tmp_path), n_eval_episodes=2, verbose=0)
    make_short(watched_cartpole(), make_vec_env(ENV)).learn(evaluation)
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [100, 200]


def test_each_round_has_one_log_line() -> None:
    agent = make_short(watched_cartpole(), eval_env=ENV, n_eval_episodes=3)
    lines = listen(agent)
    agent.learn()
    assert [step for step, _ in lines.lines] == [100, 200]
    tags = lines.lines[-1][1]
    names = {"round", "transitions", "inverse_dynamics_accuracy", "inverse_dynamics_cross_entropy", "smoothing"}
    names |= {"pseudo_label_accuracy", "pseudo_label_confidence", "cross_entropy", "policy_entropy"}
    assert {f"bco/{name}" for name in {*names, "mean_reward", "mean_reward_sampled"}} <= set(tags)
    assert {f"bco/{name}": value for name, value in agent.history[-1].items()} == tags
    assert tags["bco/smoothing"] == pytest.approx(0.1)
    assert agent.evaluate()["mean_reward"] == tags["bco/mean_reward"]


def test_tensorboard_gets_the_tags(tmp_path: Path) -> None:
    make_short(watched_cartpole(), tensorboard_log=tmp_path).learn()
    events = read_events(tmp_path / "BCO_1")
    assert [point.step for point in events.Scalars("bco/pseudo_label_accuracy")] == [100, 200]


def test_the_clone_starts_reinforcement_learning() -> None:
    agent = make_short(watched_cartpole(), n_rounds=1).learn()
    model = PPO("MlpPolicy", ENV, policy_kwargs={"net_arch": [16]}, n_steps=16, batch_size=16, device="cpu")
    agent.warm_start(model)
    seen = watched_cartpole().observations
    assert np.array_equal(model.predict(seen, deterministic=True)[0], agent.predict(seen, deterministic=True)[0])


DATA = ObservationOnly.from_demonstrations(cartpole_v1()).sample_episodes(1, seed=0)


def make_rounds(**arguments: Any) -> BCO:
    given: dict[str, Any] = {"n_rounds": 3, "transitions_per_round": 40, "n_epochs": 1, "inverse_epochs": 2}
    given |= {"inverse_net_arch": (8,), "policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu", **arguments}
    return BCO("MlpPolicy", "CartPole-v1", DATA, **given)


# ---- agent files
def test_the_file_is_that_of_the_clone_and_more(tmp_path: Path) -> None:
    smoothing = Smoothing(0.2, reference=torch.tensor([0.25, 0.75]))
    agent = make_rounds(smoothing=smoothing, inverse_smoothing="lin_0.1", learning_rate="lin_0.01", n_rounds=1).learn()
    path = agent.save(tmp_path / "agent")
    seen = np.asarray(DATA.observations)
    expected, _ = agent.predict(seen, deterministic=True)
    for loaded in (BC.load(path, device="cpu"), load_agent(path, device="cpu"), BCO.load(path, device="cpu")):
        assert np.array_equal(loaded.predict(seen, deterministic=True)[0], expected)
    again = BCO.load(path, "CartPole-v1", DATA, device="cpu")
    assert (again.n_rounds, again.transitions_per_round, again.seed, again.inverse_net_arch) == (1, 40, 0, [8])
    assert again.bc.smoothings[0].alpha == 0.2
    # From here on both learn alike: from the same policy, optimiser and seed, with round 1.
    agent.round, agent.parts, agent.transitions = 0, [], None
    assert same_parameters(agent.learn(), again.learn())
    assert_raises(ValueError, "no environment to act in", BCO.load(path, device="cpu").learn)


def test_actions_in_bins_and_images_survive(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(4, 36, 36, 3), dtype=np.uint8)
    space = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    watched = ObservationOnly.from_trajectories([images], observation_space=space)
    actions = spaces.Box(-1, 1, (2,))
    agent = BCO("CnnPolicy", (space, actions), watched, action_bins=4, reference="uniform", seed=0, device="cpu")
    loaded = BCO.load(agent.save(tmp_path / "agent"), demonstrations=watched, device="cpu")
    assert loaded.bins is not None
    assert loaded.bc.references is not None
    one, two = (model.predict(images, deterministic=True)[0] for model in (agent, loaded))
    assert np.array_equal(one, two)
    assert one.shape == (4, 2)


def test_callables_are_asked_for_again(tmp_path: Path) -> None:
    agent = make_rounds(learning_rate=lambda progress: 0.01 * progress)
    path = agent.save(tmp_path / "agent")
    assert_raises(ValueError, "learning_rate was a callable", BCO.load(path, "CartPole-v1", DATA, device="cpu").learn)
    given = BCO.load(path, "CartPole-v1", DATA, device="cpu", custom_objects={"learning_rate": 0.01})
    assert given.learn().round == 3


def test_other_files_are_refused(tmp_path: Path) -> None:
    clone = BC("MlpPolicy", None, cartpole_v1(), device="cpu")
    assert_raises(SafeFileError, "no agent of BCO", BCO.load, clone.save(tmp_path / "clone"))
    path = make_rounds().save(tmp_path / "agent")
    assert_raises(ValueError, "env has observation_space", BCO.load, path, "Acrobot-v1")
    assert_raises(TypeError, "demonstrations must be", BCO.load, path, "CartPole-v1", [1])
    path.write_bytes(path.read_bytes()[:-50])
    assert_raises(SafeFileError, None, BCO.load, path)
    assert save_agent(clone, tmp_path / "saved").name == "saved.zip"


# ---- checkpoints
@pytest.mark.parametrize(
    ("arguments", "cut"),
    [
        ({}, 20),
        ({}, 80),
        ({"smoothing": "lin_0.3", "learning_rate": "lin_0.01", "pseudo_labels": "soft", "inverse_inputs": "pair"}, 101),
        ({"policy_kwargs": {"net_arch": [8], "optimizer_class": torch.optim.RMSprop}, "max_grad_norm": 0.5}, 101),
    ],
    ids=["first round", "last step of a round", "schedules", "RMSprop"],
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(arguments: dict[str, Any], cut: int, tmp_path: Path) -> None:
    whole = make_rounds(**arguments).learn()
    with pytest.raises(KeyboardInterrupt):
        make_rounds(**arguments, checkpoint_folder=tmp_path).learn(KillAt(cut, KeyboardInterrupt))
    resumed = BCO.resume(tmp_path, "CartPole-v1", DATA, device="cpu")
    assert resumed.round == (cut - 1) // 40
    resumed.learn()
    assert resumed.round == 3
    assert resumed.num_timesteps == whole.num_timesteps
    assert same_parameters(whole, resumed)
    assert resumed.history == whole.history
    again = BCO.resume(tmp_path, "CartPole-v1", DATA, device="cpu").learn()  # of a run that has ended
    assert same_parameters(whole, again)


def test_several_environments_and_a_second_call(tmp_path: Path) -> None:
    env = make_vec_env("CartPole-v1", n_envs=3)
    whole = make_rounds(n_rounds=1).learn().learn()
    agent = make_rounds(n_rounds=1, checkpoint_folder=tmp_path / "one").learn()
    assert_raises(KeyboardInterrupt, None, agent.learn, KillAt(60, KeyboardInterrupt))
    resumed = BCO.resume(tmp_path / "one", "CartPole-v1", DATA, device="cpu").learn()
    assert resumed.round == 2
    assert same_parameters(whole, resumed)
    with pytest.raises(ValueError, match="env has 3 environments, the run had 1"):
        BCO.resume(tmp_path / "one", env, DATA, device="cpu")
    # A run that goes on in another folder takes all with it.
    resumed.checkpoint_folder = tmp_path / "two"
    resumed.learn()
    moved = BCO.resume(tmp_path / "two", "CartPole-v1", DATA, device="cpu")
    assert moved.round == 3
    assert len(moved.transitions) == 120
    assert same_parameters(moved, resumed)


def test_a_bad_checkpoint_is_passed_over(tmp_path: Path) -> None:
    make_rounds(checkpoint_folder=tmp_path, n_rounds=2).learn()
    assert checkpoint_steps(tmp_path) == [1, 2]
    (tmp_path / "checkpoint_2.zip").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="Passed over a bad checkpoint"):
        back = BCO.resume(tmp_path, "CartPole-v1", DATA, device="cpu")
    assert back.round == 1
    assert same_parameters(back.learn(), make_rounds(n_rounds=2).learn())
