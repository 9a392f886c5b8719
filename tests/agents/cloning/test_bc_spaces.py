"""Every action space, observation space and policy class of `BC`, and every argument that can't be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from rlsmooth.agents import BC
from rlsmooth.agents.heads import CategoricalHead, GaussianHead
from rlsmooth.audits import calibration_error
from rlsmooth.data import Demonstrations
from rlsmooth.losses import cross_entropy, entropy, kl_divergence
from rlsmooth.scripts.measure import measure
from rlsmooth.targets import Smoothing
from support import FLAT, assert_raises, listen, recorded, same_parameters, samples

ROWS = 12
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "discrete_from_5": spaces.Discrete(3, start=5),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_discrete_from": spaces.MultiDiscrete([3, 2], start=[4, -1]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(-2.0, 1.0, (2,)),
    "box_matrix": spaces.Box(-np.inf, np.inf, (2, 2)),
    "one_action": spaces.Discrete(1),
}
GREY = spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8)
OBSERVATIONS: dict[str, tuple[spaces.Space[Any], str]] = {
    "float64": (spaces.Box(-1.0, 1.0, (3,), dtype=np.float64), "MlpPolicy"),
    "discrete": (spaces.Discrete(4), "MlpPolicy"),
    "multi_discrete": (spaces.MultiDiscrete([3, 4]), "MlpPolicy"),
    "multi_binary": (spaces.MultiBinary(5), "MlpPolicy"),
    "image": (spaces.Box(0, 255, (36, 36, 3), dtype=np.uint8), "CnnPolicy"),
    "channel_first": (spaces.Box(0, 255, (3, 36, 40), dtype=np.uint8), "CnnPolicy"),
    "dict": (spaces.Dict({"vector": FLAT, "place": spaces.Discrete(3), "image": GREY}), "MultiInputPolicy"),
}


def draw(observation_space: spaces.Space[Any], action_space: spaces.Space[Any], rows: int = ROWS, **more: Any) -> Any:
    """Demonstrations of random observations and actions."""
    observation_space.seed(0)
    action_space.seed(1)
    made = samples(observation_space, rows), samples(action_space, rows)
    return recorded(*made, observation_space, action_space, [rows // 2, rows], **more)


def evaluate_actions(agent: BC, demonstrations: Demonstrations) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy of the demonstrated actions, by SB3."""
    policy: Any = agent.policy
    observations, _ = policy.obs_to_tensor(demonstrations.observations)
    actions = torch.as_tensor(np.asarray(demonstrations.actions))
    actions = actions.reshape(len(actions), -1).float() if actions.ndim > 1 else actions
    with torch.no_grad():
        _, log_probability, entropy = policy.evaluate_actions(observations, actions)
    return log_probability, entropy


def metrics(agent: BC) -> dict[str, float]:
    """What the next log line says."""
    return agent.measures.training(agent.progress.remaining_of_all)


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("shared", [True, False])
def test_the_numbers_are_those_of_sb3s_distribution(name: str, shared: bool) -> None:
    demonstrations = draw(FLAT, ACTIONS[name])
    given: dict[str, Any] = {"smoothing": 0.1}
    given |= {"policy_kwargs": {"share_features_extractor": shared, "ortho_init": False}, "seed": 0, "device": "cpu"}
    agent = BC("MlpPolicy", None, demonstrations, **given)
    agent.learn(total_epochs=3)
    assert agent.head.direct
    log_probability, entropy = evaluate_actions(agent, demonstrations)
    found = metrics(agent)
    assert found["nll_hard"] == pytest.approx(float(-log_probability.mean()), abs=1e-5)
    assert found["policy_entropy"] == pytest.approx(float(entropy.mean()), abs=1e-5)
    assert found["prob_true_act"] == pytest.approx(float(log_probability.exp().mean()), abs=1e-5)
    assert ("accuracy" in found) == (not name.startswith("box"))
    assert ("entropy_dim1" in found) == name.startswith("multi_discrete")
    action, _ = agent.predict(demonstrations.observations[0])
    assert demonstrations.action_space.contains(
        np.asarray(action, dtype=demonstrations.action_space.dtype)
        if action.shape
        else demonstrations.action_space.dtype.type(action)  # type: ignore[union-attr]
    )
    batch, _ = agent.predict(demonstrations.observations)
    assert batch.shape == (ROWS, *demonstrations.action_space.shape)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_every_observation_space_trains(name: str) -> None:
    observation_space, policy = OBSERVATIONS[name]
    demonstrations = draw(observation_space, spaces.Discrete(2))
    agent = BC(policy, None, demonstrations, smoothing=0.0, learning_rate=1e-2, batch_size=ROWS, seed=0, device="cpu")
    before = metrics(agent)["nll_hard"]
    agent.learn(total_batches=5)
    after = metrics(agent)["nll_hard"]
    assert after < before
    log_probability, _ = evaluate_actions(agent, demonstrations)  # images go through SB3's own transposition
    assert after == pytest.approx(float(-log_probability.mean()), abs=1e-4)
    first = demonstrations[0:1].observations
    one = {key: value[0] for key, value in first.items()} if isinstance(first, dict) else first[0]
    action, _ = agent.predict(one, deterministic=True)
    assert action.shape == ()


@pytest.mark.parametrize("name", ["discrete", "multi_discrete", "multi_binary", "box"])
def test_a_changed_distribution_is_read_instead_of_the_layers(name: str) -> None:
    class Sharper(ActorCriticPolicy):
        def _get_action_dist_from_latent(self, latent_pi: torch.Tensor) -> Distribution:
            return super()._get_action_dist_from_latent(3.0 * latent_pi)

    demonstrations = draw(FLAT, ACTIONS[name])
    agent = BC(Sharper, None, demonstrations, policy_kwargs={"ortho_init": False}, seed=0, device="cpu")
    assert not agent.head.direct
    agent.learn(total_epochs=2)
    log_probability, entropy = evaluate_actions(agent, demonstrations)
    assert metrics(agent)["nll_hard"] == pytest.approx(float(-log_probability.mean()), abs=1e-5)
    assert metrics(agent)["policy_entropy"] == pytest.approx(float(entropy.mean()), abs=1e-5)


def test_gsde_is_a_gaussian_that_depends_on_the_state() -> None:
    demonstrations = draw(FLAT, ACTIONS["box"])
    agent = BC("MlpPolicy", None, demonstrations, smoothing=0, policy_kwargs={"use_sde": True}, seed=0, device="cpu")
    assert isinstance(agent.head, GaussianHead)
    assert not agent.head.direct
    batch = agent._data.take(torch.arange(ROWS))
    before = (agent.head.outputs(batch.observations)[0] - batch.labels).abs().mean()
    agent.learn(total_epochs=150)
    log_probability, entropy = evaluate_actions(agent, demonstrations)
    assert metrics(agent)["nll_hard"] == pytest.approx(float(-log_probability.mean()), abs=1e-4)
    assert metrics(agent)["policy_entropy"] == pytest.approx(float(entropy.mean()), abs=1e-4)
    # The mean, not the likelihood: SB3 lets no gradient of the standard deviation reach the layers that it depends on.
    assert (agent.head.outputs(batch.observations)[0] - batch.labels).abs().mean() < 0.7 * before


DIMS = {"discrete": [3], "multi_discrete": [3, 2], "multi_binary": [2, 2, 2]}
MASKED: dict[str, spaces.Space[Any]] = {name: ACTIONS[name] for name in DIMS}


def legal_masks(demonstrations: Demonstrations, dims: list[int]) -> np.ndarray:
    """Random masks under which the demonstrated actions are legal."""
    rng = np.random.default_rng(0)
    masks = rng.random((ROWS, sum(dims))) < 0.5
    labels = np.asarray(demonstrations.actions).reshape(ROWS, -1)
    offsets = np.cumsum([0, *dims[:-1]])
    np.put_along_axis(masks, labels + offsets, True, axis=1)
    return masks


@pytest.mark.parametrize("name", MASKED)
def test_maskable_policies_agree_with_sb3_contrib(name: str) -> None:
    pytest.importorskip("sb3_contrib")
    dims = DIMS[name]
    plain = draw(FLAT, MASKED[name])
    masks = legal_masks(plain, dims)
    demonstrations = draw(FLAT, MASKED[name], action_masks=masks)
    given: dict[str, Any] = {"policy_kwargs": {"ortho_init": False}, "seed": 0, "device": "cpu"}
    agent = BC("MaskableMlpPolicy", None, demonstrations, **given).learn(total_epochs=3)
    policy: Any = agent.policy
    with torch.no_grad():
        _, log_probability, entropy = policy.evaluate_actions(
            torch.as_tensor(demonstrations.observations),
            torch.as_tensor(np.asarray(demonstrations.actions)),
            action_masks=torch.as_tensor(masks),
        )
    found = metrics(agent)
    assert found["nll_hard"] == pytest.approx(float(-log_probability.mean()), abs=1e-5)
    assert found["policy_entropy"] == pytest.approx(float(entropy.mean()), abs=1e-5)
    actions, _ = agent.predict(demonstrations.observations, action_masks=masks)
    labels = np.asarray(actions).reshape(ROWS, -1) + np.cumsum([0, *dims[:-1]])
    assert np.take_along_axis(masks, labels, axis=1).all()


def test_a_plain_policy_class_learns_under_masks_and_says_that_it_acts_without() -> None:
    demonstrations = draw(FLAT, ACTIONS["discrete"])
    demonstrations = draw(FLAT, ACTIONS["discrete"], action_masks=legal_masks(demonstrations, [3]))
    with pytest.warns(UserWarning, match=r"by policy ActorCriticPolicy.*: use MaskableActorCriticPolicy "):
        agent = BC(ActorCriticPolicy, None, demonstrations, seed=0, device="cpu").learn(total_epochs=1)
    with pytest.raises(ValueError, match="MaskableMlpPolicy"):
        agent.predict(demonstrations.observations, action_masks=demonstrations.action_masks)


def test_masked_rows_have_the_loss_of_their_legal_actions() -> None:
    """A row with one legal action has loss 0 and no gradient, whatever its logits."""
    masks = np.zeros((ROWS, 3), dtype=bool)
    actions = draw(FLAT, ACTIONS["discrete"]).actions
    masks[np.arange(ROWS), actions] = True
    demonstrations = draw(FLAT, ACTIONS["discrete"], action_masks=masks)
    agent = BC("MlpPolicy", None, demonstrations, smoothing=0.3, kl_coef=0.5, seed=0, device="cpu")
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(total_epochs=2)
    assert metrics(agent)["loss"] == pytest.approx(0.0, abs=1e-6)
    assert metrics(agent)["entropy_frac"] == 0.0
    torch.testing.assert_close([*agent.policy.parameters()], before, rtol=0, atol=1e-6)


def test_entropy_fraction_leaves_out_rows_without_a_choice() -> None:
    masks = np.ones((ROWS, 3), dtype=bool)
    actions = draw(FLAT, ACTIONS["discrete"]).actions
    masks[:6] = False
    masks[np.arange(ROWS), actions] = True
    given: dict[str, Any] = {"policy_kwargs": {"net_arch": []}, "seed": 0, "device": "cpu"}
    agent = BC("MlpPolicy", None, draw(FLAT, ACTIONS["discrete"], action_masks=masks), **given)
    with torch.no_grad():
        nn.init.zeros_(agent.policy.action_net.weight)  # type: ignore[arg-type, union-attr]
    assert metrics(agent)["entropy_frac"] == pytest.approx(1.0, abs=1e-6)
    assert metrics(agent)["policy_entropy"] == pytest.approx(0.5 * np.log(3), abs=1e-6)


def test_groups_of_components_sum_to_the_joint_loss() -> None:
    demonstrations = draw(FLAT, ACTIONS["multi_binary"], weights=np.linspace(0.0, 2.0, ROWS))
    agent = BC("MlpPolicy", None, demonstrations, smoothing=0.2, seed=0, device="cpu")
    assert isinstance(agent.head, CategoricalHead)
    batch = agent._data.take(torch.arange(ROWS))
    outputs = agent.head.outputs(batch.observations)
    loss = agent.head.loss(outputs, batch, batch.target, 0.0, "mean")
    targets = 0.8 * np.asarray(demonstrations.actions) + 0.1
    logits = agent.policy.get_distribution(batch.observations).distribution.logits  # type: ignore[operator]
    per_bit = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.as_tensor(targets, dtype=torch.float32), reduction="none"
    )
    weights = torch.linspace(0.0, 2.0, ROWS)
    torch.testing.assert_close(loss, (per_bit.sum(-1) * weights).sum() / weights.sum())
    assert cross_entropy(outputs[0], batch.target[0], reduction="none").shape == (ROWS, 3)  # type: ignore[index, arg-type]


class Unreadable(ActorCriticPolicy):
    """Has a distribution of its own."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.action_dist = type("Mine", (), {})()  # type: ignore[assignment]


def test_unsupported_policies_and_spaces_are_refused() -> None:
    demonstrations = draw(FLAT, ACTIONS["box"])
    with pytest.raises(ValueError, match="squash"):
        BC("MlpPolicy", None, demonstrations, policy_kwargs={"use_sde": True, "squash_output": True}, device="cpu")
    assert_raises(TypeError, "Mine", BC, Unreadable, None, demonstrations, device="cpu")
    assert_raises(TypeError, "actor-critic", BC, nn.Linear, None, demonstrations, device="cpu")
    assert_raises(ValueError, "Mlp", BC, "NoSuchPolicy", None, demonstrations, device="cpu")
    contrib = pytest.importorskip("sb3_contrib.common.recurrent.policies")
    assert_raises(TypeError, "recurrent", BC, contrib.RecurrentActorCriticPolicy, None, demonstrations, device="cpu")
    with pytest.raises(TypeError, match="whole numbers"):
        BC("MlpPolicy", (FLAT, spaces.Box(0, 3, (2,), dtype=np.int64)), None, device="cpu")
    assert_raises(TypeError, "Tuple", BC, "MlpPolicy", (FLAT, spaces.Tuple([spaces.Discrete(2)])), None, device="cpu")
    assert_raises(ValueError, "one axis", BC, "MlpPolicy", (FLAT, spaces.MultiBinary([2, 2])), None, device="cpu")
    with pytest.raises(ValueError, match="start at 0"):
        BC("MlpPolicy", (spaces.Discrete(3, start=1), spaces.Discrete(2)), None, device="cpu")
    nested = spaces.Dict({"a": spaces.Dict({"b": FLAT})})
    assert_raises(TypeError, "Dict in a Dict", BC, "MultiInputPolicy", (nested, spaces.Discrete(2)), None, device="cpu")


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("name", ["discrete", "multi_discrete", "multi_binary", "box"])
def test_every_head_trains_on_every_device(name: str, amp: bool, device: torch.device, tmp_path: Path) -> None:
    demonstrations = draw(FLAT, ACTIONS[name], weights=np.linspace(0.0, 1.0, ROWS))
    arguments: dict[str, Any] = {"kl_coef": 0.1, "smoothing": "lin_0.2", "max_grad_norm": 1.0, "amp": amp, "seed": 0}
    agent = BC("MlpPolicy", None, demonstrations, device=device, checkpoint_folder=tmp_path, batch_size=5, **arguments)
    agent.learn(total_epochs=2)
    resumed = BC.resume(tmp_path, None, demonstrations, device=device)
    assert same_parameters(agent, resumed)
    assert {parameter.device.type for parameter in resumed.policy.parameters()} == {device.type}
    assert np.isfinite(list(metrics(agent).values())).all()
    action, _ = agent.predict(demonstrations.observations)
    assert len(action) == ROWS


@pytest.mark.parametrize("kl_coef", [0.0, 0.5])
@pytest.mark.parametrize("name", MASKED)
def test_a_log_line_has_what_the_separate_losses_give(name: str, kl_coef: float) -> None:
    """Under masks, with a weight of 0, component by component, in float64."""
    masks = legal_masks(draw(FLAT, MASKED[name]), DIMS[name])
    demonstrations = draw(FLAT, MASKED[name], action_masks=masks, weights=np.linspace(0.0, 2.0, ROWS))
    given: dict[str, Any] = {"smoothing": 0.2, "kl_coef": kl_coef, "policy_kwargs": {"ortho_init": False}, "seed": 0}
    given |= {"device": "cpu"}
    agent = BC("MlpPolicy", None, demonstrations, **given)
    batch = agent.measures._training.sample
    assert isinstance(agent.head, CategoricalHead)
    with torch.no_grad():
        outputs = [logits.double() for logits in agent.head.outputs(batch.observations)]
    groups = zip(
        outputs, agent.head.label_groups(batch.labels), agent.head.mask_groups(batch.masks), batch.target, strict=True
    )  # type: ignore[arg-type]
    columns: dict[str, list[torch.Tensor]] = {}
    for logits, labels, mask, target in groups:
        best = logits.masked_fill(~mask, -torch.inf).argmax(-1)  # type: ignore[operator]
        found = {
            "cross_entropy": cross_entropy(logits, target, mask=mask, reduction="none"),
            "nll_hard": cross_entropy(logits, labels, mask=mask, reduction="none"),
            "policy_entropy": entropy(logits, mask),
            "kl_uniform": kl_divergence(logits, direction="reference_to_policy", mask=mask, reduction="none"),
            "most": entropy(torch.zeros_like(logits), mask),
            "confidence": (-cross_entropy(logits, best, mask=mask, reduction="none")).exp(),
            "hit": (best == labels).double(),
        }
        for key, column in found.items():
            columns.setdefault(key, []).append(column.reshape(ROWS, -1))
    joined = {key: torch.cat(parts, dim=-1) for key, parts in columns.items()}
    weights = torch.linspace(0.0, 2.0, ROWS, dtype=torch.float64)
    line = metrics(agent)
    for key in ("cross_entropy", "nll_hard", "policy_entropy", "kl_uniform"):
        assert line[key] == pytest.approx(np.average(joined[key].sum(-1), weights=weights), abs=1e-6), key
    assert line["kl_reference"] == pytest.approx(line["kl_uniform"], abs=1e-6)
    assert line["loss"] == pytest.approx(line["cross_entropy"] + kl_coef * line["kl_uniform"], abs=1e-6)
    probability = np.average((-joined["nll_hard"].sum(-1)).exp(), weights=weights)
    assert line["prob_true_act"] == pytest.approx(probability, abs=1e-6)
    assert line["accuracy"] == pytest.approx(np.average(joined["hit"].mean(-1), weights=weights), abs=1e-6)
    spread = weights.unsqueeze(-1).expand(joined["hit"].shape)
    ece = calibration_error(joined["confidence"], joined["hit"] == 1, weights=spread)
    assert line["ece"] == pytest.approx(float(ece), abs=1e-6)
    most = joined["most"].sum(-1)
    choice = most > 1e-6
    share = np.average((joined["policy_entropy"].sum(-1) / most)[choice], weights=weights[choice])
    assert line["entropy_frac"] == pytest.approx(share, abs=1e-6)
    counted = choice & (weights > 0)
    lowest = (joined["policy_entropy"].sum(-1) / most)[counted].min()
    assert line["entropy_frac_min"] == pytest.approx(float(lowest), abs=1e-6)


# ---- arguments that can't be: one clear error, before anything is trained or written
SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "multi": spaces.MultiDiscrete([3, 2]),
    "box": spaces.Box(-1.0, 1.0, (2,)),
}
HALF = Smoothing(torch.full((4,), 0.1))  # one alpha for each of 4 of the 8 transitions
WRONG: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("discrete", {"smoothing": 1.5}, ValueError, "alpha=1.5"),
    ("discrete", {"smoothing": "exp_0.1"}, ValueError, "lin_0.1"),
    ("discrete", {"smoothing": None}, TypeError, "smoothing must be"),
    ("discrete", {"smoothing": [0.1]}, ValueError, "MultiDiscrete"),
    ("multi", {"smoothing": [0.1]}, ValueError, "1 entries.* 2 dimensions"),
    ("multi", {"smoothing": Smoothing(0.1, reference=torch.ones(3) / 3)}, ValueError, "made for 3 classes"),
    ("box", {"smoothing": Smoothing(0.1, reference="adjacent")}, ValueError, "broad Gaussian"),
    ("discrete", {"smoothing": Smoothing(torch.tensor([0.1, 0.2]))}, ValueError, r"shape \(2,\) for 8 transitions"),
    ("discrete", {"smoothing": HALF, "validation_fraction": 0.5}, ValueError, "validation data have none"),
    ("discrete", {"kl_coef": -1.0}, ValueError, "kl_coef"),
    ("discrete", {"reference": "nothing"}, ValueError, "nothing"),
    ("discrete", {"reference": 3}, TypeError, "reference must be"),
    ("multi", {"reference": ["uniform"]}, ValueError, "1 entries"),
    ("box", {"reference": "uniform"}, ValueError, "reference_std"),
    ("discrete", {"reference_std": 1.0}, ValueError, "reference_std"),
    ("box", {"reference_std": 0.0}, ValueError, "reference_std"),
    ("discrete", {"learning_rate": 0.0}, ValueError, "learning_rate"),
    ("discrete", {"learning_rate": "lin_-1"}, ValueError, "learning_rate='lin_-1'"),
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
    demonstrations = draw(FLAT, SPACES[space], 8)
    others = {"same": demonstrations, "other": draw(FLAT, spaces.Discrete(5), 8)}
    if isinstance(arguments.get("validation"), str):
        arguments = {**arguments, "validation": others[arguments["validation"]]}
    assert_raises(error, message, BC, "MlpPolicy", None, demonstrations, **{"device": "cpu", **arguments})


def test_spaces_must_come_from_somewhere_and_agree() -> None:
    demonstrations = draw(FLAT, SPACES["discrete"], 8)
    assert_raises(ValueError, "both None", BC, "MlpPolicy", None, None)
    assert_raises(TypeError, "env_or_spaces", BC, "MlpPolicy", (FLAT, 3), demonstrations)
    assert_raises(TypeError, "must be an id", BC, "MlpPolicy", 3, demonstrations)
    assert_raises(ValueError, "can't be made", BC, "MlpPolicy", "NoSuchEnv-v0", demonstrations)
    with pytest.raises(ValueError, match="demonstrations has observation_space"):
        BC("MlpPolicy", gym.make("CartPole-v1"), demonstrations)
    with pytest.raises(ValueError, match="demonstrations has action_space"):
        BC("MlpPolicy", (FLAT, spaces.Discrete(4)), demonstrations)
    with pytest.raises(ValueError, match="demonstrations has action_space"):  # a Box's bounds tell the scale of actions
        BC("MlpPolicy", (FLAT, spaces.Box(-2.0, 2.0, (2,))), draw(FLAT, SPACES["box"], 8))
    narrower = spaces.Box(-1.0, 1.0, (3,))
    assert BC("MlpPolicy", (narrower, SPACES["discrete"]), demonstrations, device="cpu").observation_space == narrower
    built = BC("MlpPolicy", None, demonstrations, device="cpu").policy
    assert_raises(ValueError, "policy_kwargs", BC, built, None, demonstrations, policy_kwargs={"net_arch": []})
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
    assert_raises(ValueError, message, BC, policy, (space, SPACES["discrete"]), None, device="cpu")


def test_demonstrations_must_be_demonstrations() -> None:
    for spaces_given in (None, (FLAT, SPACES["discrete"])):
        with pytest.raises(TypeError, match=r"demonstrations must be rlsmooth\.data\.Demonstrations"):
            BC("MlpPolicy", spaces_given, "cartpole-v1", device="cpu")  # type: ignore[arg-type]


def test_a_wrong_total_trains_nothing() -> None:
    agent = BC("MlpPolicy", None, draw(FLAT, SPACES["discrete"], 8), seed=0, device="cpu")
    assert_raises(ValueError, "total_epochs=0", agent.learn, total_epochs=0)
    assert_raises(TypeError, "total_batches", agent.learn, total_batches=1.5)
    assert_raises(ValueError, "log_interval=0", agent.learn, total_batches=1, log_interval=0)
    assert agent.num_timesteps == 0


def test_soft_targets_need_an_alpha() -> None:
    demonstrations = draw(FLAT, SPACES["discrete"], 8, action_probs=np.full((8, 3), 1 / 3))
    with pytest.raises(ValueError, match="alpha=None"):
        BC("MlpPolicy", None, demonstrations, smoothing=Smoothing(None, reference="binomial"), device="cpu")


def test_an_unwritable_folder_is_no_place_for_an_agent(tmp_path: Path) -> None:
    agent = BC("MlpPolicy", None, draw(FLAT, SPACES["discrete"], 8), device="cpu")
    (tmp_path / "file").write_text("")
    assert_raises(ValueError, "can't be written", agent.save, tmp_path / "file" / "agent")


def test_the_share_of_right_actions_counts_every_dimension() -> None:
    """In the log lines, and in the tables of `rlsmooth bc` and `evaluate`."""
    space = spaces.MultiDiscrete([3, 2, 4])
    given: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}
    drawn = draw(FLAT, space)
    chosen, _ = BC("MlpPolicy", None, drawn, **given).predict(drawn.observations, deterministic=True)
    wrong = np.zeros((len(chosen), 3), dtype=bool)
    wrong[:, 2], wrong[:3, 1] = True, True  # dimension 0 alone is always right
    actions = np.where(wrong, (chosen + 1) % space.nvec, chosen)
    taught = dataclasses.replace(drawn, actions=actions)
    agent = BC("MlpPolicy", None, taught, **given)  # the seed's policy again, whatever the data
    assert np.array_equal(agent.predict(drawn.observations, deterministic=True)[0], chosen)
    for found in (metrics(agent)["accuracy"], measure(agent, taught)[0]["accuracy"]):
        assert found == pytest.approx(1 - wrong.mean(), abs=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_logged_loss_weighs_a_short_minibatch_by_its_samples(weighted: bool) -> None:
    """With parameters that stay, it is the mean over all transitions, which the line measures in another way."""
    more = {"weights": np.random.default_rng(0).exponential(size=ROWS) ** 2} if weighted else {}
    given: dict[str, Any] = {"batch_size": 11, "learning_rate": 1e-30, "smoothing": 0.2, "seed": 0, "device": "cpu"}
    agent = BC("MlpPolicy", None, draw(FLAT, ACTIONS["discrete"], **more), **given)
    lines = listen(agent)
    agent.learn(total_epochs=1)
    assert lines.lines[-1][1]["bc/loss"] == pytest.approx(metrics(agent)["loss"], rel=1e-5)


# ---- weights
@pytest.mark.parametrize("name", [*ACTIONS])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 1), (4, 1), (3, 2)])
def test_weights_count_the_same_at_every_batch_size(name: str, batch_size: int, accumulation: int) -> None:
    """With parameters that stay, the losses of an epoch are the weighted mean over all transitions, of which the log
    line is another measure; and weights that are all alike change no bit."""
    weights = np.random.default_rng(0).exponential(size=ROWS) ** 2
    losses: list[float] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> bool:
        losses.append(float(local["loss"]))
        return True

    given = {"batch_size": batch_size, "gradient_accumulation": accumulation, "kl_coef": 0.3, "smoothing": 0.2}
    given |= {"policy_kwargs": {"net_arch": [8]}, "learning_rate": 1e-30, "seed": 0, "device": "cpu"}
    agent = BC("MlpPolicy", None, draw(FLAT, ACTIONS[name], weights=weights), **given)
    agent.learn(total_epochs=1, callback=note)
    assert np.mean(losses) == pytest.approx(metrics(agent)["loss"], rel=1e-5)
    alike = [
        BC("MlpPolicy", None, draw(FLAT, ACTIONS[name], **more), **{**given, "learning_rate": 0.01}).learn(1)
        for more in ({}, {"weights": np.full(ROWS, 0.3)})
    ]
    assert same_parameters(*alike)
