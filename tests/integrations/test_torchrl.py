"""Loss modules for TorchRL against TorchRL's own losses and against formulas written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

tensordict = pytest.importorskip("tensordict")
torchrl = pytest.importorskip("torchrl")
from tensordict import TensorDict  # noqa: E402
from tensordict.nn import TensorDictModule  # noqa: E402
from torchrl.modules import MaskedCategorical, OneHotCategorical, ProbabilisticActor, ValueOperator  # noqa: E402
from torchrl.objectives import ClipPPOLoss  # noqa: E402

from rlsmooth.data import cartpole_v1  # noqa: E402
from rlsmooth.integrations.torchrl import SmoothedBCLoss, SmoothedClipPPOLoss  # noqa: E402
from rlsmooth.targets import Smoothing  # noqa: E402

# TorchRL and tensordict warn of their own coming changes.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning", "default::UserWarning")
KINDS = {"labels": torch.distributions.Categorical, "one-hot": OneHotCategorical, "masked": MaskedCategorical}


def actor(kind: str, features: int = 3, actions: int = 4) -> Any:
    torch.manual_seed(0)
    keys = ["logits", "mask"] if kind == "masked" else ["logits"]
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
    if kind == "masked":
        given["mask"] = (torch.rand(count, 4) < 0.5) | nn.functional.one_hot(torch.arange(count) % 4, 4).bool()
    found = TensorDict(given, [count])
    with torch.no_grad():
        actor(kind)(found)
    return found.select(*given, "action", "action_log_prob")


def log_probs(policy: Any, data: TensorDict, kind: str) -> Tensor:
    logits = policy.module[0](data.clone())["logits"]
    return logits.masked_fill(~data["mask"], -torch.inf).log_softmax(-1) if kind == "masked" else logits.log_softmax(-1)


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
    legal = data["mask"] if kind == "masked" else torch.ones_like(logs, dtype=torch.bool)
    uniform = legal / legal.sum(-1, keepdim=True)
    kl = (uniform * (uniform.log() - logs)).nan_to_num(nan=0.0).sum(-1).mean()
    torch.testing.assert_close(total(found).double(), total(expected).double() + 0.1 * kl, rtol=0, atol=1e-6)
    each = SmoothedClipPPOLoss(policy, critic, smoothing=0.1, reduction="none")(data.clone())
    assert each["loss_kl_reference_to_policy"].shape == each["loss_objective"].shape
    torch.testing.assert_close(each["kl_reference_to_policy"].mean().double(), kl, rtol=0, atol=1e-6)
    loss.alpha = 0.0
    assert total(loss(data.clone())).item() == total(expected).item()


@pytest.mark.parametrize("kind", KINDS)
def test_cloning_is_the_smoothed_cross_entropy(kind: str) -> None:
    data, policy = batch(kind), actor(kind)
    data["weight"] = torch.rand(32) + 0.1
    logs = log_probs(policy, data, kind).double()
    labels = data["action"].argmax(-1) if kind == "one-hot" else data["action"]
    legal = data["mask"] if kind == "masked" else torch.ones_like(logs, dtype=torch.bool)
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


@pytest.mark.slow
def test_a_clone_reaches_475() -> None:
    import gymnasium as gym

    given = cartpole_v1()
    data = TensorDict(
        {"observation": torch.from_numpy(given.observations), "action": torch.from_numpy(given.actions).long()},
        [len(given)],
    )
    policy = actor("labels", features=4, actions=2)
    loss = SmoothedBCLoss(policy)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
    for step in range(1500):
        chosen = torch.randint(len(given), (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss(data[chosen])["loss_bc"].backward()
        optimizer.step()
    env, returns = gym.make("CartPole-v1"), []
    for seed in range(10):
        observation, _ = env.reset(seed=seed)
        returns.append(0.0)
        over = False
        while not over:
            with torch.no_grad():
                logits = policy.module[0](TensorDict({"observation": torch.from_numpy(observation)}, []))["logits"]
            observation, reward, terminated, truncated, _ = env.step(int(logits.argmax()))
            returns[-1] += float(reward)
            over = terminated or truncated
    assert sum(returns) / len(returns) >= 475
