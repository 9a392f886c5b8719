"""Every argument of `BC` that can't be: one clear error, before anything is trained or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlsmooth.agents import BC
from rlsmooth.data import Demonstrations
from rlsmooth.schedules import as_schedule
from rlsmooth.targets import Smoothing

FLAT = spaces.Box(-np.inf, np.inf, (3,))
SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "multi": spaces.MultiDiscrete([3, 2]),
    "box": spaces.Box(-1.0, 1.0, (2,)),
}


def draw(action_space: spaces.Space[Any], rows: int = 8, **more: Any) -> Demonstrations:
    action_space.seed(0)
    return Demonstrations.from_arrays(
        np.zeros((rows, 3), np.float32),
        np.stack([np.asarray(action_space.sample()) for _ in range(rows)]),
        observation_space=FLAT,
        action_space=action_space,
        episode_ends=[rows // 2, rows],
        **more,
    )


WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("discrete", {"smoothing": 1.5}, ValueError, "alpha=1.5"),
    ("discrete", {"smoothing": "exp_0.1"}, ValueError, "lin_0.1"),
    ("discrete", {"smoothing": None}, TypeError, "smoothing must be"),
    ("discrete", {"smoothing": [0.1]}, ValueError, "MultiDiscrete"),
    ("multi", {"smoothing": [0.1]}, ValueError, "1 entries.* 2 dimensions"),
    ("multi", {"smoothing": Smoothing(0.1, reference=torch.ones(3) / 3)}, ValueError, "made for 3 classes"),
    ("box", {"smoothing": Smoothing(0.1, reference="adjacent")}, ValueError, "broad Gaussian"),
    ("discrete", {"smoothing": Smoothing(torch.tensor([0.1, 0.2]))}, ValueError, r"shape \(2,\) for 8 transitions"),
    (
        "discrete",
        {"smoothing": Smoothing(torch.full((4,), 0.1)), "validation_fraction": 0.5},
        ValueError,
        "validation data have none",
    ),
    ("discrete", {"kl_coef": -1.0}, ValueError, "kl_coef"),
    ("discrete", {"reference": "nothing"}, ValueError, "nothing"),
    ("discrete", {"reference": 3}, TypeError, "reference must be"),
    ("multi", {"reference": ["uniform"]}, ValueError, "1 entries"),
    ("box", {"reference": "uniform"}, ValueError, "reference_std"),
    ("discrete", {"reference_std": 1.0}, ValueError, "reference_std"),
    ("box", {"reference_std": 0.0}, ValueError, "reference_std"),
    ("discrete", {"learning_rate": 0.0}, ValueError, "learning_rate"),
    ("discrete", {"learning_rate": "lin_-1"}, ValueError, "learning_rate=-1"),
    ("discrete", {"batch_size": 0}, ValueError, "batch_size"),
    ("discrete", {"batch_size": 2.5}, TypeError, "batch_size"),
    ("discrete", {"gradient_accumulation": 0}, ValueError, "gradient_accumulation"),
    ("discrete", {"max_grad_norm": 0.0}, ValueError, "max_grad_norm"),
    ("discrete", {"l2_coef": -0.1}, ValueError, "l2_coef"),
    ("discrete", {"validation_fraction": 1.0}, ValueError, "validation_fraction"),
    ("discrete", {"validation_fraction": 0.01}, ValueError, "leaves a side empty"),
    ("discrete", {"validation_fraction": 0.5, "validation": "same"}, ValueError, "both given"),
    ("discrete", {"validation": "other"}, ValueError, "validation has action_space"),
    ("discrete", {"early_stopping_patience": 3}, ValueError, "needs validation data"),
    ("discrete", {"early_stopping_patience": 0, "validation": "same"}, ValueError, "early_stopping_patience"),
    ("discrete", {"seed": -1}, ValueError, "seed"),
    ("discrete", {"checkpoint_every": 0}, ValueError, "checkpoint_every"),
    ("discrete", {"eval_every": 0}, ValueError, "eval_every"),
    ("discrete", {"n_eval_episodes": 0}, ValueError, "n_eval_episodes"),
    ("discrete", {"eval_env": "NoSuchEnv-v0"}, ValueError, "NoSuchEnv"),
    ("discrete", {"eval_env": "CartPole-v1"}, ValueError, "eval_env has observation_space"),
    ("discrete", {"checkpoint_folder": "/proc/nowhere"}, ValueError, "checkpoint_folder"),
    ("discrete", {"tensorboard_log": "/proc/nowhere"}, ValueError, "tensorboard_log"),
    ("discrete", {"validation": 3}, TypeError, "validation must be rlsmooth.data.Demonstrations"),
    ("multi", {"smoothing": [Smoothing(torch.full((8,), 0.1)), "lin_0.1"]}, ValueError, "beside a schedule"),
]


@pytest.mark.parametrize(("space", "arguments", "error", "message"), WRONG, ids=[f"{w[0]}-{w[3]}" for w in WRONG])
def test_a_wrong_argument_is_named(space: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    demonstrations = draw(SPACES[space])
    others = {"same": demonstrations, "other": draw(spaces.Discrete(5))}
    if isinstance(arguments.get("validation"), str):
        arguments = {**arguments, "validation": others[arguments["validation"]]}
    with pytest.raises(error, match=message):
        BC("MlpPolicy", None, demonstrations, **{"device": "cpu", **arguments})


def test_spaces_must_come_from_somewhere_and_agree() -> None:
    demonstrations = draw(SPACES["discrete"])
    with pytest.raises(ValueError, match="both None"):
        BC("MlpPolicy", None, None)
    with pytest.raises(TypeError, match="env_or_spaces"):
        BC("MlpPolicy", (FLAT, 3), demonstrations)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be an id"):
        BC("MlpPolicy", 3, demonstrations)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="can't be made"):
        BC("MlpPolicy", "NoSuchEnv-v0", demonstrations)
    with pytest.raises(ValueError, match="demonstrations has observation_space"):
        BC("MlpPolicy", gym.make("CartPole-v1"), demonstrations)
    with pytest.raises(ValueError, match="demonstrations has action_space"):
        BC("MlpPolicy", (FLAT, spaces.Discrete(4)), demonstrations)
    with pytest.raises(ValueError, match="demonstrations has action_space"):  # a Box's bounds tell the scale of actions
        BC("MlpPolicy", (FLAT, spaces.Box(-2.0, 2.0, (2,))), draw(SPACES["box"]))
    narrower = spaces.Box(-1.0, 1.0, (3,))
    assert BC("MlpPolicy", (narrower, SPACES["discrete"]), demonstrations, device="cpu").observation_space == narrower
    built = BC("MlpPolicy", None, demonstrations, device="cpu").policy
    with pytest.raises(ValueError, match="policy_kwargs"):
        BC(built, None, demonstrations, policy_kwargs={"net_arch": []})
    assert BC(built, None, demonstrations, device="cpu").policy is built


@pytest.mark.parametrize(
    ("policy", "space", "message"),
    [
        ("CnnPolicy", FLAT, "reads images.*MlpPolicy"),
        ("MultiInputPolicy", FLAT, "MlpPolicy or CnnPolicy"),
        ("MlpPolicy", spaces.Dict(a=FLAT), "use MultiInputPolicy"),
    ],
)
def test_a_policy_that_can_not_read_the_observations_is_named(policy: str, space: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BC(policy, (space, SPACES["discrete"]), None, device="cpu")


def test_demonstrations_must_be_demonstrations() -> None:
    for spaces_given in (None, (FLAT, SPACES["discrete"])):
        with pytest.raises(TypeError, match=r"demonstrations must be rlsmooth\.data\.Demonstrations"):
            BC("MlpPolicy", spaces_given, "cartpole-v1", device="cpu")  # type: ignore[arg-type]


LEARN: list[tuple[Callable[[BC], object], type[Exception], str]] = [
    (lambda agent: agent.learn(), ValueError, "exactly one"),
    (lambda agent: agent.learn(total_epochs=1, total_batches=1), ValueError, "exactly one"),
    (lambda agent: agent.learn(total_epochs=0), ValueError, "total_epochs=0"),
    (lambda agent: agent.learn(total_batches=1.5), TypeError, "total_batches"),  # type: ignore[arg-type]
    (lambda agent: agent.learn(total_batches=1, log_interval=0), ValueError, "log_interval=0"),
]


@pytest.mark.parametrize(("call", "error", "message"), LEARN)
def test_a_wrong_total_trains_nothing(call: Callable[[BC], object], error: type[Exception], message: str) -> None:
    agent = BC("MlpPolicy", None, draw(SPACES["discrete"]), seed=0, device="cpu")
    with pytest.raises(error, match=message):
        call(agent)
    assert agent.num_timesteps == 0


def test_soft_targets_need_an_alpha() -> None:
    demonstrations = draw(SPACES["discrete"], action_probs=np.full((8, 3), 1 / 3))
    with pytest.raises(ValueError, match="alpha=None"):
        BC("MlpPolicy", None, demonstrations, smoothing=Smoothing(None, reference="binomial"), device="cpu")


def test_an_unwritable_folder_is_no_place_for_an_agent(tmp_path: Path) -> None:
    agent = BC("MlpPolicy", None, draw(SPACES["discrete"]), device="cpu")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="can't be written"):
        agent.save(tmp_path / "file" / "agent")


def test_schedules_are_functions_of_the_progress_remaining() -> None:
    assert as_schedule(0.5)(0.1) == 0.5
    assert as_schedule("lin_0.5")(0.1) == pytest.approx(0.05)
    assert as_schedule(lambda progress: progress**2)(0.5) == 0.25
    with pytest.raises(TypeError, match="learning_rate"):
        as_schedule(None)  # type: ignore[arg-type]
