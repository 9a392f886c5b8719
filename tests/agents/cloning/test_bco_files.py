"""Agent files and checkpoints of cloning from observation; runs that are cut off."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from rlsmooth.agents import BC, BCO, load_agent, save_agent
from rlsmooth.data import ObservationOnly, cartpole_v1
from rlsmooth.targets import Smoothing
from rlsmooth.training import SafeFileError, checkpoint_steps

DATA = ObservationOnly.from_demonstrations(cartpole_v1()).sample_episodes(1, seed=0)


def make(**arguments: Any) -> BCO:
    given: dict[str, Any] = {
        "n_rounds": 3,
        "transitions_per_round": 40,
        "n_epochs": 1,
        "inverse_epochs": 2,
        "inverse_net_arch": (8,),
        "policy_kwargs": {"net_arch": [8]},
        "seed": 0,
        "device": "cpu",
        **arguments,
    }
    return BCO("MlpPolicy", "CartPole-v1", DATA, **given)


def same_parameters(one: Any, two: Any) -> bool:
    pairs = zip(one.policy.state_dict().values(), two.policy.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Cut:
    """A callback that ends a run as an exception would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps == self.step:
            raise KeyboardInterrupt
        return True


# ---- agent files


def test_the_file_is_that_of_the_clone_and_more(tmp_path: Path) -> None:
    smoothing = Smoothing(0.2, reference=torch.tensor([0.25, 0.75]))
    agent = make(smoothing=smoothing, inverse_smoothing="lin_0.1", learning_rate="lin_0.01", n_rounds=1).learn()
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
    with pytest.raises(ValueError, match="no environment to act in"):
        BCO.load(path, device="cpu").learn()


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
    agent = make(learning_rate=lambda progress: 0.01 * progress)
    path = agent.save(tmp_path / "agent")
    with pytest.raises(ValueError, match="learning_rate was a callable"):
        BCO.load(path, "CartPole-v1", DATA, device="cpu").learn()
    given = BCO.load(path, "CartPole-v1", DATA, device="cpu", custom_objects={"learning_rate": 0.01})
    assert given.learn().round == 3


def test_other_files_are_refused(tmp_path: Path) -> None:
    clone = BC("MlpPolicy", None, cartpole_v1(), device="cpu")
    with pytest.raises(SafeFileError, match="no agent of BCO"):
        BCO.load(clone.save(tmp_path / "clone"))
    path = make().save(tmp_path / "agent")
    with pytest.raises(ValueError, match="env has observation_space"):
        BCO.load(path, "Acrobot-v1")
    with pytest.raises(TypeError, match="demonstrations must be"):
        BCO.load(path, "CartPole-v1", [1])  # type: ignore[arg-type]
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(SafeFileError):
        BCO.load(path)
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
    whole = make(**arguments).learn()
    with pytest.raises(KeyboardInterrupt):
        make(**arguments, checkpoint_folder=tmp_path).learn(Cut(cut))
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
    whole = make(n_rounds=1).learn().learn()
    agent = make(n_rounds=1, checkpoint_folder=tmp_path / "one").learn()
    with pytest.raises(KeyboardInterrupt):
        agent.learn(Cut(60))
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
    assert moved.transitions is not None
    assert len(moved.transitions) == 120
    assert same_parameters(moved, resumed)


def test_what_does_not_belong_together_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        BCO.resume(tmp_path / "none", "CartPole-v1", DATA)
    make(checkpoint_folder=tmp_path, n_rounds=2).learn()
    others = ObservationOnly.from_demonstrations(cartpole_v1()).sample_episodes(1, seed=1)
    with pytest.raises(ValueError, match="demonstrations: these are not those"):
        BCO.resume(tmp_path, "CartPole-v1", others, device="cpu")
    with pytest.raises(ValueError, match=r"another run's checkpoints \(round 2\).*BCO\.resume"):
        make(checkpoint_folder=tmp_path).learn()
    assert checkpoint_steps(tmp_path) == [1, 2]
    (tmp_path / "checkpoint_2.zip").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="Passed over a bad checkpoint"):
        back = BCO.resume(tmp_path, "CartPole-v1", DATA, device="cpu")
    assert back.round == 1
    assert same_parameters(back.learn(), make(n_rounds=2).learn())


SCRIPT = """
    import os, random, signal, time
    import torch
    torch.set_num_threads(1)
    from rlsmooth.agents import BCO
    from rlsmooth.data import ObservationOnly, cartpole_v1
    from rlsmooth.training import checkpoint_steps
    from stable_baselines3.common.torch_layers import FlattenExtractor

    class Dropping(FlattenExtractor):  # draws from torch's generator in every forward pass
        def __init__(self, space):
            super().__init__(space)
            self.dropout = torch.nn.Dropout(0.2)

        def forward(self, observations):
            return self.dropout(super().forward(observations))

    data = ObservationOnly.from_demonstrations(cartpole_v1()).sample_episodes(1, seed=0)
    custom = {"features_extractor_class": Dropping}

    def train(name):
        try:
            agent = BCO.resume(name, "CartPole-v1", data, custom_objects=custom, device="cpu")
        except ValueError:
            agent = BCO("MlpPolicy", "CartPole-v1", data, smoothing="lin_0.2", policy_kwargs=custom, n_rounds=12,
                transitions_per_round=40, n_epochs=1, inverse_epochs=2, checkpoint_folder=name, seed=0, device="cpu")
        print(name, agent.round, flush=True)
        agent.learn()
        torch.save(agent.policy.state_dict(), f"{name}.pt")

    def start(name):  # forked, so that the libraries are imported once; killed all the same
        process = os.fork()
        if process == 0:
            train(name)
            os._exit(0)
        return process

    assert os.waitpid(start("whole"), 0)[1] == 0
    moments = random.Random(0)
    for goal in (0, 3, 6, 9):  # rounds: a fixed time would be too early or too late on another machine
        process = start("killed")
        while max([0, *checkpoint_steps("killed")]) < goal and os.waitpid(process, os.WNOHANG)[0] == 0:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.05))
        os.kill(process, signal.SIGKILL)
        print("killed" if os.WIFSIGNALED(os.waitpid(process, 0)[1]) else "too late", flush=True)
    assert os.waitpid(start("killed"), 0)[1] == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_a_run_that_is_killed_again_and_again_ends_the_same(tmp_path: Path) -> None:
    """SIGKILL at random moments, saves included, of a run with dropout and a schedule."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("killed") == 4, lines
    assert any(line.startswith("killed ") and not line.endswith(" 0") for line in lines), lines  # went on midway
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)
