"""Runs of DAgger: experts, repeats, callbacks, logs, agent files, episodes on the disk and checkpoints."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from rlsmooth.agents import BC, BCO, DAgger, SmoothedPPO, load_agent, save_agent
from rlsmooth.agents.cloning.expert import Expert
from rlsmooth.agents.spaces import wrap_env
from rlsmooth.data import Demonstrations, ObservationOnly, record
from rlsmooth.data.actors import checked_action
from rlsmooth.envs import (
    IdentityBoxEnv,
    IdentityEnv,
    IdentityMaskedEnv,
    IdentityMultiBinaryEnv,
    IdentityMultiDiscreteEnv,
)
from rlsmooth.targets import Smoothing
from rlsmooth.training import SafeFileError, checkpoint_steps
from support import Counter, KillAt, assert_raises, listen, read_events, same_parameters


def make(env: Any = None, **arguments: Any) -> DAgger:
    world = IdentityEnv(4) if env is None else env
    given: dict[str, Any] = {"rollout_round_min_timesteps": 50, "bc_train_n_epochs": 2}
    given |= {"policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu", **arguments}
    return DAgger("MlpPolicy", world, given.pop("expert", lambda seen: int(seen)), **given)


def test_a_seed_repeats_and_nobody_elses_numbers_are_drawn() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    state, words = torch.get_rng_state(), np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002
    one, two = (make(beta_schedule=0.5, smoothing="lin_0.2").learn(150) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], words)  # type: ignore[index]  # noqa: NPY002
    assert same_parameters(one, two)
    assert one.history == two.history
    assert np.array_equal(one.demonstrations.observations, two.demonstrations.observations)  # type: ignore[union-attr]
    assert not same_parameters(one, make(beta_schedule=0.5, smoothing="lin_0.2", seed=1).learn(150))
    # What somebody draws in the meantime changes nothing.
    torch.rand(7)
    assert same_parameters(one, make(beta_schedule=0.5, smoothing="lin_0.2").learn(150))


def test_a_second_call_goes_on() -> None:
    twice = make(beta_schedule=2).learn(50).learn(100)
    whole = make(beta_schedule=2).learn(150)
    assert twice.round == whole.round == 3
    assert same_parameters(twice, whole)
    assert twice.history == whole.history
    assert [line["beta"] for line in whole.history] == [1.0, 0.5, 0.0]
    first, second, _ = (part.observations for part in whole.rounds)
    assert not np.array_equal(first, second)  # each round has a seed of its own


def test_rounds_are_whole() -> None:
    agent = make(rollout_round_min_timesteps=70).learn(101)
    assert agent.num_timesteps == 140
    assert [line["round_timestep_count"] for line in agent.history] == [70.0, 70.0]
    assert [line["round_episode_count"] for line in agent.history] == [7.0, 7.0]


def test_callbacks_see_rounds_as_rollouts_and_may_stop() -> None:
    counter = Counter(10**6)
    make().learn(100, counter, progress_bar=True)
    assert counter.told == ["total 100", "rollout", "50", "rollout", "100", "end"]
    assert counter.n_calls == 100
    stopped = make().learn(100, [Counter(75)])
    assert (stopped.round, stopped.num_timesteps) == (1, 50)
    assert stopped.learn(100).round == 3
    assert same_parameters(stopped, make().learn(150))


def test_steps_after_the_last_episode_are_not_counted() -> None:
    env = make_vec_env(lambda: IdentityEnv(4), n_envs=4)
    counter = Counter(10**6)
    agent = make(env, expert=lambda seen: seen, rollout_round_min_timesteps=45).learn(90, counter)
    assert agent.num_timesteps == len(agent.demonstrations or ()) == 160  # 4 episodes of 10, twice, in each round
    assert counter.n_calls == 40


def test_stable_baselines_callback_and_evaluation(tmp_path: Path) -> None:
    world = make_vec_env(lambda: IdentityEnv(4))
    evaluation = EvalCallback(world, eval_freq=50, log_path=str(tmp_path), n_eval_episodes=2, verbose=0)
    agent = make(world, expert=lambda seen: seen).learn(100, evaluation)
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [50, 100]
    mean, _ = evaluate_policy(agent, world, n_eval_episodes=2)
    assert 0 <= mean <= 10


def test_each_round_has_one_log_line() -> None:
    agent = make(beta_schedule=2, eval_env=IdentityEnv(4), n_eval_episodes=3)
    lines = listen(agent)
    agent.learn(150)
    assert [step for step, _ in lines.lines] == [50, 100, 150]
    tags = lines.lines[1][1]
    assert {f"dagger/{name}": value for name, value in agent.history[1].items()} == tags
    names = {"accuracy", "beta", "cross_entropy", "ece", "entropy_frac", "expert_agreement", "kl_uniform", "nll_hard"}
    names |= {"learner_share", "mean_ep_length", "mean_episode_reward", "mean_reward", "mean_reward_sampled", "round"}
    names |= {"policy_entropy", "round_episode_count", "round_num", "round_timestep_count", "smoothing", "transitions"}
    assert {f"dagger/{name}" for name in {*names, "total_timesteps"}} <= set(tags)
    assert (tags["dagger/round"], tags["dagger/round_num"], tags["dagger/beta"]) == (2.0, 1.0, 0.5)
    assert (tags["dagger/transitions"], tags["dagger/total_timesteps"]) == (100.0, 100.0)
    assert lines.lines[0][1]["dagger/mean_episode_reward"] == 10.0  # the expert's own
    assert lines.lines[0][1]["dagger/learner_share"] == 0.0
    assert lines.lines[2][1]["dagger/learner_share"] == 1.0
    assert agent.evaluate()["mean_reward"] == lines.lines[2][1]["dagger/mean_reward"]


def test_agreement_is_of_whole_actions_before_they_are_learnt() -> None:
    env = IdentityMultiDiscreteEnv((3, 4))
    twin = make(env, expert=env.expert_action)
    agent = make(env, expert=env.expert_action, beta_schedule=1.0).learn(50)
    guessed = twin.predict(np.asarray(agent.demonstrations.observations), deterministic=True)[0]
    equal = (guessed == np.asarray(agent.demonstrations.actions)).all(axis=1)
    assert agent.history[0]["expert_agreement"] == pytest.approx(equal.mean())
    assert 0 < equal.mean() < 1


def test_tensorboard_gets_the_tags(tmp_path: Path) -> None:
    make(tensorboard_log=tmp_path).learn(100)
    events = read_events(tmp_path / "DAgger_1")
    assert [point.step for point in events.Scalars("dagger/expert_agreement")] == [50, 100]
    assert [point.value for point in events.Scalars("dagger/round_num")] == [0.0, 1.0]


def test_the_clone_starts_reinforcement_learning() -> None:
    agent = make().learn(100)
    settings: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "n_steps": 16, "batch_size": 16, "device": "cpu"}
    model = PPO("MlpPolicy", IdentityEnv(4), **settings)
    agent.warm_start(model)
    seen = np.arange(4)
    expected = agent.predict(seen, deterministic=True)[0]
    assert np.array_equal(model.predict(seen, deterministic=True)[0], expected)
    fresh = SmoothedPPO.from_bc(agent.bc, IdentityEnv(4), n_steps=16, batch_size=16, device="cpu")
    assert np.array_equal(fresh.predict(seen, deterministic=True)[0], expected)


# ---- agent files
TOTAL = 120
ROUND = 40


def expert(seen: Any) -> Any:
    return int(seen)


def make_rounds(env: Any = None, **arguments: Any) -> DAgger:
    given: dict[str, Any] = {"rollout_round_min_timesteps": ROUND, "bc_train_n_epochs": 1, "beta_schedule": 2}
    given |= {"policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu", **arguments}
    policy = given.pop("policy", "MlpPolicy")
    return DAgger(policy, IdentityEnv(4) if env is None else env, given.pop("expert", expert), **given)


def test_the_file_is_that_of_the_clone_and_more(tmp_path: Path) -> None:
    smoothing = Smoothing(0.2, reference=torch.tensor([0.1, 0.2, 0.3, 0.4]))
    agent = make_rounds(smoothing=smoothing, beta_schedule=0.5).learn(ROUND)
    path = agent.save(tmp_path / "agent")
    assert path.name == "agent.zip"
    seen = np.arange(4)
    expected, _ = agent.predict(seen, deterministic=True)
    for loaded in (BC.load(path, device="cpu"), load_agent(path, device="cpu"), DAgger.load(path, device="cpu")):
        assert np.array_equal(loaded.predict(seen, deterministic=True)[0], expected)
    again = DAgger.load(path, IdentityEnv(4), expert, demonstrations=agent.demonstrations, device="cpu")
    assert (again.beta_schedule, again.rollout_round_min_timesteps, again.seed) == (0.5, ROUND, 0)
    assert again.bc.smoothings[0].alpha == 0.2
    # From here on both learn alike: from the same policy, optimiser, data and seed, with round 0.
    agent.round, agent.initial, agent.rounds = 0, agent.demonstrations, []
    assert same_parameters(agent.learn(ROUND), again.learn(ROUND))
    with pytest.raises(ValueError, match="no environment to act in: give env to DAgger"):
        DAgger.load(path, device="cpu").learn(ROUND)
    assert_raises(ValueError, "expert is None", DAgger.load(path, IdentityEnv(4), device="cpu").learn, ROUND)


@pytest.mark.parametrize(("given", "beta"), [(1.0, 1.0), (1, 0.0), (np.int64(4), 0.75), (np.float32(0.5), 0.5)])
def test_a_schedule_stays_a_whole_number_or_a_fraction(given: Any, beta: float, tmp_path: Path) -> None:
    loaded = DAgger.load(make_rounds(beta_schedule=given).save(tmp_path / "agent"), device="cpu")
    assert (loaded.beta_schedule, loaded.beta(1)) == (given, beta)


def test_actions_in_bins_survive(tmp_path: Path) -> None:
    env = IdentityBoxEnv(2)
    agent = make_rounds(env, expert=env.expert_action, action_bins=5, reference="uniform").learn(ROUND)
    loaded = DAgger.load(agent.save(tmp_path / "agent"), env, env.expert_action, device="cpu")
    seen = np.random.default_rng(0).uniform(-0.5, 0.5, size=(9, 2)).astype(np.float32)
    one, two = (model.predict(seen, deterministic=True)[0] for model in (agent, loaded))
    assert np.array_equal(one, two)
    assert loaded.learn(ROUND).round == 1


def test_functions_are_asked_for_again(tmp_path: Path) -> None:
    agent = make_rounds(beta_schedule=lambda _: 0.5, learning_rate=lambda progress: 0.01 * progress)
    path = agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match="learning_rate, beta_schedule was a callable"):
        DAgger.load(path, IdentityEnv(4), expert, device="cpu").learn(ROUND)
    custom = {"beta_schedule": lambda _: 0.25, "learning_rate": 0.01}
    loaded = DAgger.load(path, IdentityEnv(4), expert, device="cpu", custom_objects=custom).learn(ROUND)
    assert loaded.history[0]["beta"] == 0.25


def test_other_files_are_refused(tmp_path: Path) -> None:
    clone = BC("MlpPolicy", IdentityEnv(4), None, device="cpu")
    assert_raises(SafeFileError, "no agent of DAgger", DAgger.load, clone.save(tmp_path / "clone"))
    path = make_rounds().save(tmp_path / "agent")
    assert_raises(SafeFileError, "no agent of BCO", BCO.load, path)
    assert_raises(ValueError, "env has observation_space", DAgger.load, path, IdentityEnv(5))
    assert_raises(TypeError, "expert must have", DAgger.load, path, IdentityEnv(4), 3)
    path.write_bytes(path.read_bytes()[:-50])
    assert_raises(SafeFileError, None, DAgger.load, path)


# ---- episodes
def test_each_round_leaves_its_episodes(tmp_path: Path) -> None:
    env = IdentityMaskedEnv(4)
    initial = record(env.expert_action, env, 2, seed=0)
    agent = make_rounds(env, expert=env.expert_action, scratch_dir=tmp_path, demonstrations=initial).learn(2 * ROUND)
    folders = sorted(path.name for path in (tmp_path / "demos").iterdir())
    assert folders == ["initial.npz", "round-000", "round-001"]
    for number, part in enumerate(agent.rounds):
        paths = sorted((tmp_path / "demos" / f"round-{number:03d}").iterdir())
        assert [path.name for path in paths] == ["000.npz", "001.npz", "002.npz", "003.npz"]
        for place, path in enumerate(paths):
            saved, own = Demonstrations.load(path), part.select_episodes([place])
            for name in ("observations", "actions", "action_masks", "terminations", "truncations"):
                assert np.array_equal(getattr(saved, name), getattr(own, name))
            with zipfile.ZipFile(path) as archive:
                assert not any(b"pickle" in archive.read(member)[:200] for member in archive.namelist())
    assert np.array_equal(Demonstrations.load(tmp_path / "demos" / "initial.npz").actions, initial.actions)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".pkl", ".tmp")]


# ---- checkpoints
@pytest.mark.parametrize(
    ("arguments", "cut"),
    [
        ({}, 20),
        ({}, 80),
        ({"smoothing": "lin_0.3", "learning_rate": "lin_0.01", "expert_deterministic": False}, 101),
        ({"policy_kwargs": {"net_arch": [8], "optimizer_class": torch.optim.RMSprop}, "max_grad_norm": 0.5}, 101),
        ({"expert_targets": "probabilities", "expert": lambda _: np.array([0.1, 0.2, 0.3, 0.4])}, 101),
        ({"demonstrations": record(expert, IdentityEnv(4), 1, seed=0), "eval_env": IdentityEnv(4)}, 101),
    ],
    ids=["first round", "last step of a round", "schedules", "RMSprop", "probabilities", "initial"],
)
def test_a_resumed_run_ends_as_an_uninterrupted_one(arguments: dict[str, Any], cut: int, tmp_path: Path) -> None:
    whole = make_rounds(**arguments).learn(TOTAL)
    with pytest.raises(KeyboardInterrupt):
        make_rounds(**arguments, scratch_dir=tmp_path).learn(TOTAL, KillAt(cut, KeyboardInterrupt))
    resume: dict[str, Any] = {"eval_env": arguments.get("eval_env"), "device": "cpu"}
    given = arguments.get("expert", expert)
    resumed = DAgger.resume(tmp_path, IdentityEnv(4), given, **resume)
    assert resumed.round == (cut - 1) // ROUND
    resumed.learn(TOTAL)
    assert resumed.round == 3
    assert same_parameters(whole, resumed)
    assert resumed.history == whole.history
    one, two = whole.demonstrations, resumed.demonstrations
    for name in ("observations", "actions", "episode_ends", "truncations", "action_probs"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    again = DAgger.resume(tmp_path, IdentityEnv(4), given, **resume).learn(TOTAL)  # of a run that has ended
    assert same_parameters(whole, again)
    assert again.round == 3


def test_several_environments_and_a_second_call(tmp_path: Path) -> None:
    env = make_vec_env(lambda: IdentityEnv(4), n_envs=2)
    whole = make_rounds().learn(ROUND).learn(2 * ROUND)
    agent = make_rounds(scratch_dir=tmp_path / "one").learn(ROUND)
    assert_raises(KeyboardInterrupt, None, agent.learn, 2 * ROUND, KillAt(100, KeyboardInterrupt))
    resumed = DAgger.resume(tmp_path / "one", IdentityEnv(4), expert, device="cpu").learn(2 * ROUND)
    assert resumed.round == 3
    assert same_parameters(whole, resumed)
    with pytest.raises(ValueError, match="env has 2 environments, the run had 1"):
        DAgger.resume(tmp_path / "one", env, lambda seen: seen, device="cpu")
    # A run that goes on in another folder takes all with it.
    resumed.scratch_dir = tmp_path / "two"
    resumed.learn(ROUND)
    moved = DAgger.resume(tmp_path / "two", IdentityEnv(4), expert, device="cpu")
    assert moved.round == 4
    assert len(moved.demonstrations or ()) == 4 * ROUND
    assert same_parameters(moved, resumed)


def test_what_does_not_belong_together_is_not_resumed(tmp_path: Path) -> None:
    make_rounds(scratch_dir=tmp_path).learn(TOTAL)
    assert checkpoint_steps(tmp_path) == [2, 3]
    (tmp_path / "checkpoint_3.zip").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="Passed over a bad checkpoint"):
        back = DAgger.resume(tmp_path, IdentityEnv(4), expert, device="cpu")
    assert back.round == 2
    assert same_parameters(back.learn(TOTAL), make_rounds().learn(TOTAL))
    episode = tmp_path / "demos" / "round-001" / "002.npz"
    other = make_rounds(seed=1).learn(ROUND).rounds[0].select_episodes([0])
    content = episode.read_bytes()
    other.save(episode)
    with pytest.raises(ValueError, match="round-001' does not hold the episodes of this run"):
        DAgger.resume(tmp_path, IdentityEnv(4), expert, device="cpu")
    episode.write_bytes(content[:-40])
    assert_raises(ValueError, r"002\.npz", DAgger.resume, tmp_path, IdentityEnv(4), expert, device="cpu")
    episode.write_bytes(content)
    other.save(tmp_path / "demos" / "initial.npz")
    with pytest.raises(ValueError, match=r"initial\.npz' does not hold what the run was started with"):
        DAgger.resume(tmp_path, IdentityEnv(4), expert, device="cpu")


def test_killed_before_the_first_checkpoint(tmp_path: Path) -> None:
    agent = make_rounds(scratch_dir=tmp_path)
    assert_raises(KeyboardInterrupt, None, agent.learn, TOTAL, KillAt(1, KeyboardInterrupt))
    (tmp_path / "checkpoint_0.zip").unlink()
    resumed = DAgger.resume(tmp_path, IdentityEnv(4), expert, device="cpu").learn(TOTAL)
    assert same_parameters(resumed, make_rounds().learn(TOTAL))


def test_ones_own_folder_is_never_refused_and_anothers_always(tmp_path: Path) -> None:
    agent = make_rounds(scratch_dir=tmp_path / "own")
    assert_raises(KeyboardInterrupt, None, agent.learn, ROUND, KillAt(5, KeyboardInterrupt))
    assert agent.num_timesteps == 0  # the round that was broken off leaves nothing
    assert agent.learn(ROUND).round == 1
    other = make_rounds().learn(2 * ROUND)
    assert other.round > agent.round
    other.scratch_dir = tmp_path / "own"
    assert_raises(ValueError, "another run's checkpoints", other.learn, ROUND)
    resumed = DAgger.resume(tmp_path / "own", IdentityEnv(4), expert, device="cpu").learn(ROUND)
    assert resumed.learn(ROUND).round > 1


def test_only_leftovers_of_our_own_are_deleted(tmp_path: Path) -> None:
    make_rounds(scratch_dir=tmp_path).learn(ROUND)
    ours = (tmp_path / ".checkpoint_1.zip.ab_d12x9.tmp", tmp_path / "demos" / "round-000" / ".000.npz.abcd1234.tmp")
    theirs = (tmp_path / ".draft.tmp", tmp_path / "demos" / ".notes.txt.abcd1234.tmp")
    for path in (*ours, *theirs):
        path.touch()
    (tmp_path / ".cache.tmp").mkdir()
    DAgger.resume(tmp_path, IdentityEnv(4), expert, device="cpu")
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in (*theirs, tmp_path / ".cache.tmp"))


# ---- whom DAgger can ask: models, policies, agents, files, functions
def small() -> dict[str, Any]:
    """New ones each time: SB3's constructors write into `policy_kwargs`."""
    return {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}


def ask(given: Any, env: Any, **arguments: Any) -> Expert:
    settings: dict[str, Any] = {"targets": "actions", "deterministic": True, "batched": False, **arguments}
    return Expert(given, env if isinstance(env, VecEnv) else wrap_env("env", env), **settings)


def learn(env: Any, expert: Any, **arguments: Any) -> DAgger:
    settings = {**small(), "rollout_round_min_timesteps": 40, "bc_train_n_epochs": 1, **arguments}
    return DAgger("MlpPolicy", env, expert, **settings).learn(80)


def labels_of(agent: DAgger) -> Any:
    return np.asarray(agent.demonstrations.observations), np.asarray(agent.demonstrations.actions)


def test_models_policies_agents_and_files_say_the_same(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", IdentityEnv(6), n_steps=16, batch_size=16, **small())
    agents = [learn(IdentityEnv(6), given) for given in (model, model.policy, save_agent(model, tmp_path / "expert"))]
    agents.append(learn(IdentityEnv(6), str(tmp_path / "expert.zip")))
    seen, labels = labels_of(agents[0])
    assert np.array_equal(labels, model.predict(seen, deterministic=True)[0])
    for other in agents[1:]:
        assert np.array_equal(labels_of(other)[1], labels)
        assert other.history == agents[0].history


def test_our_own_agents_are_experts() -> None:
    env = IdentityEnv(5)
    data = record(env.expert_action, env, 4)
    cloned = BC("MlpPolicy", env, data, **small()).learn(total_epochs=1)
    watched = ObservationOnly.from_demonstrations(data)
    found = BCO("MlpPolicy", env, watched, n_rounds=1, transitions_per_round=50, n_epochs=1, **small()).learn()
    for agent in (cloned, found, learn(env, env.expert_action)):
        seen, labels = labels_of(learn(env, agent))
        assert np.array_equal(labels, agent.predict(seen, deterministic=True)[0])


@pytest.mark.parametrize(
    ("algorithm", "env", "more"),
    [
        (SAC, IdentityBoxEnv(2), {"buffer_size": 10}),
        (DQN, IdentityEnv(4), {"buffer_size": 10}),
        (PPO, IdentityMultiBinaryEnv(3), {"n_steps": 16, "batch_size": 16}),
    ],
)
def test_off_policy_models_and_bits(algorithm: Any, env: Any, more: dict[str, Any]) -> None:
    model = algorithm("MlpPolicy", env, **more, **small())
    seen, labels = labels_of(learn(env, model))
    np.testing.assert_allclose(labels, model.predict(seen, deterministic=True)[0], atol=1e-6)


def test_functions_get_one_observation_or_batches_as_of_record() -> None:
    def one(seen: Any) -> Any:
        assert np.shape(seen) == ()
        return int(seen)

    def many(seen: Any) -> Any:
        assert np.shape(seen) == (3,)
        return seen

    def as_imitation(seen: Any, state: Any, episode_start: Any) -> Any:
        assert np.shape(seen) == np.shape(episode_start) == (3,)
        steps = np.zeros(3, int) if state is None else state[0] + 1
        steps[episode_start] = 0
        assert steps.max() < 10  # an episode's length: the state starts anew
        return seen, (steps,)

    vectorised = make_vec_env(lambda: IdentityEnv(4), n_envs=3)
    for env, expert in ((IdentityEnv(4), one), (vectorised, many), (vectorised, as_imitation)):
        seen, labels = labels_of(learn(env, expert))
        assert np.array_equal(seen, labels)


def test_a_recurrent_experts_state_goes_with_the_episode() -> None:
    env = make_vec_env(lambda: IdentityEnv(4, episode_length=10), n_envs=2)
    model = RecurrentPPO("MlpLstmPolicy", env, n_steps=16, batch_size=16, **small())
    with torch.no_grad():  # a fresh one says the same whatever it remembers
        for parameter in model.policy.parameters():
            parameter.mul_(5)
    agent = learn(env, model, beta_schedule=1.0)
    data = agent.demonstrations
    forgetful = model.predict(np.asarray(data.observations), deterministic=True)[0]
    assert not np.array_equal(forgetful, data.actions)
    for number in range(data.num_episodes):
        episode = data.select_episodes([number])
        state = None
        for step, (seen, label) in enumerate(zip(episode.observations, episode.actions, strict=True)):
            action, state = model.predict(
                np.array([seen, seen]), state=state, episode_start=np.full(2, step == 0), deterministic=True
            )
            assert action[0] == label


def test_a_model_of_normalised_observations_sees_them_normalised(tmp_path: Path) -> None:
    normalised = VecNormalize(DummyVecEnv([lambda: IdentityBoxEnv(2)]))
    model = PPO("MlpPolicy", normalised, n_steps=64, batch_size=64, **small()).learn(256)
    normalised.training = False
    path = save_agent(model, tmp_path / "expert")
    statistics = normalised.obs_rms.mean.copy()
    for expert in (model, path):
        seen, labels = labels_of(learn(IdentityBoxEnv(2), expert))
        expected = model.predict(normalised.normalize_obs(seen), deterministic=True)[0]
        np.testing.assert_allclose(labels, expected, atol=1e-6)
        assert not np.allclose(labels, model.predict(seen, deterministic=True)[0], atol=1e-3)
    # In the environment that normalises, both see what it shows.
    normalised.norm_reward = False
    seen, labels = labels_of(learn(normalised, model))
    np.testing.assert_allclose(labels, model.predict(seen, deterministic=True)[0], atol=1e-6)
    assert np.array_equal(normalised.obs_rms.mean, statistics)


def test_a_normaliser_that_moves_is_refused() -> None:
    with pytest.raises(ValueError, match="statistics would move"):
        learn(VecNormalize(DummyVecEnv([lambda: IdentityBoxEnv(2)])), lambda seen: seen)


# ---- masks
def test_masks_reach_whoever_takes_them() -> None:
    env = IdentityMaskedEnv(5, illegal_action="raise")
    model = MaskablePPO("MlpPolicy", env, n_steps=16, batch_size=16, **small())
    agent = learn(env, model, beta_schedule=0.5)
    data = agent.demonstrations
    masks = np.asarray(data.action_masks)
    seen, labels = labels_of(agent)
    assert np.array_equal(labels, model.predict(seen, deterministic=True, action_masks=masks)[0])
    assert not np.array_equal(labels, model.predict(seen, deterministic=True)[0])
    # A clone whose policy knows no masks is held to them.
    cloned = BC("MlpPolicy", (env.observation_space, env.action_space), None, **small())
    assert (labels_of(learn(env, cloned))[1] != cloned.predict(seen[:1], deterministic=True)[0]).any()


def test_an_illegal_action_of_the_expert_is_told_before_it_is_done() -> None:
    env = IdentityMaskedEnv(4, illegal_action="raise")
    with pytest.raises(ValueError, match=r"the expert chose 3 in environment 0, which its action mask forbids"):
        learn(env, lambda _: 3)
    with pytest.raises(ValueError, match="the expert chose 7, which is outside action_space=Discrete"):
        learn(IdentityEnv(4), lambda _: 7)
    with pytest.raises(ValueError, match=r"illegal action's must be 0"):
        learn(env, lambda _: np.full(4, 0.25), expert_targets="probabilities")


# ---- probabilities
def test_probabilities_of_models_are_those_they_act_by() -> None:
    env = IdentityMaskedEnv(4, illegal_action="raise")
    model = MaskablePPO("MlpPolicy", env, n_steps=16, batch_size=16, **small())
    plain = PPO("MlpPolicy", IdentityEnv(4), n_steps=16, batch_size=16, **small())
    floor = SmoothedPPO("MlpPolicy", IdentityEnv(4), n_steps=16, batch_size=16, exploration_floor=0.4, **small())
    generator = np.random.default_rng(0)
    masks = np.array([[True, False, True, True]])
    seen = [np.int64(2)]
    for given, world, mask in ((model, env, masks), (plain, IdentityEnv(4), None)):
        labels = ask(given, world, targets="probabilities").label(seen, mask, generator)
        tensors, _ = given.policy.obs_to_tensor(np.array(seen))
        more = {} if mask is None else {"action_masks": masks}
        expected = given.policy.get_distribution(tensors, **more).distribution.probs.detach().numpy()
        np.testing.assert_allclose(labels.probabilities, expected, atol=1e-6)
        assert labels.actions[0] == expected.argmax()
    (row,) = ask(floor, IdentityEnv(4), targets="probabilities").label(seen, None, generator).probabilities  # type: ignore[misc]
    np.testing.assert_allclose(row, floor.policy.action_probabilities(np.array(seen))[0].detach().numpy(), atol=1e-6)


def test_sampled_labels_follow_the_probabilities() -> None:
    given = np.array([0.0, 0.6, 0.1, 0.3])
    asked = ask(lambda _: given, IdentityEnv(4), targets="probabilities", deterministic=False)
    generator = np.random.default_rng(0)
    drawn = np.array([asked.label([np.int64(0)], None, generator).actions[0] for _ in range(2000)])
    counts = np.bincount(drawn, minlength=4)
    assert counts[0] == 0
    assert (np.abs(counts / 2000 - given) < 0.04).all()


def test_soft_targets_come_from_a_file_or_an_agent(tmp_path: Path) -> None:
    env = IdentityEnv(4)
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, **small())
    agent = learn(env, save_agent(model, tmp_path / "expert"), expert_targets="probabilities")
    again = learn(env, agent, expert_targets="probabilities")
    for one in (agent, again):
        assert np.asarray(one.demonstrations.action_probs).shape == (len(one.demonstrations), 4)


# ---- mistakes
def test_mistakes_are_told(tmp_path: Path) -> None:
    env = IdentityEnv(4)
    wide, box = IdentityEnv(5), IdentityBoxEnv(2)
    other = PPO("MlpPolicy", wide, n_steps=16, batch_size=16, **small())
    assert_raises(ValueError, "expert has observation_space=Discrete", learn, env, other)
    clone = BC("MlpPolicy", (env.observation_space, box.action_space), None, **small())
    assert_raises(ValueError, "expert has action_space=Box", learn, env, clone)
    with pytest.raises(TypeError, match="expert must have SB3's predict, be a function or name an agent file, got int"):
        learn(env, 3)
    assert_raises(SafeFileError, r"none\.zip' does not exist", learn, env, tmp_path / "none.zip")
    with pytest.raises(ValueError, match="needs a Discrete action space"):
        learn(box, box.expert_action, expert_targets="probabilities")
    with pytest.raises(TypeError, match="expert has the policy DQNPolicy, which does not provide the probabilities"):
        learn(env, DQN("MlpPolicy", env, buffer_size=10, **small()), expert_targets="probabilities")
    recurrent = RecurrentPPO("MlpLstmPolicy", env, n_steps=16, batch_size=16, **small())
    with pytest.raises(TypeError, match="expert has the policy RecurrentActorCriticPolicy"):
        learn(env, recurrent, expert_targets="probabilities")

    class Acting:
        def predict(
            self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: Any = 0
        ) -> Any:
            return observation, state

    with pytest.raises(TypeError, match="expert is a Acting, whose predict gives actions, no probabilities"):
        learn(env, Acting(), expert_targets="probabilities")
    for row, words in (
        (np.full(4, 0.3), "sum to 1"),
        (np.array([1.5, -0.5, 0.0, 0.0]), ">= 0"),
        (np.array([np.nan, 1.0, 0.0, 0.0]), "finite"),
        (np.full(3, 1 / 3), r"floats of shape \(1, 4\)"),
        (np.array([1, 0, 0, 0]), "dtype int64"),
    ):
        assert_raises(ValueError, words, learn, env, lambda _, row=row: row, expert_targets="probabilities")
    with pytest.raises(ValueError, match="returned 1 actions for 2 environments"):
        learn(make_vec_env(lambda: IdentityEnv(4), n_envs=2), lambda seen: seen[:1])


def test_an_expert_of_other_statistics_is_refused(tmp_path: Path) -> None:
    def plain() -> VecEnv:
        return make_vec_env("CartPole-v1")

    trained = VecNormalize(plain())
    model = PPO("MlpPolicy", trained, n_steps=16, batch_size=16, **small()).learn(16)
    alike = VecNormalize(plain(), norm_reward=False, training=False)
    alike.obs_rms = trained.obs_rms
    other = VecNormalize(plain(), norm_reward=False, training=False)
    for given in (model, save_agent(model, tmp_path / "expert")):
        assert ask(given, alike).normalizer is None
        for env, what in (
            (other, r"obs_rms\.mean is"),
            (VecNormalize(plain(), norm_obs=False, norm_reward=False, training=False), "norm_obs is True"),
        ):
            assert_raises(ValueError, f"another VecNormalize than env has.*{what}", ask, given, env)
    assert not np.array_equal(other.obs_rms.mean, trained.obs_rms.mean)  # type: ignore[union-attr]
    alike.clip_obs = 5.0
    assert_raises(ValueError, r"clip_obs is 10\.0 in one, 5\.0 in the other", ask, model, alike)


def test_an_action_outside_the_bounds_by_rounding_is_the_bound() -> None:
    space = spaces.Box(np.float32(-0.3), np.float32(0.9), (1,))
    above = np.nextafter(space.high, np.float32(2))
    assert np.array_equal(checked_action(above, space), space.high)
    inside = np.array([0.1], np.float32)
    assert np.array_equal(checked_action(inside, space), inside)
    assert_raises(ValueError, "outside action_space", checked_action, space.high + np.float32(1e-4), space)


@pytest.mark.parametrize("algorithm", [PPO, SmoothedPPO])
def test_probabilities_of_a_policy_without_masks_are_those_of_the_legal_actions(algorithm: Any) -> None:
    model = algorithm("MlpPolicy", IdentityEnv(3), n_steps=16, batch_size=16, **small())
    expert = ask(model, IdentityEnv(3), targets="probabilities")
    seen, masks = [np.array(1)], np.array([[True, True, False]])
    whole = expert.label(seen, None, np.random.default_rng(0)).probabilities
    legal = expert.label(seen, masks, np.random.default_rng(0)).probabilities
    assert legal[0, 2] == 0
    assert legal[0, :2] == pytest.approx(whole[0, :2] / whole[0, :2].sum(), rel=1e-5)
