"""Draw what a policy chooses from: its action probabilities and entropy, beside the environment's frame.

Drawn with Pillow, in a few milliseconds. Images are `[height, width, 3]` uint8, with even sides for the video codecs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from rlsmooth.agents import BC
from rlsmooth.agents.smoothed.distributions import MixedCategorical, MixedGaussian
from rlsmooth.agents.smoothed.measures import read_distribution
from rlsmooth.scripts.figures.page import BLUE, GREY, INK, ORANGE
from rlsmooth.scripts.loading import off_policy_acting

Frame = NDArray[np.uint8]
Pen = ImageDraw.ImageDraw

WIDTH, LEAST_HEIGHT, WIDEST = 360, 320, 800
MARGIN, LINE = 14, 17
NAME_WIDTH, NUMBER_WIDTH = 96, 48
CURVE = 64
FEW = 12
PALE, SHADE = "#E8E8E8", "#F4F4F4"

NAMES = {
    "CartPole": ("left", "right"),
    "MountainCar": ("left", "none", "right"),
    "Acrobot": ("torque -1", "none", "torque +1"),
    "LunarLander": ("none", "left engine", "main engine", "right engine"),
    "FrozenLake": ("left", "down", "right", "up"),
    "CliffWalking": ("up", "right", "down", "left"),
    "Taxi": ("south", "north", "east", "west", "pick up", "drop off"),
    "Blackjack": ("stick", "hit"),
}
"""Of Gymnasium's own environments, by the id without its version."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """One discrete component.

    Attributes:
        probabilities: `[K]`, of the behaviour policy.
        legal: bool `[K]`.
        chosen: the one taken.
        names: K of them.
    """

    probabilities: NDArray[np.float64]
    legal: NDArray[np.bool_]
    chosen: int
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BoxChoice:
    """One continuous dimension, in the environment's units.

    Attributes:
        mean: of the Gaussian.
        std: of the Gaussian.
        low: the bound, or -inf.
        high: the bound, or inf.
        taken: the action.
        name: of the dimension.
    """

    mean: float
    std: float
    low: float
    high: float
    taken: float
    name: str


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """Entropies of the behaviour policy, the newest last.

    Attributes:
        nats: of each of the last steps.
        fractions: H / log n_legal of each, NaN where there was no choice; empty for continuous actions.
    """

    nats: tuple[float, ...]
    fractions: tuple[float, ...] = ()


# ---- the choice


def action_names(env_id: str, meanings: Sequence[str] | None, space: spaces.Space[Any]) -> tuple[str, ...] | None:
    """Names of a Discrete space's actions, or None where nobody has given any.

    Args:
        env_id: of the environment.
        meanings: what the environment's `get_action_meanings()` gave, as Atari's do, or None.
        space: of the actions.

    Examples:
        >>> action_names("CartPole-v1", None, spaces.Discrete(2))
        ('left', 'right')
    """
    if not isinstance(space, spaces.Discrete):
        return None
    known = tuple(meanings) if meanings is not None else NAMES.get(env_id.rpartition("-v")[0], ())
    return tuple(name.lower() for name in known) if len(known) == space.n else None


@torch.no_grad()
def read_choice(
    agent: Any, observation: Any, masks: NDArray[Any] | None, state: Any, starts: NDArray[Any]
) -> MixedCategorical | MixedGaussian:
    """The distribution from which an agent is about to act; no random generator moves.

    Args:
        agent: a `BC` or an algorithm.
        observation: a batch of them, as `predict` takes.
        masks: bool, True = legal, or None.
        state: as `predict` gave it, or None.
        starts: bool, 1 where an episode begins.

    Raises:
        ValueError: the agent acts from no distribution.
    """
    policy = agent.policy
    policy.set_training_mode(False)
    tensors, _ = policy.obs_to_tensor(observation)
    if isinstance(agent, OffPolicyAlgorithm):
        return off_policy_acting(agent, tensors)
    action_masks = None if masks is None else torch.as_tensor(masks, dtype=torch.bool, device=policy.device)
    if state is None:  # no memory, or none yet
        return read_distribution(policy, tensors, action_masks, None, None)
    hidden, cell = (torch.as_tensor(part, device=policy.device) for part in state)
    begins = torch.as_tensor(starts, dtype=torch.float32, device=policy.device)
    return read_distribution(policy, tensors, action_masks, (hidden, cell), begins)


def choices_of(
    acting: MixedCategorical | MixedGaussian,
    action: NDArray[Any],
    *,
    agent: Any,
    masks: NDArray[Any] | None = None,
    names: tuple[str, ...] | None = None,
) -> list[Choices] | list[BoxChoice]:
    """The probabilities that a distribution gives the actions of its first state, and the action taken.

    Args:
        acting: of one state.
        action: taken there, as the environment takes it.
        agent: whose distribution it is.
        masks: bool `[1, number of choices]`, or None: all are legal.
        names: of a Discrete space's actions; None: their numbers.
    """
    space = agent.action_space
    if isinstance(acting, MixedGaussian):
        return _dimensions(acting, np.asarray(action, dtype=np.float64).ravel(), space, agent.policy.squash_output)
    bins = agent.bins if isinstance(agent, BC) else None
    if bins is not None:
        chosen = bins.encode(np.asarray(action).reshape(1, -1))[0]
        middles = [bins.decode(np.full(len(acting.dims), place)).ravel() for place in range(bins.num_bins)]
        named = [tuple(f"{row[part]:.3g}" for row in middles) for part in range(len(acting.dims))]
    else:
        starts = np.ravel(space.start) if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) else 0
        first = np.broadcast_to(starts, (len(acting.dims),))
        chosen = np.asarray(action).ravel().astype(np.int64) - first
        named = [
            tuple(str(int(begin) + place) for place in range(size))
            for begin, size in zip(first, acting.dims, strict=True)
        ]
    probabilities = [part[0].double().cpu().numpy() for part in acting.probabilities()]
    legal = _legal(acting.dims, masks)
    return [
        Choices(probabilities=part, legal=allowed, chosen=int(taken), names=names or numbers)
        for part, allowed, taken, numbers in zip(probabilities, legal, chosen, named, strict=True)
    ]


def entropy_of_choice(acting: MixedCategorical | MixedGaussian) -> tuple[float, float | None]:
    """Entropy of the behaviour policy in the first state, nats, and its fraction of the largest.

    The fraction is NaN where there was no choice, and None for continuous actions.
    """
    exact = acting.mixture_entropy()
    if isinstance(acting, MixedGaussian):
        return float((acting.mixture_entropy_estimate(256) if exact is None else exact)[0].detach()), None
    assert exact is not None
    fractions, has_choice = acting.entropy_fractions()
    return float(exact[0]) + 0.0, float(fractions[0]) + 0.0 if bool(has_choice[0]) else math.nan


def _legal(dims: tuple[int, ...], masks: NDArray[Any] | None) -> list[NDArray[np.bool_]]:
    flat = np.ones(sum(dims), dtype=bool) if masks is None else np.asarray(masks, dtype=bool).ravel()
    return np.split(flat, np.cumsum(dims)[:-1])


def _dimensions(
    acting: MixedGaussian, taken: NDArray[np.float64], space: spaces.Box, is_squashed: bool
) -> list[BoxChoice]:
    # A policy's standard deviations are one a dimension, a state's own with gSDE.
    mean = acting.mean[0].double().cpu().numpy().ravel()
    std = np.broadcast_to(acting.behaviour_log_std.exp().double().cpu().numpy(), acting.mean.shape)[0].ravel()
    low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
    if is_squashed:
        ends = [low + (np.tanh(mean + side * std) + 1) / 2 * (high - low) for side in (-1, 0, 1)]
        mean, std = ends[1], (ends[2] - ends[0]) / 2
    return [
        BoxChoice(
            mean=float(mean[i]),
            std=float(std[i]),
            low=float(low[i]),
            high=float(high[i]),
            taken=float(taken[i]),
            name=str(i),
        )
        for i in range(len(mean))
    ]


# ---- the panel


def draw_panel(
    choices: Sequence[Choices] | Sequence[BoxChoice], entropy: Entropy, *, title: str, height: int = LEAST_HEIGHT
) -> Frame:
    """Draw the panel: a title, bars of probabilities (or mean ± std against the bounds), and the entropy's curve.

    Where the actions are too many for a line each, they become columns of a chart; illegal ones are grey.

    Args:
        choices: of each component or dimension; those without room are counted in a last line.
        entropy: of this step and those before.
        title: lines above all.
        height: of the image, at least 320 and even.

    Examples:
        >>> coin = Choices(probabilities=np.array([0.9, 0.1]), legal=np.array([True, True]), chosen=0, names=("a", "b"))
        >>> draw_panel([coin], Entropy(nats=(0.325,), fractions=(0.469,)), title="CartPole-v1").shape
        (320, 360, 3)
    """
    height = max(LEAST_HEIGHT, height + height % 2)
    image = Image.new("RGB", (WIDTH, height), "white")
    pen = ImageDraw.Draw(image)
    y = MARGIN - 4
    for number, line in enumerate(title.splitlines()):
        pen.text((MARGIN, y), line, fill=INK if number == 0 else GREY, font=_font(14 if number == 0 else 12))
        y += LINE + 2
    bottom = height - MARGIN - CURVE - LINE - 6
    if choices and isinstance(choices[0], BoxChoice):
        _draw_box([part for part in choices if isinstance(part, BoxChoice)], pen, y + 4, bottom)
    else:
        _draw_choices([part for part in choices if isinstance(part, Choices)], pen, y + 4, bottom)
    _draw_entropy(entropy, pen, bottom + 6, height - MARGIN)
    return np.asarray(image)


def beside(frame: NDArray[Any] | None, panel: Frame) -> Frame:
    """A frame and the panel of its height, side by side; the panel alone where there is no frame.

    Args:
        frame: `[height, width, 3]` uint8, or None. A small one is enlarged by a whole factor.
        panel: drawn by `draw_panel`.

    Raises:
        ValueError: the frame has another shape or dtype, or is higher than the panel.
    """
    if frame is None:
        return panel
    pixels = np.asarray(frame)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"frame must be uint8 of shape [height, width, 3], got {pixels.dtype} {pixels.shape}.")
    if pixels.shape[0] > len(panel):
        raise ValueError(f"frame has {pixels.shape[0]} rows, the panel {len(panel)}: draw the panel as high.")
    factor = max(1, min(len(panel) // pixels.shape[0], WIDEST // pixels.shape[1]))
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    rows, columns, _ = pixels.shape
    canvas: Frame = np.full((len(panel), columns + columns % 2 + panel.shape[1], 3), 255, dtype=np.uint8)
    top = (len(panel) - rows) // 2
    canvas[top : top + rows, :columns] = pixels
    canvas[:, -panel.shape[1] :] = panel
    return canvas


# ---- discrete components


def _draw_choices(components: Sequence[Choices], pen: Pen, top: int, bottom: int) -> None:
    pen.text((MARGIN, top), "action probabilities", fill=INK, font=_font(12))
    top += LINE + 2
    lines = sum(len(part.names) for part in components) + len(components) - 1
    if lines * LINE <= bottom - top:
        for part in components:
            for place in range(len(part.names)):
                _draw_bar(part, place, pen, top)
                top += LINE
            top += LINE // 2
        return
    shown = min(len(components), max(1, (bottom - top) // (2 * LINE)))
    left_out = len(components) - shown
    each = (bottom - top - (LINE if left_out else 0)) // shown
    for number, part in enumerate(components[:shown]):
        _draw_columns(
            part, pen, top + number * each, top + (number + 1) * each - 4, number if len(components) > 1 else None
        )
    if left_out:
        pen.text((MARGIN, bottom - LINE), f"and {left_out} more components", fill=GREY, font=_font(11))


def _draw_bar(part: Choices, place: int, pen: Pen, y: int) -> None:
    left, right = MARGIN + NAME_WIDTH, WIDTH - MARGIN - NUMBER_WIDTH
    taken, legal = part.chosen == place, bool(part.legal[place])
    pen.text((MARGIN, y), _cut(part.names[place], 14), fill=INK if legal else GREY, font=_font(12))
    pen.rectangle((left, y + 2, right, y + LINE - 4), fill=PALE if legal else SHADE)
    if not legal:
        pen.text((left + 6, y + 1), "illegal", fill=GREY, font=_font(11))
        return
    probability = float(part.probabilities[place])
    length = round(probability * (right - left))
    if length:
        pen.rectangle((left, y + 2, left + length, y + LINE - 4), fill=ORANGE if taken else BLUE)
    if taken:
        pen.rectangle((left - 1, y + 1, right + 1, y + LINE - 3), outline=ORANGE)
    number = f"{100 * probability:.1f} %"
    pen.text((WIDTH - MARGIN, y), number, fill=INK, font=_font(12), anchor="ra")


def _draw_columns(part: Choices, pen: Pen, top: int, bottom: int, number: int | None) -> None:
    left, right = MARGIN + (28 if number is not None else 0), WIDTH - MARGIN - NUMBER_WIDTH
    if number is not None:
        pen.text((MARGIN, (top + bottom) // 2 - 7), str(number), fill=GREY, font=_font(11))
    pen.rectangle((left, top, right, bottom), fill=SHADE)
    count = len(part.names)
    edges = np.linspace(left, right, count + 1)
    # Many actions have small probabilities each: the highest column then fills the chart, and a number says how much.
    most = float(part.probabilities.max()) if count > FEW else 1.0
    for place in range(count):
        x, end = round(edges[place]), max(round(edges[place]), round(edges[place + 1]) - (2 if count < 100 else 0))
        if not part.legal[place]:
            pen.rectangle((x, bottom - 2, end, bottom), fill=GREY)
            continue
        length = round(float(part.probabilities[place]) / most * (bottom - top))
        colour = ORANGE if place == part.chosen else BLUE
        if length or place == part.chosen:
            pen.rectangle((x, bottom - length, end, bottom), fill=colour)
    notes = [(_cut(part.names[part.chosen], 7), ORANGE), (f"{100 * float(part.probabilities[part.chosen]):.1f} %", INK)]
    if most < 1:
        notes.append((f"top {100 * most:.0f} %", GREY))
    for line, (text, colour) in enumerate(notes[: max(1, (bottom - top + 4) // (LINE - 3))]):
        pen.text((WIDTH - MARGIN, top + line * (LINE - 3)), text, fill=colour, font=_font(11), anchor="ra")


# ---- continuous dimensions


def _draw_box(dimensions: Sequence[BoxChoice], pen: Pen, top: int, bottom: int) -> None:
    pen.text((MARGIN, top), "mean ± std, and the action taken", fill=INK, font=_font(12))
    top += LINE + 2
    each = 2 * LINE
    shown = min(len(dimensions), max(1, (bottom - top - LINE) // each))
    for number, part in enumerate(dimensions[:shown]):
        _draw_interval(part, pen, top + number * each)
    if shown < len(dimensions):
        rest = f"and {len(dimensions) - shown} more dimensions"
        pen.text((MARGIN, bottom - LINE), rest, fill=GREY, font=_font(11))


def _draw_interval(part: BoxChoice, pen: Pen, y: int) -> None:
    left, right = MARGIN + 40, WIDTH - MARGIN
    # Without bounds: three stds around 0 and the mean, so that the image does not jump from step to step.
    reach = abs(part.mean) + 3 * part.std
    low = part.low if math.isfinite(part.low) else min(-reach, part.high)
    high = part.high if math.isfinite(part.high) else max(reach, low + 1e-6)

    def place(value: float) -> int:
        return round(left + min(1.0, max(0.0, (value - low) / (high - low))) * (right - left))

    pen.text((MARGIN, y), _cut(part.name, 5), fill=INK, font=_font(12))
    pen.rectangle((left, y + 2, right, y + LINE - 4), fill=PALE)
    pen.rectangle((place(part.mean - part.std), y + 2, place(part.mean + part.std), y + LINE - 4), fill=BLUE)
    middle, taken = place(part.mean), place(part.taken)
    pen.line((middle, y, middle, y + LINE - 2), fill=INK, width=2)
    pen.ellipse((taken - 4, y + 3, taken + 4, y + LINE - 6), fill=ORANGE, outline="white")
    bounds = f"[{_bound(part.low)}, {_bound(part.high)}]"
    numbers = f"{part.mean:+.2f} ± {part.std:.2f}   took {part.taken:+.2f}"
    pen.text((left, y + LINE - 2), numbers, fill=INK, font=_font(11))
    pen.text((right, y + LINE - 2), bounds, fill=GREY, font=_font(11), anchor="ra")


def _bound(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else ("-inf" if value < 0 else "inf")


# ---- the entropy


def _draw_entropy(entropy: Entropy, pen: Pen, top: int, bottom: int) -> None:
    text = f"entropy {entropy.nats[-1]:.2f} nats" if entropy.nats else "entropy"
    if entropy.fractions:
        share = entropy.fractions[-1]
        text += ", no choice" if math.isnan(share) else f", {100 * share:.0f} % of the largest"
    pen.text((MARGIN, top), text, fill=INK, font=_font(12))
    top += LINE + 2
    pen.rectangle((MARGIN, top, WIDTH - MARGIN, bottom), fill=SHADE)
    values = entropy.fractions or entropy.nats
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return
    # A share has its own scale; a differential entropy that of what is shown, at least one nat.
    low, high = (0.0, 1.0) if entropy.fractions else _range(finite)
    steps = np.linspace(MARGIN + 2, WIDTH - MARGIN - 40, max(len(values), 2))
    heights = [bottom - 2 - (value - low) / (high - low) * (bottom - top - 4) for value in values]
    run: list[tuple[float, float]] = []
    for x, y in [*zip(steps, heights, strict=False), (0.0, math.nan)]:
        if math.isfinite(y):
            run.append((float(x), y))
            continue
        if len(run) > 1:
            pen.line(run, fill=BLUE, width=2)
        elif run:
            pen.ellipse((run[0][0] - 1, run[0][1] - 1, run[0][0] + 1, run[0][1] + 1), fill=BLUE)
        run = []
    pen.text((WIDTH - MARGIN - 3, top + 1), _scale(high, entropy), fill=GREY, font=_font(10), anchor="ra")
    pen.text((WIDTH - MARGIN - 3, bottom - 13), _scale(low, entropy), fill=GREY, font=_font(10), anchor="ra")


def _range(values: Sequence[float]) -> tuple[float, float]:
    middle, reach = (max(values) + min(values)) / 2, max(0.5, 0.55 * (max(values) - min(values)))
    return middle - reach, middle + reach


def _scale(value: float, entropy: Entropy) -> str:
    return f"{100 * value:.0f} %" if entropy.fractions else f"{value:.1f}"


def _cut(name: str, letters: int) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
