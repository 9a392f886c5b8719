"""Runs of DAgger: repeats, callbacks, logs, agent files, episodes on the disk and checkpoints."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger

from rlsmooth.agents import BC, BCO, DAgger, SmoothedPPO, load_agent
from rlsmooth.data import Demonstrations, record
from rlsmooth.envs import IdentityBoxEnv, IdentityEnv, IdentityMaskedEnv, IdentityMultiDiscreteEnv
from rlsmooth.targets import Smoothing
from rlsmooth.training import SafeFileError, checkpoint_steps
from support import Lines, read_events, same_parameters


def make(env: Any = None, **arguments: Any) -> DAgger:
    world = IdentityEnv(4) if env is None else env
    given: dict[str, Any] = {
        "rollout_round_min_timesteps": 50,
        "bc_train_n_epochs": 2,
        "policy_kwargs": {"net_arch": [8]},
        "seed": 0,
        "device": "cpu",
        **arguments,
    }
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


class Counter(BaseCallback):
    """Counts what a callback is told; stops after `most` steps."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.told: list[str] = []

    def _on_training_start(self) -> None:
        self.told.append(f"total {self.locals['total_timesteps']}")

    def _on_rollout_start(self) -> None:
        self.told.append("rollout")

    def _on_step(self) -> bool:
        return self.n_calls < self.most

    def _on_rollout_end(self) -> None:
        self.told.append(f"{self.num_timesteps}")

    def _on_training_end(self) -> None:
        self.told.append("end")


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
    lines = Lines()
    agent = make(beta_schedule=2, eval_env=IdentityEnv(4), n_eval_episodes=3)
    agent.set_logger(Logger(None, [lines]))
    agent.learn(150)
    assert [step for step, _ in lines.lines] == [50, 100, 150]
    tags = lines.lines[1][1]
    assert {f"dagger/{name}": value for name, value in agent.history[1].items()} == tags
    assert {
        "dagger/accuracy",
        "dagger/beta",
        "dagger/cross_entropy",
        "dagger/ece",
        "dagger/entropy_frac",
        "dagger/expert_agreement",
        "dagger/kl_uniform",
        "dagger/learner_share",
        "dagger/mean_ep_length",
        "dagger/mean_episode_reward",
        "dagger/mean_reward",
        "dagger/mean_reward_sampled",
        "dagger/nll_hard",
        "dagger/policy_entropy",
        "dagger/round",
        "dagger/round_episode_count",
        "dagger/round_num",
        "dagger/round_timestep_count",
        "dagger/smoothing",
        "dagger/total_timesteps",
        "dagger/transitions",
    } <= set(tags)
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


# ---- agent files, episodes on the disk and checkpoints; runs that are cut off
TOTAL = 120
ROUND = 40


def expert(seen: Any) -> Any:
    return int(seen)


def make_rounds(env: Any = None, **arguments: Any) -> DAgger:
    given: dict[str, Any] = {
        "rollout_round_min_timesteps": ROUND,
        "bc_train_n_epochs": 1,
        "beta_schedule": 2,
        "policy_kwargs": {"net_arch": [8]},
        "seed": 0,
        "device": "cpu",
        **arguments,
    }
    policy = given.pop("policy", "MlpPolicy")
    return DAgger(policy, IdentityEnv(4) if env is None else env, given.pop("expert", expert), **given)


class Cut:
    """A callback that ends a run as an exception would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps >= self.step:
            raise KeyboardInterrupt
        return True


# ---- agent files
def test_the_file_is_that_of_the_clone_and_more(tmp_path: Path) -> None:
    agent = make_rounds(
        smoothing=Smoothing(0.2, reference=torch.tensor([0.1, 0.2, 0.3, 0.4])), beta_schedule=0.5
    ).learn(ROUND)
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
    with pytest.raises(ValueError, match="expert is None"):
        DAgger.load(path, IdentityEnv(4), device="cpu").learn(ROUND)


def test_a_whole_number_of_rounds_stays_one(tmp_path: Path) -> None:
    one, many = (DAgger.load(make_rounds(beta_schedule=given).save(tmp_path / "agent")) for given in (1.0, 1))
    assert (one.beta(1), many.beta(1)) == (1.0, 0.0)


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
    with pytest.raises(SafeFileError, match="no agent of DAgger"):
        DAgger.load(clone.save(tmp_path / "clone"))
    path = make_rounds().save(tmp_path / "agent")
    with pytest.raises(SafeFileError, match="no agent of BCO"):
        BCO.load(path)
    with pytest.raises(ValueError, match="env has observation_space"):
        DAgger.load(path, IdentityEnv(5))
    with pytest.raises(TypeError, match="expert must have"):
        DAgger.load(path, IdentityEnv(4), 3)  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(SafeFileError):
        DAgger.load(path)


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


def test_the_same_seed_writes_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_rounds(scratch_dir=tmp_path / name).learn(TOTAL)
    paths = sorted((tmp_path / "one" / "demos").rglob("*.npz"))
    assert len(paths) == 12
    for path in paths:
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


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
        make_rounds(**arguments, scratch_dir=tmp_path).learn(TOTAL, Cut(cut))
    resume: dict[str, Any] = {"eval_env": arguments.get("eval_env"), "device": "cpu"}
    given = arguments.get("expert", expert)
    resumed = DAgger.resume(tmp_path, IdentityEnv(4), given, **resume)
    assert resumed.round == (cut - 1) // ROUND
    resumed.learn(TOTAL)
    assert resumed.round == 3
    assert same_parameters(whole, resumed)
    assert resumed.history == whole.history
    one, two = whole.demonstrations, resumed.demonstrations
    assert one is not None
    assert two is not None
    for name in ("observations", "actions", "episode_ends", "truncations", "action_probs"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    again = DAgger.resume(tmp_path, IdentityEnv(4), given, **resume).learn(TOTAL)  # of a run that has ended
    assert same_parameters(whole, again)
    assert again.round == 3


def test_several_environments_and_a_second_call(tmp_path: Path) -> None:
    env = make_vec_env(lambda: IdentityEnv(4), n_envs=2)
    whole = make_rounds().learn(ROUND).learn(2 * ROUND)
    agent = make_rounds(scratch_dir=tmp_path / "one").learn(ROUND)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(2 * ROUND, Cut(100))
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
    with pytest.raises(ValueError, match=r"002\.npz"):
        DAgger.resume(tmp_path, IdentityEnv(4), expert, device="cpu")
    episode.write_bytes(content)
    other.save(tmp_path / "demos" / "initial.npz")
    with pytest.raises(ValueError, match=r"initial\.npz' does not hold what the run was started with"):
        DAgger.resume(tmp_path, IdentityEnv(4), expert, device="cpu")


def test_killed_before_the_first_checkpoint(tmp_path: Path) -> None:
    agent = make_rounds(scratch_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(TOTAL, Cut(1))
    (tmp_path / "checkpoint_0.zip").unlink()
    resumed = DAgger.resume(tmp_path, IdentityEnv(4), expert, device="cpu").learn(TOTAL)
    assert same_parameters(resumed, make_rounds().learn(TOTAL))


def test_ones_own_folder_is_never_refused_and_anothers_always(tmp_path: Path) -> None:
    agent = make_rounds(scratch_dir=tmp_path / "own")
    with pytest.raises(KeyboardInterrupt):
        agent.learn(ROUND, Cut(5))
    assert agent.num_timesteps == 0  # the round that was broken off leaves nothing
    assert agent.learn(ROUND).round == 1
    other = make_rounds().learn(2 * ROUND)
    assert other.round > agent.round
    other.scratch_dir = tmp_path / "own"
    with pytest.raises(ValueError, match="another run's checkpoints"):
        other.learn(ROUND)
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


@pytest.mark.parametrize("schedule", [np.int64(4), np.float32(0.5)])
def test_numpys_numbers_are_kept(schedule: Any, tmp_path: Path) -> None:
    path = make_rounds(beta_schedule=schedule).save(tmp_path / "agent")
    assert DAgger.load(path, device="cpu").beta_schedule == schedule
