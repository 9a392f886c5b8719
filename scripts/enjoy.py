"""Show an agent, or film it, with its action probabilities and entropy beside the environment's image.

rlsmooth enjoy logs/ppo/CartPole-v1_1/agent.zip
rlsmooth enjoy agent.zip --env CartPole-v1 --episodes 3 --deterministic --video agent.mp4
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from rlsmooth.checks import check_finite_observations, check_positive_int
from rlsmooth.scripts.arguments import PlayArgs, environment_settings
from rlsmooth.scripts.command import run_command
from rlsmooth.scripts.run_folder import agent_file, env_of_run

if TYPE_CHECKING:
    from rlsmooth.scripts.enjoy_video import Sink

HISTORY = 150
"""Steps in the curve of the entropy."""
alias = tyro.conf.arg


@dataclasses.dataclass(frozen=True)
class Args(PlayArgs):
    """Show or film a saved agent."""

    agent: Annotated[tyro.conf.Positional[Path], alias(metavar="AGENT.zip")]
    """The agent.zip, or the folder of the run that wrote it; of an interrupted run, its last checkpoint."""
    episodes: Annotated[int, alias(aliases=["--eval-episodes"])] = 1
    """How many episodes to play."""
    deterministic: bool = False
    """Take the most probable actions; otherwise they are sampled."""
    video: Path | None = None
    """Film it: a name that ends in .mp4 (extra `video`) or .gif. Default: a window."""
    fps: float | None = None
    """Images a second. Default: the environment's own number, or 30."""
    max_steps: int | None = None
    """End after so many steps, whether or not an episode has ended."""
    seed: int = 0
    """Seeds the environment and the sampled actions."""
    no_render: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Draw nothing: only print returns and entropies."""
    device: str = "auto"
    """Where the agent runs: auto, cpu, cuda."""
    num_threads: int = 1
    """How many threads torch and numpy may use: small networks are fastest with one; -1: as many as they would."""


def main(args: Args) -> dict[str, list[float]]:
    """Play, draw, print; return `returns`, `lengths` and `entropies` (mean nats) of the episodes that ended.

    Raises:
        ValueError: an argument is wrong, or names something that is not there, or does not fit; there is no screen.
        ImportError: an .mp4 without imageio-ffmpeg.
    """
    path = agent_file("agent", args.agent, or_checkpoints=True)
    settings = env_of_run(path, environment_settings(args, evaluation=True))
    env = settings.env
    check_positive_int("episodes", args.episodes)
    if args.max_steps is not None:
        check_positive_int("max_steps", args.max_steps)
    if args.fps is not None and not (math.isfinite(args.fps) and args.fps > 0):
        raise ValueError(f"fps={args.fps} must be above 0.")
    if args.no_render and args.video is not None:
        raise ValueError("--no-render draws nothing to put into --video: leave one of them out.")
    # Imported here: options can be listed, and a wrong one reported, without waiting for torch.
    from stable_baselines3.common.utils import set_random_seed

    from rlsmooth.scripts.enjoy_video import check_film, open_sink
    from rlsmooth.scripts.environment import check_device, limit_threads, make_envs
    from rlsmooth.scripts.loading import load_to_play

    if args.video is not None:
        check_film(args.video)
    limit_threads(args.num_threads)
    envs = make_envs(settings, 1, args.seed, vectorization=args.vectorization)
    agent, envs = load_to_play(path, envs, check_device(args.device), trust=args.algo if args.trust else None)
    # Loading has seeded both with the training's own seed.
    set_random_seed(args.seed)
    envs.seed(args.seed)
    try:
        if args.no_render:
            return _play(args, agent, envs, env, None)
        metadata = envs.get_attr("metadata")[0] or {}
        fps = args.fps or float(metadata.get("render_fps") or 30)
        with open_sink(args.video, fps=fps, title=f"{path.name} in {env}") as sink:
            found = _play(args, agent, envs, env, sink)
        if args.video is not None:
            print(f"written to {args.video} ({args.video.stat().st_size / 1024:.0f} KiB)")
        return found
    finally:
        envs.close()


def _play(args: Args, agent: Any, envs: Any, env_id: str, sink: Sink | None) -> dict[str, list[float]]:
    from rlsmooth.agents.sb3 import is_maskable
    from rlsmooth.scripts.enjoy_panel import (
        Entropy,
        action_names,
        beside,
        choices_of,
        draw_panel,
        entropy_of_choice,
        read_choice,
    )

    takes_masks = is_maskable(agent.policy)
    meanings = envs.env_method("get_action_meanings")[0] if _has_meanings(envs) else None
    names = action_names(env_id, meanings, agent.action_space)
    with_frames = sink is not None and _has_frames(envs)
    found: dict[str, list[float]] = {"returns": [], "lengths": [], "entropies": []}
    nats: list[float] = []
    fractions: list[float] = []
    total, begin, steps, state, starts = 0.0, 0, 0, None, np.ones(1, dtype=bool)
    observation: Any = envs.reset()
    while len(found["returns"]) < args.episodes and steps != args.max_steps:
        check_finite_observations(steps, observation)
        masks = np.stack(envs.env_method("action_masks")) if takes_masks else None
        acting = read_choice(agent, observation, masks, state, starts)
        more = {} if masks is None else {"action_masks": masks}
        actions, state = agent.predict(observation, state, starts, args.deterministic, **more)
        entropy, fraction = entropy_of_choice(acting)
        nats.append(entropy)
        if fraction is not None:
            fractions.append(fraction)
        if sink is not None:
            frame = _frame(envs) if with_frames else None
            title = f"{env_id}\nepisode {len(found['returns']) + 1}   step {steps - begin}   return {total:.4g}"
            panel = draw_panel(
                choices_of(acting, actions[0], agent=agent, masks=masks, names=names),
                Entropy(nats=tuple(nats[-HISTORY:]), fractions=tuple(fractions[-HISTORY:])),
                title=title,
                height=0 if frame is None else len(frame),
            )
            sink.show(beside(frame, panel))
        observation, rewards, starts, _ = envs.step(actions)
        total, steps = total + float(rewards[0]), steps + 1
        if starts[0]:
            values = (total, float(steps - begin), float(np.mean(nats[begin:])))
            for name, value in zip(found, values, strict=True):
                found[name].append(value)
            number = len(found["returns"])
            print(f"episode {number}: return {total:.4g}, {values[1]:.0f} steps, entropy {values[2]:.3f} nats")
            total, begin = 0.0, steps
    return found


def _has_frames(envs: Any) -> bool:
    """Whether it draws itself; gymnasium makes an environment without images too."""
    metadata = envs.get_attr("metadata")[0] or {}
    return "rgb_array" in metadata.get("render_modes", ()) and envs.get_attr("render_mode")[0] == "rgb_array"


def _has_meanings(envs: Any) -> bool:
    return callable(getattr(envs.get_attr("unwrapped")[0], "get_action_meanings", None))


def _frame(envs: Any) -> Any:
    from gymnasium.error import DependencyNotInstalled

    try:
        frame = envs.env_method("render")[0]
    except DependencyNotInstalled as error:
        raise ValueError(f"the environment can't draw itself: {error}") from error
    return frame if isinstance(frame, np.ndarray) and frame.ndim == 3 else None


if __name__ == "__main__":
    sys.exit(run_command("enjoy", Args, main))
