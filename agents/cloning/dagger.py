"""DAgger: the learner visits states of its own making, and the expert says what it would have done there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, TypeVar, cast, final

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from rlsmooth.agents import spaces as agent_spaces
from rlsmooth.agents.cloning.bc import BC, SmoothingLike
from rlsmooth.agents.cloning.collection import agreement, collect_round, join
from rlsmooth.agents.cloning.expert import Expert, ExpertLike, ExpertTargets
from rlsmooth.agents.cloning.rounds import (
    ACTING,
    CLONE_SHOWN,
    RoundsModel,
    check_no_other_run,
    check_resumable,
    clone_arguments,
    delete_leftovers,
    read_own_arguments,
    restore_round,
    save_round,
    train_quietly,
)
from rlsmooth.agents.cloning.training_data import ReferenceLike, fingerprint
from rlsmooth.agents.sb3 import Callbacks
from rlsmooth.agents.spaces import check_demonstrations, check_same_spaces
from rlsmooth.checks import check_choice, check_in_range, check_positive_int, check_writable_folder
from rlsmooth.data import Demonstrations
from rlsmooth.schedules import LearningRate
from rlsmooth.targets import one_hot
from rlsmooth.training import SafeFileError, latest_checkpoint
from rlsmooth.training.run import RESUME_FILE

if TYPE_CHECKING:
    pass

__all__ = [
    "BetaSchedule",
    "DAgger",
    "SavedDAgger",
    "aggregate",
    "as_beta_schedule",
    "begin_checkpoints",
    "check_ready",
    "initial_rows",
    "shown_by",
    "write_checkpoint",
]


BetaSchedule: TypeAlias = int | float | Callable[[int], float]


def as_beta_schedule(given: BetaSchedule) -> Callable[[int], float]:
    """The probability that the expert acts, as a function of the round, which counts from 0.

    Args:
        given: a whole number n: from 1 in round 0 straight down to 0 in round n (imitation's `LinearBetaSchedule`); a
            float b in (0, 1]: `b ** round` (its `ExponentialBetaSchedule`); or a function, whose values are checked.

    Raises:
        TypeError: it is none of these; the function's value is no number.
        ValueError: it is outside its range; the function's value is outside [0, 1].

    Example:
        >>> [as_beta_schedule(4)(number) for number in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]
        >>> [as_beta_schedule(0.5)(number) for number in (0, 1, 2)]
        [1.0, 0.5, 0.25]
    """
    if callable(given):
        return lambda number: check_in_range(f"beta_schedule({number})", given(number), 0.0, 1.0)
    value: object = None if isinstance(given, bool) else given  # numpy's numbers are neither int nor float
    if isinstance(value, Integral):
        rounds = check_positive_int("beta_schedule", value)
        return lambda number: max(0.0, (rounds - number) / rounds)
    if isinstance(value, Real):
        base = check_in_range("beta_schedule", value, 0.0, 1.0, low_open=True)
        return lambda number: base**number
    raise TypeError(
        f"beta_schedule must be a whole number of rounds, a float in (0, 1] or a function of the round, got {given!r}."
    )


def shown_by(env: VecEnv, given: object) -> VecEnv:
    """The environment with images as the caller's shows them: Stable-Baselines3 puts a transposer around it.

    Demonstrations and functions as experts know them that way; policies transpose what they get.

    Args:
        env: as Stable-Baselines3 wrapped it.
        given: what the caller gave.
    """
    return env.venv if isinstance(env, VecTransposeImage) and env is not given else env


def initial_rows(
    given: Demonstrations, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> Demonstrations:
    """Initial demonstrations as rounds have them: without rewards and next observations, images in the same layout.

    Args:
        given: what the expert did before.
        observation_space: of the environment.
        action_space: likewise.

    Raises:
        TypeError: they are no demonstrations.
        ValueError: spaces that differ.
    """
    check_demonstrations("demonstrations", given)
    check_same_spaces(
        "demonstrations", (given.observation_space, given.action_space), (observation_space, action_space)
    )
    whole = given[:]
    rows = whole.observations
    return Demonstrations(
        observations={key: _as_shown(rows[key], observation_space[key]) for key in rows}
        if isinstance(rows, dict) and isinstance(observation_space, spaces.Dict)
        else _as_shown(np.asarray(rows), observation_space),
        actions=whole.actions,
        observation_space=observation_space,
        action_space=action_space,
        episode_ends=given.episode_ends,
        terminations=whole.terminations,
        truncations=whole.truncations,
        action_masks=whole.action_masks,
        weights=whole.weights,
        action_probs=whole.action_probs,
    )


def check_ready(agent: DAgger) -> None:
    """Raise ValueError unless the agent has all that `learn` needs."""
    agent._check_can_learn()
    if agent.expert is None:
        raise ValueError("expert is None, so there is nobody to learn from: give it to DAgger(...) or DAgger.load.")
    assert agent.env is not None
    has_masks = agent.env.has_attr("action_masks")
    parts = [*([] if agent.initial is None else [agent.initial]), *agent.rounds]
    for number, part in enumerate(parts, start=0 if agent.initial is None else -1):
        if (part.action_masks is not None) != has_masks:
            raise ValueError(
                f"{'demonstrations' if number < 0 else f'the transitions of round {number}'} "
                f"{'lack' if has_masks else 'have'} action_masks, which the environment "
                f"{'has' if has_masks else 'lacks'}: record and train in the same environment."
            )


def aggregate(initial: Demonstrations | None, rounds: Sequence[Demonstrations]) -> Demonstrations:
    """The initial demonstrations and all rounds so far, one after the other.

    Where one part has soft targets the others' actions become such, of probability 1; where one has weights the others
    weigh 1.
    """
    parts = [*([] if initial is None else [initial]), *rounds]
    latest = parts[-1].observation_space  # another environment may show images in another layout
    parts = [
        part if part.observation_space == latest else initial_rows(part, latest, part.action_space) for part in parts
    ]
    if any(part.action_probs is not None for part in parts):
        parts = [
            part if part.action_probs is not None else part.replace_unchecked(action_probs=_certain(part))
            for part in parts
        ]
    if any(part.weights is not None for part in parts):
        parts = [
            part if part.weights is not None else part.replace_unchecked(weights=np.ones(len(part))) for part in parts
        ]
    return join(parts)


def _certain(part: Demonstrations) -> NDArray[np.float64]:
    assert isinstance(part.action_space, spaces.Discrete)
    labels = torch.from_numpy(part.action_labels)
    found: NDArray[np.float64] = one_hot(labels, int(part.action_space.n)).dense(torch.float64).numpy()
    return found


def _as_shown(images: NDArray[Any], space: spaces.Space[Any]) -> NDArray[Any]:
    """Images whose channels come first where the environment's come last, or the other way round."""
    shape = space.shape or ()
    if images.shape[1:] == shape or len(shape) != 3:
        return images
    last = np.moveaxis(images, 1, -1)
    return last if last.shape[1:] == shape else np.moveaxis(images, -1, 1)


Model = TypeVar("Model", bound="SavedDAgger")

OWN = "dagger"
OWN_ARGUMENTS = (
    "expert_targets",
    "expert_deterministic",
    "learner_deterministic",
    "beta_schedule",
    "rollout_round_min_episodes",
    "rollout_round_min_timesteps",
    "bc_train_n_epochs",
    "seed",
    "n_eval_episodes",
)
STAND_IN_SCHEDULE = 15
"""For a function that a file could not keep; `learn` refuses to start."""


class SavedDAgger(RoundsModel):
    """The part of `DAgger` that reads and writes files."""

    def save(self, path: str | Path) -> Path:
        """Write the clone's agent file, which `BC.load`, `load_agent` and every command read, with the own arguments.

        The demonstrations are not in it: `agent.demonstrations.save`. Nor are functions (`beta_schedule`,
        `learning_rate`): to train on after `load`, pass them again.

        Args:
            path: `.zip` is added to a name without a suffix.

        Returns:
            The path written.

        Raises:
            ValueError: the folder can't be written to.
        """
        agent = cast("DAgger", self)
        own = {name: getattr(agent, name) for name in OWN_ARGUMENTS}
        if callable(own["beta_schedule"]):
            own["beta_schedule"] = None
        return agent.bc.save(path, {OWN: own})

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: GymEnv | str | None = None,
        expert: ExpertLike | None = None,
        *,
        demonstrations: Demonstrations | None = None,
        device: torch.device | str = "auto",
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read a file of `save`. Runs no code that the file could name.

        `learn` then starts with round 0 again, from the policy of the file.

        Args:
            path: the file.
            env: an environment with the same spaces; acting needs none.
            expert: to learn from; acting needs none.
            demonstrations: to begin with, for example those that the saved agent had.
            device: as SB3's.
            policy_class: of a policy of your own.
            custom_objects: `beta_schedule`, `learning_rate`, `smoothing` and `reference` in place of the file's, and
                constructor arguments of a policy of your own.

        Raises:
            SafeFileError: the file is damaged, or of another kind of agent.
            ValueError: spaces that differ.
        """
        return _load(
            cls,
            path,
            env,
            expert,
            device=device,
            policy_class=policy_class,
            custom_objects=custom_objects,
            demonstrations=demonstrations,
        )

    @classmethod
    def resume(
        cls,
        scratch_dir: str | Path,
        env: GymEnv | str,
        expert: ExpertLike,
        *,
        eval_env: GymEnv | str | None = None,
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
        device: torch.device | str = "auto",
        policy_class: type[BasePolicy] | None = None,
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """The agent after the last round that was kept; `learn` with the same total then makes those that are missing.

        On the CPU the parameters at the end equal those of a run that was never cut off, bit for bit, if the expert is
        the same and says the same to the same observations. A round that was cut off is made again from its beginning.
        Callbacks start anew: their own state is not kept.

        Args:
            scratch_dir: of the run; the initial demonstrations are there.
            env: as of the run, with as many environments.
            expert: the same as that of the run.
            eval_env: as of the run.
            tensorboard_log: as of the run.
            verbose: as SB3's.
            device: as SB3's.
            policy_class: see `load`.
            custom_objects: see `load`.

        Raises:
            SafeFileError: no checkpoint can be read.
            DemonstrationsFileError: the episodes of a round are missing or damaged.
            ValueError: there is no run, the number of environments is another, or the episodes are not the run's.
        """
        folder = check_resumable("scratch_dir", scratch_dir)
        initial = _initial_path(folder)
        model = _load(
            cls,
            folder / RESUME_FILE,
            env,
            expert,
            device=device,
            policy_class=policy_class,
            custom_objects=custom_objects,
            demonstrations=Demonstrations.load(initial) if initial.is_file() else None,
            eval_env=eval_env,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            scratch_dir=folder,
        )
        _read_checkpoint(cast("DAgger", model), folder)
        for part in (folder, *folder.glob("demos"), *folder.glob("demos/round-*")):
            if part.is_dir():
                delete_leftovers(part)
        model._kept_in = folder.resolve()
        return model


def begin_checkpoints(agent: DAgger) -> None:
    """Put into the folder what tells how the run began and, of one that goes on, how far it is to go.

    Raises:
        ValueError: the folder holds another run's checkpoints.
    """
    folder = agent.scratch_dir
    assert folder is not None
    check_no_other_run(agent, "scratch_dir", folder)
    if agent.initial is None:
        _initial_path(folder).unlink(missing_ok=True)
    else:
        _initial_path(folder).parent.mkdir(parents=True, exist_ok=True)
        agent.initial.save(_initial_path(folder))
    # A kill in between leaves a run that has just begun, but never one that seems to begin with a trained policy.
    if agent.round == 0:
        agent.save(folder / RESUME_FILE)
    for number, part in enumerate(agent.rounds):
        _save_episodes(folder, number, part)
    _save_counters(agent, folder)
    if agent.round > 0:
        agent.save(folder / RESUME_FILE)


def write_checkpoint(agent: DAgger) -> None:
    """Write all that rounds change: the round's episodes, then parameters, optimiser and counters."""
    folder = agent.scratch_dir
    assert folder is not None
    _save_episodes(folder, len(agent.rounds) - 1, agent.rounds[-1])
    _save_counters(agent, folder)


def _save_counters(agent: DAgger, folder: Path) -> None:
    more = {
        "total_timesteps": agent._total_timesteps,
        "num_timesteps_at_start": agent._num_timesteps_at_start,
        "initial": None if agent.initial is None else fingerprint(agent.initial),
        "episodes": [part.num_episodes for part in agent.rounds],
        "fingerprints": [fingerprint(part) for part in agent.rounds],
    }
    save_round(agent, folder, more)


def _read_checkpoint(agent: DAgger, folder: Path) -> None:
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:  # killed when it began: the resume file is the beginning itself
        return
    config = checkpoint.config
    if config["initial"] != (None if agent.initial is None else fingerprint(agent.initial)):
        raise ValueError(f"{str(_initial_path(folder))!r} does not hold what the run was started with.")
    rounds = []
    for number, (count, known) in enumerate(zip(config["episodes"], config["fingerprints"], strict=True)):
        episodes = [Demonstrations.load(_episode_path(folder, number, place)) for place in range(count)]
        rounds.append(join(episodes))
        if fingerprint(rounds[-1]) != known:
            raise ValueError(f"{str(_round_folder(folder, number))!r} does not hold the episodes of this run.")
    restore_round(agent, checkpoint)
    agent.rounds = rounds
    agent._total_timesteps = int(config["total_timesteps"])
    agent._num_timesteps_at_start = int(config["num_timesteps_at_start"])
    agent.is_resumed = True


def _save_episodes(folder: Path, number: int, part: Demonstrations) -> None:
    _round_folder(folder, number).mkdir(parents=True, exist_ok=True)
    for place in range(part.num_episodes):
        part.select_episodes([place]).save(_episode_path(folder, number, place))


def _initial_path(folder: Path) -> Path:
    return folder / "demos" / "initial.npz"


def _round_folder(folder: Path, number: int) -> Path:
    return folder / "demos" / f"round-{number:03d}"


def _episode_path(folder: Path, number: int, place: int) -> Path:
    return _round_folder(folder, number) / f"{place:03d}.npz"


def _load(
    model_class: type[Model],
    path: str | Path,
    env: GymEnv | str | None,
    expert: ExpertLike | None,
    *,
    device: torch.device | str,
    policy_class: type[BasePolicy] | None,
    custom_objects: Mapping[str, Any] | None,
    **others: Any,
) -> Model:
    path, own = read_own_arguments(path, OWN, OWN_ARGUMENTS, "DAgger")
    custom = dict(custom_objects or {})
    schedule: BetaSchedule | None = custom.pop("beta_schedule", own["beta_schedule"])
    bc = BC.load(path, env, device=device, policy_class=policy_class, custom_objects=custom)
    arguments = {
        **own,
        **clone_arguments(bc),
        "beta_schedule": STAND_IN_SCHEDULE if schedule is None else schedule,
    }
    build: Any = model_class
    spaces = (bc.observation_space, bc.action_space)
    stand_ins = {"beta_schedule": own["beta_schedule"] or STAND_IN_SCHEDULE}
    try:  # of the file alone, so that the caller's mistakes are not put down to it
        build(bc.policy, spaces, None, device=device, **{**arguments, **stand_ins})
    except (TypeError, ValueError) as error:
        raise SafeFileError(f"{str(path)!r} has malformed arguments ({error}). Use another copy.") from error
    # The environment as it was given: its kind decides how a function is asked.
    model: Any = build(bc.policy, spaces if env is None else env, expert, device=device, **arguments, **others)
    model.missing = (*bc.missing, *(() if schedule is not None else ("beta_schedule",)))
    loaded: Model = model
    return loaded


@final
class DAgger(SavedDAgger):
    """Clone an expert that can be asked, on the states that the clone itself gets into, with smoothed targets.

    Plain cloning (`BC`) sees the expert's states only. Where a small mistake leads elsewhere, the clone does not know
    what to do, and the mistakes add up: quadratically in the episode's length, where DAgger's grow linearly. Each round
    (1) acts by a mixture, in every step with probability beta as the expert, else as the learner; (2) asks the expert
    for its action at every state on the way; (3) adds these to all transitions so far; (4) trains the policy on all of
    them by `BC`, whose targets are smoothed:

        loss = CE(smoothed target, pi) + kl_coef · KL(reference‖pi)     (nats; see `BC`)

    Source: Ross et al. 2011, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online
    Learning", algorithm 3.1. Rounds, schedules and defaults are those of the imitation library's
    `SimpleDAggerTrainer`, but for the smoothing. The agent is used as a model of Stable-Baselines3. A seeded run
    repeats bit for bit, if the expert says the same to the same observations.

    Episodes must end: put a `TimeLimit` around an environment that goes on for ever. Masks are asked from an
    environment that has `action_masks()`: the learner takes no illegal action, an illegal one of the expert is an
    error.

    Log lines, one a round, under `dagger/`: `round` (how many are done), `beta`, `learner_share` (of the steps),
    `transitions` (of all rounds, and initial ones), `expert_agreement` (share of this round's states at which the
    learner, before it was trained on them, would have done what the expert did; of a Box `expert_error`, root mean
    square), `cross_entropy`, `nll_hard`, `accuracy`, `ece`, `policy_entropy`, `entropy_frac`, `kl_uniform`,
    `kl_reference`, `smoothing` (as under `bc/`, over all transitions, after training), with an `eval_env`
    `mean_reward`, `mean_reward_sampled` and so on; and imitation's `mean_episode_reward` (of the mixture),
    `total_timesteps`, `round_num` (from 0), `round_episode_count`, `round_timestep_count`.

    Args:
        policy: as of `BC`.
        env: an environment (id, Gymnasium or VecEnv) to act in, or `(observation_space, action_space)` for an agent
            that only acts. A `VecNormalize` must not be training.
        expert: an SB3 algorithm or policy, an agent of ours, the path of an agent file (see `load_agent`), or a
            function. With an id or a single environment a function gets one observation and returns one action, with a
            vectorised one it gets and returns batches; one that needs three arguments is called as in imitation,
            `(observations, state, episode_start) -> (actions, state)`, with batches. Maskable policies get the masks,
            recurrent ones their state, and a model trained in a `VecNormalize` its own normalised observations. None
            for an agent that only acts.
        demonstrations: of the expert, to begin with; part of the data of every round (imitation's `expert_trajs`).
        expert_targets: `"actions"`, or `"probabilities"`: clone the probabilities of all the expert's actions in place
            of the one that it takes, smoothed as labels are; for a Discrete action space. A function then returns
            probabilities `[K]` (batches: `[n, K]`). Of a policy that knows no masks the legal actions' probabilities
            are divided by their sum; a function must leave illegal ones at 0 itself.
        expert_deterministic: ask for the expert's most probable action, else a sampled one; says nothing to a function
            that returns actions.
        learner_deterministic: the mixture's learner takes its most probable action, else a sampled one.
        beta_schedule: a whole number n: from 1 in round 0 straight down to 0 in round n; a float b in (0, 1]:
            `b ** round`; or a function of the round, with values in [0, 1].
        rollout_round_min_episodes: a round ends when it has so many episodes and ...
        rollout_round_min_timesteps: ... they so many steps.
        bc_train_n_epochs: passes over all transitions in each round.
        smoothing: as of `BC`.
        kl_coef: as of `BC`.
        reference: as of `BC`.
        reference_std: as of `BC`.
        action_bins: as of `BC`.
        learning_rate: as of `BC`, a schedule runs once a round.
        batch_size: as of `BC`.
        max_grad_norm: as of `BC`.
        l2_coef: as of `BC`.
        policy_kwargs: as SB3's.
        seed: as of `BC`; of the environments too.
        device: as SB3's.
        tensorboard_log: folder for TensorBoard files; None: none.
        verbose: 0 nothing, 1 logs on the terminal.
        scratch_dir: where each round's episodes go, and a checkpoint that `resume` goes on from; None: nowhere.
        eval_env: environment of an evaluation at the end of each round; None: there are none.
        n_eval_episodes: episodes of an evaluation, so many deterministic and so many sampled.

    Attributes:
        bc: the clone: what `SmoothedPPO.from_bc` takes.
        expert: the argument.
        initial: the initial demonstrations, or None.
        rounds: what each round has seen, labelled by the expert.
        demonstrations: all of it; None before the first round without initial ones. There are neither rewards nor next
            observations: those belong to what was done, which need not be what the expert says.
        round: how many rounds are done.
        history: the numbers of each round's log line, without `dagger/`.
        num_timesteps: steps that were made, those left out that an environment had to make after its last episode.

    Raises:
        TypeError: an argument of a kind that is not listed; see `BC`.
        ValueError: a value outside its range, spaces that differ, probabilities of another action space than a Discrete
            one; see `BC`.

    Example:
        >>> from rlsmooth.envs import IdentityEnv
        >>> env = IdentityEnv(4, episode_length=10)
        >>> agent = DAgger("MlpPolicy", env, env.expert_action, rollout_round_min_timesteps=50, learning_rate=0.01,
        ...     bc_train_n_epochs=20, seed=0, device="cpu").learn(100)
        >>> agent.round, agent.num_timesteps, len(agent.demonstrations), agent.history[-1]["accuracy"]
        (2, 100, 100, 1.0)
    """

    PREFIX: ClassVar[str] = "dagger"

    def __init__(
        self,
        policy: str | type[BasePolicy] | BasePolicy,
        env: GymEnv | str | tuple[spaces.Space[Any], spaces.Space[Any]],
        expert: ExpertLike | None,
        *,
        demonstrations: Demonstrations | None = None,
        expert_targets: ExpertTargets = "actions",
        expert_deterministic: bool = True,
        learner_deterministic: bool = False,
        beta_schedule: BetaSchedule = 15,
        rollout_round_min_episodes: int = 3,
        rollout_round_min_timesteps: int = 500,
        bc_train_n_epochs: int = 4,
        smoothing: SmoothingLike | Sequence[SmoothingLike] = 0.1,
        kl_coef: float = 0.0,
        reference: ReferenceLike | Sequence[ReferenceLike] | None = None,
        reference_std: float | None = None,
        action_bins: int | None = None,
        learning_rate: LearningRate = 1e-3,
        batch_size: int = 32,
        max_grad_norm: float | None = None,
        l2_coef: float = 0.0,
        policy_kwargs: Mapping[str, Any] | None = None,
        seed: int | None = None,
        device: torch.device | str = "auto",
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
        scratch_dir: str | Path | None = None,
        eval_env: GymEnv | str | None = None,
        n_eval_episodes: int = 10,
    ) -> None:
        check_choice("expert_targets", expert_targets, ("actions", "probabilities"))
        self.expert_targets = expert_targets
        self.expert_deterministic = bool(expert_deterministic)
        self.learner_deterministic = bool(learner_deterministic)
        # A file keeps plain numbers only.
        self.beta_schedule = beta_schedule.item() if isinstance(beta_schedule, np.generic) else beta_schedule
        self.beta = as_beta_schedule(beta_schedule)
        self.rollout_round_min_episodes = check_positive_int("rollout_round_min_episodes", rollout_round_min_episodes)
        self.rollout_round_min_timesteps = check_positive_int(
            "rollout_round_min_timesteps", rollout_round_min_timesteps
        )
        self.bc_train_n_epochs = check_positive_int("bc_train_n_epochs", bc_train_n_epochs)
        self.n_eval_episodes = check_positive_int("n_eval_episodes", n_eval_episodes)
        self.tensorboard_log = None
        if tensorboard_log is not None:
            self.tensorboard_log = str(check_writable_folder("tensorboard_log", tensorboard_log))
        self.verbose = verbose
        self.scratch_dir = None if scratch_dir is None else check_writable_folder("scratch_dir", scratch_dir)
        if env is None:
            raise TypeError("env is None: give an environment, or (observation_space, action_space) to act only.")
        self.env, observation_space, self.action_space = agent_spaces.resolve_spaces(env, None, verbose)
        self._clone_arguments: dict[str, Any] = {
            "smoothing": smoothing,
            "kl_coef": kl_coef,
            "reference": reference,
            "reference_std": reference_std,
            "action_bins": action_bins,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "max_grad_norm": max_grad_norm,
            "l2_coef": l2_coef,
        }
        self.bc = BC(
            policy,
            (observation_space, self.action_space),
            None,
            policy_kwargs=policy_kwargs,
            seed=seed,
            device=device,
            **self._clone_arguments,
        )
        self.policy, self.seed, self.device = self.bc.policy, self.bc.seed, self.bc.device
        self.observation_space, self.bins = self.bc.observation_space, self.bc.bins
        self.action_start = self.bc.action_start
        self.eval_env = None if eval_env is None else agent_spaces.wrap_env("eval_env", eval_env, verbose)
        agent_spaces.check_all_spaces((self.observation_space, self.action_space), None, None, self.eval_env)

        self._is_batched = isinstance(env, VecEnv)
        self._shown = None if self.env is None else shown_by(self.env, env)
        self.expert = expert
        self._asked: Expert | None = None
        if expert is not None and self._shown is not None:
            self._asked = self._expert_in(self._shown, expert)
        shown = observation_space if self._shown is None else self._shown.observation_space
        self.initial = None if demonstrations is None else initial_rows(demonstrations, shown, self.action_space)
        self.rounds: list[Demonstrations] = []
        self._aggregated: Demonstrations | None = None
        self.round = self.num_timesteps = 0
        self._total_timesteps = self._num_timesteps_at_start = 0
        self.history: list[dict[str, float]] = []
        self.n_envs = 1 if self.env is None else self.env.num_envs
        self.is_resumed = False
        self.missing: tuple[str, ...] = ()
        self._logger = None
        self._has_logger = self._has_custom_logger = False

    @property
    def demonstrations(self) -> Demonstrations | None:
        """All transitions so far, labelled by the expert; None where there are none."""
        if self._aggregated is None and (self.initial is not None or self.rounds):
            self._aggregated = aggregate(self.initial, self.rounds)
        return self._aggregated

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """Use another environment from now on; see `ActingModel.set_env`."""
        super().set_env(env, force_reset)
        assert self.env is not None
        self._is_batched, self._shown, self._asked = isinstance(env, VecEnv), shown_by(self.env, env), None

    def learn(
        self,
        total_timesteps: int,
        callback: Callbacks = None,
        *,
        tb_log_name: str = "DAgger",
        progress_bar: bool = False,
    ) -> Self:
        """Make whole rounds until there are `total_timesteps` steps or more (imitation's `train`).

        A second call goes on: with the same policy, transitions, round number and log, for so many steps more. After
        `resume` it must have the same total as the call that was cut off.

        Args:
            total_timesteps: of all environments together.
            callback: SB3's callbacks, one or a list; a rollout is a round's acting, a step one of all environments. One
                that returns False ends the training there; the round that it breaks off leaves nothing.
            tb_log_name: of the run's folder in `tensorboard_log`.
            progress_bar: show one, of steps.

        Returns:
            The agent itself.

        Raises:
            TypeError: `total_timesteps` is no whole number.
            ValueError: no expert, no environment, an argument that the file could not keep, another total than that of
                the run that is resumed, a scratch folder with another run in it, an illegal action of the expert,
                initial demonstrations without the masks that the environment has.
            TrainingDivergedError: see `BC.learn`.
        """
        total = check_positive_int("total_timesteps", total_timesteps)
        check_ready(self)
        if self.is_resumed:
            planned = self._total_timesteps - self._num_timesteps_at_start
            if total != planned:
                raise ValueError(
                    f"the run that is resumed was for total_timesteps={planned}, not {total}: ask for more in another "
                    "call."
                )
        else:
            self._num_timesteps_at_start = self.num_timesteps
            self._total_timesteps = self.num_timesteps + total
        self._prepare_logger(tb_log_name, goes_on=self.is_resumed)
        if self.scratch_dir is not None and not self.is_resumed:
            begin_checkpoints(self)
        self.is_resumed = False
        listener = self._prepare_callback(callback)
        if listener is not None:
            listener.on_training_start({"self": self, "total_timesteps": self._total_timesteps}, globals())
        span = {"total": self._total_timesteps, "initial": self.num_timesteps, "unit": "step"}
        with tqdm(**span, disable=not progress_bar) as bar:
            while self.num_timesteps < self._total_timesteps and self._one_round(listener, bar):
                pass
        if listener is not None:
            listener.on_training_end()
        return self

    def _one_round(self, listener: BaseCallback | None, bar: Any) -> bool:
        """Act, ask, add, clone; returns False if a callback ended it."""
        assert self._shown is not None
        assert self.expert is not None
        if self._asked is None or self._asked.origin is not self.expert:
            self._asked = self._expert_in(self._shown, self.expert)
        bar.set_postfix_str("acting")
        if listener is not None:
            listener.on_rollout_start()
        before, beta = self.num_timesteps, self.beta(self.round)

        def after_step(num_kept: int) -> bool:
            self.num_timesteps += num_kept
            bar.update(num_kept)
            return listener is None or listener.on_step()

        try:
            made = collect_round(
                self.bc,
                self._asked,
                self._shown,
                beta=beta,
                min_episodes=self.rollout_round_min_episodes,
                min_timesteps=self.rollout_round_min_timesteps,
                seed=self._seed_of(ACTING),
                learner_deterministic=self.learner_deterministic,
                after_step=after_step,
            )
        except BaseException:  # the round leaves nothing
            self.num_timesteps = before
            raise
        if made is None:
            self.num_timesteps = before
            return False
        if listener is not None:
            listener.on_rollout_end()

        bar.set_postfix_str("cloning")
        agreed = agreement(self.bc, made.demonstrations)
        rounds = [*self.rounds, made.demonstrations]
        together = aggregate(self.initial, rounds)
        clone = self._new_clone(together)
        cloned = train_quietly(clone, self.bc_train_n_epochs)
        found = {
            "round": float(self.round + 1),
            "round_num": float(self.round),
            "beta": beta,
            "learner_share": made.learner_share,
            "transitions": float(len(together)),
            "total_timesteps": float(self.num_timesteps),
            "round_episode_count": float(len(made.returns)),
            "round_timestep_count": float(len(made.demonstrations)),
            "mean_episode_reward": float(made.returns.mean()),
            **agreed,
            **{name: cloned[name] for name in CLONE_SHOWN if name in cloned},
        }
        self.bc, self.rounds, self._aggregated = clone, rounds, together
        self.round += 1
        if self.eval_env is not None:
            bar.set_postfix_str("playing")
            found |= self.evaluate()
        self._log(found)
        if self.scratch_dir is not None:
            write_checkpoint(self)
        return True

    def _expert_in(self, env: VecEnv, expert: ExpertLike) -> Expert:
        return Expert(
            expert,
            env,
            targets=self.expert_targets,
            deterministic=self.expert_deterministic,
            batched=self._is_batched,
        )
