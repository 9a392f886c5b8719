"""Agent files, checkpoints of killed runs, data on the disk, warm starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO

from rlsmooth.agents import BC, TrainingDivergedError
from rlsmooth.agents.cloning import training_data
from rlsmooth.data import Demonstrations, cartpole_v1, cartpole_v1_noisy
from rlsmooth.targets import Smoothing, Tree
from rlsmooth.training import SafeFileError, checkpoint_steps
from rlsmooth.training import run as engine
from support import draw, same_parameters


def make(demonstrations: Demonstrations | None = None, **arguments: Any) -> BC:
    chosen = draw() if demonstrations is None else demonstrations
    small = {"net_arch": [8]}
    return BC("MlpPolicy", None, chosen, **{"seed": 0, "device": "cpu", "policy_kwargs": small, **arguments})


# ---- agent files
def test_three_lines_load_an_agent_that_acts(tmp_path: Path) -> None:
    BC("MlpPolicy", "CartPole-v1", cartpole_v1_noisy(), seed=0).learn(total_batches=3).save(tmp_path / "agent")
    agent = BC.load(tmp_path / "agent.zip")
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    action, _ = agent.predict(observation, deterministic=True)
    assert env.action_space.contains(action.item())
    with pytest.raises(ValueError, match="demonstrations is None"):
        agent.learn(total_batches=1)


TREE = Tree.from_nested({"a": ["0", "1"], "b": ["2"]})


@pytest.mark.parametrize(
    "arguments",
    [
        {"smoothing": Smoothing(0.2, reference=TREE, decay=0.5), "max_grad_norm": 0.5, "l2_coef": 0.01},
        {"smoothing": "lin_0.3", "learning_rate": "lin_0.01", "kl_coef": 0.2, "reference": TREE},
        {"smoothing": Smoothing(torch.tensor(0.3)), "kl_coef": 0.1, "reference": torch.tensor([0.5, 0.25, 0.25])},
        {"validation_fraction": 0.25, "early_stopping_patience": 4, "gradient_accumulation": 2},
    ],
    ids=["tree", "schedules", "prior", "early stopping"],
)
def test_a_loaded_agent_trains_on_as_if_it_had_never_been_saved(arguments: dict[str, Any], tmp_path: Path) -> None:
    agent = make(batch_size=8, **arguments)
    agent.learn(total_batches=4)
    path = agent.save(tmp_path / "agent.zip")
    loaded = BC.load(path, demonstrations=draw(), device="cpu")
    assert same_parameters(agent, loaded)
    assert loaded.num_timesteps == 4
    for one in (agent, loaded):
        one.learn(total_batches=6, reset_num_timesteps=False)
    assert same_parameters(agent, loaded)
    assert BC.load(path, device="cpu").demonstrations is None


def test_callables_are_asked_for_again(tmp_path: Path) -> None:
    schedules: dict[str, Any] = {
        "learning_rate": lambda progress: 0.01 * progress,
        "smoothing": Smoothing(lambda progress: 0.3 * progress),
    }
    agent = make(**schedules).learn(total_batches=2)
    path = agent.save(tmp_path / "agent")
    acting = BC.load(path, demonstrations=draw(), device="cpu")
    acting.predict(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"smoothing, learning_rate was a callable.*custom_objects"):
        acting.learn(total_batches=1)
    loaded = BC.load(path, demonstrations=draw(), device="cpu", custom_objects=schedules)
    for one in (agent, loaded):
        one.learn(total_batches=3, reset_num_timesteps=False)
    assert same_parameters(agent, loaded)


@pytest.mark.parametrize("saved", [0.01, lambda progress: 0.01 * progress])
@pytest.mark.parametrize("given", [0.5, "lin_0.5"])
def test_a_learning_rate_given_to_load_is_used(saved: Any, given: Any, tmp_path: Path) -> None:
    path = make(learning_rate=saved).learn(total_batches=2).save(tmp_path / "agent")
    loaded = BC.load(path, demonstrations=draw(), device="cpu", custom_objects={"learning_rate": given})
    loaded.learn(total_batches=1)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == 0.5


def test_images_and_starts_survive_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    demonstrations = Demonstrations.from_arrays(
        rng.integers(256, size=(6, 36, 36, 3), dtype=np.uint8),
        rng.integers(7, 10, size=6),
        observation_space=spaces.Box(0, 255, (36, 36, 3), dtype=np.uint8),
        action_space=spaces.Discrete(3, start=7),
        episode_ends=[6],
    )
    agent = BC("CnnPolicy", None, demonstrations, seed=0, device="cpu").learn(total_batches=1)
    loaded = BC.load(agent.save(tmp_path / "agent"), demonstrations=demonstrations, device="cpu")
    one, _ = agent.predict(demonstrations.observations, deterministic=True)
    two, _ = loaded.predict(demonstrations.observations, deterministic=True)
    assert np.array_equal(one, two)
    assert one.min() >= 7


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = make().save(tmp_path / "agent")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SafeFileError):
        BC.load(path)
    from rlsmooth.agents import save_agent_file

    other = save_agent_file(tmp_path / "other", kind="dagger", policy=make().policy, config={})
    with pytest.raises(SafeFileError, match="dagger"):
        BC.load(other)
    malformed = save_agent_file(tmp_path / "malformed", kind="bc", policy=make().policy, config={"arguments": {}})
    with pytest.raises(SafeFileError, match="arguments"):
        BC.load(malformed)
    with pytest.raises(ValueError, match="observation_space"):
        BC.load(make().save(tmp_path / "whole"), env="CartPole-v1")


# ---- checkpoints
def checkpointed(folder: Path, **arguments: Any) -> BC:
    return make(batch_size=4, checkpoint_folder=folder, checkpoint_every=3, **arguments)


class Stop:
    """A callback that ends a run as an exception would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps == self.step:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"smoothing": "lin_0.3", "learning_rate": "lin_0.01", "gradient_accumulation": 2},
        {"validation_fraction": 0.25, "early_stopping_patience": 2, "learning_rate": 0.05},
        {"policy_kwargs": {"optimizer_class": torch.optim.RMSprop}},
    ],
    ids=["plain", "schedules", "early stopping", "RMSprop"],
)
@pytest.mark.parametrize("cut", [1, 7])
def test_a_resumed_run_ends_as_an_uninterrupted_one(arguments: dict[str, Any], cut: int, tmp_path: Path) -> None:
    whole = make(batch_size=4, **arguments).learn(total_epochs=3)
    with pytest.raises(KeyboardInterrupt):
        checkpointed(tmp_path, **arguments).learn(total_epochs=3, callback=Stop(cut))
    resumed = BC.resume(tmp_path, None, draw(), device="cpu")
    assert resumed.num_timesteps == cut - cut % 3 - (3 if cut % 3 == 0 else 0)
    with pytest.raises(ValueError, match="schedules depend on it"):
        resumed.learn(total_epochs=4)
    resumed.learn(total_epochs=3)
    assert resumed.num_timesteps == whole.num_timesteps
    assert same_parameters(whole, resumed)
    again = BC.resume(tmp_path, None, draw(), device="cpu").learn(total_epochs=3)  # of a run that has ended
    assert same_parameters(whole, again)
    again.learn(total_batches=2, reset_num_timesteps=False)


def test_a_run_that_was_killed_before_its_first_checkpoint_is_resumed(tmp_path: Path, monkeypatch: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "save_checkpoint", fail)
        with pytest.raises(KeyboardInterrupt):
            checkpointed(tmp_path).learn(total_epochs=2)
    assert checkpoint_steps(tmp_path) == []
    resumed = BC.resume(tmp_path, None, draw(), device="cpu").learn(total_epochs=2)
    assert same_parameters(resumed, make(batch_size=4).learn(total_epochs=2))


def test_a_second_call_is_refused_or_goes_on_but_loses_nothing(tmp_path: Path) -> None:
    agent = checkpointed(tmp_path).learn(total_batches=4)
    with pytest.raises(ValueError, match="reset_num_timesteps=False"):
        agent.learn(total_batches=4)
    assert agent.num_timesteps == 4
    agent.learn(total_batches=4, reset_num_timesteps=False)
    assert checkpoint_steps(tmp_path) == [6, 8]
    with torch.no_grad():
        next(agent.policy.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingDivergedError):
        agent.learn(total_batches=4, reset_num_timesteps=False)
    good = BC.resume(tmp_path, None, draw(), device="cpu")
    assert all(parameter.isfinite().all() for parameter in good.policy.parameters())


def test_what_does_not_belong_together_is_not_resumed(tmp_path: Path) -> None:
    checkpointed(tmp_path).learn(total_batches=4)
    with pytest.raises(ValueError, match="demonstrations is None"):
        BC.resume(tmp_path, device="cpu")
    with pytest.raises(ValueError, match="validation: these are not those"):
        BC.resume(tmp_path, None, draw(), validation=draw(seed=2), device="cpu")
    assert checkpoint_steps(tmp_path) == [3, 4]
    (tmp_path / "checkpoint_4.zip").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="Passed over a bad checkpoint"):
        assert BC.resume(tmp_path, None, draw(), device="cpu").num_timesteps == 3


# ---- data on the disk
@pytest.mark.parametrize(
    "arguments", [{}, {"smoothing": "lin_0.2"}, {"kl_coef": 0.2, "reference": torch.tensor([0.5, 0.25, 0.25])}]
)
def test_a_memory_mapped_folder_trains_as_an_array_does(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_data, "BLOCK_BYTES", 1500)  # several blocks an epoch
    masks = np.ones((40, 3), dtype=bool)
    demonstrations = draw(weights=np.linspace(0.5, 2, 40), action_masks=masks)
    demonstrations.save_folder(tmp_path / "folder")
    mapped = Demonstrations.load(tmp_path / "folder")
    agents = [
        make(data, batch_size=8, validation_fraction=0.25, **arguments).learn(total_epochs=3)
        for data in (demonstrations, mapped)
    ]
    assert [agent._data.is_streamed for agent in agents if agent._data is not None] == [False, True]
    assert same_parameters(*agents)
    assert agents[0].fingerprints == agents[1].fingerprints


def test_an_epoch_reads_every_row_once_and_skips_to_any_update() -> None:
    agent = make(batch_size=6, gradient_accumulation=2)
    order = torch.randperm(40)
    updates = list(agent._data.updates(order, 6, 2))
    assert [[len(part.labels) for part in update] for update in updates] == [[6, 6], [6, 6], [6, 6], [4]]
    rows = torch.cat([part.observations for update in updates for part in update])  # type: ignore[misc]
    torch.testing.assert_close(rows, torch.as_tensor(draw().observations)[order])
    (last,) = agent._data.updates(order, 6, 2, skip=3)
    assert torch.equal(last[0].observations, updates[3][0].observations)  # type: ignore[arg-type]


# ---- warm starts
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_an_sb3_algorithm_starts_where_cloning_ended(algorithm: Any) -> None:
    agent = BC("MlpPolicy", "CartPole-v1", cartpole_v1_noisy(), seed=0, device="cpu").learn(total_epochs=2)
    model = algorithm("MlpPolicy", "CartPole-v1", seed=1, device="cpu")
    critic = model.policy.value_net.weight.clone()
    agent.warm_start(model)
    observations = cartpole_v1().observations[:500]
    one, _ = agent.predict(observations, deterministic=True)
    two, _ = model.predict(observations, deterministic=True)
    assert np.array_equal(one, two)
    assert torch.equal(model.policy.value_net.weight, critic)
    model.learn(256)


def test_a_model_that_does_not_fit_is_not_warm_started() -> None:
    agent = BC("MlpPolicy", "CartPole-v1", cartpole_v1_noisy(), seed=0, device="cpu")
    with pytest.raises(ValueError, match="shape"):
        agent.warm_start(PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [32, 32]}, device="cpu"))
    with pytest.raises(ValueError, match="activation_fn"):
        agent.warm_start(PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"activation_fn": torch.nn.ReLU}, device="cpu"))
    with pytest.raises(ValueError, match="architecture"):
        agent.warm_start(DQN("MlpPolicy", "CartPole-v1", device="cpu"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="observation_space"):
        agent.warm_start(PPO("MlpPolicy", "Acrobot-v1", device="cpu"))
    with pytest.raises(TypeError, match="PPO"):
        agent.warm_start(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


def test_maskable_ppo_starts_from_a_maskable_agent() -> None:
    contrib = pytest.importorskip("sb3_contrib")
    from rlsmooth.data import record

    env = gym.make("rlsmooth.envs:rlsmooth/IdentityMasked-v0")
    expert: Any = env.unwrapped
    demonstrations = record(expert.expert_action, env, 10, seed=0)
    agent = BC("MaskableMlpPolicy", env, demonstrations, learning_rate=1e-2, seed=0, device="cpu").learn(total_epochs=5)
    model = contrib.MaskablePPO("MlpPolicy", env, device="cpu")
    agent.warm_start(model)
    masks = demonstrations.action_masks
    one, _ = agent.predict(demonstrations.observations, deterministic=True, action_masks=masks)
    two, _ = model.predict(demonstrations.observations, deterministic=True, action_masks=masks)
    assert np.array_equal(one, two)


def test_numbers_of_numpy_are_kept_as_plain_ones(tmp_path: Path) -> None:
    agent = make(max_grad_norm=np.float32(0.5), tensorboard_log=tmp_path / "log")
    assert type(agent.max_grad_norm) is float
    assert agent.tensorboard_log == str(tmp_path / "log")
    agent.save(tmp_path / "agent")
    assert BC.load(tmp_path / "agent.zip").max_grad_norm == 0.5


def test_resuming_without_demonstrations_says_what_to_give(tmp_path: Path) -> None:
    make(checkpoint_folder=tmp_path).learn(total_batches=1)
    with pytest.raises(ValueError, match=r"^demonstrations is None: a run is resumed with those that it was started"):
        BC.resume(tmp_path)
