"""`rlsmooth enjoy`, and `evaluate` and `record` of off-policy agents: the images show the policy's own numbers."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image
from sb3_contrib import QRDQN, TQC
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from commands import assert_refused, evaluated
from rlsmooth.agents import BC, SmoothedMaskablePPO, SmoothedPPO, SmoothedRecurrentPPO, load_agent, save_agent
from rlsmooth.agents.smoothed.distributions import MixedCategorical, MixedGaussian
from rlsmooth.data import Demonstrations, cartpole_v1, record
from rlsmooth.scripts.enjoy import Args, main
from rlsmooth.scripts.enjoy_panel import (
    BoxChoice,
    Choices,
    Entropy,
    action_names,
    beside,
    choices_of,
    draw_panel,
    entropy_of_choice,
    read_choice,
)
from rlsmooth.scripts.enjoy_video import check_film
from rlsmooth.scripts.environment import make_envs
from rlsmooth.scripts.loading import off_policy_acting
from rlsmooth.scripts.main import main as run_main
from support import assert_raises

imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")

BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)
BAR = 190  # pixels between the two ends of a bar
CURVE_TOP = 230  # of a picture of 320 rows; the entropy's curve, blue too, is below
FLAT = Entropy(nats=(0.0,))


class Blind(gym.Env[Any, Any]):
    """Three steps, and no picture."""

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = spaces.Box(-1.0, 1.0, (2,))
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, self.steps == 3, False, {}


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("agents")
    gym.register("Blind-v0", Blind)
    short: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "seed": 0, "device": "cpu"}
    masked = "rlsmooth/IdentityMaskedMultiDiscrete-v0"
    lstm = {"lstm_hidden_size": 8}
    models: dict[str, Any] = {
        "ppo": SmoothedPPO("MlpPolicy", "CartPole-v1", exploration_floor=0.3, **short),
        "box": PPO("MlpPolicy", "Pendulum-v1", **short),
        "masked": SmoothedMaskablePPO("MlpPolicy", masked, **short),
        "recurrent": SmoothedRecurrentPPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs=lstm, **short),
        "blind": PPO("MlpPolicy", Blind(), **short),
        "bc": BC("MlpPolicy", None, cartpole_v1(), seed=0, device="cpu"),
    }
    return {name: save_agent(model, folder / name) for name, model in models.items()}


def coloured(picture: Any, colour: tuple[int, int, int], *, above: int = CURVE_TOP) -> Any:
    """Per row, how many pixels have that colour."""
    return (picture[:above] == np.array(colour)).all(-1).sum(1)


# ---- the drawing
@pytest.mark.parametrize("probability", [0.0, 0.25, 0.9])
def test_a_bar_is_as_long_as_the_action_is_probable(probability: float) -> None:
    values = np.array([1 - probability, probability])
    part = Choices(probabilities=values, legal=np.ones(2, bool), chosen=0, names=("a", "b"))
    picture = draw_panel([part], FLAT, title="")
    assert abs(coloured(picture, BLUE).max() - probability * BAR) <= 1.5
    assert coloured(picture, ORANGE).max() >= (1 - probability) * BAR - 1


def test_an_illegal_action_has_no_bar() -> None:
    values, legal = np.array([0.5, 0.5, 0.0]), np.array([True, True, False])
    part = Choices(probabilities=values, legal=legal, chosen=0, names=("a", "b", "c"))
    whole = Choices(probabilities=values, legal=np.ones(3, bool), chosen=0, names=("a", "b", "c"))
    masked, unmasked = (draw_panel([one], FLAT, title="") for one in (part, whole))
    assert (masked != unmasked).any()  # it says so
    assert (coloured(masked, BLUE) == coloured(unmasked, BLUE)).all()


@pytest.mark.parametrize("size", [20, 500])
def test_many_actions_become_columns_as_high_as_they_are_probable(size: int) -> None:
    values = np.full(size, 0.5 / (size - 1))
    values[3], values[7] = 0.4, 0.1
    values[8:] *= (1 - values[:8].sum()) / values[8:].sum()
    part = Choices(probabilities=values, legal=np.ones(size, bool), chosen=7, names=tuple(map(str, range(size))))
    picture = draw_panel([part], FLAT, title="")
    chart = picture[:, :300]
    orange, blue = coloured(chart, ORANGE), coloured(chart, BLUE)
    assert (orange > 0).sum() == pytest.approx((blue > 0).sum() * 0.1 / 0.4, abs=2)


def test_a_continuous_action_shows_its_interval_within_the_bounds() -> None:
    part = BoxChoice(mean=0.0, std=0.5, low=-1.0, high=1.0, taken=0.9, name="0")
    picture = draw_panel([part], FLAT, title="")
    columns = np.flatnonzero((picture[:CURVE_TOP] == np.array(BLUE)).all(-1).any(0))
    left, right = 54, 346
    assert columns.min() == pytest.approx(left + 0.25 * (right - left), abs=1)
    assert columns.max() == pytest.approx(left + 0.75 * (right - left), abs=1)
    unbounded = BoxChoice(mean=2.0, std=0.5, low=-np.inf, high=np.inf, taken=2.0, name="0")
    assert coloured(draw_panel([unbounded], FLAT, title=""), BLUE).max() > 0


def test_what_does_not_fit_is_counted_and_every_height_is_even() -> None:
    part = Choices(probabilities=np.array([0.5, 0.5]), legal=np.ones(2, bool), chosen=0, names=("a", "b"))
    wide = BoxChoice(mean=0.0, std=1.0, low=-1.0, high=1.0, taken=0.0, name="0")
    assert draw_panel([part] * 60, FLAT, title="a\nb", height=401).shape == (402, 360, 3)
    assert draw_panel([wide] * 60, FLAT, title="a\nb").shape == (320, 360, 3)


def test_the_curve_breaks_where_there_was_no_choice() -> None:
    part = Choices(probabilities=np.array([1.0]), legal=np.ones(1, bool), chosen=0, names=("a",))
    broken, none = (
        draw_panel([part], Entropy(nats=(0.0,) * len(shares), fractions=shares), title="")
        for shares in ((0.5, 0.5, float("nan"), 0.5, 0.5), (float("nan"),) * 5)
    )
    columns = np.flatnonzero((broken[CURVE_TOP:] == np.array(BLUE)).all(-1).any(0))
    assert np.diff(columns).max() > 50
    assert not coloured(none[CURVE_TOP:], BLUE, above=90).any()


def test_a_frame_keeps_its_pixels() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (100, 75, 3)).astype(np.uint8)
    panel = draw_panel([], FLAT, title="")
    picture = beside(frame, panel)
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    assert (picture[10 : 10 + 300 : 3, : 75 * 3 : 3] == frame).all()  # enlarged three times
    assert beside(None, panel) is panel
    assert_raises(ValueError, "frame must be uint8", beside, frame.astype(np.float64), panel)
    assert_raises(ValueError, "draw the panel as high", beside, np.zeros((400, 2, 3), np.uint8), panel)


# ---- the numbers
def test_the_numbers_are_those_of_sb3s_distribution() -> None:
    model = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    seen = np.full((1, 4), 0.1, np.float32)
    acting = read_choice(model, seen, None, None, np.zeros(1, bool))
    (part,) = choices_of(acting, np.array(1), agent=model)
    theirs: Any = model.policy.get_distribution(torch.as_tensor(seen)).distribution
    assert isinstance(part, Choices)
    np.testing.assert_allclose(part.probabilities, theirs.probs[0].detach(), rtol=1e-6)
    assert (part.chosen, part.names) == (1, ("0", "1"))
    nats, share = entropy_of_choice(acting)
    assert nats == pytest.approx(float(theirs.entropy()[0].detach()), rel=1e-6)
    assert share == pytest.approx(nats / np.log(2), rel=1e-6)


def test_a_memory_and_a_floor_count(agents: dict[str, Path]) -> None:
    model = load_agent(agents["recurrent"], device="cpu")
    seen = np.full((1, 4), 0.5, np.float32)
    _, state = model.predict(seen, None, np.ones(1, bool), deterministic=True)
    first, later, forgotten = (
        choices_of(read_choice(model, seen, None, memory, start), np.array(0), agent=model)[0]
        for memory, start in ((None, np.ones(1)), (state, np.zeros(1)), (state, np.ones(1)))
    )
    assert isinstance(first, Choices)
    assert isinstance(later, Choices)
    assert isinstance(forgotten, Choices)
    assert (first.probabilities != later.probabilities).any()
    np.testing.assert_allclose(first.probabilities, forgotten.probabilities, rtol=1e-6)


def test_numbers_of_a_box() -> None:
    gaussian = MixedGaussian(torch.zeros(2), torch.ones(2))
    gaussian.proba_distribution(torch.tensor([[0.5, -0.5]]), torch.tensor([0.0, -1.0]))
    model = PPO("MlpPolicy", "Pendulum-v1", device="cpu")
    model.action_space = spaces.Box(-1.0, 2.0, (2,))
    parts = choices_of(gaussian, np.array([0.1, 0.2]), agent=model)
    assert [part.mean for part in parts if isinstance(part, BoxChoice)] == [0.5, -0.5]
    assert [part.std for part in parts if isinstance(part, BoxChoice)] == pytest.approx([1.0, np.exp(-1.0)])
    assert [part.high for part in parts if isinstance(part, BoxChoice)] == [2.0, 2.0]
    assert entropy_of_choice(gaussian) == (pytest.approx(float(gaussian.network_entropy()[0])), None)


def test_squashed_actions_are_shown_in_the_environments_units() -> None:
    squashed: dict[str, Any] = {"use_sde": True, "policy_kwargs": {"squash_output": True}}
    model = PPO("MlpPolicy", "Pendulum-v1", seed=0, device="cpu", **squashed)
    seen = np.full((1, 3), 0.5, np.float32)
    action, _ = model.predict(seen, deterministic=True)
    (part,) = choices_of(read_choice(model, seen, None, None, np.ones(1)), action[0], agent=model)
    assert isinstance(part, BoxChoice)
    assert part.mean == pytest.approx(float(action[0, 0]), abs=1e-6)
    assert 0 < part.std < part.high == 2.0


def test_bins_have_their_middles_as_names() -> None:
    shown = record(lambda observation: np.array([1.5], np.float32), "Pendulum-v1", 1, seed=0)
    agent = BC("MlpPolicy", None, shown, action_bins=4, seed=0, device="cpu")
    seen = np.zeros((1, 3), np.float32)
    action, _ = agent.predict(seen, deterministic=True)
    (part,) = choices_of(read_choice(agent, seen, None, None, np.ones(1)), action[0], agent=agent)
    assert isinstance(part, Choices)
    assert part.names == ("-1.5", "-0.5", "0.5", "1.5")
    assert float(part.names[part.chosen]) == action[0, 0]
    assert part.chosen == part.probabilities.argmax()


def test_masks_say_what_is_legal(agents: dict[str, Path]) -> None:
    model = load_agent(agents["masked"], device="cpu")
    masks = np.array([[True, False, True, False, True, True, False]])
    acting = read_choice(model, model.observation_space.sample()[None], masks, None, np.ones(1))
    assert isinstance(acting, MixedCategorical)
    parts = choices_of(acting, np.array([0, 1]), agent=model, masks=masks)
    for part, legal in zip(parts, np.split(masks[0], [3]), strict=True):
        assert isinstance(part, Choices)
        assert (part.legal == legal).all()
        assert ((part.probabilities > 0) == legal).all()


def test_names() -> None:
    assert action_names("CartPole-v1", None, spaces.Discrete(2)) == ("left", "right")
    assert action_names("ALE/Pong-v5", ["NOOP", "FIRE"], spaces.Discrete(2)) == ("noop", "fire")
    assert action_names("CartPole-v1", None, spaces.Discrete(3)) is None
    assert action_names("Mine-v0", None, spaces.Discrete(2)) is None


# ---- the command
def test_a_film_holds_every_step(agents: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = tmp_path / "film.mp4"
    found = main(Args(agents["ppo"], env="CartPole-v1", video=film, episodes=2, fps=25))
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(film))
    assert frames == sum(found["lengths"]) == sum(found["returns"])  # CartPole gives 1 a step
    assert seconds == pytest.approx(frames / 25, abs=0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]
    assert "episode 2: return" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*not in the possible render_modes")  # Gymnasium's own word on Blind-v0
@pytest.mark.parametrize(
    ("name", "env", "size"),
    [
        ("box", "Pendulum-v1", (860, 500)),
        ("recurrent", "CartPole-v1", (960, 400)),
        ("blind", "Blind-v0", (360, 320)),
        ("bc", "CartPole-v1", (960, 400)),
    ],
)
def test_a_gif_of_any_agent(
    name: str, env: str, size: tuple[int, int], agents: dict[str, Path], tmp_path: Path
) -> None:
    main(Args(agents[name], env=env, video=tmp_path / "film.gif", max_steps=3))
    with Image.open(tmp_path / "film.gif") as film:
        assert film.size == size
        assert getattr(film, "n_frames", 1) <= 3  # equal pictures are one


def test_a_masked_agent_is_shown_in_a_window(agents: dict[str, Path]) -> None:
    # SDL's dummy driver draws into memory.
    found = main(Args(agents["masked"], env="rlsmooth/IdentityMaskedMultiDiscrete-v0", max_steps=3, fps=500))
    assert found == {"returns": [], "lengths": [], "entropies": []}


def test_returns_are_those_of_sb3s_evaluation(agents: dict[str, Path]) -> None:
    found = main(Args(agents["ppo"], env="CartPole-v1", deterministic=True, no_render=True, episodes=3, seed=5))
    theirs, lengths = evaluate_policy(
        load_agent(agents["ppo"], device="cpu"), make_envs("CartPole-v1", 1, 5), 3, return_episode_rewards=True
    )
    assert (found["returns"], found["lengths"]) == (theirs, lengths)


def test_an_mp4_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert_raises(ImportError, r"pip install 'rlsmooth\[video\]'", check_film, Path("film.mp4"))
    assert check_film(Path("film.gif")) == Path("film.gif")


def test_no_screen_is_told(agents: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert_raises(ValueError, "there is no screen here: give --video", main, Args(agents["ppo"], env="CartPole-v1"))


def test_a_film_that_fails_leaves_nothing(agents: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv

    step: Callable[..., Any] = DummyVecEnv.step_wait
    monkeypatch.setattr(DummyVecEnv, "step_wait", lambda self: step(self) if self.buf_rews[0] == 0 else 1 / 0)
    for name in ("film.mp4", "film.gif"):
        assert_raises(ZeroDivisionError, None, main, Args(agents["ppo"], env="CartPole-v1", video=tmp_path / name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent": Path("nowhere.zip")}, "agent='nowhere.zip' is neither"),
        ({"env": None}, "no config.json beside the agent"),
        ({"env": "Nowhere-v0"}, "can't be made"),
        ({"env": "Acrobot-v1"}, "observation_space="),
        ({"episodes": 0}, "episodes=0"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"fps": 0.0}, "fps=0.0 must be above 0"),
        ({"video": Path("film.avi")}, "must be a file whose name ends in .mp4 or .gif"),
        ({"video": Path("nowhere/film.gif")}, "there is no folder"),
        ({"video": Path("film.gif"), "no_render": True}, "--no-render draws nothing"),
    ],
)
def test_mistakes_are_told(changes: dict[str, Any], message: str, agents: dict[str, Path]) -> None:
    assert_raises(ValueError, message, main, Args(**({"agent": agents["ppo"], "env": "CartPole-v1"} | changes)))


# ---- off-policy agents, and the distributions that these act from
def small() -> dict[str, Any]:
    """Arguments of a small algorithm; made anew, since SB3 writes into its `policy_kwargs`."""
    return {"buffer_size": 10, "policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}


@pytest.mark.parametrize("algorithm", [DQN, QRDQN])
def test_a_q_network_acts_greedily_but_for_its_exploration(algorithm: type[DQN] | type[QRDQN]) -> None:
    agent = algorithm("MlpPolicy", "CartPole-v1", **small())
    agent.exploration_rate = 0.4
    observations = np.repeat(np.array([[0.1, -0.2, 0.3, 0.4]], np.float32), 4000, axis=0)
    acting = off_policy_acting(agent, torch.as_tensor(observations[:1]))
    assert isinstance(acting, MixedCategorical)
    greedy = int(agent.predict(observations[0], deterministic=True)[0])
    expected = np.full(2, 0.2)
    expected[greedy] = 0.8
    assert acting.probabilities()[0][0].tolist() == pytest.approx(expected)
    nats, fraction = entropy_of_choice(acting)
    assert nats == pytest.approx(-(0.2 * math.log(0.2) + 0.8 * math.log(0.8)))
    assert fraction == pytest.approx(nats / math.log(2))
    # SB3 tosses one coin for a whole batch: single states are asked.
    drawn = [int(agent.predict(observations[0])[0]) for _ in range(1000)]
    assert np.mean(np.array(drawn) == greedy) == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 1000))


@pytest.mark.parametrize("algorithm", [SAC, TQC])
def test_sac_acts_from_a_squashed_gaussian(algorithm: type[SAC] | type[TQC]) -> None:
    agent = algorithm("MlpPolicy", "Pendulum-v1", **small())
    observation = np.array([[0.5, 0.2, -1.0]], np.float32)
    acting = read_choice(agent, observation, None, None, np.ones(1, dtype=bool))
    assert isinstance(acting, MixedGaussian)
    drawn = agent.predict(np.repeat(observation, 4000, axis=0))[0][:, 0] / 2  # Pendulum's actions are in [-2, 2]
    before = np.arctanh(np.clip(drawn.astype(np.float64), -1 + 1e-9, 1 - 1e-9))
    std = float(acting.log_std.exp())
    assert before.mean() == pytest.approx(float(acting.mean), abs=4 * std / math.sqrt(4000))
    assert before.std() == pytest.approx(std, rel=0.06)
    assert entropy_of_choice(acting) == (pytest.approx(0.5 * math.log(2 * math.pi * math.e * std**2)), None)
    action = agent.predict(observation, deterministic=True)[0][0]
    (choice,) = choices_of(acting, action, agent=agent)
    assert choice.mean == pytest.approx(2 * math.tanh(float(acting.mean)), abs=0.2)  # type: ignore[union-attr]


def saved(agent: OffPolicyAlgorithm, env: str, folder: Path) -> Path:
    """The agent's file, with what names its environment."""
    settings = {"command": "ppo", "arguments": {"env": env}, "hyperparameters": {}}
    (folder / "config.json").write_text(json.dumps(settings))
    return save_agent(agent, folder / "agent.zip")


def test_the_commands_read_their_files(tmp_path: Path) -> None:
    path = saved(DQN("MlpPolicy", "CartPole-v1", **small()), "CartPole-v1", tmp_path)
    found = evaluated(path, episodes=3)["sampled"]
    assert found["policy_entropy"] == 0  # its exploration begins with `learn`
    assert "kl_uniform" not in found
    assert run_main(["enjoy", str(path), "--no-render", "--max-steps", "3"]) == 0
    output = tmp_path / "demonstrations.npz"
    assert run_main(["record", "-i", str(path), "--n-episodes", "2", "--output", str(output)]) == 0
    assert Demonstrations.load(output).num_episodes == 2


def test_an_agent_without_a_distribution_is_played_and_not_shown(tmp_path: Path, capsys: Any) -> None:
    path = saved(TD3("MlpPolicy", "Pendulum-v1", **small()), "Pendulum-v1", tmp_path)
    assert set(evaluated(path)["sampled"]) == {"mean_reward", "std_reward", "min_reward", "mean_ep_length"}
    assert_refused("a TD3 acts from no distribution", ["enjoy", str(path), "--no-render", "--max-steps", "3"], capsys)
