"""References where they enter, wrong arguments, agent files, and cloning into a smoothed policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy

import rlsmooth.agents
from rlsmooth.agents import BC, load_agent_file, save_agent_file
from rlsmooth.agents.smoothed.contrib import SmoothedMaskableActorCriticPolicy, SmoothedRecurrentActorCriticPolicy
from rlsmooth.agents.smoothed.policies import SmoothedActorCriticPolicy
from rlsmooth.agents.smoothed.references import (
    box_reference,
    reference_from_plain,
    reference_recipes,
    reference_to_plain,
)
from rlsmooth.data import Demonstrations
from rlsmooth.targets import Smoothing, Tree
from rlsmooth.training import SafeFileError, read_safe_file, write_safe_file

OBSERVATIONS = spaces.Box(-1.0, 1.0, (3,))
DISCRETE = spaces.Discrete(4)
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


def policy_of(policy_class: Any, actions: spaces.Space[Any] = DISCRETE, **arguments: Any) -> Any:
    policy = policy_class(OBSERVATIONS, actions, lambda _: 1e-3, **arguments)
    torch.nn.init.normal_(policy.action_net.weight)
    return policy


@pytest.mark.parametrize(
    "policy_class",
    [SmoothedActorCriticPolicy, SmoothedMaskableActorCriticPolicy, SmoothedRecurrentActorCriticPolicy],
)
@pytest.mark.parametrize("reference", REFERENCES)
def test_an_agent_file_keeps_a_smoothed_policy(policy_class: Any, reference: Any, tmp_path: Path) -> None:
    policy = policy_of(policy_class, reference=reference, exploration_floor=0.125)
    path = save_agent_file(tmp_path / "agent.zip", kind="ppo", policy=policy, config={})
    loaded: Any = load_agent_file(path, device="cpu").policy
    assert type(loaded) is policy_class
    assert loaded.exploration_floor == 0.125
    assert loaded.is_regularised == (reference is not None)
    rows = torch.rand(5, 3)
    expected, found = policy.smoothed_distribution(rows), loaded.smoothed_distribution(rows)
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
    names = {"format_name": "rlsmooth-agent", "format_version": 1}
    file = read_safe_file(path, **names)
    config = json.loads(json.dumps(dict(file.config)))
    config["policy"]["arguments"]["reference"] = encoded
    kept = {key: config[key] for key in ("kind", "policy", "config")}
    write_safe_file(path, kept, tensors=file.tensors, **names)
    with pytest.raises(SafeFileError, match="reference"):
        load_agent_file(path)


@pytest.mark.parametrize("value", [*REFERENCES[:4], TREE, REFERENCES[6], (TREE, "uniform"), ["adjacent"]])
def test_references_survive_json(value: Any) -> None:
    found = reference_from_plain(reference_to_plain(value))
    assert type(found) is type(value)
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    ("actions", "arguments", "error", "message"),
    [
        (DISCRETE, {"reference": "nearest"}, ValueError, "reference='nearest' is not known"),
        (DISCRETE, {"reference": 3}, TypeError, "reference must be"),
        (DISCRETE, {"reference": PRIOR[:3] / 0.6}, ValueError, "made for 3 classes"),
        (DISCRETE, {"reference": torch.tensor([0.5, 0.5, 0.5, 0.5])}, ValueError, "reference"),
        (DISCRETE, {"reference": ["uniform"]}, ValueError, "reference has 1 entries"),
        (MULTI, {"reference": ["uniform"]}, ValueError, "reference has 1 entries"),
        (MULTI, {"reference": PRIOR}, ValueError, "made for 4 classes"),
        (BOX, {"reference": PRIOR}, ValueError, "can't be used for a Box"),
        (BOX, {"reference": "adjacent"}, ValueError, "can't be used for a Box"),
        (BOX, {"reference_std": 0.0}, ValueError, r"reference_std=0\.0 must be"),
        (DISCRETE, {"reference_std": 1.0}, ValueError, r"reference_std=1\.0 is for a Box"),
        (DISCRETE, {"exploration_floor": 1.5}, ValueError, r"exploration_floor=1\.5 must be"),
        (DISCRETE, {"exploration_floor": float("nan")}, ValueError, "exploration_floor=nan must be"),
        (DISCRETE, {"exploration_floor": "0.1"}, TypeError, "exploration_floor must be a number"),
        (BOX, {"exploration_floor": 0.1, "use_sde": True}, ValueError, "can't be used with gSDE"),
    ],
)
def test_wrong_arguments_are_named(
    actions: spaces.Space[Any], arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SmoothedActorCriticPolicy(OBSERVATIONS, actions, lambda _: 1e-3, **arguments)


def test_wrong_reference_policies_are_named() -> None:
    policy = policy_of(SmoothedActorCriticPolicy)
    for other, error, message in [
        (policy_of(SmoothedRecurrentActorCriticPolicy), TypeError, "is recurrent"),
        (torch.nn.Linear(1, 1), TypeError, "must be an actor-critic policy"),
        (policy_of(ActorCriticPolicy, spaces.Discrete(3)), ValueError, "action_space"),
    ]:
        with pytest.raises(error, match=message):
            policy.set_reference_policy(other)
    noisy = policy_of(ActorCriticPolicy, BOX, use_sde=True)
    with pytest.raises(ValueError, match="gSDE"):
        policy_of(SmoothedActorCriticPolicy, BOX).set_reference_policy(noisy)
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
        with pytest.raises(RuntimeError, match="shapes"):
            call(wrong)
        assert type(policy.get_distribution(torch.zeros(2, 3))) is CategoricalDistribution


def test_box_references_keep_to_finite_bounds() -> None:
    low, high = np.array([-1.0, -np.inf, -3e38, 5.0], np.float32), np.array([3.0, 0.0, 3e38, 5.0], np.float32)
    space = spaces.Box(low, high)
    mean, std = box_reference(space)
    assert mean.tolist() == [1.0, 0.0, 0.0, 5.0]
    assert std.tolist() == [2.0, 1.0, 1.0, 1.0]  # a std of 0 would make KL infinite and the floor NaN
    assert box_reference(space, 0.5)[1].tolist() == [0.5] * 4
    with pytest.raises(TypeError, match="Box"):
        box_reference(DISCRETE)
    assert reference_recipes("uniform", BOX) is None
    assert reference_recipes(Smoothing(alpha=0.1), MULTI) == (None, None)


@pytest.mark.parametrize(
    ("policy_class", "actions"),
    [
        *((SmoothedActorCriticPolicy, actions) for actions in (DISCRETE, MULTI, BOX)),
        *((SmoothedMaskableActorCriticPolicy, actions) for actions in (DISCRETE, MULTI)),
    ],
)
def test_cloning_trains_the_networks_own_policy_whatever_the_floor(
    policy_class: Any, actions: spaces.Space[Any]
) -> None:
    draw = np.random.default_rng(0)
    rows = draw.random((64, 3), np.float32)
    actions.seed(0)
    chosen = np.stack([actions.sample() for _ in range(64)])
    demonstrations = Demonstrations.from_arrays(
        rows, chosen, observation_space=OBSERVATIONS, action_space=actions, episode_ends=np.array([64])
    )
    weights = []
    for knobs in ({}, {"exploration_floor": 0.5, "reference": "uniform"}):
        agent = BC(policy_class, None, demonstrations, smoothing=0.1, seed=0, device="cpu", policy_kwargs=knobs)
        assert agent.head.direct
        agent.learn(total_batches=5)
        weights.append(agent.policy.parameters_to_vector())
    assert np.array_equal(*weights)


def test_a_clone_in_a_smoothed_policy_is_saved_and_loaded(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((64, 3), np.float32)
    demonstrations = Demonstrations.from_arrays(
        rows,
        (rows[:, 0] * 4).astype(np.int64),
        observation_space=OBSERVATIONS,
        action_space=DISCRETE,
        episode_ends=np.array([64]),
    )
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
