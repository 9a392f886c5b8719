"""`engine="numpy"` in cloning agents: against the torch engine, through files, and what it does not serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlsmooth.agents import BC, BCO, DAgger, SmoothedPPO, heads
from rlsmooth.data import Demonstrations, ObservationOnly, cartpole_v1
from rlsmooth.targets import Smoothing
from support import same_parameters

COUNT = 70  # not a multiple of the batch's size
WIDE = spaces.Box(np.float32([-2, 400]), np.float32([3, 500]))
CASES: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "smoothed": (spaces.Discrete(4, start=3), {}),
    "hard": (spaces.Discrete(4), {"smoothing": 0.0}),
    "schedule": (spaces.Discrete(4), {"smoothing": "lin_0.3", "learning_rate": "lin_1e-2"}),
    "ordinal": (spaces.Discrete(6), {"smoothing": Smoothing(0.2, "exponential")}),
    "many classes": (spaces.Discrete(50), {}),
    "kl": (spaces.Discrete(4), {"kl_coef": 0.3, "reference": torch.tensor([0.1, 0.2, 0.3, 0.4])}),
    "l2 and clipping": (spaces.Discrete(4), {"l2_coef": 0.1, "max_grad_norm": 0.05}),
    "multi-discrete": (spaces.MultiDiscrete([3, 40, 2]), {"smoothing": [0.1, 0.2, 0.0]}),
    "multi-discrete, few": (spaces.MultiDiscrete([3, 4]), {}),
    "multi-binary": (spaces.MultiBinary(3), {}),
    "box": (WIDE, {"l2_coef": 0.01, "max_grad_norm": 1.0}),
    "bins": (WIDE, {"action_bins": 7}),
    "relu": (spaces.Discrete(3), {"policy_kwargs": {"net_arch": [8], "activation_fn": torch.nn.ReLU}}),
    "elu": (spaces.Discrete(3), {"policy_kwargs": {"net_arch": [8, 9, 5], "activation_fn": torch.nn.ELU}}),
    "one layer": (spaces.Discrete(3), {"policy_kwargs": {"net_arch": []}}),
    # RMSprop divides by what may be close to 0, so that with a small eps roundings of the gradient become large.
    "rmsprop": (
        spaces.Discrete(3),
        {"policy_kwargs": {"optimizer_class": torch.optim.RMSprop, "optimizer_kwargs": {"eps": 1e-3}}},
    ),
    "weight decay": (spaces.Discrete(3), {"policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.1}}}),
}


def draw(space: spaces.Space[Any], *, masked: bool = False, weighted: bool = False) -> Demonstrations:
    rng = np.random.default_rng(0)
    space.seed(0)
    actions = np.stack([space.sample() for _ in range(COUNT)])
    more: dict[str, Any] = {}
    if masked:
        sizes = [int(space.n)] if isinstance(space, spaces.Discrete) else [int(size) for size in space.nvec]  # type: ignore[attr-defined]
        columns = [rng.random((COUNT, size)) > 0.4 for size in sizes]
        starts = np.broadcast_to(space.start, (len(sizes),))  # type: ignore[attr-defined]
        for column, chosen, start in zip(columns, actions.reshape(COUNT, -1).T, starts, strict=True):
            column[np.arange(COUNT), chosen - start] = True
        more["action_masks"] = np.concatenate(columns, axis=1)
    if weighted:
        more["weights"] = rng.random(COUNT).astype(np.float32) + 0.1
    observations = rng.normal(size=(COUNT, 2, 3)).astype(np.float32)
    places = {"observation_space": spaces.Box(-np.inf, np.inf, (2, 3)), "action_space": space}
    return Demonstrations(observations=observations, actions=actions, episode_ends=np.array([COUNT]), **places, **more)


def train(data: Demonstrations, engine: Any, updates: int = 40, **arguments: Any) -> BC:
    agent = BC("MlpPolicy", None, data, seed=0, device="cpu", batch_size=32, engine=engine, **arguments)
    return agent.learn(total_batches=updates)


def assert_close(one: Any, other: Any) -> None:
    there, here = (dict(agent.policy.named_parameters()) for agent in (one, other))
    torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_updates_are_those_of_torch(case: str, weighted: bool) -> None:
    space, arguments = CASES[case]
    agents = [train(draw(space, weighted=weighted), engine, **arguments) for engine in ("torch", "numpy")]
    assert_close(*agents)
    losses = [agent._watch.mean_loss() for agent in agents]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    states = [agent.policy.optimizer.state_dict()["state"] for agent in agents]
    torch.testing.assert_close(states[1], states[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("space", [spaces.Discrete(5, start=2), spaces.MultiDiscrete([3, 4])])
@pytest.mark.parametrize("weighted", [False, True])
def test_masks(space: spaces.Space[Any], weighted: bool) -> None:
    data = draw(space, masked=True, weighted=weighted)
    assert_close(*[train(data, engine) for engine in ("torch", "numpy")])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("case", ["zero", *CASES])
def test_gradients_of_the_layers_are_autograds_to_the_bit(
    case: str, masked: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Of `engine="torch"`: most cases are served, with several ways of the loss."""
    space, arguments = {"zero": (spaces.Discrete(4), {}), **CASES}[case]
    if masked and not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return
    served, data = [], draw(space, masked=masked, weighted=case == "multi-discrete")
    real = heads.backward_of_plain

    def count(*given: Any) -> Any:
        loss = real(*given)
        served.append(loss is not None)
        return loss

    monkeypatch.setattr("rlsmooth.agents.cloning.bc.backward_of_plain", count)
    quick = train(data, "torch", 9, **arguments)
    if not request.config.getoption("--plain-paths"):  # "smoothed" counts from 3, and "box" has an L2 term too
        assert any(served) == (case not in ("smoothed", "l2 and clipping", "box"))
    monkeypatch.setattr("rlsmooth.agents.cloning.bc.backward_of_plain", lambda *given: None)
    plain = train(data, "torch", 9, **arguments)
    assert same_parameters(quick, plain)
    assert quick._watch.mean_loss() == plain._watch.mean_loss()


@pytest.mark.parametrize("frozen", [False, True])
def test_hooks_and_frozen_parameters_count_with_torch(frozen: bool) -> None:
    agent = BC("MlpPolicy", None, draw(spaces.Discrete(4)), seed=0, device="cpu", batch_size=32)
    weight, calls = agent.policy.action_net.weight, []  # type: ignore[union-attr]
    before = weight.detach().clone()
    weight.requires_grad_(not frozen)
    if not frozen:
        weight.register_hook(lambda gradient: calls.append(gradient) or gradient * 0)
    agent.learn(total_batches=3)
    assert torch.equal(before, weight)
    assert len(calls) == (0 if frozen else 3)


def test_two_thousand_updates_on_the_shipped_demonstrations() -> None:
    agents = []
    for engine in ("torch", "numpy"):
        agent = BC("MlpPolicy", None, cartpole_v1(), seed=0, device="cpu", engine=engine)  # type: ignore[arg-type]
        agents.append(agent.learn(total_batches=2_000))
    gaps = [
        (one - other).abs().max() for one, other in zip(*(agent.policy.parameters() for agent in agents), strict=True)
    ]
    assert max(gaps) < 1e-6


def test_a_killed_run_and_a_second_learn_go_on_bit_for_bit(tmp_path: Path) -> None:
    data = draw(spaces.Discrete(4))
    whole = train(data, "numpy", 30)
    run = tmp_path / "run"
    arguments: Any = {"batch_size": 32, "engine": "numpy", "checkpoint_folder": run, "checkpoint_every": 7}
    cut = BC("MlpPolicy", None, data, seed=0, device="cpu", **arguments)

    def stop(own: dict[str, Any], _: Any) -> bool:
        return bool(own["self"].num_timesteps < 17)

    cut.learn(total_batches=30, callback=stop)
    resumed = BC.resume(run, None, data, device="cpu")
    assert resumed.engine == "numpy"
    assert same_parameters(whole, resumed.learn(total_batches=30))
    first = train(data, "numpy", 30)
    path = first.save(tmp_path / "agent")
    read = BC.load(path, None, data, device="cpu")
    for agent in (first, read):
        agent.learn(total_batches=11)
    assert same_parameters(first, read)
    assert same_parameters(first, whole.learn(total_batches=11))


def test_what_a_callback_replaces_is_trained_from_there() -> None:
    data, agents = draw(spaces.Discrete(4)), []
    for engine in ("torch", "numpy"):

        def change(own: dict[str, Any], _: Any) -> bool:
            agent = own["self"]
            if agent.num_timesteps == 5:
                agent.policy.load_from_vector(np.full(sum(one.numel() for one in agent.policy.parameters()), 0.01))
            if agent.num_timesteps == 9:
                agent.policy.optimizer.param_groups[0]["weight_decay"] = 0.5
            return True

        agent = BC("MlpPolicy", None, data, seed=0, device="cpu", batch_size=32, engine=engine)  # type: ignore[arg-type]
        agents.append(agent.learn(total_batches=20, callback=change))
    assert_close(*agents)


def test_an_error_in_a_callback_leaves_plain_parameters() -> None:
    agent = BC("MlpPolicy", None, draw(spaces.Discrete(4)), seed=0, device="cpu", batch_size=32, engine="numpy")

    def fail(own: dict[str, Any], _: Any) -> bool:
        raise KeyError(own["self"].num_timesteps)

    with pytest.raises(KeyError):
        agent.learn(total_batches=5, callback=fail)
    states = agent.policy.optimizer.state.values()
    assert len({state["step"].data_ptr() for state in states}) == len(states)
    assert all(one.untyped_storage().nbytes() == 4 * one.numel() for one in agent.policy.parameters())


def test_rounds_pass_the_engine_on(tmp_path: Path) -> None:
    agents = []
    for engine in ("torch", "numpy"):
        expert = SmoothedPPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu")
        more: Any = {"seed": 0, "device": "cpu", "engine": engine}
        agent = DAgger("MlpPolicy", "CartPole-v1", expert, rollout_round_min_timesteps=50, **more)
        agents.append(agent.learn(100))
    assert_close(*agents)
    assert DAgger.load(agents[1].save(tmp_path / "agent"), device="cpu").bc.engine == "numpy"
    watched = ObservationOnly.from_demonstrations(cartpole_v1())
    assert BCO("MlpPolicy", "CartPole-v1", watched, seed=0, device="cpu", engine="numpy").bc.engine == "numpy"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"policy_kwargs": {"activation_fn": torch.nn.GELU}}, "it has a layer of GELU"),
        ({"amp": True}, "amp=True"),
        ({"gradient_accumulation": 2}, "gradient_accumulation=2, where a larger batch_size"),
        ({"engine": "jax"}, "engine='jax' is not known"),
    ],
)
def test_what_is_not_served_is_said(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        BC("MlpPolicy", None, draw(spaces.Discrete(4)), device="cpu", **{"engine": "numpy", **arguments})
