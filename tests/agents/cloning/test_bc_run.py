"""A run of `learn`: repeating, counting, schedules, accumulation, precision, SB3's callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecNormalize

from rlsmooth.agents import BC
from rlsmooth.data import Demonstrations, cartpole_v1, cartpole_v1_noisy
from rlsmooth.targets import Smoothing

FLAT = spaces.Box(-np.inf, np.inf, (3,))


def draw(rows: int = 40, actions: int = 3, **more: Any) -> Demonstrations:
    """Four episodes of noise."""
    rng = np.random.default_rng(0)
    return Demonstrations.from_arrays(
        rng.normal(size=(rows, 3)).astype(np.float32),
        rng.integers(actions, size=rows),
        observation_space=FLAT,
        action_space=spaces.Discrete(actions),
        episode_ends=[rows // 4, rows // 2, 3 * rows // 4, rows],
        **more,
    )


def make(demonstrations: Demonstrations | None = None, **arguments: Any) -> BC:
    chosen = draw() if demonstrations is None else demonstrations
    small = {"net_arch": [8]}
    return BC("MlpPolicy", None, chosen, **{"seed": 0, "device": "cpu", "policy_kwargs": small, **arguments})


def same_parameters(one: BC, two: BC) -> bool:
    pairs = zip(one.policy.state_dict().values(), two.policy.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Lines(KVWriter):
    """Keeps every log line."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, Any]]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.lines.append((step, dict(key_values)))

    def column(self, name: str) -> list[tuple[int, Any]]:
        return [(step, line[name]) for step, line in self.lines if name in line]


def listen(agent: BC) -> Lines:
    lines = Lines()
    agent.set_logger(Logger(None, [lines]))
    return lines


class Recorder(BaseCallback):
    """Notes what SB3's callbacks see after each update."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.stop_at = stop_at
        self.steps: list[int] = []
        self.rates: list[float] = []
        self.ends = 0

    def _on_step(self) -> bool:
        self.steps.append(self.num_timesteps)
        self.rates.append(self.model.policy.optimizer.param_groups[0]["lr"])
        assert torch.isfinite(self.locals["loss"])
        return self.num_timesteps != self.stop_at

    def _on_training_end(self) -> None:
        self.ends += 1


# ---- repeating


@pytest.mark.parametrize("policy_kwargs", [{}, {"activation_fn": torch.nn.ReLU}])
def test_the_same_seed_gives_the_same_parameters(policy_kwargs: dict[str, Any]) -> None:
    runs = []
    for _ in range(2):
        agent = make(policy_kwargs=policy_kwargs, batch_size=16)
        torch.rand(7)  # what others draw does not matter
        runs.append(agent.learn(total_epochs=3))
    assert same_parameters(*runs)
    assert not same_parameters(runs[0], make(policy_kwargs=policy_kwargs, batch_size=16, seed=1).learn(total_epochs=3))


def test_training_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    make(eval_env=None).learn(total_epochs=1)
    assert torch.equal(torch.rand(1), before)


def test_without_a_seed_torchs_generator_decides() -> None:
    torch.manual_seed(5)
    first = make(seed=None)
    second = make(seed=None)
    torch.manual_seed(5)
    again = make(seed=None)
    assert first.seed == again.seed != second.seed
    assert same_parameters(first, again)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("l2_coef", [0.0, 0.01])
def test_accumulation_equals_the_big_batch(weighted: bool, l2_coef: float) -> None:
    more = {"weights": np.random.default_rng(1).uniform(0, 3, 40)} if weighted else {}
    demonstrations = draw(**more)
    big = make(demonstrations, batch_size=16, l2_coef=l2_coef, kl_coef=0.3)
    parts = make(demonstrations, batch_size=4, gradient_accumulation=4, l2_coef=l2_coef, kl_coef=0.3)
    assert big.batches_per_epoch == parts.batches_per_epoch == 3  # the last update has 8 rows
    big.learn(total_epochs=4)
    parts.learn(total_epochs=4)
    for one, two in zip(big.policy.parameters(), parts.policy.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_a_weight_counts_as_so_many_copies() -> None:
    base = draw(rows=8)
    weights = np.array([1, 2, 0, 1, 3, 1, 1, 1])
    copies = np.repeat(np.arange(8), weights)
    repeated = Demonstrations.from_arrays(
        np.asarray(base.observations)[copies],
        np.asarray(base.actions)[copies],
        observation_space=base.observation_space,
        action_space=base.action_space,
        episode_ends=[len(copies)],
    )
    one = make(draw(rows=8, weights=weights.astype(float)), batch_size=20, kl_coef=0.2).learn(total_batches=5)
    two = make(repeated, batch_size=20, kl_coef=0.2).learn(total_batches=5)
    for a, b in zip(one.policy.parameters(), two.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_rows_of_weight_0_only_change_nothing() -> None:
    agent = make(draw(weights=np.zeros(40)))
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    agent.learn(total_batches=2)
    assert all(torch.equal(a, b) for a, b in zip(before, agent.policy.parameters(), strict=True))


def test_clipping_bounds_the_step() -> None:
    sgd = {"net_arch": [8], "optimizer_class": torch.optim.SGD}
    agent = make(policy_kwargs=sgd, learning_rate=1.0, max_grad_norm=1e-3)
    before = torch.nn.utils.parameters_to_vector(agent.policy.parameters()).clone()
    agent.learn(total_batches=1)
    step = torch.nn.utils.parameters_to_vector(agent.policy.parameters()) - before
    assert float(step.detach().norm()) == pytest.approx(1e-3, rel=1e-3)


def test_mixed_precision_trains_close_to_full() -> None:
    full, mixed = make().learn(total_epochs=3), make(amp=True).learn(total_epochs=3)
    assert not same_parameters(full, mixed)
    for one, two in zip(full.policy.parameters(), mixed.policy.parameters(), strict=True):
        assert two.dtype == torch.float32
        torch.testing.assert_close(one, two, rtol=0.1, atol=0.02)


# ---- counting and schedules


def test_epochs_batches_and_a_second_call_are_counted() -> None:
    agent, recorder = make(batch_size=16), Recorder()
    agent.learn(total_epochs=2, callback=recorder)
    assert recorder.steps == [1, 2, 3, 4, 5, 6]
    assert recorder.ends == 1
    agent.learn(total_batches=4, callback=recorder, reset_num_timesteps=False)
    assert recorder.steps[6:] == [7, 8, 9, 10]
    agent.learn(total_batches=2, callback=recorder)
    assert recorder.steps[10:] == [1, 2]


def test_two_calls_equal_one_and_a_reset_takes_new_orders() -> None:
    whole = make(batch_size=16).learn(total_batches=5)
    halves = make(batch_size=16).learn(total_batches=2).learn(total_batches=3, reset_num_timesteps=False)
    assert same_parameters(whole, halves)
    reset = make(batch_size=16).learn(total_epochs=1).learn(total_epochs=1)
    assert same_parameters(make(batch_size=16).learn(total_epochs=2), reset)


@pytest.mark.parametrize("rate", ["lin_0.1", lambda progress: 0.1 * progress])
def test_the_learning_rate_follows_its_schedule(rate: Any) -> None:
    recorder = Recorder()
    make(batch_size=40, learning_rate=rate).learn(total_batches=4, callback=recorder)
    assert recorder.rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_alpha_follows_its_schedule() -> None:
    """Two batches of `lin_0.4` are one of alpha 0.4 and one of alpha 0.2."""
    scheduled = make(batch_size=40, smoothing="lin_0.4")
    lines = listen(scheduled)
    scheduled.learn(total_batches=2, log_interval=1)
    assert lines.column("bc/smoothing") == [(1, pytest.approx(0.2)), (2, 0.0)]
    by_hand = make(batch_size=40, smoothing=0.4).learn(total_batches=1)
    second = make(batch_size=40, smoothing=Smoothing(lambda progress: 0.4 if progress == 1.0 else 0.2))
    second.learn(total_batches=2)
    assert same_parameters(scheduled, second)
    first_only = make(batch_size=40, smoothing="lin_0.4").learn(total_batches=1)
    for ours, theirs in zip(first_only.policy.parameters(), by_hand.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)  # a constant alpha's targets are written out, which rounds otherwise


# ---- SB3's own tools


def test_sb3s_callbacks_take_the_agent(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"batch_size": 256, "learning_rate": 3e-3, "seed": 0, "device": "cpu"}
    agent = BC("MlpPolicy", make_vec_env("CartPole-v1", 1, seed=0), cartpole_v1(), **arguments)
    stop = StopTrainingOnRewardThreshold(reward_threshold=450.0)
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", 1, seed=1),
        callback_on_new_best=stop,
        n_eval_episodes=1,
        eval_freq=100,
        best_model_save_path=str(tmp_path / "best"),
        verbose=0,
    )
    every = EveryNTimesteps(50, CheckpointCallback(1, str(tmp_path / "steps"), name_prefix="bc"))
    agent.learn(total_batches=2000, callback=[evaluation, every, ProgressBarCallback()])
    assert agent.num_timesteps < 2000
    assert evaluation.best_mean_reward >= 450.0
    best = BC.load(tmp_path / "best" / "best_model", device="cpu")
    mean, _ = evaluate_policy(best, make_vec_env("CartPole-v1", 1, seed=1), n_eval_episodes=1)
    assert mean >= 450.0
    assert (tmp_path / "steps" / "bc_50_steps.zip").is_file()


def test_a_callback_stops_training_and_functions_are_taken() -> None:
    recorder = Recorder(stop_at=3)
    agent = make(batch_size=16).learn(total_epochs=5, callback=[recorder])
    assert agent.num_timesteps == 3
    assert recorder.ends == 1
    seen = []
    agent.learn(total_batches=2, callback=lambda local, _: seen.append(local) or True)
    assert len(seen) == 2


def test_functions_stand_beside_callbacks_and_the_bar() -> None:
    seen: list[int] = []
    recorder = Recorder()
    function = lambda local, _: seen.append(local["self"].num_timesteps) or True  # noqa: E731
    agent = make(batch_size=16).learn(total_batches=3, callback=function, progress_bar=True)
    agent.learn(total_batches=2, callback=[recorder, function])  # type: ignore[list-item]
    assert seen == [1, 2, 3, 1, 2]
    assert recorder.steps == [1, 2]


def test_the_progress_bar_needs_no_environment(capsys: pytest.CaptureFixture[str]) -> None:
    make(batch_size=16).learn(total_batches=4, progress_bar=True)
    assert "4/4" in capsys.readouterr().err


def test_environments_are_held_as_sb3_holds_them() -> None:
    agent = BC("MlpPolicy", "CartPole-v1", cartpole_v1_noisy(), seed=0, device="cpu")
    env = agent.get_env()
    assert env is not None
    assert (env.num_envs, agent.n_envs) == (1, 1)
    assert agent.get_vec_normalize_env() is None
    normalised = VecNormalize(make_vec_env("CartPole-v1", 2))
    agent.set_env(normalised)
    assert agent.get_vec_normalize_env() is normalised
    assert agent.n_envs == 2
    agent.logger.record("a", 1)
    agent.dump_logs()
    with pytest.raises(ValueError, match="observation_space"):
        agent.set_env("Acrobot-v1")
    with pytest.raises(TypeError, match="must be an id"):
        agent.set_env(3)  # type: ignore[arg-type]
