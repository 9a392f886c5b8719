"""RLlib's learners with our losses against RLlib's own and against formulas written out."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("ray.rllib")
import gymnasium as gym
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.algorithms.ppo import PPOConfig

from rlsmooth.data import cartpole_v1
from rlsmooth.integrations.rllib import SmoothedBCConfig, SmoothedMARWILConfig, SmoothedPPOConfig
from rlsmooth.targets import Smoothing

pytestmark = pytest.mark.filterwarnings("default")  # RLlib and what it imports warn of their own coming changes
MODULE = "default_policy"
ACTIONS = 5


class Env(gym.Env[Any, Any]):
    """Spaces alone."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(ACTIONS)


def learner(config: Any) -> Any:
    torch.manual_seed(0)
    made = (
        config.environment(observation_space=Env.observation_space, action_space=Env.action_space)
        .rl_module(model_config={"fcnet_hiddens": [16], "vf_share_layers": False})
        .debugging(seed=0)
        .build_learner(env=Env())
    )
    made.build()
    return made


def batch(counts: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(1)
    found = {
        "obs": torch.rand(16, 3),
        "actions": torch.randint(ACTIONS, (16,)),
        "action_logp": torch.full((16,), -1.6),
        "action_dist_inputs": torch.randn(16, ACTIONS),
        "advantages": torch.randn(16),
        "value_targets": torch.randn(16),
    }
    return found | ({"loss_mask": torch.arange(16) % 3 > 0} if counts else {})


def loss_and_logits(made: Any, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    module = made.module[MODULE].unwrapped()
    outputs = module.forward_train(dict(given))
    config = made.config.get_config_for_module(MODULE)
    loss = made.compute_loss_for_module(module_id=MODULE, config=config, batch=dict(given), fwd_out=outputs)
    return loss, outputs["action_dist_inputs"].detach().double()


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(PPOConfig, SmoothedPPOConfig), (BCConfig, SmoothedBCConfig), (MARWILConfig, SmoothedMARWILConfig)],
)
def test_alpha_0_is_rllibs_loss(theirs: Any, ours: Any, counts: bool) -> None:
    given = batch(counts)
    expected, _ = loss_and_logits(learner(theirs()), given)
    found, _ = loss_and_logits(learner(ours().smoothing(0.0)), given)
    assert found.item() == expected.item()
    assert loss_and_logits(learner(ours()), given)[0].item() == expected.item()


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("reference", [None, "adjacent"])
def test_ppo_adds_the_divergence(reference: Any, counts: bool) -> None:
    if reference == "adjacent":
        reference = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2])
    given = batch(counts)
    plain, logits = loss_and_logits(learner(PPOConfig()), given)
    found, _ = loss_and_logits(learner(SmoothedPPOConfig().smoothing(0.1, reference)), given)
    q = torch.full((ACTIONS,), 0.2) if reference is None else reference
    rows = (q.double() * (q.double().log() - logits.log_softmax(-1))).sum(-1)
    kl = rows[given["loss_mask"]].mean() if counts else rows.mean()
    torch.testing.assert_close(found.double(), plain.double() + 0.1 * kl, rtol=0, atol=1e-6)


@pytest.mark.parametrize("counts", [False, True])
def test_cloning_is_the_smoothed_cross_entropy(counts: bool) -> None:
    given = batch(counts)
    found, logits = loss_and_logits(learner(SmoothedBCConfig().smoothing(0.1)), given)
    target = 0.9 * torch.nn.functional.one_hot(given["actions"], ACTIONS) + 0.02
    rows = -(target * logits.log_softmax(-1)).sum(-1)
    mean = rows[given["loss_mask"]].mean() if counts else rows.mean()
    torch.testing.assert_close(found.double(), mean, rtol=0, atol=1e-6)


def test_marwil_weighs_the_smoothed_cross_entropy() -> None:
    given, norm = batch(), 100.0
    made = learner(SmoothedMARWILConfig().smoothing(0.1).training(beta=1.0, vf_coeff=0.7))
    module = made.module[MODULE].unwrapped()
    values = module.compute_values(dict(given)).detach().double()
    rate = made.config.moving_average_sqd_adv_norm_update_rate
    found, logits = loss_and_logits(made, given)
    advantages = given["value_targets"].double() - values
    square = advantages.square().mean()
    norm += rate * (square - norm)
    weights = (advantages / (1e-8 + norm**0.5)).exp()
    target = 0.9 * torch.nn.functional.one_hot(given["actions"], ACTIONS) + 0.02
    rows = -(target * logits.log_softmax(-1)).sum(-1)
    expected = (weights * rows).mean() + 0.7 * 0.5 * square
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_schedules_and_mistakes() -> None:
    made = learner(SmoothedPPOConfig().smoothing([[0, 0.2], [100, 0.0]]))
    made.after_gradient_based_update(timesteps={"num_env_steps_sampled_lifetime": 50})
    assert float(made.alpha.get_current_value()) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="give a number"):
        SmoothedBCConfig().smoothing([[0, 0.2], [100, 0.0]])
    with pytest.raises(ValueError, match=r"smoothing=-0\.1"):
        SmoothedPPOConfig().smoothing(-0.1)
    with pytest.raises(ValueError, match="give one of them"):
        SmoothedBCConfig().smoothing(Smoothing(0.1), "adjacent")
    assert copy.deepcopy(SmoothedPPOConfig().smoothing(0.1)).learner_config_dict["rlsmooth"][0] == 0.1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ppo_and_a_clone_reach_475() -> None:
    import ray

    config = (
        SmoothedPPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .smoothing(0.01)
        .training(train_batch_size_per_learner=4000, minibatch_size=128, num_epochs=10, lr=3e-4, entropy_coeff=0.0)
        .debugging(seed=0)
    )
    ray.init(num_cpus=2, include_dashboard=False, ignore_reinit_error=True)
    algorithm = config.build_algo()
    best = 0.0
    for _ in range(40):
        best = max(best, algorithm.train()["env_runners"]["episode_return_mean"])
        if best >= 475:
            break
    algorithm.stop()
    ray.shutdown()
    assert best >= 475
    given = cartpole_v1()
    assert len(given) > 0
