"""A guaranteed entropy: no state below it in any algorithm and space, whatever the network gives; errors and files."""

from __future__ import annotations

import copy
import math
from typing import Any

import gymnasium as gym
import mpmath
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from rlsmooth.agents import PolicyEntropyCallback, load_agent, save_agent
from rlsmooth.agents.smoothed.algorithms import SmoothedA2C, SmoothedPPO
from rlsmooth.agents.smoothed.contrib import SmoothedMaskableActorCriticPolicy
from rlsmooth.agents.smoothed.contrib_algorithms import SmoothedMaskablePPO, SmoothedRecurrentPPO
from rlsmooth.agents.smoothed.measures import measure_rollout
from rlsmooth.agents.smoothed.policies import SmoothedActorCriticPolicy
from rlsmooth.envs import IdentityEnv, IdentityMaskedEnv, IdentityMultiBinaryEnv, IdentityMultiDiscreteEnv
from rlsmooth.losses import guaranteed_floor
from rlsmooth.targets import Smoothing
from support import assert_raises
from trainers import LogProbsAgree

OBSERVATIONS = spaces.Box(-1.0, 1.0, (2,))
STEPS = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "learning_rate": 0.02}
LSTM = {**STEPS, "policy_kwargs": {"lstm_hidden_size": 8}}
HALF = {"min_entropy_frac": 0.5}
RUNS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "discrete": (SmoothedPPO, lambda: IdentityEnv(4), {**STEPS, "min_entropy_frac": "lin_0.6"}),
    "numpy": (SmoothedPPO, lambda: IdentityEnv(4), {**STEPS, **HALF, "engine": "numpy", "smoothing": 0.01}),
    "multi-discrete": (SmoothedPPO, lambda: IdentityMultiDiscreteEnv((3, 2)), {**STEPS, **HALF}),
    "multi-binary": (SmoothedPPO, lambda: IdentityMultiBinaryEnv(3), {**STEPS, **HALF}),
    "masked": (SmoothedMaskablePPO, lambda: IdentityMaskedEnv(5), {**STEPS, **HALF}),
    "recurrent": (SmoothedRecurrentPPO, lambda: gym.make("CartPole-v1"), {**LSTM, **HALF}),
    "a2c": (SmoothedA2C, lambda: IdentityEnv(4), {"n_steps": 16, **HALF, "target_entropy_frac": 0.5}),
    "box": (SmoothedPPO, lambda: gym.make("Pendulum-v1"), {**STEPS, "min_entropy_nats": 0.25, "ent_coef": 0.01}),
}


class Lowest(BaseCallback):
    """The lowest entropy of each rollout, of the behaviour policy and of the network's, over the guarantee."""

    def __init__(self) -> None:
        super().__init__()
        self.lowest: list[float] = []
        self.network: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        policy: Any = self.model.policy
        bound, frac, nats = 0.0, policy.min_entropy_frac, policy.min_entropy_nats
        for kept, off in ((self.lowest, False), (self.network, True)):
            if off:
                policy.min_entropy_frac = policy.min_entropy_nats = None
            found = measure_rollout(self.model)
            bound = nats if frac == 0 else frac
            kept.append(
                float((found.entropies if found.fractions is None else found.fractions[found.has_choice]).min())
            )
            kept[-1] -= bound
        policy.min_entropy_frac, policy.min_entropy_nats = frac, nats


@pytest.mark.parametrize("case", RUNS)
def test_no_state_is_below_and_the_ratio_is_one_before_the_first_update(case: str) -> None:
    algorithm, env, arguments = RUNS[case]
    policy = "MlpLstmPolicy" if case == "recurrent" else "MlpPolicy"
    model = algorithm(policy, env(), seed=0, device="cpu", **arguments)
    with torch.no_grad():  # as sure as a policy that has been trained for long
        if case == "box":
            model.policy.log_std.fill_(-2.0)
        else:
            model.policy.action_net.weight.mul_(1000)
    lowest, agree = Lowest(), LogProbsAgree()
    model.learn(4 * model.n_steps, callback=[lowest, agree])
    assert min(lowest.lowest) >= -1e-6
    assert min(lowest.lowest) < 0.1  # of the states that were forced, one lies near the bound
    assert max(lowest.network) < -0.1  # without the guarantee some state of each rollout is far below
    assert max(agree.gaps) < 1e-5
    assert dict(model.logger.name_to_value)["train/entropy_below"] == 0.0
    if case == "box":
        model.min_entropy_nats = "lin_-1.5"  # the least deviation falls to 0, and not the bound to 0 nats
        model.learn(4 * model.n_steps)
        assert model.logger.name_to_value["train/min_entropy_nats"] == pytest.approx(-1.5 + math.log(0.25))
    if case == "discrete":
        assert model.logger.name_to_value["train/min_entropy_frac"] == pytest.approx(0.15)  # of the last rollout
        assert model.policy.min_entropy_frac == pytest.approx(0.15)


def test_each_state_and_component_has_the_floor_of_its_own_legal_actions() -> None:
    """Against mpmath: the entropy of a policy that is certain is the bound itself, in every state and component."""
    space = spaces.MultiDiscrete([5, 3])
    policy = SmoothedMaskableActorCriticPolicy(OBSERVATIONS, space, lambda _: 1e-3, min_entropy_frac=0.4)
    masks = torch.tensor(
        [[1, 1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 1, 1, 0]], dtype=torch.bool
    )
    outputs = torch.tensor([0.0, 1e4, 0.0, 0.0, -torch.inf, 0.0, 0.0, 1e4]).repeat(3, 1)
    outputs[2, 5] = 2e4  # the third is illegal there
    mixture = policy.mixture(is_regularised=False).proba_distribution(outputs.requires_grad_())
    mixture.apply_masking(masks)
    found = mixture.entropies_by_dimension()
    for state, counts in enumerate(((5, 3), (2, 2), (1, 2))):
        for component, count in enumerate(counts):
            assert found[component][state].item() == pytest.approx(0.4 * math.log(count), abs=1e-6)
    fractions, has_choice = mixture.entropy_fractions()
    assert fractions.tolist() == pytest.approx([0.4, 0.4, 0.4], abs=1e-6)
    assert has_choice.all()
    for part, legal in zip(mixture.probabilities(), masks.split([5, 3], dim=1), strict=True):
        assert (part[~legal] == 0).all()
        torch.testing.assert_close(part.sum(-1), torch.ones(3))
    (gradient,) = torch.autograd.grad(mixture.log_prob(torch.tensor([[2, 2], [2, 2], [2, 1]])).sum(), outputs)
    assert gradient.isfinite().all()
    assert (gradient[~masks] == 0).all()
    f, n = mpmath.mpf(guaranteed_floor(0.4, 5)), 5
    assert mixture.probabilities()[0][0].max().item() == pytest.approx(float(1 - f + f / n), abs=1e-7)


@pytest.mark.parametrize("illegal", [-1e8, -torch.inf])
def test_a_logit_is_no_mask(illegal: float) -> None:
    """Where no mask says otherwise, all actions are legal, also one that the network all but excludes."""
    policy = SmoothedActorCriticPolicy(OBSERVATIONS, spaces.Discrete(3), lambda _: 1e-3, min_entropy_frac=0.5)
    logits = torch.tensor([[0.0, illegal, illegal]], requires_grad=True)
    mixture = policy.distribution_of_outputs(logits)
    floor = guaranteed_floor(0.5, 3)
    assert mixture.probabilities()[0].tolist()[0] == pytest.approx([1 - 2 * floor / 3, floor / 3, floor / 3], abs=1e-7)
    (gradient,) = torch.autograd.grad(mixture.log_prob(torch.tensor([1])).sum() + mixture.entropy().sum(), logits)
    assert gradient.isfinite().all()


def test_a_box_has_the_shape_of_its_deviations_and_their_gradient(device: torch.device) -> None:
    space = spaces.Box(-1.0, 1.0, (3,))
    policy = SmoothedActorCriticPolicy(OBSERVATIONS, space, lambda _: 1e-3, min_entropy_nats=1.5).to(device)
    log_std = torch.tensor([-3.0, -1.0, -2.0], dtype=torch.float64, device=device, requires_grad=True)
    mean = torch.zeros(2, 3, dtype=torch.float64, device=device)

    def behaviour(deviations: torch.Tensor) -> Any:
        return policy.mixture(is_regularised=False).proba_distribution(mean, deviations)

    mixture = behaviour(log_std)
    torch.testing.assert_close(mixture.mixture_entropy(), mean.new_full((2,), 1.5))
    torch.testing.assert_close(mixture.behaviour_log_std.diff(), log_std.diff())
    torch.testing.assert_close(
        mixture.network_entropy(), mean.new_full((2,), -6 + 1.5 * math.log(2 * math.pi * math.e))
    )
    actions = torch.tensor([[0.5, -0.2, 0.1], [2.0, 0.0, 0.3]], dtype=torch.float64, device=device)
    ours = torch.distributions.Normal(mean, mixture.behaviour_log_std.exp()).log_prob(actions).sum(-1)
    torch.testing.assert_close(mixture.log_prob(actions), ours)
    assert torch.autograd.gradcheck(lambda deviations: behaviour(deviations).log_prob(actions), log_std)
    above = torch.tensor([0.1, -0.2, 0.3], device=device)
    assert torch.equal(behaviour(above).behaviour_log_std, above)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"min_entropy_frac": 1.5}, ValueError, r"min_entropy_frac=1\.5"),
        ({"min_entropy_frac": -0.1}, ValueError, r"min_entropy_frac=-0\.1"),
        ({"min_entropy_frac": "0.3"}, ValueError, "min_entropy_frac='0.3' is no schedule"),
        ({"min_entropy_frac": [0.3]}, TypeError, "min_entropy_frac"),
        ({"min_entropy_frac": lambda left: 2 * left}, ValueError, r"min_entropy_frac, a callable, gave 2\.0"),
        ({"min_entropy_nats": 0.3}, ValueError, r"min_entropy_nats=0\.3 is for a Box.*min_entropy_frac"),
        ({"min_entropy_frac": 0.3, "exploration_floor": 0.1}, ValueError, "both given"),
        ({"min_entropy_frac": 0.3, "min_entropy_nats": 0.1}, ValueError, "both given"),
        ({"min_entropy_frac": 0.3, "policy_kwargs": {"exploration_floor": 0.1}}, ValueError, "exploration_floor"),
        ({"min_entropy_frac": 0.3, "policy_kwargs": {"min_entropy_frac": 0.2}}, ValueError, "give one of them"),
        ({"policy_kwargs": {"min_entropy_frac": 0.3, "exploration_floor": 0.1}}, ValueError, "both given"),
        ({"min_entropy_frac": 0.6, "target_entropy_frac": 0.5}, ValueError, "at most the target"),
        ({"min_entropy_frac": "lin_0.9", "target_entropy_nats": 0.6}, ValueError, r"\(0\.6238 nats\) exceeds"),
        ({"min_entropy_frac": 0.3, "smoothing": Smoothing(0.1, "adjacent")}, ValueError, "reference="),
        ({"min_entropy_frac": 0.3, "policy_kwargs": {"reference": torch.tensor([0.4, 0.6])}}, ValueError, "uniform"),
        ({"env": "Pendulum-v1", "min_entropy_frac": 0.3}, ValueError, "min_entropy_nats"),
        ({"env": "Pendulum-v1", "min_entropy_frac": 0.3, "use_sde": True}, ValueError, "min_entropy_nats"),
        ({"env": "Pendulum-v1", "min_entropy_nats": math.inf}, ValueError, "min_entropy_nats=inf"),
        ({"env": "Pendulum-v1", "min_entropy_nats": 0.0, "exploration_floor": 0.1}, ValueError, "both given"),
        ({"env": "Pendulum-v1", "min_entropy_nats": 1.0, "target_entropy_nats": 0.5}, ValueError, "at most the target"),
        ({"env": "Pendulum-v1", "min_entropy_nats": 1.0, "use_sde": True}, ValueError, "gSDE.*use_sde=False"),
        ({"policy": "plain", "min_entropy_frac": 0.3}, TypeError, "ActorCriticPolicy can't be used with min_entropy"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"policy": "MlpPolicy", "env": "CartPole-v1", "device": "cpu", **copy.copy(arguments)}
    if given["policy"] == "plain":
        given["policy"] = PPO.policy_aliases["MlpPolicy"]
    assert_raises(error, message, SmoothedPPO, given.pop("policy"), given.pop("env"), **given)


def test_it_may_be_changed_between_two_learns_and_files_keep_it(tmp_path: Any) -> None:
    """Also as the zip of Stable-Baselines3, and in an algorithm of theirs with the policy's own argument."""
    few = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "seed": 0, "device": "cpu"}
    model = SmoothedPPO("MlpPolicy", "CartPole-v1", min_entropy_frac="lin_0.4", target_entropy_frac=0.5, **few)
    model.learn(128)
    model.save(tmp_path / "theirs.zip")
    path = save_agent(model, tmp_path / "agent.zip")
    for loaded in (load_agent(path), SmoothedPPO.load(tmp_path / "theirs.zip")):
        assert (loaded.min_entropy_frac, loaded.policy.min_entropy_frac) == ("lin_0.4", pytest.approx(0.1))
    assert_raises(ValueError, r"read it by load_agent\(path, env=env\)", SmoothedPPO.load, path)
    model.min_entropy_frac, model.exploration_floor = None, 0.2
    model.learn(32)
    assert (model.policy.min_entropy_frac, model.policy.exploration_floor) == (0.0, 0.2)
    assert "train/min_entropy_frac" not in model.logger.name_to_value
    plain = PPO(SmoothedActorCriticPolicy, "CartPole-v1", policy_kwargs={"min_entropy_frac": 0.9}, **few)
    plain.set_logger(configure(None, []))
    plain.learn(32, callback=PolicyEntropyCallback(), log_interval=None)
    assert dict(plain.logger.name_to_value)["train/entropy_below"] == 0.0
    assert plain.logger.name_to_value["train/entropy_frac_min"] >= 0.9 - 1e-6
    loaded = load_agent(save_agent(plain, tmp_path / "plain.zip"))
    assert loaded.policy.min_entropy_frac == 0.9
    probabilities = loaded.policy.action_probabilities(np.zeros(4, np.float32))
    assert probabilities.min() >= guaranteed_floor(0.9, 2) / 2 - 1e-7


def test_off_is_the_parent_bit_for_bit() -> None:
    """0 and None, and a schedule that has come down to 0."""
    few = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "seed": 0, "device": "cpu"}
    parent = PPO("MlpPolicy", "CartPole-v1", **few).learn(64)
    for off in (None, 0.0, lambda _: 0.0):
        ours = SmoothedPPO("MlpPolicy", "CartPole-v1", min_entropy_frac=off, **few).learn(64)
        assert all(map(torch.equal, ours.policy.parameters(), parent.policy.parameters()))
