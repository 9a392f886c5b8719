"""GAIL and AIRL on the disk: files of the whole trainer, and runs that are killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from rlsmooth.agents import AIRL, GAIL, ExactCheckpointCallback, RewardNet, SmoothedPPO, Transitions
from rlsmooth.agents.adversarial.trainer import AdversarialImitation
from rlsmooth.data import Demonstrations, cartpole_v1, record
from rlsmooth.training import SafeFileError, checkpoint_steps

MASKED = "rlsmooth.envs:rlsmooth/IdentityMasked-v0"
SMALL = {"net_arch": [16]}


def expert() -> Demonstrations:
    return cartpole_v1().sample_episodes(2, seed=0)


def pendulum() -> Demonstrations:
    generator = np.random.default_rng(0)
    states = generator.normal(size=(201, 3)).clip(-1, 1).astype(np.float32)
    return Demonstrations.from_arrays(
        states[:-1],
        generator.uniform(-2, 2, (200, 1)).astype(np.float32),
        observation_space=make_vec_env("Pendulum-v1").observation_space,
        action_space=make_vec_env("Pendulum-v1").action_space,
        episode_ends=[200],
        next_observations=states[1:],
    )


def ppo(model_class: Any = PPO, **arguments: Any) -> Any:
    given = {"n_steps": 64, "batch_size": 64, "n_epochs": 2, "seed": 0, "device": "cpu", **arguments}
    return model_class("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2, seed=0), **given)


def a2c() -> Any:
    return A2C("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2, seed=0), n_steps=16, seed=0, device="cpu")


def normalised(*, norm_reward: bool = False) -> Any:
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0), norm_reward=norm_reward)
    return PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=2, seed=0, device="cpu")


def masked() -> Any:
    env = make_vec_env(MASKED, n_envs=2, seed=0)
    return MaskablePPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")


def dqn() -> Any:
    env = make_vec_env("CartPole-v1", n_envs=2, seed=0)
    return DQN("MlpPolicy", env, learning_starts=100, buffer_size=2000, seed=0, device="cpu", policy_kwargs=dict(SMALL))


def sac() -> Any:
    env = make_vec_env("Pendulum-v1", seed=0)
    given: dict[str, Any] = {"learning_starts": 50, "buffer_size": 2000, "seed": 0, "device": "cpu"}
    return SAC("MlpPolicy", env, train_freq=4, policy_kwargs=dict(SMALL), **given)


def mask_data() -> Demonstrations:
    return record(masked(), MASKED, 3, seed=0)


def assert_same(one: AdversarialImitation, other: AdversarialImitation) -> None:
    for first, second in ((one.policy, other.policy), (one.reward_net, other.reward_net)):
        expected = second.state_dict()
        for name, tensor in first.state_dict().items():
            assert torch.equal(tensor, expected[name]), name
    assert one.rounds == other.rounds
    assert one.draws.bit_generator.state == other.draws.bit_generator.state
    assert one.gen_algo.num_timesteps == other.gen_algo.num_timesteps


@pytest.mark.parametrize(
    ("trainer_class", "build", "data"),
    [
        (GAIL, ppo, expert),
        (GAIL, lambda: ppo(SmoothedPPO, target_entropy_frac=0.5), expert),
        (GAIL, normalised, expert),
        (GAIL, dqn, expert),
        (AIRL, ppo, expert),
        (AIRL, masked, mask_data),
        (AIRL, sac, pendulum),
    ],
    ids=["ppo", "smoothed", "normalised", "dqn", "airl-ppo", "airl-masked", "airl-sac"],
)
def test_a_file_brings_all_back(trainer_class: Any, build: Any, data: Any, tmp_path: Path) -> None:
    given = {"demo_batch_size": 32, "gen_train_timesteps": 128, "real_target": 0.9, "seed": 3}
    trainer = trainer_class(data(), build(), **given).learn(256)
    path = trainer.save(tmp_path / "new" / "trainer")
    assert path.name == "trainer.zip"
    generator, demonstrations = build(), data()
    before = torch.get_rng_state()
    loaded = trainer_class.load(tmp_path / "new" / "trainer", demonstrations, generator)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(loaded, trainer)
    assert loaded.arguments == trainer.arguments
    own, other = trainer.optimizer.state_dict(), loaded.optimizer.state_dict()
    assert own["param_groups"] == other["param_groups"]
    for number, moments in own["state"].items():
        assert torch.equal(moments["exp_avg_sq"], other["state"][number]["exp_avg_sq"])
    rows, _ = trainer.expert.sample(8, np.random.default_rng(0), torch.device("cpu"))
    arrays = (rows.observations.numpy(), rows.actions.numpy(), rows.next_observations.numpy(), np.zeros(8, bool))
    np.testing.assert_array_equal(loaded.predict_reward(*arrays), trainer.predict_reward(*arrays))
    if isinstance(generator, SAC):
        assert torch.equal(generator.log_ent_coef, trainer.gen_algo.log_ent_coef)
    normalizer = generator.get_vec_normalize_env()
    if normalizer is not None:
        np.testing.assert_array_equal(normalizer.obs_rms.mean, trainer.gen_algo.get_vec_normalize_env().obs_rms.mean)
    loaded.learn(128, reset_num_timesteps=False)
    assert (loaded.rounds, generator.num_timesteps) == (3, 384)


class Own(nn.Module):
    """A network that files can't describe."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, rows: Transitions) -> torch.Tensor:
        assert isinstance(rows.observations, torch.Tensor)
        assert rows.absorbing is not None
        return self.layer(rows.observations)[:, 0].masked_fill(rows.absorbing, 0.0)


def test_what_is_the_writers_own_is_asked_for(tmp_path: Path) -> None:
    class OwnAdam(torch.optim.Adam):
        """Not in the table."""

    trainer = GAIL(expert(), ppo(), Own(), disc_opt_cls=OwnAdam, demo_batch_size=32, seed=0).learn(128)
    path = trainer.save(tmp_path / "trainer")
    with pytest.raises(SafeFileError, match="OwnAdam"):
        GAIL.load(path, expert(), ppo(), Own())
    with pytest.raises(SafeFileError, match="reward_net="):
        GAIL.load(path, expert(), ppo(), custom_objects={"disc_opt_cls": OwnAdam})
    net = RewardNet(trainer.gen_algo.observation_space, trainer.gen_algo.action_space)
    with pytest.raises(SafeFileError, match="does not fit RewardNet"):
        GAIL.load(path, expert(), ppo(), net, custom_objects={"disc_opt_cls": OwnAdam})
    loaded = GAIL.load(path, expert(), ppo(), Own(), custom_objects={"disc_opt_cls": OwnAdam})
    assert_same(loaded, trainer)
    assert type(loaded.optimizer) is OwnAdam


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = GAIL(expert(), ppo(), demo_batch_size=32, seed=0).learn(128).save(tmp_path / "trainer")
    with pytest.raises(SafeFileError, match="is of GAIL: use that class, not AIRL"):
        AIRL.load(path, expert(), ppo())
    with pytest.raises(SafeFileError, match="has a PPO, gen_algo is a A2C"):
        GAIL.load(path, expert(), A2C("MlpPolicy", "CartPole-v1", device="cpu"))
    with pytest.raises(SafeFileError, match="does not fit"):
        GAIL.load(path, expert(), ppo(policy_kwargs={"net_arch": [8]}))
    with pytest.raises(SafeFileError, match="wrap it as before"):
        GAIL.load(path, expert(), normalised())
    with pytest.raises(ValueError, match="gen_algo"):
        GAIL.load(path, expert(), PPO("MlpPolicy", "Pendulum-v1", device="cpu"))
    with pytest.raises(SafeFileError, match="does not exist"):
        GAIL.load(tmp_path / "nothing", expert(), ppo())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = GAIL(expert(), ppo(), demo_batch_size=32, seed=0).save(tmp_path / "trainer")
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:-1], b"", bytes([*whole[:2000], whole[2000] ^ 1, *whole[2001:]])):
        path.write_bytes(broken)
        with pytest.raises(SafeFileError):
            GAIL.load(path, expert(), ppo())
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    head = json.loads(members["config.json"])
    changes: list[tuple[tuple[str, ...], Any]] = [
        (("trainer", "arguments", "seed"), "x"),
        (("trainer", "arguments", "extra"), 1),
        (("trainer", "net", "arguments", "net_arch"), 3),
        (("trainer", "net", "kind"), "other"),
        (("trainer", "draws"), {}),
        (("trainer", "rounds"), None),
        (("trainer", "optimizer"), {}),
        (("trainer",), []),
        (("spaces",), []),
        (("generator",), 3),
        (("generator", "attributes"), {"policy": 1}),
    ]
    for keys, value in changes:
        changed = json.loads(json.dumps(head))
        place = changed["config"]
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        with zipfile.ZipFile(path, "w") as archive:
            for name, payload in members.items():
                archive.writestr(name, json.dumps(changed).encode() if name == "config.json" else payload)
        with pytest.raises(SafeFileError):
            GAIL.load(path, expert(), ppo())


class KilledError(Exception):
    """Ends a run in the middle of a rollout."""


class KillAt(BaseCallback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.step:
            raise KilledError
        return True


@pytest.mark.parametrize(
    ("trainer_class", "build", "data", "env"),
    [
        (GAIL, lambda: ppo(SmoothedPPO, target_entropy_frac=0.5), expert, "CartPole-v1"),
        (GAIL, a2c, expert, "CartPole-v1"),
        (GAIL, lambda: normalised(norm_reward=True), expert, "CartPole-v1"),
        (GAIL, dqn, expert, "CartPole-v1"),
        (AIRL, masked, mask_data, MASKED),
        (AIRL, sac, pendulum, "Pendulum-v1"),
    ],
    ids=["smoothed", "a2c", "normalised", "dqn", "airl-masked", "airl-sac"],
)
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(
    trainer_class: Any, build: Any, data: Any, env: str, tmp_path: Path
) -> None:
    # More rows than a round has, so that older ones count too.
    given = {"demo_batch_size": 32, "gen_train_timesteps": 128, "gen_replay_buffer_capacity": 200, "seed": 3}
    whole = trainer_class(data(), build(), **given).learn(640)
    cut = trainer_class(data(), build(), **given)
    with pytest.raises(KilledError):
        cut.learn(640, [ExactCheckpointCallback(100, tmp_path), KillAt(420)])

    def env_again() -> Any:
        venv = make_vec_env(env, n_envs=whole.gen_algo.n_envs, seed=9)
        return VecNormalize(venv) if whole.gen_algo.get_vec_normalize_env() else venv

    run = trainer_class.resume(tmp_path, data(), env_again(), device="cpu")
    assert run.is_exact
    assert 0 < run.remaining_timesteps < 640
    run.trainer.learn(run.remaining_timesteps, run.callback, reset_num_timesteps=False)
    assert_same(run.trainer, whole)
    np.testing.assert_array_equal(run.trainer.generated.observations, whole.generated.observations)
    finished = trainer_class.resume(tmp_path, data(), env_again(), device="cpu")
    assert (finished.remaining_timesteps, finished.total_timesteps) == (0, 640)
    assert_same(finished.trainer, whole)


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    GAIL(expert(), ppo(), demo_batch_size=32, seed=0).learn(128, ExactCheckpointCallback(64, tmp_path / "gail"))
    ppo().learn(128, ExactCheckpointCallback(64, tmp_path / "ppo"))
    env = make_vec_env("CartPole-v1", n_envs=2)
    with pytest.raises(ValueError, match=r"not those that the run in .* was started with"):
        GAIL.resume(tmp_path / "gail", cartpole_v1(), env, device="cpu")
    with pytest.raises(SafeFileError, match="is of GAIL"):
        AIRL.resume(tmp_path / "gail", expert(), env, device="cpu")
    with pytest.raises(SafeFileError, match="without a discriminator"):
        GAIL.resume(tmp_path / "ppo", expert(), env, device="cpu")
    with pytest.raises(ValueError, match="holds no run"):
        GAIL.resume(tmp_path / "none", expert(), env, device="cpu")


SCRIPT = """
import sys
from pathlib import Path
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from rlsmooth.agents import AIRL, ExactCheckpointCallback
from rlsmooth.data import cartpole_v1
from rlsmooth.training import checkpoint_steps

folder, total, end = sys.argv[1], int(sys.argv[2]), sys.argv[3]
env = make_vec_env("CartPole-v1", 2)
if checkpoint_steps(folder):
    run = AIRL.resume(folder, cartpole_v1(), env, device="cpu")
    print("resumed at", run.trainer.gen_algo.num_timesteps)
    trainer = run.trainer.learn(run.remaining_timesteps, run.callback, reset_num_timesteps=False)
else:
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, seed=1, device="cpu")
    trainer = AIRL(cartpole_v1(), model, demo_batch_size=32, seed=2)
    trainer.learn(total, ExactCheckpointCallback(64, folder))
torch.save([trainer.policy.state_dict(), trainer.reward_net.state_dict()], end)
"""


def test_a_killed_process_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    total, folder, end = 1024, tmp_path / "checkpoints", tmp_path / "end.pt"
    model = PPO(
        "MlpPolicy", make_vec_env("CartPole-v1", 2), n_steps=32, batch_size=32, n_epochs=2, seed=1, device="cpu"
    )
    whole = AIRL(cartpole_v1(), model, demo_batch_size=32, seed=2).learn(total)
    command = [sys.executable, "-P", "-c", SCRIPT, str(folder), str(total), str(end)]
    process = subprocess.Popen(command)
    while len(checkpoint_steps(folder)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(float(np.random.default_rng(os.getpid()).uniform(0.0, 0.3)))  # any moment, that of a save too
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not end.exists()
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    assert finished.stdout.startswith("resumed at ")
    for saved, own in zip(torch.load(end, weights_only=True), (whole.policy, whole.reward_net), strict=True):
        for name, tensor in own.state_dict().items():
            assert torch.equal(saved[name], tensor), name
