"""Loss modules for TorchRL against TorchRL's own losses and against formulas written out."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

tensordict = pytest.importorskip("tensordict")
torchrl = pytest.importorskip("torchrl")
from tensordict import TensorDict  # noqa: E402
from tensordict.nn import TensorDictModule  # noqa: E402
from torchrl.envs import GymEnv  # noqa: E402
from torchrl.envs.utils import ExplorationType, set_exploration_type  # noqa: E402
from torchrl.modules import (  # noqa: E402
    MaskedCategorical,
    MaskedOneHotCategorical,
    OneHotCategorical,
    ProbabilisticActor,
    ValueOperator,
)
from torchrl.objectives import ClipPPOLoss  # noqa: E402

from rlsmooth.integrations.torchrl import SmoothedBCLoss, SmoothedClipPPOLoss  # noqa: E402
from rlsmooth.targets import Smoothing  # noqa: E402
from support import REPOSITORY  # noqa: E402

# TorchRL and tensordict warn of their own coming changes.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning", "default::UserWarning")
KINDS = {
    "labels": torch.distributions.Categorical,
    "one-hot": OneHotCategorical,
    "masked": MaskedCategorical,
    "masked one-hot": MaskedOneHotCategorical,
}


def actor(kind: str, features: int = 3, actions: int = 4) -> Any:
    torch.manual_seed(0)
    keys = ["logits", "mask"] if "masked" in kind else ["logits"]
    network = nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, actions))
    module = TensorDictModule(network, in_keys=["observation"], out_keys=["logits"])
    return ProbabilisticActor(
        module, in_keys=keys, out_keys=["action"], distribution_class=KINDS[kind], return_log_prob=True
    )


def batch(kind: str, count: int = 32) -> TensorDict:
    torch.manual_seed(1)
    given = {
        "observation": torch.randn(count, 3),
        "advantage": torch.randn(count, 1),
        "value_target": torch.randn(count, 1),
    }
    if "masked" in kind:
        given["mask"] = (torch.rand(count, 4) < 0.5) | nn.functional.one_hot(torch.arange(count) % 4, 4).bool()
    found = TensorDict(given, [count])
    with torch.no_grad():
        actor(kind)(found)
    return found.select(*given, "action", "action_log_prob")


def log_probs(policy: Any, data: TensorDict, kind: str) -> Tensor:
    logits = policy.module[0](data.clone())["logits"]
    return logits.masked_fill(~data["mask"], -torch.inf).log_softmax(-1) if "masked" in kind else logits.log_softmax(-1)


def total(losses: Any) -> Tensor:
    return sum(value for name, value in losses.items() if name.startswith("loss_"))


@pytest.mark.parametrize("kind", KINDS)
def test_ppo_adds_the_divergence_and_nothing_at_0(kind: str) -> None:
    data, policy = batch(kind), actor(kind)
    critic = ValueOperator(nn.Linear(3, 1), in_keys=["observation"])
    expected = ClipPPOLoss(policy, critic)(data.clone())
    none = SmoothedClipPPOLoss(policy, critic, smoothing=0.0)(data.clone())
    assert {name: value.tolist() for name, value in none.items()} == {
        name: value.tolist() for name, value in expected.items()
    }
    loss = SmoothedClipPPOLoss(policy, critic, smoothing=0.1)
    found = loss(data.clone())
    logs = log_probs(policy, data, kind).double()
    legal = data["mask"] if "masked" in kind else torch.ones_like(logs, dtype=torch.bool)
    uniform = legal / legal.sum(-1, keepdim=True)
    kl = (uniform * (uniform.log() - logs)).nan_to_num(nan=0.0).sum(-1).mean()
    torch.testing.assert_close(total(found).double(), total(expected).double() + 0.1 * kl, rtol=0, atol=1e-6)
    each = SmoothedClipPPOLoss(policy, critic, smoothing=0.1, reduction="none")(data.clone())
    assert each["loss_kl_reference_to_policy"].shape == each["loss_objective"].shape
    torch.testing.assert_close(each["kl_reference_to_policy"].mean().double(), kl, rtol=0, atol=1e-6)
    loss.alpha = 0.0
    assert total(loss(data.clone())).item() == total(expected).item()


def test_ppo_takes_a_prior_or_a_kernel_around_the_greedy_action() -> None:
    data, policy = batch("labels"), actor("labels")
    critic = ValueOperator(nn.Linear(3, 1), in_keys=["observation"])
    logs = log_probs(policy, data, "labels").double()
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4])
    kernel = (1 - torch.eye(4)) * torch.rand(4, 4).add(0.1)
    kernel /= kernel.sum(-1, keepdim=True)
    for reference, q in ((prior, prior.double()), (kernel, kernel[logs.argmax(-1)].double())):
        loss = SmoothedClipPPOLoss(policy, critic, smoothing=Smoothing(0.1, reference))(data.clone())
        kl = (torch.special.xlogy(q, q) - q * logs).sum(-1).mean()
        torch.testing.assert_close(loss["loss_kl_reference_to_policy"].double(), 0.1 * kl, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_cloning_is_the_smoothed_cross_entropy(kind: str) -> None:
    data, policy = batch(kind), actor(kind)
    data["weight"] = torch.rand(32) + 0.1
    logs = log_probs(policy, data, kind).double()
    labels = data["action"].argmax(-1) if "one-hot" in kind else data["action"]
    legal = data["mask"] if "masked" in kind else torch.ones_like(logs, dtype=torch.bool)
    target = 0.9 * nn.functional.one_hot(labels, 4) + 0.1 * legal / legal.sum(-1, keepdim=True)
    rows = -(target * logs).nan_to_num(nan=0.0).sum(-1)
    found = SmoothedBCLoss(policy)(data.clone())
    torch.testing.assert_close(found["loss_bc"].double(), rows.mean(), rtol=0, atol=1e-6)
    weighed = SmoothedBCLoss(policy, weight_key="weight")(data.clone())["loss_bc"].double()
    weights = data["weight"].double()
    torch.testing.assert_close(weighed, (rows * weights).sum() / weights.sum(), rtol=0, atol=1e-6)


def test_mistakes_are_said() -> None:
    with pytest.raises(ValueError, match="one number"):
        SmoothedBCLoss(actor("labels"), smoothing=Smoothing("lin_0.1"))
    module = TensorDictModule(nn.Linear(3, 2), in_keys=["observation"], out_keys=["loc"])
    policy = ProbabilisticActor(
        module,
        in_keys=["loc"],
        out_keys=["action"],
        distribution_class=torch.distributions.Normal,
        distribution_kwargs={"scale": 1.0},
    )
    with pytest.raises(TypeError, match="Normal, which has no logits"):
        SmoothedBCLoss(policy)(batch("labels"))


def test_losses_take_arguments_and_leave_the_batch_as_it_is() -> None:
    data, policy = batch("labels").exclude("advantage", "value_target"), actor("labels")
    critic = ValueOperator(nn.Linear(3, 1), in_keys=["observation"])
    for name, value in (("observation", torch.randn(32, 3)), ("reward", torch.randn(32, 1))):
        data["next", name] = value
    for name in ("done", "terminated"):
        data["next", name] = torch.zeros(32, 1, dtype=torch.bool)
    keys = set(data.keys(include_nested=True))
    for loss in (
        *(SmoothedClipPPOLoss(policy, critic, smoothing=alpha) for alpha in (0.0, 0.1)),
        SmoothedBCLoss(policy),
    ):
        given = data.clone()
        expected = loss(given)
        assert set(given.keys(include_nested=True)) - keys <= {"advantage", "value_target"}
        keys_given = {key if isinstance(key, str) else "_".join(key): data[key] for key in loss.in_keys}
        found = dict(zip(loss.out_keys, loss(**keys_given), strict=True))
        assert {name: value.tolist() for name, value in found.items()} == {
            name: expected[name].tolist() for name in loss.out_keys
        }


def programs(language: str) -> str:
    page = (REPOSITORY / "docs" / "integrations.md").read_text(encoding="utf-8").partition("## RLlib")[0]
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["clone", "ppo"])
def test_the_pages_examples_reach_475(kind: str, seed: int) -> None:
    started, found = time.process_time(), {}
    if kind == "ppo":
        exec(programs("py").replace("seed = 0", f"seed = {seed}"), found)
        mean_return = found["mean_return"]
    else:
        exec(programs("python").replace("manual_seed(0)", f"manual_seed({seed})"), found)
        env = GymEnv("CartPole-v1", categorical_action_encoding=True)
        env.set_seed(seed)
        with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
            returns = [env.rollout(500, found["actor"])["next", "reward"].sum().item() for _ in range(20)]
        mean_return = sum(returns) / len(returns)
    print(f"{kind}, seed {seed}: return {mean_return}, {time.process_time() - started:.0f} CPU seconds")
    assert mean_return >= 475
