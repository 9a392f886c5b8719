"""Agent files, episodes on the disk and checkpoints of DAgger; runs that are cut off."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env

from rlsmooth.agents import BC, BCO, DAgger, load_agent
from rlsmooth.data import Demonstrations, record
from rlsmooth.envs import IdentityBoxEnv, IdentityEnv, IdentityMaskedEnv
from rlsmooth.targets import Smoothing
from rlsmooth.training import SafeFileError, checkpoint_steps

TOTAL = 120
ROUND = 40


def expert(seen: Any) -> Any:
    return int(seen)


def make(env: Any = None, **arguments: Any) -> DAgger:
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


def same_parameters(one: Any, two: Any) -> bool:
    pairs = zip(one.policy.state_dict().values(), two.policy.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


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
    agent = make(smoothing=Smoothing(0.2, reference=torch.tensor([0.1, 0.2, 0.3, 0.4])), beta_schedule=0.5).learn(ROUND)
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
    one, many = (DAgger.load(make(beta_schedule=given).save(tmp_path / "agent")) for given in (1.0, 1))
    assert (one.beta(1), many.beta(1)) == (1.0, 0.0)


def test_actions_in_bins_survive(tmp_path: Path) -> None:
    env = IdentityBoxEnv(2)
    agent = make(env, expert=env.expert_action, action_bins=5, reference="uniform").learn(ROUND)
    loaded = DAgger.load(agent.save(tmp_path / "agent"), env, env.expert_action, device="cpu")
    seen = np.random.default_rng(0).uniform(-0.5, 0.5, size=(9, 2)).astype(np.float32)
    one, two = (model.predict(seen, deterministic=True)[0] for model in (agent, loaded))
    assert np.array_equal(one, two)
    assert loaded.learn(ROUND).round == 1


def test_functions_are_asked_for_again(tmp_path: Path) -> None:
    agent = make(beta_schedule=lambda _: 0.5, learning_rate=lambda progress: 0.01 * progress)
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
    path = make().save(tmp_path / "agent")
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
    agent = make(env, expert=env.expert_action, scratch_dir=tmp_path, demonstrations=initial).learn(2 * ROUND)
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
        make(scratch_dir=tmp_path / name).learn(TOTAL)
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
    whole = make(**arguments).learn(TOTAL)
    with pytest.raises(KeyboardInterrupt):
        make(**arguments, scratch_dir=tmp_path).learn(TOTAL, Cut(cut))
    resume: dict[str, Any] = {"eval_env": arguments.get("eval_env"), "device": "cpu"}
    given = arguments.get("expert", expert)
    resumed = DAgger.resume(tmp_path, IdentityEnv(4), given, **resume)
    assert resumed.round == (cut - 1) // ROUND
    with pytest.raises(ValueError, match="was for total_timesteps=120, not 80"):
        resumed.learn(80)
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
    whole = make().learn(ROUND).learn(2 * ROUND)
    agent = make(scratch_dir=tmp_path / "one").learn(ROUND)
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
    with pytest.raises(ValueError, match=r"scratch_dir=.*holds no run"):
        DAgger.resume(tmp_path / "none", IdentityEnv(4), expert)
    make(scratch_dir=tmp_path).learn(TOTAL)
    with pytest.raises(ValueError, match=r"another run's checkpoints \(round 3\).*DAgger\.resume"):
        make(scratch_dir=tmp_path).learn(TOTAL)
    assert checkpoint_steps(tmp_path) == [2, 3]
    (tmp_path / "checkpoint_3.zip").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="Passed over a bad checkpoint"):
        back = DAgger.resume(tmp_path, IdentityEnv(4), expert, device="cpu")
    assert back.round == 2
    assert same_parameters(back.learn(TOTAL), make().learn(TOTAL))
    episode = tmp_path / "demos" / "round-001" / "002.npz"
    other = make(seed=1).learn(ROUND).rounds[0].select_episodes([0])
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
    agent = make(scratch_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(TOTAL, Cut(1))
    (tmp_path / "checkpoint_0.zip").unlink()
    resumed = DAgger.resume(tmp_path, IdentityEnv(4), expert, device="cpu").learn(TOTAL)
    assert same_parameters(resumed, make().learn(TOTAL))


SCRIPT = """
    import os, random, signal, time
    import torch
    torch.set_num_threads(1)
    from rlsmooth.agents import DAgger
    from rlsmooth.training import checkpoint_steps
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.torch_layers import FlattenExtractor

    class Dropping(FlattenExtractor):  # draws from torch's generator in every forward pass
        def __init__(self, space):
            super().__init__(space)
            self.dropout = torch.nn.Dropout(0.2)

        def forward(self, observations):
            return self.dropout(super().forward(observations))

    custom = {"features_extractor_class": Dropping}

    def expert(seen):
        return (seen[:, 2] > 0).astype(int)  # falls soon: rounds are short

    def train(name):
        env = make_vec_env("CartPole-v1", n_envs=2)
        try:
            agent = DAgger.resume(name, env, expert, custom_objects=custom, device="cpu")
        except ValueError:
            agent = DAgger("MlpPolicy", env, expert, smoothing="lin_0.2", policy_kwargs=custom, beta_schedule=0.5,
                rollout_round_min_episodes=2, rollout_round_min_timesteps=20, bc_train_n_epochs=1, scratch_dir=name,
                seed=0, device="cpu")
        print(name, agent.round, flush=True)
        agent.learn(2000)
        torch.save({**agent.policy.state_dict(), "labels": torch.tensor(agent.demonstrations.actions)}, f"{name}.pt")

    def start(name):  # forked, so that the libraries are imported once; killed all the same
        process = os.fork()
        if process == 0:
            train(name)
            os._exit(0)
        return process

    assert os.waitpid(start("whole"), 0)[1] == 0
    last = max(checkpoint_steps("whole"))
    moments = random.Random(0)
    for goal in range(0, last, max(1, last // 4)):  # rounds: a fixed time would be wrong on another machine
        process = start("killed")
        while max([-1, *checkpoint_steps("killed")]) < goal and os.waitpid(process, os.WNOHANG)[0] == 0:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.05))
        os.kill(process, signal.SIGKILL)
        print("killed" if os.WIFSIGNALED(os.waitpid(process, 0)[1]) else "too late", flush=True)
    assert os.waitpid(start("killed"), 0)[1] == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_a_run_that_is_killed_again_and_again_ends_the_same(tmp_path: Path) -> None:
    """SIGKILL at random moments, saves included, of a run with dropout, a schedule and a learner that acts."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("killed") >= 4, lines
    assert any(line.startswith("killed ") and not line.endswith(" 0") for line in lines), lines  # went on midway
    one, two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_ones_own_folder_is_never_refused_and_anothers_always(tmp_path: Path) -> None:
    agent = make(scratch_dir=tmp_path / "own")
    with pytest.raises(KeyboardInterrupt):
        agent.learn(ROUND, Cut(5))
    assert agent.num_timesteps == 0  # the round that was broken off leaves nothing
    assert agent.learn(ROUND).round == 1
    other = make().learn(2 * ROUND)
    assert other.round > agent.round
    other.scratch_dir = tmp_path / "own"
    with pytest.raises(ValueError, match="another run's checkpoints"):
        other.learn(ROUND)
    resumed = DAgger.resume(tmp_path / "own", IdentityEnv(4), expert, device="cpu").learn(ROUND)
    assert resumed.learn(ROUND).round > 1


def test_only_leftovers_of_our_own_are_deleted(tmp_path: Path) -> None:
    make(scratch_dir=tmp_path).learn(ROUND)
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
    path = make(beta_schedule=schedule).save(tmp_path / "agent")
    assert DAgger.load(path, device="cpu").beta_schedule == schedule
