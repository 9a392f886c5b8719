"""A run of `BC.learn`: repeating, counting, schedules, precision, callbacks; logs, evaluations, and divergence."""

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
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from rlsmooth.agents import BC, TrainingDivergedError
from rlsmooth.data import cartpole_v1, cartpole_v1_noisy
from rlsmooth.targets import Smoothing
from rlsmooth.training import checkpoint_steps
from support import (
    FLAT,
    KillAt,
    KilledError,
    Lines,
    assert_raises,
    draw,
    listen,
    read_events,
    recorded,
    same_parameters,
)
from trainers import CUSTOM
from trainers import small_bc as make


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
    torch.testing.assert_close(big.policy.state_dict(), parts.policy.state_dict(), rtol=1e-4, atol=1e-6)


def test_a_weight_counts_as_so_many_copies() -> None:
    base = draw(rows=8)
    weights = np.array([1, 2, 0, 1, 3, 1, 1, 1])
    copies = np.repeat(np.arange(8), weights)
    observations, actions = np.asarray(base.observations)[copies], np.asarray(base.actions)[copies]
    repeated = recorded(observations, actions, base.observation_space, base.action_space)
    one = make(draw(rows=8, weights=weights.astype(float)), batch_size=20, kl_coef=0.2).learn(total_batches=5)
    two = make(repeated, batch_size=20, kl_coef=0.2).learn(total_batches=5)
    torch.testing.assert_close(one.policy.state_dict(), two.policy.state_dict(), rtol=1e-4, atol=1e-6)


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
    # Only close: a constant alpha's targets are written out, which rounds otherwise.
    torch.testing.assert_close(first_only.policy.state_dict(), by_hand.policy.state_dict())


# ---- SB3's own tools
def test_sb3s_callbacks_take_the_agent(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"batch_size": 256, "learning_rate": 3e-3, "seed": 0, "device": "cpu"}
    agent = BC("MlpPolicy", make_vec_env("CartPole-v1", 1, seed=0), cartpole_v1(), **arguments)
    stop = StopTrainingOnRewardThreshold(reward_threshold=450.0)
    given: dict[str, Any] = {"callback_on_new_best": stop, "n_eval_episodes": 1, "eval_freq": 100}
    given |= {"best_model_save_path": str(tmp_path / "best"), "verbose": 0}
    evaluation = EvalCallback(make_vec_env("CartPole-v1", 1, seed=1), **given)
    every = EveryNTimesteps(50, CheckpointCallback(1, str(tmp_path / "steps"), name_prefix="bc"))
    agent.learn(total_batches=2000, callback=[evaluation, every, ProgressBarCallback()])
    assert agent.num_timesteps < 2000
    assert evaluation.best_mean_reward >= 450.0
    best = BC.load(tmp_path / "best" / "best_model", device="cpu")
    mean, _ = evaluate_policy(best, make_vec_env("CartPole-v1", 1, seed=1), n_eval_episodes=1)
    assert mean >= 450.0
    assert (tmp_path / "steps" / "bc_50_steps.zip").is_file()


def test_a_callback_stops_training() -> None:
    recorder = Recorder(stop_at=3)
    agent = make(batch_size=16).learn(total_epochs=5, callback=[recorder])
    assert agent.num_timesteps == 3
    assert recorder.ends == 1


def test_functions_stand_beside_callbacks_and_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    recorder = Recorder()
    function = lambda local, _: seen.append(local["self"].num_timesteps) or True  # noqa: E731
    agent = make(batch_size=16).learn(total_batches=3, callback=function, progress_bar=True)
    assert "3/3" in capsys.readouterr().err  # without an environment
    agent.learn(total_batches=2, callback=[recorder, function])  # type: ignore[list-item]
    assert seen == [1, 2, 3, 1, 2]
    assert recorder.steps == [1, 2]


def test_environments_are_held_as_sb3_holds_them() -> None:
    agent = BC("MlpPolicy", "CartPole-v1", cartpole_v1_noisy(), seed=0, device="cpu")
    env = agent.get_env()
    assert (env.num_envs, agent.n_envs) == (1, 1)
    assert agent.get_vec_normalize_env() is None
    normalised = VecNormalize(make_vec_env("CartPole-v1", 2))
    agent.set_env(normalised)
    assert agent.get_vec_normalize_env() is normalised
    assert agent.n_envs == 2
    agent.logger.record("a", 1)
    agent.dump_logs()
    assert_raises(ValueError, "observation_space", agent.set_env, "Acrobot-v1")
    assert_raises(TypeError, "must be an id", agent.set_env, 3)


# ---- logs
TAGS = {
    *("batch", "epoch", "loss", "neglogp", "entropy", "ent_loss", "prob_true_act", "l2_norm", "l2_loss"),  # imitation's
    *("samples_so_far", "policy_entropy", "entropy_frac", "kl_uniform", "kl_reference", "smoothing"),
    *("exploration_floor", "cross_entropy", "nll_hard", "accuracy", "ece", "learning_rate", "samples_per_second"),
    *("val_loss", "val_cross_entropy", "val_nll_hard", "val_accuracy", "val_ece", "val_policy_entropy"),
    *(
        "entropy_frac_min",
        "val_entropy_frac_min",
        "val_entropy_frac",
        "val_kl_uniform",
        "val_kl_reference",
        "val_prob_true_act",
    ),
}


def test_tensorboard_files_hold_every_tag(tmp_path: Path) -> None:
    given: dict[str, Any] = {"batch_size": 256, "validation_fraction": 0.25, "eval_env": "CartPole-v1", "eval_every": 8}
    given |= {"n_eval_episodes": 1, "tensorboard_log": tmp_path, "seed": 0, "device": "cpu"}
    agent = BC("MlpPolicy", None, cartpole_v1().select_episodes(range(4)), **given)
    agent.learn(total_batches=12, log_interval=5)
    events = read_events(tmp_path / "BC_1")
    found = events.Tags()
    assert {f"bc/{tag}" for tag in TAGS} <= set(found["scalars"])
    evaluation = ("mean_reward", "std_reward", "mean_ep_length")
    assert {f"eval/{tag}{kind}" for tag in evaluation for kind in ("", "_sampled")} <= set(found["scalars"])
    assert [event.step for event in events.Scalars("bc/loss")] == [5, 10, 12]
    assert [event.step for event in events.Scalars("eval/mean_reward")] == [8, 12]
    assert set(found["images"]) == {"bc/target_matrix", "eval/reliability"}
    assert found["histograms"] == ["eval/entropy_per_state"]


def test_dimensions_of_a_multi_discrete_space_are_logged_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    observations, actions = rng.normal(size=(20, 3)).astype(np.float32), rng.integers(2, size=(20, 2))
    demonstrations = recorded(observations, actions, FLAT, spaces.MultiDiscrete([2, 5]))
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
    assert agent.num_timesteps < 200 * agent.batches_per_epoch
    assert agent.num_timesteps == stopping.best_step + 3 * agent.batches_per_epoch
    assert lines.lines[-1][1]["bc/val_loss"] == pytest.approx(stopping.best_loss, abs=1e-6)


def test_the_split_is_by_episode_and_validation_may_be_given() -> None:
    agent = make(draw(), validation_fraction=0.25)
    assert (agent.demonstrations.num_episodes, agent.validation.num_episodes) == (3, 1)
    given = make(draw(), validation=draw(rows=12))
    lines = listen(given)
    given.learn(total_batches=1)
    assert given.validate()["loss"] == lines.lines[-1][1]["bc/val_loss"]


def test_validate_measures_the_held_out_demonstrations_at_the_present_progress() -> None:
    held_out = draw(rows=24, seed=3)
    agent = make(draw(), validation=held_out, smoothing="lin_0.4", kl_coef=0.5, batch_size=10).learn(total_batches=4)
    agent.progress.end = 8  # half of the way: alpha is 0.2
    found = agent.validate()
    with torch.no_grad():
        logits = agent.head.outputs(torch.as_tensor(held_out.observations))[0].double()
    logs = logits.log_softmax(-1)
    right = torch.as_tensor(held_out.actions).long()
    nll, uniform = -logs[torch.arange(24), right].mean(), -logs.mean()
    assert found["nll_hard"] == pytest.approx(float(nll), abs=1e-6)
    expected = 0.8 * nll + 0.2 * uniform + 0.5 * (uniform - np.log(3))
    assert found["loss"] == pytest.approx(float(expected), abs=1e-6)
    assert_raises(ValueError, "needs validation data: give validation", make(draw()).validate)


# ---- evaluation


def test_an_evaluation_without_numbers_writes_no_empty_table(tmp_path: Path, capsys: Any) -> None:
    for log in (None, tmp_path):
        make(eval_every=2, verbose=1, tensorboard_log=log).learn(total_batches=4)  # a warning is an error
    assert capsys.readouterr().out


def test_evaluation_repeats_and_does_not_disturb_training() -> None:
    def run(eval_env: str | None) -> BC:
        given: dict[str, Any] = {"eval_env": eval_env, "eval_every": 2, "n_eval_episodes": 2}
        return make(cartpole_v1_noisy(), policy_kwargs=dict(CUSTOM), **given).learn(total_batches=6)

    with_evaluation, without = run("CartPole-v1"), run(None)
    assert same_parameters(with_evaluation, without)
    assert with_evaluation.evaluate() == with_evaluation.evaluate()
    assert_raises(ValueError, "eval_env", without.evaluate)


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


def test_a_coefficient_that_changes_between_calls_is_logged_as_it_is() -> None:
    agent = make(kl_coef=0.0)
    lines = listen(agent)
    agent.learn(total_batches=1)
    agent.kl_coef = 0.5
    agent.learn(total_batches=1)
    (_, first), (_, second) = lines.column("bc/ent_loss")
    assert first == 0.0
    assert second > 0.0


def test_callbacks_find_total_and_progress_by_the_names_of_stable_baselines3() -> None:
    seen = []

    def note(found: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append((found["self"]._total_timesteps, found["self"]._current_progress_remaining))
        return True

    make().learn(total_batches=4, callback=note)
    assert seen == [(4, 0.75), (4, 0.5), (4, 0.25), (4, 0.0)]


def test_every_line_averages_the_loss_over_a_whole_interval_also_after_a_kill(tmp_path: Path) -> None:
    def run(interval: int, folder: Path | None, callback: Any = None) -> tuple[BC, Any]:
        arguments: dict[str, Any] = {"batch_size": 8, "seed": 0, "device": "cpu", "checkpoint_every": 25}
        agent = BC("MlpPolicy", None, draw(), checkpoint_folder=folder, **arguments)
        lines = listen(agent)
        return agent.learn(total_batches=100, log_interval=interval, callback=callback), lines

    def losses(lines: Lines) -> list[float]:
        return [value for _, value in lines.column("bc/loss")]

    each, seldom = (losses(run(interval, None)[1]) for interval in (1, 30))
    assert seldom == pytest.approx([np.mean(each[end - 30 : end]) for end in (30, 60, 90, 100)], rel=1e-5)
    with pytest.raises(KilledError):
        run(30, tmp_path, KillAt(80))
    agent = BC.resume(tmp_path, None, draw(), device="cpu")
    lines = listen(agent)
    agent.learn(total_batches=100, log_interval=30)
    assert losses(lines) == seldom[-2:]  # from the checkpoint at 75
