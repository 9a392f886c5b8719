"""What a run tells: log lines, TensorBoard files, validation, evaluations, and the end of a run that diverges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
)
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.torch_layers import FlattenExtractor

from rlsmooth.agents import BC, TrainingDivergedError
from rlsmooth.data import Demonstrations, cartpole_v1, cartpole_v1_noisy
from rlsmooth.targets import Smoothing
from rlsmooth.training import checkpoint_steps

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


# ---- logs

TAGS = {
    *("batch", "epoch", "loss", "neglogp", "entropy", "ent_loss", "prob_true_act", "l2_norm", "l2_loss"),  # imitation's
    *("samples_so_far", "policy_entropy", "entropy_frac", "kl_uniform", "kl_reference", "smoothing"),
    *("exploration_floor", "cross_entropy", "nll_hard", "accuracy", "ece", "learning_rate", "samples_per_second"),
    *("val_loss", "val_cross_entropy", "val_nll_hard", "val_accuracy", "val_ece", "val_policy_entropy"),
    *("val_entropy_frac", "val_kl_uniform", "val_kl_reference", "val_prob_true_act"),
}


def test_tensorboard_files_hold_every_tag(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    agent = BC(
        "MlpPolicy",
        None,
        cartpole_v1().select_episodes(range(4)),
        batch_size=256,
        validation_fraction=0.25,
        eval_env="CartPole-v1",
        eval_every=8,
        n_eval_episodes=1,
        tensorboard_log=tmp_path,
        seed=0,
        device="cpu",
    )
    agent.learn(total_batches=12, log_interval=5)
    events = EventAccumulator(str(tmp_path / "BC_1"), size_guidance={"images": 0, "histograms": 0, "scalars": 0})
    events.Reload()
    found = events.Tags()
    assert {f"bc/{tag}" for tag in TAGS} <= set(found["scalars"])
    evaluation = {
        f"{tag}{kind}" for tag in ("mean_reward", "std_reward", "mean_ep_length") for kind in ("", "_sampled")
    }
    assert {f"eval/{tag}" for tag in evaluation} <= set(found["scalars"])
    assert [event.step for event in events.Scalars("bc/loss")] == [5, 10, 12]
    assert [event.step for event in events.Scalars("eval/mean_reward")] == [8, 12]
    assert set(found["images"]) == {"bc/target_matrix", "eval/reliability"}
    assert found["histograms"] == ["eval/entropy_per_state"]


def test_dimensions_of_a_multi_discrete_space_are_logged_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    demonstrations = Demonstrations.from_arrays(
        rng.normal(size=(20, 3)).astype(np.float32),
        rng.integers(2, size=(20, 2)),
        observation_space=FLAT,
        action_space=spaces.MultiDiscrete([2, 5]),
        episode_ends=[20],
    )
    agent = make(demonstrations, tensorboard_log=str(tmp_path))
    lines = Lines()
    agent.logger.output_formats.append(lines)
    agent.set_logger(agent.logger)
    agent.learn(total_batches=1)
    (line,) = [line for _, line in lines.lines]
    assert line["bc/entropy_dim0"] + line["bc/entropy_dim1"] == pytest.approx(line["bc/policy_entropy"], abs=1e-6)
    assert line["bc/entropy_frac"] == pytest.approx(line["bc/policy_entropy"] / np.log(10), abs=1e-6)


def test_a_log_line_says_what_it_means() -> None:
    agent = make(draw(rows=40), smoothing=0.2, kl_coef=0.5, l2_coef=0.1, batch_size=16)
    lines = listen(agent)
    agent.learn(total_epochs=2, log_interval=3)
    assert [step for step, _ in lines.lines] == [3, 6]
    line = lines.lines[1][1]
    assert line["bc/epoch"] == 2
    assert line["bc/samples_so_far"] == 80
    assert line["bc/ent_loss"] == pytest.approx(0.5 * line["bc/kl_reference"])
    assert line["bc/kl_reference"] == pytest.approx(line["bc/kl_uniform"])
    assert line["bc/l2_loss"] == pytest.approx(0.1 * line["bc/l2_norm"])
    # (1 - a) NLL + a (KL + log K) = CE
    expected = 0.8 * line["bc/nll_hard"] + 0.2 * (line["bc/kl_uniform"] + np.log(3))
    assert line["bc/cross_entropy"] == pytest.approx(expected, abs=1e-5)
    assert line["bc/entropy_frac"] == pytest.approx(line["bc/policy_entropy"] / np.log(3), abs=1e-5)
    assert 0.0 <= line["bc/ece"] <= 1.0


def test_the_logged_loss_is_that_of_the_updates() -> None:
    agent = make(smoothing=0.2, kl_coef=0.5, l2_coef=0.1, batch_size=40)
    lines = listen(agent)
    before = agent.measures.training(agent.progress.remaining_of_all)["loss"]
    before += 0.05 * sum(float(parameter.detach().square().sum()) for parameter in agent.policy.parameters())
    agent.learn(total_batches=1)  # of all rows, so that the loss is known beforehand
    assert lines.lines[0][1]["bc/loss"] == pytest.approx(before, rel=1e-5)


def test_kl_reference_is_towards_the_smoothings_own_reference() -> None:
    prior = torch.tensor([0.5, 0.25, 0.25])
    agent = make(smoothing=Smoothing(0.2, reference=prior))
    found = agent.measures.training(agent.progress.remaining_of_all)
    with torch.no_grad():
        logits = agent.head.outputs(torch.as_tensor(draw().observations))[0]
    expected = (prior * (prior.log() - logits.log_softmax(-1))).sum(-1).mean()
    assert found["kl_reference"] == pytest.approx(float(expected), abs=1e-6)
    assert found["kl_reference"] != pytest.approx(found["kl_uniform"], abs=1e-3)


# ---- validation


def test_early_stopping_goes_back_to_the_best_parameters() -> None:
    noise = draw(rows=40)
    agent = make(noise, batch_size=10, learning_rate=0.05, validation_fraction=0.25, early_stopping_patience=3)
    lines = listen(agent)
    agent.learn(total_epochs=200)
    stopping = agent.early_stopping
    assert stopping is not None
    assert agent.num_timesteps < 200 * agent.batches_per_epoch
    assert agent.num_timesteps == stopping.best_step + 3 * agent.batches_per_epoch
    assert lines.lines[-1][1]["bc/val_loss"] == pytest.approx(stopping.best_loss, abs=1e-6)


def test_the_split_is_by_episode_and_validation_may_be_given() -> None:
    agent = make(draw(), validation_fraction=0.25)
    assert agent.demonstrations is not None
    assert agent.validation is not None
    assert (agent.demonstrations.num_episodes, agent.validation.num_episodes) == (3, 1)
    given = make(draw(), validation=draw(rows=12))
    lines = listen(given)
    given.learn(total_batches=1)
    assert "bc/val_loss" in lines.lines[-1][1]


# ---- evaluation


class Dropping(FlattenExtractor):
    """Draws from torch's generator in training, and only there."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(super().forward(observations), 0.5, self.training)


def test_an_evaluation_without_numbers_writes_no_empty_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for log in (None, tmp_path):
        make(eval_every=2, verbose=1, tensorboard_log=log).learn(total_batches=4)  # a warning is an error
    assert capsys.readouterr().out


def test_evaluation_repeats_and_does_not_disturb_training() -> None:
    def run(eval_env: str | None) -> BC:
        agent = BC(
            "MlpPolicy",
            None,
            cartpole_v1_noisy(),
            eval_env=eval_env,
            eval_every=2,
            n_eval_episodes=2,
            policy_kwargs={"features_extractor_class": Dropping},
            seed=0,
            device="cpu",
        )
        return agent.learn(total_batches=6)

    with_evaluation, without = run("CartPole-v1"), run(None)
    assert same_parameters(with_evaluation, without)
    assert with_evaluation.evaluate() == with_evaluation.evaluate()
    with pytest.raises(ValueError, match="eval_env"):
        without.evaluate()


def test_maskable_agents_are_evaluated_under_masks() -> None:
    pytest.importorskip("sb3_contrib")
    env = gym.make("rlsmooth.envs:rlsmooth/IdentityMasked-v0", observation="one_hot", illegal_action="raise")
    from rlsmooth.data import record

    expert = env.unwrapped
    demonstrations = record(expert.expert_action, env, 30, seed=0)  # type: ignore[attr-defined]
    agent = BC("MaskableMlpPolicy", env, demonstrations, smoothing=0.05, learning_rate=1e-2, seed=0, device="cpu")
    agent.learn(total_epochs=20)
    found = agent.evaluate()
    assert found["mean_reward"] == expert.optimal_return()  # type: ignore[attr-defined]
    assert found["mean_reward_sampled"] > 0.9 * expert.optimal_return()  # type: ignore[attr-defined]


# ---- divergence


def test_a_bad_row_stops_training_and_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    demonstrations = draw(rows=40)
    agent = make(demonstrations, batch_size=4, checkpoint_folder=tmp_path, checkpoint_every=2)
    lines = listen(agent)

    class Spoil(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 10:  # the end of the first epoch
                assert agent._data is not None
                assert agent._data._whole is not None
                agent._data._whole.observations[17] = torch.nan
            return True

    with pytest.raises(TrainingDivergedError, match=r"Samples 17 of the demonstrations hold NaN") as error:
        agent.learn(total_epochs=3, callback=Spoil(), log_interval=7)
    from rlsmooth.training import epoch_permutation

    place = epoch_permutation(0, 1, 40).tolist().index(17)
    step = 10 + place // 4 + 1
    assert error.value.step == step
    assert error.value.rows.tolist() == [17]
    assert f"step {step}" in str(error.value)
    assert str(tmp_path) in str(error.value)
    steps = checkpoint_steps(tmp_path)
    assert steps
    assert max(steps) < step
    assert all(np.isfinite(line["bc/loss"]) for _, line in lines.lines)
    with_cure = BC.resume(tmp_path, None, draw(rows=40), device="cpu")
    assert with_cure.num_timesteps == max(steps)
    assert all(parameter.isfinite().all() for parameter in with_cure.policy.parameters())


def test_a_diverging_policy_stops_with_its_likely_cause() -> None:
    agent = make(policy_kwargs={"net_arch": [8], "optimizer_class": torch.optim.SGD}, learning_rate=1e38)
    with pytest.raises(TrainingDivergedError, match=r"lower learning_rate \(it was 1e\+38\)") as error:
        agent.learn(total_epochs=20)
    assert 1 <= error.value.step <= 20
    assert len(error.value.rows) == 40
