"""RLlib's learners with our losses against RLlib's own and against formulas written out."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("ray.rllib")
import gymnasium as gym
import ray
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule

from rlsmooth.data import cartpole_v1
from rlsmooth.integrations.rllib import PARQUET_SCHEMA, SmoothedBCConfig, SmoothedMARWILConfig, SmoothedPPOConfig
from rlsmooth.targets import Smoothing
from support import REPOSITORY

pytestmark = pytest.mark.filterwarnings("default")  # RLlib and what it imports warn of their own coming changes
MODULE = "default_policy"
ACTIONS = 5


class Env(gym.Env[Any, Any]):
    """Spaces alone."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(ACTIONS)


def learner(config: Any, space: Any = None, spec: Any = None, actions: Any = Env.action_space) -> Any:
    torch.manual_seed(0)
    config = config.environment(observation_space=space or Env.observation_space, action_space=actions)
    if spec is None:
        config.rl_module(model_config={"fcnet_hiddens": [16], "vf_share_layers": False})
    else:
        config.rl_module(rl_module_spec=spec)
    made = config.debugging(seed=0).build_learner(spaces={"__env__": (space or Env.observation_space, actions)})
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


def test_components_of_an_action_are_smoothed_each() -> None:
    given, space = batch(), gym.spaces.MultiDiscrete([2, ACTIONS - 2])
    given["actions"] = torch.stack((given["actions"] % 2, given["actions"] % 3), -1)

    def parts(logits: Tensor) -> list[Tensor]:
        return [part.log_softmax(-1) for part in logits.split([2, 3], -1)]

    found, logits = loss_and_logits(learner(SmoothedBCConfig().smoothing(0.1), actions=space), given)
    rows = torch.zeros(16, dtype=torch.float64)
    for place, logs in enumerate(parts(logits)):
        count = logs.shape[-1]
        target = 0.9 * nn.functional.one_hot(given["actions"][:, place], count) + 0.1 / count
        rows -= (target * logs).sum(-1)
    torch.testing.assert_close(found.double(), rows.mean(), rtol=0, atol=1e-6)
    plain, logits = loss_and_logits(learner(PPOConfig(), actions=space), given)
    found, _ = loss_and_logits(learner(SmoothedPPOConfig().smoothing(0.1), actions=space), given)
    kl = sum(-(logs.mean(-1) + torch.tensor(logs.shape[-1]).log()).mean() for logs in parts(logits))
    torch.testing.assert_close(found.double(), plain.double() + 0.1 * kl, rtol=0, atol=1e-6)


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
    assert made.alpha == 0.2
    made.before_gradient_based_update(timesteps={"num_env_steps_sampled_lifetime": 50})
    assert made.alpha == pytest.approx(0.1)
    with pytest.raises(ValueError, match="Invalid `smoothing`"):
        SmoothedPPOConfig().smoothing([[0, 0.2]])
    with pytest.raises(ValueError, match="give a number"):
        SmoothedBCConfig().smoothing([[0, 0.2], [100, 0.0]])
    with pytest.raises(ValueError, match=r"smoothing=-0\.1"):
        SmoothedPPOConfig().smoothing(-0.1)
    with pytest.raises(ValueError, match="give one of them"):
        SmoothedBCConfig().smoothing(Smoothing(0.1), "adjacent")
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        SmoothedBCConfig().smoothing(1.5)
    with pytest.raises(TypeError, match=r"got str 'lin_0\.1'"):
        SmoothedPPOConfig().smoothing("lin_0.1")
    drawn = SmoothedBCConfig().smoothing(tune.uniform(0.0, 0.2))  # one value of it, as Tune makes it:
    drawn.learner_config_dict["rlsmooth"]["alpha"] = 1.5
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        learner(drawn)
    assert copy.deepcopy(SmoothedPPOConfig().smoothing(0.1)).learner_config_dict["rlsmooth"]["alpha"] == 0.1


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("where", ["observations", "batch"])
def test_masks_are_those_of_rllibs_own_module(where: str, counts: bool) -> None:
    given = batch(counts)
    masks = nn.functional.one_hot(given["actions"], ACTIONS) + (torch.arange(16 * ACTIONS).view(16, -1) % 3 == 0)
    masks = masks.clamp(max=1).float()
    if counts:
        masks[0] = 0  # RLlib pads with zeros what LOSS_MASK leaves out
    space = gym.spaces.Dict(
        {"action_mask": gym.spaces.Box(0, 1, (ACTIONS,), np.float32), "observations": Env.observation_space}
    )

    def loss(config: Any) -> tuple[Tensor, Tensor, Tensor]:
        spec = RLModuleSpec(ActionMaskingTorchRLModule, model_config={"fcnet_hiddens": [16], "vf_share_layers": False})
        made = learner(config, space, spec)
        module, own = (
            made.module[MODULE].unwrapped(),
            {**given, "obs": {"action_mask": masks.clone(), "observations": given["obs"]}},
        )
        if where == "batch":
            module.compute_values(own)  # as the connector that computes advantages does; the mask is moved
        else:
            own["action_mask"] = masks
        outputs = {"action_dist_inputs": module.pi(module.encoder({"obs": given["obs"]})["encoder_out"]["actor"])}
        outputs = module._mask_action_logits(outputs, masks)
        config = made.config.get_config_for_module(MODULE)
        found = made.compute_loss_for_module(module_id=MODULE, config=config, batch=own, fwd_out=outputs)
        found.backward()
        slopes = torch.cat([each.grad.flatten() for each in module.pi.parameters()])
        return found.detach().double(), outputs["action_dist_inputs"].detach().double(), slopes

    plain, logits, _ = loss(PPOConfig().training(use_kl_loss=False))
    found, _, slopes = loss(SmoothedPPOConfig().training(use_kl_loss=False).smoothing(0.1))
    cloned, _, others = loss(SmoothedBCConfig().smoothing(0.1))
    assert torch.isfinite(slopes).all()
    assert torch.isfinite(others).all()
    logs = logits.masked_fill(masks == 0, -torch.inf).log_softmax(-1)
    uniform = masks.double() / masks.sum(-1, keepdim=True)
    target = 0.9 * nn.functional.one_hot(given["actions"], ACTIONS) + 0.1 * uniform
    counted = given["loss_mask"] if counts else torch.ones(16, dtype=torch.bool)
    kl = (uniform * (uniform.log() - logs)).nan_to_num(nan=0.0).sum(-1)[counted].mean()
    torch.testing.assert_close(found, plain + 0.1 * kl, rtol=0, atol=1e-6)
    rows = -(target * logs).nan_to_num(nan=0.0).sum(-1)
    torch.testing.assert_close(cloned, rows[counted].mean(), rtol=0, atol=1e-6)


PAGE = (REPOSITORY / "docs" / "integrations.md").read_text(encoding="utf-8")


@pytest.fixture
def cluster() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def example(name: str) -> str:
    """The program of the page that says `name`."""
    (found,) = (code for code in re.findall(r"^```py\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) if name in code)
    return str(found)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["SmoothedPPOConfig()\n", "SmoothedBCConfig()"])
def test_the_pages_examples_reach_475(
    name: str, seed: int, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    started = time.process_time()
    exec(example(name).replace("seed=0", f"seed={seed}"), found)
    print(f"{name.strip()} seed {seed}: return {found['mean_return']}, {time.process_time() - started:.0f} CPU seconds")
    assert found["mean_return"] >= 475


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tune_searches_over_alpha(cluster: None, tmp_path: Path) -> None:
    found: dict[str, Any] = {}
    exec(example("grid_search").replace("RunConfig(", f"RunConfig(storage_path={str(tmp_path)!r}, "), found)
    trials = list(found["trials"])
    assert [trial.config["learner_config_dict"]["rlsmooth"]["alpha"] for trial in trials] == [0.0, 0.1]
    with_kl = ["kl_reference_to_policy" in trial.metrics["learners"][MODULE] for trial in trials]
    assert with_kl == [False, True]


def small(config: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    return (
        config.environment("CartPole-v1")
        .training(train_batch_size_per_learner=200, minibatch_size=100, num_epochs=2)
        .debugging(seed=0)
        .env_runners(**{"num_env_runners": 0, **more})
    )


def weights(algorithm: Any) -> list[list[Any]]:
    """The parameters of each learner."""
    states = algorithm.learner_group.foreach_learner(lambda learner: learner.module[MODULE].get_state())
    return [[value.tolist() for value in result.get().values()] for result in states]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_alpha_0_trains_as_rllib(cluster: None) -> None:
    found = []
    for config in (PPOConfig(), SmoothedPPOConfig().smoothing(0.0)):
        algorithm = small(config).build_algo()
        for _ in range(2):
            algorithm.train()
        found.append(weights(algorithm))
        algorithm.stop()
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_several_learners_and_environment_runners(cluster: None) -> None:
    config = small(SmoothedPPOConfig().smoothing([[0, 0.2], [800, 0.0]]), num_env_runners=2).learners(num_learners=2)
    algorithm = config.build_algo()
    result = algorithm.train()
    first, second = weights(algorithm)
    alphas = [one.get() for one in algorithm.learner_group.foreach_learner(lambda one: one.alpha)]
    algorithm.stop()
    assert first == second
    assert result["learners"][MODULE]["kl_reference_to_policy"] > 0
    assert alphas == pytest.approx([0.1, 0.1], abs=0.01)  # of 400 steps


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_restored_run_continues_the_schedule(cluster: None, tmp_path: Path) -> None:
    algorithm = small(SmoothedPPOConfig().smoothing([[0, 0.2], [800, 0.0]])).build_algo()
    algorithm.train()
    algorithm.save_to_path(str(tmp_path / "saved"))
    alphas = []
    for each in (algorithm, Algorithm.from_checkpoint(str(tmp_path / "saved"))):
        each.train()
        (result,) = each.learner_group.foreach_learner(lambda learner: learner.alpha)
        alphas.append(result.get())
        each.stop()
    assert alphas == pytest.approx([0.1, 0.1], abs=0.01)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("config", [SmoothedBCConfig, SmoothedMARWILConfig])
def test_offline_data_for_two_learners(config: Any, cluster: None, tmp_path: Path) -> None:
    data = cartpole_v1().select_episodes([0, 1])
    data.to_parquet(tmp_path / "data.parquet")
    algorithm = (
        config()
        .environment(observation_space=data.observation_space, action_space=data.action_space)
        .offline_data(
            input_=[str(tmp_path / "data.parquet")],
            input_read_schema=PARQUET_SCHEMA,
            dataset_num_iters_per_learner=2,
            map_batches_kwargs={"concurrency": 1},
        )
        .smoothing(0.1)
        .training(train_batch_size_per_learner=64)
        .learners(num_learners=2)
        .build_algo()
    )
    result = algorithm.train()
    first, second = weights(algorithm)
    algorithm.stop()
    assert first == second
    assert result["learners"][MODULE]["policy_loss"] > 0.3
