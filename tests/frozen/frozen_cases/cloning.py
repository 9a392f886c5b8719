"""Behavioural cloning, BCO, DAgger and inverse dynamics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from frozen_cases.common import (
    CARTPOLE,
    KERNEL,
    PRIOR,
    SMALL,
    TREE,
    File,
    Run,
    Tensors,
    cut_at,
    of_arrays,
    of_policy,
    uniform,
)
from frozen_cases.data import (
    box_data,
    cartpole_data,
    dict_data,
    masked_data,
    multi_binary_data,
    multi_discrete_data,
    soft_data,
)
from rlsmooth.agents import BC, BCO, DAgger, InverseDynamics, load_agent
from rlsmooth.data import Demonstrations, ObservationOnly
from rlsmooth.envs import IdentityEnv
from rlsmooth.targets import Smoothing

CALLABLES: dict[str, Any] = {"smoothing": Smoothing(lambda progress: 0.3 * progress)}
CALLABLES |= {"learning_rate": lambda progress: 0.01 * progress}  # what no file can hold: reading asks for it again


def seeded() -> dict[str, Any]:
    return {"policy_kwargs": dict(SMALL), "seed": 0, "device": "cpu"}


MASKABLE: dict[str, Any] = {"policy": "MaskableMlpPolicy", "learning_rate": "lin_0.01", "kl_coef": 0.2}
MASKABLE |= {"smoothing": Smoothing("lin_0.3", reference=TREE, decay=0.5), "max_grad_norm": 0.5}
TWO_COMPONENTS: dict[str, Any] = {"smoothing": [0.1, Smoothing("lin_0.2", reference="binomial")], "kl_coef": 0.1}
TWO_COMPONENTS |= {"reference": [torch.tensor([0.5, 0.3, 0.2]), "uniform"], "gradient_accumulation": 2}
STOPPING: dict[str, Any] = {"smoothing": Smoothing(0.2, reference="triangular", width=3.0)}
STOPPING |= {"validation_fraction": 0.25, "early_stopping_patience": 3}
STOPPING |= {"policy_kwargs": {**SMALL, "optimizer_class": torch.optim.RMSprop, "activation_fn": nn.ReLU}}

BC_CASES: dict[str, tuple[Callable[[], Demonstrations], dict[str, Any]]] = {
    "bc_masks": (masked_data, MASKABLE),
    "bc_masks_unweighted": (
        lambda: dataclasses.replace(masked_data(), weights=None),
        {"policy": "MaskableMlpPolicy", "smoothing": Smoothing("lin_0.3", reference=TREE, decay=0.5), "kl_coef": 0.2},
    ),
    "bc_soft_targets": (
        soft_data,
        {"smoothing": Smoothing(torch.tensor(0.2), reference=PRIOR), "kl_coef": 0.1, "reference": TREE},
    ),
    "bc_multi_discrete": (multi_discrete_data, TWO_COMPONENTS),
    "bc_multi_binary": (multi_binary_data, {"smoothing": Smoothing(0.2, spread="others")}),
    "bc_box": (box_data, {"smoothing": "lin_0.1", "reference_std": 0.7, "l2_coef": 0.01}),
    "bc_box_bins": (
        box_data,
        {"action_bins": 5, "smoothing": Smoothing(None, reference="exponential", decay=0.8, power=1.5)},
    ),
    "bc_dict": (dict_data, {"policy": "MultiInputPolicy", "smoothing": Smoothing(0.3, reference=KERNEL)}),
    "bc_callables": (masked_data, CALLABLES),
    "bc_early_stopping": (masked_data, STOPPING),
}


def make_bc(case: str, **more: Any) -> BC:
    data, arguments = BC_CASES[case]
    given = {"policy": "MlpPolicy", "batch_size": 8, **seeded()} | arguments | more
    return BC(given.pop("policy"), None, data(), **given)


def bc_answers(case: str, agent: Any) -> Tensors:
    data = BC_CASES[case][0]()
    found = {"actions": agent.predict(data.observations, deterministic=True)[0]}
    if data.action_masks is not None and case == "bc_masks":
        found["masked"] = agent.predict(data.observations, deterministic=True, action_masks=data.action_masks)[0]
    return of_arrays(found)


def bc_file(case: str) -> File:

    def read(folder: Path) -> BC:
        path, data = folder / "agent.zip", BC_CASES[case][0]()
        assert type(load_agent(path, device="cpu")) is BC
        custom = CALLABLES if case == "bc_callables" else None
        return BC.load(path, demonstrations=data, device="cpu", custom_objects=custom)

    return File(
        write=lambda folder: make_bc(case).learn(total_batches=4).save(folder / "agent"),
        read=read,
        kept=of_policy,
        answers=lambda agent: bc_answers(case, agent),
        train_on=lambda agent: of_policy(agent.learn(total_batches=6, reset_num_timesteps=False)),
    )


def bc_run(case: str) -> Run:
    total, cut = 14, 9

    def start(folder: Path | None) -> BC:
        if folder is None:
            return make_bc(case).learn(total_batches=total)
        agent = make_bc(case, checkpoint_folder=folder, checkpoint_every=4)
        return agent.learn(total_batches=total, callback=cut_at(cut))

    def resume(folder: Path) -> BC:
        return BC.resume(folder, None, BC_CASES[case][0](), device="cpu").learn(total_batches=total)

    return Run(start, resume, of_policy)


def observed() -> ObservationOnly:
    return ObservationOnly.from_demonstrations(cartpole_data())


def make_bco(**more: Any) -> BCO:
    """Cloning from observation, with schedules and soft pseudo-labels."""
    smoothing = Smoothing("lin_0.3", reference=torch.tensor([0.25, 0.75]))
    more |= {"n_rounds": 3, "transitions_per_round": 40, "n_epochs": 1, "pseudo_labels": "soft", **seeded()}
    more |= {"inverse_smoothing": "lin_0.1", "inverse_epochs": 2, "inverse_net_arch": (8,)}
    return BCO("MlpPolicy", CARTPOLE, observed(), smoothing=smoothing, learning_rate="lin_0.01", **more)


def of_made(agent: Any, made: Any) -> Tensors:
    arrays = {"actions": made.actions, "observations": made.observations}
    return of_policy(agent) | of_arrays(arrays | of_history(agent.history))


def of_history(history: list[dict[str, float]]) -> dict[str, Any]:
    """The log lines of rounds, without times."""
    return {
        f"history.{number}.{name}": np.float64(value)
        for number, line in enumerate(history)
        for name, value in line.items()
        if "time" not in name or "timestep" in name
    }


def expert(seen: Any) -> int:
    """Of the identity environment."""
    return int(seen)


def make_dagger(**more: Any) -> DAgger:
    """DAgger with a mixture in every round but the last."""
    more |= {"smoothing": Smoothing(0.2, reference=PRIOR), "learning_rate": "lin_0.01", **seeded()}
    more |= {"rollout_round_min_timesteps": 40, "bc_train_n_epochs": 1, "beta_schedule": 2}
    return DAgger("MlpPolicy", IdentityEnv(4), expert, **more)


def make_inverse() -> InverseDynamics:
    data = box_data()
    given = {"smoothing": Smoothing(0.1, reference="adjacent", edge="half"), **seeded()}
    given |= {"batch_size": 8, "action_bins": 3, "max_epochs": 2, "validation_fraction": 0.25}
    return InverseDynamics(data.observation_space, data.action_space, **given)


def inverse_answers(model: InverseDynamics) -> Tensors:
    data = box_data()
    seen = data.observations, data.next_observations
    return of_arrays({"actions": model.predict(*seen), "metrics": model.metrics})


FILES: dict[str, File] = {
    **{name: bc_file(name) for name in BC_CASES},
    "bco": File(
        write=lambda folder: make_bco().learn().save(folder / "agent"),
        read=lambda folder: BCO.load(folder / "agent.zip", CARTPOLE, observed(), device="cpu"),
        kept=of_policy,
        answers=lambda agent: of_arrays({"actions": agent.predict(uniform(6, 4), deterministic=True)[0]}),
        train_on=lambda agent: of_made(agent.learn(), agent.transitions),
    ),
    "dagger": File(
        write=lambda folder: make_dagger().learn(80).save(folder / "agent"),
        read=lambda folder: DAgger.load(folder / "agent.zip", IdentityEnv(4), expert, device="cpu"),
        kept=of_policy,
        answers=lambda agent: of_arrays({"actions": agent.predict(np.arange(4), deterministic=True)[0]}),
        train_on=lambda agent: of_made(agent.learn(40), agent.demonstrations),
    ),
    "inverse_dynamics": File(
        write=lambda folder: make_inverse().fit(box_data()).save(folder / "model"),
        read=lambda folder: InverseDynamics.load(folder / "model.zip", device="cpu"),
        kept=lambda model: of_policy(model.bc),
        answers=inverse_answers,
        train_on=lambda model: of_policy(model.fit(box_data()).bc),
    ),
}
BC_RUNS = ("bc_masks", "bc_masks_unweighted", "bc_multi_discrete", "bc_box_bins", "bc_early_stopping")
RUNS: dict[str, Run] = {
    **{f"run_{name}": bc_run(name) for name in BC_RUNS},
    "run_bco": Run(
        start=lambda folder: make_bco(checkpoint_folder=folder).learn(folder and cut_at(101)),
        resume=lambda folder: BCO.resume(folder, CARTPOLE, observed(), device="cpu").learn(),
        state=lambda agent: of_made(agent, agent.transitions),
    ),
    "run_dagger": Run(
        start=lambda folder: make_dagger(scratch_dir=folder).learn(120, callback=folder and cut_at(101)),
        resume=lambda folder: DAgger.resume(folder, IdentityEnv(4), expert, device="cpu").learn(120),
        state=lambda agent: of_made(agent, agent.demonstrations),
    ),
}
