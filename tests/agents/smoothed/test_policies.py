"""The smoothed policies beside their parents, under unmodified algorithms, in RL Zoo, in files, and with references."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.envs import InvalidActionEnvDiscrete, InvalidActionEnvMultiBinary, InvalidActionEnvMultiDiscrete
from sb3_contrib.common.maskable import policies as maskable
from sb3_contrib.common.recurrent import policies as recurrent
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3 import A2C, PPO
from stable_baselines3.common import policies as plain
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.envs import (
    FakeImageEnv,
    IdentityEnv,
    IdentityEnvBox,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.policies import ActorCriticPolicy

import rlsmooth.agents
from rlsmooth.agents import BC, load_agent_file, save_agent_file
from rlsmooth.agents.files.policy_file import reference_from_plain, reference_to_plain
from rlsmooth.agents.smoothed import contrib as smoothed_contrib
from rlsmooth.agents.smoothed import policies as smoothed
from rlsmooth.agents.smoothed.contrib import SmoothedMaskableActorCriticPolicy, SmoothedRecurrentActorCriticPolicy
from rlsmooth.agents.smoothed.policies import SmoothedActorCriticPolicy, SmoothedPolicy
from rlsmooth.agents.smoothed.references import reference_recipes
from rlsmooth.agents.spaces import box_reference
from rlsmooth.targets import Smoothing, Tree
from rlsmooth.training import SafeFileError
from support import assert_raises, draw_masks, forge, put, recorded, samples
from trainers import LogProbsAgree

ROWS = 6
VECTOR = spaces.Box(-1.0, 1.0, (4,))
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
MIXED = spaces.Dict({"vector": VECTOR, "place": spaces.Discrete(3)})
DISCRETE = [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3)]
ACTIONS = [*DISCRETE, spaces.Box(-2.0, 2.0, (2,))]
FAMILIES = {
    "plain": (plain, smoothed, "", {}),
    "maskable": (maskable, smoothed_contrib, "Maskable", {}),
    "recurrent": (recurrent, smoothed_contrib, "Recurrent", {"lstm_hidden_size": 8}),
}


def build(policy_class: Any, observations: spaces.Space[Any], actions: spaces.Space[Any], **arguments: Any) -> Any:
    """Build a policy from the same random state every time."""
    torch.manual_seed(1)
    return policy_class(observations, actions, lambda _: 1e-3, **arguments)


def pair(family: str, form: str) -> tuple[Any, Any, dict[str, Any]]:
    """Give the parent's class, ours, and small layers for both."""
    theirs, ours, kind, arguments = FAMILIES[family]
    before, after = {"mlp": ("", ""), "cnn": ("", "Cnn"), "dict": ("MultiInput", "")}[form]
    name = f"{kind}{before}ActorCritic{after}Policy"
    return getattr(theirs, name), getattr(ours, f"Smoothed{name}"), arguments


def states(policy: Any) -> tuple[RNNStates, torch.Tensor]:
    """Give random LSTM states of sequences of length 1, and episode starts."""
    layers, _, size = policy.lstm_hidden_state_shape
    draw = torch.Generator().manual_seed(3)
    parts = [torch.randn(layers, ROWS, size, generator=draw) for _ in range(4)]
    return RNNStates((parts[0], parts[1]), (parts[2], parts[3])), torch.tensor([0.0, 1.0] * (ROWS // 2))


def results(policy: Any, family: str, observations: Any, masks: Any) -> list[Any]:
    """Give everything that a policy tells, and the gradients of a loss that uses it all."""
    tensors, _ = policy.obs_to_tensor(observations)
    torch.manual_seed(2)
    more: tuple[Any, ...] = ()
    if family == "recurrent":
        more = states(policy)
    named = {"action_masks": masks} if family == "maskable" else {}
    found = [policy.forward(tensors, *more, **named), policy.forward(tensors, *more, deterministic=True, **named)]
    actions = found[0][0]
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.flatten()
    values, log_prob, entropy = policy.evaluate_actions(tensors, actions, *more, **named)
    policy.zero_grad()
    (values.mean() + (log_prob * log_prob).mean() + entropy.mean()).backward()
    gradients = [weights.grad for weights in policy.parameters()]
    predictions = [policy.predict(observations, deterministic=flag, **named) for flag in (False, True)]
    return [found, values, log_prob, entropy, gradients, predictions]


def flat(tree: Any) -> list[Any]:
    """List the tensors and arrays of a nested value."""
    if isinstance(tree, (list, tuple)):
        return [leaf for part in tree for leaf in flat(part)]
    return [] if tree is None else [torch.as_tensor(tree)]


CASES = [("plain", "mlp", VECTOR, actions) for actions in ACTIONS]
CASES += [("maskable", "mlp", VECTOR, actions) for actions in DISCRETE]
CASES += [("recurrent", "mlp", VECTOR, actions) for actions in ACTIONS]
CASES += [(family, "cnn", IMAGE, DISCRETE[0]) for family in FAMILIES]
CASES += [(family, "dict", MIXED, DISCRETE[0]) for family in FAMILIES]


@pytest.mark.parametrize(("family", "form", "observations", "actions"), CASES)
def test_with_both_knobs_off_a_policy_is_its_parent_bit_for_bit(
    family: str, form: str, observations: spaces.Space[Any], actions: spaces.Space[Any]
) -> None:
    parent_class, our_class, arguments = pair(family, form)
    parent = build(parent_class, observations, actions, **arguments)
    ours = build(our_class, observations, actions, **arguments)
    assert isinstance(ours, parent_class)
    assert list(parent.state_dict()) == list(ours.state_dict())
    assert [name for name, _ in parent.named_parameters()] == [name for name, _ in ours.named_parameters()]
    rows = samples(observations, ROWS, 0)
    sizes = {"Discrete": [3], "MultiDiscrete": [2, 3], "MultiBinary": [2, 2, 2]}.get(type(actions).__name__, [])
    masks = draw_masks(sizes, ROWS).numpy() if family == "maskable" else None
    expected, found = flat(results(parent, family, rows, masks)), flat(results(ours, family, rows, masks))
    assert len(expected) == len(found) > 12
    assert all(torch.equal(left, right) for left, right in zip(expected, found, strict=True))
    assert ours._wanted is None


def test_gsde_is_the_parent_too_when_off() -> None:
    classes = plain.ActorCriticPolicy, smoothed.SmoothedActorCriticPolicy
    parent, ours = (build(each, VECTOR, ACTIONS[-1], use_sde=True) for each in classes)
    rows = samples(VECTOR, ROWS, 0)
    expected, found = flat(results(parent, "plain", rows, None)), flat(results(ours, "plain", rows, None))
    assert all(torch.equal(left, right) for left, right in zip(expected, found, strict=True))


def box_env() -> gym.Env[Any, Any]:
    return IdentityEnvBox(low=-2.0, high=1.0)


PLAIN_RUNS: list[tuple[str, Callable[[], gym.Env[Any, Any]], Any]] = [
    ("mlp", lambda: IdentityEnv(dim=4), torch.tensor([0.5, 0.25, 0.125, 0.125])),
    ("mlp", lambda: IdentityEnv(dim=4), "exponential"),
    ("mlp", lambda: IdentityEnvMultiDiscrete(3), ("uniform", "adjacent")),
    ("mlp", lambda: IdentityEnvMultiBinary(2), "uniform"),
    ("mlp", box_env, "uniform"),
    ("dict", lambda: SimpleMultiObsEnv(random_start=False), "uniform"),
    ("cnn", lambda: FakeImageEnv(screen_height=36, screen_width=36, n_channels=1), "uniform"),
]
MASKABLE_RUNS: list[tuple[str, Callable[[], gym.Env[Any, Any]], Any]] = [
    ("mlp", lambda: InvalidActionEnvDiscrete(dim=6, n_invalid_actions=3), "exponential"),
    ("mlp", lambda: InvalidActionEnvMultiDiscrete(dims=[2, 3], n_invalid_actions=1), "uniform"),
    ("mlp", lambda: InvalidActionEnvMultiBinary(dims=2, n_invalid_actions=1), "uniform"),
    ("dict", lambda: SimpleMultiObsEnv(random_start=False), "uniform"),
    ("cnn", lambda: FakeImageEnv(screen_height=36, screen_width=36, n_channels=1), "uniform"),
]
RUNS = [("plain", PPO, *run) for run in PLAIN_RUNS]
RUNS += [("plain", A2C, *run) for run in PLAIN_RUNS[:5]]
RUNS += [("maskable", MaskablePPO, *run) for run in MASKABLE_RUNS]
# sb3-contrib's LSTM can't take MultiDiscrete observations, whose size is no Python int.
RUNS += [("recurrent", RecurrentPPO, *run) for run in PLAIN_RUNS if not isinstance(run[2], tuple)]


@pytest.mark.parametrize(("family", "algorithm", "form", "env", "reference"), RUNS)
def test_an_unmodified_algorithm_trains_with_both_knobs_on(
    family: str, algorithm: Any, form: str, env: Callable[[], gym.Env[Any, Any]], reference: Any
) -> None:
    _, policy_class, layers = pair(family, form)
    batches = {} if algorithm is A2C else {"batch_size": 8, "n_epochs": 2}
    knobs = {"reference": reference, "exploration_floor": 0.2}
    given: dict[str, Any] = {"n_steps": 16, "ent_coef": 0.1, "seed": 0, "device": "cpu"}
    given |= {"policy_kwargs": {**layers, **knobs}}
    model = algorithm(policy_class, env(), **given, **batches)
    assert isinstance(model.policy, SmoothedPolicy)
    before = model.policy.parameters_to_vector()
    # MaskablePPO takes masks from environments that have them only.
    named = {"use_masking": hasattr(env(), "action_masks")} if algorithm is MaskablePPO else {}
    callback = LogProbsAgree()
    model.learn(48, callback=callback, **named)
    assert len(callback.gaps) == 3
    assert max(callback.gaps) < 1e-5  # one rounding apart at the most: ratios are 1 before the first update
    after = model.policy.parameters_to_vector()
    assert np.isfinite(after).all()
    assert np.abs(after - before).max() > 1e-6
    # KL(reference‖pi), which is positive, is in place of the entropy, with the other sign.
    assert model.logger.name_to_value["train/entropy_loss"] > 0


def test_a_recurrent_policy_of_other_sizes_comes_back_from_its_file(tmp_path: Path) -> None:
    sizes = {"lstm_hidden_size": 4, "n_lstm_layers": 2, "enable_critic_lstm": False}
    policy = build(smoothed_contrib.SmoothedRecurrentActorCriticPolicy, VECTOR, DISCRETE[0], **sizes)
    policy.save(str(tmp_path / "policy.pth"))
    other = type(policy).load(str(tmp_path / "policy.pth"), device="cpu")
    assert torch.equal(
        policy.action_probabilities(samples(VECTOR, ROWS, 0)), other.action_probabilities(samples(VECTOR, ROWS, 0))
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_sb3s_own_zip_keeps_the_knobs(family: str, tmp_path: Path) -> None:
    algorithm: Any = {"plain": PPO, "maskable": MaskablePPO, "recurrent": RecurrentPPO}[family]
    _, policy_class, layers = pair(family, "mlp")
    knobs = {"reference": "exponential", "exploration_floor": 0.3}
    model = algorithm(policy_class, IdentityEnv(dim=4), device="cpu", policy_kwargs={**layers, **knobs})
    model.save(tmp_path / "model.zip")
    policy = algorithm.load(tmp_path / "model.zip", device="cpu").policy
    assert policy.reference == "exponential"
    observation = np.arange(4)
    assert torch.equal(policy.action_probabilities(observation), model.policy.action_probabilities(observation))


@pytest.mark.parametrize("floor", [0.0, 0.4])
def test_a_policy_moves_to_the_device_with_its_reference(floor: float, device: torch.device) -> None:
    for actions in (DISCRETE[1], ACTIONS[-1]):
        knobs = {"reference": "uniform", "exploration_floor": floor}
        policy = build(smoothed.SmoothedActorCriticPolicy, VECTOR, actions, **knobs).to(device)
        tensors, _ = policy.obs_to_tensor(samples(VECTOR, ROWS, 0))
        chosen, _, log_prob = policy(tensors)
        _, again, term = policy.evaluate_actions(tensors, chosen)
        assert term.device.type == log_prob.device.type == device.type
        assert torch.allclose(log_prob, again, atol=1e-5)


# ---- references where they enter, wrong arguments, agent files, and cloning into a smoothed policy
OBSERVATIONS = spaces.Box(-1.0, 1.0, (3,))
CHOICE = spaces.Discrete(4)
MULTI = spaces.MultiDiscrete([4, 2])
BOX = spaces.Box(-1.0, 1.0, (2,))
TREE = Tree.from_nested({"left": ["a", "b"], "right": ["c", "d"]})
PRIOR = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
REFERENCES = [
    None,
    "uniform",
    "poisson",
    PRIOR,
    PRIOR.numpy(),
    TREE,
    Smoothing(alpha=None, reference="binomial"),
    Smoothing(alpha=lambda progress: progress, reference="exponential", decay=0.5),
]


def policy_of(policy_class: Any, actions: spaces.Space[Any] = CHOICE, **arguments: Any) -> Any:
    policy = policy_class(OBSERVATIONS, actions, lambda _: 1e-3, **arguments)
    torch.nn.init.normal_(policy.action_net.weight)
    return policy


@pytest.mark.parametrize(
    "policy_class", [SmoothedActorCriticPolicy, SmoothedMaskableActorCriticPolicy, SmoothedRecurrentActorCriticPolicy]
)
@pytest.mark.parametrize("reference", REFERENCES)
def test_a_smoothed_policy_comes_back_from_files_a_copy_and_a_pickle(
    policy_class: Any, reference: Any, tmp_path: Path
) -> None:
    policy = policy_of(policy_class, reference=reference, exploration_floor=0.125)
    path = save_agent_file(tmp_path / "agent.zip", kind="ppo", policy=policy, config={})
    copies: list[Any] = [load_agent_file(path, device="cpu").policy, copy.deepcopy(policy)]
    if not (isinstance(reference, Smoothing) and callable(reference.alpha)):  # which a pickle can't hold
        policy.save(str(tmp_path / "policy.pth"))
        copies += [policy_class.load(str(tmp_path / "policy.pth"), device="cpu"), pickle.loads(pickle.dumps(policy))]
    rows = torch.rand(5, 3)
    expected = policy.smoothed_distribution(rows)
    for loaded in copies:
        assert type(loaded) is policy_class
        assert loaded.exploration_floor == 0.125
        assert loaded.is_regularised == (reference is not None)
        found = loaded.smoothed_distribution(rows)
        assert torch.equal(found.probabilities()[0], expected.probabilities()[0])
        assert torch.equal(found.kl_reference(), expected.kl_reference())
    assert expected.kl_reference().min() > 0 or reference is None


def test_an_agent_file_keeps_a_reference_a_dimension_and_a_boxs_width(tmp_path: Path) -> None:
    policy = policy_of(SmoothedActorCriticPolicy, MULTI, reference=[TREE, torch.tensor([0.25, 0.75])])
    loaded: Any = load_agent_file(save_agent_file(tmp_path / "a.zip", kind="ppo", policy=policy, config={})).policy
    rows = torch.rand(5, 3)
    assert torch.equal(
        loaded.to("cpu").smoothed_distribution(rows).kl_reference(), policy.smoothed_distribution(rows).kl_reference()
    )
    policy = policy_of(SmoothedActorCriticPolicy, BOX, reference="uniform", reference_std=0.5)
    loaded = load_agent_file(save_agent_file(tmp_path / "b.zip", kind="ppo", policy=policy, config={})).policy
    assert loaded.reference_std == 0.5
    assert loaded.reference_stds.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "encoded",
    [
        {"__smoothing__": {"alpha": 1.0}},
        {"__smoothing__": 3},
        {"__smoothing__": {**Smoothing().to_config(), "reference": {"tree": {"names": ["a"]}}}},
        {"__smoothing__": {**Smoothing().to_config(), "reference": {"tensor": "abc"}}},
        {"__smoothing__": {**Smoothing().to_config(), "reference": "os.system"}},
        {"__tree__": []},
        {"__tree__": {"names": [], "parents": [], "classes": []}},
        {"__unknown__": {}},
        "os.system",
    ],
)
def test_a_spoilt_reference_in_a_file_is_a_clear_error(encoded: Any, tmp_path: Path) -> None:
    policy = policy_of(SmoothedActorCriticPolicy, reference=TREE)
    path = save_agent_file(tmp_path / "agent.zip", kind="ppo", policy=policy, config={})
    forge(path, lambda head, _: put(head["config"], ("policy", "arguments", "reference"), encoded))
    assert_raises(SafeFileError, "reference", load_agent_file, path)


@pytest.mark.parametrize("value", [*REFERENCES[:4], TREE, REFERENCES[6], (TREE, "uniform"), ["adjacent"]])
def test_references_survive_json(value: Any) -> None:
    found = reference_from_plain(reference_to_plain(value))
    assert type(found) is type(value)
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    ("actions", "arguments", "error", "message"),
    [
        (CHOICE, {"reference": "nearest"}, ValueError, "reference='nearest' is not known"),
        (CHOICE, {"reference": 3}, TypeError, "reference must be"),
        (CHOICE, {"reference": PRIOR[:3] / 0.6}, ValueError, "made for 3 classes"),
        (CHOICE, {"reference": torch.tensor([0.5, 0.5, 0.5, 0.5])}, ValueError, "reference"),
        (CHOICE, {"reference": ["uniform"]}, ValueError, "reference has 1 entries"),
        (MULTI, {"reference": ["uniform"]}, ValueError, "reference has 1 entries"),
        (MULTI, {"reference": PRIOR}, ValueError, "made for 4 classes"),
        (BOX, {"reference": PRIOR}, ValueError, "can't be used for a Box"),
        (BOX, {"reference": "adjacent"}, ValueError, "can't be used for a Box"),
        (BOX, {"reference_std": 0.0}, ValueError, r"reference_std=0\.0 must be"),
        (CHOICE, {"reference_std": 1.0}, ValueError, r"reference_std=1\.0 is for a Box"),
        (CHOICE, {"exploration_floor": 1.5}, ValueError, r"exploration_floor=1\.5 must be"),
        (CHOICE, {"exploration_floor": float("nan")}, ValueError, "exploration_floor=nan must be"),
        (CHOICE, {"exploration_floor": "0.1"}, TypeError, "exploration_floor must be a number"),
        (BOX, {"exploration_floor": 0.1, "use_sde": True}, ValueError, "can't be used with gSDE"),
    ],
)
def test_wrong_arguments_are_named(actions: Any, arguments: Any, error: type[Exception], message: str) -> None:
    assert_raises(error, message, SmoothedActorCriticPolicy, OBSERVATIONS, actions, lambda _: 1e-3, **arguments)


def test_wrong_reference_policies_are_named() -> None:
    policy = policy_of(SmoothedActorCriticPolicy)
    for other, error, message in [
        (policy_of(SmoothedRecurrentActorCriticPolicy), TypeError, "is recurrent"),
        (torch.nn.Linear(1, 1), TypeError, "must be an actor-critic policy"),
        (policy_of(ActorCriticPolicy, spaces.Discrete(3)), ValueError, "action_space"),
    ]:
        assert_raises(error, message, policy.set_reference_policy, other)
    noisy = policy_of(ActorCriticPolicy, BOX, use_sde=True)
    assert_raises(ValueError, "gSDE", policy_of(SmoothedActorCriticPolicy, BOX).set_reference_policy, noisy)
    bits = spaces.MultiBinary(3)
    with pytest.raises(ValueError, match="3 outputs, this one's 6"):
        policy_of(SmoothedMaskableActorCriticPolicy, bits).set_reference_policy(policy_of(ActorCriticPolicy, bits))


def test_masks_and_states_go_to_the_policies_that_have_them() -> None:
    rows, masks = np.zeros((2, 3), np.float32), np.ones((2, 4), bool)
    with pytest.raises(ValueError, match="action_masks can't be used by SmoothedActorCriticPolicy"):
        policy_of(SmoothedActorCriticPolicy).entropy(rows, masks)
    with pytest.raises(ValueError, match="action_masks can't be used by SmoothedRecurrent"):
        policy_of(SmoothedRecurrentActorCriticPolicy).entropy(rows, masks)
    for policy_class in (SmoothedActorCriticPolicy, SmoothedMaskableActorCriticPolicy):
        with pytest.raises(ValueError, match="lstm_states and episode_starts can't be used"):
            policy_of(policy_class).entropy(rows, episode_starts=np.zeros(2))


def test_a_recurrent_policy_answers_for_its_states() -> None:
    policy = policy_of(SmoothedRecurrentActorCriticPolicy, lstm_hidden_size=8)
    rows = np.random.default_rng(0).random((2, 3), np.float32)
    _, state = policy.predict(rows)
    later = policy.action_probabilities(rows, lstm_states=state)
    distribution, _ = policy.get_distribution(torch.as_tensor(rows), tuple(map(torch.as_tensor, state)), torch.zeros(2))
    assert torch.allclose(later, distribution.distribution.probs)
    fresh = policy.action_probabilities(rows)
    assert (later - fresh).abs().max() > 1e-3
    assert torch.equal(policy.action_probabilities(rows, lstm_states=state, episode_starts=np.ones(2)), fresh)


def test_looking_leaves_a_policy_as_it_was() -> None:
    policy = policy_of(SmoothedActorCriticPolicy, BOX, exploration_floor=0.2)
    policy.set_training_mode(True)
    state = torch.get_rng_state()
    assert not policy.entropy(np.zeros(3, np.float32)).requires_grad
    assert policy.training
    assert torch.equal(torch.get_rng_state(), state)


def test_after_a_look_or_an_error_an_unmixed_policy_has_its_parents_distribution() -> None:
    policy = policy_of(SmoothedActorCriticPolicy, reference="uniform")
    wrong = torch.zeros(2, 7)
    for call in (policy.smoothed_distribution, lambda rows: policy.evaluate_actions(rows, torch.zeros(2))):
        call(torch.zeros(2, 3))
        assert type(policy.get_distribution(torch.zeros(2, 3))) is CategoricalDistribution
        assert_raises(RuntimeError, "shapes", call, wrong)
        assert type(policy.get_distribution(torch.zeros(2, 3))) is CategoricalDistribution


def test_box_references_keep_to_finite_bounds() -> None:
    low, high = np.array([-1.0, -np.inf, -3e38, 5.0], np.float32), np.array([3.0, 0.0, 3e38, 5.0], np.float32)
    space = spaces.Box(low, high)
    mean, std = box_reference(space)
    assert mean.tolist() == [1.0, 0.0, 0.0, 5.0]
    assert std.tolist() == [2.0, 1.0, 1.0, 1.0]  # a std of 0 would make KL infinite and the floor NaN
    assert box_reference(space, 0.5)[1].tolist() == [0.5] * 4
    assert_raises(TypeError, "Box", box_reference, CHOICE)
    assert reference_recipes("uniform", BOX) is None
    assert reference_recipes(Smoothing(alpha=0.1), MULTI) == (None, None)


@pytest.mark.parametrize(
    ("policy_class", "actions"),
    [
        *((SmoothedActorCriticPolicy, actions) for actions in (CHOICE, MULTI, BOX)),
        *((SmoothedMaskableActorCriticPolicy, actions) for actions in (CHOICE, MULTI)),
    ],
)
def test_cloning_trains_the_networks_own_policy_whatever_the_floor(policy_class: Any, actions: Any) -> None:
    draw = np.random.default_rng(0)
    demonstrations = recorded(draw.random((64, 3), np.float32), samples(actions, 64, 0), OBSERVATIONS, actions)
    weights = []
    for knobs in ({}, {"exploration_floor": 0.5, "reference": "uniform"}):
        agent = BC(policy_class, None, demonstrations, smoothing=0.1, seed=0, device="cpu", policy_kwargs=knobs)
        assert agent.head.direct
        agent.learn(total_batches=5)
        weights.append(agent.policy.parameters_to_vector())
    assert np.array_equal(*weights)


def test_a_clone_in_a_smoothed_policy_is_saved_and_loaded(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((64, 3), np.float32)
    demonstrations = recorded(rows, (rows[:, 0] * 4).astype(np.int64), OBSERVATIONS, CHOICE)
    knobs = {"exploration_floor": 0.25, "reference": TREE}
    agent = BC(SmoothedActorCriticPolicy, None, demonstrations, seed=0, device="cpu", policy_kwargs=knobs)
    agent.learn(total_batches=5)
    loaded: Any = BC.load(agent.save(tmp_path / "clone.zip"), device="cpu").policy
    ours: Any = agent.policy
    assert torch.equal(loaded.action_probabilities(rows), ours.action_probabilities(rows))
    assert loaded.exploration_floor == 0.25


def test_names_that_need_sb3_contrib_are_looked_up_when_asked_for(programs: Any, tmp_path: Path) -> None:
    lazy = [name for name in rlsmooth.agents.__all__ if "Maskable" in name or "Recurrent" in name]
    assert len(lazy) == 8
    for name in lazy:
        assert getattr(rlsmooth.agents, name).__name__ == name
    with pytest.raises(AttributeError, match="SmoothedNothing"):
        _ = rlsmooth.agents.SmoothedNothing
    program = """
import sys
sys.modules["sb3_contrib"] = None  # as if it were not installed
import rlsmooth.agents
rlsmooth.agents.SmoothedActorCriticPolicy
for name in ("SmoothedMaskablePPO", "SmoothedRecurrentActorCriticPolicy"):
    try:
        getattr(rlsmooth.agents, name)
    except ImportError as error:
        print(error)
"""
    found = programs.run(program, tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("needs sb3-contrib. Install it: pip install 'rlsmooth[contrib]'.") == 2


# ---- RL Zoo uses our policies by their import path
CONFIGURATION = """\
CartPole-v1:
  n_timesteps: 500
  n_envs: 2
  policy: "rlsmooth.agents.{policy}"
  policy_kwargs: "dict(reference='uniform', {knob}=0.1)"
  n_steps: 32
  batch_size: 32
  ent_coef: 0.05
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algo", "policy", "knob"),
    [
        ("ppo", "SmoothedActorCriticPolicy", "min_entropy_frac"),
        ("ppo_lstm", "SmoothedRecurrentActorCriticPolicy", "exploration_floor"),
    ],
)
def test_rl_zoo_trains_our_policies(algo: str, policy: str, knob: str, tmp_path: Path) -> None:
    import sb3_contrib
    import stable_baselines3

    (tmp_path / "conf.yml").write_text(CONFIGURATION.format(policy=policy, knob=knob))
    command = [sys.executable, "-m", "rl_zoo3.train", "--algo", algo, "--env", "CartPole-v1", "-n", "500"]
    command += ["--conf-file", "conf.yml", "-f", "logs", "--eval-freq", "-1", "--seed", "0", "--device", "cpu"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    algorithm: Any = stable_baselines3.PPO if algo == "ppo" else sb3_contrib.RecurrentPPO
    (saved,) = (tmp_path / "logs" / algo / "CartPole-v1_1").glob("*.zip")
    model = algorithm.load(saved, device="cpu")
    assert type(model.policy).__name__ == policy
    assert model.num_timesteps >= 500
    assert getattr(model.policy, knob) == 0.1
    # SB3's tag holds what stood in the slot of the entropy: KL, which is positive and small for so young a policy.
    (line,) = [line for line in finished.stdout.splitlines() if "entropy_loss" in line][-1:]
    assert 0 <= float(line.split("|")[2]) < 0.2
