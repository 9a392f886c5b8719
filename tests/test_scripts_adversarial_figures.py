"""The figures of `rlsmooth gail`, `airl` and `dagger`: legends of one line, tables that fit, nothing unlabelled."""

from __future__ import annotations

import math

import pytest
from matplotlib.figure import Figure

from rlsmooth.scripts.figures.kinds import KINDS, draw_reports, new_report
from rlsmooth.scripts.figures.rounds import beta_words
from rlsmooth.scripts.reports import RunReport

RETURNS = ("mean_reward", "std_reward", "mean_reward_sampled", "std_reward_sampled")
DISCRIMINATOR = ("acc_expert", "acc_gen", "probability_expert", "probability_gen", "entropy", "loss")


def adversarial(*, box: bool = False, command: str = "gail") -> RunReport:
    """A run with everything that can be logged, or of an algorithm and an action space with less."""
    tags = [f"eval/{name}" for name in RETURNS] + [f"mean/disc/disc_{name}" for name in DISCRIMINATOR]
    tags += ["rollout/ep_rew_wrapped_mean"]
    tags += [] if box else ["train/policy_entropy", "train/entropy_frac"]
    summary = {tag.partition("/")[2]: 0.5 for tag in tags}
    summary |= {"best_mean_reward": 1.0, "best_step": 512, "steps": 1024, "steps_per_second": 100.0}
    summary |= {} if box else {"largest_entropy": math.log(2), "demonstrated_return": 500.0}
    return new_report(
        command,
        name="run_1",
        settings={
            "env": "E-v0",
            "seed": 0,
            "algo": "sac" if box else "ppo",
            "real_target": 0.9,
            "fake_target": 0.0,
            "terminal_states": "as_is",
            "demo_batch_size": 256,
            "n_disc_updates_per_round": 2,
            "eval_episodes": 20,
            **({"reward_form": "logit"} if command == "gail" else {}),
        },
        hyperparameters={"n_envs": 8, "normalize": True, "smoothing": "lin_0.1"},
        curves={tag: ([512.0, 1024.0], [0.4, 0.5]) for tag in tags},
        summary=summary,
        demonstrated="12,000 in 24 episodes",
    )


def dagger(*, box: bool = False) -> RunReport:
    """A run on discrete actions, or on continuous ones."""
    names = [*RETURNS, "beta", "learner_share", "cross_entropy", "nll_hard", "policy_entropy", "transitions"]
    names += ["expert_error"] if box else ["expert_agreement", "accuracy", "entropy_frac"]
    return new_report(
        "dagger",
        name="run_1",
        settings={
            "env": "E-v0",
            "seed": 0,
            "smoothing": "0.1",
            "reference": "uniform",
            "beta_schedule": "0.7",
            "expert_targets": "actions",
            "net_arch": [64, 64],
            "eval_episodes": 20,
        },
        curves={f"dagger/{name}": ([512.0, 1024.0], [0.4, 0.5]) for name in names},
        summary={**dict.fromkeys(names, 0.5), "expert_return": 500.0, "rounds": 2},
        expert="SmoothedPPO, 100,000 steps",
    )


FIGURES = [
    lambda: draw_reports([adversarial()]),
    lambda: draw_reports([adversarial(box=True, command="airl")]),
    lambda: draw_reports([dagger()]),
    lambda: draw_reports([dagger(box=True)]),
]


def panels(figure: Figure) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes]


@pytest.mark.parametrize("draw", FIGURES)
def test_every_panel_says_what_it_shows(draw: object) -> None:
    assert callable(draw)
    figure = draw()
    assert figure.get_size_inches().tolist() == [16, 10]
    *drawn, results = figure.axes
    assert len(drawn) == 5
    for ax in drawn:
        assert ax.get_title(loc="left")
        assert ax.get_xlabel().startswith("steps")
        assert ax.get_ylabel()
        assert ax.lines
        legend = ax.get_legend()
        assert legend is not None
        assert 1 <= len(legend.get_texts()) <= 3  # a fourth would be written over the title
    heights = [text.get_position()[1] for text in results.texts]
    assert min(heights) > -0.05  # on the page
    assert len(heights) > 16


def test_what_was_not_logged_is_said_to_be_missing() -> None:
    begun = new_report("airl", name="run_1", settings=adversarial().settings)
    words = {text.get_text() for ax in draw_reports([begun]).axes for text in ax.texts}
    assert "nothing logged yet" in words
    begun = new_report("dagger", name="run_1", settings=dagger().settings)
    words = {text.get_text() for ax in draw_reports([begun]).axes for text in ax.texts}
    assert "nothing logged yet" in words


def test_several_runs_are_compared() -> None:
    reports = [adversarial(), adversarial(command="airl"), adversarial(box=True)]
    figure = draw_reports(reports)
    assert panels(figure)[0] == "Return of sampled actions"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "GAIL run_1: 0.9 and 0, ppo, smoothing lin_0.1, 0",
        "AIRL run_1: 0.9 and 0, ppo, smoothing lin_0.1, 0",
        "GAIL run_1: 0.9 and 0, sac, smoothing lin_0.1, 0",
    ]
    assert panels(draw_reports([dagger(), dagger()]))[1] == "Does as the expert did, before training"
    assert panels(draw_reports([dagger(box=True), dagger(box=True)]))[1] == "Distance from the expert's actions"


def shown_rows(report: RunReport) -> dict[str, str]:
    """The table in the figure: each name is followed by its value."""
    words = [text.get_text() for text in draw_reports([report]).axes[-1].texts]
    assert set(dict(KINDS[report.command].results(report))) <= set(words[::2])
    return dict(zip(words[::2], words[1::2], strict=True))


def test_rows_name_units_and_settings() -> None:
    rows = shown_rows(adversarial())
    assert rows["D on the generator"] == "0.500, right 50.0 %"
    assert rows["generator"] == "ppo in 8 environments, normalised"
    assert rows["reward"] == "log D - log(1 - D)"
    assert rows["terminal states"] == "as is"
    assert rows["training"] == "1,024 steps, 100 a second"
    rows = shown_rows(dagger())
    assert rows["beta schedule"] == "0.7 to the power of the round"
    assert beta_words("15") == "1 to 0 in 15 rounds"
    assert rows["labelled"] == "0 in 2 rounds"
