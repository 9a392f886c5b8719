"""Hyperparameters: the package's files agree with RL Zoo's, RL Zoo's own files can be read, and mistakes are told."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn

from rlsmooth.agents import SmoothedPPO
from rlsmooth.envs import ENVIRONMENTS
from rlsmooth.scripts.hyperparameters import Hyperparameters, read_hyperparameters, resolve_hyperparameters

ALGORITHMS: dict[str, Any] = {"ppo": PPO, "a2c": A2C, "maskable-ppo": MaskablePPO, "recurrent-ppo": RecurrentPPO}


def zoo_file(algorithm: str) -> Path:
    """The file of the installed RL Zoo; importing the package would register environments."""
    spec = importlib.util.find_spec("rl_zoo3")
    return Path(spec.submodule_search_locations[0]) / "hyperparams" / f"{algorithm}.yml"


def resolved(command: str, env: str, conf_file: Path | None = None, *overrides: str) -> Hyperparameters:
    return resolve_hyperparameters(read_hyperparameters(command, env, conf_file, overrides), ALGORITHMS[command])


def comparable(value: Any) -> Any:
    """With schedules by what they give: SB3's have no equality of their own."""
    if isinstance(value, dict):
        return {name: comparable(part) for name, part in value.items()}
    return [value(progress) for progress in (1.0, 0.3, 0.0)] if callable(value) and "Schedule" in repr(value) else value


@pytest.mark.parametrize(
    ("command", "zoo", "ours", "theirs"),
    [
        *(
            (command, command, env, env)
            for command in ("ppo", "a2c")
            for env in ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1", "LunarLander-v3")
        ),
        ("recurrent-ppo", "ppo_lstm", "Acrobot-v1", "Acrobot-v1"),
        ("recurrent-ppo", "ppo_lstm", "CartPole-v1", "CartPoleNoVel-v1"),
        ("recurrent-ppo", "ppo_lstm", "Pendulum-v1", "PendulumNoVel-v1"),
        ("recurrent-ppo", "ppo_lstm", "MountainCar-v0", "MountainCarNoVel-v0"),
        ("recurrent-ppo", "ppo_lstm", "LunarLander-v3", "LunarLanderNoVel-v2"),
    ],
)
def test_they_are_rl_zoos(command: str, zoo: str, ours: str, theirs: str) -> None:
    mine, its = resolved(command, ours), resolved(command, theirs, zoo_file(zoo))
    assert (mine.n_timesteps, mine.n_envs, mine.policy) == (its.n_timesteps, its.n_envs, its.policy)
    assert mine.normalize == its.normalize
    assert comparable(dict(mine.arguments)) == comparable(dict(its.arguments))


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "ppo_lstm"])
def test_rl_zoos_own_files_can_be_used(algorithm: str, tmp_path: Path) -> None:
    command = {"ppo_lstm": "recurrent-ppo"}.get(algorithm, algorithm)
    table = yaml.safe_load(zoo_file(algorithm).read_text())
    unsupported = {"env_wrapper", "vec_env_wrapper", "frame_stack", "callback", "monitor_kwargs"}
    read = 0
    for env, values in table.items():
        if read == 0 and not unsupported & set(values):  # the whole file is parsed each time: once is enough
            assert resolved(command, env, zoo_file(algorithm)).n_timesteps == values["n_timesteps"]
        own = tmp_path / "one.yml"
        own.write_text(yaml.safe_dump({env: values}))
        if unsupported & set(values):
            with pytest.raises(ValueError, match=r"of RL Zoo can't be used here"):
                resolved(command, env, own)
        else:
            found = resolved(command, env, own)
            assert found.n_timesteps == values["n_timesteps"]
            read += 1
            if isinstance(values.get("policy_kwargs"), str):  # written as a Python expression, which is not run
                names = {"nn": nn, "RMSpropTFLike": RMSpropTFLike, "dict": dict}
                assert found.arguments["policy_kwargs"] == eval(values["policy_kwargs"], names)
    assert read > 20


@pytest.mark.parametrize("command", sorted(ALGORITHMS))
def test_every_environment_of_ours_has_some(command: str) -> None:
    for entry in ENVIRONMENTS:
        if command == "maskable-ppo" and "Masked" not in entry.id:
            continue
        values = read_hyperparameters(command, entry.id)
        assert values != read_hyperparameters(command, "NoSuchEnv-v0"), entry.id
        resolve_hyperparameters(values, ALGORITHMS[command])


def test_overrides_come_last_and_are_read_as_yaml() -> None:
    words = ("n_steps=6.4e1", "learning_rate:1e-3", "ent_coef=.5", "normalize=true", "gamma=0.9", "clip_range=lin_0.3")
    found = resolved("ppo", "CartPole-v1", None, *words, "policy_kwargs={net_arch: [8], activation_fn: ReLU}")
    arguments = dict(found.arguments)
    assert (arguments["n_steps"], type(arguments["n_steps"])) == (64, int)
    assert arguments["learning_rate"] == 1e-3
    assert arguments["ent_coef"] == 0.5
    assert arguments["policy_kwargs"] == {"net_arch": [8], "activation_fn": nn.ReLU}
    assert found.normalize == {"gamma": 0.9}  # VecNormalize discounts as the algorithm does
    assert [arguments["clip_range"](progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([0.3, 0.15, 0.0])


def test_our_algorithms_take_their_parents_arguments_and_their_own() -> None:
    values = {**read_hyperparameters("ppo", "Pendulum-v1"), "smoothing": 0.1, "exploration_floor": "lin_0.1"}
    found = resolve_hyperparameters(values, SmoothedPPO)
    assert found.arguments["smoothing"] == 0.1
    assert found.arguments["sde_sample_freq"] == 4
    with pytest.raises(ValueError, match=r"'kwargs' is unknown to SmoothedPPO: choose of .*exploration_floor.*n_steps"):
        resolve_hyperparameters({"kwargs": 1}, SmoothedPPO)


def test_normalization_may_be_a_part() -> None:
    for words in ("normalize={norm_reward: false}", "normalize=dict(norm_reward=False)"):
        assert resolved("ppo", "X-v0", None, words).normalize == {"gamma": 0.99, "norm_reward": False}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("n_steps", "'n_steps' must be key=value"),
        ("no_such=1", "'no_such' is unknown to PPO: choose of"),
        ("seed=1", "'seed' is unknown"),
        ("learning_rate=fast", "learning_rate='fast' must be a number, or such as"),
        ("learning_rate=lin_0_1", "learning_rate='lin_0_1'"),
        ("learning_rate=-1", "learning_rate=-1 must be a number above 0"),
        ("clip_range=[1]", "clip_range="),
        ("n_timesteps=0", "n_timesteps=0"),
        ("n_timesteps=1.5", "n_timesteps must be a whole number"),
        ("n_envs=0", "n_envs=0"),
        ("n_steps=64.5", "n_steps=64.5 must be a whole number"),
        ("n_epochs=true", "n_epochs=True must be a number"),
        ("use_sde=1", "use_sde=1 must be true or false"),
        ("gamma=high", "gamma='high' must be a number"),
        ("target_kl=small", "target_kl='small' must be a number"),
        ("policy=3", "policy=3"),
        ("policy_kwargs=3", "policy_kwargs=3"),
        ("policy_kwargs={activation_fn: Sin}", "activation_fn='Sin' is unknown: choose one of"),
        ("policy_kwargs=dict(net_arch=open('x'))", "policy_kwargs="),
        ("policy_kwargs=__import__('os')", "policy_kwargs="),
        ("env_kwargs=3", "env_kwargs=3"),
        ("_init_setup_model=false", "'_init_setup_model' is unknown"),
        ("n_steps={", "the value of 'n_steps={' can't be read"),
    ],
)
def test_a_wrong_override_is_told(word: str, says: str) -> None:
    with pytest.raises((ValueError, TypeError)) as told:
        resolved("ppo", "CartPole-v1", None, word)
    assert says in str(told.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [("[1]", "must be a mapping"), ("a: [", "can't be read"), ("Other-v0: {}", "neither for 'CartPole-v1' nor")],
)
def test_a_wrong_file_is_told(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "conf.yml"
    path.write_text(content)
    with pytest.raises(ValueError, match=says):
        read_hyperparameters("ppo", "CartPole-v1", path)
    with pytest.raises(ValueError, match="can't be read"):
        read_hyperparameters("ppo", "CartPole-v1", tmp_path / "missing.yml")


def test_a_file_runs_no_code(tmp_path: Path) -> None:
    path, witness = tmp_path / "conf.yml", tmp_path / "witness"
    path.write_text(
        f"default: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{witness}']]"
    )
    with pytest.raises(ValueError, match="can't be read"):
        read_hyperparameters("ppo", "CartPole-v1", path)
    path.write_text(f"""default: {{policy_kwargs: "dict(a=open('{witness}', 'w'))"}}""")
    with pytest.raises(ValueError, match="policy_kwargs"):
        resolved("ppo", "CartPole-v1", path)
    assert not witness.exists()
